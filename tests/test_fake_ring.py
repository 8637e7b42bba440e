"""The simulated kernel: what it chooses, what it has go wrong, and that a seed repeats it."""

from __future__ import annotations

import dataclasses
import errno
import os
import select
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

import anyio_uring.testing
from anyio_uring import ChainError, Instrument, OperationTrace, UringOptions, atomic_write, current, open_uring
from anyio_uring._driver import CANCEL, GENERATION, MEMBER
from anyio_uring._requests import Opcode, Request
from anyio_uring.testing import FakeRing, Faults, _fake_driver
from anyio_uring.testing._fake_driver import DRAIN_MAX, FakeDriver, _State

from .helpers import WITHOUT_DEBUG, in_flight, until

ENOENT, EALREADY, ECANCELED, EINTR = -errno.ENOENT, -errno.EALREADY, -errno.ECANCELED, -errno.EINTR
DEPTH = 64


@pytest.fixture
def fd(path: Path) -> Iterator[int]:
    number = os.open(path, os.O_RDWR)
    yield number
    os.close(number)


@pytest.fixture
def seed() -> int:
    return 1


# --- the driver alone, turn by turn ---------------------------------------------------------------------


def _open(ring: FakeRing, depth: int = DEPTH) -> FakeDriver:
    driver: FakeDriver = ring.open_driver(UringOptions(depth=depth))
    return driver


def _reads(fd: int, count: int) -> list[Request]:
    return [Request(Opcode.READ, fd, bytearray(4), 4 * i) for i in range(count)]


def _run(
    driver: FakeDriver, requests: list[Request], *, cancel_behind: int = -1, order: Callable[[Any], Any] = iter
) -> list[list[int]]:
    """
    Submit requests, and cancel all of them some turns later; return what each turn gave, until all is there.

    :param order: in which they are cancelled
    """
    rows, _, results = driver.prepare(GENERATION, requests)
    left, targets, missing = [(rows, 0, len(rows))], [], len(requests)
    turns: list[list[int]] = []
    while missing or len(turns) <= cancel_behind:
        if len(turns) == cancel_behind:
            targets = [*order([GENERATION + i * MEMBER for i in range(len(requests))])]
            missing += len(targets)
        taken, flat = driver.turn(targets, left)
        targets, taken = targets[taken:], max(taken - len(targets), 0)
        left = [(rows, first + taken, last) for rows, first, last in left if first + taken < last]
        turns.append([*flat])
        for user_data, res in zip(flat[::2], flat[1::2]):
            missing -= res if results is not None and not user_data & CANCEL else 1
        assert len(turns) < 1000, "it does not get on"
    return turns


def test_the_same_seed_gives_the_same_turns_and_others_give_others(fd: int) -> None:
    def run(seed: int) -> list[list[int]]:
        driver = _open(FakeRing(seed, faults=Faults(eintr=0.3, short=0.3)))
        turns = _run(driver, _reads(fd, 30), cancel_behind=1)
        driver.close()
        return turns

    assert [run(seed) for seed in range(20)] == [run(seed) for seed in range(20)]
    assert len({str(run(seed)) for seed in range(20)}) == 20


def test_the_order_in_which_tasks_were_cancelled_changes_nothing(fd: int) -> None:
    """Anyio and asyncio cancel the tasks of a group in the order of a set, by their addresses."""

    def run(seed: int, order: Callable[[Any], Any]) -> list[list[int]]:
        driver = _open(FakeRing(seed))
        turns = _run(driver, _reads(fd, 30), cancel_behind=1, order=order)
        driver.close()
        return turns

    for seed in range(50):
        assert run(seed, reversed) == run(seed, iter)


def test_a_turn_takes_what_there_is_room_for_and_gives_twenty_at_most(fd: int) -> None:
    took_fewer = was_hungry = False
    most = 0
    for seed in range(50):
        driver = _open(FakeRing(seed))
        rows, _, gathered = driver.prepare(GENERATION, _reads(fd, DEPTH))
        taken, flat = driver.turn([], [(rows, 0, DEPTH)])
        took_fewer |= taken < DEPTH
        was_hungry |= driver.is_hungry()
        done = 0
        while True:
            count = len(flat) // 2 if gathered is None else sum(flat[1::2])
            most = max(most, count)
            done += count
            if done == DEPTH:
                break
            more, flat = driver.turn([], [(rows, taken, DEPTH)] if taken < DEPTH else [])
            taken += more
        driver.close()
    assert took_fewer and was_hungry
    assert most == DRAIN_MAX


def test_a_cancel_request_is_answered_in_every_order(path: Path) -> None:
    """C5: what a kernel may answer, a fake one does answer."""
    seen: set[tuple[int, int, bool]] = set()
    for seed in range(300):
        with path.open("rb") as file:
            driver = _open(FakeRing(seed))
            flat = [value for turn in _run(driver, _reads(file.fileno(), 1), cancel_behind=seed % 3) for value in turn]
            driver.close()
        answers = dict(zip(flat[::2], flat[1::2]))
        assert set(answers) == {GENERATION, CANCEL | GENERATION}
        seen.add((answers[CANCEL | GENERATION], answers[GENERATION], flat[0] != GENERATION))
    first = {(answer, res) for answer, res, is_first in seen if is_first}
    later = {(answer, res) for answer, res, is_first in seen if not is_first}
    assert first >= {(ENOENT, 4), (EALREADY, 4), (0, ECANCELED), (EALREADY, ECANCELED), (EALREADY, EINTR)}
    assert later >= {(ENOENT, 4), (EALREADY, 4), (0, ECANCELED)}
    assert not [pair for pair in first | later if pair[0] == 0 and pair[1] != ECANCELED]


def test_a_chain_is_taken_whole_and_in_order(fd: int) -> None:
    for seed in range(100):
        driver = _open(FakeRing(seed), depth=4)
        chain = [Request(Opcode.WRITE, fd, b"%04d" % i, 0, is_linked=i < 3) for i in range(4)]
        rows, _, results = driver.prepare(GENERATION, chain)
        order: list[int] = []
        left = [(rows, 0, 4)]
        while len(order) < 4 and (results is None or -(1 << 31) in results):
            taken, flat = driver.turn([], left)
            assert taken in {0, 4} if left else taken == 0
            left = [] if taken else left
            order += [(user_data - GENERATION) // MEMBER for user_data in flat[::2]] if results is None else []
        assert order in ([0, 1, 2, 3], [])
        assert os.pread(fd, 4, 0) == b"0003"
        driver.close()


def test_what_it_does_not_keep_is_found_out(fd: int) -> None:
    """It watches over the contract: nothing is in flight when it is closed, and nothing is submitted twice."""
    driver = _open(FakeRing(0))
    rows, _, _ = driver.prepare(GENERATION, _reads(fd, 1))
    while not driver._rows:
        driver.turn([], [(rows, 0, 1)])
    with pytest.raises(AssertionError, match="C10"):
        driver.close()
    with pytest.raises(AssertionError, match="C2"):
        _submit_again(driver, rows)


def _submit_again(driver: FakeDriver, rows: Any) -> None:
    row = rows[0]
    driver._late.clear()
    driver._completions.clear()
    driver._rows[row.user_data] = row  # it never ends
    while True:
        driver.turn([], [(rows, 0, 1)])


# --- faults, as a program sees them -----------------------------------------------------------------------


@pytest.mark.anyio
async def test_without_faults_everything_is_whole(fd: int, seed: int) -> None:
    async with open_uring(driver=FakeRing(seed)) as io:
        for i in range(100):
            assert await io.read(fd, 400, 4 * i) == os.pread(fd, 400, 4 * i)
        statistics = io.statistics()
        assert (io.driver, statistics.driver) == ("fake", "fake")
        assert statistics.short_reads == statistics.resubmissions == statistics.overflows == 0
        assert statistics.inline_reads > 0 < statistics.inline_misses


@pytest.mark.anyio
async def test_the_real_page_cache_is_not_asked(fd: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which reads it answers is of the seed, whether or not the file is cached or on a tmpfs."""

    def read_now(*_arguments: object) -> int:
        return -errno.EAGAIN

    monkeypatch.setattr(_fake_driver, "_read_now", read_now)
    async with open_uring(driver=FakeRing(seed)) as io:
        for i in range(100):
            assert await io.read(fd, 400, 65536 - 4 * i) == os.pread(fd, 400, 65536 - 4 * i)
        assert await io.readinto(fd, bytearray(4), 0) == 4
        statistics = io.statistics()
    assert statistics.inline_reads > 0 < statistics.inline_misses


@pytest.mark.anyio
async def test_what_a_program_does_not_notice(fd: int, seed: int) -> None:
    before = threading.active_count()
    async with open_uring(driver=FakeRing(seed, faults=Faults.unnoticed(0.3)), nowait=False) as io:
        assert threading.active_count() == before
        requests = [(fd, 4, 4 * i) for i in range(1000)]
        assert await io.read_batch(requests) == [os.pread(*request) for request in requests]
        await io.write_and_sync(fd, b"data", 0)
        async with io.chain() as chain:
            for i in range(20):
                chain.write(fd, b"%04d" % i, 0)
        assert await io.read_exactly(fd, 4, 0) == b"0019"
        statistics = io.statistics()
    assert statistics.resubmissions > 100
    assert statistics.overflows > 100


@pytest.mark.anyio
async def test_short_transfers(fd: int, seed: int) -> None:
    async with open_uring(driver=FakeRing(seed, faults=Faults(short=1)), nowait=False) as io:
        whole = os.pread(fd, 400, 0)
        part = await io.read(fd, 400, 0)
        assert 0 < len(part) < 400
        assert part == whole[: len(part)]
        buffers = [bytearray(100) for _ in range(4)]
        count = await io.readv(fd, buffers, 0)
        assert 0 < count < 400
        assert b"".join(buffers) == whole[:count] + bytes(400 - count)
        for buffer in buffers:
            buffer.append(0)  # nothing is exported any more
        assert await io.read_exactly(fd, 400, 0) == whole
        assert 0 < await io.write(fd, b"x" * 400, 0) < 400
        await io.write_all(fd, b"y" * 400, 0)
        assert await io.write_and_sync(fd, b"z" * 400, 400) == 400
        assert os.pread(fd, 801, 0) == b"y" * 400 + b"z" * 400 + os.pread(fd, 1, 800)
        with pytest.raises(ChainError, match="of 400 bytes"):  # noqa: PT012 - it is its end that raises
            async with io.chain() as chain:
                chain.write(fd, b"w" * 400, 0)
                chain.fsync(fd)
        assert await io.read(fd, 1, 0) == b"w"  # one byte has no part


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("faults", "code"), [(Faults(eio=1), errno.EIO), (Faults(enospc=1), errno.ENOSPC)], ids=["EIO", "ENOSPC"]
)
async def test_errors(fd: int, tmp_path: Path, seed: int, faults: Faults, code: int) -> None:
    ring = FakeRing(seed, faults=faults)
    before = os.pread(fd, 65536, 0)
    async with open_uring(driver=ring) as io:
        for call in (io.write(fd, b"x", 0), io.write_and_sync(fd, b"x", 0), io.mkdir(tmp_path / "new")):
            with pytest.raises(OSError) as caught:
                await call
            assert caught.value.errno == code
        assert os.pread(fd, 65536, 0) == before
        ring.faults = Faults()
        assert await io.write(fd, b"x", 0) == 1


@pytest.mark.anyio
async def test_what_fails_next_is_said_by_name(fd: int, path: Path, seed: int) -> None:
    ring = FakeRing(seed)
    async with open_uring(driver=ring, nowait=False) as io:
        ring.fail_next("fsync", count=2)
        ring.fail_next("write", errno.ENOSPC)
        for call, code in (
            (io.fsync(fd), errno.EIO),
            (io.fdatasync(fd), errno.EIO),
            (io.write(fd, b"x", 0), errno.ENOSPC),
        ):
            with pytest.raises(OSError) as caught:
                await call
            assert caught.value.errno == code
        await io.fsync(fd)
        assert await io.write(fd, b"x", 0) == 1
        opened = await io.open(path)
        ring.fail_next("close")
        with pytest.raises(OSError) as caught:
            await io.close(opened)
        assert caught.value.errno == errno.EIO
        with pytest.raises(OSError) as closed:
            os.fstat(opened)
        assert closed.value.errno == errno.EBADF


def _states(ring: FakeRing) -> list[_State]:
    """Return what has become of everything that the kernel has."""
    (driver,) = ring._drivers
    return [row.state for row in driver._rows.values()]


@pytest.mark.anyio
async def test_a_read_fails_also_if_the_page_cache_could_answer_it(fd: int, seed: int) -> None:
    ring = FakeRing(seed)
    buffer = bytearray(4)
    async with open_uring(driver=ring) as io:
        for _ in range(20):
            for call in (io.read(fd, 4, 0), io.readinto(fd, buffer, 0)):
                ring.fail_next("read")
                with pytest.raises(OSError) as caught:
                    await call
                assert caught.value.errno == errno.EIO
                assert await io.read(fd, 4, 4) == b"\0\0\0\1"
        assert io.statistics().inline_reads > 0
        ring.faults = Faults(eio=1)
        for _ in range(20):
            with pytest.raises(OSError) as caught:
                await io.read(fd, 4, 0)
            assert caught.value.errno == errno.EIO
        ring.faults = Faults(short=1)
        assert max([len(await io.read(fd, 400, 0)) for _ in range(20)]) < 400


@pytest.mark.anyio
async def test_a_stuck_operation_ends_when_it_is_cancelled_or_released(fd: int, seed: int) -> None:
    ring = FakeRing(seed)
    results: list[int] = []

    async def write() -> None:
        results.append(await io.write(fd, b"x", 0))

    async with open_uring(driver=ring) as io:
        ring.stick_next("write", count=2)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write)
            await until(lambda: _states(ring) == [_State.STUCK])
            tasks.cancel_scope.cancel()
        assert results == []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write)
            await until(lambda: _states(ring) == [_State.STUCK])
            for _ in range(100):
                await anyio.lowlevel.checkpoint()
            assert results == []
            ring.release()
        assert results == [1]
        ring.release()  # nothing is stuck


@pytest.mark.anyio
async def test_what_is_released_is_not_stuck_again(fd: int, seed: int) -> None:
    """Neither by chance nor in place of the next one that was asked for."""
    ring = FakeRing(seed, faults=Faults(stuck=1))
    async with open_uring(driver=ring) as io, anyio.create_task_group() as tasks:
        tasks.start_soon(io.write, fd, b"x", 0)
        await until(lambda: _states(ring) == [_State.STUCK])
        ring.release()
        await in_flight(io, 0)
        ring.faults = Faults()
        ring.stick_next("write", count=2)
        tasks.start_soon(io.write, fd, b"x", 0)
        await until(lambda: _states(ring) == [_State.STUCK])
        ring.release()
        await in_flight(io, 0)
        tasks.start_soon(io.write, fd, b"x", 0)
        await until(lambda: _states(ring) == [_State.STUCK])
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_a_fault_is_not_of_an_operation_that_waits_already(pipe: tuple[int, int], seed: int) -> None:
    """What goes wrong next is the next operation, and not one that was submitted before."""
    ring = FakeRing(seed)
    got: list[bytes] = []

    async def read() -> None:
        got.append(await io.read(pipe[0], 1, -1))

    async with open_uring(driver=ring) as io, anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        await until(lambda: _states(ring) == [_State.PARKED])
        ring.fail_next("read")
        os.write(pipe[1], b"x")
        await until(lambda: got == [b"x"])
        with pytest.raises(OSError) as caught:
            await io.read(pipe[0], 1, -1)
        assert caught.value.errno == errno.EIO


@pytest.mark.anyio
async def test_the_end_of_the_block_ends_what_is_stuck(fd: int, seed: int) -> None:
    ring = FakeRing(seed, faults=Faults(stuck=1))
    async with anyio.create_task_group() as tasks, open_uring(driver=ring, nowait=False) as io:

        async def read() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await io.read(fd, 4, 0)

        for _ in range(5):
            tasks.start_soon(read)
        await in_flight(io, 5)
    assert ring._drivers == []


@pytest.mark.anyio
async def test_what_tidies_up_is_not_stuck_by_chance(tmp_path: Path, seed: int) -> None:
    """No cancellation reaches it, so no deadline would end it."""
    ring = FakeRing(seed, faults=Faults(stuck=1))
    path = tmp_path / "file"
    async with open_uring(driver=ring) as io:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(atomic_write, path, b"data", io=io))
            await until(lambda: _states(ring) == [_State.STUCK])  # its write
            tasks.cancel_scope.cancel()
        assert os.listdir(tmp_path) == []
        fd = await io.open(path, os.O_CREAT | os.O_RDWR)
        await io.unlink(path)
        await io.close(fd)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", WITHOUT_DEBUG)
async def test_a_lost_cancel_request_is_sent_again(pipe: tuple[int, int], seed: int) -> None:
    """C5, with the kernel's own flaw: half of the requests change nothing."""
    async with open_uring(driver=FakeRing(seed, faults=Faults(lost_cancels=0.5))) as io:
        async with anyio.create_task_group() as tasks:
            for _ in range(40):
                tasks.start_soon(io.read, pipe[0], 1, -1)
            await in_flight(io, 40)
            tasks.cancel_scope.cancel()
        assert io.statistics().cancellations == 40
        assert io.statistics().in_flight == 0


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", WITHOUT_DEBUG)
async def test_what_a_program_does_not_notice_ends_also_if_it_always_happens(
    fd: int, pipe: tuple[int, int], seed: int
) -> None:
    ring = FakeRing(seed, faults=Faults.unnoticed(1))
    async with open_uring(driver=ring, nowait=False) as io:
        assert await io.write_and_sync(fd, b"data", 0) == 4
        assert await io.read(fd, 4, 0) == b"data"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(io.read, pipe[0], 1, -1)
            await until(lambda: _states(ring) == [_State.PARKED])
            tasks.cancel_scope.cancel()
    statistics = io.statistics()  # everything has come, also the answers to cancel requests
    assert statistics.in_flight == 0
    # Each completion, and those of the cancel requests: three that were lost, and one that was not.
    assert statistics.overflows == statistics.completions + 4


@pytest.mark.anyio
async def test_readers_and_writers_of_one_socket_wait_for_themselves(seed: int) -> None:
    """Two directions of one descriptor; and a descriptor that is closed while somebody waits."""
    import socket

    near, far = socket.socketpair()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    got: list[bytes] = []

    async def read() -> None:
        got.append(await io.read(near, 4, -1))

    with near, far:
        async with open_uring(driver=FakeRing(seed)) as io, anyio.create_task_group() as tasks:
            tasks.start_soon(io.write_all, near, bytes(1 << 20), -1)
            tasks.start_soon(read)
            await in_flight(io, 2)
            far.send(b"ping")
            await until(lambda: got == [b"ping"])
            received = 0
            while received < 1 << 20:
                received += len(await io.read(far, 1 << 16, -1))


@pytest.mark.anyio
async def test_a_device_that_is_not_ready_and_that_nobody_can_wait_for_is_asked_again(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = 3
    preadv = os.preadv

    def not_ready(fd: int, *arguments: Any) -> int:
        nonlocal refusals
        if refusals and fd == file.fileno():
            refusals -= 1
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return preadv(fd, *arguments)

    with open("/dev/zero", "rb") as file:
        with select.epoll() as epoll, pytest.raises(PermissionError):
            epoll.register(file, select.EPOLLIN)
        monkeypatch.setattr(os, "preadv", not_ready)
        async with open_uring(driver=FakeRing(seed), nowait=False) as io:
            assert await io.read(file, 4, -1) == bytes(4)
    assert refusals == 0


# --- its face ---------------------------------------------------------------------------------------------


class _Log(Instrument):
    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def operation_submitted(self, operation: OperationTrace) -> None:
        self.events.append(("submitted", operation.opcode, operation.offset))

    def operation_completed(self, operation: OperationTrace, result: int, completed_ns: int) -> None:  # noqa: ARG002
        self.events.append(("completed", operation.opcode, operation.offset, result))


async def _program(fd: int, seed: int) -> list[tuple[Any, ...]]:
    log = _Log()
    ring = FakeRing(seed, faults=Faults(short=0.2, eintr=0.2))
    async with open_uring(driver=ring, instruments=[log], nowait=False) as io, anyio.create_task_group() as tasks:
        for i in range(20):
            tasks.start_soon(io.read_exactly, fd, 100, 100 * i)
            tasks.start_soon(io.write_all, fd, bytes(50), 5000 + 50 * i)
    return log.events


def test_a_program_is_shown_the_same_again(fd: int) -> None:
    runs = [[anyio.run(_program, fd, seed) for seed in range(5)] for _ in range(2)]
    assert runs[0] == runs[1]
    assert len({str(events) for events in runs[0]}) == 5


@pytest.mark.anyio
async def test_an_exception_tells_the_seed() -> None:
    async def fail() -> None:
        ring = FakeRing(7, faults=Faults(eio=0.5))
        async with open_uring(driver=ring), open_uring(driver=ring):
            raise LookupError

    with pytest.raises(LookupError) as caught:
        await fail()
    if sys.version_info >= (3, 11):
        (note,) = caught.value.__notes__
        assert note.startswith("FakeRing(seed=7, faults=Faults(eio=0.5)): ")
        assert "ANYIO_URING_FAKE_SEED=7" in note


@pytest.mark.anyio
@pytest.mark.skipif(sys.version_info >= (3, 11), reason="exceptions have notes since Python 3.11")
async def test_without_notes_the_log_tells_the_seed(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(LookupError):
        async with open_uring(driver=FakeRing(7)):
            raise LookupError
    assert "ANYIO_URING_FAKE_SEED=7" in caplog.text


@dataclasses.dataclass(frozen=True)
class _FrozenError(Exception):
    code: int


@pytest.mark.anyio
async def test_an_exception_that_takes_no_notes_arrives(caplog: pytest.LogCaptureFixture) -> None:
    ring = FakeRing(7)
    with pytest.raises(_FrozenError):
        async with open_uring(driver=ring):
            raise _FrozenError(3)
    assert ring._drivers == []
    assert "ANYIO_URING_FAKE_SEED=7" in caplog.text


@pytest.mark.anyio
async def test_whatever_becomes_of_the_note_the_manager_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    def note(_ring: FakeRing, exc: BaseException) -> None:
        raise ArithmeticError from exc

    monkeypatch.setattr(FakeRing, "note", note)
    ring = FakeRing(7)
    with pytest.raises(ArithmeticError) as caught:
        async with open_uring(driver=ring):
            raise LookupError
    assert type(caught.value.__cause__) is LookupError
    assert ring._drivers == []
    with pytest.raises(LookupError):
        current()


@pytest.mark.anyio
async def test_a_cancellation_is_left_alone(pipe: tuple[int, int], caplog: pytest.LogCaptureFixture) -> None:
    cancelled: list[BaseException] = []
    with anyio.CancelScope() as scope:
        async with open_uring(driver=FakeRing(7)) as io:
            scope.cancel()
            try:
                await io.read(pipe[0], 1, -1)
            except anyio.get_cancelled_exc_class() as exc:
                cancelled.append(exc)
                raise
    assert scope.cancelled_caught
    assert not getattr(cancelled[0], "__notes__", [])
    assert "SEED" not in caplog.text


def test_the_seed_is_given_or_the_environments_or_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANYIO_URING_FAKE_SEED", raising=False)
    assert len({FakeRing().seed for _ in range(10)}) > 1
    monkeypatch.setenv("ANYIO_URING_FAKE_SEED", "42")
    assert FakeRing().seed == 42
    assert FakeRing(3).seed == 3
    assert repr(FakeRing()) == "FakeRing(seed=42)"
    UringOptions.from_env()  # it is no unknown option
    monkeypatch.setenv("ANYIO_URING_FAKE_SEED", "x")
    with pytest.raises(ValueError, match=r"ANYIO_URING_FAKE_SEED must be a whole number, not 'x'"):
        FakeRing()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: FakeRing("7"), TypeError, "seed cannot be '7'"),  # type: ignore[arg-type]
        (lambda: FakeRing(True), TypeError, "seed cannot be True"),
        (lambda: FakeRing(7, faults=0.5), TypeError, "faults cannot be 0.5"),  # type: ignore[arg-type]
        (lambda: Faults(eio=2), ValueError, "eio must be from 0 to 1, not 2"),
        (lambda: Faults(eio="often"), TypeError, "eio must be a number"),  # type: ignore[arg-type]
        (lambda: FakeRing(7).fail_next("sync"), ValueError, "no operation 'sync': choose one of close, .* fsync"),
        (lambda: FakeRing(7).fail_next("fsync", -5), ValueError, "code must be an errno"),
        (lambda: FakeRing(7).stick_next("fsync", count=0), ValueError, "count must be 1 or more"),
        (lambda: FakeRing(7).stick_next("close"), ValueError, "a close cannot be stuck"),
        (lambda: UringOptions(driver=FakeRing), TypeError, "a FakeRing of anyio_uring.testing"),  # type: ignore[arg-type]
        (lambda: UringOptions(driver=7), TypeError, "a FakeRing of anyio_uring.testing, not 7"),  # type: ignore[arg-type]
        (lambda: UringOptions(driver="fake"), ValueError, 'must be "auto", "uring" or "threads", not \'fake\''),  # type: ignore[arg-type]
    ],
)
def test_a_mistake_is_told(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_the_faults_of_a_ring_are_checked_when_they_are_changed(seed: int) -> None:
    ring = FakeRing(seed)
    with pytest.raises(TypeError, match="faults cannot be None"):
        ring.faults = None  # type: ignore[assignment]
    assert ring.faults == Faults()


@pytest.mark.anyio
async def test_an_open_that_could_wait_for_somebody_is_refused(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    async with open_uring(driver=FakeRing(seed)) as io:
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY | os.O_CREAT):
            with pytest.raises(ValueError, match="no thread that could wait"):
                await io.open(path, flags)
        for flags in (os.O_RDONLY | os.O_NONBLOCK, os.O_RDWR, os.O_PATH):
            await io.close(await io.open(path, flags))
        for flags, code in ((os.O_WRONLY | os.O_CREAT | os.O_EXCL, errno.EEXIST), (os.O_DIRECTORY, errno.ENOTDIR)):
            with pytest.raises(OSError) as caught:
                await io.open(path, flags)
            assert caught.value.errno == code


@pytest.mark.anyio
async def test_what_is_registered_is_plain_and_says_so(fd: int, seed: int) -> None:
    async with open_uring(driver=FakeRing(seed), fixed_buffers=2, fixed_files=2) as io:
        async with io.register_files([fd]) as (file,):
            assert await io.read(file, 4, 4) == b"\0\0\0\1"
        assert io.buffers is not None
        with await io.buffers.acquire() as buffer:
            assert await io.readinto(fd, buffer, 0) == 65536
        assert io.features.fixed_buffers == "plain memory: this ring is a fake"
        assert io.features.fixed_files == "plain descriptors: this ring is a fake"


@pytest.mark.anyio
async def test_a_ring_that_polls_refuses_what_the_real_one_refuses(fd: int, seed: int) -> None:
    async with open_uring(driver=FakeRing(seed), iopoll=True) as io:
        with pytest.raises(ValueError, match="O_DIRECT alone"):
            await io.read(fd, 4, 0)


def test_it_leaves_no_descriptor(seed: int) -> None:
    async def main() -> None:
        ring = FakeRing(seed)
        with tempfile.TemporaryFile() as file:
            for _ in range(5):
                async with open_uring(driver=ring) as io:
                    await io.write_and_sync(file, b"x", 0)

    anyio.run(main)
    before = os.listdir("/proc/self/fd")
    anyio.run(main)
    assert os.listdir("/proc/self/fd") == before


def test_it_leaves_no_descriptor_where_there_is_no_room_for_all(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def epoll() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(select, "epoll", epoll)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError) as caught:
        _open(FakeRing(seed))
    assert caught.value.errno == errno.EMFILE
    assert os.listdir("/proc/self/fd") == before


def test_a_system_without_epoll_is_told_so(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(select, "epoll")
    with pytest.raises(NotImplementedError, match=r"needs epoll\(7\)"):
        _open(FakeRing(seed))


def test_the_public_names_are_documented() -> None:
    assert anyio_uring.testing.__all__ == ("FakeRing", "Faults")
    for cls in (FakeRing, Faults):
        assert cls.__doc__
        for name, member in vars(cls).items():
            if not name.startswith("_") and (callable(member) or isinstance(member, (property, classmethod))):
                assert member.__doc__, name
    # Each kind of fault is off unless it is asked for.
    assert set(attrs.asdict(Faults()).values()) == {0.0}


@pytest.mark.anyio
@pytest.mark.parametrize("code", [errno.EINTR, errno.EAGAIN])
async def test_a_sync_that_fails_is_not_asked_again(fd: int, seed: int, code: int) -> None:
    """What it has not written may be lost, and one that succeeds afterwards proves nothing (fsync(2))."""
    ring = FakeRing(seed)
    async with open_uring(driver=ring) as io:
        for verb in (io.fsync, io.fdatasync):
            ring.fail_next("fsync", code)
            with pytest.raises(OSError, match=os.strerror(code)):
                await verb(fd)
        ring.fail_next("fsync", code)
        with pytest.raises(OSError, match=os.strerror(code)):
            await io.write_and_sync(fd, b"x", 0)
        ring.fail_next("write", code)
        assert await io.write_and_sync(fd, b"x", 0) == 1


@pytest.mark.anyio
async def test_many_files_are_read(tmp_path: Path, seed: int) -> None:
    paths = [tmp_path / str(number) for number in range(100)]
    for path in paths:
        path.write_bytes(path.name.encode())
    async with open_uring(driver=FakeRing(seed)) as io:
        assert await io.read_files(paths) == [path.name.encode() for path in paths]
        assert [status.st_size for status in await io.stat_batch(paths)] == [len(path.name) for path in paths]

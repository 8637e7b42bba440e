"""The modes of a ring: SQPOLL, IOPOLL, restrictions; and what threads make of them."""

from __future__ import annotations

import errno
import mmap
import os
import re
import shutil
import struct
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from anyio_uring import AsyncIoManager, UringUnavailableError, _ring, open_uring
from anyio_uring._options import UringOptions
from anyio_uring._requests import SQE_ASYNC, Opcode, Request
from anyio_uring._ring import UringDriver, open_ring

from . import denied
from .helpers import in_flight, until
from .programs import run

# For tests in which the poller must not fall asleep: as long as any of them may take.
AWAKE_MS = 600_000


def _pollers() -> set[int]:
    """Return the threads of this process that poll a ring's submission queue."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            if (task / "comm").read_text().startswith("iou-sqp"):
                found.add(int(task.name))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
    return found


def _ring_of(io: AsyncIoManager) -> UringDriver:
    assert isinstance(io._driver, UringDriver)
    return io._driver


# --- options ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sqpoll": 1}, TypeError, "sqpoll must be true or false, not 1"),
        ({"sqpoll_idle_ms": 0}, ValueError, "sqpoll_idle_ms must be between 1 and 2147483647, not 0"),
        ({"sqpoll_idle_ms": 1 << 31}, ValueError, "sqpoll_idle_ms must be between"),
        ({"sqpoll_idle_ms": 1.5}, TypeError, "sqpoll_idle_ms must be an int, not float"),
        ({"sqpoll": True, "sqpoll_cpu": -1}, ValueError, "sqpoll_cpu must be between 0 and"),
        ({"sqpoll": True, "sqpoll_cpu": True}, TypeError, "sqpoll_cpu must be the number of a CPU or None, not bool"),
        ({"sqpoll_cpu": 0}, ValueError, "it needs sqpoll=True"),
        ({"iopoll": "yes"}, TypeError, "iopoll must be true or false"),
        ({"iopoll": True, "nowait": True}, ValueError, "leave one of them out"),
        ({"restrict": None}, TypeError, "restrict must be true or false"),
        ({"nowait": 0}, TypeError, "nowait must be true or false"),
    ],
)
def test_a_bad_option_is_named_before_anything_is_opened(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        open_uring(**options)


@pytest.mark.parametrize(
    ("options", "on_the_ring", "on_threads"),
    [
        ({}, True, True),
        ({"sqpoll": True}, False, True),
        ({"iopoll": True}, False, False),
        ({"nowait": False}, False, False),
        ({"sqpoll": True, "nowait": True}, True, True),
    ],
)
def test_where_the_page_cache_is_asked_first(options: dict[str, Any], on_the_ring: bool, on_threads: bool) -> None:
    assert UringOptions(**options).asks_page_cache("uring") is on_the_ring
    assert UringOptions(**options).asks_page_cache("threads") is on_threads


# --- SQPOLL -----------------------------------------------------------------------------------------


async def _read_everything(io: AsyncIoManager, path: Path, count: int) -> None:
    async def read(first: int) -> None:
        for i in range(first, count, 8):
            assert await io.read(file, 4, 4 * i) == i.to_bytes(4, "big")

    with path.open("rb") as file:
        async with anyio.create_task_group() as tasks:
            for first in range(8):
                tasks.start_soon(read, first)


@pytest.mark.ring
@pytest.mark.anyio
async def test_no_kernel_entry_submits_while_the_poller_is_awake(path: Path) -> None:
    async with open_uring(driver="uring", sqpoll=True, sqpoll_idle_ms=AWAKE_MS) as io:
        assert {"SQPOLL", "COOP_TASKRUN", "TASKRUN_FLAG"} & {*io.features.setup_flags} == {"SQPOLL"}
        before = io.statistics()
        await _read_everything(io, path, 1000)
        after = io.statistics()
        assert after.submissions - before.submissions == 1000
        assert after.syscalls == before.syscalls
        assert after.inline_reads == after.inline_misses == 0
    async with open_uring(driver="uring", nowait=False) as io:
        await _read_everything(io, path, 1000)
        assert io.statistics().syscalls > 100


@pytest.mark.ring
@pytest.mark.anyio
async def test_the_poller_is_woken_when_it_sleeps(path: Path) -> None:
    async with open_uring(driver="uring", sqpoll=True, sqpoll_idle_ms=1) as io:
        with path.open("rb") as file:
            for i in range(20):
                await until(_ring_of(io).poller_sleeps)
                before = io.statistics().syscalls
                assert await io.read(file, 4, 4 * i) == i.to_bytes(4, "big")
                assert io.statistics().syscalls > before


@pytest.mark.ring
@pytest.mark.anyio
async def test_a_completion_wakes_a_loop_that_sleeps(pipe: tuple[int, int]) -> None:
    """The poller posts the completion; the loop sleeps on the ring's descriptor meanwhile."""
    got = []

    async def read() -> None:
        got.append(await io.read(pipe[0], 1, -1))

    async with open_uring(driver="uring", sqpoll=True, sqpoll_idle_ms=1) as io:
        for i in range(50):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read)
                await in_flight(io, 1)
                await anyio.wait_all_tasks_blocked()
                await anyio.to_thread.run_sync(os.write, pipe[1], bytes([i]))
        assert got == [bytes([i]) for i in range(50)]


@pytest.mark.ring
@pytest.mark.anyio
async def test_a_read_is_cancelled_while_the_poller_sleeps(pipe: tuple[int, int]) -> None:
    """C5: the cancel request wakes the poller."""
    buffer = bytearray(4)
    async with open_uring(driver="uring", sqpoll=True, sqpoll_idle_ms=1) as io:
        for _ in range(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(io.readinto, pipe[0], buffer, -1)
                await in_flight(io, 1)
                await until(_ring_of(io).poller_sleeps)
                with pytest.raises(BufferError):
                    buffer.append(0)  # C2
                tasks.cancel_scope.cancel()
            assert io.statistics().in_flight == 0
            buffer.append(0)
        assert io.statistics().cancellations == 20


@pytest.mark.ring
@pytest.mark.anyio
async def test_cancelled_at_once_behind_its_submission_everything_settles(pipe: tuple[int, int], path: Path) -> None:
    """C5: what the poller has not taken yet counts as being in the kernel; it settles by its own completion."""
    async with open_uring(driver="uring", depth=8, sqpoll=True) as io:
        with path.open("rb") as file:
            for _ in range(100):
                buffers = [bytearray(4) for _ in range(20)]
                async with anyio.create_task_group() as tasks:
                    for i, buffer in enumerate(buffers):
                        tasks.start_soon(io.readinto, pipe[0] if i % 2 else file, buffer, -1 if i % 2 else 0)
                    await until(lambda: io.statistics().in_flight > 0)
                    tasks.cancel_scope.cancel()
                assert io.statistics().in_flight == io.statistics().waiting == 0
                for buffer in buffers:
                    buffer.append(0)
        assert io.statistics().overflows == 0


@pytest.mark.ring
def test_rows_that_find_the_queue_full_stay_with_the_caller(pipe: tuple[int, int]) -> None:
    driver = open_ring(8, UringOptions(sqpoll=True))
    buffers = [bytearray(1) for _ in range(16)]
    prepared = [driver.prepare(i, [Request(Opcode.READ, pipe[0], buffer, -1)]) for i, buffer in enumerate(buffers)]
    left = [(rows, 0, 1) for rows, *_ in prepared]
    completions: list[int] = []
    while left:
        taken, flat = driver.turn([], left)
        completions += flat
        left = left[taken:]
        # The poller takes what is in the queue by itself: only rows that are left ask for another turn.
        assert not driver.is_hungry()
    assert completions == []
    os.write(pipe[1], b"x" * 16)
    while len(completions) < 32:
        completions += driver.turn([], [])[1]
    assert dict(zip(completions[::2], completions[1::2])) == dict.fromkeys(range(16), 1)
    assert driver._state.in_flight == 0
    driver.close()


@pytest.mark.ring
@pytest.mark.anyio
@pytest.mark.parametrize("idle_ms", [1, AWAKE_MS])
async def test_the_end_of_the_block_ends_the_poller(path: Path, idle_ms: int) -> None:
    """Whether it sleeps or polls at that moment."""
    before = len(os.listdir("/proc/self/fd"))
    await until(lambda: not _pollers())
    for _ in range(10):
        async with open_uring(driver="uring", sqpoll=True, sqpoll_idle_ms=idle_ms) as io:
            assert len(_pollers()) == 1
            with path.open("rb") as file:
                await io.read(file, 4, 0)
        await until(lambda: not _pollers())
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.ring
@pytest.mark.anyio
async def test_the_poller_is_bound_to_a_cpu(path: Path) -> None:
    cpu = max(os.sched_getaffinity(0))
    await until(lambda: not _pollers())
    async with open_uring(driver="uring", sqpoll=True, sqpoll_cpu=cpu) as io:
        assert {"SQPOLL", "SQ_AFF"} <= {*io.features.setup_flags}
        (poller,) = _pollers()
        assert os.sched_getaffinity(poller) == {cpu}
        await _read_everything(io, path, 8)


@pytest.mark.ring
@pytest.mark.anyio
async def test_a_cpu_that_does_not_exist_is_named() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(
        UringUnavailableError, match=r"gives a ring, but refused .* sqpoll_cpu=100000 .* EINVAL"
    ) as caught:
        async with open_uring(driver="uring", sqpoll=True, sqpoll_cpu=100_000):
            pass
    assert caught.value.errno == errno.EINVAL
    async with open_uring(driver="auto", sqpoll=True, sqpoll_cpu=100_000) as io:
        assert io.driver == "threads"
        assert io.fallback_reason == caught.value.strerror
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.ring
def test_a_kernel_whose_sqpoll_needs_privileges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ring, "_FEATURES_NEEDED_SQPOLL", 1 << 31)
    with pytest.raises(UringUnavailableError, match=r"refused one with sqpoll=True .which needs Linux 5\.11"):
        open_ring(8, UringOptions(sqpoll=True))
    open_ring(8).close()


@pytest.mark.ring
def test_a_filter_that_denies_the_wake_up_is_found_at_open() -> None:
    """The first operations may need no kernel entry: without a trial the poller's first sleep would be the end."""
    out = run(
        f"""
        import errno, sys
        sys.path.insert(0, {str(denied.ROOT)!r})
        from tests.denied import deny
        deny("io_uring_enter", errno.EPERM)
        import anyio
        from anyio_uring import open_uring

        async def main():
            async with open_uring(sqpoll=True) as io:
                print(io.driver, io.fallback_reason)

        anyio.run(main)
        """
    )
    assert out.startswith("threads a first read through the ring was refused with EPERM")


@pytest.mark.ring
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_forked_child_keeps_away_and_the_poller_goes_on(backend: str) -> None:
    """C12"""
    out = run(
        """
        import anyio, os, sys, tempfile
        from anyio_uring import open_uring

        async def main():
            with tempfile.TemporaryFile() as file:
                async with open_uring(driver="uring", sqpoll=True) as io:
                    await io.write(file, b"before", 0)
                    child = os.fork()
                    if not child:
                        try:
                            io.read(file, 1, 0).send(None)
                        except RuntimeError as exc:
                            os._exit(7 if "forked child" in str(exc) else 1)
                        os._exit(1)
                    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
                    print(await io.read(file, 6, 0))

        anyio.run(main, backend=sys.argv[1])
        """,
        backend,
    )
    assert out == "b'before'\n"


@pytest.mark.anyio
async def test_on_threads_sqpoll_is_accepted_and_means_nothing(path: Path) -> None:
    async with open_uring(driver="threads", sqpoll=True, sqpoll_idle_ms=1, sqpoll_cpu=0) as io:
        assert io.features.setup_flags == ()
        assert io.fallback_reason is None
        await _read_everything(io, path, 100)
        assert io.statistics().inline_reads > 0


def _why_strace_cannot_tell() -> str | None:
    strace = shutil.which("strace")
    if strace is None:
        return "strace is not installed: nothing checks the statistics against the kernel's own count"
    trial = subprocess.run([strace, "-o", os.devnull, "true"], capture_output=True, text=True, check=False)
    return f"strace may not trace here: {trial.stderr.strip()}" if trial.returncode else None


@pytest.mark.ring
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("sqpoll", [True, False])
def test_strace_counts_the_same_kernel_entries(path: Path, tmp_path: Path, backend: str, sqpoll: bool) -> None:
    reason = _why_strace_cannot_tell()
    if reason is not None:
        pytest.skip(reason)
    code = """
        import anyio, sys
        from anyio_uring import open_uring

        async def main():
            async with open_uring(driver="uring", sqpoll=sys.argv[3] == "True", sqpoll_idle_ms=600_000, nowait=False) as io:
                opened = io.statistics().syscalls
                with open(sys.argv[1], "rb") as file:
                    for i in range(1000):
                        await io.read(file, 64, 64 * i)
                print(opened, io.statistics().syscalls, io.statistics().submissions)

        anyio.run(main, backend=sys.argv[2])
        """
    trace = tmp_path / "trace"
    strace = ["strace", "-f", "--seccomp-bpf", "-e", "trace=io_uring_enter", "-o", str(trace)]
    done = subprocess.run(
        [*strace, sys.executable, "-c", textwrap.dedent(code), path, backend, str(sqpoll)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    opened, entries, submissions = map(int, done.stdout.split())
    assert submissions == 1000
    assert len(re.findall(r"io_uring_enter\(", trace.read_text())) == entries
    assert entries - opened == (0 if sqpoll else 1000)


# --- IOPOLL -----------------------------------------------------------------------------------------


@pytest.fixture
def no_queues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What /sys/block says: one disk, without poll queues."""
    file = tmp_path / "block" / "disk0" / "queue" / "io_poll"
    file.parent.mkdir(parents=True)
    file.write_text("0\n")
    (tmp_path / "block" / "loop0").mkdir()
    monkeypatch.setattr(_ring, "_BLOCK_DEVICES", tmp_path / "block")
    return file


@pytest.fixture
def queues(no_queues: Path) -> None:
    """The disk has some: so a ring with IOPOLL is opened, whatever this machine's disks have."""
    no_queues.write_text("1\n")


@pytest.fixture
def direct(path: Path) -> Iterator[int]:
    try:
        number = os.open(path, os.O_RDWR | os.O_DIRECT)
    except OSError as exc:
        pytest.skip(f"the filesystem of {path} has no O_DIRECT: {exc}")
    yield number
    os.close(number)


async def _errno_of_a_direct_read(io: AsyncIoManager, direct: int) -> int:
    with mmap.mmap(-1, 4096) as page:
        try:
            assert await io.readinto(direct, page, 4096) == 4096
        except OSError as exc:
            return exc.errno or -1
        assert page[:4] == (1024).to_bytes(4, "big")
        return 0


@pytest.mark.ring
@pytest.mark.anyio
@pytest.mark.usefixtures("no_queues")
async def test_iopoll_is_refused_where_no_device_has_poll_queues() -> None:
    with pytest.raises(UringUnavailableError, match=r"none here has any \(disk0: .*nvme\.poll_queues") as caught:
        async with open_uring(driver="uring", iopoll=True):
            pass
    assert caught.value.errno == errno.EOPNOTSUPP
    async with open_uring(iopoll=True) as io:
        assert io.driver == "threads"
        assert io.fallback_reason == caught.value.strerror


@pytest.mark.ring
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_iopoll_on_this_machine(direct: int, backend: str) -> None:
    """Nothing pretended: the machine's own devices decide."""

    async def read() -> int:
        async with open_uring(driver="uring", iopoll=True) as io:
            return await _errno_of_a_direct_read(io, direct)

    queues = [*Path("/sys/block").glob("*/queue/io_poll")]
    if not queues or any(file.read_text() == "1\n" for file in queues):
        # The other one if another device can be polled, and not the one of this file; or if there is no /sys to ask.
        assert anyio.run(read, backend=backend) in {0, errno.EOPNOTSUPP}
    else:
        with pytest.raises(UringUnavailableError, match="poll queues"):
            anyio.run(read, backend=backend)


@pytest.mark.ring
@pytest.mark.anyio
@pytest.mark.usefixtures("queues")
async def test_a_kernel_that_refuses_to_poll_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_ring.SETUP_FLAGS, "IOPOLL", 1 << 31)  # a flag that the kernel does not know
    with pytest.raises(UringUnavailableError, match="gives a ring, but refused one with iopoll=True, with EINVAL"):
        async with open_uring(driver="uring", iopoll=True):
            pass
    async with open_uring(driver="uring") as io:
        assert io.driver == "uring"


@pytest.mark.anyio
@pytest.mark.usefixtures("queues")
async def test_iopoll_refuses_what_cannot_be_polled(driver: Any, path: Path, direct: int) -> None:
    """On a real ring with IOPOLL, though this machine's devices may have no poll queues; and on threads."""
    page = bytearray(4096)
    async with open_uring(driver=driver, iopoll=True) as io:
        assert io.driver == driver
        assert ("IOPOLL" in io.features.setup_flags) is (driver == "uring")
        before = io.statistics().submissions
        with path.open("r+b") as buffered:
            content = buffered.read()
            for call in (
                io.read(buffered, 4, 0),
                io.readinto(buffered, page, 0),
                io.readv(buffered, [page], 0),
                io.write(buffered, b"data", 0),
                io.read_batch([(direct, 4096, 0), (buffered, 4, 0)]),
                io.readinto_batch([(buffered, page, 0)]),
                io.write_batch([(buffered, b"data", 0)]),
            ):
                with pytest.raises(ValueError, match="takes descriptors opened with O_DIRECT alone"):
                    await call
            for sync in (
                io.fsync(direct),
                io.fdatasync(direct),
                io.fsync_batch([direct]),
                io.write_and_sync(direct, page, 0),
            ):
                with pytest.raises(ValueError, match="cannot sync: sync through a manager opened without iopoll"):
                    await sync
            assert os.pread(buffered.fileno(), 1 << 20, 0) == content
        page.append(0)  # nothing is exported any more
        assert io.statistics().submissions == before
        with pytest.raises(OSError, match="Bad file descriptor"):
            await io.read(1 << 20, 4096, 0)
        # The other one if this file's device has no poll queues.
        expected = {0, errno.EOPNOTSUPP} if driver == "uring" else {0}
        for _ in range(3):
            assert await _errno_of_a_direct_read(io, direct) in expected
    assert io.statistics().in_flight == 0


@pytest.mark.ring
@pytest.mark.usefixtures("queues")
@pytest.mark.parametrize("sqpoll", [False, True])
def test_a_polled_ring_asks_for_turns_while_something_is_in_flight(direct: int, sqpoll: bool) -> None:
    """Its descriptor never becomes readable: the owner has to come again until nothing is in flight."""
    driver = open_ring(8, UringOptions(iopoll=True, sqpoll=sqpoll))
    assert not driver.is_hungry()
    page = mmap.mmap(-1, 4096)
    rows, pin, _ = driver.prepare(1, [Request(Opcode.READ, direct, memoryview(page), 0)])
    _, flat = driver.turn([], [(rows, 0, 1)])
    while not flat:
        assert driver.is_hungry()
        _, flat = driver.turn([], [])
    del pin
    assert flat[0] == 1
    assert flat[1] in {4096, -errno.EOPNOTSUPP}
    assert not driver.is_hungry()
    driver.close()


@pytest.mark.ring
@pytest.mark.anyio
@pytest.mark.usefixtures("queues")
async def test_the_owner_looks_again_and_again_while_a_device_is_polled(
    direct: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No descriptor wakes it. What a device would hold back for some turns, a wrapper of turn() does here."""
    held: list[int] = []
    turns = 0
    turn, is_hungry = UringDriver.turn, UringDriver.is_hungry

    def late(driver: UringDriver, targets: Any, segments: Any) -> Any:
        nonlocal turns
        taken, completions = turn(driver, targets, segments)
        held.extend(completions)
        if not held:
            return taken, ()
        turns += 1
        if turns % 20:
            return taken, ()
        ready = tuple(held)
        held.clear()
        return taken, ready

    async with open_uring(driver="uring", iopoll=True) as io:
        monkeypatch.setattr(UringDriver, "turn", late)
        monkeypatch.setattr(UringDriver, "is_hungry", lambda driver: bool(held) or is_hungry(driver))
        assert await _errno_of_a_direct_read(io, direct) in {0, errno.EOPNOTSUPP}
        assert turns == 20


# --- restrictions -----------------------------------------------------------------------------------

NOP = 0  # IORING_OP_NOP: harmless, and not used here
IO_DRAIN = 1 << 1  # IOSQE_IO_DRAIN


def _answer(driver: UringDriver, opcode: int, sqe_flags: int, fd: int) -> int:
    row = struct.pack("=" + _ring._ROW, 1, 0, 0, 0, fd, 0, opcode | sqe_flags << 8)
    _, flat = driver.turn([], [(row, 0, 1)])
    while not flat:
        _, flat = driver.turn([], [])
    assert flat[0] == 1
    return flat[1]


@pytest.mark.ring
@pytest.mark.parametrize("sqpoll", [False, True])
def test_a_restricted_ring_refuses_what_is_not_used_here(path: Path, sqpoll: bool) -> None:
    plain = open_ring(8, UringOptions(sqpoll=sqpoll))
    restricted = open_ring(8, UringOptions(sqpoll=sqpoll, restrict=True))
    assert "R_DISABLED" in restricted.features.setup_flags
    assert "R_DISABLED" not in plain.features.setup_flags
    with path.open("rb") as file:
        fd = file.fileno()
        assert _answer(plain, NOP, 0, -1) == 0
        assert _answer(restricted, NOP, 0, -1) == -errno.EACCES
        for driver in (plain, restricted):
            assert _answer(driver, Opcode.FSYNC, 0, fd) == 0
            assert _answer(driver, Opcode.FSYNC, SQE_ASYNC, fd) == 0
        assert _answer(plain, Opcode.FSYNC, IO_DRAIN, fd) == 0
        assert _answer(restricted, Opcode.FSYNC, IO_DRAIN, fd) == -errno.EACCES
    unused = {*range(64)} - {*Opcode}
    assert {_answer(restricted, opcode, 0, -1) for opcode in unused} == {-errno.EACCES, -errno.EINVAL}
    plain.limit_workers(0, 64)
    with pytest.raises(PermissionError):
        restricted.limit_workers(0, 64)
    # What was asked for before the ring was enabled is known.
    assert restricted.features.opcodes == plain.features.opcodes != frozenset()
    plain.close()
    restricted.close()


@pytest.mark.ring
def test_without_restrictions_a_restricted_ring_is_not_to_be_had() -> None:
    """Never quietly without them."""
    out = run(
        f"""
        import errno, sys
        sys.path.insert(0, {str(denied.ROOT)!r})
        from tests.denied import deny
        deny("io_uring_register", errno.EPERM)
        import anyio
        from anyio_uring import open_uring

        async def main():
            async with open_uring(restrict=True) as io:
                print(io.driver, io.fallback_reason)
            async with open_uring() as io:
                print(io.driver)

        anyio.run(main)
        """
    )
    first, second = out.splitlines()
    assert re.match(r"threads .* refused one with restrict=True \(which needs Linux 5\.10\), with EPERM", first)
    assert second == "uring"


@pytest.mark.anyio
async def test_on_threads_there_is_nothing_to_restrict(path: Path) -> None:
    async with open_uring(driver="threads", restrict=True) as io:
        assert io.features.setup_flags == ()
        await _read_everything(io, path, 10)

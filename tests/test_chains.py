"""Linked requests: all or none of a chain is submitted, and the next begins when the one before was whole."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from anyio_uring import AsyncIoManager, ChainError, open_uring
from anyio_uring._completion_task import CompletionTask
from anyio_uring._options import UringOptions
from anyio_uring._requests import Opcode, Request
from anyio_uring._ring import open_ring
from anyio_uring._thread_calls import ThreadCalls
from anyio_uring._waiters import current_loop

from .helpers import ScriptedDriver, driver_or_fake, every_loop, in_flight, scripted, until

driver = driver_or_fake
anyio_backend = every_loop

pytestmark = pytest.mark.anyio
ECANCELED = -errno.ECANCELED


def _chain(*requests: Request) -> list[Request]:
    for request in requests[:-1]:
        request.is_linked = True
    return list(requests)


def _write(fd: int, data: bytes, offset: int) -> Request:
    return Request(Opcode.WRITE, fd, data, offset)


async def test_the_members_run_in_order(io: AsyncIoManager, tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b") as file:
        fd, buffer = file.fileno(), bytearray(6)
        for i in range(50):
            chain = _chain(
                _write(fd, b"%06d" % i, 0), Request(Opcode.FSYNC, fd, None, 0), Request(Opcode.READ, fd, buffer, 0)
            )
            assert await io._task.perform(chain, is_chain=True) == [6, 0, 6]
            assert buffer == b"%06d" % i


@pytest.mark.parametrize("failing", [0, 1, 2])
async def test_behind_a_member_that_fails_nothing_happens(io: AsyncIoManager, tmp_path: Path, failing: int) -> None:
    with (tmp_path / "file").open("w+b") as file:
        fds = [-1 if i == failing else file.fileno() for i in range(4)]
        chain = _chain(*(_write(fd, b"x", i) for i, fd in enumerate(fds)))
        results = await io._task.perform(chain, is_chain=True)
        assert results == [1] * failing + [-errno.EBADF] + [ECANCELED] * (3 - failing)
        assert os.fstat(file.fileno()).st_size == failing
        assert io.statistics().in_flight == 0


async def test_behind_a_short_member_nothing_happens(io: AsyncIoManager, path: Path) -> None:
    with path.open("r+b") as file:
        fd = file.fileno()
        size = os.fstat(fd).st_size
        chain = _chain(Request(Opcode.READ, fd, bytearray(8), size - 5), _write(fd, b"x", size), _write(fd, b"y", size))
        assert await io._task.perform(chain, is_chain=True) == [5, ECANCELED, ECANCELED]
        assert os.fstat(fd).st_size == size


async def test_a_chain_is_cancelled_while_its_first_member_waits(
    io: AsyncIoManager, pipe: tuple[int, int], tmp_path: Path
) -> None:
    with (tmp_path / "file").open("w+b") as file:
        chain = _chain(Request(Opcode.READ, pipe[0], bytearray(1), -1), _write(file.fileno(), b"x", 0))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(io._task.perform, chain, is_chain=True))
            await in_flight(io, 2)
            tasks.cancel_scope.cancel()
        assert io.statistics().in_flight == 0
        assert os.fstat(file.fileno()).st_size == 0


@pytest.mark.parametrize("is_cancelled", [False, True], ids=["failed", "cancelled"])
async def test_a_chain_of_more_members_than_python_recurses(
    driver: Any, pipe: tuple[int, int], path: Path, is_cancelled: bool
) -> None:
    count = sys.getrecursionlimit() + 100
    async with open_uring(driver=driver, depth=2048) as io:
        with path.open("rb") as file:
            head = Request(Opcode.READ, pipe[0] if is_cancelled else 2**31 - 1, bytearray(1), -1)
            chain = _chain(head, *(Request(Opcode.READ, file.fileno(), bytearray(1), 0) for _ in range(count)))
            if is_cancelled:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(partial(io._task.perform, chain, is_chain=True))
                    await in_flight(io, 1 + count)
                    tasks.cancel_scope.cancel()
            else:
                results = await io._task.perform(chain, is_chain=True)
                assert results == [-errno.EBADF] + [ECANCELED] * count
            assert io.statistics().in_flight == 0
            assert len(await io.read(file, 1, 0)) == 1


async def test_a_later_member_is_cancelled_when_it_waits(
    io: AsyncIoManager, pipe: tuple[int, int], tmp_path: Path
) -> None:
    """Its cancel request came while it had not begun, so it is cancelled as soon as it could begin."""
    with (tmp_path / "file").open("w+b") as file:
        fd = file.fileno()
        chain = _chain(_write(fd, b"x", 0), Request(Opcode.READ, pipe[0], bytearray(1), -1), _write(fd, b"y", 1))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(io._task.perform, chain, is_chain=True))
            await until(lambda: os.fstat(fd).st_size == 1)
            tasks.cancel_scope.cancel()
        assert os.pread(fd, 10, 0) == b"x"
        assert io.statistics().in_flight == 0


async def test_a_chain_waits_until_there_is_room_for_all_of_it(
    driver: Any, pipe: tuple[int, int], tmp_path: Path
) -> None:
    with (tmp_path / "file").open("w+b") as file:
        fd = file.fileno()
        results: list[Any] = []

        async def perform() -> None:
            chain = _chain(*(_write(fd, b"x", i) for i in range(3)))
            results.append(await io._task.perform(chain, is_chain=True))

        async with open_uring(driver=driver, depth=4, nowait=False) as io, anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(io.read, pipe[0], 1, -1)
            await in_flight(io, 2)
            tasks.start_soon(perform)
            await until(lambda: io.statistics().waiting == 1)
            for _ in range(10):
                await anyio.lowlevel.checkpoint()
            assert io.statistics().in_flight == 2  # there is room for two members, and none was submitted
            assert os.fstat(fd).st_size == 0
            os.write(pipe[1], b"z")
            await until(lambda: bool(results))
            os.write(pipe[1], b"z")
        assert results == [[1, 1, 1]]


@pytest.mark.ring
def test_a_chain_is_not_cut_where_the_submission_queue_is_full(tmp_path: Path) -> None:
    """Eight members behind another row, in a queue of eight: it is flushed before the first of them."""
    ring = open_ring(8)
    assert ring.features.sq_entries == 8
    with (tmp_path / "file").open("w+b") as file:
        fd = file.fileno()
        first, *first_pins = ring.prepare(0, [_write(fd, b"0", 0)])
        chain = _chain(_write(-1, b"1", 1), *(_write(fd, b"2", 2) for _ in range(7)))
        rows, *pins = ring.prepare(1, chain)
        before = ring.enters
        taken, completions = ring.turn([], [(first, 0, 1), (rows, 0, 8)])
        flat = [*completions]
        while ring._state.in_flight:
            flat += ring.turn([], [])[1]
        assert taken == 9
        assert ring.enters - before >= 2
        results: Any = pins[1]
        assert [*results] == [-errno.EBADF] + [ECANCELED] * 7
        assert os.pread(fd, 10, 0) == b"0"
        del first_pins
    ring.close()


def _manager(task: CompletionTask, driver: ScriptedDriver) -> AsyncIoManager:
    return AsyncIoManager(
        task,
        driver,
        current_loop(),
        options=UringOptions(nowait=False),
        thread_calls=ThreadCalls(task, current_loop(), ScriptedDriver),
        fallback_reason=None,
        outer=None,
    )


# --- write_and_sync() -------------------------------------------------------------------------------------


async def _write_and_sync(script: list[list[int]], *, depth: int = 8) -> tuple[Any, list[tuple[Any, ...]]]:
    """Answer in steps what ``write_and_sync(1, b"12345", 7)`` asks; return its outcome and what was asked."""
    outcome: list[Any] = []
    async with scripted(depth) as (driver, task), anyio.create_task_group() as tasks:
        manager = _manager(task, driver)

        async def call() -> None:
            try:
                outcome.append(await manager.write_and_sync(1, b"12345", 7))
            except OSError as exc:
                outcome.append(exc.errno)

        tasks.start_soon(call)
        for answers in script:
            await until(lambda answers=answers: len(driver.pending) == len(answers))  # type: ignore[misc]
            for res in answers:
                driver.complete(res)
        await until(lambda: bool(outcome))
    asked = [(r.opcode, size, r.offset, r.is_linked) for r, size in zip(driver.taken, driver.sizes)]
    return outcome[0], asked


WRITE, FSYNC = Opcode.WRITE, Opcode.FSYNC


@pytest.mark.parametrize("flags", [0, os.O_APPEND], ids=["", "append"])
async def test_write_and_sync_is_one_submission(io: AsyncIoManager, path: Path, flags: int) -> None:
    """Also of an append, whose place the kernel chooses."""
    path.touch()
    fd = os.open(path, os.O_WRONLY | flags)
    driver: Any = io._driver
    lengths: list[int] = []
    prepare = driver.prepare

    def spy(user_data: int, requests: Any) -> Any:
        lengths.append(len(requests))
        return prepare(user_data, requests)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(driver), "prepare", lambda _, user_data, requests: spy(user_data, requests))
        assert await io.write_and_sync(fd, b"content", -1 if flags else 0) == 7
    os.close(fd)
    assert lengths == [2]


@pytest.mark.parametrize(
    ("answers", "outcome", "asked"),
    [
        ([[5, 0]], 5, [(WRITE, 5, 7, True), (FSYNC, 0, 0, False)]),
        (
            [[2, ECANCELED], [3, 0]],
            5,
            [(WRITE, 5, 7, True), (FSYNC, 0, 0, False), (WRITE, 3, 9, True), (FSYNC, 0, 0, False)],
        ),
        (
            [[-errno.EINTR, ECANCELED], [5, 0]],
            5,
            [(WRITE, 5, 7, True), (FSYNC, 0, 0, False), (WRITE, 5, 7, True), (FSYNC, 0, 0, False)],
        ),
        ([[-errno.ENOSPC, ECANCELED]], errno.ENOSPC, [(WRITE, 5, 7, True), (FSYNC, 0, 0, False)]),
        ([[5, -errno.EIO]], errno.EIO, [(WRITE, 5, 7, True), (FSYNC, 0, 0, False)]),
        ([[0, ECANCELED]], errno.EIO, [(WRITE, 5, 7, True), (FSYNC, 0, 0, False)]),
    ],
    ids=["whole", "short", "EINTR", "ENOSPC", "EIO of the sync", "nothing written"],
)
async def test_write_and_sync_counts_no_sync_but_one_behind_the_whole_write(
    answers: list[list[int]], outcome: int, asked: list[tuple[Any, ...]]
) -> None:
    assert await _write_and_sync(answers) == (outcome, asked)


async def test_write_and_sync_where_depth_has_no_room_for_two() -> None:
    got, asked = await _write_and_sync([[2], [3], [0]], depth=1)
    assert got == 5
    assert asked == [(WRITE, 5, 7, False), (WRITE, 3, 9, False), (FSYNC, 0, 0, False)]


# --- the builder ------------------------------------------------------------------------------------------


async def test_a_chain_of_every_verb(io: AsyncIoManager, path: Path) -> None:
    buffer, first, second = bytearray(4), bytearray(2), bytearray(3)
    before = io.statistics()
    with path.open("r+b") as file:
        async with io.chain() as chain:
            chain.write(file, b"abcdef", 0)
            chain.fdatasync(file)
            chain.writev(file, [b"gh", b"", b"i"], 6)
            chain.fsync(file)
            chain.read(file, 9, 0)
            chain.readinto(file, buffer, 2)
            chain.readv(file, [first, second], 4)
            assert len(chain) == 7
            assert io.statistics().submissions == before.submissions  # nothing was submitted yet
        assert chain.results == [6, None, 3, None, b"abcdefghi", 4, 5]
        assert [bytes(memory) for memory in (buffer, first, second)] == [b"cdef", b"ef", b"ghi"]
        async with io.chain() as nothing:
            pass
        assert nothing.results == []
    after = io.statistics()
    assert after.submissions - before.submissions == 7
    assert after.in_flight == 0
    for memory in (buffer, first, second):
        memory.append(0)  # no export is left


async def test_a_chain_is_submitted_in_one_go() -> None:
    async with scripted() as (driver, task), anyio.create_task_group() as tasks:
        manager = _manager(task, driver)

        async def call() -> None:
            async with manager.chain() as chain:
                for _ in range(5):
                    chain.fsync(1)

        tasks.start_soon(call)
        await until(lambda: len(driver.pending) > 0)
        assert len(driver.pending) == 5
        assert [request.is_linked for request in driver.taken] == [True] * 4 + [False]
        for _ in range(5):
            driver.complete(0)


@pytest.mark.parametrize("failing", [0, 1, 2])
async def test_the_error_names_the_member(io: AsyncIoManager, path: Path, failing: int) -> None:
    with path.open("rb") as file, path.open("r+b") as writable:  # noqa: SIM117
        with pytest.raises(ChainError, match=rf"member {failing} of the chain \(write\)") as caught:  # noqa: PT012 - the end of the block raises
            async with io.chain() as chain:
                for i in range(4):
                    chain.write(file if i == failing else writable, b"x", i)
    assert caught.value.errno == errno.EBADF
    assert caught.value.filename == str(path)
    assert (caught.value.index, caught.value.verb) == (failing, "write")
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.results == [1] * failing + [caught.value.__cause__] + [None] * (3 - failing)
    assert ("behind it did not happen" in str(caught.value)) is (failing < 3)


async def test_the_error_says_what_was_short(io: AsyncIoManager, path: Path) -> None:
    with path.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        with pytest.raises(ChainError, match="5 of 8 bytes; 1 behind it did not happen") as caught:  # noqa: PT012 - the end of the block raises
            async with io.chain() as chain:
                chain.read(file, 8, size - 5)
                chain.write(file, b"x", size)
        assert caught.value.errno == errno.EIO
        assert caught.value.results == [os.pread(file.fileno(), 5, size - 5), None]
        async with io.chain() as at_the_end:  # of the last one a short read is no failure
            at_the_end.write(file, b"x", size)
            at_the_end.read(file, 8, size - 4)
        assert at_the_end.results == [1, os.pread(file.fileno(), 5, size - 4)]


async def test_members_at_the_file_position_follow_one_another(io: AsyncIoManager, tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b") as file:
        async with io.chain() as chain:
            for letter in b"ABC":
                chain.write(file, bytes([letter]) * 4096, -1)
        assert chain.results == [4096] * 3
        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == 3 * 4096
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        async with io.chain() as chain:
            for _ in range(3):
                chain.read(file, 4096, -1)
        assert chain.results == [bytes([letter]) * 4096 for letter in b"ABC"]


async def test_a_block_that_raises_submits_nothing(io: AsyncIoManager, path: Path) -> None:
    before, data, chain = io.statistics().submissions, bytearray(b"abc"), io.chain()
    with path.open("r+b") as file:
        with pytest.raises(ValueError, match="length must be between"):  # noqa: PT012 - the end of the block raises
            async with chain:
                chain.write(file, data, 0)
                chain.read(file, -1, 0)
        with pytest.raises(RuntimeError, match="for inside its async with block"):
            chain.fsync(file)
        with pytest.raises(RuntimeError, match="submitted once"):
            async with chain:
                pass
    assert io.statistics().submissions == before
    assert not hasattr(chain, "results")
    data.append(1)


async def test_a_member_longer_than_one_operation(io: AsyncIoManager, path: Path) -> None:
    """It would be several; the others are not submitted either, and no buffer stays pinned."""
    content = path.read_bytes()
    buffers = [bytearray(1) for _ in range(1025)]
    with path.open("r+b") as file:
        with pytest.raises(ValueError, match=r"readv\(\) of a chain takes at most 0x7ffff000 bytes and 1024 buffers"):  # noqa: PT012 - as above
            async with io.chain() as chain:
                chain.write(file, b"new", 0)
                chain.readv(file, buffers, 0)
        assert path.read_bytes() == content
        async with io.chain() as chain:
            chain.readv(file, buffers[1:], 0)
            chain.fsync(file)
    assert chain.results[0] == 1024
    assert b"".join(buffers) == b"\0" + content[:1024]
    for buffer in buffers:
        buffer.append(0)


async def test_a_chain_longer_than_depth(driver: Any) -> None:
    async with open_uring(driver=driver, depth=2) as io:
        with pytest.raises(ValueError, match="no more than depth members, which is 2"):  # noqa: PT012 - the end of the block raises
            async with io.chain() as chain:
                for _ in range(3):
                    chain.fsync(0)


async def test_a_cancelled_chain_raises_the_cancellation(
    io: AsyncIoManager, pipe: tuple[int, int], tmp_path: Path
) -> None:
    with (tmp_path / "file").open("w+b") as file:
        scope = anyio.CancelScope()

        async def call() -> None:
            with scope:
                async with io.chain() as chain:
                    chain.write(file, b"x", 0)
                    chain.read(pipe[0], 1, -1)
                    chain.write(file, b"y", 1)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            await until(lambda: os.fstat(file.fileno()).st_size == 1)
            scope.cancel()
        assert scope.cancelled_caught
        assert os.pread(file.fileno(), 10, 0) == b"x"


# A kernel that is short of memory takes fewer entries than it is given; this one takes one of each lot.
SHORT_OF_MEMORY = r"""
#include <liburing.h>

int io_uring_submit(struct io_uring *ring)
{
    struct io_uring_sq *sq = &ring->sq;
    sq->sqe_head = sq->sqe_tail;
    io_uring_smp_store_release(sq->ktail, sq->sqe_tail);
    return io_uring_enter((unsigned)ring->ring_fd, 1, 0, 0, NULL);
}
"""

CUT_CHAIN = """
import sys
import anyio
from anyio_uring import open_uring

async def main():
    with open("file", "w+b") as file:
        try:
            async with open_uring(driver="uring") as io:
                print(await io.write(file, b"0", 0), flush=True)
                async with io.chain() as chain:
                    chain.write(file, b"1", 1)
                    chain.write(file, b"2", 2)
        except anyio.BrokenResourceError as error:
            print(repr(error.__cause__))
    print(open("file", "rb").read())

anyio.run(main, backend=sys.argv[1])
"""


@pytest.mark.ring
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_chain_that_the_kernel_cuts_ends_the_manager(tmp_path: Path, backend: str) -> None:
    """C11: its second member would begin without waiting for the first, so it shall not begin at all."""
    source, library = tmp_path / "short.c", tmp_path / "short.so"
    source.write_text(SHORT_OF_MEMORY)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-luring"], check=True)
    done = subprocess.run(
        [sys.executable, "-c", CUT_CHAIN, backend],
        cwd=tmp_path,
        env=os.environ | {"LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    written, cause, content = done.stdout.splitlines()
    assert written == "1"
    assert cause == "OSError(12, 'io_uring_enter failed: Cannot allocate memory')"
    assert content in {"b'0'", "b'01'"}

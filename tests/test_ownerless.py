"""What runs where no manager is open: the same verbs, each in a worker thread of anyio's."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from pathlib import Path
from typing import Any

import anyio
import pytest

from anyio_uring import AsyncIoManager, ChainError, open_uring
from anyio_uring._core import manager_for
from anyio_uring._ownerless import OwnerlessExecutor
from anyio_uring._waiters import _Job

from .helpers import asyncio_only, every_loop, until
from .programs import run

anyio_backend = every_loop

pytestmark = pytest.mark.anyio


def _without_page_cache() -> AsyncIoManager:
    io = manager_for(None, anyio.CapacityLimiter(4))
    io._inline = None
    return io


async def test_the_innermost_open_manager_comes_first(driver: Any) -> None:
    async with open_uring(driver=driver) as outer:
        assert manager_for(None) is outer
        async with open_uring(driver=driver) as inner:
            assert manager_for(None) is inner
            assert manager_for(outer) is outer
        assert manager_for(None) is outer
    assert manager_for(None) is not outer


async def test_a_closed_manager_is_refused(driver: Any) -> None:
    async with open_uring(driver=driver) as io:
        pass
    with pytest.raises(anyio.ClosedResourceError):
        manager_for(io)


async def test_wrong_types_are_refused() -> None:
    with pytest.raises(TypeError, match="io must be an AsyncIoManager or None, not int"):
        manager_for(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="limiter must be a CapacityLimiter or None, not int"):
        manager_for(None, 3)  # type: ignore[arg-type]


async def test_without_a_limiter_all_share_one() -> None:
    assert manager_for(None) is manager_for(None)
    assert manager_for(None).driver == "threads"
    assert manager_for(None).fallback_reason is None


async def test_every_kind_of_verb(path: Path) -> None:
    io = _without_page_cache()
    with path.open("r+b") as file:
        content = file.read()
        assert await io.read(file, 8, 4) == content[4:12]
        assert await io.read_exactly(file, 65536, 0) == content
        assert await io.read_batch([(file, 4, 0), (file, 4, 8), (file, 4, 65536)]) == [content[:4], content[8:12], b""]
        assert await io.write_batch([(file, b"ab", 0), (file, b"cd", 2)]) == [2, 2]
        assert await io.write_and_sync(file, b"efgh", 4) == 4
        await io.fsync(file)
        async with io.chain() as chain:
            chain.write(file, b"ij", 8)
            chain.fdatasync(file)
            chain.read(file, 10, 0)
        assert chain.results == [2, None, b"abcdefghij"]
        with pytest.raises(OSError, match="Bad file descriptor"):
            await io.read(99999, 1, 0)
        async with io.buffer_pool(1) as pool, io.register_files([file]) as (registered,):
            with await pool.acquire() as buffer:
                assert await io.readinto(registered, buffer.view[:4], 0) == 4
                assert bytes(buffer.view[:4]) == b"abcd"
    statistics = io.statistics()
    assert statistics.in_flight == 0
    assert statistics.submissions == statistics.completions > 0
    assert statistics.bytes_written == 10


async def test_a_chain_stops_at_its_first_failure(path: Path) -> None:
    io = _without_page_cache()
    with path.open("rb") as reader, path.open("r+b") as writer:

        async def submit() -> None:
            async with io.chain() as chain:
                chain.write(writer, b"xx", 0)
                chain.write(reader, b"yy", 2)
                chain.write(writer, b"zz", 4)

        with pytest.raises(ChainError) as caught:
            await submit()
        assert caught.value.index == 1
        assert reader.read(6) == b"xx\0\0\0\0"


async def test_it_uses_the_limiter(pipe: tuple[int, int]) -> None:
    limiter = anyio.CapacityLimiter(1)
    io = manager_for(None, limiter)
    async with limiter, anyio.create_task_group() as tasks:
        tasks.start_soon(io.write, pipe[1], b"x", -1)
        await until(lambda: limiter.statistics().tasks_waiting == 1)
        tasks.cancel_scope.cancel()
    assert io.statistics().syscalls == 0, "C4: cancelled before a thread was free"


async def test_an_empty_pipe_holds_no_thread_and_can_be_cancelled(pipe: tuple[int, int]) -> None:
    limiter = anyio.CapacityLimiter(1)
    io = manager_for(None, limiter)
    async with anyio.create_task_group() as tasks:
        for _ in range(2):  # two tasks at one descriptor
            tasks.start_soon(io.read, pipe[0], 1, -1)
        await until(lambda: io.statistics().syscalls == 2)
        await anyio.wait_all_tasks_blocked()
        assert limiter.borrowed_tokens == 0
        tasks.cancel_scope.cancel()
    os.write(pipe[1], b"x")
    assert await io.read(pipe[0], 1, -1) == b"x", "a cancelled read took the byte"


async def test_what_is_not_ready_is_waited_for(pipe: tuple[int, int]) -> None:
    io = _without_page_cache()
    other = os.pipe()
    results: list[bytes] = []

    async def read() -> None:
        results.extend(await io.read_batch([(pipe[0], 2, -1), (other[0], 2, -1)]))

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await until(lambda: io.statistics().syscalls == 2)
            await anyio.wait_all_tasks_blocked()
            os.write(other[1], b"b")
            await until(lambda: io.statistics().syscalls == 4)
            os.write(pipe[1], b"a")
    finally:
        os.close(other[0])
        os.close(other[1])
    assert results == [b"a", b"b"]


async def test_where_no_descriptor_is_free_to_wait_with_it_is_an_error(
    pipe: tuple[int, int], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no busy loop; what has a result keeps it."""
    io = _without_page_cache()

    def refuses(_: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with open(path, "rb") as file, monkeypatch.context() as patch:
        patch.setattr(os, "dup", refuses)
        with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
            await io.read(pipe[0], 1, -1)
        results = await io.read_batch([(pipe[0], 1, -1), (file, 4, 4)], return_exceptions=True)
        assert results[1] == b"\0\0\0\1"
        assert isinstance(results[0], OSError)
        assert results[0].errno == errno.EMFILE
        chain = io.chain()
        await chain.__aenter__()
        chain.read(pipe[0], 1, -1)
        chain.read(file, 4, 0)
        with pytest.raises(ChainError) as caught:
            await chain.__aexit__(None, None, None)
        assert (caught.value.index, caught.value.errno) == (0, errno.EMFILE)
    os.write(pipe[1], b"x")
    assert await io.read(pipe[0], 1, -1) == b"x"


async def test_a_descriptor_that_is_closed_before_it_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the attempt that found nothing to read and the wait, by another thread: as if it had been closed before."""
    io = _without_page_cache()
    read_end, write_end = os.pipe()
    dup = os.dup

    def closed_meanwhile(fd: int) -> int:
        monkeypatch.undo()
        os.close(fd)
        return dup(fd)

    monkeypatch.setattr(os, "dup", closed_meanwhile)
    with pytest.raises(OSError) as caught:
        await io.read(read_end, 1, -1)
    assert caught.value.errno == errno.EBADF
    os.close(write_end)


class _Held:
    """A thread job that has begun and ends when it is told to."""

    def __init__(self) -> None:
        self.has_begun = threading.Event()
        self.may_end = threading.Event()

    def __call__(self) -> str:
        self.has_begun.set()
        assert self.may_end.wait(10)
        return "done"


async def test_a_cancellation_does_not_abandon_what_has_begun() -> None:
    job, outcome = _Held(), []
    executor = manager_for(None)._task
    assert isinstance(executor, OwnerlessExecutor)

    async def run() -> None:
        outcome.append(await executor._loop.run_in_thread(job, None))
        await anyio.lowlevel.checkpoint()
        outcome.append("not cancelled")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await until(job.has_begun.is_set)
        tasks.cancel_scope.cancel()
        job.may_end.set()
    assert outcome == ["done"], "C6: the result is kept, and the cancellation strikes at the next checkpoint"


@asyncio_only
async def test_nor_does_a_native_cancellation() -> None:
    job, outcome = _Held(), []
    executor = manager_for(None)._task
    assert isinstance(executor, OwnerlessExecutor)

    async def run() -> None:
        outcome.append(await executor._loop.run_in_thread(job, None))
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            outcome.append("cancelled")
            raise

    task = asyncio.ensure_future(run())
    await until(job.has_begun.is_set)
    task.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done(), "C7: the wait survives it"
    job.may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert outcome == ["done", "cancelled"], "C7: neither lost nor repeated"


@asyncio_only
async def test_a_close_is_certain_where_no_thread_is_free() -> None:
    """A native cancellation passes shields, and a descriptor that is left open would be lost."""
    limiter, outcome = anyio.CapacityLimiter(1), []
    io = manager_for(None, limiter)
    fd = os.open(".", os.O_RDONLY)

    async def close() -> None:
        await io.close(fd)
        outcome.append("closed")
        await asyncio.sleep(10)

    async with limiter:
        task = asyncio.ensure_future(close())
        await until(lambda: limiter.statistics().tasks_waiting == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert outcome == ["closed"], "C7: the cancellation strikes at the next checkpoint"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@asyncio_only
async def test_a_close_that_its_thread_comes_too_late_for_happens_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancelled when a thread has the job and has not begun it, it is done here: the number may mean another file then."""
    held, has_ended = _Held(), threading.Event()
    run_job = _Job.run

    def late(job: Any) -> None:
        held()
        run_job(job)
        has_ended.set()

    io = manager_for(None, anyio.CapacityLimiter(1))
    fd = os.open(".", os.O_RDONLY)
    with monkeypatch.context() as patch:
        patch.setattr(_Job, "run", late)
        task = asyncio.ensure_future(io.close(fd))
        await until(held.has_begun.is_set)
        task.cancel()
        await asyncio.wait([task])
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    again = os.open(".", os.O_RDONLY)
    assert again == fd
    held.may_end.set()
    await until(has_ended.is_set)
    os.fstat(again)
    os.close(again)


FORKED = """
import anyio, os, sys
from anyio_uring import open_file

path, backend = sys.argv[1:]
file = anyio.run(open_file, path, "r+b", backend=backend)
child = os.fork()
if not child:
    for verb, *arguments in ((file.pread, 4, 4), (file.pwrite, b"child", 4)):
        try:
            anyio.run(verb, *arguments, backend=backend)
        except RuntimeError as exc:
            print(exc, flush=True)
    os._exit(0)
os.waitpid(child, 0)
print(os.pread(file.fileno(), 4, 4))
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_forked_child_is_refused(path: Path, backend: str) -> None:
    """Also where it has an event loop of its own."""
    said = "this file or manager belongs to the parent process: open a new one in the forked child"
    assert run(FORKED, path, backend).splitlines() == [said, said, repr((1).to_bytes(4, "big"))]


async def test_another_thread_is_refused(path: Path) -> None:
    io = manager_for(None)
    errors: list[Exception] = []

    def elsewhere() -> None:
        try:
            io._task.check()
        except RuntimeError as exc:
            errors.append(exc)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    await anyio.to_thread.run_sync(thread.join)
    assert "another thread" in str(errors[0])

"""Reads that the page cache answers at once: when they are tried, what they count, that they stay checkpoints."""

from __future__ import annotations

import errno
import mmap
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from anyio_uring import AsyncIoManager, open_uring
from anyio_uring._fallback import ThreadDriver
from anyio_uring._inline import BUDGET_READS, INLINE_BYTES_MAX, InlineReads

from .helpers import asyncio_only

CACHED = os.urandom(4096)


@pytest.fixture
def nowait() -> bool:
    return True


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "file").write_bytes(CACHED * 64)
    number = os.open(tmp_path / "file", os.O_RDWR)
    os.fsync(number)  # a page under writeback may be refused
    yield number
    os.close(number)


def _counts(io: AsyncIoManager) -> tuple[int, int, int]:
    statistics = io.statistics()
    return statistics.inline_reads, statistics.inline_misses, statistics.submissions


@pytest.mark.anyio
async def test_cached_reads_need_no_operation(io: AsyncIoManager, fd: int) -> None:
    buffer = bytearray(4096)
    for _ in range(10):
        assert await io.read(fd, 4096, 4096) == CACHED
        assert await io.readinto(fd, buffer, 0) == 4096
        assert await io.read_exactly(fd, 4096, 0) == CACHED
    assert buffer == CACHED
    buffer.append(0)  # the export has ended
    assert _counts(io) == (30, 0, 0)


@pytest.mark.anyio
async def test_a_file_object_will_do(io: AsyncIoManager, fd: int) -> None:
    with open(fd, "rb", closefd=False) as file:
        assert await io.read(file, 4096, 0) == CACHED
    assert _counts(io) == (1, 0, 0)


@pytest.mark.anyio
async def test_the_end_of_the_file_is_no_miss(io: AsyncIoManager, fd: int) -> None:
    assert await io.read(fd, 4096, 64 * 4096 - 10) == CACHED[-10:]
    assert await io.read(fd, 4096, 64 * 4096) == b""
    with pytest.raises(anyio.IncompleteRead):
        await io.read_exactly(fd, 11, 64 * 4096 - 10)
    assert _counts(io)[1] == 0


@pytest.mark.anyio
async def test_what_the_cache_has_in_part_comes_whole_from_the_driver(io: AsyncIoManager, fd: int) -> None:
    """No file can be trusted to stay out of the page cache, so the kernel's answer is played here."""
    buffer = bytearray(8192)

    def read_a_page(_fd: int, _memory: Any, length: int, _offset: int) -> int:
        buffer[:4096] = b"?" * 4096
        assert length == 8192
        return -errno.EAGAIN

    io._read_now = read_a_page
    assert await io.readinto(fd, buffer, 0) == 8192
    assert buffer == CACHED * 2
    assert _counts(io) == (0, 1, 1)


@pytest.mark.anyio
async def test_what_comes_into_the_cache_meanwhile(io: AsyncIoManager, fd: int) -> None:
    """Read by two tasks in one pass of the loop: threads answer both without a worker."""
    contents: dict[int, bytes] = {}

    async def read(offset: int) -> None:
        contents[offset] = await io.read(fd, 4096, offset)

    io._read_now = lambda *_: -errno.EAGAIN
    async with anyio.create_task_group() as tasks:
        for offset in (0, 4096):
            tasks.start_soon(read, offset)
    assert contents == {0: CACHED, 4096: CACHED}
    assert _counts(io) == (0, 2, 2)
    if isinstance(io._driver, ThreadDriver):
        assert not io._driver._executor._threads


@pytest.mark.anyio
async def test_short_answers_of_the_cache_are_put_together(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may give less than it was asked for, more than once; only what it does not have goes to the driver."""
    preadv = os.preadv
    os.pwrite(fd, content := os.urandom(4096 * 2), 0)
    os.fsync(fd)

    def shortened(fd: int, buffers: list[Any], *arguments: int) -> int:
        return preadv(fd, [memoryview(buffers[0])[:1000]], *arguments)

    monkeypatch.setattr("anyio_uring._fallback.os.preadv", shortened)
    async with open_uring(driver="threads", nowait=True) as io:
        assert await io.read(fd, 3500, 17) == content[17:3517]
        assert await io.read_exactly(fd, 8192, 0) == content
        assert await io.read(fd, 3500, 64 * 4096 - 2500) == CACHED[-2500:]
        assert _counts(io) == (3, 0, 0)
        assert await io.read_batch([(fd, 2500, 1), (fd, 4096, 4096)]) == [content[1:2501], content[4096:]]


@pytest.mark.anyio
async def test_a_file_that_is_not_cached_is_tried_ever_more_seldom(io: AsyncIoManager, fd: int) -> None:
    tried: list[int] = []

    def miss(*_: Any) -> int:
        tried.append(reads)
        return -errno.EAGAIN

    io._read_now = miss
    for reads in range(260):  # noqa: B007 - miss() looks at it
        assert await io.read(fd, 4096, 0) == CACHED
    assert tried == [0, 2, 5, 10, 19, 36, 69, 134, 199]
    assert _counts(io) == (0, 9, 260)


@pytest.mark.anyio
@pytest.mark.parametrize("length", [0, 1, INLINE_BYTES_MAX + 1])
async def test_what_is_large_or_nothing_goes_to_the_driver(io: AsyncIoManager, fd: int, length: int) -> None:
    assert len(await io.read(fd, length, 0)) == length
    assert _counts(io) == (0, 0, 1)


@pytest.mark.anyio
async def test_the_file_position_is_the_drivers(io: AsyncIoManager, fd: int) -> None:
    """A cancellation must not find it moved."""
    assert await io.read(fd, 4096, -1) == CACHED
    assert os.lseek(fd, 0, os.SEEK_CUR) == 4096
    assert _counts(io) == (0, 0, 1)


@pytest.mark.anyio
async def test_direct_reads_are_not_made_on_the_loops_thread(io: AsyncIoManager, fd: int, tmp_path: Path) -> None:
    """With O_DIRECT the call would wait for the device in spite of RWF_NOWAIT."""
    direct = os.open(tmp_path / "file", os.O_RDONLY | os.O_DIRECT)
    with mmap.mmap(-1, 4096) as page:
        assert await io.readinto(direct, page, 0) == 4096
        assert page[:] == CACHED
    os.close(direct)
    assert _counts(io) == (0, 1, 1)


@pytest.mark.anyio
async def test_pipes_and_bad_descriptors_are_answered_by_the_driver(io: AsyncIoManager, pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"abc")
    assert await io.read(pipe[0], 10, 0) == b"abc"
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        await io.read(1 << 20, 10, 0)
    assert caught.value.errno == errno.EBADF


@pytest.mark.anyio
async def test_nowait_can_be_switched_off(driver: Any, fd: int) -> None:
    async with open_uring(driver=driver, nowait=False) as io:
        assert await io.read(fd, 4096, 0) == CACHED
        assert _counts(io) == (0, 0, 1)


@pytest.mark.anyio
@pytest.mark.parametrize("checkpoint", ["always", "budget"])
async def test_c1_a_cancelled_scope_stops_them_before_they_read(driver: Any, fd: int, checkpoint: Any) -> None:
    buffer = bytearray(4096)
    async with open_uring(driver=driver, checkpoint=checkpoint) as io:
        for _ in range(3):
            with anyio.CancelScope() as scope:
                assert await io.readinto(fd, bytearray(1), 0) == 1  # the budget has begun
                scope.cancel()
                await io.readinto(fd, buffer, 0)
            assert scope.cancelled_caught
            with anyio.move_on_after(0) as scope:
                await io.read(fd, 4096, 0)
            assert scope.cancelled_caught
            with anyio.CancelScope() as outer:
                outer.cancel()
                with anyio.CancelScope(shield=True):
                    assert await io.read(fd, 4096, 0) == CACHED
                await io.readinto(fd, buffer, 0)
            assert outer.cancelled_caught
    assert buffer == bytes(4096)


@asyncio_only
@pytest.mark.anyio
@pytest.mark.parametrize("checkpoint", ["always", "budget"])
async def test_c7_a_native_cancellation_stops_them(driver: Any, fd: int, checkpoint: Any) -> None:
    import asyncio

    reads = 0

    async def read() -> None:
        nonlocal reads
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await io.read(fd, 4096, 0)
        reads += 1

    async with open_uring(driver=driver, checkpoint=checkpoint) as io:
        for _ in range(3):
            await io.read(fd, 4096, 0)
            task = asyncio.ensure_future(read())
            await asyncio.wait([task])
            assert task.cancelled()
    assert reads == 0


async def _passes_while_reading(io: AsyncIoManager, fd: int, count: int) -> int:
    """Return how many times another task ran during reads."""
    passes = 0
    done = False

    async def other() -> None:
        nonlocal passes
        while not done:
            await anyio.lowlevel.checkpoint()
            passes += 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(other)
        await anyio.lowlevel.checkpoint()
        passes = 0
        for _ in range(count):
            await io.read(fd, 4096, 0)
        done = True
        return passes
    raise AssertionError


@pytest.mark.anyio
async def test_c1_each_lets_other_tasks_run(io: AsyncIoManager, fd: int) -> None:
    assert await _passes_while_reading(io, fd, 100) >= 99


@pytest.mark.anyio
async def test_with_a_budget_other_tasks_run_when_it_is_used_up(
    driver: Any, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.perf_counter", lambda: 0.0)
    async with open_uring(driver=driver, checkpoint="budget") as io:
        await io.read(fd, 4096, 0)  # begins a budget
        passes = await _passes_while_reading(io, fd, 10 * (BUDGET_READS + 1))
    if sys.version_info >= (3, 11):
        assert 9 <= passes <= 11
    else:  # without Task.cancelling() every call lets others run, so as not to miss a cancellation
        assert passes >= 9


@pytest.mark.anyio
async def test_with_a_budget_other_tasks_run_when_its_time_is_over(
    driver: Any, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def perf_counter() -> float:
        nonlocal now
        now += 1.0
        return now

    monkeypatch.setattr("time.perf_counter", perf_counter)
    async with open_uring(driver=driver, checkpoint="budget") as io:
        assert await _passes_while_reading(io, fd, 100) >= 99


@pytest.mark.anyio
async def test_the_end_of_the_block_during_the_checkpoint_is_an_error(driver: Any, fd: int) -> None:
    errors: list[type[BaseException]] = []

    async def read() -> None:
        try:
            while True:
                await io.read(fd, 4096, 0)
        except anyio.ClosedResourceError as exc:
            errors.append(type(exc))

    async with anyio.create_task_group() as tasks, open_uring(driver=driver) as io:
        for _ in range(4):
            tasks.start_soon(read)
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
    assert errors == [anyio.ClosedResourceError] * 4


def test_the_pause_ends_with_a_hit() -> None:
    inline = InlineReads()
    for _ in range(20):
        inline.note_miss(3)
    assert [inline.is_likely(3) for _ in range(65)] == [False] * 64 + [True]
    assert inline.is_likely(4)
    inline.note_hit(3, 10)
    assert inline.is_likely(3)


def test_a_pause_ends_with_one_attempt() -> None:
    """Many tasks ask before the first of them knows its outcome."""
    inline = InlineReads()
    for _ in range(256):
        inline.note_miss(3)
    assert sum(inline.is_likely(3) for _ in range(650)) == 10


def test_the_table_of_pauses_is_bounded() -> None:
    inline = InlineReads()
    for fd in range(100_000):
        inline.note_miss(fd)
    assert len(inline.pauses) <= 4096

"""What every driver must show on every event loop."""

from __future__ import annotations

import array
import errno
import mmap
import os
import resource
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from anyio_uring import AsyncIoManager, BatchError, open_uring
from anyio_uring._completion_task import CompletionTask

from .helpers import (
    WITHOUT_DEBUG,
    driver_name,
    driver_or_fake,
    every_loop,
    file_size_limit,
    in_flight,
    open_terminal,
    until,
)

driver = driver_or_fake
anyio_backend = every_loop


@pytest.fixture(params=[False, True], ids=["", "nowait"])
def nowait(request: pytest.FixtureRequest) -> Any:
    """The same results whether or not the page cache is asked first."""
    return request.param


@pytest.fixture
def fd(path: Path) -> Iterator[int]:
    number = os.open(path, os.O_RDWR)
    yield number
    os.close(number)


# --- one buffer -------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("length", "offset"), [(4096, 0), (100, 12345), (0, 0), (1, 7), (2, 7), (65536, 0), (1 << 20, 0)]
)
async def test_read_gives_what_pread_gives(io: AsyncIoManager, fd: int, length: int, offset: int) -> None:
    data = await io.read(fd, length, offset)
    assert type(data) is bytes
    assert data == os.pread(fd, length, offset)


@pytest.mark.anyio
async def test_read_is_short_at_the_end_of_the_file_and_empty_behind_it(io: AsyncIoManager, fd: int) -> None:
    assert await io.read(fd, 4096, 65536 - 10) == os.pread(fd, 10, 65536 - 10)
    assert await io.read(fd, 4096, 65536) == b""


@pytest.mark.anyio
async def test_reads_of_one_byte_do_not_share_memory(io: AsyncIoManager, fd: int) -> None:
    """The interpreter shares bytes objects of one byte; what is read must not go into a shared one."""
    assert [await io.read(fd, 1, offset) for offset in (3, 7, 11)] == [b"\0", b"\1", b"\2"]
    assert bytes(1) == b"\0"
    assert bytes(2) == b"\0\0"


@pytest.mark.anyio
async def test_offset_minus_one_is_the_file_position(io: AsyncIoManager, fd: int) -> None:
    os.lseek(fd, 400, os.SEEK_SET)
    assert await io.read(fd, 4, -1) == (100).to_bytes(4, "big")
    assert await io.write(fd, b"abcd", -1) == 4
    assert os.lseek(fd, 0, os.SEEK_CUR) == 408
    assert await io.read_exactly(fd, 8, -1) == os.pread(fd, 8, 408)
    await io.write_all(fd, b"efgh", -1)
    assert os.pread(fd, 4, 416) == b"efgh"


@pytest.mark.anyio
@pytest.mark.parametrize("bits", [31, 32, 40])
async def test_offsets_beyond_2_and_4_gib(io: AsyncIoManager, tmp_path: Path, bits: int) -> None:
    """No verb cuts an offset to 32 bits: what lies across the border is there, and nothing at the beginning."""
    border = 1 << bits
    with (tmp_path / "sparse").open("w+b") as file:
        file.truncate(border + 100)
        await io.write_all(file, b"written", border - 3)
        assert await io.writev(file, [b"vec", b"tored"], border + 10) == 8
        assert await io.write_batch([(file, b"batch", border + 20), (file, b"2", border + 25)]) == [5, 1]
        buffers = [bytearray(7), bytearray(2), bytearray(6)]
        assert await io.readinto(file, buffers[0], border - 3) == 7
        assert await io.readv(file, buffers[1:], border + 10) == 8
        assert buffers == [b"written", b"ve", b"ctored"]
        assert await io.read(file, 4, border) == b"tten"
        assert await io.read_exactly(file, 7, border - 3) == b"written"
        assert await io.read_batch([(file, 6, border + 20), (file, 200, border + 90)]) == [b"batch2", bytes(10)]
        assert await io.read(file, 4, border + 100) == b"", "short, and then the end"
        os.lseek(file.fileno(), border + 10, os.SEEK_SET)
        assert await io.read(file, 3, -1) == b"vec"
        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == border + 13
        assert await io.read(file, 4096, 0) == bytes(4096)
        assert os.fstat(file.fileno()).st_size == border + 100


@pytest.mark.anyio
async def test_write_and_read_back(io: AsyncIoManager, fd: int) -> None:
    assert await io.write(fd, b"hello", 10) == 5
    await io.write_all(fd, b"world", 15)
    assert await io.read_exactly(fd, 10, 10) == b"helloworld" == os.pread(fd, 10, 10)
    assert await io.write(fd, b"", 0) == 0


@pytest.mark.anyio
async def test_read_exactly_says_when_the_file_is_too_short(io: AsyncIoManager, fd: int) -> None:
    with pytest.raises(anyio.IncompleteRead):
        await io.read_exactly(fd, 20, 65536 - 10)
    assert await io.read_exactly(fd, 0, 1 << 40) == b""


def _numpy(size: int) -> Any:
    return np.zeros(size // 8, dtype=np.float64).reshape(2, -1)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "make",
    [
        bytearray,
        lambda n: memoryview(bytearray(n + 8))[8:],
        lambda n: mmap.mmap(-1, n),
        lambda n: array.array("I", bytes(n)),
        _numpy,
    ],
    ids=["bytearray", "memoryview", "mmap", "array", "numpy"],
)
async def test_any_object_with_the_buffer_protocol_is_a_buffer(
    io: AsyncIoManager, fd: int, make: Callable[[int], Any]
) -> None:
    buffer = make(4096)
    assert await io.readinto(fd, buffer, 8192) == 4096
    assert bytes(memoryview(buffer).cast("B")) == os.pread(fd, 4096, 8192)
    assert await io.write(fd, buffer, 0) == 4096
    assert os.pread(fd, 4096, 0) == os.pread(fd, 4096, 8192)
    assert await io.readinto_batch([(fd, buffer, 100)]) == [4096]
    assert bytes(memoryview(buffer).cast("B")) == os.pread(fd, 4096, 100)


@pytest.mark.anyio
async def test_a_file_object_is_a_descriptor(io: AsyncIoManager, path: Path) -> None:
    with path.open("rb") as file:
        assert await io.read(file, 4, 40) == (10).to_bytes(4, "big")
        await io.fsync(file)
    with tempfile.TemporaryFile() as file:
        assert await io.write(file, b"x", 0) == 1
    first, second = socket.socketpair()
    with first, second:
        assert await io.write(first, b"ping", -1) == 4
        assert await io.read(second, 10, -1) == b"ping"


@pytest.mark.anyio
async def test_a_buffer_is_released_when_the_call_returns(io: AsyncIoManager, fd: int) -> None:
    buffer = bytearray(4096)
    await io.readinto(fd, buffer, 0)
    await io.readinto_batch([(fd, buffer, 0)] * 3)
    await io.readv(fd, [buffer], 0)
    buffer.append(1)  # BufferError if something still exported it


# --- several buffers --------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_readv_and_writev(io: AsyncIoManager, fd: int) -> None:
    buffers = [bytearray(3), bytearray(0), bytearray(5), bytearray(100)]
    assert await io.readv(fd, buffers, 20) == 108
    assert b"".join(buffers) == os.pread(fd, 108, 20)
    assert await io.writev(fd, [b"one", b"", memoryview(b"two"), array.array("B", b"three")], 7) == 11
    assert os.pread(fd, 11, 7) == b"onetwothree"
    assert await io.readv(fd, [bytearray(8), bytearray(8)], 65536 - 10) == 10
    assert await io.readv(fd, [], 0) == 0


@pytest.mark.anyio
async def test_more_buffers_than_one_system_call_takes(io: AsyncIoManager, fd: int) -> None:
    """IOV_MAX is 1024: os.preadv answers EINVAL, the manager takes several operations."""
    buffers = [bytearray(5) for _ in range(3000)]
    assert await io.readv(fd, buffers, 1) == 15000
    assert b"".join(buffers) == os.pread(fd, 15000, 1)
    assert await io.writev(fd, [bytes([i % 251]) * 3 for i in range(3000)], 2) == 9000
    assert os.pread(fd, 9000, 2) == b"".join(bytes([i % 251]) * 3 for i in range(3000))


# --- durability -------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_sync(io: AsyncIoManager, fd: int) -> None:
    await io.fsync(fd)
    await io.fdatasync(fd)
    assert await io.write_and_sync(fd, b"durable", 3) == 7
    assert await io.write_and_sync(fd, b"DUR", 3, data_only=False) == 3
    assert os.pread(fd, 7, 3) == b"DURable"
    await io.fsync_batch([fd] * 5)


@pytest.mark.anyio
async def test_sync_of_a_pipe_is_the_error_that_os_gives(io: AsyncIoManager) -> None:
    read_end, write_end = os.pipe()
    with pytest.raises(OSError) as expected:
        os.fsync(write_end)
    for sync in (io.fsync, io.fdatasync):
        with pytest.raises(OSError) as caught:
            await sync(write_end)
        assert caught.value.errno == expected.value.errno == errno.EINVAL
    with pytest.raises(BatchError) as batch:
        await io.fsync_batch([write_end])
    assert [error.errno for error in batch.value.results] == [errno.EINVAL]
    os.close(read_end)
    os.close(write_end)


# --- batches ----------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_batches_give_results_in_request_order(io: AsyncIoManager, fd: int) -> None:
    requests = [(fd, 1 + i % 7, i * 13 % 65536) for i in range(1000)]
    assert await io.read_batch(requests) == [os.pread(*request) for request in requests]
    buffers = [bytearray(10) for _ in range(50)]
    assert await io.readinto_batch([(fd, buffer, 100 * i) for i, buffer in enumerate(buffers)]) == [10] * 50
    assert [bytes(b) for b in buffers] == [os.pread(fd, 10, 100 * i) for i in range(50)]
    assert await io.write_batch([(fd, bytes([i]) * i, 300 * i) for i in range(100)]) == list(range(100))
    assert [os.pread(fd, i, 300 * i) for i in range(100)] == [bytes([i]) * i for i in range(100)]


@pytest.mark.anyio
async def test_a_batch_reads_into_whatever_has_a_buffer(io: AsyncIoManager, fd: int) -> None:
    expected = os.pread(fd, 64, 4)
    plain: list[Any] = [bytearray(64), memoryview(bytearray(80))[8:72]]
    with mmap.mmap(-1, 64) as page:
        others: list[Any] = [array.array("I", bytes(64)), np.zeros((4, 4), "uint32")]
        for buffers in (plain, [*plain, page], others + plain):
            assert await io.readinto_batch([(fd, buffer, 4) for buffer in buffers]) == [64] * len(buffers)
            assert [bytes(buffer) for buffer in buffers] == [expected] * len(buffers)
            for buffer in buffers:
                memoryview(buffer).cast("B")[:] = bytes(64)
    plain[0].append(0)  # the exports have ended
    for wrong in (b"x" * 64, memoryview(bytearray(128))[::2]):
        with pytest.raises(ValueError, match="request 1"):
            await io.readinto_batch([(fd, bytearray(64), 4), (fd, wrong, 4)])
    with pytest.raises(TypeError, match="request 0"):
        await io.readinto_batch([(fd, "text", 4)])  # type: ignore[list-item]


@pytest.mark.anyio
async def test_a_batch_with_a_buffer_longer_than_a_transfer(io: AsyncIoManager, fd: int) -> None:
    """Of the memory, only what the file has is ever touched."""
    with mmap.mmap(-1, 0x7FFFF000 + 1) as long, mmap.mmap(-1, 100) as short:
        assert await io.readinto_batch([(fd, long, 65000), (fd, short, 4)]) == [536, 100]
        assert (long[:537], short[:]) == (os.pread(fd, 536, 65000) + b"\0", os.pread(fd, 100, 4))
        results = await io.readinto_batch([(1 << 20, short, 0), (fd, long, 65532)], return_exceptions=True)
        assert isinstance(results[0], OSError)
        assert results[0].errno == errno.EBADF
        assert (results[1], long[:4]) == (4, os.pread(fd, 4, 65532))


@pytest.mark.anyio
async def test_a_batch_for_which_there_is_no_memory(io: AsyncIoManager, fd: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (mapped + (1 << 30), hard))
    try:
        with pytest.raises(MemoryError):
            await io.read_batch([(fd, 4, 0), (fd, 0x7FFFF000, 0)])
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert await io.read_batch([(fd, 4, 0), (fd, 4, 4)]) == [os.pread(fd, 4, 0), os.pread(fd, 4, 4)]


@pytest.mark.anyio
async def test_a_failed_batch_of_plain_reads_tells_which(io: AsyncIoManager, fd: int) -> None:
    asked = [(fd, 100, 0), (1 << 20, 100, 0), (fd, 100, 65500)]
    results = await io.read_batch(asked, return_exceptions=True)
    assert (results[0], results[2]) == (os.pread(fd, 100, 0), os.pread(fd, 36, 65500))
    assert isinstance(results[1], OSError)
    assert results[1].errno == errno.EBADF
    into = [(fd, bytearray(100), 0), (1 << 20, bytearray(100), 0)]
    counts = await io.readinto_batch(into, return_exceptions=True)
    assert counts[0] == 100
    assert isinstance(counts[1], OSError)
    with pytest.raises(BatchError) as caught:
        await io.readinto_batch(into)
    assert caught.value.results[0] == 100
    into[1][1].append(0)


@pytest.mark.anyio
async def test_an_empty_batch(io: AsyncIoManager) -> None:
    assert await io.read_batch([]) == []
    assert await io.readinto_batch(iter([])) == []
    assert await io.write_batch(()) == []
    await io.fsync_batch([])


@pytest.mark.anyio
async def test_a_batch_is_one_submission_where_it_fits(fd: int, driver: Any) -> None:
    async with open_uring(driver=driver, depth=256) as io:
        before = io.statistics()
        await io.read_batch([(fd, 64, 64 * i) for i in range(256)])
        after = io.statistics()
    assert after.submissions - before.submissions == 256
    assert after.completions - before.completions == 256
    if driver == "uring":
        assert after.syscalls - before.syscalls <= 4


@pytest.mark.anyio
@pytest.mark.parametrize("depth", [1, 3, 8])
async def test_a_batch_larger_than_the_ring(fd: int, driver: Any, depth: int) -> None:
    requests = [(fd, 4, 4 * (i % 16384)) for i in range(5000)]
    async with open_uring(driver=driver, depth=depth) as io:
        results = await io.read_batch(requests)
        statistics = io.statistics()
    assert results == [(i % 16384).to_bytes(4, "big") for i in range(5000)]
    assert statistics.in_flight_max <= depth  # C3
    assert statistics.overflows == 0


@pytest.mark.anyio
async def test_a_failed_batch_loses_nothing(io: AsyncIoManager, fd: int, path: Path) -> None:
    write_only = os.open(path, os.O_WRONLY)
    requests = [(fd, 4, 0), (write_only, 4, 0), (fd, 4, 4), (-1, 4, 8)]
    with pytest.raises(BatchError, match="read_batch: 2 of 4 operations failed; the first is request 1") as caught:
        await io.read_batch(requests)
    results = caught.value.results
    assert (results[0], results[2]) == (b"\0\0\0\0", b"\0\0\0\1")
    assert {i: error.errno for i, error in caught.value.errors.items()} == {1: errno.EBADF, 3: errno.EBADF}
    assert caught.value.__cause__ is results[1]
    again = await io.read_batch(requests, return_exceptions=True)
    assert [r if isinstance(r, bytes) else r.errno for r in again] == [
        b"\0\0\0\0",
        errno.EBADF,
        b"\0\0\0\1",
        errno.EBADF,
    ]
    written = await io.write_batch([(write_only, b"x", 0), (-1, b"y", 0)], return_exceptions=True)
    assert written[0] == 1
    assert isinstance(written[1], OSError)
    counts = await io.readinto_batch([(-1, bytearray(1), 0)], return_exceptions=True)
    assert isinstance(counts[0], OSError)
    os.close(write_only)


# --- limits (C3) ------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_callers_beyond_depth_wait_in_order(driver: Any) -> None:
    """C3: with room for one, appended records land in the order in which the calls began."""
    read_end, write_end = os.pipe()
    with tempfile.TemporaryFile() as file:
        async with open_uring(driver=driver, depth=1) as io, anyio.create_task_group() as tasks:
            tasks.start_soon(io.read, read_end, 1, -1)
            await in_flight(io, 1)
            for i in range(50):
                tasks.start_soon(io.write, file, bytes([i]), -1)
                await until(lambda i=i: io.statistics().waiting == i + 1)  # type: ignore[misc]
            assert os.pread(file.fileno(), 100, 0) == b""
            os.write(write_end, b"x")
        assert os.pread(file.fileno(), 100, 0) == bytes(range(50))
    os.close(read_end)
    os.close(write_end)


async def _read_concurrently(fd: int, driver: Any, count: int) -> None:
    wrong: list[int] = []

    async def read(i: int) -> None:
        if await io.read(fd, 4, i % 16384 * 4) != (i % 16384).to_bytes(4, "big"):
            wrong.append(i)

    async with open_uring(driver=driver, depth=8, nowait=False) as io:
        async with anyio.create_task_group() as tasks:
            for i in range(count):
                tasks.start_soon(read, i)
        statistics = io.statistics()
    assert wrong == []
    assert (statistics.submissions, statistics.completions) == (count, count)
    assert statistics.in_flight_max <= 8
    assert statistics.overflows == 0


@pytest.mark.anyio
async def test_many_more_reads_than_depth(fd: int, driver: Any) -> None:
    await _read_concurrently(fd, driver, 1000)


@pytest.mark.anyio
@pytest.mark.timeout(300)
@pytest.mark.parametrize("anyio_backend", WITHOUT_DEBUG)
@pytest.mark.not_of_a_fake("a quarter of a minute, in which the test above says the same a thousand times")
async def test_twenty_thousand_reads_through_a_ring_of_eight(fd: int, driver: Any) -> None:
    await _read_concurrently(fd, driver, 20_000)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["trio"])  # parts are tested on every loop in test_core.py
@pytest.mark.not_of_a_fake("half a minute of copying by the same system calls that threads make")
async def test_more_than_one_system_call_can_transfer(driver: Any, tmp_path: Path) -> None:
    """0x7ffff000 bytes are the most for one read(2) or write(2); beyond, the manager takes parts (C8)."""
    size = 0x7FFFF000 + 5000
    seam = slice(0x7FFFF000 - 2, 0x7FFFF000 + 2)
    with mmap.mmap(-1, size) as memory, (tmp_path / "sparse").open("w+b") as file, Path("/dev/null").open("wb") as null:
        os.ftruncate(file.fileno(), size + 10)
        os.pwrite(file.fileno(), b"seam", 10 + seam.start)
        os.pwrite(file.fileno(), b"end", 10 + size - 3)
        async with open_uring(driver=driver) as io:
            assert await io.readinto_batch([(file, memory, 10), (file, bytearray(3), 0)]) == [size, 3]
            assert (memory[seam], memory[-3:]) == (b"seam", b"end")
            assert await io.readinto(file, memory, 13) == size - 3
            assert await io.write(null, memory, 0) == size
            await io.write_all(null, memory, 0)


# --- errors -----------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("open_it", "verb", "expected"),
    [
        (lambda p: os.open(p, os.O_WRONLY), "read", errno.EBADF),
        (lambda p: os.open(p, os.O_RDONLY), "write", errno.EBADF),
        (lambda p: os.open(p.parent, os.O_RDONLY), "read", errno.EISDIR),
        (lambda _: os.open("/dev/full", os.O_RDWR), "write", errno.ENOSPC),
        (lambda _: os.open("/proc/self/mem", os.O_RDONLY), "read", errno.EIO),
    ],
    ids=["EBADF-read", "EBADF-write", "EISDIR", "ENOSPC", "EIO"],
)
async def test_errors_are_those_of_the_os_module(
    io: AsyncIoManager, path: Path, open_it: Callable[[Path], int], verb: str, expected: int
) -> None:
    number = open_it(path)
    with pytest.raises(OSError) as of_os:
        os.pread(number, 10, 0) if verb == "read" else os.pwrite(number, b"0123456789", 0)
    with pytest.raises(OSError) as of_ours:
        await (io.read(number, 10, 0) if verb == "read" else io.write(number, b"0123456789", 0))
    assert of_ours.value.errno == of_os.value.errno == expected
    assert type(of_ours.value) is type(of_os.value)
    os.close(number)


@pytest.mark.anyio
async def test_an_error_names_the_file_where_it_is_known(io: AsyncIoManager, path: Path) -> None:
    with path.open("wb") as file, pytest.raises(OSError, match=str(path)) as caught:
        await io.read(file, 1, 0)
    assert caught.value.filename == str(path)


@pytest.mark.anyio
async def test_a_closed_descriptor(io: AsyncIoManager, path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    os.close(number)
    with pytest.raises(OSError) as caught:
        await io.read(number, 1, 0)
    assert caught.value.errno == errno.EBADF
    with path.open("rb") as file:
        pass
    with pytest.raises(ValueError, match="closed file"):
        await io.read(file, 1, 0)


@pytest.mark.anyio
async def test_a_nonblocking_descriptor_is_waited_for_all_the_same(io: AsyncIoManager) -> None:
    """O_NONBLOCK is for callers that would block; an operation of the ring waits by itself."""
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    got = []

    async def read() -> None:
        got.append(await io.read(read_end, 1, -1))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        await in_flight(io, 1)
        os.write(write_end, b"x")
    assert got == [b"x"]
    os.close(read_end)
    os.close(write_end)


@pytest.fixture
def streams(tmp_path: Path) -> Iterator[list[tuple[int, int]]]:
    """A FIFO and a terminal: for each, what to write to so that it can be read, and the descriptor itself."""
    os.mkfifo(tmp_path / "fifo")
    fifo = os.open(tmp_path / "fifo", os.O_RDWR)
    master, terminal = open_terminal()
    yield [(fifo, fifo), (master, terminal)]
    for number in (fifo, master, terminal):
        os.close(number)


@pytest.mark.anyio
async def test_a_full_terminal_or_fifo_blocks_neither_the_loop_nor_a_worker(
    io: AsyncIoManager, streams: list[tuple[int, int]], tmp_path: Path
) -> None:
    """More is written than fits; it is short or waits, can be cancelled, and files go on meanwhile."""
    with (tmp_path / "file").open("w+b") as file:
        for _, end in streams:
            async with anyio.create_task_group() as tasks:
                for _ in range(40):
                    tasks.start_soon(io.write_all, end, bytes(1 << 20), -1)
                await until(lambda: io.statistics().in_flight >= 40)
                assert await io.write(file, b"x", 0) == 1
                tasks.cancel_scope.cancel()
            assert io.statistics().in_flight == 0


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", WITHOUT_DEBUG)
@pytest.mark.not_of_a_fake("it has no workers that a cancel request could meet; Faults.lost_cancels is tested")
async def test_a_cancelled_write_to_a_full_terminal_ends(io: AsyncIoManager) -> None:
    """However the cancel request meets the workers: Linux 6.18 loses one in some thousands."""
    master, terminal = open_terminal()
    for _ in range(100):
        async with anyio.create_task_group() as tasks:
            for _ in range(40):
                tasks.start_soon(io.write_all, terminal, bytes(1 << 20), -1)
            await until(lambda: io.statistics().in_flight >= 40)
            tasks.cancel_scope.cancel()
    assert io.statistics().in_flight == 0
    os.close(master)
    os.close(terminal)


@pytest.mark.anyio
async def test_readers_of_one_terminal_or_fifo_hold_no_worker(
    io: AsyncIoManager, streams: list[tuple[int, int]]
) -> None:
    """One line comes, one reader gets it, the others can still be cancelled."""
    for source, end in streams:
        got: list[bytes] = []

        async def read(end: int = end, got: list[bytes] = got) -> None:
            got.append(await io.read(end, 10, -1))

        async with anyio.create_task_group() as tasks:
            for _ in range(40):
                tasks.start_soon(read)
            await in_flight(io, 40)
            os.write(source, b"x\n")
            await until(lambda got=got: bool(got))  # type: ignore[misc]
            tasks.cancel_scope.cancel()
        assert got == [b"x\n"]


@pytest.mark.anyio
async def test_negative_descriptors_harm_nobody_else(io: AsyncIoManager, fd: int) -> None:
    for number in (-1, -100, -(2**40)):
        for call in (io.read(number, 1, 0), io.write(number, b"x", 0), io.fsync(number), io.readv(number, [], 0)):
            with pytest.raises(OSError) as caught:
                await call
            assert caught.value.errno == errno.EBADF
    assert await io.read(fd, 4, 4) == b"\0\0\0\1"


@pytest.mark.anyio
async def test_a_socket_ignores_the_offset(io: AsyncIoManager) -> None:
    first, second = socket.socketpair()
    with first, second:
        for offset in (-1, 0, 5):
            assert await io.write(first, b"ping", offset) == 4
            assert await io.read(second, 10, offset) == b"ping"


@pytest.mark.anyio
async def test_an_argument_that_raises_is_not_masked_and_pins_nothing(io: AsyncIoManager, fd: int) -> None:
    buffer = bytearray(4)

    def requests() -> Iterator[tuple[int, bytearray, int]]:
        yield fd, buffer, 0
        b"\xff".decode()

    with pytest.raises(UnicodeDecodeError):
        await io.readinto_batch(requests())
    buffer.append(0)
    for call in (
        io.readinto_batch([(fd, buffer, 0), (fd, buffer, -5)]),
        io.readv(fd, [buffer, b"read-only"], 0),
        io.readinto(fd, buffer, -5),
    ):
        try:
            await call
        except ValueError:
            buffer.append(0)  # while the exception, and its traceback, are there


_AT_THE_POSITION: dict[str, Callable[[AsyncIoManager, int, bytes], Any]] = {
    "write": lambda io, fd, data: io.write(fd, data, -1),
    "writev": lambda io, fd, data: io.writev(fd, [data[:7000], data[7000:]], -1),
    "write_batch": lambda io, fd, data: io.write_batch([(fd, data, -1)]),
    "write_all": lambda io, fd, data: io.write_all(fd, data, -1),
    "write_and_sync": lambda io, fd, data: io.write_and_sync(fd, data, -1),
}


@pytest.mark.anyio
@pytest.mark.parametrize("verb", _AT_THE_POSITION)
@pytest.mark.parametrize("flags", [0, os.O_APPEND], ids=["", "append"])
async def test_a_short_write_moves_the_file_position(io: AsyncIoManager, path: Path, verb: str, flags: int) -> None:
    """What is written next must not go where it went (the ring forgets the position then)."""
    data = os.urandom(20_000)
    path.write_bytes(b"head")
    fd = os.open(path, os.O_RDWR | flags)
    os.lseek(fd, 4, os.SEEK_SET)
    try:
        with file_size_limit(10_000):
            if verb.endswith(("_all", "_sync")):
                with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
                    await _AT_THE_POSITION[verb](io, fd, data)
            else:
                assert await _AT_THE_POSITION[verb](io, fd, data) in (9996, [9996])
        assert os.lseek(fd, 0, os.SEEK_CUR) == 10_000
        await io.write_all(fd, data[9996:], -1)
        assert path.read_bytes() == b"head" + data
    finally:
        os.close(fd)


@pytest.mark.anyio
async def test_a_file_size_limit_gives_a_short_write_and_then_an_error(io: AsyncIoManager, tmp_path: Path) -> None:
    """RLIMIT_FSIZE: write() is short at the limit; write_all() goes on and meets EFBIG."""
    with (tmp_path / "limited").open("w+b") as file:
        with file_size_limit(10_000):
            assert await io.write(file, b"x" * 8000, 0) == 8000
            assert await io.write(file, b"y" * 8000, 8000) == 2000
            with pytest.raises(OSError) as caught:
                await io.write_all(file, b"z" * 8000, 8000)
            assert caught.value.errno == errno.EFBIG
            assert (await io.write_batch([(file, b"w" * 20, 9990), (file, b"v", 0)])) == [10, 1]
        assert await io.read_exactly(file, 10000, 0) == b"v" + b"x" * 7999 + b"z" * 1990 + b"w" * 10


@pytest.mark.anyio
@pytest.mark.parametrize("answers", [(0, 0), (4, 0), (4, 3, 0)])
async def test_a_write_of_nothing_is_an_error_and_not_tried_for_ever(
    io: AsyncIoManager, path: Path, monkeypatch: pytest.MonkeyPatch, answers: tuple[int, ...]
) -> None:
    """No filesystem at hand does that, so the kernel's answers are played."""
    left = [*answers]

    async def play(_: CompletionTask, requests: Any, **options: Any) -> list[int]:
        return [left.pop(0)]

    data = bytearray(b"everything")
    with path.open("r+b") as file:
        monkeypatch.setattr(CompletionTask, "perform", play)
        with pytest.raises(OSError, match="wrote nothing") as caught:
            await io.write_all(file, data, 8)
    assert caught.value.errno == errno.EIO
    data.append(0)  # BufferError if something still exported it


# --- what a caller cannot ask -----------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda io, fd: io.read(fd, -1, 0), ValueError, "length must be between 0"),
        (lambda io, fd: io.read(fd, 2**63 - 1, 0), ValueError, "length must be between 0"),
        (lambda io, fd: io.read_exactly(fd, 2**63 - 34, 0), ValueError, "length must be between 0"),
        (lambda io, fd: io.read_batch([(fd, 2**63 - 34, 0)]), ValueError, "length must be between 0"),
        (lambda io, fd: io.read(fd, 1, -2), ValueError, "offset must be -1"),
        (lambda io, fd: io.read(fd, 1, 1 << 63), ValueError, "offset must be -1"),
        (lambda io, fd: io.read(fd, 1.5, 0), TypeError, "float"),
        (lambda io, fd: io.read(1 << 31, 1, 0), ValueError, "fd must be at most"),
        (lambda io, fd: io.read("name", 1, 0), TypeError, r"fd must be an int or have a fileno\(\) method, not str"),
        (lambda io, fd: io.read(True, 1, 0), TypeError, r"fd must be an int or have a fileno\(\) method, not bool"),
        (lambda io, fd: io.fdatasync(False), TypeError, "not bool"),
        (lambda io, fd: io.read_batch([(fd, 1, 0), (True, 1, 0)]), TypeError, r"read_batch: request 1 .* not bool"),
        (lambda io, fd: io.write_batch([(False, b"x", 0)]), TypeError, r"write_batch: request 0 .* not bool"),
        (lambda io, fd: io.truncate(True, 0), TypeError, "bool"),
        (lambda io, fd: io.stat(True), TypeError, "bool"),
        (lambda io, fd: io.readinto(fd, b"read-only", 0), ValueError, "buffer must be writable"),
        (lambda io, fd: io.readinto(fd, memoryview(bytearray(8))[::2], 0), ValueError, "contiguous"),
        (lambda io, fd: io.readinto(fd, 5, 0), TypeError, "buffer protocol"),
        (lambda io, fd: io.write(fd, "text", 0), TypeError, "buffer protocol"),
        (lambda io, fd: io.write_all(fd, "text", 0), TypeError, "buffer protocol"),
        (lambda io, fd: io.readv(fd, [bytearray(1), b"r"], 0), ValueError, r"buffers\[1\] must be writable"),
        (lambda io, fd: io.writev(fd, [b"", None], 0), TypeError, r"buffers\[1\]"),
        (
            lambda io, fd: io.read_batch([(fd, 1, 0), (fd, -1, 0)]),
            ValueError,
            r"read_batch: request 1 .* length must be",
        ),
        (lambda io, fd: io.read_batch([(fd, 1)]), ValueError, r"read_batch: request 0 \(fd, length, offset\)"),
        (lambda io, fd: io.readinto_batch([(fd, b"r", 0)]), ValueError, "readinto_batch: request 0 .* writable"),
        (lambda io, fd: io.write_batch([(fd, b"", 0), 7]), TypeError, "write_batch: request 1"),
        (lambda io, fd: io.fsync_batch([None]), TypeError, "fd must be"),
        (
            lambda io, fd: io.read_batch([(fd, 4, -1), (fd, 4, 0), (fd, 4, -1)]),
            ValueError,
            r"read_batch: 2 requests at offset -1 of descriptor \d+: .*: give each an offset of its own",
        ),
        (lambda io, fd: io.readinto_batch([(fd, bytearray(4), -1)] * 8), ValueError, "readinto_batch: 8 requests at"),
        (lambda io, fd: io.write_batch([(fd, b"x", -1), (fd, b"y", -1)]), ValueError, "write_batch: 2 requests at"),
    ],
)
async def test_a_callers_mistake_is_told_before_the_kernel_sees_it(
    io: AsyncIoManager, fd: int, call: Callable[[Any, int], Any], error: type[Exception], message: str
) -> None:
    before = io.statistics()
    with pytest.raises(error, match=message):
        await call(io, fd)
    assert io.statistics() == before


@pytest.mark.anyio
async def test_a_batch_lets_go_of_what_it_was_refused_for(io: AsyncIoManager, fd: int) -> None:
    memory = bytearray(b"data")
    with pytest.raises(ValueError, match="2 requests at offset -1"):
        await io.write_batch([(fd, memory, -1)] * 2)
    memory.append(1)
    assert os.lseek(fd, 0, os.SEEK_CUR) == 0


@pytest.mark.anyio
async def test_a_batch_at_positions_that_do_not_collide(
    io: AsyncIoManager, fd: int, path: Path, pipe: tuple[int, int]
) -> None:
    """One for each file; and as many as you like of what appends, and of what has no position."""
    other = os.open(path, os.O_RDONLY)
    appending = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.lseek(other, 40, os.SEEK_SET)
        assert await io.read_batch([(fd, 4, -1), (fd, 4, 80), (other, 4, -1)]) == [
            i.to_bytes(4, "big") for i in (0, 20, 10)
        ]
        assert os.lseek(fd, 0, os.SEEK_CUR) == 4
        assert await io.write_batch([(appending, bytes([i]) * 4, -1) for i in range(8)]) == [4] * 8
    finally:
        os.close(other)
        os.close(appending)
    assert sorted(path.read_bytes()[-32:]) == [i for i in range(8) for _ in range(4)]
    assert await io.write_batch([(pipe[1], b"ab", -1)] * 3) == [2] * 3
    assert await io.read_batch([(pipe[0], 2, -1)] * 3) == [b"ab"] * 3


@pytest.mark.anyio
@pytest.mark.parametrize("length", [1 << 60, (1 << 62) - 1])
async def test_a_length_that_memory_cannot_hold(io: AsyncIoManager, fd: int, length: int) -> None:
    for verb in (io.read, io.read_exactly):
        with pytest.raises(MemoryError):
            await verb(fd, length, 0)
    assert await io.read(fd, 4, 4) == b"\0\0\0\1"


# --- reporting --------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_statistics_and_features(fd: int, driver: Any) -> None:
    async with open_uring(driver=driver, depth=10) as io:
        assert (io.statistics().submissions, io.statistics().average_batch_size) == (0, 0)
        await io.read_batch([(fd, 1, 0)] * 30)
        statistics = io.statistics()
        assert statistics.driver == io.driver == driver_name(driver)
        assert (statistics.submissions, statistics.completions, statistics.in_flight) == (30, 30, 0)
        assert statistics.average_batch_size == statistics.submissions / statistics.syscalls
        assert statistics.resubmissions == statistics.cancellations == statistics.waiting == 0
        assert io.features.depth == 10
        assert io.features.kernel == os.uname().release
        assert io.fallback_reason is None
        if driver == "uring":
            assert io.features.sq_entries >= 10
            assert io.features.cq_entries >= 20
            assert 22 in io.features.opcodes
        assert repr(io) == f"<AsyncIoManager driver='{driver_name(driver)}' depth=10 open>"
    assert repr(io).endswith("closed>")

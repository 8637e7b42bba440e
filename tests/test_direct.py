"""Direct I/O: aligned memory, what the kernel asks for, refusals that say what is wrong, and reads of any range."""

from __future__ import annotations

import ctypes
import errno
import os
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from anyio_uring import (
    AsyncIoManager,
    BatchError,
    DirectAlignment,
    MisalignedError,
    RwFlags,
    aligned_buffer,
    open_uring,
)
from anyio_uring._direct import covering, dio_alignment
from anyio_uring._statx import SAFE_ALIGNMENT

from .faulty_disk import FaultyDisk
from .helpers import in_flight

DATA = os.urandom(64 << 10)
# In the middle of a block of any device; three bytes behind the last whole one of 512.
SIZE = (60 << 10) + 3


def _open_direct(path: Path, flags: int = os.O_RDWR) -> int:
    try:
        return os.open(path, flags | os.O_DIRECT)
    except OSError as exc:
        where = tempfile.gettempdir()
        raise AssertionError(
            f"these tests need a directory whose filesystem has O_DIRECT, and {where} gives {exc}: "
            "run pytest with --basetemp in one (ext4, XFS)"
        ) from exc


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "direct"
    path.write_bytes(DATA[:SIZE])
    return path


@pytest.fixture
def fd(file: Path) -> Iterator[int]:
    number = _open_direct(file)
    assert _refuses(number), "this filesystem takes any alignment with O_DIRECT: run pytest with --basetemp elsewhere"
    yield number
    os.close(number)


def _refuses(fd: int) -> bool:
    try:
        os.preadv(fd, [aligned_buffer(8192)[1:4097]], 0)
    except OSError as exc:
        return exc.errno == errno.EINVAL
    return False


@pytest.fixture(params=[True, False], ids=["nowait", ""])
def nowait(request: pytest.FixtureRequest) -> Any:
    return request.param


# --- memory, and what the kernel says -----------------------------------------------------------------------


@pytest.mark.parametrize("alignment", [1, 512, 4096, 1 << 21])
@pytest.mark.parametrize("size", [0, 1, 512, 100_000])
def test_an_aligned_buffer_is_aligned_writable_and_zero(size: int, alignment: int) -> None:
    import ctypes

    for _ in range(5):
        buffer = aligned_buffer(size, alignment=alignment)
        assert (len(buffer), buffer.readonly, buffer.format, buffer.ndim) == (size, False, "B", 1)
        assert bytes(buffer) == bytes(size)
        if size:
            assert ctypes.addressof(ctypes.c_char.from_buffer(buffer)) % alignment == 0
            buffer[:] = b"x" * size


@pytest.mark.parametrize(
    ("size", "alignment", "message"),
    [
        (-1, 4096, "size must be 0 or more, not -1"),
        (1, 0, "power of two"),
        (1, 1000, "power of two"),
        (1, 1 << 40, "power of two"),
    ],
)
def test_an_impossible_buffer_is_refused(size: int, alignment: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        aligned_buffer(size, alignment=alignment)


@pytest.mark.anyio
async def test_the_alignment_that_the_kernel_tells_is_enough(io: AsyncIoManager, fd: int, file: Path) -> None:
    alignment = io.direct_alignment(fd)
    assert alignment.is_supported is not False
    with file.open("rb") as plain:
        assert io.direct_alignment(plain) == alignment  # it need not be open with O_DIRECT
    unit = alignment.offset
    buffer = aligned_buffer(unit, alignment=alignment.memory)
    assert await io.readinto(fd, buffer, unit) == unit
    assert buffer == DATA[unit : 2 * unit]


@pytest.mark.anyio
async def test_where_nobody_tells_the_alignment_is_safe(
    io: AsyncIoManager, fd: int, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    safe = DirectAlignment(SAFE_ALIGNMENT, SAFE_ALIGNMENT, is_supported=None)
    assert io.direct_alignment(pipe[0]) == safe
    with pytest.raises(OSError) as caught:
        io.direct_alignment(1 << 20)
    assert caught.value.errno == errno.EBADF
    monkeypatch.setattr("anyio_uring._libc._find", lambda _: None)
    assert io.direct_alignment(fd) == safe
    monkeypatch.setattr("anyio_uring._libc._find", lambda _: _statx_is_forbidden)
    assert dio_alignment(fd) == safe
    # What is told overrides it: a file whose statx() says zero has no direct I/O.
    monkeypatch.setattr("anyio_uring._libc._find", lambda _: _statx_says_no)
    assert dio_alignment(fd) == DirectAlignment(SAFE_ALIGNMENT, SAFE_ALIGNMENT, is_supported=False)


def _statx_is_forbidden(*_: Any) -> int:
    ctypes.set_errno(errno.EPERM)
    return -1


def _statx_says_no(_fd: Any, _path: bytes, _flags: Any, mask: Any, answer: Any) -> int:
    answer[0:4] = mask.value.to_bytes(4, "little")
    return 0


def test_the_covering_range() -> None:
    assert covering(0, 0, 512) == (0, 0)
    assert covering(511, 1, 512) == (0, 512)
    assert covering(511, 2, 512) == (0, 1024)
    assert covering(512, 512, 512) == (512, 512)


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_misaligned_request_names_what_is_wrong(io: AsyncIoManager, fd: int) -> None:
    alignment = io.direct_alignment(fd)
    unit, page = alignment.offset, aligned_buffer(16384)
    of_unit = f"is not a multiple of {unit}"
    of_memory = f"is not a multiple of {alignment.memory}"
    attempts: list[tuple[Callable[[], Awaitable[object]], str]] = [
        (lambda: io.read(fd, 4096, 3), f"offset 3 {of_unit}$"),
        (lambda: io.read(fd, 4097, 0), f"length 4097 {of_unit}$"),
        (lambda: io.readinto(fd, page[:100], 0), f"length 100 {of_unit}$"),
        (lambda: io.readinto(fd, page[1:4097], 0), f"memory address {of_memory}"),
        (lambda: io.readv(fd, [page[:4096], page[4097:8193]], 0), rf"memory address of buffers\[1\] {of_memory}"),
        (lambda: io.readv(fd, [page[:4096], page[4096:4106]], 0), rf"length 10 of buffers\[1\] {of_unit}"),
        (lambda: io.write(fd, page[1:4097], 0), f"memory address {of_memory}"),
        (lambda: io.write(fd, page[:4096], 7), f"offset 7 {of_unit}$"),
        (lambda: io.write_all(fd, page[:77], 0), f"length 77 {of_unit}$"),
        (lambda: io.writev(fd, [page[:4096], page[1:4097]], 0), rf"buffers\[1\] {of_memory}"),
        (lambda: io.write_and_sync(fd, page[:4096], 7), f"offset 7 {of_unit}$"),
    ]
    for attempt, message in attempts:
        with pytest.raises(ValueError, match=message) as caught:
            await attempt()
        error = caught.value
        assert isinstance(error, MisalignedError)
        assert isinstance(error, OSError)
        assert error.errno == errno.EINVAL
        assert (error.memory_alignment, error.offset_alignment) == (alignment.memory, unit)
    page[0] = 1
    page.release()  # every export has ended
    assert os.fstat(fd).st_size == SIZE


@pytest.mark.anyio
async def test_the_file_is_named_and_its_position_checked(io: AsyncIoManager, file: Path, fd: int) -> None:
    with open(file, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | os.O_DIRECT)) as opened:
        opened.seek(5)
        for read in (io.read, io.read_exactly):
            with pytest.raises(ValueError, match=r"offset 5 is not a multiple of \d+") as caught:
                await read(opened, 4096, -1)
            assert isinstance(caught.value, MisalignedError)
            assert caught.value.filename == str(file)


@pytest.mark.anyio
async def test_another_einval_stays_what_it_is(io: AsyncIoManager, pipe: tuple[int, int]) -> None:
    """Of a file that is not open with O_DIRECT, alignment cannot be the cause."""
    with pytest.raises(OSError) as caught:
        await io.fsync(pipe[0])
    assert caught.value.errno == errno.EINVAL
    assert not isinstance(caught.value, ValueError)


@pytest.mark.anyio
async def test_so_does_one_of_an_aligned_request(io: AsyncIoManager, disk: FaultyDisk) -> None:
    """The filesystem has a reason of its own."""
    (disk.path / "file").write_bytes(bytes(8192))
    page = aligned_buffer(4096)
    fd = os.open(disk.path / "file", os.O_RDWR | os.O_DIRECT)
    calls: dict[str, Callable[[], Awaitable[int]]] = {
        "read": lambda: io.readinto(fd, page, 4096),
        "write": lambda: io.write(fd, page, 4096),
    }
    for operation, call in calls.items():
        disk.fail(operation, errno.EINVAL)
        with pytest.raises(OSError, match="Invalid argument") as caught:
            await call()
        assert caught.value.errno == errno.EINVAL
        assert not isinstance(caught.value, MisalignedError)
        assert await call() == 4096
    os.close(fd)


@pytest.mark.anyio
async def test_in_a_batch_the_member_is_refused(io: AsyncIoManager, fd: int) -> None:
    page = aligned_buffer(16384)
    asked: list[Any] = [(fd, page[:4096], 0), (fd, page[4097:8193], 0), (fd, page[8192:12288], 5)]
    results = await io.readinto_batch(asked, return_exceptions=True)
    assert results[0] == 4096
    assert [type(result) for result in results[1:]] == [MisalignedError] * 2
    assert "memory address" in str(results[1])
    assert "offset 5" in str(results[2])
    with pytest.raises(BatchError, match=r"request 1: .*memory address") as caught:
        await io.write_batch(asked[:2])
    assert caught.value.results[0] == 4096


# --- what just works ----------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_read_needs_no_aligned_memory_of_the_caller(io: AsyncIoManager, fd: int) -> None:
    for length, offset in [(4096, 0), (4096, 8192), (16384, 4096), (8192, 57344), (0, 0), (4096, 65536)]:
        for _ in range(2):
            assert await io.read(fd, length, offset) == DATA[:SIZE][offset : offset + length]


@pytest.mark.anyio
async def test_the_file_position_moves(io: AsyncIoManager, fd: int, file: Path) -> None:
    os.lseek(fd, 4096, os.SEEK_SET)
    assert await io.read(fd, 8192, -1) == DATA[4096:12288]
    buffer = aligned_buffer(8192)
    assert await io.readinto(fd, buffer, -1) == 8192
    assert buffer == DATA[12288:20480]
    assert await io.readv(fd, [buffer[:4096], buffer[4096:]], -1) == 8192
    assert await io.read_exactly(fd, 4096, -1) == DATA[28672:32768]
    await io.write_all(fd, buffer, -1)
    assert os.lseek(fd, 0, os.SEEK_CUR) == 40960
    assert await io.read_exactly(fd, 8192, 32768) == DATA[20480:28672]
    assert await io.write_and_sync(fd, buffer, -1) == 8192
    assert os.lseek(fd, 0, os.SEEK_CUR) == 49152
    os.truncate(file, 49152)
    assert await io.write(fd, buffer, -1, flags=RwFlags.APPEND) == 8192
    assert os.lseek(fd, 0, os.SEEK_CUR) == os.fstat(fd).st_size == 57344


@pytest.mark.anyio
@pytest.mark.parametrize("flags", [0, os.O_APPEND], ids=["", "append"])
async def test_one_at_a_time_at_the_file_position(io: AsyncIoManager, file: Path, flags: int) -> None:
    """Several in a batch or chain would be given, or write, the same bytes on the ring."""
    fd = _open_direct(file, os.O_RDWR | flags)
    page = aligned_buffer(4096)
    before = io.statistics().submissions
    try:
        with pytest.raises(ValueError, match="2 requests at offset -1"):
            await io.write_batch([(fd, page, -1), (fd, page, -1)])
        chain = io.chain()
        await chain.__aenter__()
        chain.read(fd, 4096, -1)
        chain.read(fd, 4096, 4096)
        memory = bytearray(4096)
        for verb in (chain.write, chain.readinto):
            with pytest.raises(ValueError, match=r"at offset -1 of descriptor \d+: it has O_DIRECT"):
                verb(fd, memory, -1)
        memory.append(1)
        assert io.statistics().submissions == before
        await chain.__aexit__(None, None, None)
        assert chain.results == [DATA[:4096], DATA[4096:8192]]
    finally:
        os.close(fd)


async def _make_known(io: AsyncIoManager, fd: int) -> None:
    """Read until a read has been refused: memory can be aligned by chance."""
    kept: list[bytearray] = []
    while fd not in io._direct_fds:
        kept.append(bytearray(100 * len(kept)))  # so that the next one lies elsewhere
        assert await io.read(fd, 4096, 0) == DATA[:4096]


@pytest.mark.anyio
async def test_behind_a_refused_read_each_is_one_operation(io: AsyncIoManager, fd: int) -> None:
    await _make_known(io, fd)
    before = io.statistics().submissions
    await io.read(fd, 4096, 4096)
    await io.read_batch([(fd, 4096, 0), (fd, 4096, 4096)])
    await io.read_exactly(fd, 10, 5000)
    assert io.statistics().submissions - before == 4


@pytest.mark.anyio
async def test_read_batch_needs_no_aligned_memory_of_the_caller(io: AsyncIoManager, fd: int, file: Path) -> None:
    plain = os.open(file, os.O_RDONLY)
    asked = [(fd, 4096, 0), (plain, 5, 5), (fd, 8192, 57344), (fd, 0, 0)]
    for _ in range(2):
        assert await io.read_batch(asked) == [DATA[:SIZE][o : o + n] for _, n, o in asked]
        results = await io.read_batch([*asked, (fd, 4096, 1)], return_exceptions=True)
        assert results[:4] == [DATA[:SIZE][o : o + n] for _, n, o in asked]
        assert isinstance(results[4], MisalignedError)
        assert "offset 1 is not" in str(results[4])
        assert "memory" not in str(results[4])
    os.close(plain)


@pytest.mark.anyio
@pytest.mark.parametrize("is_known", [False, True])
async def test_read_exactly_takes_any_range(io: AsyncIoManager, fd: int, is_known: bool) -> None:
    for length, offset in [(1, 0), (100, 7000), (4096, 1), (20_000, 4095), (0, 5), (8192, 4096), (3, SIZE - 3)]:
        if is_known:
            await _make_known(io, fd)
        assert await io.read_exactly(fd, length, offset) == DATA[offset : offset + length]


@pytest.mark.anyio
@pytest.mark.parametrize("is_known", [False, True])
async def test_read_exactly_says_when_the_file_is_too_short(io: AsyncIoManager, fd: int, is_known: bool) -> None:
    if is_known:
        await _make_known(io, fd)
    for length, offset in [(4, SIZE - 3), (8192, 57344), (10_000, SIZE - 3), (1, SIZE), (4096, 1 << 20)]:
        with pytest.raises(anyio.IncompleteRead):
            await io.read_exactly(fd, length, offset)


@pytest.mark.anyio
async def test_a_number_that_means_another_file_now_is_no_direct_one(io: AsyncIoManager, fd: int, file: Path) -> None:
    number = os.dup(fd)
    await _make_known(io, number)
    plain = os.open(file, os.O_RDONLY)
    os.dup2(plain, number)
    for length, offset in [(10, 3), (100_000, 1)]:
        assert await io.read(number, length, offset) == DATA[:SIZE][offset : offset + length]
    assert await io.read_exactly(number, 10, 3) == DATA[3:13]
    assert await io.read_batch([(number, 10, 3)]) == [DATA[3:13]]
    os.close(plain)
    os.close(number)


@pytest.mark.anyio
async def test_what_is_written_directly_is_read_back(io: AsyncIoManager, fd: int) -> None:
    buffer = aligned_buffer(16384)
    buffer[:] = DATA[1:16385]
    await io.write_all(fd, buffer, 4096)
    assert await io.writev(fd, [buffer[:4096], buffer[4096:8192]], 32768) == 8192
    assert await io.read_exactly(fd, 16386, 4095) == DATA[4095:4096] + DATA[1:16385] + DATA[20480:20481]
    assert await io.read(fd, 8192, 32768) == DATA[1:8193]


@pytest.mark.anyio
async def test_c6_a_cancelled_read_of_a_device_leaves_nothing_behind(driver: Any, fd: int) -> None:
    async with open_uring(driver=driver) as io:
        for asked in (4096, 100):
            async with anyio.create_task_group() as tasks:
                for i in range(8):
                    tasks.start_soon(io.read_exactly, fd, asked, i * 4096)
                await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
            await in_flight(io, 0)
        assert await io.read_exactly(fd, 100, 50) == DATA[50:150]

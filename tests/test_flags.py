"""Flags of one read or write: what each does, what is refused and how, on both drivers alike."""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from anyio_uring import AsyncIoManager, BatchError, RwFlags, UnsupportedFlagError, aligned_buffer, open_uring
from anyio_uring import _flags as flags_module
from anyio_uring._operations import is_transient
from anyio_uring._requests import Opcode, Request

DATA = os.urandom(32 << 10)


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "file").write_bytes(DATA)
    number = os.open(tmp_path / "file", os.O_RDWR)
    os.fsync(number)  # a page under writeback may be refused
    yield number
    os.close(number)


def _supports(fd: int, flag: int) -> bool:
    """Ask the kernel itself, without this library."""
    try:
        os.preadv(fd, [bytearray(1)], 0, flag)
    except OSError as exc:
        if exc.errno != errno.EOPNOTSUPP:
            raise
        return False
    return True


def test_the_numbers_are_those_of_the_os_module() -> None:
    for flag in RwFlags:
        assert getattr(os, f"RWF_{flag.name}", flag) == flag
        assert flags_module.check(flag) == int(flag)
    assert flags_module.check(sum(RwFlags)) == flags_module._KNOWN
    assert set(flags_module._NEEDS) == set(RwFlags)
    assert int(RwFlags.NOWAIT) == flags_module.NOWAIT


def _reads(io: AsyncIoManager, fd: int, flags: int, buffer: Any) -> list[Callable[[], Awaitable[object]]]:
    return [
        lambda: io.read(fd, 4096, 0, flags=flags),
        lambda: io.readinto(fd, buffer, 0, flags=flags),
        lambda: io.readv(fd, [buffer], 0, flags=flags),
        lambda: io.read_exactly(fd, 4096, 0, flags=flags),
        lambda: io.read_batch([(fd, 4096, 0)], flags=flags),
        lambda: io.readinto_batch([(fd, buffer, 0)], flags=flags),
    ]


def _writes(io: AsyncIoManager, fd: int, flags: int, buffer: Any) -> list[Callable[[], Awaitable[object]]]:
    return [
        lambda: io.write(fd, buffer, 0, flags=flags),
        lambda: io.write_all(fd, buffer, 0, flags=flags),
        lambda: io.writev(fd, [buffer], 0, flags=flags),
        lambda: io.write_batch([(fd, buffer, 0)], flags=flags),
    ]


@pytest.mark.anyio
@pytest.mark.parametrize("flags", [0x20, 0x100, 1 << 40, -1, RwFlags.DSYNC | 0x200])
async def test_unknown_bits_are_a_callers_mistake(io: AsyncIoManager, fd: int, flags: int) -> None:
    buffer = bytearray(4096)
    for attempt in _reads(io, fd, flags, buffer) + _writes(io, fd, flags, buffer):
        with pytest.raises(ValueError, match="flags must be made of RwFlags"):
            await attempt()
    with pytest.raises(TypeError, match="interpreted as an integer"):
        await io.read(fd, 1, 0, flags="DSYNC")  # type: ignore[arg-type]
    assert os.pread(fd, len(DATA), 0) == DATA
    buffer.append(0)  # the exports have ended
    assert io.statistics().submissions == 0


@pytest.mark.anyio
@pytest.mark.parametrize("flags", [RwFlags.DSYNC, RwFlags.SYNC, RwFlags.DSYNC | RwFlags.SYNC])
async def test_synchronous_writes(io: AsyncIoManager, fd: int, flags: int) -> None:
    assert await io.write(fd, b"a" * 4096, 0, flags=flags) == 4096
    assert await io.writev(fd, [b"b" * 100, b"c" * 100], 4096, flags=flags) == 200
    await io.write_all(fd, b"d" * 300_000, 8192, flags=flags)
    assert await io.write_batch([(fd, b"e", 4296), (fd, b"f", 4297)], flags=flags) == [1, 1]
    assert os.pread(fd, 400_000, 0) == (
        b"a" * 4096 + b"b" * 100 + b"c" * 100 + b"ef" + DATA[4298:8192] + b"d" * 300_000
    )


@pytest.mark.anyio
async def test_flags_of_the_driver_reach_the_kernel(io: AsyncIoManager, fd: int) -> None:
    """APPEND shows in the file what was asked; without it, the offset would decide."""
    assert await io.write(fd, b"one", 0, flags=RwFlags.APPEND) == 3
    await io.write_all(fd, b"two", 5, flags=os.RWF_DSYNC | RwFlags.APPEND)
    assert await io.writev(fd, [b"th", b"ree"], 7, flags=RwFlags.APPEND) == 5
    assert await io.write_batch([(fd, b"4444", 0)], flags=RwFlags.APPEND) == [4]
    assert os.pread(fd, 40_000, 0) == DATA + b"onetwothree4444"


@pytest.mark.anyio
async def test_appending_at_the_file_position_moves_it_to_the_end(io: AsyncIoManager, fd: int) -> None:
    assert await io.write(fd, b"end", -1, flags=RwFlags.APPEND) == 3
    assert os.lseek(fd, 0, os.SEEK_CUR) == len(DATA) + 3
    assert os.pread(fd, 3, len(DATA)) == b"end"


@pytest.mark.anyio
@pytest.mark.parametrize("flags", [RwFlags.DONTCACHE, RwFlags.DONTCACHE | RwFlags.DSYNC])
async def test_dontcache_where_the_kernel_has_it_and_a_clear_error_where_not(
    io: AsyncIoManager, fd: int, flags: int
) -> None:
    buffer = bytearray(4096)
    calls = _reads(io, fd, flags, buffer) + _writes(io, fd, flags, buffer)
    if not _supports(fd, RwFlags.DONTCACHE):
        for call in calls:
            with pytest.raises((UnsupportedFlagError, BatchError), match=r"RWF_DONTCACHE needs Linux 6\.14"):
                await call()
        return
    expected = DATA[:4096]
    assert [await call() for call in calls] == [
        *[expected, 4096, 4096, expected, [expected], [4096]],
        *[4096, None, 4096, [4096]],
    ]
    assert os.pread(fd, len(DATA), 0) == DATA


@pytest.mark.anyio
async def test_an_unsupported_flag_is_named(io: AsyncIoManager, pipe: tuple[int, int], fd: int) -> None:
    os.write(pipe[1], b"abc")
    with pytest.raises(UnsupportedFlagError, match=r"RWF_DONTCACHE needs Linux 6\.14 and a filesystem") as caught:
        await io.read(pipe[0], 3, -1, flags=RwFlags.DONTCACHE | RwFlags.SYNC)
    assert caught.value.errno == errno.EOPNOTSUPP
    assert "RWF_SYNC" not in str(caught.value)  # a kernel with io_uring has it
    # A descriptor without O_DIRECT has no atomic writes on any kernel, and no file has atomic reads.
    with pytest.raises(UnsupportedFlagError, match=r"RWF_ATOMIC needs a write, Linux 6\.11"):
        await io.write(fd, b"x" * 4096, 0, flags=RwFlags.ATOMIC)
    with pytest.raises(UnsupportedFlagError, match="RWF_ATOMIC needs a write"):
        await io.readinto(fd, bytearray(4096), 0, flags=RwFlags.ATOMIC)
    results = await io.write_batch([(fd, b"x" * 4096, 0)] * 2, return_exceptions=True, flags=RwFlags.ATOMIC)
    assert [type(result) for result in results] == [UnsupportedFlagError] * 2
    assert os.pread(fd, len(DATA), 0) == DATA
    assert await io.read(pipe[0], 3, -1) == b"abc"  # nothing was taken from it


@pytest.mark.anyio
async def test_polling_is_refused_by_a_ring_that_does_not_poll_and_a_hint_on_threads(
    io: AsyncIoManager, fd: int
) -> None:
    if io.driver == "threads":
        assert await io.read(fd, 4096, 0, flags=RwFlags.HIPRI) == DATA[:4096]
        return
    with pytest.raises(UnsupportedFlagError, match="RWF_HIPRI needs a ring that is opened for polled") as caught:
        await io.read(fd, 4096, 0, flags=RwFlags.HIPRI)
    assert caught.value.errno == errno.EOPNOTSUPP


def test_what_an_atomic_write_must_be_is_told() -> None:
    """No device of the test machines has atomic writes, so the kernel's answer is played here."""
    error = flags_module.refusal(-errno.EINVAL, RwFlags.ATOMIC, "name", is_polled=False)
    assert error is not None
    assert (error.errno, error.filename) == (errno.EINVAL, "name")
    assert "power of two" in str(error)
    assert flags_module.refusal(-errno.EINVAL, RwFlags.HIPRI, None, is_polled=True) is None
    assert flags_module.refusal(-errno.EINVAL, RwFlags.DSYNC, None, is_polled=False) is None
    assert flags_module.refusal(-errno.EOPNOTSUPP, 0, None, is_polled=False) is None


# --- RWF_NOWAIT ---------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_nowait_gives_what_is_there(io: AsyncIoManager, fd: int) -> None:
    if not _supports(fd, RwFlags.NOWAIT):
        pytest.skip("this filesystem knows no RWF_NOWAIT: run pytest with --basetemp on ext4 or XFS")
    buffer = bytearray(4096)
    assert [await call() for call in _reads(io, fd, RwFlags.NOWAIT, buffer)] == [
        *[DATA[:4096], 4096, 4096, DATA[:4096], [DATA[:4096]], [4096]]
    ]
    assert buffer == DATA[:4096]
    assert await io.read(fd, 10, -1, flags=RwFlags.NOWAIT) == DATA[:10]
    assert os.lseek(fd, 0, os.SEEK_CUR) == 10
    assert await io.read(fd, 100, len(DATA) - 10, flags=RwFlags.NOWAIT) == DATA[-10:]
    assert io.statistics().submissions == 0


@pytest.mark.anyio
async def test_nowait_says_that_it_would_wait(io: AsyncIoManager, pipe: tuple[int, int]) -> None:
    """One attempt, which is not asked again; offsets mean nothing to a pipe."""
    for offset in (0, -1):
        for call in (
            lambda offset=offset: io.read(pipe[0], 5, offset, flags=RwFlags.NOWAIT),
            lambda offset=offset: io.readinto(pipe[0], bytearray(5), offset, flags=RwFlags.NOWAIT),
            lambda offset=offset: io.readv(pipe[0], [bytearray(5)], offset, flags=RwFlags.NOWAIT),
        ):
            with pytest.raises(BlockingIOError) as caught:
                await call()
            assert caught.value.errno == errno.EAGAIN
    results = await io.read_batch([(pipe[0], 5, 0)] * 2, return_exceptions=True, flags=RwFlags.NOWAIT)
    assert [type(result) for result in results] == [BlockingIOError] * 2
    await io.write_all(pipe[1], b"hello", -1, flags=RwFlags.NOWAIT)
    assert await io.read(pipe[0], 9, -1, flags=RwFlags.NOWAIT) == b"hello"


@pytest.mark.anyio
async def test_write_all_without_waiting_says_how_far_it_came(io: AsyncIoManager, pipe: tuple[int, int]) -> None:
    data = os.urandom(1 << 20)
    with pytest.raises(BlockingIOError) as caught:
        await io.write_all(pipe[1], data, -1, flags=RwFlags.NOWAIT)
    written = caught.value.characters_written
    assert 0 < written < len(data)
    os.set_blocking(pipe[0], False)
    got = bytearray()
    while True:
        try:
            got += os.read(pipe[0], 1 << 16)
        except BlockingIOError:
            break
    assert got == data[:written]


@pytest.mark.anyio
async def test_write_all_without_waiting_says_that_nothing_was_written(
    io: AsyncIoManager, pipe: tuple[int, int]
) -> None:
    os.set_blocking(pipe[1], False)
    with suppress(BlockingIOError):
        while True:
            os.write(pipe[1], bytes(4096))
    with pytest.raises(BlockingIOError) as caught:
        await io.write_all(pipe[1], b"more", -1, flags=RwFlags.NOWAIT)
    assert caught.value.characters_written == 0


@pytest.mark.anyio
@pytest.mark.parametrize("flags", [RwFlags.NOWAIT, RwFlags.SYNC, 1 << 30])
async def test_a_failed_batch_lets_go_of_its_buffers(io: AsyncIoManager, pipe: tuple[int, int], flags: int) -> None:
    """Also while its traceback is alive."""
    buffer = bytearray(10)
    with pytest.raises((BatchError, ValueError)) as caught:
        await io.readinto_batch([(pipe[1], buffer, 0)], flags=flags)
    buffer.append(1)  # BufferError if something still exported it
    assert caught.tb is not None


@pytest.mark.anyio
async def test_nowait_errors_are_those_of_the_system_call(io: AsyncIoManager, tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught:
        await io.read(1 << 20, 10, 0, flags=RwFlags.NOWAIT)
    assert caught.value.errno == errno.EBADF
    with pytest.raises(OSError) as caught:
        await io.read(-1, 10, 0, flags=RwFlags.NOWAIT)
    assert caught.value.errno == errno.EBADF
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    number = os.open(fifo, os.O_RDWR)
    with pytest.raises(OSError) as of_os:
        os.pwritev(number, [b"x"], -1, os.RWF_NOWAIT)
    assert of_os.value.errno == errno.EOPNOTSUPP
    with pytest.raises(UnsupportedFlagError, match="RWF_NOWAIT needs"):
        await io.write(number, b"x", 0, flags=RwFlags.NOWAIT)
    os.close(number)


@pytest.mark.anyio
async def test_nowait_of_a_direct_descriptor_does_not_hold_the_loop(
    io: AsyncIoManager, fd: int, tmp_path: Path
) -> None:
    """There the system call would wait for the device in spite of the flag: the driver is asked."""
    direct = os.open(tmp_path / "file", os.O_RDONLY | os.O_DIRECT)
    buffer = aligned_buffer(4096)
    try:
        os.preadv(direct, [buffer], 0, os.RWF_NOWAIT)
    except OSError:
        with pytest.raises(UnsupportedFlagError, match="no file of tmpfs"):
            await io.readinto(direct, buffer, 4096, flags=RwFlags.NOWAIT)
    else:
        assert await io.readinto(direct, buffer, 4096, flags=RwFlags.NOWAIT) == 4096
        assert buffer == DATA[4096:8192]
        assert await io.read(direct, 4096, 0, flags=RwFlags.NOWAIT) == DATA[:4096]
    assert io.statistics().submissions >= 1
    os.close(direct)


def test_what_must_not_wait_is_not_asked_again(fd: int) -> None:
    memory = bytearray(1)
    assert is_transient(Request(Opcode.READ, fd, memory, 0), -errno.EAGAIN)
    assert not is_transient(Request(Opcode.READ, fd, memory, 0, RwFlags.NOWAIT), -errno.EAGAIN)


@pytest.mark.anyio
async def test_c1_a_cancelled_scope_stops_it_before_it_writes(io: AsyncIoManager, pipe: tuple[int, int]) -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await io.write(pipe[1], b"x", -1, flags=RwFlags.NOWAIT)
    assert scope.cancelled_caught
    os.set_blocking(pipe[0], False)
    with pytest.raises(BlockingIOError):
        os.read(pipe[0], 1)


@pytest.mark.anyio
async def test_after_the_end_of_the_block(driver: Any, fd: int) -> None:
    async with open_uring(driver=driver) as io:
        pass
    for flags in (RwFlags.NOWAIT, RwFlags.DSYNC):
        with pytest.raises(anyio.ClosedResourceError):
            await io.read(fd, 10, 0, flags=flags)
        with pytest.raises(anyio.ClosedResourceError):
            await io.write(fd, b"x", 0, flags=flags)


@pytest.mark.anyio
async def test_reads_with_flags_do_not_go_by_the_page_cache(driver: Any, fd: int) -> None:
    async with open_uring(driver=driver, nowait=True) as io:
        assert await io.read(fd, 4096, 0, flags=RwFlags.SYNC) == DATA[:4096]
        assert await io.readinto(fd, bytearray(4096), 0, flags=RwFlags.SYNC) == 4096
        statistics = io.statistics()
        assert (statistics.inline_reads, statistics.submissions) == (0, 2)

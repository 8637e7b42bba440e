"""Registered buffers: the same bytes by a shorter way, and memory that nobody gets while it is in use."""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from anyio_uring import AsyncIoManager, BufferPool, FixedBuffer, UringOptions, _ring, open_uring
from anyio_uring._fixed_buffers import padded
from anyio_uring._requests import Opcode
from anyio_uring._ring import UringDriver

from . import denied
from .helpers import Refusing, asyncio_only, in_flight
from .programs import run

pytestmark = pytest.mark.anyio
PAGE = mmap.PAGESIZE


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Opcode, int]]:
    """Opcode and entry of each row that a ring is given, in order."""
    found: list[tuple[Opcode, int]] = []
    prepare = UringDriver.prepare

    def spy(driver: UringDriver, user_data: int, requests: Any) -> Any:
        prepared = prepare(driver, user_data, requests)
        packed = prepared[0]
        for start in range(0, len(packed), _ring._ROW_SIZE):
            row = packed[start : start + _ring._ROW_SIZE]
            found.append((Opcode(row[36]), int.from_bytes(row[38:40], sys.byteorder)))
        return prepared

    monkeypatch.setattr(UringDriver, "prepare", spy)
    return found


@pytest.fixture
def file(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


def _is_given_up(pool: BufferPool) -> bool:
    return pool._memory.closed and not pool.is_registered


def _expected(driver: str, *opcodes: Opcode) -> list[Opcode]:
    """Return the rows' opcodes on the ring; threads have no rows."""
    return list(opcodes) if driver == "uring" else []


# --- the same bytes -----------------------------------------------------------------------------


PARTS: dict[str, Callable[[FixedBuffer], Any]] = {
    "object": lambda buffer: buffer,
    "view": lambda buffer: buffer.view,
    "slice": lambda buffer: buffer.view[100:5000],
    "cast": lambda buffer: buffer.view.cast("I"),
    "numpy": lambda buffer: np.frombuffer(buffer.view, dtype="uint8"),
}


@pytest.mark.parametrize("part", PARTS)
async def test_reads_and_writes(
    io: AsyncIoManager, driver: str, file: int, rows: list[tuple[Opcode, int]], part: str
) -> None:
    async with io.buffer_pool(2, 8192) as pool:
        with await pool.acquire(), await pool.acquire() as buffer:
            start, end = {"slice": (100, 5000)}.get(part, (0, 8192))
            data: Any = PARTS[part](buffer)
            assert await io.readinto(file, data, 4096) == end - start
            assert buffer.view[start:end] == os.pread(file, end - start, 4096)
            buffer.view[start : start + 4] = b"1234"
            assert await io.write(file, data, 128) == end - start
            assert os.pread(file, end - start, 128) == buffer.view[start:end]
            await io.write_all(file, data, 20000)
            assert await io.write_and_sync(file, data, 30000) == end - start
            assert os.pread(file, 4, 20000) == os.pread(file, 4, 30000) == b"1234"
            read, write = {"numpy": (Opcode.READ, Opcode.WRITE)}.get(part, (Opcode.READ_FIXED, Opcode.WRITE_FIXED))
            assert [opcode for opcode, _ in rows] == _expected(driver, read, write, write, write, Opcode.FSYNC)
            del data


async def test_several_buffers(io: AsyncIoManager, driver: str, file: int, rows: list[tuple[Opcode, int]]) -> None:
    async with io.buffer_pool(2, 4096) as pool:
        with await pool.acquire() as first, await pool.acquire() as second:
            content = os.pread(file, 65536, 0)
            assert await io.readinto_batch([(file, first, 0), (file, second.view, 8192)]) == [4096, 4096]
            assert bytes(first.view) + bytes(second.view) == content[:4096] + content[8192:12288]
            other = bytearray(4096)
            assert await io.readinto_batch([(file, first, 4096), (file, other, 0)]) == [4096, 4096]
            assert bytes(first.view) + other == content[4096:8192] + content[:4096]
            assert await io.readv(file, [first, second], 0) == 8192
            assert bytes(first.view) + bytes(second.view) == content[:8192]
            assert await io.write_batch([(file, second, 0), (file, other, 4096)]) == [4096, 4096]
            assert await io.writev(file, [second.view[:10], first.view[:10]], 8192) == 20
            expected = content[4096:8192] + content[:4096] + content[4096:4106] + content[:10]
            assert os.pread(file, 8212, 0) == expected
            async with io.chain() as chain:
                chain.readinto(file, first, 0)
                chain.write(file, first, 4096)
                with pytest.raises(BufferError):
                    first.release()  # the chain has it
            assert chain.results == [4096, 4096]
            assert os.pread(file, 4096, 4096) == expected[:4096]
    fixed = [Opcode.READ_FIXED, Opcode.READ_FIXED]
    # Of a batch that is mixed, plain reads are always right.
    plain = [Opcode.READ, Opcode.READ, Opcode.READV, Opcode.WRITE_FIXED, Opcode.WRITE, Opcode.WRITEV]
    chained = [Opcode.READ_FIXED, Opcode.WRITE_FIXED]
    assert [opcode for opcode, _ in rows] == _expected(driver, *fixed, *plain, *chained)


async def test_two_pools_have_two_entries(io: AsyncIoManager, driver: str, file: int, rows: list[Any]) -> None:
    async with io.buffer_pool(1, 64) as one, io.buffer_pool(1, 64) as two:
        with await one.acquire() as first, await two.acquire() as second:
            await io.readinto_batch([(file, first, 0), (file, first.view[32:], 4)])
            await io.readinto_batch([(file, second, 0), (file, second, 0)])
            await io.readinto_batch([(file, first, 8), (file, second, 12)])
            assert bytes(first.view[:4]) + bytes(second.view[:4]) == os.pread(file, 8, 8)
            await io.write(file, second, 0)
    read, write = Opcode.READ_FIXED, Opcode.WRITE_FIXED
    entries = [(read, 0), (read, 0), (read, 1), (read, 1), (Opcode.READ, 0), (Opcode.READ, 0), (write, 1)]
    assert rows == (entries if driver == "uring" else [])


@pytest.mark.parametrize("mode", [{}, {"sqpoll": True}, {"restrict": True}])
@pytest.mark.ring
async def test_the_kernel_goes_by_the_registration(file: int, mode: dict[str, Any]) -> None:
    """With the pages behind the addresses exchanged, the bytes go to and come from those that were registered."""
    async with open_uring(driver="uring", nowait=False, **mode) as io, io.buffer_pool(1, 8192) as pool:
        with await pool.acquire() as buffer:
            buffer.view[:6] = b"before"
            pool._memory.madvise(mmap.MADV_DONTNEED)
            assert buffer.view[:6] == bytes(6)
            assert await io.write(file, buffer.view[:6], 0) == 6
            assert os.pread(file, 6, 0) == b"before"
            assert await io.readinto(file, buffer, 0) == 8192
            assert buffer.view == bytes(8192)
            # Vectors go by addresses.
            assert await io.readv(file, [buffer], 0) == 8192
            assert buffer.view == os.pread(file, 8192, 0)


@pytest.mark.parametrize("mode", [{"sqpoll": True}, {"restrict": True}, {"checkpoint": "budget"}])
async def test_in_every_mode(driver: Any, path: Path, mode: dict[str, Any]) -> None:
    async def read(index: int) -> None:
        for i in range(index, 64, 16):
            assert io.buffers is not None
            with await io.buffers.acquire() as buffer, path.open("rb") as file:
                assert await io.readinto(file, buffer, 1024 * i) == 1024
                assert buffer.view == os.pread(file.fileno(), 1024, 1024 * i)

    async with open_uring(driver=driver, fixed_buffers=4, fixed_buffer_size="1KiB", **mode) as io:
        async with anyio.create_task_group() as tasks:
            for index in range(16):
                tasks.start_soon(read, index)
        assert io.buffers is not None
        assert io.buffers.available == 4


async def test_direct_io(io: AsyncIoManager, path: Path, file: int) -> None:
    try:
        fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    except OSError as exc:
        pytest.skip(f"the filesystem of {path} has no O_DIRECT: {exc}")
    try:
        content = os.pread(file, 65536, 0)
        async with io.buffer_pool(3, 4096) as pool:
            with await pool.acquire() as first, await pool.acquire() as second:
                assert await io.readinto_batch([(fd, first, 4096), (fd, second, 8192)]) == [4096, 4096]
                assert bytes(first.view) + bytes(second.view) == content[4096:12288]
                assert await io.write(fd, second, 0) == 4096
                assert os.pread(file, 4096, 0) == content[8192:12288]
    finally:
        os.close(fd)


async def test_nothing_to_read(io: AsyncIoManager, file: int) -> None:
    async with io.buffer_pool(1, 10) as pool:
        with await pool.acquire() as buffer:
            assert await io.readinto(file, buffer.view[10:], 0) == 0
            assert await io.write(file, buffer.view[:0], 0) == 0
            assert await io.readinto(file, buffer, 65536) == 0
            with pytest.raises(OSError, match="Bad file descriptor"):
                await io.readinto(1 << 20, buffer, 0)


async def test_in_another_manager_it_is_memory(
    io: AsyncIoManager, driver: Any, file: int, rows: list[tuple[Opcode, int]]
) -> None:
    async with open_uring(driver=driver, nowait=False) as other, io.buffer_pool(1, 64) as pool:
        with await pool.acquire() as buffer:
            assert await other.readinto(file, buffer, 400) == 64
            assert buffer.view == os.pread(file, 64, 400)
    assert rows[-1:] == ([(Opcode.READ, 0)] if driver == "uring" else [])


# --- the memory ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 100, 4096, 4097, "64KiB"])
async def test_each_begins_on_a_page_of_its_own(io: AsyncIoManager, size: Any) -> None:
    async with io.buffer_pool(3, size) as pool:
        buffers = [await pool.acquire() for _ in range(3)]
        addresses = {np.frombuffer(buffer.view, dtype="uint8").ctypes.data for buffer in buffers}
        assert {address % PAGE for address in addresses} == {0}
        assert max(addresses) - min(addresses) == 2 * padded(pool.size)
        assert {len(buffer) for buffer in buffers} == {len(buffer.view) for buffer in buffers} == {pool.size}
        for i, buffer in enumerate(buffers):
            buffer.view[:] = bytes([i]) * pool.size
        assert [buffer.view[0] for buffer in buffers] == [0, 1, 2]
        for buffer in buffers:
            buffer.release()


async def test_features_say_what_became_of_it(io: AsyncIoManager, driver: str) -> None:
    assert [io.features.fixed_buffers, io.buffers] == [None, None]
    async with io.buffer_pool(1, 1) as pool:
        assert [pool.is_registered] == [driver == "uring"]
        if driver == "uring":
            assert io.features.fixed_buffers == "registered"
        else:
            assert io.features.fixed_buffers == "plain memory: threads have no ring"
    assert _is_given_up(pool)


@pytest.mark.ring
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_pinned_memory_and_descriptors_are_given_back(backend: str) -> None:
    """In a process where no earlier ring's memory is given back meanwhile: the kernel frees in its own time."""
    run(
        """
        import anyio, os, sys
        from anyio_uring import open_uring

        def pinned_kib():
            with open("/proc/self/status") as status:
                (line,) = (line for line in status if line.startswith("VmPin"))
            return int(line.split()[1])

        async def main():
            async with open_uring(driver="uring") as io:
                before, descriptors = pinned_kib(), len(os.listdir("/proc/self/fd"))
                for _ in range(300):
                    async with io.buffer_pool(16, 65536) as pool:
                        assert pool.is_registered
                        with await pool.acquire() as buffer:
                            buffer.view[:] = bytes(65536)
                        assert pinned_kib() >= before + 1024
                while pinned_kib() > before:
                    await anyio.lowlevel.checkpoint()
                assert len(os.listdir("/proc/self/fd")) == descriptors

        anyio.run(main, backend=sys.argv[1])
        """,
        backend,
    )


@pytest.mark.ring
async def test_huge_pools_are_registered() -> None:
    """With huge pages where the system has them."""
    async with open_uring(driver="uring") as io, io.buffer_pool(64, "256KiB") as pool:
        assert pool.is_registered
        with await pool.acquire() as buffer, Path(os.devnull).open("wb") as null:
            assert await io.write(null, buffer, 0) == 256 << 10


# --- who has it ---------------------------------------------------------------------------------


async def test_a_released_buffer_cannot_be_used(io: AsyncIoManager, file: int) -> None:
    async with io.buffer_pool(1, 16) as pool:
        buffer = await pool.acquire()
        view = buffer.view
        buffer.release()
        for use in (lambda: buffer.view, lambda: view[0], lambda: bytes(view)):
            with pytest.raises(ValueError, match="released"):
                use()
        for call in (
            io.readinto(file, buffer, 0),
            io.write(file, buffer, 0),
            io.write_all(file, view, 0),
            io.readinto_batch([(file, buffer, 0)]),
            io.readinto_batch([(file, view, 0)]),
        ):
            with pytest.raises(ValueError, match="released"):
                await call
        with pytest.raises(ValueError, match="released before"):
            buffer.release()
        assert repr(buffer) == "<FixedBuffer 0 released>"
        assert pool.available == 1
        with await pool.acquire() as again:
            again.release()  # the end of the block minds no more
        assert pool.available == 1


@pytest.mark.parametrize(
    "hold",
    [
        lambda view: view[1:3],
        lambda view: view.cast("H"),
        memoryview,
        lambda view: np.frombuffer(view, dtype="uint8"),
        lambda view: memoryview(view)[::2],
    ],
    ids=["slice", "cast", "view", "numpy", "steps"],
)
async def test_no_release_while_a_slice_is_alive(io: AsyncIoManager, file: int, hold: Callable[[Any], Any]) -> None:
    async with io.buffer_pool(1, 16) as pool:
        with await pool.acquire() as buffer:
            held = hold(buffer.view)
            for _ in range(2):
                with pytest.raises(BufferError, match="a slice of its view is alive"):
                    buffer.release()
            assert pool.available == 0
            assert await io.readinto(file, buffer.view, 4) == 16
            assert await io.readinto(file, buffer, 4) == 16
            assert memoryview(held).nbytes
            assert buffer.view == os.pread(file, 16, 4)
            del held
            buffer.release()
        assert pool.available == 1


@pytest.mark.skipif(sys.version_info < (3, 12), reason="classes in Python have the buffer protocol since 3.12")
async def test_the_object_itself_is_a_buffer(io: AsyncIoManager) -> None:
    async with io.buffer_pool(1, 16) as pool:
        with await pool.acquire() as buffer:
            view = memoryview(buffer)
            view[:2] = b"ab"
            assert bytes(buffer)[:2] == bytes(buffer.view[:2]) == b"ab"
            with pytest.raises(BufferError):
                buffer.release()
            del view
        with pytest.raises(ValueError, match="released"):
            memoryview(buffer)


async def test_no_release_while_it_is_in_flight(
    io: AsyncIoManager, driver: str, pipe: tuple[int, int], rows: list[tuple[Opcode, int]]
) -> None:
    """C2, and C5: cancelled, it is the kernel's until the operation's own completion."""
    async with io.buffer_pool(1, 16) as pool:
        with await pool.acquire() as buffer:
            for call in (io.readinto, lambda *request: io.readinto_batch([request])):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(call, pipe[0], buffer, -1)
                    await in_flight(io, 1)
                    with pytest.raises(BufferError, match="in flight"):
                        buffer.release()
                    tasks.cancel_scope.cancel()
                assert io.statistics().in_flight == 0
            assert rows == ([(Opcode.READ_FIXED, 0)] * 2 if driver == "uring" else [])
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(io.readinto, pipe[0], buffer.view[4:8], -1)
                await in_flight(io, 1)
                os.write(pipe[1], b"abcd")
            assert bytes(buffer.view[3:9]) == b"\0abcd\0"
        assert pool.available == 1


async def test_an_error_of_a_verb_holds_nothing(io: AsyncIoManager, file: int) -> None:
    """Though its traceback is kept."""
    async with io.buffer_pool(1, 16) as pool:
        with await pool.acquire() as buffer:
            errors = []
            for call in (io.readinto(1 << 20, buffer, 0), io.write_all(1 << 20, buffer, 0)):
                with pytest.raises(OSError, match="Bad file descriptor") as caught:
                    await call
                errors.append(caught.value)
            for bad in (io.readinto(file, buffer, -2), io.write_batch([(file, buffer, 0), (file, buffer, -2)])):
                with pytest.raises(ValueError, match="offset must be") as wrong:
                    await bad
                errors.append(wrong.value)  # type: ignore[arg-type]
        assert pool.available == 1
        assert len(errors) == 4


async def test_first_come_first_served(io: AsyncIoManager) -> None:
    got: list[int] = []

    async def take(number: int) -> None:
        with await pool.acquire():
            got.append(number)

    async with io.buffer_pool(2, 16) as pool:
        held = [await pool.acquire(), await pool.acquire()]
        async with anyio.create_task_group() as tasks:
            for number in range(5):
                tasks.start_soon(take, number)
                await anyio.wait_all_tasks_blocked()
            assert got == []
            held[0].release()
            late = await pool.acquire()  # stands behind those who wait
            assert got == [0, 1, 2, 3, 4]
            late.release()
        held[1].release()
        assert pool.available == 2


async def test_a_cancelled_acquire_loses_nothing(io: AsyncIoManager) -> None:
    async with io.buffer_pool(1, 16) as pool:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await pool.acquire()
        assert scope.cancelled_caught  # C1: though one was free
        assert pool.available == 1
        held = await pool.acquire()
        for release_first in (False, True):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(pool.acquire)
                await anyio.wait_all_tasks_blocked()
                if release_first:
                    held.release()
                tasks.cancel_scope.cancel()
        # Had the last one got it all the same, its buffer would be lost: so it did not, or it has it.
        with anyio.fail_after(5):
            if pool.available:
                (await pool.acquire()).release()


@asyncio_only
async def test_a_native_cancellation_loses_nothing(io: AsyncIoManager) -> None:
    """C7"""
    async with io.buffer_pool(1, 16) as pool:
        for steps in range(4):
            held = await pool.acquire()
            task = asyncio.ensure_future(pool.acquire())
            for _ in range(steps):
                await asyncio.sleep(0)
            held.release()
            task.cancel()
            outcome = (await asyncio.gather(task, return_exceptions=True))[0]
            if isinstance(outcome, FixedBuffer):
                outcome.release()
            assert pool.available == 1


async def test_the_end_of_the_pool(io: AsyncIoManager, driver: str, file: int, rows: list[tuple[Opcode, int]]) -> None:
    """Waiting tasks hear of it; who holds a buffer keeps it, registered, and the last one gives up the memory."""
    refused: list[int] = []

    async def take(number: int) -> None:
        with pytest.raises(anyio.ClosedResourceError):
            await pool.acquire()
        refused.append(number)

    async with anyio.create_task_group() as tasks, io.buffer_pool(2, 16) as pool:
        first, second = await pool.acquire(), await pool.acquire()
        for number in range(3):
            tasks.start_soon(take, number)
        await anyio.wait_all_tasks_blocked()
    assert sorted(refused) == [0, 1, 2]
    with pytest.raises(anyio.ClosedResourceError):
        await pool.acquire()
    first.release()
    with pytest.raises(anyio.ClosedResourceError):
        await pool.acquire()
    async with io.buffer_pool(1, 16) as other:
        with await other.acquire() as third:
            assert await io.readinto(file, second, 4) == await io.readinto(file, third, 8) == 16
            assert bytes(second.view) + bytes(third.view) == os.pread(file, 16, 4) + os.pread(file, 16, 8)
    assert not _is_given_up(pool)
    second.release()
    assert _is_given_up(pool)
    expected = [(Opcode.READ_FIXED, 0), (Opcode.READ_FIXED, 1)]
    assert rows == (expected if driver == "uring" else [])


async def test_an_entry_is_used_again_only_when_nobody_can_mean_it(
    io: AsyncIoManager, driver: str, pipe: tuple[int, int], rows: list[tuple[Opcode, int]]
) -> None:
    """A read is in flight when its pool ends: another pool gets another entry until the read is done."""
    async with anyio.create_task_group() as tasks:
        async with io.buffer_pool(1, 16) as pool:
            buffer = await pool.acquire()
            tasks.start_soon(io.readinto, pipe[0], buffer, -1)
            await in_flight(io, 1)
        with pytest.raises(BufferError):
            buffer.release()
        async with io.buffer_pool(1, 16) as other:
            with await other.acquire() as second:
                assert await io.write(pipe[1], second.view[:4], 0) == 4
    buffer.release()
    async with io.buffer_pool(1, 16) as again:
        with await again.acquire() as third:
            assert await io.write(pipe[1], third.view[:4], 0) == 4
    expected = [(Opcode.READ_FIXED, 0), (Opcode.WRITE_FIXED, 1), (Opcode.WRITE_FIXED, 0)]
    assert [row[1] for row in rows] == ([row[1] for row in expected] if driver == "uring" else [])


async def test_a_buffer_outlives_its_manager(driver: Any) -> None:
    async with open_uring(driver=driver, fixed_buffers=2) as io:
        pool = io.buffers
        assert pool is not None
        buffer = await pool.acquire()
    buffer.view[:2] = b"ab"
    assert bytes(buffer.view[:2]) == b"ab"
    with pytest.raises(anyio.ClosedResourceError):
        await pool.acquire()
    buffer.release()
    assert _is_given_up(pool)


async def test_who_waits_for_the_managers_own_pool_hears_of_its_end(driver: Any) -> None:
    async def take(pool: BufferPool) -> None:
        with pytest.raises(anyio.ClosedResourceError):
            await pool.acquire()

    async with anyio.create_task_group() as tasks, open_uring(driver=driver, fixed_buffers=1) as io:
        assert io.buffers is not None
        held = await io.buffers.acquire()
        tasks.start_soon(take, io.buffers)
        await anyio.wait_all_tasks_blocked()
    held.release()


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "size", "error", "message"),
    [
        (0, 1, ValueError, "count must be 1 or more, not 0"),
        (1.5, 1, TypeError, "count must be an int, not float"),
        (True, 1, TypeError, "count must be an int, not bool"),
        (1, 0, ValueError, "a size must be 1 or more"),
        (1, "64QB", ValueError, "a size must be 1 or more"),
        (1, None, TypeError, "must be an int or a text"),
        (16385, "64KiB", ValueError, r"takes 1073807360 bytes .* at most 1073741824 \(1 GiB\).* several pools"),
        (1 << 20, 1, ValueError, "in whole pages"),
    ],
)
async def test_a_bad_pool_is_refused_at_once(
    io: AsyncIoManager, count: Any, size: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        io.buffer_pool(count, size)


def test_bad_options_are_refused_before_anything_is_opened() -> None:
    with pytest.raises(ValueError, match="fixed_buffers must be 0 or more, not -1"):
        open_uring(fixed_buffers=-1)
    with pytest.raises(TypeError, match="fixed_buffers must be an int, not str"):
        open_uring(fixed_buffers="64")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="several pools"):
        UringOptions(fixed_buffers=1024, fixed_buffer_size="2MiB")
    assert UringOptions(fixed_buffer_size="64KB").fixed_buffer_size == 65536


async def test_a_pool_is_opened_once_and_before_it_is_used(io: AsyncIoManager) -> None:
    pool = io.buffer_pool(1, 16)
    assert (repr(pool), pool.available) == ("<BufferPool count=1 size=16 not open>", 0)
    with pytest.raises(RuntimeError, match="enter 'async with"):
        await pool.acquire()
    async with pool:
        assert repr(pool) == "<BufferPool count=1 size=16 open>"
        with pytest.raises(RuntimeError, match="opened once"):
            await pool.__aenter__()
        with pytest.raises(TypeError, match="an object with the buffer protocol"):
            await io.write(1, pool, 0)  # type: ignore[arg-type]
    assert repr(pool) == "<BufferPool count=1 size=16 closed>"


async def test_after_the_end_of_the_manager(driver: Any) -> None:
    async with open_uring(driver=driver) as io:
        pass
    with pytest.raises(anyio.ClosedResourceError):
        await io.buffer_pool().__aenter__()


async def test_another_thread_is_told(io: AsyncIoManager) -> None:
    """C12"""
    errors: list[BaseException] = []

    def use(pool: BufferPool, buffer: FixedBuffer) -> None:
        for call in (buffer.release, pool.acquire().send):
            try:
                call(None) if call != buffer.release else call()  # type: ignore[call-arg]
            except RuntimeError as exc:
                errors.append(exc)

    async with io.buffer_pool(1, 16) as pool:
        with await pool.acquire() as buffer:
            thread = threading.Thread(target=use, args=(pool, buffer))
            thread.start()
            await anyio.to_thread.run_sync(thread.join)
    assert [str(error).split(":")[0] for error in errors] == [
        "this buffer belongs to another thread",
        "this manager belongs to another thread",
    ]


# --- where the kernel refuses -------------------------------------------------------------------

DEGRADED = """
    import anyio, errno, os, resource, sys, warnings
    sys.path.insert(0, ROOT)
    from tests.denied import deny
    from anyio_uring import open_uring

    async def main():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            async with open_uring(driver="uring", depth=8, fixed_buffers=32, fixed_buffer_size="16KiB") as io:
                print(len(caught), caught[0].category.__name__, caught[0].filename == __file__)
                print(caught[0].message)
                assert str(caught[0].message) == io.features.fixed_buffers
                read_end, write_end = os.pipe()
                with await io.buffers.acquire() as buffer:
                    buffer.view[:5] = b"bytes"
                    print(await io.write(write_end, buffer.view[:5], 0), await io.readinto(read_end, buffer.view[5:], 0))
                    print(bytes(buffer.view[:11]))
                async with io.buffer_pool(1, 4096) as pool:
                    print(len(caught), pool.is_registered, io.features.fixed_buffers == "registered")

    PRELUDE
    __file__ = "<string>"
    anyio.run(main, backend=sys.argv[1])
    """

UNPRIVILEGED = """
    with open(os.devnull) as file:  # what an operation imports, while that is allowed
        async def warm_up():
            async with open_uring(depth=8) as io:
                await io.read(file, 1, 0)
        anyio.run(warm_up, backend=sys.argv[1])
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
"""


@pytest.mark.ring
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize(
    ("prelude", "message", "is_second_registered"),
    [
        (
            UNPRIVILEGED,
            "ENOMEM: raise RLIMIT_MEMLOCK (ulimit -l), or make the pool smaller",
            True,
        ),
        (
            "deny('io_uring_register', errno.EPERM)",
            "EPERM: allow io_uring_register where a seccomp filter or a security module forbids it",
            False,
        ),
    ],
    ids=["memlock", "seccomp"],
)
def test_where_the_kernel_refuses_it_is_plain_memory(
    backend: str, prelude: str, message: str, is_second_registered: bool
) -> None:
    """Said once for each pool, with the remedy; the bytes are the same."""
    code = DEGRADED.replace("ROOT", repr(str(denied.ROOT))).replace("    PRELUDE\n", prelude.rstrip() + "\n")
    if "\n" not in prelude:
        code = DEGRADED.replace("ROOT", repr(str(denied.ROOT))).replace("PRELUDE", prelude)
    warned, said, counts, content, second = run(code, backend).splitlines()
    assert warned == "1 RuntimeWarning True"
    assert said == "plain memory: registering 512 KiB was refused with " + message
    assert (counts, content) == ("5 5", "b'bytesbytes\\x00'")
    assert second == ("1 True True" if is_second_registered else "2 False False")


@pytest.mark.ring
async def test_a_kernel_without_such_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux 5.18 answers EINVAL."""
    async with open_uring(driver="uring") as io:
        driver = io._driver
        assert isinstance(driver, UringDriver)
        driver._entries_lack = errno.EINVAL
        with pytest.warns(RuntimeWarning, match=r"refused with EINVAL: use Linux 5\.19 or newer"):
            async with io.buffer_pool(1, 16) as pool:
                assert not pool.is_registered
        monkeypatch.setattr(_ring, "POOLS_MAX", 1)
        driver._entries_lack = None
        async with io.buffer_pool(1, 16) as pool:
            assert pool.is_registered
            with pytest.warns(RuntimeWarning, match="1 pools are open, so close one"):
                async with io.buffer_pool(1, 16) as second:
                    assert not second.is_registered
            assert io.features.fixed_buffers is not None
        async with io.buffer_pool(1, 16) as pool:
            assert (pool.is_registered, io.features.fixed_buffers) == (True, "registered")


@pytest.mark.ring
async def test_an_entry_that_the_kernel_does_not_empty_is_not_used_again(
    file: int, rows: list[tuple[Opcode, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It means the memory of a pool that is no more."""
    async with open_uring(driver="uring", nowait=False) as io:
        assert isinstance(io._driver, UringDriver)
        rows.clear()  # of the proof that the ring works
        for fails in (True, False, False):
            with monkeypatch.context() as patch:
                async with io.buffer_pool(1, 16) as pool:
                    with await pool.acquire() as buffer:
                        assert await io.readinto(file, buffer, 4) == 16
                        assert bytes(buffer.view) == os.pread(file, 16, 4)
                    if fails:
                        patch.setattr(io._driver, "_lib", Refusing(io._driver._lib, "au_set_buffer", errno.ENOMEM))
    assert rows == [(Opcode.READ_FIXED, entry) for entry in (0, 1, 1)]


@pytest.mark.ring
async def test_a_warning_that_is_an_error_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(UringDriver, "_make_buffer_table", lambda driver: setattr(driver, "_entries_lack", 12))
    with pytest.raises(RuntimeWarning, match="ENOMEM"):
        async with open_uring(driver="uring", fixed_buffers=1):
            pass
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.ring
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_forked_child_does_not_disturb_the_parents(backend: str) -> None:
    """C12: registered pages stay the parent's, and the child cannot unregister them."""
    out = run(
        """
        import anyio, os, sys
        from anyio_uring import open_uring

        async def main():
            read_end, write_end = os.pipe()
            async with open_uring(driver="uring") as io:
                async with io.buffer_pool(1, 16) as pool:
                    buffer = await pool.acquire()
                child = os.fork()
                if not child:
                    try:
                        buffer.view[:5] = b"child"
                        buffer.release()
                        io.buffer_pool(1, 1).acquire().send(None)
                    except RuntimeError as exc:
                        os._exit(7 if "forked child" in str(exc) else 1)
                    os._exit(1)
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
                os.write(write_end, b"parent")
                assert await io.readinto(read_end, buffer, 0) == 6
                print(bytes(buffer.view[:6]), io._driver.fixed_memory != {})
                buffer.release()
            print(pool._memory.closed)

        anyio.run(main, backend=sys.argv[1])
        """,
        backend,
    )
    assert out.splitlines() == ["b'parent' True", "True"]

"""Registered files: the same file by a shorter way, and a slot that changes only when nobody means it."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from anyio_uring import (
    AsyncIoManager,
    BatchError,
    ChainError,
    Instrument,
    OperationTrace,
    RegisteredFile,
    RwFlags,
    _ring,
    open_uring,
)
from anyio_uring._fixed_files import slots_default
from anyio_uring._requests import SQE_ASYNC, SQE_FIXED_FILE, SQE_LINK
from anyio_uring._ring import UringDriver

from . import denied
from .helpers import asyncio_only, every_loop, in_flight, until
from .programs import run

anyio_backend = every_loop

pytestmark = pytest.mark.anyio


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Descriptor or slot, and flags, of each row that a ring is given, in order."""
    found: list[tuple[int, int]] = []
    prepare = UringDriver.prepare

    def spy(driver: UringDriver, user_data: int, requests: Any) -> Any:
        prepared = prepare(driver, user_data, requests)
        packed = prepared[0]
        for start in range(0, len(packed), _ring._ROW_SIZE):
            row = packed[start : start + _ring._ROW_SIZE]
            found.append((int.from_bytes(row[28:32], sys.byteorder, signed=True), row[37]))
        return prepared

    monkeypatch.setattr(UringDriver, "prepare", spy)
    return found


@pytest.fixture
def file(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "other").write_bytes(b"other" * 100)
    fd = os.open(tmp_path / "other", os.O_RDWR)
    yield fd
    os.close(fd)


class Listener(Instrument):
    """Has a driver stand between the owner and the ring."""

    heard = 0

    def operation_submitted(self, operation: OperationTrace) -> None:
        assert operation.opcode in {"read", "write"}
        self.heard += 1


def _open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _slots(rows: list[tuple[int, int]]) -> list[int]:
    """Return the slot of each row; -1 where it goes by its descriptor."""
    return [fd if flags & SQE_FIXED_FILE else -1 for fd, flags in rows]


# --- the same file ------------------------------------------------------------------------------


async def test_every_verb(io: AsyncIoManager, driver: str, file: int, rows: list[tuple[int, int]]) -> None:
    async with io.register_files([file, file]) as (_, f):
        content = os.pread(file, 65536, 0)
        buffer, second = bytearray(100), bytearray(50)
        assert await io.read(f, 100, 40) == content[40:140]
        assert await io.read(f, 1, 7) == content[7:8]
        assert await io.read_exactly(f, 65536, 0) == content
        assert await io.readinto(f, buffer, 8) == 100
        assert buffer == content[8:108]
        assert await io.readv(f, [buffer, second], 4) == 150
        assert buffer + second == content[4:154]
        assert await io.write(f, b"written", 0) == 7
        await io.write_all(f, b"everything", 20)
        assert await io.writev(f, [b"vec", b"tor"], 40) == 6
        await io.fsync(f)
        await io.fdatasync(f)
        assert await io.write_and_sync(f, b"durable", 60) == 7
        content = os.pread(file, 65536, 0)
        assert [content[i : i + 10].rstrip(b"\0")[:n] for i, n in ((0, 7), (20, 10), (40, 6), (60, 7))] == [
            b"written",
            b"everything",
            b"vector",
            b"durable",
        ]
        assert await io.read_batch([(f, 10, 0), (f, 10, 100)]) == [content[:10], content[100:110]]
        assert await io.readinto_batch([(f, buffer, 0), (file, second, 4)]) == [100, 50]
        assert await io.write_batch([(f, b"x", 0), (f, b"y", 1)]) == [1, 1]
        await io.fsync_batch([f, file])
        async with io.chain() as chain:
            chain.write(f, b"chained", 200)
            chain.fdatasync(f)
            chain.read(f, 7, 200)
        assert chain.results == [7, None, b"chained"]
        assert os.pread(file, 7, 200) == b"chained"
        number = f.fileno()
        assert os.pread(number, 7, 200) == b"chained"
        assert repr(f) == f"<RegisteredFile fd={number}>"
    if driver == "uring":
        # All by the slot, but for the two members that were asked of the plain descriptor.
        assert len(rows) == 23
        assert [i for i, slot in enumerate(_slots(rows)) if slot != 1] == [15, 19]
        assert {rows[15][0], rows[19][0]} == {file}
        assert {flags & ~(SQE_FIXED_FILE | SQE_LINK | SQE_ASYNC) for _, flags in rows} == {0}
    assert io.features.fixed_files == ("registered" if driver == "uring" else "plain descriptors: threads have no ring")


@pytest.mark.ring
@pytest.mark.parametrize(
    "mode",
    [
        {},
        {"sqpoll": True},
        {"restrict": True},
        {"restrict": True, "fixed_files": 2},
        {"instruments": [Listener()]},
    ],
    ids=["plain", "sqpoll", "restrict", "slots", "traced"],
)
async def test_the_kernel_goes_by_the_slot(file: int, other: int, mode: dict[str, Any]) -> None:
    """With another file behind the descriptor's number, the bytes still are those of the one that was registered."""
    async with open_uring(driver="uring", nowait=False, **mode) as io:
        assert io.features.fixed_files == ("registered" if "fixed_files" in mode else None)
        async with io.register_files([file]) as (f,):
            number = f.fileno()
            os.dup2(other, number)
            assert os.pread(number, 5, 0) == b"other"
            assert await io.read(f, 4, 4) == b"\0\0\0\1"
            assert await io.read(number, 5, 0) == b"other"
            assert await io.write(f, b"slot", 0) == 4
            assert os.pread(file, 4, 0) == b"slot"
            await f.update(other)
            assert await io.read(f, 5, 0) == b"other"
            await f.update(file)
            assert await io.read(f, 4, 0) == b"slot"
        for listener in mode.get("instruments", ()):
            assert listener.heard >= io.statistics().submissions == 5


async def test_the_callers_descriptor_can_be_closed(io: AsyncIoManager, path: Path) -> None:
    before = _open_descriptors()
    with path.open("rb") as opened:
        registration = io.register_files([opened, opened.fileno()])
        files = await registration.__aenter__()
    assert await io.read(files[0], 4, 4) == await io.read(files[1], 4, 4) == b"\0\0\0\1"
    with pytest.raises(RuntimeError, match="entered once"):
        await registration.__aenter__()
    await registration.__aexit__(None, None, None)
    assert _open_descriptors() == before


@pytest.mark.parametrize("mode", [{"sqpoll": True}, {"restrict": True}, {"checkpoint": "budget"}, {"nowait": True}])
async def test_in_every_mode(driver: Any, file: int, other: int, mode: dict[str, Any]) -> None:
    async def read(f: RegisteredFile, index: int) -> None:
        for i in range(index, 256, 16):
            assert await io.read(f, 4, 4 * i) == i.to_bytes(4, "big")

    async with open_uring(driver=driver, **mode) as io, io.register_files([other, file]) as (first, second):
        async with anyio.create_task_group() as tasks:
            for index in range(16):
                tasks.start_soon(read, second, index)
        assert await io.read(first, 5, 0) == b"other"


async def test_with_registered_buffers(io: AsyncIoManager, file: int) -> None:
    async with io.buffer_pool(2, 4096) as pool, io.register_files([file]) as (f,):
        with await pool.acquire() as buffer, await pool.acquire() as second:
            assert await io.readinto_batch([(f, buffer, 4096), (f, second, 0)]) == [4096, 4096]
            assert bytes(second.view) + bytes(buffer.view) == os.pread(file, 8192, 0)


async def test_errors_name_the_file(io: AsyncIoManager, path: Path) -> None:
    with path.open("rb") as opened:
        async with io.register_files([opened]) as (f,):
            with pytest.raises(OSError, match="Bad file descriptor") as caught:
                await io.write(f, b"x", 0)
            assert caught.value.filename == str(path)
            with pytest.raises(BatchError):
                await io.write_batch([(f, b"x", 0)])
            with pytest.raises(ChainError):
                async with io.chain() as chain:
                    chain.write(f, b"x", 0)


async def test_in_another_manager_it_is_a_descriptor_and_its_close_waits_too(
    io: AsyncIoManager, driver: Any, pipe: tuple[int, int], rows: list[tuple[int, int]]
) -> None:
    got: list[bytes] = []

    async def read() -> None:
        got.append(await second.read(f, 4, -1))

    async with open_uring(driver=driver, nowait=False) as second, anyio.create_task_group() as tasks:
        async with io.register_files([pipe[0]]) as (f,):
            tasks.start_soon(read)
            await in_flight(second, 1)
            tasks.start_soon(f.aclose)
            await anyio.wait_all_tasks_blocked()
            os.write(pipe[1], b"late")
        assert got == [b"late"]
    assert set(_slots(rows)) <= {-1}


# --- the end, while operations go on ------------------------------------------------------------


@pytest.mark.parametrize("verb", ["read", "readinto", "read_batch", "chain"])
async def test_closing_waits_for_its_operations(
    io: AsyncIoManager, pipe: tuple[int, int], rows: list[tuple[int, int]], verb: str
) -> None:
    """C10: no new ones begin, those in flight end as they would have, and then the slot is free."""
    order: list[str] = []
    buffer = bytearray(4)

    async def use() -> None:
        if verb == "read":
            assert await io.read(f, 4, -1) == b"late"
        elif verb == "readinto":
            assert await io.readinto(f, buffer, -1) == 4
        elif verb == "read_batch":
            assert await io.read_batch([(f, 4, -1)]) == [b"late"]
        else:
            async with io.chain() as chain:
                chain.read(f, 4, -1)
            assert chain.results == [b"late"]
        order.append("read")

    async def close() -> None:
        await f.aclose()
        order.append("closed")

    before = _open_descriptors()
    async with anyio.create_task_group() as tasks, io.register_files([pipe[0]]) as (f,):
        number = f.fileno()
        tasks.start_soon(use)
        await in_flight(io, 1)
        tasks.start_soon(close)
        tasks.start_soon(close)
        await anyio.wait_all_tasks_blocked()
        assert order == []
        os.fstat(number)
        for call in (io.read(f, 1, 0), f.update(pipe[0])):
            with pytest.raises(anyio.ClosedResourceError):
                await call
        # A slot is not used again before its operations are done.
        async with io.register_files([pipe[1]]) as (writer,):
            assert await io.write(writer, b"late", -1) == 4
        await until(lambda: len(order) == 3)
        assert order == ["read", "closed", "closed"]
        assert repr(f) == "<RegisteredFile closed>"
        await f.aclose()
        async with io.register_files([pipe[1]]) as (writer,):
            assert await io.write(writer, b"more", -1) == 4
    assert _open_descriptors() == before
    assert _slots(rows) in ([0, 1, 0], [])


async def test_closing_waits_also_when_cancelled(io: AsyncIoManager, pipe: tuple[int, int]) -> None:
    """C10, and C7's shields: only the operation's own end ends it."""
    order: list[str] = []

    async def read() -> None:
        order.append((await io.read(registered[0], 4, -1)).decode())

    async def hold() -> None:
        async with io.register_files([pipe[0]]) as (file,):
            registered.append(file)
            await anyio.sleep_forever()

    registered: list[RegisteredFile] = []
    async with anyio.create_task_group() as readers:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hold)
            await until(lambda: bool(registered))
            number = registered[0].fileno()
            readers.start_soon(read)
            await in_flight(io, 1)
            tasks.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await anyio.wait_all_tasks_blocked()
                os.fstat(number)
                assert order == []
                os.write(pipe[1], b"late")
        assert order == ["late"]
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(number)


@asyncio_only
async def test_closing_waits_also_when_cancelled_by_asyncio(io: AsyncIoManager, pipe: tuple[int, int]) -> None:
    """C7: the wait survives it, and the cancellation strikes afterwards."""
    async with anyio.create_task_group() as tasks, io.register_files([pipe[0]]) as (f,):
        number = f.fileno()
        tasks.start_soon(io.read, f, 4, -1)
        await in_flight(io, 1)
        closing = asyncio.ensure_future(f.aclose())
        for _ in range(3):
            await anyio.wait_all_tasks_blocked()
            closing.cancel()
        await anyio.wait_all_tasks_blocked()
        os.fstat(number)
        assert not closing.done()
        os.write(pipe[1], b"late")
        with pytest.raises(asyncio.CancelledError):
            await closing
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(number)


async def test_a_cancelled_operation_lets_go(io: AsyncIoManager, pipe: tuple[int, int]) -> None:
    async with io.register_files([pipe[0]]) as (f,):
        for _ in range(3):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(io.read, f, 4, -1)
                await in_flight(io, 1)
                tasks.cancel_scope.cancel()
        with anyio.CancelScope() as scope:  # C4: it never reaches the kernel
            scope.cancel()
            await io.read(f, 4, -1)
        await f.aclose()


@asyncio_only
async def test_an_abandoned_operation_holds_it_until_its_completion(io: AsyncIoManager, pipe: tuple[int, int]) -> None:
    """C2: its coroutine was closed, and the kernel goes on with the file."""
    async with io.register_files([pipe[0]]) as (f,):
        target = f.current()
        coroutine = io.read(f, 4, -1)
        coroutine.send(None)
        await in_flight(io, 1)
        coroutine.close()
        assert target.uses == 1
        await in_flight(io, 0)
        assert target.uses == 0
        coroutine = io.read(f, 4, -1)
        coroutine.send(None)
        coroutine.close()  # C4: never submitted, so nothing is in doubt
        assert target.uses == 0


async def test_who_waits_for_room_holds_it_too(driver: Any, pipe: tuple[int, int], file: int) -> None:
    """C3: what is not yet prepared means the file as it was when it was asked."""
    got: list[bytes] = []

    async def read() -> None:
        got.append(await io.read(f, 4, 4))

    async with open_uring(driver=driver, depth=1, nowait=False) as io, io.register_files([file]) as (f,):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(io.read, pipe[0], 1, -1)
            await in_flight(io, 1)
            tasks.start_soon(read)
            await until(lambda: io.statistics().waiting == 1)
            tasks.start_soon(f.aclose)
            await anyio.wait_all_tasks_blocked()
            os.write(pipe[1], b"x")
        assert got == [b"\0\0\0\1"]


async def test_the_end_of_the_manager_ends_their_operations(driver: Any, pipe: tuple[int, int]) -> None:
    before = _open_descriptors()

    async def read() -> None:
        with pytest.raises(anyio.ClosedResourceError, match=r"open_uring\(\) block ended"):
            await io.read(f, 4, -1)

    async with anyio.create_task_group() as tasks, open_uring(driver=driver) as io:
        registration = io.register_files([pipe[0]])
        (f,) = await registration.__aenter__()
        tasks.start_soon(read)
        await in_flight(io, 1)
    await registration.__aexit__(None, None, None)
    assert _open_descriptors() == before


async def test_memory_and_descriptors_are_given_back(io: AsyncIoManager, file: int) -> None:
    before = _open_descriptors()
    for i in range(200):
        async with io.register_files([file] * 10) as files:
            assert _open_descriptors() == before + 10
            assert await io.read(files[i % 10], 4, 4 * i) == i.to_bytes(4, "big")
            await files[3].update(file)
            await files[4].aclose()
    assert _open_descriptors() == before
    assert io._driver.fixed_files == {}
    assert (io._files._used, len(io._files._free)) == (10, 10)


async def test_one_that_cannot_be_closed_keeps_no_other_open(io: AsyncIoManager, file: int) -> None:
    """Somebody has closed its descriptor, of which that is not theirs to do."""
    before = _open_descriptors()
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        async with io.register_files([file] * 3) as files:
            os.close(files[1].fileno())
    assert caught.value.errno == errno.EBADF
    assert _open_descriptors() == before
    for closed in files:
        with pytest.raises(anyio.ClosedResourceError):
            await io.read(closed, 4, 0)


# --- updates ------------------------------------------------------------------------------------


async def test_an_update_while_an_operation_is_in_flight(
    io: AsyncIoManager, driver: str, pipe: tuple[int, int], file: int, rows: list[tuple[int, int]]
) -> None:
    """What is in flight ends on the old file; what begins goes to the new one, meanwhile by its descriptor."""
    order: list[str] = []

    async def read() -> None:
        order.append((await io.read(f, 4, -1)).decode())

    async def update() -> None:
        await f.update(file)
        order.append("updated")

    before = _open_descriptors()
    async with anyio.create_task_group() as tasks, io.register_files([pipe[0]]) as (f,):
        old = f.fileno()
        tasks.start_soon(read)
        await in_flight(io, 1)
        tasks.start_soon(update)
        await anyio.wait_all_tasks_blocked()
        assert order == []
        assert f.fileno() != old
        assert await io.read(f, 4, 4) == b"\0\0\0\1"
        os.write(pipe[1], b"late")
        await until(lambda: len(order) == 2)
        assert order == ["late", "updated"]
        assert await io.read(f, 4, 8) == b"\0\0\0\2"
    assert _open_descriptors() == before
    if driver == "uring":
        assert _slots(rows) == [0, -1, 0]


async def test_updates_and_a_close_at_once(
    io: AsyncIoManager, pipe: tuple[int, int], file: int, other: int, rows: list[tuple[int, int]]
) -> None:
    before = _open_descriptors()
    ends = os.pipe()
    async with anyio.create_task_group() as tasks, io.register_files([pipe[0]]) as (f,):
        tasks.start_soon(io.read, f, 4, -1)
        await in_flight(io, 1)
        tasks.start_soon(f.update, ends[0])
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(io.read, f, 4, -1)
        await in_flight(io, 2)
        tasks.start_soon(f.update, file)
        await anyio.wait_all_tasks_blocked()
        assert await io.read(f, 4, 4) == b"\0\0\0\1"
        os.write(pipe[1], b"one")
        await in_flight(io, 1)
        assert await io.read(f, 4, 4) == b"\0\0\0\1"
        os.write(ends[1], b"two")
        await in_flight(io, 0)
        await until(lambda: not f._retiring)
        assert await io.read(f, 4, 8) == b"\0\0\0\2"
        await f.update(other)
        assert await io.read(f, 5, 0) == b"other"
    for end in ends:
        os.close(end)
    assert _open_descriptors() == before
    assert _slots(rows) in ([0, -1, -1, -1, 0, 0], [])


async def test_a_failed_update_changes_nothing(io: AsyncIoManager, file: int) -> None:
    async with io.register_files([file]) as (f,):
        with pytest.raises(OSError, match="Bad file descriptor"):
            await f.update(1 << 20)
        with pytest.raises(TypeError, match="fd must be an int or have a fileno"):
            await f.update("name")  # type: ignore[arg-type]
        with anyio.CancelScope() as scope:
            scope.cancel()
            await f.update(file)
        assert scope.cancelled_caught
        assert await io.read(f, 4, 4) == b"\0\0\0\1"
        await f.update(f)
        assert await io.read(f, 4, 4) == b"\0\0\0\1"


@pytest.mark.parametrize("nowait", [True])
async def test_a_file_that_changes_during_the_checkpoint_of_an_inline_read(
    io: AsyncIoManager, file: int, other: int
) -> None:
    """Its old number may be anybody's by then: never a byte of a wrong file."""
    results: list[Any] = []

    async def read() -> None:
        results.append(await io.read(f, 5, 0))

    async def readinto() -> None:
        buffer = bytearray(5)
        await io.readinto(f, buffer, 0)
        results.append(bytes(buffer))

    for verb in (read, readinto):
        async with io.register_files([file]) as (f,):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(verb)
                tasks.start_soon(f.update, other)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(f.update, file)
                tasks.start_soon(verb)
    assert len(results) == 4
    assert {*results} <= {b"other", b"\0\0\0\0\0"}
    assert io.statistics().submissions == 0


@pytest.mark.parametrize("nowait", [True])
async def test_a_file_that_is_closed_during_the_checkpoint_of_an_inline_read(io: AsyncIoManager, file: int) -> None:
    """C2: it does not read what has got the number since."""
    results: list[object] = []

    async def read(f: RegisteredFile) -> None:
        try:
            results.append(await io.read(f, 4, 4))
        except anyio.ClosedResourceError:
            results.append(None)

    for _ in range(20):
        async with io.register_files([file]) as (f,), anyio.create_task_group() as tasks:
            tasks.start_soon(read, f)
            tasks.start_soon(f.aclose)
    assert {*results} <= {None, b"\0\0\0\1"}
    assert None in results


async def test_a_file_that_is_closed_during_the_checkpoint_of_a_transfer_that_must_not_wait(
    io: AsyncIoManager, file: int, other: int
) -> None:
    """C2, C10: it does not read what has got the number since, and the close waits for it."""
    results: list[object] = []

    async def read(f: RegisteredFile) -> None:
        try:
            results.append(await io.read(f, 4, 4, flags=RwFlags.NOWAIT))
        except anyio.ClosedResourceError:
            results.append(None)

    async def close_and_take_the_number(f: RegisteredFile, number: int) -> None:
        await f.aclose()
        with suppress(OSError):
            os.fstat(number)
            return  # the others were closed meanwhile, or another one has it
        os.dup2(other, number)
        taken.append(number)

    for _ in range(20):
        taken: list[int] = []
        async with io.register_files([file]) as (f,), anyio.create_task_group() as tasks:
            tasks.start_soon(read, f)
            tasks.start_soon(close_and_take_the_number, f, f.fileno())
        for number in taken:
            os.close(number)
    assert {*results} <= {None, b"\0\0\0\1"}
    assert b"\0\0\0\1" in results


async def test_an_update_waits_for_every_part_of_a_verb(
    io: AsyncIoManager, driver: str, pipe: tuple[int, int], other: int, rows: list[tuple[int, int]]
) -> None:
    """C8: a pipe takes 64 KiB at a time, and none of the rest goes into the other file."""
    data = bytes(range(256)) * 4096
    got = bytearray()
    order: list[str] = []

    async def write() -> None:
        await io.write_all(f, data, 0)
        order.append("written")

    async def update() -> None:
        await f.update(other)
        order.append("updated")

    os.set_blocking(pipe[0], False)
    async with anyio.create_task_group() as tasks, io.register_files([pipe[1]]) as (f,):
        tasks.start_soon(write)
        await in_flight(io, 1)
        tasks.start_soon(update)
        await anyio.wait_all_tasks_blocked()
        while len(got) < len(data):
            assert not order or len(got) > len(data) - (64 << 10) - 1
            try:
                got += os.read(pipe[0], 4096)
            except BlockingIOError:
                await anyio.lowlevel.checkpoint()
        await until(lambda: len(order) == 2)
    assert order == ["written", "updated"]
    assert got == data
    assert os.pread(other, 1000, 0) == b"other" * 100
    assert len({*rows}) == (driver == "uring")


async def test_read_exactly_never_joins_two_files(io: AsyncIoManager, pipe: tuple[int, int], other: int) -> None:
    async def read() -> None:
        with pytest.raises(anyio.ClosedResourceError, match="updated while a part"):
            await io.read_exactly(f, 8, -1)
        refused.append(True)

    refused: list[bool] = []
    async with anyio.create_task_group() as tasks, io.register_files([pipe[0]]) as (f,):
        tasks.start_soon(read)
        await in_flight(io, 1)
        tasks.start_soon(f.update, other)
        await anyio.wait_all_tasks_blocked()
        os.write(pipe[1], b"part")
        await until(lambda: bool(refused))


# --- what is refused ----------------------------------------------------------------------------


async def test_more_files_than_slots(driver: Any, file: int) -> None:
    before = _open_descriptors()
    async with open_uring(driver=driver, fixed_files=3) as io:
        assert io.features.fixed_files is not None
        inside = _open_descriptors()
        async with io.register_files([file, file]):
            with pytest.raises(ValueError, match=r"2 files cannot be registered: 1 of 3 slots .* larger fixed_files"):
                await io.register_files([file, file]).__aenter__()
            async with io.register_files([file]) as (f,):
                assert await io.read(f, 4, 4) == b"\0\0\0\1"
                async with io.register_files([]) as none:
                    assert none == []
        async with io.register_files([file] * 3) as files:
            assert len(files) == 3
        assert _open_descriptors() == inside
    assert _open_descriptors() == before


async def test_updates_out_of_order(io: AsyncIoManager, tmp_path: Path) -> None:
    """Each changes the slot it means, in whatever order they come, and also while others are read."""
    contents = [b"%4d" % number for number in range(16)]
    for content in contents:
        (tmp_path / content.decode().strip()).write_bytes(content)
    fds = [os.open(tmp_path / content.decode().strip(), os.O_RDONLY) for content in contents]
    try:
        async with io.register_files(fds[:8]) as files:
            expected = contents[:8]
            for slot, fd in [(7, 8), (0, 15), (3, 9), (7, 10), (1, 0), (2, 0), (6, 12), (0, 11)]:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(files[slot].update, fds[fd])
                    others = [(file, 4, 0) for file in files if file is not files[slot]]
                    rest = [content for i, content in enumerate(expected) if i != slot]
                    assert await io.read_batch(others) == rest
                expected[slot] = contents[fd]
                assert await io.read_batch([(file, 4, 0) for file in files]) == expected
            for slot in (5, 0, 7):
                await files[slot].aclose()
            kept = [slot for slot in range(8) if slot not in {5, 0, 7}]
            assert await io.read_batch([(files[slot], 4, 0) for slot in kept]) == [expected[slot] for slot in kept]
    finally:
        for fd in fds:
            os.close(fd)


async def test_a_bad_descriptor_registers_nothing(io: AsyncIoManager, file: int) -> None:
    before = _open_descriptors()
    with pytest.raises(OSError, match="Bad file descriptor"):
        await io.register_files([file, 1 << 20]).__aenter__()
    with pytest.raises(TypeError, match="fd must be an int"):
        await io.register_files([file, "name"]).__aenter__()  # type: ignore[list-item]
    assert _open_descriptors() == before
    async with io.register_files([file]) as (f,):
        await f.aclose()
        for call in (io.read(f, 1, 0), io.fsync_batch([f]), io.write_batch([(f, b"x", 0)])):
            with pytest.raises(anyio.ClosedResourceError):
                await call


async def test_a_chain_whose_file_is_closed_before_its_end(io: AsyncIoManager, file: int, other: int) -> None:
    async with io.register_files([file]) as (f,):
        chain = await io.chain().__aenter__()
        chain.write(other, b"never", 0)
        chain.write(f, b"never", 0)
        await f.update(other)
        with pytest.raises(anyio.ClosedResourceError, match="closed or updated before the operation"):
            await chain.__aexit__(None, None, None)
    assert os.pread(other, 5, 0) == b"other"


async def test_another_thread_is_told(io: AsyncIoManager, file: int) -> None:
    """C12"""
    errors: list[str] = []

    def use() -> None:
        for call in (f.fileno, lambda: f.aclose().send(None), lambda: f.update(file).send(None)):
            try:
                call()
            except RuntimeError as exc:
                errors.append(str(exc))

    async with io.register_files([file]) as (f,):
        thread = threading.Thread(target=use)
        thread.start()
        await anyio.to_thread.run_sync(thread.join)
    assert len(errors) == 3
    assert all("belongs to another thread" in error for error in errors)


@pytest.mark.parametrize(("soft", "expected"), [(resource.RLIM_INFINITY, 1024), (4096, 1024), (256, 256)])
def test_the_table_is_no_larger_than_the_kernel_allows(
    monkeypatch: pytest.MonkeyPatch, soft: int, expected: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, soft))
    assert slots_default() == expected


@pytest.mark.ring
async def test_where_the_kernel_refuses_they_are_plain_descriptors(file: int) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (500, limits[1]))
    try:
        opening = open_uring(driver="uring", fixed_files=501, nowait=False)
        with pytest.warns(RuntimeWarning, match=r"was refused with EMFILE: raise RLIMIT_NOFILE"):
            io = await opening.__aenter__()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 500
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert "EMFILE" in str(io.features.fixed_files)
    registration = io.register_files([file])
    with pytest.warns(RuntimeWarning, match="EMFILE"):
        (f,) = await registration.__aenter__()
    assert await io.read(f, 4, 4) == b"\0\0\0\1"
    await f.update(file)
    assert await io.read(f, 4, 4) == b"\0\0\0\1"
    await registration.__aexit__(None, None, None)
    await opening.__aexit__(None, None, None)


@pytest.mark.ring
async def test_a_kernel_without_such_tables(file: int) -> None:
    """Linux 5.18 answers EINVAL."""
    async with open_uring(driver="uring") as io:
        driver = io._driver
        assert isinstance(driver, UringDriver)
        driver._file_table = _ring._files_refused(errno.EINVAL, 7)
        with pytest.warns(RuntimeWarning, match=r"registering 7 was refused with EINVAL: use Linux 5\.19"):
            async with io.register_files([file]) as (f,):
                assert await io.read(f, 4, 4) == b"\0\0\0\1"


@pytest.mark.ring
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_under_a_filter_that_denies_registrations(backend: str) -> None:
    out = run(
        f"""
        import errno, sys
        sys.path.insert(0, {str(denied.ROOT)!r})
        from tests.denied import deny
        deny("io_uring_register", errno.EPERM)
        import anyio, os, warnings
        from anyio_uring import open_uring

        async def main():
            async with open_uring(driver="uring") as io:
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    ends = os.pipe()
                    async with io.register_files(ends) as (reader, writer):
                        print(await io.write(writer, b"bytes", -1), await io.read(reader, 9, -1))
                print(caught[0].message)

        anyio.run(main, backend=sys.argv[1])
        """,
        backend,
    )
    first, second = out.splitlines()
    assert first == "5 b'bytes'"
    assert "was refused with EPERM: allow io_uring_register" in second


@pytest.mark.ring
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_forked_child_cannot_change_the_parents_table(backend: str) -> None:
    """C12"""
    out = run(
        """
        import anyio, os, sys
        from anyio_uring import open_uring

        async def main():
            read_end, write_end = os.pipe()
            async with open_uring(driver="uring", nowait=False) as io:
                async with io.register_files([read_end]) as (file,):
                    child = os.fork()
                    if not child:
                        try:
                            file._stop()
                            file._retire().send(None)
                        except StopIteration:
                            os._exit(7)
                        os._exit(1)
                    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
                    os.write(write_end, b"parent")
                    print(await io.read(file, 6, -1))

        anyio.run(main, backend=sys.argv[1])
        """,
        backend,
    )
    assert out == "b'parent'\n"

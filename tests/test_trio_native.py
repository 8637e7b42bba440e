"""The manager as a citizen of trio: checkpoints, and deadlines by the mock clock."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import trio
import trio.testing

from anyio_uring import AsyncIoManager, BatchError, open_uring
from anyio_uring._requests import Opcode, Request

from .helpers import scripted, until


@pytest.fixture(params=["uring", "threads"])
async def io(request: pytest.FixtureRequest) -> AsyncIterator[AsyncIoManager]:
    async with open_uring(driver=request.param) as manager:
        yield manager


@pytest.mark.trio
async def test_every_verb_is_a_checkpoint(io: AsyncIoManager) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"x" * 100)
        file.flush()
        calls: list[tuple[Any, tuple[Any, ...]]] = [
            (io.read, (file, 10, 0)),
            (io.read, (file, 0, 0)),
            (io.readinto, (file, bytearray(10), 0)),
            (io.read_exactly, (file, 10, 0)),
            (io.write, (file, b"y", 0)),
            (io.write, (file, b"", 0)),
            (io.write_all, (file, b"y", 0)),
            (io.write_and_sync, (file, b"y", 0)),
            (io.readv, (file, [bytearray(1)], 0)),
            (io.readv, (file, [], 0)),
            (io.writev, (file, [b"y"], 0)),
            (io.fsync, (file,)),
            (io.fdatasync, (file,)),
            (io.read_batch, ([(file, 1, 0)],)),
            (io.read_batch, ([],)),
            (io.readinto_batch, ([],)),
            (io.write_batch, ([],)),
            (io.fsync_batch, ([],)),
            (io.fsync_batch, ([file],)),
        ]
        for verb, arguments in calls:
            with trio.testing.assert_checkpoints():
                await verb(*arguments)


@pytest.mark.trio
async def test_a_verb_that_fails_is_a_checkpoint_too(io: AsyncIoManager) -> None:
    with trio.testing.assert_checkpoints(), pytest.raises(OSError):
        await io.read(-1, 1, 0)
    with trio.testing.assert_checkpoints(), pytest.raises(BatchError):
        await io.read_batch([(-1, 1, 0)])


@pytest.mark.trio
@pytest.mark.parametrize("driver", ["uring", "threads"])
async def test_opening_is_a_checkpoint(driver: Any) -> None:
    with trio.testing.assert_checkpoints():
        async with open_uring(driver=driver):
            pass
    with trio.CancelScope() as scope:
        scope.cancel()
        async with open_uring(driver=driver):
            raise AssertionError("entered in a cancelled scope")
    assert scope.cancelled_caught


@pytest.mark.trio
async def test_a_deadline_of_an_hour_by_the_mock_clock(
    io: AsyncIoManager, autojump_clock: trio.testing.MockClock
) -> None:
    read_end, write_end = os.pipe()
    start = trio.current_time()
    with trio.move_on_after(3600) as scope:
        await io.read(read_end, 1, -1)
    assert scope.cancelled_caught
    assert trio.current_time() - start >= 3600
    assert io.statistics().in_flight == 0
    os.close(read_end)
    os.close(write_end)


@pytest.mark.trio
async def test_a_nursery_full_of_readers(io: AsyncIoManager) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(bytes(range(256)))
        file.flush()
        results: dict[int, bytes] = {}

        async def read(i: int) -> None:
            results[i] = await io.read(file, 1, i)

        async with trio.open_nursery() as nursery:
            for i in range(256):
                nursery.start_soon(read, i)
        assert [results[i] for i in range(256)] == [bytes([i]) for i in range(256)]


@pytest.mark.trio
async def test_keyboard_interrupt_stays_out_of_the_owner() -> None:
    """It would leave operations between two states; trio delivers it at the main task's next checkpoint."""
    seen = []
    async with scripted() as (driver, task):
        turn = driver.turn

        def look(*args: Any) -> tuple[int, Sequence[int]]:
            seen.append(trio.lowlevel.currently_ki_protected())
            return turn(*args)

        driver.turn = look  # type: ignore[assignment]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(task.perform, [Request(Opcode.READ, 0, bytearray(1), 0)])
            await until(lambda: len(driver.pending) == 1)
            driver.complete(1)
    assert seen
    assert all(seen)
    assert not trio.lowlevel.currently_ki_protected()

"""Linked requests: all or none of a chain is submitted, and the next begins when the one before was whole."""

from __future__ import annotations

import errno
import os
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from anyio_uring import AsyncIoManager, open_uring
from anyio_uring._options import UringOptions
from anyio_uring._requests import Opcode, Request
from anyio_uring._ring import open_ring
from anyio_uring._waiters import current_loop

from .helpers import in_flight, scripted, until

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
        assert list(pins[1]) == [-errno.EBADF] + [ECANCELED] * 7
        assert os.pread(fd, 10, 0) == b"0"
        del first_pins
    ring.close()


# --- write_and_sync() -------------------------------------------------------------------------------------


async def _write_and_sync(script: list[list[int]], *, depth: int = 8) -> tuple[Any, list[tuple[Any, ...]]]:
    """Answer in steps what ``write_and_sync(1, b"12345", 7)`` asks; return its outcome and what was asked."""
    outcome: list[Any] = []
    async with scripted(depth) as (driver, task), anyio.create_task_group() as tasks:
        manager = AsyncIoManager(
            task, driver, current_loop(), options=UringOptions(nowait=False), fallback_reason=None, outer=None
        )

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

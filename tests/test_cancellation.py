"""Contract C4 to C10: cancellation of operations that truly block, on every loop and driver."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import gc
import os
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

from anyio_uring import AsyncIoManager, open_uring
from anyio_uring._arguments import readinto_request
from anyio_uring._completion_task import CompletionTask
from anyio_uring._requests import Batch, Memories, Opcode, Request
from anyio_uring._ring import UringDriver
from anyio_uring._waiters import current_loop

from .helpers import WITHOUT_DEBUG, ScriptedDriver, asyncio_only, driver_or_fake, every_loop, in_flight, scripted, until

driver = driver_or_fake
anyio_backend = every_loop

pytestmark = pytest.mark.anyio  # asynchronous tests, on every event loop

ECANCELED, ENOENT, EALREADY, EINTR, EIO = -errno.ECANCELED, -errno.ENOENT, -errno.EALREADY, -errno.EINTR, -errno.EIO


# --- an operation in the kernel: C5, C6 ---------------------------------------------------------------


async def test_a_cancel_scope_cancels_a_blocked_read(io: AsyncIoManager, pipe: tuple[int, int]) -> None:
    buffer = bytearray(10)
    async with anyio.create_task_group() as tasks:

        async def read() -> None:
            with anyio.CancelScope() as scope:
                scopes.append(scope)
                await io.readinto(pipe[0], buffer, -1)
                raise AssertionError("nobody wrote to the pipe")

        scopes: list[anyio.CancelScope] = []
        tasks.start_soon(read)
        await in_flight(io, 1)
        with pytest.raises(BufferError):
            buffer.append(1)  # C2: exported while the kernel may write to it
        scopes[0].cancel()
    assert scopes[0].cancelled_caught
    assert io.statistics().in_flight == 0
    assert io.statistics().cancellations == 1
    buffer.append(1)
    os.write(pipe[1], b"later")
    assert bytes(buffer) == b"\0" * 10 + b"\1"  # the late byte went nowhere
    assert await io.read(pipe[0], 10, -1) == b"later"


async def test_a_deadline_cancels_a_blocked_read(io: AsyncIoManager, pipe: tuple[int, int]) -> None:
    async def expire(scope: anyio.CancelScope, operations: int) -> None:
        await in_flight(io, operations)
        scope.deadline = anyio.current_time()

    async with anyio.create_task_group() as tasks:
        with anyio.move_on_after(3600) as scope:
            tasks.start_soon(expire, scope, 1)
            await io.read(pipe[0], 10, -1)
        assert scope.cancelled_caught
        with pytest.raises(TimeoutError), anyio.fail_after(3600) as scope:  # noqa: PT012 - the scope is what raises
            tasks.start_soon(expire, scope, 2)
            await io.read_batch([(pipe[0], 1, -1), (pipe[0], 1, -1)])
    assert io.statistics().in_flight == 0
    assert io.statistics().cancellations == 3


async def test_an_outer_scope_cancels_and_a_shield_holds_it_off(io: AsyncIoManager, pipe: tuple[int, int]) -> None:
    with anyio.CancelScope() as outer:
        async with anyio.create_task_group() as tasks:

            async def read() -> None:
                with anyio.CancelScope(shield=True):
                    got.append(await io.read(pipe[0], 1, -1))
                await io.read(pipe[0], 1, -1)

            got: list[bytes] = []
            tasks.start_soon(read)
            await in_flight(io, 1)
            outer.cancel()
            with anyio.CancelScope(shield=True):
                for _ in range(5):
                    await anyio.lowlevel.checkpoint()
                assert io.statistics().in_flight == 1
                os.write(pipe[1], b"xy")
    assert got == [b"x"]
    assert outer.cancelled_caught
    assert await io.read(pipe[0], 1, -1) == b"y"


async def test_a_blocked_write_is_cancelled(io: AsyncIoManager, pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[1], False)
    try:
        while True:
            os.write(pipe[1], b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(pipe[1], True)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(io.write, pipe[1], b"y", -1)
        await in_flight(io, 1)
        tasks.cancel_scope.cancel()
    content = os.read(pipe[0], 1 << 20)
    assert set(content) == set(b"x")


async def test_a_batch_is_cancelled_as_one(io: AsyncIoManager, pipe: tuple[int, int], path: Path) -> None:
    buffers = [bytearray(4) for _ in range(5)]
    with path.open("rb") as file:
        async with anyio.create_task_group() as tasks:
            empty, full = pipe[0], file.fileno()
            tasks.start_soon(
                partial(
                    io.readinto_batch,
                    [(empty, buffers[0], -1), (full, buffers[1], 4), (empty, buffers[2], -1), (full, buffers[3], 8)],
                )
            )
            await in_flight(io, 2)  # the reads of the file are done
            tasks.cancel_scope.cancel()
    assert bytes(buffers[1]) == (1).to_bytes(4, "big")
    assert io.statistics().cancellations == 2
    assert io.statistics().in_flight == 0
    for buffer in buffers:
        buffer.append(0)


async def test_a_batch_larger_than_the_ring_is_cancelled(driver: Any, pipe: tuple[int, int]) -> None:
    async with open_uring(driver=driver, depth=4) as io:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(io.read_batch, [(pipe[0], 1, -1)] * 1000)
            await in_flight(io, 4)
            tasks.cancel_scope.cancel()
        assert io.statistics().submissions == 4  # C4: the other members never reached the driver
        assert io.statistics().in_flight == 0
        os.write(pipe[1], b"z")
        assert await io.read(pipe[0], 1, -1) == b"z"


async def test_a_full_submission_queue_drops_no_cancel_request(driver: Any, pipe: tuple[int, int]) -> None:
    """Sixteen blocked reads fill the ring; cancelled at once, their cancel requests fill it again."""
    async with open_uring(driver=driver, depth=16) as io:
        for _ in range(5):
            async with anyio.create_task_group() as tasks:
                for _ in range(40):
                    tasks.start_soon(io.read, pipe[0], 1, -1)
                await in_flight(io, 16)
                await until(lambda: io.statistics().waiting == 24)
                tasks.cancel_scope.cancel()
            assert io.statistics().in_flight == io.statistics().waiting == 0
        assert io.statistics().cancellations == 5 * 16
        assert io.statistics().overflows == 0


@pytest.mark.parametrize("anyio_backend", WITHOUT_DEBUG)
async def test_ten_thousand_cancelled_operations_leave_nothing(driver: Any, pipe: tuple[int, int]) -> None:
    rounds = 20
    async with open_uring(driver=driver, depth=500) as io:
        descriptors = objects = 0
        for i in range(rounds):
            if i <= 2:  # caches become warm
                gc.collect()
                descriptors, objects = len(os.listdir("/proc/self/fd")), len(gc.get_objects())
            async with anyio.create_task_group() as tasks:
                for _ in range(500):
                    tasks.start_soon(io.readinto, pipe[0], bytearray(16), -1)
                await in_flight(io, 500)
                tasks.cancel_scope.cancel()
            assert io.statistics().in_flight == 0
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) == descriptors
        assert len(gc.get_objects()) - objects < 500  # one object an operation would be 9000
        statistics = io.statistics()
        assert statistics.submissions == statistics.completions == statistics.cancellations == rounds * 500
        assert statistics.overflows == 0


async def _cancel_behind_one_worker(file: Any) -> None:
    async with open_uring(driver="uring", depth=64) as io:
        assert isinstance(io._driver, UringDriver)
        io._driver.limit_workers(1, 1)
        megabyte = bytes(1 << 20)
        outcome = []

        async def write() -> None:
            with anyio.CancelScope() as scope:
                scopes.append(scope)
                outcome.append(await io.write_batch([(file, megabyte, i << 20) for i in range(64)]))

        scopes: list[anyio.CancelScope] = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write)
            await until(lambda: io.statistics().in_flight > 32)
            scopes[0].cancel()
        statistics = io.statistics()
        assert statistics.in_flight == 0
        assert statistics.cancellations > 32
        if scopes[0].cancelled_caught:
            assert outcome == []
        else:  # every one was quicker than its cancel request: then every result is there
            assert outcome == [[1 << 20] * 64]


@pytest.mark.ring
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_queued_operations_in_a_worker_of_the_kernel_are_cancelled(tmp_path: Path, backend: str) -> None:
    """Writes of a file go to io-wq; with one worker, the later ones wait there and can be cancelled."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            with (tmp_path / "file").open("w+b") as file:
                anyio.run(_cancel_behind_one_worker, file, backend=backend)
        except BaseException as exc:  # noqa: BLE001 - raised below
            errors.append(exc)

    # The limit holds for the thread, and ends with it.
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert errors == []


# --- an operation that is only staged, or waits for room: C4 --------------------------------------------


async def test_cancelled_before_it_was_submitted_it_never_happens(io: AsyncIoManager) -> None:
    with tempfile.TemporaryFile() as file:
        calls: list[tuple[Any, tuple[Any, ...]]] = [
            (io.write, (file, b"data", 0)),
            (io.write_all, (file, b"data", 0)),
            (io.write_and_sync, (file, b"data", 0)),
            (io.write_batch, ([(file, b"data", 0)],)),
            (io.writev, (file, [b"data"], 0)),
        ]
        for verb, arguments in calls:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await verb(*arguments)
            assert scope.cancelled_caught
        assert os.fstat(file.fileno()).st_size == 0
    assert io.statistics().submissions == 0


async def test_cancelled_in_the_same_pass_it_never_happens(io: AsyncIoManager) -> None:
    """The operation is staged, and its scope is cancelled before the owner's turn comes."""
    with tempfile.TemporaryFile() as file:
        async with anyio.create_task_group() as tasks:

            async def write_then_cancel() -> None:
                await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
                await io.write(file, b"data", 0)

            tasks.start_soon(write_then_cancel)
        assert os.fstat(file.fileno()).st_size == 0


async def test_a_caller_that_waits_for_room_is_cancelled(driver: Any, pipe: tuple[int, int]) -> None:
    buffer = bytearray(4)
    async with open_uring(driver=driver, depth=1) as io, anyio.create_task_group() as tasks:
        tasks.start_soon(io.read, pipe[0], 1, -1)
        await in_flight(io, 1)
        async with anyio.create_task_group() as waiting:
            waiting.start_soon(io.readinto, pipe[0], buffer, -1)
            await until(lambda: io.statistics().waiting == 1)
            waiting.cancel_scope.cancel()
        assert io.statistics().waiting == 0
        assert io.statistics().submissions == 1
        os.write(pipe[1], b"x")


# --- the truth, in every order of completions: C5, C6 (a driver that the test controls) -----------------


async def _perform(task: Any, results: list[Any], scope: anyio.CancelScope, *, requests: int = 1) -> None:
    with scope:
        try:
            results.append(await task.perform([_request() for _ in range(requests)]))
        except OSError as exc:
            results.append(exc)
        await anyio.lowlevel.checkpoint()
        results.append("went on")


def _request() -> Any:

    return Request(Opcode.READ, 0, bytearray(1), 0)


@pytest.mark.parametrize("cancel_result", [0, ENOENT, EALREADY])
@pytest.mark.parametrize("cancel_first", [True, False])
@pytest.mark.parametrize(
    ("res", "expected"),
    [(5, [[5]]), (0, [[0]]), (ECANCELED, []), (EINTR, []), (EIO, [[EIO]])],
    ids=["success", "eof", "ECANCELED", "EINTR", "EIO"],
)
async def test_the_operations_own_result_decides(
    cancel_result: int, cancel_first: bool, res: int, expected: list[Any]
) -> None:
    """C6; and C5: the cancel request's own result decides nothing, before or after the operation's."""
    results: list[Any] = []
    async with scripted() as (driver, task), anyio.create_task_group() as tasks:
        tasks.start_soon(_perform, task, results, scope := anyio.CancelScope())
        await until(lambda: len(driver.pending) == 1)
        scope.cancel()
        await until(lambda: len(driver.cancels) == 1)
        if cancel_first:
            driver.complete_cancel(cancel_result)
            turns = driver.enters
            await until(lambda: driver.enters > turns)
            for _ in range(3):
                await anyio.lowlevel.checkpoint()
            assert not scope.cancelled_caught and results == []  # it waits for the operation's own completion
        driver.complete(res)
        if not cancel_first:
            await until(lambda: bool(results) or scope.cancelled_caught)
            driver.complete_cancel(cancel_result)
    # What was returned is kept, and the scope cancels at the next checkpoint: "went on" is never reached.
    assert results == expected
    assert scope.cancelled_caught
    assert task.statistics().cancellations == 1  # one request, however long it took


@pytest.mark.parametrize("cancel_result", [ENOENT, EALREADY])
async def test_a_cancel_request_that_the_kernel_loses_is_sent_again(cancel_result: int) -> None:
    """C5: it met a worker that was about to let the operation wait for a poll."""
    async with scripted() as (driver, task), anyio.create_task_group() as tasks:
        scopes = [anyio.CancelScope(), anyio.CancelScope()]
        for i, scope in enumerate(scopes):
            tasks.start_soon(_perform, task, [], scope)
            await until(lambda i=i: len(driver.pending) == i + 1)  # type: ignore[misc]
        target, bystander = driver.pending
        scopes[0].cancel()
        for _ in range(3):
            await until(lambda: len(driver.cancels) == 1)
            assert driver.complete_cancel(cancel_result) == target
        await until(lambda: len(driver.cancels) == 1)
        driver.complete(ECANCELED)
        driver.complete_cancel(0)
        await until(lambda: scopes[0].cancelled_caught)
        assert list(driver.pending) == [bystander]
        driver.complete(0)
    assert task.statistics().cancellations == 1


async def test_a_batch_with_one_member_that_was_cancelled_is_cancelled() -> None:
    results: list[Any] = []
    async with scripted() as (driver, task), anyio.create_task_group() as tasks:
        scope = anyio.CancelScope()
        tasks.start_soon(partial(_perform, task, results, scope, requests=3))
        await until(lambda: len(driver.pending) == 3)
        driver.complete(7)
        await until(lambda: task.statistics().completions == 1)
        scope.cancel()
        await until(lambda: len(driver.cancels) == 2)  # not for the member that has its result
        driver.complete(8)
        driver.complete(ECANCELED)
        driver.complete_cancel(0)
        driver.complete_cancel(ENOENT)
    assert results == []
    assert scope.cancelled_caught


async def test_a_batch_whose_members_all_succeeded_is_returned() -> None:
    results: list[Any] = []
    async with scripted() as (driver, task), anyio.create_task_group() as tasks:
        scope = anyio.CancelScope()
        tasks.start_soon(partial(_perform, task, results, scope, requests=2))
        await until(lambda: len(driver.pending) == 2)
        scope.cancel()
        await until(lambda: len(driver.cancels) == 2)
        driver.complete(2, index=1)
        driver.complete(1)
        driver.complete_cancel(EALREADY)
        driver.complete_cancel(EALREADY)
    assert results == [[1, 2]]
    assert scope.cancelled_caught


async def test_a_driver_with_little_space_gets_every_row_in_the_end() -> None:
    """A full submission queue: rows are brought again, cancel requests among them (C5)."""
    results: list[Any] = []
    async with scripted(depth=8) as (driver, task), anyio.create_task_group() as tasks:
        driver.rows_max = 1
        scope = anyio.CancelScope()
        for _ in range(8):
            tasks.start_soon(_perform, task, results, anyio.CancelScope())
        await until(lambda: len(driver.pending) == 8)
        tasks.start_soon(partial(_perform, task, results, scope, requests=5))
        await until(lambda: task.statistics().waiting == 1)
        assert task.statistics().in_flight == 8
        for i in range(8):
            driver.complete(i)
        await until(lambda: len(driver.pending) == 5)
        scope.cancel()
        await until(lambda: len(driver.cancels) == 5)
        for _ in range(5):
            driver.complete(ECANCELED)
            driver.complete_cancel(0)
    assert scope.cancelled_caught
    assert sorted(r[0] for r in results if r != "went on") == list(range(8))
    assert task.statistics().cancellations == 5


async def test_a_batch_cancelled_while_the_driver_has_taken_a_part_of_it() -> None:
    """Members that were staged and not taken never happen; the others are cancelled and waited for."""
    async with scripted(depth=8) as (driver, task), anyio.create_task_group() as tasks:
        driver.rows_left = 3
        scope = anyio.CancelScope()
        results: list[Any] = []
        tasks.start_soon(partial(_perform, task, results, scope, requests=20))
        await until(lambda: len(driver.pending) == 3)
        scope.cancel()
        await until(lambda: bool(task._cancels))
        driver.rows_left = 100
        await until(lambda: len(driver.cancels) == len(driver.pending))
        assert len(driver.taken) == 3
        while driver.pending:
            driver.complete(ECANCELED)
        while driver.cancels:
            driver.complete_cancel(0)
    assert results == []
    assert scope.cancelled_caught


async def test_no_more_cancel_requests_than_the_completion_queue_can_hold() -> None:
    """C3: in flight, cancel requests included, never exceeds the completion queue."""
    async with scripted(depth=4) as (driver, task), anyio.create_task_group() as tasks:
        for asked in (4, 8):
            scope = anyio.CancelScope()
            tasks.start_soon(partial(_perform, task, [], scope, requests=4))
            await until(lambda: len(driver.pending) == 4)
            scope.cancel()
            await until(lambda asked=asked: task.statistics().cancellations == asked)  # type: ignore[misc]
            await until(lambda: len(driver.cancels) == 4)
            for _ in range(4):  # the operations settle, their cancel requests stay
                driver.complete(ECANCELED)
            await until(lambda scope=scope: scope.cancelled_caught)  # type: ignore[misc]
        assert len(driver.cancels) == 4
        while driver.cancels:
            driver.complete_cancel(ENOENT)


async def test_transient_errors_are_asked_again(path: Path) -> None:
    """EINTR, and EAGAIN of a regular file, are not the caller's business (some filesystems give them)."""
    results: list[Any] = []

    async def perform() -> None:
        results.append(await task.perform([Request(Opcode.READ, file.fileno(), bytearray(1), 0) for _ in range(3)]))

    with path.open("rb") as file:
        async with scripted() as (driver, task), anyio.create_task_group() as tasks:
            tasks.start_soon(perform)
            await until(lambda: len(driver.pending) == 3)
            driver.complete(EINTR)
            driver.complete(7)
            driver.complete(-errno.EAGAIN)
            await until(lambda: len(driver.pending) == 2)
            assert [request.force_async for request in driver.pending.values()] == [True, True]
            driver.complete(EINTR)
            driver.complete(9)
            await until(lambda: len(driver.pending) == 1)
            driver.complete(EIO)
    assert results == [[EIO, 7, 9]]
    assert task.statistics().resubmissions == 3


# --- the end of the block: C10 --------------------------------------------------------------------------


async def test_the_end_of_the_block_cancels_and_drains(driver: Any, pipe: tuple[int, int]) -> None:
    buffer = bytearray(8)
    errors: list[BaseException] = []

    async def read(io: AsyncIoManager, verb: Any, *arguments: Any) -> None:
        try:
            await verb(*arguments)
        except anyio.ClosedResourceError as exc:
            errors.append(exc)

    async with anyio.create_task_group() as tasks:
        async with open_uring(driver=driver, depth=2) as io:
            tasks.start_soon(read, io, io.readinto, pipe[0], buffer, -1)
            tasks.start_soon(read, io, io.read_batch, [(pipe[0], 1, -1)] * 10)
            await in_flight(io, 2)
            tasks.start_soon(read, io, io.read, pipe[0], 1, -1)
            await until(lambda: io.statistics().waiting == 1)
        assert io.statistics().in_flight == 0
    assert len(errors) == 3
    buffer.append(1)
    os.write(pipe[1], b"later")
    assert bytes(buffer[:8]) == bytes(8)


async def test_an_exception_of_the_body_arrives_as_it_was_raised(driver: Any, pipe: tuple[int, int]) -> None:
    async with anyio.create_task_group() as tasks:

        async def body() -> None:
            async with open_uring(driver=driver) as io:
                managers.append(io)
                tasks.start_soon(_expect_closed, io, pipe[0])
                await in_flight(io, 1)
                raise LookupError("of the body")

        managers: list[AsyncIoManager] = []
        with pytest.raises(LookupError, match="of the body") as caught:
            await body()
    assert type(caught.value) is LookupError
    assert managers[0].statistics().in_flight == 0


async def _expect_closed(io: AsyncIoManager, fd: int) -> None:
    with pytest.raises(anyio.ClosedResourceError):
        await io.read(fd, 1, -1)


async def test_the_outer_scope_is_cancelled(driver: Any, pipe: tuple[int, int]) -> None:
    with anyio.CancelScope() as outer:
        async with open_uring(driver=driver) as io, anyio.create_task_group() as tasks:
            tasks.start_soon(io.read, pipe[0], 1, -1)
            await in_flight(io, 1)
            outer.cancel()
    assert outer.cancelled_caught
    assert io.statistics().in_flight == 0
    with anyio.CancelScope() as outer:
        async with open_uring(driver=driver) as io:
            outer.cancel()
            await io.read(pipe[0], 1, -1)
    assert outer.cancelled_caught
    assert io.statistics().in_flight == 0


async def test_the_end_waits_for_the_kernel_whatever_cancels_meanwhile() -> None:

    driver = ScriptedDriver()
    task = CompletionTask(driver, current_loop())
    closed = False

    async def close() -> None:
        nonlocal closed
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            await task.aclose()
            closed = True
            await anyio.lowlevel.checkpoint()

    async def perform() -> None:
        with pytest.raises(anyio.ClosedResourceError):
            await task.perform([_request()])

    scopes: list[anyio.CancelScope] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(task.run)
        tasks.start_soon(perform)
        await until(lambda: len(driver.pending) == 1)
        tasks.start_soon(close)
        await until(lambda: len(driver.cancels) == 1)
        scopes[0].cancel()
        driver.complete_cancel(EALREADY)
        for _ in range(10):
            await anyio.lowlevel.checkpoint()
        assert (closed, driver.is_closed) == (False, False)  # the operation still owns its memory
        driver.complete(ECANCELED)
        while driver.cancels:  # the request was sent again meanwhile
            driver.complete_cancel(ENOENT)
    assert closed
    assert driver.is_closed
    assert scopes[0].cancelled_caught


async def test_the_bodys_exception_survives_a_cancelled_outer_scope(driver: Any) -> None:
    async def body() -> None:
        async with open_uring(driver=driver):
            outer.cancel()
            raise LookupError("of the body")

    with anyio.CancelScope() as outer:
        with pytest.raises(LookupError, match="of the body"):
            await body()


async def test_waiting_for_the_kernel_at_the_end_does_not_spin() -> None:
    async with anyio.create_task_group() as tasks:
        driver = ScriptedDriver()
        task = CompletionTask(driver, current_loop())
        tasks.start_soon(task.run)

        async def perform() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await task.perform([_request()])

        tasks.start_soon(perform)
        await until(lambda: len(driver.pending) == 1)
        tasks.start_soon(task.aclose)
        await until(lambda: len(driver.cancels) == 1)
        driver.complete_cancel(EALREADY)
        await until(lambda: task._cancels_in_flight == 0)
        turns = driver.enters
        for _ in range(20):
            await anyio.lowlevel.checkpoint()
        assert driver.enters <= turns + 2
        while driver.cancels:
            driver.complete_cancel(ENOENT)
        driver.complete(ECANCELED)


async def test_a_cancel_request_that_waited_for_space_is_sent() -> None:
    """C5: the completion of an earlier cancel request makes space, and nothing else happens."""
    async with scripted(depth=1) as (driver, task), anyio.create_task_group() as tasks:
        scopes = [anyio.CancelScope(), anyio.CancelScope()]
        tasks.start_soon(_perform, task, [], scopes[0])
        await until(lambda: len(driver.pending) == 1)
        scopes[0].cancel()
        await until(lambda: len(driver.cancels) == 1)
        driver.complete(ECANCELED)
        await until(lambda: scopes[0].cancelled_caught)
        tasks.start_soon(_perform, task, [], scopes[1])
        await until(lambda: len(driver.pending) == 1)
        scopes[1].cancel()
        await until(lambda: len(task._cancels) == 1)
        driver.complete_cancel(ENOENT)
        await until(lambda: len(driver.cancels) == 1)
        driver.complete(ECANCELED)
        driver.complete_cancel(0)


async def test_what_would_be_asked_again_is_not_once_it_is_cancelled(path: Path) -> None:
    """It did not happen, so the cancellation is raised, not the kernel's EAGAIN."""
    results: list[Any] = []
    with path.open("rb") as file:
        request = Request(Opcode.READ, file.fileno(), bytearray(1), 0)
        async with scripted() as (driver, task), anyio.create_task_group() as tasks:

            async def perform() -> None:
                with scope:
                    results.append(await task.perform([request]))

            scope = anyio.CancelScope()
            tasks.start_soon(perform)
            await until(lambda: len(driver.pending) == 1)
            scope.cancel()
            await until(lambda: len(driver.cancels) == 1)
            driver.complete(-errno.EAGAIN)
            driver.complete_cancel(ENOENT)
    assert results == []
    assert scope.cancelled_caught


# --- the owner: C11 -------------------------------------------------------------------------------------


async def test_a_crash_of_the_owner_reaches_every_waiter() -> None:
    results: list[Any] = []

    async def perform(requests: int) -> None:
        try:
            await task.perform([_request()] * requests)
        except anyio.BrokenResourceError as exc:
            results.append(exc.__cause__)

    async with scripted(depth=2) as (driver, task), anyio.create_task_group() as tasks:
        tasks.start_soon(perform, 1)
        tasks.start_soon(perform, 5)
        await until(lambda: len(driver.pending) == 2)
        tasks.start_soon(perform, 1)
        await until(lambda: task.statistics().waiting == 1)
        driver.crash = RuntimeError("the driver is on fire")
        driver.complete(1)
        await until(lambda: len(results) == 3)
        assert results == [driver.crash] * 3
        with pytest.raises(anyio.BrokenResourceError, match="on fire"):
            await task.perform([_request()])
        references = sys.getrefcount(task)
    assert references >= 2  # its memory stays pinned for ever: one reference is never given back
    forgive(task, driver)


async def test_a_crash_while_the_manager_drains() -> None:
    """The end of the block says so; and a cancellation that was on its way strikes at the next checkpoint (C7)."""
    ended: list[str] = []

    async def wait(scope: anyio.CancelScope) -> None:
        with scope:
            with pytest.raises(anyio.BrokenResourceError, match="on fire"):
                await task.perform([_request()])
            ended.append("told")
            await anyio.lowlevel.checkpoint()
            ended.append("lost")
        ended.append("cancelled" if scope.cancelled_caught else "lost")

    async def close() -> None:
        with pytest.raises(anyio.BrokenResourceError, match="on fire"):
            await task.aclose()
        ended.append("closed")

    scope = anyio.CancelScope()
    async with scripted() as (driver, task), anyio.create_task_group() as tasks:
        tasks.start_soon(wait, scope)
        await until(lambda: len(driver.pending) == 1)
        scope.cancel()
        await until(lambda: len(driver.cancels) == 1)
        tasks.start_soon(close)
        await until(lambda: task._drained is not None)
        driver.crash = RuntimeError("the driver is on fire")
        driver.complete_cancel(0)
        await until(lambda: len(ended) == 3)
    assert sorted(ended) == ["cancelled", "closed", "told"]
    forgive(task, driver)


@pytest.mark.parametrize("result", [11, EIO])
async def test_what_happens_while_the_manager_drains_is_returned(result: int) -> None:
    results: list[Any] = []

    async def work() -> None:
        results.append(await task.perform([_request()]))

    def comes_too_late(_: int) -> int:
        driver.complete(result)
        return ScriptedDriver.complete_cancel(driver, ENOENT)

    async with anyio.create_task_group() as tasks, scripted() as (driver, task):
        driver.complete_cancel = comes_too_late  # type: ignore[assignment,method-assign]
        tasks.start_soon(work)
        await until(lambda: len(driver.pending) == 1)
    assert results == [[result]]


def forgive(task: CompletionTask, driver: ScriptedDriver) -> None:
    """Give back the reference that a crash has leaked on purpose, and what it holds."""
    driver.crash = None
    driver.pending.clear()
    ctypes.pythonapi.Py_DecRef(ctypes.py_object(task))
    task._submissions = task._completions


_VERBS: dict[str, Any] = {
    "readinto": lambda io, fd, buffer: io.readinto(fd, buffer, -1),
    "readv": lambda io, fd, buffer: io.readv(fd, [buffer], -1),
    "readinto_batch": lambda io, fd, buffer: io.readinto_batch([(fd, buffer, -1)]),
    "readinto_batch, in columns": lambda io, fd, buffer: io.readinto_batch([(fd, buffer, 0)]),
}


@asyncio_only
@pytest.mark.parametrize("verb", _VERBS)
async def test_memory_stays_pinned_when_the_coroutine_is_closed(
    io: AsyncIoManager, pipe: tuple[int, int], verb: str
) -> None:
    """C2: nobody waits any more, and the kernel may still write to it."""
    buffer = bytearray(4096)
    coroutine = _VERBS[verb](io, pipe[0], buffer)
    coroutine.send(None)
    await in_flight(io, 1)
    coroutine.close()
    del coroutine
    gc.collect()
    with pytest.raises(BufferError):
        buffer.append(1)
    await in_flight(io, 0)
    await until(lambda: _can_be_resized(buffer))


def _can_be_resized(buffer: bytearray) -> bool:
    try:
        buffer.append(1)
    except BufferError:
        return False
    return True


async def test_memory_stays_pinned_when_the_owner_crashes() -> None:
    """C11: callers release what they gave, and that changes nothing."""
    buffers = [bytearray(1), bytearray(1)]
    batch = Batch(Opcode.READ, [0], Memories([memoryview(buffers[1])], [1]), [0])
    requests: list[Any] = [[readinto_request(0, buffers[0], 0)], batch]
    ended: list[Any] = []

    async def perform(asked: Any) -> None:
        with pytest.raises(anyio.BrokenResourceError):
            await task.perform(asked)
        (asked.memories if asked is batch else asked[0]).release()
        ended.append(asked)

    async with scripted() as (driver, task), anyio.create_task_group() as tasks:
        for asked in requests:
            tasks.start_soon(perform, asked)
        await until(lambda: len(driver.pending) == 2)
        driver.crash = RuntimeError("the driver is on fire")
        driver.complete(1)
        await until(lambda: len(ended) == 2)
        assert not any(map(_can_be_resized, buffers))
    forgive(task, driver)


# --- asyncio's own cancellation: C7 ---------------------------------------------------------------------


@asyncio_only
async def test_task_cancel_and_twice(io: AsyncIoManager, pipe: tuple[int, int]) -> None:
    for times in (1, 2, 3):
        reader = asyncio.ensure_future(io.read(pipe[0], 1, -1))
        await in_flight(io, 1)
        for _ in range(times):
            reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        assert io.statistics().in_flight == 0
    os.write(pipe[1], b"x")
    assert await io.read(pipe[0], 1, -1) == b"x"


@asyncio_only
async def test_task_cancel_again_while_the_kernel_takes_its_time() -> None:
    async with scripted() as (driver, task):
        for res in (ECANCELED, 3):
            waiter = asyncio.ensure_future(task.perform([_request()]))
            await until(lambda: len(driver.pending) == 1)
            for _ in range(3):
                waiter.cancel()
                for _ in range(3):
                    await asyncio.sleep(0)
            assert not waiter.done()
            assert len(driver.cancels) == 1  # one request, however often it was asked
            driver.complete_cancel(0)
            driver.complete(res)
            if res == ECANCELED:
                with pytest.raises(asyncio.CancelledError):
                    await waiter
            else:
                assert await waiter == [3]


@asyncio_only
async def test_a_kept_result_rearms_the_cancellation_once() -> None:
    """Neither lost nor repeated."""
    log: list[Any] = []

    async def work() -> None:
        log.append(await task.perform([_request()]))
        try:
            await asyncio.sleep(0)
            log.append("lost")
        except asyncio.CancelledError:
            log.append("cancelled")
        for _ in range(5):
            await asyncio.sleep(0)
        log.append("not repeated")

    async with scripted() as (driver, task):
        worker = asyncio.ensure_future(work())
        await until(lambda: len(driver.pending) == 1)
        worker.cancel()
        await until(lambda: len(driver.cancels) == 1)
        driver.complete(11)
        driver.complete_cancel(ENOENT)
        await worker
    assert log == [[11], "cancelled", "not repeated"]
    if sys.version_info >= (3, 11):
        assert worker.cancelling() == 1


@asyncio_only
async def test_a_kept_result_and_the_next_operation_never_happens() -> None:
    """The cancellation strikes the next operation before it reaches the driver, even if the owner is awake."""
    log: list[Any] = []

    async def work() -> None:
        log.append(await task.perform([_request()]))
        log.append(await task.perform([_request()]))

    async with scripted() as (driver, task):
        for _ in range(3):
            log.clear()
            driver.taken.clear()
            worker = asyncio.ensure_future(work())
            await until(lambda: len(driver.pending) == 1)
            worker.cancel()
            await until(lambda: len(driver.cancels) == 1)
            driver.complete(11)
            driver.complete_cancel(ENOENT)
            while not worker.done():
                task._doorbell.ring()
                await asyncio.sleep(0)
            with pytest.raises(asyncio.CancelledError):
                await worker
            assert log == [[11]]
            assert len(driver.taken) == 1


@asyncio_only
async def test_task_cancel_at_the_moment_of_completion() -> None:
    """The event is set, the task has not run yet, and then it is cancelled: the result is kept."""
    async with scripted() as (driver, task):
        waiter = asyncio.ensure_future(task.perform([_request()]))
        await until(lambda: len(driver.pending) == 1)
        driver.complete(42)
        await until(lambda: task.statistics().completions == 1)
        waiter.cancel()
        assert await waiter == [42]
        assert driver.cancels == {}


@asyncio_only
async def test_cancelled_before_its_first_step_an_operation_never_happens(io: AsyncIoManager) -> None:
    with tempfile.TemporaryFile() as file:

        async def write() -> None:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await io.write(file, b"data", 0)

        with pytest.raises(asyncio.CancelledError):
            await asyncio.ensure_future(write())
        for _ in range(5):
            await asyncio.sleep(0)
        assert os.fstat(file.fileno()).st_size == 0
    assert io.statistics().submissions == io.statistics().in_flight == 0


@asyncio_only
@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.timeout is new in Python 3.11")
async def test_asyncio_timeout(io: AsyncIoManager, pipe: tuple[int, int]) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await io.read(pipe[0], 1, -1)
    assert io.statistics().in_flight == 0
    await asyncio.sleep(0)


@asyncio_only
@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.timeout is new in Python 3.11")
async def test_a_result_kept_inside_a_timeout_that_is_left_at_once() -> None:
    """The block has withdrawn its cancellation: nothing strikes behind it."""

    async def work() -> list[int]:
        async with asyncio.timeout(None) as timeout:
            timeouts.append(timeout)
            result: list[int] = await task.perform([_request()])
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return result

    timeouts: list[Any] = []
    async with scripted() as (driver, task):
        worker = asyncio.ensure_future(work())
        await until(lambda: len(driver.pending) == 1)
        timeouts[0].reschedule(asyncio.get_running_loop().time() - 1)
        await until(lambda: len(driver.cancels) == 1)
        driver.complete(5)
        driver.complete_cancel(ENOENT)
        assert await worker == [5]
        assert worker.cancelling() == 0


@asyncio_only
@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.timeout is new in Python 3.11")
async def test_a_result_kept_inside_a_timeout_during_cleanup() -> None:
    """The task is being cancelled for another reason already: its count is not the timeout's."""
    log: list[Any] = []

    async def work() -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            async with asyncio.timeout(None) as timeout:
                timeouts.append(timeout)
                log.append(await task.perform([_request()]))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            log.append("cleaned up")
            raise

    timeouts: list[Any] = []
    async with scripted() as (driver, task):
        worker = asyncio.ensure_future(work())
        await asyncio.sleep(0)
        worker.cancel()
        await until(lambda: len(driver.pending) == 1)
        timeouts[0].reschedule(asyncio.get_running_loop().time() - 1)
        await until(lambda: len(driver.cancels) == 1)
        driver.complete(5)
        driver.complete_cancel(ENOENT)
        with pytest.raises(asyncio.CancelledError):
            await worker
    assert log == [[5], "cleaned up"]


@asyncio_only
@pytest.mark.filterwarnings("ignore:coroutine 'CompletionTask.run' was never awaited")
async def test_an_owner_cancelled_before_its_first_step(driver: Any) -> None:
    """As asyncio.run() does with every task when it ends: the block then drains by itself."""
    async with open_uring(driver=driver) as io:
        (owner,) = [task for task in asyncio.all_tasks() if task.get_name() == "anyio_uring owner"]
        owner.cancel()
    assert "closed" in repr(io)
    gc.collect()


@asyncio_only
@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.TaskGroup is new in Python 3.11")
async def test_asyncio_task_group(io: AsyncIoManager, pipe: tuple[int, int]) -> None:
    with pytest.raises(BaseExceptionGroup) as caught:  # noqa: F821, PT012
        async with asyncio.TaskGroup() as group:
            group.create_task(io.read(pipe[0], 1, -1))
            group.create_task(io.read_batch([(pipe[0], 1, -1)] * 2))
            await in_flight(io, 3)
            raise LookupError
    assert caught.group_contains(LookupError)
    assert io.statistics().in_flight == 0


@asyncio_only
async def test_task_cancel_inside_a_cancelled_scope(io: AsyncIoManager, pipe: tuple[int, int]) -> None:
    """Anyio's cancellation and asyncio's own at once: the stronger one, asyncio's, comes through."""

    async def read() -> str:
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            await io.read(pipe[0], 1, -1)
        return "only the scope was cancelled"

    scopes: list[anyio.CancelScope] = []
    reader = asyncio.ensure_future(read())
    await in_flight(io, 1)
    scopes[0].cancel()
    reader.cancel()
    if sys.version_info >= (3, 11):  # before, there is no count of requests to tell the two apart
        with pytest.raises(asyncio.CancelledError):
            await reader
    else:
        await asyncio.wait([reader])
    assert io.statistics().in_flight == 0


@asyncio_only
async def test_task_cancel_during_the_end_of_the_block(driver: Any, pipe: tuple[int, int]) -> None:
    log: list[str] = []

    async def work() -> None:
        async with open_uring(driver=driver) as io:
            managers.append(io)
            other = asyncio.ensure_future(_expect_closed(io, pipe[0]))
            await in_flight(io, 1)
            asyncio.get_running_loop().call_soon(worker.cancel)
        log.append("left")
        try:
            await asyncio.sleep(0)
        finally:
            await other

    managers: list[AsyncIoManager] = []
    worker = asyncio.ensure_future(work())
    with pytest.raises(asyncio.CancelledError):
        await worker
    assert managers[0].statistics().in_flight == 0


@asyncio_only
async def test_the_owner_outlives_its_own_cancellation(driver: Any, pipe: tuple[int, int]) -> None:
    """C11: as at the end of asyncio.run(), which cancels every task."""
    async with open_uring(driver=driver) as io:
        (owner,) = [task for task in asyncio.all_tasks() if task.get_name() == "anyio_uring owner"]
        reader = asyncio.ensure_future(io.read(pipe[0], 1, -1))
        await in_flight(io, 1)
        for _ in range(3):
            owner.cancel()
            await asyncio.sleep(0)
        os.write(pipe[1], b"x")
        assert await reader == b"x"


# --- nested anyio structures ----------------------------------------------------------------------------


async def test_cleanup_after_a_cancellation_can_use_the_manager(io: AsyncIoManager, pipe: tuple[int, int]) -> None:
    with tempfile.TemporaryFile() as file:
        with anyio.move_on_after(0.01) as scope:
            try:
                await io.read(pipe[0], 1, -1)
            finally:
                with anyio.CancelScope(shield=True):
                    await io.write_and_sync(file, b"saved", 0)
        assert scope.cancelled_caught
        assert os.pread(file.fileno(), 10, 0) == b"saved"


# --- native cancellations beside one another: C7 -----------------------------------------------------


def _certain_read(io: AsyncIoManager, fd: int) -> Any:
    """A read that no cancellation reaches, as an operation whose result was there first."""
    return io._task.perform((Request(Opcode.READ, fd, bytearray(1), -1),), is_certain=True)


async def _strike(write_end: int, *cancels: Callable[[], Any], passes: int = 3) -> None:
    """Cancel while that read waits, with so many passes of the loop between; then let it have its result."""
    for cancel in cancels:
        cancel()
        for _ in range(passes):
            await asyncio.sleep(0)
    for _ in range(3 - passes):
        await asyncio.sleep(0)
    os.write(write_end, b"x")


@asynccontextmanager
async def _expiring(kind: str, expire: list[Callable[[], Any]]) -> AsyncIterator[None]:
    """A block that ends when it is told to, by a timeout of asyncio's or a scope of anyio's."""
    if kind == "timeout":
        async with asyncio.timeout(3600) as timeout:
            expire.append(partial(timeout.reschedule, 0))
            yield
    else:
        with anyio.CancelScope() as scope:
            expire.append(scope.cancel)
            yield


@asyncio_only
@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.timeout() is of 3.11")
@pytest.mark.parametrize("inner_kind", ["timeout", "scope"])
async def test_the_outer_of_two_cancellations_strikes_when_the_inner_is_withdrawn(
    io: AsyncIoManager, pipe: tuple[int, int], inner_kind: str
) -> None:
    async def work() -> None:
        async with _expiring("timeout", expire):
            async with _expiring(inner_kind, expire):
                await _certain_read(io, pipe[0])
            await asyncio.sleep(3600)

    expire: list[Callable[[], Any]] = []
    task = asyncio.create_task(work())
    await in_flight(io, 1)
    await _strike(pipe[1], expire[1], expire[0])
    with pytest.raises(TimeoutError):
        await task


@asyncio_only
@pytest.mark.skipif(sys.version_info < (3, 11), reason="before it nobody counts cancellations")
@pytest.mark.parametrize("first", ["scope", "native"])
async def test_a_native_cancellation_in_the_pass_of_a_scopes(
    io: AsyncIoManager, pipe: tuple[int, int], first: str
) -> None:
    """Both arrive as one CancelledError; the scope takes its own, and the other one goes on."""

    async def work() -> None:
        with scope:
            await _certain_read(io, pipe[0])
        await asyncio.sleep(3600)

    scope = anyio.CancelScope()
    task = asyncio.create_task(work())
    cancels = (scope.cancel, task.cancel) if first == "scope" else (task.cancel, scope.cancel)
    await in_flight(io, 1)
    await _strike(pipe[1], *cancels, passes=0)
    with pytest.raises(asyncio.CancelledError):
        await task


@asyncio_only
@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.timeout() is of 3.11")
@pytest.mark.parametrize("passes", range(4))
async def test_a_timeout_that_expires_in_a_cancelled_scope(
    io: AsyncIoManager, pipe: tuple[int, int], passes: int
) -> None:
    """The scope takes what it asked for, whether the timeout is heard during the same wait or comes to nothing."""

    async def work() -> str:
        with anyio.CancelScope() as scope:
            expire.append(scope.cancel)
            async with _expiring("timeout", expire):
                await io.read(pipe[0], 1, -1)
        return "went on" if scope.cancelled_caught else "not cancelled"

    expire: list[Callable[[], Any]] = []
    task = asyncio.create_task(work())
    await in_flight(io, 1)
    expire[0]()
    for _ in range(passes):
        await asyncio.sleep(0)
    with suppress(RuntimeError):  # it has ended
        expire[1]()
    assert await task == "went on"
    assert task.cancelling() == 0


@asyncio_only
@pytest.mark.parametrize("passes", range(1, 4))  # those of one pass are one to anyio before 4.16
@pytest.mark.parametrize("first", ["scope", "native"])
async def test_a_native_cancellation_beside_a_scopes_ends_the_task(
    io: AsyncIoManager, pipe: tuple[int, int], first: str, passes: int
) -> None:
    """Once: what it does to clean up behind a shield is not struck again."""

    async def work() -> None:
        try:
            with scope:
                await io.read(pipe[0], 1, -1)
            await asyncio.sleep(3600)
        finally:
            with anyio.CancelScope(shield=True):
                for _ in range(5):
                    await asyncio.sleep(0)
            ends.append("cleaned up")

    ends: list[str] = []
    scope = anyio.CancelScope()
    task = asyncio.create_task(work())
    await in_flight(io, 1)
    requests = (scope.cancel, task.cancel) if first == "scope" else (task.cancel, scope.cancel)
    requests[0]()
    for _ in range(passes):
        await asyncio.sleep(0)
    requests[1]()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ends == ["cleaned up"]


@asyncio_only
@pytest.mark.skipif(sys.version_info < (3, 11), reason="before it nobody counts cancellations")
@pytest.mark.parametrize("between", [0, 2])  # scopes that nobody has cancelled, between that one and the wait
async def test_a_native_cancellation_behind_a_scope_that_was_left(
    io: AsyncIoManager, pipe: tuple[int, int], between: int
) -> None:
    """It comes once more, and not as the scope's: the next task group would take it for its own."""

    async def work() -> None:
        with scope, ExitStack() as inner:
            for _ in range(between):
                inner.enter_context(anyio.CancelScope())
            await _certain_read(io, pipe[0])
        async with anyio.create_task_group():
            await asyncio.sleep(3600)

    scope = anyio.CancelScope()
    task = asyncio.create_task(work())
    await in_flight(io, 1)
    await _strike(pipe[1], scope.cancel, task.cancel)
    with pytest.raises(asyncio.CancelledError):
        await task


@asyncio_only
@pytest.mark.parametrize("how", ["timeout", "scope"])
async def test_a_cancellation_that_was_withdrawn_does_not_strike_again(
    io: AsyncIoManager, pipe: tuple[int, int], how: str
) -> None:
    if how == "timeout" and sys.version_info < (3, 11):
        pytest.skip("asyncio.timeout() is of 3.11")

    async def work() -> str:
        async with _expiring(how, expire):
            await _certain_read(io, pipe[0])
        for _ in range(10):
            await asyncio.sleep(0)
        return "went on"

    expire: list[Callable[[], Any]] = []
    task = asyncio.create_task(work())
    await in_flight(io, 1)
    await _strike(pipe[1], expire[0])
    assert await task == "went on"


# --- what shares a request's memory: C2, C11 ---------------------------------------------------------


@pytest.mark.parametrize("what", ["many buffers", "asked again"])
async def test_a_crash_keeps_the_memory_of_parts_and_repeats(what: str) -> None:
    """A part of a request, or one that asks it again, is another object with the same memory."""
    buffer = bytearray(16)
    async with scripted(depth=4) as (driver, task), anyio.create_task_group() as tasks:
        request = Request(Opcode.READ, 0, memoryview(buffer), 4096)

        async def perform() -> None:
            try:
                if what == "asked again":
                    await task.perform([request])
                else:
                    whole = attrs.evolve(request, memory=[request.memory], origin=request)
                    (part,) = whole.parts()
                    try:
                        await task.perform([part])
                    finally:
                        whole.release()
            except anyio.BrokenResourceError:
                broken.append(True)
            finally:
                request.release()

        broken: list[bool] = []
        tasks.start_soon(perform)
        await until(lambda: len(driver.pending) == 1)
        if what == "asked again":
            driver.complete(-errno.EINTR)
            await until(lambda: len(driver.pending) == 1 and task.statistics().resubmissions == 1)
        driver.crash = RuntimeError("the driver is on fire")
        driver.complete(1)
        await until(lambda: bool(broken))
        with pytest.raises(BufferError):
            buffer.append(1)
    forgive(task, driver)


async def test_a_failure_to_prepare_while_the_block_ends(
    driver: Any, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waited for room and could not be prepared has its error, and is not woken a second time."""
    failures: list[BaseException] = []

    async def read(io: AsyncIoManager, count: int) -> None:
        try:
            await io.read_batch([(pipe[0], 1, -1)] * count)
        except (anyio.ClosedResourceError, MemoryError) as exc:
            failures.append(exc)

    def fails(*_: object) -> Any:
        raise MemoryError

    async with anyio.create_task_group() as tasks:  # noqa: SIM117 - it outlives the manager
        async with open_uring(driver=driver, depth=2) as io:
            tasks.start_soon(read, io, 3)
            await until(lambda: len(io._task._queue) == 1)  # type: ignore[attr-defined]
            tasks.start_soon(read, io, 1)
            await until(lambda: len(io._task._queue) == 2)  # type: ignore[attr-defined]
            monkeypatch.setattr(type(io._driver), "prepare", fails)
    assert sorted(type(exc).__name__ for exc in failures) in (
        ["ClosedResourceError", "MemoryError"],
        ["ClosedResourceError"] * 2,
    )

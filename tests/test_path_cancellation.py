"""Path operations that are cancelled: what they opened is returned or closed (C9), and a close always closes."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

from anyio_uring import AsyncIoManager, open_uring
from anyio_uring._completion_task import CompletionTask
from anyio_uring._path_calls import close, open_file
from anyio_uring._requests import Call, Opcode, Request
from anyio_uring._ring import UringDriver

from .helpers import ScriptedDriver, asyncio_only, in_flight, scripted, until

ECANCELED = -errno.ECANCELED


@pytest.fixture
def fifo(tmp_path: Path) -> str:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return str(path)


def _is_open(fd: int) -> bool:
    return fd in _descriptors()


def _targets() -> list[str]:
    """What this process's descriptors refer to."""
    return [*_descriptors().values()]


def _descriptors() -> dict[int, str]:
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[int(fd)] = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:  # the one that lists them
            continue
    return found


async def _within(scope: anyio.CancelScope, function: Any, *arguments: Any) -> None:
    with scope:
        await function(*arguments)


async def _writer_of(fifo: str) -> int:
    """Wait until somebody waits in an open for reading; be the one who is waited for."""
    found: list[int] = []

    def has_reader() -> bool:
        try:
            found.append(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        except OSError as exc:
            if exc.errno != errno.ENXIO:  # nobody yet
                raise
            return False
        return True

    await until(has_reader)
    return found[0]


# --- an open that waits: of a FIFO, for its other end ---------------------------------------------


@pytest.mark.anyio
async def test_an_open_that_waits_lets_others_run(io: AsyncIoManager, fifo: str, tmp_path: Path) -> None:
    opened: list[int] = []

    async def open_it() -> None:
        opened.append(await io.open(fifo))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(open_it)
        await in_flight(io, 1)
        assert (await io.stat(tmp_path)).st_nlink == 2
        assert not opened  # as os.open(), which waits
        writer = await _writer_of(fifo)
    os.write(writer, b"x")
    assert await io.read(opened[0], 10, -1) == b"x"
    await io.close(opened[0])
    os.close(writer)


@pytest.mark.ring
@pytest.mark.anyio
@pytest.mark.parametrize("count", [1, 20])  # 20: more than io-wq has workers, so some have not begun
async def test_on_the_ring_it_can_be_cancelled(fifo: str, count: int) -> None:
    async with open_uring(driver="uring") as io:
        async with anyio.create_task_group() as tasks:
            for _ in range(count):
                tasks.start_soon(io.open, fifo)
            await in_flight(io, count)
            tasks.cancel_scope.cancel()
        assert tasks.cancel_scope.cancelled_caught
        assert io.statistics().cancellations >= count
    assert fifo not in _targets()


@pytest.mark.anyio
async def test_on_threads_it_is_waited_for_and_its_descriptor_is_returned(fifo: str) -> None:
    opened: list[int] = []
    async with open_uring(driver="threads") as io:

        async def open_it() -> None:
            with anyio.CancelScope() as scope:
                scopes.append(scope)
                opened.append(await io.open(fifo))
                await anyio.lowlevel.checkpoint()
                pytest.fail("the cancellation did not strike")
            assert scope.cancelled_caught

        scopes: list[anyio.CancelScope] = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(open_it)
            await in_flight(io, 1)
            descriptors = len(_targets())
            writer = await _writer_of(fifo)  # a thread waits in it, so it cannot be undone
            os.close(writer)
            scopes[0].cancel()
        assert len(_targets()) == descriptors + 1
        assert _is_open(opened[0])
        await io.close(opened[0])


@pytest.mark.anyio
async def test_on_threads_one_that_waits_for_a_worker_can_be_cancelled(fifo: str) -> None:
    async with open_uring(depth=2, driver="threads") as io, anyio.create_task_group() as others:
        for _ in range(2):  # as many as it has workers
            others.start_soon(io.open, fifo)
        await in_flight(io, 2)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(io.open, fifo)
            await until(lambda: io.statistics().waiting == 1)
            tasks.cancel_scope.cancel()
        writer = await _writer_of(fifo)
    os.close(writer)
    assert _targets().count(fifo) == 2
    for fd, target in _descriptors().items():
        if target == fifo:
            os.close(fd)


# --- C9, with completions in the order that hurts ---------------------------------------------------


def _opens(count: int) -> list[Call]:
    return [open_file("/dev/null", os.O_RDONLY, 0, None, direct=False) for _ in range(count)]


@pytest.mark.anyio
async def test_a_cancelled_open_that_succeeded_is_returned() -> None:
    got: list[int] = []
    async with scripted() as (driver, task):
        async with anyio.create_task_group() as tasks:

            async def open_it() -> None:
                got.extend(await task.perform(_opens(1)))
                await anyio.lowlevel.checkpoint()
                pytest.fail("the cancellation did not strike")

            scope = anyio.CancelScope()
            tasks.start_soon(_within, scope, open_it)
            await until(lambda: len(driver.pending) == 1)
            scope.cancel()
            await until(lambda: len(driver.cancels) == 1)
            fd = os.open("/dev/null", os.O_RDONLY)
            driver.complete(fd)
        assert got == [fd]
        assert scope.cancelled_caught
        os.fstat(fd)
        os.close(fd)


@pytest.mark.anyio
async def test_what_a_cancelled_batch_opened_is_closed() -> None:
    async with scripted() as (driver, task):
        async with anyio.create_task_group() as tasks:
            scope = anyio.CancelScope()
            tasks.start_soon(_within, scope, task.perform, _opens(3))
            await until(lambda: len(driver.pending) == 3)
            fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(2)]
            driver.complete(fds[0])
            await until(lambda: len(driver.pending) == 2)
            scope.cancel()
            await until(lambda: len(driver.cancels) == 2)
            driver.complete(fds[1])
            driver.complete(ECANCELED)
        assert scope.cancelled_caught
        assert not any(map(_is_open, fds))


@pytest.mark.anyio
async def test_what_was_opened_before_another_one_was_asked_again_is_closed() -> None:
    async with scripted() as (driver, task):
        async with anyio.create_task_group() as tasks:
            scope = anyio.CancelScope()
            tasks.start_soon(_within, scope, task.perform, _opens(2))
            await until(lambda: len(driver.pending) == 2)
            fd = os.open("/dev/null", os.O_RDONLY)
            driver.complete(fd)
            driver.complete(-512)  # ERESTARTSYS
            await until(lambda: len(driver.taken) == 3)
            assert _is_open(fd)
            scope.cancel()
            await until(lambda: len(driver.cancels) == 1)
            driver.complete(ECANCELED)
        assert scope.cancelled_caught
        assert not _is_open(fd)


@pytest.mark.anyio
async def test_the_end_of_the_block_closes_what_nobody_gets() -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    async with anyio.create_task_group() as tasks, scripted() as (driver, task):

        async def open_them() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await task.perform(_opens(2))

        tasks.start_soon(open_them)
        await until(lambda: len(driver.pending) == 2)
        driver.complete(fd)
    assert not _is_open(fd)


@asyncio_only
@pytest.mark.anyio
@pytest.mark.parametrize("is_settled", [True, False])
async def test_an_abandoned_coroutine_leaks_no_descriptor(is_settled: bool) -> None:
    async with scripted() as (driver, task):
        coroutine = task.perform(_opens(1))
        coroutine.send(None)
        await until(lambda: len(driver.pending) == 1)
        fd = os.open("/dev/null", os.O_RDONLY)
        if is_settled:
            driver.complete(fd)
            await until(lambda: task.statistics().completions == 1)
        coroutine.close()
        if not is_settled:
            await until(lambda: len(driver.cancels) == 1)
            assert _is_open(fd)
            driver.complete(fd)
            await until(lambda: task.statistics().completions == 1)
        assert not _is_open(fd)


# --- close() --------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_close_closes_also_when_it_is_cancelled(io: AsyncIoManager) -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await io.close(fd)
        assert not _is_open(fd)
        await anyio.lowlevel.checkpoint()
        pytest.fail("the cancellation did not strike")
    assert scope.cancelled_caught


async def _close(task: CompletionTask, results: list[int]) -> None:
    results.extend(await task.perform((close(7),), is_certain=True))


def _opcodes(driver: ScriptedDriver) -> list[Opcode]:
    return [request.opcode for request in driver.taken]


@pytest.mark.anyio
async def test_a_close_that_waits_for_room_is_not_cancelled() -> None:
    results: list[int] = []
    async with scripted(depth=1) as (driver, task), anyio.create_task_group() as reading:
        reading.start_soon(task.perform, [Request(Opcode.READ, 0, bytearray(1), 0)])
        await until(lambda: len(driver.pending) == 1)
        async with anyio.create_task_group() as closing:
            scope = anyio.CancelScope()
            closing.start_soon(_within, scope, _close, task, results)
            await until(lambda: task.statistics().waiting == 1)
            scope.cancel()
            await anyio.wait_all_tasks_blocked()
            assert task.statistics().waiting == 1
            driver.complete(1)
            await until(lambda: _opcodes(driver)[-1] is Opcode.CLOSE)
            assert not driver.cancels
            driver.complete(0)
        assert results == [0]


@pytest.mark.anyio
async def test_the_end_of_the_block_lets_a_close_happen() -> None:
    results: list[int] = []
    async with anyio.create_task_group() as tasks, scripted(depth=1) as (driver, task):

        async def read() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await task.perform([Request(Opcode.READ, 0, bytearray(1), 0)])

        tasks.start_soon(read)
        await until(lambda: len(driver.pending) == 1)
        tasks.start_soon(_close, task, results)
        await until(lambda: task.statistics().waiting == 1)

        async def answer() -> None:
            await until(lambda: Opcode.CLOSE in _opcodes(driver))
            driver.complete(0)

        tasks.start_soon(answer)
    assert results == [0]


@asyncio_only
@pytest.mark.anyio
@pytest.mark.parametrize("when", ["staged", "in flight"])
async def test_a_native_cancellation_does_not_stop_a_close(when: str) -> None:
    async with scripted() as (driver, task):
        results: list[int] = []
        closing = asyncio.ensure_future(_close(task, results))
        if when == "in flight":
            await until(lambda: len(driver.pending) == 1)
        else:
            await asyncio.sleep(0)
        closing.cancel()
        await until(lambda: len(driver.pending) == 1)
        await anyio.wait_all_tasks_blocked()
        driver.complete(0)
        await asyncio.wait([closing])
        assert results == [0]
        assert not driver.cancels


# --- what the ring cannot carry out ---------------------------------------------------------------


@asyncio_only
@pytest.mark.ring
@pytest.mark.anyio
async def test_a_native_cancellation_loses_no_descriptor_of_a_thread(
    fifo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class _Old(UringDriver):
        __slots__ = ()

        @property
        def features(self) -> Any:
            return attrs.evolve(super().features, opcodes=super().features.opcodes - {Opcode.OPENAT, Opcode.CLOSE})

    monkeypatch.setattr("anyio_uring._ring.UringDriver", _Old)
    async with open_uring(driver="uring") as io:
        opening = asyncio.ensure_future(io.open(fifo))
        writer = await _writer_of(fifo)
        os.close(writer)
        opening.cancel()
        await asyncio.wait([opening])
        assert io.statistics().submissions == 0
        assert io.statistics().fallback_operations == 1
        assert _targets().count(fifo) == 1
        await io.close(opening.result())

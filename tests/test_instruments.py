"""Instruments: what they are told, in which order, and that one that fails harms nobody."""

from __future__ import annotations

import errno
import logging
import os
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

from anyio_uring import Instrument, ManagerView, OperationTrace, open_uring
from anyio_uring._completion_task import CompletionTask
from anyio_uring._instruments import Instruments
from anyio_uring._path_calls import AT_FDCWD
from anyio_uring._requests import Opcode, Request
from anyio_uring._traced_driver import TracedDriver
from anyio_uring._waiters import current_loop

from .helpers import ScriptedDriver, asyncio_only, in_flight, until

pytestmark = pytest.mark.anyio


class Recorder(Instrument):
    """Writes down all it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.durations_ns: list[int] = []

    def manager_opened(self, manager: ManagerView) -> None:
        self.events.append(("opened", manager.driver, manager.statistics().submissions))

    def manager_closed(self, manager: ManagerView) -> None:
        self.events.append(("closed", manager.driver, manager.statistics().completions))

    def batch_submitted(self, count: int) -> None:
        self.events.append(("batch", count))

    def operation_submitted(self, operation: OperationTrace) -> None:
        assert 0 < operation.submitted_ns <= time.perf_counter_ns()
        self.events.append(("submitted", operation))

    def operation_completed(self, operation: OperationTrace, result: int, completed_ns: int) -> None:
        self.durations_ns.append(completed_ns - operation.submitted_ns)
        self.events.append(("completed", operation, result))

    def cancellation_submitted(self, operation: OperationTrace) -> None:
        self.events.append(("cancel", operation))

    def inline_read(self, fd: int, offset: int, length: int, result: int) -> None:
        self.events.append(("inline", fd, offset, length, result))

    def of(self, kind: str) -> list[Any]:
        return [event[1] for event in self.events if event[0] == kind]

    def results(self) -> dict[int, int]:
        return {operation.user_data: result for _, operation, result in self._completed()}

    def _completed(self) -> list[Any]:
        return [event for event in self.events if event[0] == "completed"]


async def test_a_single_operation(driver: Any, path: Path) -> None:
    recorder = Recorder()
    with path.open("r+b") as file:
        fd = file.fileno()
        async with open_uring(driver=driver, nowait=False, instruments=[recorder]) as io:
            assert recorder.events == [("opened", driver, 0)]
            await io.read(fd, 4096, 8192)
            await io.write(file, b"12345", 100)
            await io.readv(fd, [bytearray(10), bytearray(20)], 7)
            await io.writev(fd, [b"1", b"23"], 9)
            await io.fdatasync(fd)
    operations = recorder.of("submitted")
    assert [(each.opcode, each.fd, each.offset, each.length) for each in operations] == [
        ("read", fd, 8192, 4096),
        ("write", fd, 100, 5),
        ("readv", fd, 7, 30),
        ("writev", fd, 9, 3),
        ("fsync", fd, 0, 0),
    ]
    assert recorder.of("completed") == operations
    assert [*recorder.results().values()] == [4096, 5, 30, 3, 0]
    assert recorder.of("batch") == [1] * 5
    assert [event[0] for event in recorder.events[1:4]] == ["submitted", "batch", "completed"]
    assert recorder.events[-1] == ("closed", driver, 5)
    assert min(recorder.durations_ns) > 0


async def test_operations_on_paths(driver: Any, path: Path) -> None:
    recorder = Recorder()
    async with open_uring(driver=driver, instruments=[recorder]) as io:
        await io.stat(path)
        fd = await io.open(path, os.O_RDWR)
        await io.fallocate(fd, 0, 5, 100)
        await io.close(fd)
        await io.unlink(path)
    assert [(each.opcode, each.fd, each.offset, each.length) for each in recorder.of("submitted")] == [
        ("statx", AT_FDCWD, 0, 0),
        ("openat", AT_FDCWD, 0, 0),
        ("fallocate", fd, 5, 0),
        ("close", fd, 0, 0),
        ("unlinkat", AT_FDCWD, 0, 0),
    ]
    assert list(recorder.results().values()) == [0, fd, 0, 0, 0]


@pytest.mark.parametrize("depth", [4, 256])
async def test_batches(driver: Any, path: Path, depth: int) -> None:
    """Also where not all of it has room at once, with members that fail, and with buffers of callers."""
    recorder = Recorder()
    with path.open("r+b") as file:
        fd = file.fileno()
        async with open_uring(driver=driver, depth=depth, instruments=[recorder]) as io:
            await io.read_batch([(fd, 100 + i, 1000 * i) for i in range(32)])
            assert [each.offset for each in recorder.of("submitted")] == [1000 * i for i in range(32)]
            assert sorted(recorder.results().values()) == [100 + i for i in range(32)]
            await io.readinto_batch([(fd, bytearray(8), i) for i in range(32)])
            counts = await io.write_batch(
                [(file if i % 2 else -1, b"abc", i) for i in range(9)], return_exceptions=True
            )
            assert counts[1::2] == [3] * 4
            await io.fsync_batch([fd] * 5)
            statistics = io.statistics()
    operations = recorder.of("submitted")
    assert len({each.user_data for each in operations}) == len(operations) == statistics.submissions == 32 + 32 + 9 + 5
    assert {each.user_data for each in recorder.of("completed")} == {each.user_data for each in operations}
    assert len(recorder.of("completed")) == len(operations)
    assert [*recorder.results().values()].count(-errno.EBADF) == 5
    assert sum(recorder.of("batch")) == len(operations)
    assert max(recorder.of("batch")) == min(depth, 32)


async def test_buffers_are_registered_as_without_one(driver: Any, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And their entry is given up: the second pool finds it."""
    monkeypatch.setattr("anyio_uring._ring.POOLS_MAX", 1)
    recorder = Recorder()
    with path.open("r+b") as file:
        fd = file.fileno()
        async with open_uring(driver=driver, nowait=False, instruments=[recorder]) as io:
            for start in (0, 8192):
                async with io.buffer_pool(1, 4096) as pool:
                    assert pool.is_registered is (driver == "uring")
                    with await pool.acquire() as buffer:
                        assert await io.readinto(fd, buffer, start) == 4096
                        assert bytes(buffer.view) == os.pread(fd, 4096, start)
                        assert await io.write(fd, buffer, start + 4096) == 4096
                        assert os.pread(fd, 4096, start + 4096) == bytes(buffer.view)
    told = [(each.opcode, each.offset, each.length) for each in recorder.of("completed")]
    assert told == [("read", 0, 4096), ("write", 4096, 4096), ("read", 8192, 4096), ("write", 12288, 4096)]


async def test_what_the_page_cache_answers(driver: Any, path: Path) -> None:
    recorder = Recorder()
    with path.open("rb") as file:
        fd = file.fileno()
        async with open_uring(driver=driver, nowait=True, instruments=[recorder]) as io:
            assert len(await io.read(fd, 4096, 4096)) == 4096
            assert await io.readinto(fd, bytearray(100), 65530) == 6
            assert await io.read(fd, 10, 70000) == b""
    assert [event for event in recorder.events if event[0] == "inline"] == [
        ("inline", fd, 4096, 4096, 4096),
        ("inline", fd, 65530, 100, 6),
        ("inline", fd, 70000, 10, 0),
    ]
    assert not recorder.of("submitted")


async def test_cancellations(driver: Any, pipe: tuple[int, int]) -> None:
    recorder = Recorder()
    async with open_uring(driver=driver, instruments=[recorder]) as io, anyio.create_task_group() as tasks:
        tasks.start_soon(io.read_batch, [(pipe[0], 1, -1)] * 3)
        tasks.start_soon(io.read, pipe[0], 1, -1)
        await in_flight(io, 4)
        tasks.cancel_scope.cancel()
    blocked = {each.user_data for each in recorder.of("submitted")}
    assert {each.user_data for each in recorder.of("cancel")} == blocked
    assert recorder.results() == dict.fromkeys(blocked, -errno.ECANCELED)


async def test_what_the_driver_did_not_take_is_told_when_it_does() -> None:
    """Members come in three turns, their completions in the wrong order, and the cancel request last."""
    recorder, driver = Recorder(), ScriptedDriver()
    driver.rows_left = 1
    task = CompletionTask(TracedDriver(driver, Instruments([recorder])), current_loop())
    asked = [Request(Opcode.READ, 3, bytearray(10 + i), i) for i in range(3)]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(task.run)
        tasks.start_soon(task.perform, asked)
        await until(lambda: len(driver.pending) == 1)
        assert [each.length for each in recorder.of("submitted")] == [10]
        driver.rows_left = 1000
        await until(lambda: len(driver.pending) == 3)
        assert [each.length for each in recorder.of("submitted")] == [10, 11, 12]
        assert recorder.of("batch") == [1, 2]
        driver.complete(5, 2)
        await until(lambda: bool(recorder.of("completed")))
        assert [each.length for each in recorder.of("completed")] == [12]
        driver.complete(6, 0)
        driver.complete(7, 0)
        await until(lambda: len(recorder.of("completed")) == 3)
        await task.aclose()
    assert [*recorder.results().values()] == [5, 6, 7]
    assert driver.is_closed


@asyncio_only
async def test_of_what_the_driver_has_not_taken_no_cancellation_is_told() -> None:
    """The collector may close a coroutine while a turn goes on, in which the driver does not take all members."""

    class Closing(Recorder):
        def operation_submitted(self, operation: OperationTrace) -> None:
            super().operation_submitted(operation)
            coroutine.close()

    def cancel_one() -> bool:
        if driver.cancels:
            target = driver.complete_cancel(0)
            if target in driver.pending:
                driver.complete(-errno.ECANCELED, [*driver.pending].index(target))
        return len(recorder.results()) == 3

    recorder, driver = Closing(), ScriptedDriver()
    driver.rows_max = 1
    task = CompletionTask(TracedDriver(driver, Instruments([recorder])), current_loop())
    coroutine = task.perform([Request(Opcode.READ, 3, bytearray(10), i) for i in range(3)])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(task.run)
        coroutine.send(None)
        await until(cancel_one)
        await task.aclose()
    operations = recorder.of("submitted")
    assert [each.offset for each in operations] == [0, 1, 2]
    assert [each for each in recorder.events if each[0] == "cancel"] == [("cancel", each) for each in operations]
    assert recorder.results() == {each.user_data: -errno.ECANCELED for each in operations}
    assert driver.is_closed


class Failing(Recorder):
    def operation_submitted(self, operation: OperationTrace) -> None:
        super().operation_submitted(operation)
        raise ZeroDivisionError("of the instrument")

    def __repr__(self) -> str:
        return "<Failing>"


async def test_an_instrument_that_fails_is_logged_and_removed(
    driver: Any, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    failing, recorder = Failing(), Recorder()
    with path.open("rb") as file:
        async with open_uring(driver=driver, nowait=False, instruments=[failing, recorder]) as io:
            for i in range(3):
                assert await io.read(file, 4, 4 * i) == i.to_bytes(4, "big")
    assert [event[0] for event in failing.events] == ["opened", "submitted"]
    assert len(recorder.of("completed")) == 3
    (record,) = [record for record in caplog.records if record.name.startswith("anyio_uring")]
    assert record.name == "anyio_uring.instruments"
    assert record.levelno == logging.ERROR
    assert record.getMessage() == "an instrument failed and is not called again: <Failing>"
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


async def test_any_object_with_the_methods_will_do(driver: Any, path: Path) -> None:
    lacking: Any = object()
    with pytest.raises(TypeError, match=r"<object .*> has no method manager_opened\(\): derive it from"):
        open_uring(driver=driver, instruments=[lacking])

    class Proxy:
        """Has every method and derives from nothing."""

        def __init__(self) -> None:
            self.asked: list[str] = []

        def __getattr__(self, name: str) -> Any:
            return lambda *_: self.asked.append(name)

    proxy: Any = Proxy()
    with path.open("rb") as file:
        async with open_uring(driver=driver, nowait=False, instruments=[proxy]) as io:
            await io.read(file, 4, 0)
    submitted = ["operation_submitted", "batch_submitted", "operation_completed"]
    assert proxy.asked == ["manager_opened", *submitted, "manager_closed"]


async def test_without_an_instrument_of_operations_the_driver_is_the_bare_one(driver: Any) -> None:
    class OfManagers(Instrument):
        def manager_opened(self, manager: ManagerView) -> None:
            names.append(manager.driver)

    names: list[str] = []
    async with open_uring(driver=driver, instruments=[OfManagers()]) as io:
        assert not isinstance(io._driver, TracedDriver)
        assert names == [driver]
    async with open_uring(driver=driver, instruments=[Recorder()]) as io:
        assert isinstance(io._driver, TracedDriver)
    async with open_uring(driver=driver, latency=True) as io:
        # Nobody listens to inline reads: they pay nothing.
        assert getattr(io._read_now, "__self__", None) is not io._driver


async def test_one_instrument_may_serve_many_managers(driver: Any, path: Path) -> None:
    recorder = Recorder()
    with path.open("rb") as file:
        async with (
            open_uring(driver=driver, nowait=False, instruments=[recorder]) as first,
            open_uring(driver="threads", nowait=False, instruments=[recorder]) as second,
        ):
            await first.read(file, 1, 0)
            await second.read(file, 2, 0)
    assert [each.length for each in recorder.of("completed")] == [1, 2]
    assert recorder.of("closed") == ["threads", driver]


async def test_the_end_of_a_block_that_cancels_is_told_of(driver: Any, pipe: tuple[int, int]) -> None:
    """The manager is closed when everything has ended, whatever the body did."""
    recorder = Recorder()
    async with anyio.create_task_group() as tasks:
        with pytest.raises(KeyError):  # noqa: PT012
            async with open_uring(driver=driver, instruments=[recorder]) as io:

                async def read() -> None:
                    with pytest.raises(anyio.ClosedResourceError):
                        await io.read(pipe[0], 1, -1)

                tasks.start_soon(read)
                await in_flight(io, 1)
                raise KeyError
    assert [event[0] for event in recorder.events] == [
        "opened",
        "submitted",
        "batch",
        "cancel",
        "completed",
        "closed",
    ]
    assert recorder.events[-1] == ("closed", driver, 1)


def test_the_kernel_shows_the_same_user_data() -> None:
    """What ties a trace to the kernel's tracepoints: nothing is renumbered."""

    async def main() -> None:
        recorder = Recorder()
        read_end, write_end = os.pipe()
        async with open_uring(driver="threads", instruments=[recorder]) as io, anyio.create_task_group() as tasks:
            tasks.start_soon(io.read, read_end, 1, -1)
            await in_flight(io, 1)
            assert isinstance(io._task, CompletionTask)
            (operation,) = (each for each in io._task._slots if each is not None)
            assert [each.user_data for each in recorder.of("submitted")] == [operation.user_data]
            os.write(write_end, b"x")
        os.close(read_end)
        os.close(write_end)

    anyio.run(main)

"""open_uring(), current(), the choice of a driver, and transfers in parts."""

from __future__ import annotations

import contextvars
import errno
import os
import resource
import select
import signal
import sys
import threading
import types
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

from anyio_uring import AsyncIoManager, UringUnavailableError, current, open_uring

from .helpers import driver_or_fake, every_loop, in_flight, until

driver = driver_or_fake
anyio_backend = every_loop

pytestmark = pytest.mark.anyio


async def test_current_is_the_innermost_open_manager(driver: Any) -> None:
    with pytest.raises(LookupError, match="no manager is open"):
        current()
    async with open_uring(driver=driver) as outer:
        assert current() is outer
        async with open_uring(driver=driver) as inner:
            assert current() is inner
        assert current() is outer
        seen = []

        async def child() -> None:
            seen.append(current())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(child)
        assert seen == [outer]
    with pytest.raises(LookupError):
        current()


async def test_current_skips_managers_that_were_closed_meanwhile(driver: Any) -> None:
    seen: list[Any] = []
    closed = anyio.Event()

    async def child() -> None:
        seen.append(current())
        await closed.wait()
        seen.append(current())

    async with open_uring(driver=driver) as outer, anyio.create_task_group() as tasks:
        async with open_uring(driver=driver) as inner:
            tasks.start_soon(child)
            await anyio.wait_all_tasks_blocked()
        closed.set()
    assert seen == [inner, outer]


@types.coroutine
def _within(context: contextvars.Context, awaitable: Any) -> Any:
    """Await in another context of variables, as some frameworks enter what tests and requests are given."""
    steps, value = awaitable.__await__(), None
    while True:
        try:
            step = context.run(steps.send, value)
        except StopIteration as exc:
            return exc.value
        value = yield step


async def test_a_manager_that_was_opened_in_another_context_leaves_this_ones_alone(driver: Any) -> None:
    elsewhere = contextvars.copy_context()
    async with open_uring(driver=driver) as io:
        opening = open_uring(driver=driver)
        other = await _within(elsewhere, opening.__aenter__())
        assert current() is io
        assert elsewhere.run(current) is other
        await opening.__aexit__(None, None, None)
        assert current() is io
        with pytest.raises(LookupError):
            elsewhere.run(current)


async def test_what_opens_a_manager_is_entered_once(driver: Any) -> None:
    opening = open_uring(driver=driver)
    async with opening as io:
        with pytest.raises(RuntimeError, match="can be entered once"):
            async with opening:
                pass
        assert current() is io
    with pytest.raises(RuntimeError, match="can be entered once"):
        async with opening:
            pass


async def test_a_closed_manager_says_so(driver: Any, path: Path) -> None:
    async with open_uring(driver=driver) as io:
        pass
    with path.open("rb") as file:
        for call in (
            io.read(file, 1, 0),
            io.readinto(file, bytearray(1), 0),
            io.read_batch([]),
            io.fsync(file),
        ):
            with pytest.raises(anyio.ClosedResourceError, match="has ended"):
                await call
    assert io.statistics().in_flight == 0


async def test_another_thread_is_told_to_keep_away(io: AsyncIoManager, path: Path) -> None:
    def use() -> str:
        with path.open("rb") as file, pytest.raises(RuntimeError, match="belongs to another thread") as caught:
            anyio.run(io.read, file, 1, 0)
        return str(caught.value)

    assert "anyio.from_thread" in await anyio.to_thread.run_sync(use)
    with path.open("rb") as file:
        data = await anyio.to_thread.run_sync(lambda: anyio.from_thread.run(io.read, file, 4, 8))
    assert data == b"\0\0\0\2"


async def test_two_managers_of_one_loop_do_not_mix(driver: Any, path: Path) -> None:
    read_end, write_end = os.pipe()
    async with (
        open_uring(driver=driver, depth=1) as one,
        open_uring(driver=driver, depth=1) as other,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(one.read, read_end, 1, -1)
        await in_flight(one, 1)
        with path.open("rb") as file:
            assert await other.read(file, 4, 4) == b"\0\0\0\1"
        tasks.cancel_scope.cancel()
    os.close(read_end)
    os.close(write_end)


def test_a_manager_in_each_of_several_threads(path: Path, driver: Any) -> None:
    results: dict[int, bytes] = {}

    async def read(i: int) -> None:
        async with open_uring(driver=driver) as io:
            with path.open("rb") as file:
                for j in range(100):
                    assert await io.read(file, 4, 4 * j) == j.to_bytes(4, "big")
                results[i] = await io.read(file, 4, 4 * i)

    backends = ["asyncio", "trio"]
    threads = [
        threading.Thread(target=anyio.run, args=(read, i), kwargs={"backend": backends[i % 2]}) for i in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {i: i.to_bytes(4, "big") for i in range(6)}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"depth": 0}, ValueError, "depth must be between 1 and 32768, not 0"),
        ({"depth": 32769}, ValueError, "depth must be between"),
        ({"depth": "8"}, TypeError, "depth must be an int"),
        ({"depth": True}, TypeError, "depth must be an int"),
        ({"driver": "epoll"}, ValueError, 'driver must be "auto", "uring" or "threads"'),
    ],
)
async def test_a_bad_option_is_named(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        async with open_uring(**options):
            pass


@pytest.mark.parametrize("depth", [1, 2, 7, 100, 4096])
async def test_any_depth(driver: Any, depth: int, path: Path) -> None:
    async with open_uring(driver=driver, depth=depth) as io:
        assert io.features.depth == depth
        with path.open("rb") as file:
            assert await io.read_batch([(file, 4, 4)] * 20) == [b"\0\0\0\1"] * 20


@pytest.mark.ring
async def test_the_environment_overrides_auto_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYIO_URING_DRIVER", "threads")
    async with open_uring() as io:
        assert io.driver == "threads"
        assert io.fallback_reason is None
    async with open_uring(driver="uring") as io:
        assert io.driver == "uring"
    monkeypatch.setenv("ANYIO_URING_DRIVER", "uring")
    async with open_uring() as io:
        assert io.driver == "uring"
    async with open_uring(driver="threads") as io:
        assert io.driver == "threads"
    monkeypatch.setenv("ANYIO_URING_DRIVER", "epoll")
    with pytest.raises(ValueError, match="ANYIO_URING_DRIVER must be"):
        async with open_uring():
            pass
    monkeypatch.setenv("ANYIO_URING_DRIVER", "")
    async with open_uring() as io:
        assert io.driver == "uring"


async def test_a_missing_extension_means_threads_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anyio_uring._native._lib", None)
    async with open_uring() as io:
        assert io.driver == "threads"
        assert "liburing-dev" in str(io.fallback_reason)
    with pytest.raises(UringUnavailableError, match="liburing-dev"):
        async with open_uring(driver="uring"):
            pass


async def test_another_platform_means_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anyio_uring._ring.sys.platform", "darwin")
    async with open_uring() as io:
        assert io.driver == "threads"
        assert io.fallback_reason == "io_uring exists on Linux alone, and this system is darwin"


async def test_a_batch_beyond_what_user_data_can_number(io: AsyncIoManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anyio_uring._completion_task.MEMBERS_MAX", 10)
    with pytest.raises(ValueError, match="at most 10 requests, not 11: split it"):
        await io.read_batch([(0, 0, 0)] * 11)
    assert io.statistics().submissions == 0


@pytest.fixture
def short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anyio_uring._requests.TRANSFER_MAX", 1000)
    monkeypatch.setattr("anyio_uring._manager.TRANSFER_MAX", 1000)
    monkeypatch.setattr("anyio_uring._performer.TRANSFER_MAX", 1000)
    monkeypatch.setattr("anyio_uring._requests.VECTOR_MAX", 3)


@pytest.mark.usefixtures("short_parts")
async def test_long_transfers_go_in_parts(io: AsyncIoManager, path: Path) -> None:
    with path.open("r+b") as file:
        fd = file.fileno()
        assert await io.read(fd, 4321, 7) == os.pread(fd, 4321, 7)
        assert await io.read(fd, 70000, 60000) == os.pread(fd, 70000, 60000)
        assert await io.read_exactly(fd, 5000, 1) == os.pread(fd, 5000, 1)
        buffer = bytearray(3000)
        assert await io.readinto(fd, buffer, 65536 - 2500) == 2500
        assert buffer[:2500] == os.pread(fd, 2500, 65536 - 2500)
        buffer.append(1)
        requests = [(fd, 2500, 100), (fd, 10, 5), (fd, 3000, 65000), (fd, 2000, 65536 - 1000)]
        assert await io.read_batch(requests) == [os.pread(*request) for request in requests]
        vector = [bytearray(n) for n in (1, 0, 2500, 3, 4, 5, 999, 1)]
        assert await io.readv(fd, vector, 11) == sum(map(len, vector))
        assert b"".join(vector) == os.pread(fd, 3513, 11)
        data = os.urandom(4500)
        assert await io.write(fd, data, 3) == 4500
        assert os.pread(fd, 4500, 3) == data
        os.lseek(fd, 50, os.SEEK_SET)
        assert await io.write(fd, data, -1) == 4500
        assert os.pread(fd, 4500, 50) == data
        assert await io.writev(fd, [data[:1500], b"", data[1500:]], 9) == 4500
        assert os.pread(fd, 4500, 9) == data
        assert await io.write_batch([(fd, data, 2000), (fd, b"z", 0)]) == [4500, 1]
        assert os.pread(fd, 4500, 2000) == data


@pytest.mark.usefixtures("short_parts")
async def test_an_error_behind_the_first_part_waits_for_the_next_call(io: AsyncIoManager) -> None:
    """As read(2) and write(2): what was transferred is returned, the next call meets the error."""
    with Path("/proc/self/mem").open("rb", buffering=0) as memory:
        target = bytearray(8192)
        import ctypes

        address = ctypes.addressof(ctypes.c_char.from_buffer(target))
        assert await io.read(memory, 2000, address) == bytes(2000)
        with pytest.raises(OSError):
            await io.read(memory, 2000, 0)


@pytest.mark.usefixtures("short_parts")
@pytest.mark.parametrize("offset", [0, -1])
async def test_so_does_that_of_a_write(io: AsyncIoManager, path: Path, offset: int) -> None:
    """RLIMIT_FSIZE, where one part ends and the next would begin."""
    data = os.urandom(4500)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with path.open("wb", buffering=0) as file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        try:
            assert await io.write(file, data, offset) == 2000
            assert file.tell() == (0 if offset == 0 else 2000)
            with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
                await io.write(file, data[2000:], 2000 if offset == 0 else -1)
            assert await io.write_batch([(file, data[1000:], 1000), (file, b"z", 0)]) == [1000, 1]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"z" + data[1:2000]


async def test_a_cancellation_between_parts_is_raised(io: AsyncIoManager) -> None:
    """C8: a prefix may be written; write_all goes no further."""
    read_end, write_end = os.pipe()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(io.write_all, write_end, bytes(1 << 20), -1)
        await until(lambda: bool(select.select([read_end], [], [], 0)[0]))
        await in_flight(io, 1)
        tasks.cancel_scope.cancel()
    assert 0 < len(os.read(read_end, 1 << 20)) <= 65536
    os.close(read_end)
    os.close(write_end)

"""Thousands of small files in one call: all of them whole, in order, with an error for each that has one."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import attrs
import pytest

from anyio_uring import AsyncIoManager, BatchError, Instrument, OperationTrace, _path_calls, open_uring
from anyio_uring._requests import Call, Opcode
from anyio_uring._ring import UringDriver
from anyio_uring._small_files import _FILES_OF_A_CALL

from .helpers import WITHOUT_DEBUG, until

# As it is before conftest.py looks for calls that block: a signal's handler runs within the library's frames.
unlink = os.unlink
COUNT = 10_000
# Longer than a chunk's first read, and than one read at all.
LARGE = 3_000_001


def _plain(path: Path | str) -> Any:
    """What a plain loop gives; an error of a read, which names no file there, does so here."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as exc:
        exc.filename = str(path)
        return _described(exc)


def _status(path: Path) -> Any:
    try:
        return tuple(os.stat(path))[:7]
    except OSError as exc:
        return _described(exc)


def _described(result: Any) -> Any:
    if isinstance(result, OSError):
        return type(result), result.errno, result.strerror, result.filename
    return result


def _targets() -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:  # the one that lists them
            continue
    return found


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """10,000 paths: files of 0 to 8 KiB, large ones, and some that cannot be read."""
    place = tmp_path_factory.mktemp("many")
    paths = [place / str(i) for i in range(COUNT)]
    for i, path in enumerate(paths):
        if i % 1000 == 7:
            path.mkdir()
        elif i % 1000 == 8:
            path.symlink_to(path)
        elif i % 1000 == 9:
            path.write_bytes(i.to_bytes(4, "big") * (LARGE // 4))
        elif i % 100 != 3:  # those are missing
            path.write_bytes(i.to_bytes(4, "big") * (i % 2048))
    return paths


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", WITHOUT_DEBUG)
async def test_ten_thousand_files(driver: Any, many: list[Path]) -> None:
    expected = [_plain(path) for path in many]
    async with open_uring(driver=driver) as io:
        results = await io.read_files(many, return_exceptions=True)
        syscalls = io.statistics().syscalls
    assert list(map(_described, results)) == list(map(_described, expected))
    assert sum(isinstance(result, OSError) for result in results) == 120
    if driver == "uring":
        assert syscalls < COUNT / 4


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", WITHOUT_DEBUG)
async def test_the_status_of_ten_thousand_files(driver: Any, many: list[Path]) -> None:
    async with open_uring(driver=driver) as io:
        results = await io.stat_batch(many, return_exceptions=True)
    for path, result in zip(many, results, strict=True):
        # Without times: another test may have read it.
        assert _described(result if isinstance(result, OSError) else tuple(result)[:7]) == _status(path)


@pytest.mark.anyio
async def test_a_failure_carries_every_result(io: AsyncIoManager, tmp_path: Path) -> None:
    names = [tmp_path / name for name in ("a", "missing", "b")]
    for name in names[::2]:
        name.write_bytes(name.name.encode())
    with pytest.raises(BatchError, match="read_files") as caught:
        await io.read_files(names)
    assert [_described(result) for result in caught.value.results] == [_plain(name) for name in names]
    assert list(caught.value.errors) == [1]
    with pytest.raises(BatchError, match="stat_batch") as caught:
        await io.stat_batch(names)
    assert caught.value.results[2].st_size == 1
    assert caught.value.errors[1].filename == str(names[1])
    assert await io.read_files(names[::2]) == [b"a", b"b"]
    assert [status.st_size for status in await io.stat_batch(map(str, names[::2]))] == [1, 1]


@pytest.mark.anyio
async def test_nothing_is_a_checkpoint(io: AsyncIoManager) -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await io.read_files([])
    assert scope.cancelled_caught
    assert await io.read_files([]) == []
    assert await io.stat_batch(()) == []


@pytest.mark.anyio
async def test_files_whose_size_says_nothing(io: AsyncIoManager) -> None:
    # A few bytes, several pages that come one page a read, and one that cannot be read at its beginning.
    names = ["/proc/self/comm", "/proc/kallsyms", "/proc/self/mem", "/dev/null"]
    assert [_described(result) for result in await io.read_files(names, return_exceptions=True)] == [
        _plain(name) for name in names
    ]


@pytest.mark.anyio
async def test_what_may_not_be_read(io: AsyncIoManager, forbidden: Path) -> None:
    results = await io.read_files([forbidden / "file", "/proc/self/comm"], return_exceptions=True)
    assert _described(results[0])[:2] == (PermissionError, errno.EACCES)
    assert results[1] == _plain("/proc/self/comm")


@pytest.mark.anyio
async def test_paths_that_cannot_be(io: AsyncIoManager) -> None:
    before = io.statistics()
    with pytest.raises(ValueError, match=r"paths\[1\]"):
        await io.read_files(["a", "b\0"])
    with pytest.raises(TypeError, match=r"paths\[0\]"):
        await io.stat_batch([3])  # type: ignore[list-item]
    for verb in (io.read_files, io.stat_batch):
        with pytest.raises(TypeError, match="iterable"):
            await verb("path")
    assert io.statistics() == before


@attrs.define(eq=False)
class _Watch(Instrument):
    """How many files are open at once; and something to do when a read has ended."""

    path: Path
    grows_to: int = 0
    open_now: int = 0
    open_max: int = 0

    def operation_completed(self, operation: OperationTrace, result: int, completed_ns: int) -> None:  # noqa: ARG002
        if operation.opcode == "openat":
            self.open_now += 1
            self.open_max = max(self.open_max, self.open_now)
        elif operation.opcode == "close":
            self.open_now -= 1
        elif operation.opcode == "read" and operation.offset == 0 and self.grows_to:
            os.truncate(self.path, self.grows_to)
            self.grows_to = 0


@pytest.mark.ring
@pytest.mark.anyio
async def test_a_file_that_grows_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "growing"
    path.write_bytes(b"first")
    watch = _Watch(path, 100_000)
    async with open_uring(driver="uring", instruments=[watch]) as io:
        assert await io.read_files([path]) == [b"first".ljust(100_000, b"\0")]


@pytest.mark.ring
@pytest.mark.anyio
async def test_no_more_than_depth_are_open_at_once(tmp_path: Path) -> None:
    paths = [tmp_path / str(i) for i in range(50)]
    for path in paths:
        path.write_bytes(path.name.encode())
    watch = _Watch(tmp_path)
    async with open_uring(driver="uring", depth=8, instruments=[watch]) as io:
        assert await io.read_files(paths) == [path.name.encode() for path in paths]
    assert (watch.open_now, watch.open_max) == (0, 8)


@pytest.mark.ring
@pytest.mark.anyio
async def test_a_cancellation_while_one_is_waited_for_leaves_none_open(tmp_path: Path) -> None:
    file, leased = tmp_path / "file", tmp_path / "leased"
    file.write_bytes(b"x")
    leased.write_bytes(b"y")
    holder = os.open(leased, os.O_RDWR)
    before = signal.signal(signal.SIGIO, lambda *_: None)  # asked to give way, it does not
    try:
        fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        async with open_uring(driver="uring") as io:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(io.read_files, [file, leased, file])
                # Of the leased one, which is the last to be opened.
                await until(lambda: _targets().count(str(file)) == 2 and io.statistics().in_flight == 1)
                tasks.cancel_scope.cancel()
            assert tasks.cancel_scope.cancelled_caught
            assert _targets().count(str(file)) == 0
            assert _targets().count(str(leased)) == 1
    finally:
        os.close(holder)
        signal.signal(signal.SIGIO, before)


@pytest.mark.anyio
async def test_what_a_fifo_has_no_data_for_is_not_waited_for(io: AsyncIoManager, path: Path, tmp_path: Path) -> None:
    """The answers of descriptors with O_NONBLOCK, beside files in the same chunk."""
    idle, written, forsaken = names = [tmp_path / name for name in ("idle", "written", "forsaken")]
    for name in names:
        os.mkfifo(name)
    other_ends = [os.open(name, os.O_RDWR) for name in (idle, written)]
    try:
        os.write(other_ends[1], b"there is more to come")
        results = await io.read_files([path, idle, written, forsaken, "/dev/null", tmp_path], return_exceptions=True)
    finally:
        for fd in other_ends:
            os.close(fd)
    content = path.read_bytes()
    assert [result if isinstance(result, bytes) else _described(result)[1::2] for result in results] == [
        content,
        (errno.EAGAIN, str(idle)),
        (errno.EAGAIN, str(written)),
        b"",
        b"",
        (errno.EISDIR, str(tmp_path)),
    ]


SlowFifo = tuple[Path, threading.Event, threading.Event]


@pytest.fixture
def slow_fifo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SlowFifo:
    """A FIFO, whether a thread has begun to read it, and whether it may end."""
    begun, may_end = threading.Event(), threading.Event()

    def read_slowly(fd: int) -> bytes:
        begun.set()
        may_end.wait()
        return os.read(fd, 1)

    os.mkfifo(tmp_path / "fifo")
    monkeypatch.setattr("anyio_uring._small_files._read_open", read_slowly)
    return tmp_path / "fifo", begun, may_end


@pytest.mark.ring
@pytest.mark.anyio
async def test_a_cancellation_while_a_thread_reads_leaves_none_open(slow_fifo: SlowFifo) -> None:
    fifo, begun, may_end = slow_fifo
    async with open_uring(driver="uring") as io:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(io.read_files, [fifo])
                await until(begun.is_set)
                assert _targets().count(str(fifo)) == 1
                scope.cancel()
                may_end.set()
        assert _targets().count(str(fifo)) == 0


@pytest.mark.ring
@pytest.mark.anyio
async def test_a_manager_that_ends_while_a_thread_reads_leaves_none_open(path: Path, slow_fifo: SlowFifo) -> None:
    fifo, begun, may_end = slow_fifo

    async def read(io: AsyncIoManager) -> None:
        results.extend(await io.read_files([path, fifo]))

    results: list[bytes] = []
    async with anyio.create_task_group() as tasks, open_uring(driver="uring") as io:
        tasks.start_soon(read, io)
        await until(begun.is_set)
        assert _targets().count(str(path)) == _targets().count(str(fifo)) == 1
        may_end.set()
    assert results == [path.read_bytes(), b""], "C6"
    assert _targets().count(str(path)) == _targets().count(str(fifo)) == 0


# And what its holder does before it gives way.
Leased = tuple[Path, list[Callable[[], object]]]


@pytest.fixture
def leased(tmp_path: Path, driver: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Leased]:
    """
    A file that somebody has a lease of.

    On threads the holder gives way when it is told; on the ring not before the file is asked for again, this time to be
    waited for.
    """
    path = tmp_path / "leased"
    path.write_bytes(b"content")
    holder = os.open(path, os.O_RDWR)
    steps: list[Callable[[], object]] = []
    gave_way: list[bool] = []

    def give_way() -> None:
        for step in steps:
            step()
        fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        gave_way.append(True)

    def tell(*_: object) -> None:
        if driver == "threads":
            give_way()

    def open_again(path: Any, flags: int, *args: Any, **kwargs: Any) -> Call:
        if not flags & os.O_NONBLOCK:
            give_way()
        return open_file(path, flags, *args, **kwargs)

    open_file = _path_calls.open_file
    if driver == "uring":
        monkeypatch.setattr(_path_calls, "open_file", open_again)
    before = signal.signal(signal.SIGIO, tell)
    try:
        fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        yield path, steps
        assert gave_way == [True]
    finally:
        signal.signal(signal.SIGIO, before)
        os.close(holder)


@pytest.mark.anyio
async def test_a_file_that_somebody_has_a_lease_of_is_waited_for(io: AsyncIoManager, leased: Leased) -> None:
    path, _ = leased
    assert await io.read_files([path]) == [b"content"]


@pytest.mark.ring
@pytest.mark.anyio
@pytest.mark.parametrize("driver", ["uring"])
async def test_a_file_that_was_removed_meanwhile_is_an_error(io: AsyncIoManager, path: Path, leased: Leased) -> None:
    """Asked for the second time, its name is nobody's."""
    gone, steps = leased
    steps.append(lambda: unlink(gone))
    results = await io.read_files([gone, path], return_exceptions=True)
    assert isinstance(results[0], FileNotFoundError)
    assert results[0].filename == str(gone)
    assert results[1] == path.read_bytes()


@pytest.mark.ring
@pytest.mark.anyio
async def test_where_the_ring_cannot_open_threads_do(many: Iterable[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    class _Old(UringDriver):
        __slots__ = ()

        @property
        def features(self) -> Any:
            return attrs.evolve(super().features, opcodes=frozenset({Opcode.READ}))

    monkeypatch.setattr("anyio_uring._ring.UringDriver", _Old)
    some = [*many][:100]
    async with open_uring(driver="uring") as io:
        results = await io.read_files(some, return_exceptions=True)
        assert len(await io.stat_batch(some, return_exceptions=True)) == 100
        assert io.statistics().submissions == 0
        assert io.statistics().fallback_operations == 8
    assert [_described(result) for result in results] == [_plain(path) for path in some]


@pytest.mark.anyio
async def test_what_no_thread_could_be_started_for_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not a file without a content."""

    def refuses(_: object) -> None:
        raise RuntimeError("can't start new thread")

    async with open_uring(driver="threads") as io:
        with monkeypatch.context() as patch:
            patch.setattr("threading.Thread.start", refuses)
            results = await io.read_files([path, path], return_exceptions=True)
            assert [type(result) for result in results] == [OSError, OSError]
            with pytest.raises(BatchError):
                await io.stat_batch([path])
        assert await io.read_files([path]) == [path.read_bytes()]


@pytest.mark.anyio
async def test_a_file_that_memory_has_no_room_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is its reader's error; the manager goes on."""

    def fails(_: object) -> bytes:
        raise MemoryError("too much")

    async with open_uring(driver="threads") as io:
        with monkeypatch.context() as patch:
            patch.setattr("anyio_uring._small_files._read_whole", fails)
            with pytest.raises(MemoryError, match="too much"):
                await io.read_files([path])
        assert await io.read_files([path]) == [path.read_bytes()]


@pytest.mark.anyio
async def test_what_was_read_before_a_cancellation_is_no_descriptor(
    monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    """A thread's 0 means that its files are read; C9 closes what was opened, and nothing else."""
    permits = threading.Semaphore(_FILES_OF_A_CALL)
    closed: list[int] = []

    def read(_: bytes) -> bytes:
        permits.acquire()
        return b""

    monkeypatch.setattr("anyio_uring._small_files._read_whole", read)
    monkeypatch.setattr("anyio_uring._operations.os", SimpleNamespace(close=closed.append))
    async with open_uring(driver="threads", depth=1) as io:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(io.read_files, [path] * (3 * _FILES_OF_A_CALL))
                await until(lambda: io.statistics().completions > 0)
                await until(lambda: io.statistics().in_flight > 0)
                scope.cancel()
                permits.release(3 * _FILES_OF_A_CALL)
    assert scope.cancelled_caught
    assert closed == []

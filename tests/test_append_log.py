"""The append-only log: order, group commit, modes, opening, rotation, closing, cancellation."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyio_uring import (
    AppendLog,
    AsyncIoManager,
    FsyncMode,
    Instrument,
    OperationTrace,
    _append_log,
    open_append_log,
    open_uring,
    read_append_log,
)
from anyio_uring._log_format import FRAME_SIZE, HEADER_SIZE

from .helpers import asyncio_only, every_loop, until
from .log_helpers import Appends, contents, watch
from .programs import run

anyio_backend = every_loop

pytestmark = pytest.mark.anyio
FsyncModes = pytest.mark.parametrize("mode", list(FsyncMode), ids=lambda mode: mode.value)


async def _start(tasks: anyio.abc.TaskGroup, appends: Appends, records: list[bytes]) -> None:
    """Start appends, in order, and wait until all of them wait for the log."""
    waiting = appends.log.statistics().waiting
    for record in records:
        tasks.start_soon(appends.append, record)
        waiting += 1
        await until(lambda waiting=waiting: appends.log.statistics().waiting == waiting)  # type: ignore[misc]


# --- order and commits ----------------------------------------------------------------------------


@FsyncModes
async def test_many_tasks_records_come_back_at_the_offsets_returned(
    io: AsyncIoManager, tmp_path: Path, mode: FsyncMode
) -> None:
    path = tmp_path / "log"
    returned: dict[int, bytes] = {}

    async def work(name: int) -> None:
        for i in range(20):
            record = b"%d-%d" % (name, i) * (i * 7)
            returned[await log.append(record)] = record

    async with open_append_log(path, fsync=mode, io=io) as log:
        async with anyio.create_task_group() as tasks:
            for name in range(32):
                tasks.start_soon(work, name)
        assert log.end == log.durable_end or mode is not FsyncMode.ALWAYS
        statistics = log.statistics()
        assert statistics.appends == 640
        assert statistics.commits < 640
        assert statistics.records_per_commit == pytest.approx(640 / statistics.commits)
        assert statistics.bytes_written == log.end - HEADER_SIZE
        assert statistics.waiting == 0
    found = await contents(path)
    assert found == sorted(returned.items())
    # Of one task, in the order in which it appended them.
    for name in range(32):
        own = [record for _, record in found if record.startswith(b"%d-" % name)]
        assert own == [b"%d-%d" % (name, i) * (i * 7) for i in range(1, 20)]
    assert path.stat().st_size == log.end


async def test_while_one_commit_is_under_way_the_next_one_gathers(io: AsyncIoManager, tmp_path: Path) -> None:
    async with open_append_log(tmp_path / "log", io=io) as log:
        commits = watch(io)
        appends, gate = Appends(log), commits.hold()
        records = [b"%d" % i for i in range(65)]
        async with anyio.create_task_group() as tasks:
            await _start(tasks, appends, records[:1])
            await until(lambda: commits.held == 1)
            await _start(tasks, appends, records[1:])
            assert commits.held == 1
            assert not appends.offsets
            assert log.statistics().waiting == 65
            gate.set()
        assert commits.asked == [("WRITE", "FSYNC")] * 2
        statistics = log.statistics()
        assert (statistics.commits, statistics.records_per_commit_max, statistics.syncs) == (2, 64, 2)
        assert sorted(appends.offsets, key=appends.offsets.__getitem__) == records
    assert [record for _, record in await contents(tmp_path / "log")] == records


async def test_a_commit_has_a_limit(io: AsyncIoManager, tmp_path: Path) -> None:
    record = bytes(300_000)
    async with open_append_log(tmp_path / "log", io=io) as log:
        commits = watch(io)
        gate = commits.hold()
        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(log.append, record)
            await until(lambda: commits.held == 1)
            gate.set()
        assert log.statistics().commits == 3  # of 4, 4 and 2 records: a commit takes no further one beyond 1 MiB
        assert commits.asked == [("WRITEV", "FSYNC")] * 3
    assert [record for _, record in await contents(tmp_path / "log")] == [record] * 10


async def test_long_and_short_records_in_one_commit(io: AsyncIoManager, tmp_path: Path) -> None:
    records = [b"a", b"b" * 70_000, b"", b"c" * 64 * 1024, b"d" * 70_000, b"e", b"f" * 65_537]
    async with open_append_log(tmp_path / "log", io=io) as log:
        appends = Appends(log)
        async with anyio.create_task_group() as tasks:
            for record in records:
                tasks.start_soon(appends.append, record)
        assert log.statistics().commits == 1
    assert await contents(tmp_path / "log") == sorted((offset, record) for record, offset in appends.offsets.items())
    assert len(appends.offsets) == len(records)


async def test_a_record_is_any_buffer_and_is_copied(io: AsyncIoManager, tmp_path: Path) -> None:
    buffer = bytearray(b"abc")
    async with open_append_log(tmp_path / "log", io=io) as log, anyio.create_task_group() as tasks:
        tasks.start_soon(log.append, buffer)
        await until(lambda: log.statistics().waiting == 1)
        buffer[:] = b"overwritten"
        await log.append(memoryview(b"1234")[::1])
        with pytest.raises(TypeError, match="buffer protocol"):
            await log.append("text")  # type: ignore[arg-type]
    assert [record for _, record in await contents(tmp_path / "log")] == [b"abc", b"1234"]


async def test_a_file_says_how_long_its_records_are(io: AsyncIoManager, tmp_path: Path) -> None:
    path = tmp_path / "log"
    async with open_append_log(path, io=io, record_length_max=10) as log:
        await log.append(bytes(10))
        with pytest.raises(ValueError, match="at most 10 bytes, not 11"):
            await log.append(bytes(11))
    async with open_append_log(path, io=io) as log:
        assert log.record_length_max == 10
        with pytest.raises(ValueError, match="at most 10"):
            await log.append(bytes(11))
    assert len(await contents(path)) == 1


# --- modes ----------------------------------------------------------------------------------------


async def test_always_syncs_with_every_commit(io: AsyncIoManager, tmp_path: Path) -> None:
    async with open_append_log(tmp_path / "log", io=io) as log:
        commits = watch(io)
        for _ in range(3):
            await log.append(b"x")
            assert log.durable_end == log.end
        assert commits.asked == [("WRITE", "FSYNC")] * 3
        assert await log.sync() == log.end
        assert len(commits.asked) == 3, "there is nothing to sync"
    assert len(commits.asked) == 3, "nor at the end of the block"


async def test_where_one_operation_may_be_in_flight_the_sync_comes_behind(driver: Any, tmp_path: Path) -> None:
    async with open_uring(driver=driver, depth=1) as io, open_append_log(tmp_path / "log", io=io) as log:
        commits = watch(io)
        await log.append(b"1")
        assert log.durable_end == log.end
        await log.append(b"2")
        assert commits.asked == [("WRITE",), ("FSYNC",)] * 2
        await log.rotate(tmp_path / "next")
        await log.append(b"3")
    assert [record for _, record in await contents(tmp_path / "log")] == [b"1", b"2"]
    assert [record for _, record in await contents(tmp_path / "next")] == [b"3"]


async def test_never_syncs_when_it_is_asked_to(io: AsyncIoManager, tmp_path: Path) -> None:
    commits = watch(io)
    async with open_append_log(tmp_path / "log", io=io, fsync=FsyncMode.NEVER) as log:
        await log.append(b"x")
        assert commits.asked == [("WRITE",)]
        assert log.durable_end == HEADER_SIZE < log.end
        assert await log.sync() == log.end == log.durable_end
        assert commits.asked == [("WRITE",), ("FSYNC",)]
        await log.append(b"y")
    assert commits.asked == [("WRITE",), ("FSYNC",), ("WRITE",)]


async def test_every_second_the_log_is_synced(
    io: AsyncIoManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_append_log, "_SYNC_INTERVAL_S", 0.001)
    commits = watch(io)
    async with open_append_log(tmp_path / "log", io=io, fsync=FsyncMode.EVERY_SECOND) as log:
        for _ in range(3):
            await log.append(b"x")
            await until(lambda: log.durable_end == log.end)
        assert log.statistics().syncs == 3
        assert commits.asked == [("WRITE",), ("FSYNC",)] * 3


async def test_what_was_being_written_when_the_second_ended_is_synced_before_it_is_acknowledged(
    io: AsyncIoManager, tmp_path: Path
) -> None:
    commits = watch(io)
    async with open_append_log(tmp_path / "log", io=io, fsync=FsyncMode.EVERY_SECOND) as log:
        await log.append(b"first")
        gate = commits.hold()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(log.append, b"second")
            await until(lambda: commits.held == 1)
            log._is_sync_due = True  # as the clock does
            gate.set()
        assert log.durable_end == log.end
        assert commits.asked == [("WRITE",), ("WRITE",), ("FSYNC",)]


@pytest.mark.parametrize(("mode", "last"), [(FsyncMode.EVERY_SECOND, "FSYNC"), (FsyncMode.NEVER, "WRITE")])
async def test_closing_syncs_in_the_mode_that_promises_it(
    io: AsyncIoManager, tmp_path: Path, mode: FsyncMode, last: str
) -> None:
    commits = watch(io)
    async with open_append_log(tmp_path / "log", io=io, fsync=mode) as log:
        await log.append(b"x")
    assert commits.asked[-1] == (last,)


# --- opening --------------------------------------------------------------------------------------


class _Syncs(Instrument):
    def __init__(self) -> None:
        self.files: list[int] = []

    def operation_submitted(self, operation: OperationTrace) -> None:
        if operation.opcode == "fsync":
            self.files.append(os.fstat(operation.fd).st_ino)


def _inode(path: Path) -> int:
    return path.stat().st_ino


async def test_a_new_log_and_its_name_are_durable(driver: Any, tmp_path: Path) -> None:
    syncs = _Syncs()
    path = tmp_path / "log"
    async with open_uring(driver=driver, instruments=[syncs]) as io, open_append_log(path, io=io) as log:
        assert log.recovery.was_created
        assert syncs.files[-2:] == [_inode(path), _inode(tmp_path)]
        await log.append(b"x")
        syncs.files.clear()
        await log.rotate(tmp_path / "next")
        assert syncs.files == [_inode(tmp_path / "next"), _inode(tmp_path)]


async def test_what_is_there_is_kept_and_gone_on_with(io: AsyncIoManager, tmp_path: Path) -> None:
    path = tmp_path / "log"
    expected = []
    for i in range(4):
        async with open_append_log(path, io=io, preallocate=0 if i % 2 else 4096) as log:
            assert log.recovery.was_created == (i == 0)
            assert log.recovery.records == i
            assert log.recovery.bytes_cut == 0
            assert log.recovery.reason is None
            assert log.recovery.end == log.end == log.durable_end == HEADER_SIZE + i * (FRAME_SIZE + 1)
            expected.append((await log.append(b"%d" % i), b"%d" % i))
    assert await contents(path) == expected


@pytest.mark.parametrize("garbage", [b"\x01", b"garbage" * 20000, bytes(100) + b"\x01" + bytes(100)])
async def test_a_torn_tail_is_cut_off_and_reported(io: AsyncIoManager, tmp_path: Path, garbage: bytes) -> None:
    path = tmp_path / "log"
    async with open_append_log(path, io=io) as log:
        await log.append(b"kept")
    with path.open("ab") as file:
        file.write(garbage)
    async with open_append_log(path, io=io) as log:
        assert log.recovery.records == 1
        assert log.recovery.bytes_cut == len(garbage.rstrip(b"\0"))
        assert log.recovery.reason is not None
        await log.append(b"next")
    assert [record for _, record in await contents(path)] == [b"kept", b"next"]


async def test_what_is_behind_a_torn_tail_never_becomes_valid_again(io: AsyncIoManager, tmp_path: Path) -> None:
    """Of one commit, the first page was lost and the second one written."""
    path = tmp_path / "log"
    async with open_append_log(path, io=io) as log:
        async with anyio.create_task_group() as tasks:
            for record in (b"first", b"other"):
                tasks.start_soon(log.append, record)
        first, second = [offset for offset, _ in await contents(path)]
    with path.open("r+b") as file:
        file.seek(first)
        file.write(bytes(second - first))
    async with open_append_log(path, io=io) as log:
        assert log.recovery.records == 0
        assert log.recovery.bytes_cut > 0
        assert await log.append(b"12345") == first  # as long: what was behind it would follow
    assert await contents(path) == [(first, b"12345")]


@pytest.mark.parametrize("length", [0, 1, HEADER_SIZE - 1])
async def test_a_creation_that_was_cut_short_begins_anew(io: AsyncIoManager, tmp_path: Path, length: int) -> None:
    path = tmp_path / "log"
    async with open_append_log(path, io=io):
        pass
    os.truncate(path, length)
    left = path.read_bytes().rstrip(b"\0")  # a checksum may end with zeros, which are not counted
    async with open_append_log(path, io=io) as log:
        assert log.recovery.was_created
        assert log.recovery.bytes_cut == len(left)
        await log.append(b"x")
    assert len(await contents(path)) == 1


async def test_there_is_one_writer(io: AsyncIoManager, tmp_path: Path) -> None:
    path = tmp_path / "log"
    async with open_append_log(path, io=io) as log:
        with pytest.raises(BlockingIOError, match="open for appending already") as caught:
            async with open_append_log(path, io=io):
                raise AssertionError
        assert caught.value.filename == str(path)
        await log.rotate(tmp_path / "next")
        with pytest.raises(BlockingIOError):
            async with open_append_log(tmp_path / "next", io=io):
                raise AssertionError
        async with open_append_log(path, io=io):
            pass
    async with open_append_log(tmp_path / "next", io=io):
        pass


@pytest.mark.parametrize("is_replaced", [False, True])
async def test_a_file_that_was_removed_before_it_was_locked_is_not_appended_to(
    io: AsyncIoManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_replaced: bool
) -> None:
    """Between its opening and its lock; what it took would be lost, and a second writer let in."""
    open_, path, opened = AsyncIoManager.open, tmp_path / "log", 0

    async def open_too_early(self: AsyncIoManager, *arguments: Any) -> int:
        nonlocal opened
        fd = await open_(self, *arguments)
        opened += arguments[0] == str(path)
        if opened == 1:
            await self.unlink(path)
            if is_replaced:
                await self.close(await open_(self, path, os.O_RDWR | os.O_CREAT))
        return fd

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(AsyncIoManager, "open", open_too_early)
    async with open_append_log(path, io=io) as log:
        await log.append(b"acknowledged")
        assert opened == 2
        with pytest.raises(BlockingIOError):
            async with open_append_log(path, io=io):
                raise AssertionError
    assert len(os.listdir("/proc/self/fd")) == before
    assert [record for _, record in await contents(path)] == [b"acknowledged"]


async def test_a_closed_log_is_not_locked_by_a_child(io: AsyncIoManager, tmp_path: Path) -> None:
    """A child that was forked meanwhile has the file open, too, and with it the lock."""
    path = tmp_path / "log"
    kept: list[int] = []
    try:
        async with open_append_log(path, io=io) as log:
            kept.append(os.dup(log._file.fd))  # of the same open file, as a child's is
            await log.rotate(tmp_path / "next")
            kept.append(os.dup(log._file.fd))
            async with open_append_log(path, io=io):
                pass
        async with open_append_log(tmp_path / "next", io=io):
            pass
    finally:
        for fd in kept:
            os.close(fd)


FORKED = """
import os, sys, anyio
from anyio_uring import open_append_log, open_uring
backend, driver, path = sys.argv[1:]
async def main():
    async with open_uring(driver=driver) as io, open_append_log(path, io=io) as log:
        await log.append(b"the parent's")
        if not (child := os.fork()):
            try:
                log._file.aclose().send(None)  # no event loop goes on in a child
            except StopIteration:
                os._exit(0)
            os._exit(1)
        assert os.waitpid(child, 0) == (child, 0)
        try:
            async with open_append_log(path, io=io):
                print("a second writer was let in")
        except BlockingIOError:
            print("locked still")
        await log.append(b"the parent's, too")
anyio.run(main, backend=backend)
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_forked_child_that_closes_a_log_leaves_the_lock(backend: str, driver: Any, tmp_path: Path) -> None:
    """C12: it is its parent's."""
    assert run(FORKED, backend, driver, tmp_path / "log") == "locked still\n"


async def test_a_file_that_is_removed_again_and_again_is_an_error(
    io: AsyncIoManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_, path = AsyncIoManager.open, tmp_path / "log"

    async def open_too_early(self: AsyncIoManager, *arguments: Any) -> int:
        fd = await open_(self, *arguments)
        await self.unlink(path)
        return fd

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(AsyncIoManager, "open", open_too_early)
    with pytest.raises(OSError, match="again and again") as caught:
        async with open_append_log(path, io=io):
            raise AssertionError
    assert (caught.value.errno, caught.value.filename) == (errno.ESTALE, str(path))
    assert len(os.listdir("/proc/self/fd")) == before


async def test_bad_arguments(io: AsyncIoManager, tmp_path: Path) -> None:
    path = tmp_path / "log"
    with pytest.raises(TypeError, match="FsyncMode"):
        open_append_log(path, fsync="always")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="preallocate"):
        open_append_log(path, preallocate=-1)
    async with open_append_log(path, io=io, record_length_max=1) as log:
        await log.append(b"1")
    path.unlink()
    for length in (0, (1 << 30) + 1):
        with pytest.raises(ValueError, match="record_length_max"):
            open_append_log(path, record_length_max=length)
    with pytest.raises(FileNotFoundError):
        async with open_append_log(tmp_path / "none" / "log", io=io):
            raise AssertionError
    opening = open_append_log(path, io=io)
    async with opening:
        pass
    with pytest.raises(RuntimeError, match="once"):
        async with opening:
            raise AssertionError


async def test_the_descriptor_is_closed_whatever_happens(io: AsyncIoManager, tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    path = tmp_path / "log"
    with pytest.raises(KeyError):  # noqa: PT012 - of the block's body
        async with open_append_log(path, io=io) as log:
            await log.append(b"x")
            await log.rotate(tmp_path / "next")
            raise KeyError
    path.write_bytes(b"no log at all, and long enough to have a header: it is left alone")
    with pytest.raises(OSError, match="no log"):
        async with open_append_log(path, io=io):
            raise AssertionError
    assert path.read_bytes().startswith(b"no log at all")
    assert len(os.listdir("/proc/self/fd")) == len(before)


async def test_without_a_manager_there_are_threads(tmp_path: Path) -> None:
    path = tmp_path / "log"
    async with open_append_log(path) as log, anyio.create_task_group() as tasks:
        for i in range(20):
            tasks.start_soon(log.append, b"%d" % i)
    assert len(await contents(path)) == 20


async def test_space_is_allocated_ahead_and_given_back(io: AsyncIoManager, tmp_path: Path) -> None:
    path = tmp_path / "log"
    step = 1 << 16
    async with open_append_log(path, io=io, preallocate=step) as log:
        assert path.stat().st_size == step
        await log.append(bytes(step))
        assert path.stat().st_size == 2 * step
        assert await contents(path) == [(HEADER_SIZE, bytes(step))], "zeros behind are a clean end"
    assert path.stat().st_size == log.end == HEADER_SIZE + FRAME_SIZE + step


# --- rotation -------------------------------------------------------------------------------------


@FsyncModes
async def test_rotation_loses_nothing_and_keeps_the_order(io: AsyncIoManager, tmp_path: Path, mode: FsyncMode) -> None:
    returned: dict[int, bytes] = {}

    async def work(name: int) -> None:
        for i in range(30):
            record = b"%d-%d" % (name, i)
            returned[await log.append(record)] = record

    async with open_append_log(tmp_path / "0", fsync=mode, io=io) as log, anyio.create_task_group() as tasks:
        for name in range(8):
            tasks.start_soon(work, name)
        for i in range(1, 4):
            await until(lambda i=i: len(returned) > i * 50)  # type: ignore[misc]
            await log.rotate(tmp_path / str(i))
            assert log.path == str(tmp_path / str(i))
    files = [await contents(tmp_path / str(i)) for i in range(4)]
    assert all(files)
    found = [pair for file in files for pair in file]
    assert found == sorted(returned.items())
    assert len(found) == 240
    for name in range(8):
        assert [record for _, record in found if record.startswith(b"%d-" % name)] == [
            b"%d-%d" % (name, i) for i in range(30)
        ]


async def test_the_order_of_asking_says_which_file(io: AsyncIoManager, tmp_path: Path) -> None:
    async with open_append_log(tmp_path / "old", io=io) as log:
        commits = watch(io)
        gate = commits.hold()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(log.append, b"1")
            await until(lambda: commits.held == 1)
            for call in (partial(log.append, b"2"), partial(log.rotate, tmp_path / "new"), partial(log.append, b"3")):
                waiting = log.statistics().waiting
                tasks.start_soon(call)
                await until(lambda waiting=waiting: log.statistics().waiting > waiting)  # type: ignore[misc]
            gate.set()
    assert [record for _, record in await contents(tmp_path / "old")] == [b"1", b"2"]
    assert [record for _, record in await contents(tmp_path / "new")] == [b"3"]


async def test_where_rotation_fails_the_log_goes_on(io: AsyncIoManager, tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    async with open_append_log(tmp_path / "log", io=io) as log:
        await log.append(b"1")
        for target, error in ((tmp_path / "there", FileExistsError), (tmp_path / "none" / "x", FileNotFoundError)):
            with pytest.raises(error):
                await log.rotate(target)
        assert log.path == str(tmp_path / "log")
        await log.append(b"2")
    assert [record for _, record in await contents(tmp_path / "log")] == [b"1", b"2"]
    assert (tmp_path / "there").read_bytes() == b""
    assert sorted(os.listdir(tmp_path)) == ["log", "there"]


async def test_a_rotation_leaves_a_log_alone_that_somebody_else_creates_meanwhile(
    io: AsyncIoManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_, path = AsyncIoManager.open, tmp_path / "new"
    theirs: list[int] = []

    async def open_beside_another(self: AsyncIoManager, *arguments: Any) -> int:
        """As if the other one came in between opening and locking."""
        monkeypatch.setattr(AsyncIoManager, "open", open_)
        fd = await open_(self, *arguments)
        theirs.append(await open_(self, path, os.O_RDWR | os.O_CREAT))
        fcntl.flock(theirs[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        await self.write_all(theirs[0], b"theirs", 0)
        return fd

    async with open_append_log(tmp_path / "log", io=io) as log:
        monkeypatch.setattr(AsyncIoManager, "open", open_beside_another)
        with pytest.raises(FileExistsError) as caught:
            await log.rotate(path)
        assert caught.value.filename == str(path)
        os.close(theirs[0])
        assert path.read_bytes() == b"theirs"
        assert sorted(os.listdir(tmp_path)) == ["log", "new"]
        await log.append(b"it goes on")
    assert len(await contents(tmp_path / "log")) == 1


# --- closing --------------------------------------------------------------------------------------


async def test_closing_waits_for_the_last_commit_also_when_cancelled(io: AsyncIoManager, tmp_path: Path) -> None:
    path = tmp_path / "log"
    commits = watch(io)
    gate = commits.hold()
    appends: Appends | None = None

    async def use() -> None:
        nonlocal appends
        async with open_append_log(path, io=io) as log, anyio.create_task_group() as tasks:
            appends = Appends(log)
            for i in range(4):
                tasks.start_soon(appends.append, b"%d" % i)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(use)
        await until(lambda: commits.held == 1)
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            for _ in range(20):
                await checkpoint()
            assert commits.held == 1, "it waits"
            gate.set()
    assert appends is not None
    assert len(appends.offsets) == 4, "each was told"
    assert len(await contents(path)) == 4


async def test_a_closed_log_takes_nothing(io: AsyncIoManager, tmp_path: Path) -> None:
    async with open_append_log(tmp_path / "log", io=io) as log:
        pass
    for call in (log.append(b"x"), log.sync(), log.rotate(tmp_path / "next")):
        with pytest.raises(anyio.ClosedResourceError):
            await call
    assert not (tmp_path / "next").exists()


# --- cancellation ---------------------------------------------------------------------------------


async def test_an_append_that_was_cancelled_before_it_was_in_a_commit_never_happens(
    io: AsyncIoManager, tmp_path: Path
) -> None:
    path = tmp_path / "log"
    async with open_append_log(path, io=io) as log:
        commits = watch(io)
        appends, gate = Appends(log), commits.hold()
        async with anyio.create_task_group() as tasks:
            await _start(tasks, appends, [b"1"])
            await until(lambda: commits.held == 1)
            async with anyio.create_task_group() as cancelled:
                await _start(cancelled, appends, [b"2", b"3"])
                cancelled.cancel_scope.cancel()
            assert commits.held == 1
            assert log.statistics().waiting == 1
            await _start(tasks, appends, [b"4"])
            gate.set()
        assert log.statistics().cancelled == 2
    found = await contents(path)
    assert found == [(appends.offsets[b"1"], b"1"), (appends.offsets[b"4"], b"4")]
    assert found[1][0] == found[0][0] + FRAME_SIZE + 1, "no gap"


async def test_an_append_in_a_scope_that_is_cancelled_already_never_happens(io: AsyncIoManager, tmp_path: Path) -> None:
    path = tmp_path / "log"
    async with open_append_log(path, io=io) as log:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await log.append(b"x")
        assert scope.cancelled_caught
    assert await contents(path) == []


@asyncio_only
@pytest.mark.parametrize("closing", [False, True])
async def test_an_append_in_a_cancelled_scope_never_happens_beside_another(
    io: AsyncIoManager, tmp_path: Path, *, closing: bool
) -> None:
    """The cancellation arrives in the next pass of the loop: behind the callback that the other append asked for."""
    path = tmp_path / "log"
    got: list[int] = []

    async def append_in_a_cancelled_scope() -> None:
        with anyio.CancelScope() as scope:
            scope.cancel()
            got.append(await log.append(b"never"))

    async with open_append_log(path, io=io) as log:
        other = asyncio.create_task(log.append(b"other"))
        await until(lambda: log._is_announced)  # its callback stands in the next pass
        victim = asyncio.create_task(append_in_a_cancelled_scope())
        await (asyncio.sleep(0) if closing else asyncio.gather(other, victim))
    await asyncio.gather(other, victim)
    assert got == []
    assert {record for _, record in await contents(path)} == {b"other"}


async def test_an_append_in_a_commit_waits_for_it_and_returns_its_offset(io: AsyncIoManager, tmp_path: Path) -> None:
    path = tmp_path / "log"
    offsets: list[int] = []
    async with open_append_log(path, io=io) as log:
        commits = watch(io)
        gate = commits.hold()
        others = Appends(log)
        async with anyio.create_task_group() as tasks:
            with anyio.CancelScope() as scope:

                async def cancel() -> None:
                    await until(lambda: commits.held == 1)
                    scope.cancel()
                    for _ in range(10):
                        await checkpoint()
                    assert not offsets
                    assert log.statistics().waiting == 4
                    gate.set()

                for record in (b"1", b"2", b"3"):
                    tasks.start_soon(others.append, record)
                tasks.start_soon(cancel)
                offsets.append(await log.append(b"cancelled"))
                await checkpoint()
            assert scope.cancelled_caught, "at the next checkpoint"
        assert len(others.offsets) == 3
    assert (offsets[0], b"cancelled") in await contents(path)


@asyncio_only
async def test_a_native_cancellation_is_kept_too(io: AsyncIoManager, tmp_path: Path) -> None:
    async with open_append_log(tmp_path / "log", io=io) as log:
        commits = watch(io)
        gate = commits.hold()
        offsets: list[int] = []

        async def work() -> None:
            offsets.append(await log.append(b"1"))
            await asyncio.sleep(3600)

        native, other = asyncio.create_task(work()), asyncio.create_task(log.append(b"2"))
        await until(lambda: commits.held == 1)
        native.cancel()
        for _ in range(10):
            await checkpoint()
        assert not native.done()
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await native
        assert len(offsets) == 1
        assert await other == offsets[0] + FRAME_SIZE + 1
    assert len(await contents(tmp_path / "log")) == 2


async def test_cancelled_syncs_and_rotations_do_not_happen(io: AsyncIoManager, tmp_path: Path) -> None:
    async with open_append_log(tmp_path / "log", io=io, fsync=FsyncMode.NEVER) as log:
        commits = watch(io)
        gate = commits.hold()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(log.append, b"1")
            await until(lambda: commits.held == 1)
            async with anyio.create_task_group() as cancelled:
                cancelled.start_soon(log.sync)
                cancelled.start_soon(log.rotate, tmp_path / "next")
                await until(lambda: log.statistics().waiting == 3)
                cancelled.cancel_scope.cancel()
            gate.set()
        await log.append(b"2")
        assert commits.asked == [("WRITE",)] * 2
    assert not (tmp_path / "next").exists()


async def test_a_rotation_under_way_is_counted_as_waiting(io: AsyncIoManager, tmp_path: Path) -> None:
    async with open_append_log(tmp_path / "log", io=io, fsync=FsyncMode.NEVER) as log:
        await log.append(b"1")
        commits = watch(io)
        gate = commits.hold()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(log.rotate, tmp_path / "next")
            await until(lambda: commits.held == 1)
            assert log.statistics().waiting == 1
            tasks.start_soon(log.append, b"2")
            await until(lambda: log.statistics().waiting == 2)
            gate.set()
        assert log.statistics().waiting == 0


async def test_an_error_of_the_body_arrives_also_from_a_cancelled_scope(io: AsyncIoManager, tmp_path: Path) -> None:
    """The end of the block waits for the last commit, and no cancellation of that takes the error's place."""

    async def let_go() -> None:
        await until(lambda: log._is_closing)
        for _ in range(10):
            await checkpoint()
        gate.set()

    async def work(log: AppendLog) -> None:
        appending.start_soon(log.append, b"1")
        await until(lambda: commits.held == 1)
        appending.start_soon(let_go)
        outer.cancel()
        raise LookupError("the body's")

    async with anyio.create_task_group() as appending:
        with anyio.CancelScope() as outer:
            opening = open_append_log(tmp_path / "log", io=io)
            log = await opening.__aenter__()
            commits = watch(io)
            gate = commits.hold()
            with pytest.raises(LookupError) as caught:
                await work(log)
            await opening.__aexit__(caught.type, caught.value, None)
            assert gate.is_set()
    assert [record for _, record in await contents(tmp_path / "log")] == [b"1"]


async def test_nobody_is_harmed_by_random_cancellations(io: AsyncIoManager, tmp_path: Path) -> None:
    path = tmp_path / "log"
    async with open_append_log(path, io=io) as log:
        appends = Appends(log)
        started: set[bytes] = set()

        async def work(name: int) -> None:
            for i in range(12):
                record = b"%d-%d" % (name, i)
                started.add(record)
                # After a few turns of the loop: in the queue, in a commit, or done.
                async with anyio.create_task_group() as own:
                    own.start_soon(appends.append, record)
                    for _ in range((name * 12 + i) * 7 % 23):
                        await checkpoint()
                    if name % 2:
                        own.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            for name in range(8):
                tasks.start_soon(work, name)
        assert not appends.errors
        assert len(started) == log.statistics().appends + log.statistics().cancelled == 96
    found = await contents(path)
    assert found == sorted((offset, record) for record, offset in appends.offsets.items())
    assert {record for record in started if int(record.split(b"-")[0]) % 2 == 0} <= set(appends.offsets)


async def test_repr_and_recovery(io: AsyncIoManager, tmp_path: Path) -> None:
    async with open_append_log(tmp_path / "log", io=io) as log:
        assert isinstance(log, AppendLog)
        assert repr(log) == f"<AppendLog {str(tmp_path / 'log')!r} fsync=ALWAYS end=40 durable_end=40>"
        assert log.fsync is FsyncMode.ALWAYS
        reader = read_append_log(tmp_path / "log", io=io)
        assert [pair async for pair in reader] == []
        assert reader.end == log.end


async def test_records_of_up_to_16_mib_unless_something_else_is_asked_for(io: AsyncIoManager, tmp_path: Path) -> None:
    longest = bytes(16 << 20)
    async with open_append_log(tmp_path / "log", io=io) as log:
        assert log.record_length_max == len(longest)
        with pytest.raises(ValueError, match="at most 16777216 bytes, not 16777217"):
            await log.append(longest + b"1")
        await log.append(longest)
    assert [len(record) for _, record in await contents(tmp_path / "log")] == [len(longest)]


async def test_a_new_file_has_the_permissions_asked_for_less_the_umask(io: AsyncIoManager, tmp_path: Path) -> None:
    umask = os.umask(0o002)
    try:
        async with open_append_log(tmp_path / "log", io=io):
            pass
        async with open_append_log(tmp_path / "asked", io=io, mode=0o642):
            pass
        async with open_append_log(tmp_path / "rotated", io=io, mode=0o642) as log:
            await log.rotate(tmp_path / "next")
        async with open_append_log(tmp_path / "log", io=io, mode=0o600):
            pass
    finally:
        os.umask(umask)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"log": 0o664, "asked": 0o640, "rotated": 0o640, "next": 0o640}


async def test_a_new_file_takes_records_as_long_as_the_old_one_did(io: AsyncIoManager, tmp_path: Path) -> None:
    """What is appended behind a rotation was measured before it; whatever the block asked for, nothing is cut off."""
    async with open_append_log(tmp_path / "log", io=io, record_length_max=100_000):
        pass
    async with open_append_log(tmp_path / "log", io=io, record_length_max=10) as log:
        commits = watch(io)
        gate = commits.hold()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(log.append, b"before")
            await until(lambda: commits.held == 1)
            tasks.start_soon(log.rotate, tmp_path / "next")
            await until(lambda: log.statistics().waiting == 2)
            tasks.start_soon(log.append, bytes(50_000))
            await until(lambda: log.statistics().waiting == 3)
            gate.set()
        assert log.record_length_max == 100_000
    for _ in range(2):
        async with open_append_log(tmp_path / "next", io=io) as log:
            assert log.recovery.bytes_cut == 0
    assert [record for _, record in await contents(tmp_path / "next")] == [bytes(50_000)]


@asyncio_only
@pytest.mark.parametrize("passes", [0, 3, 6, 10, 20])
@FsyncModes
async def test_a_native_cancellation_at_the_end_of_the_block(
    io: AsyncIoManager, tmp_path: Path, mode: FsyncMode, passes: int
) -> None:
    """Whenever it strikes, everybody's appends are carried out, the last sync is made, and the file is closed."""
    logs: list[AppendLog] = []
    tasks: list[asyncio.Task[int]] = []

    async def work() -> None:
        async with open_append_log(tmp_path / "log", io=io, fsync=mode) as log:
            logs.append(log)
            tasks.extend(asyncio.create_task(log.append(bytes(1000))) for _ in range(6))
            await until(lambda: log.statistics().waiting + log.statistics().appends == 6)
            ending.set()

    ending = asyncio.Event()
    owner = asyncio.create_task(work())
    await ending.wait()
    for _ in range(passes):
        await asyncio.sleep(0)
    owner.cancel()
    await asyncio.wait([owner, *tasks])
    assert [task.exception() for task in tasks] == [None] * 6
    (log,) = logs
    assert mode is FsyncMode.NEVER or log.durable_end == log.end
    assert (tmp_path / "log").stat().st_size == log.end == HEADER_SIZE + 6 * (FRAME_SIZE + 1000)
    assert len(await contents(tmp_path / "log")) == 6


@asyncio_only
async def test_a_native_cancellation_of_the_logs_own_task(io: AsyncIoManager, tmp_path: Path) -> None:
    """As of a program that cancels all tasks there are: the log ends with its block, and not before."""
    async with open_append_log(tmp_path / "log", io=io) as log:
        commits = watch(io)
        gate = commits.hold()
        (own,) = (task for task in asyncio.all_tasks() if task.get_name() == "anyio_uring log")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(log.append, b"1")
            await until(lambda: commits.held == 1)
            gate.set()
            commits.gate = None
            await checkpoint()
            for _ in range(3):
                own.cancel()
                await checkpoint()
            tasks.start_soon(log.append, b"2")
        own.cancel()
        await log.append(b"3")
        assert not own.done()
    assert [record for _, record in await contents(tmp_path / "log")] == [b"1", b"2", b"3"]


async def test_the_managers_block_ends_first(driver: Any, tmp_path: Path) -> None:
    """A log that is left open by then cannot go on, but it is closed: its lock is not kept for ever."""
    ended = anyio.Event()

    async def work(io: AsyncIoManager) -> None:
        async with open_append_log(tmp_path / "log", io=io) as log:
            await log.append(b"1")
            began.set()
            await ended.wait()
            with pytest.raises(anyio.ClosedResourceError):
                await log.append(b"2")

    began = anyio.Event()
    before = len(os.listdir("/proc/self/fd"))
    async with anyio.create_task_group() as tasks:
        async with open_uring(driver=driver) as io:
            tasks.start_soon(work, io)
            await began.wait()
        ended.set()
    assert len(os.listdir("/proc/self/fd")) == before
    async with open_uring(driver=driver) as io, open_append_log(tmp_path / "log", io=io) as log:
        assert log.recovery.records == 1


async def test_a_log_behind_a_link_is_durable_where_it_is(
    io: AsyncIoManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O_CREAT follows a link that leads to nothing: the name to make durable is the file's, not the link's."""
    (tmp_path / "links").mkdir()
    (tmp_path / "logs").mkdir()
    (tmp_path / "links" / "log").symlink_to("../logs/real")
    synced: list[int] = []
    fsync = io.fsync

    async def spy(fd: int) -> None:
        synced.append(os.fstat(fd).st_ino)
        await fsync(fd)

    monkeypatch.setattr(AsyncIoManager, "fsync", lambda _, fd: spy(fd))
    async with open_append_log(tmp_path / "links" / "log", io=io):
        pass
    assert synced == [(tmp_path / "logs" / "real").stat().st_ino, (tmp_path / "logs").stat().st_ino]


async def test_a_creation_that_fails_leaves_no_descriptor(
    io: AsyncIoManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor another error than its own, also if somebody else has removed the file meanwhile."""

    async def fails(*_: object) -> None:
        (temporary,) = set(await anyio.to_thread.run_sync(os.listdir, tmp_path)) - {"log"}
        await io.unlink(tmp_path / temporary)
        raise OSError(errno.ENOSPC, "no room")

    async with open_append_log(tmp_path / "log", io=io) as log:
        before = len(os.listdir("/proc/self/fd"))
        monkeypatch.setattr("anyio_uring._log_file._write_header", fails)
        with pytest.raises(OSError, match="no room"):
            await log.rotate(tmp_path / "next")
        assert len(os.listdir("/proc/self/fd")) == before
        await log.append(b"it goes on")
    assert len(await contents(tmp_path / "log")) == 1

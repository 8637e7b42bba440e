"""Short writes, no room, failed syncs: what the append-only log acknowledges, and what it goes on with."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import anyio
import pytest

from anyio_uring import (
    AsyncIoManager,
    DurabilityLostError,
    FsyncMode,
    _append_log,
    _log_commit,
    _path_calls,
    open_append_log,
    open_uring,
)
from anyio_uring._log_file import LogFile
from anyio_uring._log_format import FRAME_SIZE, HEADER_SIZE, FileHeader, frame
from anyio_uring._performer import Performer
from anyio_uring._requests import Opcode

from .helpers import asyncio_only, until
from .log_helpers import Appends, Commits, contents, fails_to_sync, fails_to_write, watch, writes

pytestmark = pytest.mark.anyio
_SIZE = FRAME_SIZE + 4


def _size(path: Path) -> int:
    return path.stat().st_size


async def _append_together(appends: Appends, commits: Commits, records: list[bytes]) -> None:
    """Append records as one commit."""
    before = len(commits.asked)
    async with anyio.create_task_group() as tasks:
        for record in records:
            tasks.start_soon(appends.append, record)
    assert commits.asked[before][0] in {"WRITE", "WRITEV"}


# --- short writes ---------------------------------------------------------------------------------


async def test_a_short_write_goes_on_and_is_synced_again(io: AsyncIoManager, tmp_path: Path) -> None:
    async with open_append_log(tmp_path / "log", io=io) as log:
        commits, appends = watch(io), Appends(log)
        commits.faults += [writes(3), writes(_SIZE), writes(1)]
        await _append_together(appends, commits, [b"%04d" % i for i in range(3)])
        assert commits.asked == [("WRITE", "FSYNC")] * 4, "the sync is asked anew with each rest"
        assert log.statistics().short_writes == 3
        assert log.statistics().syncs == 1
        assert log.durable_end == log.end
    assert sorted(record for _, record in await contents(tmp_path / "log")) == [b"0000", b"0001", b"0002"]


async def test_nothing_is_acknowledged_before_the_rest_is_synced(io: AsyncIoManager, tmp_path: Path) -> None:
    async with open_append_log(tmp_path / "log", io=io) as log:
        commits, appends = watch(io), Appends(log)
        gate = commits.hold()
        commits.faults.append(writes(_SIZE + 1))
        async with anyio.create_task_group() as tasks:
            for record in (b"1111", b"2222"):
                tasks.start_soon(appends.append, record)
            await until(lambda: commits.held == 1)
            gate.set()
            second = commits.hold()
            await until(lambda: len(commits.asked) == 2)
            # The first record is whole in the file, and its sync did not happen.
            assert _size(tmp_path / "log") > HEADER_SIZE + _SIZE
            assert not appends.offsets
            assert log.durable_end == HEADER_SIZE
            second.set()
        assert len(appends.offsets) == 2


async def test_a_short_write_of_several_buffers(io: AsyncIoManager, tmp_path: Path) -> None:
    """The rest is cut out of a vector, wherever in it the write ended."""
    records = [b"a" * 70_000, b"b" * 10, b"c" * 70_000]
    async with open_append_log(tmp_path / "log", io=io) as log:
        commits = watch(io)

        def short(count: int) -> Any:
            async def fault(asked: list[Any], carry_out: Callable[[list[Any]], Any]) -> list[int]:
                memory = asked[0].memory
                data = b"".join(map(bytes, memory)) if isinstance(memory, list) else bytes(memory)
                os.pwrite(asked[0].fd, data[:count], asked[0].offset)
                return [count, -errno.ECANCELED]

            return fault

        commits.faults += [short(7), short(70_009), short(25), short(3), short(16)]
        appends = Appends(log)
        await _append_together(appends, commits, records)
        assert log.statistics().short_writes == 5
        assert log.statistics().commits == 1
    assert sorted(record for _, record in await contents(tmp_path / "log")) == records


async def test_a_write_of_nothing_is_an_error(io: AsyncIoManager, tmp_path: Path) -> None:
    async with open_append_log(tmp_path / "log", io=io) as log:
        commits = watch(io)
        commits.faults.append(fails_to_write(0))
        with pytest.raises(OSError, match=f"Errno {errno.EIO}"):
            await log.append(b"x")
        await log.append(b"y")


# --- no room --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO])
@pytest.mark.parametrize("mode", list(FsyncMode))
async def test_where_nothing_can_be_written_the_log_goes_on(
    io: AsyncIoManager, tmp_path: Path, number: int, mode: FsyncMode
) -> None:
    async with open_append_log(tmp_path / "log", io=io, fsync=mode) as log:
        commits, appends = watch(io), Appends(log)
        await log.append(b"before")
        end = log.end
        commits.faults.append(fails_to_write(number))
        await _append_together(appends, commits, [b"1111", b"2222"])
        assert [error.errno for error in appends.errors.values()] == [number] * 2
        assert all(type(error) is type(OSError(number, "")) for error in appends.errors.values())
        assert {error.filename for error in appends.errors.values()} == {str(tmp_path / "log")}
        assert log.end == end
        assert _size(tmp_path / "log") == end
        assert log.statistics().failed == 2
        assert await log.append(b"after") == end
    assert [record for _, record in await contents(tmp_path / "log")] == [b"before", b"after"]


@pytest.mark.parametrize("rest", [0, 3])
@pytest.mark.parametrize("mode", list(FsyncMode))
async def test_what_is_whole_in_the_file_is_acknowledged_and_the_rest_cut_off(
    io: AsyncIoManager, tmp_path: Path, mode: FsyncMode, rest: int
) -> None:
    async with open_append_log(tmp_path / "log", io=io, fsync=mode) as log:
        commits, appends = watch(io), Appends(log)
        commits.faults += [writes(2 * _SIZE + rest), fails_to_write(errno.ENOSPC)]
        await _append_together(appends, commits, [b"%04d" % i for i in range(4)])
        assert len(appends.offsets) == len(appends.errors) == 2
        assert log.end == HEADER_SIZE + 2 * _SIZE == _size(tmp_path / "log")
        if mode is FsyncMode.ALWAYS:
            assert commits.asked[-1] == ("FSYNC",), "what is kept is synced before it is acknowledged"
            assert log.durable_end == log.end
        assert await log.append(b"after") == HEADER_SIZE + 2 * _SIZE
        assert log.statistics().appends == 3
        assert log.statistics().failed == 2
    kept = sorted((offset, record) for record, offset in appends.offsets.items())
    assert await contents(tmp_path / "log") == [*kept, (HEADER_SIZE + 2 * _SIZE, b"after")]


async def test_where_it_cannot_be_cut_back_the_log_is_at_its_end(
    io: AsyncIoManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def cut(self: LogFile, end: int) -> None:
        raise OSError(errno.EROFS, "read-only")

    async with open_append_log(tmp_path / "log", io=io) as log:
        monkeypatch.setattr(LogFile, "cut", cut)
        watch(io).faults.append(fails_to_write(errno.ENOSPC))
        with pytest.raises(DurabilityLostError, match="read-only") as caught:
            await log.append(b"x")
        assert caught.value.errno == errno.EROFS
        with pytest.raises(DurabilityLostError):
            await log.append(b"y")


_LIMITED = """
import errno, resource, sys, anyio
from anyio_uring import open_uring, open_append_log, read_append_log

async def main():
    path, driver = sys.argv[1:3]
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    kept, failed = [], []
    async with open_uring(driver=driver) as io, open_append_log(path, io=io) as log:
        async def append(i):
            try:
                kept.append((await log.append(b"%04d" % i * 25), b"%04d" % i * 25))
            except OSError as exc:
                failed.append(exc.errno)
        for first in range(0, 60, 20):
            async with anyio.create_task_group() as tasks:
                for i in range(first, first + 20):
                    tasks.start_soon(append, i)
        assert set(failed) == {errno.EFBIG}, failed
        assert len(kept) == (4096 - 40) // 116 and len(kept) + len(failed) == 60
        assert log.statistics().short_writes, "the limit cuts a write short first"
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))
        await append(99)
        assert kept[-1][1].startswith(b"0099")
        reader = read_append_log(path)
        assert [pair async for pair in reader] == sorted(kept)
        assert reader.torn_at is None
    print("done")

anyio.run(main, backend=sys.argv[3])
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_real_limit_cuts_a_write_short_and_refuses_the_next(driver: str, backend: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _LIMITED, str(tmp_path / "log"), driver, backend],
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 256 KiB."""
    directory = tmp_path / "small"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(directory)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small filesystem needs the right to mount one: {done.stderr.strip()}")
    yield directory
    subprocess.run(["umount", "-l", str(directory)], check=True)


async def test_a_full_filesystem(io: AsyncIoManager, small: Path) -> None:
    path = small / "log"
    async with open_append_log(path, io=io) as log:
        appends = Appends(log)
        for i in range(0, 64, 16):
            async with anyio.create_task_group() as tasks:
                for k in range(i, i + 16):
                    tasks.start_soon(appends.append, b"%08d" % k * 1024)
        assert {error.errno for error in appends.errors.values()} == {errno.ENOSPC}
        assert 20 < len(appends.offsets) < 32
        assert path.stat().st_size == log.end
        found = await contents(path)
        assert found == sorted((offset, record) for record, offset in appends.offsets.items())
        # There is room again.
        await anyio.run_process(["mount", "-o", "remount,size=1m", str(small)])
        await appends.append(b"after")
        assert not any(record == b"after" for record in appends.errors)
    assert await contents(path) == [*found, (appends.offsets[b"after"], b"after")]


# --- failed syncs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
async def test_a_failed_sync_ends_the_log_and_nothing_is_tried_again(
    io: AsyncIoManager, tmp_path: Path, number: int
) -> None:
    path = tmp_path / "log"
    async with open_append_log(path, io=io) as log:
        commits, appends = watch(io), Appends(log)
        await log.append(b"durable")
        durable = log.end
        gate = commits.hold()
        commits.faults.append(fails_to_sync(number))
        async with anyio.create_task_group() as tasks:
            for record in (b"1", b"2", b"3"):
                tasks.start_soon(appends.append, record)
            await until(lambda: commits.held == 1)
            tasks.start_soon(appends.append, b"gathered meanwhile")
            await until(lambda: log.statistics().waiting == 4)
            gate.set()
        assert not appends.offsets
        assert len({id(error) for error in appends.errors.values()}) == 4, "each has its own"
        for error in appends.errors.values():
            assert isinstance(error, DurabilityLostError)
            assert (error.errno, error.filename, error.durable_end) == (number, str(path), durable)
            assert isinstance(error.__cause__, OSError)
            assert error.__cause__.__cause__ is None
            assert re.search(f"behind offset {durable} .*check the disk, open the log again, and append", str(error))
        asked = len(commits.asked)
        for call in (log.append(b"x"), log.sync(), log.rotate(tmp_path / "next")):
            with pytest.raises(DurabilityLostError):
                await call
        assert len(commits.asked) == asked == 2, "nothing is tried again"
        assert log.durable_end == log.end == durable
    assert len(commits.asked) == 2, "not by closing, either"
    assert not (tmp_path / "next").exists()


async def test_a_commit_that_ends_without_a_result_is_lost(io: AsyncIoManager, tmp_path: Path) -> None:
    """What is wrong then is a defect: nobody knows what of the commit happened, and the error says what ended it."""

    async def breaks(_asked: object, _carry_out: object) -> list[int]:
        raise ArithmeticError("a defect")

    async with open_append_log(tmp_path / "log", io=io) as log:
        watch(io).faults.append(breaks)
        with pytest.raises(DurabilityLostError, match="ArithmeticError: a defect") as caught:
            await log.append(b"1")
        cause = caught.value.__cause__
        assert isinstance(cause, OSError)
        assert (cause.errno, cause.filename) == (errno.EIO, str(tmp_path / "log"))
        assert isinstance(cause.__cause__, ArithmeticError)
        with pytest.raises(DurabilityLostError):
            await log.append(b"2")


@pytest.mark.parametrize("ending", [False, True])
async def test_a_commit_that_cannot_be_made_up_is_lost(
    io: AsyncIoManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, ending: bool
) -> None:
    """Whoever was taken for it hears of that, and so does whoever comes later, also at the end of the block."""

    def breaks(header: FileHeader, offset: int, unsynced: int, record: bytes) -> bytes:
        if record == b"2":
            raise ArithmeticError("a defect")
        return frame(header, offset, unsynced, record)

    monkeypatch.setattr(_log_commit, "frame", breaks)
    records = [b"1", b"2", b"3"]
    async with anyio.create_task_group() as tasks, open_append_log(tmp_path / "log", io=io) as log:
        commits, appends = watch(io), Appends(log)
        gate = commits.hold()
        tasks.start_soon(appends.append, b"0")
        await until(lambda: commits.held == 1)
        for record in records:
            tasks.start_soon(appends.append, record)
        await until(lambda: log.statistics().waiting == 4)
        gate.set()
        if not ending:
            await until(lambda: len(appends.errors) == 3)
            with pytest.raises(DurabilityLostError, match="ArithmeticError: a defect"):
                await log.append(b"4")
    assert [*appends.offsets] == [b"0"]
    assert sorted(appends.errors) == records
    assert {type(error) for error in appends.errors.values()} == {DurabilityLostError}
    statistics = log.statistics()
    assert (statistics.appends, statistics.waiting, statistics.failed) == (1, 0, 3 if ending else 4)


async def test_a_close_that_fails_is_told_at_the_end_of_the_block(
    io: AsyncIoManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aclose = LogFile.aclose

    async def fails(self: LogFile) -> None:
        await aclose(self)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(LogFile, "aclose", fails)
    with pytest.raises(OSError) as caught:
        async with open_append_log(tmp_path / "log", io=io) as log:
            await log.append(b"acknowledged")
    assert caught.value.errno == errno.EIO
    assert [record for _, record in await contents(tmp_path / "log")] == [b"acknowledged"]


@asyncio_only
async def test_a_rotation_whose_task_is_cancelled_with_all_others(io: AsyncIoManager, tmp_path: Path) -> None:
    """As asyncio.run() does at its end: whoever asked for it hears of that, and the log goes on in its file."""
    begun = anyio.Event()
    errors: list[OSError] = []

    async def never_ends(*_: Any, **__: Any) -> NoReturn:
        begun.set()
        await anyio.sleep_forever()
        raise AssertionError

    async def rotate() -> None:
        with pytest.raises(OSError, match="interrupted") as caught:
            await log.rotate(tmp_path / "next")
        errors.append(caught.value)

    async with open_append_log(tmp_path / "log", io=io) as log:
        await log.append(b"1")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_append_log, "create_log_file", never_ends)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(rotate)
                await begun.wait()
                (its_task,) = (task for task in asyncio.all_tasks() if task.get_name() == "anyio_uring log")
                its_task.cancel()
        assert [error.errno for error in errors] == [errno.ECANCELED]
        await log.append(b"2")
        await log.rotate(tmp_path / "next")
        await log.append(b"3")
    assert [record for _, record in await contents(tmp_path / "log")] == [b"1", b"2"]
    assert [record for _, record in await contents(tmp_path / "next")] == [b"3"]


async def test_what_fails_in_the_background_is_told_to_the_next(
    io: AsyncIoManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_append_log, "_SYNC_INTERVAL_S", 0.001)
    async with open_append_log(tmp_path / "log", io=io, fsync=FsyncMode.EVERY_SECOND) as log:
        watch(io).faults += [None, fails_to_sync(errno.EIO)]
        await log.append(b"acknowledged")
        await until(lambda: log._lost is not None)
        with pytest.raises(DurabilityLostError) as caught:
            await log.append(b"next")
        assert caught.value.durable_end == HEADER_SIZE


@pytest.mark.parametrize("is_closing", [False, True])
async def test_what_nobody_has_been_told_closing_tells(
    io: AsyncIoManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_closing: bool
) -> None:
    if not is_closing:
        monkeypatch.setattr(_append_log, "_SYNC_INTERVAL_S", 0.001)
    with pytest.raises(DurabilityLostError):  # noqa: PT012 - at the end of the block
        async with open_append_log(tmp_path / "log", io=io, fsync=FsyncMode.EVERY_SECOND) as log:
            watch(io).faults += [None, fails_to_sync(errno.EIO)]
            await log.append(b"acknowledged")
            if not is_closing:
                await until(lambda: log._lost is not None)
    async with open_append_log(tmp_path / "log", io=io):
        pass


@pytest.mark.parametrize("ask", ["sync", "rotate"])
async def test_a_sync_that_was_asked_for_fails(io: AsyncIoManager, tmp_path: Path, ask: str) -> None:
    async with open_append_log(tmp_path / "log", io=io, fsync=FsyncMode.NEVER) as log:
        watch(io).faults += [None, fails_to_sync(errno.EIO)]
        await log.append(b"x")
        call = log.sync if ask == "sync" else partial(log.rotate, tmp_path / "next")
        with pytest.raises(DurabilityLostError):
            await call()
        with pytest.raises(DurabilityLostError):
            await log.append(b"y")
    assert not (tmp_path / "next").exists()


async def test_the_sync_of_what_is_kept_after_a_full_disk_fails(io: AsyncIoManager, tmp_path: Path) -> None:
    async with open_append_log(tmp_path / "log", io=io) as log:
        commits, appends = watch(io), Appends(log)
        commits.faults += [writes(_SIZE + 1), fails_to_write(errno.ENOSPC), fails_to_sync(errno.EIO)]
        await _append_together(appends, commits, [b"1111", b"2222"])
        assert {type(error) for error in appends.errors.values()} == {DurabilityLostError}
        assert len(appends.errors) == 2


async def test_a_manager_that_is_closed_under_the_log(driver: Any, tmp_path: Path) -> None:
    async with open_uring(driver=driver) as io:
        opening = open_append_log(tmp_path / "log", io=io)
        log = await opening.__aenter__()
        assert await log.append(b"x") == HEADER_SIZE
        commits = watch(io)

        async def closed(asked: list[Any], carry_out: Any) -> list[int]:
            raise anyio.ClosedResourceError("the manager is closed")

        commits.faults.append(closed)
        with pytest.raises(DurabilityLostError, match="the manager is closed"):
            await log.append(b"y")
        await opening.__aexit__(None, None, None)


async def test_a_sync_beside_a_record_that_does_not_fit(io: AsyncIoManager, tmp_path: Path) -> None:
    """The record's appender hears of it; who asked for a sync has what was acknowledged, and that is synced."""
    async with open_append_log(tmp_path / "log", io=io, fsync=FsyncMode.NEVER) as log:
        await log.append(b"before")
        commits = watch(io)
        gate = commits.hold()
        synced: list[int] = []

        async def sync() -> None:
            synced.append(await log.sync())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(log.append, b"first")
            await until(lambda: commits.held == 1)
            commits.faults.append(None)
            commits.faults.append(fails_to_write(errno.EFBIG))
            appends = Appends(log)
            tasks.start_soon(appends.append, b"too much")
            tasks.start_soon(sync)
            await until(lambda: log.statistics().waiting == 3)
            commits.gate = None
            gate.set()
        assert isinstance(appends.errors[b"too much"], OSError)
        assert [log.durable_end] == synced == [log.end]
    assert [record for _, record in await contents(tmp_path / "log")] == [b"before", b"first"]


async def test_what_was_allocated_before_room_ran_out_is_given_back(
    io: AsyncIoManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ext4 keeps what fallocate(2) got, and the file is that long: the last room there is, which others want, too."""
    surely = Performer.surely
    failed = 0

    async def runs_out(self: Performer, call: Any) -> int:
        nonlocal failed
        if call.opcode is not Opcode.FALLOCATE:
            return await surely(self, call)
        failed += 1
        await surely(self, _path_calls.truncate(tmp_path / "log", 1 << 20))
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(Performer, "surely", runs_out)
    async with open_append_log(tmp_path / "log", io=io) as log:
        for record in (b"1", b"2"):
            await log.append(record)
            assert (tmp_path / "log").stat().st_size == log.end
    assert failed >= 2
    assert (tmp_path / "log").stat().st_size == log.end
    assert [record for _, record in await contents(tmp_path / "log")] == [b"1", b"2"]


def _refuse(monkeypatch: pytest.MonkeyPatch, opcode: Opcode, number: int) -> list[Any]:
    """Have path operations of one kind fail; return the list that they will be in."""
    surely, refused = Performer.surely, []

    async def refuses(self: Performer, call: Any) -> int:
        if call.opcode is not opcode:
            return await surely(self, call)
        refused.append(call)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Performer, "surely", refuses)
    return refused


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOSYS])
async def test_where_nothing_can_be_allocated_the_log_goes_on_without(
    io: AsyncIoManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """NFS before 4.2 and some FUSE filesystems cannot; a file is asked once, and one behind a rotation anew."""
    refused = _refuse(monkeypatch, Opcode.FALLOCATE, number)
    async with open_append_log(tmp_path / "log", io=io, preallocate=4096) as log:
        for _ in range(3):
            await log.append(bytes(5000))
            assert (tmp_path / "log").stat().st_size == log.end
        assert len(refused) == 1
        await log.rotate(tmp_path / "next")
        await log.append(bytes(5000))
        assert len(refused) == 2
    assert [len(record) for _, record in await contents(tmp_path / "log")] == [5000] * 3
    assert [len(record) for _, record in await contents(tmp_path / "next")] == [5000]


async def test_a_filesystem_without_locks_is_an_error(
    io: AsyncIoManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one that says that somebody else has the log; nothing was changed, and nothing stays open."""
    await _append_one(io, tmp_path / "log")
    before, opened = (tmp_path / "log").read_bytes(), len(os.listdir("/proc/self/fd"))

    def flock(_fd: int, operation: int) -> None:
        if operation & fcntl.LOCK_EX:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("anyio_uring._log_file.fcntl.flock", flock)
    with pytest.raises(OSError) as caught:
        await _append_one(io, tmp_path / "log")
    assert (caught.value.errno, type(caught.value)) == (errno.ENOLCK, OSError)
    assert caught.value.filename == str(tmp_path / "log")
    assert (tmp_path / "log").read_bytes() == before
    assert len(os.listdir("/proc/self/fd")) == opened


async def _append_one(io: AsyncIoManager, path: Path) -> None:
    async with open_append_log(path, io=io) as log:
        await log.append(b"x")


async def test_a_rotation_where_a_rename_may_replace_something(
    io: AsyncIoManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some filesystems have no RENAME_NOREPLACE, and answer so; links they have."""
    refused = _refuse(monkeypatch, Opcode.RENAMEAT, errno.EINVAL)
    async with open_append_log(tmp_path / "log", io=io) as log:
        await log.rotate(tmp_path / "next")
        with pytest.raises(FileExistsError):
            await log.rotate(tmp_path / "log")
        assert len(refused) == 2
        assert await log.append(b"x") == HEADER_SIZE
    assert await contents(tmp_path / "next") == [(HEADER_SIZE, b"x")]
    assert sorted(os.listdir(tmp_path)) == ["log", "next"]

"""The faulty disk does what the tests of durability believe of it; and the manager's verbs on it."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from anyio_uring import AsyncIoManager, RwFlags, open_file, open_uring

from . import faulty_disk as module
from .faulty_disk import FaultyDisk, faulty_disk
from .helpers import in_flight, until

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="FUSE is mounted as Linux does it"),
]


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _saved(path: Path, data: bytes) -> int:
    """Return the descriptor of a new file with these durable bytes, under a durable name."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
    os.write(fd, data)
    os.fsync(fd)
    _sync_directory(path.parent)
    return fd


def _failure(disk: FaultyDisk) -> int | None:
    try:
        os.listdir(disk.path)
    except OSError as exc:
        return exc.errno
    return None


# --- what a crash takes -------------------------------------------------------------------------


def test_what_was_not_synced_is_dropped(disk: FaultyDisk) -> None:
    fd = _saved(disk.path / "file", b"durable")
    os.pwrite(fd, b"DUR", 0)
    os.pwrite(fd, b" and more", 7)
    assert disk.tree() == {"file": b"DURable and more"}
    disk.crash()
    os.close(fd)
    assert _failure(disk) == errno.EIO
    disk.recover()
    assert (disk.path / "file").read_bytes() == b"durable"


def test_a_name_is_durable_when_its_directory_is(disk: FaultyDisk) -> None:
    with (disk.path / "nameless").open("wb") as file:
        file.write(b"synced")
        file.flush()
        os.fsync(file.fileno())
    disk.crash()
    disk.recover()
    assert os.listdir(disk.path) == []

    (disk.path / "empty").write_bytes(b"never synced")
    _sync_directory(disk.path)
    disk.crash()
    disk.recover()
    assert disk.tree() == {"empty": b""}


def test_a_rename_is_undone_whole(disk: FaultyDisk) -> None:
    for name in ("old", "new"):
        os.close(_saved(disk.path / name, name.encode()))
    os.rename(disk.path / "new", disk.path / "old")
    assert disk.tree() == {"old": b"new"}
    disk.crash()
    disk.recover()
    assert disk.tree() == {"old": b"old", "new": b"new"}


def test_tearing_leaves_parts_in_any_order_as_the_seed_says(disk: FaultyDisk) -> None:
    def torn(seed: int) -> bytes:
        disk.wipe()
        fd = _saved(disk.path / "file", b"")
        os.pwrite(fd, b"aaaa", 0)
        os.pwrite(fd, b"bbbb", 4)
        os.close(fd)
        disk.crash("tear", seed)
        disk.recover()
        return (disk.path / "file").read_bytes()

    seen = {seed: torn(seed) for seed in range(40)}
    assert torn(7) == seen[7]
    outcomes = set(seen.values())
    assert {b"", b"aaaabbbb"} < outcomes
    assert any(0 < len(content) < 4 for content in outcomes), "no first write was torn"
    assert any(content.startswith(bytes(4)) for content in outcomes), "no second write came without the first"


def test_tearing_can_leave_a_rename_without_the_bytes(disk: FaultyDisk) -> None:
    """So an atomic replacement that syncs nothing is found out."""
    outcomes = set()
    for seed in range(40):
        disk.wipe()
        os.close(_saved(disk.path / "file", b"old"))
        (disk.path / "new").write_bytes(b"content")
        os.rename(disk.path / "new", disk.path / "file")
        disk.crash("tear", seed)
        disk.recover()
        outcomes.add(disk.tree()["file"])
    assert {b"old", b"", b"content"} < outcomes


def test_crashing_before_an_operation(disk: FaultyDisk) -> None:
    fd = _saved(disk.path / "file", b"1234")
    assert disk.operations() == ["create", "write", "fsync", "fsyncdir"]
    disk.reset()
    disk.crash_before(3)
    os.pwrite(fd, b"A", 0)
    os.fdatasync(fd)
    os.pwrite(fd, b"B", 1)
    with pytest.raises(OSError) as raised:
        os.pwrite(fd, b"C", 2)
    assert raised.value.errno == errno.EIO
    assert disk.operations() == ["write", "fsync", "write"]
    os.close(fd)
    disk.recover()
    assert disk.tree() == {"file": b"A234"}


def test_a_mode_is_durable_with_fsync_and_not_with_fdatasync(disk: FaultyDisk) -> None:
    fd = _saved(disk.path / "file", b"")
    for sync, expected in ((os.fdatasync, 0o644), (os.fsync, 0o600)):
        os.fchmod(fd, 0o600)
        sync(fd)
        os.close(fd)
        disk.crash()
        disk.recover()
        fd = os.open(disk.path / "file", os.O_RDWR)
        assert os.fstat(fd).st_mode & 0o777 == expected
    os.close(fd)


# --- faults -------------------------------------------------------------------------------------


async def test_what_a_failed_sync_lost_stays_lost(disk: FaultyDisk, io: AsyncIoManager) -> None:
    fd = _saved(disk.path / "file", b"....")
    disk.fail("fsync")
    await io.write(fd, b"A", 0)
    with pytest.raises(OSError) as raised:
        await io.fdatasync(fd)
    assert raised.value.errno == errno.EIO
    await io.write(fd, b"B", 5)
    await io.fdatasync(fd)
    assert disk.tree() == {"file": b"....\0B"}
    os.close(fd)
    disk.crash()
    disk.recover()
    assert disk.tree() == {"file": b"....\0B"}


@pytest.mark.parametrize("flags", [RwFlags.DSYNC, RwFlags.SYNC], ids=["DSYNC", "SYNC"])
async def test_a_synced_write_reaches_the_disk(disk: FaultyDisk, io: AsyncIoManager, flags: RwFlags) -> None:
    fd = _saved(disk.path / "file", b"....")
    await io.write(fd, b"A", 0, flags=flags)
    os.close(fd)
    disk.crash()
    disk.recover()
    assert disk.tree() == {"file": b"A..."}


async def test_the_nth_write_fails(disk: FaultyDisk, io: AsyncIoManager) -> None:
    fd = _saved(disk.path / "file", b"")
    disk.fail("write", errno.EDQUOT, nth=2, times=2)
    assert await io.write(fd, b"1", 0) == 1
    for _ in range(2):
        with pytest.raises(OSError) as raised:
            await io.write(fd, b"2", 1)
        assert raised.value.errno == errno.EDQUOT
    assert await io.write(fd, b"3", 1) == 1
    os.close(fd)
    assert disk.tree() == {"file": b"13"}


async def test_short_writes_are_continued(disk: FaultyDisk, io: AsyncIoManager) -> None:
    fd = _saved(disk.path / "file", b"")
    disk.reset()
    disk.limit(write_max=1000)
    data = os.urandom(9500)
    await io.write_all(fd, data, 0)
    # The kernel splits some of them at the end of a page.
    assert len(disk.operations()) >= 10 and set(disk.operations()) == {"write"}
    assert await io.write_and_sync(fd, data[::-1], 0) == 9500
    os.close(fd)
    disk.crash()
    disk.recover()
    assert disk.tree() == {"file": data[::-1]}


@pytest.mark.parametrize("read_max", [4096, 5000])
async def test_short_reads_are_continued(disk: FaultyDisk, io: AsyncIoManager, read_max: int) -> None:
    """Wherever they end, also within a block."""
    data = os.urandom(20_000)
    os.close(_saved(disk.path / "file", data))
    fd = os.open(disk.path / "file", os.O_RDONLY | os.O_DIRECT)
    disk.limit(read_max=read_max)
    part = await io.read(fd, 8192, 0)
    assert part == data[: len(part)]
    # Threads ask for the rest of what RWF_NOWAIT gave them, which may be all.
    assert len(part) == read_max or (io.driver == "threads" and len(part) == 8192)
    assert await io.read_exactly(fd, 16384, 0) == data[:16384]
    assert await io.read_exactly(fd, 9_000, 3_001) == data[3_001:12_001]
    with pytest.raises(anyio.IncompleteRead):
        await io.read_exactly(fd, 9_000, 16_000)
    os.close(fd)


async def test_there_is_room_for_so_many_bytes(disk: FaultyDisk, io: AsyncIoManager) -> None:
    fd = _saved(disk.path / "file", b"full")
    disk.limit(space=6)
    with pytest.raises(OSError) as raised:
        await io.write_all(fd, b"0123456789", 4)
    assert raised.value.errno == errno.ENOSPC
    assert disk.tree() == {"file": b"full012345"}
    await io.write_all(fd, b"over", 0)
    disk.limit()
    await io.write_all(fd, b"6789", 10)
    os.close(fd)
    assert disk.tree() == {"file": b"over0123456789"}


async def test_reads_wait_until_they_are_let_go(disk: FaultyDisk, io: AsyncIoManager) -> None:
    fd = _saved(disk.path / "file", b"0123456789")
    file = os.open(disk.path / "file", os.O_RDONLY)  # the kernel forgets the pages of a file that is opened
    disk.hold("read")
    results: list[bytes] = []

    async def read() -> None:
        results.append(await io.read(file, 4, 0))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        await in_flight(io, 1)
        await anyio.to_thread.run_sync(disk.wait_until_held)
        assert not results
        disk.release()
    assert results == [b"0123"]
    for each in (fd, file):
        os.close(each)


async def _read_all(io: AsyncIoManager, path: Path) -> None:
    async with await open_file(path, "rb", io=io) as file:
        assert await file.read() == bytes(1 << 20)


async def _ask_alignment(io: AsyncIoManager, fd: int) -> None:
    io.direct_alignment(fd)


@pytest.mark.parametrize("verb", ["write", "large_read", "alignment", "file"])
async def test_the_event_loop_waits_for_no_server(disk: FaultyDisk, io: AsyncIoManager, verb: str) -> None:
    """``fstat(2)`` asks it, on FUSE and NFS: with one on its thread, the loop would stand still as long as that takes."""
    fd = _saved(disk.path / "file", bytes(1 << 20))
    operations: dict[str, Callable[[], Awaitable[object]]] = {
        "write": lambda: io.write(fd, b"A", 0),
        "large_read": lambda: io.read(fd, 1 << 20, 0),
        "alignment": partial(_ask_alignment, io, fd),
        "file": partial(_read_all, io, disk.path / "file"),
    }
    is_done = anyio.Event()

    async def work() -> None:
        await operations[verb]()
        is_done.set()

    disk.hold("getattr")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        await until(lambda: io.statistics().in_flight > 0 or is_done.is_set())
        disk.release()
    assert disk.expired() == []
    os.close(fd)


@pytest.mark.filesystem
@pytest.mark.parametrize("is_cancelled", [False, True], ids=["", "cancelled"])
async def test_the_server_dies_with_reads_in_flight(driver: Any, tmp_path: Path, is_cancelled: bool) -> None:
    """Each read ends, with an error or with the cancellation, and the manager closes (C10)."""
    outcomes: list[int | None] = []
    (tmp_path / "mount").mkdir()
    with faulty_disk(tmp_path / "mount") as disk:
        for index in range(4):
            (disk.path / str(index)).write_bytes(b"content")
        files = [os.open(disk.path / str(index), os.O_RDONLY) for index in range(4)]
        disk.hold("read")
        async with open_uring(driver=driver, nowait=False) as io:

            async def read(file: int) -> None:
                try:
                    await io.read(file, 7, 0)
                except OSError as exc:
                    outcomes.append(exc.errno)
                except anyio.get_cancelled_exc_class():
                    outcomes.append(None)
                    raise

            async with anyio.create_task_group() as tasks:
                for file in files:
                    tasks.start_soon(read, file)
                await in_flight(io, 4)
                await anyio.to_thread.run_sync(disk.wait_until_held, 4)
                if is_cancelled:
                    tasks.cancel_scope.cancel()
                    for _ in range(5):  # the kernel is asked to cancel them, and cannot
                        await anyio.lowlevel.cancel_shielded_checkpoint()
                disk.kill()
        for file in files:
            with pytest.raises(OSError, match="not connected"):
                os.close(file)  # close(2): the descriptor is gone all the same
    assert len(outcomes) == 4
    allowed = {errno.ECONNABORTED, errno.ENOTCONN} | ({None} if is_cancelled else set())
    assert set(outcomes) <= allowed


def test_without_fuse_the_reason_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = tmp_path / "missing"
    monkeypatch.delenv(module.EXPECTED, raising=False)
    with pytest.raises(pytest.skip.Exception, match="no FUSE here: "), faulty_disk(missing):
        pass
    monkeypatch.setenv(module.EXPECTED, "1")
    with pytest.raises(pytest.fail.Exception, match="no FUSE here: "), faulty_disk(missing):
        pass

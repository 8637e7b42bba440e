"""A file is replaced whole or not at all: what is written, what is refused, and what a cancellation leaves."""

from __future__ import annotations

import array
import asyncio
import errno
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from anyio_uring import AsyncIoManager, atomic_write, open_uring

from .faulty_disk import FaultyDisk
from .helpers import asyncio_only

pytestmark = pytest.mark.anyio

LONG = os.urandom(300_000)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "directory" / "target"
    path.parent.mkdir()
    path.write_bytes(b"old")
    path.chmod(0o640)
    return path


@pytest.fixture
def umask() -> Iterator[int]:
    before = os.umask(0o027)
    yield 0o027
    os.umask(before)


def _content(path: Path) -> bytes:
    """Return a file's content; there must be nothing else in its directory."""
    assert os.listdir(path.parent) == [path.name]
    return path.read_bytes()


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- what is written ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [b"new", bytearray(b"new"), memoryview(b"xnewx")[1:4], array.array("I", range(9)), b"", LONG],
    ids=["bytes", "bytearray", "memoryview", "array", "empty", "long"],
)
async def test_a_file_is_replaced(target: Path, io: AsyncIoManager, data: Any) -> None:
    inode = target.stat().st_ino
    reader = os.open(target, os.O_RDONLY)
    await atomic_write(target, data, io=io)
    assert _content(target) == bytes(memoryview(data).cast("B"))
    assert target.stat().st_ino != inode
    assert os.read(reader, 10) == b"old"  # whoever has the old file open keeps it
    os.close(reader)


@pytest.mark.parametrize("kind", [str, os.fsencode, Path], ids=["str", "bytes", "path"])
async def test_a_path_may_be_of_any_kind(target: Path, io: AsyncIoManager, kind: Any) -> None:
    target.unlink()
    await atomic_write(kind(target), b"new", io=io)
    assert _content(target) == b"new"
    missing = kind(target.parent / "missing" / "target")
    with pytest.raises(FileNotFoundError) as raised:
        await atomic_write(missing, b"new", io=io)
    assert raised.value.filename == os.fspath(missing)


async def test_a_name_in_the_working_directory(
    target: Path, io: AsyncIoManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(target.parent)
    await atomic_write("target", b"new", io=io)
    assert _content(target) == b"new"


async def test_the_longest_name(target: Path, io: AsyncIoManager) -> None:
    name = target.with_name("x" * 255)
    target.rename(name)
    await atomic_write(name, b"new", io=io)
    assert _content(name) == b"new"


async def test_without_a_manager_it_takes_the_innermost_one_or_threads(target: Path, driver: Any) -> None:
    await atomic_write(target, b"threads")
    assert _content(target) == b"threads"
    async with open_uring(driver=driver) as io:
        await atomic_write(target, b"manager")
        assert io.statistics().bytes_written == 7
    assert _content(target) == b"manager"


@pytest.mark.parametrize("options", [{"restrict": True}, {"sqpoll": True}, {"depth": 1}], ids=str)
async def test_a_manager_of_any_mode_will_do(target: Path, driver: Any, options: dict[str, Any]) -> None:
    async with open_uring(driver=driver, **options) as io:
        await atomic_write(target, LONG, mode=0o666, io=io)
    assert _content(target) == LONG
    assert _mode(target) == 0o666


async def test_a_manager_that_cannot_sync_is_refused(target: Path) -> None:
    # On threads, where it is accepted without a device that has poll queues.
    async with open_uring(driver="threads", iopoll=True) as io:
        with pytest.raises(ValueError, match="without iopoll"):
            await atomic_write(target, b"new", io=io)
    assert _content(target) == b"old"


async def test_a_reader_sees_the_old_file_or_the_new_one(target: Path, io: AsyncIoManager) -> None:
    contents = [bytes([index]) * 40_000 for index in range(1, 16)]
    allowed = {b"old", *contents}
    seen: list[bytes] = []
    is_over = threading.Event()

    def read() -> None:
        while not is_over.is_set():
            seen.append(target.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for content in contents:
            await atomic_write(target, content, io=io)
    finally:
        is_over.set()
        await anyio.to_thread.run_sync(reader.join)
    assert seen and set(seen) <= allowed
    assert _content(target) == contents[-1]


async def test_many_at_once(target: Path, io: AsyncIoManager) -> None:
    contents = [bytes([index]) * 1000 for index in range(20)]
    async with anyio.create_task_group() as tasks:
        for content in contents:
            tasks.start_soon(partial(atomic_write, target, content, io=io))
    assert _content(target) in contents


# --- modes --------------------------------------------------------------------------------------


async def test_a_new_file_has_what_the_umask_leaves(target: Path, io: AsyncIoManager, umask: int) -> None:
    target.unlink()
    await atomic_write(target, b"new", io=io)
    assert _mode(target) == 0o666 & ~umask


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o666, 0o777, 0o400], ids=oct)
async def test_the_mode_of_the_file_replaced_is_kept(target: Path, io: AsyncIoManager, umask: int, mode: int) -> None:
    target.chmod(mode)
    await atomic_write(target, b"new", io=io)
    assert _mode(target) == mode
    assert _content(target) == b"new"


async def test_what_lets_others_act_as_the_owner_is_not_kept(target: Path, io: AsyncIoManager) -> None:
    target.chmod(0o6755)
    await atomic_write(target, b"new", io=io)
    assert _mode(target) == 0o755


@pytest.mark.parametrize("mode", [0, 0o600, 0o666, 0o1777, 0o4755], ids=oct)
@pytest.mark.parametrize("exists", [True, False], ids=["exists", "new"])
async def test_a_mode_that_was_asked_for_is_what_it_gets(
    target: Path, io: AsyncIoManager, umask: int, mode: int, exists: bool
) -> None:
    if not exists:
        target.unlink()
    await atomic_write(target, b"new", mode=mode, io=io)
    assert _mode(target) == mode


async def test_the_temporary_file_is_no_more_open_than_the_file(disk: FaultyDisk, io: AsyncIoManager) -> None:
    (disk.path / "file").write_bytes(b"secret")
    (disk.path / "file").chmod(0o600)
    disk.hold("write")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(atomic_write, disk.path / "file", b"new secret", io=io))
        await anyio.to_thread.run_sync(disk.wait_until_held)
        assert [_mode(disk.path / name) for name in os.listdir(disk.path)] == [0o600, 0o600]
        disk.release()


# --- what is refused ----------------------------------------------------------------------------


async def test_arguments_that_cannot_be(target: Path, io: AsyncIoManager) -> None:
    with pytest.raises(TypeError, match=r"data must be an object with the buffer protocol .* not str"):
        await atomic_write(target, "text", io=io)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="contiguous"):
        await atomic_write(target, memoryview(b"abcd")[::2], io=io)
    for mode in (-1, 0o10000):
        with pytest.raises(ValueError, match="mode must be permission bits"):
            await atomic_write(target, b"", mode=mode, io=io)
    with pytest.raises(TypeError, match="str"):
        await atomic_write(target, b"", mode="600", io=io)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="PathLike"):
        await atomic_write(3, b"", io=io)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="zero byte"):
        await atomic_write("a\0b", b"", io=io)
    assert io.statistics().submissions == 0
    assert _content(target) == b"old"


async def test_data_cannot_be_resized_meanwhile_and_can_be_afterwards(disk: FaultyDisk, io: AsyncIoManager) -> None:
    data = bytearray(b"new")
    disk.hold("rename")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(atomic_write, disk.path / "file", data, io=io))
        await anyio.to_thread.run_sync(disk.wait_until_held)
        with pytest.raises(BufferError):
            data.clear()
        disk.release()
    data.clear()


@pytest.mark.parametrize(
    ("name", "code"),
    [("", errno.ENOENT), ("directory", errno.EISDIR), ("directory/", errno.EISDIR), ("new/", errno.EISDIR),
     (".", errno.EISDIR), ("directory/target/x", errno.ENOTDIR), ("directory/fifo", errno.EINVAL),
     ("x" * 256, errno.ENAMETOOLONG)],
)  # fmt: skip
async def test_what_cannot_be_replaced(
    target: Path, io: AsyncIoManager, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    os.mkfifo(target.parent / "fifo")
    monkeypatch.chdir(target.parent.parent)
    with pytest.raises(OSError) as raised:
        await atomic_write(name, b"new", io=io)
    assert (raised.value.errno, raised.value.filename) == (code, name)
    assert raised.value.filename2 is None
    assert os.listdir() == ["directory"]
    assert sorted(os.listdir("directory")) == ["fifo", "target"]


# --- symbolic links -----------------------------------------------------------------------------


@pytest.mark.parametrize("exists", [True, False], ids=["exists", "dangling"])
async def test_a_symbolic_link_stays_and_its_target_is_replaced(
    target: Path, tmp_path: Path, io: AsyncIoManager, exists: bool
) -> None:
    if not exists:
        target.unlink()
    second = tmp_path / "second"
    second.symlink_to(os.path.join("directory", "target"))
    first = tmp_path / "first"
    first.symlink_to(second)
    await atomic_write(first, b"new", io=io)
    assert first.is_symlink() and second.is_symlink()
    assert _content(target) == b"new"
    assert _mode(target) == 0o640 if exists else 0o644


async def test_symbolic_links_that_lead_nowhere(target: Path, tmp_path: Path, io: AsyncIoManager) -> None:
    links = {"loop": "loop", "to_directory": "directory", "to_missing": "missing/target"}
    for name, leads_to in links.items():
        (tmp_path / name).symlink_to(leads_to)
    for name, code in (("loop", errno.ELOOP), ("to_directory", errno.EISDIR), ("to_missing", errno.ENOENT)):
        with pytest.raises(OSError) as raised:
            await atomic_write(tmp_path / name, b"new", io=io)
        assert (raised.value.errno, raised.value.filename) == (code, str(tmp_path / name))
        assert os.readlink(tmp_path / name) == links[name]
    assert _content(target) == b"old"


async def test_a_file_without_a_name_is_refused(target: Path, io: AsyncIoManager) -> None:
    """A link in /proc leads to it, and what the link says is no path."""
    fd = os.open(target, os.O_RDWR)
    try:
        target.unlink()
        with pytest.raises(OSError, match="no name") as raised:
            await atomic_write(f"/proc/self/fd/{fd}", b"new", io=io)
        assert (raised.value.errno, raised.value.filename) == (errno.EINVAL, f"/proc/self/fd/{fd}")
        assert os.listdir(target.parent) == []
        assert os.pread(fd, 10, 0) == b"old"
    finally:
        os.close(fd)


# --- the temporary name -------------------------------------------------------------------------


async def test_a_temporary_name_that_is_taken_is_left_alone(
    target: Path, io: AsyncIoManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = target.parent / ".anyio_uring-taken.tmp"
    taken.symlink_to(target)
    tokens = ["taken", "taken", "free"]
    monkeypatch.setattr("secrets.token_hex", lambda _: tokens.pop(0))
    await atomic_write(target, b"new", io=io)
    assert not tokens
    assert taken.is_symlink()
    taken.unlink()
    assert _content(target) == b"new"

    monkeypatch.setattr("secrets.token_hex", lambda _: "target")
    (target.parent / ".anyio_uring-target.tmp").mkdir()
    with pytest.raises(FileExistsError, match="100 names"):
        await atomic_write(target, b"newer", io=io)


# --- cancellation -------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["create", "write", "fsync", "rename", "fsyncdir"])
@pytest.mark.parametrize("exists", [True, False], ids=["exists", "new"])
async def test_a_cancellation_leaves_the_old_file_or_the_new_one(
    disk: FaultyDisk, io: AsyncIoManager, when: str, exists: bool
) -> None:
    file = disk.path / "file"
    if exists:
        file.write_bytes(b"old")
    before = disk.tree()
    has_returned = False

    async def write() -> None:
        nonlocal has_returned
        await atomic_write(file, b"new", io=io)
        has_returned = True

    disk.hold(when)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write)
        await anyio.to_thread.run_sync(disk.wait_until_held)
        tasks.cancel_scope.cancel()
        for _ in range(5):
            await anyio.lowlevel.cancel_shielded_checkpoint()
        disk.release()
    assert has_returned == (when in {"rename", "fsyncdir"})
    assert disk.tree() == ({"file": b"new"} if has_returned else before)
    if has_returned:
        disk.crash()
        disk.recover()
        assert disk.tree() == {"file": b"new"}


async def test_cancelled_before_it_begins(target: Path, io: AsyncIoManager) -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await atomic_write(target, b"new", io=io)
    assert scope.cancelled_caught
    assert _content(target) == b"old"


@asyncio_only
@pytest.mark.parametrize("has_manager", [True, False], ids=["", "no-manager"])
@pytest.mark.parametrize("when", ["create", "write", "fsync", "rename", "fsyncdir"])
async def test_a_native_cancellation_does_the_same(disk: FaultyDisk, driver: Any, when: str, has_manager: bool) -> None:
    """C7: neither lost nor repeated, and what is renamed is synced all the same."""
    file = disk.path / "file"
    file.write_bytes(b"old")
    events: list[str] = []

    async def write() -> None:
        await atomic_write(file, b"new")
        events.append("returned")
        try:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            events.append("cancelled")
            raise

    disk.hold(when)
    async with AsyncExitStack() as stack:
        if has_manager:
            await stack.enter_async_context(open_uring(driver=driver))
        task = asyncio.create_task(write())
        await anyio.to_thread.run_sync(disk.wait_until_held)
        task.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        disk.release()
        with pytest.raises(asyncio.CancelledError):
            await task
    is_renamed = when in {"rename", "fsyncdir"}
    assert events == (["returned", "cancelled"] if is_renamed else [])
    assert disk.tree() == {"file": b"new" if is_renamed else b"old"}
    if is_renamed:
        disk.crash()
        disk.recover()
        assert disk.tree() == {"file": b"new"}

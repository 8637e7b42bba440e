"""Path operations: each gives what the function of :mod:`os` gives, and fails as it fails."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from anyio_uring import AsyncIoManager, FileStatus

SYNC_AND_WAIT = 7


def _furnish(place: Path) -> Path:
    (place / "file").write_bytes(b"content")
    (place / "other").write_bytes(b"other content")
    (place / "directory").mkdir()
    (place / "full").mkdir()
    (place / "full" / "inside").write_bytes(b"inside")
    (place / "link").symlink_to("file")
    (place / "dangling").symlink_to("nowhere")
    (place / "loop").symlink_to("loop")
    os.mkfifo(place / "fifo")
    return place


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory in which every kind of thing has one name."""
    return _furnish(tmp_path)


def _tree(place: Path) -> dict[str, Any]:
    """What is there: {name: type and permissions, links, and the content or what a link says}."""
    found: dict[str, Any] = {}
    for directory, names, files in os.walk(place):
        for name in names + files:
            path = Path(directory, name)
            status = path.lstat()
            content: object = None
            if path.is_symlink():
                content = path.readlink()
            elif stat.S_ISREG(status.st_mode):
                content = path.read_bytes()
            found[str(path.relative_to(place))] = status.st_mode, status.st_nlink, content
    return found


def _failure(exc: OSError, place: Path) -> tuple[Any, ...]:
    def named(filename: object) -> object:
        return filename.replace(str(place), "") if isinstance(filename, str) else filename

    return type(exc), exc.errno, exc.strerror, named(exc.filename), named(exc.filename2)


# (verb, paths, keywords): done with os and with a manager, in two directories that were alike.
OPERATIONS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("unlink", ("file",), {}),
    ("unlink", ("link",), {}),
    ("unlink", ("missing",), {}),
    ("unlink", ("directory",), {}),
    ("unlink", ("file/x",), {}),
    ("unlink", ("loop/x",), {}),
    ("unlink", ("x" * 300,), {}),
    ("unlink", ("",), {}),
    ("rmdir", ("directory",), {}),
    ("rmdir", ("full",), {}),
    ("rmdir", ("file",), {}),
    ("rmdir", ("missing",), {}),
    ("mkdir", ("new",), {}),
    ("mkdir", ("new", 0o700), {}),
    ("mkdir", ("file",), {}),
    ("mkdir", ("missing/new",), {}),
    ("rename", ("file", "new"), {}),
    ("rename", ("file", "other"), {}),
    ("rename", ("file", "directory"), {}),
    ("rename", ("directory", "file"), {}),
    ("rename", ("directory", "full"), {}),
    ("rename", ("missing", "new"), {}),
    ("rename", ("directory", "directory/inside"), {}),
    ("link", ("file", "new"), {}),
    ("link", ("file", "other"), {}),
    ("link", ("missing", "new"), {}),
    ("link", ("directory", "new"), {}),
    ("link", ("link", "new"), {"follow_symlinks": False}),
    ("symlink", ("file", "new"), {}),
    ("symlink", ("anything", "file"), {}),
    ("symlink", ("anything", "missing/new"), {}),
    ("truncate", ("file", 3), {}),
    ("truncate", ("file", 30), {}),
    ("truncate", ("link", 0), {}),
    ("truncate", ("missing", 0), {}),
    ("truncate", ("directory", 0), {}),
]


def _id(operation: tuple[str, tuple[Any, ...], dict[str, Any]]) -> str:
    verb, paths, keywords = operation
    return f"{verb}-{'-'.join(str(path)[:20] for path in paths)}{'-nofollow' if keywords else ''}"


@pytest.mark.anyio
@pytest.mark.parametrize("operation", OPERATIONS, ids=_id)
async def test_it_does_what_os_does(
    io: AsyncIoManager, operation: tuple[str, tuple[Any, ...], dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    verb, arguments, keywords = operation
    outcomes: list[Any] = []
    for function in (getattr(os, verb), getattr(io, verb)):
        where = _furnish(tmp_path_factory.mktemp("place"))
        absolute = [f"{where}/{path}" if isinstance(path, str) and path else path for path in arguments]
        if verb == "symlink":
            absolute[0] = arguments[0]
        outcome: Any = None
        try:
            result = function(*absolute, **keywords)
            if isinstance(result, Awaitable):
                await result
        except OSError as exc:
            outcome = _failure(exc, where)
        outcomes.append((outcome, _tree(where)))
    assert outcomes[1] == outcomes[0]


@pytest.fixture
def everything(place: Path) -> Iterator[list[str | int]]:
    """Paths of all kinds, and some descriptors."""
    fds = [os.open(place / "file", os.O_RDONLY), os.open(place / "directory", os.O_RDONLY), *os.pipe()]
    names = ["file", "directory", "full", "link", "fifo"]
    yield [*(str(place / name) for name in names), "/dev/null", "/proc/self/status", "/", ".", *fds]
    for fd in fds:
        os.close(fd)


STAT_FIELDS = [name for name in dir(os.stat_result) if name.startswith("st_") and name != "st_birthtime"]


@pytest.mark.anyio
async def test_a_status_is_that_of_os(io: AsyncIoManager, everything: list[str | int]) -> None:
    assert {"st_rdev", "st_blocks", "st_ctime_ns", "st_atime"} < set(STAT_FIELDS)
    for path in everything:
        expected = os.stat(path)
        found = await io.stat(path)
        if path == "/proc/self/status":
            continue  # its times are now, each time
        assert {name: getattr(found, name) for name in STAT_FIELDS} == {
            name: getattr(expected, name) for name in STAT_FIELDS
        }, path
        assert tuple(found) == tuple(expected)
        assert found[stat.ST_SIZE] == expected.st_size
        assert len(found) == len(expected)
        assert found.stat_result == expected
        assert found.stat_result.st_mtime_ns == expected.st_mtime_ns
        assert found.stat_result.st_blocks == expected.st_blocks


@pytest.mark.anyio
async def test_a_status_of_a_link(io: AsyncIoManager, place: Path) -> None:
    assert tuple(await io.stat(place / "link", follow_symlinks=False)) == tuple((place / "link").lstat())
    assert (await io.stat(os.fsencode(place / "dangling"), follow_symlinks=False)).st_size == len("nowhere")


@pytest.mark.anyio
async def test_what_a_status_has_beside(io: AsyncIoManager, place: Path) -> None:
    status = await io.stat(place / "file")
    assert isinstance(status, FileStatus)
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        mounts = file.read().splitlines()
    assert status.mount_id in {int(line.split()[0]) for line in mounts}
    assert status.st_birthtime_ns is not None and status.st_birthtime is not None  # ext4, XFS, Btrfs and tmpfs keep it
    assert 0 <= status.st_ctime_ns - status.st_birthtime_ns < 3600 * 10**9
    assert abs(status.st_birthtime - status.st_birthtime_ns / 1e9) < 0.001
    assert status.attributes & ~status.attributes_mask == 0
    with (place / "file").open("rb") as file:
        assert status.direct_alignment == io.direct_alignment(file)
        assert await io.stat(file) == status


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["missing", "file/x", "loop", "dangling", "x" * 300, ""])
async def test_a_status_fails_as_in_os(io: AsyncIoManager, place: Path, name: str) -> None:
    path = str(place / name) if name else ""
    with pytest.raises(OSError) as expected:
        os.stat(path)
    with pytest.raises(OSError) as caught:
        await io.stat(path)
    assert _failure(caught.value, place) == _failure(expected.value, place)


# --- open() and close() -------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_descriptor_is_open_until_it_is_closed(io: AsyncIoManager, place: Path) -> None:
    fd = await io.open(place / "new", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o640 & ~umask
    assert not os.get_inheritable(fd)
    assert os.get_blocking(fd)
    assert await io.write(fd, b"text", 0) == 4
    await io.close(fd)
    with pytest.raises(OSError) as caught:
        os.fstat(fd)
    assert caught.value.errno == errno.EBADF
    assert (place / "new").read_bytes() == b"text"


OPENS = [
    ("missing", os.O_RDONLY),
    ("file", os.O_WRONLY | os.O_CREAT | os.O_EXCL),
    ("directory", os.O_WRONLY),
    ("file", os.O_RDONLY | os.O_DIRECTORY),
    ("link", os.O_RDONLY | os.O_NOFOLLOW),
    ("loop", os.O_RDONLY),
    ("missing/new", os.O_WRONLY | os.O_CREAT),
    ("fifo", os.O_WRONLY | os.O_NONBLOCK),
    ("", os.O_RDONLY),
]


@pytest.mark.anyio
@pytest.mark.parametrize(("name", "flags"), OPENS)
async def test_an_open_fails_as_in_os(io: AsyncIoManager, place: Path, name: str, flags: int) -> None:
    path = str(place / name) if name else ""
    with pytest.raises(OSError) as expected:
        os.open(path, flags)
    with pytest.raises(OSError) as caught:
        await io.open(path, flags)
    assert _failure(caught.value, place) == _failure(expected.value, place)


@pytest.mark.anyio
@pytest.mark.parametrize("fd", [-1, 1 << 20])
async def test_a_bad_descriptor(io: AsyncIoManager, fd: int) -> None:
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: io.close(fd),
        lambda: io.stat(fd),
        lambda: io.truncate(fd, 0),
        lambda: io.fallocate(fd, 0, 0, 1),
        lambda: io.fadvise(fd, 0, 0, os.POSIX_FADV_NORMAL),
        lambda: io.sync_file_range(fd, 0, 0, SYNC_AND_WAIT),
        lambda: io.getxattr(fd, "user.x"),
        lambda: io.setxattr(fd, "user.x", b""),
        lambda: io.open("x", dir_fd=fd),
        lambda: io.stat("x", dir_fd=fd),
        lambda: io.unlink("x", dir_fd=fd),
        lambda: io.rename("x", "y", dst_dir_fd=fd, src_dir_fd=fd),
    ]
    for call in calls:
        with pytest.raises(OSError) as caught:
            await call()
        assert caught.value.errno == errno.EBADF


@pytest.mark.anyio
async def test_a_close_closes_also_when_it_is_cancelled(io: AsyncIoManager, place: Path) -> None:
    fd = os.open(place / "file", os.O_RDONLY)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await io.close(fd)
        with pytest.raises(OSError):
            os.fstat(fd)
        await anyio.lowlevel.checkpoint()
        pytest.fail("the cancellation did not strike")
    assert scope.cancelled_caught

"""Path operations: each gives what the function of :mod:`os` gives, and fails as it fails."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

from anyio_uring import (
    AsyncIoManager,
    DirectAlignment,
    FileStatus,
    Instrument,
    OperationTrace,
    UnsupportedFlagError,
    _statx,
    aligned_buffer,
    open_uring,
)
from anyio_uring._requests import Opcode
from anyio_uring._ring import UringDriver
from anyio_uring.testing import FakeRing

from .helpers import driver_or_fake

driver = driver_or_fake
# linux/falloc.h; linux/fs.h: SYNC_FILE_RANGE_WAIT_BEFORE, WRITE and WAIT_AFTER.
KEEP_SIZE, PUNCH_HOLE = 1, 2
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
async def test_statuses_leave_no_descriptor(io: AsyncIoManager, place: Path) -> None:
    """Neither those that are found, nor those that fail, one by one or in batches."""
    names = [place / name for name in ("file", "directory", "link", "dangling", "loop", "nothing")]
    await io.stat_batch(names, return_exceptions=True)
    before = os.listdir("/proc/self/fd")
    for _ in range(50):
        found = await io.stat_batch(names, return_exceptions=True)
        assert [isinstance(status, FileStatus) for status in found] == [True] * 3 + [False] * 3
        for name in names[:3]:
            await io.stat(name)
        with pytest.raises(FileNotFoundError):
            await io.stat(names[5])
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.anyio
async def test_a_status_of_a_link(io: AsyncIoManager, place: Path) -> None:
    assert tuple(await io.stat(place / "link", follow_symlinks=False)) == tuple((place / "link").lstat())
    assert (await io.stat(os.fsencode(place / "dangling"), follow_symlinks=False)).st_size == len("nowhere")


@pytest.mark.anyio
async def test_what_a_status_has_beside(io: AsyncIoManager, place: Path) -> None:
    status = await io.stat(place / "file")
    assert isinstance(status, FileStatus)
    with (place / "file").open("rb") as file:
        information = Path(f"/proc/self/fdinfo/{file.fileno()}").read_text(encoding="ascii")
    assert status.mount_id == int(information.split("mnt_id:")[1].split()[0])
    assert status.st_birthtime_ns is not None and status.st_birthtime is not None  # ext4, XFS, Btrfs and tmpfs keep it
    assert 0 <= status.st_ctime_ns - status.st_birthtime_ns < 3600 * 10**9
    assert abs(status.st_birthtime - status.st_birthtime_ns / 1e9) < 0.001
    assert status.attributes & ~status.attributes_mask == 0
    with (place / "file").open("rb") as file:
        assert status.direct_alignment == io.direct_alignment(file)
        assert await io.stat(file) == status
    assert repr(status) == repr(status.stat_result).replace("os.stat_result", "FileStatus")
    assert repr(status).startswith(f"FileStatus(st_mode={status.st_mode}, st_ino={status.st_ino}, ")


def test_a_file_without_direct_io_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros that the kernel gives (STATX_DIOALIGN) are an answer; what it does not give is unknown."""
    answers = [_statx.EVERYTHING, _statx.EVERYTHING & ~_statx._DIOALIGN]

    def answer(_fd: int, _path: bytes, _flags: int, _mask: int, memory: bytearray) -> int:
        memory[:4] = answers.pop(0).to_bytes(4, sys.byteorder)
        return 0

    monkeypatch.setattr("anyio_uring._libc.statx", answer)
    with path.open("rb") as file:
        found = [_statx.known(file.fileno()).direct_alignment for _ in range(2)]
    safe = _statx.SAFE_ALIGNMENT
    assert found == [
        DirectAlignment(safe, safe, is_supported=False),
        DirectAlignment(safe, safe, is_supported=None),
    ]


@pytest.mark.anyio
async def test_an_operation_that_the_kernel_gave_up_says_why(place: Path) -> None:
    """ECANCELED, though nobody cancelled: the kernel has no worker, as where threads are limited."""
    name = place / "file"
    ring = FakeRing(1)
    async with open_uring(driver=ring) as fake:
        for operation, call in (("statx", fake.stat(name)), ("openat", fake.open(name, os.O_RDONLY))):
            ring.fail_next(operation, errno.ECANCELED)
            with pytest.raises(OSError, match=r"raise RLIMIT_NPROC \(ulimit -u\)") as caught:
                await call
            assert (caught.value.errno, caught.value.filename) == (errno.ECANCELED, str(name))


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
async def test_the_type_in_a_mode_says_nothing(io: AsyncIoManager, place: Path) -> None:
    """As in os: st_mode of another file can be given as it is."""
    for name, ours in (("model", False), ("ours", True)):
        file, directory = place / f"{name} file", place / f"{name} directory"
        flags = os.O_RDWR | os.O_CREAT
        os.close(await io.open(file, flags, 0o100640) if ours else os.open(file, flags, 0o100640))
        if ours:
            await io.mkdir(directory, 0o40750)
        else:
            os.mkdir(directory, 0o40750)
    for kind in ("file", "directory"):
        assert (place / f"ours {kind}").stat().st_mode == (place / f"model {kind}").stat().st_mode


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
async def test_direct_io(io: AsyncIoManager, place: Path) -> None:
    fd = await io.open(place / "file", os.O_RDWR, direct=True)
    assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT
    await io.write(fd, aligned_buffer(4096), 0)
    await io.close(fd)
    assert (place / "file").read_bytes() == bytes(4096)
    with pytest.raises(OSError, match="direct=True") as caught:
        await io.open("/proc/self/status", direct=True)
    assert caught.value.errno == errno.EINVAL
    assert caught.value.filename == "/proc/self/status"
    with pytest.raises(FileNotFoundError):
        await io.open(place / "missing", direct=True)


@pytest.mark.anyio
async def test_a_system_without_direct_io(io: AsyncIoManager, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As macOS is."""
    monkeypatch.setattr("anyio_uring._path_calls._O_DIRECT", 0)
    with pytest.raises(OSError, match="no O_DIRECT: open without direct=True") as caught:
        await io.open(place / "file", direct=True)
    assert (caught.value.errno, caught.value.filename) == (errno.EOPNOTSUPP, str(place / "file"))
    await io.close(await io.open(place / "file"))


# --- what a path can be -------------------------------------------------------------------------


@pytest.mark.anyio
async def test_paths_of_every_type(io: AsyncIoManager, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = place / os.fsdecode(b"\xff\xfe odd \n")
    odd.write_bytes(b"1234567")
    for path in (odd, str(odd), os.fsencode(odd)):
        assert (await io.stat(path)).st_size == 7
    monkeypatch.chdir(place)
    assert (await io.stat("file")).st_ino == (place / "file").stat().st_ino
    missing: list[Any] = [place / "missing", str(place / "missing"), os.fsencode(place / "missing")]
    for path in missing:
        with pytest.raises(FileNotFoundError) as caught:
            await io.stat(path)
        assert caught.value.filename == os.fspath(path)


@pytest.mark.anyio
async def test_directories_that_paths_are_relative_to(io: AsyncIoManager, place: Path) -> None:
    here, full = (os.open(path, os.O_RDONLY) for path in (place, place / "full"))
    try:
        assert (await io.stat("inside", dir_fd=full)).st_ino == (place / "full/inside").stat().st_ino
        fd = await io.open("new", os.O_WRONLY | os.O_CREAT, dir_fd=full)
        await io.close(fd)
        await io.rename("new", "moved", src_dir_fd=full, dst_dir_fd=here)
        await io.link("moved", "linked", src_dir_fd=here, dst_dir_fd=full)
        assert (place / "moved").samefile(place / "full/linked")
        await io.symlink("inside", "soft", dir_fd=full)
        assert os.readlink("soft", dir_fd=full) == "inside"
        await io.mkdir("sub", dir_fd=full)
        assert (place / "full/sub").is_dir()
        await io.rmdir("sub", dir_fd=full)
        for name in ("soft", "linked", "inside"):
            await io.unlink(name, dir_fd=full)
        assert os.listdir(full) == []
        with pytest.raises(NotADirectoryError), (place / "file").open("rb") as file:
            await io.stat("x", dir_fd=file.fileno())
    finally:
        os.close(here)
        os.close(full)


@pytest.mark.anyio
async def test_a_rename_that_replaces_nothing(io: AsyncIoManager, place: Path) -> None:
    with pytest.raises(FileExistsError) as caught:
        await io.rename(place / "file", place / "other", noreplace=True)
    assert (caught.value.filename, caught.value.filename2) == (str(place / "file"), str(place / "other"))
    await io.rename(place / "file", place / "new", noreplace=True)
    assert (place / "new").read_bytes() == b"content"
    assert not (place / "file").exists()


@pytest.mark.anyio
async def test_a_rename_that_exchanges(io: AsyncIoManager, place: Path) -> None:
    await io.rename(place / "file", place / "full", exchange=True)
    assert (place / "full").read_bytes() == b"content"
    assert (place / "file" / "inside").read_bytes() == b"inside"
    with pytest.raises(FileNotFoundError):
        await io.rename(place / "full", place / "missing", exchange=True)


@pytest.mark.anyio
async def test_a_link_to_what_a_link_leads_to(io: AsyncIoManager, place: Path) -> None:
    await io.link(place / "link", place / "new")
    assert (place / "new").samefile(place / "file")
    assert not (place / "new").is_symlink()


# --- of open files ------------------------------------------------------------------------------


@pytest.fixture(params=["number", "file", "registered"])
async def opened(request: pytest.FixtureRequest, io: AsyncIoManager, place: Path) -> AsyncIterator[Any]:
    """The file, open for reading and writing, in every way that a file is given."""
    with (place / "file").open("r+b", buffering=0) as file:
        async with io.register_files([file]) as (registered,):
            yield {"number": file.fileno(), "file": file, "registered": registered}[request.param]


@pytest.mark.anyio
async def test_space(io: AsyncIoManager, place: Path, opened: Any) -> None:
    path = place / "file"
    await io.fallocate(opened, 0, 0, 1 << 20)
    assert (path.stat().st_size, path.stat().st_blocks) >= (1 << 20, 2048)
    await io.fallocate(opened, KEEP_SIZE, 1 << 20, 1 << 20)
    assert path.stat().st_size == 1 << 20
    assert path.stat().st_blocks >= 4096
    await io.fallocate(opened, KEEP_SIZE | PUNCH_HOLE, 0, 2 << 20)
    assert path.stat().st_blocks <= 2048  # ext4 leaves alone what is behind the end
    assert path.read_bytes() == bytes(1 << 20)
    await io.truncate(opened, 3)
    assert path.read_bytes() == bytes(3)
    for mode, errno_expected in ((0, errno.EINVAL), (PUNCH_HOLE, errno.EOPNOTSUPP)):
        with pytest.raises(OSError) as caught:
            await io.fallocate(opened, mode, 0, 0 if mode == 0 else 4096)
        assert caught.value.errno == errno_expected
        assert caught.value.filename == (None if isinstance(opened, int) else str(path))


@pytest.mark.anyio
async def test_advice_and_writing_out(io: AsyncIoManager, place: Path, opened: Any, pipe: tuple[int, int]) -> None:
    await io.write(opened, os.urandom(1 << 20), 0)
    await io.sync_file_range(opened, 0, 1 << 20, SYNC_AND_WAIT)
    await io.fadvise(opened, 0, 0, os.POSIX_FADV_RANDOM)
    is_cached = True
    while is_cached:  # a page that somebody looks at just then stays: advice is no order
        await io.fadvise(opened, 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            await io.read(opened, 4096, 8192, flags=os.RWF_NOWAIT)
        except BlockingIOError:
            is_cached = False
        except UnsupportedFlagError:  # a tmpfs has its data nowhere else
            with (place / "file").open("rb") as file, pytest.raises(OSError) as of_kernel:
                os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT)
            assert of_kernel.value.errno == errno.EOPNOTSUPP
            is_cached = False
    await io.fadvise(opened, 0, 5 << 30, os.POSIX_FADV_SEQUENTIAL)  # 33 bits of length
    await io.sync_file_range(opened, 0, 5 << 30, SYNC_AND_WAIT)
    refused: list[Callable[[], Awaitable[None]]] = [
        lambda: io.fadvise(opened, 0, 0, 99),
        lambda: io.sync_file_range(opened, 0, 0, 99),
        lambda: io.fadvise(pipe[0], 0, 0, 0),
    ]
    for call in refused:
        with pytest.raises(OSError) as caught:
            await call()
        assert caught.value.errno in {errno.EINVAL, errno.ESPIPE}


@pytest.mark.anyio
async def test_extended_attributes(io: AsyncIoManager, place: Path, opened: Any) -> None:
    path = place / "file"
    for target in (opened, path, os.fsencode(path), place / "link"):
        with pytest.raises(OSError) as caught:
            await io.getxattr(target, "user.missing")
        assert caught.value.errno == errno.ENODATA
        await io.setxattr(target, "user.name", bytearray(b"value"))
        assert os.getxattr(path, "user.name") == b"value"
        assert await io.getxattr(target, b"user.name") == b"value"
        await io.setxattr(target, "user.name", b"", os.XATTR_REPLACE)
        assert await io.getxattr(target, "user.name") == b""
        with pytest.raises(FileExistsError):
            await io.setxattr(target, "user.name", b"", os.XATTR_CREATE)
    large = os.urandom(2000)
    await io.setxattr(opened, "user.large", large)
    assert await io.getxattr(opened, "user.large") == large
    assert await io.getxattr(path, "user.large") == large
    with pytest.raises(OSError) as caught:
        await io.getxattr(place / "link", "user.name", follow_symlinks=False)
    assert caught.value.errno == errno.ENODATA
    with pytest.raises(PermissionError):  # links have no attributes of users
        await io.setxattr(place / "link", "user.name", b"", follow_symlinks=False)


# --- what is refused before it reaches a driver ---------------------------------------------------


@pytest.mark.anyio
async def test_what_cannot_be_asked(io: AsyncIoManager) -> None:
    before = io.statistics()
    wrong: list[tuple[type[Exception], Callable[[], Awaitable[object]]]] = [
        (ValueError, lambda: io.open("a\0b")),
        (ValueError, lambda: io.stat(b"a\0b")),
        (ValueError, lambda: io.rename("a", "b\0")),
        (ValueError, lambda: io.getxattr("a", "user.\0")),
        (ValueError, lambda: io.rename("a", "b", noreplace=True, exchange=True)),
        (ValueError, lambda: io.stat(0, dir_fd=0)),
        (ValueError, lambda: io.stat(0, follow_symlinks=False)),
        (ValueError, lambda: io.mkdir("a", 1 << 31)),
        (ValueError, lambda: io.truncate("a", -1)),
        (ValueError, lambda: io.truncate(0, 1 << 63)),
        (ValueError, lambda: io.fallocate(0, 0, -1, 1)),
        (ValueError, lambda: io.fadvise(0, 0, -1, 0)),
        (ValueError, lambda: io.sync_file_range(0, 0, 0, -1)),
        (ValueError, lambda: io.close(1 << 31)),
        (TypeError, lambda: io.open(None)),  # type: ignore[arg-type]
        (TypeError, lambda: io.stat(1.5)),  # type: ignore[arg-type]
        (TypeError, lambda: io.open("a", "r")),  # type: ignore[arg-type]
        (TypeError, lambda: io.unlink("a", dir_fd="b")),  # type: ignore[arg-type]
        (TypeError, lambda: io.unlink(3)),  # type: ignore[arg-type]
        (TypeError, lambda: io.close("a")),  # type: ignore[arg-type]
        (TypeError, lambda: io.close(True)),
        (TypeError, lambda: io.open("a", dir_fd=True)),
        (TypeError, lambda: io.stat("a", dir_fd=True)),
        (TypeError, lambda: io.unlink("a", dir_fd=False)),
        (TypeError, lambda: io.rename("a", "b", src_dir_fd=False)),
        (TypeError, lambda: io.link("a", "b", dst_dir_fd=True)),
        (TypeError, lambda: io.setxattr("a", "user.b", "text")),  # type: ignore[arg-type]
    ]
    for kind, call in wrong:
        with pytest.raises(kind, match=r"."):
            await call()
    assert io.statistics() == before


@pytest.mark.anyio
async def test_a_closed_manager(driver: Any, place: Path) -> None:
    async with open_uring(driver=driver) as io:
        fd = await io.open(place / "file")
    for call in (lambda: io.stat(place), lambda: io.close(fd), lambda: io.open(place / "file")):
        with pytest.raises(anyio.ClosedResourceError):
            await call()
    os.close(fd)  # it stayed the caller's


# --- who may not --------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_what_is_not_allowed(forbidden: Path, io: AsyncIoManager) -> None:
    calls: list[Callable[[Any], Any]] = [
        lambda it: it.open(f"{forbidden}/file", os.O_RDONLY),
        lambda it: it.stat(f"{forbidden}/file"),
        lambda it: it.unlink(f"{forbidden}/file"),
        lambda it: it.mkdir(f"{forbidden}/new"),
        lambda it: it.rename(f"{forbidden}/file", f"{forbidden.parent}/new"),
        lambda it: it.truncate(f"{forbidden}/file", 0),
        lambda it: it.mkdir("/proc/new"),
    ]
    for call in calls:
        with pytest.raises(OSError) as expected:
            call(os)
        with pytest.raises(OSError) as caught:
            await call(io)
        assert _failure(caught.value, forbidden) == _failure(expected.value, forbidden)
        assert caught.value.errno in {errno.EACCES, errno.ENOENT}


# --- rings that cannot --------------------------------------------------------------------------


async def _use_every_verb(io: AsyncIoManager, place: Path) -> None:
    fd = await io.open(place / "new", os.O_RDWR | os.O_CREAT)
    await io.write(fd, b"text", 0)
    await io.fallocate(fd, 0, 0, 8192)
    await io.fadvise(fd, 0, 0, os.POSIX_FADV_NORMAL)
    await io.sync_file_range(fd, 0, 0, SYNC_AND_WAIT)
    await io.setxattr(fd, "user.name", b"value")
    assert await io.getxattr(fd, "user.name") == b"value"
    await io.truncate(fd, 4)
    assert (await io.stat(fd)).st_size == 4
    await io.close(fd)
    with pytest.raises(OSError):
        os.fstat(fd)
    await io.rename(place / "new", place / "moved", noreplace=True)
    await io.rename(place / "moved", place / "other")
    await io.link(place / "other", place / "linked")
    await io.symlink("linked", place / "soft")
    assert (await io.stat(place / "soft")).st_nlink == 2
    await io.unlink(place / "soft")
    await io.mkdir(place / "sub")
    await io.rmdir(place / "sub")
    assert (place / "linked").read_bytes() == b"text"
    for verb in (io.unlink, io.rmdir, io.open, io.stat):
        with pytest.raises(FileNotFoundError) as caught:
            await verb(place / "missing")
        assert caught.value.filename == str(place / "missing")


VERBS = 21


def _threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("anyio_uring")]


def _ring_with(**changes: Any) -> type[UringDriver]:
    class _Ring(UringDriver):
        __slots__ = ()

        @property
        def features(self) -> Any:
            return attrs.evolve(super().features, **changes)

    return _Ring


@pytest.mark.ring
@pytest.mark.anyio
@pytest.mark.parametrize(
    "changes",
    [{"opcodes": frozenset({1, 2, 3, 14, 22, 23})}, {"setup_flags": ("SUBMIT_ALL", "IOPOLL")}],
    ids=["old kernel", "iopoll"],
)
async def test_what_the_ring_lacks_threads_carry_out(
    changes: dict[str, Any], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anyio_uring._ring.UringDriver", _ring_with(**changes))
    async with open_uring(driver="uring") as io:
        assert not _threads()  # none before there is need
        await _use_every_verb(io, place)
        assert _threads()
        assert io.statistics().fallback_operations == VERBS
        assert io.statistics().submissions == 1  # the write
    assert not _threads()


@pytest.mark.anyio
async def test_a_ring_of_today_carries_out_all_of_it(io: AsyncIoManager, place: Path) -> None:
    await _use_every_verb(io, place)
    lacking = 0
    if io.driver == "uring":
        assert io.features.opcodes >= {*Opcode} - {Opcode.FTRUNCATE}
        lacking = Opcode.FTRUNCATE not in io.features.opcodes
    assert io.statistics().fallback_operations == lacking
    assert io.statistics().submissions == VERBS + 1 - lacking
    # Only reads and writes move bytes.
    assert io.statistics().bytes_written == 4
    assert io.statistics().bytes_read == 0


@pytest.mark.anyio
async def test_a_restricted_ring(driver: Any, place: Path) -> None:
    async with open_uring(driver=driver, restrict=True) as io:
        await _use_every_verb(io, place)


@pytest.mark.ring
@pytest.mark.anyio
async def test_a_restricted_ring_of_an_older_kernel(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_uring(driver="uring") as io:
        older = io.features.opcodes - {Opcode.FTRUNCATE}

    class _Old(UringDriver):
        __slots__ = ()

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self._features = attrs.evolve(self._features, opcodes=older)

    monkeypatch.setattr("anyio_uring._ring.UringDriver", _Old)
    async with open_uring(driver="uring", restrict=True) as io:
        await _use_every_verb(io, place)
        assert io.statistics().fallback_operations == 1


@attrs.define(eq=False)
class _Notes(Instrument):
    told: list[tuple[str, int]] = attrs.field(factory=list)

    def operation_completed(self, operation: OperationTrace, result: int, completed_ns: int) -> None:  # noqa: ARG002
        self.told.append((operation.opcode, min(result, 0)))


@pytest.mark.anyio
@pytest.mark.parametrize("has_opcodes", [True, False])
async def test_instruments_are_told(
    driver: Any, has_opcodes: bool, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_opcodes:
        monkeypatch.setattr("anyio_uring._ring.UringDriver", _ring_with(opcodes=frozenset()))
    notes = _Notes()
    async with open_uring(driver=driver, instruments=[notes]) as io:
        fd = await io.open(place / "file")
        await io.stat(fd)
        await io.close(fd)
        with pytest.raises(FileNotFoundError):
            await io.rename(place / "missing", place / "new")
    assert notes.told == [("openat", 0), ("statx", 0), ("close", 0), ("renameat", -errno.ENOENT)]


@pytest.mark.anyio
async def test_a_system_without_statx(driver: Any, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anyio_uring._libc._find", lambda _: None)
    monkeypatch.setattr("anyio_uring._ring.UringDriver", _ring_with(opcodes=frozenset()))
    async with open_uring(driver=driver) as io:
        for path, follow in ((place / "file", True), (place / "link", False), (place / "directory", True)):
            found = await io.stat(path, follow_symlinks=follow)
            expected = os.stat(path, follow_symlinks=follow)
            assert {n: getattr(found, n) for n in STAT_FIELDS} == {n: getattr(expected, n) for n in STAT_FIELDS}
            assert found.st_birthtime_ns is None and found.mount_id is None
        with (place / "file").open("rb") as file:
            assert tuple(await io.stat(file)) == tuple(os.fstat(file.fileno()))
        with pytest.raises(OSError, match="not implemented") as caught:
            await io.rename(place / "file", place / "new", noreplace=True)
        assert caught.value.errno == errno.ENOSYS

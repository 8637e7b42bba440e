"""Copying a file: what the copy has, what it leaves behind, and what becomes of what was there."""

from __future__ import annotations

import errno
import fcntl
import filecmp
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from anyio_uring import AsyncIoManager, _copy, _copy_steps, copy_file, open_uring
from anyio_uring._copy_steps import STEP_BYTES

from . import filesystems
from .faulty_disk import FaultyDisk
from .helpers import asyncio_only, file_size_limit

MIB = 1 << 20
ERRNOS = [errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL]


def _refuse(error: int) -> Callable[..., Any]:
    def refuse(*_arguments: object) -> Any:
        raise OSError(error, os.strerror(error))

    return refuse


@pytest.fixture(params=["kernel", "pipelined"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kernel's own copy, and the one that does without; shared blocks have tests of their own."""
    monkeypatch.setattr(_copy_steps, "clone", _refuse(errno.EOPNOTSUPP))
    if request.param == "pipelined":
        monkeypatch.setattr(_copy_steps, "copy_range", _refuse(errno.EXDEV))
    return str(request.param)


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> int:
    """Many steps and windows for a file that is not large."""
    monkeypatch.setattr(_copy_steps, "STEP_BYTES", 64 << 10)
    monkeypatch.setattr(_copy, "_CHUNK_BYTES", 16 << 10)
    monkeypatch.setattr(_copy, "_WINDOW_BYTES", 64 << 10)
    return 64 << 10


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Half a MiB and a bit, in a directory with room for nothing but it and its copy."""
    file = tmp_path / "source"
    file.write_bytes(random.Random(1).randbytes((512 << 10) + 77))
    return file


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


def _names(directory: Path) -> set[str]:
    return set(os.listdir(directory))


def _map(path: Path) -> list[tuple[int, int]]:
    """Where the file's data is: ``(start, end)``."""
    ranges: list[tuple[int, int]] = []
    end = 0
    fd = os.open(path, os.O_RDONLY)
    with suppress(OSError):  # ENXIO: no more data
        while True:
            start = os.lseek(fd, end, os.SEEK_DATA)
            end = os.lseek(fd, start, os.SEEK_HOLE)
            ranges.append((start, end))
    os.close(fd)
    return ranges


# --- data -------------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("size", [0, 1, 4096, 65536, (256 << 10) + 5])
async def test_the_copy_equals_the_source(
    io: AsyncIoManager, source: Path, target: Path, *, way: str, small_steps: int, size: int
) -> None:
    os.truncate(source, size)
    reports: list[int] = []
    assert await copy_file(source, str(target), progress=reports.append) == size
    assert target.read_bytes() == source.read_bytes()
    assert reports == sorted(set(reports))
    assert reports[-1] == size
    assert len(reports) >= size // small_steps
    assert (io.statistics().bytes_written == size) == (way == "pipelined" or not size)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_a_file_of_several_windows_of_the_usual_size(io: AsyncIoManager, tmp_path: Path, way: str) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(random.Random(2).randbytes(STEP_BYTES + 5 * MIB + 3))
    assert await copy_file(source, target) == source.stat().st_size
    assert filecmp.cmp(source, target, shallow=False)


@pytest.mark.anyio
@pytest.mark.parametrize("error", ERRNOS)
async def test_what_the_kernel_cannot_copy_is_read_and_written(
    io: AsyncIoManager, source: Path, target: Path, *, small_steps: int, error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also from the middle on."""
    copy_range = _copy_steps.copy_range

    def refuse_behind(source_fd: int, target_fd: int, offset: int, length: int) -> int:
        if offset >= 2 * small_steps:
            raise OSError(error, os.strerror(error))
        return copy_range(source_fd, target_fd, offset, length)

    monkeypatch.setattr(_copy_steps, "clone", _refuse(error))
    monkeypatch.setattr(_copy_steps, "copy_range", refuse_behind)
    size = await copy_file(source, target)
    assert target.read_bytes() == source.read_bytes()
    assert io.statistics().bytes_written == size - 2 * small_steps


@pytest.mark.anyio
async def test_a_kernel_that_copies_nothing_is_not_believed(
    io: AsyncIoManager, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_copy_steps, "clone", _refuse(errno.ENOTTY))
    monkeypatch.setattr(_copy_steps, "copy_range", lambda *_: 0)
    await copy_file(source, target)
    assert target.read_bytes() == source.read_bytes()


@pytest.mark.anyio
async def test_short_transfers_are_continued(
    io: AsyncIoManager, source: Path, target: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel may copy, read and write less than it was asked for."""
    copy_range = _copy_steps.copy_range
    monkeypatch.setattr(
        _copy_steps, "copy_range", lambda s, t, offset, length: copy_range(s, t, offset, min(length, 7777))
    )
    read, write = AsyncIoManager.readinto_batch, AsyncIoManager.write_batch

    def shortened(batch: Any) -> Any:
        async def transfer(io: AsyncIoManager, parts: Any, **options: Any) -> Any:
            return await batch(io, [(fd, view[: len(view) // 2 + 1], offset) for fd, view, offset in parts], **options)

        return transfer

    if way == "pipelined":
        monkeypatch.setattr(_copy_steps, "copy_range", _refuse(errno.EXDEV))
    monkeypatch.setattr(AsyncIoManager, "readinto_batch", shortened(read))
    monkeypatch.setattr(AsyncIoManager, "write_batch", shortened(write))
    await copy_file(source, target)
    assert target.read_bytes() == source.read_bytes()


@pytest.mark.anyio
async def test_holes_are_kept(io: AsyncIoManager, source: Path, target: Path, way: str) -> None:
    with source.open("r+b") as file:
        file.truncate(0)
        for offset in (1 * MIB, 1 * MIB + 8192, 6 * MIB, 20 * MIB):
            file.seek(offset)
            file.write(b"data" * 1024)
        file.truncate(32 * MIB)  # and one at the end
    assert len(_map(source)) >= 4, "this filesystem has no holes to keep"
    assert await copy_file(source, target) == 32 * MIB
    assert target.read_bytes() == source.read_bytes()
    # XFS allocates a bit more behind what is written first.
    ranges = _map(source)
    assert all(any(start <= a and b <= end for start, end in ranges) for a, b in _map(target))
    assert target.stat().st_blocks <= source.stat().st_blocks


@pytest.mark.anyio
async def test_a_file_that_is_one_hole(io: AsyncIoManager, source: Path, target: Path, way: str) -> None:
    os.truncate(source, 0)
    os.truncate(source, 1 << 40)
    assert await copy_file(source, target) == 1 << 40
    assert (target.stat().st_size, target.stat().st_blocks) == (1 << 40, 0)


@pytest.mark.anyio
async def test_a_file_that_hides_its_size_is_read_to_its_end(io: AsyncIoManager, target: Path) -> None:
    assert os.stat("/proc/cpuinfo").st_size == 0
    count = await copy_file("/proc/version", target)
    assert count == len(target.read_bytes()) > 0
    assert target.read_bytes() == Path("/proc/version").read_bytes()


@pytest.mark.anyio
async def test_a_file_that_says_it_is_longer_is_read_to_its_end(io: AsyncIoManager, target: Path, way: str) -> None:
    source = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not source.exists():
        source = Path("/sys/devices/system/cpu/online")
    if not source.exists():
        pytest.skip("/sys is not mounted, and only its files say that they are longer than they are")
    content = source.read_bytes()
    assert 0 < len(content) < source.stat().st_size
    reports: list[int] = []
    assert await copy_file(source, target, progress=reports.append) == len(content)
    assert target.read_bytes() == content
    assert reports[-1] == len(content)


@pytest.mark.anyio
async def test_a_file_that_somebody_has_leased_is_waited_for(io: AsyncIoManager, source: Path, target: Path) -> None:
    content = source.read_bytes()
    holder = os.open(source, os.O_RDWR)
    before = signal.signal(signal.SIGIO, lambda *_: fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_UNLCK))
    try:
        fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        assert await copy_file(source, target) == len(content)
    finally:
        signal.signal(signal.SIGIO, before)
        os.close(holder)
    assert target.read_bytes() == content


@pytest.mark.anyio
async def test_a_source_that_shrinks_is_an_error(
    io: AsyncIoManager, source: Path, target: Path, way: str, small_steps: int
) -> None:
    def shrink(done: int) -> None:
        os.truncate(source, 100)

    with pytest.raises(OSError, match="has shrunk while it was copied") as caught:
        await copy_file(source, target, progress=shrink)
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(source))
    assert _names(target.parent) == {"source"}


@pytest.mark.anyio
async def test_what_is_appended_meanwhile_is_left_out(
    io: AsyncIoManager, source: Path, target: Path, way: str, small_steps: int
) -> None:
    before = source.read_bytes()

    def append(done: int) -> None:
        os.truncate(source, len(before) + 10000)

    assert await copy_file(source, target, progress=append) == len(before)
    assert target.read_bytes() == before


@pytest.mark.anyio
@pytest.mark.parametrize("left", [100, 0])
async def test_a_source_that_shrinks_in_front_of_a_read_is_an_error(
    io: AsyncIoManager, source: Path, target: Path, left: int, *, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was long enough when it was asked where its data is; also where there is nothing to read any more."""

    def shrinking(function: Any) -> Any:
        def shrink(*arguments: Any, **options: Any) -> Any:
            os.truncate(source, left)
            return function(*arguments, **options)

        return shrink

    if way == "pipelined":
        monkeypatch.setattr(AsyncIoManager, "readinto_batch", shrinking(AsyncIoManager.readinto_batch))
    else:
        monkeypatch.setattr(_copy_steps, "clone", _refuse(errno.ENOTTY))
        copy_range = _copy_steps.copy_range
        monkeypatch.setattr(_copy_steps, "copy_range", lambda s, t, o, n: shrinking(copy_range)(s, t, o, min(n, 100)))
    with pytest.raises(OSError, match="has shrunk while it was copied") as caught:
        await copy_file(source, target)
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(source))
    assert _names(target.parent) == {"source"}


# --- metadata and links -----------------------------------------------------------------------------


@pytest.mark.anyio
async def test_metadata_is_copied_as_copy2_does(io: AsyncIoManager, source: Path, target: Path, way: str) -> None:
    os.chmod(source, 0o4751)
    os.utime(source, ns=(10**18 + 1, 10**18 + 3))
    os.setxattr(source, "user.color", b"blue")
    model = target.with_name("model")
    shutil.copy2(source, model)
    await copy_file(source, target)
    ours, theirs = target.stat(), model.stat()
    assert ours.st_mode == theirs.st_mode == source.stat().st_mode
    assert ours.st_mtime_ns == theirs.st_mtime_ns == 10**18 + 3
    assert os.getxattr(target, "user.color") == b"blue"


@pytest.mark.anyio
async def test_a_link_is_followed_or_copied(io: AsyncIoManager, source: Path, target: Path) -> None:
    link = source.with_name("link")
    link.symlink_to("source")
    reports: list[int] = []
    await copy_file(link, target)
    assert target.read_bytes() == source.read_bytes()
    assert not target.is_symlink()
    assert await copy_file(link, target, follow_symlinks=False, progress=reports.append) == 0
    assert target.readlink() == Path("source")
    assert target.lstat().st_mtime_ns == link.lstat().st_mtime_ns
    assert reports == [0]
    os.unlink(source)
    await copy_file(link, target, follow_symlinks=False)  # a link to nothing
    with pytest.raises(FileNotFoundError):
        await copy_file(link, target)
    assert _names(target.parent) == {"link", "target"}


@pytest.mark.anyio
@pytest.mark.parametrize("exists", [True, False])
async def test_a_link_at_the_target_is_followed(
    io: AsyncIoManager, source: Path, target: Path, tmp_path_factory: pytest.TempPathFactory, exists: bool
) -> None:
    other = tmp_path_factory.mktemp("other") / "file"
    if exists:
        other.write_bytes(b"old")
    target.symlink_to(other)
    await copy_file(source, target)
    assert target.is_symlink()
    assert other.read_bytes() == source.read_bytes()
    assert not other.is_symlink()
    assert _names(other.parent) == {"file"}


# --- what is refused --------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_what_shutil_refuses_is_refused_alike(io: AsyncIoManager, source: Path, tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "alias").symlink_to("source")
    os.link(source, tmp_path / "twin")
    os.mkfifo(tmp_path / "fifo")
    for ours_from, ours_to in [
        ("source", "source"),
        ("source", "alias"),
        ("alias", "source"),
        ("source", "twin"),
        ("source", "directory"),
        ("directory", "target"),
        ("missing", "target"),
        ("source", "missing/target"),
        ("source", "source/target"),
        ("source", "missing/."),
        ("source", "missing/../target"),
        ("fifo", "target"),
        ("source", "fifo"),
    ]:
        arguments = str(tmp_path / ours_from), os.path.join(tmp_path, ours_to)
        with pytest.raises(OSError) as theirs:
            shutil.copyfile(*arguments)
        with pytest.raises(type(theirs.value)) as ours:
            await copy_file(*arguments)
        assert ours.value.errno == theirs.value.errno, arguments
    with pytest.raises(FileNotFoundError):
        await copy_file(source, f"{tmp_path}/missing/")
    with pytest.raises(shutil.SpecialFileError, match="/dev/null"):
        await copy_file(source, "/dev/null")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert _names(tmp_path) == {"source", "alias", "twin", "fifo", "directory"}


@pytest.mark.anyio
async def test_a_link_never_takes_the_place_of_what_it_leads_to(io: AsyncIoManager, source: Path) -> None:
    content = source.read_bytes()
    link, other = source.with_name("link"), source.with_name("other")
    link.symlink_to("other")
    other.symlink_to("source")
    for target in (source, other):
        with pytest.raises(shutil.SameFileError):
            shutil.copy2(link, target, follow_symlinks=False)
        with pytest.raises(shutil.SameFileError):
            await copy_file(link, target, follow_symlinks=False)
    assert (source.read_bytes(), other.readlink()) == (content, Path("source"))


@pytest.mark.anyio
async def test_a_link_that_is_there_already_is_copied_again(io: AsyncIoManager, source: Path, target: Path) -> None:
    link = source.with_name("link")
    link.symlink_to(source)
    for _ in range(2):
        assert await copy_file(link, target, follow_symlinks=False) == 0
        assert target.readlink() == source


@pytest.mark.anyio
@pytest.mark.parametrize("follow_symlinks", [True, False])
@pytest.mark.parametrize("names", [("source", ""), ("", "target"), ("link", ""), ("", "")])
async def test_an_empty_name_is_no_file(
    io: AsyncIoManager,
    source: Path,
    names: tuple[str, str],
    *,
    follow_symlinks: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not that of the working directory, either."""
    work = source.parent / "work"
    work.mkdir()
    (work / "source").write_bytes(b"data")
    (work / "link").symlink_to("source")
    monkeypatch.chdir(work)
    monkeypatch.setattr(_copy_steps.FileCopy, "_open", lambda _: pytest.fail("something was to be copied"))
    with pytest.raises(FileNotFoundError) as caught:
        await copy_file(*names, follow_symlinks=follow_symlinks)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, "")
    assert _names(work) == {"source", "link"}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("source", "open"),
        ("source", "utime"),
        ("source", "replace"),
        ("link", "symlink"),
        ("link", "utime"),
        ("link", "replace"),
    ],
)
async def test_an_error_names_the_target_as_it_was_given(
    io: AsyncIoManager, source: Path, name: str, *, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the temporary file, of which the caller knows nothing."""
    real: Any = getattr(os, call)

    def refuse(*arguments: Any, **options: Any) -> Any:
        for argument in arguments:
            if ".anyio-uring-copy-" in str(argument):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), argument)
        return real(*arguments, **options)

    source.with_name("link").symlink_to("source")
    monkeypatch.chdir(source.parent)
    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(PermissionError) as caught:
        await copy_file(name, "target", follow_symlinks=False)
    assert (caught.value.errno, caught.value.filename, caught.value.filename2) == (errno.EACCES, "target", None)
    assert _names(source.parent) == {"source", "link"}


@pytest.mark.anyio
async def test_an_error_of_the_sources_metadata_names_the_source(
    io: AsyncIoManager, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copystat = shutil.copystat

    def copystat_too_late(ours: Any, theirs: Any) -> None:
        os.unlink(ours)
        copystat(ours, theirs)

    monkeypatch.setattr(shutil, "copystat", copystat_too_late)
    with pytest.raises(FileNotFoundError) as caught:
        await copy_file(source, target)
    assert (caught.value.filename, caught.value.filename2) == (str(source), None)
    assert not _names(target.parent)


@pytest.mark.anyio
async def test_a_target_that_may_not_be_written_to_is_left_alone(
    io: AsyncIoManager, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rename over it would need no permission of its own. Root has every permission, so the answer is played."""
    access = os.access
    target.write_bytes(b"old")
    before = target.stat()
    monkeypatch.setattr(
        "anyio_uring._copy_steps.os.access",
        lambda path, mode: not (path == str(target) and mode & os.W_OK) and access(path, mode),
    )
    with pytest.raises(PermissionError) as caught:
        await copy_file(source, target)
    assert (caught.value.errno, caught.value.filename, caught.value.filename2) == (errno.EACCES, str(target), None)
    assert (target.read_bytes(), target.stat()) == (b"old", before)
    assert _names(target.parent) == {"source", "target"}


def test_what_permissions_forbid_is_refused(source: Path, target: Path) -> None:
    """In a child without root's privileges."""
    target.write_bytes(b"old")
    os.chmod(target, 0o444)
    os.chmod(source, 0)
    read = _as_nobody(source, target.with_name("new"))
    os.chmod(source, 0o644)
    os.chmod(source.parent, 0o777)
    replace = _as_nobody(source, target)
    assert (read, replace) == ("PermissionError", "PermissionError")
    assert target.read_bytes() == b"old"
    assert _names(target.parent) == {"source", "target"}


def _as_nobody(source: Path, target: Path) -> str:
    """Return the name of the error that a user who is nobody gets for a copy."""
    code = (
        "import os, sys; from anyio_uring._copy_steps import FileCopy\n"
        "if not os.getuid(): os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: FileCopy(*sys.argv[1:]).begin()\n"
        "except OSError as exc: print(type(exc).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code, source, target], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.mark.anyio
async def test_what_the_disk_refuses_names_both_files(io: AsyncIoManager, disk: FaultyDisk, source: Path) -> None:
    """Whatever step it is that fails; and the next copy is whole."""
    target = disk.path / "target"
    for operation in ("create", "write", "truncate", "rename"):
        disk.fail(operation, errno.EDQUOT)
        with pytest.raises(OSError) as caught:
            await copy_file(source, target)
        assert caught.value.errno == errno.EDQUOT, operation
        assert str(target) in (caught.value.filename, caught.value.filename2)
        assert _names(disk.path) == set()
        disk.reset()
    await copy_file(source, target)
    assert target.read_bytes() == source.read_bytes()


@pytest.mark.anyio
@pytest.mark.parametrize("step", ["clone", "copy_range", "_next_data"])
async def test_an_error_of_the_kernels_copy_names_both_files(
    io: AsyncIoManager, source: Path, target: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is no reason to read and write instead: the disk is broken."""
    monkeypatch.setattr(_copy_steps, "clone", _refuse(errno.EOPNOTSUPP))
    if step == "_next_data":
        monkeypatch.setattr(os, "lseek", _refuse(errno.EIO))
    else:
        monkeypatch.setattr(_copy_steps, step, _refuse(errno.EIO))
    with pytest.raises(OSError) as caught:
        await copy_file(source, target)
    monkeypatch.undo()
    assert (caught.value.errno, caught.value.filename, caught.value.filename2) == (errno.EIO, str(source), str(target))
    assert _names(target.parent) == {"source"}


@pytest.mark.anyio
async def test_where_nobody_knows_of_holes_everything_is_data(
    io: AsyncIoManager, source: Path, target: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "lseek", _refuse(errno.EINVAL))
    await copy_file(source, target)
    monkeypatch.undo()
    assert target.read_bytes() == source.read_bytes()


@pytest.mark.anyio
async def test_a_file_without_a_size_that_cannot_be_read(io: AsyncIoManager, target: Path) -> None:
    with pytest.raises(OSError) as theirs:
        shutil.copyfile("/proc/self/mem", target)
    target.unlink()
    with pytest.raises(OSError) as ours:
        await copy_file("/proc/self/mem", target)
    assert ours.value.errno == theirs.value.errno
    assert (ours.value.filename, ours.value.filename2) == ("/proc/self/mem", str(target))
    assert not target.exists()


@pytest.mark.anyio
async def test_a_write_of_nothing_ends_the_copy(
    io: AsyncIoManager, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not tried for ever. No filesystem at hand does that."""

    async def write_nothing(_io: AsyncIoManager, parts: Any, **_options: Any) -> list[int]:
        return [0] * len(parts)

    monkeypatch.setattr(_copy_steps, "clone", _refuse(errno.EOPNOTSUPP))
    monkeypatch.setattr(_copy_steps, "copy_range", _refuse(errno.EXDEV))
    monkeypatch.setattr(AsyncIoManager, "write_batch", write_nothing)
    with pytest.raises(OSError, match="wrote nothing") as caught:
        await copy_file(source, target)
    assert (caught.value.errno, caught.value.filename2) == (errno.EIO, str(target))
    assert _names(target.parent) == {"source"}


# --- nothing is left behind -------------------------------------------------------------------------


def _stop_at(limit: int, stop: Callable[[], object]) -> Callable[[int], None]:
    def progress(done: int) -> None:
        if done >= limit:
            stop()

    return progress


@pytest.mark.anyio
@pytest.mark.parametrize("exists", [False, True], ids=["new", "existing"])
@pytest.mark.parametrize("limit", [1, 200 << 10, (512 << 10) + 77])
async def test_a_cancelled_copy_leaves_nothing(
    io: AsyncIoManager, source: Path, target: Path, *, way: str, small_steps: int, exists: bool, limit: int
) -> None:
    if exists:
        target.write_bytes(b"old")
    with anyio.CancelScope() as scope:
        await copy_file(source, target, progress=_stop_at(limit, scope.cancel))
    assert scope.cancelled_caught
    assert _names(target.parent) == ({"source", "target"} if exists else {"source"})
    assert not exists or target.read_bytes() == b"old"


@asyncio_only
@pytest.mark.anyio
async def test_a_copy_cancelled_by_asyncio_leaves_nothing(
    io: AsyncIoManager, source: Path, target: Path, way: str, small_steps: int
) -> None:
    import asyncio

    task = asyncio.ensure_future(copy_file(source, target, progress=lambda _: task.cancel()))
    with pytest.raises(asyncio.CancelledError):
        await task
    assert _names(target.parent) == {"source"}


@pytest.mark.anyio
async def test_what_progress_raises_ends_the_copy(
    io: AsyncIoManager, source: Path, target: Path, way: str, small_steps: int
) -> None:
    def fail() -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        await copy_file(source, target, progress=_stop_at(100 << 10, fail))
    assert _names(target.parent) == {"source"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path | None]:
    """A filesystem of 256 KiB; None where it cannot be mounted."""
    directory = tmp_path / "disk"
    directory.mkdir()
    command: list[Any] = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", directory]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        yield None
        return
    yield directory
    subprocess.run(["umount", directory], check=True)


@pytest.mark.anyio
async def test_a_full_disk_leaves_an_existing_target_alone(
    io: AsyncIoManager, source: Path, small_disk: Path | None
) -> None:
    if small_disk is None:
        pytest.skip("nothing can be mounted here; test_a_limit_leaves_an_existing_target_alone runs in any case")
    target = small_disk / "target"
    target.write_bytes(b"old")
    with pytest.raises(OSError, match="No space left") as caught:
        await copy_file(source, target)
    assert (caught.value.errno, caught.value.filename2) == (errno.ENOSPC, str(target))
    assert _names(small_disk) == {"target"}
    assert target.read_bytes() == b"old"


@pytest.mark.anyio
async def test_a_limit_leaves_an_existing_target_alone(
    io: AsyncIoManager, source: Path, target: Path, way: str
) -> None:
    target.write_bytes(b"old")
    with file_size_limit(100 << 10), pytest.raises(OSError, match="File too large") as caught:
        await copy_file(source, target)
    assert caught.value.errno == errno.EFBIG
    assert _names(target.parent) == {"source", "target"}
    assert target.read_bytes() == b"old"


@pytest.mark.anyio
async def test_a_copy_whose_manager_ends_leaves_nothing(
    source: Path, target: Path, small_steps: int, driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_copy_steps, "clone", _refuse(errno.EOPNOTSUPP))
    monkeypatch.setattr(_copy_steps, "copy_range", _refuse(errno.EXDEV))
    has_begun = anyio.Event()

    async def copy(io: AsyncIoManager) -> None:
        with pytest.raises(anyio.ClosedResourceError):
            await copy_file(source, target, io=io, progress=lambda _: has_begun.set())

    async with anyio.create_task_group() as tasks:
        async with open_uring(driver=driver) as io:
            read = io.readinto_batch

            async def read_when_closed(*arguments: Any, **options: Any) -> Any:
                if has_begun.is_set():
                    await closed.wait()
                return await read(*arguments, **options)

            closed = anyio.Event()
            monkeypatch.setattr(AsyncIoManager, "readinto_batch", lambda _, *a, **o: read_when_closed(*a, **o))
            tasks.start_soon(copy, io)
            await has_begun.wait()
        closed.set()
    assert _names(target.parent) == {"source"}


# --- reflinks ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["btrfs", "xfs"])
def cloning(request: pytest.FixtureRequest) -> Iterator[Path | str]:
    """A filesystem whose files can share blocks; or why there is none."""
    with ExitStack() as stack:
        try:
            directory: Path | str = stack.enter_context(filesystems.mounted(request.param))
        except filesystems.UnavailableError as exc:
            directory = str(exc)
        yield directory


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_blocks_are_shared_where_the_filesystem_can(io: AsyncIoManager, cloning: Path | str) -> None:
    if isinstance(cloning, str):
        pytest.skip(cloning)
    source, target = cloning / "source", cloning / "target"
    source.write_bytes(random.Random(3).randbytes(100 * MIB + 5))
    os.sync()
    free = shutil.disk_usage(cloning).free
    assert await copy_file(source, target) == 100 * MIB + 5
    os.sync()
    assert free - shutil.disk_usage(cloning).free < 20 * MIB, "the copy has blocks of its own"
    assert filecmp.cmp(source, target, shallow=False)
    assert io.statistics().bytes_written == 0
    os.unlink(target)

"""Path operations as calls: what each one puts into an entry of the submission queue, and into a system call.

Callers' values are checked here.  It knows paths, flags and their numbers (``linux/fcntl.h``, ``linux/stat.h``, part
of the kernel's ABI); it knows nothing of drivers, tasks or results.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterable
from functools import partial
from typing import Any, Final, Union

import attrs

from . import _arguments, _buffers, _libc, _statx
from ._arguments import FD_MAX, FileDescriptor
from ._buffers import SupportsBuffer
from ._requests import Call, Opcode

Path = Union[str, bytes, "os.PathLike[str]", "os.PathLike[bytes]"]

AT_FDCWD: Final = -100
_AT_REMOVEDIR: Final = 0x200
_AT_SYMLINK_FOLLOW: Final = 0x400
_RENAME_NOREPLACE: Final = 1
_RENAME_EXCHANGE: Final = 2
_O_DIRECT: Final[int] = getattr(os, "O_DIRECT", 0)
# What no file stands in the way of: these opens end without waiting for anybody.
_OPENS_AT_ONCE: Final[int] = os.O_NONBLOCK | getattr(os, "O_PATH", 0)
# sqe->len is 32 bits wide.
_LENGTH_MAX: Final = 2**32 - 1
# What a program that tidies up after a crash looks for: nobody's file is called so by chance.
_TEMPORARY_PREFIX: Final = ".anyio_uring-"
_TEMPORARY_SUFFIX: Final = ".tmp"
# linux/limits.h: XATTR_SIZE_MAX.
XATTR_SIZE_MAX: Final = 65536
_NO_DIRECT_IO: Final = {
    errno.EINVAL: "the file, or its filesystem, was not opened with O_DIRECT, which some do not have "
    "(tmpfs before Linux 6.6, overlays of such, procfs, FUSE by configuration): open it without direct=True"
}


@attrs.frozen
class Name:
    """
    A path.

    :ivar given: as an error names it
    :ivar path: as the kernel takes it, with its final zero
    """

    given: str | bytes
    path: bytes

    def error(self, res: int) -> OSError:
        """Return the error of a negative result."""
        return OSError(-res, os.strerror(-res), self.given)


def temporary_name() -> str:
    """Return the name of a file that is to get another one; of 64 random bits, it is free."""
    return f"{_TEMPORARY_PREFIX}{secrets.token_hex(8)}{_TEMPORARY_SUFFIX}"


def names(paths: Iterable[Path]) -> list[Name]:
    """Check many paths; an error names the one that caused it."""
    if isinstance(paths, (str, bytes)):
        raise TypeError("paths must be an iterable of paths, not one path")
    checked: list[Name] = []
    for path in paths:
        try:
            checked.append(Name(*_path(path)))
        except (TypeError, ValueError) as exc:
            kind = TypeError if isinstance(exc, TypeError) else ValueError
            raise kind(f"paths[{len(checked)}]: {exc}") from exc
    return checked


def _mode(mode: int) -> int:
    """Return the permissions of a mode, which may be a ``st_mode``: the type in that says nothing, as in ``os``."""
    return _int("mode", mode, 0, 2**31 - 1) & 0o7777


def open_file(path: Path, flags: int, mode: int, dir_fd: int | None, *, direct: bool) -> Call:
    given, name = _path(path)
    flags = _int("flags", flags, -(2**31), 2**31 - 1) | os.O_CLOEXEC
    mode = _mode(mode)
    if direct:
        if not _O_DIRECT:
            raise OSError(errno.EOPNOTSUPP, "this system has no O_DIRECT: open without direct=True", given)
        flags |= _O_DIRECT
    return Call(
        Opcode.OPENAT,
        _directory(dir_fd),
        partial(os.open, name[:-1], flags, mode, dir_fd=dir_fd),
        first=name,
        length=mode,
        op_flags=flags,
        names=(given,),
        reasons=_NO_DIRECT_IO if flags & _O_DIRECT else {},
        # Tried inline, an open gets O_NONBLOCK, and of a FIFO that means another thing: it does not wait for the
        # other end.  And a device's, or a server's, open would hold the event loop.
        force_async=not flags & _OPENS_AT_ONCE,
        opens=True,
    )


def close(fd: int) -> Call:
    number = _number("fd", fd)
    return Call(Opcode.CLOSE, max(number, -1), _numbered(os.close, number))


def sync(fd: int) -> Call:
    number = _int("fd", fd, 0, FD_MAX)
    return Call(Opcode.FSYNC, number, _numbered(os.fsync, number))


def stat(path: Path | FileDescriptor, dir_fd: int | None, *, follow_symlinks: bool) -> tuple[Call, bytearray]:
    """Return the call, and the memory that it fills."""
    flags = _statx.AT_NO_AUTOMOUNT | (0 if follow_symlinks else _statx.AT_SYMLINK_NOFOLLOW)
    if _is_path(path):
        given, name = _path(path)
        number, file = _directory(dir_fd), None
        names: tuple[str | bytes, ...] = (given,)
    else:
        number, file, names = _descriptor(path, dir_fd, follow_symlinks=follow_symlinks)
        name, flags = b"\0", flags | _statx.AT_EMPTY_PATH
    answer = bytearray(_statx.SIZE)
    run = partial(_statx.ask, number, name, flags, _statx.EVERYTHING, answer)
    call = Call(Opcode.STATX, number, run, name, answer, _statx.EVERYTHING, flags, file, names)
    return call, answer


def stat_into(name: Name, answer: memoryview) -> Call:
    """Return the call of one member of a batch."""
    run = partial(_statx.ask, AT_FDCWD, name.path, _statx.AT_NO_AUTOMOUNT, _statx.EVERYTHING, answer)
    fields = name.path, answer, _statx.EVERYTHING, _statx.AT_NO_AUTOMOUNT
    return Call(Opcode.STATX, AT_FDCWD, run, *fields, names=(name.given,))


def rename(
    src: Path, dst: Path, src_dir_fd: int | None, dst_dir_fd: int | None, *, noreplace: bool, exchange: bool
) -> Call:
    if noreplace and exchange:
        raise ValueError("noreplace and exchange exclude each other: an exchange needs both to exist")
    flags = (_RENAME_NOREPLACE if noreplace else 0) | (_RENAME_EXCHANGE if exchange else 0)
    (src_given, src_name), (dst_given, dst_name) = _path(src), _path(dst)
    src_dir, dst_dir = _directory(src_dir_fd), _directory(dst_dir_fd)
    if flags:
        run: Any = partial(_libc.renameat2, src_dir, src_name, dst_dir, dst_name, flags)
    else:
        run = _done(os.rename, src_name[:-1], dst_name[:-1], src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
    names = src_given, dst_given
    return Call(Opcode.RENAMEAT, src_dir, run, src_name, dst_name, dst_dir, flags, names=names)


def unlink(path: Path, dir_fd: int | None) -> Call:
    given, name = _path(path)
    run = _done(os.unlink, name[:-1], dir_fd=dir_fd)
    return Call(Opcode.UNLINKAT, _directory(dir_fd), run, name, names=(given,))


def rmdir(path: Path, dir_fd: int | None) -> Call:
    given, name = _path(path)
    run = _done(os.rmdir, name[:-1], dir_fd=dir_fd)
    return Call(Opcode.UNLINKAT, _directory(dir_fd), run, name, op_flags=_AT_REMOVEDIR, names=(given,))


def mkdir(path: Path, mode: int, dir_fd: int | None) -> Call:
    given, name = _path(path)
    mode = _mode(mode)
    run = _done(os.mkdir, name[:-1], mode, dir_fd=dir_fd)
    return Call(Opcode.MKDIRAT, _directory(dir_fd), run, name, length=mode, names=(given,))


def link(src: Path, dst: Path, src_dir_fd: int | None, dst_dir_fd: int | None, *, follow_symlinks: bool) -> Call:
    flags = _AT_SYMLINK_FOLLOW if follow_symlinks else 0
    (src_given, src_name), (dst_given, dst_name) = _path(src), _path(dst)
    src_dir, dst_dir = _directory(src_dir_fd), _directory(dst_dir_fd)
    run = partial(_libc.linkat, src_dir, src_name, dst_dir, dst_name, flags)
    names = src_given, dst_given
    return Call(Opcode.LINKAT, src_dir, run, src_name, dst_name, dst_dir, flags, names=names)


def symlink(src: Path, dst: Path, dir_fd: int | None) -> Call:
    (src_given, target), (dst_given, name) = _path(src), _path(dst)
    run = _done(os.symlink, target[:-1], name[:-1], dir_fd=dir_fd)
    return Call(Opcode.SYMLINKAT, _directory(dir_fd), run, target, name, names=(src_given, dst_given))


def truncate(path: Path | FileDescriptor, length: int) -> Call:
    length = _arguments.length(length)
    if _is_path(path):
        given, name = _path(path)
        # There is no opcode for a path.
        run = _done(os.truncate, name[:-1], length)
        return Call(Opcode.FTRUNCATE, AT_FDCWD, run, second=length, names=(given,), fits_ring=False)
    number, file, names = _descriptor(path)
    run = _numbered(os.ftruncate, number, length)
    return Call(Opcode.FTRUNCATE, number, run, second=length, file=file, names=names)


def fallocate(fd: FileDescriptor, mode: int, offset: int, length: int) -> Call:
    number, file, names = _descriptor(fd)
    mode = _int("mode", mode, 0, 2**31 - 1)
    offset, length = _int("offset", offset, 0, _arguments.OFFSET_MAX), _arguments.length(length)
    run = partial(_libc.fallocate, number, mode, offset, length)
    return Call(Opcode.FALLOCATE, number, run, length, offset, mode, file=file, names=names)


def fadvise(fd: FileDescriptor, offset: int, length: int, advice: int) -> Call:
    number, file, names = _descriptor(fd)
    advice = _int("advice", advice, 0, 2**31 - 1)
    offset, length = _int("offset", offset, 0, _arguments.OFFSET_MAX), _arguments.length(length)
    run = _numbered(os.posix_fadvise, number, offset, length, advice)
    fits = length <= _LENGTH_MAX  # 64 bits since Linux 6.9, and nothing says whether they are there
    return Call(Opcode.FADVISE, number, run, 0, offset, length, advice, file, names, fits_ring=fits)


def sync_file_range(fd: FileDescriptor, offset: int, length: int, flags: int) -> Call:
    number, file, names = _descriptor(fd)
    flags = _int("flags", flags, 0, 2**31 - 1)
    offset, length = _int("offset", offset, 0, _arguments.OFFSET_MAX), _arguments.length(length)
    run = partial(_libc.sync_file_range, number, offset, length, flags)
    fits = length <= _LENGTH_MAX
    return Call(Opcode.SYNC_FILE_RANGE, number, run, 0, offset, length, flags, file, names, fits_ring=fits)


def getxattr(path: Path | FileDescriptor, name: Path, value: bytearray, *, follow_symlinks: bool) -> Call:
    """
    Return the call that fills ``value``, and whose result is its length.

    :param value: as long as :data:`XATTR_SIZE_MAX`, so that it is never too short
    """
    _, attribute = _path(name)

    def run(target: int | bytes) -> int:
        if target == -1:  # os would take that for a path that is not there: EFAULT
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        found = os.getxattr(target, attribute[:-1], follow_symlinks=follow_symlinks)
        value[: len(found)] = found
        return len(found)

    if _is_path(path):
        given, path_name = _path(path)
        # Of a path it takes sqe->addr3, too.
        by_path = partial(run, path_name[:-1])
        return Call(Opcode.FGETXATTR, AT_FDCWD, by_path, names=(given,), fits_ring=False)
    number, file, names = _descriptor(path, follow_symlinks=follow_symlinks)
    return Call(Opcode.FGETXATTR, number, partial(run, number), attribute, value, len(value), file=file, names=names)


def setxattr(
    path: Path | FileDescriptor, name: Path, value: SupportsBuffer, flags: int, *, follow_symlinks: bool
) -> Call:
    _, attribute = _path(name)
    flags = _int("flags", flags, 0, 2**31 - 1)
    with _buffers.readable(value) as view:
        data = bytes(view)
    if _is_path(path):
        given, path_name = _path(path)
        by_path = _done(os.setxattr, path_name[:-1], attribute[:-1], data, flags, follow_symlinks=follow_symlinks)
        return Call(Opcode.FSETXATTR, AT_FDCWD, by_path, names=(given,), fits_ring=False)
    number, file, names = _descriptor(path, follow_symlinks=follow_symlinks)
    by_number = _numbered(os.setxattr, number, attribute[:-1], data, flags)
    return Call(Opcode.FSETXATTR, number, by_number, attribute, data, len(data), flags, file, names)


# --- values -------------------------------------------------------------------------------------


def _is_path(value: Any) -> bool:
    return isinstance(value, (str, bytes, os.PathLike))


def _path(value: Any) -> tuple[str | bytes, bytes]:
    """Return a path as an error names it, and as the kernel takes it, with its final zero."""
    given: str | bytes = os.fspath(value)
    name = os.fsencode(given)
    if b"\0" in name:
        raise ValueError(f"a path cannot have a zero byte in it: {given!r}")
    return given, name + b"\0"


def _directory(dir_fd: int | None) -> int:
    return AT_FDCWD if dir_fd is None else _number("dir_fd", dir_fd)


def _number(what: str, fd: int) -> int:
    """Return a descriptor given as a plain number; a bool is a mistake, as elsewhere."""
    if isinstance(fd, bool):
        raise TypeError(f"{what} must be an int, not bool")
    return _int(what, fd, -FD_MAX, FD_MAX)


def _descriptor(
    fd: Any, dir_fd: int | None = None, *, follow_symlinks: bool = True
) -> tuple[int, object, tuple[str | bytes, ...]]:
    """Return a descriptor's number, its owner, and the name that an error gives it."""
    if dir_fd is not None:
        raise ValueError("dir_fd goes with a path, not with a descriptor")
    if not follow_symlinks:
        raise ValueError("follow_symlinks=False goes with a path, not with a descriptor")
    number, file = _arguments.descriptor(fd)
    name = getattr(file, "name", None)
    return number, file, (name,) if isinstance(name, (str, bytes)) else ()


def _int(what: str, value: int, lowest: int, highest: int) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{what} must be an int, not {type(value).__name__}")
    if not lowest <= value <= highest:
        raise ValueError(f"{what} must be between {lowest} and {highest}, not {value}")
    return int(value)


# --- system calls -------------------------------------------------------------------------------


def _done(function: Any, *arguments: Any, **keywords: Any) -> Any:
    """Return what calls a function that returns nothing, and returns 0."""

    def run() -> int:
        function(*arguments, **keywords)
        return 0

    return run


def _numbered(function: Any, fd: int, *arguments: Any) -> Any:
    """Do the same with a function of a descriptor, which may have another error for a negative one."""

    def run() -> int:
        if fd < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        function(fd, *arguments)
        return 0

    return run

"""``statx(2)``: how it is asked, and its answer as Python has it.

Knows the layout of ``struct statx`` (``linux/stat.h``, part of the kernel's ABI); it does not know who asks: the
ring, a thread, or the event loop's own thread.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import attrs

from . import _libc

SIZE: Final = 256
# STATX_BASIC_STATS, BTIME, MNT_ID (5.8) and DIOALIGN (6.1).
_BASIC: Final = 0x7FF
_BTIME: Final = 0x800
_MNT_ID: Final = 0x1000
_DIOALIGN: Final = 0x2000
EVERYTHING: Final = _BASIC | _BTIME | _MNT_ID | _DIOALIGN
# linux/fcntl.h.
AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_NO_AUTOMOUNT: Final = 0x800
AT_EMPTY_PATH: Final = 0x1000
AT_STATX_DONT_SYNC: Final = 0x4000  # ask no server, as NFS and FUSE would

# Enough for every device whose logical blocks fit a page; kernels that know larger ones tell by statx().
SAFE_ALIGNMENT: Final = 4096

_LAYOUT: Final = struct.Struct("=IIQIIIHxxQQQQqIxxxxqIxxxxqIxxxxqIxxxxIIIIQII")
_SECOND_NS: Final = 1_000_000_000
# A filter may forbid statx(2) and allow stat(2): older profiles of containers say EPERM.
_HAS_NO_STATX: Final = frozenset({errno.ENOSYS, errno.EPERM})


@attrs.frozen
class DirectAlignment:
    """What reads and writes of a file opened with ``O_DIRECT`` must be multiples of, as far as the kernel tells."""

    memory: int
    """Of the address of each buffer, in bytes."""
    offset: int
    """Of the offset in the file, and of the length of each buffer, in bytes."""
    is_supported: bool | None = None
    """Whether the file has direct I/O; ``None`` if the kernel or the filesystem does not say
    (``STATX_DIOALIGN``: Linux 6.1, not tmpfs): then the alignment is 4096, which is safe."""


class _Answer(NamedTuple):
    """``struct statx``, field by field."""

    mask: int
    blksize: int
    attributes: int
    nlink: int
    uid: int
    gid: int
    mode: int
    ino: int
    size: int
    blocks: int
    attributes_mask: int
    atime: int
    atime_ns: int
    btime: int
    btime_ns: int
    ctime: int
    ctime_ns: int
    mtime: int
    mtime_ns: int
    rdev_major: int
    rdev_minor: int
    dev_major: int
    dev_minor: int
    mnt_id: int
    dio_mem_align: int
    dio_offset_align: int


@attrs.frozen(repr=False)
class FileStatus:
    """
    What :meth:`AsyncIoManager.stat` returns: the attributes of :class:`os.stat_result`, and what ``statx(2)`` adds.

    It has the items of one, too (``status[stat.ST_SIZE]``, ``mode, inode, *_ = status``), so functions that look
    at a status take it; one that insists on the very type takes :attr:`stat_result`.
    """

    # Taken apart when it is asked: a batch makes thousands, of which mostly one attribute is wanted.
    _answer: _Answer

    @property
    def st_mode(self) -> int:
        """Type and permissions; :mod:`stat` takes them apart."""
        return self._answer.mode

    @property
    def st_ino(self) -> int:
        """Inode number."""
        return self._answer.ino

    @property
    def st_dev(self) -> int:
        """Device that the file is on."""
        return os.makedev(self._answer.dev_major, self._answer.dev_minor)

    @property
    def st_nlink(self) -> int:
        """Hard links."""
        return self._answer.nlink

    @property
    def st_uid(self) -> int:
        """User ID of the owner."""
        return self._answer.uid

    @property
    def st_gid(self) -> int:
        """Group ID of the owner."""
        return self._answer.gid

    @property
    def st_size(self) -> int:
        """Bytes; of a symbolic link, the length of what it says."""
        return self._answer.size

    @property
    def st_atime_ns(self) -> int:
        """Last access, in nanoseconds since the epoch."""
        return self._answer.atime * _SECOND_NS + self._answer.atime_ns

    @property
    def st_mtime_ns(self) -> int:
        """Last change of the content, in nanoseconds since the epoch."""
        return self._answer.mtime * _SECOND_NS + self._answer.mtime_ns

    @property
    def st_ctime_ns(self) -> int:
        """Last change of the status, in nanoseconds since the epoch."""
        return self._answer.ctime * _SECOND_NS + self._answer.ctime_ns

    @property
    def st_birthtime_ns(self) -> int | None:
        """Creation, in nanoseconds since the epoch; ``None`` if the filesystem keeps none."""
        answer = self._answer
        return answer.btime * _SECOND_NS + answer.btime_ns if answer.mask & _BTIME else None

    @property
    def st_atime(self) -> float:
        """Last access, in seconds since the epoch."""
        return _seconds(self._answer.atime, self._answer.atime_ns)

    @property
    def st_mtime(self) -> float:
        """Last change of the content, in seconds since the epoch."""
        return _seconds(self._answer.mtime, self._answer.mtime_ns)

    @property
    def st_ctime(self) -> float:
        """Last change of the status, in seconds since the epoch."""
        return _seconds(self._answer.ctime, self._answer.ctime_ns)

    @property
    def st_birthtime(self) -> float | None:
        """Creation, in seconds since the epoch; ``None`` if the filesystem keeps none."""
        answer = self._answer
        return _seconds(answer.btime, answer.btime_ns) if answer.mask & _BTIME else None

    @property
    def st_blocks(self) -> int:
        """Blocks of 512 bytes that are allocated."""
        return self._answer.blocks

    @property
    def st_blksize(self) -> int:
        """Bytes that one read or write should have, for efficiency."""
        return self._answer.blksize

    @property
    def st_rdev(self) -> int:
        """Device that this file is, if it is one."""
        return os.makedev(self._answer.rdev_major, self._answer.rdev_minor)

    @property
    def mount_id(self) -> int | None:
        """Of the mount, as ``/proc/self/mountinfo`` has it; ``None`` before Linux 5.8."""
        return self._answer.mnt_id if self._answer.mask & _MNT_ID else None

    @property
    def attributes(self) -> int:
        """``STATX_ATTR_*``: compressed, immutable, append-only, encrypted ... (``statx(2)``)."""
        return self._answer.attributes

    @property
    def attributes_mask(self) -> int:
        """Which of those the filesystem knows."""
        return self._answer.attributes_mask

    @property
    def direct_alignment(self) -> DirectAlignment:
        """What direct I/O must be aligned to."""
        memory, offset = self._answer.dio_mem_align, self._answer.dio_offset_align
        if not self._answer.mask & _DIOALIGN:
            return DirectAlignment(SAFE_ALIGNMENT, SAFE_ALIGNMENT)
        if not memory or not offset:
            return DirectAlignment(SAFE_ALIGNMENT, SAFE_ALIGNMENT, is_supported=False)
        return DirectAlignment(memory, offset, is_supported=True)

    @property
    def stat_result(self) -> os.stat_result:
        """The same as :mod:`os` has it."""
        names = ("st_atime", "st_mtime", "st_ctime", "st_atime_ns", "st_mtime_ns", "st_ctime_ns")
        more: dict[str, Any] = {name: getattr(self, name) for name in names}
        more |= {"st_blksize": self.st_blksize, "st_blocks": self.st_blocks, "st_rdev": self.st_rdev}
        return os.stat_result((*self,), more)

    def __repr__(self) -> str:
        return repr(self.stat_result).replace("os.stat_result", "FileStatus")

    def __len__(self) -> int:
        return 10

    def __iter__(self) -> Iterator[int]:
        answer = self._answer
        yield from (answer.mode, answer.ino, self.st_dev, answer.nlink, answer.uid, answer.gid, answer.size)
        yield from (answer.atime, answer.mtime, answer.ctime)

    def __getitem__(self, index: int) -> int:
        return tuple(self)[index]


def read(answer: bytes | bytearray | memoryview, position: int = 0) -> FileStatus:
    """Return what a filled ``struct statx`` says."""
    return FileStatus(_Answer._make(_LAYOUT.unpack_from(answer, position)))


def ask(dir_fd: int, path: bytes, flags: int, mask: int, answer: bytearray | memoryview) -> int:
    """
    Fill a ``struct statx``, from :func:`os.stat` where there is no ``statx(2)``.

    :raises OSError: as :func:`os.stat` would, without a filename
    """
    try:
        return _libc.statx(dir_fd, path, flags, mask, answer)
    except OSError as exc:
        if exc.errno not in _HAS_NO_STATX:
            raise
    if flags & AT_EMPTY_PATH:
        found = os.fstat(dir_fd)
    else:
        follow = not flags & AT_SYMLINK_NOFOLLOW
        found = os.stat(path[:-1], dir_fd=dir_fd if dir_fd >= 0 else None, follow_symlinks=follow)
    _write(found, answer)
    return 0


def known(fd: int) -> FileStatus:
    """
    Return an open file's status as the kernel has it in memory, which nobody has to wait for.

    Its type and its alignment never change; its size may have, where others write to it, too.

    :raises OSError: if the descriptor is bad
    """
    if fd < 0:  # AT_FDCWD is a number, too
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    answer = bytearray(SIZE)
    ask(fd, b"", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, EVERYTHING, answer)
    return read(answer)


def _write(found: os.stat_result, answer: bytearray | memoryview) -> None:
    times: list[int] = []
    for time_ns in (found.st_atime_ns, 0, found.st_ctime_ns, found.st_mtime_ns):
        times += divmod(time_ns, _SECOND_NS)
    devices = os.major(found.st_rdev), os.minor(found.st_rdev), os.major(found.st_dev), os.minor(found.st_dev)
    owners = found.st_nlink, found.st_uid, found.st_gid, found.st_mode
    sizes = found.st_ino, found.st_size, found.st_blocks, 0
    _LAYOUT.pack_into(answer, 0, _BASIC, found.st_blksize, 0, *owners, *sizes, *times, *devices, 0, 0, 0)


def _seconds(seconds: int, rest_ns: int) -> float:
    # As os.stat() computes it, so that the two compare equal.
    return seconds + 1e-9 * rest_ns

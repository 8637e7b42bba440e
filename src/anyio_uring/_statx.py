"""``statx(2)``: how it is asked, and its answer as Python has it.

Knows the layout of ``struct statx`` (``linux/stat.h``, part of the kernel's ABI); it does not know who asks: the
ring, a thread, or the event loop's own thread.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from typing import Any, Final

import attrs

from . import _libc

SIZE: Final = 256
# STATX_BASIC_STATS, BTIME, MNT_ID (5.8) and DIOALIGN (6.1).
_BASIC: Final = 0x7FF
_BTIME: Final = 0x800
_MNT_ID: Final = 0x1000
DIOALIGN: Final = 0x2000
EVERYTHING: Final = _BASIC | _BTIME | _MNT_ID | DIOALIGN
# linux/fcntl.h.
AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_NO_AUTOMOUNT: Final = 0x800
AT_EMPTY_PATH: Final = 0x1000
AT_STATX_DONT_SYNC: Final = 0x4000  # ask no server: what is asked here does not change

# Enough for every device whose logical blocks fit a page; kernels that know larger ones tell by statx().
SAFE_ALIGNMENT: Final = 4096

# mask, blksize, attributes; nlink, uid, gid, mode; ino, size, blocks, attributes_mask; atime, btime, ctime, mtime;
# rdev and dev, each major and minor; mnt_id; dio_mem_align, dio_offset_align.
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


@attrs.frozen(kw_only=True)
class FileStatus:
    """
    What :meth:`AsyncIoManager.stat` returns: the attributes of :class:`os.stat_result`, and what ``statx(2)`` adds.

    It has the items of one, too (``status[stat.ST_SIZE]``, ``mode, inode, *_ = status``), so functions that look
    at a status take it; one that insists on the very type takes :attr:`stat_result`.
    """

    st_mode: int
    """Type and permissions; :mod:`stat` takes them apart."""
    st_ino: int
    """Inode number."""
    st_dev: int
    """Device that the file is on."""
    st_nlink: int
    """Hard links."""
    st_uid: int
    """User ID of the owner."""
    st_gid: int
    """Group ID of the owner."""
    st_size: int
    """Bytes; of a symbolic link, the length of what it points to."""
    st_atime_ns: int
    """Last access, in nanoseconds since the epoch."""
    st_mtime_ns: int
    """Last change of the content, in nanoseconds since the epoch."""
    st_ctime_ns: int
    """Last change of the status, in nanoseconds since the epoch."""
    st_birthtime_ns: int | None
    """Creation, in nanoseconds since the epoch; ``None`` if the filesystem keeps none."""
    st_blocks: int
    """Blocks of 512 bytes that are allocated."""
    st_blksize: int
    """Bytes that one read or write should have, for efficiency."""
    st_rdev: int
    """Device that this file is, if it is one."""
    mount_id: int | None
    """Of the mount, as ``/proc/self/mountinfo`` has it; ``None`` before Linux 5.8."""
    attributes: int
    """``STATX_ATTR_*``: compressed, immutable, append-only, encrypted ... (``statx(2)``)."""
    attributes_mask: int
    """Which of those the filesystem knows."""
    direct_alignment: DirectAlignment
    """What direct I/O must be aligned to."""

    @property
    def st_atime(self) -> float:
        """Last access, in seconds since the epoch."""
        return _seconds(self.st_atime_ns)

    @property
    def st_mtime(self) -> float:
        """Last change of the content, in seconds since the epoch."""
        return _seconds(self.st_mtime_ns)

    @property
    def st_ctime(self) -> float:
        """Last change of the status, in seconds since the epoch."""
        return _seconds(self.st_ctime_ns)

    @property
    def st_birthtime(self) -> float | None:
        """Creation, in seconds since the epoch; ``None`` if the filesystem keeps none."""
        return None if self.st_birthtime_ns is None else _seconds(self.st_birthtime_ns)

    @property
    def stat_result(self) -> os.stat_result:
        """The same as :mod:`os` has it."""
        names = ("st_atime", "st_mtime", "st_ctime", "st_atime_ns", "st_mtime_ns", "st_ctime_ns")
        more: dict[str, Any] = {name: getattr(self, name) for name in names}
        more |= {"st_blksize": self.st_blksize, "st_blocks": self.st_blocks, "st_rdev": self.st_rdev}
        return os.stat_result((*self,), more)

    def __len__(self) -> int:
        return 10

    def __iter__(self) -> Iterator[int]:
        times = (self.st_atime_ns, self.st_mtime_ns, self.st_ctime_ns)
        yield from (self.st_mode, self.st_ino, self.st_dev, self.st_nlink, self.st_uid, self.st_gid, self.st_size)
        yield from (time_ns // _SECOND_NS for time_ns in times)

    def __getitem__(self, index: int) -> int:
        return tuple(self)[index]


def read(answer: bytes | bytearray) -> FileStatus:
    """Return what a filled ``struct statx`` says."""
    (mask, blksize, attributes, nlink, uid, gid, mode, ino, size, blocks, attributes_mask,
     *times, rdev_major, rdev_minor, dev_major, dev_minor, mount_id, memory, offset) = _LAYOUT.unpack_from(answer)  # fmt: skip
    atime, btime, ctime, mtime = (times[i] * _SECOND_NS + times[i + 1] for i in range(0, 8, 2))
    return FileStatus(
        st_mode=mode,
        st_ino=ino,
        st_dev=os.makedev(dev_major, dev_minor),
        st_nlink=nlink,
        st_uid=uid,
        st_gid=gid,
        st_size=size,
        st_atime_ns=atime,
        st_mtime_ns=mtime,
        st_ctime_ns=ctime,
        st_birthtime_ns=btime if mask & _BTIME else None,
        st_blocks=blocks,
        st_blksize=blksize,
        st_rdev=os.makedev(rdev_major, rdev_minor),
        mount_id=mount_id if mask & _MNT_ID else None,
        attributes=attributes,
        attributes_mask=attributes_mask,
        direct_alignment=_alignment(mask, memory, offset),
    )


def ask(dir_fd: int, path: bytes, flags: int, mask: int, answer: bytearray) -> int:
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


def _write(found: os.stat_result, answer: bytearray) -> None:
    times: list[int] = []
    for time_ns in (found.st_atime_ns, 0, found.st_ctime_ns, found.st_mtime_ns):
        times += divmod(time_ns, _SECOND_NS)
    devices = os.major(found.st_rdev), os.minor(found.st_rdev), os.major(found.st_dev), os.minor(found.st_dev)
    owners = found.st_nlink, found.st_uid, found.st_gid, found.st_mode
    sizes = found.st_ino, found.st_size, found.st_blocks, 0
    _LAYOUT.pack_into(answer, 0, _BASIC, found.st_blksize, 0, *owners, *sizes, *times, *devices, 0, 0, 0)


def _alignment(mask: int, memory: int, offset: int) -> DirectAlignment:
    if not mask & DIOALIGN:
        return DirectAlignment(SAFE_ALIGNMENT, SAFE_ALIGNMENT)
    if not memory or not offset:
        return DirectAlignment(SAFE_ALIGNMENT, SAFE_ALIGNMENT, is_supported=False)
    return DirectAlignment(memory, offset, is_supported=True)


def _seconds(time_ns: int) -> float:
    # As os.stat() computes it, so that the two compare equal.
    seconds, rest_ns = divmod(time_ns, _SECOND_NS)
    return seconds + 1e-9 * rest_ns

"""The flags of one read or write, ``RWF_*`` of ``preadv2(2)``: their names, and what each needs.

Knows numbers and the kernel's history; it asks the kernel nothing.  Support belongs to the file as much as to
the kernel, and the kernel refuses before it moves a byte: so the call itself is the probe, and nothing is cached.
"""

from __future__ import annotations

import enum
import errno
import operator
from typing import Final

from ._errors import UnsupportedFlagError


class RwFlags(enum.IntFlag):
    """
    How one read or write is to be carried out: the kernel's ``RWF_*`` (``preadv2(2)``, ``linux/fs.h``).

    The numbers are those of ``os.RWF_DSYNC`` and the like, which are taken as well; :mod:`os` has not all of them.
    """

    HIPRI = 0x01
    """Poll for the completion (Linux 4.6).  Only a ring opened for polled I/O takes it; on threads it is a hint."""
    DSYNC = 0x02
    """The bytes written are on stable storage when the call returns, as with ``O_DSYNC`` (Linux 4.7)."""
    SYNC = 0x04
    """As :attr:`DSYNC`, with all of the file's metadata (``O_SYNC``, Linux 4.7)."""
    NOWAIT = 0x08
    """Do not wait: what is there at once, else :class:`BlockingIOError` (Linux 4.14; writes later, by filesystem)."""
    APPEND = 0x10
    """Write at the end of the file, whatever the offset is (``O_APPEND``, Linux 4.16)."""
    ATOMIC = 0x40
    """All or nothing even if power fails (Linux 6.11): ``O_DIRECT`` on a device that can, and a filesystem that knows."""
    DONTCACHE = 0x80
    """Leave nothing in the page cache (Linux 6.14), on filesystems that can: ext4 and XFS, not tmpfs."""


NOWAIT: Final = 0x08  # as a plain int: asked of each request, and an enum's operators take 0.5 us
_HIPRI: Final = 0x01
_ATOMIC: Final = 0x40
_KNOWN: Final = 0xDF
# What a kernel that has io_uring can still refuse, by its version or for a file.
_OPTIONAL: Final = NOWAIT | _ATOMIC | 0x80

_NEEDS: Final = {
    RwFlags.HIPRI: "Linux 4.6",
    RwFlags.DSYNC: "Linux 4.7",
    RwFlags.SYNC: "Linux 4.7",
    RwFlags.NOWAIT: "Linux 4.14 and a file that can say that it would wait: no terminal, no file of tmpfs, "
    "and on ext4 reads and O_DIRECT only",
    RwFlags.APPEND: "Linux 4.16",
    RwFlags.ATOMIC: "a write, Linux 6.11 (ext4 and XFS: 6.13), O_DIRECT, and a device and filesystem with atomic "
    "writes (statx: STATX_WRITE_ATOMIC)",
    RwFlags.DONTCACHE: "Linux 6.14 and a filesystem that supports it (ext4 and XFS do, tmpfs and pipes do not)",
}


def check(flags: int) -> int:
    """
    Return flags as a plain int.

    :raises ValueError: if a bit is none of :class:`RwFlags`
    """
    flags = operator.index(flags)
    if flags < 0 or flags & ~_KNOWN:
        known = ", ".join(f"{name} {flag:#x}" for name, flag in RwFlags.__members__.items())
        raise ValueError(f"flags must be made of RwFlags ({known}): {flags:#x} has other bits")
    return int(flags)


def refusal(res: int, flags: int, filename: str | bytes | None, *, is_polled: bool) -> OSError | None:
    """
    Return the error that says which flag the kernel has refused, and what it needs; None if it was no flag.

    :param res: what the kernel answered
    :param is_polled: whether :attr:`RwFlags.HIPRI` could not have been the cause
    """
    if res == -errno.EOPNOTSUPP and flags:
        suspects = RwFlags(flags & _OPTIONAL or flags)
        each = [f"RWF_{name} needs {_NEEDS[flag]}" for name, flag in RwFlags.__members__.items() if flag in suspects]
        reason = "the kernel does not support these flags for this file and direction: " + "; ".join(each)
        return UnsupportedFlagError(errno.EOPNOTSUPP, reason, filename)
    if res == -errno.EINVAL and flags & _HIPRI and not is_polled:
        reason = "RWF_HIPRI needs a ring that is opened for polled I/O (IORING_SETUP_IOPOLL): leave it out"
        return UnsupportedFlagError(errno.EOPNOTSUPP, reason, filename)
    if res == -errno.EINVAL and flags & _ATOMIC:
        reason = (
            "the kernel refused the arguments: with RWF_ATOMIC the length must be a power of two within the limits "
            "that statx tells (STATX_WRITE_ATOMIC), and the offset a multiple of it"
        )
        return OSError(errno.EINVAL, reason, filename)
    return None

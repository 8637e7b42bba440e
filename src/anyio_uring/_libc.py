"""System calls that :mod:`os` lacks, by way of the C library.

Knows numbers, paths as bytes and ``errno``; what they are for is the callers' affair.  A function that this C
library does not have fails with ``ENOSYS``, as it does on a kernel that does not have it.
"""

from __future__ import annotations

import ctypes
import errno
import os
from functools import cache
from typing import Any

_INT, _UINT, _LONG = ctypes.c_int, ctypes.c_uint, ctypes.c_int64


def statx(dir_fd: int, path: bytes, flags: int, mask: int, buffer: bytearray | memoryview) -> int:
    """
    Fill a ``struct statx``, of 256 bytes (``statx(2)``, Linux 4.11).

    :raises OSError: as :func:`os.stat` would, without a filename
    """
    memory = (ctypes.c_char * len(buffer)).from_buffer(buffer)
    return _call("statx", _INT(dir_fd), path, _INT(flags), _UINT(mask), memory)


def renameat2(old_dir_fd: int, old: bytes, new_dir_fd: int, new: bytes, flags: int) -> int:
    """Rename, with flags (``renameat2(2)``, Linux 3.15)."""
    return _call("renameat2", _INT(old_dir_fd), old, _INT(new_dir_fd), new, _UINT(flags))


def linkat(old_dir_fd: int, old: bytes, new_dir_fd: int, new: bytes, flags: int) -> int:
    """Make a hard link (``linkat(2)``): without directories, :func:`os.link` has no say about symbolic links."""
    return _call("linkat", _INT(old_dir_fd), old, _INT(new_dir_fd), new, _INT(flags))


def fallocate(fd: int, mode: int, offset: int, length: int) -> int:
    """Allocate, or give back, space of a file (``fallocate(2)``, Linux 2.6.23)."""
    # Where off_t may be 32 bits (glibc), there is one for 64; elsewhere (musl) it always is 64.
    name = "fallocate64" if _find("fallocate64") is not None else "fallocate"
    return _call(name, _INT(fd), _INT(mode), _LONG(offset), _LONG(length))


def sync_file_range(fd: int, offset: int, length: int, flags: int) -> int:
    """Write out a range of the page cache (``sync_file_range(2)``)."""
    return _call("sync_file_range", _INT(fd), _LONG(offset), _LONG(length), _UINT(flags))


def _call(name: str, *arguments: Any) -> int:
    function = _find(name)
    if function is None:
        raise OSError(errno.ENOSYS, f"the C library has no {name}()")
    result: int = function(*arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


@cache
def _find(name: str) -> Any:
    return getattr(ctypes.CDLL(None, use_errno=True), name, None)

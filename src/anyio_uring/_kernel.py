"""Questions to the kernel that need no ring: which set-ups it allows, how direct I/O is aligned.

Knows the extension's answers; it does not know who asks, or what is done about them.
"""

from __future__ import annotations

import os
from typing import Final

import attrs

from ._errors import UringUnavailableError
from ._ring import extension

# No device and no file system in use asks for more; it is a page of most machines.
ALIGNMENT_SAFE: Final = 4096


@attrs.frozen
class Alignment:
    """
    What direct I/O (``O_DIRECT``) of a file must be aligned to, in bytes.

    :ivar memory: of the buffer's address
    :ivar offset: of offset and length; 0 if the file has no direct I/O
    :ivar is_known: whether the kernel said so (``STATX_DIOALIGN``, Linux 6.1, and the file system's support)
    """

    memory: int
    offset: int
    is_known: bool


def direct_io_alignment(fd: int) -> Alignment:
    """
    Return a file's alignment for direct I/O; 4096 for both, where nobody says.

    :raises OSError: as :func:`os.fstat` would
    """
    try:
        lib, ffi = extension()
    except UringUnavailableError:
        os.fstat(fd)
        return Alignment(ALIGNMENT_SAFE, ALIGNMENT_SAFE, is_known=False)
    values = ffi.new("uint32_t[2]")
    answer: int = lib.au_direct_io_alignment(fd, values, values + 1)
    if answer < 0:
        raise OSError(-answer, os.strerror(-answer))
    if answer == 0:
        return Alignment(ALIGNMENT_SAFE, ALIGNMENT_SAFE, is_known=False)
    return Alignment(int(values[0]), int(values[1]), is_known=True)


def liburing_version() -> str:
    """
    Return the version of liburing that the extension was built with.

    :raises UringUnavailableError: if there is no extension
    """
    lib, _ = extension()
    return "{}.{}".format(*divmod(int(lib.au_liburing_version()), 1000))


def try_setup(flags: int = 0) -> int:
    """
    Set up a small ring with these ``IORING_SETUP_*`` bits, and close it.

    :return: 0, or the errno that the kernel gave
    :raises UringUnavailableError: if there is no extension
    """
    lib, ffi = extension()
    out = ffi.new("au_ring **")
    answer: int = lib.au_open(out, 8, 16, flags, 0, 0)
    if answer == 0:
        lib.au_close(out[0])
    return -answer

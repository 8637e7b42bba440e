"""Direct I/O (``O_DIRECT``): the alignment that a file asks for, memory that has it, and why a request was refused.

Knows descriptors, addresses and ``statx(2)``; it knows nothing of drivers or tasks.
"""

from __future__ import annotations

import operator
import os
from typing import Any, Final

import _cffi_backend

from . import _statx
from ._errors import MisalignedError
from ._flags import RwFlags
from ._requests import Request, is_direct, status_flags
from ._statx import SAFE_ALIGNMENT, DirectAlignment

_ALIGNMENT_MAX: Final = 1 << 30


def dio_alignment(fd: int) -> DirectAlignment:
    """
    Ask what a file's direct I/O has to be aligned to (``statx(2)``, ``STATX_DIOALIGN``, Linux 6.1).

    :raises OSError: if the descriptor is bad
    """
    return _statx.known(fd).direct_alignment


def appends(fd: int, flags: int) -> bool:
    """Whether a write goes to the end of the file, whatever its offset is."""
    return bool(flags & RwFlags.APPEND or status_flags(fd) & os.O_APPEND)


def aligned_buffer(size: int, *, alignment: int = SAFE_ALIGNMENT) -> memoryview:
    """
    Return new, zeroed, writable memory whose address is a multiple of ``alignment``, for files opened with ``O_DIRECT``.

    :param size: bytes; for one read or write of such a file a multiple of the offset alignment
    :param alignment: bytes, a power of two; the default is enough for every common device, and
        :meth:`AsyncIoManager.direct_alignment` tells what a file needs
    :return: a flat view of bytes, which owns the memory
    :raises ValueError: if the size is negative, or the alignment is no power of two up to 1 GiB
    """
    size, alignment = operator.index(size), operator.index(alignment)
    if size < 0:
        raise ValueError(f"size must be 0 or more, not {size}")
    if not 1 <= alignment <= _ALIGNMENT_MAX or alignment & alignment - 1:
        raise ValueError(f"alignment must be a power of two between 1 and {_ALIGNMENT_MAX}, not {alignment}")
    # A part of a larger bytearray: 1.2 us for 4 KiB, where a mapping takes 9.6.
    memory = bytearray(size + alignment)
    start = -address(memory) % alignment
    return memoryview(memory)[start : start + size]


def misalignment(request: Request, filename: str | bytes | None) -> MisalignedError | None:
    """Return the error that says why the kernel refused a request with ``EINVAL``; None if it is not its alignment."""
    if not is_direct(request.fd):
        return None
    alignment = dio_alignment(request.fd)
    faults = []
    offset = request.offset if request.offset >= 0 else os.lseek(request.fd, 0, os.SEEK_CUR)
    if offset % alignment.offset:
        faults.append(f"offset {offset} is not a multiple of {alignment.offset}")
    views = request.memory if isinstance(request.memory, list) else [request.memory]
    for index, view in enumerate(views):
        of_which = f" of buffers[{index}]" if view is not request.memory else ""
        if len(view) % alignment.offset:
            faults.append(f"length {len(view)}{of_which} is not a multiple of {alignment.offset}")
        if len(view) and address(view) % alignment.memory:
            faults.append(
                f"the memory address{of_which} is not a multiple of {alignment.memory} (see aligned_buffer())"
            )
    if not faults:
        return None
    return MisalignedError(
        f"O_DIRECT: {'; '.join(faults)}", filename, memory_alignment=alignment.memory, offset_alignment=alignment.offset
    )


def covering(offset: int, length: int, unit: int) -> tuple[int, int]:
    """Return the offset and the length of the smallest range of whole units that covers a range."""
    start = offset - offset % unit
    return start, -(-(offset + length - start) // unit) * unit


def address(memory: Any) -> int:
    """Return where an object's memory begins, also if it is read-only."""
    ffi = _cffi_backend.FFI()
    return int(ffi.cast("uintptr_t", ffi.from_buffer(memory)))

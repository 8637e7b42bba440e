"""Callers' values, checked before anything reaches a driver, and made into requests; results made into errors.

Knows types and ranges; it knows nothing of managers, drivers or tasks.
"""

from __future__ import annotations

import operator
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Union

from . import _buffers, _direct, _flags
from ._buffers import SupportsBuffer
from ._errors import BatchError, describe
from ._fixed_files import RegisteredFile
from ._requests import DISKS, FSYNC_DATASYNC, WRITES, HasFileno, Opcode, Request, file_type, is_direct

FileDescriptor = Union[int, HasFileno]

FD_MAX: Final = 2**31 - 1
OFFSET_MAX: Final = 2**63 - 1
_LENGTH_MAX: Final = 2**63 - 1
# An object of so many bytes has a size that Python can hold, with its head and its alignment: what there is no memory
# for is a MemoryError, whoever makes it.
_READ_MAX: Final = 2**62 - 1
_OFFSET: Final = operator.attrgetter("offset")


def descriptor(fd: FileDescriptor) -> tuple[int, object]:
    """
    Return a descriptor's number, and the object to keep alive that owns it.

    A negative number passes: the kernel answers ``EBADF``, as for :mod:`os`.  A bool does not: it is a mistake, of
    which :mod:`os` warns since Python 3.13.
    """
    if isinstance(fd, bool):
        raise TypeError("fd must be an int or have a fileno() method, not bool")
    if isinstance(fd, int):
        number, file = fd, None
    elif type(fd) is RegisteredFile:
        target = fd.current()
        return target.number, target
    else:
        try:
            fileno = fd.fileno
        except AttributeError:
            raise TypeError(f"fd must be an int or have a fileno() method, not {type(fd).__name__}") from None
        number, file = fileno(), fd
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"fileno() of {type(fd).__name__} returned {type(number).__name__}, not an int")
    if number > FD_MAX:
        raise ValueError(f"fd must be at most {FD_MAX}, not {number}")
    return max(number, -1), file


def offset(value: int) -> int:
    """Return a byte offset: 0 or more, or -1 for the file position."""
    value = operator.index(value)
    if not -1 <= value <= OFFSET_MAX:
        raise ValueError(f"offset must be -1 (the file position) or between 0 and {OFFSET_MAX}, not {value}")
    return value


def length(value: int, highest: int = _LENGTH_MAX) -> int:
    """Return a number of bytes."""
    value = operator.index(value)
    if not 0 <= value <= highest:
        raise ValueError(f"length must be between 0 and {highest}, not {value}")
    return value


def read(fd: FileDescriptor, length_: int, offset_: int) -> tuple[int, object, int, int]:
    """Return what a read is asked with: descriptor, its owner, length and offset."""
    number, file = descriptor(fd)
    return number, file, length(length_, _READ_MAX), offset(offset_)


# Of a verb's arguments: what goes wrong here has not reached a driver.


def read_request(fd: FileDescriptor, length_: int, offset_: int, allocate: Callable[[int, int], Any]) -> Request:
    number, file, length_, offset_ = read(fd, length_, offset_)
    return Request(Opcode.READ, number, allocate(length_, number), offset_, 0, file)


def readinto_request(fd: FileDescriptor, buffer: SupportsBuffer, offset_: int, flags: int = 0) -> Request:
    number, file = descriptor(fd)
    offset_ = offset(offset_)
    flags = _flags.check(flags) if flags else 0
    return Request(Opcode.READ, number, _buffers.writable(buffer), offset_, flags, file)


def readv_request(fd: FileDescriptor, buffers: Iterable[SupportsBuffer], offset_: int, flags: int = 0) -> Request:
    number, file = descriptor(fd)
    offset_ = offset(offset_)
    flags = _flags.check(flags) if flags else 0
    return Request(Opcode.READV, number, views(buffers, _buffers.writable), offset_, flags, file)


def write_request(fd: FileDescriptor, data: SupportsBuffer, offset_: int, flags: int = 0) -> Request:
    number, file = descriptor(fd)
    offset_ = offset(offset_)
    flags = _flags.check(flags) if flags else 0
    return Request(Opcode.WRITE, number, _buffers.readable(data), offset_, flags, file)


def writev_request(fd: FileDescriptor, buffers: Iterable[SupportsBuffer], offset_: int, flags: int = 0) -> Request:
    number, file = descriptor(fd)
    offset_ = offset(offset_)
    flags = _flags.check(flags) if flags else 0
    return Request(Opcode.WRITEV, number, views(buffers, _buffers.readable), offset_, flags, file)


def sync_request(fd: FileDescriptor, *, data_only: bool) -> Request:
    number, file = descriptor(fd)
    return Request(Opcode.FSYNC, number, None, 0, FSYNC_DATASYNC if data_only else 0, file)


def columns(items: list[tuple[Any, Any, Any]]) -> tuple[Sequence[int], Sequence[Any], Sequence[int]] | None:
    """
    Return the columns of a batch whose descriptors and offsets are plain: ints, in range.

    None if one is not: :func:`batch` then says which, or makes of it what it can.  It takes 0.3 us an
    item, and this a quarter.
    """
    try:
        fds, middle, offsets = zip(*items, strict=True)
        # Packing says in 3 us of 256 numbers whether they are ints and in range.
        struct.pack(f"{len(items)}i{len(items)}q", *fds, *offsets)
    except (TypeError, ValueError, struct.error):
        return None
    # A bool would pass for 0 or 1 (4 us of 256).
    is_plain = {*map(type, fds)} == {int} and min(fds) >= 0 and min(offsets) >= 0
    return (fds, middle, offsets) if is_plain else None


def batch(
    verb: str, shape: str, items: Iterable[tuple[Any, Any, Any]], make: Callable[[Any, Any, Any], Request]
) -> list[Request]:
    """Return the requests of a batch; an error names the item that caused it."""
    requests: list[Request] = []
    try:
        for item in items:
            try:
                first, second, third = item
                requests.append(make(first, second, third))
            except (TypeError, ValueError) as exc:
                kind = TypeError if isinstance(exc, TypeError) else ValueError
                raise kind(f"{verb}: request {len(requests)} {shape}: {exc}") from exc
        if requests and min(map(_OFFSET, requests)) < 0:
            _check_positions(verb, requests)
    except BaseException:
        for request in requests:
            request.release()
        raise
    return requests


def _check_positions(verb: str, requests: list[Request]) -> None:
    """
    Refuse a batch with several members at the position of one disk file.

    They run at the same time, and the kernel reads the position when one begins and moves it when it has ended: on
    the ring several would be given, or write, the same bytes (seen on Linux 6.18).  Writes that append have places
    of their own, unless they are direct.
    """
    operation = requests[0]  # they are all of one kind
    for fd, count in Counter(request.fd for request in requests if request.offset < 0).items():
        if count < 2 or file_type(fd) not in DISKS:
            continue
        if operation.opcode in WRITES and _direct.appends(fd, operation.op_flags) and not is_direct(fd):
            continue
        raise ValueError(
            f"{verb}: {count} requests at offset -1 of descriptor {fd}: they run at the same time, and a file has one "
            "position: give each an offset of its own, or await one after the other"
        )


def views(buffers: Iterable[Any], make: Callable[[Any, str], memoryview]) -> list[memoryview]:
    """Return the views of several buffers; an error names the one that caused it, and releases the others."""
    made: list[memoryview] = []
    try:
        for buffer in buffers:
            made.append(make(buffer, f"buffers[{len(made)}]"))
    except BaseException:
        for view in made:
            view.release()
        raise
    return made


def error(res: int, file: object) -> OSError:
    """Return the error of a negative result, of the subclass that :mod:`os` would raise."""
    name = getattr(file, "name", None)
    filename = name if isinstance(name, (str, bytes)) else None
    return OSError(-res, describe(-res), filename)


def settled(verb: str, results: list[Any], *, return_exceptions: bool) -> list[Any]:
    """Return a batch's results, or raise them as one error if there is an error among them."""
    if not return_exceptions and any(isinstance(result, OSError) for result in results):
        failure = BatchError(verb, results)
        raise failure from next(iter(failure.errors.values()))
    return results


def to_bytes(memory: Any, count: int) -> bytes:
    """Return the first ``count`` bytes of what a driver has filled; a full ``bytes`` is not copied."""
    if count < len(memory):
        return bytes(memoryview(memory)[:count])
    return bytes(memory)

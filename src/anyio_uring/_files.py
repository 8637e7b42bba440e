"""Opening files: ``open_file()`` and ``wrap_file()``.

What they give is :class:`anyio_uring._uring_file.UringFile`; here it is only put together.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from functools import partial
from os import PathLike
from typing import IO, TYPE_CHECKING, Any, overload

import anyio

from . import _file_objects, _open_arguments, _statx
from ._binary_file import BinaryFile
from ._core import manager_for
from ._manager import AsyncIoManager
from ._open_arguments import OpenArguments
from ._raw_file import RawFile
from ._text_file import TextFile
from ._uring_file import UringFile

if TYPE_CHECKING:
    from _typeshed import OpenBinaryMode, OpenTextMode


@overload
async def open_file(
    file: str | PathLike[str] | int,
    mode: OpenBinaryMode,
    buffering: int = ...,
    encoding: str | None = ...,
    errors: str | None = ...,
    newline: str | None = ...,
    closefd: bool = ...,
    opener: Callable[[str, int], int] | None = ...,
    *,
    limiter: anyio.CapacityLimiter | None = ...,
    io: AsyncIoManager | None = ...,
) -> UringFile[bytes]: ...
@overload
async def open_file(
    file: str | PathLike[str] | int,
    mode: OpenTextMode = ...,
    buffering: int = ...,
    encoding: str | None = ...,
    errors: str | None = ...,
    newline: str | None = ...,
    closefd: bool = ...,
    opener: Callable[[str, int], int] | None = ...,
    *,
    limiter: anyio.CapacityLimiter | None = ...,
    io: AsyncIoManager | None = ...,
) -> UringFile[str]: ...
async def open_file(
    file: str | PathLike[str] | int,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: Callable[[str, int], int] | None = None,
    *,
    limiter: anyio.CapacityLimiter | None = None,
    io: AsyncIoManager | None = None,
) -> UringFile[Any]:
    """
    Open a file; the arguments of the built-in :func:`open` mean what they mean there.

    :param file: a path, or a descriptor, which is closed with the file unless ``closefd`` is false
    :param mode: ``"r"``, ``"w"``, ``"x"`` or ``"a"``, with ``"b"`` for bytes and ``"+"`` for both ways
    :param buffering: -1: read ahead and write behind, as is best; 0: neither (binary only); 1: text is written line
        by line; more: bytes
    :param opener: called in a worker thread with the path and ``open(2)``'s flags; returns a descriptor
    :param limiter: of the worker threads, where there are any: for ``opener``, and for everything if no manager is
        open; ``None``: anyio's own
    :param io: the manager that carries out the operations; ``None``: the innermost open one, and where there is
        none, worker threads
    :return: the file, to be used with ``async with``
    :raises OSError: as the built-in :func:`open` would
    :raises ValueError: if a mode or a combination is one that :func:`open` refuses
    :raises anyio.ClosedResourceError: if ``io`` is closed

    If it is cancelled, and the file was opened all the same, it is returned, and the cancellation strikes at the next
    checkpoint.  An open that waits (of a FIFO, for its other end) can be cancelled on the ring, not on threads.
    """
    manager = manager_for(io, limiter)
    arguments = _open_arguments.check(
        file, mode=mode, buffering=buffering, encoding=encoding, errors=errors, newline=newline, closefd=closefd
    )
    target = arguments.target
    if isinstance(target, int):
        await manager._checkpoint()  # C1
        fd = target
    elif opener is not None:
        fd = await manager._loop.run_in_thread(partial(_call_opener, opener, target, arguments.flags), limiter)
    else:
        fd = await manager.open(target, arguments.flags)
    is_ours = not isinstance(target, int)
    try:
        _refuse_directory(fd, target)
        is_ours = closefd
        raw = RawFile(fd, manager, name=target, mode=arguments.raw_mode, closefd=closefd, limiter=limiter)
        return UringFile(_open_stream(raw, arguments))
    except BaseException:
        if is_ours:
            await manager._close_surely(fd)
        raise


def _call_opener(opener: Callable[[Any, int], int], path: str | bytes, flags: int) -> int:
    fd = opener(path, flags)
    if not isinstance(fd, int):
        raise TypeError("expected integer from opener")
    if fd < 0:
        raise ValueError(f"opener returned {fd}")
    os.set_inheritable(fd, False)
    return fd


def _refuse_directory(fd: int, target: object) -> None:
    """As FileIO does: a directory can be opened, and not read."""
    if stat.S_ISDIR(_statx.known(fd).st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), target)


def _open_stream(raw: RawFile, arguments: OpenArguments) -> BinaryFile | TextFile:
    binary = BinaryFile(raw, arguments.buffering)
    if arguments.encoding is None or arguments.errors is None:
        return binary
    return TextFile(
        binary,
        mode=arguments.mode,
        encoding=arguments.encoding,
        errors=arguments.errors,
        newline=arguments.newline,
        line_buffering=arguments.line_buffering or (arguments.is_interactive and os.isatty(raw.fileno())),
    )


def wrap_file(
    file: IO[bytes] | int, *, limiter: anyio.CapacityLimiter | None = None, io: AsyncIoManager | None = None
) -> UringFile[bytes]:
    """
    Adopt an open binary file object, or a descriptor: from now on only the file returned here is to be used.

    It goes on where the other one is, and closing it closes the other one.  What waits in the other one's
    buffer is written here and now, blocking.

    :param limiter: as :func:`open_file` has it
    :param io: as :func:`open_file` has it
    :return: the file; without a buffer if the other one is raw (:class:`io.RawIOBase`)
    :raises TypeError: if it is none that :func:`open` gives in binary mode (those of ``tempfile`` are, and of sockets): what is
        read of a ``gzip.GzipFile`` is not what its descriptor has
    :raises ValueError: if it is closed, or buffers what it reads of something that has no positions: what is in that
        buffer cannot be had; wrap its ``raw``, before anything is read
    :raises OSError: if the descriptor is bad
    """
    manager = manager_for(io, limiter)
    if isinstance(file, int):
        access = fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE
        mode = {os.O_RDONLY: "rb", os.O_WRONLY: "wb"}.get(access, "rb+")
        return UringFile(BinaryFile(RawFile(file, manager, name=file, mode=mode, limiter=limiter), -1))
    is_raw = _file_objects.raw_of(file) is file
    mode = {(True, False): "rb", (False, True): "wb"}.get((file.readable(), file.writable()), "rb+")
    _file_objects.refuse_lost_bytes(file)
    if file.writable():
        file.flush()
    if file.seekable():
        os.lseek(file.fileno(), file.tell(), os.SEEK_SET)  # behind its flush(), which moves the position, too
    name = getattr(file, "name", file.fileno())
    raw = RawFile(file.fileno(), manager, name=name, mode=mode, limiter=limiter, adopted=file)
    return UringFile(BinaryFile(raw, 0 if is_raw else -1))

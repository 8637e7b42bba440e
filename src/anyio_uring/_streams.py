"""Byte streams over files: anyio's ``ByteReceiveStream`` and ``ByteSendStream`` on a manager's verbs.

It knows positions and what a stream raises; of rings, threads and memory it knows nothing.

Reading ahead is left to the kernel: the range in front of a sequential reader is asked for with
``POSIX_FADV_WILLNEED``, which starts reading it into the page cache and does not wait for it.  So the disk
works while chunks are handed out, no memory is held here, nothing is stale when the file or the position
changes, and a cancelled ``receive()`` has nothing to lose.  Keeping a batch of 16 chunks instead was
an eighth faster on a cold file through the ring, half as fast through threads, and took 1.6 times as long on
a cached one, whose chunks left the processor's cache before they were handed out.
"""

from __future__ import annotations

import errno
import io as stdio
import operator
import os
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any, Final, TypeVar, Union

import anyio
import attrs
from anyio.abc import ByteReceiveStream, ByteSendStream
from anyio.streams.file import FileStreamAttribute

from . import _file_objects
from ._arguments import OFFSET_MAX
from ._buffers import SupportsBuffer
from ._core import manager_for
from ._manager import AsyncIoManager
from ._requests import DISKS, file_type, status_flags
from ._waiters import current_loop, outlast

ResultT = TypeVar("ResultT")
StrPath = Union[str, "os.PathLike[str]"]

# More than this would be memory for one call, and a transfer that is as fast in pieces.
CHUNK_BYTES_MAX: Final = 1 << 20
# Bytes that are asked for ahead at once: up to two such windows lie in front of a sequential reader.  On a disk whose
# own read-ahead is 128 KiB, 1 MiB was faster than 4 and 8, of which the kernel reads no more than one request's worth.
_WINDOW_BYTES_MIN: Final = 128 << 10
_WINDOW_BYTES_MAX: Final = 1 << 20


class UringFileReadStream(ByteReceiveStream):
    """
    A byte stream that reads from a file, as :class:`anyio.streams.file.FileReadStream` does, through a manager.

    :param file: a file object opened for reading in binary mode, which the stream owns from now on and closes;
        it must have a descriptor.  Reading begins at its position; that the stream has a position of its
        own is of no concern unless the file object is used beside it.
        What waits in its buffer to be written is written here and now, blocking
    :param io: the manager that reads; ``None``: the innermost open one
    :raises TypeError: if it is none that :func:`open` gives in binary mode (those of ``tempfile`` are, and of sockets)
    :raises ValueError: if it is closed, has no descriptor or is not open for reading; or if it buffers what it reads of
        something that has no positions: give its ``raw`` instead, before anything is read

    While it is read in sequence, the 1 to 2 MiB in front of the position are on their way into the page cache
    (``posix_fadvise(2)``); the stream itself holds no data.  Pipes, sockets and terminals are read as they come.

    **Cancellation.** A cancelled :meth:`receive` has lost nothing: the position advances with what it returns.

    **Several tasks.** Calls on one stream are carried out one after the other, in the order in which they were
    made, so each byte is received once.
    """

    def __init__(self, file: IO[bytes], *, io: AsyncIoManager | None = None) -> None:
        self._file = _OpenFile.adopt(file, "reading", io)
        self._asked = 0  # up to where the kernel was asked for what lies ahead
        self._window = 0  # how much to ask for next; 0: not known to be read in sequence

    @classmethod
    async def from_path(cls, path: StrPath, *, io: AsyncIoManager | None = None) -> UringFileReadStream:
        """
        Open a file for reading and return a stream of it.

        :param io: the manager that reads; ``None``: the innermost open one
        :raises OSError: as :func:`open` would
        """
        manager = manager_for(io)
        file = await _open(path, os.O_RDONLY, manager)
        return _or_close(file, lambda: cls(file, io=manager))

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """
        Read the next bytes.

        :param max_bytes: how many at most; beyond 1 MiB a call returns fewer
        :raises anyio.EndOfStream: at the end of the file; if it grows, the next call returns what was added
        :raises anyio.ClosedResourceError: after, or during, :meth:`aclose`
        :raises anyio.BrokenResourceError: if reading failed; the :class:`OSError` is its cause
        :raises ValueError: if ``max_bytes`` is less than 1
        """
        length = min(operator.index(max_bytes), CHUNK_BYTES_MAX)
        if length < 1:
            raise ValueError("max_bytes must be a positive integer")
        file = self._file
        async with file.lock:
            if file.is_disk and (not self._window or self._asked - file.position < self._window):
                await self._ask_ahead(length)
            data = await file.perform(lambda: file.io.read(file.file, length, file.position))
            file.advance(len(data))
        if not data:
            raise anyio.EndOfStream
        return data

    async def _ask_ahead(self, length: int) -> None:
        """Have the kernel start to read what lies in front, unless it is there already or was asked for."""
        file = self._file
        file.check()
        end = file.position + length
        if not self._window:
            self._asked, self._window = end, _WINDOW_BYTES_MIN
            return  # The first read: perhaps the only one here.
        start = max(self._asked, end)
        if start + self._window > OFFSET_MAX:
            return  # where no file can have anything
        self._asked = start + self._window
        if not await self._is_cached(self._asked - 1):
            await _will_need(file.io, file.file, start, self._window)
        self._window = min(2 * self._window, _WINDOW_BYTES_MAX)

    async def _is_cached(self, offset: int) -> bool:
        """Whether the page cache has a byte, or the file does not; it costs a tenth of asking ahead."""
        if not hasattr(os, "RWF_NOWAIT"):  # pragma: no cover - not Linux
            return False
        try:
            await self._file.io.read(self._file.file, 1, offset, flags=os.RWF_NOWAIT)
        except OSError:
            return False
        return True

    async def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        """
        Move to another position, as :meth:`io.IOBase.seek` does.

        :param whence: ``os.SEEK_SET``, ``SEEK_CUR``, ``SEEK_END``, or what else :func:`os.lseek` knows
        :return: the new position, in bytes from the start
        :raises OSError: if the file is not seekable, or the position would be negative
        :raises anyio.ClosedResourceError: after :meth:`aclose`
        """
        file = self._file
        async with file.lock:
            before = file.position
            after = await file.seek(position, whence)
            if after != before:
                self._window = 0
            return after

    async def tell(self) -> int:
        """
        Return the position, in bytes from the start.

        :raises OSError: if the file is not seekable
        :raises anyio.ClosedResourceError: after :meth:`aclose`
        """
        async with self._file.lock:
            return await self._file.seek(0, os.SEEK_CUR)

    async def aclose(self) -> None:
        """Close the file, also when cancelled; a :meth:`receive` that waits for data in another task ends before."""
        await self._file.aclose()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """The attributes of :class:`anyio.streams.file.FileStreamAttribute`: the file object, its number, its path."""
        return self._file.attributes()


class UringFileWriteStream(ByteSendStream):
    """
    A byte stream that writes to a file, as :class:`anyio.streams.file.FileWriteStream` does, through a manager.

    :param file: a file object opened for writing in binary mode, which the stream owns from now on and closes;
        it must have a descriptor.  Writing begins at its position (at the end of the file, if it is open for
        appending), behind what the file object has buffered
    :param io: the manager that writes; ``None``: the innermost open one
    :raises TypeError: if it is none that :func:`open` gives in binary mode (those of ``tempfile`` are, and of sockets)
    :raises ValueError: if it is closed, has no descriptor or is not open for writing

    Nothing is buffered: when :meth:`send` returns, the kernel has every byte of the item.  (It is not durable
    then; that takes a sync.)

    **Several tasks.** Items are written one after the other, in the order of the calls, and never mixed.
    """

    def __init__(self, file: IO[bytes], *, io: AsyncIoManager | None = None) -> None:
        self._file = _OpenFile.adopt(file, "writing", io)
        self._has_buffer = not isinstance(file, stdio.RawIOBase)

    @classmethod
    async def from_path(
        cls,
        path: StrPath,
        append: bool = False,  # noqa: FBT001, FBT002 - as in anyio
        *,
        io: AsyncIoManager | None = None,
    ) -> UringFileWriteStream:
        """
        Open a file for writing and return a stream to it.

        :param append: write behind what is in the file; otherwise what is in it is lost
        :param io: the manager that writes; ``None``: the innermost open one
        :raises OSError: as :func:`open` would
        """
        manager = manager_for(io)
        flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if append else os.O_TRUNC)
        file = await _open(path, flags, manager)
        return _or_close(file, lambda: cls(file, io=manager))

    async def send(self, item: SupportsBuffer) -> None:
        """
        Write an item, all of it.

        :param item: bytes, or another object with a contiguous buffer, not to be changed until the call returns
        :raises anyio.ClosedResourceError: after, or during, :meth:`aclose`
        :raises anyio.BrokenResourceError: if writing failed; the :class:`OSError` is its cause

        If it fails or is cancelled, a prefix of the item may be in the file.  The position has not moved then: of
        a file not open for appending, sending the same item again puts everything right.
        """
        file = self._file
        async with file.lock:
            if self._has_buffer:
                file.check()
                await file.perform(lambda: current_loop().run_in_thread(file.file.flush, None))
                self._has_buffer = False
            data = memoryview(item)
            await file.perform(lambda: file.io.write_all(file.file, data, file.position))
            file.advance(data.nbytes)

    async def aclose(self) -> None:
        """Close the file, also when cancelled; a :meth:`send` in another task ends before."""
        await self._file.aclose()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """The attributes of :class:`anyio.streams.file.FileStreamAttribute`: the file object, its number, its path."""
        return self._file.attributes()


@attrs.define(eq=False)
class _OpenFile:
    """
    A stream's file object, its position, and what is true of both directions.

    :ivar lock: held by the one call that is in work
    :ivar is_disk: whether the file has positions of its own for every transfer; if not, it is read and written
        where the kernel is (-1)
    """

    file: IO[bytes]
    io: AsyncIoManager
    position: int
    is_disk: bool
    lock: anyio.Lock = attrs.field(factory=lambda: anyio.Lock(fast_acquire=True))
    # The scope of a transfer that can block for ever, for aclose() to end it.
    waiting: anyio.CancelScope | None = None
    is_closing: bool = False

    @classmethod
    def adopt(cls, file: Any, purpose: str, io: AsyncIoManager | None) -> _OpenFile:
        manager = manager_for(io)
        try:
            fd = file.fileno()
        except stdio.UnsupportedOperation:
            raise ValueError(f"file must have a descriptor, and this {type(file).__name__} has none") from None
        if not (file.readable() if purpose == "reading" else file.writable()):
            raise ValueError(f"file must be open for {purpose}")
        _file_objects.raw_of(file)
        if purpose == "reading":
            _file_objects.refuse_lost_bytes(file)
            if file.writable():
                file.flush()
        # Behind O_APPEND the kernel chooses the position.
        is_disk = file_type(fd) in DISKS and not (purpose == "writing" and status_flags(fd) & os.O_APPEND)
        return cls(file, manager, file.tell() if is_disk else -1, is_disk)

    def check(self) -> None:
        if self.is_closing or self.file.closed:
            raise anyio.ClosedResourceError

    def advance(self, count: int) -> None:
        if self.is_disk:
            self.position += count

    async def perform(self, operation: Callable[[], Awaitable[ResultT]]) -> ResultT:
        """Carry out an operation of the manager's and raise what a stream raises."""
        self.check()
        try:
            if self.is_disk:
                return await operation()
            with anyio.CancelScope() as self.waiting:
                return await operation()
        except OSError as exc:
            raise anyio.BrokenResourceError from exc
        finally:
            self.waiting = None
        raise anyio.ClosedResourceError  # nobody but aclose() cancels that scope

    async def seek(self, position: int, whence: int) -> int:
        self.check()
        position = operator.index(position)
        if not self.is_disk or whence not in {os.SEEK_SET, os.SEEK_CUR}:
            if self.is_disk:
                seek: Callable[[], int] = partial(os.lseek, self.file.fileno(), position, whence)
            else:
                seek = partial(self.file.seek, position, whence)
            position = await current_loop().run_in_thread(seek, None)
        else:
            await anyio.lowlevel.checkpoint()
            position += self.position if whence == os.SEEK_CUR else 0
            if not 0 <= position <= OFFSET_MAX:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), getattr(self.file, "name", None))
        if self.is_disk:
            self.position = position
        return position

    async def aclose(self) -> None:
        self.is_closing = True
        if self.waiting is not None:
            self.waiting.cancel()
        cancellations: list[BaseException] = []
        await outlast(self._close, cancellations)
        if cancellations:
            raise cancellations[-1]
        await anyio.lowlevel.checkpoint_if_cancelled()

    async def _close(self) -> None:
        async with self.lock:  # the file's number must mean nothing else before its operation has ended
            await current_loop().run_in_thread(self.file.close, None, is_certain=True)

    def attributes(self) -> Mapping[Any, Callable[[], Any]]:
        attributes: dict[Any, Callable[[], Any]] = {
            FileStreamAttribute.file: lambda: self.file,
            FileStreamAttribute.fileno: self.file.fileno,
        }
        name = getattr(self.file, "name", None)
        if isinstance(name, (str, bytes, os.PathLike)):
            attributes[FileStreamAttribute.path] = lambda: Path(os.fsdecode(name))
        return attributes


async def _open(path: StrPath, flags: int, io: AsyncIoManager) -> IO[bytes]:
    """Open a file without a buffer: a stream would only have to look behind it."""
    fd = await io.open(os.fspath(path), flags)
    mode = "rb" if flags == os.O_RDONLY else "ab" if flags & os.O_APPEND else "wb"
    # Only a wrapper around the descriptor, which a failure closes (of a directory: EISDIR).
    return open(path, mode, buffering=0, opener=lambda _path, _flags: fd)  # noqa: ASYNC230


def _or_close(file: IO[bytes], make: Callable[[], ResultT]) -> ResultT:
    try:
        return make()
    except BaseException:  # the manager's block has ended meanwhile
        file.close()
        raise


async def _will_need(io: AsyncIoManager, file: IO[bytes], offset: int, length: int) -> None:
    """Have the kernel start to read a range into the page cache; it does not wait for it."""
    if hasattr(os, "posix_fadvise"):  # pragma: no branch - macOS has none
        await io.fadvise(file, offset, length, os.POSIX_FADV_WILLNEED)

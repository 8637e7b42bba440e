"""The asynchronous file object: who may use its bytes or text when, checkpoints, and the end.

How bytes and text are read and written is for :mod:`anyio_uring._binary_file` and
:mod:`anyio_uring._text_file`; how files are opened it does not know.
"""

from __future__ import annotations

import errno
import io
import operator
import os
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from functools import partial
from typing import IO, TYPE_CHECKING, Any, AnyStr, Generic, Protocol, TypeVar, cast, overload

import anyio
from anyio.abc import AsyncResource

from ._binary_file import BinaryFile
from ._buffers import SupportsBuffer
from ._manager import AsyncIoManager
from ._text_file import TextFile
from ._waiters import outlast

if TYPE_CHECKING:
    from typing_extensions import Self


ResultT = TypeVar("ResultT")


class Stream(Protocol[AnyStr]):
    """What a file needs of its bytes or text; for one task at a time."""

    def has(self, size: int | None) -> bool: ...

    def read_now(self, size: int | None) -> AnyStr | None: ...

    def line_now(self) -> AnyStr | None: ...

    def write_now(self, data: Any) -> int | None: ...

    async def read(self, size: int | None) -> AnyStr: ...

    async def readline(self, limit: int | None) -> AnyStr: ...

    async def readlines(self, hint: int | None) -> list[AnyStr]: ...

    async def write(self, data: Any) -> int: ...

    async def flush(self) -> None: ...

    async def truncate(self, length: int | None) -> int: ...

    async def seek(self, offset: int, whence: int) -> int: ...

    async def tell(self) -> int: ...

    def forget_ahead(self) -> None: ...


class UringFile(AsyncResource, Generic[AnyStr]):
    """
    An asynchronous file; :func:`open_file` and :func:`wrap_file` make one.

    It has the interface of :class:`anyio.AsyncFile`, and ``pread()``, ``pwrite()``, ``fsync()``, ``fdatasync()``.
    What its methods take, return and raise is what the built-in file object's methods of the same names do.

    **Tasks.** Any number may use one file at once: each call has the file, and its position, to itself until it
    returns, first come first served; only :meth:`pread` goes on beside others.

    **Cancellation.** Every method is a checkpoint.  One that raises the cancellation has not moved the position,
    and what it had read is read by the next; of a write that needs several operations, a part may be in the file.

    **Buffers.** Written bytes are in the file after :meth:`flush`, :meth:`fsync`, :meth:`aclose`, or when the
    buffer is full.  If writing them fails, the error is raised and they are kept for the next attempt.
    """

    __slots__ = ("_binary", "_checkpoint", "_is_closed", "_lock", "_preads", "_stream", "_unused")

    def __init__(self, stream: BinaryFile | TextFile) -> None:
        self._stream: Stream[AnyStr] = cast("Any", stream)
        self._binary = stream.binary if isinstance(stream, TextFile) else stream
        self._lock = anyio.Lock(fast_acquire=True)
        manager = self._binary.raw.manager
        self._checkpoint: Callable[[], Awaitable[None]] = (
            manager._checkpoint if manager._budget is None else partial(_checkpoint_in_budget, manager)
        )
        self._is_closed = False
        self._preads = 0
        self._unused: anyio.Event | None = None

    def __repr__(self) -> str:
        raw = self._binary.raw
        return f"<UringFile name={raw.name!r} mode={self.mode!r} {'closed' if self._is_closed else 'open'}>"

    # --- what needs no waiting ------------------------------------------------------------------

    @property
    def wrapped(self) -> IO[AnyStr]:
        """
        A file object of the standard library on the same descriptor.

        What was given to :func:`wrap_file`; otherwise a raw, blocking :class:`io.FileIO`, without part in this file's
        buffers and position, for functions that want one.
        """
        return self._binary.raw.view  # type: ignore[return-value]

    @property
    def limiter(self) -> anyio.CapacityLimiter | None:
        """The capacity limiter given to :func:`open_file`."""
        return self._binary.raw.limiter

    @property
    def name(self) -> str | bytes | int:
        """The path, as it was given, or the descriptor's number."""
        return self._binary.raw.name

    @property
    def mode(self) -> str:
        """The mode, as the built-in file's ``mode``."""
        stream: object = self._stream
        return stream.mode if isinstance(stream, TextFile) else self._binary.raw.mode

    @property
    def closed(self) -> bool:
        """Whether the file is closed."""
        return self._is_closed

    @property
    def encoding(self) -> str:
        """
        The name of a text file's encoding.

        :raises AttributeError: if the file is binary
        """
        return self._text("encoding").encoding

    @property
    def errors(self) -> str:
        """
        What is done about text that cannot be encoded or decoded, of a text file.

        :raises AttributeError: if the file is binary
        """
        return self._text("errors").errors

    @property
    def newlines(self) -> str | tuple[str, ...] | None:
        """
        The line ends that a text file's newline decoder has seen so far.

        :raises AttributeError: if the file is binary
        """
        return self._text("newlines").newlines

    @property
    def line_buffering(self) -> bool:
        """
        Whether a text file writes each line at once.

        :raises AttributeError: if the file is binary
        """
        return self._text("line_buffering").line_buffering

    def fileno(self) -> int:
        """
        Return the descriptor's number.

        :raises ValueError: if the file is closed
        """
        return self._binary.raw.fileno()

    def isatty(self) -> bool:
        """Return whether it is a terminal."""
        return os.isatty(self.fileno())

    def readable(self) -> bool:
        """Return whether the mode allows reading."""
        self._check_open()
        return self._binary.raw.is_readable

    def writable(self) -> bool:
        """Return whether the mode allows writing."""
        self._check_open()
        return self._binary.raw.is_writable

    def seekable(self) -> bool:
        """Return whether the file has positions."""
        self._check_open()
        return self._binary.raw.is_seekable

    # --- reading --------------------------------------------------------------------------------

    def __aiter__(self) -> Self:
        """Iterate over lines."""
        return self

    async def __anext__(self) -> AnyStr:
        line = await self.readline()
        if not line:
            raise StopAsyncIteration
        return line

    async def read(self, size: int | None = -1) -> AnyStr:
        """
        Read bytes or characters.

        :param size: how many; -1 and ``None``: all that are left
        :return: fewer than ``size`` at the end of the file only; or, without a buffer, as one operation gives
        """
        if self._stream.has(size):
            await self._checkpoint()  # C1
            if not self._is_closed and not self._lock.locked():
                data = self._stream.read_now(size)
                if data is not None:
                    return data
        async with self._lock:
            self._check_open()
            return await self._stream.read(size)

    async def read1(self: UringFile[bytes], size: int = -1) -> bytes:
        """
        Read up to ``size`` bytes with one operation of the kernel at most; -1: as many as that gives.

        :raises AttributeError: if it is a text file, or has no buffer
        """
        return await self._call(self._buffered("read1").read1, size)

    async def readinto(self: UringFile[bytes], b: SupportsBuffer) -> int:
        """
        Read into a buffer.

        :return: bytes read; fewer than there is room for at the end of the file only; or, without a buffer of our
            own, as one operation gives
        :raises AttributeError: if it is a text file
        """
        return await self._call(self._bytes("readinto").readinto, b)

    async def readinto1(self: UringFile[bytes], b: SupportsBuffer) -> int:
        """
        Read into a buffer with one operation of the kernel at most.

        :raises AttributeError: if it is a text file, or has no buffer
        """
        return await self._call(self._buffered("readinto1").readinto1, b)

    async def readline(self, size: int | None = -1) -> AnyStr:
        """
        Read a line, with its end.

        :param size: bytes or characters at most; -1: as many as it has
        :return: the line; empty at the end of the file
        """
        if size == -1:
            await self._checkpoint()  # C1
            if not self._is_closed and not self._lock.locked():
                line = self._stream.line_now()
                if line is not None:
                    return line
        async with self._lock:
            self._check_open()
            return await self._stream.readline(size)

    async def readlines(self, hint: int | None = -1) -> list[AnyStr]:
        """
        Read lines to the end of the file.

        :param hint: stop when the lines have more bytes or characters than that, if it is more than 0
        """
        return await self._call(self._stream.readlines, hint)

    # --- writing --------------------------------------------------------------------------------

    @overload
    async def write(self: UringFile[bytes], b: SupportsBuffer) -> int: ...
    @overload
    async def write(self: UringFile[str], b: str) -> int: ...
    async def write(self, b: SupportsBuffer | str) -> int:
        """
        Write bytes or text at the position.

        :return: how many were taken: all of them; without a buffer, as many as one operation takes
        """
        await self._checkpoint()  # C1
        if not self._lock.locked() and not self._is_closed:
            count = self._stream.write_now(b)
            if count is not None:
                return count
        async with self._lock:
            self._check_open()
            return await self._stream.write(b)

    @overload
    async def writelines(self: UringFile[bytes], lines: Iterable[SupportsBuffer]) -> None: ...
    @overload
    async def writelines(self: UringFile[str], lines: Iterable[str]) -> None: ...
    async def writelines(self, lines: Iterable[SupportsBuffer] | Iterable[str]) -> None:
        """Write one after the other; a cancellation or an error may come between two of them."""
        await self._call(self._writelines, lines)

    async def flush(self) -> None:
        """Write what waits in the buffer."""
        await self._call(self._stream.flush)

    async def truncate(self, size: int | None = None) -> int:
        """
        Make the file so long; the position stays.

        :param size: bytes; ``None``: up to the position
        :return: the new size
        """
        return await self._call(self._stream.truncate, size)

    # --- positions ------------------------------------------------------------------------------

    async def seek(self, offset: int, whence: int | None = os.SEEK_SET) -> int:
        """
        Move the position.

        :param offset: bytes; of a text file 0, or what :meth:`tell` gave
        :param whence: ``os.SEEK_SET``, ``SEEK_CUR``, ``SEEK_END``; of a binary file also ``SEEK_DATA``, ``SEEK_HOLE``
        :return: the new position
        """
        return await self._call(self._stream.seek, offset, cast("int", whence))

    async def tell(self) -> int:
        """Return the position; of a text file a number of which only :meth:`seek` knows what it means."""
        return await self._call(self._stream.tell)

    async def pread(self, length: int, offset: int) -> bytes:
        """
        Read up to ``length`` bytes at an offset, without the position; also of a text file.

        Any number of tasks can at once.  What was written before is written out first.

        :raises OSError: as :func:`os.pread` would; ``ESPIPE`` if the file has no positions
        """
        raw = self._binary.raw
        offset = _explicit(offset)
        self._check_open()
        self._check_seekable()
        if self._binary.has_pending:
            await self._call(self._binary.write_out)
            self._check_open()
        self._preads += 1
        try:
            return await raw.manager.read(raw, length, offset)
        finally:
            self._preads -= 1
            if not self._preads and self._unused is not None:
                self._unused.set()

    async def pwrite(self, data: SupportsBuffer, offset: int) -> int:
        """
        Write all of ``data`` at an offset, without the position; also to a text file.

        It is in the file when this returns, behind all that was written before.

        :return: bytes written, which is all of them
        :raises OSError: as :func:`os.pwrite` would, ``ESPIPE`` too; a prefix may be in the file, as after a cancellation
        """
        return await self._call(self._pwrite, data, _explicit(offset))

    async def _pwrite(self, data: SupportsBuffer, offset: int) -> int:
        raw = self._binary.raw
        if not raw.is_writable:
            raise io.UnsupportedOperation("write")
        self._check_seekable()
        with memoryview(data) as view:
            count = view.nbytes
        await self._binary.write_out()
        self._stream.forget_ahead()  # it may be written over
        await raw.manager.write_all(raw, data, offset)
        return count

    async def fsync(self) -> None:
        """
        Make all that was written, and the file's metadata, durable, like :func:`os.fsync`.

        :raises OSError: nothing is known to be durable then, and syncing again proves nothing (``fsync(2)``)
        """
        await self._call(self._sync, data_only=False)

    async def fdatasync(self) -> None:
        """
        Make all that was written, and the metadata needed to read it back, durable, like :func:`os.fdatasync`.

        :raises OSError: nothing is known to be durable then, and syncing again proves nothing (``fsync(2)``)
        """
        await self._call(self._sync, data_only=True)

    async def _sync(self, *, data_only: bool) -> None:
        await self._binary.write_out()
        await self._binary.raw.sync(data_only=data_only)

    # --- inside ---------------------------------------------------------------------------------

    async def _call(self, function: Callable[..., Coroutine[Any, Any, ResultT]], *args: Any, **options: Any) -> ResultT:
        """Call a function that has the file to itself."""
        await self._checkpoint()  # C1
        async with self._lock:
            self._check_open()
            return await function(*args, **options)

    async def _writelines(self, lines: Iterable[Any]) -> None:
        for line in lines:
            if self._stream.write_now(line) is None:
                await self._stream.write(line)

    def _check_open(self) -> None:
        if self._is_closed:
            raise ValueError("I/O operation on closed file")

    def _check_seekable(self) -> None:
        """As pread(2) and pwrite(2) do; the manager's verbs ignore the offset of what has no positions."""
        if not self._binary.raw.is_seekable:
            raise OSError(errno.ESPIPE, os.strerror(errno.ESPIPE))

    def _text(self, name: str) -> TextFile:
        stream: object = self._stream
        if not isinstance(stream, TextFile):
            raise AttributeError(f"a binary file has no {name}", name=name, obj=self)  # noqa: TRY004 - as any other name that is not there
        return stream

    def _bytes(self, name: str) -> BinaryFile:
        stream: object = self._stream
        if not isinstance(stream, BinaryFile):
            raise AttributeError(f"a text file has no {name}()", name=name, obj=self)  # noqa: TRY004 - as any other name that is not there
        return stream

    def _buffered(self, name: str) -> BinaryFile:
        stream = self._bytes(name)
        if not stream.is_buffered:
            raise AttributeError(f"a file without a buffer has no {name}()", name=name, obj=self)
        return stream

    # --- the end --------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """
        Write what waits in the buffer, and close the file.

        It waits for calls of other tasks, and closes in any case: also if writing fails, whose error is raised then,
        and if it is cancelled, which is raised behind it.  A cancelled one still writes what waits, except to what
        has no positions (a pipe, a terminal), which could keep it waiting for ever.
        """
        cancellations: list[BaseException] = []
        if await outlast(self._stop, cancellations):
            await outlast(self._wait_for_preads, cancellations)
            raw = self._binary.raw
            try:
                raw.leave_closed_manager()
                if raw.is_seekable:
                    await outlast(self._stream.flush, cancellations)
                else:
                    await self._stream.flush()
            finally:
                await raw.close()
        if cancellations:
            raise cancellations[-1]
        await self._checkpoint()  # C1

    async def _stop(self) -> bool:
        """Let no new call begin; tell whether nobody else has done so.  Behind the lock it waits for nothing."""
        async with self._lock:
            if self._is_closed:
                return False
            self._is_closed = True
        return True

    async def _wait_for_preads(self) -> None:
        while self._preads:
            self._unused = anyio.Event()
            await self._unused.wait()

    def __del__(self) -> None:
        raw = self._binary.raw
        if raw.is_closed or raw.manager._is_forked():
            return
        try:
            if raw.closefd:
                warnings.warn(f"unclosed file {self!r}", ResourceWarning, stacklevel=2, source=self)
        finally:  # the warning may be an error
            self._binary.abandon()


async def _checkpoint_in_budget(manager: AsyncIoManager) -> None:
    if manager._must_yield():
        await manager._checkpoint()


def _explicit(offset: int) -> int:
    offset = operator.index(offset)
    if offset < 0:
        raise ValueError(f"offset must be 0 or more, not {offset}")
    return offset

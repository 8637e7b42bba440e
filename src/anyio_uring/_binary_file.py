"""Bytes, buffered: read ahead of who reads in order, written behind who writes, for one task at a time.

What the standard library's buffered files and ``FileIO`` do, and what they raise, on the asynchronous
operations of a :class:`anyio_uring._raw_file.RawFile`.  It knows nothing of text, locks or checkpoints.

A method that raises, a cancellation included, has consumed nothing: what it had read is read again by the next.
"""

from __future__ import annotations

import errno
import io
import operator
import os
from typing import Any, Final

from . import _buffers
from ._raw_file import RawFile

# Who reads in order is read ahead for, twice as far each time.
_WINDOW_MIN: Final = 8 << 10
_WINDOW_MAX: Final = 64 << 10
# What is written waits for company until it is so much.
_PENDING_MAX: Final = 128 << 10


class BinaryFile:
    """
    A file of bytes.

    Either there are bytes that were read ahead, or there are some that wait to be written, never both.

    :ivar raw: the descriptor; its position is behind what was read ahead, and before what waits
    """

    __slots__ = ("_chunk", "_grows", "_index", "_pending", "_size", "_window", "raw")

    def __init__(self, raw: RawFile, buffering: int) -> None:
        """
        Read and write nothing yet.

        :param buffering: bytes; 0: each read and write is one operation; -1: what is best
        """
        if raw.is_readable and raw.is_writable and buffering and not raw.is_seekable:
            raise io.UnsupportedOperation("File or stream is not seekable.")
        self.raw: RawFile = raw
        self._size = _PENDING_MAX if buffering < 0 else buffering
        self._grows = buffering < 0
        self._window = _WINDOW_MIN if buffering < 0 else buffering
        self._chunk = b""
        self._index = 0  # of the next byte in it
        self._pending = bytearray()

    @property
    def is_buffered(self) -> bool:
        return self._size > 0

    @property
    def position(self) -> int:
        """Where the next read or write begins."""
        return self.raw.position - self._ahead + len(self._pending)

    @property
    def room(self) -> int:
        """How many bytes a write can have that needs no operation."""
        return self._size - len(self._pending)

    @property
    def has_pending(self) -> bool:
        """Whether bytes wait to be written."""
        return bool(self._pending)

    @property
    def _ahead(self) -> int:
        return len(self._chunk) - self._index

    # --- without waiting ------------------------------------------------------------------------

    def has(self, size: int | None) -> bool:
        """Whether a read of so many bytes needs no operation."""
        return type(size) is int and 0 <= size <= self._ahead

    def read_now(self, size: int | None) -> bytes | None:
        """Read, if all of it is there; ``None`` if not."""
        if type(size) is not int or not 0 <= size <= len(self._chunk) - self._index or not self._chunk:
            return None
        return self._take(size)

    def line_now(self) -> bytes | None:
        """Read a line, if all of it is there; ``None`` if not."""
        start = self._index
        end = self._chunk.find(b"\n", start) + 1
        if not end:
            return None
        self._index = end
        return self._chunk[start:end]

    def write_now(self, data: Any) -> int | None:
        """Take bytes in, if there is room; ``None`` if that needs an operation, or a check."""
        if type(data) is not bytes or self._chunk or not self.raw.is_writable or self.raw.is_closed:
            return None
        if len(self._pending) + len(data) > self._size:
            return None
        self._pending += data
        return len(data)

    # --- reading --------------------------------------------------------------------------------

    async def read(self, size: int | None = -1) -> bytes:
        """Read so many bytes, fewer only at the end of the file; all that are left for -1 and ``None``."""
        length = -1 if size is None else operator.index(size)
        if length < -1 and self._size:
            raise ValueError("read length must be non-negative or -1")
        await self._begin_reading("read")
        if length < 0:
            return await self._read_all()
        if not self._size:
            return self._take(length) if self._ahead else await self.raw.read(length)
        parts = [self._take(length)]
        missing = length - len(parts[0])
        try:
            while missing:
                if missing >= self._window:
                    part = await self.raw.read(missing)
                else:
                    part = await self._take_ahead(missing)
                if not part:
                    break
                parts.append(part)
                missing -= len(part)
        except BaseException:
            self._unread(b"".join(parts))
            raise
        return parts[-1] if len(parts) == 2 and not parts[0] else b"".join(parts)

    async def _read_all(self) -> bytes:
        parts = [self._take(self._ahead)]
        try:
            # One more than there should be: then the end shows in the same operation if nothing was appended.
            while part := await self.raw.read(max(self.raw.remaining() + 1, _WINDOW_MIN)):
                parts.append(part)
        except BaseException:
            self._unread(b"".join(parts))
            raise
        return parts[-1] if len(parts) == 2 and not parts[0] else b"".join(parts)

    async def read1(self, size: int = -1) -> bytes:
        """Read with one operation at most; -1: as much as that gives."""
        length = operator.index(size)
        await self._begin_reading("read1")
        if length < 0:
            length = max(self._window, _WINDOW_MIN)
        if self._ahead or not length:
            return self._take(length)
        return await self.raw.read(length)

    async def piece(self, size: int) -> bytes:
        """Read at most so many bytes, with one operation at most, which may read further ahead."""
        await self._begin_reading("read")
        return self._take(size) if self._ahead else await self._take_ahead(size)

    async def readinto(self, buffer: Any) -> int:
        """Fill a buffer, with less only at the end of the file."""
        return await self._readinto(buffer, is_once=not self._size)

    async def readinto1(self, buffer: Any) -> int:
        """Read into a buffer, with one operation at most."""
        return await self._readinto(buffer, is_once=True)

    async def _readinto(self, buffer: Any, *, is_once: bool) -> int:
        with _writable(buffer) as view:
            await self._begin_reading("readinto")
            length = len(view)
            done = 0
            try:
                while done < length and not (done and is_once):
                    missing = length - done
                    if not self._ahead and missing >= self._window:
                        count = await self.raw.readinto(view[done:])
                    else:
                        part = self._take(missing) if self._ahead else await self._take_ahead(missing)
                        count = len(part)
                        view[done : done + count] = part
                    if not count:
                        break
                    done += count
            except BaseException:
                self._unread(bytes(view[:done]))
                raise
            return done

    async def readline(self, limit: int | None = -1) -> bytes:
        """Read until behind the next line end, or the end of the file; at most ``limit`` bytes."""
        left = -1 if limit is None else operator.index(limit)
        await self._begin_reading("readline")
        parts: list[bytes] = []
        try:
            while left:
                if not self._ahead:
                    await self._fill_for_line()
                    if not self._chunk:
                        break
                start = self._index
                end = self._chunk.find(b"\n", start) + 1 or len(self._chunk)
                if 0 <= left < end - start:
                    end = start + left
                parts.append(self._chunk[start:end])
                self._index = end
                left -= end - start if left > 0 else 0
                if parts[-1].endswith(b"\n"):
                    break
        except BaseException:
            self._unread(b"".join(parts))
            raise
        if not self._size:
            self.forget_ahead()
        return b"".join(parts)

    async def readlines(self, hint: int | None = -1) -> list[bytes]:
        """Read lines to the end of the file, or until they have more bytes than that."""
        if hint is None or hint <= 0:
            return io.BytesIO(await self.read()).readlines()
        lines: list[bytes] = []
        total = 0
        try:
            while total <= hint and (line := self.line_now() or await self.readline()):
                lines.append(line)
                total += len(line)
        except BaseException:
            self._unread(b"".join(lines))
            raise
        return lines

    async def _fill_for_line(self) -> None:
        if self._size:
            await self._fill()
            return
        # Without a buffer nothing may be kept, so where there is no way back there is no going ahead.
        self._chunk, self._index = await self.raw.read(_WINDOW_MIN if self.raw.is_seekable else 1), 0

    async def _begin_reading(self, verb: str) -> None:
        self.raw.fileno()
        if not self.raw.is_readable:
            raise io.UnsupportedOperation(verb if self._size else "File not open for reading")
        if self._pending:
            await self.write_out()

    async def _fill(self) -> None:
        """Read ahead, in place of what was read ahead before and is used up."""
        chunk = await self.raw.read(self._window)
        self._chunk, self._index = chunk, 0
        if self._grows and len(chunk) == self._window:
            self._window = min(2 * self._window, _WINDOW_MAX)

    async def _take_ahead(self, size: int) -> bytes:
        await self._fill()
        return self._take(size)

    def _take(self, size: int) -> bytes:
        start = self._index
        if not start and size >= len(self._chunk):
            part, self._chunk = self._chunk, b""
            return part
        part = self._chunk[start : start + size]
        self._index = start + len(part)
        if self._index == len(self._chunk):
            self._chunk, self._index = b"", 0
        return part

    def _unread(self, data: bytes) -> None:
        """Have the next read begin with these bytes, which were read last."""
        if data:
            self._chunk, self._index = data + self._chunk[self._index :], 0
        if not self._size:
            self.forget_ahead()

    def forget_ahead(self) -> None:
        """Forget what was read ahead; of a file without positions it is kept, for nobody can read it again."""
        if self.raw.is_seekable:
            self.raw.position -= self._ahead
            self._chunk, self._index = b"", 0

    # --- writing --------------------------------------------------------------------------------

    async def write(self, data: Any, *, through: bool = False) -> int:
        """
        Take bytes in; what is too much for the buffer is written at once.

        :param through: write at once in any case
        """
        self.raw.fileno()
        if not self.raw.is_writable:
            raise io.UnsupportedOperation("write" if self._size else "File not open for writing")
        with _readable(data) as view:
            self.forget_ahead()
            length = len(view)
            if not self._size:
                return await self.raw.write(view)
            if self._pending and (through or len(self._pending) + length > self._size):
                await self.write_out()
            if through or length > self._size:
                done = 0
                while done < length:
                    done += _moved(await self.raw.write(view[done:]))
            else:
                self._pending += view
            return length

    async def write_out(self) -> None:
        """Write what waits; what an error or a cancellation leaves unwritten goes on waiting."""
        while self._pending:
            count = _moved(await self.raw.write(self._pending))
            del self._pending[:count]

    async def flush(self) -> None:
        """Write what waits, and forget what was read ahead of a file that can be written."""
        self.raw.fileno()
        await self.write_out()
        if self.raw.is_writable:
            self.forget_ahead()
        self.raw.publish_position(self.position)

    def abandon(self) -> None:
        """Write what waits and close, blocking."""
        pending, self._pending = self._pending, bytearray()
        self.raw.abandon(pending)

    # --- positions ------------------------------------------------------------------------------

    def rewind(self, position: int) -> None:
        """Forget what was read ahead, and read again from here."""
        self.forget_ahead()
        self.raw.position = position

    async def tell(self) -> int:
        self.raw.fileno()
        if not self.raw.is_seekable:
            raise OSError(errno.ESPIPE, os.strerror(errno.ESPIPE))
        return self.position

    async def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        offset, whence = operator.index(offset), operator.index(whence)
        self.raw.fileno()
        if self._size and not 0 <= whence <= getattr(os, "SEEK_HOLE", os.SEEK_END):
            raise ValueError(f"whence value {whence} unsupported")
        if not self.raw.is_seekable:
            if not self._size:
                raise OSError(errno.ESPIPE, os.strerror(errno.ESPIPE))
            raise io.UnsupportedOperation("File or stream is not seekable.")
        await self.write_out()
        if whence == os.SEEK_CUR:
            offset, whence = self.position + offset, os.SEEK_SET
        if whence == os.SEEK_SET:
            index = offset - (self.raw.position - len(self._chunk))
            if 0 <= index < len(self._chunk):
                self._index = index
                return offset
        position = await self.raw.seek(offset, whence)
        self._chunk, self._index = b"", 0
        if self._grows:
            self._window = _WINDOW_MIN
        return position

    async def truncate(self, length: int | None = None) -> int:
        self.raw.fileno()
        if not self.raw.is_writable:
            raise io.UnsupportedOperation("truncate" if self._size else "File not open for writing")
        length = None if length is None else operator.index(length)
        await self.flush()
        size = await self.tell() if length is None else length  # where what waited has gone
        await self.raw.truncate(size)
        return size


def _moved(count: int) -> int:
    if not count:
        raise OSError(errno.EIO, "the kernel wrote nothing and gave no error")
    return count


def _readable(data: Any) -> memoryview:
    if isinstance(data, str):
        raise TypeError("a bytes-like object is required, not 'str'")
    return _buffers.readable(data)


def _writable(buffer: Any) -> memoryview:
    try:
        return _buffers.writable(buffer)
    except ValueError as exc:
        raise TypeError(str(exc)) from None  # as the standard library calls it

"""Text over bytes: what ``io.TextIOWrapper`` does, with the standard library's codecs and newline decoder.

Bytes are decoded in pieces of the same size as there, so errors, and what a write between two reads hits, are the
same, too; not behind a ``read()`` of more than 8192 characters, for which there are larger pieces there, nor with a
``buffering`` that is no multiple of 8192, where a piece ends with what was read ahead.  For one task at
a time; it knows nothing of descriptors, locks or checkpoints.

A read that is cancelled, or fails for another reason than its text, has consumed nothing.
"""

from __future__ import annotations

import codecs
import io
import operator
import os
from typing import Any, Final

from ._binary_file import BinaryFile
from ._text_position import TextPosition, locate

_PIECE: Final = 8192


class TextFile:
    """A file of characters."""

    __slots__ = (
        "_again",
        "_decoder",
        "_encoder",
        "_newline",
        "_snapshot",
        "_text",
        "_translates",
        "_used",
        "_written_newline",
        "binary",
        "encoding",
        "errors",
        "line_buffering",
        "mode",
    )

    def __init__(
        self, binary: BinaryFile, *, mode: str, encoding: str, errors: str, newline: str | None, line_buffering: bool
    ) -> None:
        """
        Read and write nothing yet.

        :param newline: as the built-in :func:`open` takes it
        """
        self.binary: BinaryFile = binary
        self.mode: str = mode
        self.encoding: str = encoding
        self.errors: str = errors
        self.line_buffering: bool = line_buffering
        # Where a line ends: one of three texts, or "" for all of them.
        self._newline = "\n" if newline is None else newline
        self._written_newline = {None: os.linesep, "": "\n"}.get(newline, newline or "\n")
        self._translates = newline is None
        self._decoder: Any = self._new_decoder() if binary.raw.is_readable else None
        self._encoder: Any = codecs.getincrementalencoder(encoding)(errors) if binary.raw.is_writable else None
        if self._encoder is not None and binary.raw.is_seekable and binary.position:
            self._encoder.setstate(0)  # behind the beginning there is no byte order mark
        # Decoded, and how much of it was read.
        self._text = ""
        self._used = 0
        # The decoder's flags before the bytes of that text, and those bytes.
        self._snapshot: tuple[int, bytes] | None = None
        # Where the next read has to seek first: what is in front of it may have been written over.
        self._again: TextPosition | None = None

    def _new_decoder(self) -> Any:
        decoder = codecs.getincrementaldecoder(self.encoding)(self.errors)
        if self._newline and not self._translates:
            return decoder
        return io.IncrementalNewlineDecoder(decoder, translate=self._translates)

    @property
    def newlines(self) -> str | tuple[str, ...] | None:
        """The line ends seen so far, as the built-in file's ``newlines``."""
        return getattr(self._decoder, "newlines", None)

    # --- without waiting ------------------------------------------------------------------------

    def has(self, size: int | None) -> bool:
        """Whether a read of so many characters needs no operation."""
        return type(size) is int and 0 <= size <= len(self._text) - self._used

    def read_now(self, size: int | None) -> str | None:
        """Read, if all of it is there; ``None`` if not."""
        return self._take(operator.index(size)) if size is not None and self._text and self.has(size) else None

    def line_now(self) -> str | None:
        """Read a line, if all of it is there; ``None`` if not."""
        start = self._used
        end = self._text.find("\n", start) + 1 if self._newline == "\n" else self._line_end(self._text, start)
        if end <= 0:
            return None
        self._used = end
        return self._text[start:end]

    def write_now(self, text: Any) -> int | None:
        """Take text in, if there is room for its bytes; ``None`` if that needs an operation, or a check."""
        if type(text) is not str or self._encoder is None or self.line_buffering or len(text) > self.binary.room:
            return None
        state, count = self._encoder.getstate(), None
        try:
            count = self.binary.write_now(self._encode(text))
        finally:
            if count is None:  # nothing is written, nor is a byte order mark
                self._encoder.setstate(state)
        if count is None:
            return None
        self._forget()
        return len(text)

    # --- reading --------------------------------------------------------------------------------

    async def read(self, size: int | None = -1) -> str:
        """Read so many characters, fewer only at the end of the file; all that are left for less than 0 and ``None``."""
        length = -1 if size is None else operator.index(size)
        await self._begin_reading()
        if length < 0:
            data = await self.binary.read()
            text = self._decoder.decode(data, True)
            text = self._text[self._used :] + text if self._text else text
            self._forget_text()
            return text  # type: ignore[no-any-return]
        if len(self._text) - self._used >= length:
            return self._take(length)
        pieces = _Pieces(self)
        try:
            while pieces.chars < length and await pieces.add():
                pass
        except BaseException as exc:
            pieces.put_back(exc)
            raise
        return pieces.take(min(length, pieces.chars))

    async def readline(self, limit: int | None = -1) -> str:
        """Read until behind the next line end, or the end of the file; at most ``limit`` characters."""
        left = -1 if limit is None else operator.index(limit)
        await self._begin_reading()
        pieces = _Pieces(self)
        try:
            while True:
                end = pieces.line_end()
                if 0 <= left < (end if end >= 0 else pieces.chars):
                    end = left
                if end >= 0:
                    return pieces.take(end)
                if not await pieces.add():
                    return pieces.take_last()
        except BaseException as exc:
            pieces.put_back(exc)
            raise

    async def readlines(self, hint: int | None = -1) -> list[str]:
        """Read lines to the end of the file, or until they have more characters than that."""
        most = None if hint is None or hint <= 0 else hint
        await self._begin_reading()
        pieces = _Pieces(self)
        try:
            while True:
                if most is not None and pieces.chars > most and pieces.line_end() >= 0:  # joined only if that helps
                    lines, end = self._split(pieces.peek(), most)
                    if end > most:
                        pieces.take(end)
                        return lines
                if not await pieces.add():
                    break
        except BaseException as exc:
            pieces.put_back(exc)
            raise
        text = pieces.take_last()
        lines, end = self._split(text, len(text))
        return [*lines, text[end:]] if end < len(text) else lines

    def _split(self, text: str, most: int) -> tuple[list[str], int]:
        """Return whole lines until they have more characters than that, and where the last one ends."""
        lines: list[str] = []
        start = 0
        while start <= most and (end := self._line_end(text, start)) >= 0:
            lines.append(text[start:end])
            start = end
        return lines, start

    async def _begin_reading(self) -> None:
        self.binary.raw.fileno()
        if self._decoder is None:
            raise io.UnsupportedOperation("not readable")
        if self._again is not None:
            await self._seek(self._again)

    def _take(self, length: int) -> str:
        start = self._used
        if not start and length == len(self._text):
            self._used = length
            return self._text
        text = self._text[start : start + length]
        self._used += len(text)
        return text

    def _line_end(self, text: str, start: int) -> int:
        """Return the index behind the first line end, or -1."""
        if self._newline:
            found = text.find(self._newline, start)
            return found + len(self._newline) if found >= 0 else -1
        feed = text.find("\n", start)
        carriage = text.find("\r", start, feed if feed >= 0 else len(text))
        if carriage < 0:
            return feed + 1 if feed >= 0 else -1
        return carriage + (2 if text.startswith("\n", carriage + 1) else 1)

    def _forget_text(self) -> None:
        self._text, self._used, self._snapshot, self._again = "", 0, None, None

    def _forget(self) -> None:
        """Forget what was decoded, and begin to decode anew."""
        self._forget_text()
        if self._decoder is not None:
            self._decoder.reset()

    # --- writing --------------------------------------------------------------------------------

    async def write(self, text: Any) -> int:
        """Take text in; its lines are written at once if the file is line-buffered."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        self.binary.raw.fileno()
        if self._encoder is None:
            raise io.UnsupportedOperation("not writable")
        state = self._encoder.getstate()
        through = self.line_buffering and ("\n" in text or "\r" in text)
        try:
            await self.binary.write(self._encode(text), through=through)
        except BaseException:
            self._encoder.setstate(state)
            raise
        self._forget()
        return len(text)

    def _encode(self, text: str) -> bytes:
        if self._written_newline != "\n" and "\n" in text:
            text = text.replace("\n", self._written_newline)
        return self._encoder.encode(text)  # type: ignore[no-any-return]

    async def flush(self) -> None:
        await self.binary.flush()

    # --- positions ------------------------------------------------------------------------------

    async def tell(self) -> int:
        """Return the position, as :meth:`seek` takes it; behind what waits to be appended the kernel has to say it."""
        self.binary.raw.fileno()
        if not self.binary.raw.is_seekable:
            raise io.UnsupportedOperation("underlying stream is not seekable")
        if self.binary.raw.is_appending:
            await self.binary.write_out()
        if self._again is not None:
            return self._again.pack()
        position = self.binary.position
        if self._snapshot is None:
            return position
        flags, data = self._snapshot
        return locate(self._new_decoder(), position - len(data), flags, data, self._used).pack()

    async def seek(self, cookie: int, whence: int = os.SEEK_SET) -> int:
        cookie, whence = operator.index(cookie), operator.index(whence)
        self.binary.raw.fileno()
        if not self.binary.raw.is_seekable:
            raise io.UnsupportedOperation("underlying stream is not seekable")
        if whence == os.SEEK_CUR:
            if cookie:
                raise io.UnsupportedOperation("can't do nonzero cur-relative seeks")
            cookie, whence = await self.tell(), os.SEEK_SET
        if whence == os.SEEK_END:
            if cookie:
                raise io.UnsupportedOperation("can't do nonzero end-relative seeks")
            position = await self.binary.seek(0, os.SEEK_END)
            self._forget()
            self._begin_encoding(position)
            return position
        if whence != os.SEEK_SET:
            raise ValueError(f"invalid whence ({whence}, should be 0, 1 or 2)")
        if cookie < 0:
            raise ValueError(f"negative seek position {cookie}")
        await self._seek(TextPosition.unpack(cookie))
        self._begin_encoding(cookie)
        return cookie

    async def _seek(self, position: TextPosition) -> None:
        before, decoded = self.binary.position, (self._text, self._used, self._snapshot, self._again)
        state = None if self._decoder is None else self._decoder.getstate()
        await self.binary.seek(position.offset)
        self._forget()
        if self._decoder is None or position == TextPosition(0):
            return
        self._decoder.setstate((b"", position.flags))
        self._snapshot = position.flags, b""
        if position.chars_to_skip:
            try:
                data = await self.binary.read(position.bytes_to_feed)
            except BaseException:  # cancelled: it has not moved
                self.binary.rewind(before)
                self._text, self._used, self._snapshot, self._again = decoded
                self._decoder.setstate(state)
                raise
            self._text = self._decoder.decode(data, position.needs_end)
            self._snapshot = position.flags, data
            if len(self._text) < position.chars_to_skip:
                raise OSError("can't restore logical file position")
            self._used = position.chars_to_skip

    def forget_ahead(self) -> None:
        """Have what is behind the position read and decoded again, of a file that has positions."""
        if self._snapshot is None:
            self.binary.forget_ahead()
            return
        flags, data = self._snapshot
        position = locate(self._new_decoder(), self.binary.position - len(data), flags, data, self._used)
        self.binary.rewind(position.offset + position.bytes_to_feed)
        self._forget_text()
        if position.chars_to_skip:  # no place to begin
            self._again = position
        else:
            self._snapshot = position.flags, b""
            self._decoder.setstate((b"", position.flags))

    def _begin_encoding(self, position: int) -> None:
        if self._encoder is not None:
            if position:
                self._encoder.setstate(0)
            else:
                self._encoder.reset()

    async def truncate(self, length: int | None = None) -> int:
        """Cut the file off; without a length behind the bytes that were decoded, as the built-in file does."""
        await self.binary.flush()
        return await self.binary.truncate(length)


class _Pieces:
    """Pieces of text that one read is made of: read in a row, and all put back if it fails."""

    __slots__ = ("_bytes", "_file", "_states", "_texts", "chars")

    def __init__(self, file: TextFile) -> None:
        self._file = file
        rest = file._text[file._used :]
        self._texts = [rest]
        self.chars = len(rest)
        # Of each piece behind that rest: its bytes, and the decoder's state before them.
        self._bytes: list[bytes] = []
        self._states: list[tuple[bytes, int]] = []

    async def add(self) -> bool:
        """Read and decode one more piece; False at the end of the file."""
        decoder = self._file._decoder
        state = decoder.getstate()
        data = await self._file.binary.piece(_PIECE)
        text = decoder.decode(data, not data)
        self._states.append(state)
        self._bytes.append(data)
        self._texts.append(text)
        self.chars += len(text)
        return bool(data or text)

    def line_end(self) -> int:
        """Return how many characters there are up to a line end, or -1; only the last piece is looked at."""
        text = self._texts[-1]
        before = self.chars - len(text)
        if self._file._newline == "\r\n" and text.startswith("\n") and self._ends_with_carriage_return():
            return before + 1
        end = self._file._line_end(text, 0)
        return before + end if end >= 0 else -1

    def _ends_with_carriage_return(self) -> bool:
        return next((text for text in reversed(self._texts[:-1]) if text), "").endswith("\r")

    def peek(self) -> str:
        """Return all that has been read, and is yet to be taken."""
        return "".join(self._texts)

    def take(self, length: int) -> str:
        """Return the first characters; what is behind them stays for the next read."""
        file = self._file
        if not self._bytes:
            return file._take(length)
        last = self._texts[-1]
        used = len(last) - (self.chars - length)
        if used < 0:  # pragma: no cover - a safety net: no reader adds more than it needs
            self._append()
            return file._take(length)
        held_back, flags = self._states[-1]
        file._text, file._used = last, used
        file._snapshot = flags, held_back + self._bytes[-1]
        return self.peek()[:length]

    def take_last(self) -> str:
        """Return everything, at the end of the file."""
        self._file._forget_text()
        return self.peek()

    def put_back(self, reason: BaseException) -> None:
        """Have the next read begin where this one did; what is no text is left behind, as built-in files do."""
        file = self._file
        if isinstance(reason, UnicodeError):
            file._forget_text()
        elif self._bytes:
            self._append()

    def _append(self) -> None:
        """Let the pieces stand behind what the file had before them."""
        file = self._file
        (held_back, flags), snapshot = self._states[0], file._snapshot
        flags, data = (flags, held_back) if snapshot is None else snapshot
        file._text += "".join(self._texts[1:])
        file._snapshot = flags, data + b"".join(self._bytes)

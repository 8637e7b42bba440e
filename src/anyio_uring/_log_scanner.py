"""From a log's file to its records: where they end, and whether that is a clean end, a torn tail or damage.

It reads through a manager; it changes nothing, and knows neither who appends nor what a tail is cut for.
"""

from __future__ import annotations

from typing import Final

from ._errors import CorruptLogError
from ._inline import INLINE_BYTES_MAX
from ._log_format import (
    FRAME_SIZE,
    HEADER_SIZE,
    FileHeader,
    InvalidHeaderError,
    parse,
    parse_header,
    suspects,
)
from ._manager import AsyncIoManager

# What the page cache can answer without an operation; of small records, parsing so much takes 0.7 ms.
CHUNK_SIZE: Final = INLINE_BYTES_MAX


class LogScanner:
    """
    Reads the records of one file, a chunk at a time.

    :ivar header: the file's header; ``None`` before :meth:`open`, and of a file whose creation was cut short
    :ivar end: offset behind the last valid record seen
    :ivar torn: what is wrong with the bytes behind ``end``; ``None`` if there are none, or zeros, or if
        :meth:`next_records` has not come to them
    :ivar bytes_torn: how many there are, without zeros at the end of the file
    """

    __slots__ = ("_fd", "_io", "_needed", "_path", "bytes_torn", "end", "header", "torn")

    def __init__(self, io: AsyncIoManager, fd: int, path: str) -> None:
        self._io = io
        self._fd = fd
        self._path = path
        self._needed = 0
        self.header: FileHeader | None = None
        self.end: int = 0
        self.bytes_torn: int = 0
        self.torn: str | None = None

    async def open(self) -> None:
        """
        Read the header.

        :raises CorruptLogError: if the file is no log, or its header is damaged
        """
        data = await self._io.read(self._fd, HEADER_SIZE + 1, 0)
        try:
            self.header = parse_header(data)
        except InvalidHeaderError as exc:
            raise CorruptLogError(str(exc), self._path, 0) from None
        if self.header is not None:
            self.end = self.header.first
            return
        self.bytes_torn = len(data.rstrip(b"\0"))
        if data:
            self.torn = "its creation was cut short"

    async def next_records(self) -> list[tuple[int, bytes]]:
        """
        Return the next records with their offsets, at least one; an empty list at the end.

        :raises CorruptLogError: if there is damage that no crash explains
        """
        header = self.header
        if header is None:
            return []
        while True:
            length = max(CHUNK_SIZE, self._needed)
            data = await self._io.read(self._fd, length, self.end - header.base)
            parsed = parse(header, data, self.end)
            self._needed = parsed.needed
            if parsed.records:
                self.end = parsed.end
                return parsed.records
            # Where a read was short, one more tells whether that is the end of the file.
            if parsed.needed > len(data) and (len(data) == length or await self._goes_on(len(data))):
                continue
            if not data or not await self._is_damaged(header):
                return []
            # Perhaps it was written meanwhile, and what proves the damage is newer than what seemed damaged.
            again = parse(header, await self._io.read(self._fd, length, self.end - header.base), self.end)
            if not again.records and again.needed <= length:
                raise CorruptLogError(
                    "the log is damaged: there are records behind that were written after these bytes had been synced",
                    self._path,
                    self.end,
                )

    async def _goes_on(self, length: int) -> bool:
        """Whether there is a byte so far behind the end."""
        assert self.header is not None
        return bool(await self._io.read(self._fd, 1, self.end - self.header.base + length))

    async def _is_damaged(self, header: FileHeader) -> bool:
        """Look at all that is behind the end, say in ``torn`` what is wrong, and return whether no crash explains it."""
        position = self.end - header.base
        while len(data := await self._io.read(self._fd, CHUNK_SIZE, position)) >= FRAME_SIZE:
            for offset, size in suspects(header, data, position + header.base, self.end):
                record = await self._io.read(self._fd, size, offset - header.base)
                if parse(header, record, offset).records:
                    return True
            position += len(data) - (FRAME_SIZE - 1)
        self.bytes_torn = await self._length_without_zeros(self.end - header.base)
        self.torn = "an incomplete record, or a wrong checksum" if self.bytes_torn else None
        return False

    async def _length_without_zeros(self, position: int) -> int:
        """Return how many bytes there are from a position on to the last that is not zero."""
        start, length = position, 0
        while data := await self._io.read(self._fd, CHUNK_SIZE, position):
            if data != bytes(len(data)):
                length = position - start + len(data.rstrip(b"\0"))
            position += len(data)
        return length

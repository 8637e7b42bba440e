"""``read_append_log()``: a log's records, one after the other, up to a clean end or a torn tail.

It knows the scanner and iteration; it changes nothing, and needs no lock.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import TracebackType
from typing import Union

from ._core import manager_for
from ._log_scanner import LogScanner
from ._manager import AsyncIoManager


def read_append_log(path: Union[str, os.PathLike[str]], *, io: AsyncIoManager | None = None) -> LogReader:
    """
    Read a log that :func:`open_append_log` wrote, also while it is being written::

        async for offset, record in read_append_log(path):
            ...

    :param io: the manager to read with; ``None``: the innermost open one, or threads
    :return: an async iterator of offsets and records, from the first one to the last that is valid
    """
    return LogReader(os.fspath(path), manager_for(io))


class LogReader:
    """
    The records of one file of a log; :func:`read_append_log` makes it.

    An async iterator of ``(offset, record)``.  It ends at the end of the log, and also where the tail is torn:
    :attr:`torn_at` then says where, and :attr:`torn_reason` why.  A cancelled step has lost no record: the next
    one gives it.

    The file is opened for the first record and closed behind the last one.  Who leaves the loop earlier closes it
    with :meth:`aclose`, or reads in an ``async with`` block, which does that.

    :raises OSError: from the iteration, if the file cannot be opened or read
    :raises CorruptLogError: from the iteration, behind the last valid record, if there is damage that no crash explains
    """

    __slots__ = ("_fd", "_io", "_is_closed", "_path", "_ready", "_scanner")

    def __init__(self, path: str, io: AsyncIoManager) -> None:
        self._path = path
        self._io = io
        self._fd = -1
        self._is_closed = False
        self._scanner: LogScanner | None = None  # None: not opened yet
        self._ready: Iterator[tuple[int, bytes]] = iter(())

    @property
    def end(self) -> int:
        """Offset behind the last record that was found valid; 0 before the first."""
        return 0 if self._scanner is None else self._scanner.end

    @property
    def torn_at(self) -> int | None:
        """Offset at which the tail is torn; ``None`` if it is not, or if the iteration has not come so far."""
        return None if self._scanner is None or self._scanner.torn is None else self._scanner.end

    @property
    def torn_reason(self) -> str | None:
        """What is wrong there."""
        return None if self._scanner is None else self._scanner.torn

    def __aiter__(self) -> LogReader:
        """Return itself: it can be iterated once."""
        return self

    async def __anext__(self) -> tuple[int, bytes]:
        """Return the next record with its offset."""
        await self._io._checkpoint()  # C1; in front, so that a cancellation loses no record
        for pair in self._ready:
            return pair
        records = await self._read()
        if not records:
            raise StopAsyncIteration
        self._ready = iter(records)
        return next(self._ready)

    async def _read(self) -> list[tuple[int, bytes]]:
        if self._is_closed:
            return []
        try:
            if self._fd < 0:
                self._fd = await self._io.open(self._path, os.O_RDONLY)
            if self._scanner is None:
                scanner = LogScanner(self._io, self._fd, self._path)
                await scanner.open()
                self._scanner = scanner
            records = await self._scanner.next_records()
        except OSError:
            await self.aclose()
            raise
        if not records:
            await self.aclose()
        return records

    async def aclose(self) -> None:
        """Close the file, also when cancelled; the iteration is at its end then."""
        self._is_closed = True
        self._ready = iter(())
        fd, self._fd = self._fd, -1
        if fd >= 0:
            await self._io._close_surely(fd)

    async def __aenter__(self) -> LogReader:  # noqa: PYI034
        """Return itself; the file is opened for the first record."""
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the file."""
        await self.aclose()

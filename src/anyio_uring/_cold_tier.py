"""Immutable extents that are read by logical address, near requests together.

It knows addresses and ranges of one file; what a read is, and how it is carried out, is the manager's.
"""

from __future__ import annotations

import errno
import operator
import os
import stat
from collections.abc import Iterable
from typing import Any, Final, Literal, overload

import anyio
import attrs

from . import _arguments, _direct
from ._arguments import OFFSET_MAX, FileDescriptor
from ._core import manager_for
from ._manager import AsyncIoManager
from ._requests import is_direct

# A gap costs its bytes, an operation of its own some microseconds: as much as copying a few pages.
_GAP_MAX: Final = 4096
# Larger ones leave the event loop's thread for a worker of the kernel's (docs/design.md, "Speed").
_COALESCED_MAX: Final = 256 * 1024


@attrs.frozen
class ColdTierStatistics:
    """
    What a :class:`ColdTierReader` was asked for, and what it asked for.

    :ivar requests: ranges that callers asked for
    :ivar operations: reads that they became
    :ivar bytes_asked: bytes in the requests
    :ivar bytes_read: bytes in the reads' results: more than asked where gaps were read too, fewer where requests overlap
    :ivar coalesced: requests that were answered by another request's read: the operations that were saved
    """

    requests: int
    operations: int
    bytes_asked: int
    bytes_read: int
    coalesced: int


@attrs.define(eq=False)
class Span:
    """
    A range of the file that is read at once.

    :ivar start: offset of its first byte
    :ivar end: offset behind its last one
    :ivar members: which requests it answers, as their indices
    """

    start: int
    end: int
    members: list[int]


class ColdTierReader:
    """
    Reads an immutable extent by logical address: byte ``address - base_offset`` of one file.

    Requests of a batch that are adjacent, near, overlapping or equal become one read.
    Of a descriptor with ``O_DIRECT`` whole blocks are read, so requests for the same block are near, too.

    The reader opens and closes nothing.  An int descriptor is the caller's to keep open; a
    :class:`RegisteredFile` can be read with the manager that registered it.
    """

    __slots__ = (
        "_base",
        "_bytes_asked",
        "_bytes_read",
        "_coalesced",
        "_coalesced_max",
        "_end",
        "_fd",
        "_gap_max",
        "_io",
        "_operations",
        "_requests",
    )

    def __init__(
        self,
        fd: FileDescriptor,
        *,
        base_offset: int = 0,
        length: int | None = None,
        gap_max: int = _GAP_MAX,
        coalesced_max: int = _COALESCED_MAX,
        io: AsyncIoManager | None = None,
    ) -> None:
        """
        Describe an extent; nothing is read.

        :param base_offset: logical address of the file's first byte
        :param length: bytes of the extent; ``None``: of the file, as it is now
        :param gap_max: bytes between two requests that are read for nothing rather than with another operation;
            0: only adjacent and overlapping requests are read together
        :param coalesced_max: the most bytes that requests are read together in; a longer request is read alone, and
            0 reads together none but what lies inside another request
        :param io: the manager; ``None``: at each call the innermost open one, or threads where there is none
        :raises ValueError: if a number is negative, or there is no ``length`` and the descriptor is no regular file
        :raises OSError: if there is no ``length`` and the descriptor is bad
        """
        self._fd = fd
        self._base = _natural("base_offset", base_offset)
        self._gap_max = _natural("gap_max", gap_max)
        self._coalesced_max = _natural("coalesced_max", coalesced_max)
        self._io = io
        self._end = self._base + _length(fd, length)
        self._requests = self._operations = self._bytes_asked = self._bytes_read = self._coalesced = 0

    def __repr__(self) -> str:
        return f"<ColdTierReader fd={self._fd!r} addresses {self._base} to {self._end}>"

    def statistics(self) -> ColdTierStatistics:
        """Return a snapshot of the counters."""
        return ColdTierStatistics(
            requests=self._requests,
            operations=self._operations,
            bytes_asked=self._bytes_asked,
            bytes_read=self._bytes_read,
            coalesced=self._coalesced,
        )

    async def read(self, address: int, length: int) -> bytes:
        """
        Read ``length`` bytes at a logical address.

        :raises ValueError: if they are not all inside the extent
        :raises OSError: as :func:`os.pread` would; with ``EIO`` if the file ends inside the extent

        A cancellation between two operations, where it takes several, is raised.
        """
        offset, end = self._range(address, length)
        io = manager_for(self._io)
        self._requests += 1
        self._operations += 1
        self._bytes_asked += end - offset
        data = await self._read_rest(io, offset, end)
        self._bytes_read += len(data)
        return data

    @overload
    async def read_batch(
        self, requests: Iterable[tuple[int, int]], *, return_exceptions: Literal[False] = False
    ) -> list[bytes]: ...
    @overload
    async def read_batch(
        self, requests: Iterable[tuple[int, int]], *, return_exceptions: bool
    ) -> list[bytes | OSError]: ...
    async def read_batch(self, requests: Iterable[tuple[int, int]], *, return_exceptions: bool = False) -> list[Any]:
        """
        Read many ranges, near ones together: one await, one submission.

        A request that was read alone gets the read's own bytes; those that were read together get copies of their
        parts, so that none keeps the others' bytes alive.  Until it returns, a batch holds what it has read and
        the copies made of it.

        :param requests: ``(address, length)`` each, in any order
        :param return_exceptions: return an :class:`OSError` in its request's place instead of raising
        :return: for each request all of its bytes, in request order
        :raises ValueError: if a request is not inside the extent; nothing is read then
        :raises BatchError: after all have settled, if one failed; it carries every result.  Where a read for
            several requests fails, each is read alone, so that a bad block fails none but those who asked for it
        :raises anyio.ClosedResourceError: if a :class:`RegisteredFile` was updated, and more than one operation was
            needed: bytes of two files are not joined

        If it raises the cancellation, at least one read did not happen.
        """
        ranges = self._ranges(requests)
        io = manager_for(self._io)
        wanted = [i for i, (start, end) in enumerate(ranges) if start < end]
        unit = self._unit(io)
        spans = coalesce(
            {i: _widened(ranges[i], unit) for i in wanted},
            gap_max=self._gap_max,
            size_max=self._coalesced_max,
        )
        self._requests += len(ranges)
        self._coalesced += len(wanted) - len(spans)
        self._bytes_asked += sum(end - start for start, end in ranges)
        results: list[bytes | OSError] = [b""] * len(ranges)
        _, before = _arguments.descriptor(self._fd)
        failed = await self._read_spans(io, spans, ranges, results, before)
        alone = [Span(*_widened(ranges[i], unit), [i]) for i in failed]
        if alone:
            self._check_unchanged(before)
            await self._read_spans(io, alone, ranges, results, before)
        return _arguments.settled("read_batch", results, return_exceptions=return_exceptions)

    # --- inside ---------------------------------------------------------------------------------

    def _range(self, address: int, length: int) -> tuple[int, int]:
        """Return where in the file a request begins and ends."""
        address, length = operator.index(address), operator.index(length)
        if length < 0:
            raise ValueError(f"length must be 0 or more, not {length}")
        if not self._base <= address <= address + length <= self._end:
            raise ValueError(
                f"{length} bytes at address {address} are not inside the extent, "
                f"which has the addresses {self._base} to {self._end}"
            )
        return address - self._base, address - self._base + length

    def _ranges(self, requests: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        ranges: list[tuple[int, int]] = []
        for request in requests:
            try:
                address, length = request
                ranges.append(self._range(address, length))
            except (TypeError, ValueError) as exc:
                kind = TypeError if isinstance(exc, TypeError) else ValueError
                raise kind(f"read_batch: request {len(ranges)} (address, length): {exc}") from exc
        return ranges

    def _unit(self, io: AsyncIoManager) -> int:
        """Return what reads must begin and end at multiples of."""
        number, _ = _arguments.descriptor(self._fd)
        return io.direct_alignment(self._fd).offset if is_direct(number) else 1

    def _check_unchanged(self, before: object) -> None:
        if _arguments.descriptor(self._fd)[1] is not before:
            raise anyio.ClosedResourceError("this registered file was updated while a part of it had been read")

    async def _read_spans(
        self,
        io: AsyncIoManager,
        spans: list[Span],
        ranges: list[tuple[int, int]],
        results: list[bytes | OSError],
        before: object,
    ) -> list[int]:
        """Read spans, fill in their members' results, and return the members of failed spans that have several."""
        fd = self._fd
        self._operations += len(spans)
        outcomes = await io.read_batch([(fd, s.end - s.start, s.start) for s in spans], return_exceptions=True)
        failed: list[int] = []
        for index, span in enumerate(spans):
            outcome = outcomes[index]
            outcomes[index] = b""  # let go of its bytes as soon as its members have theirs
            if isinstance(outcome, bytes):
                self._bytes_read += len(outcome)
                outcome = await self._completed(io, span, outcome, max(ranges[i][1] for i in span.members), before)
            if isinstance(outcome, bytes):
                for i in span.members:
                    start, end = ranges[i]
                    results[i] = outcome[start - span.start : end - span.start]
            elif len(span.members) > 1:
                failed += span.members
            else:
                results[span.members[0]] = outcome
        return failed

    async def _completed(
        self, io: AsyncIoManager, span: Span, data: bytes, end: int, before: object
    ) -> bytes | OSError:
        """Return a span's bytes, up to ``end`` at least, or why they are not to be had."""
        have = span.start + len(data)
        if have >= end:
            return data
        self._check_unchanged(before)
        self._operations += 1
        try:
            rest = await self._read_rest(io, have, end)
        except OSError as exc:
            return exc
        self._bytes_read += len(rest)
        return data + rest

    async def _read_rest(self, io: AsyncIoManager, start: int, end: int) -> bytes:
        try:
            return await io.read_exactly(self._fd, end - start, start)
        except anyio.IncompleteRead:
            message = (
                f"the file ends before byte {end}, inside the extent (address {self._base + start}, "
                f"{end - start} bytes): it was cut off, or the extent's length is wrong"
            )
        name = getattr(self._fd, "name", None)
        raise OSError(errno.EIO, message, name if isinstance(name, (str, bytes)) else None)


def coalesce(ranges: dict[int, tuple[int, int]], *, gap_max: int, size_max: int) -> list[Span]:
    """
    Return the spans that cover ranges of a file, those near to one another together.

    :param ranges: ``{index: (start, end)}``, none of them empty
    :param gap_max: bytes between two ranges of a span
    :param size_max: bytes of a span of several ranges, unless one of them is as long as the span
    """
    spans: list[Span] = []
    for index, (start, end) in sorted(ranges.items(), key=operator.itemgetter(1)):
        span = spans[-1] if spans else None
        if span is not None and (end <= span.end or (start <= span.end + gap_max and end - span.start <= size_max)):
            span.end = max(span.end, end)
            span.members.append(index)
        else:
            spans.append(Span(start, end, [index]))
    return spans


def _widened(asked: tuple[int, int], unit: int) -> tuple[int, int]:
    start, length = _direct.covering(asked[0], asked[1] - asked[0], unit)
    return start, start + length


def _natural(name: str, value: int) -> int:
    value = operator.index(value)
    if value < 0:
        raise ValueError(f"{name} must be 0 or more, not {value}")
    return value


def _length(fd: FileDescriptor, length: int | None) -> int:
    if length is None:
        number, file = _arguments.descriptor(fd)
        if number < 0:
            raise _arguments.error(-errno.EBADF, file)
        status = os.fstat(number)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("length is needed: only a regular file has a size of its own")
        return status.st_size
    if _natural("length", length) > OFFSET_MAX:
        raise ValueError(f"length must be at most {OFFSET_MAX}, not {length}")
    return operator.index(length)

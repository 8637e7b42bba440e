"""The builder of linked operations: what is asked inside its block, submitted together at its end.

Knows requests and what carries them out; it knows no driver and no event loop.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

from . import _arguments
from ._arguments import FileDescriptor
from ._buffers import SupportsBuffer
from ._errors import ChainError
from ._executor import Executor
from ._requests import Request, is_direct


class Chain:
    """
    Linked operations; :meth:`AsyncIoManager.chain` makes one.

    The methods take what the manager's methods of the same names take, and only write down what is
    asked.  The end of the ``async with`` block submits all of it in one go and waits until every member
    has settled; a block that raises submits nothing.  :attr:`results` then has what each member gave.

    **Order.** A member begins when the one before it has been carried out whole (``IOSQE_IO_LINK``,
    Linux 5.3; on threads one worker carries out one after the other).  If one fails or is short, those
    behind it do not happen, and :class:`ChainError` says where and why.

    **Limits.** As many members as ``depth`` at most; each is one operation, so no more than 0x7ffff000
    bytes (2 GiB - 4 KiB) and 1024 buffers.  Of a descriptor with ``O_DIRECT`` one member at offset -1: the ring
    would not have moved the position for a second one (a :class:`ValueError`).

    **Cancellation.** If the end of the block raises it, at least one member did not happen; those
    before it did.  If everything happened all the same, the results are kept, and the cancellation
    strikes at the next checkpoint.
    """

    __slots__ = ("_allocate", "_finishes", "_is_open", "_make_error", "_requests", "_task", "_verbs", "results")

    results: list[Any]
    """What each member gave, in order: ``bytes`` of a read, a count of the other transfers, ``None`` of a sync."""

    def __init__(
        self,
        task: Executor,
        allocate: Callable[[int, int], Any],
        make_error: Callable[[int, Request], OSError],
    ) -> None:
        self._task = task
        self._allocate = allocate
        self._make_error = make_error
        # [member: its request, its verb, what makes its result of its count]
        self._requests: list[Request] = []
        self._verbs: list[str] = []
        self._finishes: list[Callable[[Request, int], Any]] = []
        self._is_open: bool | None = None  # None: not entered yet

    def read(self, fd: FileDescriptor, length: int, offset: int) -> None:
        """Read up to ``length`` bytes."""
        self._add("read", lambda: _arguments.read_request(fd, length, offset, self._allocate), _bytes)

    def readinto(self, fd: FileDescriptor, buffer: SupportsBuffer, offset: int) -> None:
        """Read into a caller's buffer."""
        self._add("readinto", lambda: _arguments.readinto_request(fd, buffer, offset), _count)

    def readv(self, fd: FileDescriptor, buffers: Iterable[SupportsBuffer], offset: int) -> None:
        """Read one range of the file into several buffers."""
        self._add("readv", lambda: _arguments.readv_request(fd, buffers, offset), _count)

    def write(self, fd: FileDescriptor, data: SupportsBuffer, offset: int) -> None:
        """Write once; if it is short, the chain stops behind it."""
        self._add("write", lambda: _arguments.write_request(fd, data, offset), _count)

    def writev(self, fd: FileDescriptor, buffers: Iterable[SupportsBuffer], offset: int) -> None:
        """Write several buffers to one range of the file; if it is short, the chain stops behind it."""
        self._add("writev", lambda: _arguments.writev_request(fd, buffers, offset), _count)

    def fsync(self, fd: FileDescriptor) -> None:
        """Make a file's data and metadata durable."""
        self._add("fsync", lambda: _arguments.sync_request(fd, data_only=False), _nothing)

    def fdatasync(self, fd: FileDescriptor) -> None:
        """Make a file's data, and the metadata needed to read it back, durable."""
        self._add("fdatasync", lambda: _arguments.sync_request(fd, data_only=True), _nothing)

    def __len__(self) -> int:
        """Return the number of members."""
        return len(self._requests)

    async def __aenter__(self) -> Chain:  # noqa: PYI034 - Self is new in Python 3.11
        """
        Begin to write down.

        :raises RuntimeError: if it was entered before
        """
        if self._is_open is not None:
            raise RuntimeError("a chain is submitted once: make another with io.chain()")
        await self._task.perform(())
        self._is_open = True
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """
        Submit, and wait for every member, unless the block raised.

        :raises ChainError: if a member failed, or one that was not the last was short
        """
        self._is_open = False
        requests = self._requests
        try:
            if exc_type is None:
                for request in requests[:-1]:
                    request.is_linked = True
                self.results = self._settle(await self._task.perform(requests, is_chain=len(requests) > 1))
        finally:
            for request in requests:
                request.release()

    def _add(self, verb: str, make: Callable[[], Request], finish: Callable[[Request, int], Any]) -> None:
        if not self._is_open:
            raise RuntimeError(f"{verb}() of a chain is for inside its async with block")
        depth = self._task.depth
        if len(self._requests) == depth:
            raise ValueError(f"a chain takes no more than depth members, which is {depth}: open with a larger depth")
        request = make()
        if request.is_long:
            request.release()
            raise ValueError(f"{verb}() of a chain takes at most 0x7ffff000 bytes and 1024 buffers: split it")
        at_position = (other.fd for other in self._requests if other.offset < 0)
        if request.offset < 0 and is_direct(request.fd) and request.fd in at_position:
            request.release()
            raise ValueError(
                f"{verb}() of a chain, at offset -1 of descriptor {request.fd}: it has O_DIRECT and another member "
                "at offset -1, which does not move the position on the ring: give each an offset of its own"
            )
        self._requests.append(request)
        self._verbs.append(verb)
        self._finishes.append(finish)

    def _settle(self, counts: list[int]) -> list[Any]:
        results: list[Any] = []
        last = len(counts) - 1
        for i, (request, count) in enumerate(zip(self._requests, counts)):
            if count < 0:
                error = self._make_error(count, request)
                results.append(error)
            else:
                results.append(self._finishes[i](request, count))
                if i == last or count == request.size:
                    continue
                error = OSError(errno.EIO, f"{count} of {request.size} bytes")
            results += [None] * (last - i)
            raise ChainError(error, i, self._verbs[i], results) from error
        return results


def _bytes(request: Request, count: int) -> bytes:
    return _arguments.to_bytes(request.memory, count)


def _count(request: Request, count: int) -> int:  # noqa: ARG001 - one signature for all
    return count


def _nothing(request: Request, count: int) -> None:  # noqa: ARG001
    return None

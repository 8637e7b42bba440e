"""What goes wrong, how often, and what is to go wrong next.

Knows requests and errnos; it does not know when a request is carried out, or who waits for it.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Iterator
from random import Random
from typing import Any, Final

import attrs

from anyio_uring._flags import NOWAIT
from anyio_uring._requests import DISKS, AnyRequest, Call, Opcode, Request, file_type, is_direct

_SPENDS: Final = frozenset(
    {Opcode.WRITE, Opcode.WRITEV, Opcode.FALLOCATE, Opcode.MKDIRAT, Opcode.SYMLINKAT, Opcode.LINKAT}
)
_ASKED_ONCE: Final = frozenset({Opcode.CLOSE, Opcode.FSYNC, Opcode.SYNC_FILE_RANGE})
# What programs ask for; the others are what a driver makes of it.
OPERATIONS: Final = {
    opcode.name.lower(): opcode
    for opcode in Opcode
    if opcode not in {Opcode.ASYNC_CANCEL, Opcode.READ_FIXED, Opcode.WRITE_FIXED}
}


def _check_rate(_faults: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{attribute.name} must be a number from 0 to 1, not {value!r}")
    if not 0 <= value <= 1:
        raise ValueError(f"{attribute.name} must be from 0 to 1, not {value}")


def _rate() -> Any:
    return attrs.field(default=0.0, validator=_check_rate)


@attrs.frozen(kw_only=True, repr=False)
class Faults:
    """
    How often a :class:`FakeRing` has something go wrong: for each kind the share of operations, 0 to 1.

    A write, sync or call that fails has not happened, except for a close: whatever that answers, the descriptor is
    closed, as in the kernel.

    :raises ValueError: if one is out of range
    :raises TypeError: if one is no number
    """

    short: float = _rate()
    """Reads and writes of disk files that move less than was asked, but one byte at least."""
    eagain: float = _rate()
    """Operations on disk files that answer ``EAGAIN``, for which the library asks them again."""
    eintr: float = _rate()
    """Operations that answer ``EINTR``, for which the library asks them again."""
    eio: float = _rate()
    """Operations on disk files and paths that fail with ``EIO``."""
    enospc: float = _rate()
    """Operations that take space on a disk, and fail with ``ENOSPC``."""
    stuck: float = _rate()
    """
    Reads, writes and syncs that do not end before they are cancelled, or :meth:`FakeRing.release` is called.

    Not opens, calls with paths and closes: among them is what tidies up, which no cancellation reaches.  Nor does one
    reach the commits of an append log: those go on at a release only.
    """
    lost_cancels: float = _rate()
    """Cancel requests that change nothing, three for one operation at most: the library sends another after 20 ms."""
    overflow: float = _rate()
    """Completions that come by way of the overflow list, once each and later than others."""

    def __repr__(self) -> str:
        rates = attrs.asdict(self, filter=lambda _, rate: rate > 0)
        return f"Faults({', '.join(f'{name}={rate}' for name, rate in rates.items())})"

    @classmethod
    def unnoticed(cls, rate: float = 0.1) -> Faults:
        """Return those that no program notices, each at this rate: the library deals with them."""
        return cls(eagain=rate, eintr=rate, lost_cancels=rate, overflow=rate)


class Injector:
    """Decides what goes wrong: as :class:`Faults` say, by chance, and first of all what was asked for by name."""

    __slots__ = ("_next", "_random", "faults")

    def __init__(self, faults: Faults, random: Random) -> None:
        self.faults = faults
        self._random = random
        # {opcode: what its next operations come to: -errno, or None for one that is stuck}
        self._next: dict[Opcode, deque[int | None]] = {}

    def plan(self, operation: str, fate: int | None, count: int) -> None:
        """
        Have the next ``count`` operations of a kind come to this.

        :param fate: ``-errno``; ``None``: stuck
        :raises ValueError: if there is no such kind, the count is not positive, or a close is to be stuck
        """
        opcode = OPERATIONS.get(operation)
        if opcode is None:
            raise ValueError(f"there is no operation {operation!r}: choose one of {', '.join(sorted(OPERATIONS))}")
        if fate is None and opcode is Opcode.CLOSE:
            raise ValueError("a close cannot be stuck: no cancellation reaches it, so that nothing would end it")
        if count < 1:
            raise ValueError(f"count must be 1 or more, not {count}")
        self._next.setdefault(opcode, deque()).extend([fate] * count)

    def fate(self, request: AnyRequest) -> int | None:
        """Return what a request comes to in place of being carried out: ``-errno``, None for stuck; 0: nothing."""
        planned = self._next.get(request.opcode)
        if planned:
            return planned.popleft()
        for code, rate in self._possible(request):
            if self._strikes(rate):
                return code
        return 0

    def may_strike_reads(self) -> bool:
        """Whether something may go wrong with the next read, so that it must be an operation."""
        faults = self.faults
        rates = faults.short, faults.eagain, faults.eintr, faults.eio, faults.stuck
        return bool(self._next.get(Opcode.READ)) or any(rates)

    def _possible(self, request: AnyRequest) -> Iterator[tuple[int | None, float]]:
        """Yield what a request may come to, and how often."""
        faults = self.faults
        is_call = isinstance(request, Call)
        # A driver is not told which calls no cancellation reaches; some tidy up.
        if not is_call:
            yield None, faults.stuck
        is_disk = is_call or file_type(request.fd) in DISKS
        # What is asked again is not refused again; a close and a sync are not asked again.
        if not request.force_async and request.opcode not in _ASKED_ONCE:
            yield -errno.EINTR, faults.eintr
            if is_disk and not is_call and not request.op_flags & NOWAIT:
                yield -errno.EAGAIN, faults.eagain
        if is_disk:
            yield -errno.EIO, faults.eio
            if request.opcode in _SPENDS:
                yield -errno.ENOSPC, faults.enospc

    def shortened(self, request: Request) -> int | None:
        """Return how many bytes a request is to move at most; None for all of them."""
        # Direct I/O moves whole blocks.
        if not self._strikes(self.faults.short) or request.size < 2 or is_direct(request.fd):
            return None
        return self._random.randrange(1, request.size) if file_type(request.fd) in DISKS else None

    def loses_cancel(self) -> bool:
        return self._strikes(self.faults.lost_cancels)

    def overflows(self) -> bool:
        return self._strikes(self.faults.overflow)

    def _strikes(self, rate: float) -> bool:
        return rate > 0 and self._random.random() < rate

"""What a manager reports about itself: snapshots, never live objects.

Knows nothing of how the numbers come about.
"""

from __future__ import annotations

import attrs

from ._options import DriverName


@attrs.frozen(kw_only=True)
class IoStatistics:
    """A snapshot of a manager's counters, as :meth:`AsyncIoManager.statistics` returns it."""

    driver: DriverName
    """Which driver does the work."""
    submissions: int
    """Operations handed to the driver (each member of a batch counts; cancel requests do not)."""
    completions: int
    """Operations whose own result has come back."""
    syscalls: int
    """Kernel entries: calls of ``io_uring_enter(2)`` on the ring, read/write/sync calls on threads.

    With ``sqpoll`` these are the calls that woke the kernel's poller, and one at open."""
    average_batch_size: float
    """``submissions / syscalls``: how many operations one kernel entry carried."""
    in_flight: int
    """Operations that the driver holds now."""
    in_flight_max: int
    """The most operations that the driver ever held at once; never more than ``depth``."""
    waiting: int
    """Callers that wait for room now, because ``depth`` operations are in flight."""
    cancellations: int
    """Operations in flight that the driver was asked to cancel (``IORING_OP_ASYNC_CANCEL``)."""
    resubmissions: int
    """Operations asked again because the kernel answered ``EINTR`` or a regular file ``EAGAIN``."""
    inline_reads: int = 0
    """Reads that the page cache answered at once (``RWF_NOWAIT``): they are no submissions."""
    inline_misses: int = 0
    """Reads for which that was tried in vain; they became submissions."""
    overflows: int
    """Times the completion queue was found overflown (nothing is lost then; it should stay 0)."""


@attrs.frozen(kw_only=True)
class UringFeatures:
    """What the kernel gives this manager, as :attr:`AsyncIoManager.features` returns it."""

    kernel: str
    """Kernel release, as ``uname -r`` prints it."""
    depth: int
    """The limit on operations in flight: as asked, or less where memory was short (``RLIMIT_MEMLOCK``)."""
    sq_entries: int
    """Entries of the submission queue; 0 on threads."""
    cq_entries: int
    """Entries of the completion queue; 0 on threads."""
    setup_flags: tuple[str, ...]
    """``IORING_SETUP_*`` flags in force, without the prefix; empty on threads."""
    opcodes: frozenset[int]
    """Numbers of the ``IORING_OP_*`` opcodes that the kernel supports; empty on threads."""

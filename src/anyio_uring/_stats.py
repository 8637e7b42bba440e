"""What a manager reports about itself: snapshots, never live objects.

Knows nothing of how the numbers come about.
"""

from __future__ import annotations

import attrs

from ._options import DriverName


@attrs.frozen(kw_only=True)
class LatencyQuantiles:
    """
    How long operations took, from their submission to the event loop's learning of their completion.

    Estimates, within 2 %, except for the maximum.  Reads that the page cache answered at once are no operations,
    and waiting for room in the queue comes before the submission: neither is in here.
    """

    count: int
    """Operations that were measured."""
    p50_us: float
    """Microseconds that half of them took at most; 0 if there were none, as the others."""
    p90_us: float
    """Microseconds that 90 % of them took at most."""
    p99_us: float
    """Microseconds that 99 % of them took at most."""
    max_us: float
    """Microseconds that the slowest took."""


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
    bytes_read: int
    """Bytes that reads gave, those of the page cache (:attr:`inline_reads`) included."""
    bytes_written: int
    """Bytes that writes took."""
    short_reads: int
    """Reads that gave less than was asked, the end of a file included."""
    short_writes: int
    """Writes that took less than was given."""
    cancellations: int
    """Operations in flight that the driver was asked to cancel (``IORING_OP_ASYNC_CANCEL``)."""
    cancellations_effective: int
    """Those of them that ended with ``ECANCELED``: the others had happened, or failed, by then."""
    resubmissions: int
    """Operations asked again because the kernel answered ``EINTR`` or a regular file ``EAGAIN``."""
    inline_reads: int = 0
    """Reads that the page cache answered at once (``RWF_NOWAIT``): they are no submissions."""
    inline_misses: int = 0
    """Reads for which that was tried in vain; they became submissions."""
    overflows: int
    """Times the completion queue was found overflown (nothing is lost then; it should stay 0)."""
    fallback_operations: int = 0
    """Operations that threads carried out because there was no ring to be had, or because it cannot do them (path
    operations of newer kernels); 0 with ``driver="threads"``."""
    latency: LatencyQuantiles | None = None
    """How long operations took, if the manager was opened with ``latency=True``."""


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
    fixed_buffers: str | None = None
    """``"registered"``, or why the buffers of the pool opened last are plain memory; ``None`` before there is a pool."""
    fixed_files: str | None = None
    """``"registered"``, or why registered files are plain descriptors; ``None`` before there is one."""

"""What tasks ask of a log, and what of it is carried out together: steps, commits and the log's counters.

It knows what a commit writes and what became of its steps; it waits for nothing and knows no file.
"""

from __future__ import annotations

from typing import Any, Final

import attrs

from ._log_format import FRAME_SIZE, FileHeader, frame
from ._waiters import Cancellation

# Beyond it a commit takes no further record: the first one need not wait for megabytes of others.
_SIZE_MAX: Final = 1 << 20
# A record so long is a buffer of its own in a commit's write; shorter ones are copied together.
_COPIED_MAX: Final = 64 * 1024


@attrs.frozen
class LogStatistics:
    """
    A snapshot of a log's counters since it was opened.

    :ivar appends: records written and acknowledged
    :ivar bytes_written: bytes of them, with their frames
    :ivar commits: writes that carried them, each of one record or many
    :ivar records_per_commit: the average
    :ivar records_per_commit_max: the most
    :ivar syncs: ``fdatasync(2)`` that succeeded
    :ivar short_writes: writes that went on with the rest
    :ivar failed: appends that raised an error
    :ivar cancelled: appends that were cancelled before they were in a commit
    :ivar waiting: tasks that wait for the log now
    """

    appends: int
    bytes_written: int
    commits: int
    records_per_commit: float
    records_per_commit_max: int
    syncs: int
    short_writes: int
    failed: int
    cancelled: int
    waiting: int


@attrs.define(eq=False)
class Step:
    """What one task waits for: its record, a sync, or the switch to another file."""

    record: bytes | None = None
    rotate_to: str | None = None
    is_dropped: bool = False
    is_under_way: bool = False
    offset: int = -1
    end: int = -1
    error: BaseException | None = None
    # What the waiters' module asks for.
    waiter: Any = None
    is_awake: bool = False
    cancellation: Cancellation | None = None
    cancels_before: int = 0

    def abort(self) -> bool:
        """Say whether a cancelled wait is over: unless the step is under way, it never happens."""
        self.is_dropped = not self.is_under_way
        return self.is_dropped


@attrs.define(eq=False)
class Commit:
    """
    Steps that become durable together.

    :ivar start: offset of the first record
    :ivar end: offset behind the last one
    """

    start: int
    must_sync: bool = False
    end: int = attrs.field(init=False)
    steps: list[Step] = attrs.Factory(list)
    records: int = 0
    _pieces: list[bytes] = attrs.Factory(list)
    _has_long: bool = False

    def __attrs_post_init__(self) -> None:
        self.end = self.start

    @property
    def size(self) -> int:
        """Bytes of the records with their frames."""
        return self.end - self.start

    @property
    def is_full(self) -> bool:
        return self.end - self.start > _SIZE_MAX

    def add(self, step: Step, header: FileHeader, durable_end: int) -> None:
        """Take a step in; a record gets its offset now."""
        self.steps.append(step)
        record = step.record
        if record is None:
            self.must_sync = True
        else:
            self.records += 1
            step.offset = offset = self.end
            self._pieces += frame(header, offset, offset - durable_end, record), record
            self._has_long = self._has_long or len(record) > _COPIED_MAX
            self.end = offset + FRAME_SIZE + len(record)
        step.end = self.end

    def buffers(self) -> list[bytes]:
        """Return what to write; a handful of buffers, where there may be thousands of pieces."""
        if not self._has_long:
            return [b"".join(self._pieces)] if self._pieces else []
        buffers: list[bytes] = []
        short: list[bytes] = []
        for piece in self._pieces:
            if len(piece) > _COPIED_MAX:
                buffers += b"".join(short), piece
                short = []
            else:
                short.append(piece)
        return [*buffers, b"".join(short)]


@attrs.define(eq=False)
class Counters:
    """What :class:`LogStatistics` tells, as it is counted; ``under_way`` is the steps that are being carried out."""

    appends: int = 0
    bytes_written: int = 0
    commits: int = 0
    records_per_commit_max: int = 0
    syncs: int = 0
    short_writes: int = 0
    failed: int = 0
    cancelled: int = 0
    under_way: int = 0

    def count(self, commit: Commit) -> None:
        """Count what became of a commit."""
        self.under_way -= len(commit.steps)
        failed = sum(step.error is not None and step.record is not None for step in commit.steps)
        written = commit.records - failed
        self.failed += failed
        if written:
            self.appends += written
            self.commits += 1
            self.records_per_commit_max = max(self.records_per_commit_max, written)

    def snapshot(self, queued: int) -> LogStatistics:
        """Return what was counted so far; ``queued`` is the steps whose turn is still to come."""
        commits = self.commits
        return LogStatistics(
            appends=self.appends,
            bytes_written=self.bytes_written,
            commits=commits,
            records_per_commit=self.appends / commits if commits else 0.0,
            records_per_commit_max=self.records_per_commit_max,
            syncs=self.syncs,
            short_writes=self.short_writes,
            failed=self.failed,
            cancelled=self.cancelled,
            waiting=self.under_way + queued,
        )

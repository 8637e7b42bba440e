"""The append-only log: records of many tasks, gathered into commits.

One task of the log's own writes, and one commit is under way at a time.  What is appended meanwhile gathers, and
is the next one: one vectored write, and one sync linked to it.  It knows order, cancellation and what is durable;
what a commit is made of, how a record looks and what a file needs is below it.

The life of an append::

    append() -> in the queue -> in a commit -> written, and in mode ALWAYS synced -> append() returns its offset
                    |               |
                cancelled:      cancelled: waits for the commit; what it came to decides
                never happened

Offsets are given when a commit is made up, so one that is cancelled in the queue leaves no gap.
"""

from __future__ import annotations

import enum
import errno
import os
from collections import deque
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Final, Union

import anyio
import attrs
from anyio.abc import TaskGroup

from ._buffers import SupportsBuffer, readable
from ._core import manager_for
from ._errors import DurabilityLostError
from ._log_commit import Commit, Counters, LogStatistics, Step
from ._log_file import LogFile, LogOptions, LogRecovery, Written, create_log_file, open_log_file
from ._log_format import RECORD_LENGTH_MAX
from ._manager import AsyncIoManager
from ._waiters import sleep

_SYNC_INTERVAL_S: Final = 1.0


class FsyncMode(enum.Enum):
    """When an append is acknowledged, and so what a crash of the system can take; that of the process takes nothing."""

    ALWAYS = "always"
    """When it is on disk: nothing that was acknowledged can be lost."""
    EVERY_SECOND = "every_second"
    """When the kernel has it; a second later, by the event loop's clock, it is synced.  The last second can be lost."""
    NEVER = "never"
    """When the kernel has it, which writes it to disk when it pleases."""


def open_append_log(
    path: Union[str, os.PathLike[str]],
    *,
    fsync: FsyncMode = FsyncMode.ALWAYS,
    io: AsyncIoManager | None = None,
    preallocate: int = 16 << 20,
    record_length_max: int | None = None,
    mode: int = 0o666,
) -> AbstractAsyncContextManager[AppendLog, None]:
    """
    Open a log for appending, or create it::

        async with open_append_log(path) as log:
            offset = await log.append(b"record")

    Entering the block locks the file against a second writer (``flock(2)``), reads it to its end, cuts off a torn
    tail, and makes durable what it keeps; ``recovery`` of the :class:`AppendLog` tells.  A new file and its name
    are durable.  The end of the block waits until all that was appended is written, and in the modes that sync,
    synced; then it gives back what was allocated ahead and closes the file.

    :param fsync: when an append is acknowledged
    :param io: the manager to write with; ``None``: the innermost open one, or threads
    :param preallocate: bytes that are allocated ahead at a time, so that a sync need not write a new size of the
        file, too (``fallocate(2)``); 0: none
    :param record_length_max: bytes of the longest record, for a new file: an existing one keeps its own;
        ``None``: 16 MiB
    :param mode: permissions of a new file, less the process's umask
    :return: an async context manager, to be entered once
    :raises BlockingIOError: on entering, if the file is open for appending
    :raises CorruptLogError: on entering, if it is no log, or is damaged in a way that no crash explains: then
        nothing is cut off, for it may have been acknowledged
    :raises OSError: on entering, if it cannot be opened, read or synced
    :raises DurabilityLostError: at the end of the block, if a sync failed and nobody has been told yet
    :raises ValueError: if a size is out of range
    """
    if not isinstance(fsync, FsyncMode):
        raise TypeError(f"fsync must be a FsyncMode, not {fsync!r}")
    if preallocate < 0:
        raise ValueError(f"preallocate must be 0 or more bytes, not {preallocate}")
    length_max = 16 << 20 if record_length_max is None else record_length_max
    if not 0 < length_max <= RECORD_LENGTH_MAX:
        raise ValueError(f"record_length_max must be between 1 and {RECORD_LENGTH_MAX} bytes, not {length_max}")
    return _Opening(io, fsync, LogOptions(os.fsdecode(path), preallocate, length_max, mode))


class AppendLog:
    """
    A log open for appending; :func:`open_append_log` makes one.

    Any number of tasks append at once.  Records stand in the file whole, in the order in which their appends
    started, at the offsets that they return.  An offset is a byte position; behind :meth:`rotate` offsets go on where
    the file before ended, so that none comes twice in the life of a log.

    **Cancellation.** An append that is cancelled before it is in a commit never happens.  One in a commit waits for
    that, returns its offset if it succeeded, and the cancellation strikes at the next checkpoint; nobody else's
    append is harmed.

    **Errors.** Where writing fails (``ENOSPC``, ``EDQUOT``, ``EFBIG``, ``EIO``), the appends whose records are not in
    the file raise that :class:`OSError`, the file is cut back to the last whole record, and the log goes on.  Where a
    sync fails, the log is at its end: :class:`DurabilityLostError`.

    :ivar recovery: what opening found
    """

    __slots__ = (
        "_bell",
        "_counters",
        "_dirty",
        "_durable_end",
        "_end",
        "_failure",
        "_file",
        "_fsync",
        "_is_announced",
        "_is_closing",
        "_is_sync_due",
        "_is_told",
        "_is_writing",
        "_loop",
        "_lost",
        "_queue",
        "_staged",
        "_ticking",
        "recovery",
    )

    def __init__(self, file: LogFile, recovery: LogRecovery, fsync: FsyncMode) -> None:
        self.recovery: LogRecovery = recovery
        self._file = file
        self._fsync = fsync
        self._end = self._durable_end = recovery.end
        self._loop = loop = file.io._loop
        loop.protect(AppendLog.append, AppendLog.sync, AppendLog.rotate, AppendLog._wait)  # type: ignore[arg-type]
        loop.protect(AppendLog._write, AppendLog._tick, AppendLog._finish)  # type: ignore[arg-type]
        self._bell = loop.doorbell()
        # What tasks wait for, in the order in which they asked: first staged, and in the queue when every cancellation
        # that was on its way then has arrived.
        self._staged: list[Step] = []
        self._queue: deque[Step] = deque()
        self._is_announced = False  # whether _take_staged() is on its way
        self._is_writing = False  # whether a step is under way
        self._is_closing = False
        # Of EVERY_SECOND: whether a second has passed; and what tells the clock that something is not synced.
        self._is_sync_due = False
        self._dirty = anyio.Event()
        self._ticking = anyio.CancelScope(shield=True)
        # Why nothing can be appended any more, and whether anybody knows.
        self._lost: OSError | None = None
        self._is_told = False
        self._failure: Exception | None = None  # for the end of the block to raise
        self._counters = Counters()

    def __repr__(self) -> str:
        return f"<AppendLog {self.path!r} fsync={self._fsync.name} end={self._end} durable_end={self._durable_end}>"

    @property
    def path(self) -> str:
        """The file that is being appended to."""
        return self._file.path

    @property
    def fsync(self) -> FsyncMode:
        """When an append is acknowledged."""
        return self._fsync

    @property
    def record_length_max(self) -> int:
        """Bytes of the longest record that the file takes."""
        return self._file.header.record_length_max

    @property
    def end(self) -> int:
        """Offset behind the last record that was written."""
        return self._end

    @property
    def durable_end(self) -> int:
        """Offset up to which everything is known to be on disk."""
        return self._durable_end

    def statistics(self) -> LogStatistics:
        """Return a snapshot of the counters."""
        return self._counters.snapshot(sum(not step.is_dropped for step in (*self._queue, *self._staged)))

    # --- what tasks ask for -----------------------------------------------------------------------

    async def append(self, record: SupportsBuffer) -> int:
        """
        Append a record, and wait until it is on disk (``ALWAYS``), or with the kernel (the other modes).

        :param record: bytes, none at all to :attr:`record_length_max`; anything but ``bytes`` is copied
        :return: its offset
        :raises OSError: if it could not be written; it is not in the log then
        :raises DurabilityLostError: if a sync failed, this record's or an earlier one
        :raises ValueError: if it is longer than that
        :raises anyio.ClosedResourceError: if the block of the log has ended
        """
        if type(record) is not bytes:
            record = bytes(readable(record, "record"))
        if len(record) > self._file.header.record_length_max:
            raise ValueError(f"a record of this log has at most {self.record_length_max} bytes, not {len(record)}")
        step = Step(record)
        await self._wait(step)
        return step.offset

    async def sync(self) -> int:
        """
        Wait until everything that was appended before is on disk, in every mode.

        :return: the offset behind that
        :raises DurabilityLostError: if a sync failed, this or an earlier one

        Cancelled while it waits for its turn, it does not happen.
        """
        step = Step()
        await self._wait(step)
        return step.end

    async def rotate(self, new_path: Union[str, os.PathLike[str]]) -> None:
        """
        Go on in a new file, behind everything that was appended before.

        The file so far is synced, in every mode, and trimmed; the new one and its name are durable before a record
        goes there; then the file so far is closed.  Appends of other tasks meanwhile wait and go to the new file;
        offsets go on.  If it fails, the log goes on in the file so far.

        :param new_path: of a file that does not exist
        :raises FileExistsError: if it does
        :raises OSError: if it cannot be created
        :raises DurabilityLostError: if the file so far could not be synced

        Cancelled while it waits for its turn, it does not happen.
        """
        await self._wait(Step(rotate_to=os.fsdecode(new_path)))

    async def _wait(self, step: Step) -> None:
        self._file.io._task.check()
        if self._is_closing:
            raise anyio.ClosedResourceError("the open_append_log() block of this log has ended")
        self._staged.append(step)
        if not self._is_writing:
            self._announce()
        cancellation = await sleep(self._loop, step, Step.abort)
        if cancellation is not None:
            cancellation.keep()
        if step.error is not None:
            raise step.error

    # --- the log's own tasks ----------------------------------------------------------------------

    def _announce(self) -> None:
        """Have what is staged carried out, as soon as every cancellation that is on its way now has arrived."""
        if not self._is_announced:
            self._is_announced = True
            self._loop.call_behind_cancellations(self._take_staged)

    def _take_staged(self) -> None:
        self._is_announced = False
        self._queue += self._staged
        self._staged.clear()
        self._bell.ring()

    async def _write(self) -> None:
        """Carry out what is asked, a commit at a time, until the log is closed; then finish it."""
        with anyio.CancelScope(shield=True):
            try:
                while not self._is_closing:
                    await self._take_turn()
                await self._finish()
            except Exception as exc:  # noqa: BLE001 - raised by the end of the block
                self._failure = exc
            finally:
                await self._end_all()

    async def _take_turn(self) -> None:
        await self._bell.wait()
        if self._queue or self._is_sync_due:
            await self._proceed()
        # Whoever was woken may append again now, and shares the next commit.
        if self._queue or self._staged:
            self._announce()

    async def _tick(self) -> None:
        """Have the log synced a second after it was first written to since it was last synced."""
        with self._ticking:
            while True:
                await self._dirty.wait()
                await anyio.sleep(_SYNC_INTERVAL_S)
                self._is_sync_due = True
                self._dirty = anyio.Event()
                self._bell.ring()

    async def _finish(self) -> None:
        """Carry out what is asked for still, and give back what was allocated ahead."""
        while self._queue or self._staged:
            await self._take_turn()
        if self._fsync is not FsyncMode.NEVER and self._durable_end < self._end and self._lost is None:
            await self._commit(Commit(self._end, must_sync=True))
        if self._lost is None:
            end = self._file.position(self._end)
            if end < self._file.allocated:
                await self._file.cut(end)
        elif not self._is_told:
            raise self._new_error()

    async def _end_all(self) -> None:
        """Close the file; and whatever has ended the log, a KeyboardInterrupt too, nobody waits for ever."""
        self._is_closing = True
        for step in (*self._queue, *self._staged):
            step.error = OSError(errno.ECANCELED, "the log ended before it could do this", self.path)
            self._loop.wake(step)
        self._queue.clear()
        self._staged.clear()
        try:
            await self._file.aclose()
        except Exception as exc:  # noqa: BLE001 - raised by the end of the block
            self._failure = self._failure or exc

    async def _proceed(self) -> None:
        """Carry out the next commit, or the switch to another file; never raises but what is no :class:`Exception`."""
        self._is_writing = True
        try:
            step = self._queue[0] if self._queue else None
            if step is not None and step.rotate_to is not None:
                await self._rotate(self._queue.popleft())
            else:
                await self._commit(Commit(self._end, must_sync=self._is_sync_due), gathers=True)
        finally:
            self._is_writing = False

    def _is_left(self, step: Step) -> bool:
        """Whether nobody waits for a step any more; otherwise it is under way from now on."""
        step.is_dropped = step.is_dropped or self._loop.has_left(step)
        step.is_under_way = not step.is_dropped
        if step.is_dropped and step.record is not None:
            self._counters.cancelled += 1
        return step.is_dropped

    # --- commits ----------------------------------------------------------------------------------

    def _gather(self, commit: Commit) -> None:
        """Take from the queue what goes together, and give offsets to the records."""
        queue, header, durable_end = self._queue, self._file.header, self._durable_end
        while queue and queue[0].rotate_to is None and not commit.is_full:
            step = queue.popleft()
            if not self._is_left(step):
                self._counters.under_way += 1
                commit.add(step, header, durable_end)
        if self._fsync is FsyncMode.ALWAYS and commit.records:
            commit.must_sync = True

    async def _commit(self, commit: Commit, *, gathers: bool = False) -> None:
        """
        Write and sync; then wake everyone who waited for that, each with an offset or an error.

        :param gathers: whether to take from the queue what goes together
        """
        try:
            if gathers:
                self._gather(commit)
            await self._make_durable(commit)
        except BaseException as exc:
            # Nobody knows what of it happened.
            cause = exc
            if not isinstance(cause, OSError):
                cause = OSError(errno.EIO, f"{type(exc).__name__}: {exc}", self.path)
                cause.__cause__ = exc
            self._lose(cause, commit.steps)
            if not isinstance(exc, Exception):
                raise
        finally:
            self._counters.count(commit)
            for step in commit.steps:
                self._loop.wake(step)

    async def _make_durable(self, commit: Commit) -> None:
        if self._lost is not None:
            self._fail(commit.steps, None)
            return
        file = self._file
        start = file.position(commit.start)
        if commit.records:
            await file.allocate(start, commit.size)
        must_sync = commit.must_sync and (commit.records > 0 or self._durable_end < self._end)
        written = await file.write(commit.buffers(), start, sync=must_sync)
        self._counters.short_writes += written.short_writes
        end = commit.end
        if written.write_error is not None:
            end = await self._cut_back(commit, written)
            must_sync = must_sync and end > self._durable_end
        if must_sync or self._is_sync_due:
            # A second has passed while it was written: what it wrote is not acknowledged before it is synced.
            sync_error = written.sync_error
            if written.write_error is not None or not commit.must_sync:
                sync_error = (await file.write([], 0, sync=True)).sync_error
            if sync_error is not None:
                self._lose(sync_error, commit.steps)
                return
            self._counters.syncs += 1
            self._durable_end = end
            self._is_sync_due = False
        self._end = end
        self._counters.bytes_written += end - commit.start
        if end > self._durable_end and self._fsync is FsyncMode.EVERY_SECOND and not self._dirty.is_set():
            self._dirty.set()

    async def _cut_back(self, commit: Commit, written: Written) -> int:
        """Cut off what is not a whole record, let the appends fail that are not in the file; return the new end."""
        reached = commit.start + written.length
        end = max((step.end for step in commit.steps if step.end <= reached), default=commit.start)
        # Who asked for a sync alone has lost nothing: what was acknowledged is in front of the cut.
        behind = [step for step in commit.steps if step.end > end]
        self._fail([step for step in behind if step.record is not None], written.write_error)
        for step in behind:
            step.end = end
        await self._file.cut(self._file.position(end))
        return end

    # --- another file -----------------------------------------------------------------------------

    async def _rotate(self, step: Step) -> None:
        if self._is_left(step):
            return
        self._counters.under_way += 1
        try:
            await self._commit(Commit(self._end, must_sync=True))
            if self._lost is not None:
                self._fail([step], None)
                return
            old = self._file
            await old.cut(old.position(self._end))
            assert step.rotate_to is not None
            # What was appended meanwhile was measured by this file's longest record, not by what a new log would get.
            options = attrs.evolve(old.options, path=step.rotate_to, record_length_max=old.header.record_length_max)
            self._file = await create_log_file(old.io, options, first=self._end)
            await old.aclose()
        except Exception as exc:  # noqa: BLE001 - whoever asked for it raises it
            step.error = exc
        except BaseException as exc:
            # Raised there as well, a KeyboardInterrupt would strike twice, and asyncio cleans up after one.
            step.error = OSError(errno.ECANCELED, "the rotation was interrupted", self.path)
            # Where asyncio cancels all tasks there are, this one ends when its log does, and not before.
            if not isinstance(exc, anyio.get_cancelled_exc_class()):
                raise
        finally:
            self._counters.under_way -= 1
            self._loop.wake(step)

    # --- errors -----------------------------------------------------------------------------------

    def _lose(self, cause: OSError, steps: list[Step]) -> None:
        """Take nothing more, for nobody knows what is on disk."""
        self._lost = cause
        self._is_sync_due = False
        self._fail(steps, None)

    def _fail(self, steps: list[Step], error: OSError | None) -> None:
        """Let steps raise an error, each its own; ``None``: that durability is lost."""
        for step in steps:
            if error is None:
                self._is_told = True
                step.error = self._new_error()
            else:
                step.error = OSError(error.errno, error.strerror, self.path)

    def _new_error(self) -> DurabilityLostError:
        assert self._lost is not None
        error = DurabilityLostError(self._lost, self.path, self._durable_end)
        error.__cause__ = self._lost
        return error


class _Opening:
    """What ``open_append_log()`` returns. A class, for a generator's frames would be open to KeyboardInterrupt."""

    __slots__ = ("_fsync", "_io", "_log", "_options", "_tasks")

    def __init__(self, io: AsyncIoManager | None, fsync: FsyncMode, options: LogOptions) -> None:
        self._io = io
        self._fsync = fsync
        self._options = options
        self._log: AppendLog | None = None
        self._tasks: TaskGroup

    async def __aenter__(self) -> AppendLog:
        if self._log is not None:
            raise RuntimeError("what open_append_log() returns can be entered once: call it again for another log")
        io = manager_for(self._io)
        io._loop.protect(_Opening.__aenter__, _Opening.__aexit__)  # type: ignore[arg-type]
        file, recovery = await open_log_file(io, self._options)
        self._log = log = AppendLog(file, recovery, self._fsync)
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(log._write, name="anyio_uring log")
        if self._fsync is FsyncMode.EVERY_SECOND:
            self._tasks.start_soon(log._tick, name="anyio_uring log's clock")
        return log

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        log = self._log
        assert log is not None
        log._is_closing = True
        log._bell.ring()
        log._ticking.cancel()
        # Otherwise a cancelled outer scope would cancel the wait for the last commit.
        self._tasks.cancel_scope.shield = True
        try:
            # An error of the body passes the task group by, so that it arrives as it was raised.
            await self._tasks.__aexit__(None, None, None)
        finally:
            if log._failure is not None:
                raise log._failure

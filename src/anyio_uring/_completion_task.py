"""The ring-owning task: in-flight table, life cycle of an operation, cancellation, draining.

It knows ids, ints and sleepers; it never sees bytes, paths or the meaning of an errno beyond
"cancelled" and "ask again".  It works on any :class:`anyio_uring._driver.Driver`, so that the
contract below is implemented once and holds on the ring and on threads alike.

The life of an operation::

    perform() -> waits for room (C3) -> STAGED -> IN_KERNEL -> SETTLED -> perform() returns
                        |                  |          |
                    cancelled:         cancelled:  cancelled: ASYNC_CANCEL, then wait on;
                    never happened     dropped     its own result decides (C5, C6)

A batch is one operation with n members, n results and one sleeper; a single read is a batch of one.
Members go to the driver as room allows; all of them settle before the operation does.

The contract.  Tests and asserts cite these numbers.

C1  Checkpoint. Every public coroutine that returns normally was a cancellation point before it had
    any effect, and a schedule point; also for an empty batch or zero bytes.  An operation is submitted
    only when every cancellation that was on its way has arrived.
C2  Pinned. The operation holds its buffers (exported), its file object and every C structure until
    its own completions.  User data is slot, member and generation, so that a late completion can
    never meet a newer operation.  A bare int fd is the caller's to keep open.
C3  Limit. In flight never exceeds ``depth``, and with the cancel requests never the completion
    queue.  Beyond ``depth`` callers wait in FIFO order before they pin anything.  Room is free again
    at the completion, not at the cancellation.
C4  Not yet submitted. Cancelled while only staged: it never reaches the kernel.
C5  In the kernel. Cancelled: one ASYNC_CANCEL per member, never dropped, then a shielded wait for
    the operation's own completions.  No timeout, nothing abandoned.  The cancel request's own
    result decides nothing; if it comes back alone, it is sent again (:meth:`_cancel_again`).
C6  Truth. The operation's own results decide: where a member answers ``-ECANCELED`` (or, after a
    cancel, what would be asked again, as ``-EINTR``) the cancellation is raised; anything else is returned, and the scope cancels
    at its next checkpoint.
C7  Native asyncio cancellation passes through anyio's shields: the wait survives it, and it is
    neither lost nor repeated (see :mod:`anyio_uring._waiters`).
C8  Parts. Verbs made of several operations can be cancelled between them; a prefix may be on disk.
C9  New descriptors. A cancelled open that succeeded returns its handle or closes it.
C10 Close. No new operations, cancel all, drain to zero, assert zero, close, free: also when the body
    raised and when the outer scope is cancelled.  Closing a ring does not make the kernel stop
    writing into memory; only draining does.
C11 Owner. The task runs in its own shielded scope.  If it crashes, every waiter gets
    ``BrokenResourceError``, and their memory stays pinned for ever.
C12 One thread, one process. Another thread or a forked child gets a clear ``RuntimeError``.
"""

from __future__ import annotations

import ctypes
import warnings
from collections import OrderedDict, deque
from collections.abc import Iterable
from threading import get_ident
from typing import Final

import anyio

from ._driver import (
    CANCEL,
    GENERATION,
    GENERATION_MASK,
    MEMBER,
    MEMBER_MASK,
    MEMBERS_MAX,
    NO_RESULT,
    SLOT_MASK,
    Driver,
    Rows,
    member_of,
)
from ._fixed_files import Target, hold, let_go
from ._operations import CANCELED, Operation, is_transient, may_be_repeated, repeat, take_back
from ._requests import Batch, Requests, is_kept, keep
from ._stats import IoStatistics
from ._transfers import Transfers
from ._waiters import Loop, PlainSleeper, sleep

# Seconds between two cancel requests for one member.
_CANCEL_AGAIN_AFTER: Final = 0.02


class CompletionTask:
    """Owns one driver on one event loop: performs requests, drains completions, wakes waiters."""

    __slots__ = (
        "__weakref__",
        "_cancellations",
        "_cancellations_effective",
        "_cancels",
        "_cancels_back",
        "_cancels_in_flight",
        "_cancels_max",
        "_completions",
        "_crash",
        "_doorbell",
        "_drained",
        "_driver",
        "_free_slots",
        "_generation",
        "_in_flight_max",
        "_is_announced",
        "_is_closing",
        "_is_running",
        "_loop",
        "_queue",
        "_ready",
        "_resubmissions",
        "_room",
        "_slots",
        "_staged",
        "_submissions",
        "depth",
        "is_usable",
        "thread",
        "transfers",
    )

    def __init__(self, driver: Driver, loop: Loop) -> None:
        self._driver = driver
        self._submissions = self._completions = self._resubmissions = 0
        self._cancellations = self._cancellations_effective = 0
        self.transfers: Transfers = Transfers()
        self._loop = loop
        loop.protect(CompletionTask.perform, CompletionTask.aclose, CompletionTask.run)  # type: ignore[arg-type]
        self._doorbell = loop.doorbell()
        self.depth: int = driver.features.depth
        self._room = self.depth
        self._cancels_max = driver.completions_max - self.depth
        assert self._cancels_max > 0, "C3: no room for the completions of cancel requests"
        self.thread: int = get_ident()
        self._is_closing = False
        self.is_usable: bool = True  # neither closing nor crashed
        self._is_running = False
        self._crash: BaseException | None = None
        self._drained: PlainSleeper | None = None  # who waits at the end of the block
        # [slot: its operation]
        self._slots: list[Operation | None] = []
        self._free_slots: list[int] = []
        self._generation = 0
        # Operations some of whose members wait for room, first come first served: {operation: None} (C3).
        self._queue: OrderedDict[Operation, None] = OrderedDict()
        # (operation, first member, one past the last member): staged; and to submit in the next turn.
        self._staged: list[tuple[Operation, int, int]] = []
        self._ready: list[tuple[Operation, int, int]] = []
        self._is_announced = False  # whether _make_staged_ready() is on its way
        # User data of members to cancel; and of those whose cancel request came back before they did.
        self._cancels: deque[int] = deque()
        self._cancels_back: list[int] = []
        self._cancels_in_flight = 0
        self._in_flight_max = 0

    # --- what callers use -----------------------------------------------------------------------

    def check(self) -> None:
        """
        Raise if this manager cannot be used here and now.

        :raises RuntimeError: in another thread or in a forked child (C12)
        :raises ClosedResourceError: after, or during, the end of ``open_uring()``
        :raises BrokenResourceError: if the ring-owning task has crashed (C11)
        """
        if get_ident() != self.thread:
            raise RuntimeError(
                "this manager belongs to another thread: open one in each thread, "
                "or reach its event loop with anyio.from_thread.run()"
            )
        if self._is_closing:
            raise anyio.ClosedResourceError("the open_uring() block of this manager has ended")
        if self._driver.is_forked():
            raise RuntimeError("this manager belongs to the parent process: open a new one in the forked child")
        if self._crash is not None:
            raise self._broken()

    async def perform(
        self, requests: Requests, *, has_passed: bool = False, is_chain: bool = False, is_certain: bool = False
    ) -> list[int]:
        """
        Carry out requests as one operation and return their results, in order.

        :param has_passed: that the task has passed a cancellation point in this very step (C1)
        :param is_chain: that requests are linked, ``depth`` of them at most: they are submitted together or not yet
        :param is_certain: carry them out whatever is cancelled; a cancellation strikes at the next checkpoint
        :return: for each request its result, or ``-errno``; never a bare cancellation (C6)
        """
        self.check()
        if not requests:
            await self._loop.checkpoint()  # C1
            return []
        targets = None if type(requests) is Batch else hold(requests)
        operation: Operation | None = None
        try:
            operation = self._admit(requests, together=len(requests) if is_chain else 1, has_passed=has_passed)
            operation.is_certain = is_certain
            # sleep(), without its coroutine.
            try:
                await self._loop.nap(operation, self._abort)
            except self._loop.cancelled as exc:
                operation.cancellation = await self._loop.outlast(operation, self._abort, exc)
            if operation.cancellation is None and operation.error is None and min(operation.results) >= 0:
                self.transfers.count(requests, operation.results)
                return operation.results  # type: ignore[no-any-return]
            self._decide(operation)
            if operation.cancellation is None:
                await self._ask_again(requests, operation.results, is_chain=is_chain, is_certain=is_certain)
        except BaseException:
            if operation is not None:
                targets = self._abandon(operation, targets)
            raise
        else:
            return operation.results  # type: ignore[no-any-return]
        finally:
            if targets is not None:
                let_go(targets)

    @property
    def has_crashed(self) -> bool:
        """Whether operations may be in flight whose completions nobody will see (C11)."""
        return self._crash is not None

    def statistics(self) -> IoStatistics:
        """Return a snapshot of the counters; for other threads, too: it changes nothing and waits for nobody."""
        enters = self._driver.enters
        # In this order, for in another thread the owner goes on meanwhile: in flight is never negative.
        completions, submissions = self._completions, self._submissions
        transfers = self.transfers
        return IoStatistics(
            driver=self._driver.name,
            submissions=submissions,
            completions=completions,
            syscalls=enters,
            average_batch_size=submissions / enters if enters else 0.0,
            in_flight=submissions - completions,
            in_flight_max=self._in_flight_max,
            # A copy is made in one step.
            waiting=sum(not operation.staged for operation in list(self._queue)),
            bytes_read=transfers.bytes_read,
            bytes_written=transfers.bytes_written,
            short_reads=transfers.short_reads,
            short_writes=transfers.short_writes,
            cancellations=self._cancellations,
            cancellations_effective=self._cancellations_effective,
            resubmissions=self._resubmissions,
            overflows=self._driver.overflows,
        )

    async def aclose(self) -> None:
        """
        Cancel every operation, wait for every completion, free the driver (C10).

        A cancellation that arrives meanwhile strikes at the next checkpoint.

        :raises BrokenResourceError: if the ring-owning task has crashed
        """
        self._is_closing = True
        self.is_usable = False
        if self._crash is not None:
            raise self._broken()
        for operation in [*self._queue, *(operation for operation in self._slots if operation is not None)]:
            self._cancel(operation)
        self._doorbell.ring()
        if not self._is_running:
            # asyncio.run() cancels every task when it ends, also one that has not taken its first step.
            await self.run()
        else:
            self._drained = PlainSleeper()
            cancellation = await sleep(self._loop, self._drained, lambda _: False)
            if cancellation is not None:
                cancellation.keep()
        if self._crash is not None:
            raise self._broken()
        self._driver.close()

    # --- the task -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Drain completions until the manager is closed and nothing is in flight; only the first call does."""
        if self._is_running:
            return
        self._is_running = True
        with anyio.CancelScope(shield=True):  # C11
            try:
                # Drained where it is seen to be readable: waking this task for it would take one more pass.
                async with self._doorbell.watching(self._driver.fileno(), self._turn):
                    await self._serve()
            finally:
                if self._drained is not None:
                    self._loop.wake(self._drained)

    async def _serve(self) -> None:
        while self._crash is None and not self._is_drained():
            await self._doorbell.wait()
            self._turn()

    def _is_drained(self) -> bool:
        if not self._is_closing:
            return False
        if self._driver.is_forked():
            return True  # the operations, and their completions, are the parent's
        return self._room == self.depth and not self._cancels_in_flight

    def _turn(self) -> None:
        """Submit what is staged and settle what has completed. Never blocks."""
        if self._crash is not None or self._driver.is_forked():
            return
        try:
            self._submit_and_drain()
        except BaseException as exc:
            self._break(exc)
            if not isinstance(exc, Exception):
                raise

    def _submit_and_drain(self) -> None:
        driver = self._driver
        targets = self._take_cancels() if self._cancels else []
        ready, self._ready = self._ready, []
        segments: list[tuple[Rows, int, int]] = []
        count = 0
        for operation, first, last in ready:
            if not operation.submitted and not operation.is_dropped and self._loop.has_left(operation):
                self._abort(operation)
            if not operation.is_dropped:  # C4
                operation.submitted += last - first
                count += last - first
                segments.append((operation.rows, first, last))
        self._submissions += count
        self._cancels_in_flight += len(targets)
        self._in_flight_max = max(self._in_flight_max, self._submissions - self._completions)
        assert self._submissions - self._completions <= self.depth, "C3: more in flight than depth"

        taken, completions = driver.turn(targets, segments)
        if taken < len(targets) + count:
            self._put_back(targets, ready, taken)
        self._settle_all(completions)
        if self._queue or self._is_closing:
            self._give_room()
        can_cancel = self._cancels and self._cancels_in_flight < self._cancels_max
        if self._ready or can_cancel or driver.is_hungry():
            self._doorbell.ring()

    def _settle_all(self, completions: Iterable[int]) -> None:
        slots = self._slots
        settled = 0
        cancels_back: list[int] = []
        pairs = iter(completions)
        for user_data, res in zip(pairs, pairs):
            if user_data & CANCEL:
                cancels_back.append(user_data & ~CANCEL)  # C5: its result decides nothing
                continue
            operation_or_none = slots[user_data & SLOT_MASK]
            assert operation_or_none is not None, "C2: a completion of an operation that has settled"
            operation = operation_or_none
            if operation.is_gathered:
                assert user_data == operation.user_data, "C2: a completion of an older operation, or a second one"
                settled += res
                self._count_off(operation, res)
                continue
            assert user_data & ~MEMBER_MASK == operation.user_data, "C2: a completion of an older operation"
            settled += 1
            self._settle(operation, member_of(user_data), res)
        self._completions += settled
        self._room += settled
        if cancels_back:
            self._cancels_in_flight -= len(cancels_back)
            self._send_again_later(filter(self._is_unsettled, cancels_back))

    def _put_back(self, targets: list[int], ready: list[tuple[Operation, int, int]], taken: int) -> None:
        """Keep for the next turn what the driver had no space for: nothing is dropped (C5)."""
        cancels_left = targets[taken:]
        self._cancels.extendleft(reversed(cancels_left))
        self._cancels_in_flight -= len(cancels_left)
        position = len(targets)
        for operation, first, last in ready:
            if operation.is_dropped:
                continue
            left = min(max(position + last - first - taken, 0), last - first)
            position += last - first
            if left:
                operation.submitted -= left
                self._submissions -= left
                self._ready.append((operation, last - left, last))

    def _break(self, crash: BaseException) -> None:
        """Wake everyone with the bad news; what the kernel may still write to is never freed (C11)."""
        self._crash = crash
        self.is_usable = False
        self._leak_if_in_flight()
        for operation in [*self._queue, *self._slots]:
            if operation is not None and not operation.is_awake:
                operation.error = self._broken()
                self._loop.wake(operation)
        self._queue.clear()
        self._doorbell.ring()

    def _broken(self) -> anyio.BrokenResourceError:
        error = anyio.BrokenResourceError(f"the ring-owning task has crashed: {self._crash!r}")
        error.__cause__ = self._crash
        return error

    def _leak_if_in_flight(self) -> bool:
        if self._submissions == self._completions or self._driver.is_forked():
            return False
        # One reference too many: this object, the driver and all pins outlive everything.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self))
        return True

    def __del__(self) -> None:
        # Reached without aclose() only if the event loop was closed under an open manager.
        if self._leak_if_in_flight():
            warnings.warn(
                "a manager of anyio_uring was abandoned with operations in flight: their memory is never freed; "
                "let the open_uring() block end before the event loop does",
                ResourceWarning,
                stacklevel=2,
            )
        else:
            self._driver.close()

    # --- room (C3) ------------------------------------------------------------------------------

    def _give_room(self) -> None:
        """Hand out room to operations whose members wait for it, in order."""
        while self._queue:
            operation = next(iter(self._queue))
            if self._room < operation.together:
                break
            if operation.rows is None:
                try:
                    self._prepare(operation)
                except Exception as exc:  # noqa: BLE001 - the caller raises it
                    del self._queue[operation]
                    operation.error = exc
                    self._loop.wake(operation)
                    continue
            self._make_ready(self._take_room(operation))
            if operation.staged == len(operation.requests):
                del self._queue[operation]
        if self._is_drained():
            self._doorbell.ring()

    # --- the life of an operation ---------------------------------------------------------------

    def _admit(self, requests: Requests, *, together: int, has_passed: bool) -> Operation:
        """Take a slot, pin the memory and stage, as far as there is room; the rest waits for it."""
        assert together <= self.depth, "C3: a chain longer than depth would wait for ever"
        count = len(requests)
        if count > MEMBERS_MAX:
            raise ValueError(f"a batch takes at most {MEMBERS_MAX} requests, not {count}: split it")
        operation = Operation(requests, [NO_RESULT] * count, count, together)
        if self._room >= together and not self._queue:
            self._prepare(operation)
            segment = self._take_room(operation)
            if has_passed:
                self._make_ready(segment)
            else:
                self._staged.append(segment)
                if not self._is_announced:
                    self._is_announced = True
                    self._loop.call_behind_cancellations(self._make_staged_ready)
        if operation.staged < count:
            self._queue[operation] = None
        return operation

    def _prepare(self, operation: Operation) -> None:
        slot = self._free_slots.pop() if self._free_slots else len(self._slots)
        self._generation = self._generation + 1 & GENERATION_MASK
        user_data = self._generation * GENERATION | slot
        if slot == len(self._slots):
            self._slots.append(None)
        try:
            operation.rows, operation.pins, gathered = self._driver.prepare(user_data, operation.requests)
        except BaseException:
            self._free_slots.append(slot)
            raise
        if gathered is not None:
            operation.is_gathered = True
            operation.results = gathered
        operation.user_data = user_data
        self._slots[slot] = operation

    def _take_room(self, operation: Operation) -> tuple[Operation, int, int]:
        first = operation.staged
        operation.staged = last = min(first + self._room, len(operation.requests))
        self._room -= last - first
        return operation, first, last

    def _make_ready(self, segment: tuple[Operation, int, int]) -> None:
        if not self._ready:
            self._doorbell.ring()
        self._ready.append(segment)

    def _make_staged_ready(self) -> None:
        self._is_announced = False
        self._ready += self._staged
        self._staged = []
        self._doorbell.ring()

    def _settle(self, operation: Operation, member: int, res: int) -> None:
        """Give a member its result."""
        assert operation.results[member] == NO_RESULT, "C2: a second completion"
        operation.results[member] = res
        self._count_off(operation, 1)

    def _count_off(self, operation: Operation, members: int) -> None:
        """Take note that members have their results; with the last one, let go of the pins and wake the waiter."""
        operation.unsettled -= members
        if not operation.unsettled:
            self._release(operation)
            if operation.orphans is not None:
                take_back(operation.requests, operation.results)
            self._loop.wake(operation)

    def _release(self, operation: Operation) -> None:
        if operation.rows is not None:
            slot = operation.user_data & SLOT_MASK
            self._slots[slot] = None
            self._free_slots.append(slot)
            operation.rows = operation.pins = None
            if operation.orphans is not None:
                let_go(operation.orphans)
            if operation.is_gathered:
                self._driver.retire(operation.user_data)
                operation.results = list(operation.results)
            if operation.unsent is not None:
                self._cancellations_effective += operation.results.count(CANCELED) - operation.unsent

    def _abort(self, operation: Operation) -> bool:
        """Answer a cancellation: True if the operation never happened, False if its result decides."""
        if operation.is_dropped or self._driver.is_forked():  # a forked child's never comes: it is the parent's (C12)
            return True
        if operation.error is not None or not operation.unsettled or operation.is_certain:
            return False
        if not operation.submitted:
            self._drop(operation)
            return True
        self._cancel(operation)
        return False

    def _abandon(self, operation: Operation, targets: list[Target] | None) -> list[Target] | None:
        """
        See to an operation whose results nobody will have: cancelled, failed, or its coroutine was closed.

        A driver may have it still, for its coroutine was closed or the owner crashed; then its memory, and its
        targets, are held until its completion (C2).

        :return: targets to let go of now
        """
        if not operation.unsettled:
            take_back(operation.requests, operation.results)  # C9
            return targets
        is_waiting_for_room = operation.rows is None
        try:
            never_happens = self._abort(operation)
        except RuntimeError:  # the event loop is closed, and hears no doorbell
            never_happens = False
        if never_happens or (is_waiting_for_room and not operation.is_certain):
            return targets
        keep(operation.requests)
        if self._crash is not None:
            return targets  # files of ours stay open after a crash, held or not
        operation.orphans = targets or []
        return None

    def _drop(self, operation: Operation) -> None:
        """Forget an operation of which the driver has seen nothing (C4)."""
        assert not operation.is_dropped and not operation.submitted, "C4: dropped twice, or too late"
        operation.is_dropped = True
        self._room += operation.staged
        self._queue.pop(operation, None)
        self._release(operation)
        self._give_room()

    def _cancel(self, operation: Operation) -> None:
        """Ask for every member in the driver to be cancelled (C5); the others never happen (C4)."""
        if operation.unsent is not None or operation.is_certain or operation.error is not None:
            return
        self._queue.pop(operation, None)
        unsent = set(range(operation.staged, len(operation.requests)))
        for owner, first, last in self._staged + self._ready:
            if owner is operation:
                unsent.update(range(first, last))
                self._room += last - first
        self._ready = [segment for segment in self._ready if segment[0] is not operation]
        self._staged = [segment for segment in self._staged if segment[0] is not operation]
        targets = [
            operation.user_data + member * MEMBER
            for member, res in enumerate(operation.results)
            if res == NO_RESULT and member not in unsent
        ]
        self._cancels += targets
        self._cancellations += len(targets)
        operation.unsent = len(unsent)
        for member in sorted(unsent):
            self._settle(operation, member, CANCELED)
        self._give_room()
        self._doorbell.ring()

    def _take_cancels(self) -> list[int]:
        """Return what to cancel in this turn: no more than the completion queue has space for (C3)."""
        targets: list[int] = []
        while self._cancels and self._cancels_in_flight + len(targets) < self._cancels_max:
            target = self._cancels.popleft()
            if self._is_unsettled(target):
                targets.append(target)
        return targets

    def _is_unsettled(self, target: int) -> bool:
        operation = self._slots[target & SLOT_MASK]
        if operation is None or operation.user_data != target & ~MEMBER_MASK:
            return False  # the whole operation has settled
        return bool(operation.results[member_of(target)] == NO_RESULT)

    def _send_again_later(self, targets: Iterable[int]) -> None:
        is_announced = bool(self._cancels_back)
        self._cancels_back += targets
        if self._cancels_back and not is_announced:
            self._doorbell.call_later(_CANCEL_AGAIN_AFTER, self._cancel_again)

    def _cancel_again(self) -> None:
        """
        Send a second cancel request for a member that outlived the first.

        The kernel (seen on Linux 6.18) loses one that meets a worker of io-wq at the wrong moment: it answers
        ``EALREADY`` or ``ENOENT``, and the worker then lets the operation wait for a poll, uncancelled; a
        write to a full terminal would wait for ever.  What is merely slow is asked in vain.
        """
        self._cancels += filter(self._is_unsettled, self._cancels_back)
        self._cancels_back.clear()
        if self._cancels:
            self._doorbell.ring()

    def _decide(self, operation: Operation) -> None:
        """Raise what an operation's results do not say: the cancellation, or an error (C6)."""
        cancellation = operation.cancellation
        if operation.error is not None:
            if cancellation is not None:
                cancellation.keep()
            raise operation.error
        results: list[int] = operation.results
        self.transfers.count(operation.requests, results)
        if cancellation is None and not self._is_closing:
            return
        has_happened = CANCELED not in results and not any(map(is_transient, operation.requests, results))
        if cancellation is not None:
            if not has_happened:
                cancellation.deliver()
            cancellation.keep()
        elif not has_happened:
            raise anyio.ClosedResourceError("the open_uring() block ended while the operation was in flight")

    async def _ask_again(self, requests: Requests, results: list[int], *, is_chain: bool, is_certain: bool) -> None:
        """Repeat what did not happen for no reason of the caller's; see :func:`may_be_repeated`."""
        while again := [i for i, res in enumerate(results) if res < 0 and may_be_repeated(requests[i], res)]:
            self._resubmissions += len(again)
            repeats = [repeat(requests[i], results[i]) for i in again]
            if is_chain:  # those behind it did not happen either
                (first,) = again
                again = [*range(first, len(requests))]
                repeats += [*requests][first + 1 :]
            try:
                outcomes = await self.perform(repeats, is_chain=is_chain, is_certain=is_certain)
            except BaseException:
                if is_kept(repeats):  # they share these requests' memory
                    keep(requests)
                raise
            for i, res in zip(again, outcomes):
                results[i] = res

"""The simulated kernel as a driver: the same face as the ring's, and every choice from a random source.

Time is the owner's turns: each one is a step, and what has begun ends some steps later.  While something can go on
without the world outside, its descriptor is readable, so that the owner comes again.  It knows rows,
:class:`anyio_uring.testing._faults.Injector` and system calls; it knows no event loop and no thread.
"""

from __future__ import annotations

import enum
import errno
import itertools
import os
import platform
import stat
from collections import deque
from collections.abc import Callable, Sequence
from random import Random
from typing import TYPE_CHECKING, Any, Final

import attrs

from anyio_uring._driver import CANCEL, MEMBER, MEMBER_MASK, NO_RESULT, member_of
from anyio_uring._fallback import _call, _execute, _read_now
from anyio_uring._requests import (
    DISKS,
    AnyRequest,
    Call,
    Memories,
    Opcode,
    Request,
    Requests,
    check_polled,
    file_type,
    is_direct,
)
from anyio_uring._stats import UringFeatures

from ._readiness import Readiness

if TYPE_CHECKING:
    import mmap

    from anyio_uring._options import DriverName

    from ._faults import Injector

# As DEFER_TASKRUN does: one call yields no more (measured on Linux 6.18).
DRAIN_MAX: Final = 20
# How often in a row the kernel may refuse: after that the owner would only turn in vain.
_REFUSALS_MAX: Final = 3
# How many cancel requests for one row may change nothing: each costs the owner 20 ms.
_LOST_CANCELS_MAX: Final = 3
_STEPS_MAX: Final = 5
_AT_FDCWD: Final = -100


class _State(enum.Enum):
    LINKED = "begins when another one has been carried out whole"
    READY = "is carried out when its step comes"
    PARKED = "waits for its descriptor"
    STUCK = "waits for release()"
    DONE = "has been carried out"


@attrs.define(eq=False)
class _Row:
    user_data: int
    request: AnyRequest
    results: list[int] | None  # of its batch, if those are gathered
    state: _State = _State.READY
    due: int = 0  # the step in which it is carried out
    follower: _Row | None = None
    follows: bool = False
    is_doomed: bool = False
    lost_cancels: int = 0
    is_judged: bool = False  # what goes wrong with it has been decided, and is not decided again


@attrs.define(eq=False)
class _Completion:
    user_data: int
    res: int
    row: _Row | None  # None: of a cancel request
    due: int = 0  # the step in which it is posted
    has_overflowed: bool = False


class FakeDriver:
    """The driver over a simulated kernel: fulfils :class:`anyio_uring._driver.Driver`."""

    __slots__ = (
        "_completions",
        "_entries",
        "_features",
        "_forget",
        "_injector",
        "_iopoll",
        "_is_closed",
        "_late",
        "_pid",
        "_random",
        "_readiness",
        "_ready",
        "_refusals",
        "_rows",
        "_step",
        "_unanswered",
        "completions_max",
        "enters",
        "fixed_files",
        "fixed_memory",
        "overflows",
    )

    name: DriverName = "fake"
    memory_type = bytearray

    def __init__(
        self, depth: int, random: Random, injector: Injector, forget: Callable[[FakeDriver], None], *, iopoll: bool
    ) -> None:
        """
        Open it.

        :param forget: called when it is closed
        :param iopoll: refuse what a ring that polls its devices would refuse, and nothing more
        """
        self._readiness = Readiness()
        self.fixed_memory: dict[int, tuple[int, memoryview]] = {}
        self.fixed_files: dict[int, tuple[int, object]] = {}
        self._features = UringFeatures(
            kernel=platform.release(),
            depth=depth,
            sq_entries=depth,
            cq_entries=2 * depth,
            setup_flags=(),
            opcodes=frozenset(),
        )
        self.completions_max = 2 * depth
        self.enters = 0
        self.overflows = 0
        self._random = random
        self._injector = injector
        self._forget = forget
        self._iopoll = iopoll
        self._pid = os.getpid()
        self._is_closed = False
        self._step = 0
        self._refusals = 0
        # The submission queue: rows, and user data of rows to cancel.
        self._entries: list[_Row | int] = []
        # {user data: row} that the kernel has and that has not been posted.
        self._rows: dict[int, _Row] = {}
        self._ready: list[_Row] = []
        self._unanswered = 0  # cancel requests without a completion
        self._late: list[_Completion] = []  # to be posted when their step comes
        self._completions: deque[_Completion] = deque()  # the completion queue

    @property
    def features(self) -> UringFeatures:
        return self._features

    def is_forked(self) -> bool:
        return os.getpid() != self._pid

    def fileno(self) -> int:
        return self._readiness.fileno()

    def allocate_batch(self, lengths: Sequence[int]) -> Memories:
        return Memories([*map(bytearray, lengths)], lengths)

    @property
    def read_now(self) -> Callable[[int, Any, int, int], int]:
        return self._read_now

    def _read_now(self, fd: int, memory: Any, length: int, offset: int) -> int:
        # What the page cache answers is no operation, and nothing could go wrong with it.
        if self._chance(0.5) or self._injector.may_strike_reads():
            return -errno.EAGAIN
        if file_type(fd) in DISKS and not is_direct(fd):
            # What the real page cache has, and whether the file knows RWF_NOWAIT, is not of the seed.
            res = _execute(Request(Opcode.READ, fd, memory, offset))
            assert res is not None, "a disk file does not block"
            return res
        return _read_now(fd, memory, length, offset)

    def expose(self, memory: Any) -> Any:
        return memory

    def register_memory(self, memory: mmap.mmap) -> int:  # noqa: ARG002
        self._features = attrs.evolve(self._features, fixed_buffers="plain memory: this ring is a fake")
        return -1

    def unregister_memory(self, entry: int) -> None:
        """Do nothing."""

    def make_file_table(self, slots: int) -> bool:  # noqa: ARG002
        self._features = attrs.evolve(self._features, fixed_files="plain descriptors: this ring is a fake")
        return False

    def update_file(self, slot: int, fd: int) -> bool:  # noqa: ARG002
        return False

    def prepare(self, user_data: int, requests: Requests) -> tuple[list[_Row], object, list[int] | None]:
        if self._iopoll:
            check_polled(requests)
        is_gathered = len(requests) > 1 and self._chance(0.5)
        results = [NO_RESULT] * len(requests) if is_gathered else None
        rows = [_Row(user_data + i * MEMBER, request, results) for i, request in enumerate(requests)]
        for row in rows:
            _check_open(row.request)
        for row, follower in itertools.pairwise(rows):
            if row.request.is_linked:
                row.follower, follower.follows = follower, True
        return rows, None, results

    def retire(self, user_data: int) -> None:
        """Do nothing: the rows know where their results go."""

    def turn(
        self, targets: Sequence[int], segments: Sequence[tuple[list[_Row], int, int]]
    ) -> tuple[int, Sequence[int]]:
        self._step += 1
        # They come in the order in which tasks were cancelled: where a group of tasks is, that of a set, by address.
        targets = sorted(targets)
        taken = self._take(targets, [row for rows, first, last in segments for row in rows[first:last]])
        self._enter()
        for row in self._readiness.pop_ready():
            self._make_ready(row, 0)
        self._carry_out()
        self._post()
        completions = self._drain()
        self._readiness.signal(is_set=bool(self._ready or self._late or self._completions))
        return taken, completions

    def is_hungry(self) -> bool:
        return bool(self._entries)

    def release(self) -> None:
        """Have everything that is stuck go on."""
        stuck = [row for row in self._rows.values() if row.state is _State.STUCK]
        for row in stuck:
            self._make_ready(row, self._delay())
        if stuck:
            self._readiness.signal(is_set=True)

    def close(self) -> None:
        if self._is_closed:
            return
        if not self.is_forked():
            assert not self._entries and not self._rows and not self._unanswered, "C10: not drained"
        self._is_closed = True
        self._readiness.close()
        self._forget(self)

    # --- chance -----------------------------------------------------------------------------------

    def _chance(self, rate: float) -> bool:
        return self._random.random() < rate

    def _delay(self) -> int:
        """Return in how many steps something happens: half of the time in this one."""
        return 0 if self._chance(0.5) else self._random.randrange(1, _STEPS_MAX)

    def _refuses(self) -> bool:
        """Whether the kernel has no room, or an enter is refused; bounded, so that the owner gets on."""
        if self._refusals < _REFUSALS_MAX and self._chance(0.1):
            self._refusals += 1
            return True
        return False

    # --- submission -------------------------------------------------------------------------------

    def _take(self, targets: Sequence[int], rows: list[_Row]) -> int:
        """
        Put into the submission queue what it has room for: cancel requests first, chains whole or not at all.

        Cancel requests together or not at all, too: some of them would be the first in an order that is not the seed's.
        """
        asked: list[_Row | int] = [*targets, *rows]
        room = self._features.sq_entries - len(self._entries)
        if len(asked) > 0 and self._refuses():
            room = min(room, self._random.randrange(len(asked)))
        taken = min(room, len(asked))
        while 0 < taken < len(asked) and _follows(asked[taken]):
            taken -= 1
        if taken < len(targets):
            return 0
        self._entries += asked[:taken]
        return taken

    def _enter(self) -> None:
        """Have the kernel take the submission queue, unless it answers EBUSY or EINTR."""
        if not self._entries or self._refuses():
            return
        self._refusals = 0
        self.enters += 1
        entries, self._entries = self._entries, []
        for entry in entries:
            if isinstance(entry, int):
                self._unanswered += 1
                self._answer_cancel(entry)
                continue
            assert entry.user_data not in self._rows, "C2: user data of a row that is in the kernel"
            self._rows[entry.user_data] = entry
            if entry.follows:
                entry.state = _State.LINKED
            else:
                self._make_ready(entry, self._delay())
        assert len(self._rows) <= self._features.depth, "C3: more in flight than depth"
        assert len(self._rows) + self._unanswered <= self.completions_max, "C3: more than the completion queue holds"

    def _answer_cancel(self, target: int) -> None:
        """Choose what a cancel request meets, among what kernels have been seen to do."""
        row = self._rows.get(target)
        if row is None:
            res = -errno.ENOENT
        elif row.state is _State.DONE:
            res = self._random.choice((-errno.ENOENT, -errno.EALREADY))
        elif self._loses_cancel(row) or (self._goes_on(row) and self._chance(0.5)):
            res = self._random.choice((-errno.ENOENT, -errno.EALREADY))  # it comes too late
        elif row.state is _State.LINKED or (row.state is _State.READY and self._chance(0.5)):
            row.is_doomed = True
            res = -errno.EALREADY
        else:
            res = self._random.choice((0, -errno.EALREADY))
            self._take_out(row)
            self._finish(row, -errno.EINTR if res and self._chance(0.5) else -errno.ECANCELED)
        self._late.append(_Completion(CANCEL | target, res, None, self._step + self._delay()))

    def _loses_cancel(self, row: _Row) -> bool:
        if row.lost_cancels == _LOST_CANCELS_MAX or not self._injector.loses_cancel():
            return False
        row.lost_cancels += 1
        return True

    def _goes_on(self, row: _Row) -> bool:
        """Whether it ends by itself, so that a cancel request may miss it."""
        is_certain = isinstance(row.request, Call) or file_type(row.request.fd) in DISKS
        return row.state is _State.READY and is_certain

    # --- carrying out -----------------------------------------------------------------------------

    def _make_ready(self, row: _Row, delay: int) -> None:
        row.state = _State.READY
        row.due = self._step + delay
        self._ready.append(row)

    def _take_out(self, row: _Row) -> None:
        if row.state is _State.READY:
            self._ready.remove(row)
        elif row.state is _State.PARKED:
            self._readiness.remove(row)

    def _carry_out(self) -> None:
        due = [row for row in self._ready if row.due <= self._step]
        self._ready = [row for row in self._ready if row.due > self._step]
        self._random.shuffle(due)
        for row in due:
            if row.is_doomed:
                self._finish(row, self._random.choice((-errno.ECANCELED, -errno.EINTR)))
                continue
            fate = 0 if row.is_judged else self._injector.fate(row.request)
            row.is_judged = True
            if fate is None:
                row.state = _State.STUCK
                continue
            res = self._execute(row.request) if not fate or row.request.opcode is Opcode.CLOSE else fate
            if res is not None:
                self._finish(row, fate or res)
            elif self._readiness.park(row, row.request):
                row.state = _State.PARKED
            else:  # of no kind that can be waited for
                self._make_ready(row, 1)

    def _execute(self, request: AnyRequest) -> int | None:
        if isinstance(request, Call):
            return _call(request)
        count = None if request.opcode is Opcode.FSYNC else self._injector.shortened(request)
        if count is None:
            return _execute(request)
        views = _first_bytes(request, count)
        opcode = Opcode.READV if request.opcode in {Opcode.READ, Opcode.READV} else Opcode.WRITEV
        try:
            return _execute(attrs.evolve(request, opcode=opcode, memory=views))
        finally:
            for view in views:
                view.release()

    def _finish(self, row: _Row, res: int) -> None:
        row.state = _State.DONE
        self._late.append(_Completion(row.user_data, res, row, self._step + self._delay()))

    # --- completion -------------------------------------------------------------------------------

    def _post(self) -> None:
        """Put into the completion queue what is due; what is linked to it begins behind it."""
        due = [completion for completion in self._late if completion.due <= self._step]
        self._late = [completion for completion in self._late if completion.due > self._step]
        self._random.shuffle(due)
        for completion in due:
            if not completion.has_overflowed and self._injector.overflows():
                self.overflows += 1
                completion.has_overflowed = True
                completion.due = self._step + 1 + self._delay()
                self._late.append(completion)
                continue
            self._completions.append(completion)
            if completion.row is None:
                self._unanswered -= 1
                continue
            del self._rows[completion.user_data]
            if completion.row.follower is not None:
                self._go_on(completion.row.follower, is_whole=completion.res == completion.row.request.size)

    def _go_on(self, follower: _Row, *, is_whole: bool) -> None:
        if is_whole:
            self._make_ready(follower, self._delay())
        else:
            self._finish(follower, -errno.ECANCELED)

    def _drain(self) -> list[int]:
        drained: list[int] = []
        gathered: dict[int, int] = {}  # {user data of an operation: members that have got their results}
        for _ in range(min(DRAIN_MAX, len(self._completions))):
            completion = self._completions.popleft()
            row = completion.row
            if row is None or row.results is None:
                drained += completion.user_data, completion.res
                continue
            row.results[member_of(completion.user_data)] = completion.res
            operation = completion.user_data & ~MEMBER_MASK
            gathered[operation] = gathered.get(operation, 0) + 1
        return [*drained, *itertools.chain.from_iterable(gathered.items())]


def _follows(entry: _Row | int) -> bool:
    return not isinstance(entry, int) and entry.follows


def _first_bytes(request: Request, count: int) -> list[memoryview]:
    views: list[memoryview] = []
    for memory in request.memory if isinstance(request.memory, list) else [request.memory]:
        views.append(memoryview(memory)[:count])
        count -= len(views[-1])
    return views


def _check_open(request: AnyRequest) -> None:
    """
    Refuse an open that may wait for somebody else: there is no thread to do so.

    Whether a FIFO's other end is open already cannot be found out without opening this one, which others would see.

    :raises ValueError: at a FIFO, unless its flags say that it does not wait
    """
    if not isinstance(request, Call) or not request.opens or _never_waits(request.op_flags):
        return
    assert isinstance(request.first, bytes)
    try:
        status = os.stat(request.first[:-1], dir_fd=None if request.fd == _AT_FDCWD else request.fd)
    except OSError:
        return  # which the open will say itself
    if stat.S_ISFIFO(status.st_mode):
        raise ValueError(
            "a fake ring has no thread that could wait for the other end of a FIFO: use O_NONBLOCK, or O_RDWR"
        )


def _never_waits(flags: int) -> bool:
    """Whether an open with these flags does not wait at a FIFO: it opens both ends or none, or fails."""
    is_new = flags & (os.O_CREAT | os.O_EXCL) == os.O_CREAT | os.O_EXCL
    has_both_ends = flags & os.O_ACCMODE == os.O_RDWR
    return is_new or has_both_ends or bool(flags & (os.O_NONBLOCK | os.O_PATH | os.O_DIRECTORY))

"""The thread driver: the same face as the ring, on worker threads.

Rows queue up, workers take one after the other until the queue is empty (so a batch of 256 costs
one job per worker, not 256 jobs), and results queue up until the owner drains them, woken by a
pipe as the ring's owner is by the ring's descriptor.  It knows system calls and threads; it knows no
waiters, cancellation scopes or event loops.

A read of an empty pipe must not hold a worker, and must end when it is cancelled, as on the ring.
So what can block for ever (pipes, sockets, terminals) is tried without blocking, and if it is not
ready it is parked, and one thread polls for all that is parked.
"""

from __future__ import annotations

import errno
import itertools
import os
import platform
import select
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import attrs

from ._driver import CANCEL, MEMBER, MEMBER_MASK, NO_RESULT, member_of
from ._inline import INLINE_BYTES_MAX, InlineReads
from ._requests import (
    FSYNC_DATASYNC,
    AnyRequest,
    Call,
    Memories,
    Opcode,
    Request,
    Requests,
    check_polled,
    is_direct,
)
from ._stats import UringFeatures

if TYPE_CHECKING:
    import mmap

    from ._options import DriverName

# Threads wait for disks more than they compute, so their number does not follow the processors'.
WORKERS_MAX: Final = 32

_READS: Final = frozenset({Opcode.READ, Opcode.READV})
# What one turn copies on the event loop's thread: 0.2 ms, as a batch of 256 times 4 KiB does on the ring.
_INLINE_TURN_BYTES_MAX: Final = 1 << 20
# Linux 4.14: one read or write that never blocks, whatever the descriptor's flags say.
_NOWAIT: Final[int | None] = getattr(os, "RWF_NOWAIT", None)
# Opening this device makes a new pseudo-terminal (Linux, devices.txt: /dev/ptmx).
_PTMX: Final = os.makedev(5, 2)
# The answer of what no thread could be started for: the kernel's own where it can start no worker.
_NO_THREAD: Final = -errno.ECANCELED


@attrs.define(eq=False)
class _Row:
    user_data: int
    request: AnyRequest
    results: list[int] | None  # of its batch, if it is of one
    follower: _Row | None = None  # begins when this one has been carried out whole
    follows: bool = False

    def answer(self, res: int) -> tuple[int, int]:
        """Return the completion that says so."""
        if self.results is None:
            return self.user_data, res
        self.results[member_of(self.user_data)] = res
        return self.user_data & ~MEMBER_MASK, 1


class ThreadDriver:
    """The driver over worker threads: fulfils :class:`anyio_uring._driver.Driver`."""

    __slots__ = (
        "_crash",
        "_done",
        "_doomed",
        "_executor",
        "_features",
        "_inline",
        "_iopoll",
        "_jobs",
        "_linked",
        "_lock",
        "_parked",
        "_pid",
        "_poller",
        "_poller_signal",
        "_running",
        "_signal",
        "_todo",
        "_workers",
        "completions_max",
        "enters",
        "fixed_files",
        "fixed_memory",
        "overflows",
    )

    name: DriverName = "threads"
    memory_type = bytearray

    def __init__(self, depth: int, *, nowait: bool = True, iopoll: bool = False) -> None:
        """
        Start nothing yet; threads start with the first rows.

        :param iopoll: refuse what a ring that polls its devices would refuse, and nothing more
        """
        if not hasattr(os, "preadv"):
            raise NotImplementedError(
                f"anyio_uring needs os.preadv(), which {platform.system()} lacks: use Linux, macOS or a BSD"
            )
        self.fixed_memory: dict[int, tuple[int, memoryview]] = {}
        self.fixed_files: dict[int, tuple[int, object]] = {}
        self._features = UringFeatures(
            kernel=platform.release(), depth=depth, sq_entries=0, cq_entries=0, setup_flags=(), opcodes=frozenset()
        )
        self.completions_max = 2 * depth
        self.enters = 0
        self.overflows = 0
        self._pid = os.getpid()
        # Of batches; single reads have been tried before they come here.
        self._inline = InlineReads() if nowait else None
        self._iopoll = iopoll
        self._workers = min(depth, WORKERS_MAX)
        self._executor = ThreadPoolExecutor(self._workers, thread_name_prefix="anyio_uring")
        self._signal = _Signal()
        self._lock = threading.Lock()
        # Guarded by the lock, as all that follows: {user data: row} that no worker has taken.
        self._todo: OrderedDict[int, _Row] = OrderedDict()
        # User data of rows that workers carry out, and those of them that were cancelled meanwhile.
        self._running: set[int] = set()
        self._doomed: set[int] = set()
        # {user data: row} that begins when another has been carried out.
        self._linked: dict[int, _Row] = {}
        # {user data: row} whose descriptor was not ready.
        self._parked: dict[int, _Row] = {}
        # user_data, res, user_data, res ...
        self._done: list[int] = []
        # Turns of workers that have been asked for, and have not ended.
        self._jobs: set[object] = set()
        self._crash: BaseException | None = None
        # Started when something is parked for the first time.
        self._poller: threading.Thread | None = None
        try:
            self._poller_signal = _Signal()
        except OSError:
            self._signal.close()
            raise

    @property
    def features(self) -> UringFeatures:
        return self._features

    def is_forked(self) -> bool:
        return os.getpid() != self._pid

    def is_hungry(self) -> bool:
        return False

    def fileno(self) -> int:
        return self._signal.fileno()

    def allocate_batch(self, lengths: Sequence[int]) -> Memories:
        return Memories([*map(bytearray, lengths)], lengths)

    @property
    def read_now(self) -> Callable[[int, Any, int, int], int]:
        return _read_now

    def expose(self, memory: Any) -> Any:
        return memory

    def register_memory(self, memory: mmap.mmap) -> int:  # noqa: ARG002 - there is no ring to register it with
        self._features = attrs.evolve(self._features, fixed_buffers="plain memory: threads have no ring")
        return -1

    def unregister_memory(self, entry: int) -> None:
        """Do nothing."""

    def make_file_table(self, slots: int) -> bool:  # noqa: ARG002
        self._features = attrs.evolve(self._features, fixed_files="plain descriptors: threads have no ring")
        return False

    def update_file(self, slot: int, fd: int) -> bool:  # noqa: ARG002
        return False

    def prepare(self, user_data: int, requests: Requests) -> tuple[list[_Row], object, list[int] | None]:
        if self._iopoll:
            check_polled(requests)
        results = [NO_RESULT] * len(requests) if len(requests) > 1 else None
        rows = [_Row(user_data + i * MEMBER, request, results) for i, request in enumerate(requests)]
        for row, follower in itertools.pairwise(rows):
            if row.request.is_linked:
                row.follower, follower.follows = follower, True
        return rows, None, results

    def retire(self, user_data: int) -> None:
        """Do nothing: the rows know where their results go."""

    def turn(
        self, targets: Sequence[int], segments: Sequence[tuple[list[_Row], int, int]]
    ) -> tuple[int, Sequence[int]]:
        rows = [row for of_operation, first, last in segments for row in of_operation[first:last]]
        answered: list[int] = []
        left = self._answer_cached(rows, answered) if self._inline is not None and len(rows) > 1 else rows
        with self._lock:
            if self._crash is not None:
                raise self._crash
            for target in targets:
                self._cancel(target)
            for row in left:
                (self._linked if row.follows else self._todo)[row.user_data] = row
            self._signal.clear()
            done, self._done = self._done, []
            if not self._wake_workers():
                while self._todo:  # RLIMIT_NPROC
                    _, row = self._todo.popitem(last=False)
                    self._finish(row, _NO_THREAD)
        return len(targets) + len(rows), answered + done if answered else done

    def _answer_cached(self, rows: list[_Row], answered: list[int]) -> list[_Row]:
        """Answer what the page cache can answer, a bounded amount of it, and return the other rows."""
        inline = self._inline
        assert inline is not None
        left: list[_Row] = []
        bytes_max = _INLINE_TURN_BYTES_MAX
        direct: dict[int, bool] = {}
        answers: dict[int, int] = {}  # {user data of a batch: members answered}
        for row in rows:
            request = row.request
            is_alone = row.follower is None and not row.follows
            is_plain = is_alone and not request.op_flags
            is_small_read = request.opcode is Opcode.READ and request.offset >= 0 and is_plain
            length = len(request.memory) if is_small_read else 0
            if 1 < length <= INLINE_BYTES_MAX and length <= bytes_max and inline.is_likely(request.fd):
                bytes_max -= length
                self.enters += 1
                fd = request.fd
                if fd not in direct:
                    direct[fd] = is_direct(fd)
                res = -errno.EAGAIN if direct[fd] else _read_cached(fd, request.memory, length, request.offset)
                if res >= 0:
                    inline.note_hit(fd, res)
                    user_data, value = row.answer(res)
                    if row.results is None:
                        answered += user_data, value
                    else:
                        answers[user_data] = answers.get(user_data, 0) + value
                    continue
                inline.note_miss(fd)
            left.append(row)
        for pair in answers.items():
            answered += pair
        return left

    def close(self) -> None:
        if self._signal.is_closed:
            return
        if not self.is_forked():
            with self._lock:
                assert not self._todo and not self._linked and not self._parked, "C10: not drained"
                self._workers = 0
                self._poller_signal.set()
            if self._poller is not None:
                self._poller.join()
            self._executor.shutdown(wait=True)
        self._signal.close()
        self._poller_signal.close()

    # --- with the lock held -----------------------------------------------------------------------

    def _cancel(self, target: int) -> None:
        """Cancel what has not begun or is parked; what runs is waited for, as in the kernel's io-wq."""
        if (row := self._todo.pop(target, None)) is not None:
            self._finish(row, -errno.ECANCELED)
            res = 0
        elif (row := self._parked.pop(target, None)) is not None:
            self._poller_signal.set()
            self._finish(row, -errno.ECANCELED)
            res = 0
        else:
            if target in self._running or target in self._linked:
                self._doomed.add(target)
            res = -errno.EALREADY
        self._complete(CANCEL | target, res)

    def _finish(self, row: _Row, res: int) -> None:
        """Complete a row, and let the one that is linked to it begin, or not happen."""
        self._complete(*row.answer(res))
        while (follower := row.follower) is not None:
            del self._linked[follower.user_data]
            if res == row.request.size and follower.user_data not in self._doomed:
                self._todo[follower.user_data] = follower
                self._todo.move_to_end(follower.user_data, last=False)  # for the worker that carried out this one
                return
            self._doomed.discard(follower.user_data)
            row, res = follower, -errno.ECANCELED
            self._complete(*row.answer(res))

    def _complete(self, user_data: int, res: int) -> None:
        self._done += user_data, res
        self._signal.set()

    def _fail(self, crash: BaseException) -> None:
        """Let the owner raise it in its next turn (C11)."""
        self._crash = crash
        self._signal.set()

    def _wake_workers(self) -> bool:
        """Ask for workers; False if rows wait and nobody will take them."""
        for _ in range(min(self._workers - len(self._jobs), len(self._todo))):
            if not self._start_job():
                break
        return bool(self._jobs) or not self._todo

    def _start_job(self) -> bool:
        """Have a worker take rows; False if there is no thread to be had."""
        job = object()
        try:
            self._executor.submit(self._work, job)
        except RuntimeError:
            # What was submitted is in the executor's queue all the same, and means nothing.
            if threading.current_thread().daemon:
                # The interpreter does not wait for this one when it ends, and up to Python 3.11 a thread that is
                # started meanwhile may crash it.
                return False
            try:
                # The main thread has ended, and an event loop in another one goes on.
                threading.Thread(target=self._work, args=(job,)).start()
            except RuntimeError:
                return False
        self._jobs.add(job)
        return True

    # --- in other threads -------------------------------------------------------------------------

    def _work(self, job: object) -> None:
        """Carry out rows until none is left: one job, many rows."""
        row: _Row | None = None
        res: int | None = None
        try:
            while True:
                with self._lock:
                    if row is not None:
                        self._put_away(row, res)
                    if not self._todo or job not in self._jobs:
                        self._jobs.discard(job)
                        return
                    _, row = self._todo.popitem(last=False)
                    self._running.add(row.user_data)
                    self.enters += 1
                res = _call(row.request) if isinstance(row.request, Call) else _execute(row.request)
        except BaseException as exc:  # noqa: BLE001 - the owner raises it: C11
            with self._lock:
                self._jobs.discard(job)
                self._fail(exc)

    def _put_away(self, row: _Row, res: int | None) -> None:
        self._running.remove(row.user_data)
        if res is None and row.user_data in self._doomed:
            res = -errno.ECANCELED  # cancelled while it found out that it would block
        self._doomed.discard(row.user_data)
        if res is not None:
            self._finish(row, res)
            return
        if self._poller is None:
            poller = threading.Thread(target=self._poll, name="anyio_uring-poller", daemon=True)
            try:
                poller.start()
            except RuntimeError:
                self._finish(row, _NO_THREAD)
                return
            self._poller = poller
        self._parked[row.user_data] = row
        self._poller_signal.set()

    def _poll(self) -> None:
        """Wait for parked rows' descriptors, and put the ready ones back into the queue."""
        try:
            while self._workers:
                # A closed descriptor is POLLNVAL: ready, and the next attempt gives EBADF.
                self._unpark(dict(self._make_poll().poll()))
        except BaseException as exc:  # noqa: BLE001 - the owner raises it: C11
            with self._lock:
                self._fail(exc)

    def _make_poll(self) -> select.poll:
        poll = select.poll()
        poll.register(self._poller_signal.fileno(), select.POLLIN)
        events: dict[int, int] = {}
        with self._lock:
            for row in self._parked.values():
                wanted = select.POLLIN if row.request.opcode in _READS else select.POLLOUT
                events[row.request.fd] = events.get(row.request.fd, 0) | wanted
        for fd, mask in events.items():
            poll.register(fd, mask)
        return poll

    def _unpark(self, ready: dict[int, int]) -> None:
        with self._lock:
            self._poller_signal.clear()
            for row in list(self._parked.values()):
                others = select.POLLOUT if row.request.opcode in _READS else select.POLLIN
                if ready.get(row.request.fd, 0) & ~others:
                    self._todo[row.user_data] = self._parked.pop(row.user_data)
            if not self._wake_workers():
                self._signal.set()  # the event loop's thread may start others


class _Signal:
    """A level that polls readable: set by any thread, cleared by one, both under the driver's lock."""

    __slots__ = ("_in", "_is_set", "_out", "is_closed")

    def __init__(self) -> None:
        self._out, self._in = os.pipe()
        os.set_blocking(self._out, False)
        os.set_blocking(self._in, False)
        self._is_set = False
        self.is_closed = False

    def fileno(self) -> int:
        return self._out

    def set(self) -> None:
        if not self._is_set:
            self._is_set = True
            os.write(self._in, b"\0")

    def clear(self) -> None:
        if self._is_set:
            self._is_set = False
            os.read(self._out, 1)

    def close(self) -> None:
        self.is_closed = True
        os.close(self._out)
        os.close(self._in)


def _read_now(fd: int, memory: Any, length: int, offset: int) -> int:
    # With O_DIRECT, RWF_NOWAIT does not keep a read from waiting for the device.
    return -errno.EAGAIN if is_direct(fd) else _read_cached(fd, memory, length, offset)


def _read_cached(fd: int, memory: Any, length: int, offset: int) -> int:
    if _NOWAIT is None:
        return -errno.EOPNOTSUPP
    try:
        done = os.preadv(fd, [memory], offset, _NOWAIT)
        while done < length:
            # Either the file ends here or the next page would have to be waited for.
            count = os.preadv(fd, [memoryview(memory)[done:]], offset + done, _NOWAIT)
            if not count:
                break
            done += count
    except OSError as exc:
        return -(exc.errno or errno.EIO)
    return done


def _call(call: Call) -> int:
    try:
        return call.run()
    except OSError as exc:
        return -(exc.errno or errno.EIO)
    except Exception as exc:  # noqa: BLE001 - whoever asked raises it
        call.failure = exc
        return -errno.EIO


def _execute(request: Request) -> int | None:
    """Carry out a request: its result, ``-errno``, or None if its descriptor is not ready."""
    fd = request.fd
    if fd < 0:
        return -errno.EBADF  # os.fsync() would call it a ValueError
    try:
        if request.opcode is Opcode.FSYNC:
            # macOS has no fdatasync.
            sync = getattr(os, "fdatasync", os.fsync) if request.op_flags & FSYNC_DATASYNC else os.fsync
            sync(fd)
            return 0
        is_read = request.opcode in _READS
        memory: Any = request.memory
        buffers = memory if request.opcode in {Opcode.READV, Opcode.WRITEV} else [memory]
        mode = os.fstat(fd).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode) or stat.S_ISDIR(mode)):
            return _transfer_unless_blocked(fd, buffers, request.op_flags, is_read=is_read)
        return _transfer(fd, buffers, request.offset, request.op_flags, is_read=is_read)
    except OSError as exc:
        return -(exc.errno or errno.EIO)


def transfer_now(request: Request) -> int:
    """Carry out a read or write with ``RWF_NOWAIT`` in this thread: its result, or ``-errno``."""
    if request.fd < 0:
        return -errno.EBADF
    is_read = request.opcode in _READS
    buffers = request.memory if isinstance(request.memory, list) else [request.memory]
    try:
        try:
            return _transfer(request.fd, buffers, request.offset, request.op_flags, is_read=is_read)
        except OSError as exc:
            if exc.errno != errno.ESPIPE or request.offset < 0:
                raise
        return _transfer(request.fd, buffers, -1, request.op_flags, is_read=is_read)
    except OSError as exc:
        return -(exc.errno or errno.EIO)


def _transfer(fd: int, buffers: Any, offset: int, flags: int, *, is_read: bool) -> int:
    if flags:
        try:
            return os.preadv(fd, buffers, offset, flags) if is_read else os.pwritev(fd, buffers, offset, flags)
        except NotImplementedError:  # the system has no preadv2()
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP)) from None
    if offset < 0:
        return os.readv(fd, buffers) if is_read else os.writev(fd, buffers)
    return os.preadv(fd, buffers, offset) if is_read else os.pwritev(fd, buffers, offset)


def _transfer_unless_blocked(fd: int, buffers: Any, flags: int, *, is_read: bool) -> int | None:
    """Read or write a stream, which has no positions: the offset means nothing, as in the kernel."""
    try:
        if _NOWAIT is not None:
            try:
                return _transfer(fd, buffers, -1, flags | _NOWAIT, is_read=is_read)
            except OSError as exc:
                if exc.errno not in {errno.EOPNOTSUPP, errno.ENOSYS, errno.ESPIPE}:
                    raise
        # FIFOs, terminals and some other devices know no RWF_NOWAIT.
        twin = _open_nonblocking_twin(fd, is_read=is_read)
        if twin is not None:
            try:
                return _transfer(twin, buffers, -1, flags, is_read=is_read)
            finally:
                os.close(twin)
    except BlockingIOError:
        return None  # parked also if the descriptor is non-blocking: the ring waits for it too
    poll = select.poll()
    poll.register(fd, select.POLLIN if is_read else select.POLLOUT)
    if not poll.poll(0):
        return None
    return _transfer(fd, buffers, -1, flags, is_read=is_read)


def _open_nonblocking_twin(fd: int, *, is_read: bool) -> int | None:
    """
    Open a FIFO or terminal once more, without blocking: the flag on the caller's own would show to others.

    None for what must not be opened twice, and where the system has no /proc.
    """
    status = os.fstat(fd)
    is_terminal = stat.S_ISCHR(status.st_mode) and os.isatty(fd) and status.st_rdev != _PTMX
    if not (stat.S_ISFIFO(status.st_mode) or is_terminal):
        return None
    flags = (os.O_RDONLY if is_read else os.O_WRONLY) | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        return os.open(f"/proc/self/fd/{fd}", flags)
    except OSError:
        return None

"""How a task waits, and the owner's doorbell: the ONE module that knows asyncio from trio.

Why not ``anyio.Event``: making one costs 2.5-3 us and waking it 18 us on asyncio and 49 us on
trio, where a bare future or ``wait_task_rescheduled`` costs 1-2 us; and its wait cannot go on
after a native asyncio cancellation, which contract C7 asks for.

Both loops give the same functions.  They know nothing of operations, results or drivers.

asyncio, in prose.  ``task.cancel()`` cancels the future that the task awaits, so a wait that must
survive takes a new future and goes on.  anyio's own cancellation is *level-triggered*: it calls
``task.cancel()`` again in every pass of the loop, so a wait that survives enters a shielded scope.
A native cancellation (``asyncio.timeout``, ``TaskGroup``, a bare ``task.cancel()``) is
*edge-triggered*: where its ``CancelledError`` was swallowed because a result was kept, it has to
be asked again.  That is done at the start of the next pass, and only if ``task.cancelling()`` has not
fallen meanwhile: a block such as ``asyncio.timeout`` that has been left
meanwhile has withdrawn its request, and before Python 3.13 ``uncancel()`` does not take a pending
one back.

Cancellations that arrive late.  A task whose scope is already cancelled learns of it on asyncio by
a callback of the *next* pass, and that callback may stand behind the owner's wake-up.  So what is
staged is made ready by a callback (:meth:`Loop.call_behind_cancellations`), and submitted one pass
later: by then every cancellation that was on its way has arrived, at no cost for the single operation
(asking anyio in each costs 1.5-2.7 us, a bare yield 1-2 us).  trio delivers at once.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import sys
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import asynccontextmanager, suppress
from types import FunctionType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Protocol, TypeVar

import anyio
import attrs

if TYPE_CHECKING:
    from anyio.abc import TaskGroup
    from trio.lowlevel import Abort, RaiseCancelT, Task


class Cancellation(Protocol):
    """A cancellation that arrived during a wait which had to go on."""

    def deliver(self) -> NoReturn:
        """Raise it now, once."""
        ...

    def keep(self) -> None:
        """Let it strike at the next checkpoint instead: a result was kept."""
        ...


class Sleeper(Protocol):
    """What one task waits with, once."""

    waiter: Any
    """The event loop's own; None while nobody sleeps."""
    is_awake: bool
    """Whether the wait is over."""
    cancellation: Cancellation | None
    """The one that arrived during a wait that went on."""
    cancels_before: int
    """How many cancellations of the task had been asked for, and not withdrawn, when the wait began (asyncio)."""


SleeperT = TypeVar("SleeperT", bound=Sleeper)
ResultT = TypeVar("ResultT")


@attrs.define(eq=False)
class PlainSleeper:
    """A sleeper that is nothing else besides."""

    waiter: Any = None
    is_awake: bool = False
    cancellation: Cancellation | None = None
    cancels_before: int = 0


class Doorbell(Protocol):
    """What the ring-owning task sleeps on; no cancellation ends the sleep (C11)."""

    def ring(self) -> None:
        """Wake the owner, or let its next :meth:`wait` return at once."""
        ...

    async def wait(self) -> None:
        """Sleep until rung."""
        ...

    def watching(self, fd: int, on_readable: Callable[[], None]) -> Any:
        """Return an async context manager in which a readable ``fd`` calls back, and :meth:`call_later` works."""
        ...

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call back once, by the event loop's clock, unless :meth:`watching` has ended by then."""
        ...


class Loop(Protocol):
    """The primitives of one running event loop."""

    @property
    def checkpoint(self) -> Callable[[], Awaitable[None]]:
        """Raise the cancellation if there is one, wherever it is on its way; and let other tasks run."""
        ...

    def call_behind_cancellations(self, callback: Callable[[], None]) -> None:
        """Call back such that who is woken there runs behind every cancellation that is on its way now."""
        ...

    def may_be_cancelled(self) -> bool:
        """Whether the current task's next cancellation point may raise; False is certain."""
        ...

    @property
    def cancelled(self) -> type[BaseException] | tuple[()]:
        """What :meth:`nap` raises where :meth:`outlast` has to decide."""
        ...

    def nap(self, sleeper: SleeperT, abort: Callable[[SleeperT], bool]) -> Awaitable[object]:
        """
        Return what to await until :meth:`wake`; :func:`sleep` shows how.

        Apart from :func:`sleep`, so that an operation can wait without one more coroutine, which takes 250 bytes
        and 0.3 us.
        """
        ...

    async def outlast(
        self, sleeper: SleeperT, abort: Callable[[SleeperT], bool], cancelled: BaseException
    ) -> Cancellation:
        """Raise a cancellation that struck :meth:`nap`, if ``abort`` agrees; otherwise wait on."""
        ...

    async def run_in_thread(
        self, function: Callable[[], ResultT], limiter: anyio.CapacityLimiter | None, *, is_certain: bool = False
    ) -> ResultT:
        """
        Call a function in a worker thread of anyio's, and wait for its end.

        A cancellation is raised if the function has not begun, and then it never will; otherwise its result
        is returned, and the cancellation strikes at the next checkpoint (C6, C7).

        :param is_certain: no cancellation keeps it from running
        """
        ...

    def wake(self, sleeper: Sleeper) -> None:
        """End the wait; once."""
        ...

    def has_left(self, sleeper: Sleeper) -> bool:
        """Whether the one who sleeps has been cancelled and is about to find out."""
        ...

    def doorbell(self) -> Doorbell:
        """Return a new doorbell."""
        ...

    def protect(self, *functions: FunctionType) -> None:
        """Keep ``KeyboardInterrupt`` from striking inside these functions, and what they call."""
        ...


async def sleep(loop: Loop, sleeper: SleeperT, abort: Callable[[SleeperT], bool]) -> Cancellation | None:
    """
    Wait until :meth:`Loop.wake`.

    :param abort: called once if a cancellation arrives. True: the thing waited for has been
        undone, so the cancellation is raised. False: it cannot be, so the wait goes on.
    :return: the cancellation that arrived during a wait that went on
    """
    try:
        await loop.nap(sleeper, abort)
    except loop.cancelled as exc:
        sleeper.cancellation = await loop.outlast(sleeper, abort, exc)
    return sleeper.cancellation


async def outlast(function: Callable[[], Coroutine[Any, Any, ResultT]], cancellations: list[BaseException]) -> ResultT:
    """
    Await a function until it ends by itself, and take note of cancellations.

    :param function: called anew after each, so it must go on where it was
    """
    while True:
        try:
            with anyio.CancelScope(shield=True):
                return await function()
        except anyio.get_cancelled_exc_class() as exc:
            # A native one of asyncio's, which knows no shields and strikes once.
            cancellations.append(exc)


def current_loop() -> Loop:
    """
    Return the primitives of the event loop that runs here.

    :raises RuntimeError: if none runs
    """
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_task():
        return _TrioLoop(trio)
    try:
        return _AsyncioLoop(asyncio.get_running_loop())
    except RuntimeError:
        raise RuntimeError("no event loop runs here: anyio_uring works inside asyncio or trio") from None


# --- trio ---------------------------------------------------------------------------------------


class _TrioLoop:
    __slots__ = ("_effective_deadline", "_time", "lowlevel")

    def __init__(self, trio: Any) -> None:
        self._effective_deadline = trio.current_effective_deadline
        self._time = trio.current_time
        self.lowlevel = trio.lowlevel

    @property
    def checkpoint(self) -> Callable[[], Awaitable[None]]:
        return self.lowlevel.checkpoint  # type: ignore[no-any-return]

    def call_behind_cancellations(self, callback: Callable[[], None]) -> None:
        callback()

    def doorbell(self) -> Doorbell:
        return _TrioDoorbell(self.lowlevel)

    cancelled: tuple[()] = ()  # on_cancel() has decided when trio raises

    def nap(self, sleeper: SleeperT, abort: Callable[[SleeperT], bool]) -> Awaitable[object]:
        lowlevel = self.lowlevel

        def on_cancel(raise_cancel: RaiseCancelT) -> Abort:
            if abort(sleeper):
                return lowlevel.Abort.SUCCEEDED  # type: ignore[no-any-return]
            sleeper.cancellation = _TrioCancellation(raise_cancel)
            return lowlevel.Abort.FAILED  # type: ignore[no-any-return]

        sleeper.waiter = lowlevel.current_task()
        return lowlevel.wait_task_rescheduled(on_cancel)  # type: ignore[no-any-return]

    async def outlast(
        self,
        sleeper: SleeperT,  # noqa: ARG002
        abort: Callable[[SleeperT], bool],  # noqa: ARG002
        cancelled: BaseException,
    ) -> Cancellation:
        raise AssertionError("trio has decided") from cancelled

    async def run_in_thread(
        self,
        function: Callable[[], ResultT],
        limiter: anyio.CapacityLimiter | None,
        *,
        is_certain: bool = False,
    ) -> ResultT:
        with anyio.CancelScope(shield=is_certain):
            return await anyio.to_thread.run_sync(function, limiter=limiter)
        raise AssertionError("a scope that nobody has cancelled swallowed a cancellation")

    def may_be_cancelled(self) -> bool:
        # -inf in a cancelled scope; in one whose deadline has passed and is yet to be noticed, that.
        return bool(self._effective_deadline() <= self._time())

    def wake(self, sleeper: Sleeper) -> None:
        sleeper.is_awake = True
        if sleeper.waiter is not None:  # pragma: no branch - a safety net: whoever can be woken sleeps
            self.lowlevel.reschedule(sleeper.waiter)

    def has_left(self, sleeper: Sleeper) -> bool:  # noqa: ARG002 - trio calls abort() in the very pass
        return False

    def protect(self, *functions: FunctionType) -> None:
        # It marks a function's code, for this event loop and every other; asking twice changes nothing.
        for function in functions:
            self.lowlevel.enable_ki_protection(function)


class _TrioCancellation:
    __slots__ = ("_raise_cancel",)

    def __init__(self, raise_cancel: RaiseCancelT) -> None:
        self._raise_cancel = raise_cancel

    def deliver(self) -> NoReturn:
        self._raise_cancel()
        raise AssertionError("trio's raise_cancel() returned")

    def keep(self) -> None:
        """Do nothing: trio's cancellation is level-triggered."""


class _TrioDoorbell:
    __slots__ = ("_lowlevel", "_rung", "_sleeper", "_tasks")

    def __init__(self, lowlevel: Any) -> None:
        self._lowlevel = lowlevel
        self._rung = False
        self._sleeper: Task | None = None
        self._tasks: TaskGroup | None = None

    def ring(self) -> None:
        self._rung = True
        if self._sleeper is not None:
            sleeper, self._sleeper = self._sleeper, None
            self._lowlevel.reschedule(sleeper)

    async def wait(self) -> None:
        lowlevel = self._lowlevel
        if self._rung:
            # Other tasks run between two turns of the owner.
            await lowlevel.cancel_shielded_checkpoint()
        else:
            self._sleeper = lowlevel.current_task()
            await lowlevel.wait_task_rescheduled(lambda _: lowlevel.Abort.FAILED)
        self._rung = False

    @asynccontextmanager
    async def watching(self, fd: int, on_readable: Callable[[], None]) -> AsyncIterator[None]:
        async with anyio.create_task_group() as self._tasks:
            self._tasks.start_soon(self._lowlevel.enable_ki_protection(self._watch), fd, on_readable)
            try:
                yield
            finally:
                self._tasks.cancel_scope.cancel()

    async def _watch(self, fd: int, on_readable: Callable[[], None]) -> None:
        while True:
            await self._lowlevel.wait_readable(fd)
            on_readable()

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        assert self._tasks is not None, "nobody watches"
        self._tasks.start_soon(self._lowlevel.enable_ki_protection(self._call_later), seconds, callback)

    async def _call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        await anyio.sleep(seconds)
        callback()


# --- asyncio ------------------------------------------------------------------------------------

# The messages of anyio's own cancellations (4.x); test_waiters.py proves that they are recognised.
_ANYIO_MESSAGES = ("Cancelled via cancel scope ", "Cancelled by cancel scope ")
# What its scopes have since 4.16; before, one swallowed the native cancellation that had come with its own.
_COUNTS = "_cancelling_at_enter"


def _is_native(cancelled: asyncio.CancelledError) -> bool:
    message = cancelled.args[0] if cancelled.args else None
    return not (isinstance(message, str) and message.startswith(_ANYIO_MESSAGES))


@types.coroutine
def _next_pass() -> Generator[None, None, None]:
    """Let every other task run. A task that is cancelled meanwhile gets its CancelledError here."""
    yield


class _AsyncioLoop:
    __slots__ = ("native",)

    def __init__(self, native: asyncio.AbstractEventLoop) -> None:
        self.native = native

    @property
    def checkpoint(self) -> Callable[[], Awaitable[None]]:
        return _next_pass  # 1.5 us less than anyio.lowlevel.checkpoint()

    def call_behind_cancellations(self, callback: Callable[[], None]) -> None:
        self.native.call_soon(callback)

    def protect(self, *functions: FunctionType) -> None:
        """Do nothing: since Python 3.11 asyncio turns the signal into a cancellation of the main task."""

    def doorbell(self) -> Doorbell:
        return _AsyncioDoorbell(self.native)

    cancelled: type[BaseException] = asyncio.CancelledError

    def nap(self, sleeper: SleeperT, abort: Callable[[SleeperT], bool]) -> Awaitable[object]:  # noqa: ARG002
        sleeper.waiter = future = self.native.create_future()
        sleeper.cancels_before = _count_requests(asyncio.current_task())
        return future

    async def outlast(
        self, sleeper: SleeperT, abort: Callable[[SleeperT], bool], cancelled: BaseException
    ) -> Cancellation:
        assert isinstance(cancelled, asyncio.CancelledError)
        if abort(sleeper):
            raise cancelled
        cancellation = _AsyncioCancellation(self.native, cancelled, sleeper.cancels_before)
        if not sleeper.is_awake:
            with anyio.CancelScope(shield=True) as scope:
                while not sleeper.is_awake:
                    sleeper.waiter = self.native.create_future()
                    try:
                        await sleeper.waiter
                    except asyncio.CancelledError as exc:
                        cancellation.also(exc, scope)
        return cancellation

    async def run_in_thread(
        self, function: Callable[[], ResultT], limiter: anyio.CapacityLimiter | None, *, is_certain: bool = False
    ) -> ResultT:
        job = _Job(function)
        job.cancels_before = _count_requests(asyncio.current_task())
        try:
            with anyio.CancelScope(shield=is_certain):
                await anyio.to_thread.run_sync(job.run, limiter=limiter)
        except asyncio.CancelledError as exc:
            # anyio shields the wait from its own cancellations, and not from native ones.
            if job.outcome.cancel():
                if not is_certain:
                    raise
                _AsyncioCancellation(self.native, exc, job.cancels_before).keep()
                return function()  # here: this task may wait for no thread any more
            job.outcome.add_done_callback(lambda _: self.native.call_soon_threadsafe(self.wake, job))
            (await self.outlast(job, lambda _: False, exc)).keep()
        return job.outcome.result()

    def may_be_cancelled(self) -> bool:
        task = asyncio.current_task()
        if sys.version_info < (3, 11) or task is None or task.cancelling():
            return True
        # anyio.current_effective_deadline() would say it, and costs as much as the pass of the loop saved.
        return bool(anyio.current_effective_deadline() <= self.native.time())

    def wake(self, sleeper: Sleeper) -> None:
        sleeper.is_awake = True
        waiter = sleeper.waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def has_left(self, sleeper: Sleeper) -> bool:
        return sleeper.waiter is not None and sleeper.waiter.cancelled()


class _Job(Generic[ResultT]):
    """A function for a worker thread, and how its task waits when the wait for the thread was cancelled."""

    __slots__ = ("_function", "cancellation", "cancels_before", "is_awake", "outcome", "waiter")

    def __init__(self, function: Callable[[], ResultT]) -> None:
        self._function = function
        self.outcome: concurrent.futures.Future[ResultT] = concurrent.futures.Future()
        self.waiter: asyncio.Future[None] | None = None
        self.is_awake = False
        self.cancellation: Cancellation | None = None
        self.cancels_before = 0

    def run(self) -> None:
        if not self.outcome.set_running_or_notify_cancel():
            return
        try:
            self.outcome.set_result(self._function())
        except BaseException as exc:  # noqa: BLE001 - raised where the outcome is asked for
            self.outcome.set_exception(exc)


class _AsyncioCancellation:
    __slots__ = ("_cancelled", "_forgotten", "_loop", "_native", "_requests", "_scope")

    def __init__(self, loop: asyncio.AbstractEventLoop, cancelled: asyncio.CancelledError, before: int) -> None:
        self._loop = loop
        self._cancelled = cancelled
        self._forgotten: asyncio.CancelledError | None = None
        # Of a native one that came behind anyio's: itself, and the scope that was cancelled.
        self._native: asyncio.CancelledError | None = None
        self._scope: Any = None
        # So many requests, or more, and at least one of those that came since is there still.
        self._requests = min(before + 1, _count_requests(asyncio.current_task()))

    def also(self, cancelled: asyncio.CancelledError, within: anyio.CancelScope) -> None:
        """
        Take note of a further one. The first one is raised, as any other await raises it.

        Whoever asked for it takes it, and finds the others in the number of requests: a native one in its place
        would be nobody's, if an ``asyncio.timeout()`` inside of a cancelled scope had asked for it.

        :param within: the scope of the wait, inside of all others
        """
        if not _is_native(cancelled) or _is_native(self._cancelled):
            return
        if sys.version_info < (3, 11):
            self._cancelled = cancelled  # nobody counts, and anyio repeats its own by itself
            return
        self._native, self._scope = cancelled, _cancelled_around(within)
        if not hasattr(within, _COUNTS):  # pragma: no cover - anyio before 4.16
            self._forgotten = cancelled

    def deliver(self) -> NoReturn:
        cancelled = self._cancelled
        if self._forgotten is not None:  # pragma: no cover - anyio before 4.16
            self._ask_again(self._forgotten)
        try:
            raise cancelled
        finally:
            # The traceback knows this frame and this object: without this, a cycle that keeps buffers pinned.
            del cancelled, self._cancelled, self._forgotten, self._native, self._scope

    def keep(self) -> None:
        # One that came together with anyio's has arrived as anyio's: the number of requests tells of it.
        if _is_native(self._cancelled) or sys.version_info >= (3, 11):
            self._ask_again(self._cancelled)

    def _ask_again(self, cancelled: asyncio.CancelledError) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._loop.call_soon(self._cancel_again, task, cancelled)

    def _cancel_again(self, task: asyncio.Task[Any], cancelled: asyncio.CancelledError) -> None:
        if _count_requests(task) < self._requests:
            return  # withdrawn meanwhile
        if self._native is not None and not getattr(self._scope, "_active", True):
            cancelled = self._native  # the scope was left: another one would take what bears its mark for its own
        if sys.version_info >= (3, 11):
            task.uncancel()
        task.cancel(*cancelled.args)


def _count_requests(task: asyncio.Task[Any] | None) -> int:
    """Return how many cancellations of a task have been asked for and not withdrawn (0 before Python 3.11)."""
    return task.cancelling() if task is not None and sys.version_info >= (3, 11) else 0


def _cancelled_around(scope: Any) -> Any:
    """Return the innermost of the scopes around this one that is cancelled."""
    while (scope := getattr(scope, "_parent_scope", None)) is not None and not scope.cancel_called:
        pass
    return scope


class _AsyncioDoorbell:
    __slots__ = ("_loop", "_rung", "_sleeper", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._rung = False
        self._sleeper: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def ring(self) -> None:
        self._rung = True
        if self._sleeper is not None and not self._sleeper.done():
            self._sleeper.set_result(None)

    async def wait(self) -> None:
        if self._rung:
            # Other tasks run between two turns of the owner.
            with suppress(asyncio.CancelledError):  # C11: the owner ends when its manager closes, not before
                await asyncio.sleep(0)
        while not self._rung:
            self._sleeper = self._loop.create_future()
            try:
                await self._sleeper
            except asyncio.CancelledError:
                continue
        self._rung = False

    @asynccontextmanager
    async def watching(self, fd: int, on_readable: Callable[[], None]) -> AsyncIterator[None]:
        self._loop.add_reader(fd, on_readable)
        try:
            yield
        finally:
            self._loop.remove_reader(fd)
            if self._timer is not None:
                self._timer.cancel()

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        self._timer = self._loop.call_later(seconds, callback)

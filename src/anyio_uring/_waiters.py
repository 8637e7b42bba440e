"""The per-operation event and the owner's doorbell: the ONE module that knows asyncio from trio.

Why not ``anyio.Event``: making one costs 2.5-3 us and waking it 18 us on asyncio and 49 us on
trio, where a bare future or ``wait_task_rescheduled`` costs 1-2 us; and its wait cannot go on
after a native asyncio cancellation, which contract C7 asks for.

Both loops give the same two classes.  They know nothing of operations, results or drivers.

asyncio, in prose.  ``task.cancel()`` cancels the future that the task awaits, so a wait that must
survive takes a new future and goes on.  anyio's own cancellation is *level-triggered*: it calls
``task.cancel()`` again in every pass of the loop, so a wait that survives enters a shielded scope.
A native cancellation (``asyncio.timeout``, ``TaskGroup``, a bare ``task.cancel()``) is
*edge-triggered*: where its ``CancelledError`` was swallowed because a result was kept, it has to
be asked again.  That is done at the start of the next pass, and only if ``task.cancelling()`` has not
fallen meanwhile: a block such as ``asyncio.timeout`` that has been left
meanwhile has withdrawn its request, and before Python 3.13 ``uncancel()`` does not take a pending
one back.

Submission behind cancellation.  A task whose scope is already cancelled learns of it on asyncio by
a callback of the *next* pass, and that callback may stand behind the owner's wake-up.  So what is
staged is handed to the owner by a callback (:meth:`Loop.call_behind_cancellations`), and submitted one
pass later: by then every cancellation that was on its way has arrived, at no cost for the single
operation (asking anyio in each operation costs 1.5-2.7 us).  trio delivers at once.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from types import FunctionType
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import anyio

if TYPE_CHECKING:
    from trio.lowlevel import Abort, RaiseCancelT, Task


class Cancellation(Protocol):
    """A cancellation that arrived during a wait which had to go on."""

    def deliver(self) -> NoReturn:
        """Raise it now, once."""
        ...

    def keep(self) -> None:
        """Let it strike at the next checkpoint instead: a result was kept."""
        ...


class Event(Protocol):
    """One wait of one task."""

    @property
    def abandoned(self) -> bool:
        """Whether the waiter has been cancelled and is about to find out."""
        ...

    def set(self) -> None:
        """End the wait; once."""
        ...

    async def wait(self, abort: Callable[[], bool]) -> Cancellation | None:
        """
        Wait until :meth:`set`.

        :param abort: called once if a cancellation arrives. True: the thing waited for has been
            undone, so the cancellation is raised. False: it cannot be, so the wait goes on.
        :return: the cancellation that arrived during a wait that went on
        """
        ...


class Doorbell(Protocol):
    """What the ring-owning task sleeps on; no cancellation ends the sleep (C11)."""

    def ring(self) -> None:
        """Wake the owner, or let its next :meth:`wait` return at once."""
        ...

    async def wait(self) -> None:
        """Sleep until rung."""
        ...

    def watching(self, fd: int) -> Any:
        """Return an async context manager in which a readable ``fd`` rings."""
        ...


class Loop(Protocol):
    """The primitives of one running event loop."""

    def event(self) -> Event:
        """Return a new event."""
        ...

    def doorbell(self) -> Doorbell:
        """Return a new doorbell."""
        ...

    def call_behind_cancellations(self, callback: Callable[[], None]) -> None:
        """Call back such that who is woken there runs behind every cancellation that is on its way now."""
        ...

    def protect(self, *functions: FunctionType) -> None:
        """Keep ``KeyboardInterrupt`` from striking inside these functions, and what they call."""
        ...


def current_loop() -> Loop:
    """
    Return the primitives of the event loop that runs here.

    :raises RuntimeError: if none runs
    """
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_task():
        return _TrioLoop(trio.lowlevel)
    try:
        return _AsyncioLoop(asyncio.get_running_loop())
    except RuntimeError:
        raise RuntimeError("no event loop runs here: anyio_uring works inside asyncio or trio") from None


# --- trio ---------------------------------------------------------------------------------------


class _TrioLoop:
    __slots__ = ("lowlevel",)

    def __init__(self, lowlevel: Any) -> None:
        self.lowlevel = lowlevel

    def event(self) -> Event:
        return _TrioEvent(self.lowlevel)

    def doorbell(self) -> Doorbell:
        return _TrioDoorbell(self.lowlevel)

    def call_behind_cancellations(self, callback: Callable[[], None]) -> None:
        callback()

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


class _TrioEvent:
    __slots__ = ("_lowlevel", "_task")

    abandoned = False  # trio calls abort() in the very pass, ahead of the next submission

    def __init__(self, lowlevel: Any) -> None:
        self._lowlevel = lowlevel
        self._task: Task | None = None

    def set(self) -> None:
        assert self._task is not None, "an event is set only while its waiter waits"
        self._lowlevel.reschedule(self._task)

    async def wait(self, abort: Callable[[], bool]) -> Cancellation | None:
        lowlevel = self._lowlevel
        cancellation: Cancellation | None = None

        def on_cancel(raise_cancel: RaiseCancelT) -> Abort:
            nonlocal cancellation
            if abort():
                return lowlevel.Abort.SUCCEEDED  # type: ignore[no-any-return]
            cancellation = _TrioCancellation(raise_cancel)
            return lowlevel.Abort.FAILED  # type: ignore[no-any-return]

        self._task = lowlevel.current_task()
        await lowlevel.wait_task_rescheduled(on_cancel)
        return cancellation


class _TrioDoorbell:
    __slots__ = ("_lowlevel", "_rung", "_sleeper")

    def __init__(self, lowlevel: Any) -> None:
        self._lowlevel = lowlevel
        self._rung = False
        self._sleeper: Task | None = None

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
    async def watching(self, fd: int) -> AsyncIterator[None]:
        async def watch() -> None:
            while True:
                await self._lowlevel.wait_readable(fd)
                self.ring()
                # The owner drains in the pass that starts now; poll again behind it.
                await self._lowlevel.checkpoint()

        async with anyio.create_task_group() as watcher:
            watcher.start_soon(watch)
            try:
                yield
            finally:
                watcher.cancel_scope.cancel()


# --- asyncio ------------------------------------------------------------------------------------

# The messages of anyio's own cancellations (4.x); test_waiters.py proves that they are recognised.
_ANYIO_MESSAGES = ("Cancelled via cancel scope ", "Cancelled by cancel scope ")


def _is_native(cancelled: asyncio.CancelledError) -> bool:
    message = cancelled.args[0] if cancelled.args else None
    return not (isinstance(message, str) and message.startswith(_ANYIO_MESSAGES))


class _AsyncioLoop:
    __slots__ = ("native",)

    def __init__(self, native: asyncio.AbstractEventLoop) -> None:
        self.native = native

    def call_behind_cancellations(self, callback: Callable[[], None]) -> None:
        self.native.call_soon(callback)

    def protect(self, *functions: FunctionType) -> None:
        """Do nothing: since Python 3.11 asyncio turns the signal into a cancellation of the main task."""

    def event(self) -> Event:
        return _AsyncioEvent(self.native)

    def doorbell(self) -> Doorbell:
        return _AsyncioDoorbell(self.native)


class _AsyncioCancellation:
    __slots__ = ("_cancelled", "_loop", "_requests")

    def __init__(self, loop: asyncio.AbstractEventLoop, cancelled: asyncio.CancelledError) -> None:
        self._loop = loop
        self._cancelled = cancelled
        self._requests = _count_requests(asyncio.current_task())

    def also(self, cancelled: asyncio.CancelledError) -> None:
        """Take note of a further one: a native one matters more, anyio repeats its own by itself."""
        if _is_native(cancelled):
            self._cancelled = cancelled
            self._requests = _count_requests(asyncio.current_task())

    def deliver(self) -> NoReturn:
        cancelled = self._cancelled
        try:
            raise cancelled
        finally:
            # The traceback knows this frame and this object: without this, a cycle that keeps buffers pinned.
            del cancelled, self._cancelled

    def keep(self) -> None:
        if _is_native(self._cancelled):
            task = asyncio.current_task()
            assert task is not None
            self._loop.call_soon(_cancel_again, task, self._requests, self._cancelled.args)


def _count_requests(task: asyncio.Task[Any] | None) -> int:
    """Return how many cancellations of a task have been asked for and not withdrawn (0 before Python 3.11)."""
    return task.cancelling() if task is not None and sys.version_info >= (3, 11) else 0


def _cancel_again(task: asyncio.Task[Any], requests: int, message: tuple[Any, ...]) -> None:
    if _count_requests(task) < requests:
        return  # withdrawn meanwhile
    if sys.version_info >= (3, 11):
        task.uncancel()
    task.cancel(*message)


class _AsyncioEvent:
    __slots__ = ("_future", "_is_set", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._future: asyncio.Future[None] = loop.create_future()
        self._is_set = False

    @property
    def abandoned(self) -> bool:
        return self._future.cancelled()

    def set(self) -> None:
        self._is_set = True
        if not self._future.done():
            self._future.set_result(None)

    async def wait(self, abort: Callable[[], bool]) -> Cancellation | None:
        try:
            await self._future
        except asyncio.CancelledError as exc:
            if abort():
                raise
            cancellation = _AsyncioCancellation(self._loop, exc)
        else:
            return None
        if not self._is_set:
            with anyio.CancelScope(shield=True):
                await self._outlast(cancellation)
        return cancellation

    async def _outlast(self, cancellation: _AsyncioCancellation) -> None:
        while not self._is_set:
            self._future = self._loop.create_future()
            try:
                await self._future
            except asyncio.CancelledError as exc:
                cancellation.also(exc)


class _AsyncioDoorbell:
    __slots__ = ("_loop", "_rung", "_sleeper")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._rung = False
        self._sleeper: asyncio.Future[None] | None = None

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
    async def watching(self, fd: int) -> AsyncIterator[None]:
        self._loop.add_reader(fd, self.ring)
        try:
            yield
        finally:
            self._loop.remove_reader(fd)

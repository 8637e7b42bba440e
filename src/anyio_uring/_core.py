"""``open_uring()``, ``current()``, and the choice of the manager's driver.

It knows options and life cycles; of what a manager does with files it knows nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, overload

import anyio
from anyio.lowlevel import RunVar

from . import _logs
from ._completion_task import CompletionTask
from ._driver import Driver
from ._errors import UringUnavailableError
from ._fallback import ThreadDriver
from ._instruments import Instrument, Instruments
from ._latency import LatencyInstrument
from ._manager import AsyncIoManager
from ._options import CheckpointPolicy, DriverChoice, UringOptions
from ._ownerless import OwnerlessExecutor
from ._ring import open_ring
from ._thread_calls import ThreadCalls
from ._traced_driver import TracedDriver
from ._waiters import current_loop

_current: ContextVar[AsyncIoManager | None] = ContextVar("anyio_uring.current", default=None)
# Of each event loop: what those share who have no manager.
_shared: RunVar[AsyncIoManager] = RunVar("anyio_uring.ownerless")


def current() -> AsyncIoManager:
    """
    Return the innermost open manager of this task.

    A library deep below an application finds the application's manager with this.  Child tasks
    inherit it, as they do every context variable.

    :raises LookupError: if there is none
    """
    manager = _innermost()
    if manager is None:
        raise LookupError("no manager is open in this task: enter 'async with open_uring() as io:' first")
    return manager


def manager_for(io: AsyncIoManager | None, limiter: anyio.CapacityLimiter | None = None) -> AsyncIoManager:
    """
    Return the manager that a free function works with.

    :param io: the one that its caller named; ``None``: the innermost open one, and where none is open, one that
        needs no ``open_uring()`` block, has no ring, and runs each operation in ``anyio.to_thread.run_sync()``
    :param limiter: of the threads of that last one; ``None``: anyio's own
    :raises ClosedResourceError: if the named one is closed
    :raises RuntimeError: if it belongs to another thread, or to the parent of this process
    """
    if io is not None:
        if not isinstance(io, AsyncIoManager):
            raise TypeError(f"io must be an AsyncIoManager or None, not {type(io).__name__}")
        io._task.check()
        return io
    if limiter is not None and not isinstance(limiter, anyio.CapacityLimiter):
        raise TypeError(f"limiter must be a CapacityLimiter or None, not {type(limiter).__name__}")
    manager = _innermost()
    if manager is not None:
        return manager
    if limiter is not None:
        return _ownerless(limiter)
    try:
        return _shared.get()
    except LookupError:
        manager = _ownerless(None)
        _shared.set(manager)
        return manager


def _innermost() -> AsyncIoManager | None:
    manager = _current.get()
    while manager is not None and manager._closed:
        manager = manager._outer
    return manager


def _ownerless(limiter: anyio.CapacityLimiter | None) -> AsyncIoManager:
    loop = current_loop()
    executor = OwnerlessExecutor(loop, limiter)
    options = UringOptions(driver="threads")
    return AsyncIoManager(executor, executor, loop, options=options, fallback_reason=None, outer=None)


@overload
def open_uring(
    *,
    depth: int = 256,
    driver: DriverChoice = "auto",
    checkpoint: CheckpointPolicy = "always",
    nowait: bool | None = None,
    sqpoll: bool = False,
    sqpoll_idle_ms: int = 1000,
    sqpoll_cpu: int | None = None,
    iopoll: bool = False,
    restrict: bool = False,
    fixed_buffers: int = 0,
    fixed_buffer_size: int | str = 65536,
    fixed_files: int = 0,
    latency: bool = False,
    instruments: Iterable[Instrument] = (),
) -> AbstractAsyncContextManager[AsyncIoManager, None]: ...
@overload
def open_uring(
    *, options: UringOptions, instruments: Iterable[Instrument] = ()
) -> AbstractAsyncContextManager[AsyncIoManager, None]: ...
def open_uring(
    *, options: UringOptions | None = None, instruments: Iterable[Instrument] = (), **keywords: Any
) -> AbstractAsyncContextManager[AsyncIoManager, None]:
    """
    Open one io_uring for this event loop; on leaving, drain it and close it.

    A task that owns the ring runs in a task group for as long as the block does.  At the end, also
    after an exception or a cancellation, operations that are still in flight (of other tasks) are
    cancelled and waited for: when the block has been left, the kernel writes to no buffer any more.

    :param depth: how many operations may be in flight, 1 to 32768; further callers wait in FIFO order
    :param driver: ``"uring"``, ``"threads"``, or ``"auto"``: the ring if a first read through it
        works, otherwise threads, with the cause in :attr:`AsyncIoManager.fallback_reason`.
        The environment variable ``ANYIO_URING_DRIVER`` overrides ``"auto"``.
        Or, for tests, a simulated kernel: :class:`anyio_uring.testing.FakeRing`
    :param checkpoint: ``"always"``: every call lets other tasks run.  ``"budget"``: reads that the page
        cache answers at once do so only after 64 of them or 500 us, whichever comes first, all tasks of
        the manager together; cancellation is still checked on every call
    :param nowait: try :meth:`~AsyncIoManager.read` and :meth:`~AsyncIoManager.readinto` of up to 64 KiB at
        an explicit offset with ``RWF_NOWAIT`` first (``preadv2(2)``, Linux 4.14): what the page cache has
        needs no operation.  Descriptors that keep missing, and ``O_DIRECT``, are left to the driver.
        Left out it means yes, except on a ring with ``sqpoll`` or ``iopoll``.
    :param sqpoll: let a thread of the kernel take operations from the ring (``IORING_SETUP_SQPOLL``, Linux
        5.11 without privileges): submitting needs no kernel entry while that thread is awake, at the
        price of a processor that is busy as long as it is.  Threads have no such entries to save: with
        them it is accepted and means nothing; :attr:`UringFeatures.setup_flags` tells
    :param sqpoll_idle_ms: milliseconds without an operation after which that thread sleeps; the next
        operation then costs the one kernel entry that wakes it
    :param sqpoll_cpu: the CPU that it is bound to (``IORING_SETUP_SQ_AFF``); ``None``: any
    :param iopoll: wait for devices by asking them, without interrupts (``IORING_SETUP_IOPOLL``): for
        ``O_DIRECT`` descriptors on devices with poll queues.  The event loop never sleeps while something
        is in flight.  Descriptors without ``O_DIRECT``, and syncs, are a :class:`ValueError`, on threads too
    :param restrict: have the kernel refuse, on this ring, every opcode, flag and registration that this
        library does not use (``IORING_REGISTER_RESTRICTIONS``, Linux 5.10).  Threads have no ring, so
        there it means nothing
    :param fixed_buffers: how many buffers :attr:`AsyncIoManager.buffers` has, a pool for the manager's life
        that is registered with the kernel; 0: there is none
    :param fixed_buffer_size: bytes in each, or a text such as ``"64KiB"``
    :param fixed_files: how many files can be registered at once (:meth:`AsyncIoManager.register_files`), up to
        1048576 and ``RLIMIT_NOFILE``; 0: 1024, the table being made when it is first needed
    :param latency: measure how long operations take, for :attr:`IoStatistics.latency`; it costs each of them 5 us
    :param options: all of these as one object, instead of keywords and never beside them: which would win
        is a question nobody has to ask.  ``attrs.evolve(options, depth=64)`` makes other ones of it.
    :param instruments: who is told of every operation; see :class:`Instrument`.  Logging is another way to
        see them: the loggers below ``anyio_uring`` are asked for their level here, once, after the
        environment variable ``ANYIO_URING_LOG`` (``debug``, ``trace`` ...) has had its say.
    :return: an async context manager, to be entered once
    :raises UringUnavailableError: on entering, if ``driver="uring"`` and there is no ring to be had
        that can do what ``sqpoll``, ``iopoll`` and ``restrict`` ask for
    :raises ValueError: if an option is out of range
    :raises TypeError: if an option is of a wrong type or unknown, if there are ``options`` and keywords, or if
        an instrument lacks a method
    """
    if options is None:
        options = UringOptions(**keywords)
    elif keywords:
        raise TypeError(
            f"open_uring() takes options or keywords, not both ({', '.join(keywords)}): use attrs.evolve(options, ...)"
        )
    elif not isinstance(options, UringOptions):
        raise TypeError(f"options must be UringOptions, not {type(options).__name__}")
    _logs.configure()
    return _Opening(options._with_driver_variable(), [*instruments, *_logs.loggers()])


class _Opening:
    """What ``open_uring()`` returns. A class, for a generator's frames would be open to KeyboardInterrupt."""

    __slots__ = ("_instruments", "_latency", "_manager", "_options", "_owner", "_tasks", "_thread_calls")

    def __init__(self, options: UringOptions, instruments: list[Instrument]) -> None:
        self._options = options
        self._latency = LatencyInstrument() if options.latency else None
        self._instruments = Instruments(instruments if self._latency is None else [self._latency, *instruments])
        self._manager: AsyncIoManager | None = None
        self._owner: CompletionTask
        self._thread_calls: ThreadCalls

    async def __aenter__(self) -> AsyncIoManager:
        if self._manager is not None:
            raise RuntimeError("what open_uring() returns can be entered once: call it again for another manager")
        await anyio.lowlevel.checkpoint()
        loop = current_loop()
        loop.protect(_Opening.__aenter__, _Opening.__aexit__)  # type: ignore[arg-type]
        driver, reason = _choose_driver(self._options)
        driver = self._traced(driver)
        task = CompletionTask(driver, loop)
        thread_calls = ThreadCalls(task, loop, lambda: self._traced(_threads(self._options)))
        manager = AsyncIoManager(
            task,
            driver,
            loop,
            options=self._options,
            thread_calls=thread_calls,
            fallback_reason=reason,
            outer=_current.get(),
            latency=self._latency,
        )
        try:
            for problem in manager._open_resources(self._options):
                warnings.warn(problem, RuntimeWarning, stacklevel=2)
        except BaseException:
            driver.close()
            raise
        self._manager, self._owner, self._thread_calls = manager, task, thread_calls
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        # The owner never raises, and an error of the body passes this task group by, so that it
        # arrives as it was raised and not in an exception group.
        self._tasks.start_soon(task.run, name="anyio_uring owner")
        thread_calls.open(self._start)
        _current.set(self._manager)
        self._instruments.tell(Instrument.manager_opened, self._manager)
        return self._manager

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        manager = self._manager
        assert manager is not None
        manager._closed = True
        if manager.buffers is not None:
            manager.buffers._close()
        if _current.get() is manager:
            _current.set(manager._outer)
        # Otherwise a cancelled outer scope would cancel the wait for the owner's last step, and that
        # cancellation would take the place of the body's exception.
        self._tasks.cancel_scope.shield = True
        try:
            try:
                await self._owner.aclose()
            finally:
                await self._thread_calls.aclose()
        finally:
            try:
                await self._tasks.__aexit__(None, None, None)
            finally:
                self._instruments.tell(Instrument.manager_closed, manager)
                if exc is not None and not isinstance(self._options.driver, str):
                    self._options.driver.note(exc)

    def _start(self, task: CompletionTask) -> None:
        self._tasks.start_soon(task.run, name="anyio_uring owner of threads")

    def _traced(self, driver: Driver) -> Driver:
        return TracedDriver(driver, self._instruments) if self._instruments.listens_to_operations() else driver


def _choose_driver(options: UringOptions) -> tuple[Driver, str | None]:
    if not isinstance(options.driver, str):
        driver: Driver = options.driver.open_driver(options)
        return driver, None
    if options.driver == "threads":
        return _threads(options), None
    try:
        return open_ring(options.depth, options), None
    except UringUnavailableError as exc:
        if options.driver == "uring":
            raise
        return _threads(options), exc.strerror


def _threads(options: UringOptions) -> ThreadDriver:
    return ThreadDriver(options.depth, nowait=options.asks_page_cache("threads"), iopoll=options.iopoll)

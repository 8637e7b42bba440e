"""``open_uring()``, the manager, and the choice of its driver.

Callers' values are checked here, before anything reaches a driver, and results become bytes,
counts and errors here.  It knows values; it never sees ids, rows or pointers.
"""

from __future__ import annotations

import errno
import itertools
import os
import warnings
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from functools import partial
from threading import get_ident
from typing import Any, Final, Literal, overload

import anyio
import attrs

from . import _arguments, _buffers, _direct, _flags, _logs
from ._arguments import FD_MAX, OFFSET_MAX, FileDescriptor
from ._buffers import SupportsBuffer
from ._chain import Chain
from ._completion_task import CompletionTask
from ._direct import SAFE_ALIGNMENT, DirectAlignment
from ._driver import Driver
from ._errors import MisalignedError, UringUnavailableError
from ._fallback import ThreadDriver, transfer_now
from ._fixed_buffers import BufferPool, FixedBuffer
from ._fixed_files import FileTable, RegisteredFile, Registration
from ._flags import NOWAIT
from ._inline import INLINE_BYTES_MAX, Budget, InlineReads
from ._instruments import Instrument, Instruments
from ._latency import LatencyInstrument
from ._options import CheckpointPolicy, DriverChoice, DriverName, UringOptions
from ._requests import (
    TRANSFER_MAX,
    WRITES,
    Batch,
    HasFileno,
    Memories,
    Opcode,
    Request,
    Requests,
    check_polled,
    is_direct,
)
from ._ring import open_ring
from ._stats import IoStatistics, UringFeatures
from ._traced_driver import TracedDriver
from ._waiters import Loop, current_loop

# More than a process has open; beyond it one refused read more for each.
_DIRECT_FDS_MAX: Final = 4096

_current: ContextVar[AsyncIoManager | None] = ContextVar("anyio_uring.current", default=None)


def current() -> AsyncIoManager:
    """
    Return the innermost open manager of this task.

    A library deep below an application finds the application's manager with this.  Child tasks
    inherit it, as they do every context variable.

    :raises LookupError: if there is none
    """
    manager = _current.get()
    while manager is not None and manager._closed:
        manager = manager._outer
    if manager is None:
        raise LookupError("no manager is open in this task: enter 'async with open_uring() as io:' first")
    return manager


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

    __slots__ = ("_instruments", "_latency", "_manager", "_options", "_tasks")

    def __init__(self, options: UringOptions, instruments: list[Instrument]) -> None:
        self._options = options
        self._latency = LatencyInstrument() if options.latency else None
        self._instruments = Instruments(instruments if self._latency is None else [self._latency, *instruments])
        self._manager: AsyncIoManager | None = None

    async def __aenter__(self) -> AsyncIoManager:
        if self._manager is not None:
            raise RuntimeError("what open_uring() returns can be entered once: call it again for another manager")
        await anyio.lowlevel.checkpoint()
        loop = current_loop()
        loop.protect(_Opening.__aenter__, _Opening.__aexit__)  # type: ignore[arg-type]
        driver, reason = _choose_driver(self._options)
        if self._instruments.listens_to_operations():
            driver = TracedDriver(driver, self._instruments)
        task = CompletionTask(driver, loop)
        manager = AsyncIoManager(
            task,
            driver,
            loop,
            options=self._options,
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
        self._manager = manager
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        # The owner never raises, and an error of the body passes this task group by, so that it
        # arrives as it was raised and not in an exception group.
        self._tasks.start_soon(task.run, name="anyio_uring owner")
        _current.set(self._manager)
        self._instruments.tell(Instrument.manager_opened, self._manager)
        return self._manager

    async def __aexit__(self, *exc_info: object) -> None:
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
            await manager._task.aclose()
        finally:
            await self._tasks.__aexit__(None, None, None)
            self._instruments.tell(Instrument.manager_closed, manager)


def _choose_driver(options: UringOptions) -> tuple[Driver, str | None]:
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


class AsyncIoManager:
    """
    Positional file I/O on one event loop; :func:`open_uring` makes one.

    **Descriptors.** ``fd`` is an int or anything with a ``fileno()``.  An int is the caller's to keep
    open until the call returns; an object is kept alive meanwhile, and must not be closed.

    **Offsets.** Bytes from the start of the file; -1 means "at the file position", which the kernel
    then advances.  Pipes, sockets and terminals have no positions and ignore the offset.

    **Cancellation.** Every method is a checkpoint.  If it raises the cancellation, the operation did
    not happen (methods made of several operations say so).  If the operation could not be stopped
    any more, the method returns its result, and the cancellation strikes at the next checkpoint.
    A buffer is never touched after the method has returned or raised.

    **Flags.** ``flags`` are :class:`RwFlags`: how this one read or write is to be carried out.  What the kernel
    does not support for the file is an :class:`UnsupportedFlagError`; ``RWF_NOWAIT`` answers with
    :class:`BlockingIOError` where it would wait.

    **Direct I/O.** Of a descriptor with ``O_DIRECT``, offsets, lengths and the memory of buffers must be aligned
    (:meth:`direct_alignment`, :func:`aligned_buffer`); what is not is a :class:`MisalignedError`, which is a
    :class:`ValueError`.  Methods that return bytes align their memory, and :meth:`read_exactly` the range, too.

    **Errors.** :class:`OSError` with the kernel's errno; :class:`ValueError` and :class:`TypeError` for
    what cannot be asked; :class:`anyio.ClosedResourceError` after the end of the block;
    :class:`RuntimeError` in another thread or a forked child.
    """

    __slots__ = (
        "__weakref__",
        "_budget",
        "_buffers",
        "_checkpoint",
        "_closed",
        "_direct_fds",
        "_driver",
        "_fallback_reason",
        "_files",
        "_inline",
        "_is_forked",
        "_is_polled",
        "_latency",
        "_loop",
        "_memory_type",
        "_outer",
        "_read_now",
        "_task",
    )

    def __init__(
        self,
        task: CompletionTask,
        driver: Driver,
        loop: Loop,
        *,
        options: UringOptions,
        fallback_reason: str | None,
        outer: AsyncIoManager | None,
        latency: LatencyInstrument | None = None,
    ) -> None:
        self._loop = loop
        self._checkpoint = loop.checkpoint
        self._memory_type = driver.memory_type
        self._read_now = driver.read_now
        self._is_forked = driver.is_forked
        self._is_polled = options.iopoll
        self._inline = InlineReads() if options.asks_page_cache(driver.name) else None
        self._budget = Budget() if options.checkpoint == "budget" else None
        self._task = task
        self._driver = driver
        self._fallback_reason = fallback_reason
        self._outer = outer
        self._latency = latency
        self._closed = False
        # Descriptors whose reads have been refused for the sake of their memory: the next ones get aligned memory.
        self._direct_fds: set[int] = set()
        self._buffers: BufferPool | None = None
        self._files = FileTable(
            driver,
            loop,
            options.fixed_files,
            resolve=_arguments.descriptor,
            has_crashed=lambda: task.has_crashed,
        )

    def _open_resources(self, options: UringOptions) -> list[str]:
        """Open what lives as long as the manager; return what to warn of."""
        problems: list[str | None] = []
        if options.fixed_buffers:
            self._buffers = self.buffer_pool(options.fixed_buffers, options.fixed_buffer_size)
            problems.append(self._buffers._open())
        if options.fixed_files:
            problems.append(self._files.open())
        return [problem for problem in problems if problem is not None]

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<AsyncIoManager driver={self.driver!r} depth={self.features.depth} {state}>"

    @property
    def driver(self) -> DriverName:
        """Which driver does the work: ``"uring"`` or ``"threads"``."""
        return self._driver.name

    @property
    def fallback_reason(self) -> str | None:
        """Why ``driver="auto"`` took threads, in one sentence with the remedy; ``None`` if it did not."""
        return self._fallback_reason

    @property
    def features(self) -> UringFeatures:
        """What the kernel gives: version, setup flags in force, opcodes."""
        return self._driver.features

    def direct_alignment(self, fd: FileDescriptor) -> DirectAlignment:
        """
        Ask what a file's direct I/O must be aligned to (``statx(2)``, ``STATX_DIOALIGN``, Linux 6.1).

        It is not a coroutine: no device is read and no server asked.  The descriptor need not have ``O_DIRECT``.

        :raises OSError: if the descriptor is bad
        """
        number, _ = _arguments.descriptor(fd)
        return _direct.dio_alignment(number)

    @property
    def buffers(self) -> BufferPool | None:
        """The pool of ``open_uring(fixed_buffers=...)``; ``None`` if none was asked for."""
        return self._buffers

    def statistics(self) -> IoStatistics:
        """Return a snapshot of the counters; other threads may ask, too, and then see them a few operations apart."""
        inline = self._inline or InlineReads()
        statistics = self._task.statistics()
        return attrs.evolve(
            statistics,
            inline_reads=inline.hits,
            inline_misses=inline.misses,
            bytes_read=statistics.bytes_read + inline.bytes,
            short_reads=statistics.short_reads + inline.shorts,
            fallback_operations=statistics.completions if self._fallback_reason is not None else 0,
            latency=None if self._latency is None else self._latency.histogram.quantiles(),
        )

    # --- one buffer -----------------------------------------------------------------------------

    async def read(self, fd: FileDescriptor, length: int, offset: int, *, flags: int = 0) -> bytes:
        """
        Read up to ``length`` bytes: one kernel operation, like :func:`os.pread`.

        :param flags: :class:`RwFlags`, or ``os.RWF_*``
        :return: the bytes; fewer at the end of the file, or where the kernel gives fewer
        :raises OSError: as :func:`os.pread` would

        More than 0x7ffff000 bytes (2 GiB - 4 KiB, ``read(2)``) take several operations; a
        cancellation between them is raised.
        """
        file, given = None, fd
        # What _arguments.read() would find, 0.6 us sooner.
        if (
            flags
            or not (type(fd) is int and type(length) is int and type(offset) is int)
            or not (0 <= fd <= FD_MAX and 0 <= length <= TRANSFER_MAX and 0 <= offset <= OFFSET_MAX)
        ):
            fd, file, length, offset = _arguments.read(fd, length, offset)
            if flags or length > TRANSFER_MAX or (offset < 0 and is_direct(fd)):
                self._task.check()
                return await self._read_to_new_memory(self._new_read(fd, file, length, offset, flags))
        inline = self._inline
        memory: bytes | bytearray | memoryview | None
        passed = False
        if (
            inline is not None
            and 1 < length <= INLINE_BYTES_MAX
            and offset >= 0
            and fd >= 0
            and (fd not in inline.pauses or inline.is_likely(fd))
        ):
            # The page cache may have it.  Flat, for every call would be a tenth of the whole.
            if self._budget is None or self._must_yield():
                await self._checkpoint()  # C1
                # A registered file may have been updated or closed meanwhile.
                fd, file = (fd, None) if file is None else _arguments.descriptor(given)
            task = self._task
            if not task.is_usable or task.thread != get_ident() or self._is_forked():
                task.check()
            memory = self._memory_type(length)
            count = self._read_now(fd, memory, length, offset)
            if count >= 0:
                inline.note_hit(fd, count)
                if count == length and type(memory) is bytes:
                    return memory
                inline.shorts += count < length
                return _arguments.to_bytes(memory, count)
            inline.note_miss(fd)
            passed = True
        else:
            memory = None
        if memory is None or fd in self._direct_fds:
            memory = self._allocate(length, fd)
        request = Request(Opcode.READ, fd, memory, offset, 0, file)
        (count,) = await self._task.perform((request,), has_passed=passed)
        if count < 0:
            return await self._read_again(request, self._error(count, request))
        return memory if count == length and type(memory) is bytes else _arguments.to_bytes(memory, count)

    async def readinto(self, fd: FileDescriptor, buffer: SupportsBuffer, offset: int, *, flags: int = 0) -> int:
        """
        Read into a caller's buffer, without a copy: one kernel operation, like :func:`os.preadv`.

        :param buffer: anything with a writable, contiguous buffer; it cannot be resized meanwhile
        :param flags: :class:`RwFlags`, or ``os.RWF_*``
        :return: bytes read; 0 at the end of the file
        :raises OSError: as :func:`os.preadv` would
        """
        task, inline = self._task, self._inline
        task.check()
        request = _arguments.readinto_request(fd, buffer, offset, flags)
        try:
            length = len(request.memory)
            if length > TRANSFER_MAX or request.op_flags or (request.offset < 0 and is_direct(request.fd)):
                return await self._transfer(request)
            passed = False
            may_inline = request.offset >= 0 and 1 < length <= INLINE_BYTES_MAX
            if inline is not None and may_inline and inline.is_likely(request.fd):
                if self._budget is None or self._must_yield():
                    await self._checkpoint()  # C1
                    task.check()
                    if request.file is not None:  # a registered file may have been updated or closed meanwhile
                        request.fd, request.file = _arguments.descriptor(fd)
                count = self._read_now(request.fd, self._driver.expose(request.memory), length, request.offset)
                if count >= 0:
                    inline.note_hit(request.fd, count)
                    inline.shorts += count < length
                    return count
                inline.note_miss(request.fd)
                passed = True
            (count,) = await task.perform((request,), has_passed=passed)
            if count < 0:
                raise self._error(count, request)
            return count
        finally:
            request.release()

    async def read_exactly(self, fd: FileDescriptor, length: int, offset: int, *, flags: int = 0) -> bytes:
        """
        Read ``length`` bytes, with as many operations as it takes.

        Of a file opened with ``O_DIRECT`` any range may be asked at an explicit offset: the whole blocks around it
        are read, and what was not asked is cut off.

        :param flags: :class:`RwFlags`, or ``os.RWF_*``
        :raises anyio.IncompleteRead: if the file ends first
        :raises OSError: as :func:`os.pread` would; with ``RWF_NOWAIT`` :class:`BlockingIOError` if a part is not there

        A cancellation between two operations is raised; at offset -1 the file position has moved then.
        """
        if self._direct_fds and not self._is_aligned(fd, length, offset):
            return await self._read_widened(fd, length, offset, flags)
        _, before = _arguments.descriptor(fd)
        try:
            first = await self.read(fd, length, offset, flags=flags)
            done = len(first)
            if done == length:
                return first
            number, file, length, offset = _arguments.read(fd, length, offset)
            if file is not before:
                raise anyio.ClosedResourceError("this registered file was updated while a part of it had been read")
            memory = bytearray(length)
            memory[:done] = first
            request = Request(Opcode.READ, number, memory, offset, _flags.check(flags), file)
            while done < length:
                count = await self._transfer(request.rest(done)) if done else 0
                if not count:
                    raise anyio.IncompleteRead
                done += count
            return bytes(memory)
        except MisalignedError:
            if offset < 0:
                raise
        return await self._read_widened(fd, length, offset, flags)

    async def write(self, fd: FileDescriptor, data: SupportsBuffer, offset: int, *, flags: int = 0) -> int:
        """
        Write once: one kernel operation, like :func:`os.pwrite`.

        :param data: anything with a contiguous buffer; not to be changed until the method returns
        :param flags: :class:`RwFlags`, or ``os.RWF_*``
        :return: bytes written, possibly fewer than given
        :raises OSError: as :func:`os.pwrite` would

        If it raises the cancellation, nothing was written.
        """
        self._task.check()
        return await self._transfer_and_release(_arguments.write_request(fd, data, offset, flags))

    async def write_all(self, fd: FileDescriptor, data: SupportsBuffer, offset: int, *, flags: int = 0) -> None:
        """
        Write everything, with as many operations as it takes.

        :param flags: :class:`RwFlags`, or ``os.RWF_*``.  With ``RWF_APPEND`` other writers' bytes can come between
            the parts; with ``RWF_NOWAIT`` the ``characters_written`` of a :class:`BlockingIOError` are in the file.
        :raises OSError: as :func:`os.pwrite` would; a prefix may be in the file

        A cancellation between two operations is raised; a prefix is in the file then.
        """
        self._task.check()
        await self._write_all(_arguments.write_request(fd, data, offset, flags))

    async def write_and_sync(
        self, fd: FileDescriptor, data: SupportsBuffer, offset: int, *, data_only: bool = True
    ) -> int:
        """
        Write everything, then make it durable.

        :param data_only: ``fdatasync(2)``: sync the data and what is needed to read it back, not times
        :return: bytes written, which is all of them; when it returns they are on stable storage
        :raises OSError: if a write fails (a prefix may be in the file) or the sync fails (nothing is
            known to be durable, and syncing again proves nothing: ``fsync(2)``)

        A cancellation between the operations is raised: bytes may be in the file, and not durable.
        """
        self._task.check()
        sync = _arguments.sync_request(fd, data_only=data_only)
        if self._is_polled:
            check_polled((sync,))  # before anything is written
        request = _arguments.write_request(fd, data, offset)
        at_position = request.offset < 0 and is_direct(request.fd)
        if request.is_long or self.features.depth == 1 or at_position:
            count = await self._write_all(request)
            await self._transfer(sync)
            return count
        return await self._write_linked_to(request, sync)

    # --- several buffers ------------------------------------------------------------------------

    async def readv(self, fd: FileDescriptor, buffers: Iterable[SupportsBuffer], offset: int, *, flags: int = 0) -> int:
        """
        Read one range of the file into several buffers, filled in order, like :func:`os.preadv`.

        :param flags: :class:`RwFlags`, or ``os.RWF_*``
        :return: bytes read in all
        :raises OSError: as :func:`os.preadv` would

        More than 1024 buffers or 0x7ffff000 bytes take several operations; a cancellation between
        them is raised.
        """
        self._task.check()
        return await self._transfer_and_release(_arguments.readv_request(fd, buffers, offset, flags))

    async def writev(
        self, fd: FileDescriptor, buffers: Iterable[SupportsBuffer], offset: int, *, flags: int = 0
    ) -> int:
        """
        Write several buffers to one range of the file, in order, like :func:`os.pwritev`.

        :param flags: :class:`RwFlags`, or ``os.RWF_*``
        :return: bytes written in all, possibly fewer than given
        :raises OSError: as :func:`os.pwritev` would

        More than 1024 buffers or 0x7ffff000 bytes take several operations; after a cancellation
        between them a prefix is in the file.
        """
        self._task.check()
        return await self._transfer_and_release(_arguments.writev_request(fd, buffers, offset, flags))

    # --- durability -----------------------------------------------------------------------------

    async def fsync(self, fd: FileDescriptor) -> None:
        """
        Make a file's data and metadata durable, like :func:`os.fsync`.

        :raises OSError: nothing is known to be durable then, and syncing again proves nothing (``fsync(2)``)
        """
        self._task.check()
        await self._transfer(_arguments.sync_request(fd, data_only=False))

    async def fdatasync(self, fd: FileDescriptor) -> None:
        """
        Make a file's data, and the metadata needed to read it back, durable, like :func:`os.fdatasync`.

        :raises OSError: nothing is known to be durable then, and syncing again proves nothing (``fsync(2)``)
        """
        self._task.check()
        await self._transfer(_arguments.sync_request(fd, data_only=True))

    # --- batches --------------------------------------------------------------------------------

    @overload
    async def read_batch(
        self,
        requests: Iterable[tuple[FileDescriptor, int, int]],
        *,
        return_exceptions: Literal[False] = False,
        flags: int = 0,
    ) -> list[bytes]: ...
    @overload
    async def read_batch(
        self, requests: Iterable[tuple[FileDescriptor, int, int]], *, return_exceptions: bool, flags: int = 0
    ) -> list[bytes | OSError]: ...
    async def read_batch(
        self, requests: Iterable[tuple[FileDescriptor, int, int]], *, return_exceptions: bool = False, flags: int = 0
    ) -> list[Any]:
        """
        Read many ranges: one await, one wake-up.

        :param requests: ``(fd, length, offset)`` each
        :param return_exceptions: return an :class:`OSError` in its request's place instead of raising
        :param flags: :class:`RwFlags`, or ``os.RWF_*``, of each
        :return: what each request gave, in request order; short as :meth:`read` may be
        :raises BatchError: after all have settled, if one failed; it carries every result

        If it raises the cancellation, at least one request did not happen; the others are done with.
        """
        self._task.check()
        items = list(requests)
        if plain := _arguments.columns(items):
            fds, lengths, offsets = plain
            is_plain = self._direct_fds.isdisjoint(fds) and not flags and {*map(type, lengths)} == {int}
            if is_plain and min(lengths) > 1 and max(lengths) <= TRANSFER_MAX:
                memories = self._driver.allocate_batch(lengths)
                reads = Batch(Opcode.READ, fds, memories, offsets)
                counts = await self._task.perform(reads)
                if counts == [*lengths]:
                    return memories.objects if self._memory_type is bytes else [*map(bytes, memories.objects)]
                results = await self._read_batch_again(reads, self._outcomes(reads, counts))
                return _arguments.settled("read_batch", results, return_exceptions=return_exceptions)
        make = partial(self._read_request, flags=flags)
        asked = _arguments.batch("read_batch", "(fd, length, offset)", items, make)
        results = await self._read_batch_again(asked, await self._batch(asked, are_ours=True))
        return _arguments.settled("read_batch", results, return_exceptions=return_exceptions)

    @overload
    async def readinto_batch(
        self,
        requests: Iterable[tuple[FileDescriptor, SupportsBuffer, int]],
        *,
        return_exceptions: Literal[False] = False,
        flags: int = 0,
    ) -> list[int]: ...
    @overload
    async def readinto_batch(
        self, requests: Iterable[tuple[FileDescriptor, SupportsBuffer, int]], *, return_exceptions: bool, flags: int = 0
    ) -> list[int | OSError]: ...
    async def readinto_batch(
        self,
        requests: Iterable[tuple[FileDescriptor, SupportsBuffer, int]],
        *,
        return_exceptions: bool = False,
        flags: int = 0,
    ) -> list[Any]:
        """
        Read many ranges into callers' buffers: one await, one wake-up.

        :param requests: ``(fd, buffer, offset)`` each; the buffers must not overlap
        :param return_exceptions: return an :class:`OSError` in its request's place instead of raising
        :param flags: :class:`RwFlags`, or ``os.RWF_*``, of each
        :return: bytes read for each request, in request order
        :raises BatchError: after all have settled, if one failed; it carries every result

        If it raises the cancellation, at least one request did not happen; the others are done with.
        """
        self._task.check()
        items = list(requests)
        plain = _arguments.columns(items)
        views = _buffers.plain_views(plain[1]) if plain else None
        if plain and views and not flags:
            fds, _, offsets = plain
            memories = Memories(views, [*map(len, views)])
            try:
                if max(memories.lengths) <= TRANSFER_MAX:
                    reads = Batch(Opcode.READ, fds, memories, offsets)
                    results = await self._task.perform(reads)
                    if min(results) >= 0:
                        return results
                    outcomes = self._outcomes(reads, results)
                    return _arguments.settled("readinto_batch", outcomes, return_exceptions=return_exceptions)
            finally:
                memories.release()
        asked = _arguments.batch(
            "readinto_batch", "(fd, buffer, offset)", items, partial(_arguments.readinto_request, flags=flags)
        )
        counts = await self._batch(asked)
        return _arguments.settled("readinto_batch", counts, return_exceptions=return_exceptions)

    @overload
    async def write_batch(
        self,
        requests: Iterable[tuple[FileDescriptor, SupportsBuffer, int]],
        *,
        return_exceptions: Literal[False] = False,
        flags: int = 0,
    ) -> list[int]: ...
    @overload
    async def write_batch(
        self, requests: Iterable[tuple[FileDescriptor, SupportsBuffer, int]], *, return_exceptions: bool, flags: int = 0
    ) -> list[int | OSError]: ...
    async def write_batch(
        self,
        requests: Iterable[tuple[FileDescriptor, SupportsBuffer, int]],
        *,
        return_exceptions: bool = False,
        flags: int = 0,
    ) -> list[Any]:
        """
        Write many ranges: one await, one wake-up. They may be carried out in any order.

        :param requests: ``(fd, data, offset)`` each
        :param return_exceptions: return an :class:`OSError` in its request's place instead of raising
        :param flags: :class:`RwFlags`, or ``os.RWF_*``, of each
        :return: bytes written for each request, in request order; possibly fewer than given
        :raises BatchError: after all have settled, if one failed; it carries every result

        If it raises the cancellation, at least one request did not happen; others may be in the file.
        """
        self._task.check()
        asked = _arguments.batch(
            "write_batch", "(fd, data, offset)", requests, partial(_arguments.write_request, flags=flags)
        )
        counts = await self._batch(asked)
        return _arguments.settled("write_batch", counts, return_exceptions=return_exceptions)

    async def fsync_batch(self, fds: Iterable[FileDescriptor]) -> None:
        """
        Make many files durable: one await, one wake-up; the filesystem may share the work among them.

        :raises BatchError: after all have settled, if one failed; its results are ``None`` or an
            :class:`OSError` for each descriptor
        """
        self._task.check()
        results = await self._batch([_arguments.sync_request(fd, data_only=False) for fd in fds])
        outcomes = [None if isinstance(res, int) else res for res in results]
        _arguments.settled("fsync_batch", outcomes, return_exceptions=False)

    # --- in order -------------------------------------------------------------------------------

    def chain(self) -> Chain:
        """
        Return a builder of linked operations: each begins when the one before has been carried out whole.

        To be used with ``async with``; the end of its block submits them together and waits for them all.
        """
        return Chain(self._task, self._allocate_for_chain, self._error)

    # --- registered resources -------------------------------------------------------------------

    def buffer_pool(self, count: int = 64, size: int | str = "64KiB") -> BufferPool:
        """
        Return a pool of page-aligned buffers that the kernel has registered, to be used with ``async with``.

        The verbs take its buffers, their views and slices of those like any other memory, and the kernel
        then need not look up and pin their pages each time (``IORING_OP_READ_FIXED``, ``WRITE_FIXED``).

        :param count: how many buffers
        :param size: bytes in each, or a text such as ``"64KiB"``; each takes whole pages
        :raises ValueError: if they take more than 1 GiB, which is the most that the kernel registers in one piece

        Where the kernel refuses (``RLIMIT_MEMLOCK``, before Linux 5.19), the buffers are plain memory:
        entering the block warns of it, and ``features.fixed_buffers`` has the reason.
        """
        self._loop.protect(BufferPool.acquire, FixedBuffer.release)  # type: ignore[arg-type]
        return BufferPool(self._driver, self._task.check, count, size)

    def register_files(self, fds: Iterable[FileDescriptor]) -> AbstractAsyncContextManager[list[RegisteredFile], None]:
        """
        Register files with the kernel for the life of an ``async with`` block.

        Each :class:`RegisteredFile` goes wherever a descriptor goes; the ring then need not look its file
        up each time (``IOSQE_FIXED_FILE``).  It has a duplicate of its descriptor, so the one given here can
        be closed at once.  The end of the block waits for their operations and closes them, also when
        cancelled.

        :return: an async context manager, whose target is a list of them, in the same order
        :raises OSError: on entering, if one is not open or no descriptor is free; none is registered then
        :raises ValueError: on entering, if ``fixed_files`` slots are not enough

        Where the kernel has no such table (before Linux 5.19), they are plain descriptors: entering the
        block warns of it, and ``features.fixed_files`` has the reason.
        """
        self._loop.protect(RegisteredFile.update, RegisteredFile.aclose)  # type: ignore[arg-type]
        self._loop.protect(Registration.__aenter__, Registration.__aexit__)  # type: ignore[arg-type]
        return Registration(self._files, self._task.check, fds)

    # --- from requests to results ---------------------------------------------------------------

    def _read_request(self, fd: FileDescriptor, length: int, offset: int, flags: int = 0) -> Request:
        number, file, length, offset = _arguments.read(fd, length, offset)
        return self._new_read(number, file, length, offset, flags)

    def _new_read(self, number: int, file: HasFileno | None, length: int, offset: int, flags: int) -> Request:
        flags = _flags.check(flags) if flags else 0
        # What is not the driver's to fill, Python fills, and it fills no bytes.
        memory = bytearray(length) if flags & NOWAIT else self._allocate(length, number)
        return Request(Opcode.READ, number, memory, offset, flags, file)

    def _allocate_for_chain(self, length: int, fd: int) -> bytes | bytearray | memoryview:
        # A member cannot be asked again with other memory, as read() can.
        return _direct.aligned_buffer(length) if is_direct(fd) else self._allocate(length, fd)

    def _allocate(self, length: int, fd: int) -> bytes | bytearray | memoryview:
        if fd in self._direct_fds:
            if is_direct(fd):
                return _direct.aligned_buffer(length)
            self._direct_fds.discard(fd)  # the number means another file now
        # Objects of 0 and 1 byte can be shared by the interpreter.
        return self._memory_type(length) if length > 1 else bytearray(length)

    async def _read_to_new_memory(self, request: Request) -> bytes:
        try:
            return _arguments.to_bytes(request.memory, await self._transfer(request))
        except MisalignedError as exc:
            refusal = exc
        return await self._read_again(request, refusal)

    async def _read_again(self, request: Request, refusal: OSError) -> bytes:
        """Read with aligned memory and copy, if that may be all that the kernel minded; otherwise raise."""
        again = self._realigned(request, refusal)
        if again is None:
            raise refusal
        return _arguments.to_bytes(again.memory, await self._transfer(again))

    def _realigned(self, request: Request, outcome: object) -> Request | None:
        """Return a refused request of our own memory with aligned memory; None if that is not what it lacks."""
        if not isinstance(outcome, MisalignedError) or type(request.memory) is memoryview:
            return None
        if len(self._direct_fds) >= _DIRECT_FDS_MAX:
            self._direct_fds.clear()
        self._direct_fds.add(request.fd)
        alignment = max(SAFE_ALIGNMENT, outcome.memory_alignment)
        return attrs.evolve(request, memory=_direct.aligned_buffer(len(request.memory), alignment=alignment))

    async def _read_batch_again(self, requests: Requests, outcomes: list[int | OSError]) -> list[bytes | OSError]:
        """Make the outcomes of reads bytes; those that were refused for their memory are read again, as one batch."""
        results: list[bytes | OSError] = [
            _arguments.to_bytes(requests[i].memory, outcome) if isinstance(outcome, int) else outcome
            for i, outcome in enumerate(outcomes)
        ]
        again = {i: r for i, outcome in enumerate(outcomes) if (r := self._realigned(requests[i], outcome))}
        if again:
            for (i, request), outcome in zip(again.items(), await self._batch([*again.values()], are_ours=True)):
                results[i] = _arguments.to_bytes(request.memory, outcome) if isinstance(outcome, int) else outcome
        return results

    def _is_aligned(self, fd: FileDescriptor, length: int, offset: int) -> bool:
        """Whether a read can be asked as it is; False only for a range of a known ``O_DIRECT`` descriptor."""
        number, _, length, offset = _arguments.read(fd, length, offset)
        if number not in self._direct_fds or offset < 0 or not is_direct(number):
            return True
        unit = _direct.dio_alignment(number).offset
        return not (offset % unit or length % unit)

    async def _read_widened(self, fd: FileDescriptor, length: int, offset: int, flags: int) -> bytes:
        """Read the whole blocks around a range of an ``O_DIRECT`` descriptor, and cut off what was not asked."""
        number, file, length, offset = _arguments.read(fd, length, offset)
        unit = _direct.dio_alignment(number).offset
        start, span = _direct.covering(offset, length, unit)
        memory = _direct.aligned_buffer(span)
        request = Request(Opcode.READ, number, memory, start, _flags.check(flags), file)
        skipped = offset - start
        have = 0  # bytes of the span
        while have < skipped + length:
            whole = have - have % unit
            count = await self._transfer(request.rest(whole) if whole else request)
            if whole + count <= have:
                raise anyio.IncompleteRead
            have = whole + count
        return bytes(memory[skipped : skipped + length])

    def _must_yield(self) -> bool:
        """Whether the budget is used up, or a cancellation may be waiting (which is checked on every call)."""
        return self._budget is None or not self._budget.spend() or self._loop.may_be_cancelled()

    async def _transfer(self, request: Request) -> int:
        """Perform one request and return its count; in parts if it is longer than the kernel takes (C8)."""
        if request.offset < 0 and self.driver == "uring" and is_direct(request.fd):
            return await self._transfer_at_position(request)
        if request.is_long:
            return await self._transfer_parts(request)
        (res,) = await (self._perform_now((request,)) if _is_nowait(request) else self._task.perform((request,)))
        if res < 0:
            raise self._error(res, request)
        return res

    async def _transfer_at_position(self, request: Request) -> int:
        """
        Perform a request at the file position, and move the position, of an ``O_DIRECT`` descriptor.

        The ring leaves it where it is when the device answers later (seen on Linux 6.18): the next read would
        return the same bytes.
        """
        fd = request.fd
        position = os.lseek(fd, 0, os.SEEK_CUR)
        count = await self._transfer(attrs.evolve(request, offset=position))
        is_appended = request.opcode in WRITES and _direct.appends(fd, request.op_flags)
        os.lseek(fd, *((0, os.SEEK_END) if is_appended else (position + count, os.SEEK_SET)))
        return count

    async def _perform_now(self, requests: Requests) -> list[int]:
        """
        Perform requests that must not wait (``RWF_NOWAIT``) in this thread.

        The ring has no answer for "this file cannot say": it says EAGAIN, and system calls say EOPNOTSUPP.  With
        ``O_DIRECT`` they would wait for the device all the same, so there the driver is asked.
        """
        results: list[int] = []
        for request in requests:
            if is_direct(request.fd):
                results += await self._task.perform((request,))
            else:
                await self._checkpoint()  # C1
                self._task.check()
                results.append(transfer_now(request))
                self._task.transfers.count((request,), results[-1:])
        return results

    async def _transfer_parts(self, request: Request, done: int = 0) -> int:
        """
        Perform a request's parts, behind the first ``done`` bytes, until one is short (C8).

        An error behind the first byte is left to the next call, as ``read(2)`` and ``write(2)`` do.
        """
        for part in request.rest(done).parts() if done else request.parts():
            try:
                moved = (attrs.evolve(part, offset=request.advanced(done)),)
                (res,) = await (self._perform_now(moved) if _is_nowait(request) else self._task.perform(moved))
                size = part.size
                error = None if res >= 0 or done else self._error(res, moved[0])
            finally:
                part.release()
            if error is not None:
                raise error
            if res < 0:
                break
            done += res
            if res < size:
                break
        return done

    async def _transfer_and_release(self, request: Request) -> int:
        try:
            return await self._transfer(request)
        finally:
            request.release()

    async def _batch(self, requests: list[Request], *, are_ours: bool = False) -> list[int | OSError]:
        """Perform many requests as one operation: for each its count or its error. Callers' memory is released."""
        first_parts = [next(r.parts()) if r.is_long else r for r in requests]
        try:
            perform = self._perform_now if requests and _is_nowait(requests[0]) else self._task.perform
            results: list[int | OSError] = []
            for request, res in zip(requests, await perform(first_parts)):
                if res == TRANSFER_MAX and request.is_long:
                    results.append(await self._transfer_parts(request, res))
                else:
                    results.append(res if res >= 0 else self._error(res, request))
            return results
        finally:
            for request in () if are_ours else itertools.chain(requests, first_parts):
                request.release()

    async def _write_all(self, request: Request) -> int:
        try:
            total = request.size
            done = await self._transfer(request)
            while done < total:
                try:
                    count = await self._transfer_and_release(request.rest(done))
                except BlockingIOError as exc:
                    exc.characters_written = done
                    raise
                if not count:
                    raise OSError(errno.EIO, "the kernel wrote nothing and gave no error")
                done += count
            return done
        finally:
            request.release()

    async def _write_linked_to(self, request: Request, sync: Request) -> int:
        """Write everything, the sync linked to the write: one wake-up, and one worker of the kernel for both."""
        request.is_linked = True
        done = 0
        try:
            while True:
                rest = request.rest(done) if done else request
                try:
                    written, synced = await self._task.perform((rest, sync), is_chain=True)
                    size = rest.size
                    error = self._error(written, rest) if written < 0 else None
                finally:
                    if done:
                        rest.release()
                if error is not None:
                    raise error
                done += written
                if written == size:
                    break
                if not written:
                    raise OSError(errno.EIO, "the kernel wrote nothing and gave no error")
        finally:
            request.release()
        if synced < 0:
            raise _arguments.error(synced, sync.file)
        return done

    def _outcomes(self, requests: Requests, results: list[int]) -> list[int | OSError]:
        return [res if res >= 0 else self._error(res, requests[i]) for i, res in enumerate(results)]

    def _error(self, res: int, request: Request) -> OSError:
        """Return the error of a negative result; one that says more than the errno, where that would say too little."""
        plain = _arguments.error(res, request.file)
        if request.memory is None or plain.errno not in {errno.EINVAL, errno.EOPNOTSUPP}:
            return plain
        if plain.errno == errno.EINVAL and (misaligned := _direct.misalignment(request, plain.filename)):
            return misaligned
        is_polled = self.driver == "threads" or "IOPOLL" in self.features.setup_flags
        return _flags.refusal(res, request.op_flags, plain.filename, is_polled=is_polled) or plain


def _is_nowait(request: Request) -> bool:
    return bool(request.op_flags & NOWAIT)

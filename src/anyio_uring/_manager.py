"""The manager: one method for each thing a user can ask for.

Callers' values are checked here, before anything reaches a driver.  It knows values; it never sees ids,
rows or pointers, and what becomes of a request is :mod:`anyio_uring._performer`'s.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from functools import partial
from threading import get_ident
from typing import Any, Literal, overload

import anyio
import attrs

from . import _arguments, _buffers, _direct, _flags, _path_calls, _statx
from ._arguments import FD_MAX, OFFSET_MAX, FileDescriptor
from ._buffers import SupportsBuffer
from ._chain import Chain
from ._errors import MisalignedError
from ._executor import Executor, Facilities
from ._fixed_buffers import BufferPool, FixedBuffer
from ._fixed_files import FileTable, RegisteredFile, Registration
from ._inline import INLINE_BYTES_MAX, Budget, InlineReads
from ._latency import LatencyInstrument
from ._options import DriverName, UringOptions
from ._path_calls import Path
from ._performer import Performer
from ._requests import TRANSFER_MAX, Batch, Memories, Opcode, Request, check_polled, is_direct
from ._small_files import SmallFiles
from ._stats import IoStatistics, UringFeatures
from ._statx import DirectAlignment, FileStatus
from ._thread_calls import ThreadCalls
from ._waiters import Loop


class AsyncIoManager:
    """
    Positional file I/O on one event loop; :func:`open_uring` makes one.

    **Descriptors.** ``fd`` is an int or anything with a ``fileno()``.  An int is the caller's to keep
    open until the call returns; an object is kept alive meanwhile, and must not be closed.

    **Offsets.** Bytes from the start of the file; -1 means "at the file position", which the kernel
    then advances.  Pipes, sockets and terminals have no positions and ignore the offset.  In a batch one
    request may be at the position of a disk file: they run at the same time.  Writes that append (``O_APPEND``,
    ``RWF_APPEND``) may be several, unless the file has ``O_DIRECT``.

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
        "_performer",
        "_read_now",
        "_task",
        "_thread_calls",
    )

    def __init__(
        self,
        task: Executor,
        driver: Facilities,
        loop: Loop,
        *,
        options: UringOptions,
        thread_calls: ThreadCalls | None = None,
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
        self._thread_calls = thread_calls
        self._performer = Performer(task, driver, loop, thread_calls)
        self._direct_fds = self._performer.direct_fds
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
        """
        Which driver does the work: ``"uring"`` or ``"threads"``.

        In tests also ``"fake"``: :class:`anyio_uring.testing.FakeRing`.
        """
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
            fallback_operations=(0 if self._thread_calls is None else self._thread_calls.completions)
            + (statistics.completions if self._fallback_reason else 0),
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
                return await self._performer.read_to_new_memory(
                    self._performer.new_read(fd, file, length, offset, flags)
                )
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
            memory = self._performer.allocate(length, fd)
        request = Request(Opcode.READ, fd, memory, offset, 0, file)
        (count,) = await self._task.perform((request,), has_passed=passed)
        if count < 0:
            return await self._performer.read_again(request, self._performer.error(count, request))
        return memory if count == length and type(memory) is bytes else _arguments.to_bytes(memory, count)

    async def readinto(self, fd: FileDescriptor, buffer: SupportsBuffer, offset: int, *, flags: int = 0) -> int:
        """
        Read into a caller's buffer, without a copy: one kernel operation, like :func:`os.preadv`.

        :param buffer: anything with a writable, contiguous buffer; it cannot be resized meanwhile
        :param flags: :class:`RwFlags`, or ``os.RWF_*``
        :return: bytes read; 0 at the end of the file
        :raises OSError: as :func:`os.preadv` would
        """
        inline = self._inline
        self._task.check()
        request = _arguments.readinto_request(fd, buffer, offset, flags)
        try:
            length = len(request.memory)
            if length > TRANSFER_MAX or request.op_flags or (request.offset < 0 and is_direct(request.fd)):
                return await self._performer.transfer(request)
            passed = False
            if (
                inline is not None
                and 1 < length <= INLINE_BYTES_MAX
                and request.offset >= 0
                and inline.is_likely(request.fd)
            ):
                if self._budget is None or self._must_yield():
                    await self._checkpoint()  # C1
                    self._task.check()
                    if request.file is not None:  # a registered file may have been updated or closed meanwhile
                        request.fd, request.file = _arguments.descriptor(fd)
                count = self._read_now(request.fd, self._driver.expose(request.memory), length, request.offset)
                if count >= 0:
                    inline.note_hit(request.fd, count)
                    inline.shorts += count < length
                    return count
                inline.note_miss(request.fd)
                passed = True
            (count,) = await self._task.perform((request,), has_passed=passed)
            if count < 0:
                raise self._performer.error(count, request)
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
        if self._direct_fds and not self._performer.is_aligned(fd, length, offset):
            return await self._performer.read_widened(fd, length, offset, flags)
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
                count = await self._performer.transfer(request.rest(done)) if done else 0
                if not count:
                    raise anyio.IncompleteRead
                done += count
            return bytes(memory)
        except MisalignedError:
            if offset < 0:
                raise
        return await self._performer.read_widened(fd, length, offset, flags)

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
        return await self._performer.transfer_and_release(_arguments.write_request(fd, data, offset, flags))

    async def write_all(self, fd: FileDescriptor, data: SupportsBuffer, offset: int, *, flags: int = 0) -> None:
        """
        Write everything, with as many operations as it takes.

        :param flags: :class:`RwFlags`, or ``os.RWF_*``.  With ``RWF_APPEND`` other writers' bytes can come between
            the parts; with ``RWF_NOWAIT`` the ``characters_written`` of a :class:`BlockingIOError` are in the file.
        :raises OSError: as :func:`os.pwrite` would; a prefix may be in the file

        A cancellation between two operations is raised; a prefix is in the file then.
        """
        self._task.check()
        await self._performer.write_all(_arguments.write_request(fd, data, offset, flags))

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
        # At the file position the rest of a short write would go where the first part went; appended, behind it.
        at_position = request.offset < 0 and (is_direct(request.fd) or not _direct.appends(request.fd, 0))
        if request.is_long or self.features.depth == 1 or at_position:
            count = await self._performer.write_all(request)
            await self._performer.transfer(sync)
            return count
        return await self._performer.write_linked_to(request, sync)

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
        return await self._performer.transfer_and_release(_arguments.readv_request(fd, buffers, offset, flags))

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
        return await self._performer.transfer_and_release(_arguments.writev_request(fd, buffers, offset, flags))

    # --- durability -----------------------------------------------------------------------------

    async def fsync(self, fd: FileDescriptor) -> None:
        """
        Make a file's data and metadata durable, like :func:`os.fsync`.

        :raises OSError: nothing is known to be durable then, and syncing again proves nothing (``fsync(2)``)
        """
        self._task.check()
        await self._performer.transfer(_arguments.sync_request(fd, data_only=False))

    async def fdatasync(self, fd: FileDescriptor) -> None:
        """
        Make a file's data, and the metadata needed to read it back, durable, like :func:`os.fdatasync`.

        :raises OSError: nothing is known to be durable then, and syncing again proves nothing (``fsync(2)``)
        """
        self._task.check()
        await self._performer.transfer(_arguments.sync_request(fd, data_only=True))

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
        :raises ValueError: also if several are at offset -1 of one disk file; nothing is asked then

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
                results = await self._performer.read_batch_again(reads, self._performer.outcomes(reads, counts))
                return _arguments.settled("read_batch", results, return_exceptions=return_exceptions)
        make = partial(self._performer.read_request, flags=flags)
        asked = _arguments.batch("read_batch", "(fd, length, offset)", items, make)
        results = await self._performer.read_batch_again(asked, await self._performer.batch(asked, are_ours=True))
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
        :raises ValueError: also if several are at offset -1 of one disk file; nothing is asked then

        If it raises the cancellation, at least one request did not happen; the others are done with.
        """
        self._task.check()
        items = list(requests)
        plain = _arguments.columns(items)
        views = _buffers.plain_views(plain[1]) if plain and not flags else None
        if plain and views:
            fds, _, offsets = plain
            memories = Memories(views, [*map(len, views)])
            try:
                if max(memories.lengths) <= TRANSFER_MAX:
                    reads = Batch(Opcode.READ, fds, memories, offsets)
                    results = await self._task.perform(reads)
                    if min(results) >= 0:
                        return results
                    outcomes = self._performer.outcomes(reads, results)
                    return _arguments.settled("readinto_batch", outcomes, return_exceptions=return_exceptions)
            finally:
                memories.release()
        asked = _arguments.batch(
            "readinto_batch", "(fd, buffer, offset)", items, partial(_arguments.readinto_request, flags=flags)
        )
        counts = await self._performer.batch(asked)
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
        :raises ValueError: also if several are at offset -1 of one disk file and do not append; nothing is asked then

        If it raises the cancellation, at least one request did not happen; others may be in the file.
        """
        self._task.check()
        asked = _arguments.batch(
            "write_batch", "(fd, data, offset)", requests, partial(_arguments.write_request, flags=flags)
        )
        counts = await self._performer.batch(asked)
        return _arguments.settled("write_batch", counts, return_exceptions=return_exceptions)

    @overload
    async def read_files(self, paths: Iterable[Path], *, return_exceptions: Literal[False] = False) -> list[bytes]: ...
    @overload
    async def read_files(self, paths: Iterable[Path], *, return_exceptions: bool) -> list[bytes | OSError]: ...
    async def read_files(self, paths: Iterable[Path], *, return_exceptions: bool = False) -> list[Any]:
        """
        Read many small files whole: one await, and a few kernel entries for hundreds of them.

        No more than 256 are open at once, nor than ``depth`` or a quarter of ``RLIMIT_NOFILE``.  A file is read until
        a read gives nothing, whatever its size is said to be, so one that is large or grows costs more reads.

        :param paths: of regular files; a FIFO or a device gives what a descriptor with ``O_NONBLOCK`` gives
        :param return_exceptions: return an :class:`OSError` in its path's place instead of raising
        :return: the content of each, in the order of the paths
        :raises BatchError: after all have been tried, if one failed; it carries every result

        If it raises the cancellation, no descriptor stays open.
        """
        self._task.check()
        results = await SmallFiles(self._task, self._driver, self._performer).read(paths)
        return _arguments.settled("read_files", results, return_exceptions=return_exceptions)

    @overload
    async def stat_batch(
        self, paths: Iterable[Path], *, return_exceptions: Literal[False] = False
    ) -> list[FileStatus]: ...
    @overload
    async def stat_batch(self, paths: Iterable[Path], *, return_exceptions: bool) -> list[FileStatus | OSError]: ...
    async def stat_batch(self, paths: Iterable[Path], *, return_exceptions: bool = False) -> list[Any]:
        """
        Ask for the status of many files, as :meth:`stat` does: one await.

        :param return_exceptions: return an :class:`OSError` in its path's place instead of raising
        :return: the status of each, in the order of the paths
        :raises BatchError: after all have been tried, if one failed; it carries every result
        """
        self._task.check()
        results = await SmallFiles(self._task, self._driver, self._performer).stat(paths)
        return _arguments.settled("stat_batch", results, return_exceptions=return_exceptions)

    async def fsync_batch(self, fds: Iterable[FileDescriptor]) -> None:
        """
        Make many files durable: one await, one wake-up; the filesystem may share the work among them.

        :raises BatchError: after all have settled, if one failed; its results are ``None`` or an
            :class:`OSError` for each descriptor
        """
        self._task.check()
        results = await self._performer.batch([_arguments.sync_request(fd, data_only=False) for fd in fds])
        outcomes = [None if isinstance(res, int) else res for res in results]
        _arguments.settled("fsync_batch", outcomes, return_exceptions=False)

    # --- paths ----------------------------------------------------------------------------------

    async def open(
        self,
        path: Path,
        flags: int = os.O_RDONLY,
        mode: int = 0o666,
        *,
        dir_fd: int | None = None,
        direct: bool = False,
    ) -> int:
        """
        Open a file, like :func:`os.open`: the descriptor is the caller's, to be closed with :meth:`close`.

        :param flags: ``os.O_*``; ``O_CLOEXEC`` is always among them
        :param mode: permissions of a file that it creates, less the process's umask
        :param dir_fd: descriptor of the directory that a relative path starts from
        :param direct: add ``O_DIRECT``: reads and writes go past the page cache
        :return: the descriptor; also if the call was cancelled when the file had been opened: then the
            cancellation strikes at the next checkpoint
        :raises OSError: as :func:`os.open` would; ``EINVAL`` where there is no direct I/O

        An open that waits (of a FIFO, for its other end) can be cancelled on the ring.  On threads it holds one of
        the 32 workers, and the end of the manager waits for it: give ``O_NONBLOCK`` there.
        """
        return await self._performer.call(_path_calls.open_file(path, flags, mode, dir_fd, direct=direct))

    async def close(self, fd: int) -> None:
        """
        Close a descriptor, like :func:`os.close`, also if the call is cancelled.

        A cancellation strikes at the next checkpoint.  Operations with this number must have returned.

        :raises OSError: as :func:`os.close` would; the descriptor is gone then, unless it is ``EBADF``
        """
        await self._performer.call(_path_calls.close(fd), is_certain=True)

    async def _close_surely(self, fd: int) -> None:
        """Close what a function of several steps has opened, also if the manager's block has ended meanwhile."""
        if self._is_forked():
            os.close(fd)  # a copy of the parent's; the threads that could do it are the parent's, too (C12)
        else:
            await self._performer.surely(_path_calls.close(fd))

    async def stat(
        self, path: Path | FileDescriptor, *, dir_fd: int | None = None, follow_symlinks: bool = True
    ) -> FileStatus:
        """
        Ask for the status of a file, like :func:`os.stat` (``statx(2)``).

        :param path: a path, or a descriptor
        :param dir_fd: descriptor of the directory that a relative path starts from
        :param follow_symlinks: ask about the file that a symbolic link leads to, not about the link
        :raises OSError: as :func:`os.stat` would
        """
        call, answer = _path_calls.stat(path, dir_fd, follow_symlinks=follow_symlinks)
        await self._performer.call(call)
        return _statx.read(answer)

    async def rename(
        self,
        src: Path,
        dst: Path,
        *,
        src_dir_fd: int | None = None,
        dst_dir_fd: int | None = None,
        noreplace: bool = False,
        exchange: bool = False,
    ) -> None:
        """
        Rename a file or directory, like :func:`os.rename`; what ``dst`` was is replaced in one step.

        :param noreplace: fail with ``EEXIST`` if there is a ``dst`` (``RENAME_NOREPLACE``, Linux 3.15)
        :param exchange: let the two change places (``RENAME_EXCHANGE``, Linux 3.15)
        :raises OSError: as :func:`os.rename` would; ``EINVAL`` if the filesystem lacks what was asked

        If it raises the cancellation, nothing was renamed.  It is durable after an fsync of the directories.
        """
        await self._performer.call(
            _path_calls.rename(src, dst, src_dir_fd, dst_dir_fd, noreplace=noreplace, exchange=exchange)
        )

    async def unlink(self, path: Path, *, dir_fd: int | None = None) -> None:
        """
        Remove a file's name, like :func:`os.unlink`.

        :raises OSError: as :func:`os.unlink` would
        """
        await self._performer.call(_path_calls.unlink(path, dir_fd))

    async def rmdir(self, path: Path, *, dir_fd: int | None = None) -> None:
        """
        Remove an empty directory, like :func:`os.rmdir`.

        :raises OSError: as :func:`os.rmdir` would
        """
        await self._performer.call(_path_calls.rmdir(path, dir_fd))

    async def mkdir(self, path: Path, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        """
        Make a directory, like :func:`os.mkdir`.

        :param mode: its permissions, less the process's umask
        :raises OSError: as :func:`os.mkdir` would
        """
        await self._performer.call(_path_calls.mkdir(path, mode, dir_fd))

    async def link(
        self,
        src: Path,
        dst: Path,
        *,
        src_dir_fd: int | None = None,
        dst_dir_fd: int | None = None,
        follow_symlinks: bool = True,
    ) -> None:
        """
        Make a hard link ``dst`` to the file ``src`` (``linkat(2)``).

        :param follow_symlinks: link the file that a symbolic link leads to, not the link itself.  On Linux
            :func:`os.link` does so only if it is given a directory
        :raises OSError: as :func:`os.link` would
        """
        await self._performer.call(_path_calls.link(src, dst, src_dir_fd, dst_dir_fd, follow_symlinks=follow_symlinks))

    async def symlink(self, src: Path, dst: Path, *, dir_fd: int | None = None) -> None:
        """
        Make a symbolic link ``dst`` that says ``src``, like :func:`os.symlink`.

        :param dir_fd: descriptor of the directory that ``dst`` starts from
        :raises OSError: as :func:`os.symlink` would
        """
        await self._performer.call(_path_calls.symlink(src, dst, dir_fd))

    # --- what a file has beside its content -----------------------------------------------------

    async def truncate(self, path: Path | FileDescriptor, length: int) -> None:
        """
        Make a file so long, like :func:`os.truncate`: what is behind is cut off, what is missing reads as zeros.

        :param path: a path, or a descriptor (``IORING_OP_FTRUNCATE``, Linux 6.9)
        :param length: bytes
        :raises OSError: as :func:`os.truncate` would
        """
        await self._performer.call(_path_calls.truncate(path, length))

    async def fallocate(self, fd: FileDescriptor, mode: int, offset: int, length: int) -> None:
        """
        Allocate or give back a range of a file (``fallocate(2)``).

        :param mode: 0: allocate, as :func:`os.posix_fallocate` does; or ``FALLOC_FL_*`` of ``linux/falloc.h``:
            1 keeps the size, 3 punches a hole, 16 zeroes the range
        :param offset: byte where it begins
        :param length: bytes
        :raises OSError: ``ENOSPC`` if there is no room, ``EOPNOTSUPP`` if the filesystem lacks the mode
        """
        await self._performer.call(_path_calls.fallocate(fd, mode, offset, length))

    async def fadvise(self, fd: FileDescriptor, offset: int, length: int, advice: int) -> None:
        """
        Say how a range of a file will be used, like :func:`os.posix_fadvise`.

        :param length: bytes; 0: to the end of the file
        :param advice: ``os.POSIX_FADV_*``
        :raises OSError: as :func:`os.posix_fadvise` would
        """
        await self._performer.call(_path_calls.fadvise(fd, offset, length, advice))

    async def sync_file_range(self, fd: FileDescriptor, offset: int, length: int, flags: int) -> None:
        """
        Start, or wait for, writing a range of the page cache out (``sync_file_range(2)``).

        It makes nothing durable: neither metadata nor the device's own cache are written; :meth:`fdatasync` does.

        :param length: bytes; 0: to the end of the file
        :param flags: ``SYNC_FILE_RANGE_*`` of ``linux/fs.h``: 1 wait before, 2 write, 4 wait after
        :raises OSError: ``EIO`` if writing failed, ``EINVAL``, ``ESPIPE``
        """
        await self._performer.call(_path_calls.sync_file_range(fd, offset, length, flags))

    async def getxattr(self, path: Path | FileDescriptor, name: Path, *, follow_symlinks: bool = True) -> bytes:
        """
        Return an extended attribute of a file, like :func:`os.getxattr`.

        :param path: a path, or a descriptor (``IORING_OP_FGETXATTR``, Linux 5.19)
        :param name: with its namespace: ``"user.comment"``
        :raises OSError: as :func:`os.getxattr` would: ``ENODATA`` if there is none
        """
        value = bytearray(_path_calls.XATTR_SIZE_MAX)
        call = _path_calls.getxattr(path, name, value, follow_symlinks=follow_symlinks)
        return bytes(memoryview(value)[: await self._performer.call(call)])

    async def setxattr(
        self,
        path: Path | FileDescriptor,
        name: Path,
        value: SupportsBuffer,
        flags: int = 0,
        *,
        follow_symlinks: bool = True,
    ) -> None:
        """
        Set an extended attribute of a file, like :func:`os.setxattr`.

        :param path: a path, or a descriptor (``IORING_OP_FSETXATTR``, Linux 5.19)
        :param name: with its namespace: ``"user.comment"``
        :param value: copied before the method awaits anything
        :param flags: ``os.XATTR_CREATE`` or ``os.XATTR_REPLACE``
        :raises OSError: as :func:`os.setxattr` would
        """
        await self._performer.call(_path_calls.setxattr(path, name, value, flags, follow_symlinks=follow_symlinks))

    # --- in order -------------------------------------------------------------------------------

    def chain(self) -> Chain:
        """
        Return a builder of linked operations: each begins when the one before has been carried out whole.

        To be used with ``async with``; the end of its block submits them together and waits for them all.
        """
        return Chain(self._task, self._performer.allocate_for_chain, self._performer.error)

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

    # --- inside ---------------------------------------------------------------------------------

    def _must_yield(self) -> bool:
        """Whether the budget is used up, or a cancellation may be waiting (which is checked on every call)."""
        return self._budget is None or not self._budget.spend() or self._loop.may_be_cancelled()

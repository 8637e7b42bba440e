"""The file of an append-only log: created durably, locked, its torn tail cut off, allocated ahead, trimmed.

It knows files and where their records end; it knows nothing of who appends, of commits or of waiting.
"""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress
from functools import partial
from typing import Any, Final, NamedTuple

import attrs

from . import _arguments, _path_calls
from ._log_format import FRAME_SIZE, HEADER_SIZE, FileHeader, new_header
from ._log_scanner import LogScanner
from ._manager import AsyncIoManager
from ._requests import Call, Requests

# Without room for it the log does without; only writing the records themselves must not fail.
_NOT_ALLOCATED: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EOPNOTSUPP, errno.ENOSYS})
# Tries to open a file that is removed or replaced before it is locked; the first one is enough, but for chance.
_OPENS_MAX: Final = 100
# fcntl.flock() of a file that another descriptor has locked.
_LOCKED: Final = frozenset({errno.EWOULDBLOCK, errno.EACCES})


@attrs.frozen
class LogRecovery:
    """
    What opening a log found, and what it did to the file.

    :ivar was_created: whether there was no log before
    :ivar records: valid records that the file has
    :ivar end: offset behind the last of them, where the next one goes
    :ivar bytes_cut: bytes of a torn tail that were cut off behind ``end``, without zeros at the end of the file; 0
        if the tail was clean
    :ivar reason: what was wrong with them; ``None`` if nothing was cut
    """

    was_created: bool
    records: int
    end: int
    bytes_cut: int = 0
    reason: str | None = None


@attrs.frozen
class LogOptions:
    """How a log's files are to be; described at :func:`open_append_log`."""

    path: str
    preallocate: int
    record_length_max: int
    mode: int


class Written(NamedTuple):
    """What became of a write and its sync: the bytes written, and the error of either, which ended it."""

    length: int
    write_error: OSError | None = None
    sync_error: OSError | None = None
    short_writes: int = 0


@attrs.define(eq=False)
class LogFile:
    """
    An open, locked file of a log.

    :ivar step: bytes allocated ahead at a time
    :ivar allocated: position behind the last byte that was allocated ahead
    """

    io: AsyncIoManager
    options: LogOptions
    fd: int
    header: FileHeader
    step: int = attrs.field(init=False)
    allocated: int = 0

    def __attrs_post_init__(self) -> None:
        self.step = self.options.preallocate

    @property
    def path(self) -> str:
        return self.options.path

    def position(self, offset: int) -> int:
        """Return where in the file an offset is."""
        return offset - self.header.base

    async def allocate(self, start: int, length: int) -> None:
        """
        Allocate a step ahead, if the file ends before what is to be written: a sync then need not write its new size.

        Where there is no room, or the filesystem cannot allocate, nothing is: writing will tell.

        :param start: where the data ends now
        :param length: bytes to be written there
        """
        end = start + length
        if not self.step or end <= self.allocated:
            return
        ahead = end - end % -self.step - self.allocated  # up to the next multiple
        try:
            await self._call(_path_calls.fallocate(self.fd, 0, self.allocated, ahead))
        except OSError as exc:
            if exc.errno not in _NOT_ALLOCATED:
                raise
            if exc.errno in {errno.EOPNOTSUPP, errno.ENOSYS}:
                self.step = 0
            else:
                # ext4 keeps what it got before it ran out: the last room there is, which others want, too.
                await self.cut(start)
            return
        self.allocated += ahead

    async def write(self, buffers: list[bytes], position: int, *, sync: bool) -> Written:
        """
        Write some buffers, one behind the other, and sync them in the same submission.

        A short write goes on with the rest.  The sync is linked to the write (``IOSQE_IO_LINK``), so behind a short
        one it does not happen, and is asked again with the rest.  After an error nothing is.

        :param sync: whether to; without buffers nothing else is done
        """
        left: list[Any] = buffers
        size = sum(map(len, buffers))
        syncing = _arguments.sync_request(self.fd, data_only=True)
        # All of a chain is in flight at once, so where no more than one operation may be, the sync comes behind.
        is_linked = sync and self.io.features.depth > 1
        done = short_writes = 0
        while done < size:
            if len(left) == 1:
                request = _arguments.write_request(self.fd, left[0], position + done)
            else:
                request = _arguments.writev_request(self.fd, left, position + done)
            request.is_linked = is_linked
            try:
                count, *syncs = await self._perform((request, syncing) if is_linked else (request,), is_chain=is_linked)
            finally:
                request.release()
            if count <= 0:
                # Nothing, and no error, is what the kernel never says of a file; it would go round for ever.
                return Written(done, self._error(count or -errno.EIO), None, short_writes)
            done += count
            if done < size:
                short_writes += 1
                left = _rest(left, count)
            elif is_linked:
                return Written(done, None, self._error(syncs[0]), short_writes)
        if sync:
            (count,) = await self._perform((syncing,))
            return Written(done, None, self._error(count), short_writes)
        return Written(done, None, None, short_writes)

    async def _perform(self, requests: Requests, *, is_chain: bool = False) -> list[int]:
        # Half a commit would be none.  The log's own task is cancelled by nobody but who cancels all there are, so there
        # is no cancellation to wait for: has_passed saves 10 us.
        return await self.io._task.perform(requests, has_passed=True, is_chain=is_chain, is_certain=True)

    async def _call(self, call: Call) -> None:
        await self.io._performer.surely(call)

    def _error(self, res: int) -> OSError | None:
        return OSError(-res, os.strerror(-res), self.path) if res < 0 else None

    async def cut(self, end: int) -> None:
        """Let the file end at this position."""
        await self._call(_path_calls.truncate(self.fd, end))
        self.allocated = end

    async def aclose(self) -> None:
        """Close it, which gives its lock back, in any case."""
        await _close(self.io, self.fd)


async def create_log_file(io: AsyncIoManager, options: LogOptions, *, first: int) -> LogFile:
    """
    Create a file whose first record will have a given offset; it and its name are durable on return.

    It has a temporary name until it is locked and its header is durable.  So whoever finds it, also after a crash,
    finds at which offset it begins, and nobody else can have opened it for appending.

    :raises FileExistsError: if there is one
    """
    path = options.path
    name = os.path.join(os.path.dirname(path), _path_calls.temporary_name())
    try:
        fd = await io.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, options.mode)
        try:
            _lock(fd, path)
            file = LogFile(io, options, fd, new_header(first, options.record_length_max))
            await _write_header(file)
            await _rename(io, name, path)
            name = path
            await sync_directory(io, path)
        except BaseException:
            with suppress(OSError):  # the error that led here says more than one of this
                await io._performer.surely(_path_calls.unlink(name, None))
            await _close(io, fd)
            raise
    except OSError as exc:
        # Of the caller's path, not of the temporary one.
        raise OSError(exc.errno, exc.strerror, path) from exc
    return file


async def open_log_file(io: AsyncIoManager, options: LogOptions) -> tuple[LogFile, LogRecovery]:
    """
    Open a file, or create it, lock it, and cut off what is torn; what is kept is durable on return.

    :raises BlockingIOError: if it is open for appending
    :raises CorruptLogError: if it is no log, or is damaged; nothing was changed
    """
    path = options.path
    fd = await _open_locked(io, options)
    try:
        # Pages that could not be written stay in memory, and count as clean: what is recovered is what the disk has.
        await io.fdatasync(fd)
        await io.fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        scanner = LogScanner(io, fd, path)
        await scanner.open()
        if scanner.header is None:
            file = LogFile(io, options, fd, new_header(HEADER_SIZE, options.record_length_max))
            await file.cut(0)
            await _write_header(file)
            await sync_directory(io, path)
            return file, LogRecovery(True, 0, file.header.first, scanner.bytes_torn, scanner.torn)
        records = 0
        while found := await scanner.next_records():
            records += len(found)
        file = LogFile(io, options, fd, scanner.header)
        recovery = await _recover(file, scanner, records)
    except BaseException:
        await _close(io, fd)
        raise
    return file, recovery


async def _open_locked(io: AsyncIoManager, options: LogOptions) -> int:
    """Open a file, or create it, and lock it; the path leads to the very file that is locked."""
    path = options.path
    for _ in range(_OPENS_MAX):
        fd = await io.open(path, os.O_RDWR | os.O_CREAT, options.mode)
        try:
            _lock(fd, path)
            if await _is_at(io, fd, path):
                return fd
        except BaseException:
            await _close(io, fd)
            raise
        # It was removed or replaced between opening and locking: what it took would be lost.
        await _close(io, fd)
    raise OSError(errno.ESTALE, "the file is replaced again and again while it is being opened", path)


async def _is_at(io: AsyncIoManager, fd: int, path: str) -> bool:
    """Whether a path leads to an open file."""
    mine = await io.stat(fd)
    try:
        found = await io.stat(path)
    except FileNotFoundError:
        return False
    return (mine.st_dev, mine.st_ino) == (found.st_dev, found.st_ino)


def _rest(buffers: list[Any], count: int) -> list[memoryview]:
    """Return what is behind the first ``count`` bytes."""
    rest: list[memoryview] = []
    for buffer in buffers:
        if count < len(buffer):
            rest.append(memoryview(buffer)[count:])
        count = max(count - len(buffer), 0)
    return rest


async def sync_directory(io: AsyncIoManager, path: str) -> None:
    """Make the name of a file durable, in the directory where it is: the path may be a link to it."""
    path = await io._loop.run_in_thread(partial(os.path.realpath, path), None)
    fd = await io.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
    try:
        await io.fsync(fd)
    finally:
        await io._close_surely(fd)


def _lock(fd: int, path: str) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        if exc.errno not in _LOCKED:
            exc.filename = path
            raise
        raise BlockingIOError(
            exc.errno, "the log is open for appending already, here or in another process", path
        ) from None


async def _close(io: AsyncIoManager, fd: int) -> None:
    """
    Give the lock back, and close; closing alone does not, where a child of the process has the file, too.

    The child itself, if it leaves the block that it has inherited, leaves the lock to its parent (C12).
    """
    try:
        if not io._is_forked():
            fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        await io._close_surely(fd)


async def _write_header(file: LogFile) -> None:
    """Make a file a log without records, and durable, but for its name."""
    await file.io.write_all(file.fd, file.header.to_bytes(), 0)
    # Before anything is allocated behind it: a torn header with zeros behind could not be told from a damaged one.
    await file.io.fsync(file.fd)
    file.allocated = HEADER_SIZE
    await file.allocate(HEADER_SIZE, FRAME_SIZE)


async def _rename(io: AsyncIoManager, temporary: str, path: str) -> None:
    """Give a file its name, which nothing else must have; once it has it, that is no error any more."""
    surely = io._performer.surely
    try:
        await surely(_path_calls.rename(temporary, path, None, None, noreplace=True, exchange=False))
    except OSError as exc:
        if exc.errno != errno.EINVAL:
            raise
        # A filesystem without RENAME_NOREPLACE, NFS for one (rename(2)); link(2) replaces nothing, either.
        await surely(_path_calls.link(temporary, path, None, None, follow_symlinks=False))
        with suppress(OSError):  # a second name harms nobody, and looks like what it is
            await surely(_path_calls.unlink(temporary, None))


async def _recover(file: LogFile, scanner: LogScanner, records: int) -> LogRecovery:
    """Cut off all that is behind the last valid record: it must not become valid again behind new ones."""
    end = file.position(scanner.end)
    await file.cut(end)
    await file.allocate(end, FRAME_SIZE)
    await file.io.fsync(file.fd)
    await sync_directory(file.io, file.path)  # a crash may have come between the file's creation and that
    return LogRecovery(False, records, scanner.end, scanner.bytes_torn, scanner.torn)

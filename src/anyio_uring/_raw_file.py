"""An open descriptor with a position of its own: one operation of the manager for each read or write.

It knows a manager's positional verbs; of buffers, text and concurrent tasks it knows nothing.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
from functools import partial
from typing import IO, Any

import anyio

from . import _statx
from ._core import manager_for
from ._manager import AsyncIoManager


class RawFile:
    """
    One open file, for one task at a time.

    The position is kept here and each transfer names it, so that what was cancelled has not moved it.  Files
    that append, and those that have no positions, are read and written where the kernel's position is.

    :ivar position: where the next read or write begins
    """

    __slots__ = (
        "__weakref__",
        "_adopted",
        "_fd",
        "_manager",
        "_view",
        "closefd",
        "is_appending",
        "is_readable",
        "is_seekable",
        "is_writable",
        "limiter",
        "mode",
        "name",
        "position",
    )

    def __init__(
        self,
        fd: int,
        manager: AsyncIoManager,
        *,
        name: str | bytes | int,
        mode: str,
        closefd: bool = True,
        limiter: anyio.CapacityLimiter | None = None,
        adopted: IO[bytes] | None = None,
    ) -> None:
        """
        Take the descriptor over.

        :param mode: as :class:`io.FileIO` writes it
        :param adopted: the file object that owns the descriptor, and is closed in its stead
        """
        self._fd = fd
        self._manager = manager
        self._adopted = adopted
        self._view: IO[bytes] | None = adopted
        self.name: str | bytes | int = name
        self.mode: str = mode
        self.closefd: bool = closefd
        self.limiter: anyio.CapacityLimiter | None = limiter
        self.is_readable: bool = mode[0] == "r" or "+" in mode
        self.is_writable: bool = mode[0] != "r" or "+" in mode
        self.is_appending: bool = bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND)
        self.position: int = 0
        self.is_seekable: bool = True
        try:
            self.position = os.lseek(fd, 0, os.SEEK_END if mode[0] == "a" else os.SEEK_CUR)
        except OSError:
            self.is_seekable = False

    def fileno(self) -> int:
        """
        Return the descriptor's number.

        :raises ValueError: if the file is closed
        """
        if self._fd < 0:
            raise ValueError("I/O operation on closed file")
        return self._fd

    @property
    def is_closed(self) -> bool:
        return self._fd < 0

    @property
    def manager(self) -> AsyncIoManager:
        return self._manager

    @property
    def view(self) -> IO[bytes]:
        """A file object of the standard library on the same descriptor, which it does not own."""
        if self._view is not None:
            return self._view
        view: Any = io.FileIO(self.fileno(), self.mode.replace("x", "w"), closefd=False)
        view.name = self.name
        self._view = view
        return view  # type: ignore[no-any-return]

    async def read(self, length: int) -> bytes:
        data = await self._manager.read(self, length, self._offset(is_write=False))
        self.position += len(data)
        return data

    async def readinto(self, memory: memoryview) -> int:
        count = await self._manager.readinto(self, memory, self._offset(is_write=False))
        self.position += count
        return count

    async def write(self, data: bytes | bytearray | memoryview) -> int:
        count = await self._manager.write(self, data, self._offset(is_write=True))
        if self.is_appending and self.is_seekable:
            self.position = os.lseek(self._fd, 0, os.SEEK_CUR)
        else:
            self.position += count
        return count

    def _offset(self, *, is_write: bool) -> int:
        if not self.is_seekable or (is_write and self.is_appending):
            return -1
        return self.position

    def remaining(self) -> int:
        """Return how many bytes a read of everything will probably give; 0 if that cannot be said."""
        return max(_statx.known(self._fd).st_size - self.position, 0) if self.is_seekable else 0

    async def seek(self, offset: int, whence: int) -> int:
        """
        Move the position, the kernel's too: it knows which ones a file can have.

        :param whence: all that ``lseek(2)`` knows, except ``SEEK_CUR``
        """
        if whence == os.SEEK_SET:
            self.position = os.lseek(self.fileno(), offset, whence)
        else:
            # The end of a file, and its holes, may be a server's to say.
            seek = partial(os.lseek, self.fileno(), offset, whence)
            self.position = await self._manager._loop.run_in_thread(seek, self.limiter)
        return self.position

    async def truncate(self, length: int) -> None:
        if length < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        await self._manager.truncate(self, length)

    async def sync(self, *, data_only: bool) -> None:
        await (self._manager.fdatasync if data_only else self._manager.fsync)(self)

    def publish_position(self, position: int) -> None:
        """Move the kernel's position, for others who have the same open file."""
        if self.is_seekable and not self.is_appending:
            os.lseek(self._fd, position, os.SEEK_SET)

    def leave_closed_manager(self) -> None:
        """Go on without a manager if ours can do nothing any more, so that what is buffered can be written."""
        if not self._manager._task.is_usable:
            self._manager = manager_for(None, self.limiter)

    async def close(self) -> None:
        """Close the descriptor, also when cancelled."""
        self.leave_closed_manager()
        fd, self._fd = self._fd, -1
        if self._adopted is not None:
            await self._manager._loop.run_in_thread(self._adopted.close, self.limiter, is_certain=True)
            return
        if self._view is not None:
            self._view.close()
        if self.closefd:
            await self._manager.close(fd)

    def abandon(self, pending: bytes | bytearray) -> None:
        """Write what is left and close, blocking: nobody has done it in time, and nobody else ever can."""
        fd, self._fd = self._fd, -1
        try:
            while pending:
                offset = self._offset(is_write=True)
                count = os.write(fd, pending) if offset < 0 else os.pwrite(fd, pending, offset)
                self.position += count
                pending = pending[count:]
        finally:
            if self.closefd and self._adopted is None:
                os.close(fd)

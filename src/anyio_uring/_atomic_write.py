"""``atomic_write()``: a file replaced whole and durably, or left as it was.

It knows names, modes and the order in which things become durable; how a file is opened, written or renamed is the
manager's.

Why a temporary file with a name, and not ``O_TMPFILE``: ``linkat(2)`` replaces nothing, so an unnamed file would need
a name of its own before the rename all the same; and not every filesystem has it.

Why a directory's descriptor: the temporary file, the rename and the sync are all in the very directory that was found
at the beginning, whatever is renamed, or however the process changes its own directory, meanwhile.
"""

from __future__ import annotations

import errno
import operator
import os
import stat
from functools import partial
from typing import Final

import attrs

from . import _buffers, _path_calls
from ._buffers import SupportsBuffer
from ._core import manager_for
from ._manager import AsyncIoManager
from ._path_calls import Path
from ._statx import FileStatus

# Tries to find a name that is free; of 64 random bits the first one is.
_NAMES_MAX: Final = 100
_PERMISSIONS: Final = 0o777
_MODE_MAX: Final = 0o7777


async def atomic_write(
    path: Path, data: SupportsBuffer, *, mode: int | None = None, io: AsyncIoManager | None = None
) -> None:
    """
    Replace a file's content, or create the file, such that there is never anything between old and new.

    Whoever opens the path gets the old file or the new one, whole, at every moment and after a crash at any moment.
    When it returns, the new one is on disk, and so is its name: ``fsync(2)`` of the file, ``rename(2)``, ``fsync`` of
    the directory.

    :param path: a symbolic link is followed, as :func:`open` does: the link stays, and the file that it leads to is
        replaced.  Other hard links keep the old content.  The directory must be readable, too, so that it can be synced
    :param data: anything with a contiguous buffer; not to be changed until the function returns.  Text is encoded first
    :param mode: permission bits, exactly; ``None``: those (``0o777``) of the file that is replaced, and ``0o666`` less
        the process's umask if there is none.  Owner, ACLs and attributes are those of any new file of the caller's
    :param io: the manager; ``None``: the innermost open one, or threads where there is none
    :raises OSError: as :func:`open`, :func:`os.write`, :func:`os.fsync` and :func:`os.rename` would, with ``path`` as
        its filename; ``EINVAL`` if something other than a regular file is there.  The old file is there still, and
        nothing else.  A failed fsync, too, is such an error, for it lost nothing that anybody had: trying again
        writes everything anew.  If the directory's fsync alone failed, the new file is there, and the message
        says that a crash may bring the old one back
    :raises TypeError: if ``data`` is text, or has no buffer

    If it raises the cancellation, nothing has changed and no temporary file is left.  Once the file has been renamed,
    a cancellation undoes nothing: the directory is synced, the function returns, and the cancellation strikes at the
    next checkpoint.

    A crash, or the process's end, before the rename leaves a temporary file, ``.anyio_uring-*.tmp``, in the directory.
    """
    given = os.fspath(path)
    if mode is not None:
        mode = operator.index(mode)
        if not 0 <= mode <= _MODE_MAX:
            raise ValueError(f"mode must be permission bits, 0 to 0o7777, not {mode:#o}")
    with _buffers.readable(data) as view:
        writer = _Writer(manager_for(io), mode)
        try:
            await writer.replace(os.fsdecode(given), view)
        except OSError as exc:
            # Of the caller's path, not of the temporary file's, or of two.
            raise OSError(exc.errno, exc.strerror, given) from exc


@attrs.define(eq=False)
class _Writer:
    """One replacement, in the directory ``dir_fd``."""

    io: AsyncIoManager
    mode: int | None
    dir_fd: int = -1
    temporary: str = ""

    async def replace(self, path: str, data: memoryview) -> None:
        path, permissions = await self._resolve(path)
        directory, name = os.path.split(path)
        self.dir_fd = await self.io.open(directory or os.curdir, os.O_RDONLY | os.O_DIRECTORY)
        try:
            await self._write(data, permissions)
            try:
                await self.io.rename(self.temporary, name, src_dir_fd=self.dir_fd, dst_dir_fd=self.dir_fd)
            except BaseException:
                await self._unlink()
                raise
            await self._sync_directory()
        finally:
            await self.io._close_surely(self.dir_fd)

    async def _resolve(self, path: str) -> tuple[str, int | None]:
        """Return the path behind symbolic links, and the permissions of the file that is there."""
        try:
            status = await self.io.stat(path, follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode):
                link, path = path, await self.io._loop.run_in_thread(partial(_follow, path), None)
                status = await self._find(link, path)
        except FileNotFoundError:
            if not os.path.basename(path):
                # As open() says it of a name that can only be a directory's; of no name at all it says ENOENT.
                raise _error(errno.EISDIR if path else errno.ENOENT) from None
            return path, None
        if stat.S_ISDIR(status.st_mode):
            raise _error(errno.EISDIR)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "this is no regular file, and only such can be replaced")
        return path, status.st_mode & _PERMISSIONS

    async def _find(self, link: str, path: str) -> FileStatus:
        """Return the status of what a link leads to; of a link in ``/proc``, its text is no path if the name is gone."""
        try:
            return await self.io.stat(path, follow_symlinks=False)
        except FileNotFoundError:
            await self.io.stat(link)  # most often it leads to nothing, and this says so, too
        try:
            return await self.io.stat(path, follow_symlinks=False)  # it was created between the two
        except FileNotFoundError:
            raise OSError(
                errno.EINVAL, "this leads to a file that has no name, and only a name can be replaced"
            ) from None

    async def _write(self, data: memoryview, permissions: int | None) -> None:
        """Write and sync the temporary file; it has no name any more if that fails."""
        wanted = permissions if self.mode is None else self.mode
        # What the old file's content was hidden from must not see the new one, not even for a moment: the umask can
        # only take away.  What it took is given back on the finished file.
        fd = await self._create(0o666 if wanted is None else wanted & _PERMISSIONS)
        try:
            try:
                await self.io.write_all(fd, data, 0)
                if wanted is not None:
                    await self._set_mode(fd, wanted)
                await self.io.fsync(fd)  # not fdatasync(2), which leaves out the mode
            finally:
                await self.io._close_surely(fd)
        except BaseException:
            await self._unlink()
            raise

    async def _create(self, mode: int) -> int:
        for _ in range(_NAMES_MAX):
            self.temporary = _path_calls.temporary_name()
            try:
                return await self.io.open(
                    self.temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode, dir_fd=self.dir_fd
                )
            except FileExistsError:
                continue
        raise OSError(errno.EEXIST, f"{_NAMES_MAX} names for a temporary file were all taken")

    async def _set_mode(self, fd: int, mode: int) -> None:
        if stat.S_IMODE((await self.io.stat(fd)).st_mode) != mode:
            await self.io._loop.run_in_thread(partial(os.fchmod, fd, mode), None)  # io_uring has no such operation

    async def _unlink(self) -> None:
        """Remove the temporary file, whatever is cancelled; the error that led here says more than one of this."""
        call = _path_calls.unlink(self.temporary, self.dir_fd)
        try:
            await self.io._performer.surely(call)
        except OSError:
            # The disk is gone, or read-only by now; or somebody else has tidied up.
            return

    async def _sync_directory(self) -> None:
        """Make the rename durable, whatever is cancelled (C6)."""
        try:
            await self.io._performer.surely(_path_calls.sync(self.dir_fd))
        except OSError as exc:
            raise OSError(
                exc.errno,
                f"the file was replaced, but its directory could not be synced ({exc.strerror}): "
                "a crash may bring the old file back",
            ) from None


def _follow(path: str) -> str:
    """Return what is behind all symbolic links; the last one may lead to nothing, as :func:`open` has it."""
    path = os.path.realpath(path)
    if os.path.islink(path):
        raise _error(errno.ELOOP)
    return path


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))

"""The steps of copying one file: checks, the kernel's own ways of copying, metadata, and the name at the end.

Everything here blocks and runs in worker threads.  What belongs together is one step and so one visit to a
thread: a ring has no operation for cloning, ``copy_file_range(2)``, ``lseek(2)`` or what ``copystat()`` does.
It knows paths and descriptors; it knows no event loop and no manager.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import attrs

# Between two steps a copy reports its progress and can be cancelled.
STEP_BYTES: Final = 32 << 20
# linux/fs.h: _IOW(0x94, 9, int), as most architectures encode it; on others this is ENOTTY before Python 3.12.
_FICLONE: Final[int] = getattr(fcntl, "FICLONE", 0x40049409)
# The kernel, the filesystem, this pair of files or a seccomp filter will not do it: other ways may.
_UNABLE: Final = frozenset(
    {
        errno.EINVAL,
        errno.ENOSYS,
        errno.ENOTTY,
        errno.EOPNOTSUPP,
        errno.EPERM,
        errno.ETXTBSY,
        errno.EXDEV,
    }
)


@attrs.define(eq=False)
class FileCopy:
    """
    One file on its way to another name.

    :ivar size: bytes to copy: what the source had when it was opened
    :ivar is_link: the source is a symbolic link, and copied as one
    """

    source: str
    target: str
    follow_symlinks: bool = True
    size: int = 0
    is_link: bool = False
    source_fd: int = -1
    target_fd: int = -1
    # What the source must have had until the end, for zeros not to pass for its data.
    _needed: int = 0
    # Where the copy gets its name: the target, or what a link there leads to.
    _place: str = ""
    # The copy's name until it is complete.
    _temporary: str | None = None

    def begin(self) -> int | None:
        """
        Open both files and copy what one step copies.

        :return: the offset reached; ``None`` if the kernel cannot copy between these files
        :raises OSError: if there is nothing to copy, or nothing may be put there
        """
        self._check()
        if self.is_link:
            name = self._new_name()
            with self._naming_target():
                os.symlink(os.readlink(self.source), name)
            self._temporary = name
            return 0
        self._open()
        return self.size if self._clone() else self.copy_in_kernel(0)

    def _check(self) -> None:
        status = os.stat(self.source, follow_symlinks=self.follow_symlinks)
        self.is_link = stat.S_ISLNK(status.st_mode)
        try:
            existing = os.stat(self.target, follow_symlinks=not self.is_link)
        except FileNotFoundError:
            directory, name = os.path.split(self.target)
            # Of no name, or one behind a directory that is not there, realpath() would make another file's.
            if not name or not os.path.isdir(directory or os.curdir):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.target) from None
        else:
            if os.path.samestat(status, existing) or (self.is_link and self._leads_to_target()):
                raise shutil.SameFileError(f"{self.source!r} and {self.target!r} are the same file")
            _check_type(self.target, existing.st_mode)
            # Renaming over it needs no permission of its own.
            if not stat.S_ISLNK(existing.st_mode) and not os.access(self.target, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), self.target)
        _check_type(self.source, status.st_mode)
        # A link at the target is followed, as shutil does; its name stays.
        self._place = self.target if self.is_link else os.path.realpath(self.target)

    def _leads_to_target(self) -> bool:
        """Whether the link would take the place of what it leads to; one that is at the target already may stay."""
        try:
            is_same = os.path.samefile(self.source, self.target)
        except OSError:  # one of them leads to nothing that is to be had, and so nothing is lost
            return False
        return is_same and not (os.path.islink(self.target) and os.readlink(self.target) == os.readlink(self.source))

    def _open(self) -> None:
        # Not to wait for a FIFO's writer, should one have taken the file's place.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if self.follow_symlinks else os.O_NOFOLLOW)
        try:
            self.source_fd = os.open(self.source, flags)
        except BlockingIOError:  # a file that somebody has leased (fcntl(2)), which no FIFO can be: wait for it
            self.source_fd = os.open(self.source, flags & ~os.O_NONBLOCK)
        status = os.fstat(self.source_fd)
        _check_type(self.source, status.st_mode)
        self.size = self._needed = status.st_size
        name = self._new_name()
        # Nobody else's to read before it has its own permissions.
        with self._naming_target():
            self.target_fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._temporary = name

    def _new_name(self) -> str:
        return os.path.join(os.path.dirname(self._place), f".anyio-uring-copy-{secrets.token_hex(8)}")

    def _clone(self) -> bool:
        """Share the source's blocks, of all of it at once (``ioctl_ficlone(2)``); say whether that can be done."""
        if not self.size:
            return False
        try:
            clone(self.source_fd, self.target_fd)
        except OSError as exc:
            if exc.errno in _UNABLE:
                return False
            raise self.error(exc) from exc
        self.size = os.fstat(self.target_fd).st_size
        self._needed = 0
        return True

    def copy_in_kernel(self, offset: int) -> int | None:
        """
        Have the kernel copy the data behind an offset, 32 MiB of it at most (``copy_file_range(2)``, Linux 5.19).

        :return: the offset reached; ``None`` if it cannot
        """
        left = STEP_BYTES
        while left and offset < self.size:
            start, end = self._next_data(offset)
            if start >= self.size:
                return self.size
            try:
                count = copy_range(self.source_fd, self.target_fd, start, min(left, end - start))
            except OSError as exc:
                if exc.errno in _UNABLE:
                    return None
                raise self.error(exc) from exc
            if not count:
                if os.pread(self.source_fd, 1, start):
                    return None  # some filesystems without real files say so
                return self.end_at(start)
            left -= count
            offset = start + count
        return offset

    def end_at(self, offset: int) -> int:
        """
        Take an end before the size for what it is: in ``/sys``, files say that they have a page.

        :return: the offset, which is the copy's size then
        :raises OSError: if the source has shrunk
        """
        if os.fstat(self.source_fd).st_size != self._needed or os.pread(self.source_fd, 1, offset):
            raise self.shrunk(offset)
        self.size = min(self.size, offset)
        return offset

    def next_ranges(self, offset: int, chunk_bytes: int, window_bytes: int, members_max: int) -> list[tuple[int, int]]:
        """Return ``(offset, length)`` of the next pieces of data, holes left out."""
        ranges: list[tuple[int, int]] = []
        left = window_bytes
        while left and offset < self.size and len(ranges) < members_max:
            start, end = self._next_data(offset)
            if start >= self.size:
                break
            length = min(end - start, chunk_bytes, left)
            ranges.append((start, length))
            left -= length
            offset = start + length
        return ranges

    def _next_data(self, offset: int) -> tuple[int, int]:
        """Return where data begins at or behind an offset, and where the hole behind it does."""
        if not hasattr(os, "SEEK_DATA"):  # pragma: no cover - a system without
            return offset, self.size
        try:
            start = os.lseek(self.source_fd, offset, os.SEEK_DATA)
            end = os.lseek(self.source_fd, start, os.SEEK_HOLE)
        except OSError as exc:
            if exc.errno == errno.ENXIO:
                # Nothing but a hole, or a file that has shrunk; finish() tells them apart.
                return self.size, self.size
            if exc.errno in _UNABLE:
                return offset, self.size
            raise self.error(exc) from exc
        return min(start, self.size), min(end, self.size)

    def finish(self) -> None:
        """Give the copy its length, its metadata and, in one step, its name."""
        assert self._temporary is not None
        with self._naming_target():
            if not self.is_link:
                found = os.fstat(self.source_fd).st_size
                if found < self._needed:
                    raise self.shrunk(found)
                try:
                    os.ftruncate(self.target_fd, self.size)  # a hole at the end
                except OSError as exc:
                    raise self.error(exc) from exc
                self._close()  # before the times are set, for a close may write
                shutil.copystat(self.source, self._temporary)
            else:
                status = os.lstat(self.source)  # a link has no other metadata that anybody can set
                os.utime(self._temporary, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)
            os.replace(self._temporary, self._place)
        self._temporary = None

    def discard(self) -> None:
        """Close everything, and leave nothing behind unless the copy is complete."""
        try:
            self._close()
        finally:
            if self._temporary is not None:
                name, self._temporary = self._temporary, None
                with suppress(FileNotFoundError):  # somebody else has tidied up
                    os.unlink(name)

    def _close(self) -> None:
        source_fd, self.source_fd = self.source_fd, -1
        target_fd, self.target_fd = self.target_fd, -1
        if source_fd >= 0:
            os.close(source_fd)
        if target_fd >= 0:
            os.close(target_fd)

    @contextmanager
    def _naming_target(self) -> Iterator[None]:
        """Have errors name the target where they would name the temporary file, which the caller never gave."""
        try:
            yield
        except OSError as exc:
            if exc.filename == self.source:
                raise
            raise OSError(exc.errno, exc.strerror, self.target) from exc

    def shrunk(self, found: int) -> OSError:
        message = f"the file has shrunk while it was copied: {found} of {self.size} bytes were there"
        return OSError(errno.EIO, message, self.source)

    def error(self, exc: OSError) -> OSError:
        """Return an error of reading or writing that names both files, for it may be either's."""
        return OSError(exc.errno, exc.strerror, self.source, None, self.target)


def clone(source_fd: int, target_fd: int) -> None:
    fcntl.ioctl(target_fd, _FICLONE, source_fd)


def copy_range(source_fd: int, target_fd: int, offset: int, length: int) -> int:
    if not hasattr(os, "copy_file_range"):  # pragma: no cover - macOS
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    return os.copy_file_range(source_fd, target_fd, length, offset, offset)


def _check_type(path: str, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
        raise shutil.SpecialFileError(f"{path!r} is a special file ({stat.filemode(mode)})")

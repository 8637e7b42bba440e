"""``copy_tree()``: directories one after the other, their files several at once.

It knows directories, links and what went wrong where; how a file is copied is :mod:`anyio_uring._copy`'s.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, Union

import anyio
import attrs

from ._copy import Progress, StrPath, copy_file, in_thread
from ._core import manager_for
from ._manager import AsyncIoManager

# Files that are copied at once: 16 descriptors, and 64 MiB where the kernel cannot copy by itself.
FILES_MAX: Final = 8

Ignore = Union[Callable[[str, list[str]], Iterable[str]], None]


async def copy_tree(
    source: StrPath,
    target: StrPath,
    *,
    symlinks: bool = False,
    ignore: Ignore = None,
    dirs_exist_ok: bool = False,
    progress: Progress | None = None,
    io: AsyncIoManager | None = None,
) -> int:
    """
    Copy a directory and everything below it, as :func:`shutil.copytree` does, each file with :func:`copy_file`.

    :param target: the directory that the copy becomes; its parents are made if they are missing
    :param symlinks: copy symbolic links as links; otherwise what they lead to is copied
    :param ignore: called in a worker thread with a directory and the names in it; returns those to leave out
        (:func:`shutil.ignore_patterns` makes such functions)
    :param dirs_exist_ok: directories of the copy may exist: what is in them stays, files of the same name are
        replaced
    :param progress: called with the number of bytes done so far, of all files together, in a task of this call;
        what it raises ends the copy
    :param io: the manager that reads and writes; ``None``: the innermost open one
    :return: the bytes of all files together
    :raises shutil.Error: after everything else has been copied, if something could not be; its argument is a
        list of ``(source, target, why)``
    :raises OSError: if the source is no directory or the target cannot be made; nothing has been copied then

    Up to 8 files are copied at once.  A cancelled copy leaves whole files and directories behind, and no part of a
    file; directories whose turn has not come lack their permissions and times, and only their owner can enter them.
    """
    copy = _TreeCopy(manager_for(io), symlinks, ignore, dirs_exist_ok, progress)
    await copy.run(os.fsdecode(source), os.fsdecode(target))
    if copy.failures:
        raise copy.failures[0]
    if copy.errors:
        raise shutil.Error(copy.errors)
    return copy.done


@attrs.frozen
class _Directory:
    source: str
    target: str
    # (device, inode) of it and those it is in: to come upon one of them again is to go round in circles.
    chain: tuple[tuple[int, int], ...]


@attrs.define(eq=False)
class _TreeCopy:
    """A copy in the making.  Methods without ``async`` block, and run in worker threads."""

    io: AsyncIoManager
    symlinks: bool
    ignore: Ignore
    dirs_exist_ok: bool
    progress: Progress | None
    done: int = 0
    # (source, target, why), as in shutil.Error
    errors: list[tuple[str, str, str]] = attrs.field(factory=list)
    # What ends the copy: the caller's own errors, and the manager's.
    failures: list[Exception] = attrs.field(factory=list)
    directories: list[tuple[str, str]] = attrs.field(factory=list)

    async def run(self, source: str, target: str) -> None:
        todo = [await in_thread(partial(self.make_root, source, target))]
        room = anyio.Semaphore(FILES_MAX)
        async with anyio.create_task_group() as tasks:

            async def copy(file: tuple[str, str]) -> None:
                try:
                    await self._copy(*file)
                except Exception as exc:  # noqa: BLE001 - raised behind the task group
                    self.failures.append(exc)
                    tasks.cancel_scope.cancel()
                finally:
                    room.release()

            while todo:
                try:
                    directories, files = await in_thread(partial(self.enter, todo.pop()))
                except Exception as exc:  # noqa: BLE001 - ignore()'s: raised behind the task group
                    self.failures.append(exc)
                    tasks.cancel_scope.cancel()
                    break
                todo += reversed(directories)
                for file in files:
                    await room.acquire()
                    tasks.start_soon(copy, file)
        if not self.failures:
            await in_thread(self.copy_directories_metadata)

    async def _copy(self, source: str, target: str) -> None:
        before = 0

        def report(done: int) -> None:
            nonlocal before
            self.done += done - before
            before = done
            if self.progress is not None:
                try:
                    self.progress(self.done)
                except Exception as exc:
                    self.failures.append(exc)
                    raise

        try:
            await copy_file(source, target, follow_symlinks=not self.symlinks, progress=report, io=self.io)
        except OSError as exc:
            if self.failures:  # progress() has raised it, not the file
                raise
            self.done -= before
            self.errors.append((source, target, str(exc)))

    def make_root(self, source: str, target: str) -> _Directory:
        status = os.stat(source)
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), source)
        inner, outer = os.path.realpath(target), os.path.realpath(source)
        if os.path.commonpath([inner, outer]) == outer:
            raise shutil.Error(f"cannot copy a directory, {source!r}, into itself, {target!r}")
        os.makedirs(target, mode=0o700, exist_ok=self.dirs_exist_ok)
        return _Directory(source, target, ((status.st_dev, status.st_ino),))

    def enter(self, directory: _Directory) -> tuple[list[_Directory], list[tuple[str, str]]]:
        """Make the directories that are in one, and list its files."""
        directories: list[_Directory] = []
        files: list[tuple[str, str]] = []
        self.directories.append((directory.source, directory.target))
        try:
            with os.scandir(directory.source) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as exc:
            self.errors.append((directory.source, directory.target, str(exc)))
            return [], []
        left_out = set(self.ignore(directory.source, [entry.name for entry in entries])) if self.ignore else set()
        for entry in entries:
            target = os.path.join(directory.target, entry.name)
            try:
                if entry.name in left_out:
                    continue
                if entry.is_dir(follow_symlinks=not self.symlinks):
                    directories.append(self._make(entry, target, directory.chain))
                else:
                    files.append((entry.path, target))
            except OSError as exc:
                self.errors.append((entry.path, target, str(exc)))
        return directories, files

    def _make(self, entry: os.DirEntry[str], target: str, chain: tuple[tuple[int, int], ...]) -> _Directory:
        status = os.stat(entry.path)
        identity = status.st_dev, status.st_ino
        if identity in chain:
            raise OSError(errno.ELOOP, "the link leads to a directory that it is in", entry.path)
        os.makedirs(target, mode=0o700, exist_ok=self.dirs_exist_ok)
        return _Directory(entry.path, target, (*chain, identity))

    def copy_directories_metadata(self) -> None:
        # The innermost first, for a directory's own permissions may forbid to reach what is in it.
        for source, target in reversed(self.directories):
            try:
                shutil.copystat(source, target)
            except OSError as exc:
                self.errors.append((source, target, str(exc)))

"""The demo's job: copy a directory tree, make the copy durable, read it back, compare every byte.

It knows trees, groups of files and bytes, and uses a manager's public verbs alone.  It knows no
terminal: progress goes to a callback, and findings go back to the caller.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Final

import anyio
import anyio.to_thread
import attrs

from ._core import open_uring
from ._manager import AsyncIoManager
from ._options import DriverChoice
from ._stats import IoStatistics

# A group's files are open at the same time, source and copy: 256 of the usual 1024 descriptors.
GROUP_FILES_MAX: Final = 128
# A group's bytes are in memory twice, as they were read and as they were read back.
GROUP_BYTES_MAX: Final = 32 << 20
PIECE_BYTES_MAX: Final = 1 << 20


@attrs.frozen
class Tree:
    """What there is to copy: paths are relative to ``root``, directories come before their entries."""

    root: str
    directories: list[str] = attrs.field(factory=list)
    # {path: size in bytes}; links to files are among them, and are followed.
    files: dict[str, int] = attrs.field(factory=dict)
    # {path: target} of links to directories or to nothing, which are copied as links.
    links: dict[str, str] = attrs.field(factory=dict)
    # {path: why it is not copied}
    skipped: dict[str, str] = attrs.field(factory=dict)

    @property
    def total_bytes(self) -> int:
        """Bytes in all files together."""
        return sum(self.files.values())


@attrs.frozen(kw_only=True)
class Outcome:
    """What one run of the job gave: ``problems`` is empty if the copy equals the original."""

    files: int
    total_bytes: int
    seconds: float
    statistics: IoStatistics
    problems: list[str]
    skipped: dict[str, str]


@attrs.define(eq=False)
class _Piece:
    """A range of one file, and its descriptors while its group is in work."""

    path: str
    offset: int
    length: int
    source_fd: int = -1
    copy_fd: int = -1


def scan(root: str, leave_out: Iterable[str] = ()) -> Tree:
    """
    List a directory tree.

    :param leave_out: names of entries directly in ``root`` that do not count
    :raises OSError: if ``root`` itself cannot be listed
    """
    tree = Tree(root)
    ignored = set(leave_out)
    todo = [""]
    while todo:
        directory = todo.pop()
        try:
            with os.scandir(os.path.join(root, directory)) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as exc:
            if not directory:
                raise
            tree.skipped[directory] = _reason(exc)
            continue
        tree.directories.append(directory)
        for entry in entries:
            path = os.path.join(directory, entry.name)
            if path in ignored:
                continue
            try:
                if entry.is_dir(follow_symlinks=False):
                    todo.append(path)
                else:
                    _add(tree, entry, path)
            except OSError as exc:
                tree.skipped[path] = _reason(exc)
    return tree


def _add(tree: Tree, entry: os.DirEntry[str], path: str) -> None:
    if entry.is_file():
        tree.files[path] = entry.stat().st_size
    elif entry.is_symlink() and (entry.is_dir() or not os.path.exists(entry.path)):
        tree.links[path] = os.readlink(entry.path)
    else:
        tree.skipped[path] = f"a special file ({stat.filemode(entry.stat().st_mode)})"


async def copy_and_verify(
    tree: Tree, target: str, *, driver: DriverChoice, depth: int, advance: Callable[[int], None]
) -> Outcome:
    """
    Copy a tree into the new directory ``target``, fsync everything, read it back and compare it.

    :param advance: called with a number of bytes when they have been compared
    :raises OSError: if the copy cannot be written, or its descriptors run out
    :raises BatchError: if an operation on the copy failed
    """
    started = time.perf_counter()
    async with open_uring(driver=driver, depth=depth) as io:
        copy = _Copy(io, tree, target)
        await anyio.to_thread.run_sync(copy.make_directories)
        for group in _groups(tree):
            await copy.do_group(group)
            advance(sum(piece.length for piece in group))
        await copy.sync_directories()
        await anyio.to_thread.run_sync(copy.check_names_and_sizes)
        return Outcome(
            files=len(tree.files) - len(copy.skipped),
            total_bytes=sum(size for path, size in tree.files.items() if path not in copy.skipped),
            seconds=time.perf_counter() - started,
            statistics=io.statistics(),
            problems=copy.problems,
            skipped=copy.skipped,
        )


@attrs.define(eq=False)
class _Copy:
    """One copy in the making.  Methods without ``async`` block, and run in worker threads."""

    io: AsyncIoManager
    tree: Tree
    target: str
    problems: list[str] = attrs.field(factory=list)
    skipped: dict[str, str] = attrs.field(factory=dict)

    async def do_group(self, group: list[_Piece]) -> None:
        """Copy, sync, read back and compare one group of pieces."""
        try:
            await anyio.to_thread.run_sync(self._open, group)
            pieces = [piece for piece in group if piece.source_fd >= 0]
            originals = await _read_whole(self.io, [(p.source_fd, p.length, p.offset) for p in pieces])
            writes: list[tuple[int, memoryview, int]] = []
            for piece, data in zip(pieces, originals, strict=True):
                if isinstance(data, OSError):
                    self.skipped[piece.path] = _reason(data)
                else:
                    writes.append((piece.copy_fd, memoryview(data), piece.offset))
            await _write_whole(self.io, writes)
            await self.io.fsync_batch(list(dict.fromkeys(piece.copy_fd for piece in pieces)))
            await anyio.to_thread.run_sync(_drop_caches, [piece.copy_fd for piece in pieces])
            copies = await _read_whole(self.io, [(p.copy_fd, p.length, p.offset) for p in pieces])
            await anyio.to_thread.run_sync(self._compare, pieces, copies)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(_close, group)

    async def sync_directories(self) -> None:
        """Make the copy's names durable, too."""
        paths = [self._in_copy(path) for path in self.tree.directories]
        for first in range(0, len(paths), GROUP_FILES_MAX):
            fds: list[int] = []
            try:
                await anyio.to_thread.run_sync(_open_directories, paths[first : first + GROUP_FILES_MAX], fds)
                await self.io.fsync_batch(fds)
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(_close_all, fds)

    def make_directories(self) -> None:
        for path in self.tree.directories:
            os.mkdir(self._in_copy(path))
        for path, link_target in self.tree.links.items():
            os.symlink(link_target, self._in_copy(path))

    def check_names_and_sizes(self) -> None:
        """Find what is missing, and what changed its size (an original that grew meanwhile, too)."""
        for path in self.skipped:
            with suppress(FileNotFoundError):
                os.unlink(self._in_copy(path))
        for path in self.tree.files:
            if path in self.skipped:
                continue
            try:
                sizes = os.stat(self._in_source(path)).st_size, os.stat(self._in_copy(path)).st_size
            except OSError as exc:
                self.problems.append(f"{path}: {_reason(exc)}")
            else:
                if sizes[0] != sizes[1]:
                    self.problems.append(f"{path}: {sizes[1]} bytes instead of {sizes[0]}")
        self._check_links()

    def _check_links(self) -> None:
        for path, link_target in self.tree.links.items():
            try:
                found = os.readlink(self._in_copy(path))
            except OSError as exc:
                self.problems.append(f"{path}: {_reason(exc)}")
            else:
                if found != link_target:
                    self.problems.append(f"{path}: the link leads elsewhere")

    def _open(self, group: list[_Piece]) -> None:
        last: _Piece | None = None
        for piece in group:
            if last is None or last.path != piece.path:
                try:
                    piece.source_fd = os.open(self._in_source(piece.path), os.O_RDONLY | os.O_CLOEXEC)
                except OSError as exc:
                    if exc.errno in {errno.EMFILE, errno.ENFILE}:
                        raise
                    self.skipped[piece.path] = _reason(exc)
                else:
                    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | (0 if piece.offset else os.O_EXCL)
                    piece.copy_fd = os.open(self._in_copy(piece.path), flags, 0o600)
            else:
                piece.source_fd, piece.copy_fd = last.source_fd, last.copy_fd
            last = piece
        _drop_caches([piece.source_fd for piece in group if piece.source_fd >= 0])

    def _compare(self, pieces: list[_Piece], copies: list[bytes | OSError]) -> None:
        """Compare what was read back with the original, which is read again without the library."""
        for piece, copy in zip(pieces, copies, strict=True):
            if piece.path in self.skipped:
                continue
            if isinstance(copy, OSError):
                self.problems.append(f"{piece.path}: {_reason(copy)}")
                continue
            original = _pread_whole(piece.source_fd, piece.length, piece.offset)
            if copy != original:
                pairs = enumerate(zip(copy, original, strict=False))
                first = next((i for i, (a, b) in pairs if a != b), min(len(copy), len(original)))
                self.problems.append(f"{piece.path}: differs from the original at byte {piece.offset + first}")

    def _in_source(self, path: str) -> str:
        return os.path.join(self.tree.root, path)

    def _in_copy(self, path: str) -> str:
        return os.path.join(self.target, path)


def _groups(tree: Tree) -> Iterator[list[_Piece]]:
    """Split files into pieces, and pieces into groups that fit into memory and the descriptor table."""
    group: list[_Piece] = []
    group_files = group_bytes = 0
    for path, size in tree.files.items():
        group_files += 1
        for offset in range(0, size or 1, PIECE_BYTES_MAX):
            piece = _Piece(path, offset, min(PIECE_BYTES_MAX, size - offset))
            if group_files > GROUP_FILES_MAX or group_bytes + piece.length > GROUP_BYTES_MAX:
                yield group
                group, group_files, group_bytes = [], 1, 0
            group.append(piece)
            group_bytes += piece.length
    if group:
        yield group


async def _read_whole(io: AsyncIoManager, ranges: Sequence[tuple[int, int, int]]) -> list[bytes | OSError]:
    """Read ``(fd, length, offset)`` each, asking again after short reads: fewer bytes only at the end of a file."""
    results: list[bytes | OSError] = [b""] * len(ranges)
    left = {index: wanted for index, wanted in enumerate(ranges) if wanted[1]}
    while left:
        asked, left = left, {}
        answers = await io.read_batch(asked.values(), return_exceptions=True)
        for (index, (fd, length, offset)), answer in zip(asked.items(), answers, strict=True):
            before = results[index]
            if isinstance(answer, OSError) or isinstance(before, OSError):
                results[index] = answer
                continue
            results[index] = before + answer if before else answer
            if answer and len(answer) < length:
                left[index] = fd, length - len(answer), offset + len(answer)
    return results


async def _write_whole(io: AsyncIoManager, writes: Sequence[tuple[int, memoryview, int]]) -> None:
    """Write ``(fd, data, offset)`` each, asking again after short writes."""
    left = [write for write in writes if write[1]]
    while left:
        counts = await io.write_batch(left)
        if not all(counts):
            raise OSError(errno.EIO, "the kernel wrote nothing and gave no error")
        left = [
            (fd, data[count:], offset + count)
            for (fd, data, offset), count in zip(left, counts, strict=True)
            if count < len(data)
        ]


def _pread_whole(fd: int, length: int, offset: int) -> bytes:
    data = b""
    while len(data) < length and (more := os.pread(fd, length - len(data), offset + len(data))):
        data += more
    return data


def _drop_caches(fds: Iterable[int]) -> None:
    """Ask the kernel to forget clean pages, so that reads go to the disk: POSIX_FADV_DONTNEED, where there is one."""
    if hasattr(os, "posix_fadvise"):  # pragma: no branch - macOS has none
        for fd in dict.fromkeys(fds):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def _open_directories(paths: Iterable[str], fds: list[int]) -> None:
    for path in paths:
        # One by one, so that the caller can close those that were opened before an error.
        fds.append(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))  # noqa: PERF401


def _close(group: list[_Piece]) -> None:
    _close_all({fd for piece in group for fd in (piece.source_fd, piece.copy_fd) if fd >= 0})


def _close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def _reason(exc: OSError) -> str:
    return exc.strerror or str(exc)

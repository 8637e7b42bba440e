"""``copy_file()``: the kernel's own copy where there is one, otherwise reads and writes side by side.

It knows the order of a copy's steps, progress and cancellation; what a step does to paths and descriptors is
:mod:`anyio_uring._copy_steps`'s.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, TypeVar, Union

import anyio

from ._copy_steps import FileCopy
from ._core import manager_for
from ._manager import AsyncIoManager
from ._waiters import current_loop

StrPath = Union[str, "os.PathLike[str]"]
Progress = Callable[[int], object]

ResultT = TypeVar("ResultT")

# Above 256 KiB a transfer of a file goes to a worker of the kernel, so that copying does not hold the event loop.
_CHUNK_BYTES: Final = 512 << 10
# Of which there are two: one is read while the other is written.
_WINDOW_BYTES: Final = 4 << 20
_WINDOW_CHUNKS: Final = 64


async def copy_file(
    source: StrPath,
    target: StrPath,
    *,
    follow_symlinks: bool = True,
    progress: Progress | None = None,
    io: AsyncIoManager | None = None,
) -> int:
    """
    Copy a file: its data, its holes, and its metadata as :func:`shutil.copy2` does.

    Where the filesystem can, the copy shares the source's blocks (``ioctl_ficlone(2)``) or the kernel copies
    (``copy_file_range(2)``), in worker threads; otherwise the manager reads and writes, up to 4 MiB in flight in
    each direction.  The copy has a name of its own in the target's directory until it is complete, and then takes
    the target's in one step: nobody sees a part of it, and a target that exists stays as it is until then.

    :param source: a file, of which what it has when it is opened is copied; what is appended later is not
    :param target: the name of the copy, not a directory.  A file there is replaced, not written to: its owner and
        its other hard links are not the copy's.  A symbolic link there is followed
    :param follow_symlinks: ``False``: copy a symbolic link as a link
    :param progress: called with the number of bytes done so far, holes counted, in the calling task, after every
        step of up to 32 MiB and at least once, at the end; what it raises ends the copy
    :param io: the manager that reads and writes; ``None``: the innermost open one
    :return: the size of the copy, in bytes
    :raises OSError: as :func:`shutil.copy2` would (``shutil.SameFileError`` and ``SpecialFileError`` are among
        them, and :class:`IsADirectoryError` where the target is a directory); ``EIO`` if the source has become shorter

    A cancellation takes effect after the step that is in work.  After that, or an error, nothing is left behind.
    The copy is not durable when the call returns: that takes a sync of the file and of its directory.
    """
    manager = manager_for(io)
    copy = FileCopy(os.fsdecode(source), os.fsdecode(target), follow_symlinks)
    try:
        return await _copy(copy, manager, progress)
    except BaseException:
        await in_thread(copy.discard, is_certain=True)
        raise


async def _copy(copy: FileCopy, io: AsyncIoManager, progress: Progress | None) -> int:
    report = progress or _ignore
    offset: int | None = await in_thread(copy.begin)
    done = 0
    while offset is not None and offset < copy.size:
        done = offset
        report(done)
        offset = await in_thread(partial(copy.copy_in_kernel, done))
    if offset is None:
        await _copy_pipelined(io, copy, done, report)
    elif not copy.size and not copy.is_link:
        await _copy_unsized(io, copy)
    report(copy.size)
    await in_thread(copy.finish)
    return copy.size


async def _copy_pipelined(io: AsyncIoManager, copy: FileCopy, offset: int, report: Progress) -> None:
    """Read a window of chunks while the one before is written."""
    length = min(_WINDOW_BYTES, copy.size - offset)
    memory, other = memoryview(bytearray(length)), memoryview(bytearray(length))
    parts = await _read_window(io, copy, memory, offset)
    while parts:
        view, start = parts[-1]
        end = start + len(view)
        written = partial(_transfer_whole, io.write_batch, copy, copy.target_fd, parts)
        parts = await _together(written, partial(_read_window, io, copy, other, end))
        memory, other = other, memory
        if end < copy.size:
            report(end)


async def _read_window(
    io: AsyncIoManager, copy: FileCopy, memory: memoryview, offset: int
) -> list[tuple[memoryview, int]]:
    """Read the next data behind an offset; return ``(data, offset)`` of each piece, none at the end."""
    ranges = await in_thread(partial(copy.next_ranges, offset, _CHUNK_BYTES, len(memory), _WINDOW_CHUNKS))
    parts: list[tuple[memoryview, int]] = []
    used = 0
    for start, length in ranges:
        parts.append((memory[used : used + length], start))
        used += length
    await _transfer_whole(io.readinto_batch, copy, copy.source_fd, parts)
    return parts


async def _transfer_whole(
    batch: Callable[..., Awaitable[list[Any]]], copy: FileCopy, fd: int, parts: list[tuple[memoryview, int]]
) -> None:
    """Read or write every byte, asking again after short transfers."""
    left = parts
    while left:
        counts = await batch([(fd, view, offset) for view, offset in left], return_exceptions=True)
        rest: list[tuple[memoryview, int]] = []
        for count, (view, offset) in zip(counts, left, strict=True):
            if isinstance(count, OSError):
                raise copy.error(count) from count
            if not count and fd == copy.source_fd:
                await in_thread(partial(copy.end_at, offset))
            elif not count:
                raise copy.error(OSError(errno.EIO, "the kernel wrote nothing and gave no error"))
            elif count < len(view):
                rest.append((view[count:], offset + count))
        left = rest


async def _copy_unsized(io: AsyncIoManager, copy: FileCopy) -> None:
    """Copy what is in a file that says it is empty: in ``/proc`` that need not be so."""
    size = 0
    try:
        while data := await io.read(copy.source_fd, _CHUNK_BYTES, size):
            await io.write_all(copy.target_fd, data, size)
            size += len(data)
    except OSError as exc:
        raise copy.error(exc) from exc
    copy.size = size


async def _together(first: Callable[[], Awaitable[object]], second: Callable[[], Awaitable[ResultT]]) -> ResultT:
    """Run both at once and return what the second gives; raise an error as it was raised, in no group."""
    results: list[ResultT] = []
    failures: list[Exception] = []

    async def run(function: Callable[[], Awaitable[Any]], results: list[Any]) -> None:
        try:
            results.append(await function())
        except Exception as exc:  # noqa: BLE001 - raised below
            failures.append(exc)
            tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, first, [])
        await run(second, results)
    if failures:
        raise failures[0]
    return results[0]


async def in_thread(function: Callable[[], ResultT], *, is_certain: bool = False) -> ResultT:
    """
    Call a function in a worker thread; its end is waited for in any case, for it uses our descriptors.

    :param is_certain: call it also if the task has been cancelled
    """
    return await current_loop().run_in_thread(function, None, is_certain=is_certain)


def _ignore(_done: int) -> None:
    pass

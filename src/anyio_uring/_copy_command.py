"""The command ``anyio-uring cp``: its progress, its words and its exit status.

It knows terminals and where ``cp`` puts things; copying is :mod:`anyio_uring._copy`'s and ``_copy_tree``'s.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import anyio

from ._copy import copy_file
from ._copy_tree import copy_tree
from ._core import open_uring
from ._options import DriverChoice
from ._output import complain, is_terminal, tell


def cp(source: str, target: str, *, recursive: bool, driver: DriverChoice) -> int:
    """
    Copy a file or a directory, and say what was copied.

    :return: the exit status: 1 if something could not be copied
    """
    try:
        if os.path.isdir(source) and not recursive:
            raise IsADirectoryError(f"{source!r} is a directory: add -r to copy it")
        if os.path.isdir(target):
            target = os.path.join(target, os.path.basename(os.path.abspath(source)))
        with _progress(source, recursive=os.path.isdir(source)) as report:
            count = anyio.run(partial(_copy, source, target, driver, report, recursive=os.path.isdir(source)))
    except shutil.Error as exc:
        _complain(exc)
        return 1
    except OSError as exc:
        complain(str(exc))
        return 1
    tell(f"{source} -> {target}: {count} bytes")
    return 0


async def _copy(
    source: str, target: str, driver: DriverChoice, report: Callable[[int], object], *, recursive: bool
) -> int:
    async with open_uring(driver=driver) as io:
        if recursive:
            return await copy_tree(source, target, symlinks=True, dirs_exist_ok=True, progress=report, io=io)
        return await copy_file(source, target, progress=report, io=io)


@contextmanager
def _progress(source: str, *, recursive: bool) -> Iterator[Callable[[int], object]]:
    """Show a bar on a terminal, if rich is there to draw one."""
    if not is_terminal() or importlib.util.find_spec("rich") is None:
        yield lambda _done: None
        return
    from rich.progress import (  # noqa: PLC0415 - not everyone has it
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn()
    total = _tree_size(source) if recursive else os.stat(source).st_size
    with Progress(*columns, TimeRemainingColumn()) as progress:
        task = progress.add_task("copying", total=total)
        yield lambda done: progress.update(task, completed=done)


def _tree_size(root: str) -> int:
    total = 0
    for directory, _, names in os.walk(root):
        for name in names:
            path = os.path.join(directory, name)
            total += 0 if os.path.islink(path) else os.lstat(path).st_size
    return total


def _complain(error: shutil.Error) -> None:
    problems = error.args[0]
    if isinstance(problems, list):
        for _source, _target, why in problems:
            complain(why)
    else:
        complain(problems)

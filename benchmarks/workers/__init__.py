"""
The programs of the participants: one module each, run by ``benchmarks.worker`` in an environment of its own.

A module has one class ``Worker``, and imports what it measures at its top, so that an import error
says why it is absent.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from benchmarks.cases import Case


class AbsentError(Exception):
    """A participant cannot take part, and why."""


class Base:
    """
    What every worker has; what it cannot do, it has no method for.

    A method for a kind of cases does exactly what its participant's user would write, and returns
    the last bytes that it read.  In the worker of a synchronous participant they are plain
    functions, and are called once with all offsets; otherwise coroutine functions, once for each task.

    ``reads(offsets)``
        await the reads at the offsets one after another
    ``batches(groups)``
        for each group of offsets, ask for all its reads together; returns the last group's
    ``batches_into(groups)``
        the same into ``self.buffers``
    ``reads_into(offsets, buffer)``
        as ``reads``, into a buffer
    ``files(paths)``
        open, read and close each file
    ``writes(offsets, data)``
        write, and make durable, one after another
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.descriptor = -1
        self.size = 0
        self.path = ""
        self.buffers: Sequence[memoryview] = ()

    @property
    def driver(self) -> str:
        """What does the work, by the participant's own word."""
        return "synchronous"

    def prepare(self, case: Case, path: str, descriptor: int, buffers: Sequence[memoryview]) -> None:
        self.size = case.size
        self.path = path
        self.descriptor = descriptor
        self.buffers = buffers

    async def open(self, case: Case) -> None:
        """Open what a case needs, untimed."""

    async def close(self) -> None:
        """Close what ``open()`` opened."""


def read_file(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.pread(descriptor, 65536, 0)
    finally:
        os.close(descriptor)

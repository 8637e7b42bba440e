"""A process that appends with 32 tasks, and says of each record that it was acknowledged, until it is killed."""

from __future__ import annotations

import os
import random
import sys
from functools import partial
from typing import Any

import anyio

from anyio_uring import FsyncMode, open_append_log, open_uring

TASKS = 32


def record(name: int, number: int) -> bytes:
    """Return the bytes of a record: its name, and as many more as its name says."""
    return b"%d/%d/" % (name, number) + random.Random(name * 1_000_003 + number).randbytes(name * number * 37 % 3000)


async def main(path: str, driver: Any, mode: str, first: int) -> None:
    """Append for ever; records are numbered from ``first`` on."""
    async with (
        open_uring(driver=driver) as io,
        open_append_log(path, io=io, fsync=FsyncMode(mode), preallocate=1 << 20) as log,
        anyio.create_task_group() as tasks,
    ):

        async def work(name: int) -> None:
            number = first
            while True:
                offset = await log.append(record(name, number))
                os.write(1, b"%d %d %d\n" % (offset, name, number))  # below PIPE_BUF: whole or not at all
                number += 1

        for name in range(TASKS):
            tasks.start_soon(work, name)


if __name__ == "__main__":
    path, driver, mode, first, backend = sys.argv[1:]
    anyio.run(partial(main, path, driver, mode, int(first)), backend=backend)

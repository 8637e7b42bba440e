"""
What is counted once, and not timed: kernel entries and memory, each in processes of its own.

    python -m benchmarks.single entries FILE READS
    python -m benchmarks.single memory COUNT event|read traced|resident

The suite calls :func:`kernel_entries` and :func:`memory`; they run this module in the library's environment.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

from .data import BLOCK, check
from .environments import ROOT, clean_environment

BATCH = 32
_PER = 1_000_000
# Whatever may carry a read; of the others (a poll for each turn of the loop, say) any program has some.
_CALLS = ("io_uring_enter", "pread64", "preadv", "preadv2", "readv")
_IN_FLIGHT = 4000


class NotCountedError(Exception):
    """Something could not be counted here, and why."""


def kernel_entries(python: str, path: Path, reads: int) -> dict[str, Any]:
    """
    Count the kernel entries of a million reads in batches of 32, from outside and by the library's word.

    :raises NotCountedError: if there is no strace, or it may not trace
    """
    strace = shutil.which("strace")
    if strace is None:
        raise NotCountedError("strace is not installed (Debian: apt-get install strace)")
    with tempfile.TemporaryDirectory() as directory:
        counts = Path(directory) / "counts"
        tracing = [strace, "-f", "--seccomp-bpf", "-qq", "-c", "-o", str(counts), "-e", f"trace={','.join(_CALLS)}"]
        answer = _run([*tracing, python, "-m", "benchmarks.single", "entries", str(path), str(reads)])
        calls = {}
        for line in counts.read_text().splitlines():
            words = line.split()
            if words and words[-1] in _CALLS:
                calls[words[-1]] = int(words[3])
    scale = _PER / reads
    return {
        "counted": sum(calls.values()) * scale,
        "reported": answer["syscalls"] * scale,
        "calls": calls,
        "reads": reads,
    }


def memory(python: str) -> dict[str, float]:
    """Measure the bytes that one awaited operation costs while it is in flight, its buffer and its task apart."""

    def each(how: str) -> float:
        command = [python, "-m", "benchmarks.single", "memory", str(_IN_FLIGHT)]
        waiting, reading = (float(_run([*command, what, how])["bytes"]) for what in ("event", "read"))
        return (reading - waiting) / _IN_FLIGHT

    return {"traced": each("traced"), "resident": each("resident")}


def _run(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=clean_environment())
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise NotCountedError(f"{Path(command[0]).name} ended with status {done.returncode}: {lines[-1]}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


# --- in the library's environment ----------------------------------------------------------------


async def _entries(path: str, reads: int) -> dict[str, Any]:
    open_uring: Any = importlib.import_module("anyio_uring").open_uring
    chance, slots = random.Random(1), os.path.getsize(path) // BLOCK
    descriptor = os.open(path, os.O_RDONLY)
    try:
        async with open_uring(driver="uring") as io:
            before = io.statistics()
            for _ in range(reads // BATCH):
                offsets = [chance.randrange(slots) * BLOCK for _ in range(BATCH)]
                blocks = await io.read_batch([(descriptor, BLOCK, offset) for offset in offsets])
                for block, offset in zip(blocks, offsets):
                    check(block, offset, BLOCK)
            return {"syscalls": io.statistics().syscalls - before.syscalls}
    finally:
        os.close(descriptor)


async def _memory(count: int, what: str, how: str) -> dict[str, Any]:
    anyio: Any = importlib.import_module("anyio")
    open_uring: Any = importlib.import_module("anyio_uring").open_uring
    buffers = [bytearray(1) for _ in range(count)]
    event = anyio.Event()
    ends = os.pipe()

    async def read(i: int) -> None:
        await io.readinto(ends[0], buffers[i], 0)

    async def wait(i: int) -> None:  # noqa: ARG001
        await event.wait()

    async def used(number: int) -> int:
        """Have so many tasks wait, and return the memory that is in use meanwhile, more than before."""
        gc.collect()
        before = _in_use(how)
        async with anyio.create_task_group() as group:
            for i in range(number):
                group.start_soon(read if what == "read" else wait, i)
            await anyio.wait_all_tasks_blocked()
            while what == "read" and io.statistics().in_flight < number:
                await anyio.sleep(0.01)
            gc.collect()
            after = _in_use(how)
            group.cancel_scope.cancel()
        return after - before

    if how == "traced":
        tracemalloc.start()
    async with open_uring(driver="uring", depth=count) as io:
        # The first time, code warms up and tables grow.
        await used(10)
        return {"bytes": await used(count)}


def _in_use(how: str) -> int:
    if how == "traced":
        return tracemalloc.get_traced_memory()[0]
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Do one count, and print it."""
    anyio: Any = importlib.import_module("anyio")
    what, *arguments = sys.argv[1:]
    if what == "entries":
        answer = anyio.run(_entries, arguments[0], int(arguments[1]))
    else:
        answer = anyio.run(_memory, int(arguments[0]), arguments[1], arguments[2])
    print(json.dumps(answer))


if __name__ == "__main__":
    main()

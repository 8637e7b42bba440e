"""
What registered buffers, registered files and SQPOLL change, beside the same reads without them.

    python -m benchmarks.resources [--file FILE] [--rounds N] [--reads N] [--loop asyncio|trio]

Random O_DIRECT reads by 64 tasks, and kernel entries for 100,000 cached reads by as many, of a file of its own.
It needs this library in the interpreter that runs it, and says so in the words of ``docs/registered.md``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from .data import BLOCK, check, make_file
from .environments import ROOT, clean_environment

TASKS = 64
_WAYS = ("plain", "registered buffers", "registered file", "both")
_ENTRIES_OF = ("interrupts", "SQPOLL")


def main() -> None:
    """Measure, and print a table of each."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.resources", description=(__doc__ or "").strip().partition("\n")[0]
    )
    parser.add_argument("--file", type=Path, default=ROOT / ".cache" / "benchmarks" / "data" / "resources.bin")
    parser.add_argument("--size", type=int, default=1024, metavar="MIB", help="of the file, if it has to be made")
    parser.add_argument("--rounds", type=int, default=9, help="in which all ways take turns")
    parser.add_argument("--each", type=int, default=200, help="O_DIRECT reads of each task in a round")
    parser.add_argument("--reads", type=int, default=100_000, help="cached ones, whose kernel entries are counted")
    parser.add_argument("--loop", choices=("asyncio", "trio"), default="asyncio")
    parser.add_argument("--counted", choices=_ENTRIES_OF, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.file.parent.mkdir(parents=True, exist_ok=True)
    if not options.file.exists():
        make_file(str(options.file), options.size << 20)
    anyio: Any = importlib.import_module("anyio")
    if options.counted:
        print(json.dumps(anyio.run(_entries, options, options.counted, backend=options.loop)))
        return
    print("| O_DIRECT reads by 64 tasks | 4 KiB, a second | 64 KiB, a second |\n|---|---|---|")
    columns = [anyio.run(_rates, options, size, backend=options.loop) for size in (BLOCK, 16 * BLOCK)]
    for way in _WAYS:
        print(f"| {way} | {columns[0][way]} | {columns[1][way]} |")
    print(
        f"\n| {options.reads:,} cached reads by 64 tasks | entries, by its word | by strace | s | CPU s |\n|---|---|---|---|---|"
    )
    for what in _ENTRIES_OF:
        print(_counted(options, what))


async def _rates(options: argparse.Namespace, size: int) -> dict[str, str]:
    """Return ``{way: median and spread of its rate, and its ratio to the first}``, of rounds that take turns."""
    open_uring: Any = importlib.import_module("anyio_uring").open_uring
    aligned_buffer: Any = importlib.import_module("anyio_uring").aligned_buffer
    slots, each = options.file.stat().st_size // size, options.each // 3 if size > BLOCK else options.each
    descriptor = os.open(options.file, os.O_RDONLY | os.O_DIRECT)
    rates: dict[str, list[float]] = {way: [] for way in _WAYS}
    try:
        async with (
            open_uring(driver="uring", depth=TASKS) as io,
            io.buffer_pool(TASKS, size) as pool,
            io.register_files([descriptor]) as (registered,),
        ):
            fixed = [await pool.acquire() for _ in range(TASKS)]
            plain = [aligned_buffer(size) for _ in range(TASKS)]
            for number in range(options.rounds + 1):
                # Each in turn is the first, and has offsets of its own: a device, or the host of a virtual one, may
                # have in memory what was read just before.
                for way in [*_WAYS[number % len(_WAYS) :], *_WAYS[: number % len(_WAYS)]]:
                    buffers = fixed if way in {"registered buffers", "both"} else plain
                    file = registered if way in {"registered file", "both"} else descriptor

                    seed = f"{number} {way}"

                    async def read(task: int, file: Any = file, buffers: Any = buffers, seed: str = seed) -> None:
                        chance, buffer, offset = random.Random(f"{seed} {task}"), buffers[task], 0
                        for _ in range(each):
                            offset = chance.randrange(slots) * size
                            await io.readinto(file, buffer, offset)
                        with memoryview(getattr(buffer, "view", buffer)) as last:
                            check(last, offset, size)

                    seconds = await _all(read)
                    if number:  # the first one warms up
                        rates[way].append(TASKS * each / seconds)
            for buffer in fixed:
                buffer.release()
            features = io.features.fixed_buffers, io.features.fixed_files
            if features != ("registered", "registered"):
                raise SystemExit(f"not registered: {features}")
    finally:
        os.close(descriptor)
    return {way: _spread(rates[way], rates["plain"]) for way in _WAYS}


def _spread(rates: list[float], plain: list[float]) -> str:
    ratios = sorted(a / b for a, b in zip(rates, plain))
    median = statistics.median(ratios)
    return f"{statistics.median(rates):,.0f} ({median:.2f} [{ratios[0]:.2f}..{ratios[-1]:.2f}])"


async def _entries(options: argparse.Namespace, what: str) -> dict[str, Any]:
    """Do cached reads that are all operations of the ring, and return what the library says of it."""
    open_uring: Any = importlib.import_module("anyio_uring").open_uring
    slots, each = min(options.file.stat().st_size // BLOCK, 4096), options.reads // TASKS
    with options.file.open("rb") as file:
        for _ in range(slots):
            file.read(BLOCK)  # into the page cache
        async with open_uring(driver="uring", nowait=False, sqpoll=what == "SQPOLL") as io:
            before = io.statistics()

            async def read(task: int) -> None:
                chance, data, offset = random.Random(task), b"", 0
                for _ in range(each):
                    offset = chance.randrange(slots) * BLOCK
                    data = await io.read(file, BLOCK, offset)
                check(data, offset, BLOCK)

            cpu = time.process_time()
            seconds = await _all(read)
            return {
                "entries": io.statistics().syscalls - before.syscalls,
                "seconds": seconds,
                "cpu": time.process_time() - cpu,
            }


def _counted(options: argparse.Namespace, what: str) -> str:
    """Return the row of the table: twice in a process of its own, the second time under strace."""
    command = [sys.executable, "-m", "benchmarks.resources", "--counted", what]
    command += ["--file", str(options.file), "--reads", str(options.reads), "--loop", options.loop]
    answer = json.loads(_output(command))
    seen = "strace is not installed"
    if strace := shutil.which("strace"):
        with tempfile.NamedTemporaryFile("r") as counts:
            tracing = [strace, "-f", "--seccomp-bpf", "-qq", "-c", "-o", counts.name, "-e", "trace=io_uring_enter"]
            _output([*tracing, *command])
            lines = [words for line in counts if (words := line.split())[-1:] == ["io_uring_enter"]]
        seen = f"{int(lines[0][3]):,}" if lines else "0"
    return f"| {what} | {answer['entries']:,} | {seen} | {answer['seconds']:.2f} | {answer['cpu']:.2f} |"


def _output(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, env=clean_environment()).stdout


async def _all(read: Callable[[int], Awaitable[None]]) -> float:
    """Run the tasks, and return the seconds that they took."""
    anyio: Any = importlib.import_module("anyio")
    begin = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        for task in range(TASKS):
            tasks.start_soon(read, task)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()

"""Files, lines, many small files and copies, beside anyio.open_file, aiofiles, a plain loop and shutil.

``python -m benchmarks.files --help``.  Every participant does the whole job; rounds of all participants take turns,
and each table has the median of the seconds, and the ratio to the first row within a round, with its spread.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from anyio_uring import copy_file, open_file, open_uring

from .data import BLOCK, block

CHUNK = 64 << 10
CACHES = Path("/proc/sys/vm/drop_caches")
Job = Callable[[], object]
WHAT = ("chunks", "lines", "small", "copy")


def main() -> None:
    """Measure, and print a table of each job."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.files", description="Files beside other libraries'.")
    parser.add_argument("--directory", type=Path, help="on a disk; by default one in the system's temporary directory")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=1024, metavar="MIB", help="of the big file")
    parser.add_argument("--text", type=int, default=100, metavar="MB", help="of the file that is read line by line")
    parser.add_argument("--files", type=int, default=10_000, help="small ones")
    parser.add_argument("--only", nargs="+", choices=WHAT, default=WHAT, help="leave the others out")
    parser.add_argument("--loop", choices=("asyncio", "trio"), default="asyncio")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        _measure(Path(directory), options)


def _measure(directory: Path, options: argparse.Namespace) -> None:
    run: Any = partial(anyio.run, backend=options.loop)
    rounds = options.rounds
    big = directory / "big"
    with big.open("wb", buffering=1 << 20) as file:
        file.writelines(block(number) for number in range(options.size * 256))
    text = directory / "text"
    text.write_text("".join(f"{number:099}\n" for number in range(options.text * 10_000)), encoding="ascii")
    paths = [directory / "small" / f"{number}" for number in range(options.files)]
    paths[0].parent.mkdir()
    for number, path in enumerate(paths):
        path.write_bytes(block(number))
    os.sync()

    others: dict[str, Any] = {"anyio.open_file": anyio.open_file}
    if options.loop == "asyncio":
        try:
            others["aiofiles"] = importlib.import_module("aiofiles").open
        except ModuleNotFoundError:
            print("aiofiles is not installed, and left out")
    openers = {"ring": ("uring", open_file), "no manager": (None, open_file)}
    openers |= {name: (None, opener) for name, opener in others.items()}

    chunks = {
        name: partial(run, _in, driver, partial(_read_chunks, opener, big, options.size << 20))
        for name, (driver, opener) in openers.items()
    }
    if "chunks" in options.only:
        _table(f"{options.size} MiB in reads of 64 KiB", chunks, rounds, partial(_warm, big))
    lines = {
        name: partial(run, _in, driver, partial(_count_lines, opener, text, options.text * 10_000))
        for name, (driver, opener) in openers.items()
    }
    if "lines" in options.only:
        _table(f"{options.text} MB, line by line", lines, rounds, partial(_warm, text))
    small: dict[str, Job] = {"plain loop": partial(_plain_loop, paths)}
    small |= {driver: partial(run, _in, driver, partial(_read_small, paths)) for driver in ("uring", "threads")}
    if "small" in options.only:
        title = f"{options.files:,} files of 4 KiB"
        _table(f"{title}, from the page cache", small, rounds, partial(_warm, *paths))
        if os.access(CACHES, os.W_OK):
            _table(f"{title}, cold", small, rounds, partial(CACHES.write_text, "3", encoding="ascii"))
        else:
            print("\ncold files are left out: dropping the kernel's caches is root's")
    copy: dict[str, Job] = {"shutil.copyfile": partial(shutil.copyfile, big, directory / "copy")}
    copy |= {
        f"copy_file, {driver}": partial(run, _in, driver, partial(copy_file, big, directory / "copy"))
        for driver in ("uring", "threads")
    }
    if "copy" in options.only:
        _table(f"copying {options.size} MiB", copy, rounds, partial(_remove_copy, big, directory / "copy"))


async def _in(driver: Any, job: Callable[[], Awaitable[object]]) -> None:
    if driver is None:
        await job()
        return
    async with open_uring(driver=driver):
        await job()


async def _read_chunks(opener: Any, path: Path, size: int) -> None:
    done = 0
    async with opener(path, "rb") if opener.__module__.startswith("aiofiles") else await opener(path, "rb") as file:
        while part := await file.read(CHUNK):
            done += len(part)
    assert done == size


async def _count_lines(opener: Any, path: Path, count: int) -> None:
    found = 0
    async with opener(path) if opener.__module__.startswith("aiofiles") else await opener(path) as file:
        async for _ in file:
            found += 1
    assert found == count


def _remove_copy(big: Path, copy: Path) -> None:
    copy.unlink(missing_ok=True)
    _warm(big)


def _plain_loop(paths: list[Path]) -> None:
    contents = []
    for path in paths:
        with open(path, "rb") as file:
            contents.append(file.read())
    _check(contents, len(paths))


async def _read_small(paths: list[Path]) -> None:
    current: Any = importlib.import_module("anyio_uring").current
    _check(await current().read_files(paths), len(paths))


def _check(contents: list[bytes], count: int) -> None:
    assert len(contents) == count
    assert all(content == block(number) for number, content in enumerate(contents) if number % 100 == 0)
    assert sum(map(len, contents)) == count * BLOCK


def _warm(*paths: Path) -> None:
    """Have files in the page cache; otherwise whoever comes first would put them there for the others."""
    for path in paths:
        with path.open("rb") as file:
            while file.read(1 << 20):
                pass


def _table(title: str, jobs: Mapping[str, Job], rounds: int, before: Job) -> None:
    """
    Run each job once a round, in turns, and print how long it took; the first is what the others are held against.

    :param before: done before each job
    """
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(rounds):
        turn = number * len(jobs) // rounds
        for name, job in [*jobs.items()][turn:] + [*jobs.items()][:turn]:
            before()
            begin = time.perf_counter()
            job()
            seconds[name].append(time.perf_counter() - begin)
    first = next(iter(seconds.values()))
    print(f"\n| {title} | s | times as long as the first |\n|---|---|---|")
    for name, taken in seconds.items():
        ratios = sorted(mine / its for mine, its in zip(taken, first))
        spread = f"{statistics.median(ratios):.2f} [{ratios[0]:.2f}..{ratios[-1]:.2f}]"
        print(f"| {name} | {statistics.median(taken):.2f} | {spread} |", flush=True)


if __name__ == "__main__":
    main()

"""Durable appends a second, beside a plain loop, aiofiles and redis-server, and how fast a log is read.

``python -m benchmarks.append_log --help``.  Every participant appends records of 128 bytes and waits for each until
it is on disk; rounds of all participants alternate, and the median of the rounds counts.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import anyio

from anyio_uring import FsyncMode, open_append_log, open_uring, read_append_log

RECORD = bytes(range(128))
Participant = Callable[[Path, int, int], float]


def plain(path: Path, _tasks: int, count: int) -> float:
    """One loop of write and fdatasync, whatever the number of tasks."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.fsync(fd)
    begin = time.perf_counter()
    for _ in range(count):
        os.write(fd, RECORD)
        os.fdatasync(fd)
    taken = time.perf_counter() - begin
    os.close(fd)
    return count / taken


def log(backend: str, driver: str, path: Path, tasks: int, count: int) -> float:
    """Append with this library."""

    async def main() -> float:
        path.unlink(missing_ok=True)
        async with open_uring(driver=driver) as io, open_append_log(path, io=io) as opened:  # type: ignore[call-overload]

            async def work() -> None:
                for _ in range(count // tasks):
                    await opened.append(RECORD)

            await opened.append(RECORD)
            begin = time.perf_counter()
            async with anyio.create_task_group() as group:
                for _ in range(tasks):
                    group.start_soon(work)
            return count // tasks * tasks / (time.perf_counter() - begin)

    return anyio.run(main, backend=backend)


def aiofiles_loop(path: Path, tasks: int, count: int) -> float:
    """Write with aiofiles and sync in a thread, each task for itself."""
    aiofiles = importlib.import_module("aiofiles")  # a peer, which need not be there for the others

    async def main() -> float:
        async with aiofiles.open(path, "wb", buffering=0) as file:

            async def work() -> None:
                for _ in range(count // tasks):
                    await file.write(RECORD)
                    await asyncio.to_thread(os.fdatasync, file.fileno())

            begin = time.perf_counter()
            await asyncio.gather(*(work() for _ in range(tasks)))
            return count // tasks * tasks / (time.perf_counter() - begin)

    return asyncio.run(main())


def redis(path: Path, tasks: int, count: int) -> float:
    """Let redis-benchmark set values on a redis-server that syncs always, with as many clients."""
    with tempfile.TemporaryDirectory(dir=path.parent) as directory:
        socket = f"{directory}/socket"
        options = ["--port", "0", "--unixsocket", socket, "--save", "", "--dir", directory]
        command = ["redis-server", *options, "--appendonly", "yes", "--appendfsync", "always", "--maxclients", "2000"]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            while not Path(socket).exists():
                if server.poll() is not None:
                    raise SystemExit(f"redis-server ended with status {server.returncode}")
                time.sleep(0.01)
            command = ["redis-benchmark", "-s", socket, "-t", "set", "-d", "128", "-P", "1", "--csv"]
            done = subprocess.run(
                [*command, "-c", str(tasks), "-n", str(count)], check=True, capture_output=True, text=True
            )
        finally:
            server.terminate()
            server.wait()
    row = next(line for line in done.stdout.splitlines() if line.startswith('"SET"'))
    return float(row.split(",")[1].strip('"'))


def read(path: Path, backend: str, driver: str) -> float:
    """Return MB a second of warm records of 4 KiB."""

    async def main() -> float:
        path.unlink(missing_ok=True)
        async with open_uring(driver=driver) as io:  # type: ignore[call-overload]
            async with (
                open_append_log(path, io=io, fsync=FsyncMode.NEVER) as opened,
                anyio.create_task_group() as group,
            ):

                async def work() -> None:
                    for _ in range(512):
                        await opened.append(RECORD * 32)

                for _ in range(64):
                    group.start_soon(work)
            rates = []
            for _ in range(7):
                begin = time.perf_counter()
                total = 0
                async for _, record in read_append_log(path, io=io):
                    total += len(record)
                rates.append(total / 1e6 / (time.perf_counter() - begin))
            return statistics.median(rates[1:])

    return anyio.run(main, backend=backend)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.append_log", description=__doc__)
    parser.add_argument("--directory", type=Path, default=Path(".cache/benchmarks"), help="on a real filesystem")
    parser.add_argument("--tasks", type=int, nargs="+", default=[1, 8, 64, 512])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="+", help="of the participants, those whose names contain this")
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    participants: dict[str, Participant] = {
        "plain loop": plain,
        **{
            f"log, {backend}, {driver}": partial(log, backend, driver)
            for backend in ("asyncio", "trio")
            for driver in ("uring", "threads")
        },
        "aiofiles": aiofiles_loop,
    }
    if shutil.which("redis-server") and shutil.which("redis-benchmark"):
        participants["redis-server"] = redis
    else:
        print("redis-server: not installed (Debian: apt-get install redis-server)")
    if arguments.only:
        participants = {
            n: p for n, p in participants.items() if n == "plain loop" or any(o in n for o in arguments.only)
        }
    # Absolute, for redis-server goes to a directory of its own.
    with tempfile.TemporaryDirectory(dir=arguments.directory.resolve()) as directory:
        path = Path(directory) / "log"
        print(
            f"Python {sys.version.split()[0]}; durable appends of {len(RECORD)} bytes a second, and of the plain loop"
        )
        for tasks in arguments.tasks:
            print(f"{tasks} tasks")
            measure(participants, path, tasks, arguments.rounds)
        for backend in ("asyncio", "trio"):
            for driver in ("uring", "threads"):
                print(f"read_append_log, {backend}, {driver}: {read(path, backend, driver):,.0f} MB/s of 4 KiB records")


def measure(participants: dict[str, Participant], path: Path, tasks: int, rounds: int) -> None:
    """Measure each in turn, round after round, and print the medians."""
    rates: dict[str, list[float]] = {name: [] for name in participants}
    for _ in range(rounds):
        for name, participant in participants.items():
            count = 300 if name == "plain loop" else 2000 if name == "aiofiles" else max(300, tasks * 60)
            rates[name].append(participant(path, tasks, count))
    for name, of_participant in rates.items():
        ratio = statistics.median(rate / base for rate, base in zip(of_participant, rates["plain loop"]))
        print(f"  {name:24} {statistics.median(of_participant):9,.0f}  {ratio:6.2f}")


if __name__ == "__main__":
    main()

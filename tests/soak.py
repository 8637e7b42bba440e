"""A mixed load for as long as one likes: ``python -m tests.soak --minutes 30``; every byte is verified.

On both event loops and both drivers in turn, in slices of some seconds: reads, writes and batches of files whose
content follows from seed and place, cancelled at random, beside a writer that is killed and started again.  The
end is a report, and a failure names its seed.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

import anyio
import attrs

from anyio_uring import AsyncIoManager, open_uring

ROOT: Final = Path(__file__).parent.parent
BLOCK: Final = 4096
BLOCKS: Final = 256
TASKS: Final = 8
SLICE_SECONDS: Final = 10
# Growth of resident memory, after the first slice of each kind, that is no growth.
GROWTH_MAX_KIB: Final = 32 << 10

# Appends one block after the other, and says which is durable; until it is killed.
WRITER: Final = """
import sys
import anyio
from anyio_uring import open_uring
from tests.soak import BLOCK, block

async def main():
    path, first, driver = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    with open(path, "r+b", buffering=0) as file:
        async with open_uring(driver=driver) as io:
            while True:
                await io.write_and_sync(file, block(0, first), first * BLOCK)
                print(first, flush=True)
                first += 1

anyio.run(main, backend=sys.argv[4])
"""


def block(version: int, index: int) -> bytes:
    """Return what is in a block of a file: it follows from the file's version and the block's place."""
    return (version << 32 | index).to_bytes(8, "big") * (BLOCK // 8)


@attrs.define
class Report:
    """What has happened so far."""

    outcomes: Counter[str] = attrs.field(factory=Counter)
    latency_max_ms: dict[str, float] = attrs.field(factory=dict)
    writers_killed: int = 0
    blocks_verified: int = 0

    def lines(self) -> list[str]:
        return [
            *(f"{name:<28}{count:>12,}" for name, count in sorted(self.outcomes.items())),
            f"{'writers killed':<28}{self.writers_killed:>12,}",
            f"{'their blocks verified':<28}{self.blocks_verified:>12,}",
            *(f"{'worst latency, ' + name:<28}{ms:>9.0f} ms" for name, ms in sorted(self.latency_max_ms.items())),
        ]


class Worker:
    """One task: a file of its own, and what is to be in each of its blocks."""

    def __init__(self, io: AsyncIoManager, file: Any, report: Report, chance: random.Random, label: str) -> None:
        self._io = io
        self._file = file
        self._report = report
        self._chance = chance
        self._label = label
        # [index: the versions that may be there]: two after a write that was cancelled
        self._versions = [{0} for _ in range(BLOCKS)]
        self._next = 1

    async def run(self, until: float) -> None:
        while time.monotonic() < until:
            verb = self._chance.choice([self._read, self._read, self._write, self._read_batch, self._write_batch])
            begin = time.perf_counter()
            with anyio.CancelScope() as scope:
                if self._chance.random() < 0.2:
                    scope.cancel()
                elif self._chance.random() < 0.3:
                    scope.deadline = anyio.current_time() + self._chance.uniform(0, 0.001)
                await verb()
            took_ms = 1000 * (time.perf_counter() - begin)
            name = verb.__name__.lstrip("_")
            self._report.outcomes[f"{name}, {'cancelled' if scope.cancelled_caught else 'done'}"] += 1
            worst = self._report.latency_max_ms
            worst[self._label] = max(worst.get(self._label, 0), took_ms)
        for index in range(BLOCKS):
            self._check(index, os.pread(self._file.fileno(), BLOCK, index * BLOCK))

    def _check(self, index: int, data: bytes) -> None:
        # A cancelled write may have been carried out in part; each of its words is old or new.
        words = {version << 32 | index for version in self._versions[index]}
        found = {int.from_bytes(data[i : i + 8], "big") for i in range(0, BLOCK, 8)}
        assert len(data) == BLOCK, f"block {index} is short: {len(data)}"
        assert found <= words, f"block {index} holds {found}, not {words}"

    async def _read(self) -> None:
        index = self._chance.randrange(BLOCKS)
        self._check(index, await self._io.read(self._file, BLOCK, index * BLOCK))

    async def _read_batch(self) -> None:
        indexes = self._chance.sample(range(BLOCKS), 16)
        found = await self._io.read_batch([(self._file, BLOCK, index * BLOCK) for index in indexes])
        for index, data in zip(indexes, found):
            self._check(index, data)

    async def _write(self) -> None:
        await self._write_blocks([self._chance.randrange(BLOCKS)])

    async def _write_batch(self) -> None:
        await self._write_blocks(self._chance.sample(range(BLOCKS), 8))

    async def _write_blocks(self, indexes: list[int]) -> None:
        version, self._next = self._next, self._next + 1
        for index in indexes:
            self._versions[index].add(version)
        requests = [(self._file, block(version, index), index * BLOCK) for index in indexes]
        counts = await self._io.write_batch(requests) if len(requests) > 1 else [await self._io.write(*requests[0])]
        assert counts == [BLOCK] * len(indexes), counts
        for index in indexes:
            self._versions[index] = {version}


def kill_writers(path: str, until: float, kind: tuple[str, str], chance: random.Random, report: Report) -> None:
    """Start a writer, kill it, and look whether all that it called durable is there; again and again."""
    Path(path).write_bytes(b"")
    count = 0
    while time.monotonic() < until:
        command = [sys.executable, "-c", WRITER, path, str(count), *kind]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            said = [*itertools.islice(writer.stdout, chance.randrange(1, 40))]
            assert said, f"the writer has ended by itself: {writer.wait()}"
            writer.send_signal(signal.SIGKILL)
            said += [line for line in writer.stdout if line.endswith("\n")]
        assert writer.returncode == -signal.SIGKILL, writer.returncode
        report.writers_killed += 1
        count = int(said[-1]) + 1
        with Path(path).open("rb") as file:
            for index in range(count):
                assert file.read(BLOCK) == block(0, index), f"block {index} of {count} durable ones is not there"
        report.blocks_verified += count


async def load(driver: Any, backend: str, seconds: float, chance: random.Random, report: Report) -> None:
    """Run one slice."""
    until = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        files = [stack.enter_context(Path(directory, str(i)).open("w+b", buffering=0)) for i in range(TASKS)]
        for file in files:
            file.write(b"".join(block(0, index) for index in range(BLOCKS)))
        async with open_uring(driver=driver, depth=32, nowait=chance.random() < 0.5) as io:
            async with anyio.create_task_group() as tasks:
                for file in files:
                    worker = Worker(io, file, report, random.Random(chance.random()), f"{driver} {backend}")
                    tasks.start_soon(worker.run, until)
                path = f"{directory}/log"
                moments = random.Random(chance.random())
                await anyio.to_thread.run_sync(kill_writers, path, until, (driver, backend), moments, report)
            counts = io.statistics()
        report.outcomes["cancel requests"] += counts.cancellations
        report.outcomes["cancel requests, effective"] += counts.cancellations_effective
        assert io.statistics().in_flight == 0


def _resident_kib() -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    parser.add_argument("--driver", choices=["uring", "threads"], help="this one alone")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    chance = random.Random(options.seed)
    report = Report()
    drivers = [options.driver] if options.driver else ["uring", "threads"]
    kinds = list(itertools.product(drivers, ("asyncio", "trio")))
    end = time.monotonic() + 60 * options.minutes
    seconds = min(SLICE_SECONDS, 60 * options.minutes / len(kinds))
    before: tuple[int, int] | None = None
    while before is None or time.monotonic() < end:
        for driver, backend in kinds:
            anyio.run(load, driver, backend, seconds, chance, report, backend=backend)
        now = _resident_kib(), len(os.listdir("/proc/self/fd"))
        print(f"{now[0] >> 10} MiB resident, {now[1]} descriptors", flush=True)
        before = before or now
        assert now[0] - before[0] < GROWTH_MAX_KIB, f"memory has grown from {before[0]} to {now[0]} KiB"
        assert now[1] == before[1], f"descriptors: {now[1]}, and {before[1]} at first"
    print("\n".join(report.lines()))


if __name__ == "__main__":
    main()

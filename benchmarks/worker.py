"""
The process of one participant: told on stdin what to do, answers on stdout, one line of JSON each.

    python -m benchmarks.worker MODULE LOOP OPTIONS

It runs in the participant's environment, so it imports nothing but the standard library, and anyio
where the participant brings it.  Knows nothing of rounds, ratios and other participants.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import importlib
import json
import mmap
import os
import platform
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from . import data
from .cases import Case
from .data import BLOCK
from .workers import AbsentError, Base

_HEARTBEAT = 0.001
_PR_SET_PDEATHSIG = 1


@dataclass
class Job:
    """One measurement: a case with its offsets, divided among tasks."""

    case: Case
    directory: str
    operations: int
    seed: int

    def __post_init__(self) -> None:
        case, chance = self.case, random.Random(self.seed)
        self.path = os.path.join(self.directory, "written" if case.kind == "writes" else "big")
        slots = os.path.getsize(self.path) // case.size
        if case.order == "sequential":
            first = chance.randrange(max(1, slots - self.operations))
            numbers: Sequence[int] = [(first + i) % slots for i in range(self.operations if slots else 0)]
        elif case.order == "distinct":
            numbers = chance.sample(range(slots), min(self.operations, slots))
        else:
            numbers = chance.choices(range(slots), k=self.operations)
        self.offsets = [number * case.size for number in numbers]
        self.block = data.block(self.seed)
        self.paths = data.make_small_files(os.path.join(self.directory, "small")) if case.kind == "files" else []

    def shares(self) -> list[tuple[Any, ...]]:
        """Return the arguments for each task; no task is without work."""
        case = self.case
        if case.kind in {"batches", "batches_into"}:
            groups = [self.offsets[i : i + case.batch] for i in range(0, len(self.offsets), case.batch)]
            return [([group for group in groups if len(group) == case.batch],)]
        if case.kind == "files":
            return [
                (self.paths[i :: case.tasks] * max(1, self.operations // len(self.paths)),) for i in range(case.tasks)
            ]
        if case.kind == "writes":
            return [(self.offsets, self.block)]
        return [(self.offsets[i :: case.tasks],) for i in range(min(case.tasks, len(self.offsets)))]

    def count(self, shares: list[tuple[Any, ...]]) -> int:
        return sum(len(share[0]) for share in shares) * self.case.batch

    def open_file(self) -> int:
        flags = os.O_RDWR if self.case.kind == "writes" else os.O_RDONLY
        return os.open(self.path, flags | (os.O_DIRECT if self.case.direct else 0))

    def check(self, shares: list[tuple[Any, ...]], results: list[Any], descriptor: int) -> None:
        """Check the last bytes that each task read, or all that was written."""
        kind = self.case.kind
        for share, result in zip(shares, results):
            last = share[0][-1]
            if kind == "files":
                data.check(result, int(os.path.basename(last)) * BLOCK, BLOCK)
            elif kind == "writes":
                for offset in set(last if isinstance(last, list) else share[0]):
                    if os.pread(descriptor, BLOCK, offset) != self.block:
                        raise data.WrongBytesError(f"wrong bytes were written at offset {offset}")
            elif kind in {"batches", "batches_into"}:
                for offset, read in zip(last, result, strict=True):
                    data.check(read, offset, self.case.size)
            else:
                data.check(result, last, self.case.size)


# --- how tasks are started, waited for and timed -------------------------------------------------


async def _asyncio_tasks(functions: list[Callable[[], Awaitable[Any]]]) -> tuple[float, list[Any]]:
    """Start the tasks, hold them until all are there, and time them from then on."""
    start = asyncio.Event()

    async def held(function: Callable[[], Awaitable[Any]]) -> Any:
        await start.wait()
        return await function()

    tasks = [asyncio.create_task(held(function)) for function in functions]
    await asyncio.sleep(0)
    began = time.perf_counter()
    start.set()
    results = await asyncio.gather(*tasks)
    return time.perf_counter() - began, results


async def _anyio_tasks(functions: list[Callable[[], Awaitable[Any]]]) -> tuple[float, list[Any]]:
    """Do the same, with anyio's tasks."""
    anyio = importlib.import_module("anyio")
    start = anyio.Event()
    results: list[Any] = [None] * len(functions)

    async def held(i: int) -> None:
        await start.wait()
        results[i] = await functions[i]()

    async with anyio.create_task_group() as group:
        for i in range(len(functions)):
            group.start_soon(held, i)
        await anyio.wait_all_tasks_blocked()
        began = time.perf_counter()
        start.set()
    return time.perf_counter() - began, results


async def _with_heartbeat(run: Awaitable[tuple[float, list[Any]]], sleep: Any) -> tuple[float, list[Any]]:
    """Return, in place of the time, how late a heartbeat of 1 ms was at the most."""
    latest, beats, stopped = 0.0, 0, False

    async def beat() -> None:
        nonlocal latest, beats
        last = time.perf_counter()
        while not stopped:
            await sleep(_HEARTBEAT)
            now = time.perf_counter()
            latest = max(latest, now - last - _HEARTBEAT)
            last = now
            beats += 1

    async def work() -> list[Any]:
        nonlocal latest, stopped
        while beats < 10:
            await sleep(_HEARTBEAT)
        latest = 0.0
        _, results = await run
        # Also the beat that stands behind the end of the read is still to be heard.
        seen = beats
        while beats < seen + 2:
            await sleep(_HEARTBEAT)
        stopped = True
        return results

    if sleep is asyncio.sleep:
        results, _ = await asyncio.gather(work(), beat())
        return latest, results
    anyio = importlib.import_module("anyio")
    async with anyio.create_task_group() as group:
        group.start_soon(beat)
        results = await work()
    return latest, results


# --- the process ---------------------------------------------------------------------------------


class Process:
    """A worker, its loop, and what the kernel says about it."""

    def __init__(self, module: str, loop: str, options: dict[str, Any]) -> None:
        self._loop = loop
        self._worker: Base = importlib.import_module(f"benchmarks.workers.{module}").Worker(options)
        self._with_anyio = loop in {"uvloop", "trio"} or bool(options.get("anyio"))

    def run(self, job: Job, *, probe: bool = False) -> dict[str, Any]:
        worker, kind = self._worker, job.case.kind
        if not hasattr(worker, kind) or not job.offsets:
            return {"unsupported": True}
        descriptor = job.open_file()
        try:
            # Whole pages, as O_DIRECT wants them.
            count = max(job.case.batch, job.case.tasks) if kind.endswith("_into") else 0
            buffers = [_buffer(job.case.size) for _ in range(count)]
            worker.prepare(job.case, job.path, descriptor, buffers)
            if job.case.cold:
                data.evict(descriptor)
            fetched = _bytes_fetched()
            gc.collect()
            reply = self._probe(job) if probe else self._measure(job, descriptor)
            if job.case.cold and _bytes_fetched() - fetched < job.operations * BLOCK // 2:
                reply["failure"] = "the file was still in the page cache"
            return reply
        finally:
            os.close(descriptor)

    def _measure(self, job: Job, descriptor: int) -> dict[str, Any]:
        shares, evidence = job.shares(), set()
        if self._loop == "sync":
            share = (job.paths * max(1, job.operations // len(job.paths)),) if job.paths else self._all(job, shares)
            work = getattr(self._worker, job.case.kind)
            began = time.perf_counter()
            result = work(*share)
            seconds = time.perf_counter() - began
            shares, results, evidence = [share], [result], _evidence(0)
        else:
            seconds, results, evidence = self._enter(lambda: self._tasks(job, shares))
        job.check(shares, results, descriptor)
        return {
            "seconds": seconds,
            "operations": job.count(shares),
            "driver": self._worker.driver,
            "evidence": sorted(evidence),
        }

    def _all(self, job: Job, shares: list[tuple[Any, ...]]) -> tuple[Any, ...]:
        first = shares[0] if job.case.kind in {"batches", "batches_into", "writes"} else (job.offsets,)
        return (*first, self._worker.buffers[0]) if job.case.kind == "reads_into" else first

    async def _tasks(self, job: Job, shares: list[tuple[Any, ...]]) -> tuple[float, list[Any], set[str]]:
        worker, run = self._worker, _anyio_tasks if self._with_anyio else _asyncio_tasks
        work = getattr(worker, job.case.kind)
        if job.case.kind == "reads_into":
            shares = [(*share, buffer) for share, buffer in zip(shares, worker.buffers)]
        rings = self._rings_of_loop()
        await worker.open(job.case)
        try:
            timed: Awaitable[tuple[float, list[Any]]] = run([lambda s=share: work(*s) for share in shares])  # type: ignore[misc]
            if job.case.unit == "ms":
                timed = _with_heartbeat(timed, _sleep(self._with_anyio))
            seconds, results = await timed
            return seconds, results, _evidence(rings)
        finally:
            await worker.close()

    def _probe(self, job: Job) -> dict[str, Any]:
        """Read some blocks, check all of them, and see whether each read lets the loop turn."""
        reads = self._worker.reads  # type: ignore[attr-defined]
        if self._loop == "sync":
            blocks = [reads([offset]) for offset in job.offsets]
            turns, evidence = 0, _evidence(0)
        else:
            blocks, turns, evidence = self._enter(lambda: self._probe_in_loop(job))
        for offset, block in zip(job.offsets, blocks):
            data.check(block, offset, job.case.size)
        return {
            "driver": self._worker.driver,
            "evidence": sorted(evidence),
            "waits_for_loop": turns >= len(blocks),
            "python": platform.python_version(),
            "packages": {d.metadata["Name"]: d.version for d in metadata.distributions()},
        }

    async def _probe_in_loop(self, job: Job) -> tuple[list[Any], int, set[str]]:
        turns = 0

        def turn() -> None:
            nonlocal turns
            turns += 1
            handles[0] = loop.call_soon(turn)

        rings = self._rings_of_loop()
        await self._worker.open(job.case)
        try:
            blocks = []
            if self._loop == "trio":
                blocks = [await self._worker.reads([offset]) for offset in job.offsets]  # type: ignore[attr-defined]
                return blocks, len(blocks), _evidence(rings)
            loop = asyncio.get_running_loop()
            if (self._loop == "uvloop") != type(loop).__module__.startswith("uvloop"):
                raise AbsentError(f"the loop is {type(loop)} instead of {self._loop}")
            handles = [loop.call_soon(turn)]
            blocks = [await self._worker.reads([offset]) for offset in job.offsets]  # type: ignore[attr-defined]
            handles[0].cancel()
            return blocks, turns, _evidence(rings)
        finally:
            await self._worker.close()

    def _rings_of_loop(self) -> int:
        return _rings() if self._loop == "uvloop" else 0

    def _enter(self, function: Callable[[], Any]) -> Any:
        if not self._with_anyio:
            return asyncio.run(function())
        anyio: Any = importlib.import_module("anyio")
        if self._loop == "trio":
            return anyio.run(function, backend="trio")
        return anyio.run(function, backend="asyncio", backend_options={"use_uvloop": self._loop == "uvloop"})


def _buffer(size: int) -> memoryview:
    # Its pages are there: only a buffer's first use would pay for them.
    buffer = memoryview(mmap.mmap(-1, size))
    buffer[:] = bytes(size)
    return buffer


def _sleep(with_anyio: bool) -> Any:  # noqa: FBT001
    return importlib.import_module("anyio").sleep if with_anyio else asyncio.sleep


def _bytes_fetched() -> int:
    with open("/proc/self/io") as file:
        return int(next(line for line in file if line.startswith("read_bytes")).split()[1])


def _rings() -> int:
    """Return how many rings the process has; a ring whose descriptor was registered and closed is still mapped."""
    with open("/proc/self/maps") as file:
        mapped = {line.split()[2] + line.split()[4] for line in file if "anon_inode:[io_uring]" in line}
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found += os.readlink(f"/proc/self/fd/{name}") == "anon_inode:[io_uring]"
    return found or bool(mapped)


def _evidence(rings: int) -> set[str]:
    """
    Return what the kernel knows of the process, whatever its libraries say: rings, pollers, threads.

    :param rings: how many there were before: uvloop's libuv has one of its own
    """
    evidence = {"io_uring"} if _rings() > rings else set()
    if _has_poller():
        evidence.add("sqpoll")
    with open("/proc/self/maps") as file:
        maps = file.read()
    if "/[aio]" in maps:
        evidence.add("linux_aio")
    if threading.active_count() > 1:
        evidence.add("threads")
    return evidence


def _has_poller() -> bool:
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(FileNotFoundError), open(f"/proc/self/task/{thread}/comm") as file:
            if file.read().startswith("iou-sqp"):
                return True
    return False


def _answer(process: Process, command: dict[str, Any]) -> dict[str, Any]:
    job = Job(Case(**command["case"]), command["directory"], command["operations"], command["seed"])
    return process.run(job, probe=bool(command.get("probe")))


def main() -> None:
    """Serve commands until stdin ends."""
    module, loop, options = sys.argv[1:4]
    # Stopped between two measurements, it would outlive a suite that was killed.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # What a library prints must not look like an answer.
    answers, sys.stdout = os.fdopen(os.dup(1), "w", buffering=1), sys.stderr
    os.dup2(2, 1)
    try:
        process = Process(module, loop, json.loads(options))
    except (ImportError, AbsentError) as exc:
        print(json.dumps({"absent": str(exc)}), file=answers)
        return
    # A library that tried out at its import what the kernel allows leaves a poller that takes a while to end.
    for _ in range(100):
        if not _has_poller():
            break
        time.sleep(0.01)
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        try:
            answer = _answer(process, json.loads(line))
        except AbsentError as exc:
            answer = {"absent": str(exc)}
        except Exception as exc:  # noqa: BLE001 - whatever a participant raises is its failure, and is reported
            traceback.print_exc()
            answer = {"failure": f"{type(exc).__name__}: {exc}"}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()

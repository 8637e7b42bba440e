"""
The figures that this library is to reach: ratios within a run, and what each is held against, as data.

Knows results as ``measure.py`` writes them; nothing of how they came about.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Results = Mapping[str, Any]
Values = Sequence[float | None]

P = "os.pread"
FIO = "fio (io_uring)"
CAIO = ("caio (io_uring)", "caio (io_uring, deferred)", "caio (io_uring, SQPOLL)", "caio (linux_aio)")


@dataclass(frozen=True)
class Goal:
    """One figure: a participant in a case, held against others in a case, or a plain value."""

    title: str
    subject: str
    case: str
    against: tuple[str, ...] = ()
    """Whoever of them did best; ``*`` stands for every peer."""
    at_least: float | None = None
    at_most: float | None = None
    against_case: str | None = None
    waiting_only: bool = False
    """Of the peers, only those whose cached reads let the loop turn."""
    inverse: bool = False
    """How many times slower it is than the other, not faster."""


@dataclass(frozen=True)
class Spread:
    """A median, and how far its rounds lie apart."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Figure:
    """What became of a goal."""

    goal: Goal
    spread: Spread | None
    against: str = ""
    missing: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the median is as good as the goal; ``None`` if it was not measured."""
        if self.spread is None:
            return None
        if self.goal.at_least is not None:
            return self.spread.median >= self.goal.at_least
        assert self.goal.at_most is not None
        return self.spread.median <= self.goal.at_most

    @property
    def verdict(self) -> str:
        """``reached``, by how much it is short, or why nobody knows."""
        if self.spread is None:
            return f"not measured: {self.missing}"
        if self.reached:
            return "reached"
        wanted = self.goal.at_least if self.goal.at_least is not None else self.goal.at_most
        assert wanted is not None
        return f"short by {abs(self.spread.median - wanted) / wanted:.0%}"


def ratios(ours: Values, others: Values, *, inverse: bool = False) -> list[float]:
    """Return the ratio of each round that both were measured in."""
    pairs = [(a, b) for a, b in zip(ours, others) if a and b]
    return [b / a if inverse else a / b for a, b in pairs]


def figure(goal: Goal, results: Results) -> Figure:
    """Hold what was measured against a goal."""
    ours = results["cases"].get(goal.case, {}).get(goal.subject)
    if not ours or not any(ours):
        missing = results["absent"].get(goal.subject, f"{goal.subject} has no result in {goal.case}")
        return Figure(goal, None, missing=missing)
    if not goal.against:
        return Figure(goal, Spread.of([value for value in ours if value]))
    others = results["cases"].get(goal.against_case or goal.case, {})
    spreads = {}
    for name in _rivals(goal, results):
        quotients = ratios(ours, others.get(name, ()), inverse=goal.inverse)
        if quotients:
            spreads[name] = Spread.of(quotients)
    if not spreads:
        names = [name for name in goal.against if name != "*"]
        reasons = [f"{name}: {results['absent'][name]}" for name in names if name in results["absent"]]
        return Figure(goal, None, missing="; ".join(reasons) or f"no result of {', '.join(names) or 'any peer'}")
    best = min(spreads, key=lambda name: spreads[name].median)
    return Figure(goal, spreads[best], against=best)


def _rivals(goal: Goal, results: Results) -> list[str]:
    seen = results["participants"]
    names = [name for name in seen if seen[name]["group"] == "peer"] if goal.against == ("*",) else goal.against
    return [name for name in names if name in seen and (seen[name]["waits_for_loop"] or not goal.waiting_only)]


def _floor(loop: str) -> tuple[str, ...]:
    return (f"checkpoint+pread ({loop})",)


def _goals() -> list[Goal]:
    ring, trio, budget = "ring (asyncio)", "ring (trio)", "ring, budget (asyncio)"
    goals = []
    for tasks in (32, 256):
        for loop, least in (("asyncio", 1.0), ("uvloop", 0.9), ("trio", 0.9)):
            title = f'awaited reads, {tasks} tasks, "always", {loop}, of F'
            goals.append(Goal(title, f"ring ({loop})", f"random-{tasks}", _floor(loop), least))
    for loop in ("asyncio", "trio"):
        title = f'awaited reads, 1 task, "always", {loop}, of F'
        goals.append(Goal(title, f"ring ({loop})", "random-1", _floor(loop), 0.75))
    title = "awaited reads, 1 task, asyncio, against the best of caio and aiofile"
    goals.append(Goal(title, ring, "random-1", (*CAIO, "aiofile"), 1.0))
    for tasks in (32, 256):
        title = f"awaited reads, {tasks} tasks, asyncio, against the best of caio, pyaio, urio that waits for the loop"
        goals.append(Goal(title, ring, f"random-{tasks}", (*CAIO, "pyaio", "urio"), 1.3, waiting_only=True))
    goals += [
        Goal("awaited reads, 32 tasks, against `anyio.open_file`", ring, "random-32", ("anyio.open_file",), 30),
        Goal("awaited reads, 32 tasks, against `trio.open_file`", trio, "random-32", ("trio.open_file",), 40),
    ]
    for tasks in (1, 32, 256):
        title = f'awaited reads, {tasks} task{"s" * (tasks > 1)}, "budget", asyncio, against turbofile'
        goals.append(Goal(title, budget, f"random-{tasks}", ("turbofile",), 1.0))
    goals += [
        Goal("`read_batch` of 256, of P", ring, "batch-256", (P,), 1.0),
        Goal("`readinto_batch` of 256, of P", ring, "batch-into-256", (P,), 1.2, against_case="batch-256"),
        Goal("`readinto_batch` of 256, of fio's io_uring", ring, "batch-into-256", (FIO,), 0.85),
    ]
    for tasks, least in ((32, 2.5), (256, 3.1)):
        goals.append(Goal(f"cold cache, {tasks} tasks, of P", ring, f"cold-{tasks}", (P,), least))
        goals.append(Goal(f"cold cache, {tasks} tasks, against the best peer", ring, f"cold-{tasks}", ("*",), 1.0))
    for tasks in (64, 256):
        case = f"direct-{tasks}"
        goals.append(Goal(f"O_DIRECT, {tasks} tasks, of fio's io_uring at that depth", ring, case, (FIO,), 0.9))
        goals.append(Goal(f"O_DIRECT, {tasks} tasks, of a synchronous loop", ring, case, (P,), 2.6))
    return [
        *goals,
        Goal("O_DIRECT, `readinto_batch` of 256, of fio's io_uring", ring, "direct-batch-into-256", (FIO,), 0.95),
        Goal("4 KiB write and fdatasync, of the synchronous pair", ring, "write-sync", (P,), 0.7),
        *(
            Goal(f"longest stall while 64 MiB cached are read{into}, {loop}, ms", f"ring ({loop})", case, at_most=3)
            for case, into in (("stall", ""), ("stall-into", " into a buffer"))
            for loop in ("asyncio", "trio")
        ),
        Goal("kernel entries for 1,000,000 reads in batches of 32", SUBJECT, "entries", at_most=31_500),
        Goal("threads, 32 tasks, against `anyio.to_thread`", THREADS, "random-32", ("anyio.to_thread",), 5),
        Goal("threads, batches of 256, against `anyio.to_thread`", THREADS, "batch-256", ("anyio.to_thread",), 15),
        Goal("cost of an operation at 10,000 tasks, against 256", SUBJECT, "random-10000", (SUBJECT,), at_most=1.25,
             against_case="random-256", inverse=True),
        Goal("memory of an operation in flight, bytes", SUBJECT, "memory", at_most=1024),
    ]  # fmt: skip


SUBJECT = "ring (asyncio)"
THREADS = "threads (asyncio)"
GOALS = tuple(_goals())


def figures(results: Results) -> list[Figure]:
    """Hold a run against all goals whose cases it had."""
    return [figure(goal, results) for goal in GOALS if goal.case in results["cases"]]

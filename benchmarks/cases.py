"""
The cases: what every participant is asked to do, as data.

Knows nothing of participants, and nothing of how a case is carried out (``worker.py``, ``fio.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

from .data import BLOCK

MIB = 1 << 20


@dataclass(frozen=True)
class Case:
    """One thing to measure."""

    name: str
    title: str
    kind: str
    """The method of a worker that does it: see ``workers/__init__.py``."""
    tasks: int = 1
    batch: int = 1
    size: int = BLOCK
    order: str = "random"
    """``random``, ``sequential``, or ``distinct``: in random order, and no block twice."""
    direct: bool = False
    cold: bool = False
    unit: str = "operations/s"
    start: int = 256
    """How many operations the first trial has."""
    fixed: int = 0
    """
    How many operations each measurement has, where time must not decide.

    With ``--quick`` a quarter of the cold reads; one for each of many tasks, also for those who are always slow.
    """

    thorough: bool = False
    """Left out with ``--quick``, unless it is asked for by its name: no figure needs it."""

    @property
    def more_is_better(self) -> bool:
        return self.unit == "operations/s"

    @property
    def is_single(self) -> bool:
        """Whether it is counted, of this library alone, and not timed (``single.py``)."""
        return self.kind in {"entries", "memory"}


def _awaited(tasks: int) -> Case:
    return Case(
        f"random-{tasks}",
        f"4 KiB random reads, cached, awaited one by one, {tasks} task{'s' if tasks > 1 else ''}",
        "reads",
        tasks=tasks,
        # So many that the tasks' beginnings and ends weigh little.
        fixed=8 * tasks if tasks > 256 else 0,
    )


CASES = (
    _awaited(1),
    _awaited(32),
    _awaited(256),
    _awaited(10_000),
    *(Case(f"batch-{n}", f"4 KiB random reads, cached, batches of {n}", "batches", batch=n) for n in (32, 256)),
    *(
        Case(f"batch-into-{n}", f"4 KiB random reads into buffers, cached, batches of {n}", "batches_into",
             batch=n, thorough=n == 32)
        for n in (32, 256)
    ),
    *(
        Case(f"direct-{n}", f"4 KiB random reads, O_DIRECT, {n} task{'s' if n > 1 else ''}", "reads_into",
             tasks=n, direct=True, thorough=n <= 32)
        for n in (1, 32, 64, 256)
    ),
    *(
        Case(f"direct-batch-into-{n}", f"4 KiB random reads, O_DIRECT, batches of {n}", "batches_into",
             batch=n, direct=True, thorough=n == 32)
        for n in (32, 256)
    ),
    Case("sequential-4k", "sequential 4 KiB reads, cached, one task", "reads", order="sequential"),
    Case("sequential-1m", "sequential 1 MiB reads, cached, one task", "reads", order="sequential", size=MIB, start=8),
    Case("files", "small files, whole (open, read, close), 32 tasks", "files", tasks=32),
    Case("write-sync", "4 KiB write and fdatasync, one after another", "writes", start=16),
    Case("stall", "longest lateness of a 1 ms heartbeat while 64 MiB cached are read", "reads",
         order="sequential", size=64 * MIB, unit="ms", start=1, fixed=1),
    Case("stall-into", "the same while they are read into a buffer that is there", "reads_into",
         order="sequential", size=64 * MIB, unit="ms", start=1, fixed=1),
    *(
        Case(f"cold-{n}", f"4 KiB random reads, not cached, {n} tasks", "reads",
             tasks=n, order="distinct", cold=True, fixed=4096)
        for n in (32, 256)
    ),
    Case("entries", "kernel entries for 1,000,000 reads in batches of 32", "entries", batch=32, unit="entries"),
    Case("memory", "memory of an awaited operation in flight, buffer and task apart", "memory", unit="bytes"),
)  # fmt: skip

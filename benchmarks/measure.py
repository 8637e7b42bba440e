"""
A run: every participant once per case and round, interleaved, in an order that rotates.

Gives a plain dictionary, as it is written to JSON.  Knows nothing of ratios, goals and plots.
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from . import data, single
from .cases import Case
from .environments import AbsentEnvironmentError, Environments
from .fio import FioProcess
from .participants import OURS, SINGLE, Participant
from .processes import Reply, WorkerProcess

_PROBE = Case("probe", "", "reads")
_PROBED = 64
# Evidence that a participant must not show if it does not claim it.
_EXCLUSIVE = frozenset({"io_uring", "sqpoll"})
WRITTEN = 16 << 20


@dataclass(frozen=True)
class Settings:
    """How long a run is, and where."""

    rounds: int
    seconds: float
    """How long one measurement should take."""
    file_size: int
    directory: Path
    quick: bool = False


@dataclass
class Run:
    """What a run has found so far."""

    settings: Settings
    environments: Environments
    log: IO[bytes]
    say: Callable[[str], None]
    seen: dict[str, Any] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    results: dict[str, dict[str, list[float | None]]] = field(default_factory=dict)
    _processes: dict[str, WorkerProcess | FioProcess] = field(default_factory=dict)
    _operations: dict[tuple[str, str], int] = field(default_factory=dict)
    _unsupported: set[tuple[str, str]] = field(default_factory=set)

    def measure(self, participants: Iterable[Participant], cases: Iterable[Case]) -> None:
        """Measure all; what fails is noted, and the others go on."""
        cases = list(cases)
        timed = [case for case in cases if not case.is_single]
        self._make_files()
        try:
            present = [participant for participant in participants if self._start(participant)]
            for number in range(self.settings.rounds):
                for case in timed:
                    self.say(f"round {number + 1} of {self.settings.rounds}: {case.name}")
                    self._measure_round(number, case, present)
            for case in cases:
                if case.is_single and any(participant.name == SINGLE for participant in present):
                    self.say(case.name)
                    self._count(case)
        finally:
            for process in self._processes.values():
                process.end()

    def _make_files(self) -> None:
        directory = self.settings.directory
        self.say(f"the files in {directory}")
        directory.mkdir(parents=True, exist_ok=True)
        data.make_file(str(directory / "big"), self.settings.file_size)
        data.make_file(str(directory / "written"), WRITTEN)
        data.make_small_files(str(directory / "small"))
        data.warm(str(directory / "big"))

    def _measure_round(self, number: int, case: Case, present: list[Participant]) -> None:
        taking_part = [p for p in present if self._takes_part(p, case)]
        if not taking_part:
            return
        turn = number * len(taking_part) // self.settings.rounds
        for participant in taking_part[turn:] + taking_part[:turn]:
            value = self._measure_one(number, case, participant)
            if (participant.name, case.name) not in self._unsupported:
                self.results.setdefault(case.name, {}).setdefault(participant.name, []).append(value)
        if case.cold:
            data.warm(str(self.settings.directory / "big"))

    def _count(self, case: Case) -> None:
        """Count what is counted of this library alone, each time in new processes."""
        python, quick = self.environments.python(OURS), self.settings.quick
        try:
            if case.kind == "entries":
                reads = 100_000 if quick else 1_000_000
                details = single.kernel_entries(python, self.settings.directory / "big", reads)
                values = [details["counted"]]
            else:
                details = {"rounds": [single.memory(python) for _ in range(1 if quick else 3)]}
                # What tracing does not see, and what the allocator had in reserve: the larger number is the safe one.
                values = [max(numbers.values()) for numbers in details["rounds"]]
        except single.NotCountedError as exc:
            self.absent[case.title] = str(exc)
            return
        self.results[case.name] = {SINGLE: list(values)}
        self.seen[SINGLE][case.name] = details

    def _takes_part(self, participant: Participant, case: Case) -> bool:
        # When there is little time, ten thousand tasks are started only for those whom a figure needs.
        needed = participant.group in {"ours", "reference"} and not participant.slow
        most = participant.tasks_at_most if needed or not self.settings.quick else 256
        return (
            (participant.name, case.name) not in self._unsupported
            and case.name not in participant.without
            and case.tasks <= most
        )

    # --- one participant ------------------------------------------------------------------------

    def _start(self, participant: Participant) -> bool:
        """Start a participant, have it read a little, and see whether it is what it is called."""
        self.say(f"start {participant.name}")
        try:
            process = self._processes[participant.name] = self._process(participant)
        except AbsentEnvironmentError as exc:
            self.absent[participant.name] = str(exc)
            return False
        reply = process.started()
        if "ready" in reply:
            reply = process.run(_PROBE, _PROBED, seed=1, probe=True)
        if "absent" in reply:
            self.absent[participant.name] = reply["absent"]
            return False
        if self._has_failed(participant, "start", reply):
            return False
        self.seen[participant.name] = {"group": participant.group, **reply}
        return True

    def _process(self, participant: Participant) -> WorkerProcess | FioProcess:
        if participant.module == "fio":
            return FioProcess(participant, self.settings)
        python = self.environments.python(participant.requirements, participant.python)
        return WorkerProcess(participant, python, self.settings.directory, self.log)

    def _has_failed(self, participant: Participant, where: str, reply: Reply) -> bool:
        """Note a failure, and a driver that is not the one that this participant is there for."""
        failure = reply.get("failure")
        if failure is None:
            shown = frozenset(reply["evidence"])
            if reply["driver"] != participant.driver:
                failure = f"the driver is {reply['driver']!r} and not {participant.driver!r}"
            elif not participant.evidence <= shown or (shown & _EXCLUSIVE) - participant.evidence:
                failure = f"its process shows {sorted(shown)} and not {sorted(participant.evidence)}"
        if failure is not None:
            self.failures.append(f"{participant.name}, {where}: {failure}")
        return failure is not None

    def _measure_one(self, number: int, case: Case, participant: Participant) -> float | None:
        key = (participant.name, case.name)
        if key not in self._operations:
            operations = self._try_out(case, participant)
            if operations is None:
                return None
            self._operations[key] = operations
        reply = self._ask(case, participant, self._operations[key], _seed(number, participant))
        return None if reply is None else _value(case, reply)

    def _try_out(self, case: Case, participant: Participant) -> int | None:
        """Find how many operations take about the wanted time; this warms up, too."""
        operations = case.start
        if participant.module == "fio":
            return self._fixed(case, participant) or operations
        if case.fixed:
            warmed_up = case.cold or self._ask(case, participant, operations, seed=1) is not None
            return self._fixed(case, participant) if warmed_up else None
        while True:
            reply = self._ask(case, participant, operations, seed=1)
            if reply is None:
                return None
            factor = self.settings.seconds / max(reply["seconds"], 1e-6)
            # A wild guess is tried again.
            if factor < 4 or operations >= 1 << 22:
                return max(case.start, int(operations * factor)) // case.batch * case.batch
            operations = int(operations * min(factor, 16)) // case.batch * case.batch

    def _fixed(self, case: Case, participant: Participant) -> int:
        if participant.slow and case.tasks > 256:
            return case.tasks
        if self.settings.quick and case.fixed > 1:
            return max(case.tasks, case.fixed // 4) if case.cold else case.tasks
        return case.fixed

    def _ask(self, case: Case, participant: Participant, operations: int, seed: int) -> Reply | None:
        if participant.fresh:
            self._restart(participant)
        reply = self._processes[participant.name].run(case, operations, seed)
        if "unsupported" in reply:
            self._unsupported.add((participant.name, case.name))
            return None
        if not self._has_failed(participant, case.name, reply):
            return reply
        if "ended" in reply:
            self._restart(participant)
        return None

    def _restart(self, participant: Participant) -> None:
        self._processes[participant.name].end()
        self._processes[participant.name] = self._process(participant)
        self._processes[participant.name].started()


def _seed(number: int, participant: Participant) -> int:
    """
    Return what a participant's offsets in a round come from; each has others.

    A device, or the host of a virtual one, may have in memory what the participant before has read.
    """
    return zlib.crc32(f"{number} {participant.name}".encode())


def _value(case: Case, reply: Reply) -> float:
    seconds: float = reply["seconds"]
    return seconds * 1000 if case.unit == "ms" else reply["operations"] / seconds


def as_results(run: Run) -> dict[str, Any]:
    """Return a run as it is written to JSON."""
    system, settings = os.uname(), run.settings
    with open("/proc/cpuinfo") as file:
        models = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    return {
        "machine": {
            "processors": os.cpu_count(),
            "processor": models[0] if models else system.machine,
            "kernel": system.release,
            "python": run.environments.version,
            "time": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        },
        "settings": {
            "rounds": settings.rounds,
            "seconds": settings.seconds,
            "file_size": settings.file_size,
            "quick": settings.quick,
        },
        "participants": run.seen,
        "absent": run.absent,
        "failures": run.failures,
        "cases": run.results,
    }

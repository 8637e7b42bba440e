"""The command line of the suite."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import report
from .cases import CASES, MIB, Case
from .environments import ROOT, Environments
from .measure import Run, Settings, as_results
from .participants import PARTICIPANTS, Participant

CACHE = ROOT / ".cache" / "benchmarks"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    result = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure this library beside its peers.")
    add = result.add_argument
    add(
        "--quick",
        action="store_true",
        help="short measurements of a small file: under 3 minutes, once the environments are there",
    )
    add("--list", action="store_true", help="list cases and participants, and end")
    add(
        "--only",
        metavar="CASE",
        action="append",
        help="measure this case alone (may be given again; a part of the name will do)",
    )
    add(
        "--participants",
        metavar="NAME",
        action="append",
        help="these participants alone (may be given again; a part will do)",
    )
    add("--rounds", type=int, help="how often everything is measured (5; 2 with --quick)")
    add("--file-size", type=int, metavar="MIB", help="size of the file that is read (1024; 256 with --quick)")
    add("--directory", type=Path, default=CACHE / "data", help="where the files are made: on a disk, and not on tmpfs")
    add("--environments", type=Path, default=CACHE / "environments", help="where the environments are kept")
    add("--python", default=sys.executable, help="the interpreter of all participants (the one that runs this)")
    add("--report", metavar="RESULTS", type=Path, help="measure nothing: make tables and plots from a results.json")
    add("--no-plots", action="store_true", help="draw nothing, and so install no matplotlib")
    add("--docs", action="store_true", help="put the figures, tables and plots into docs/, too")
    add(
        "--output", type=Path, default=CACHE / "results", help="where results.json, tables.md, the plots and the log go"
    )
    return result


def _chosen(wanted: Sequence[str] | None, name: str) -> bool:
    return wanted is None or name in wanted or (not {*wanted} & _NAMES and any(part in name for part in wanted))


_NAMES = {case.name for case in CASES} | {participant.name for participant in PARTICIPANTS}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite; the status tells whether everyone did what they were there for."""
    options = parser().parse_args(arguments)
    cases = [case for case in CASES if _chosen(options.only, case.name)]
    if options.quick and not options.only:
        cases = [case for case in cases if not case.thorough]
    participants = [participant for participant in PARTICIPANTS if _chosen(options.participants, participant.name)]
    if options.list:
        for case in cases:
            print(f"{case.name:24} {case.title}")
        for participant in participants:
            print(f"{participant.name:32} {participant.group:10} {' '.join(participant.requirements)}")
        return 0
    options.output.mkdir(parents=True, exist_ok=True)
    environments = Environments(options.environments, options.python)
    if options.report:
        results = json.loads(options.report.read_text(encoding="utf-8"))
    else:
        results = _measured(options, environments, participants, cases)
    (options.output / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    report.write(results, options.output)
    no_plots = "as asked" if options.no_plots else report.plot(options.output, environments)
    if options.docs:
        report.write_docs(results, options.output)
    print(report.printed(results))
    for name, reason in results["absent"].items():
        print(f"absent: {name}: {reason}")
    if no_plots:
        print(f"no plots: {no_plots}")
    print(f"results, tables and plots: {options.output}")
    for failure in results["failures"]:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if results["failures"] else 0


def _measured(
    options: argparse.Namespace,
    environments: Environments,
    participants: Sequence[Participant],
    cases: Sequence[Case],
) -> dict[str, Any]:
    settings = Settings(
        rounds=options.rounds or (2 if options.quick else 5),
        seconds=0.02 if options.quick else 0.15,
        file_size=(options.file_size or (256 if options.quick else 1024)) * MIB,
        directory=options.directory.resolve(),
        quick=options.quick,
    )
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {text}", file=sys.stderr, flush=True)

    with open(options.output / "log.txt", "wb") as log:
        run = Run(settings, environments, log, say)
        run.measure(participants, cases)
    return as_results(run)


if __name__ == "__main__":
    sys.exit(main())

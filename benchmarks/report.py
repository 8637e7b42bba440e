"""
Results as Markdown: what the figures to reach are at, every case, and who was absent.

Knows results as ``measure.py`` writes them; the plots are ``plots.py``'s.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .cases import CASES, Case
from .environments import ROOT, AbsentEnvironmentError, Environments, clean_environment
from .figures import P, Results, Spread, figures, ratios

_BEGIN, _END = "<!-- generated: begin -->", "<!-- generated: end -->"
_OF_P = {"batch-into-32": "batch-32", "batch-into-256": "batch-256"}


def number(value: float) -> str:
    """Return a number with three or four digits that mean something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def spread(value: Spread) -> str:
    """Return a median with the least and the most."""
    if value.low == value.high:
        return number(value.median)
    return f"{number(value.median)} [{number(value.low)}..{number(value.high)}]"


def figures_table(results: Results) -> str:
    """Return the table of the figures to reach."""
    lines = ["| figure | goal | measured | |", "|---|---|---|---|"]
    for figure in figures(results):
        goal = figure.goal
        wanted = f"≥ {goal.at_least:g}" if goal.at_least is not None else f"≤ {goal.at_most:,g}"
        measured = spread(figure.spread) if figure.spread is not None else ""
        if figure.against and len(goal.against) + (goal.against == ("*",)) > 1:
            measured += f" ({figure.against})"
        verdict = figure.verdict if figure.reached else f"**{figure.verdict}**"
        lines.append(f"| {goal.title} | {wanted} | {measured} | {verdict} |")
    return "\n".join(lines)


def case_table(case: Case, results: Results) -> str:
    """Return the table of one case, the best first."""
    values: Mapping[str, list[float | None]] = results["cases"][case.name]
    plain = results["cases"].get(_OF_P.get(case.name, case.name), {}).get(P, ())
    rows = []
    for name, rounds in values.items():
        present = [value for value in rounds if value]
        if not present:
            continue
        quotients = ratios(rounds, plain) if case.more_is_better else []
        rows.append((Spread.of(present), name, spread(Spread.of(quotients)) if quotients else ""))
    rows.sort(key=lambda row: row[0].median, reverse=case.more_is_better)
    lines = [f"## {case.name}: {case.title}", "", f"| | {case.unit} | of P |", "|---|---|---|"]
    lines += [f"| {name} | {spread(value)} | {of_plain} |" for value, name, of_plain in rows]
    return "\n".join(lines)


def introduction(results: Results) -> str:
    """Return what a reader must know before the figures."""
    machine, settings = results["machine"], results["settings"]
    machine_line = (
        f"{machine['time']}, {machine['processors']} processors ({machine['processor']}), Linux {machine['kernel']}, "
        f"Python {machine['python']}, {settings['rounds']} rounds, a file of {settings['file_size'] >> 20} MiB."
    )
    lines = [
        machine_line,
        "A ratio is the median of the rounds, with the least and the most in brackets.",
    ]
    if settings["quick"]:
        lines.append("**A quick run: the measurements are short, and the figures rough.**")
    lines += [f"* absent: {name} ({reason})" for name, reason in results["absent"].items()]
    lines += [f"* **failed: {failure}**" for failure in results["failures"]]
    return "\n".join([*lines[:2], *lines[2:3], "", *lines[3:]] if settings["quick"] else [*lines[:2], "", *lines[2:]])


def tables(results: Results) -> str:
    """Return the whole report."""
    cases = [case_table(case, results) for case in CASES if case.name in results["cases"]]
    return "\n\n".join([introduction(results), figures_table(results), *cases]) + "\n"


def write(results: Results, directory: Path) -> None:
    """Write the tables beside ``results.json``."""
    (directory / "tables.md").write_text("# Every case\n\n" + tables(results), encoding="utf-8")


def plot(directory: Path, environments: Environments) -> str | None:
    """Draw the plots beside ``results.json``; returns why there are none, if there are none."""
    try:
        # In an environment of their own: the suite itself needs nothing but the standard library.
        python = environments.python(("matplotlib",))
    except AbsentEnvironmentError as exc:
        return str(exc)
    command = [python, "-m", "benchmarks.plots", str((directory / "results.json").resolve()), str(directory.resolve())]
    done = subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, check=False)
    return done.stderr.strip().splitlines()[-1] if done.returncode else None


def write_docs(results: Results, directory: Path) -> None:
    """Put a run into the documentation: the figures into its page, all tables and the plots beside it."""
    page, beside = ROOT / "docs" / "performance.md", ROOT / "docs" / "performance"
    beside.mkdir(exist_ok=True)
    for path in [*directory.glob("*.svg"), directory / "tables.md"]:
        shutil.copy(path, beside / path.name)
    before, rest = page.read_text(encoding="utf-8").split(_BEGIN)
    _, after = rest.split(_END)
    generated = f"{introduction(results)}\n\n{figures_table(results)}"
    page.write_text(f"{before}{_BEGIN}\n{generated}\n{_END}{after}", encoding="utf-8")


def printed(results: Results) -> str:
    """Return the figures for a terminal."""
    rows: list[Any] = []
    for figure in figures(results):
        goal = figure.goal
        wanted = f">= {goal.at_least:g}" if goal.at_least is not None else f"<= {goal.at_most:,g}"
        against = f" ({figure.against})" if figure.against and len(goal.against) + (goal.against == ("*",)) > 1 else ""
        rows.append((goal.title, wanted, (spread(figure.spread) if figure.spread else "-") + against, figure.verdict))
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
    return "\n".join("  ".join([*(cell.ljust(w) for cell, w in zip(row, widths)), row[3]]) for row in rows)

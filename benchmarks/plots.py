"""
The plots, as SVG: run with matplotlib in an environment of its own.

    python -m benchmarks.plots RESULTS DIRECTORY
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from .cases import CASES, Case
from .figures import Results, Spread

FAMILIES = {
    "awaited": ("random-1", "random-32", "random-256", "random-10000"),
    "batches": ("batch-32", "batch-256", "batch-into-32", "batch-into-256"),
    "direct": ("direct-1", "direct-64", "direct-256", "direct-batch-into-256"),
    "cold": ("cold-32", "cold-256"),
    "others": ("sequential-4k", "sequential-1m", "files", "write-sync", "stall", "stall-into"),
}
# For the README, which has room for few: what programs have now, and the fastest of the others.
OVERVIEW = ("random-32", "cold-32")
SHOWN = (
    *("os.pread", "ring (asyncio)", "ring (trio)", "threads (asyncio)", "anyio.open_file", "trio.open_file"),
    *("aiofiles", "aiofile", "asyncio.to_thread", "caio (io_uring)", "turbofile"),
)
COLOURS = {"ours": "#c2410c", "reference": "#6b7280", "peer": "#2563eb", "ceiling": "#111827"}
_ROW = 0.2


def draw(names: tuple[str, ...], results: Results, path: Path) -> None:
    """Draw cases beside one another: a bar for each participant, the rounds' spread as a line."""
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    cases = [case for case in CASES if case.name in names and results["cases"].get(case.name)]
    if not cases:
        return
    rows = max(len(results["cases"][case.name]) for case in cases)
    figure, axes = pyplot.subplots(
        (len(cases) + 1) // 2, min(2, len(cases)), squeeze=False, layout="constrained",
        figsize=(12, (len(cases) + 1) // 2 * (rows * _ROW + 1)),
    )  # fmt: skip
    for axis in axes.flat[len(cases) :]:
        axis.set_axis_off()
    for case, axis in zip(cases, axes.flat):
        _panel(axis, case, results)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _panel(axis: Any, case: Case, results: Results) -> None:
    rows = []
    for name, rounds in results["cases"][case.name].items():
        present = [value for value in rounds if value]
        if present:
            rows.append((Spread.of(present), name, COLOURS[results["participants"][name]["group"]]))
    rows.sort(key=lambda row: row[0].median, reverse=not case.more_is_better)
    medians = [row[0].median for row in rows]
    spreads = [[row[0].median - row[0].low for row in rows], [row[0].high - row[0].median for row in rows]]
    axis.barh([row[1] for row in rows], medians, color=[row[2] for row in rows], xerr=spreads,
              error_kw={"elinewidth": 0.8, "capsize": 1.5, "ecolor": "#9ca3af"})  # fmt: skip
    axis.set_title(case.title, fontsize=8)
    axis.set_xlabel(case.unit, fontsize=7)
    axis.tick_params(labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Draw every family that was measured."""
    matplotlib: Any = importlib.import_module("matplotlib")
    matplotlib.use("svg")
    # The same results give the same file, and letters stay letters.
    matplotlib.rcParams.update({"svg.hashsalt": "benchmarks", "svg.fonttype": "none", "font.family": "sans-serif"})
    results = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    directory = Path(sys.argv[2])
    for family, names in FAMILIES.items():
        draw(names, results, directory / f"{family}.svg")
    few = {name: {who: v for who, v in results["cases"].get(name, {}).items() if who in SHOWN} for name in OVERVIEW}
    draw(OVERVIEW, {**results, "cases": few}, directory / "overview.svg")


if __name__ == "__main__":
    main()

"""The command ``anyio-uring demo``: its progress bars, its table and its exit status.

It knows terminals; the job itself is in :mod:`anyio_uring._demo`.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import shutil
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import anyio

try:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Table
except ModuleNotFoundError as _missing:
    raise SystemExit(
        f"The demonstration needs {_missing.name}, which is not installed: pip install 'anyio_uring[cli]'"
    ) from None

from ._core import open_uring
from ._demo import Outcome, Tree, copy_and_verify, scan
from ._errors import UringUnavailableError
from ._output import writing

# How many findings of one kind are printed before they are only counted.
LINES_MAX = 20
# A table in a pipe or a log has no terminal to ask for its width.
PLAIN_WIDTH = 120

Leg = tuple[str, Literal["uring", "threads"]]


def demo(directory: str | None, *, depth: int, target: str | None, keep: bool, require_ring: bool) -> int:
    """
    Copy a directory tree in every way that this machine has, and compare every byte.

    :return: the exit status: 1 if anything differs or is missing
    :raises OSError: if the tree cannot be listed, or the copies cannot be written
    :raises BatchError: if an operation of a batch fails
    :raises OutputError: if standard output does not take what there is to say
    """
    console = _console()
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    # What pip has installed lies inside the standard library's directory, but is no part of it.
    leave_out = () if directory else ("site-packages", "dist-packages")
    tree = scan(directory or sysconfig.get_path("stdlib"), leave_out)
    say(f"{tree.root}: {len(tree.files)} files, {_mib(tree.total_bytes)} MiB")
    _say_findings(say, "skipped", tree.skipped)
    legs, is_complete = _legs(say, depth)
    place = tempfile.mkdtemp(prefix="anyio-uring-demo-", dir=target)
    outcomes: dict[Leg, Outcome] = {}
    try:
        for leg in legs:
            outcome = _run(console, tree, os.path.join(place, "-".join(leg)), leg, depth)
            _say_findings(say, f"{' + '.join(leg)}: skipped", outcome.skipped)
            _say_findings(say, f"{' + '.join(leg)}: WRONG", outcome.problems)
            outcomes[leg] = outcome
            if not keep:
                shutil.rmtree(os.path.join(place, "-".join(leg)))
    finally:
        if not keep:
            shutil.rmtree(place, ignore_errors=True)
        # Before Python 3.11 Ctrl-C does not wait for asyncio's worker threads, which may still make files.
        if os.path.isdir(place):
            say(f"The copies are in {place}")
    console.print(_table(outcomes))
    wrong = sum(len(outcome.problems) for outcome in outcomes.values())
    say(f"{wrong} differences: the copies are NOT equal" if wrong else "Every byte read back equals the original.")
    return 1 if wrong or (require_ring and not is_complete) else 0


class _Console(Console):
    """A console that tells standard output's errors from those of the copies."""

    def print(self, *objects: Any, **options: Any) -> None:
        with writing():
            super().print(*objects, **options)

    def on_broken_pipe(self) -> None:
        # rich would exit with a status that means something else here.
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def _console() -> Console:
    console = _Console()
    return console if console.is_terminal else _Console(width=PLAIN_WIDTH)


def _legs(say: Callable[[str], None], depth: int) -> tuple[list[Leg], bool]:
    """Choose what can run here, and say what cannot; also, whether the ring is among it."""
    loops = ["asyncio", "trio"]
    if importlib.util.find_spec("trio") is None:
        say("trio is not installed, so this is asyncio alone: pip install 'anyio_uring[trio]'")
        loops.remove("trio")
    drivers: list[Literal["uring", "threads"]] = ["uring", "threads"]
    reason = anyio.run(_why_no_ring, depth)
    if reason is not None:
        say(f"No io_uring, so this is threads alone: {reason}")
        drivers.remove("uring")
    return [(loop, driver) for loop in loops for driver in drivers], reason is None


async def _why_no_ring(depth: int) -> str | None:
    try:
        async with open_uring(driver="uring", depth=depth):
            return None
    except UringUnavailableError as exc:
        return exc.strerror or str(exc)


def _run(console: Console, tree: Tree, target: str, leg: Leg, depth: int) -> Outcome:
    loop, driver = leg
    with _progress(console, f"{loop} + {driver}", tree.total_bytes) as advance:
        job = partial(copy_and_verify, tree, target, driver=driver, depth=depth, advance=advance)
        return anyio.run(job, backend=loop)


@contextmanager
def _progress(console: Console, title: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal, and a line for the beginning anywhere else."""
    if not console.is_terminal:
        console.print(f"{title} ...", highlight=False)
        yield lambda _count: None
        return
    columns = TextColumn("{task.description:<17}"), BarColumn(), DownloadColumn(binary_units=True), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=total_bytes)
        yield partial(progress.advance, task)


def _table(outcomes: dict[Leg, Outcome]) -> Table:
    # Narrow enough for 80 columns.
    table = Table(
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
        caption="seconds: copy, fsync, read back, compare\n"
        "kernel entries: io_uring_enter; on threads read, write and fsync calls",
        caption_justify="left",
    )
    table.add_column("loop", no_wrap=True)
    table.add_column("driver", no_wrap=True)
    for heading in (
        "files",
        "MiB",
        "seconds",
        "operations\na second",
        "submis-\nsions",
        "kernel\nentries",
        "average\nbatch",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for (loop, driver), outcome in outcomes.items():
        counters = outcome.statistics
        table.add_row(
            loop,
            driver,
            str(outcome.files),
            _mib(outcome.total_bytes),
            f"{outcome.seconds:.2f}",
            f"{counters.submissions / outcome.seconds:,.0f}",
            f"{counters.submissions:,}",
            f"{counters.syscalls:,}",
            f"{counters.average_batch_size:.1f}",
        )
    return table


def _say_findings(say: Callable[[str], None], title: str, findings: dict[str, str] | list[str]) -> None:
    lines = [f"{path}: {why}" for path, why in findings.items()] if isinstance(findings, dict) else findings
    for line in lines[:LINES_MAX]:
        say(f"{title}: {line}")
    if len(lines) > LINES_MAX:
        say(f"{title}: and {len(lines) - LINES_MAX} more")


def _mib(count: int) -> str:
    return f"{count / (1 << 20):.1f}"

"""The command ``anyio-uring doctor``: the findings as text, as a table in colours, as JSON.

It knows words and terminals; it finds out nothing.
"""

from __future__ import annotations

import json
from typing import Any, Final, Literal

import attrs

from ._doctor import Feature, Place, Report, examine, in_kib
from ._options import DRIVER_VARIABLE, UringOptions
from ._output import is_terminal, tell, writing
from ._requests import Opcode

SYSCTL_MEANS: Final = {
    0: "everyone may use io_uring",
    1: "only CAP_SYS_ADMIN and the group in kernel.io_uring_group may use io_uring",
    2: "nobody may use io_uring",
}

State = Literal["good", "note", "bad"]


def doctor(path: str | None, *, as_json: bool) -> int:
    """
    Examine, print, and return the exit status.

    :raises OutputError: if standard output does not take it
    """
    report = examine(path)
    if as_json:
        tell(json.dumps(attrs.asdict(report), indent=2))
    elif not (is_terminal() and _print_in_colour(report)):
        lines = _lines(report)
        width = max(len(name) for name, _, _ in lines)
        tell("\n".join(f"{name:<{width}}  {value}" for name, value, _ in lines))
    return report.status


def _lines(report: Report) -> list[tuple[str, str, State]]:
    """Return what to print: a name, what there is to say, and how good that is."""
    lines: list[tuple[str, str, State]] = []

    def say(name: str, value: str, state: State = "good") -> None:
        lines.append((name, value, state))

    _say_verdict(report, say)
    _say_system(report, say)
    _say_ring(report, say)
    for feature in report.features:
        say(feature.name, *_feature(feature))
    if report.place:
        _say_place(report.place, say)
    return lines


def _say_verdict(report: Report, say: Any) -> None:
    if report.problem:
        say("verdict", f"broken: {report.problem}", "bad")
    elif report.driver == "uring":
        say("verdict", "the ring: open_uring() takes io_uring here")
    else:
        say("verdict", "threads: open_uring() takes threads here", "note")
    if report.problem and report.driver:
        say("driver", report.driver, "note")
    if report.reason:
        say("reason", report.reason, "note")
    if report.driver_variable:
        say(DRIVER_VARIABLE, report.driver_variable, "note")


def _say_system(report: Report, say: Any) -> None:
    say("kernel", f"{report.system} {report.kernel}")
    say("python", report.python)
    liburing = report.liburing
    say("liburing", f"{liburing}, built with" if liburing else "no extension", _state(liburing is not None, "bad"))
    disabled = report.io_uring_disabled
    if disabled is None:
        say("io_uring_disabled", "no such sysctl here")
    else:
        say("io_uring_disabled", f"{disabled}: {SYSCTL_MEANS.get(disabled, 'unknown')}", _state(disabled == 0))
    say("seccomp", _seccomp(report), _state(report.seccomp == "none"))
    say("io_uring_setup", report.io_uring_setup or "not asked", _state(report.io_uring_setup == "works", "bad"))
    if report.memlock is None:
        say("RLIMIT_MEMLOCK", "no limit")
    elif report.is_memlock_exempt:
        say("RLIMIT_MEMLOCK", f"{in_kib(report.memlock)}, not applied to this process (CAP_IPC_LOCK)")
    else:
        say("RLIMIT_MEMLOCK", in_kib(report.memlock))


def _say_ring(report: Report, say: Any) -> None:
    if report.depth is not None:
        asked = UringOptions().depth
        say("depth", f"{report.depth} of {asked} asked", _state(report.depth == asked))
        say("setup flags", " ".join(report.setup_flags) or "none")
        missing = [opcode.name for opcode in Opcode if opcode.name not in report.opcodes]
        used = (
            f"missing {' '.join(missing)}: threads carry out what paths need" if missing else "all that are used here"
        )
        say("opcodes", f"{len(report.opcodes)}; {used}", _state(not missing))
    if report.setups:
        say("flags, allowed", " ".join(name for name, how in report.setups.items() if how == "works") or "none")
        refused = [f"{name} ({how})" for name, how in report.setups.items() if how != "works"]
        if refused:
            say("flags, refused", " ".join(refused), "note")


def _state(is_good: bool, otherwise: State = "note") -> State:  # noqa: FBT001 - the subject of the sentence
    return "good" if is_good else otherwise


def _seccomp(report: Report) -> str:
    if report.seccomp is None:
        return "unknown"
    if report.seccomp == "none":
        return "no filter"
    count = f" ({report.seccomp_filters})" if report.seccomp_filters else ""
    return f"{report.seccomp}{count}: whether it forbids io_uring, io_uring_setup shows"


def _feature(feature: Feature) -> tuple[str, State]:
    where = f"open_uring({feature.option}=)" if feature.has_option else "this version has no option for it"
    if feature.lacks is None:
        return f"no ring; {where}", "note"
    if feature.lacks:
        return f"the kernel lacks {' '.join(feature.lacks)}; {where}", "note"
    return f"the kernel has it; needs {feature.needs}; {where}", "good"


def _say_place(place: Place, say: Any) -> None:
    say("path", place.path)
    say("write and read", f"{place.written} bytes written, synced, and read back equal")
    if place.file_read is not None:
        say("file", f"{place.file_read} bytes read, nothing written")
    say("cached reads", f"RWF_NOWAIT {place.cached_reads}", _state(place.cached_reads == "works"))
    if place.is_alignment_known and not place.offset_alignment:
        say("direct I/O", "this file has none (statx)", "note")
    else:
        source = "statx" if place.is_alignment_known else "a safe default: statx does not say"
        say("direct I/O", f"memory {place.memory_alignment}, offset {place.offset_alignment} bytes ({source})")
    if place.direct_read is not None:
        say("direct read", place.direct_read, _state(place.direct_read == "works"))


def _print_in_colour(report: Report) -> bool:
    """Print a table; return whether there is rich to do it."""
    try:
        from rich.box import SIMPLE  # noqa: PLC0415 - not everyone has it
        from rich.console import Console  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415
    except ModuleNotFoundError:
        return False
    styles = {"good": "green", "note": "yellow", "bad": "bold red"}
    table = Table(box=SIMPLE, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value, state in _lines(report):
        table.add_row(name, Text(value, style=styles[state]))
    with writing():
        Console().print(table)
    return True

"""The command line: ``anyio-uring doctor``, ``anyio-uring demo``, ``anyio-uring cp``.

It knows options and exit statuses, and needs nothing but the standard library: who has to find out
why something does not work may have installed little.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from typing import Final

from ._copy_command import cp
from ._doctor_command import doctor
from ._errors import BatchError
from ._logs import configure
from ._options import DEPTH_MAX, UringOptions
from ._output import OutputError, accept_any_text, complain, flush

# Of every command, and nothing else that a command may find.
STATUS_UNWRITTEN: Final = 3
STATUS_INTERRUPTED: Final = 130
_STATUSES: Final = "3 if standard output did not take what there was to say, 130 after Ctrl-C"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status."""
    try:
        accept_any_text()
        try:
            return _run(arguments)
        finally:
            flush()
    except OutputError as exc:
        complain(str(exc))
        return STATUS_UNWRITTEN
    except (KeyboardInterrupt, asyncio.CancelledError):  # the latter comes out of asyncio.run() on Python 3.10
        complain("interrupted")
        return STATUS_INTERRUPTED


def _run(arguments: Sequence[str] | None) -> int:
    options = vars(_parser().parse_args(arguments))
    command = options.pop("command")
    if command == "doctor":  # which tells of a bad environment by itself
        return doctor(options["path"], as_json=options["json"])
    try:
        configure()
        UringOptions()._with_driver_variable()
    except ValueError as exc:
        complain(str(exc))
        return 2
    if command == "cp":
        return cp(**options)

    from ._demo_command import demo  # noqa: PLC0415 - needs rich, which not everyone has

    try:
        return demo(**options)
    except (OSError, BatchError) as exc:
        complain(str(exc))
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="anyio-uring", description="Try anyio_uring on this machine.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    title = "say which driver this machine gets and why, and what the kernel offers"
    command = commands.add_parser(
        "doctor",
        help=title,
        description=f"{title[0].upper()}{title[1:]}.",
        epilog="Exit status: 0 if open_uring() takes the ring here, 1 if it takes threads, 2 if something is broken, "
        f"{_STATUSES}.",
    )
    command.add_argument(
        "path",
        nargs="?",
        metavar="PATH",
        help="a directory, or a file that is only read; what is written goes to a nameless temporary file in "
        "that directory or beside that file (default: the current directory, or the system's for temporary files)",
    )
    command.add_argument("--json", action="store_true", help="print one JSON object")

    title = "copy a directory tree, fsync the copy, read it back from the disk, and compare every byte"
    command = commands.add_parser(
        "demo",
        help=title,
        description=f"{title[0].upper()}{title[1:]}: on asyncio and trio, through io_uring and through threads, "
        "with a table at the end.  Contents are copied, permissions and times are not.",
        epilog="Exit status: 0 if every byte is equal, 1 if anything differs or is missing, 2 for a wrong command line, "
        f"{_STATUSES}.",
    )
    command.add_argument(
        "directory", nargs="?", type=_directory, metavar="DIR", help="the tree (default: Python's standard library)"
    )
    command.add_argument(
        "--depth", type=_depth, default=256, help=f"operations in flight, 1 to {DEPTH_MAX} (default: %(default)s)"
    )
    command.add_argument("--keep", action="store_true", help="keep the copies")
    command.add_argument(
        "--target", type=_directory, help="directory to write the copies in (default: the system's for temporary files)"
    )
    command.add_argument(
        "--require-ring", action="store_true", help="exit with status 1 if there is no io_uring to be had"
    )
    _add_cp(commands)
    return parser


def _add_cp(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    title = "copy a file, or a directory with -r"
    command = commands.add_parser(
        "cp",
        help=title,
        description=f"{title[0].upper()}{title[1:]}: holes, permissions, times and extended attributes, too.  "
        "A file that exists is replaced when its copy is complete, and not before; links below a directory are "
        "copied as links.  On a terminal a bar shows the progress, if rich is installed.",
        epilog="Exit status: 0 if everything was copied, 1 if something could not be, 2 for a wrong command line, "
        f"{_STATUSES}; an interrupted file leaves nothing behind.",
    )
    command.add_argument("source", metavar="SRC")
    command.add_argument("target", metavar="DST", help="the copy's name, or a directory to put it in")
    command.add_argument("-r", "--recursive", action="store_true", help="copy a directory and what is in it")
    command.add_argument(
        "--driver", choices=["auto", "uring", "threads"], default="auto", help="what carries it out (default: auto)"
    )


def _directory(text: str) -> str:
    if not os.path.isdir(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no directory")
    return text


def _depth(text: str) -> int:
    try:
        return UringOptions(depth=int(text)).depth
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc


if __name__ == "__main__":
    sys.exit(main())

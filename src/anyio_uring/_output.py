"""What commands say, and whether it was taken: standard output and standard error, as they were found.

Each may be closed, on a full disk, a pipe that nobody reads any more, or of an encoding that lacks what is in a
file's name.  It knows streams; it knows no command and no exit status.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


class OutputError(Exception):
    """Raised when standard output does not take what a command says."""


def accept_any_text() -> None:
    """Have what standard output's encoding lacks, and what of a file's name is no text, printed as escapes."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # not None; and whatever else there is in its place takes any text
        with writing():
            sys.stdout.reconfigure(errors="backslashreplace")  # as standard error's are from the beginning


def is_terminal() -> bool:
    """Return whether standard output is a terminal; it is ``None`` if it was closed."""
    return sys.stdout is not None and sys.stdout.isatty()


@contextmanager
def writing() -> Iterator[None]:
    """Tell the errors of standard output from those of the files that a command works with."""
    try:
        yield
    except OSError as exc:
        _discard(sys.stdout)
        raise OutputError(f"standard output: {exc.strerror}") from exc


def tell(text: str) -> None:
    """
    Print to standard output.

    :raises OutputError: if it does not take it
    """
    with writing():
        print(text)


def flush() -> None:
    """
    Write what standard output still holds.

    :raises OutputError: if that fails
    """
    if sys.stdout is not None:
        with writing():
            sys.stdout.flush()


def complain(text: str) -> None:
    """Print to standard error; where that fails, nobody is left to be told but by the exit status."""
    if sys.stderr is not None:  # for which print() would take standard output
        try:
            print(f"anyio-uring: {text}", file=sys.stderr)
        except OSError:
            _discard(sys.stderr)


def _discard(stream: TextIO) -> None:
    """Have what a stream still holds go nowhere: the interpreter tries again at its end, and exits with 120."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)

"""What ``open()`` is asked with, checked by ``open()`` itself, and what follows from it.

It opens nothing but the null device, and knows no manager and no event loop.
"""

from __future__ import annotations

import io
import operator
import os
from typing import Any, Final

import attrs

_ACCESS: Final = {(True, False): os.O_RDONLY, (False, True): os.O_WRONLY, (True, True): os.O_RDWR}
# What a mode's first letter adds, as FileIO has it.
_CREATION: Final = {
    "r": 0,
    "w": os.O_CREAT | os.O_TRUNC,
    "x": os.O_CREAT | os.O_EXCL,
    "a": os.O_CREAT | os.O_APPEND,
}


@attrs.frozen(kw_only=True)
class OpenArguments:
    """
    Arguments that ``open()`` would take.

    :ivar target: a path, or an open descriptor
    :ivar mode: as it was given
    :ivar raw_mode: of the bytes below it, as :class:`io.FileIO` writes it
    :ivar flags: for ``open(2)``
    :ivar buffering: -1 for what is best; 0 for none; otherwise bytes
    :ivar encoding: of a text file, ``None`` of a binary one
    :ivar is_interactive: whether text is to be written line by line if the file is a terminal
    """

    target: str | bytes | int
    mode: str
    raw_mode: str
    flags: int
    buffering: int
    encoding: str | None
    errors: str | None
    newline: str | None
    line_buffering: bool
    is_interactive: bool


def check(
    file: Any,
    *,
    mode: str,
    buffering: int,
    encoding: str | None,
    errors: str | None,
    newline: str | None,
    closefd: bool,
) -> OpenArguments:
    """
    Check them as ``open()`` does, with its words.

    :raises ValueError: if the mode, or a combination, is invalid
    :raises LookupError: if the encoding is unknown
    :raises TypeError: if one is of a wrong type
    """
    target = _target(file, closefd=closefd)
    # The null device takes every mode and has nothing to lose, so that open() can be asked.
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        with open(null, mode, buffering, encoding, errors, newline, closefd=False) as probe:
            raw: Any = probe
            while not isinstance(raw, io.FileIO):
                raw = raw.buffer if isinstance(raw, io.TextIOWrapper) else raw.raw
            text = probe if isinstance(probe, io.TextIOWrapper) else None
            return OpenArguments(
                target=target,
                mode=mode,
                raw_mode=raw.mode,
                flags=_ACCESS[raw.readable(), raw.writable()] | _CREATION[_kind(mode)] | os.O_CLOEXEC,
                buffering=-1 if buffering < 0 or buffering == 1 else buffering,
                encoding=None if text is None else text.encoding,
                errors=None if text is None else text.errors,
                newline=newline,
                line_buffering=text is not None and buffering == 1,
                is_interactive=text is not None and buffering < 0,
            )
    finally:
        os.close(null)


def _kind(mode: str) -> str:
    return next(letter for letter in mode if letter in _CREATION)


def _target(file: Any, *, closefd: bool) -> str | bytes | int:
    if isinstance(file, int) or hasattr(type(file), "__index__"):
        fd = operator.index(file)
        if fd < 0:
            raise ValueError("negative file descriptor")
        return fd
    path: str | bytes = os.fspath(file)
    if not closefd:
        raise ValueError("Cannot use closefd=False with file name")
    if (b"\0" if isinstance(path, bytes) else "\0") in path:  # type: ignore[operator]
        raise ValueError("embedded null byte")
    return path

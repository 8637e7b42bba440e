"""File objects of the standard library, as far as others can go on where they are.

It knows :mod:`io`; it knows no manager.
"""

from __future__ import annotations

import io
from socket import SocketIO
from typing import Any


def raw_of(file: Any) -> Any:
    """
    Return the raw file of one that is nothing but a descriptor and perhaps a buffer.

    :raises TypeError: if it is text, or its bytes are not the descriptor's, as those of ``gzip.GzipFile``
    """
    inner = getattr(file, "file", file)  # what tempfile.NamedTemporaryFile() gives is a wrapper
    raw = getattr(inner, "raw", inner)
    if not isinstance(raw, (io.FileIO, SocketIO)):
        raise TypeError(f"file must be one that open() gives in binary mode, not {type(inner).__name__}")
    return raw


def refuse_lost_bytes(file: Any) -> None:
    """
    Refuse a file that may have read ahead what nobody can read again.

    :raises ValueError: if it has a buffer for reading, and no positions
    """
    if file.readable() and not file.seekable() and not isinstance(file, io.RawIOBase):
        raise ValueError(f"{file!r} may have read ahead, and nobody can take that over: give its raw file instead")

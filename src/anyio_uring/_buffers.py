"""Callers' memory: checked, and seen as flat bytes.

The memoryview that is made here is an export: while it lives, a ``bytearray`` cannot be
resized and an ``mmap`` cannot be closed (contract C2).  Knows nothing of requests or rings.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Protocol

from ._fixed_buffers import FixedBuffer


class SupportsBuffer(Protocol):
    """Anything with the buffer protocol: ``bytes``, ``bytearray``, ``memoryview``, ``mmap``, ``array``, numpy's arrays."""

    def __buffer__(self, flags: int, /) -> memoryview:
        """Give the buffer; classes written in C do so without this method's name before Python 3.12."""
        ...


def readable(buffer: SupportsBuffer, name: str = "data") -> memoryview:
    """
    Return a flat byte view of an object with the buffer protocol.

    :param name: what the caller calls it, for the error
    :raises TypeError: if the object has no buffer protocol
    :raises ValueError: if its memory is not contiguous
    """
    if type(buffer) is FixedBuffer:
        buffer = buffer.view  # by which a driver knows registered memory; and all there is before Python 3.12
    try:
        view = memoryview(buffer)
    except TypeError:
        raise TypeError(
            f"{name} must be an object with the buffer protocol (bytes, bytearray, memoryview, mmap, array, "
            f"numpy array ...), not {type(buffer).__name__}"
        ) from None
    if view.ndim == 1 and view.format == "B" and view.contiguous:
        return view
    if not view.c_contiguous:
        raise ValueError(
            f"{name} must be contiguous in memory (C order): copy it, or pass its parts to a vectored verb"
        )
    # A view with a zero in its shape cannot be cast; it has no bytes to give either.
    return view.cast("B") if view.nbytes else memoryview(bytearray())


_LAYOUT = operator.attrgetter("format", "ndim", "c_contiguous", "readonly")


def plain_views(buffers: Sequence[SupportsBuffer]) -> list[memoryview] | None:
    """
    Return views of buffers that are all writable bytes, one behind the other; None if one is not.

    A tenth of what :func:`writable` takes for each; that says which is wrong, and how.
    """
    types = {*map(type, buffers)}
    try:
        if FixedBuffer in types:
            buffers = [buffer.view if type(buffer) is FixedBuffer else buffer for buffer in buffers]
        views: list[memoryview] = [*map(memoryview, buffers)]  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    if types == {bytearray} or {*map(_LAYOUT, views)} == {("B", 1, True, False)}:
        return views
    for view in views:
        view.release()
    return None


def writable(buffer: SupportsBuffer, name: str = "buffer") -> memoryview:
    """
    Return a flat, writable byte view of an object with the buffer protocol.

    :raises TypeError: if the object has no buffer protocol
    :raises ValueError: if its memory is read-only or not contiguous
    """
    view = readable(buffer, name)
    if view.readonly:
        raise ValueError(f"{name} must be writable, and this {type(buffer).__name__} is read-only")
    return view

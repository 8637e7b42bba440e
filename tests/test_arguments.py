"""Callers' values, buffers, and requests in parts: no driver, no event loop."""

from __future__ import annotations

import array
import mmap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyio_uring import BatchError, _arguments, _buffers, _requests
from anyio_uring._requests import Opcode, Request


def test_a_view_is_flat_bytes() -> None:
    for buffer in (bytearray(24), memoryview(bytearray(24)), array.array("d", [0.0] * 3), np.zeros((3, 2), "f4")):
        view = _buffers.writable(buffer)
        assert (view.format, view.ndim, len(view), view.readonly) == ("B", 1, 24, False)
    assert len(_buffers.readable(np.zeros((0, 5)))) == 0
    assert bytes(_buffers.readable(b"abc")) == b"abc"


def test_a_view_pins_its_object() -> None:
    memory = mmap.mmap(-1, 4096)
    view = _buffers.writable(memory)
    with pytest.raises(BufferError):
        memory.close()
    view.release()
    memory.close()


def test_strided_memory_is_refused() -> None:
    for strided in (memoryview(bytearray(8))[::2], np.zeros((4, 4))[:, 1], np.zeros((4, 4)).T[1:]):
        with pytest.raises(ValueError, match="contiguous"):
            _buffers.readable(strided)


@given(st.lists(st.integers(0, 40), max_size=40), st.integers(1, 5), st.integers(1, 50))
def test_the_parts_of_a_vector_are_the_vector(lengths: list[int], count_max: int, bytes_max: int) -> None:
    data = [memoryview(bytes([i % 256]) * n) for i, n in enumerate(lengths)]
    request = Request(Opcode.WRITEV, 0, data, 7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_requests, "VECTOR_MAX", count_max)
        patch.setattr(_requests, "TRANSFER_MAX", bytes_max)
        parts = list(request.parts())
        assert request.is_long == (len(lengths) > count_max or sum(lengths) > bytes_max)
    assert b"".join(b"".join(part.memory) for part in parts) == b"".join(data)
    assert all(len(part.memory) <= count_max and part.size <= bytes_max for part in parts)
    assert parts


@given(st.integers(0, 300), st.integers(1, 50), st.integers(-1, 1000), st.integers(0, 300))
def test_the_parts_and_the_rest_of_one_buffer(length: int, bytes_max: int, offset: int, done: int) -> None:
    data = bytes(i % 256 for i in range(length))
    request = Request(Opcode.WRITE, 0, memoryview(data), offset)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_requests, "TRANSFER_MAX", bytes_max)
        assert b"".join(part.memory for part in request.parts()) == data
        rest = request.rest(min(done, length))
    assert rest.memory == data[done:]
    assert rest.offset == (-1 if offset < 0 else offset + min(done, length))


def test_a_batch_error_counts_and_names() -> None:
    error = BatchError("write_batch", [1, OSError(5, "no"), 3, OSError(28, "full")])
    assert str(error) == "write_batch: 2 of 4 operations failed; the first is request 1: [Errno 5] no"
    assert list(error.errors) == [1, 3]


def test_an_error_has_the_subclass_that_os_would_raise() -> None:
    for code, kind in ((2, FileNotFoundError), (13, PermissionError), (21, IsADirectoryError), (32, BrokenPipeError)):
        assert type(_arguments.error(-code, None)) is kind


class _Odd:
    def fileno(self) -> str:
        return "seven"


def test_a_fileno_that_is_no_number() -> None:
    with pytest.raises(TypeError, match="returned str, not an int"):
        _arguments.descriptor(_Odd())  # type: ignore[arg-type]

"""Random operations against a model: what a bytearray would hold."""

from __future__ import annotations

import tempfile
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyio_uring import open_uring

SIZE = 5000
OFFSETS = st.integers(0, SIZE)
DATA = st.binary(max_size=300)
LENGTHS = st.integers(0, 400)

OPERATIONS = st.one_of(
    st.tuples(st.just("write"), DATA, OFFSETS),
    st.tuples(st.just("write_all"), DATA, OFFSETS),
    st.tuples(st.just("writev"), st.lists(DATA, max_size=5), OFFSETS),
    st.tuples(st.just("read"), LENGTHS, OFFSETS),
    st.tuples(st.just("readinto"), LENGTHS, OFFSETS),
    st.tuples(st.just("readv"), st.lists(LENGTHS, max_size=5), OFFSETS),
    st.tuples(st.just("read_batch"), st.lists(st.tuples(LENGTHS, OFFSETS), max_size=20), st.none()),
    st.tuples(st.just("write_batch"), st.lists(st.tuples(DATA, st.integers(0, 15)), max_size=16), st.none()),
)


def _store(model: bytearray, data: bytes, offset: int) -> None:
    if data:
        model.extend(bytes(max(offset - len(model), 0)))
        model[offset : offset + len(data)] = data


async def _run(driver: Any, operations: list[tuple[str, Any, Any]], depth: int) -> None:
    model = bytearray()
    with tempfile.TemporaryFile() as file:
        async with open_uring(driver=driver, depth=depth) as io:
            for verb, what, offset in operations:
                if verb in {"write", "write_all"}:
                    await getattr(io, verb)(file, what, offset)
                    _store(model, what, offset)
                elif verb == "writev":
                    assert await io.writev(file, what, offset) == sum(map(len, what))
                    _store(model, b"".join(what), offset)
                elif verb == "read":
                    assert await io.read(file, what, offset) == model[offset : offset + what]
                elif verb == "readinto":
                    buffer = bytearray(what)
                    count = await io.readinto(file, buffer, offset)
                    assert buffer[:count] == model[offset : offset + what]
                elif verb == "readv":
                    buffers = [bytearray(n) for n in what]
                    count = await io.readv(file, buffers, offset)
                    assert b"".join(buffers)[:count] == model[offset : offset + sum(what)]
                elif verb == "read_batch":
                    results = await io.read_batch([(file, n, o) for n, o in what])
                    assert results == [model[o : o + n] for n, o in what]
                else:  # disjoint places, for a batch has no order
                    places = {slot: data for data, slot in what}
                    await io.write_batch([(file, data, slot * 300) for slot, data in places.items()])
                    for slot, data in sorted(places.items()):
                        _store(model, data, slot * 300)
            assert await io.read(file, 10 * SIZE, 0) == model
            statistics = io.statistics()
    assert statistics.in_flight == 0
    assert statistics.submissions == statistics.completions
    assert statistics.in_flight_max <= depth


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@settings(max_examples=settings().max_examples // 8)
@given(operations=st.lists(OPERATIONS, max_size=25), depth=st.integers(1, 20))
def test_a_file_is_what_the_model_says(
    driver: Any, backend: str, operations: list[tuple[str, Any, Any]], depth: int
) -> None:
    anyio.run(_run, driver, operations, depth, backend=backend)

"""Random batches of an extent against a model: a slice of a bytearray."""

from __future__ import annotations

import itertools
import os
import tempfile
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyio_uring import ColdTierReader, open_uring
from anyio_uring._cold_tier import coalesce

SIZE = 5000
CONTENT = os.urandom(SIZE)
REQUESTS = st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, 400)), max_size=30)
LIMITS = st.fixed_dictionaries({"gap_max": st.integers(0, 300), "coalesced_max": st.integers(0, 2000)})


async def _run(driver: Any, batches: list[list[tuple[int, int]]], base: int, limits: dict[str, int]) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(CONTENT)
        file.flush()
        async with open_uring(driver=driver, depth=4) as io:
            reader = ColdTierReader(file, base_offset=base, io=io, **limits)
            asked: list[tuple[int, int]] = []
            for batch in batches:
                cut = [(base + offset, min(length, SIZE - offset)) for offset, length in batch]
                expected = [CONTENT[a - base : a - base + n] for a, n in cut]
                assert await reader.read_batch(cut) == expected
                for (address, length), data in zip(cut[:2], expected):
                    assert await reader.read(address, length) == data
                asked += cut + cut[:2]
            statistics = reader.statistics()
            assert statistics.requests == len(asked)
            assert statistics.bytes_asked == sum(length for _, length in asked)
            lone = sum(min(len(batch), 2) for batch in batches)
            wanted = sum(1 for batch in batches for offset, length in batch if min(length, SIZE - offset))
            assert statistics.operations == wanted - statistics.coalesced + lone


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@settings(max_examples=settings().max_examples // 8)
@given(batches=st.lists(REQUESTS, max_size=4), base=st.integers(0, 2**64), limits=LIMITS)
def test_batches_give_what_a_slice_gives(
    backend: str, driver: Any, batches: list[list[tuple[int, int]]], base: int, limits: dict[str, int]
) -> None:
    anyio.run(_run, driver, batches, base, limits, backend=backend)


@given(
    ranges=st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 400)), max_size=30),
    gap_max=st.integers(0, 300),
    size_max=st.integers(0, 2000),
)
def test_spans_cover_every_range_and_keep_the_limits(
    ranges: list[tuple[int, int]], gap_max: int, size_max: int
) -> None:
    asked = {index: (start, start + length) for index, (start, length) in enumerate(ranges)}
    spans = coalesce(asked, gap_max=gap_max, size_max=size_max)
    assert sorted(index for span in spans for index in span.members) == [*asked]
    for span in spans:
        members = sorted(asked[index] for index in span.members)
        assert span.start == members[0][0]
        assert span.end == max(end for _, end in members)
        longest = max(end - start for start, end in members)
        assert span.end - span.start <= max(size_max, longest)
        reached = span.start
        for start, end in members:
            assert start - reached <= gap_max
            reached = max(reached, end)
    # Two spans that could have been one are one: the next begins too far away, or would make it too long.
    for span, following in itertools.pairwise(spans):
        first = min(asked[index] for index in following.members)
        assert first[0] > span.end + gap_max or first[1] - span.start > size_max

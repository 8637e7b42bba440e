"""A log that was cut off or changed anywhere: never a wrong record, and all of the valid prefix."""

from __future__ import annotations

from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from anyio_uring._log_format import FRAME_SIZE, HEADER_SIZE, FileHeader, frame, parse, suspects

HEADER = FileHeader(b"mark", 0x0123456789ABCDEF, 0, 5000)
RECORDS = st.lists(st.binary(max_size=60) | st.binary(max_size=20).map(lambda data: data + b"mark" + data), max_size=12)


def _log(records: list[bytes], synced_every: int) -> tuple[bytes, list[int]]:
    """Return the bytes of a log behind its header, and the offsets of its records and of its end."""
    offsets = [*accumulate((FRAME_SIZE + len(record) for record in records), initial=HEADER_SIZE)]
    data = b""
    for i, record in enumerate(records):
        durable = offsets[i - i % synced_every]
        data += frame(HEADER, offsets[i], offsets[i] - durable, record) + record
    return data, offsets


def _valid(data: bytes) -> list[bytes]:
    return [record for _, record in parse(HEADER, data, HEADER_SIZE).records]


@given(RECORDS, st.integers(0, 1000), st.integers(0, 40))
def test_cut_off(records: list[bytes], length: int, zeros: int) -> None:
    data, offsets = _log(records, 1)
    length = min(length, len(data))
    whole = sum(offset <= HEADER_SIZE + length for offset in offsets[1:])
    parsed = parse(HEADER, data[:length] + bytes(zeros), HEADER_SIZE)
    got = [record for _, record in parsed.records]
    # Zeros may stand for the zeros that a record ends with.
    assert got[:whole] == records[:whole]
    assert got == records[: len(got)]
    assert parsed.end == offsets[len(got)]
    if not zeros and len(got) < len(records):
        assert length < parsed.needed + parsed.end - HEADER_SIZE, "more would tell"


@given(RECORDS, st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 255)), min_size=1, max_size=3))
def test_changed(records: list[bytes], changes: list[tuple[int, int]]) -> None:
    data, offsets = _log(records, 3)
    changed = bytearray(data)
    for at, mask in changes:
        if at < len(changed):
            changed[at] ^= mask
    first = next((i for i, (a, b) in enumerate(zip(data, changed)) if a != b), len(data))
    intact = sum(offset <= HEADER_SIZE + first for offset in offsets[1:])
    assert _valid(bytes(changed)) == records[: intact if first < len(data) else len(records)]


@given(RECORDS, st.binary(max_size=200))
def test_followed_by_anything(records: list[bytes], garbage: bytes) -> None:
    data, _ = _log(records, 1)
    assert _valid(data + garbage) == records


@given(RECORDS, st.integers(1, 4), st.integers(0, 11))
def test_what_had_been_synced_is_proved(records: list[bytes], synced_every: int, damaged: int) -> None:
    """Behind a damaged record, one of a later commit proves that it was durable; one of its own commit does not."""
    data, offsets = _log(records, synced_every)
    if damaged >= len(records):
        return
    damage = offsets[damaged]
    broken = bytearray(data)
    broken[damage - HEADER_SIZE] ^= 0xFF
    found = [
        offset
        for offset, size in suspects(HEADER, bytes(broken), HEADER_SIZE, damage)
        if parse(HEADER, bytes(broken[offset - HEADER_SIZE : offset - HEADER_SIZE + size]), offset).records
    ]
    later = damaged - damaged % synced_every + synced_every
    assert found == offsets[later : len(records)]

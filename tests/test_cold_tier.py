"""Extents by logical address: bounds, what is read together, and what becomes of errors."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from anyio_uring import AsyncIoManager, BatchError, ColdTierReader, ColdTierStatistics, open_uring

from .faulty_disk import FaultyDisk

pytestmark = pytest.mark.anyio

BASE = 10_000_000_000_000_000_000  # logical addresses are no file offsets: beyond 2 ** 63
SIZE = 65536


@pytest.fixture
def fd(path: Path) -> Iterator[int]:
    number = os.open(path, os.O_RDONLY)
    yield number
    os.close(number)


def _word(index: int) -> bytes:
    return index.to_bytes(4, "big")


async def test_a_read_at_a_logical_address(fd: int, io: AsyncIoManager) -> None:
    reader = ColdTierReader(fd, base_offset=BASE, io=io)
    assert await reader.read(BASE + 400, 8) == _word(100) + _word(101)
    assert await reader.read(BASE + SIZE - 4, 4) == _word(16383)
    assert await reader.read(BASE + SIZE, 0) == b""
    assert repr(reader) == f"<ColdTierReader fd={fd} addresses {BASE} to {BASE + SIZE}>"
    assert reader.statistics() == ColdTierStatistics(
        requests=3, operations=3, bytes_asked=12, bytes_read=12, coalesced=0
    )


async def test_without_a_manager_it_takes_the_innermost_one_or_threads(fd: int, driver: Any) -> None:
    reader = ColdTierReader(fd)
    assert await reader.read_batch([(4, 4), (0, 4)]) == [_word(1), _word(0)]
    async with open_uring(driver=driver, nowait=False) as io:
        assert await reader.read(8, 4) == _word(2)
        assert io.statistics().completions == 1


async def test_near_requests_are_one_operation(fd: int, io: AsyncIoManager) -> None:
    reader = ColdTierReader(fd, base_offset=100, gap_max=16, io=io)
    before = io.statistics().completions
    asked = [
        (100 + 4000, 400),
        (100 + 0, 8),
        (100 + 8, 8),  # adjacent
        (100 + 32, 4),  # behind a gap of 16
        (100 + 0, 8),  # once more
        (100 + 4, 16),  # overlapping
        (100 + 53, 1),  # behind a gap of 17
        (100 + 7, 0),  # nothing
    ]
    content = b"".join(map(_word, range(2000)))
    assert await reader.read_batch(asked) == [content[a - 100 : a - 100 + n] for a, n in asked]
    assert reader.statistics() == ColdTierStatistics(
        requests=8, operations=3, bytes_asked=445, bytes_read=400 + 36 + 1, coalesced=4
    )
    assert io.statistics().completions - before == 3


async def test_no_more_is_read_together_than_allowed(fd: int, io: AsyncIoManager) -> None:
    async def operations(asked: list[tuple[int, int]], **limits: int) -> int:
        reader = ColdTierReader(fd, io=io, **limits)
        assert [*map(len, await reader.read_batch(asked))] == [length for _, length in asked]
        return reader.statistics().operations

    row = [(i * 1000, 1000) for i in range(10)]
    assert await operations(row, coalesced_max=10_000) == 1
    assert await operations(row, coalesced_max=9_999) == 2
    assert await operations(row, coalesced_max=1999) == 10
    assert await operations(row, coalesced_max=0) == 10
    # One that is longer is read all the same, and what lies in it costs nothing.
    assert await operations([(0, 50_000), (100, 100), (0, 50_000)], coalesced_max=0) == 1
    apart = [(0, 1), (2, 1)]
    assert await operations(apart, gap_max=0) == 2
    assert await operations(apart, gap_max=1) == 1
    assert await operations(apart) == 1


async def test_what_was_read_alone_is_not_copied(fd: int, io: AsyncIoManager, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[bytes] = []
    read_batch = AsyncIoManager.read_batch

    async def watched(*args: Any, **keywords: Any) -> Any:
        results = await read_batch(*args, **keywords)
        given.extend(results)
        return results

    monkeypatch.setattr(AsyncIoManager, "read_batch", watched)
    results = await ColdTierReader(fd, gap_max=0, io=io).read_batch([(8000, 4000), (0, 4000), (0, 4000)])
    assert results[0] is given[1]
    assert results[1] is results[2] is given[0]


@pytest.mark.parametrize("asked", [(-1, 1), (9, 1), (10, -1), (10, 21), (30, 1), (31, 0)], ids=str)
async def test_what_is_outside_of_the_extent_is_never_read(fd: int, io: AsyncIoManager, asked: tuple[int, int]) -> None:
    reader = ColdTierReader(fd, base_offset=10, length=20, io=io)
    with pytest.raises(ValueError, match=r"not inside the extent, which has the addresses 10 to 30|must be 0 or more"):
        await reader.read(*asked)
    with pytest.raises(ValueError, match=r"read_batch: request 1 \(address, length\): "):
        await reader.read_batch([(10, 20), asked])
    assert reader.statistics().requests == io.statistics().completions == 0
    assert await reader.read(10, 20) == b"".join(map(_word, range(5)))


async def test_requests_of_a_wrong_shape_or_type(fd: int, io: AsyncIoManager) -> None:
    reader = ColdTierReader(fd, io=io)
    with pytest.raises(TypeError, match="request 0"):
        await reader.read_batch([(0.5, 1)])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="request 1"):
        await reader.read_batch([(0, 1), (0, 1, 2)])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="str"):
        await reader.read("0", 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["base_offset", "length", "gap_max", "coalesced_max"])
def test_arguments_that_cannot_be(fd: int, name: str) -> None:
    keywords: dict[str, Any] = {name: -1}
    with pytest.raises(ValueError, match=f"{name} must be 0 or more, not -1"):
        ColdTierReader(fd, **keywords)
    with pytest.raises(TypeError, match="str"):
        ColdTierReader(fd, **{**keywords, name: "1"})


def test_what_has_no_size_needs_a_length(pipe: tuple[int, int], fd: int) -> None:
    with pytest.raises(ValueError, match="length is needed"):
        ColdTierReader(pipe[0])
    with pytest.raises(OSError) as raised:
        ColdTierReader(-1)
    assert raised.value.errno == errno.EBADF
    with pytest.raises(ValueError, match="at most"):
        ColdTierReader(fd, length=2**63)


async def test_an_empty_batch_is_a_checkpoint(fd: int, io: AsyncIoManager) -> None:
    reader = ColdTierReader(fd, io=io)
    assert await reader.read_batch([]) == []
    assert await reader.read_batch([(0, 0), (SIZE, 0)]) == [b"", b""]
    assert reader.statistics().operations == 0
    for asked in ([], [(0, 0)], [(0, 4)]):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await reader.read_batch(asked)
        assert scope.cancelled_caught


async def test_a_file_that_was_cut_off_gives_errors_and_never_wrong_bytes(
    path: Path, fd: int, io: AsyncIoManager
) -> None:
    reader = ColdTierReader(fd, base_offset=100, io=io)
    os.truncate(path, 6000)
    with pytest.raises(OSError, match=r"ends before byte 8000, inside the extent \(address 4100") as raised:
        await reader.read(4100, 4000)
    assert raised.value.errno == errno.EIO
    asked = [(100, 4000), (4100, 4000), (8100, 10), (5100, 1000), (6100, 0)]
    results = await reader.read_batch(asked, return_exceptions=True)
    content = b"".join(map(_word, range(1500)))
    assert [result if isinstance(result, bytes) else result.errno for result in results] == [
        content[:4000],
        errno.EIO,
        errno.EIO,
        content[5000:6000],
        b"",
    ]
    with pytest.raises(BatchError) as failed:
        await reader.read_batch(asked)
    assert [*failed.value.errors] == [1, 2]
    assert failed.value.results[0] == content[:4000]


async def test_a_file_object_is_named_in_the_error(path: Path, io: AsyncIoManager) -> None:
    with path.open("rb", buffering=0) as file:
        reader = ColdTierReader(file, length=SIZE + 1, io=io)
        with pytest.raises(OSError) as raised:
            await reader.read(SIZE, 1)
    assert raised.value.filename == str(path)


async def test_a_bad_block_fails_none_but_those_who_asked_for_it(disk: FaultyDisk, io: AsyncIoManager) -> None:
    page = 4096
    content = b"".join(bytes([index]) * page for index in range(8))
    (disk.path / "extent").write_bytes(content)
    disk.fail("read", at=3 * page + 5, times=1000)
    fd = os.open(disk.path / "extent", os.O_RDONLY)
    try:
        reader = ColdTierReader(fd, io=io)
        with pytest.raises(BatchError) as raised:
            await reader.read_batch([(index * page, page) for index in range(8)])
    finally:
        os.close(fd)
    assert [*raised.value.errors] == [3]
    assert raised.value.errors[3].errno == errno.EIO
    assert [r for r in raised.value.results if isinstance(r, bytes)] == [
        bytes([index]) * page for index in range(8) if index != 3
    ]


async def test_the_kernels_short_reads_are_completed(
    fd: int, io: AsyncIoManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_batch = AsyncIoManager.read_batch

    async def short(self: AsyncIoManager, requests: Any, **keywords: Any) -> Any:
        return [data[:7] for data in await read_batch(self, requests, **keywords)]

    monkeypatch.setattr(AsyncIoManager, "read_batch", short)
    reader = ColdTierReader(fd, io=io)
    assert await reader.read_batch([(0, 4), (4, 8), (40_000, 4)]) == [_word(0), _word(1) + _word(2), _word(10_000)]
    statistics = reader.statistics()
    assert (statistics.operations, statistics.bytes_read) == (3, 7 + 5 + 4)


async def test_a_registered_file(fd: int, io: AsyncIoManager) -> None:
    async with io.register_files([fd]) as (file,):
        reader = ColdTierReader(file, base_offset=8, io=io)
        assert await reader.read(8, 4) == _word(0)
        assert await reader.read_batch([(12, 4), (8 + 4 * 10_000, 4)]) == [_word(1), _word(10_000)]
    with pytest.raises(anyio.ClosedResourceError):
        await reader.read(8, 4)


@pytest.mark.parametrize("first", ["short", "refused"])
async def test_bytes_of_two_files_are_never_joined(
    fd: int, io: AsyncIoManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """A registered file is updated behind a span's first read; what is left to do is not done on the other file."""
    (tmp_path / "other").write_bytes(b"x" * SIZE)
    read_batch = AsyncIoManager.read_batch

    async def updating(self: AsyncIoManager, requests: Any, **keywords: Any) -> Any:
        results = await read_batch(self, requests, **keywords)
        await file.update(other)
        return [data[:7] if first == "short" else OSError(errno.EIO, "a bad block") for data in results]

    other = os.open(tmp_path / "other", os.O_RDONLY)
    try:
        async with io.register_files([fd]) as (file,):
            reader = ColdTierReader(file, io=io)
            with monkeypatch.context() as patch:
                patch.setattr(AsyncIoManager, "read_batch", updating)
                with pytest.raises(anyio.ClosedResourceError, match="updated while a part"):
                    await reader.read_batch([(0, 4), (4, 8)], return_exceptions=True)
            assert await reader.read_batch([(0, 4), (4, 8)]) == [b"x" * 4, b"x" * 8]
    finally:
        os.close(other)


async def test_of_a_direct_descriptor_whole_blocks_are_read(path: Path, io: AsyncIoManager) -> None:
    os.truncate(path, 60 * 1024 + 3)
    content = b"".join(map(_word, range(15360))) + _word(15360)[:3]
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        unit = io.direct_alignment(fd).offset
        reader = ColdTierReader(fd, gap_max=0, io=io)
        # Two in one block, one across two blocks, and the last byte of a file that ends inside a block.
        asked = [(1, 1), (unit - 1, 1), (10 * unit - 1, 2), (len(content) - 1, 1), (0, len(content))]
        assert await reader.read_batch(asked[:4]) == [content[a : a + n] for a, n in asked[:4]]
        assert reader.statistics().operations == 3
        assert await reader.read_batch(asked) == [content[a : a + n] for a, n in asked]
        assert await reader.read(3, 5) == content[3:8]
    finally:
        os.close(fd)

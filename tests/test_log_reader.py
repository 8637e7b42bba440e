"""Reading a log: clean ends, torn tails, damage, records longer than a chunk, a log that is being written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import anyio
import pytest

from anyio_uring import AsyncIoManager, CorruptLogError, FsyncMode, open_append_log, read_append_log
from anyio_uring._completion_task import CompletionTask
from anyio_uring._log_format import FRAME_SIZE, HEADER_SIZE, FileHeader, frame, new_header, parse, parse_header
from anyio_uring._log_scanner import CHUNK_SIZE, LogScanner
from anyio_uring._requests import Opcode

from .helpers import until
from .log_helpers import contents, watch, writes

pytestmark = pytest.mark.anyio


async def _make(io: AsyncIoManager, path: Path, records: list[bytes], mode: FsyncMode = FsyncMode.ALWAYS) -> list[int]:
    async with open_append_log(path, io=io, fsync=mode) as log:
        return [await log.append(record) for record in records]


async def _read(io: AsyncIoManager, path: Path) -> tuple[list[bytes], int | None]:
    reader = read_append_log(path, io=io)
    return [record async for _, record in reader], reader.torn_at


@pytest.mark.parametrize(
    "sizes",
    [
        [],
        [0],
        [0] * 500,
        [CHUNK_SIZE - HEADER_SIZE - FRAME_SIZE, 1],
        [CHUNK_SIZE - FRAME_SIZE, CHUNK_SIZE, CHUNK_SIZE + 1],
        [5 * CHUNK_SIZE, 3, 2 * CHUNK_SIZE + 17],
        [4096] * 40,
    ],
    ids=lambda sizes: f"{len(sizes)}-{max(sizes, default=0)}",
)
async def test_records_of_all_sizes(io: AsyncIoManager, tmp_path: Path, sizes: list[int]) -> None:
    records = [os.urandom(size) for size in sizes]
    mode = FsyncMode.NEVER
    offsets = await _make(io, tmp_path / "log", records, mode)
    assert await contents(tmp_path / "log") == list(zip(offsets, records))


async def test_a_cancelled_step_loses_no_record(io: AsyncIoManager, tmp_path: Path) -> None:
    """C1: each step is a checkpoint; also where it opens the file, reads the header, or has the record already."""
    records = [b"%04d" % i for i in range(3)]
    await _make(io, tmp_path / "log", records)
    reader = read_append_log(tmp_path / "log", io=io)
    for record in records:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await reader.__anext__()
        assert scope.cancelled_caught
        assert (await reader.__anext__())[1] == record
    with pytest.raises(StopAsyncIteration):
        await reader.__anext__()


@pytest.mark.parametrize("reads", [1, 2])
async def test_nor_does_one_that_is_cancelled_while_it_reads(
    io: AsyncIoManager, tmp_path: Path, reads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _make(io, tmp_path / "log", [b"first", b"second"])
    reader = read_append_log(tmp_path / "log", io=io)
    perform, counted = CompletionTask.perform, 0

    async def counts(self: CompletionTask, requests: Any, **options: Any) -> list[int]:
        nonlocal counted
        counted += any(request.opcode is Opcode.READ for request in requests)
        if counted == reads:
            scope.cancel()
        return await perform(self, requests, **options)

    monkeypatch.setattr(CompletionTask, "perform", counts)
    with anyio.CancelScope() as scope:
        await reader.__anext__()
    assert scope.cancelled_caught
    assert [record async for _, record in reader] == [b"first", b"second"]


async def test_the_reader_says_where_the_tail_is_torn(io: AsyncIoManager, tmp_path: Path) -> None:
    path = tmp_path / "log"
    offsets = await _make(io, path, [b"%04d" % i for i in range(10)])
    whole = path.read_bytes()
    for length in range(HEADER_SIZE, len(whole)):
        path.write_bytes(whole[:length])
        reader = read_append_log(path, io=io)
        count = (length - HEADER_SIZE) // (FRAME_SIZE + 4)
        assert [pair async for pair in reader] == [(offset, b"%04d" % i) for i, offset in enumerate(offsets[:count])]
        end = HEADER_SIZE + count * (FRAME_SIZE + 4)
        assert reader.end == end
        assert reader.torn_at == (None if length == end else end)
        assert (reader.torn_reason is None) == (length == end)


async def test_a_torn_tail_is_told_from_damage(io: AsyncIoManager, tmp_path: Path) -> None:
    """A record that was written after another one had been synced proves that this had been durable."""
    path = tmp_path / "log"
    offsets = await _make(io, path, [b"%04d" % i for i in range(10)])
    data = bytearray(path.read_bytes())
    data[offsets[4] + FRAME_SIZE] ^= 1
    path.write_bytes(data)
    reader = read_append_log(path, io=io)
    found = []
    with pytest.raises(CorruptLogError, match="damaged") as caught:  # noqa: PT012 - behind what is valid
        async for _, record in reader:
            found.append(record)
    assert found == [b"%04d" % i for i in range(4)], "what is valid comes first"
    assert caught.value.offset == offsets[4] == reader.end
    assert caught.value.filename == str(path)
    with pytest.raises(CorruptLogError):
        async with open_append_log(path, io=io):
            raise AssertionError
    assert path.read_bytes() == data, "nothing was cut off"


async def test_damage_behind_which_nothing_was_synced_is_a_torn_tail(io: AsyncIoManager, tmp_path: Path) -> None:
    path = tmp_path / "log"
    offsets = await _make(io, path, [b"%04d" % i for i in range(10)], FsyncMode.NEVER)
    data = bytearray(path.read_bytes())
    data[offsets[4] + FRAME_SIZE] ^= 1
    path.write_bytes(data)
    assert await _read(io, path) == ([b"%04d" % i for i in range(4)], offsets[4])
    async with open_append_log(path, io=io) as log:
        assert log.recovery.records == 4
        assert log.recovery.bytes_cut == len(data) - offsets[4]


async def test_what_is_written_while_its_damage_is_being_proved_is_no_damage(
    io: AsyncIoManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer puts a record where zeros were, and syncs; the one behind it proves that, and the reader sees both."""
    path = tmp_path / "log"
    records = [b"%04d" % i for i in range(10)]
    offsets = await _make(io, path, records)
    whole = path.read_bytes()
    path.write_bytes(whole[: offsets[4]] + bytes(FRAME_SIZE + 4) + whole[offsets[5] :])
    is_damaged = LogScanner._is_damaged

    async def write_meanwhile(self: LogScanner, header: FileHeader) -> bool:
        found = await is_damaged(self, header)
        await io.write_all(file, whole, 0)
        return found

    monkeypatch.setattr(LogScanner, "_is_damaged", write_meanwhile)
    with path.open("r+b") as file:
        assert await _read(io, path) == (records, None)


async def test_the_proof_is_found_however_far_behind(io: AsyncIoManager, tmp_path: Path) -> None:
    path = tmp_path / "log"
    # Frames that lie across the ends of chunks are found, too.
    for size in range(CHUNK_SIZE - 2 * FRAME_SIZE - 2, CHUNK_SIZE + 2, 3):
        path.unlink(missing_ok=True)
        first, second, *_ = await _make(io, path, [b"first", b"x" * size, b"last"])
        data = bytearray(path.read_bytes())
        data[first] ^= 0xFF
        data[second] ^= 0xFF
        path.write_bytes(data)
        with pytest.raises(CorruptLogError):
            await _read(io, path)


async def test_a_record_somewhere_else_is_not_valid(io: AsyncIoManager, tmp_path: Path) -> None:
    path, other = tmp_path / "log", tmp_path / "other"
    first, second = await _make(io, path, [b"same", b"size"])
    await _make(io, other, [b"same", b"size"])
    data = path.read_bytes()
    # Moved within the file, and from another file to the same place.
    path.write_bytes(data[:first] + data[second:])
    assert await _read(io, path) == ([], first)
    path.write_bytes(data[:second] + other.read_bytes()[second:])
    assert await _read(io, path) == ([b"same"], second)


async def test_what_is_no_log_is_refused(io: AsyncIoManager, tmp_path: Path) -> None:
    path = tmp_path / "log"
    for data, message in (
        (b"x", "no log"),
        (b"something else, and longer than a header would be", "no log"),
        (b"anyiolog of my own, 30 bytes..", "no log"),
        (b"anyiolog\2", "no log"),
        (bytes(HEADER_SIZE) + b"x", "no log"),
        (bytes(HEADER_SIZE + 1), "begins with zeros"),
        (bytes(1 << 20), "begins with zeros"),
    ):
        path.write_bytes(data)
        with pytest.raises(CorruptLogError, match=message):
            await _read(io, path)
        with pytest.raises(CorruptLogError, match=message):
            async with open_append_log(path, io=io):
                raise AssertionError
        assert path.read_bytes() == data


@pytest.mark.parametrize("data", [b"", b"any", b"anyiolog\1", b"anyiolog\1\0\0\0abcd", bytes(1), bytes(HEADER_SIZE)])
async def test_what_a_creation_leaves_that_was_cut_short_is_an_empty_log(
    io: AsyncIoManager, tmp_path: Path, data: bytes
) -> None:
    path = tmp_path / "log"
    path.write_bytes(data)
    assert (await _read(io, path))[0] == []
    async with open_append_log(path, io=io) as log:
        assert log.recovery.was_created
        assert log.recovery.bytes_cut == len(data.rstrip(b"\0"))


async def test_a_damaged_header_is_refused(io: AsyncIoManager, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.unlink(missing_ok=True)
    await _make(io, path, [b"x"])
    data = path.read_bytes()
    for i in range(HEADER_SIZE):
        path.write_bytes(data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :])
        with pytest.raises(CorruptLogError, match=r"no log|damaged"):
            await _read(io, path)


@pytest.mark.parametrize(
    ("base", "length_max"), [(1 << 63, 1000), ((1 << 64) - 60, 1000), (0, 0), (0, (1 << 30) + 1), (0, (1 << 32) - 1)]
)
async def test_a_header_that_cannot_be_is_refused(
    io: AsyncIoManager, tmp_path: Path, base: int, length_max: int
) -> None:
    """Its checksum is right, but nobody who wrote it meant a log: there would be no room for an offset."""
    path = tmp_path / "log"
    data = FileHeader(b"abcd", 7, base, length_max).to_bytes()
    path.write_bytes(data)
    with pytest.raises(CorruptLogError, match="cannot be"):
        await _read(io, path)
    with pytest.raises(CorruptLogError, match="cannot be"):
        async with open_append_log(path, io=io):
            raise AssertionError
    assert path.read_bytes() == data


async def test_a_log_may_begin_at_any_offset_that_a_file_has(io: AsyncIoManager, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(FileHeader(b"abcd", 7, (1 << 63) - 1, 1 << 30).to_bytes())
    async with open_append_log(path, io=io) as log:
        offset = await log.append(b"x")
    assert await _read(io, path) == ([b"x"], None)
    assert offset == (1 << 63) - 1 + HEADER_SIZE


async def test_a_later_version_is_refused(io: AsyncIoManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    await _make(io, path, [b"x"])
    monkeypatch.setattr("anyio_uring._log_format._VERSION", 2)
    with pytest.raises(CorruptLogError, match=r"version 1 .* reads 2"):
        await _read(io, path)


async def test_an_empty_record_is_told_from_space_allocated_ahead(io: AsyncIoManager, tmp_path: Path) -> None:
    path = tmp_path / "log"
    await _make(io, path, [b"", b""])
    with path.open("ab") as file:
        file.write(bytes(1 << 20))
    assert await _read(io, path) == ([b"", b""], None)


async def test_a_log_is_read_while_it_is_written(io: AsyncIoManager, tmp_path: Path) -> None:
    path = tmp_path / "log"
    records = [b"%d" % i * (i % 50) for i in range(300)]
    async with open_append_log(path, io=io, fsync=FsyncMode.NEVER) as log:

        async def write() -> None:
            for record in records:
                await log.append(record)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write)
            seen = 0
            while seen < len(records):
                found, _ = await _read(io, path)
                assert found == records[: len(found)]
                assert len(found) >= seen
                seen = len(found)


async def test_half_a_commit_is_a_torn_tail(io: AsyncIoManager, tmp_path: Path) -> None:
    path = tmp_path / "log"
    async with open_append_log(path, io=io) as log:
        commits = watch(io)
        await log.append(b"before")
        commits.faults.append(writes(FRAME_SIZE + 2))
        gate = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(log.append, b"torn")
            await until(lambda: len(commits.asked) == 2)
            gate = commits.hold()
            await until(lambda: commits.held == 1)
            assert await _read(io, path) == ([b"before"], log.end)
            gate.set()
        assert await _read(io, path) == ([b"before", b"torn"], None)


async def test_a_reader_is_closed(io: AsyncIoManager, tmp_path: Path) -> None:
    path = tmp_path / "log"
    await _make(io, path, [b"x" * CHUNK_SIZE] * 3)
    before = len(os.listdir("/proc/self/fd"))
    async with read_append_log(path, io=io) as reader:
        async for _ in reader:
            break
    assert [pair async for pair in reader] == []
    assert len(os.listdir("/proc/self/fd")) == before
    reader = read_append_log(path, io=io)
    with anyio.CancelScope() as scope:
        async for _ in reader:
            scope.cancel()
    assert scope.cancelled_caught
    await reader.aclose()
    with pytest.raises(FileNotFoundError):
        await read_append_log(tmp_path / "none", io=io).__anext__()
    assert len(os.listdir("/proc/self/fd")) == before


def test_marks_have_no_zero() -> None:
    assert all(b"\0" not in new_header(HEADER_SIZE, 1).mark for _ in range(1000))


def test_a_header_is_what_it_was() -> None:
    header = new_header(12345, 678)
    assert parse_header(header.to_bytes()) == header
    assert header.first == 12345
    # What cannot be said in the field is not said: then nothing is concluded from it.
    data = frame(header, 1 << 40, 1 << 40, b"x") + b"x"
    assert parse(header, data, 1 << 40).records == [(1 << 40, b"x")]

"""Byte streams over files: what anyio's file streams do, through a manager."""

from __future__ import annotations

import asyncio
import bz2
import gzip
import io as stdio
import itertools
import lzma
import os
import random
import socket
import tempfile
from pathlib import Path
from typing import IO, Any

import anyio
import pytest
from anyio.abc import ByteReceiveStream, ByteSendStream
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.file import FileReadStream, FileStreamAttribute, FileWriteStream
from anyio.streams.text import TextReceiveStream

from anyio_uring import AsyncIoManager, UringFileReadStream, UringFileWriteStream, _streams, open_uring, wrap_file

from .faulty_disk import FaultyDisk
from .helpers import asyncio_only, file_size_limit, in_flight, until

MIB = 1 << 20


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of several windows, and a part of a chunk."""
    file = tmp_path_factory.mktemp("streams") / "large"
    file.write_bytes(random.Random(5).randbytes(5 * MIB + 1234))
    return file


async def _rest(stream: ByteReceiveStream, max_bytes: int = 65536) -> bytes:
    chunks = []
    try:
        while True:
            chunks.append(await stream.receive(max_bytes))
            assert 1 <= len(chunks[-1]) <= max_bytes
    except anyio.EndOfStream:
        return b"".join(chunks)


# --- reading ----------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("max_bytes", [30000, 65536, 1 << 20, 1 << 40])
async def test_a_whole_file_is_received(io: AsyncIoManager, large: Path, max_bytes: int) -> None:
    async with await UringFileReadStream.from_path(large) as stream:
        assert isinstance(stream, ByteReceiveStream)
        assert await _rest(stream, max_bytes) == large.read_bytes()
        assert await stream.tell() == large.stat().st_size
    assert io.statistics().bytes_read >= large.stat().st_size


@pytest.mark.anyio
@pytest.mark.parametrize("nowait", [True])
async def test_the_streams_of_anyio_take_it(io: AsyncIoManager, path: Path) -> None:
    path.write_bytes("one\ntw\N{LATIN SMALL LETTER O WITH DIAERESIS}\n".encode())
    async with await UringFileReadStream.from_path(path) as stream:
        assert await BufferedByteReceiveStream(stream).receive_until(b"\n", 100) == b"one"
        await stream.seek(4)
        assert [text async for text in TextReceiveStream(stream)] == ["tw\N{LATIN SMALL LETTER O WITH DIAERESIS}\n"]


async def _outcome(stream: Any, verb: str, arguments: tuple[int, ...]) -> object:
    try:
        return await getattr(stream, verb)(*arguments)
    except Exception as exc:  # noqa: BLE001 - which it is, is what the test compares
        return type(exc), getattr(exc, "errno", None)


@pytest.mark.anyio
@pytest.mark.parametrize("seed", range(4))
async def test_it_does_what_anyios_stream_does(io: AsyncIoManager, path: Path, seed: int) -> None:
    """The same calls in the same order give the same bytes, positions and errors."""
    chance = random.Random(seed)
    size = path.stat().st_size
    async with await UringFileReadStream.from_path(path) as ours, await FileReadStream.from_path(path) as theirs:
        # Older ones of anyio take a number that is no size.
        sizes = [
            1,
            100,
            4096,
            size,
            *([0, -1] if await _outcome(theirs, "receive", (0,)) == (ValueError, None) else []),
        ]
        await theirs.seek(0)
        for _ in range(60):
            verb, arguments = chance.choice(
                [
                    ("receive", (chance.choice(sizes),)),
                    ("receive", ()),
                    ("tell", ()),
                    ("seek", (chance.choice([0, 1, 5000, size - 3, size + 10, -1]),)),
                    ("seek", (chance.choice([-5, 0, 77, -2 * size]), os.SEEK_CUR)),
                    ("seek", (chance.choice([-size, -10, 0, 3, -2 * size]), os.SEEK_END)),
                    ("seek", (0, 77)),
                ]
            )
            expected = await _outcome(theirs, verb, arguments)
            if verb == "seek" and arguments[1:] == (77,):
                assert isinstance(expected, tuple)  # a buffered file refuses it by itself
                assert (await _outcome(ours, verb, arguments)) == (OSError, 22)
            else:
                assert await _outcome(ours, verb, arguments) == expected, (verb, arguments)


@pytest.mark.anyio
async def test_a_file_object_is_read_from_its_position(io: AsyncIoManager, path: Path) -> None:
    file = path.open("rb")
    assert file.read(10) == path.read_bytes()[:10]  # the file object has read far more into its buffer
    async with UringFileReadStream(file) as stream:
        assert await stream.tell() == 10
        assert await _rest(stream) == path.read_bytes()[10:]
    assert file.closed


@pytest.mark.anyio
async def test_what_waits_in_a_file_object_is_read_too(io: AsyncIoManager) -> None:
    file = tempfile.NamedTemporaryFile()  # noqa: SIM115 - the stream closes it
    file.write(b"data")
    async with UringFileReadStream(file) as stream:
        await stream.seek(0)
        assert await _rest(stream) == b"data"
    assert file.closed


@pytest.mark.anyio
async def test_a_file_that_grows_is_read_on(io: AsyncIoManager, path: Path) -> None:
    path.write_bytes(b"one")
    async with await UringFileReadStream.from_path(path) as stream:
        assert await _rest(stream) == b"one"
        path.write_bytes(b"one and two")
        assert await _rest(stream) == b" and two"


@pytest.mark.anyio
async def test_several_tasks_receive_each_byte_once(io: AsyncIoManager, large: Path) -> None:
    received: dict[int, bytes] = {}

    async def receive(stream: UringFileReadStream) -> None:
        async for chunk in stream:
            received[len(received)] = chunk

    async with await UringFileReadStream.from_path(large) as stream, anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(receive, stream)
    data = large.read_bytes()
    assert sorted(received.values()) == sorted(data[i : i + 65536] for i in range(0, len(data), 65536))


# --- what lies ahead --------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The ranges that the kernel is asked for ahead, of a file that is not cached."""
    ranges: list[tuple[int, int]] = []

    async def note(io: AsyncIoManager, file: object, offset: int, length: int) -> None:
        ranges.append((offset, offset + length))

    async def is_cached(stream: object, offset: int) -> bool:
        return False

    monkeypatch.setattr(_streams, "_will_need", note)
    monkeypatch.setattr(UringFileReadStream, "_is_cached", is_cached)
    return ranges


@pytest.mark.anyio
async def test_a_sequential_reader_has_up_to_two_windows_ahead(
    io: AsyncIoManager, large: Path, asked: list[tuple[int, int]]
) -> None:
    async with await UringFileReadStream.from_path(large) as stream:
        while await stream.tell() < 5 * MIB:
            await stream.receive()
            if asked and asked[-1][1] - asked[-1][0] == MIB:
                assert MIB - 65536 <= asked[-1][1] - await stream.tell() <= 2 * MIB
    assert [end - start for start, end in asked[:4]] == [128 << 10, 256 << 10, 512 << 10, MIB]
    assert {end - start for start, end in asked[4:]} == {MIB}
    assert asked[0][0] == 2 * 65536  # behind what the second call is about to read
    assert all(end == start for (_, end), (start, _) in itertools.pairwise(asked))


@pytest.mark.anyio
async def test_a_reader_that_jumps_asks_for_nothing_ahead(
    io: AsyncIoManager, large: Path, asked: list[tuple[int, int]]
) -> None:
    async with await UringFileReadStream.from_path(large) as stream:
        for offset in (0, 4 * MIB, MIB, 2 * MIB):
            await stream.seek(offset)
            await stream.receive()
        assert not asked
        await stream.seek(await stream.tell())  # no jump
        await stream.receive()
        assert len(asked) == 1
        for _ in range(30):
            await stream.receive()
        asked.clear()
        await stream.seek(0)  # back, where what was asked for lies far in front
        for _ in range(3):
            await stream.receive()
        assert asked[0][0] == 2 * 65536


@pytest.mark.anyio
async def test_what_is_asked_for_ahead_comes_into_the_page_cache(io: AsyncIoManager, tmp_path: Path) -> None:
    file = tmp_path / "cold"
    file.write_bytes(bytes(MIB))
    async with await UringFileReadStream.from_path(file) as stream:
        opened = stream.extra(FileStreamAttribute.file)
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        await _streams._will_need(io, opened, 512 << 10, 4096)
        while not await stream._is_cached(512 << 10):
            await anyio.lowlevel.checkpoint()
        assert await stream._is_cached(2 * MIB)  # there is nothing to ask for behind the end


@pytest.mark.anyio
async def test_where_the_page_cache_cannot_be_asked_the_kernel_is_asked_to_read_ahead(
    io: AsyncIoManager, disk: FaultyDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FUSE knows no ``RWF_NOWAIT``."""
    data = random.Random(4).randbytes(MIB)
    (disk.path / "file").write_bytes(data)
    asked: list[int] = []
    will_need = _streams._will_need

    async def note(io: AsyncIoManager, file: IO[bytes], offset: int, length: int) -> None:
        asked.append(offset)
        await will_need(io, file, offset, length)

    monkeypatch.setattr(_streams, "_will_need", note)
    async with await UringFileReadStream.from_path(disk.path / "file") as stream:
        assert await _rest(stream) == data
    assert asked
    assert asked == sorted(set(asked))


@pytest.mark.anyio
async def test_nothing_is_asked_for_where_no_file_can_have_anything(
    io: AsyncIoManager, path: Path, asked: list[tuple[int, int]]
) -> None:
    async with await UringFileReadStream.from_path(path) as stream:
        await stream.seek((1 << 63) - 1 - 65536)
        for _ in range(3):
            with pytest.raises(anyio.EndOfStream):
                await stream.receive(100)
        assert asked == []
        await stream.seek(0)
        assert await _rest(stream) == path.read_bytes()


@pytest.mark.anyio
async def test_a_device_is_where_it_says(io: AsyncIoManager) -> None:
    """It has no positions, though it lets itself be sought in: it tells the same wherever that is."""
    async with await UringFileReadStream.from_path("/dev/zero") as ours:
        async with await FileReadStream.from_path("/dev/zero") as theirs:
            for arguments in ((5, os.SEEK_SET), (3, os.SEEK_CUR), (0, os.SEEK_END)):
                assert await ours.seek(*arguments) == await theirs.seek(*arguments)
        assert await ours.receive(100) == bytes(100)


# --- cancellation -----------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_cancelled_receive_loses_nothing(io: AsyncIoManager, large: Path, pipe: tuple[int, int]) -> None:
    async with await UringFileReadStream.from_path(large) as stream:
        first = await stream.receive(1000)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await stream.receive(1000)
        assert scope.cancelled_caught
        assert first + await _rest(stream) == large.read_bytes()
    async with UringFileReadStream(os.fdopen(os.dup(pipe[0]), "rb", buffering=0)) as stream:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(stream.receive)
                await in_flight(io, 1)
                scope.cancel()
        assert scope.cancelled_caught
        os.write(pipe[1], b"all of it")
        assert await stream.receive() == b"all of it"


@pytest.mark.anyio
async def test_aclose_ends_a_receive_that_waits(io: AsyncIoManager, pipe: tuple[int, int]) -> None:
    stream = UringFileReadStream(os.fdopen(os.dup(pipe[0]), "rb", buffering=0))
    outcome: list[BaseException] = []

    async def receive() -> None:
        try:
            await stream.receive()
        except anyio.ClosedResourceError as exc:
            outcome.append(exc)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(receive)
        await in_flight(io, 1)
        await stream.aclose()
    assert len(outcome) == 1
    assert stream.extra(FileStreamAttribute.file).closed


@pytest.mark.anyio
async def test_aclose_closes_also_when_cancelled(io: AsyncIoManager, path: Path) -> None:
    stream = await UringFileReadStream.from_path(path)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await stream.aclose()
    assert scope.cancelled_caught
    assert stream.extra(FileStreamAttribute.file).closed


# --- errors -----------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_closed_stream_says_so(io: AsyncIoManager, path: Path) -> None:
    reader, writer = await UringFileReadStream.from_path(path), await UringFileWriteStream.from_path(path)
    for stream in (reader, writer):
        await stream.aclose()
        await stream.aclose()
    for call in (reader.receive, reader.tell, lambda: reader.seek(0), lambda: writer.send(b"x")):
        with pytest.raises(anyio.ClosedResourceError):
            await call()


@pytest.mark.anyio
async def test_a_file_closed_behind_its_stream_is_closed(io: AsyncIoManager, path: Path) -> None:
    stream = await UringFileReadStream.from_path(path)
    stream.extra(FileStreamAttribute.file).close()
    with pytest.raises(anyio.ClosedResourceError):
        await stream.receive()


@pytest.mark.anyio
async def test_a_failed_transfer_is_a_broken_resource(io: AsyncIoManager, pipe: tuple[int, int]) -> None:
    async with await UringFileReadStream.from_path("/proc/self/mem") as reader:
        with pytest.raises(anyio.BrokenResourceError) as caught:
            await reader.receive()
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.filename == "/proc/self/mem"
    async with await UringFileWriteStream.from_path("/dev/full") as writer:
        with pytest.raises(anyio.BrokenResourceError):
            await writer.send(b"x")
    async with UringFileReadStream(os.fdopen(os.dup(pipe[0]), "rb", buffering=0)) as reader:
        for call in (reader.tell, lambda: reader.seek(0)):
            with pytest.raises(OSError, match="seek"):
                await call()


@pytest.mark.anyio
async def test_what_cannot_be_a_stream_is_refused(io: AsyncIoManager, path: Path, pipe: tuple[int, int]) -> None:
    closed = path.open("rb")
    closed.close()
    with path.open() as text, path.open("rb") as reading, path.open("r+b", buffering=0) as both:
        refused: list[tuple[Any, Any, type[Exception], str]] = [
            (UringFileReadStream, text, TypeError, "binary mode"),
            (UringFileWriteStream, reading, ValueError, "open for writing"),
            (UringFileReadStream, stdio.BytesIO(), ValueError, "descriptor"),
            (UringFileReadStream, closed, ValueError, "closed"),
        ]
        for make, file, error, message in refused:
            with pytest.raises(error, match=message):
                make(file)
        with pytest.raises(TypeError, match="io must be"):
            UringFileReadStream(both, io=both)  # type: ignore[arg-type]
        stream = UringFileReadStream(both)
        with pytest.raises(ValueError, match="positive"):
            await stream.receive(0)
        with pytest.raises(TypeError, match="float"):
            await stream.receive(1.5)  # type: ignore[arg-type]
    for codec in (bz2, gzip, lzma):
        with codec.open(path, "wb") as packed, pytest.raises(TypeError, match=f"not {type(packed).__name__}"):
            UringFileWriteStream(packed)
        with codec.open(path, "rb") as packed, pytest.raises(TypeError, match=f"not {type(packed).__name__}"):
            UringFileReadStream(packed)
    with os.fdopen(os.dup(pipe[0]), "rb") as buffered, pytest.raises(ValueError, match="give its raw file"):
        UringFileReadStream(buffered)
    with pytest.raises(FileNotFoundError):
        await UringFileReadStream.from_path(path.with_name("missing"))


# --- writing ----------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_items_are_written_one_behind_the_other(io: AsyncIoManager, path: Path) -> None:
    items: list[Any] = [b"one", bytearray(b"two"), memoryview(bytes(70000)), b""]
    async with await UringFileWriteStream.from_path(path) as stream:
        assert isinstance(stream, ByteSendStream)
        for item in items:
            await stream.send(item)
    assert path.read_bytes() == b"".join(items)
    async with await UringFileWriteStream.from_path(path, append=True) as stream:
        await stream.send(b"end")
        path.write_bytes(b"")  # the end is where the kernel finds it
        await stream.send(b"begin")
    assert path.read_bytes() == b"begin"


@pytest.mark.anyio
@pytest.mark.parametrize("mode", ["wb", "ab", "r+b"])
async def test_a_file_object_is_written_behind_what_it_has_buffered(io: AsyncIoManager, path: Path, mode: str) -> None:
    def check(ours: bytes) -> None:
        with path.open(mode) as file:
            file.write(b"head")
            file.write(b"er, ours")
        assert ours == path.read_bytes()

    path.write_bytes(b"what was there before")
    file = path.open(mode)
    file.write(b"head")
    async with UringFileWriteStream(file) as stream:
        await stream.send(b"er, ours")
    ours = path.read_bytes()
    path.write_bytes(b"what was there before")
    check(ours)


@pytest.mark.anyio
async def test_items_of_several_tasks_are_not_mixed(io: AsyncIoManager, path: Path) -> None:
    items = [bytes([i]) * 50000 for i in range(8)]
    async with await UringFileWriteStream.from_path(path) as stream, anyio.create_task_group() as tasks:
        for item in items:
            tasks.start_soon(stream.send, item)
    data = path.read_bytes()
    assert sorted(data[i : i + 50000] for i in range(0, len(data), 50000)) == items


@pytest.mark.anyio
async def test_an_item_that_failed_can_be_sent_again(path: Path, driver: Any) -> None:
    async with open_uring(driver=driver) as io, await UringFileWriteStream.from_path(path, io=io) as stream:
        with file_size_limit(1000):
            await stream.send(b"a" * 800)
            with pytest.raises(anyio.BrokenResourceError):
                await stream.send(b"b" * 800)
        assert path.stat().st_size == 1000, "a prefix was written"
        await stream.send(b"b" * 800)
    assert path.read_bytes() == b"a" * 800 + b"b" * 800


@pytest.mark.anyio
async def test_a_send_that_waits_is_ended_by_aclose(io: AsyncIoManager, pipe: tuple[int, int]) -> None:
    stream = UringFileWriteStream(os.fdopen(os.dup(pipe[1]), "wb", buffering=0))

    async def send() -> None:
        with pytest.raises(anyio.ClosedResourceError):
            await stream.send(bytes(MIB))  # more than a pipe takes

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(send)
        await until(lambda: io.statistics().bytes_written > 0 or io.statistics().in_flight == 1)
        await stream.aclose()


# --- attributes and managers ------------------------------------------------------------------------


@pytest.mark.anyio
async def test_the_attributes_are_anyios(io: AsyncIoManager, path: Path, pipe: tuple[int, int]) -> None:
    def values(stream: Any) -> list[object]:
        file: IO[bytes] = stream.extra(FileStreamAttribute.file)
        assert stream.extra(FileStreamAttribute.fileno) == file.fileno()
        return [stream.extra(FileStreamAttribute.path), file.readable(), file.writable()]

    async with await UringFileReadStream.from_path(path) as ours, await FileReadStream.from_path(path) as theirs:
        assert values(ours) == values(theirs) == [path, True, False]
    async with await UringFileWriteStream.from_path(str(path)) as sink, await FileWriteStream.from_path(path) as other:
        assert values(sink) == values(other) == [path, False, True]
    async with UringFileReadStream(os.fdopen(os.dup(pipe[0]), "rb", buffering=0)) as stream:
        assert stream.extra(FileStreamAttribute.path, None) is None


@pytest.mark.anyio
async def test_without_a_manager_threads_do_the_work(path: Path) -> None:
    data = path.read_bytes()
    async with await UringFileReadStream.from_path(path) as stream:
        assert await _rest(stream) == data
    async with await UringFileWriteStream.from_path(path) as sink:
        await sink.send(data[::-1])
    assert path.read_bytes() == data[::-1]


@pytest.mark.anyio
async def test_io_names_the_manager(io: AsyncIoManager, path: Path, driver: Any) -> None:
    async with open_uring(driver=driver) as inner, await UringFileReadStream.from_path(path, io=io) as stream:
        assert await _rest(stream) == path.read_bytes()
        assert inner.statistics().bytes_read == 0
    assert io.statistics().bytes_read == 65536


@pytest.mark.anyio
async def test_behind_the_end_of_its_manager_a_stream_is_closed(path: Path, driver: Any) -> None:
    async with open_uring(driver=driver) as io:
        stream = await UringFileReadStream.from_path(path)
    with pytest.raises(anyio.ClosedResourceError):
        await stream.receive()
    await stream.aclose()
    assert stream.extra(FileStreamAttribute.file).closed
    with pytest.raises(anyio.ClosedResourceError):
        await UringFileReadStream.from_path(path, io=io)


@pytest.mark.anyio
@pytest.mark.parametrize("kind", [UringFileReadStream, UringFileWriteStream])
async def test_a_manager_that_ends_while_a_stream_is_opened_leaves_no_file_open(
    kind: Any, path: Path, driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[IO[bytes]] = []
    has_ended = anyio.Event()
    open_now = _streams._open

    async def open_and_wait(*arguments: Any) -> IO[bytes]:
        opened.append(await open_now(*arguments))
        await has_ended.wait()
        return opened[0]

    async def from_path(io: AsyncIoManager) -> None:
        with pytest.raises(anyio.ClosedResourceError):
            await kind.from_path(path, io=io)

    monkeypatch.setattr(_streams, "_open", open_and_wait)
    async with anyio.create_task_group() as tasks:
        async with open_uring(driver=driver) as io:
            tasks.start_soon(from_path, io)
            await until(lambda: bool(opened))
        has_ended.set()
    assert opened[0].closed


@asyncio_only
@pytest.mark.anyio
async def test_a_native_cancellation_of_a_close_that_waits_for_another_task(io: AsyncIoManager, path: Path) -> None:
    stream = await UringFileReadStream.from_path(path)
    async with stream._file.lock:
        closing = asyncio.create_task(stream.aclose())
        for _ in range(5):
            await asyncio.sleep(0)
        closing.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        assert not closing.done()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert stream._file.file.closed


@pytest.mark.anyio
async def test_unbuffered_files_of_a_socket(io: AsyncIoManager) -> None:
    """Their bytes are their descriptor's."""
    one, other = socket.socketpair()
    out: Any = one.makefile("wb", buffering=0)
    into: Any = other.makefile("rb", buffering=0)
    with one, other, out, into:
        await UringFileWriteStream(out, io=io).send(b"content")
        assert await UringFileReadStream(into, io=io).receive(7) == b"content"
        one.sendall(b"more")
        async with wrap_file(into, io=io) as file:
            assert await file.read(4) == b"more"

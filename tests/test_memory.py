"""Memory after an operation: nobody writes to it any more, and nobody holds it, or anything else.

``--soak`` makes of dozens of rounds thousands, and of thousands of operations a million.
"""

from __future__ import annotations

import errno
import gc
import mmap
import os
import random
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import anyio
import pytest

from anyio_uring import AsyncIoManager, open_uring

from .helpers import WITHOUT_DEBUG, until

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", WITHOUT_DEBUG)]

READERS: Final = 8
SMALL, LARGE = 64 << 10, 512 << 10
# {kind: bytes of a read}.  What is large and cached is carried out by a worker of the kernel, or by a thread.
SIZES: Final = {"direct": SMALL, "worker": LARGE, "cold": SMALL, "pipe": SMALL}
# Neither occurs in a file or pipe.
CANARY, UNTOUCHED = b"\xa5", b"\x5a"
# Buffers that are watched after their operation has ended; the oldest is looked at when it makes room.
WATCHED_MAX: Final = 64


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> int:
    return 1000 if request.config.getoption("--soak") else 18


@pytest.fixture
def operations(request: pytest.FixtureRequest) -> int:
    return 1_000_000 if request.config.getoption("--soak") else 20_000


class Source:
    """What is read: a file, or a pipe that has nothing to read until the readers have gone."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.kind = kind
        self.size = SIZES[kind]
        self.data = bytes(range(1, 90)) * (READERS * self.size // 89 + 1)
        self.data = self.data[: READERS * self.size]
        self.fds: tuple[int, ...]
        if kind == "pipe":
            self.fds = os.pipe()
            return
        path = directory / "source"
        path.write_bytes(self.data)
        flags = os.O_RDONLY | (os.O_DIRECT if kind == "direct" else 0)
        try:
            self.fds = (os.open(path, flags),)
        except OSError as exc:
            if exc.errno != errno.EINVAL:
                raise
            pytest.skip(f"{directory} is on a filesystem without O_DIRECT")
        os.fsync(self.fds[0])

    def offset(self, reader: int) -> int:
        return -1 if self.kind == "pipe" else reader * self.size

    def prepare(self) -> None:
        """Let the file's next reads be cold, if that is what it is about."""
        if self.kind == "cold":
            os.posix_fadvise(self.fds[0], 0, 0, os.POSIX_FADV_DONTNEED)

    def deliver(self) -> None:
        """Give what came too late its chance to do harm."""
        if self.kind == "pipe":
            os.write(self.fds[1], b"late" * 4096)
            assert os.read(self.fds[0], 1 << 20) == b"late" * 4096, "somebody has read what nobody asked for"

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)


@pytest.fixture
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Source]:
    source = Source(request.param, tmp_path)
    yield source
    source.close()


class Watch:
    """Buffers whose operations have ended: not one byte of them may change."""

    def __init__(self, size: int) -> None:
        self._canary = CANARY * size
        self._buffers: deque[mmap.mmap] = deque()

    def begin(self, buffer: mmap.mmap) -> None:
        buffer[:] = self._canary
        self._buffers.append(buffer)

    def look(self, left: int) -> None:
        while len(self._buffers) > left:
            with self._buffers.popleft() as buffer:
                assert buffer[:] == self._canary, "C2: memory has changed after its operation had ended"

    def look_at_all(self) -> None:
        for buffer in self._buffers:
            assert buffer[:] == self._canary, "C2: memory has changed after its operation had ended"


async def _read(io: AsyncIoManager, source: Source, reader: int, watch: Watch) -> None:
    buffer = mmap.mmap(-1, source.size)
    buffer[:] = UNTOUCHED * source.size
    try:
        count = await io.readinto(source.fds[0], buffer, source.offset(reader))
        expected = source.data[reader * source.size :][:count]
        assert buffer[:count] == expected
        assert buffer[count:] == UNTOUCHED * (source.size - count)
    except anyio.ClosedResourceError:
        pass  # the manager has ended under it
    finally:
        watch.begin(buffer)


async def _end(way: str, io: AsyncIoManager, readers: anyio.abc.TaskGroup, steps: int) -> None:
    """End the readers' operations in a way, after some steps of the event loop."""
    for _ in range(steps):
        await anyio.lowlevel.checkpoint()
    if way == "cancelled":
        readers.cancel_scope.cancel()
    elif way == "returned":
        await until(lambda: io.statistics().completions == READERS)


@pytest.mark.parametrize("source", SIZES, indirect=True)
async def test_no_byte_changes_once_an_operation_has_ended(driver: Any, source: Source, rounds: int) -> None:
    """C2, C5, C10: because it returned, was cancelled, or its manager was closed."""
    moments = random.Random(7)
    watch = Watch(source.size)
    ways = ("cancelled", "closed") if source.kind == "pipe" else ("cancelled", "closed", "returned")
    for number in range(rounds):
        way = ways[number % len(ways)]
        source.prepare()
        async with anyio.create_task_group() as readers:
            async with open_uring(driver=driver, nowait=False) as io:
                for reader in range(READERS):
                    readers.start_soon(_read, io, source, reader, watch)
                await _end(way, io, readers, moments.randrange(12))
            if way == "closed":
                assert io.statistics().in_flight == 0
        source.deliver()
        watch.look_at_all()
        watch.look(left=WATCHED_MAX)
    watch.look(left=0)


async def test_what_a_write_has_taken_it_has_taken(driver: Any, tmp_path: Path, rounds: int) -> None:
    """The buffer is the caller's again when a write returns: what he puts there then is not in the file."""
    with (tmp_path / "file").open("w+b", buffering=0) as file:
        async with open_uring(driver=driver) as io:
            for number in range(rounds):
                size = LARGE if number % 2 else SMALL
                data = bytes([number % 128]) * size
                buffer = bytearray(data)
                assert await io.write(file, buffer, 0) == size
                buffer[:] = CANARY * size
                assert await io.write_batch([(file, memoryview(buffer)[:100], size)] * 3) == [100] * 3
                buffer[:] = UNTOUCHED * size
                os.fsync(file.fileno())
                assert os.pread(file.fileno(), size + 100, 0) == data + CANARY * 100


def _memory_kib() -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1])


class Counts:
    """What would grow if something were kept."""

    def __init__(self, *objects: object) -> None:
        gc.collect()
        self.references = [sys.getrefcount(thing) for thing in objects]
        self.descriptors = len(os.listdir("/proc/self/fd"))
        self.objects = len(gc.get_objects())
        self.blocks = sys.getallocatedblocks()
        self.kib = _memory_kib()

    def assert_flat_since(self, before: Counts, operations: int) -> None:
        """Assert that nothing is kept of this many operations, or of one in a thousand of very many."""
        assert self.references == before.references
        assert self.descriptors == before.descriptors
        # The interpreter's own caches and free lists come and go; and task groups of trio that are cancelled, with
        # no operation in them, leave some 300 blocks the first two thousand times, and then no more.
        assert self.objects - before.objects < max(100, operations // 1000)
        assert self.blocks - before.blocks < max(200, operations // 1000)
        assert self.kib - before.kib < 16 << 10


async def _mixed(io: AsyncIoManager, fds: tuple[int, int], buffer: bytearray, blocked: int) -> int:
    """Carry out a bit of everything, and say how many operations it was."""
    fd, target = fds
    assert await io.read_batch([(fd, 512, 512 * i) for i in range(64)])
    assert await io.readinto_batch([(fd, buffer, 512 * i) for i in range(64)])
    assert await io.write_batch([(target, buffer, 512 * i) for i in range(64)])
    assert len(await io.read(fd, 4096, 0)) == 4096
    assert await io.readinto(fd, buffer, 512) == len(buffer)
    assert await io.write(target, buffer, 0) == len(buffer)
    with pytest.raises(OSError, match="Bad file descriptor"):
        await io.read(1 << 20, 1, 0)
    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(io.readinto, blocked, buffer, -1)
        await until(lambda: io.statistics().in_flight == 4)
        tasks.cancel_scope.cancel()
    return 3 * 64 + 8


async def test_nothing_is_kept(driver: Any, path: Path, tmp_path: Path, pipe: tuple[int, int], operations: int) -> None:
    """References, descriptors and memory are after many operations what they were before them."""
    buffer = bytearray(512)
    with path.open("rb") as file, (tmp_path / "target").open("wb") as target:
        fds = file.fileno(), target.fileno()
        async with open_uring(driver=driver, nowait=False) as io:
            for _ in range(20):
                await _mixed(io, fds, buffer, pipe[0])
            before = Counts(buffer, io, file)
            done = 0
            while done < operations:
                done += await _mixed(io, fds, buffer, pipe[0])
            Counts(buffer, io, file).assert_flat_since(before, operations)
    buffer.append(1)  # nobody has an export


async def test_managers_leave_nothing_behind(driver: Any, path: Path, pipe: tuple[int, int], rounds: int) -> None:
    """Opened and closed over and over, with operations in flight at the end."""
    buffer = bytearray(512)

    async def once() -> None:
        async with anyio.create_task_group() as tasks, open_uring(driver=driver) as io:
            tasks.start_soon(_until_closed, io, pipe[0], buffer)
            with path.open("rb") as file:
                assert await io.read_batch([(file, 4, 4)] * 4) == [b"\0\0\0\1"] * 4
            await until(lambda: io.statistics().in_flight == 1)

    for _ in range(5):
        await once()
    before = Counts(buffer)
    for _ in range(rounds):
        await once()
    Counts(buffer).assert_flat_since(before, rounds)


async def _until_closed(io: AsyncIoManager, fd: int, buffer: bytearray) -> None:
    with pytest.raises(anyio.ClosedResourceError):
        await io.readinto(fd, buffer, -1)

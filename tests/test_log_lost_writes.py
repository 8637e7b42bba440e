"""The append-only log on a disk that loses what was not synced: in mode ALWAYS no acknowledged record is lost."""

from __future__ import annotations

import errno
import random
from contextlib import suppress
from pathlib import Path

import anyio
import attrs
import pytest

from anyio_uring import AppendLog, AsyncIoManager, DurabilityLostError, FsyncMode, open_append_log, read_append_log

from .faulty_disk import FaultyDisk
from .helpers import WITHOUT_DEBUG
from .lossy_store import Loss

pytestmark = pytest.mark.anyio

ROUNDS = 30
many_rounds = pytest.mark.parametrize("anyio_backend", WITHOUT_DEBUG)
APPENDERS = 4
# So small that the log allocates ahead several times in a round.
PREALLOCATE = 2048


@attrs.define
class Book:
    """
    What became of records: each one is different.

    :ivar appended: what was handed to the log
    :ivar acknowledged: ``{offset: record}`` of the appends that returned
    :ivar has_failed: whether an operation of the log did
    """

    appended: set[bytes] = attrs.field(factory=set)
    acknowledged: dict[int, bytes] = attrs.field(factory=dict)
    has_failed: bool = False

    def new_record(self, size: int) -> bytes:
        record = b"%d:" % len(self.appended) + b"x" * size
        self.appended.add(record)
        return record

    async def append(self, log: AppendLog, size: int) -> None:
        record = self.new_record(size)
        self.acknowledged[await log.append(record)] = record

    async def append_many(self, log: AppendLog, count: int, size: int) -> None:
        """Append one after the other."""
        for _ in range(count):
            await self.append(log, size)


async def _use(path: Path, io: AsyncIoManager, book: Book, chance: random.Random, fsync: FsyncMode) -> None:
    """Append with several tasks; the disk may fail any time."""
    sizes = [[chance.choice((0, 10, 100, 1000, 70_000)) for _ in range(5)] for _ in range(APPENDERS)]

    async def append(log: AppendLog, mine: list[int]) -> None:
        try:
            for size in mine:
                await book.append(log, size)
        except OSError:
            book.has_failed = True

    async with (
        open_append_log(path, io=io, fsync=fsync, preallocate=PREALLOCATE) as log,
        anyio.create_task_group() as tasks,
    ):
        for mine in sizes:
            tasks.start_soon(append, log, mine)


async def _use_until_it_crashes(
    disk: FaultyDisk, io: AsyncIoManager, book: Book, seed: int, *, fsync: FsyncMode = FsyncMode.ALWAYS
) -> None:
    """Open the log, append, and crash somewhere in between, or behind the last append."""
    chance = random.Random(seed)
    loss: Loss = chance.choice(("drop", "tear"))
    disk.reset()
    disk.crash_before(chance.randint(0, 30), loss, seed)
    try:
        await _use(disk.path / "log", io, book, chance, fsync)
    except OSError:
        book.has_failed = True
    if not disk.has_crashed():
        assert not book.has_failed, f"seed {seed}: an error without a cause"
        disk.crash(loss, seed)
    book.has_failed = False
    disk.recover()
    disk.reset()


async def _contents(path: Path, io: AsyncIoManager) -> dict[int, bytes]:
    """Recover the log, and return what is in it."""
    async with open_append_log(path, io=io, preallocate=PREALLOCATE):
        pass
    return {offset: record async for offset, record in read_append_log(path, io=io)}


@many_rounds
@pytest.mark.parametrize(("crashes", "rounds"), [(1, ROUNDS), (3, ROUNDS // 3)], ids=["once", "again-and-again"])
async def test_no_acknowledged_record_is_lost(disk: FaultyDisk, io: AsyncIoManager, crashes: int, rounds: int) -> None:
    acknowledged = 0
    for seed in range(rounds):
        disk.wipe()
        book = Book()
        for crash in range(crashes):
            await _use_until_it_crashes(disk, io, book, 1000 * crash + seed)
        found = await _contents(disk.path / "log", io)
        lost = {offset for offset, record in book.acknowledged.items() if found.get(offset) != record}
        assert not lost, f"seed {seed}: {len(lost)} of {len(book.acknowledged)} acknowledged records"
        assert set(found.values()) <= book.appended, f"seed {seed}: records that nobody appended"
        assert [*found] == sorted(found)
        acknowledged += len(book.acknowledged)
    assert acknowledged > 3 * rounds * crashes, "hardly a record was acknowledged: this tested little"


@many_rounds
async def test_a_creation_that_was_cut_short_is_begun_anew(disk: FaultyDisk, io: AsyncIoManager) -> None:
    """A header that is torn, with allocated zeros behind it, is no damage: nothing was ever acknowledged."""
    for count in range(4, 8):
        for seed in range(30):
            disk.wipe()
            disk.crash_before(count, "tear", seed)
            with suppress(OSError):
                async with open_append_log(disk.path / "log", io=io, preallocate=PREALLOCATE):
                    pass
            if not disk.has_crashed():
                disk.crash("tear", seed)
            disk.recover()
            book = Book()
            async with open_append_log(disk.path / "log", io=io, preallocate=PREALLOCATE) as log:
                await book.append(log, 10)
            assert await _contents(disk.path / "log", io) == book.acknowledged, f"{count} operations, seed {seed}"


@many_rounds
async def test_no_offset_comes_twice_after_a_crash_in_a_rotation(disk: FaultyDisk, io: AsyncIoManager) -> None:
    """Who finds the new file goes on in it: its name comes with the offset at which it begins."""
    found = 0
    for count in range(10):
        for seed in range(8):
            disk.wipe()
            book = Book()
            with suppress(OSError):
                async with open_append_log(disk.path / "log", io=io, preallocate=PREALLOCATE) as log:
                    await book.append(log, 100)
                    disk.crash_before(count, "tear", seed)
                    await log.rotate(disk.path / "next")
            if not disk.has_crashed():
                disk.crash("tear", seed)
            disk.recover()
            disk.reset()
            assert await _contents(disk.path / "log", io) == book.acknowledged, f"{count} operations, seed {seed}"
            if (disk.path / "next").exists():
                found += 1
                async with open_append_log(disk.path / "next", io=io, preallocate=PREALLOCATE) as log:
                    assert not log.recovery.was_created
                    await book.append(log, 100)
                assert len(book.acknowledged) == 2, "each record has an offset of its own"
    assert found > 8, "hardly a rotation came so far: this tested little"


@pytest.mark.parametrize("operation", ["create", "write", "fsync", "rename", "fsyncdir"])
async def test_a_rotation_that_fails_leaves_nothing_behind(
    disk: FaultyDisk, io: AsyncIoManager, operation: str
) -> None:
    """A file that begins at the same offset as what the log goes on with would be a trap."""
    async with open_append_log(disk.path / "log", io=io, preallocate=PREALLOCATE) as log:
        await log.append(b"1")
        disk.reset()
        disk.fail(operation, errno.EIO)
        with pytest.raises(OSError, match="Input/output") as caught:
            await log.rotate(disk.path / "next")
        assert caught.value.filename == str(disk.path / "next")
        assert sorted(disk.tree()) == ["log"]
        await log.append(b"2")
        await log.rotate(disk.path / "next")
    assert sorted(disk.tree()) == ["log", "next"]


@many_rounds
async def test_what_is_recovered_is_there_after_the_next_crash(disk: FaultyDisk, io: AsyncIoManager) -> None:
    """Also what nobody was told of: a reader may have acted on it."""
    for seed in range(ROUNDS):
        disk.wipe()
        book = Book()
        await _use_until_it_crashes(disk, io, book, seed)
        found = await _contents(disk.path / "log", io)
        disk.crash()
        disk.recover()
        assert await _contents(disk.path / "log", io) == found, f"seed {seed}"


@many_rounds
async def test_without_a_sync_acknowledged_records_are_lost(disk: FaultyDisk, io: AsyncIoManager) -> None:
    """So the tests above can fail."""
    lost = 0
    for seed in range(ROUNDS):
        disk.wipe()
        book = Book()
        await _use_until_it_crashes(disk, io, book, seed, fsync=FsyncMode.NEVER)
        found = await _contents(disk.path / "log", io)
        lost += sum(found.get(offset) != record for offset, record in book.acknowledged.items())
    assert lost


async def test_a_failed_sync_is_the_end_of_the_log_and_costs_nothing_acknowledged(
    disk: FaultyDisk, io: AsyncIoManager
) -> None:
    path, book = disk.path / "log", Book()
    errors: list[DurabilityLostError] = []

    async def fail(log: AppendLog) -> None:
        with pytest.raises(DurabilityLostError) as raised:
            await book.append(log, 100)
        errors.append(raised.value)

    async with open_append_log(path, io=io, preallocate=PREALLOCATE) as log:
        for _ in range(3):
            await book.append(log, 100)
        disk.reset()
        disk.fail("fsync")
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(fail, log)
        asked = disk.operations()
        await fail(log)
        assert disk.operations() == asked, "nothing is tried again"
    assert [error.errno for error in errors] == [errno.EIO] * 6
    assert await _contents(path, io) == book.acknowledged, "what the sync lost is not on the disk"

    # Opened again it goes on.
    async with open_append_log(path, io=io, preallocate=PREALLOCATE) as log:
        await book.append(log, 100)
    disk.crash()
    disk.recover()
    assert await _contents(path, io) == book.acknowledged


async def test_a_full_disk_fails_appends_until_there_is_room(disk: FaultyDisk, io: AsyncIoManager) -> None:
    path, book = disk.path / "log", Book()
    async with open_append_log(path, io=io, preallocate=PREALLOCATE) as log:
        await book.append(log, 10)
        disk.limit(space=5000)
        with pytest.raises(OSError) as raised:
            await book.append_many(log, 10, 1000)
        assert raised.value.errno == errno.ENOSPC
        assert len(book.acknowledged) > 1
        disk.limit()
        await book.append(log, 3000)
        disk.crash("tear", seed=1)
        with pytest.raises(OSError):
            await log.append(b"")
    disk.recover()
    assert await _contents(path, io) == book.acknowledged


async def test_a_write_that_fails_harms_no_other(disk: FaultyDisk, io: AsyncIoManager) -> None:
    path, book = disk.path / "log", Book()
    async with open_append_log(path, io=io, preallocate=0) as log:
        await book.append(log, 10)
        disk.fail("write")
        with pytest.raises(OSError) as raised:
            await log.append(b"lost")
        assert raised.value.errno == errno.EIO
        await book.append(log, 10)
    disk.crash()
    disk.recover()
    assert await _contents(path, io) == book.acknowledged


@pytest.mark.parametrize("write_max", [1, 7, 1000])
async def test_short_writes_are_continued_before_anything_is_acknowledged(
    disk: FaultyDisk, io: AsyncIoManager, write_max: int
) -> None:
    path, book = disk.path / "log", Book()

    async def append_and_crash() -> None:
        async with open_append_log(path, io=io, preallocate=PREALLOCATE) as log:
            disk.limit(write_max=write_max)
            async with anyio.create_task_group() as tasks:
                for _ in range(8):
                    tasks.start_soon(book.append, log, 20 * write_max)
            disk.crash()

    with pytest.raises(OSError, match="Input/output"):  # of closing, on a disk that is gone
        await append_and_crash()
    disk.recover()
    disk.reset()
    assert len(book.acknowledged) == 8
    assert await _contents(path, io) == book.acknowledged

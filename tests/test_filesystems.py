"""Each kind of filesystem, mounted for the purpose: bytes, names, direct I/O, logs and copies."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from anyio_uring import (
    AsyncIoManager,
    RwFlags,
    aligned_buffer,
    atomic_write,
    copy_file,
    copy_tree,
    open_append_log,
    open_file,
    read_append_log,
)

from . import filesystems, programs

EXPECTED = "TESTS_EXPECT_FILESYSTEMS"
pytestmark = [pytest.mark.anyio, pytest.mark.filesystem]


@pytest.fixture(scope="module", params=filesystems.KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def filesystem(kind: str) -> Iterator[Path]:
    """Skips with one line where it cannot be had, unless it has to be."""
    try:
        with filesystems.mounted(kind) as path:
            yield path
    except filesystems.UnavailableError as exc:
        if os.environ.get(EXPECTED):
            pytest.fail(str(exc))
        pytest.skip(str(exc))


@pytest.fixture
def place(filesystem: Path, tmp_path: Path) -> Path:
    """An empty directory there."""
    path = filesystem / tmp_path.name
    path.mkdir()
    return path


async def test_reads_writes_and_batches(io: AsyncIoManager, place: Path) -> None:
    with (place / "file").open("w+b") as file:
        await programs.work(io, file)


@pytest.mark.parametrize("nowait", [True])
async def test_what_the_page_cache_has(io: AsyncIoManager, place: Path, nowait: bool) -> None:
    """Also where the filesystem has no RWF_NOWAIT."""
    data = os.urandom(200_000)
    (place / "file").write_bytes(data)
    with (place / "file").open("rb") as file:
        assert [await io.read(file, 1000, offset) for offset in (0, 199_500, 200_000)] == [
            data[:1000],
            data[199_500:],
            b"",
        ]
        assert await io.read_exactly(file, 200_000, 0) == data


async def test_direct_io(io: AsyncIoManager, place: Path, kind: str) -> None:
    data = os.urandom(1 << 20)
    (place / "file").write_bytes(data)
    try:
        fd = await io.open(place / "file", os.O_RDWR, direct=True)
    except OSError as exc:
        if exc.errno != errno.EINVAL or kind != "tmpfs":
            raise
        pytest.skip("tmpfs has had O_DIRECT since Linux 6.6")
    try:
        alignment = io.direct_alignment(fd)
        assert alignment.offset in {512, 1024, 2048, 4096}
        buffer = aligned_buffer(65536)
        assert await io.readinto(fd, buffer, 131072) == 65536
        assert buffer == data[131072:196608]
        assert await io.read_exactly(fd, 10_000, 5_001) == data[5_001:15_001]
        buffer[:] = data[:65536]
        assert await io.write(fd, buffer, 65536, flags=RwFlags.DSYNC) == 65536
        async with io.buffer_pool(count=2, size=4096) as pool:
            with await pool.acquire() as fixed:
                assert await io.readinto(fd, fixed, 65536) == 4096
                assert fixed.view == data[:4096]
    finally:
        await io.close(fd)
    assert (place / "file").read_bytes()[65536:131072] == data[:65536]


async def test_names(io: AsyncIoManager, place: Path) -> None:
    (place / "first").write_bytes(b"1")
    (place / "second").write_bytes(b"2")
    with pytest.raises(FileExistsError):
        await io.rename(place / "first", place / "second", noreplace=True)
    await io.rename(place / "first", place / "second")
    await io.mkdir(place / "directory")
    await io.symlink("second", place / "symbolic")
    await io.link(place / "second", place / "directory" / "linked")
    status = await io.stat(place / "symbolic")
    assert (status.st_size, status.st_nlink) == (1, 2)
    with pytest.raises(OSError) as caught:
        await io.rmdir(place / "directory")
    assert caught.value.errno == errno.ENOTEMPTY
    await io.unlink(place / "directory" / "linked")
    await io.rmdir(place / "directory")
    assert sorted(os.listdir(place)) == ["second", "symbolic"]
    with (place / "second").open("r+b") as file:
        await io.fallocate(file, 0, 0, 100_000)
        await io.truncate(file, 50_000)
        assert (await io.stat(file)).st_size == 50_000


async def test_small_files(io: AsyncIoManager, place: Path) -> None:
    paths = [place / str(number) for number in range(600)]
    for number, path in enumerate(paths):
        path.write_bytes(b"%d" % number * (number % 70))
    assert await io.read_files(paths) == [path.read_bytes() for path in paths]
    assert [status.st_size for status in await io.stat_batch(paths)] == [path.stat().st_size for path in paths]


async def test_a_log_and_atomic_replacement(io: AsyncIoManager, place: Path) -> None:
    started = []

    async def append(record: bytes) -> None:
        started.append(record)
        await log.append(record)

    async with open_append_log(place / "log", io=io) as log, anyio.create_task_group() as tasks:
        for number in range(100):
            tasks.start_soon(append, b"%d" % number)
    content = (place / "log").read_bytes()
    (place / "log").write_bytes(content[:-1])
    async with open_append_log(place / "log", io=io) as log:
        assert log.recovery.records == 99
        await log.append(b"again")
    assert [record async for _, record in read_append_log(place / "log", io=io)] == [
        *started[:99],
        b"again",
    ]
    for data in (b"old", b"new" * 100_000):
        await atomic_write(place / "replaced", data, io=io)
        assert (place / "replaced").read_bytes() == data
    assert sorted(os.listdir(place)) == ["log", "replaced"]


async def test_files_and_copies(io: AsyncIoManager, place: Path, driver: Any) -> None:
    (place / "tree").mkdir()
    async with await open_file(place / "tree" / "text", "w", encoding="utf-8", io=io) as file:
        await file.writelines(f"line {number}\n" for number in range(5000))
    with (place / "tree" / "holes").open("wb") as sparse:
        sparse.truncate(8 << 20)
        os.pwrite(sparse.fileno(), b"data", 4 << 20)
    await copy_file(place / "tree" / "text", place / "copy", io=io)
    assert (place / "copy").read_bytes() == (place / "tree" / "text").read_bytes()
    await copy_tree(place / "tree", place / "copied", io=io)
    for name in ("text", "holes"):
        assert (place / "copied" / name).read_bytes() == (place / "tree" / name).read_bytes()
    assert (place / "copied" / "holes").stat().st_blocks * 512 < 1 << 20

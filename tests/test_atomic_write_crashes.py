"""A file that is replaced is old or new, whenever the machine stops, and old when the disk fails."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from anyio_uring import AsyncIoManager, atomic_write

from .faulty_disk import FaultyDisk
from .helpers import WITHOUT_DEBUG
from .lossy_store import Loss

pytestmark = pytest.mark.anyio

OLD = b"old" * 1000
NEW = os.urandom(300_000)  # three writes of 100,000 bytes
# Of each crash point: everything is lost, or torn in one of these ways.
LOSSES: list[tuple[Loss, int]] = [("drop", 0), *(("tear", seed) for seed in range(6))]
without_debug = pytest.mark.parametrize("anyio_backend", WITHOUT_DEBUG)


def _prepare(disk: FaultyDisk, old: bytes | None) -> None:
    disk.wipe()
    if old is not None:
        fd = os.open(disk.path / "file", os.O_WRONLY | os.O_CREAT, 0o644)
        os.write(fd, old)
        os.fsync(fd)
        os.close(fd)
        fd = os.open(disk.path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
    disk.reset()
    disk.limit(write_max=100_000)


async def _crash_at(
    disk: FaultyDisk, io: AsyncIoManager, count: int, loss: Loss, seed: int, *, old: bytes | None
) -> tuple[bytes | None, bool, bool]:
    """Return what is left of the file, whether the write had returned, and whether it came to its end."""
    _prepare(disk, old)
    disk.crash_before(count, loss, seed)
    error: OSError | None = None
    try:
        await atomic_write(disk.path / "file", NEW, io=io)
    except OSError as exc:
        error = exc
    assert error is None or error.errno == errno.EIO
    is_over = not disk.has_crashed()
    if is_over:
        disk.crash(loss, seed)
    disk.recover()
    return disk.tree().get("file"), error is None, is_over


async def _outcomes(
    disk: FaultyDisk, io: AsyncIoManager, old: bytes | None
) -> tuple[set[tuple[bytes | None, bool]], int]:
    """Crash before and after everything that the disk is asked for: what was left and what had returned; how often."""
    outcomes: set[tuple[bytes | None, bool]] = set()
    points = 0
    is_over = False
    while not is_over:
        for loss, seed in LOSSES:
            left, has_returned, is_over = await _crash_at(disk, io, points, loss, seed, old=old)
            outcomes.add((left, has_returned))
        points += 1
    return outcomes, points


@pytest.mark.parametrize("old", [OLD, None], ids=["exists", "new"])
async def test_whenever_it_crashes_the_file_is_old_or_new(
    disk: FaultyDisk, io: AsyncIoManager, old: bytes | None
) -> None:
    outcomes, points = await _outcomes(disk, io, old)
    assert outcomes == {(old, False), (NEW, False), (NEW, True)}
    assert points >= 8, "before the creation, three writes, the sync, the rename and its sync; and after it"


@without_debug
async def test_without_the_fsync_a_mixture_is_found(
    disk: FaultyDisk, io: AsyncIoManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the test above can fail."""

    async def forgotten(*_: object) -> None:
        return

    monkeypatch.setattr(AsyncIoManager, "fsync", forgotten)
    outcomes, _ = await _outcomes(disk, io, OLD)
    left = {content for content, _ in outcomes}
    assert b"" in left and left - {OLD, NEW, b""}


@without_debug
async def test_without_the_directorys_fsync_the_old_file_is_back(
    disk: FaultyDisk, io: AsyncIoManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def forgotten(*_: object) -> None:
        return

    monkeypatch.setattr("anyio_uring._atomic_write._Writer._sync_directory", forgotten)
    outcomes, _ = await _outcomes(disk, io, OLD)
    assert (OLD, True) in outcomes


@pytest.mark.parametrize(
    ("operation", "nth", "code"),
    [
        ("create", 1, errno.EACCES),
        ("create", 1, errno.EROFS),
        ("create", 1, errno.ENOSPC),
        ("write", 1, errno.EIO),
        ("write", 2, errno.EDQUOT),
        ("chmod", 1, errno.EPERM),
        ("fsync", 1, errno.EIO),
        ("fsync", 1, errno.ENOSPC),
        ("rename", 1, errno.EIO),
    ],
)
async def test_whatever_fails_before_the_rename_leaves_the_old_file_and_nothing_else(
    disk: FaultyDisk, io: AsyncIoManager, operation: str, nth: int, code: int
) -> None:
    _prepare(disk, OLD)
    disk.fail(operation, code, nth=nth)
    path = disk.path / "file"
    with pytest.raises(OSError) as raised:
        await atomic_write(path, NEW, mode=0o666, io=io)
    error = raised.value
    assert (type(error), error.errno, error.filename) == (type(OSError(code, "")), code, str(path))
    assert error.filename2 is None and ".anyio_uring-" not in str(error)
    assert disk.tree() == {"file": OLD}
    # Trying again writes everything anew, so it is worth it.
    await atomic_write(path, NEW, io=io)
    disk.crash()
    disk.recover()
    assert disk.tree() == {"file": NEW}


async def test_a_directory_that_cannot_be_synced_is_no_secret(disk: FaultyDisk, io: AsyncIoManager) -> None:
    _prepare(disk, OLD)
    disk.fail("fsyncdir")
    with pytest.raises(OSError, match=r"the file was replaced, but .* a crash may bring the old file back") as raised:
        await atomic_write(disk.path / "file", NEW, io=io)
    assert (raised.value.errno, raised.value.filename) == (errno.EIO, str(disk.path / "file"))
    assert disk.tree() == {"file": NEW}
    disk.crash()
    disk.recover()
    assert disk.tree() == {"file": OLD}


async def test_a_full_disk_leaves_the_old_file(disk: FaultyDisk, io: AsyncIoManager) -> None:
    _prepare(disk, OLD)
    disk.limit(space=len(NEW) - 1)
    with pytest.raises(OSError) as raised:
        await atomic_write(disk.path / "file", NEW, io=io)
    assert raised.value.errno == errno.ENOSPC
    assert disk.tree() == {"file": OLD}
    disk.limit(space=len(NEW))
    await atomic_write(disk.path / "file", NEW, io=io)
    assert disk.tree() == {"file": NEW}


async def test_short_writes_make_a_whole_file(disk: FaultyDisk, io: AsyncIoManager) -> None:
    _prepare(disk, OLD)
    disk.limit(write_max=7_000)
    await atomic_write(disk.path / "file", NEW, io=io)
    disk.crash()
    disk.recover()
    assert disk.tree() == {"file": NEW}


async def test_the_first_error_is_the_one_that_is_raised(disk: FaultyDisk, io: AsyncIoManager) -> None:
    _prepare(disk, OLD)
    disk.fail("write", errno.ENOSPC)
    disk.fail("unlink", errno.EIO)
    with pytest.raises(OSError) as raised:
        await atomic_write(disk.path / "file", NEW, io=io)
    assert raised.value.errno == errno.ENOSPC
    left: dict[str, Any] = disk.tree()
    assert left.pop("file") == OLD
    ((name, content),) = left.items()
    assert (name.startswith(".anyio_uring-"), name.endswith(".tmp"), content) == (True, True, b"")


async def test_a_mode_survives_the_crash(disk: FaultyDisk, io: AsyncIoManager) -> None:
    _prepare(disk, OLD)
    await atomic_write(disk.path / "file", NEW, mode=0o666, io=io)
    disk.crash()
    disk.recover()
    assert os.stat(disk.path / "file").st_mode & 0o7777 == 0o666

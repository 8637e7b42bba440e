"""What a manager counts: bytes, short transfers, cancellations, fallbacks, latency."""

from __future__ import annotations

import errno
import math
import os
import sys
import threading
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyio_uring import AsyncIoManager, BatchError, LatencyQuantiles, RwFlags, open_uring
from anyio_uring._latency import Histogram
from anyio_uring._requests import Opcode, Request

from .helpers import in_flight, scripted, until


def _moved(io: AsyncIoManager) -> tuple[int, int, int, int]:
    statistics = io.statistics()
    return statistics.bytes_read, statistics.bytes_written, statistics.short_reads, statistics.short_writes


@pytest.mark.anyio
async def test_bytes_of_reads_that_must_not_wait(io: AsyncIoManager, pipe: tuple[int, int]) -> None:
    """RWF_NOWAIT does not go to the driver, and counts all the same."""
    os.write(pipe[1], b"12345")
    before = io.statistics()
    assert await io.read(pipe[0], 10, -1, flags=RwFlags.NOWAIT) == b"12345"
    with pytest.raises(BlockingIOError):
        await io.read(pipe[0], 10, -1, flags=RwFlags.NOWAIT)
    after = io.statistics()
    assert after.bytes_read - before.bytes_read == 5
    assert after.short_reads - before.short_reads == 1


@pytest.mark.anyio
@pytest.mark.parametrize("nowait", [False, True])
async def test_bytes_and_short_transfers(io: AsyncIoManager, path: Path) -> None:
    with path.open("r+b") as file:
        fd = file.fileno()
        os.fsync(fd)
        assert _moved(io) == (0, 0, 0, 0)
        await io.read(fd, 1000, 0)
        await io.readinto(file, bytearray(24), 8)
        assert _moved(io) == (1024, 0, 0, 0)
        assert len(await io.read(fd, 100, 65500)) == 36
        assert await io.readinto(fd, bytearray(100), 65535) == 1
        assert await io.read(fd, 100, 70000) == b""
        assert _moved(io) == (1061, 0, 3, 0)
        await io.readv(fd, [bytearray(3), bytearray(4)], 0)
        await io.read(fd, 0, 0)  # nothing was asked: nothing is short
        await io.readv(fd, [bytearray(3), bytearray(4)], 65531)
        assert _moved(io) == (1073, 0, 4, 0)
        await io.write(fd, b"12345", 0)
        await io.writev(fd, [b"1", b"23"], 5)
        await io.write_all(fd, bytes(100), 0)
        await io.write_and_sync(fd, bytes(10), 0)
        await io.fsync(fd)
        assert _moved(io) == (1073, 118, 4, 0)
        with pytest.raises(OSError):
            await io.read(-1, 10, 0)
        assert _moved(io) == (1073, 118, 4, 0)


@pytest.mark.anyio
async def test_bytes_of_batches(io: AsyncIoManager, path: Path) -> None:
    with path.open("r+b") as file:
        fd = file.fileno()
        await io.read_batch([(fd, 10, i) for i in range(20)])
        await io.readinto_batch([(fd, bytearray(5), i) for i in range(20)])
        assert _moved(io) == (300, 0, 0, 0)
        await io.read_batch([(fd, 10, 0), (fd, 10, 65530), (fd, 10, 70000)])
        assert _moved(io) == (316, 0, 2, 0)
        with pytest.raises(BatchError):
            await io.read_batch([(fd, 10, 0), (2**31 - 1, 10, 0), (fd, 10, 65530)])
        assert _moved(io) == (332, 0, 3, 0)
        with pytest.raises(BatchError):
            await io.readinto_batch([(fd, bytearray(10), 0), (2**31 - 1, bytearray(10), 0)])
        await io.read_batch([(file, 1, 0), (file, 0, 0)])  # not plain
        assert _moved(io) == (343, 0, 3, 0)
        await io.write_batch([(fd, b"abc", i) for i in range(4)])
        await io.fsync_batch([fd])
        async with io.chain() as chain:
            chain.write(fd, b"xyz", 0)
            chain.fdatasync(fd)
        assert _moved(io) == (343, 15, 3, 0)


@pytest.mark.anyio
async def test_a_short_write(driver: Any, tmp_path: Path) -> None:
    """A pipe takes what it has room for, of a write that does not wait for the rest."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    async with open_uring(driver=driver) as io:
        written = await io.write(write_end, bytes(1 << 20), -1)
        assert 0 < written < 1 << 20
        assert _moved(io) == (0, written, 0, 1)
    os.close(read_end)
    os.close(write_end)


@pytest.mark.anyio
async def test_what_was_asked_again_counts_once() -> None:
    async with scripted() as (driver, task), anyio.create_task_group() as tasks:
        tasks.start_soon(task.perform, [Request(Opcode.READ, 0, bytearray(10), 0)])
        await until(lambda: len(driver.pending) == 1)
        driver.complete(-errno.EINTR)
        await until(lambda: len(driver.taken) == 2)
        driver.complete(10)
        await until(lambda: task.statistics().completions == 2)
    statistics = task.statistics()
    assert (statistics.bytes_read, statistics.short_reads, statistics.resubmissions) == (10, 0, 1)


@pytest.mark.anyio
async def test_cancellations_asked_and_effective(io: AsyncIoManager, pipe: tuple[int, int]) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(io.read_batch, [(pipe[0], 1, -1)] * 3)
        tasks.start_soon(io.read, pipe[0], 1, -1)
        await in_flight(io, 4)
        tasks.cancel_scope.cancel()
    statistics = io.statistics()
    assert (statistics.cancellations, statistics.cancellations_effective) == (4, 4)
    with anyio.CancelScope() as scope:  # C4: the driver never sees it
        scope.cancel()
        await io.read(pipe[0], 1, -1)
    assert io.statistics().cancellations == 4


@pytest.mark.anyio
async def test_a_cancellation_that_came_too_late_has_no_effect() -> None:
    """Three members, one of which has no room: one happens all the same, one fails, and the third was never asked."""
    async with scripted(depth=2) as (driver, task), anyio.create_task_group() as tasks:
        tasks.start_soon(task.perform, [Request(Opcode.READ, 0, bytearray(10), i) for i in range(3)])
        await until(lambda: len(driver.pending) == 2)
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await until(lambda: len(driver.cancels) == 2)
            driver.complete(4)
            driver.complete(-errno.ECANCELED)
            driver.complete_cancel(-errno.ENOENT)
            driver.complete_cancel(0)
            await until(lambda: task.statistics().completions == 2)
    statistics = task.statistics()
    assert (statistics.cancellations, statistics.cancellations_effective) == (2, 1)
    assert (statistics.bytes_read, statistics.short_reads) == (4, 1)  # though the call raised the cancellation


@pytest.mark.anyio
async def test_operations_of_a_fallback(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anyio_uring._ring.sys.platform", "darwin")
    with path.open("rb") as file:
        async with open_uring(nowait=False) as io:
            await io.read_batch([(file, 1, 0)] * 5)
            assert io.statistics().fallback_operations == 5
        async with open_uring(nowait=False, driver="threads") as io:
            await io.read(file, 1, 0)
            assert io.statistics().fallback_operations == 0


@pytest.mark.anyio
async def test_latency(driver: Any, path: Path, pipe: tuple[int, int]) -> None:
    async with open_uring(driver=driver) as io:
        assert io.statistics().latency is None
    async with open_uring(driver=driver, nowait=False, latency=True) as io:
        assert io.statistics().latency == LatencyQuantiles(count=0, p50_us=0, p90_us=0, p99_us=0, max_us=0)
        with path.open("rb") as file:
            await io.read_batch([(file, 10, 0)] * 20)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(io.read, pipe[0], 1, -1)
            await in_flight(io, 1)
            begin_ns = perf_counter_ns()  # the clock of the measurement; uvloop's own lags behind
            await until(lambda: perf_counter_ns() > begin_ns + 20_000_000)
            os.write(pipe[1], b"x")
        latency = io.statistics().latency
        assert latency is not None
        assert latency.count == 21
        assert 0 < latency.p50_us <= latency.p90_us <= latency.p99_us <= latency.max_us
        assert latency.max_us > 20_000  # of the one that waited


@given(st.lists(st.integers(min_value=0, max_value=1 << 41), min_size=1))
def test_quantiles_are_within_two_percent(durations_ns: list[int]) -> None:
    histogram = Histogram()
    for duration_ns in durations_ns:
        histogram.add(duration_ns)
    quantiles = histogram.quantiles()
    in_order = sorted(min(duration_ns, (1 << 40) - 1) for duration_ns in durations_ns)
    assert quantiles.count == len(durations_ns)
    assert quantiles.max_us == max(durations_ns) / 1000
    for part, us in ((0.5, quantiles.p50_us), (0.9, quantiles.p90_us), (0.99, quantiles.p99_us)):
        exact = in_order[math.ceil(part * len(in_order)) - 1]
        assert abs(us * 1000 - exact) <= 0.02 * exact


@given(st.integers(min_value=1, max_value=1 << 50))
def test_a_histogram_never_grows(duration_ns: int) -> None:
    histogram = Histogram()
    size = len(histogram._counts)
    histogram.add(duration_ns)
    assert len(histogram._counts) == size < 1300


@pytest.mark.anyio
async def test_another_thread_may_ask(driver: Any, path: Path) -> None:
    """As an exporter of metrics does; also while the manager is being closed."""
    sys.setswitchinterval(1e-6)
    errors: list[BaseException] = []
    submissions: list[int] = []
    is_over = threading.Event()

    def ask(managers: list[AsyncIoManager]) -> None:
        try:
            while not is_over.is_set():
                statistics = [io.statistics() for io in managers]
                assert all(each.in_flight >= 0 and each.waiting >= 0 for each in statistics)
                submissions.append(sum(each.submissions for each in statistics))
        except BaseException as exc:  # noqa: BLE001 - the test looks at it
            errors.append(exc)

    managers: list[AsyncIoManager] = []
    thread = threading.Thread(target=ask, args=(managers,))
    try:
        thread.start()
        with path.open("rb") as file:
            for _ in range(20):
                async with open_uring(driver=driver, depth=4, nowait=False, latency=True) as io:
                    managers[:] = [io]
                    async with anyio.create_task_group() as tasks:
                        for i in range(20):
                            tasks.start_soon(io.read_batch, [(file, 1, i)] * 3)
    finally:
        is_over.set()
        thread.join()
        sys.setswitchinterval(0.005)
    assert not errors
    assert managers[0].statistics().submissions == 60
    assert submissions

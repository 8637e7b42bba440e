"""The driver over the kernel's ring, without an event loop."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from anyio_uring import UringUnavailableError, _ring
from anyio_uring._driver import CANCEL
from anyio_uring._requests import Batch, Memories, Opcode, Request
from anyio_uring._ring import UringDriver, open_ring

pytestmark = pytest.mark.ring


@pytest.fixture
def ring() -> Iterator[UringDriver]:
    driver = open_ring(8)
    yield driver
    driver.close()


def _pairs(flat: Sequence[int]) -> list[tuple[int, int]]:
    """Return ``(user data, result)`` for each completion."""
    return list(zip(flat[::2], flat[1::2]))


def _drain(ring: UringDriver, count: int) -> list[tuple[int, int]]:
    """Wait until this many completions are there, woken by the ring's own descriptor."""
    results: list[tuple[int, int]] = []
    poller = select.poll()
    poller.register(ring.fileno(), select.POLLIN)
    while len(results) < count:
        assert poller.poll(10_000), f"no wake-up; got {results}"
        _, flat = ring.turn([], [])
        results += _pairs(flat)
    return results


def test_a_blocked_reads_completion_wakes_a_poll(ring: UringDriver, pipe: tuple[int, int]) -> None:
    buffer = bytearray(4)
    for _ in range(100):
        rows, pin, _ = ring.prepare(7, [Request(Opcode.READ, pipe[0], buffer, -1)])
        assert ring.turn([], [(rows, 0, 1)]) == (1, ())
        os.write(pipe[1], b"x")
        assert _drain(ring, 1) == [(7, 1)]
        del pin


def test_a_write_that_a_kernel_worker_carries_out_wakes_a_poll(ring: UringDriver, tmp_path: Path) -> None:
    """Deferred completions must reach a poll that sleeps already (they do not with DEFER_TASKRUN)."""
    with (tmp_path / "file").open("wb") as file:
        for i in range(100):
            rows, pin, _ = ring.prepare(i, [Request(Opcode.WRITE, file.fileno(), b"x" * 4096, 0)])
            _, flat = ring.turn([], [(rows, 0, 1)])
            assert (_pairs(flat) or _drain(ring, 1)) == [(i, 4096)]
            del pin


def test_more_rows_than_the_submission_queue_holds(ring: UringDriver, pipe: tuple[int, int]) -> None:
    """C5: with the queue full, cancel requests are flushed and brought again, never dropped."""
    assert ring.features.sq_entries == 8
    buffers = [bytearray(1) for _ in range(8)]
    prepared = [ring.prepare(i, [Request(Opcode.READ, pipe[0], buffer, -1)]) for i, buffer in enumerate(buffers)]
    assert ring.turn([], [(rows, 0, 1) for rows, *_ in prepared]) == (8, ())
    # Twice as many as the queue holds, and with the reads' own completions more than the CQ holds.
    targets = [i % 8 for i in range(16)]
    taken, flat = ring.turn(targets, [])
    assert taken == 16
    pairs = _pairs(flat)
    if len(pairs) < 24:
        pairs += _drain(ring, 24 - len(pairs))
    assert sorted(pairs)[:8] == [(i, -errno.ECANCELED) for i in range(8)]
    answers = [res for user_data, res in pairs if user_data & CANCEL]
    assert len(answers) == 16
    assert answers.count(0) == 8
    assert set(answers) <= {0, -errno.ENOENT, -errno.EALREADY}
    assert ring._state.in_flight == 0


def test_an_overflown_completion_queue_loses_nothing(ring: UringDriver, pipe: tuple[int, int]) -> None:
    """IORING_FEAT_NODROP: the driver fetches what the kernel kept aside. The owner never lets it happen (C3)."""
    buffers = [bytearray(1) for _ in range(40)]
    prepared = [ring.prepare(i, [Request(Opcode.READ, pipe[0], buffer, -1)]) for i, buffer in enumerate(buffers)]
    for start in range(0, 40, 8):
        ring.turn([], [(rows, 0, 1) for rows, *_ in prepared[start : start + 8]])
    os.close(os.dup(pipe[1]))
    os.write(pipe[1], b"z" * 40)
    results = _drain(ring, 40)
    assert sorted(results) == [(i, 1) for i in range(40)]
    assert ring.overflows > 0
    assert ring._state.in_flight == 0


def test_the_ladder_of_setup_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag that the kernel does not know costs a rung, nothing else; the best ones that work are in force."""
    best = open_ring(8)
    best.close()
    monkeypatch.setitem(_ring.SETUP_FLAGS, "FROM_THE_FUTURE", 1 << 31)
    monkeypatch.setattr(_ring, "_LADDER", (("FROM_THE_FUTURE",), *_ring._LADDER))
    again = open_ring(8)
    assert again.features.setup_flags == best.features.setup_flags != ()
    again.close()
    for rung in _ring._LADDER[1:]:
        monkeypatch.setattr(_ring, "_LADDER", (rung,))
        driver = open_ring(8)
        assert set(driver.features.setup_flags) == set(rung)
        driver.close()


def test_a_ring_whose_features_are_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ring, "_FEATURES_NEEDED", 1 << 31)
    with pytest.raises(UringUnavailableError, match=r"ENOSYS.*use Linux 5\.6 or newer"):
        open_ring(8)


@pytest.mark.parametrize(
    ("code", "sysctl", "message"),
    [
        (errno.EPERM, "2", r"kernel\.io_uring_disabled is 2.*sysctl -w kernel\.io_uring_disabled=0"),
        (errno.EPERM, "0", "seccomp filter.*allow io_uring_setup, io_uring_enter and io_uring_register"),
        (errno.EACCES, None, "EACCES.*seccomp"),
        (errno.ENOSYS, "0", "no usable io_uring"),
        (errno.ENOMEM, "0", "RLIMIT_MEMLOCK"),
        (errno.EMFILE, "0", "RLIMIT_NOFILE"),
        (errno.EINVAL, "0", "EINVAL.*driver='threads'"),
    ],
)
def test_every_reason_has_its_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int, sysctl: str | None, message: str
) -> None:
    file = tmp_path / "io_uring_disabled"
    if sysctl is not None:
        file.write_text(sysctl + "\n")
    monkeypatch.setattr(_ring, "_SYSCTL", file)
    error = _ring._unavailable(code, "io_uring_setup")
    assert error.errno == code
    with pytest.raises(UringUnavailableError, match=message):
        raise error


@pytest.mark.parametrize("as_batch", [False, True])
def test_what_is_large_is_left_to_a_worker_if_it_is_of_a_disk(
    ring: UringDriver, pipe: tuple[int, int], tmp_path: Path, as_batch: bool
) -> None:
    """A cached transfer would be copied on the event loop's thread; a pipe's could hold a worker for ever."""

    def is_async(fd: int, size: int, opcode: Opcode = Opcode.READ) -> bool:
        buffers: list[Any] = [bytearray(size)] * (17 if as_batch else 1)
        if as_batch:
            memories = Memories(buffers, [size] * 17)
            rows, _, _ = ring.prepare(1 << 40, Batch(opcode, [fd] * 17, memories, [0] * 17))
            ring.retire(1 << 40)
        else:
            rows, _, _ = ring.prepare(1 << 40, [Request(opcode, fd, buffers[0], 0)])
        flags = {rows[i + 37] for i in range(0, len(rows), 40)}
        assert len(flags) == 1
        return flags == {16}

    with (tmp_path / "file").open("w+b") as file:
        assert is_async(file.fileno(), 257 << 10)
        assert not is_async(file.fileno(), 128 << 10)
    assert not is_async(pipe[0], 257 << 10)
    assert not is_async(1 << 20, 257 << 10)  # no such descriptor: the kernel shall say so


def test_new_bytes_of_a_batch_belong_to_nobody_else(ring: UringDriver) -> None:
    memories = ring.allocate_batch([2, 3, 4096, 4096])
    assert [type(memory) for memory in memories.objects] == [bytes] * 4
    assert [len(memory) for memory in memories.objects] == [2, 3, 4096, 4096]
    assert len({*map(id, memories.objects)}) == 4
    assert memories.addresses is not None
    for memory, (address,) in zip(memories.objects, struct.iter_unpack("Q", memories.addresses)):
        ctypes.memset(address, 0x61, len(memory))
        assert memory == b"a" * len(memory)


def test_a_batch_reads_into_nothing_that_is_not_to_be_changed(ring: UringDriver, pipe: tuple[int, int]) -> None:
    """The verbs have refused such buffers before; the driver does not rely on it."""
    objects: list[Any] = [bytearray(8), memoryview(b"constant")]
    batch = Batch(Opcode.READ, [pipe[0]] * 2, Memories(objects, [8, 8]), [0, 0])
    with pytest.raises(ValueError, match="a batch's buffers are to be writable and contiguous"):
        ring.prepare(0, batch)


def test_closing_gives_back_the_descriptor() -> None:
    before = len(os.listdir("/proc/self/fd"))
    driver = open_ring(64)
    driver.close()
    for _ in range(50):
        driver = open_ring(64)
        driver.close()
        driver.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert driver.enters > 0


def test_a_dead_ring_is_an_error_that_names_the_call(ring: UringDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    class Dead:
        def __getattr__(self, name: str) -> Any:
            return lambda *_: -errno.ENXIO

    monkeypatch.setattr(ring, "_lib", Dead())
    with pytest.raises(OSError, match="io_uring_enter failed"):
        ring.turn([], [])
    monkeypatch.undo()

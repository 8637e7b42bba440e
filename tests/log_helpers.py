"""What the tests of the append-only log share: an executor between the log and its manager, and its results."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import attrs

from anyio_uring import AppendLog, AsyncIoManager, read_append_log
from anyio_uring._requests import Opcode, Request, Requests

# What is asked, and what carries it out; what comes of it goes to the log.
Fault = Callable[[list[Request], Callable[[list[Request]], Any]], Any]


@attrs.define
class Commits:
    """
    Sees every write and sync of a log's commits, and can hold them or answer in the kernel's place.

    :ivar asked: the opcodes of each operation so far
    :ivar held: operations that wait at the gate
    """

    executor: Any
    asked: list[tuple[str, ...]] = attrs.Factory(list)
    faults: deque[Fault | None] = attrs.Factory(deque)
    gate: anyio.Event | None = None
    held: int = 0

    def check(self) -> None:
        self.executor.check()

    def statistics(self) -> Any:
        return self.executor.statistics()

    @property
    def is_usable(self) -> bool:
        return bool(self.executor.is_usable)

    async def perform(
        self, requests: Requests, *, has_passed: bool = False, is_chain: bool = False, is_certain: bool = False
    ) -> list[int]:
        asked: list[Any] = list(requests)
        if not asked or asked[0].opcode is Opcode.READ:
            read: list[int] = await self.executor.perform(
                requests, has_passed=has_passed, is_chain=is_chain, is_certain=is_certain
            )
            return read
        self.asked.append(tuple(request.opcode.name for request in asked))
        if self.gate is not None:
            self.held += 1
            await self.gate.wait()
            self.held -= 1

        async def carry_out(these: list[Request]) -> list[int]:
            for request in these[-1:]:
                request.is_linked = False
            results: list[int] = await self.executor.perform(
                these, has_passed=True, is_chain=len(these) > 1, is_certain=is_certain
            )
            return results

        fault = self.faults.popleft() if self.faults else None
        if fault is not None:
            results: list[int] = await fault(asked, carry_out)
            return results
        assert is_chain == (len(asked) > 1)
        return await carry_out(asked)

    def hold(self) -> anyio.Event:
        """Hold every operation from now on, until the returned event is set."""
        self.gate = anyio.Event()
        return self.gate


def watch(io: AsyncIoManager) -> Commits:
    """Put an executor between a manager and the commits of its logs."""
    io._task = commits = Commits(io._task)  # type: ignore[assignment]
    return commits


def writes(count: int) -> Fault:
    """Write no more than so many bytes; what is linked to that does not happen."""

    async def fault(asked: list[Request], carry_out: Callable[[list[Request]], Any]) -> list[int]:
        assert asked[0].opcode is Opcode.WRITE, "one buffer"
        part = attrs.evolve(asked[0], memory=memoryview(asked[0].memory)[:count])
        (res,) = await carry_out([part])
        return [res, *[-errno.ECANCELED] * (len(asked) - 1)]

    return fault


def fails_to_write(number: int) -> Fault:
    """Write nothing, and answer with an error."""

    async def fault(asked: list[Request], carry_out: Callable[[list[Request]], Any]) -> list[int]:
        return [-number, *[-errno.ECANCELED] * (len(asked) - 1)]

    return fault


def fails_to_sync(number: int) -> Fault:
    """Write, if that is asked, and answer the sync with an error."""

    async def fault(asked: list[Request], carry_out: Callable[[list[Request]], Any]) -> list[int]:
        assert asked[-1].opcode is Opcode.FSYNC
        return [*(await carry_out(asked[:-1]) if asked[1:] else []), -number]

    return fault


async def contents(path: Path) -> list[tuple[int, bytes]]:
    """Return what a log's file holds, which must end cleanly."""
    reader = read_append_log(path)
    found = [pair async for pair in reader]
    assert reader.torn_at is None, reader.torn_reason
    return found


class Appends:
    """Appends of many tasks, and what became of each."""

    def __init__(self, log: AppendLog) -> None:
        self.log = log
        self.offsets: dict[bytes, int] = {}
        self.errors: dict[bytes, OSError] = {}

    async def append(self, record: bytes) -> None:
        try:
            self.offsets[record] = await self.log.append(record)
        except OSError as exc:
            self.errors[record] = exc

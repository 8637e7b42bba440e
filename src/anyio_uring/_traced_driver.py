"""A driver that tells instruments what passes through it.

It stands between the owner and the real driver if, and only if, an instrument wants to hear of operations;
that is decided once, when the manager is opened, so that without one no operation pays for the question.
It changes no row and no completion.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from time import perf_counter_ns
from typing import Any

import attrs

from ._driver import CANCEL, MEMBER, NO_RESULT, Driver, Results, Rows
from ._instruments import Instrument, Instruments, OperationTrace
from ._options import DriverName
from ._requests import Memories, Requests
from ._stats import UringFeatures


@attrs.define(eq=False)
class _TracedRows:
    """An operation's rows, and what instruments are told of them."""

    user_data: int
    requests: Requests
    rows: Rows
    results: Results | None  # if the driver gathers them
    in_flight: list[int] = attrs.field(factory=list)  # members whose end was not told, if the driver gathers results


class TracedDriver:
    """Fulfils :class:`anyio_uring._driver.Driver` by means of another one."""

    __slots__ = (
        "_driver",
        "_gathered",
        "_instruments",
        "_read",
        "_traces",
        "completions_max",
        "fixed_files",
        "fixed_memory",
        "memory_type",
        "name",
    )

    def __init__(self, driver: Driver, instruments: Instruments) -> None:
        self._driver = driver
        self._instruments = instruments
        self._read = driver.read_now
        self.name: DriverName = driver.name
        self.memory_type: type[bytes | bytearray] = driver.memory_type
        self.completions_max: int = driver.completions_max
        self.fixed_memory: dict[int, tuple[int, memoryview]] = driver.fixed_memory
        self.fixed_files: dict[int, tuple[int, object]] = driver.fixed_files
        # {user data: what is in flight}
        self._traces: dict[int, OperationTrace] = {}
        # {user data of member 0: its operation}
        self._gathered: dict[int, _TracedRows] = {}

    @property
    def features(self) -> UringFeatures:
        return self._driver.features

    @property
    def enters(self) -> int:
        return self._driver.enters

    @property
    def overflows(self) -> int:
        return self._driver.overflows

    def is_forked(self) -> bool:
        return self._driver.is_forked()

    def is_hungry(self) -> bool:
        return self._driver.is_hungry()

    def fileno(self) -> int:
        return self._driver.fileno()

    def allocate_batch(self, lengths: Sequence[int]) -> Memories:
        return self._driver.allocate_batch(lengths)

    @property
    def read_now(self) -> Callable[[int, Any, int, int], int]:
        return self._read_now if self._instruments.listens(Instrument.inline_read) else self._read

    def _read_now(self, fd: int, memory: Any, length: int, offset: int) -> int:
        result = self._read(fd, memory, length, offset)
        self._instruments.tell(Instrument.inline_read, fd, offset, length, result)
        return result

    def expose(self, memory: Any) -> Any:
        return self._driver.expose(memory)

    def register_memory(self, memory: mmap.mmap) -> int:
        return self._driver.register_memory(memory)

    def unregister_memory(self, entry: int) -> None:
        self._driver.unregister_memory(entry)

    def make_file_table(self, slots: int) -> bool:
        return self._driver.make_file_table(slots)

    def update_file(self, slot: int, fd: int) -> bool:
        return self._driver.update_file(slot, fd)

    def prepare(self, user_data: int, requests: Requests) -> tuple[_TracedRows, object, Results | None]:
        rows, pins, results = self._driver.prepare(user_data, requests)
        traced = _TracedRows(user_data, requests, rows, results)
        if results is not None:
            self._gathered[user_data] = traced
        return traced, pins, results

    def retire(self, user_data: int) -> None:
        del self._gathered[user_data]
        self._driver.retire(user_data)

    def turn(
        self, targets: Sequence[int], segments: Sequence[tuple[_TracedRows, int, int]]
    ) -> tuple[int, Sequence[int]]:
        submitted_ns = perf_counter_ns()
        bare = [(traced.rows, first, last) for traced, first, last in segments]
        taken, completions = self._driver.turn(targets, bare)
        completed_ns = perf_counter_ns()
        for target in targets[:taken]:
            # None: of what was abandoned within a turn in which the driver did not take it.
            if (trace := self._traces.get(target)) is not None:
                self._instruments.tell(Instrument.cancellation_submitted, trace)
        if taken > len(targets):
            self._tell_submitted(segments, taken - len(targets), submitted_ns)
        self._tell_completed(completions, completed_ns)
        return taken, completions

    def close(self) -> None:
        self._driver.close()

    def _tell_submitted(self, segments: Sequence[tuple[_TracedRows, int, int]], count: int, at_ns: int) -> None:
        """Tell of the first so many members of what was handed to the driver."""
        left = count
        for traced, first, last in segments:
            for member in range(first, min(last, first + left)):
                left -= 1
                user_data = traced.user_data + member * MEMBER
                request = traced.requests[member]
                trace = OperationTrace(
                    user_data, request.opcode.name.lower(), request.fd, request.offset, request.size, at_ns
                )
                self._traces[user_data] = trace
                if traced.results is not None:
                    traced.in_flight.append(member)
                self._instruments.tell(Instrument.operation_submitted, trace)
        self._instruments.tell(Instrument.batch_submitted, count)

    def _tell_completed(self, completions: Sequence[int], at_ns: int) -> None:
        pairs = iter(completions)
        for user_data, res in zip(pairs, pairs):
            if user_data & CANCEL:
                continue
            traced = self._gathered.get(user_data)
            if traced is None:
                self._tell_result(user_data, res, at_ns)
                continue
            # Such a completion says how many members have got their results, not which.
            results, members, traced.in_flight = traced.results, traced.in_flight, []
            assert results is not None
            for member in members:
                if results[member] == NO_RESULT:
                    traced.in_flight.append(member)
                else:
                    self._tell_result(user_data + member * MEMBER, results[member], at_ns)

    def _tell_result(self, user_data: int, res: int, at_ns: int) -> None:
        self._instruments.tell(Instrument.operation_completed, self._traces.pop(user_data), res, at_ns)

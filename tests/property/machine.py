"""A program of random steps against a model: operations that begin, are cancelled, and end, many at once.

Each operation has places of a file for itself, so the model knows what they held before, and what they may hold
when the operation has ended: what its outcome says, and nothing else.
"""

# ruff: noqa: ARG002 - verbs have one signature
from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import attrs

from anyio_uring import AsyncIoManager, ChainError, RegisteredFile, open_uring
from anyio_uring.testing import FakeRing, Faults

PLACE = 64  # bytes
PLACES = 16
CANARY = 0xEE
CANCELLED = "cancelled"

FAULTS = [
    Faults(),
    Faults.unnoticed(0.2),
    Faults(short=0.4),
    Faults(eio=0.3, enospc=0.3),
    Faults(stuck=0.2, short=0.2, eintr=0.2),
]


@attrs.define(eq=False)
class Operation:
    """One call of a verb, from its task's first step until its outcome is known and has been judged."""

    verb: str
    places: list[int]
    judge: Callable[[Operation], None]
    buffers: list[bytearray] = attrs.field(factory=list)
    scope: anyio.CancelScope = attrs.field(factory=anyio.CancelScope)
    native: asyncio.Task[None] | None = None
    has_begun: bool = False
    is_cancelled: bool = False  # asked to be, before it had an outcome
    outcomes: list[Any] = attrs.field(factory=list)  # at most one
    went_on: bool = False  # past the checkpoint behind its outcome

    @property
    def outcome(self) -> Any:
        """What it returned, an error, or :data:`CANCELLED`."""
        (outcome,) = self.outcomes
        return outcome

    @property
    def is_cut_short(self) -> bool:
        """Whether there is no result: cancelled, refused, or failed."""
        return self.outcome == CANCELLED or isinstance(self.outcome, Exception)


def can_be_resized(buffer: bytearray) -> bool:
    try:
        buffer.append(0)
    except BufferError:
        return False
    buffer.pop()
    return True


@attrs.define(eq=False)
class Machine:
    """What the steps of a program work on."""

    io: AsyncIoManager
    ring: FakeRing | None
    tasks: Any
    fd: int
    path: Path
    pipe: tuple[int, int]
    depth: int
    model: bytearray = attrs.field(init=False)
    files: list[RegisteredFile] = attrs.field(factory=list)
    free: set[int] = attrs.field(factory=lambda: set(range(PLACES)))
    live: list[Operation] = attrs.field(factory=list)
    ended: list[Operation] = attrs.field(factory=list)
    closed: bool = False  # the manager is closing, or a registered file is
    has_short: bool = False  # faults that were in force at some time
    has_errors: bool = False
    fed: int = 0
    drunk: list[bytes] = attrs.field(factory=list)
    stamp: int = 0  # makes the data of each write its own

    def __attrs_post_init__(self) -> None:
        self.model = bytearray(os.pread(self.fd, PLACE * PLACES, 0))

    # --- steps --------------------------------------------------------------------------------------

    def start(self, verb: str, length: int, count: int, *, is_native: bool, on_file: bool) -> None:
        """Begin an operation, if there are places for it."""
        if self.closed or len(self.free) < count:
            return
        places = sorted(self.free)[:count]
        call, operation = getattr(self, f"_{verb}")(self._target(on_file=on_file), length, places)
        operation.verb = verb
        self.free -= set(operation.places)
        self.live.append(operation)
        if is_native and isinstance(asyncio_task(), asyncio.Task):
            operation.native = asyncio.ensure_future(self._run(operation, call))
        else:
            self.tasks.start_soon(self._run, operation, call)

    def cancel(self, index: int, how: str) -> None:
        """Cancel an operation that has no outcome yet."""
        if not self.live:
            return
        operation = self.live[index % len(self.live)]
        if operation.native is not None and not operation.has_begun:
            return  # it would never begin
        operation.is_cancelled = True
        if operation.native is not None:
            operation.native.cancel()
            if how == "twice":
                operation.native.cancel()
        elif how == "deadline":
            operation.scope.deadline = anyio.current_time()
        else:
            operation.scope.cancel()

    async def race(self, verb: str, length: int, count: int, turns: int, *, is_native: bool, on_file: bool) -> None:
        """Begin an operation and cancel it while it is on its way."""
        self.start(verb, length, count, is_native=is_native, on_file=on_file)
        await self.turns(turns)
        self.cancel(-1, "scope")

    def feed(self, count: int) -> None:
        """Write to the pipe."""
        self.fed += os.write(self.pipe[1], bytes((self.fed + i) % 251 for i in range(count)))

    def set_faults(self, index: int) -> None:
        if self.ring is not None:
            self.ring.faults = faults = FAULTS[index % len(FAULTS)]
            self.has_short |= faults.short > 0
            self.has_errors |= faults.eio > 0

    def close_file(self) -> None:
        """Close a registered file while others use it."""
        if self.files:
            self.tasks.start_soon(self.files.pop().aclose)

    async def take(self, steps: list[tuple[Any, ...]]) -> None:
        """Take all steps."""
        for name, *arguments, keywords in steps:
            step = getattr(self, name)(*arguments, **keywords)
            if step is not None:
                await step
            self.check()
        self.closed = True

    def unstick(self) -> None:
        """Have nothing go wrong any more, and go on with what is stuck."""
        if self.ring is not None:
            self.ring.faults = Faults()
            self.ring.release()

    def give_up(self) -> None:
        """Have nothing stand in the way of a failure."""
        self.unstick()
        for operation in self.live:
            if operation.native is not None:
                operation.native.cancel()

    async def turns(self, count: int) -> None:
        for _ in range(count):
            await anyio.lowlevel.checkpoint()

    async def finish(self) -> None:
        """Wait for everything but readers of the pipe."""
        self.unstick()
        while any(operation.verb != "drink" for operation in self.live):
            if self.io.statistics().waiting and self.fed == sum(map(len, self.drunk)):
                self.feed(1)  # readers of the pipe have all the room there is
            await anyio.lowlevel.checkpoint()

    def check(self) -> None:
        """Hold after every step."""
        statistics = self.io.statistics()
        assert 0 <= statistics.in_flight <= statistics.in_flight_max <= self.depth, "C3"
        for operation in self.live:
            # Where a sync cannot be linked to its write, memory is free while it is synced.
            if operation.has_begun and (operation.verb != "write_and_sync" or self.depth > 1):
                assert not any(map(can_be_resized, operation.buffers)), f"C2: {operation.verb} has lost a pin"

    # --- an operation -------------------------------------------------------------------------------

    async def _run(self, operation: Operation, call: Callable[[], Awaitable[Any]]) -> None:
        try:
            with operation.scope:
                try:
                    operation.has_begun = True
                    operation.outcomes.append(await call())
                except anyio.get_cancelled_exc_class():
                    operation.outcomes.append(CANCELLED)
                    raise
                except (OSError, anyio.ClosedResourceError, anyio.IncompleteRead, ChainError) as exc:
                    operation.outcomes.append(exc.with_traceback(None))
                finally:
                    self._end(operation)
                await anyio.lowlevel.checkpoint()
                await anyio.lowlevel.checkpoint()
                operation.went_on = True
        except asyncio.CancelledError:
            if operation.native is None:
                raise
        assert operation.went_on is not operation.is_cancelled, "C6, C7: a cancellation was lost, or came from nowhere"

    def _end(self, operation: Operation) -> None:
        self.live.remove(operation)
        self.ended.append(operation)
        self.free |= set(operation.places)
        outcome = operation.outcome
        assert outcome != CANCELLED or operation.is_cancelled, f"{operation.verb}: nobody cancelled it"
        if isinstance(outcome, anyio.ClosedResourceError):
            assert self.closed or len(self.files) < 2, f"{operation.verb}: nothing is closed"
        elif isinstance(outcome, (OSError, ChainError)):
            assert self.has_errors or isinstance(outcome, ChainError), f"{operation.verb}: {outcome!r}"
        operation.judge(operation)
        for buffer in operation.buffers:
            assert can_be_resized(buffer), f"C2: {operation.verb} has kept a pin"

    def _target(self, *, on_file: bool) -> Any:
        return self.files[-1] if on_file and self.files else self.fd

    def _old(self, place: int) -> bytes:
        return bytes(self.model[place * PLACE : (place + 1) * PLACE])

    def _judge_written(self, place: int, data: bytes | bytearray, count: int | None) -> None:
        """
        Compare a place with what was written to it, and have the model believe it.

        :param count: bytes that were written; ``None``: any number of them
        """
        start = place * PLACE
        now, old = os.pread(self.fd, PLACE, start), self._old(place)
        counts = range(len(data) + 1) if count is None else [count]
        assert any(now == data[:n] + old[n:] for n in counts), f"place {place}: {count} of {data!r} on {old!r}: {now!r}"
        self.model[start : start + PLACE] = now

    def _judge_read(self, place: int, length: int, data: bytes) -> None:
        assert data == self._old(place)[: len(data)], f"place {place}: {data!r}"
        assert len(data) == length or (self.has_short and 0 < len(data) < length)

    def _judge_filled(self, place: int, buffer: bytearray, count: int | None) -> None:
        old = self._old(place)
        counts = range(len(buffer) + 1) if count is None else [count]
        assert any(buffer == old[:n] + bytes([CANARY]) * (len(buffer) - n) for n in counts), f"place {place}: {buffer}"
        if count:
            self._judge_read(place, len(buffer), bytes(buffer[:count]))

    def _data(self, length: int) -> bytearray:
        self.stamp = self.stamp % 200 + 1
        return bytearray([self.stamp]) * length

    # --- verbs: what is called, and what its outcome means ---------------------------------------------

    def _write(self, fd: Any, length: int, places: list[int]) -> Any:
        return self._one_write(self.io.write, fd, length, places, in_parts=False)

    def _write_all(self, fd: Any, length: int, places: list[int]) -> Any:
        return self._one_write(self.io.write_all, fd, length, places, in_parts=True)

    def _write_and_sync(self, fd: Any, length: int, places: list[int]) -> Any:
        return self._one_write(self.io.write_and_sync, fd, length, places, in_parts=True)

    def _writev(self, fd: Any, length: int, places: list[int]) -> Any:
        return self._one_write(
            lambda fd, data, offset: self.io.writev(fd, [data], offset), fd, length, places, in_parts=False
        )

    def _one_write(self, verb: Any, fd: Any, length: int, places: list[int], *, in_parts: bool) -> Any:
        place, data = places[0], self._data(length)

        def judge(operation: Operation) -> None:
            if not operation.is_cut_short:
                count = length if in_parts else operation.outcome
                assert count == length or (self.has_short and 0 < count < length)
                self._judge_written(place, data, count)
            else:
                self._judge_written(place, data, None if in_parts else 0)

        return partial(verb, fd, data, place * PLACE), Operation("", [place], judge, [data])

    def _read(self, fd: Any, length: int, places: list[int]) -> Any:
        def judge(operation: Operation) -> None:
            if not operation.is_cut_short:
                self._judge_read(places[0], length, operation.outcome)

        return partial(self.io.read, fd, length, places[0] * PLACE), Operation("", places[:1], judge)

    def _read_exactly(self, fd: Any, length: int, places: list[int]) -> Any:
        def judge(operation: Operation) -> None:
            if not operation.is_cut_short:
                assert operation.outcome == self._old(places[0])[:length]

        return partial(self.io.read_exactly, fd, length, places[0] * PLACE), Operation("", places[:1], judge)

    def _readinto(self, fd: Any, length: int, places: list[int]) -> Any:
        buffer = bytearray([CANARY]) * length

        def judge(operation: Operation) -> None:
            self._judge_filled(places[0], buffer, 0 if operation.is_cut_short else operation.outcome)

        return partial(self.io.readinto, fd, buffer, places[0] * PLACE), Operation("", places[:1], judge, [buffer])

    def _read_batch(self, fd: Any, length: int, places: list[int]) -> Any:
        def judge(operation: Operation) -> None:
            for place, result in zip(places, [] if operation.is_cut_short else operation.outcome):
                if isinstance(result, OSError):
                    assert self.has_errors
                else:
                    self._judge_read(place, length, result)

        asked = [(fd, length, place * PLACE) for place in places]
        return partial(self.io.read_batch, asked, return_exceptions=True), Operation("", places, judge)

    def _readinto_batch(self, fd: Any, length: int, places: list[int]) -> Any:
        buffers = [bytearray([CANARY]) * length for _ in places]

        def judge(operation: Operation) -> None:
            for i, (place, buffer) in enumerate(zip(places, buffers)):
                result = None if operation.is_cut_short else operation.outcome[i]
                assert not isinstance(result, OSError) or self.has_errors
                self._judge_filled(place, buffer, 0 if isinstance(result, OSError) else result)

        asked = [(fd, buffer, place * PLACE) for place, buffer in zip(places, buffers)]
        return partial(self.io.readinto_batch, asked, return_exceptions=True), Operation("", places, judge, buffers)

    def _write_batch(self, fd: Any, length: int, places: list[int]) -> Any:
        datas = [self._data(length) for _ in places]

        def judge(operation: Operation) -> None:
            for i, (place, data) in enumerate(zip(places, datas)):
                result = None if operation.is_cut_short else operation.outcome[i]
                assert not isinstance(result, OSError) or self.has_errors
                self._judge_written(place, data, 0 if isinstance(result, OSError) else result)

        asked = [(fd, data, place * PLACE) for place, data in zip(places, datas)]
        return partial(self.io.write_batch, asked, return_exceptions=True), Operation("", places, judge, datas)

    def _chain(self, fd: Any, length: int, places: list[int]) -> Any:
        places = places[: self.depth]
        datas = [self._data(length) for _ in places]

        async def call() -> list[Any]:
            async with self.io.chain() as chain:
                for place, data in zip(places, datas):
                    chain.write(fd, data, place * PLACE)
            return chain.results

        def judge(operation: Operation) -> None:
            outcome = operation.outcome
            results = outcome.results if isinstance(outcome, ChainError) else outcome
            is_known = isinstance(results, list)
            written = 0  # whole members: behind the first that is not, nothing happened
            for i, (place, data) in enumerate(zip(places, datas)):
                before = bytes(self.model)
                count = results[i] if is_known else None
                self._judge_written(place, data, 0 if isinstance(count, OSError) or (is_known and not count) else count)
                is_written = before != self.model
                assert not is_written or written == i, "a chain went on behind a member that was not whole"
                written += os.pread(self.fd, length, place * PLACE) == data

        return call, Operation("", places, judge)

    def _fsync(self, fd: Any, length: int, places: list[int]) -> Any:
        return partial(self.io.fsync, fd), Operation("", [], lambda _: None)

    def _stat(self, fd: Any, length: int, places: list[int]) -> Any:
        def judge(operation: Operation) -> None:
            assert operation.is_cut_short or operation.outcome.st_size == PLACE * PLACES

        return partial(self.io.stat, self.path), Operation("", [], judge)

    def _open(self, fd: Any, length: int, places: list[int]) -> Any:
        """Open and close: what was opened is there to be closed, and closed once."""

        async def call() -> None:
            number = await self.io.open(self.path, os.O_RDONLY)
            identity = os.fstat(number)
            assert (identity.st_dev, identity.st_ino) == (os.fstat(self.fd).st_dev, os.fstat(self.fd).st_ino)
            try:
                await self.io.close(number)
            except anyio.ClosedResourceError:
                os.close(number)  # it was refused, and so it is ours still
                raise

        return call, Operation("", [], lambda _: None)

    def _drink(self, fd: Any, length: int, places: list[int]) -> Any:
        buffer = bytearray(length)

        def judge(operation: Operation) -> None:
            count = 0 if operation.is_cut_short else operation.outcome
            assert buffer[count:] == bytes(length - count)
            if count:
                self.drunk.append(bytes(buffer[:count]))

        return partial(self.io.readinto, self.pipe[0], buffer, -1), Operation("", [], judge, [buffer])

    def judge_pipe(self) -> None:
        """Every byte that went into the pipe came out once, and in order within each read."""
        self.feed(1)  # so that it is not empty
        self.drunk.append(os.read(self.pipe[0], 65536))
        for data in self.drunk:
            assert all((b - a) % 251 == 1 for a, b in itertools.pairwise(data))
        assert sorted(b"".join(self.drunk)) == sorted(i % 251 for i in range(self.fed))


def asyncio_task() -> object:
    """Return the current task of asyncio; None elsewhere."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


async def run_program(driver: Any, depth: int, steps: list[tuple[Any, ...]]) -> None:
    """Carry out the steps, end the manager in the midst of what they have begun, and judge all of it."""
    ring = driver if isinstance(driver, FakeRing) else None
    with tempfile.NamedTemporaryFile() as file:
        file.write(bytes(i % 255 for i in range(PLACE * PLACES)))
        file.flush()
        pipe = os.pipe()
        try:
            async with anyio.create_task_group() as tasks:
                async with open_uring(driver=driver, depth=depth) as io:
                    machine = Machine(io, ring, tasks, file.fileno(), Path(file.name), pipe, depth)
                    if depth % 2:
                        await machine.take(steps)  # the manager's end ends what is stuck
                    else:
                        async with io.register_files([file, file]) as machine.files:
                            try:
                                await machine.take(steps)
                                await machine.finish()  # the files' end waits for it
                            except BaseException:
                                machine.give_up()
                                raise
                machine.check()
                assert io.statistics().in_flight == 0, "C10"
            natives = [operation.native for operation in machine.ended + machine.live if operation.native is not None]
            await asyncio.gather(*natives) if natives else None
            assert machine.live == []
            for operation in machine.ended:
                assert len(operation.outcomes) == 1
            assert os.pread(file.fileno(), PLACE * PLACES, 0) == machine.model
            machine.judge_pipe()
            statistics = io.statistics()
            assert statistics.submissions == statistics.completions
        finally:
            os.close(pipe[0])
            os.close(pipe[1])


VERBS = [
    name[1:]
    for name in [
        "_write",
        "_write_all",
        "_write_and_sync",
        "_writev",
        "_read",
        "_read_exactly",
        "_readinto",
        "_read_batch",
        "_readinto_batch",
        "_write_batch",
        "_chain",
        "_fsync",
        "_stat",
        "_open",
        "_drink",
    ]
]
assert all(hasattr(Machine, f"_{verb}") for verb in VERBS)
__all__ = ("FAULTS", "VERBS", "run_program")

"""What several tests share: waiting for a state without sleeping, and a driver that tests control."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
import uvloop

from anyio_uring import AsyncIoManager, UringFeatures
from anyio_uring._completion_task import CompletionTask
from anyio_uring._driver import CANCEL, MEMBER
from anyio_uring._requests import Request, Requests
from anyio_uring._waiters import current_loop
from anyio_uring.testing import FakeRing
from anyio_uring.testing._fake_ring import SEED_VARIABLE

BACKENDS: list[Any] = [
    pytest.param(("asyncio", {"debug": True}), id="asyncio"),
    pytest.param(("asyncio", {"loop_factory": uvloop.new_event_loop}), id="uvloop"),
]
if sys.version_info >= (3, 12):

    def _eager_loop() -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        loop.set_task_factory(asyncio.eager_task_factory)
        return loop

    BACKENDS.append(pytest.param(("asyncio", {"loop_factory": _eager_loop}), id="eager"))

# For tests of asyncio's own cancellation.
asyncio_only = pytest.mark.parametrize("anyio_backend", BACKENDS.copy())
BACKENDS.append(pytest.param(("trio", {}), id="trio"))


@pytest.fixture(params=BACKENDS)
def every_loop(request: pytest.FixtureRequest) -> Any:
    """The event loops of tests in which they matter; others run on asyncio, in its debug mode, and on trio."""
    return request.param


# For tests of many thousands of operations: asyncio's debug mode takes a millisecond for each.
WITHOUT_DEBUG = ["asyncio", "trio"]


@pytest.fixture(params=["uring", "threads", "fake"])
def driver_or_fake(request: pytest.FixtureRequest) -> Any:
    """
    A driver: also a simulated kernel, of the test's own seed, without faults and with every order of events.

    A module that wants it says so: ``driver = driver_or_fake``.
    """
    if request.param != "fake":
        return request.param
    mark = request.node.get_closest_marker("not_of_a_fake")
    if mark is not None:
        pytest.skip(f"not of a fake ring: {mark.args[0]}")
    return FakeRing(None if SEED_VARIABLE in os.environ else zlib.crc32(request.node.nodeid.encode()))


def driver_name(driver: Any) -> str:
    """Return what a manager calls this driver."""
    return "fake" if isinstance(driver, FakeRing) else str(driver)


async def until(condition: Callable[[], bool]) -> None:
    """Give the loop its turn until the condition holds; the test's timeout is the limit."""
    while not condition():
        await anyio.lowlevel.checkpoint()


async def in_flight(io: AsyncIoManager, count: int) -> None:
    """Wait until exactly this many operations are with the driver."""
    await until(lambda: io.statistics().in_flight == count)


class ScriptedDriver:
    """A driver whose completions come when, and as, the test says. Fulfils ``anyio_uring._driver.Driver``."""

    name: Any = "uring"
    memory_type = bytearray
    read_now: Any = None

    def __init__(self, depth: int = 8) -> None:
        self.fixed_memory: dict[int, Any] = {}
        self.fixed_files: dict[int, Any] = {}
        self.features = UringFeatures(
            kernel="scripted", depth=depth, sq_entries=depth, cq_entries=2 * depth, setup_flags=(), opcodes=frozenset()
        )
        self.completions_max = 2 * depth
        self.enters = 0
        self.overflows = 0
        self.rows_max = 1000  # rows that one turn takes
        self.rows_left = 1_000_000  # rows that all turns take
        self.crash: BaseException | None = None
        self.is_closed = False
        # {user data: request} without a completion
        self.pending: dict[int, Request] = {}
        # {user data of the cancel request: user data of its target} without a completion
        self.cancels: dict[int, int] = {}
        self.taken: list[Request] = []  # every request ever taken, in order
        self.sizes: list[int] = []  # of them
        self._done: list[int] = []
        self._out, self._in = os.pipe()
        os.set_blocking(self._out, False)

    def is_forked(self) -> bool:
        return False

    def is_hungry(self) -> bool:
        return False

    def fileno(self) -> int:
        return self._out

    def allocate_batch(self, lengths: Sequence[int]) -> Any:
        raise NotImplementedError

    def expose(self, memory: Any) -> Any:
        return memory

    def register_memory(self, memory: Any) -> int:
        raise NotImplementedError

    def unregister_memory(self, entry: int) -> None:
        raise NotImplementedError

    def make_file_table(self, slots: int) -> bool:
        return slots < 0

    def update_file(self, slot: int, fd: int) -> bool:
        raise NotImplementedError

    def prepare(self, user_data: int, requests: Requests) -> tuple[Any, object, None]:
        return [(user_data + i * MEMBER, request, None) for i, request in enumerate(requests)], requests, None

    def retire(self, user_data: int) -> None:
        raise NotImplementedError

    def turn(self, targets: Sequence[int], segments: Sequence[tuple[Any, int, int]]) -> tuple[int, Sequence[int]]:
        self.enters += 1
        if self.crash is not None:
            raise self.crash
        rows: list[Any] = [(CANCEL | target, None, target) for target in targets]
        for of_operation, first, last in segments:
            rows += of_operation[first:last]
        taken = rows[: min(self.rows_max, self.rows_left)]
        self.rows_left -= len(taken)
        not_found: list[int] = []
        for user_data, request, target in taken:
            if request is None and target not in self.pending:
                not_found += user_data, -errno.ENOENT
            elif request is None:
                self.cancels[user_data] = target
            else:
                self.pending[user_data] = request
                self.taken.append(request)
                self.sizes.append(request.size)
        if self._done:
            os.read(self._out, 4096)
        done, self._done = self._done, []
        return len(taken), done + not_found

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            os.close(self._out)
            os.close(self._in)

    # --- what the test says ---------------------------------------------------------------------

    def complete(self, res: int, index: int = 0) -> None:
        """Complete the pending operation with this index."""
        user_data = list(self.pending)[index]
        del self.pending[user_data]
        self._push(user_data, res)

    def complete_cancel(self, res: int) -> int:
        """Complete the oldest cancel request; return the user data of its target."""
        user_data = next(iter(self.cancels))
        target = self.cancels.pop(user_data)
        self._push(user_data, res)
        return target

    def _push(self, user_data: int, res: int) -> None:
        self._done += user_data, res
        os.write(self._in, b"x")


class Refusing:
    """The C library of a ring's driver, but for one function, which answers with an error."""

    def __init__(self, lib: Any, function: str, code: int) -> None:
        self._lib = lib
        self._function = function
        self._code = code

    def __getattr__(self, name: str) -> Any:
        return (lambda *_: -self._code) if name == self._function else getattr(self._lib, name)


@asynccontextmanager
async def scripted(depth: int = 8) -> AsyncIterator[tuple[ScriptedDriver, CompletionTask]]:
    """An owner task on a scripted driver; on leaving, cancel requests succeed."""
    driver = ScriptedDriver(depth)
    task = CompletionTask(driver, current_loop())

    async def cancel_everything() -> None:
        while True:
            await until(lambda: bool(driver.cancels))
            target = driver.complete_cancel(0)
            if target in driver.pending:
                driver.complete(-125, list(driver.pending).index(target))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(task.run)
        try:
            yield driver, task
        finally:
            async with anyio.create_task_group() as closing:
                closing.start_soon(cancel_everything)
                with anyio.CancelScope(shield=True):
                    try:
                        await task.aclose()
                    except anyio.BrokenResourceError:
                        driver.close()
                closing.cancel_scope.cancel()


@contextmanager
def file_size_limit(length: int) -> Iterator[None]:
    """
    Let no file grow beyond a length: the kernel then writes a part, and answers EFBIG behind it.

    For a part of a test, and not as a fixture: the line that tells its result may go to a longer file.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (length, before[1]))  # Python ignores SIGXFSZ
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def shown_on_a_terminal(command: Sequence[Any], cwd: Path | None = None, **variables: str) -> tuple[int, str]:
    """Run a command on a terminal that has colours; return its exit status, and what it has shown."""
    ours, theirs = open_terminal()
    environment = {**os.environ, "TERM": "xterm-256color", **variables}
    environment.pop("NO_COLOR", None)
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, cwd=cwd, env=environment) as process:
        os.close(theirs)
        shown = b""
        try:
            while more := os.read(ours, 65536):
                shown += more
        except OSError as exc:
            if exc.errno != errno.EIO:  # which is how a terminal ends
                raise
        os.close(ours)
        return process.wait(timeout=30), shown.decode()


def open_terminal() -> tuple[int, int]:
    """Open a pseudo-terminal, master first; a system without any says so."""
    try:
        return os.openpty()
    except OSError as exc:
        pytest.skip(f"no pseudo-terminal is to be had here (/dev/pts): {exc}")

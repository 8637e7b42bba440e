"""Ends that nobody has planned: signals, the interpreter's shutdown, loops that are closed, collected objects.

Each in a process of its own, under a time limit: it does not crash, and it does not hang.  ``--soak`` repeats them.
"""

from __future__ import annotations

import random
import sys
from typing import Any

import pytest

from .programs import run

BACKENDS = pytest.mark.parametrize("backend", ["asyncio", "trio"])

LOAD = """
import anyio, gc, os, random, signal, sys, tempfile, threading
from anyio_uring import open_uring

driver, backend, seed, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
moments = random.Random(seed)
DATA = bytes(range(256)) * 256

async def load(started=lambda: None, pipe=os.pipe()):
    '''Reads, writes, batches, and reads that block: until somebody ends it.'''
    with tempfile.TemporaryFile() as file:
        file.write(DATA)
        file.flush()
        async def read():
            while True:
                assert await io.read(file, 4096, 0) == DATA[:4096]
        async def batch():
            while True:
                assert await io.read_batch([(file, 256, 256 * i) for i in range(16)]) == [DATA[:256]] * 16
        async def write():
            while True:
                assert await io.write_and_sync(file, DATA[:512], 512) == 512
        async with open_uring(driver=driver, depth=16, nowait=False) as io, anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(io.read, pipe[0], 1, -1)
            for job in (read, read, batch, write):
                tasks.start_soon(job)
            started()
            await anyio.sleep_forever()

def only(exc, kind):
    '''Of an exception or of a group of groups: is it this kind alone?'''
    return all(only(one, kind) for one in exc.exceptions) if hasattr(exc, "exceptions") else isinstance(exc, kind)
"""


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    return random.SystemRandom().randrange(1 << 30)


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> int:
    return 150 if request.config.getoption("--soak") else 12


def run_load(code: str, *arguments: object) -> None:
    """Run a program of the load; its seed is among the arguments that a failure shows."""
    assert run(LOAD + code, *arguments).endswith("good\n"), arguments


@BACKENDS
def test_keyboard_interrupts_at_random(driver: Any, backend: str, seed: int, rounds: int) -> None:
    """At any moment of an open manager, and of its end; again and again in one process, which stays whole."""
    if backend == "asyncio" and sys.version_info < (3, 11):
        pytest.skip("before Python 3.11 asyncio lets the signal strike anywhere, and nobody can help it")
    run_load(
        """
def strike():
    signal.setitimer(signal.ITIMER_REAL, moments.uniform(1e-5, 0.02))

signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
descriptors = None
for number in range(rounds):
    try:
        anyio.run(load, strike, backend=backend)
        raise AssertionError("nothing has ended it")
    except BaseException as exc:
        assert only(exc, KeyboardInterrupt), f"round {number}: {exc!r}"
    gc.collect()
    if number == 1:
        descriptors = len(os.listdir("/proc/self/fd"))
assert len(os.listdir("/proc/self/fd")) == descriptors, "a descriptor was left open"
assert threading.active_count() <= 2, threading.enumerate()
print("good")
""",
        *(driver, backend, seed, rounds),
    )


@BACKENDS
def test_the_interpreter_ends_while_another_thread_works(driver: Any, backend: str, seed: int) -> None:
    """A daemon thread's loop, manager and operations are stopped wherever they are."""
    run_load(
        """
import time
started = threading.Event()
threading.Thread(target=anyio.run, args=(load, started.set), kwargs={"backend": backend}, daemon=True).start()
started.wait()
time.sleep(moments.uniform(0, 0.05))  # a moment of it, whichever
print("good")
""",
        *(driver, backend, seed, 1),
    )


@BACKENDS
def test_exit_from_within(driver: Any, backend: str, seed: int) -> None:
    """sys.exit() in the middle of the block."""
    run_load(
        """
async def main():
    async with anyio.create_task_group() as tasks:
        ready = anyio.Event()
        tasks.start_soon(load, ready.set)
        await ready.wait()
        for _ in range(moments.randrange(50)):
            await anyio.lowlevel.checkpoint()
        raise LookupError
try:
    anyio.run(main, backend=backend)
except BaseException as exc:
    assert only(exc, LookupError), exc
    print("good", flush=True)
    sys.exit()
""",
        *(driver, backend, seed, 1),
    )


@BACKENDS
def test_collections_at_every_moment(driver: Any, backend: str, seed: int) -> None:
    """The collector runs after every few allocations, while everything is in flight."""
    run_load(
        """
async def main():
    with anyio.move_on_after(0.5):
        await load()
gc.set_threshold(1, 1, 1)
anyio.run(main, backend=backend)
print("good")
""",
        *(driver, backend, seed, 1),
    )


def test_a_loop_that_is_closed_under_its_load(driver: Any, seed: int, rounds: int) -> None:
    """A loop of asyncio is stopped and closed, tasks pending: said aloud, memory kept, and the process goes on."""
    run_load(
        """
import asyncio, warnings
warnings.simplefilter("ignore")
pipes = [os.pipe() for _ in range(rounds)]
for pipe in pipes:
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)
    loop.create_task(load(lambda: loop.call_later(moments.uniform(0, 0.01), loop.stop), pipe))
    loop.run_forever()
    loop.close()
    del loop
    gc.collect()
for pipe in pipes:
    os.write(pipe[1], b"late" * 100)  # the abandoned reads complete now
junk = [bytes([i % 256]) * 100 for i in range(10_000)]
assert all(part == part[:1] * 100 for part in junk)

async def main():
    async with open_uring(driver=driver) as io, await anyio.open_file(sys.executable, "rb") as file:
        assert await io.read(file.wrapped, 4, 0) == b"\\x7fELF"
asyncio.run(main())
print("good", flush=True)
sys.stderr.close()  # what was abandoned is destroyed at the end, and asyncio says so at length
""",
        *(driver, "asyncio", seed, rounds),
    )

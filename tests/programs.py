"""Programs that tests start, because what they do cannot be undone in a process, or could end it; and their job."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio

from anyio_uring import AsyncIoManager, open_uring

ROOT = Path(__file__).parent.parent
SECONDS_MAX = 50


def run(code: str, *arguments: object) -> str:
    """
    Run a program in a process of its own; it must end well, and in time.

    It can import the modules of these tests.

    :param arguments: its ``sys.argv[1:]``
    :return: what it has printed
    """
    # A shell starts its background jobs with SIGINT ignored, and their children inherit that.
    start = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code = start + f"sys.path.insert(0, {str(ROOT)!r})\n" + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 0, f"status {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


async def work(io: AsyncIoManager, file: Any) -> None:
    """Use a manager as programs do, and look at every byte."""
    data = os.urandom(100_000)
    assert await io.write_and_sync(file, data[:4096], 0) == 4096
    await io.write_all(file, data[4096:], 4096)
    assert os.pread(file.fileno(), len(data) + 1, 0) == data
    assert await io.read_exactly(file, len(data), 0) == data
    parts = [data[i : i + 1000] for i in range(0, len(data), 1000)]
    assert await io.write_batch([(file, part, 1000 * i) for i, part in enumerate(reversed(parts))]) == [1000] * 100
    assert await io.read_batch([(file, 1000, 1000 * i) for i in range(100)]) == parts[::-1]
    await io.fdatasync(file)
    buffer = bytearray(4096)
    assert await io.readinto(file, buffer, 500) == 4096
    assert buffer == os.pread(file.fileno(), 4096, 500)


async def blocked_read(io: AsyncIoManager, pipe: tuple[int, int]) -> None:
    """Wait for a pipe in vain, cancelled; then not in vain."""
    assert await _beside_a_read(io, pipe[0], anyio.lowlevel.checkpoint, cancel=True) is None

    async def write() -> None:
        os.write(pipe[1], b"late")

    assert await _beside_a_read(io, pipe[0], write, cancel=False) == b"late"


async def _beside_a_read(
    io: AsyncIoManager, fd: int, action: Callable[[], Awaitable[None]], *, cancel: bool
) -> bytes | None:
    got: bytes | None = None

    async def read() -> None:
        nonlocal got
        got = await io.read(fd, 4, -1)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        while io.statistics().in_flight < 1:
            await anyio.lowlevel.checkpoint()
        await action()
        if cancel:
            tasks.cancel_scope.cancel()
    return got


async def use(driver: Any) -> None:
    """Do the job with a manager of one's own."""
    with tempfile.TemporaryFile() as file:
        async with open_uring(driver=driver) as io:
            assert io.driver == driver, io.fallback_reason
            await work(io, file)
            await blocked_read(io, os.pipe())


def use_in_child(driver: Any, backend: str, answers: Any) -> None:
    """Do it in a process of ``multiprocessing``, and say so."""
    anyio.run(use, driver, backend=backend)
    answers.send(os.getpid())

"""What a bug of a driver's comes to: an error for everyone who waits, and never a wait without an end (C11).

And what a ring, or a system, is found to lack before anybody relies on it.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from anyio_uring import AsyncIoManager, RwFlags, UringUnavailableError, _fallback, _ring, open_file, open_uring
from anyio_uring._ring import UringDriver, open_ring

from .helpers import Refusing
from .programs import blocked_read, run

BACKENDS = pytest.mark.parametrize("backend", ["asyncio", "trio"])

CRASH = """
import os, sys, threading, anyio
from anyio_uring import _fallback, open_uring
backend, where = sys.argv[1:]
def bug(*_):
    raise RuntimeError("a bug")
if where == "worker":
    _fallback._execute = bug
elif where == "books":
    _fallback.ThreadDriver._put_away = bug
else:
    _fallback.ThreadDriver._make_poll = bug
async def main():
    read_end, write_end = os.pipe()
    try:
        async with open_uring(driver="threads") as io:
            for verb in (io.read(read_end, 1, -1), io.write(write_end, b"x", -1)):
                try:
                    await verb
                except anyio.BrokenResourceError as exc:
                    print(repr(exc.__cause__))
    except anyio.BrokenResourceError as exc:
        print("at the end", repr(exc.__cause__))
anyio.run(main, backend=backend)
sys.stdout.flush()
os._exit(0)  # what crashed keeps everything, threads too
"""


@BACKENDS
@pytest.mark.parametrize("where", ["worker", "books", "poller"])
def test_a_crash_in_a_thread_reaches_who_waits_and_who_comes_later(backend: str, where: str) -> None:
    said = run(CRASH, backend, where).splitlines()
    assert said == ["RuntimeError('a bug')"] * 2 + ["at the end RuntimeError('a bug')"]


REGISTERED = """
import os, sys, anyio
from anyio_uring import open_uring
from anyio_uring._fallback import ThreadDriver
from anyio_uring._ring import UringDriver
backend, driver = sys.argv[1:]
turn = (UringDriver if driver == "uring" else ThreadDriver).turn
def bug(*_):
    raise RuntimeError("a bug")
async def main():
    read_end, write_end = os.pipe()
    numbers = []
    try:
        async with open_uring(driver=driver) as io, io.register_files([read_end]) as files:
            numbers.append(files[0].fileno())
            async with anyio.create_task_group() as tasks:
                async def read():
                    try:
                        await io.read(files[0], 1, -1)
                    except anyio.BrokenResourceError:
                        print("broken")
                tasks.start_soon(read)
                while io.statistics().in_flight == 0:
                    await anyio.lowlevel.checkpoint()
                type(io._driver).turn = bug
                tasks.start_soon(read)
    except anyio.BrokenResourceError:
        os.fstat(numbers[0])
        print("still open")
anyio.run(main, backend=backend)
sys.stdout.flush()
os._exit(0)
"""


@BACKENDS
@pytest.mark.parametrize("driver", [pytest.param("uring", marks=pytest.mark.ring), "threads"])
def test_behind_a_crash_registered_files_stay_open(backend: str, driver: str) -> None:
    """An operation may be in flight whose completion nobody will see: its descriptor must not come to mean another file."""
    assert run(REGISTERED, backend, driver).split("\n") == ["broken", "broken", "still open", ""]


# The end of programs that are interrupted somewhere in their main().
RUN_UNTIL_INTERRUPTED = """
def leaves(exc):
    return [leaf for one in exc.exceptions for leaf in leaves(one)] if hasattr(exc, "exceptions") else [exc]
try:
    anyio.run(main, backend=backend)
except BaseException as exc:
    print("at the end", "KeyboardInterrupt" in [type(leaf).__name__ for leaf in leaves(exc)])
"""


STRUCK = (
    """
import os, sys, anyio
from anyio_uring import open_uring
from anyio_uring._fallback import ThreadDriver
from anyio_uring._ring import UringDriver
backend, driver = sys.argv[1:]
Driver = UringDriver if driver == "uring" else ThreadDriver
turn = Driver.turn
def strike(*_):
    Driver.turn = turn
    raise KeyboardInterrupt
async def main():
    read_end, write_end = os.pipe()
    async with open_uring(driver=driver) as io, anyio.create_task_group() as tasks:
        async def read():
            try:
                await io.read(read_end, 1, -1)
            except anyio.BrokenResourceError as exc:
                print("reader", repr(exc.__cause__))
                raise
        tasks.start_soon(read)
        while io.statistics().in_flight == 0:
            await anyio.lowlevel.checkpoint()
        Driver.turn = strike
        os.write(write_end, b"x")
        await anyio.sleep_forever()
"""
    + RUN_UNTIL_INTERRUPTED
    + """sys.stdout.flush()
os._exit(0)
"""
)


@BACKENDS
@pytest.mark.parametrize("driver", [pytest.param("uring", marks=pytest.mark.ring), "threads"])
def test_an_interrupt_of_the_owner_is_heard_by_who_waits_and_ends_the_program(backend: str, driver: str) -> None:
    """It is no error like others: it goes on to the event loop, besides."""
    assert run(STRUCK, backend, driver).splitlines() == ["reader KeyboardInterrupt()", "at the end True"]


INTERRUPTED = (
    """
import os, sys, tempfile, anyio
from anyio_uring import FsyncMode, open_append_log, open_uring
from tests.helpers import until
from tests.log_helpers import watch
backend, driver, where = sys.argv[1:]
async def interrupted(*_):
    raise KeyboardInterrupt
async def tell(name, call, *arguments):
    try:
        await call(*arguments)
    except BaseException as exc:
        print(name, type(exc).__name__)
        raise
async def main():
    with tempfile.TemporaryDirectory() as path:
        async with open_uring(driver=driver) as io, anyio.create_task_group() as outer:
            async with open_append_log(path + "/log", io=io, fsync=FsyncMode.NEVER) as log, anyio.create_task_group() as inner:
                await log.append(b"0")
                commits = watch(io)
                gate = commits.hold()
                commits.faults.append(interrupted)
                tasks = outer if where == "end" else inner
                first = (log.rotate, path + "/next") if where == "rotate" else (log.append, b"1")
                tasks.start_soon(tell, "first", *first)
                await until(lambda: commits.held == 1)
                tasks.start_soon(tell, "second", log.append, b"2")
                await until(lambda: log.statistics().waiting == 2)
                gate.set()
                if where != "end":  # of the block, while both are under way
                    await anyio.sleep_forever()
"""
    + RUN_UNTIL_INTERRUPTED
    + """print("open", [name for fd in os.listdir("/proc/self/fd") if "/log" in (name := os.path.realpath("/proc/self/fd/" + fd))])
"""
)


@BACKENDS
@pytest.mark.parametrize("where", ["append", "rotate", "end"])
def test_where_an_interrupt_strikes_a_log_everyone_hears_of_it(driver: str, backend: str, where: str) -> None:
    """Who was under way and who was next, each by an error of its own; and the file is closed."""
    first = "OSError" if where == "rotate" else "DurabilityLostError"
    said = run(INTERRUPTED, backend, driver, where).splitlines()
    assert sorted(said) == ["at the end True", f"first {first}", "open []", "second OSError"]


@pytest.mark.anyio
async def test_where_no_thread_can_wait_for_a_descriptor(
    monkeypatch: pytest.MonkeyPatch, pipe: tuple[int, int]
) -> None:
    """An error that says so; what needs no waiting goes on."""

    def refuse(_: Any) -> None:
        raise RuntimeError("can't start new thread")

    async with open_uring(driver="threads") as io:
        await io.write(pipe[1], b"x", -1)  # its worker is there
        monkeypatch.setattr("threading.Thread.start", refuse)
        assert await io.read(pipe[0], 1, -1) == b"x"
        with pytest.raises(OSError, match="no thread could be started"):
            await io.read(pipe[0], 1, -1)
        monkeypatch.undo()
        await io.write(pipe[1], b"y", -1)
        assert await io.read(pipe[0], 1, -1) == b"y"


# --- systems that lack something ------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("nowait", [True])
async def test_without_preadv2(
    monkeypatch: pytest.MonkeyPatch, path: Path, pipe: tuple[int, int], nowait: bool
) -> None:
    """As on macOS: nothing is answered from the page cache, a flag is an error of its own, and pipes go on."""

    def preadv(fd: int, buffers: Any, offset: int, flags: int = 0) -> int:
        if flags:
            raise NotImplementedError
        return real(fd, buffers, offset)

    real = os.preadv
    path.write_bytes(b"content")
    monkeypatch.setattr("anyio_uring._fallback.os.preadv", preadv)
    monkeypatch.setattr(_fallback, "_NOWAIT", None)
    async with open_uring(driver="threads", nowait=nowait) as io:
        with path.open("rb") as file:
            assert await io.read(file, 7, 0) == b"content"
            assert await io.read_batch([(file, 3, 0), (file, 4, 3)]) == [b"con", b"tent"]
            with pytest.raises(OSError) as caught:
                await io.read(file, 7, 0, flags=RwFlags.HIPRI)
            assert caught.value.errno == errno.EOPNOTSUPP
        assert await io.write(pipe[1], b"into the pipe", -1) == 13
        assert await io.read(pipe[0], 20, -1) == b"into the pipe"
        await blocked_read(io, pipe)
        assert os.get_blocking(pipe[0]) and os.get_blocking(pipe[1])
    assert _fallback._read_cached(0, bytearray(1), 1, 0) == -errno.EOPNOTSUPP


@pytest.mark.anyio
async def test_without_preadv(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    path.touch()
    monkeypatch.delattr("os.preadv")
    opening = open_uring(driver="threads")
    with pytest.raises(NotImplementedError, match=r"needs os\.preadv\(\)"):
        await opening.__aenter__()
    with pytest.raises(NotImplementedError, match=r"needs os\.preadv\(\)"):
        await open_file(path, "rb")


# --- a ring is believed when it has worked --------------------------------------------------------------


@pytest.mark.ring
@pytest.mark.parametrize(
    ("completions", "complaint"),
    [
        ((), "failed with ETIME"),
        ((0, -errno.EACCES), "EACCES"),
        ((0, len(b"anyio_uring")), "failed with EIO"),
    ],
)
def test_a_ring_that_does_not_read_what_was_written(
    monkeypatch: pytest.MonkeyPatch, completions: tuple[int, ...], complaint: str
) -> None:
    monkeypatch.setattr(UringDriver, "turn", lambda *_: (1, completions))
    monkeypatch.setattr(_ring, "_PROBE_MS_MAX", 0)
    with pytest.raises(UringUnavailableError, match=complaint):
        open_ring(8)


@pytest.mark.ring
@pytest.mark.anyio
@pytest.mark.parametrize("code", [errno.ENOMEM, errno.EPERM])
async def test_a_buffer_that_the_kernel_does_not_register_is_plain(
    monkeypatch: pytest.MonkeyPatch, path: Path, code: int
) -> None:
    path.write_bytes(b"content")
    async with open_uring(driver="uring") as io:
        assert isinstance(io._driver, UringDriver)
        monkeypatch.setattr(io._driver, "_lib", Refusing(io._driver._lib, "au_set_buffer", code))
        opening = io.buffer_pool(count=1, size=4096)
        with pytest.warns(RuntimeWarning, match=f"plain memory: .* refused with {errno.errorcode[code]}"):
            pool = await opening.__aenter__()
        assert not pool.is_registered
        with path.open("rb") as file, await pool.acquire() as buffer:
            assert await io.readinto(file, buffer, 0) == 7
            assert bytes(buffer.view[:7]) == b"content"
        await opening.__aexit__(None, None, None)


@pytest.mark.anyio
async def test_the_positions_of_many_direct_descriptors_are_not_remembered_for_ever(
    io: AsyncIoManager, monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    """A descriptor that has been forgotten is asked once more."""
    path.write_bytes(os.urandom(8192))
    monkeypatch.setattr("anyio_uring._performer._DIRECT_FDS_MAX", 1)
    for _ in range(3):
        fds = [os.open(path, os.O_RDONLY | os.O_DIRECT) for _ in range(2)]
        for fd in fds:
            assert await io.read(fd, 4096, 4096) == path.read_bytes()[4096:]
        assert len(io._performer.direct_fds) <= 1
        for fd in fds:
            os.close(fd)

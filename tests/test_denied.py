"""Environments that deny something: what a user sees there, and that the data is right all the same.

Each program takes something from itself (:mod:`tests.denied`), and fails if it has it still.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .programs import run

pytestmark = pytest.mark.parametrize("backend", ["asyncio", "trio"])

# Once a program has no rights it may not even read the standard library: what is imported late is imported here.
IMPORTS = """
import encodings.ascii
import errno, os, sys, tempfile, warnings
import anyio
from anyio_uring import BatchError, UringUnavailableError, open_uring
from tests import denied, programs
"""


def run_main(backend: str, main: str, *arguments: object) -> str:
    """Run a program's coroutine ``main()``."""
    return run(f"{IMPORTS}\n{main}\nanyio.run(main, backend={backend!r})\n", *arguments)


# --- io_uring -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        *(("io_uring_setup", answer) for answer in ("EPERM", "ENOSYS", "EACCES", "ENOMEM")),
        *(("io_uring_enter", answer) for answer in ("EPERM", "ENOSYS")),
    ],
)
def test_a_seccomp_filter(name: str, answer: str, backend: str) -> None:
    """Also one that allows the set-up and forbids the use: the first read finds out."""
    reason = run_main(
        backend,
        """
async def main():
    code = getattr(errno, sys.argv[2])
    denied.deny(sys.argv[1], code)
    async with open_uring() as io:
        assert io.driver == "threads", io.driver
        with tempfile.TemporaryFile() as file:
            await programs.work(io, file)
        await programs.blocked_read(io, os.pipe())
        print(io.fallback_reason)
    try:
        async with open_uring(driver="uring"):
            raise AssertionError("a ring, though it is denied")
    except UringUnavailableError as exc:
        assert exc.errno == code
        assert exc.strerror == io.fallback_reason
""",
        name,
        answer,
    )
    assert reason.startswith({"io_uring_enter": "a first read through the ring"}.get(name, name))
    assert answer in reason
    remedies = {"ENOSYS": "use Linux 5.6 or newer", "ENOMEM": "RLIMIT_MEMLOCK"}
    assert remedies.get(answer, "seccomp filter") in reason


def test_the_sysctl(backend: str) -> None:
    """Where it is 1, only privileged users may; ``nox -s disabled`` sets it, runs this, and sets it back."""
    sysctl = Path("/proc/sys/kernel/io_uring_disabled")
    value = sysctl.read_text().strip() if sysctl.exists() else "not known"
    if value not in {"1", "2"}:
        pytest.skip(f"kernel.io_uring_disabled is {value} here: nox -s disabled tests 1 and 2")
    reason = run_main(
        backend,
        """
async def main():
    with tempfile.TemporaryFile() as file:
        async with open_uring(driver="threads"):
            pass  # all modules are imported
        denied.drop_privileges()
        async with open_uring() as io:
            assert io.driver == "threads", io.driver
            await programs.work(io, file)
            print(io.fallback_reason)
        try:
            async with open_uring(driver="uring"):
                raise AssertionError("a ring, though it is denied")
        except UringUnavailableError as exc:
            assert exc.errno == errno.EPERM
""",
    )
    assert reason.startswith(f"the sysctl kernel.io_uring_disabled is {value}")
    assert "sysctl -w kernel.io_uring_disabled=0" in reason


# --- limits -------------------------------------------------------------------------------------


@pytest.mark.ring
def test_little_locked_memory(backend: str) -> None:
    """64 KiB, the default of many systems: a smaller ring, and pools of plain memory, and both say so."""
    run_main(
        backend,
        """
async def main():
    with tempfile.TemporaryFile() as file:
        async with open_uring():
            pass  # all modules are imported, also the extension
        denied.limit_locked_memory(65536)
        async with open_uring(depth=4096) as io:
            assert io.driver == "uring", io.fallback_reason
            assert 8 <= io.features.depth < 4096, io.features
            await programs.work(io, file)
            await programs.blocked_read(io, os.pipe())
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                async with io.buffer_pool(count=32, size=4096) as pool:
                    with await pool.acquire() as buffer:
                        assert await io.readinto(file, buffer, 500) == 4096
                        assert buffer.view == os.pread(file.fileno(), 4096, 500)
            assert "RLIMIT_MEMLOCK" in io.features.fixed_buffers, io.features
            assert "RLIMIT_MEMLOCK" in str(caught[0].message)
""",
    )


@pytest.mark.ring
def test_hardly_any_locked_memory(backend: str) -> None:
    reason = run_main(
        backend,
        """
async def main():
    with tempfile.TemporaryFile() as file:
        async with open_uring():
            pass
        denied.limit_locked_memory(4096)
        async with open_uring() as io:
            assert io.driver == "threads", io.features
            await programs.work(io, file)
            print(io.fallback_reason)
""",
    )
    assert "ENOMEM" in reason
    assert "raise RLIMIT_MEMLOCK" in reason


def test_no_descriptor_is_free(driver: Any, backend: str) -> None:
    """An open manager goes on; another opens as a whole or not at all, and says why."""
    run_main(
        backend,
        """
async def main():
    pipe = os.pipe()
    with tempfile.TemporaryFile() as file:
        async with open_uring(driver=sys.argv[1]) as io:
            taken = denied.use_up_descriptors()
            assert denied.is_out_of_descriptors()
            await programs.work(io, file)
            await programs.blocked_read(io, pipe)
        opened = []
        for left in range(5):
            # What the first manager has closed meanwhile is taken, too.
            for fd in taken:
                os.close(fd)
            taken = denied.use_up_descriptors(left)
            try:
                async with open_uring(driver=sys.argv[1]) as io:
                    await programs.work(io, file)
                    await programs.blocked_read(io, pipe)
                opened.append(left)
            except OSError as exc:
                assert exc.errno == errno.EMFILE
                assert sys.argv[1] == "threads" or "raise RLIMIT_NOFILE" in str(exc), exc
            free = [os.open("/dev/null", os.O_RDONLY) for _ in range(left)]
            assert denied.is_out_of_descriptors()
            taken += free
        assert opened in ([3, 4], [4]), opened
""",
        driver,
    )


def test_no_thread_can_be_started(driver: Any, backend: str) -> None:
    """What needs none goes on; what needs one fails with the reason, and the manager stays usable."""
    run_main(
        backend,
        """
async def main():
    with tempfile.TemporaryFile() as file:
        file.write(b"a" * 8192)
        file.flush()
        file.seek(0)
        async with open_uring(driver=sys.argv[1]):
            pass
        denied.refuse_threads()
        async with open_uring(driver=sys.argv[1]) as io:
            assert io.driver == sys.argv[1], io.fallback_reason
            for _ in range(3):
                assert await io.read(file, 4096, 0) == b"a" * 4096  # from the page cache
                for failing in (
                    lambda: io.write(file, b"b", 1),
                    lambda: io.write_and_sync(file, b"b", 1),
                    lambda: io.fsync(file),
                ):
                    try:
                        await failing()
                    except OSError as exc:
                        assert exc.errno == errno.ECANCELED, exc
                        assert "raise RLIMIT_NPROC" in str(exc), exc
                try:
                    results = await io.write_batch([(file, b"c", 2), (file, b"d", 3)], return_exceptions=True)
                except BatchError as exc:
                    results = exc.results
                # Each either happened or says that it did not.
                data = os.pread(file.fileno(), 4, 0)
                for i, (result, byte) in enumerate(zip(results, (b"c", b"d")), 2):
                    assert data[i : i + 1] == (byte if result == 1 else b"a"), (results, data)
            if sys.argv[1] == "uring":
                await programs.blocked_read(io, os.pipe())
            assert io.statistics().in_flight == 0
""",
        driver,
    )


# --- filesystems --------------------------------------------------------------------------------

MOUNTED = """
def mount(size):
    if not denied.own_mounts():
        print("no mounts are allowed here")
        sys.exit()
    path = tempfile.mkdtemp()
    denied.mount_memory(path, size)
    return path
"""


def run_mounted(backend: str, main: str, *arguments: object) -> None:
    out = run_main(backend, MOUNTED + main, *arguments)
    if out:
        pytest.skip(out.strip())


def test_a_full_filesystem(driver: Any, backend: str) -> None:
    """ENOSPC with the file's name; what was said to be written is there; and with room again all goes on."""
    run_mounted(
        backend,
        """
async def main():
    path = mount(1 << 20)
    size = (1 << 20) - 8192
    with open(path + "/other", "wb") as other, open(path + "/file", "w+b", buffering=0) as file:
        other.write(bytes(size))
        other.flush()
        async with open_uring(driver=sys.argv[1]) as io:
            data = os.urandom(65536)
            count = await io.write(file, data, 0)
            assert 0 < count < len(data), count
            assert os.pread(file.fileno(), len(data), 0) == data[:count]
            for failing in (
                lambda: io.write(file, data, count),
                lambda: io.write_all(file, data, count),
                lambda: io.write_and_sync(file, data, count),
                lambda: io.writev(file, [data, data], count),
            ):
                try:
                    await failing()
                    raise AssertionError("written, though there is no room")
                except OSError as exc:
                    assert exc.errno == errno.ENOSPC, exc
                    assert exc.filename == path + "/file", exc.filename
            try:
                await io.write_batch([(file, b"x" * 100, 0), (file, data, count), (file, b"y" * 100, 100)])
                raise AssertionError("written, though there is no room")
            except BatchError as exc:
                first, failed, last = exc.results
                assert (first, failed.errno, last) == (100, errno.ENOSPC, 100), exc.results
            assert await io.read(file, len(data), 0) == b"x" * 100 + b"y" * 100 + data[200:count]
            await io.fsync(file)
            os.truncate(path + "/other", 0)
            await programs.work(io, file)
""",
        driver,
    )


def test_a_read_only_filesystem(driver: Any, backend: str) -> None:
    run_mounted(
        backend,
        """
async def main():
    path = mount(1 << 20)
    name = path + "/file"
    with open(name, "wb") as file:
        file.write(b"data" * 5000)
    denied.mount_memory(path, 1 << 20, read_only=True)
    try:
        os.unlink(name)
        raise AssertionError("it is not read-only")
    except OSError as exc:
        assert exc.errno == errno.EROFS
    async with open_uring(driver=sys.argv[1]) as io:
        for changing in (
            lambda: io.open(name, os.O_RDWR),
            lambda: io.open(name, os.O_WRONLY | os.O_TRUNC),
            lambda: io.rename(name, path + "/other"),
            lambda: io.unlink(name),
            lambda: io.truncate(name, 0),
        ):
            try:
                await changing()
                raise AssertionError("it is not read-only")
            except OSError as exc:
                assert exc.errno == errno.EROFS, exc
                assert exc.filename == name, exc
        fd = await io.open(name, os.O_RDONLY)
        assert await io.read_exactly(fd, 20000, 0) == b"data" * 5000
        assert await io.read_batch([(fd, 4, 4 * i) for i in range(50)]) == [b"data"] * 50
        assert (await io.stat(name)).st_size == 20000
        await io.fsync(fd)
        try:
            await io.write(fd, b"x", 0)
            raise AssertionError("written, though the descriptor is not for it")
        except OSError as exc:
            assert exc.errno == errno.EBADF, exc
        await io.close(fd)
""",
        driver,
    )


def test_no_proc(driver: Any, backend: str) -> None:
    """Nothing needs it: not the choice of a driver, not its reasons, not a FIFO that blocks."""
    run_mounted(
        backend,
        """
async def main():
    path = mount(1 << 20)
    os.mkfifo(path + "/fifo")
    fifo = os.open(path + "/fifo", os.O_RDWR)
    with open(path + "/file", "w+b") as file:
        denied.hide_proc()
        async with open_uring(driver=sys.argv[1]) as io:
            assert io.driver == sys.argv[1]
            await programs.work(io, file)
            await programs.blocked_read(io, (fifo, fifo))
            await programs.blocked_read(io, os.pipe())
            assert (await io.stat(path + "/file")).st_size == 100_000
        denied.deny("io_uring_setup", errno.EPERM)
        async with open_uring() as io:
            assert io.driver == "threads"
            assert "seccomp filter" in io.fallback_reason
            await programs.work(io, file)
""",
        driver,
    )

"""The manager and the life of its process: fork, garbage collection, an event loop that ends early."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import Any

import pytest

from . import denied


def run(code: str, *arguments: str) -> str:
    """Run a program in a process of its own; it must end well, and in time."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_forked_child_gets_an_error_and_harms_nobody(driver: Any, backend: str) -> None:
    """C12: with a default ring the child's operations would complete into the parent."""
    out = run(
        """
        import anyio, os, sys
        from anyio_uring import open_uring

        async def main():
            read_end, write_end = os.pipe()
            async with open_uring(driver=sys.argv[1]) as io, anyio.create_task_group() as tasks:
                async def read():
                    got.append(await io.read(read_end, 10, -1))
                got = []
                tasks.start_soon(read)
                while io.statistics().in_flight < 1:
                    await anyio.lowlevel.checkpoint()
                child = os.fork()
                if not child:
                    try:
                        coroutine = io.read(read_end, 1, 0)
                        try:
                            coroutine.send(None)
                        except RuntimeError as exc:
                            assert "forked child" in str(exc), exc
                            os._exit(7)
                    finally:
                        os._exit(1)
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
                os.write(write_end, b"parent")
                while not got:
                    await anyio.lowlevel.checkpoint()
            print(got)

        anyio.run(main, backend=sys.argv[2])
        """,
        driver,
        backend,
    )
    assert out == "[b'parent']\n"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_manager_that_is_abandoned_with_operations_in_flight_crashes_nothing(driver: Any, backend: str) -> None:
    """The event loop is closed under it: the memory stays pinned, the interpreter ends well."""
    run(
        """
        import asyncio, gc, os, sys, warnings, weakref
        warnings.simplefilter("ignore")
        from anyio_uring import open_uring
        import anyio_uring._completion_task as tasks

        read_end, write_end = os.pipe()
        class Buffer(bytearray): pass

        async def main():
            manager = open_uring(driver=sys.argv[1])
            io = await manager.__aenter__()
            buffer = Buffer(64)
            reader = asyncio.ensure_future(io.readinto(read_end, buffer, -1))
            while io.statistics().in_flight < 1:
                await asyncio.sleep(0)
            return weakref.ref(buffer)

        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda *_: None)
        buffer = loop.run_until_complete(main())
        loop.close()
        del loop
        gc.collect()
        assert buffer() is not None, "C2: the kernel may still write to it"
        os.write(write_end, b"x" * 64)
        gc.collect()
        print("ok")
        """
        if backend == "asyncio"
        else """
        import gc, os, sys, trio, warnings, weakref
        from anyio_uring import open_uring

        read_end, write_end = os.pipe()

        async def main():
            with trio.move_on_after(0.05):
                async with open_uring(driver=sys.argv[1]) as io:
                    await io.read(read_end, 64, -1)

        for _ in range(3):
            trio.run(main)
        gc.collect()
        print("ok")
        """,
        driver,
    )


@pytest.mark.parametrize("answer", ["EPERM", "ENOSYS", "EACCES", "ENOMEM"])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_where_a_seccomp_filter_denies_io_uring_it_runs_on_threads(answer: str, backend: str) -> None:
    out = run(
        f"""
        import errno, sys
        sys.path.insert(0, {str(denied.ROOT)!r})
        from tests.denied import deny, is_denied
        deny("io_uring_setup", errno.{answer})
        assert is_denied("io_uring_setup", errno.{answer}), "the denial did not take place"
        import anyio, tempfile
        from anyio_uring import UringUnavailableError, open_uring

        async def main():
            async with open_uring() as io:
                assert io.driver == "threads", io.driver
                with tempfile.TemporaryFile() as file:
                    assert await io.write_and_sync(file, b"data", 0) == 4
                    assert await io.read_batch([(file, 2, 0), (file, 9, 2)]) == [b"da", b"ta"]
                print(io.fallback_reason)
            try:
                async with open_uring(driver="uring"):
                    raise AssertionError("a ring, though it is denied")
            except UringUnavailableError as exc:
                assert exc.errno == errno.{answer}
                assert exc.strerror == io.fallback_reason

        anyio.run(main, backend={backend!r})
        """
    )
    assert answer in out
    remedy = {"ENOSYS": "use Linux 5.6 or newer", "ENOMEM": "RLIMIT_MEMLOCK"}.get(answer, "seccomp filter")
    assert remedy in out


def test_where_only_the_use_of_the_ring_is_denied_it_runs_on_threads() -> None:
    """A filter that allows io_uring_setup and forbids io_uring_enter: the first read finds out."""
    out = run(
        f"""
        import errno, sys
        sys.path.insert(0, {str(denied.ROOT)!r})
        from tests.denied import deny, is_denied
        deny("io_uring_enter", errno.ENOSYS)
        assert is_denied("io_uring_enter", errno.ENOSYS)
        import anyio
        from anyio_uring import open_uring

        async def main():
            async with open_uring() as io:
                print(io.driver, io.fallback_reason)

        anyio.run(main)
        """
    )
    assert out.startswith("threads a first read through the ring failed with ENOSYS")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_keyboard_interrupt_ends_it_well(driver: Any, backend: str) -> None:
    """Twenty tasks read, five are blocked, and the signal comes at some moment of it."""
    if backend == "asyncio" and sys.version_info < (3, 11):
        pytest.skip("before Python 3.11 asyncio lets the signal strike anywhere, and nobody can help it")
    for moment in range(3):
        out = run(
            """
            import anyio, os, signal, sys, tempfile
            from anyio_uring import open_uring

            async def main():
                read_end, write_end = os.pipe()
                count = 0
                with tempfile.TemporaryFile() as file:
                    async with open_uring(driver=sys.argv[1], depth=16) as io:
                        async def read():
                            nonlocal count
                            while True:
                                await io.read(file, 4096, 0)
                                count += 1
                                if count == 100:
                                    signal.setitimer(signal.ITIMER_REAL, 1e-5 * (1 + 7 * int(sys.argv[3])))
                        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
                        async with anyio.create_task_group() as tasks:
                            for _ in range(5):
                                tasks.start_soon(io.read, read_end, 1, -1)
                            for _ in range(20):
                                tasks.start_soon(read)

            try:
                anyio.run(main, backend=sys.argv[2])
            except BaseException as exc:
                while not isinstance(exc, KeyboardInterrupt):
                    (exc,) = exc.exceptions
                print("interrupted")
            """,
            driver,
            backend,
            str(moment),
        )
        assert out == "interrupted\n"

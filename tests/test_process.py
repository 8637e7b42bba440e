"""The manager and the life of its process: fork, garbage collection, an event loop that ends early."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from .programs import run


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

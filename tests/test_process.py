"""The manager and the life of its process: fork, garbage collection, an event loop that ends early."""

from __future__ import annotations

import sys
import textwrap
from typing import Any

import pytest

from anyio_uring._interpreter import require_main_interpreter

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


@pytest.mark.parametrize("kind", ["thread", "daemon thread"])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_loop_in_another_thread_goes_on_when_the_main_thread_has_ended(driver: Any, backend: str, kind: str) -> None:
    """
    What has been parked completes then, too.

    No thread is started by one that the interpreter does not wait for: it might be ending, and up to Python 3.11 it
    crashes if a thread starts meanwhile.
    """
    out = run(
        """
        import anyio, concurrent.futures.thread, os, sys, threading
        from anyio_uring import open_uring

        read_end, write_end = os.pipe()
        started_by = set()

        class Thread(threading.Thread):
            def start(self):
                started_by.add(threading.current_thread())
                super().start()

        async def main():
            async with open_uring(driver=sys.argv[1]) as io, anyio.create_task_group() as tasks:
                async def read():
                    try:
                        print(await io.read(read_end, 10, -1))
                    except OSError as exc:
                        print(exc)
                tasks.start_soon(read)
                while not (io.statistics().in_flight and (sys.argv[1] == "uring" or io._driver._parked)):
                    await anyio.sleep(0.001)
                is_in_flight.set()
                while not concurrent.futures.thread._shutdown:  # its executors take nothing more, and no sooner
                    await anyio.sleep(0.001)
                threading.Thread = Thread
                os.write(write_end, b"late")
            print(*("its own" if one is threading.current_thread() else one for one in started_by))

        def work():
            try:
                anyio.run(main, backend=sys.argv[2])
            finally:
                has_ended.set()

        is_in_flight, has_ended = threading.Event(), threading.Event()
        threading.Thread(target=work, daemon=sys.argv[3] == "daemon thread").start()
        threading.Thread(target=has_ended.wait).start()  # so long the interpreter waits
        assert is_in_flight.wait(20)
        """,
        driver,
        backend,
        kind,
    )
    result, started_by = out.splitlines()
    is_refused = driver == "threads" and (kind == "daemon thread" or (3, 12, 0) <= sys.version_info < (3, 12, 2))
    if is_refused:  # by Python 3.12.0 and 3.12.1 in every thread: python/cpython#113964
        assert "no thread could be started" in result
    else:
        assert result == "b'late'"
    assert started_by == ("its own" if driver == "threads" and kind == "thread" else "")


# An event loop of asyncio's is closed while a coroutine of a manager's waits for its completion.
CLOSED_UNDER_IT = """
import asyncio, gc, os, sys, warnings
from anyio_uring import open_uring

driver, verb = sys.argv[1:]
read_end, write_end = os.pipe()
buffer = bytearray(4096)

async def main():
    io = await open_uring(driver=driver).__aenter__()
    if verb == "readinto":
        coroutine = io.readinto(read_end, buffer, -1)
    elif verb == "readinto_batch":
        coroutine = io.readinto_batch([(read_end, buffer, -1)])
    elif verb == "readinto_batch, in columns":
        coroutine = io.readinto_batch([(read_end, buffer, 0)])
    else:
        (file,) = await io.register_files([read_end]).__aenter__()
        coroutine = io.readinto(file, buffer, -1)
    coroutine.send(None)
    while io.statistics().in_flight < 1:
        await asyncio.sleep(0)
    return coroutine

def is_pinned():
    gc.collect()
    try:
        buffer.append(1)
    except BufferError:
        return True
    return False

loop = asyncio.new_event_loop()
coroutine = loop.run_until_complete(main())
loop.close()
del loop
"""


@pytest.mark.parametrize("verb", ["readinto", "readinto_batch", "readinto_batch, in columns", "a registered file"])
def test_memory_stays_pinned_when_a_coroutine_is_closed_after_its_event_loop(driver: Any, verb: str) -> None:
    """C2: the kernel has the operation still, and nobody can tell it otherwise any more."""
    action = """
coroutine.close()
print(is_pinned(), flush=True)
os._exit(0)
"""
    assert run(CLOSED_UNDER_IT + action, driver, verb) == "True\n"


def test_an_abandoned_manager_that_is_collected_says_so_and_keeps_the_memory(driver: Any) -> None:
    # anyio itself keeps for ever, by this table, what is in one of its scopes when the loop is closed.
    action = """
from anyio._backends import _asyncio
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    del coroutine
    _asyncio._task_states.clear()
    print(is_pinned())
print(*[each.message for each in caught if each.category is ResourceWarning and "anyio_uring" in str(each.message)])
os.write(write_end, bytes(4096))  # which the kernel may write into that memory
print(is_pinned(), flush=True)
os._exit(0)
"""
    first, said, last = run(CLOSED_UNDER_IT + action, driver, "readinto").splitlines()
    assert (first, last) == ("True", "True")
    assert "abandoned with operations in flight: their memory is never freed" in said


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


# A read of a pipe is in flight while something happens; then the parent gets its bytes, and works on.
BESIDE = """
import anyio, multiprocessing, os, subprocess, sys, threading
from anyio_uring import open_uring
from tests import programs

driver, backend = sys.argv[1:3]

async def main():
    read_end, write_end = os.pipe()
    got = []
    async def read():
        got.append(await io.read(read_end, 100, -1))
    async with open_uring(driver=driver) as io, anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        while io.statistics().in_flight < 1:
            await anyio.lowlevel.checkpoint()
        await beside(io)
        assert io.statistics().in_flight == 1
        os.write(write_end, b"parent")
        while not got:
            await anyio.lowlevel.checkpoint()
        with open(programs.__file__, "rb") as file:
            assert await io.read(file, 100, 5) == os.pread(file.fileno(), 100, 5)
    await programs.use(driver)
    assert got == [b"parent"]
    print("good")
"""


def run_beside(action: str, driver: Any, backend: str, *arguments: object) -> None:
    code = f"{BESIDE}\n{textwrap.dedent(action)}\nanyio.run(main, backend=backend)\n"
    assert run(code, driver, backend, *arguments).endswith("good\n")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_forked_child_opens_a_manager_of_its_own(driver: Any, backend: str) -> None:
    """In a thread, for the event loop that it was forked from is the parent's."""
    run_beside(
        """
        async def beside(io):
            child = os.fork()
            if not child:
                outcome = []
                def use():
                    anyio.run(programs.use, driver, backend=backend)
                    outcome.append("good")
                thread = threading.Thread(target=use)
                thread.start()
                thread.join()
                os._exit(0 if outcome else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        """,
        driver,
        backend,
    )


@pytest.mark.parametrize("driver", ["uring", "threads", "fake"])
def test_a_forked_child_whose_stack_unwinds_ends(driver: Any) -> None:
    """
    It has inherited the wait for an operation, and the end of the block; the completion is the parent's.

    On trio: a forked child has no running event loop on asyncio, and there anyio's own task groups cannot end.
    """
    out = run(
        """
        import anyio, os, sys
        from anyio_uring import open_uring
        from anyio_uring.testing import FakeRing

        driver = FakeRing(1) if sys.argv[1] == "fake" else sys.argv[1]

        async def main():
            global child
            read_end, _ = os.pipe()
            async with open_uring(driver=driver) as io, anyio.create_task_group() as tasks:
                tasks.start_soon(io.read, read_end, 100, -1)
                while io.statistics().in_flight < 1:
                    await anyio.lowlevel.checkpoint()
                child = os.fork()
                if not child:
                    raise LookupError
                # The child's event loop takes its descriptors out of the epoll that it shares with this one: that
                # is true of trio itself, and this loop is not used any more.
                print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
                os._exit(0)

        try:
            anyio.run(main, backend="trio")
        except BaseException as exc:
            while not isinstance(exc, LookupError):
                (exc,) = exc.exceptions
            sys.exit(7)
        """,
        driver,
    )
    assert out == "child 7\n"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_other_programs_started_beside_operations(driver: Any, backend: str) -> None:
    """Fork and exec: they inherit no ring, no pipe of ours, and end as ever."""
    run_beside(
        """
        # Every descriptor that is inherited, and what it is.
        LIST = "import os; print([os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd') if int(n) > 2])"

        def look(out):
            inherited = [name for name in eval(out) if "io_uring" in name or name.startswith("pipe")]
            assert not inherited, inherited

        async def beside(io):
            command = [sys.executable, "-S", "-c", LIST.replace("os.readlink(", "os.path.realpath(")]
            for _ in range(3):
                # posix_spawn() closes nothing: what is not marked close-on-exec gets through.
                look(subprocess.run(command, capture_output=True, check=True, close_fds=False).stdout)
                look((await anyio.run_process(command)).stdout)
        """,
        driver,
        backend,
    )


@pytest.mark.parametrize(
    ("method", "backend"), [("fork", "asyncio"), ("fork", "trio"), ("spawn", "asyncio"), ("forkserver", "trio")]
)
def test_multiprocessing_beside_operations(driver: Any, backend: str, method: str) -> None:
    run_beside(
        """
        async def beside(io):
            def start():
                context = multiprocessing.get_context(sys.argv[3])
                ours, theirs = context.Pipe()
                child = context.Process(target=programs.use_in_child, args=(driver, backend, theirs))
                child.start()
                child.join()
                assert child.exitcode == 0, child.exitcode
                assert ours.recv() == child.pid
            await anyio.to_thread.run_sync(start)
        """,
        driver,
        backend,
        method,
    )


@pytest.mark.parametrize("kind", ["legacy", "isolated"])
def test_a_sub_interpreter_is_refused(kind: str) -> None:
    """At once: modules imported later have crashed some versions of CPython."""
    run(
        """
        if sys.version_info >= (3, 13):
            import _interpreters as interpreters
            created = interpreters.create(sys.argv[1])
        else:
            import _xxsubinterpreters as interpreters
            created = interpreters.create(isolated=sys.argv[1] == "isolated")
        code = '''if True:
            import sys
            sys.path[:] = PATH
            try:
                import anyio_uring
            except ImportError as exc:
                assert "this is a sub-interpreter" in str(exc), exc
            else:
                raise AssertionError("imported in a sub-interpreter")
            assert "asyncio" not in sys.modules
        '''.replace("PATH", repr(sys.path))
        failed = interpreters.run_string(created, code)
        assert failed is None, failed
        import anyio
        from tests import programs
        anyio.run(programs.use, "threads", backend="trio")  # asyncio's own state does not survive it (3.11)
        """,
        kind,
    )


def test_a_python_without_sub_interpreters_has_but_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_interpreters", "_xxsubinterpreters"):
        monkeypatch.setitem(sys.modules, name, None)
    require_main_interpreter()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_without_asserts(backend: str, driver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``python -O`` leaves asserts out: nothing that has an effect may stand in one."""
    monkeypatch.setenv("PYTHONOPTIMIZE", "1")
    printed = run(
        f"""
        import anyio, tempfile
        from anyio_uring import open_append_log, open_uring, read_append_log

        async def main():
            with tempfile.TemporaryDirectory() as directory, open(directory + "/data", "w+b") as file:
                async with open_uring(driver=sys.argv[1], nowait=False) as io:
                    with anyio.fail_after(20):
                        print(__debug__, await io.write_and_sync(file, b"0123456789", 0))
                        print(await io.read_batch([(file, 3, 0), (file, 3, 5)]))
                        print(await io.write_batch([(file, b"ab", 0), (file, b"c", 2)]))
                        async with io.chain() as chain:
                            chain.write(file, b"de", 3)
                            chain.fsync(file)
                        print(await io.read_files([directory + "/data"]), io.statistics().in_flight)
                        async with open_append_log(directory + "/log") as log:
                            await log.append(b"record")
                        print([record async for _, record in read_append_log(directory + "/log")])

        anyio.run(main, backend={backend!r})
        """,
        driver,
    )
    assert printed.splitlines() == [
        "False 10",
        "[b'012', b'567']",
        "[2, 1]",
        "[b'abcde56789'] 0",
        "[b'record']",
    ]

"""What is logged, at which level, and that nothing is when nobody asked."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from anyio_uring import UringOptions, open_uring
from anyio_uring._logs import TRACE, configure
from anyio_uring._traced_driver import TracedDriver
from anyio_uring.testing import FakeRing

from . import denied


def _ours(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Return this library's records: asyncio, in its debug mode, complains of a machine that is slow."""
    return [record for record in caplog.records if record.name.startswith("anyio_uring")]


# Of the environment nothing else is inherited: what there is might configure logging.
COVERAGE = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}

# A program that reads and writes, with the driver that its argument names, and configures no logging.
PROGRAM = """
    import anyio, sys, tempfile
    from anyio_uring import open_uring

    async def main():
        with tempfile.TemporaryFile() as file:
            async with open_uring(driver=sys.argv[1]) as io:
                await io.write_all(file, bytes(5000), 0)
                await io.read_batch([(file, 100, 0)] * 32)

    anyio.run(main)
"""


@pytest.fixture(autouse=True)
def level() -> Iterator[None]:
    logger = logging.getLogger("anyio_uring")
    before = logger.level
    yield
    logger.setLevel(before)


def run(code: str, *arguments: str, **environ: str) -> str:
    """Run a program in a process of its own, and return what it printed to stderr."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        env={**COVERAGE, **environ},
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.anyio
async def test_every_operation_at_trace(driver: Any, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("anyio_uring").setLevel(TRACE)
    with path.open("rb") as file:
        fd = file.fileno()
        async with open_uring(driver=driver, nowait=False) as io:
            await io.read(fd, 4096, 4096)
            await io.read_batch([(fd, 10, 0)] * 32)
    of_operations = [record for record in _ours(caplog) if record.name == "anyio_uring.operations"]
    submitted, completed = of_operations[:2]
    user_data = vars(submitted)["user_data"]
    assert submitted.getMessage() == f"submitted read, user_data={user_data}, offset=4096, length=4096"
    assert completed.getMessage() == f"completed, user_data={user_data}, result=4096"
    assert {submitted.levelno, completed.levelno} == {TRACE}
    assert submitted.levelname == "TRACE"
    values = {"user_data": user_data, "opcode": "read", "fd": fd, "offset": 4096, "length": 4096}
    assert values.items() <= vars(submitted).items()
    assert {**values, "result": 4096}.items() <= vars(completed).items()
    (batch,) = (record for record in of_operations if record.getMessage() == "batch of 32 submitted")
    assert vars(batch)["count"] == 32


@pytest.mark.anyio
async def test_inline_reads_at_trace(driver: Any, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("anyio_uring.operations").setLevel(TRACE)
    try:
        with path.open("rb") as file:
            async with open_uring(driver=driver, nowait=True) as io:
                await io.read(file, 100, 65500)
    finally:
        logging.getLogger("anyio_uring.operations").setLevel(logging.NOTSET)
    (record,) = _ours(caplog)
    assert record.getMessage() == "inline read, offset=65500, length=100, result=36"
    assert {"offset": 65500, "length": 100, "result": 36}.items() <= vars(record).items()


@pytest.mark.anyio
async def test_managers_at_debug(driver: Any, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("anyio_uring").setLevel(logging.DEBUG)
    with path.open("rb") as file:
        async with open_uring(driver=driver, depth=16, nowait=False) as io:
            assert not isinstance(io._driver, TracedDriver)
            await io.read(file, 10, 0)
            flags = "|".join(io.features.setup_flags)
    opened, closed = _ours(caplog)
    assert {opened.name, closed.name} == {"anyio_uring.ring"}
    if driver == "uring":
        expected = f"ring opened, depth=16, sq_entries=16, cq_entries=32, setup_flags={flags}, sqpoll=False"
        assert opened.getMessage() == expected
        assert "SUBMIT_ALL" in vars(opened)["setup_flags"]
    else:
        assert opened.getMessage() == "threads opened, depth=16"
    assert vars(opened)["driver"] == driver
    name = "ring" if driver == "uring" else "threads"
    assert closed.getMessage().startswith(f"{name} closed, submissions=1, completions=1, syscalls=")
    assert "bytes_read=10" in closed.getMessage()
    assert vars(closed)["bytes_read"] == 10


@pytest.mark.anyio
async def test_a_fake_ring_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("anyio_uring").setLevel(logging.DEBUG)
    async with open_uring(driver=FakeRing(1), depth=16):
        pass
    opened, closed = _ours(caplog)
    assert opened.getMessage() == "fake ring opened, depth=16"
    assert vars(opened)["driver"] == "fake"
    assert closed.getMessage().startswith("fake ring closed, submissions=0, completions=0, ")


@pytest.mark.ring
@pytest.mark.anyio
async def test_the_kernels_poller_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("anyio_uring").setLevel(logging.DEBUG)
    async with open_uring(driver="uring", sqpoll=True, sqpoll_idle_ms=1):
        pass
    assert _ours(caplog)[0].getMessage().endswith("|SINGLE_ISSUER, sqpoll=True")
    assert "SQPOLL" in vars(_ours(caplog)[0])["setup_flags"]


@pytest.mark.anyio
async def test_a_fallback_and_its_cause_at_debug(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("anyio_uring").setLevel(logging.DEBUG)
    monkeypatch.setattr("anyio_uring._ring.sys.platform", "darwin")
    async with open_uring():
        pass
    cause = "io_uring exists on Linux alone, and this system is darwin"
    assert _ours(caplog)[0].getMessage() == f"fell back to threads, depth=256: {cause}"
    assert vars(_ours(caplog)[0])["fallback_reason"] == cause


@pytest.mark.anyio
async def test_the_level_is_read_at_open(driver: Any, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with path.open("rb") as file:
        async with open_uring(driver=driver, nowait=False) as io:
            logging.getLogger("anyio_uring").setLevel(TRACE)
            assert not isinstance(io._driver, TracedDriver)
            await io.read(file, 1, 0)
    assert not _ours(caplog)


def test_a_program_that_configures_nothing_sees_nothing(driver: str) -> None:
    assert run(PROGRAM, driver) == ""


def test_the_environment_switches_it_on(driver: str) -> None:
    lines = run(PROGRAM, driver, ANYIO_URING_LOG="trace").splitlines()
    assert lines[0].startswith("DEBUG anyio_uring.ring: ")
    assert lines[1].startswith("TRACE anyio_uring.operations: submitted write, user_data=")
    assert lines[1].endswith(", offset=0, length=5000")
    assert "TRACE anyio_uring.operations: batch of 32 submitted" in lines
    assert sum(": completed, user_data=" in line for line in lines) == 33
    assert lines[-1].startswith("DEBUG anyio_uring.ring: ")
    assert run(PROGRAM, driver, ANYIO_URING_LOG="DEBUG").splitlines() == [
        line for line in run(PROGRAM, driver, ANYIO_URING_LOG="debug").splitlines() if line.startswith("DEBUG")
    ]
    assert run(PROGRAM, driver, ANYIO_URING_LOG="info") == ""
    assert run(PROGRAM, driver, ANYIO_URING_LOG="") == ""


def test_a_program_that_configures_logging_gets_no_second_handler() -> None:
    code = "import logging; logging.basicConfig(format='mine: %(message)s')\n" + textwrap.dedent(PROGRAM)
    lines = run(code, "threads", ANYIO_URING_LOG="debug").splitlines()
    assert [line.split(",")[0] for line in lines] == ["mine: threads opened", "mine: threads closed"]


def test_an_instrument_that_fails_is_seen_without_any_configuration() -> None:
    code = """
        import anyio
        from anyio_uring import Instrument, open_uring

        class Broken(Instrument):
            def manager_opened(self, manager):
                raise ZeroDivisionError

        async def main():
            async with open_uring(driver="threads", instruments=[Broken()]):
                pass

        anyio.run(main)
    """
    printed = run(code)
    assert printed.startswith("an instrument failed and is not called again")
    assert printed.endswith("ZeroDivisionError\n")


def test_a_level_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    message = "variable ANYIO_URING_LOG must be one of trace, debug, info, warning, error, critical, not 'loud'"
    with pytest.raises(ValueError, match=message):
        configure({"ANYIO_URING_LOG": "loud"})
    monkeypatch.setenv("ANYIO_URING_LOG", "9")
    with pytest.raises(ValueError, match="ANYIO_URING_LOG"):
        open_uring()


def test_it_is_no_option() -> None:
    assert UringOptions.from_env({"ANYIO_URING_LOG": "trace"}) == UringOptions()


@pytest.mark.ring
def test_a_denied_ring_says_why() -> None:
    code = f"""
        import errno, sys
        sys.path.insert(0, {str(denied.ROOT)!r})
        from tests.denied import deny
        deny("io_uring_setup", errno.EPERM)
        import anyio
        from anyio_uring import open_uring

        async def main():
            async with open_uring():
                pass

        anyio.run(main)
    """
    first, _ = run(code, ANYIO_URING_LOG="debug").splitlines()
    assert first.startswith("DEBUG anyio_uring.ring: fell back to threads, depth=256: io_uring_setup was refused")

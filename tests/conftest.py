"""Every event loop and every driver, for every test that asks for them."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from blockbuster import blockbuster_ctx
from hypothesis import settings

from anyio_uring import AsyncIoManager, open_uring

from .faulty_disk import FaultyDisk, faulty_disk
from .helpers import BACKENDS, driver_name

# No deadlines: they are timing.  The suite tries the same examples each time, so that what it says is about the change
# it is run for; nox -s property, which takes the second one, looks for others.
settings.register_profile("fast", max_examples=300, deadline=None, derandomize=True)
settings.register_profile("thorough", max_examples=10_000, deadline=None)
settings.load_profile("fast")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-ring", action="store_true", help="leave out the tests of the ring, for a system without io_uring"
    )
    parser.addoption("--soak", action="store_true", help="let tests that repeat something do it for minutes")


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say what the ring tests run on, or that they were left out."""

    async def probe() -> str:
        async with open_uring() as io:
            flags = ", ".join(io.features.setup_flags)
            return f"anyio_uring: {io.driver}, kernel {io.features.kernel}, {flags or io.fallback_reason}"

    lines = [anyio.run(probe)]
    if config.getoption("--no-ring"):
        lines.append("anyio_uring: THE RING IS NOT TESTED (--no-ring)")
    return lines


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without --no-ring a missing ring fails the tests; nothing is skipped in silence."""
    for item in items:
        if "mounted_disk" in getattr(item, "fixturenames", ()):
            item.add_marker("filesystem")
    if config.getoption("--no-ring"):
        ring = [item for item in items if _needs_ring(item)]
        config.hook.pytest_deselected(items=ring)
        items[:] = [item for item in items if not _needs_ring(item)]


def _needs_ring(item: pytest.Item) -> bool:
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    return "uring" in parameters.values() or item.get_closest_marker("ring") is not None


@pytest.fixture(params=[BACKENDS[0], BACKENDS[-1]])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="session", params=["uring", "threads"])
def driver(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def nowait() -> bool:
    """Whether reads are tried inline first: then the driver sees only what the page cache lacks."""
    return False


@pytest.fixture
async def io(driver: Any, nowait: bool) -> AsyncIterator[AsyncIoManager]:
    async with open_uring(driver=driver, nowait=nowait) as manager:
        assert manager.driver == driver_name(driver)
        yield manager
        assert manager.statistics().in_flight == 0, "C10: the test left something in flight"


@pytest.fixture(autouse=True)
def no_blocking_calls() -> Iterator[None]:
    """A call of this library that blocks the event loop fails the test (asyncio; trio has no such hook)."""
    if sys.gettrace() is not None:  # nox -s coverage: its own lock would be one
        yield
        return
    with blockbuster_ctx(scanned_modules="anyio_uring") as blockbuster:
        # Opening proves the ring with a read of a memory-backed file, before the block is entered.
        for function in blockbuster.functions.values():
            function.can_block_in("anyio_uring/_ring.py", {"open_ring", "_probe", "_unavailable"})
            # The driver's lock is held for a few instructions; at the end idle threads are joined.
            function.can_block_in("anyio_uring/_fallback.py", {"turn", "close"})
            # A fake ring has no threads: what it carries out, it carries out in the event loop's.
            function.can_block_in("anyio_uring/testing/_fake_driver.py", {"prepare", "turn"})
            # The counters' lock is held for a few instructions, too.
            function.can_block_in("anyio_uring/_ring.py", {"enters", "overflows", "close"})
            function.can_block_in("anyio_uring/otel.py", {"manager_opened", "manager_closed"})
        yield


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of 64 KiB in which every 4-byte word is its own index."""
    file = tmp_path / "data"
    file.write_bytes(b"".join(i.to_bytes(4, "big") for i in range(16384)))
    return file


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """An empty pipe: a read of it truly blocks."""
    ends = os.pipe()
    yield ends
    os.close(ends[0])
    os.close(ends[1])


@pytest.fixture
def forbidden() -> Iterator[Path]:
    """A directory of root's that this process, for the test, has no rights in."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        path = Path(name, "forbidden")
        path.mkdir(0o700)
        (path / "file").write_bytes(b"")
        os.chmod(name, 0o755)
        if os.geteuid() == 0:
            os.seteuid(65534)
        else:
            path.chmod(0)
        try:
            yield path
        finally:
            os.seteuid(os.getuid())
            path.chmod(0o700)


@pytest.fixture(scope="session")
def mounted_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyDisk]:
    with faulty_disk(tmp_path_factory.mktemp("disk")) as disk:
        yield disk


@pytest.fixture
def disk(mounted_disk: FaultyDisk) -> FaultyDisk:
    """An empty filesystem that loses what was not synced, and fails as the test says."""
    mounted_disk.wipe()
    return mounted_disk

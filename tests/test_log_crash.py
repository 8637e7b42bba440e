"""A process with 32 appenders is killed at random moments: what was acknowledged is there, in order, byte for byte."""

from __future__ import annotations

import os
import random
import selectors
import subprocess
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path

import anyio
import pytest

from anyio_uring import FsyncMode, open_append_log, read_append_log

from .log_child import TASKS, record

# Of each event loop, driver and mode; nox -s crash does 200.
ROUNDS = int(os.environ.get("ANYIO_URING_CRASH_ROUNDS", "5"))


def _run_until_killed(arguments: list[str], acknowledged: int) -> bytes:
    """Run the child until it has acknowledged so many records, kill it, and return all that it said."""
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.log_child", *arguments],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
    )
    assert child.stdout is not None
    said = b""
    with child, selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while said.count(b"\n") < acknowledged:
            assert selector.select(30), "the child says nothing"
            part = os.read(child.stdout.fileno(), 65536)
            assert part, f"the child has ended: {child.wait()}"
            said += part
        child.kill()
        said += child.stdout.read()
        assert child.wait() == -9
    return said


async def _verify(path: Path, acknowledged: dict[int, tuple[int, int]], firsts: list[int]) -> tuple[int, bool]:
    """Compare a log with what was acknowledged; return how many records it has, and whether its tail is torn."""
    reader = read_append_log(path)
    # {name: number of its next record}, in this life of the child and those before it
    expected: dict[int, list[int]] = {name: [] for name in range(TASKS)}
    found: dict[int, tuple[int, int]] = {}
    async for offset, data in reader:
        name, number = map(int, data.split(b"/", 2)[:2])
        assert data == record(name, number), "byte for byte"
        found[offset] = name, number
        expected[name].append(number)
    lost = {offset: what for offset, what in acknowledged.items() if found.get(offset) != what}
    assert not lost, f"acknowledged, and not there: {lost}"
    for numbers in expected.values():
        assert numbers == sorted(set(numbers)), "in order, none twice"
        for before, after in pairwise(numbers):
            assert after == before + 1 or after in firsts, "without a gap"
    # Of each task, at most one append was under way in each life.
    assert len(found) - len(acknowledged) <= TASKS * len(firsts)
    return len(found), reader.torn_at is not None


@pytest.mark.timeout(60 + 10 * ROUNDS)
@pytest.mark.parametrize("mode", list(FsyncMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_what_was_acknowledged_survives(driver: str, backend: str, mode: FsyncMode, tmp_path: Path) -> None:
    path = tmp_path / "log"
    chance = random.Random(f"{driver} {backend} {mode}")
    acknowledged: dict[int, tuple[int, int]] = {}  # {offset: (name, number)}
    firsts: list[int] = []

    async def reopen(records: int, *, is_torn: bool) -> None:
        async with open_append_log(path, preallocate=0) as log:
            assert log.recovery.records == records
            assert (log.recovery.bytes_cut > 0) == is_torn
        assert await _verify(path, acknowledged, firsts) == (records, False)

    for i in range(ROUNDS):
        firsts.append(i * 1_000_000)
        arguments = [str(path), driver, mode.value, str(firsts[-1]), backend]
        said = _run_until_killed(arguments, chance.randrange(1, 600))
        for line in said.splitlines():
            offset, name, number = map(int, line.split())
            assert offset not in acknowledged, "no offset comes twice"
            acknowledged[offset] = name, number
        records, is_torn = anyio.run(_verify, path, acknowledged, firsts)
        if i % 4 == 3:
            anyio.run(partial(reopen, records, is_torn=is_torn))  # otherwise the next child does that, and goes on
        if path.stat().st_size > 32 << 20:
            path.unlink()
            acknowledged.clear()

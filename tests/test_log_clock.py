"""The append-only log by trio's mock clock: what is acknowledged is synced within a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from anyio_uring import FsyncMode, open_append_log, open_uring

from .helpers import until
from .log_helpers import watch


@pytest.mark.trio
async def test_a_second_by_the_event_loops_clock(driver: Any, tmp_path: Path, mock_clock: MockClock) -> None:
    async with (
        open_uring(driver=driver) as io,
        open_append_log(tmp_path / "log", io=io, fsync=FsyncMode.EVERY_SECOND) as log,
    ):
        commits = watch(io)
        for _ in range(2):
            commits.asked.clear()
            await log.append(b"x")
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(0.999)
            await trio.testing.wait_all_tasks_blocked()
            await log.append(b"y")
            assert commits.asked == [("WRITE",)] * 2
            assert log.durable_end < log.end
            mock_clock.jump(0.001)
            await until(lambda: log.durable_end == log.end)
            assert commits.asked == [("WRITE",), ("WRITE",), ("FSYNC",)]
            # Without appends there is nothing to sync.
            mock_clock.jump(10)
            await trio.testing.wait_all_tasks_blocked()
            assert len(commits.asked) == 3

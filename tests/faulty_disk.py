"""A faulty disk for tests: starts :mod:`tests.faulty_fuse`, tells it what to do, and takes it down again."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NoReturn

import pytest

from .lossy_store import Loss

ROOT: Final = Path(__file__).parent.parent
# Set where the machine has to offer FUSE: what cannot be tested is then a failure.
EXPECTED: Final = "TESTS_EXPECT_FUSE"


class FaultyDisk:
    """
    A mounted filesystem that loses what was not synced.

    :ivar path: where it is mounted
    """

    def __init__(self, path: Path, server: subprocess.Popen[str]) -> None:
        self.path = path
        self._server = server

    def _tell(self, command: str, **keywords: Any) -> Any:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps({"command": command, **keywords}) + "\n")
        self._server.stdin.flush()
        line = self._server.stdout.readline()
        assert line, "the filesystem's server has ended"
        return json.loads(line)

    def operations(self) -> list[str]:
        """Return the names of the operations that changed something, since the last :meth:`reset`."""
        return list(self._tell("operations"))

    def reset(self) -> None:
        """Forget every fault, limit and count."""
        self._tell("reset", wipe=False)

    def wipe(self) -> None:
        """Begin anew: an empty directory, and no faults."""
        self._tell("reset", wipe=True)

    def crash(self, loss: Loss = "drop", seed: int = 0) -> None:
        """Lose what was not synced, all or parts of it; until :meth:`recover` everything fails with EIO."""
        self._tell("crash", loss=loss, seed=seed)

    def crash_before(self, count: int, loss: Loss = "drop", seed: int = 0) -> None:
        """Crash when ``count`` operations that change something have been carried out, at the next one."""
        self._tell("crash_before", count=count, loss=loss, seed=seed)

    def has_crashed(self) -> bool:
        """Whether it is down: no :meth:`recover` has followed a crash."""
        return bool(self._tell("has_crashed"))

    def recover(self) -> None:
        """Switch on again; files that were open stay dead."""
        self._tell("recover")

    def fail(
        self, operation: str, code: int = errno.EIO, *, nth: int = 1, times: int = 1, at: int | None = None
    ) -> None:
        """
        Fail the nth operation of this kind from now on, and so many in all.

        After a failed fsync the disk does not have its data, and never will; the kernel may have it in memory still.

        :param at: count only reads or writes of this byte
        """
        self._tell("fail", operation=operation, code=code, nth=nth, times=times, at=at)

    def limit(self, *, space: int | None = None, write_max: int | None = None, read_max: int | None = None) -> None:
        """
        Leave room for that many more bytes, then ENOSPC; take at most so many bytes of each write.

        :param read_max: give at most so many bytes of each read; with O_DIRECT alone, for the kernel takes a short
            one into its cache for the end of the file
        """
        self._tell("limit", space=space, write_max=write_max, read_max=read_max)

    def hold(self, operation: str) -> None:
        """Let no operation of this kind come back until :meth:`release`."""
        self._tell("hold", operation=operation)

    def wait_until_held(self, count: int = 1) -> None:
        """Wait until so many are held; it blocks this thread."""
        assert self._tell("wait_until_held", count=count)

    def release(self) -> None:
        """Let go of what is held."""
        self._tell("release")

    def expired(self) -> list[str]:
        """Return what was held for so long that it failed by itself, since the last :meth:`reset`."""
        return list(self._tell("expired"))

    def tree(self) -> dict[str, bytes]:
        """Return ``{path below the mount: content}`` as the server has it, also while it is down."""
        return {path[1:]: content.encode("latin-1") for path, content in self._tell("tree").items()}

    def kill(self) -> None:
        """Kill the server, whatever it is doing."""
        self._server.kill()
        self._server.wait()


@contextmanager
def faulty_disk(path: Path) -> Iterator[FaultyDisk]:
    """Mount a faulty disk at an empty directory; skip the test, with the reason, where there is no FUSE."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.faulty_fuse", str(path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            assert server.stdout is not None and server.stderr is not None
            if not server.stdout.readline():
                _give_up(server.stderr.read())
            try:
                yield FaultyDisk(path, server)
            finally:
                server.kill()
                subprocess.run(["fusermount3", "-u", "-z", str(path)], capture_output=True, check=True)
        finally:
            server.kill()


def _give_up(complaint: str) -> NoReturn:
    reason = f"no FUSE here: {complaint.strip().splitlines()[-1]}"
    if os.environ.get(EXPECTED):
        pytest.fail(reason)
    pytest.skip(reason)

"""
A participant's process, seen from the suite: started, told what to do, timed out, ended.

Knows nothing of rounds and ratios.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import select
import signal
import subprocess
from pathlib import Path
from typing import IO, Any

from .cases import Case
from .environments import ROOT, clean_environment
from .participants import Participant

Reply = dict[str, Any]
TIMEOUT = 120.0


class WorkerProcess:
    """Start a participant's worker; :attr:`absent` says why, if it cannot take part."""

    def __init__(self, participant: Participant, python: str, directory: Path, log: IO[bytes]) -> None:
        self._directory = directory
        options = json.dumps(dict(participant.options))
        # Not by its path: the modules beside it must not hide the packages that they are named after.
        command = [python, "-W", "ignore", "-m", "benchmarks.worker", participant.module, participant.loop, options]
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=clean_environment() | {"PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )

    def started(self) -> Reply:
        """Wait until it is ready."""
        return self._answer()

    def run(self, case: Case, operations: int, seed: int, *, probe: bool = False) -> Reply:
        """Have a case measured; a process that has died or does not answer is a failure."""
        command = {
            "case": dataclasses.asdict(case),
            "directory": str(self._directory),
            "operations": operations,
            "seed": seed,
            "probe": probe,
        }
        assert self._process.stdin is not None
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return {"failure": f"the process had ended with status {self._process.wait()}", "ended": True}
        reply = self._answer()
        # Some libraries have threads that poll, also while there is nothing to do: they would disturb the next one.
        self._process.send_signal(signal.SIGSTOP)
        return reply

    def _answer(self) -> Reply:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], TIMEOUT)
        if not ready:
            self.end()
            return {"failure": f"no answer within {TIMEOUT:.0f} s", "ended": True}
        line = self._process.stdout.readline()
        if not line:
            return {"failure": f"the process ended with status {self._process.wait()}", "ended": True}
        reply: Reply = json.loads(line)
        return reply

    def end(self) -> None:
        """End the process; nothing in it is worth saving."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

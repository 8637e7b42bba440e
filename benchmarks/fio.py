"""
fio as one more participant: the same cases on the same file, with its own engines, as the ceiling.

It answers as ``processes.WorkerProcess`` does.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cases import Case
from .environments import AbsentEnvironmentError
from .participants import Participant

if TYPE_CHECKING:
    from .measure import Settings

_SHORTEST = 100
_ENGINES_OF_A_RING = frozenset({"io_uring"})


class FioProcess:
    """Runs the program anew for each measurement; it warms up and times itself."""

    def __init__(self, participant: Participant, settings: Settings) -> None:
        self._program = shutil.which("fio")
        if self._program is None:
            raise AbsentEnvironmentError("fio is not installed (Debian: apt-get install fio)")
        self._engine = str(participant.options["engine"])
        self._more = [str(option) for option in participant.options.get("more", ())]
        self._settings = settings

    def started(self) -> dict[str, Any]:
        return {"ready": True}

    def end(self) -> None:
        """Do nothing: there is no process between two measurements."""

    def run(self, case: Case, operations: int, seed: int, *, probe: bool = False) -> dict[str, Any]:
        """Measure a case; the number of operations is kept to only where it is fixed."""
        evidence = sorted({self._engine} & _ENGINES_OF_A_RING)
        seen = {"driver": self._engine, "evidence": evidence}
        if probe:
            return {**seen, "waits_for_loop": False, "python": "", "packages": {"fio": self._version()}}
        if self._is_other(case):
            return {"unsupported": True}
        name = "written" if case.kind == "writes" else "big"
        job = self._run(case, operations, seed, self._settings.directory / name)
        if isinstance(job, str):
            return {"failure": job}
        if job["job options"]["ioengine"] != self._engine:
            return {"failure": f"fio used the engine {job['job options']['ioengine']}"}
        done = job["write" if case.kind == "writes" else "read"]
        seconds = (job["job_runtime"] if case.kind == "writes" else done["runtime"]) / 1000
        return {**seen, "seconds": max(seconds, 0.001), "operations": done["total_ios"]}

    def _is_other(self, case: Case) -> bool:
        # One thread that reads synchronously has one depth; more threads would be another participant.
        synchronous = self._engine == "psync"
        deep = max(case.tasks, case.batch) > 1
        return case.kind == "files" or case.unit == "ms" or case.tasks > 256 or (synchronous and deep)

    def _run(self, case: Case, operations: int, seed: int, path: Path) -> dict[str, Any] | str:
        command = [
            str(self._program),
            "--name=benchmark",
            "--output-format=json",
            f"--filename={path}",
            f"--size={os.path.getsize(path)}",
            f"--ioengine={self._engine}",
            f"--bs={case.size}",
            f"--direct={int(case.direct)}",
            f"--invalidate={int(case.cold)}",
            f"--iodepth={max(case.tasks, case.batch)}",
            f"--randseed={seed}",
            *self._more,
        ]
        order = "read" if case.order == "sequential" else "randread"
        command.append("--rw=randwrite" if case.kind == "writes" else f"--rw={order}")
        if case.kind == "writes":
            command += ["--fdatasync=1", "--verify=0"]
        if case.fixed:
            command.append(f"--io_size={operations * case.size}")
        else:
            runtime = max(_SHORTEST, int(self._settings.seconds * 1000))
            command += ["--time_based", f"--runtime={runtime}ms", "--norandommap"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"fio ended with status {done.returncode}: {done.stderr.strip()[-200:]}"
        (job,) = json.loads(done.stdout[done.stdout.index("{") :])["jobs"]
        result: dict[str, Any] = job
        return result

    def _version(self) -> str:
        return subprocess.run(
            [str(self._program), "--version"], capture_output=True, text=True, check=True
        ).stdout.strip()

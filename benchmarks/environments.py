"""
An environment for each set of requirements: made once, kept in a cache directory.

What cannot be installed is an ``AbsentEnvironmentError`` with pip's last words.  Knows nothing of what the
requirements are for.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIBRARY = "anyio_uring"


class AbsentEnvironmentError(Exception):
    """An environment that cannot be made, and why."""


class Environments:
    """Environments of one interpreter, under one directory."""

    def __init__(self, directory: Path, python: str = sys.executable) -> None:
        self._directory = directory
        self._base = python
        self._made: dict[tuple[str, ...], str | AbsentEnvironmentError] = {}
        self.version = _output(python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])")

    def python(self, requirements: tuple[str, ...], at_least: tuple[int, int] = (3, 10)) -> str:
        """
        Return the interpreter of an environment that has the requirements.

        :raises AbsentEnvironmentError: if they cannot be had
        """
        if tuple(map(int, self.version.split("."))) < at_least:
            raise AbsentEnvironmentError(f"needs Python {at_least[0]}.{at_least[1]}, and this run has {self.version}")
        if not requirements:
            return self._base
        if requirements not in self._made:
            try:
                self._made[requirements] = self._make(requirements)
            except AbsentEnvironmentError as exc:
                self._made[requirements] = exc
        made = self._made[requirements]
        if isinstance(made, AbsentEnvironmentError):
            raise made
        return made

    def _make(self, requirements: tuple[str, ...]) -> str:
        words = "-".join(word.strip("-") for word in requirements)
        directory = self._directory / f"{self.version}-{words}"
        python, stamp = directory / "bin" / "python", directory / "stamp"
        fingerprint = _fingerprint(requirements)
        if stamp.exists() and stamp.read_text() == fingerprint and python.exists():
            return str(python)
        if not python.exists():
            _output(self._base, "-m", "venv", "--clear", str(directory))
        # setuptools never removes from build/ what has gone from src/, and would install it, too.
        shutil.rmtree(ROOT / "build", ignore_errors=True)
        names = [f"{ROOT}[trio]" if word == LIBRARY else word for word in requirements]
        _pip(str(python), *names)
        stamp.write_text(fingerprint)
        return str(python)


def _fingerprint(requirements: tuple[str, ...]) -> str:
    """What the library was built from: its environment is made anew when that changes."""
    digest = hashlib.sha256(" ".join(requirements).encode())
    if LIBRARY in requirements:
        sources = [ROOT / "pyproject.toml", ROOT / "setup.py", *sorted((ROOT / "src").rglob("*.[pch]*"))]
        for path in sources:
            if path.is_file() and "__pycache__" not in path.parts and path.name != "_lib.c":
                digest.update(path.read_bytes())
    return digest.hexdigest()


def _pip(python: str, *requirements: str) -> None:
    command = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--force-reinstall", *requirements]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=clean_environment())
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith(("RuntimeError", "ERROR"))]
        raise AbsentEnvironmentError(f"pip: {(errors or lines or ['no reason given'])[0]}")


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, env=clean_environment()).stdout.strip()


def clean_environment() -> dict[str, str]:
    """Return this process's environment variables, for an interpreter of another environment."""
    # What points this interpreter at its packages must not point another one at them.
    return {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}}

"""What commands say: to anybody, to nobody, and to what cannot take it; and what their exit status says then."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from anyio_uring.__main__ import main

from .helpers import shown_on_a_terminal

MODULE = ["-m", "anyio_uring"]
COMMANDS = {
    "doctor": ["doctor", "tree"],
    "json": ["doctor", "--json", "tree"],
    "demo": ["demo", "tree", "--target", "."],
    "cp": ["cp", "tree/file", "copy"],
}
every_command = pytest.mark.parametrize("command", COMMANDS)
# What Latin-1 has and ASCII lacks, and what no encoding has: a file's name is bytes.
NAME = os.fsdecode(b"\xc3\xa9\xff")
ESCAPED = r"\xe9\udcff"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(b"data")
    return tmp_path


def _run(
    place: Path, arguments: list[str], redirection: str = "", *, stdout: int = subprocess.PIPE, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run Python by way of a shell, which can close standard output."""
    return subprocess.run(
        ["sh", "-c", f'exec "$0" "$@" {redirection}', sys.executable, *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=50,
        cwd=place,
        env={**os.environ, "PYTHONUTF8": "1", **variables},
    )


def _status(command: str, driver: str) -> int:
    return 1 if driver == "threads" and command in {"doctor", "json"} else 0


# --- nobody listens -----------------------------------------------------------------------------


@every_command
def test_a_closed_output_changes_nothing(place: Path, command: str, driver: str) -> None:
    done = _run(place, [*MODULE, *COMMANDS[command]], ">&-", ANYIO_URING_DRIVER=driver)
    assert (done.returncode, done.stderr) == (_status(command, driver), "")
    assert command != "cp" or (place / "copy").read_bytes() == b"data"


@pytest.fixture(params=["full", "pipe"])
def failing(request: pytest.FixtureRequest) -> Iterator[tuple[int, str]]:
    """A descriptor that takes nothing, and why not."""
    if request.param == "full":
        fd, why = os.open("/dev/full", os.O_WRONLY), "No space left on device"
    else:
        (read, fd), why = os.pipe(), "Broken pipe"
        os.close(read)
    yield fd, why
    os.close(fd)


@every_command
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_an_output_that_fails_has_a_status_of_its_own(
    place: Path, command: str, failing: tuple[int, str], unbuffered: str
) -> None:
    """The interpreter's own, 120 or 1, would say nothing, or something else."""
    fd, why = failing
    variables = {"PYTHONUNBUFFERED": unbuffered, "ANYIO_URING_DRIVER": "threads"}
    done = _run(place, [*MODULE, *COMMANDS[command]], stdout=fd, **variables)
    assert (done.returncode, done.stderr) == (3, f"anyio-uring: standard output: {why}\n")
    assert command != "cp" or (place / "copy").read_bytes() == b"data"
    assert set(os.listdir(place)) <= {"tree", "copy"}


def test_a_help_that_cannot_be_written_has_it_too(place: Path, failing: tuple[int, str]) -> None:
    fd, why = failing
    done = _run(place, [*MODULE, "--help"], stdout=fd, PYTHONUNBUFFERED="")
    assert (done.returncode, done.stderr) == (3, f"anyio-uring: standard output: {why}\n")


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
def test_complaints_that_cannot_be_written_leave_the_status(place: Path, redirection: str) -> None:
    done = _run(place, [*MODULE, "cp", "missing", "copy"], redirection)
    assert (done.returncode, done.stdout) == (1, "")


@pytest.mark.parametrize("command", ["doctor", "demo", "cp"])
def test_the_help_has_the_statuses_of_all(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "3 if standard output did not take what there was to say, 130 after Ctrl-C" in out


# --- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", ESCAPED), ("iso8859-1", "\xe9\\udcff")])
@pytest.mark.parametrize("command", ["doctor", "demo", "cp"])
def test_a_name_that_the_encoding_lacks_is_escaped(
    place: Path, command: str, *, encoding: str, shown: str, driver: str
) -> None:
    os.rename(place / "tree", place / NAME)
    arguments = {
        "doctor": ["doctor", NAME],
        "demo": ["demo", NAME, "--target", "."],
        "cp": ["cp", f"{NAME}/file", f"copy {NAME}"],
    }[command]
    done = subprocess.run(
        [sys.executable, *MODULE, *arguments],
        capture_output=True,
        check=False,
        timeout=50,
        cwd=place,
        env={**os.environ, "PYTHONUTF8": "1", "PYTHONIOENCODING": encoding, "ANYIO_URING_DRIVER": driver},
    )
    assert (done.returncode, done.stderr) == (_status(command, driver), b"")
    assert shown.encode(encoding) in done.stdout
    assert command != "cp" or (place / f"copy {NAME}").read_bytes() == b"data"


def test_such_a_name_that_is_missing_is_broken(place: Path) -> None:
    done = _run(place, [*MODULE, "doctor", NAME], PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (2, "")
    assert f"broken: {ESCAPED}: No such file or directory" in done.stdout


def test_such_a_name_on_a_terminal(place: Path) -> None:
    os.mkdir(place / "\udcff")
    command = [sys.executable, *MODULE, "doctor", "\udcff"]
    status, shown = shown_on_a_terminal(command, place, PYTHONUTF8="1", COLUMNS="200", ANYIO_URING_DRIVER="threads")
    assert status == 1
    assert "\x1b[" in shown
    assert r"\udcff" in shown
    assert "Traceback" not in shown


# --- Ctrl-C -------------------------------------------------------------------------------------


# The signal may be ignored, as in a background job of a shell.
INTERRUPTED = """
import os, signal, sys
import anyio
signal.signal(signal.SIGINT, signal.default_int_handler)
from anyio_uring import AsyncIoManager, _demo_command
from anyio_uring.__main__ import main

async def write(*_, **__):
    os.kill(os.getpid(), signal.SIGINT)
    await anyio.sleep_forever()

AsyncIoManager.write_and_sync = AsyncIoManager.write_batch = write
_demo_command._legs = lambda *_: ([(sys.argv[1], sys.argv[2])], True)
sys.exit(main(sys.argv[3:]))
"""


def test_ctrl_c_ends_the_doctor_with_one_line(place: Path, driver: str) -> None:
    done = _run(place, ["-c", INTERRUPTED, "asyncio", driver, *COMMANDS["doctor"]], ANYIO_URING_DRIVER=driver)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "anyio-uring: interrupted\n")
    assert os.listdir(place / "tree") == ["file"]


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@pytest.mark.parametrize("keep", [False, True], ids=["", "keep"])
def test_ctrl_c_ends_the_demonstration_with_one_line(place: Path, loop: str, *, driver: str, keep: bool) -> None:
    """What it is told to keep it keeps, and says where."""
    done = _run(place, ["-c", INTERRUPTED, loop, driver, *COMMANDS["demo"], *["--keep"] * keep])
    assert (done.returncode, done.stderr) == (130, "anyio-uring: interrupted\n")
    left = [str(place / name) for name in os.listdir(place) if name != "tree"]
    # mkdtemp() in a relative directory gives a relative path, before Python 3.12.
    said = [str(place / line[18:]) for line in done.stdout.splitlines() if line.startswith("The copies are in ")]
    assert said == left
    assert len(left) == keep

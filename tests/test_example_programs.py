"""The programs in examples/ do what they say, on both event loops and both drivers."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from . import programs

EXAMPLES = Path(__file__).parent.parent / "examples"
PROGRAMS = sorted(path.name for path in EXAMPLES.glob("*.py"))
LINES_MAX = 120


@pytest.fixture(params=["asyncio", "trio"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def start(backend: str, driver: str) -> Any:
    """Start an example on this event loop and this driver, with pipes."""

    @contextmanager
    def start(name: str, *arguments: object) -> Iterator[subprocess.Popen[bytes]]:
        command = [sys.executable, "-W", "error", EXAMPLES / name, "--backend", backend, "--driver", driver, *arguments]
        pipe = subprocess.PIPE
        with subprocess.Popen([*map(str, command)], stdin=pipe, stdout=pipe, stderr=pipe) as process:
            try:
                yield process
            finally:
                process.kill()

    return start


@pytest.fixture
def run(start: Any) -> Any:
    """Run an example to its end; return its exit status, output and complaints."""

    def run(name: str, *arguments: object, given: bytes = b"") -> tuple[int, bytes, bytes]:
        with start(name, *arguments) as process:
            output, complaints = process.communicate(given, timeout=40)
            return process.returncode, output, complaints

    return run


def test_there_are_examples() -> None:
    assert PROGRAMS == ["checksums.py", "key_value_store.py", "rotating_log.py", "sampler.py", "service.py"]


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_example_is_short_and_tells_how_it_is_used(name: str) -> None:
    assert len((EXAMPLES / name).read_text(encoding="utf-8").splitlines()) <= LINES_MAX
    done = subprocess.run([sys.executable, EXAMPLES / name, "--help"], capture_output=True, text=True, check=True)
    first_line = (EXAMPLES / name).read_text(encoding="utf-8").splitlines()[0].strip('"')
    assert first_line.split(":")[0] in " ".join(done.stdout.split())
    assert "--backend" in done.stdout


# --- checksums ------------------------------------------------------------------------------------


def test_checksums_are_those_of_sha256sum(run: Any, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "below").mkdir(parents=True)
    chance = random.Random(1)
    for number in range(40):
        (tree / "below" / f"{number} file").write_bytes(chance.randbytes(chance.choice([0, 1, 4096, 100_000])))
    (tree / "large").write_bytes(chance.randbytes((3 << 20) + 1))
    (tree / "back\\slash").write_bytes(b"1")
    (tree / "line\nend").write_bytes(b"2")
    (tree / "latin-1 \udce9").write_bytes(b"3")
    (tree / "link").symlink_to("large")
    status, output, complaints = run("checksums.py", tree)
    assert (status, complaints) == (0, b"")
    paths = sorted((path for path in tree.rglob("*") if path.is_file() and not path.is_symlink()), key=os.fsencode)
    if shutil.which("sha256sum") is None:
        pytest.fail("sha256sum is needed (Debian: coreutils)")
    expected = subprocess.run(["sha256sum", *paths], capture_output=True, check=True).stdout
    assert sorted(output.splitlines()) == sorted(expected.splitlines())
    assert len(output.splitlines()) == 44


def test_checksums_say_what_could_not_be_read(backend: str, driver: str, tmp_path: Path) -> None:
    """A file that is gone when its turn comes; what root could not read would be hard to come by."""
    (tmp_path / "good").write_bytes(b"content")
    printed = programs.run(
        """
import contextlib, io, logging, os, runpy
logging.getLogger("asyncio").setLevel(logging.ERROR)  # in its debug mode it tells of what was slow
walk, isfile = os.walk, os.path.isfile
os.walk = lambda top, onerror: [*walk(top, onerror=onerror), (top, [], ["gone"])]
os.path.isfile = lambda path: path.endswith("gone") or isfile(path)
program, sys.argv = sys.argv[1], sys.argv[1:]
complaints = io.StringIO()
try:
    with contextlib.redirect_stderr(complaints):
        runpy.run_path(program, run_name="__main__")
except SystemExit as exc:
    print(exc.code, complaints.getvalue())
""",
        EXAMPLES / "checksums.py",
        *("--backend", backend, "--driver", driver, tmp_path),
    )
    expected = f"{hashlib.sha256(b'content').hexdigest()}  {tmp_path}/good"
    assert printed.splitlines()[0] == expected
    assert printed.splitlines()[1] == f"1 '{tmp_path}/gone': No such file or directory"


def test_checksums_of_no_directory(run: Any, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    assert run("checksums.py", missing) == (1, b"", f"{missing!r}: No such file or directory\n".encode())


# --- the store ------------------------------------------------------------------------------------


def _ask(process: subprocess.Popen[bytes], line: bytes) -> bytes:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line + b"\n")
    process.stdin.flush()
    return process.stdout.readline().rstrip(b"\n")


def test_the_store_survives_kill_9(start: Any, tmp_path: Path) -> None:
    path = tmp_path / "store"
    with start("key_value_store.py", path) as process:
        for number in range(100):
            assert _ask(process, b"put key%d value %d" % (number % 50, number)) == b"ok"
        assert _ask(process, b"delete key7") == b"ok"
        assert _ask(process, b"delete key7") == b"no such key"
        assert _ask(process, b"get key8") == b"= value 58"
        assert _ask(process, b"what") == b"put KEY VALUE, delete KEY, get KEY or keys?"
        process.kill()
        assert process.wait() == -signal.SIGKILL
    with path.open("r+b") as file:  # and what a crash leaves of a record that was not acknowledged
        content = file.read().rstrip(b"\0")
        file.seek(len(content))
        file.write(b"torn")
    with start("key_value_store.py", path) as process:
        assert _ask(process, b"get key7") == b"no such key"
        assert [_ask(process, b"get key%d" % n) for n in (0, 8, 49)] == [b"= value 50", b"= value 58", b"= value 99"]
        assert len(_ask(process, b"keys").split()) == 1 + 49
        assert _ask(process, b"put key7 again") == b"ok"
        output, complaints = process.communicate(b"get key7\n", timeout=40)
        assert output == b"= again\n"
        assert b"were cut" in complaints
        assert process.returncode == 0


# --- the rotating log -----------------------------------------------------------------------------


def test_the_rotating_log_keeps_the_newest_lines(run: Any, tmp_path: Path) -> None:
    directory = tmp_path / "logs"
    lines = [b"line %d\n" % number for number in range(1000)]
    options = (directory, "--size", 4096, "--keep", 3, "--fsync", "never")
    assert run("rotating_log.py", *options, given=b"".join(lines)) == (0, b"", b"")
    files = sorted(path.name for path in directory.iterdir())
    assert len(files) == 3
    assert files[-1] > "00000005.log"
    status, output, complaints = run("rotating_log.py", directory, "--print")
    assert (status, complaints) == (0, b"")
    kept = output.splitlines(keepends=True)
    assert 250 < len(kept) < 600
    assert kept == lines[-len(kept) :]
    # Another start goes on behind them.
    assert run("rotating_log.py", *options, given=b"another\n")[0] == 0
    assert run("rotating_log.py", directory, "--print")[1].splitlines()[-2:] == [b"line 999", b"another"]
    assert len(list(directory.iterdir())) == 3


# --- the sampler ----------------------------------------------------------------------------------


@pytest.mark.parametrize("record_size", [4096, 1000])
def test_the_sampler_reads_what_its_seed_says(run: Any, tmp_path: Path, record_size: int) -> None:
    count, batch = 64, 8
    data = random.Random(2).randbytes(count * record_size + 5)
    (tmp_path / "data").write_bytes(data)
    options = ("--record-size", record_size, "--batch", batch, "--batches", 3, "--seed", 5)
    status, output, complaints = run("sampler.py", tmp_path / "data", *options)
    assert status == 0, complaints
    chance = random.Random(5)
    expected = []
    for _ in range(3):
        starts = [chance.randrange(count) * record_size for _ in range(batch)]
        mean = sum(sum(data[start : start + record_size]) for start in starts) / (batch * record_size)
        expected.append(f"{mean:.4f}")
    assert output.decode().split() == expected
    assert (b"through the page cache" in complaints) or record_size == 4096
    status, _, complaints = run("sampler.py", os.devnull)
    assert status == 1
    assert b"has no record of 4096 bytes" in complaints


# --- the service ----------------------------------------------------------------------------------


def test_the_service_answers_many_clients(start: Any, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    data = random.Random(3).randbytes(200_000)
    (tree / "data").write_bytes(data)
    (tmp_path / "secret").write_bytes(b"secret")
    os.mkfifo(tree / "fifo")
    with start("service.py", tree, "--timeout", 0.5) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        clients = [socket.create_connection(("127.0.0.1", port), timeout=40) for _ in range(8)]
        chance = random.Random(4)
        for _ in range(5):
            places = [(chance.randrange(len(data)), chance.randrange(1, 70_000)) for _ in clients]
            for client, (offset, length) in zip(clients, places):
                client.sendall(b"data %d %d\n" % (offset, length))
            for client, (offset, length) in zip(clients, places):
                expected = data[offset : offset + length]
                assert _received(client, len(b"%d\n" % len(expected)) + len(expected)) == (
                    b"%d\n" % len(expected) + expected
                )
        errors = {
            b"../secret 0 9": b"error: not in the directory\n",
            b"missing 0 9": b"error: No such file or directory\n",
            b"fifo 0 9": b"0\n",
            b"data 0": b"error: not enough values to unpack (expected 3, got 2)\n",
            b"data 0 9999999": b"error: LENGTH is 0 to 1048576\n",
        }
        for request, error in errors.items():
            clients[0].sendall(request + b"\n")
            assert _received(clients[0], len(error)) == error
        for client in clients:
            client.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=40) == 0, process.stderr and process.stderr.read()


def _received(client: socket.socket, length: int) -> bytes:
    parts = b""
    while len(parts) < length:
        part = client.recv(length - len(parts))
        assert part, parts
        parts += part
    return parts

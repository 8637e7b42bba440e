"""The doctor tells the truth, and harms nothing."""

from __future__ import annotations

import errno
import json
import mmap
import os
import re
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest

from anyio_uring import AsyncIoManager, UringUnavailableError, _doctor
from anyio_uring.__main__ import main
from anyio_uring._doctor import examine
from anyio_uring._doctor_command import _lines
from anyio_uring._kernel import liburing_version, try_setup

from . import denied
from .helpers import file_size_limit, shown_on_a_terminal

BACKENDS = ["asyncio", "trio"]


def run(prelude: str, *arguments: str, **variables: str) -> tuple[int, Any]:
    """Run the doctor in a process of its own behind some Python; return its status and its findings."""
    code = (
        f"import errno, sys; sys.path.insert(0, {str(denied.ROOT)!r})\n"
        f"{prelude}\n"
        "from anyio_uring.__main__ import main; sys.exit(main(['doctor', '--json', *sys.argv[1:]]))"
    )
    command = [sys.executable, "-X", "dev", "-c", code, *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=30, env={**os.environ, **variables}
    )
    assert done.returncode in {0, 1, 2}, done.stderr
    # asyncio, in its debug mode, complains of a machine that is slow.
    assert not [line for line in done.stderr.splitlines() if not line.startswith("Executing <")]
    report = json.loads(done.stdout)
    assert report["status"] == done.returncode
    return done.returncode, report


@pytest.mark.ring
@pytest.mark.parametrize("backend", BACKENDS)
def test_where_there_is_a_ring(backend: str, tmp_path: Path) -> None:
    report = examine(str(tmp_path), backend=backend)
    assert (report.status, report.driver, report.reason, report.problem) == (0, "uring", None, None)
    assert report.io_uring_setup == "works"
    assert report.kernel == os.uname().release
    assert set(report.setup_flags) <= {name for name, how in report.setups.items() if how == "works"}
    assert {"READ", "WRITE", "FSYNC", "ASYNC_CANCEL"} <= set(report.opcodes)
    assert report.depth == 256
    assert report.place is not None
    assert report.place.path == str(tmp_path)
    assert report.place.written == 65536
    assert not os.listdir(tmp_path)
    assert not [line for line in _lines(report) if line[2] == "bad"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_where_the_environment_asks_for_threads(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYIO_URING_DRIVER", "threads")
    report = examine(str(tmp_path), backend=backend)
    assert (report.status, report.driver, report.problem) == (1, "threads", None)
    assert str(report.reason).startswith("the environment variable ANYIO_URING_DRIVER asks for it")
    assert report.place is not None
    assert report.place.written == 65536


@pytest.mark.ring
def test_what_features_need() -> None:
    features = {feature.option: feature for feature in examine().features}
    # The kernel that these tests need to test the ring (6.0) has all of it; whether an option is there, the class says.
    assert {name: feature.lacks for name, feature in features.items()} == dict.fromkeys(
        ["fixed_buffers", "fixed_files", "sqpoll", "iopoll", "restrict"], ()
    )


@pytest.mark.ring
def test_a_feature_that_the_kernel_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_doctor._SETUPS, "SQPOLL", 1 << 31)
    monkeypatch.setattr(_doctor, "_OPCODES", [*_doctor._OPCODES, *map(str, range(len(_doctor._OPCODES), 255)), "NONE"])
    report = examine()
    assert report.setups["SQPOLL"] == "EINVAL"
    lines = {name: value for name, value, _ in _lines(report)}
    assert lines["SQPOLL"].startswith("the kernel lacks SQPOLL (EINVAL)")
    assert "SQPOLL (EINVAL)" in lines["flags, refused"]
    assert report.driver == "uring"


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["EPERM", "ENOSYS", "EACCES"])
def test_under_a_seccomp_filter(answer: str) -> None:
    status, report = run(f"from tests.denied import deny; deny('io_uring_setup', errno.{answer})")
    assert (status, report["driver"], report["seccomp"]) == (1, "threads", "filter")
    assert report["io_uring_setup"] == answer
    assert answer in report["reason"]
    assert set(report["setups"].values()) == {answer}
    assert {feature["lacks"] for feature in report["features"]} == {None}
    assert report["place"]["written"] == 65536


@pytest.mark.ring
def test_under_a_filter_that_allows_the_set_up_alone() -> None:
    status, report = run("from tests.denied import deny; deny('io_uring_enter', errno.EPERM)")
    assert (status, report["driver"], report["io_uring_setup"]) == (1, "threads", "works")
    assert report["reason"].startswith("a first read through the ring was refused with EPERM")
    assert report["depth"] is None


def test_where_the_ring_is_demanded_and_refused() -> None:
    status, report = run(
        "from tests.denied import deny; deny('io_uring_setup', errno.EPERM)", ANYIO_URING_DRIVER="uring"
    )
    assert (status, report["driver"], report["place"]) == (2, None, None)
    assert report["problem"].startswith("io_uring_setup was refused with EPERM")


def test_where_threads_are_asked_for_and_the_ring_is_refused_as_well() -> None:
    status, report = run(
        "from tests.denied import deny; deny('io_uring_setup', errno.EPERM)", ANYIO_URING_DRIVER="threads"
    )
    assert (status, report["driver"]) == (1, "threads")
    asked, refused = report["reason"].split("; and without it: ")
    assert asked == "the environment variable ANYIO_URING_DRIVER asks for it"
    assert refused.startswith("io_uring_setup was refused with EPERM")


def test_without_proc_what_it_tells_is_unknown(tmp_path: Path) -> None:
    status, report = run(
        """
from tests import denied
if not denied.own_mounts():
    print('{"status": 0}')
    sys.exit()
denied.hide_proc()
""",
        str(tmp_path),
        ANYIO_URING_DRIVER="threads",
    )
    if "driver" not in report:
        pytest.skip("no mounts are allowed here")
    assert (status, report["driver"], report["problem"]) == (1, "threads", None)
    names = ("seccomp", "seccomp_filters", "io_uring_disabled", "is_memlock_exempt")
    assert [report[name] for name in names] == [None] * 4
    assert report["place"]["direct_read"] == "ENOENT"  # by way of /proc/self/fd
    assert report["place"]["written"] == 65536


def test_where_the_sysctl_forbids_it(tmp_path: Path) -> None:
    """The sysctl's file is another one, and the kernel's answer is the one that it gives then: EPERM."""
    sysctl = tmp_path / "io_uring_disabled"
    sysctl.write_text("2\n")
    status, report = run(
        f"""
import pathlib
from anyio_uring import _doctor, _ring
_doctor._SYSCTL = {str(sysctl)!r}
_ring._SYSCTL = pathlib.Path(_doctor._SYSCTL)
from tests.denied import deny
deny("io_uring_setup", errno.EPERM)
"""
    )
    assert (status, report["driver"], report["io_uring_disabled"]) == (1, "threads", 2)
    assert report["io_uring_setup"] == "EPERM"
    assert "kernel.io_uring_disabled is 2" in report["reason"]


# Loads what it needs before it gives up the right to read it.
UNPRIVILEGED = """
import contextlib, io, os, resource
from anyio_uring import _doctor
from anyio_uring.__main__ import main
resource.setrlimit(resource.RLIMIT_MEMLOCK, (BYTES, BYTES))
if os.getuid() == 0:
    with contextlib.redirect_stdout(io.StringIO()):
        main(["doctor", "--json", "/tmp"])
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
"""


@pytest.mark.ring
def test_an_unprivileged_user_with_little_locked_memory() -> None:
    """The doctor's own rings do not use it up: what it says of each flag is the kernel's word on that flag."""
    status, report = run(UNPRIVILEGED.replace("BYTES", "65536"), "/tmp")
    assert (status, report["driver"]) == (0, "uring")
    assert (report["memlock"], report["is_memlock_exempt"]) == (65536, False)
    assert "ENOMEM" not in report["setups"].values()
    assert report["io_uring_setup"] == "works"
    assert 8 <= report["depth"] <= 256
    (buffers,) = (feature for feature in report["features"] if feature["option"] == "fixed_buffers")
    assert "64 KiB" in buffers["needs"]


@pytest.mark.ring
def test_an_unprivileged_user_without_locked_memory() -> None:
    status, report = run(UNPRIVILEGED.replace("BYTES", "4096") + "_doctor._PATIENCE_SECONDS = 0\n", "/tmp")
    assert (status, report["driver"], report["io_uring_setup"]) == (1, "threads", "ENOMEM")
    assert "raise RLIMIT_MEMLOCK" in report["reason"]


@pytest.mark.ring
def test_memory_that_comes_back_late_is_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Locked memory of a ring that is closed, the kernel frees in its own time."""
    answers = [errno.ENOMEM, errno.ENOMEM]
    monkeypatch.setattr(_doctor, "try_setup", lambda flags: answers.pop() if answers else try_setup(flags))
    report = examine(str(tmp_path))
    assert (report.io_uring_setup, answers) == ("works", [])


def test_without_the_extension(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "anyio_uring._native._lib", None)
    report = examine(str(tmp_path))
    assert (report.status, report.driver, report.liburing, report.io_uring_setup) == (1, "threads", None, None)
    assert "liburing-dev" in str(report.reason)
    assert report.place is not None
    assert ("liburing", "no extension", "bad") in _lines(report)


# --- broken -------------------------------------------------------------------------------------


def test_a_bad_variable_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYIO_URING_DRIVER", "thread")
    report = examine()
    assert report.status == 2
    assert 'ANYIO_URING_DRIVER must be "auto"' in str(report.problem)


def test_wrong_bytes_are_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def lie(_io: AsyncIoManager, _fd: Any, length: int, _offset: int) -> bytes:
        return bytes(length)

    monkeypatch.setattr(AsyncIoManager, "read_exactly", lie)
    report = examine(str(tmp_path))
    assert (report.status, report.problem) == (2, "what was read is not what was written")
    assert not os.listdir(tmp_path)


def test_bytes_that_never_arrive_are_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kept: list[Any] = []

    async def keep(_io: AsyncIoManager, _fd: Any, data: bytes, _offset: int) -> int:
        kept.append(data)
        return len(data)

    async def give(_io: AsyncIoManager, _fd: Any, _length: int, _offset: int) -> Any:
        return kept[0]

    monkeypatch.setattr(AsyncIoManager, "write_and_sync", keep)
    monkeypatch.setattr(AsyncIoManager, "read_exactly", give)
    report = examine(str(tmp_path))
    assert (report.status, report.place) == (2, None)
    assert "what was written is not what is in the file" in str(report.problem)


def test_a_write_that_fails_is_broken(tmp_path: Path, driver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYIO_URING_DRIVER", driver)
    with file_size_limit(4096):
        report = examine(str(tmp_path))
    assert (report.status, report.driver, report.place) == (2, driver, None)
    assert str(report.problem).endswith("File too large")
    assert not os.listdir(tmp_path)


# --- the path -----------------------------------------------------------------------------------


def test_a_file_is_only_read(path: Path, driver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYIO_URING_DRIVER", driver)
    path.chmod(0o400)
    before = path.read_bytes(), path.stat().st_mtime_ns
    report = examine(str(path))
    assert (report.driver, report.problem) == (driver, None)
    assert report.place is not None
    assert report.place.file_read == 65536
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "missing: No such file or directory"),
        ("fifo", "fifo is neither a directory nor a regular file"),
        ("/dev/null", "/dev/null is neither a directory nor a regular file"),
        ("/proc", "No such file or directory"),
    ],
)
def test_a_path_that_cannot_be_used(
    name: str, message: str, tmp_path: Path, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which driver it is can be said all the same."""
    monkeypatch.setenv("ANYIO_URING_DRIVER", driver)
    os.mkfifo(tmp_path / "fifo")
    report = examine(str(tmp_path / name))
    assert (report.status, report.driver, report.place) == (2, driver, None)
    assert message in str(report.problem)


def test_the_default_path_is_a_writable_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANYIO_URING_DRIVER", "threads")
    place = examine().place
    assert place is not None
    assert place.path == str(tmp_path)
    monkeypatch.chdir("/proc")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    place = examine().place
    assert place is not None
    assert place.path == str(tmp_path)


@pytest.mark.parametrize(("code", "said"), [(errno.EAGAIN, "works"), (errno.EINVAL, "EINVAL")])
def test_how_a_cached_read_ends(code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``EAGAIN``, for a page that has gone, is an answer, too."""
    preadv = os.preadv

    def refuse(fd: int, buffers: Any, offset: int, flags: int = 0) -> int:
        if flags & os.RWF_NOWAIT:
            raise OSError(code, os.strerror(code))
        return preadv(fd, buffers, offset, flags)

    monkeypatch.setenv("ANYIO_URING_DRIVER", "threads")
    monkeypatch.setattr(os, "preadv", refuse)
    place = examine(str(tmp_path)).place
    assert place is not None
    assert place.cached_reads == said


def test_how_a_direct_read_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A filesystem may open for direct I/O what it then cannot read."""
    preadv = os.preadv

    def refuse(fd: int, buffers: Any, offset: int, flags: int = 0) -> int:
        if isinstance(buffers[0], mmap.mmap):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return preadv(fd, buffers, offset, flags)

    # Opened without O_DIRECT, for not every filesystem has it.
    monkeypatch.setattr(os, "O_DIRECT", 0)
    place = examine(str(tmp_path)).place
    assert place is not None
    assert place.direct_read == "works"
    monkeypatch.setattr(os, "preadv", refuse)
    report = examine(str(tmp_path))
    assert ("direct read", "EINVAL", "note") in _lines(report)


def test_whether_what_has_no_device_has_poll_queues_is_unknown() -> None:
    read, write = os.pipe()
    try:
        assert _doctor._has_poll_queues(read) is None
    finally:
        os.close(read)
        os.close(write)


# --- what is printed ----------------------------------------------------------------------------


def test_plain_text_in_a_pipe(
    capsys: pytest.CaptureFixture[str], driver: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ANYIO_URING_DRIVER", driver)
    status = main(["doctor", str(tmp_path)])
    out = capsys.readouterr().out
    assert status == {"uring": 0, "threads": 1}[driver]
    assert re.search({"uring": "^verdict +the ring: ", "threads": "^verdict +threads: "}[driver], out, re.MULTILINE)
    assert "\x1b" not in out
    assert re.search(r"^write and read +65536 bytes written, synced, and read back equal$", out, re.MULTILINE)
    assert f"{os.uname().release}\n" in out


def test_a_file_in_a_pipe(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", str(path)])
    assert re.search(r"^file +65536 bytes read, nothing written$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(
    ("findings", "line"),
    [
        ({"io_uring_disabled": None}, ("io_uring_disabled", "no such sysctl here", "good")),
        ({"io_uring_disabled": 3}, ("io_uring_disabled", "3: unknown", "note")),
        ({"memlock": 65536, "is_memlock_exempt": False}, ("RLIMIT_MEMLOCK", "64 KiB", "good")),
        ({"memlock": 65536, "is_memlock_exempt": None}, ("RLIMIT_MEMLOCK", "64 KiB", "good")),
        (
            {"memlock": 65536, "is_memlock_exempt": True},
            ("RLIMIT_MEMLOCK", "64 KiB, not applied to this process (CAP_IPC_LOCK)", "good"),
        ),
        ({"seccomp": None}, ("seccomp", "unknown", "note")),
        ({"seccomp": "none"}, ("seccomp", "no filter", "good")),
        (
            {"seccomp": "filter", "seccomp_filters": 2},
            ("seccomp", "filter (2): whether it forbids io_uring, io_uring_setup shows", "note"),
        ),
        (
            {"seccomp": "strict", "seccomp_filters": None},
            ("seccomp", "strict: whether it forbids io_uring, io_uring_setup shows", "note"),
        ),
    ],
)
def test_what_is_said_of_the_system(findings: dict[str, Any], line: tuple[str, str, str]) -> None:
    assert line in _lines(attrs.evolve(examine(), **findings))


@pytest.mark.parametrize(
    ("findings", "line"),
    [
        (
            {"offset_alignment": 512, "memory_alignment": 4, "is_alignment_known": True},
            ("direct I/O", "memory 4, offset 512 bytes (statx)", "good"),
        ),
        (
            {"offset_alignment": 4096, "memory_alignment": 4096, "is_alignment_known": False},
            ("direct I/O", "memory 4096, offset 4096 bytes (a safe default: statx does not say)", "good"),
        ),
        ({"offset_alignment": 0, "is_alignment_known": True}, ("direct I/O", "this file has none (statx)", "note")),
    ],
)
def test_what_is_said_of_direct_io(tmp_path: Path, findings: dict[str, Any], line: tuple[str, str, str]) -> None:
    report = examine(str(tmp_path))
    assert report.place is not None
    assert line in _lines(attrs.evolve(report, place=attrs.evolve(report.place, **findings)))


def test_of_a_system_without_direct_io_nothing_is_said(tmp_path: Path) -> None:
    report = examine(str(tmp_path))
    assert report.place is not None
    lines = _lines(attrs.evolve(report, place=attrs.evolve(report.place, direct_read=None)))
    assert "direct read" not in {name for name, _, _ in lines}


def _on_a_terminal(arguments: Sequence[str], tmp_path: Path) -> str:
    command = [sys.executable, *arguments, "doctor", str(tmp_path)]
    status, shown = shown_on_a_terminal(command, ANYIO_URING_DRIVER="threads")
    assert status == 1, shown
    return shown


def test_colours_on_a_terminal(tmp_path: Path) -> None:
    out = _on_a_terminal(["-m", "anyio_uring"], tmp_path)
    assert "\x1b[33mthreads: open_uring() takes threads here" in out


def test_plain_text_on_a_terminal_without_rich(tmp_path: Path) -> None:
    code = "import sys; sys.modules['rich'] = None; from anyio_uring.__main__ import main; sys.exit(main())"
    out = _on_a_terminal(["-c", code], tmp_path)
    assert "\x1b" not in out
    assert "threads: open_uring() takes threads here" in out


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["doctor", "--help"])
    assert caught.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "0 if open_uring() takes the ring here, 1 if it takes threads, 2 if something is broken" in out
    assert "--json" in out


@pytest.mark.parametrize(
    "arguments", [[], ["probe"], ["doctor", "--jsn"], ["demo", "--depth", "0"], ["demo", "/dev/null"]]
)
def test_a_wrong_command_has_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: anyio-uring" in capsys.readouterr().err


@pytest.mark.parametrize("variable", ["LOG", "DRIVER"])
@pytest.mark.parametrize("arguments", [["doctor"], ["cp", "a", "b"], ["demo"]], ids=lambda arguments: arguments[0])
def test_a_bad_environment_has_status_2(
    arguments: list[str], variable: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"ANYIO_URING_{variable}", "foo")
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert f"ANYIO_URING_{variable} must be" in " ".join((printed.out + printed.err).split())


def test_the_demonstration_copies_a_tree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "file").write_bytes(b"data" * 1000)
    (tmp_path / "to").mkdir()
    assert main(["demo", str(tmp_path / "from"), "--target", str(tmp_path / "to"), "--depth", "8"]) == 0
    assert "Every byte read back equals the original." in capsys.readouterr().out
    assert not os.listdir(tmp_path / "to")


# --- the kernel's word --------------------------------------------------------------------------


@pytest.mark.ring
def test_set_ups_are_tried_and_closed() -> None:
    before = len(os.listdir("/proc/self/fd"))
    assert try_setup() == 0
    assert try_setup(1 << 31) == errno.EINVAL
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_version_of_liburing() -> None:
    assert tuple(map(int, liburing_version().split("."))) >= (2, 3)


def test_without_the_extension_nothing_is_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anyio_uring._native._lib", None)
    for ask in (liburing_version, try_setup):
        with pytest.raises(UringUnavailableError, match="liburing-dev"):
            ask()


def test_no_limit_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    report = examine()
    assert report.memlock is None
    assert ("RLIMIT_MEMLOCK", "no limit", "good") in _lines(report)

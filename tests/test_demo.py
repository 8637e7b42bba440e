"""The demonstration copies what it can, says what it could not, and finds every copy that is not its original."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from anyio_uring import AsyncIoManager, BatchError, _demo
from anyio_uring.__main__ import main
from anyio_uring._demo import Outcome, Tree, copy_and_verify, scan
from anyio_uring._options import DriverChoice
from anyio_uring.testing import FakeRing, Faults

from . import denied
from .helpers import file_size_limit, shown_on_a_terminal


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    root.mkdir()
    return root


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "copy"


def contents(place: Path) -> dict[str, bytes | str]:
    """Return what a tree has: files' bytes, and where links lead."""
    found = sorted(path for path in place.rglob("*") if path.is_symlink() or not path.is_dir())
    return {
        str(path.relative_to(place)): os.readlink(path) if path.is_symlink() else path.read_bytes() for path in found
    }


Copy = Callable[..., Outcome]


@pytest.fixture(params=["asyncio", "trio"])
def copy(request: pytest.FixtureRequest, target: Path) -> Copy:
    """The job, on each event loop."""

    def run(
        tree: Tree, driver: DriverChoice = "threads", advance: Callable[[int], None] = lambda _count: None
    ) -> Outcome:
        job = partial(copy_and_verify, tree, str(target), driver=driver, depth=8, advance=advance)
        return anyio.run(job, backend=request.param)

    return run


def after_each_sync(monkeypatch: pytest.MonkeyPatch, *acts: Callable[[], object]) -> None:
    """Do something after the first sync, before its copies are read back, and after those behind it."""
    sync = AsyncIoManager.fsync_batch
    left = list(acts)

    async def sync_and_act(io: AsyncIoManager, fds: Any) -> None:
        await sync(io, fds)
        if left:
            await anyio.to_thread.run_sync(left.pop(0))

    monkeypatch.setattr(AsyncIoManager, "fsync_batch", sync_and_act)


def nothing() -> None:
    """Leave a sync alone."""


# --- what there is to copy ----------------------------------------------------------------------


def test_what_a_tree_has(root: Path) -> None:
    """Links to files count as files; links to directories and to nothing stay links; the rest is skipped."""
    (root / "directory").mkdir()
    (root / "directory" / "file").write_bytes(b"12345")
    (root / "to a file").symlink_to("directory/file")
    (root / "to a directory").symlink_to("directory")
    (root / "to nothing").symlink_to("nowhere")
    (root / "to itself").symlink_to("to itself")
    (root / "to a device").symlink_to("/dev/null")
    os.mkfifo(root / "fifo", 0o600)
    (root / "ignored").mkdir()
    (root / "directory" / "ignored").write_bytes(b"1")
    tree = scan(str(root), ["ignored"])
    assert tree.directories == ["", "directory"]
    assert tree.files == {"directory/file": 5, "directory/ignored": 1, "to a file": 5}
    assert tree.total_bytes == 11
    assert tree.links == {"to a directory": "directory", "to nothing": "nowhere"}
    assert tree.skipped == {
        "fifo": "a special file (prw-------)",
        "to a device": "a special file (crw-rw-rw-)",
        "to itself": os.strerror(errno.ELOOP),
    }


def test_a_directory_that_may_not_be_listed_is_skipped(forbidden: Path) -> None:
    tree = scan(str(forbidden.parent))
    assert (tree.directories, tree.skipped) == ([""], {"forbidden": "Permission denied"})


def test_a_tree_that_may_not_be_listed_is_an_error(forbidden: Path) -> None:
    with pytest.raises(PermissionError):
        scan(str(forbidden))


# --- the copy -----------------------------------------------------------------------------------


def test_a_copy_of_everything(root: Path, copy: Copy, target: Path, driver: DriverChoice) -> None:
    (root / "directory").mkdir()
    (root / "directory" / "file").write_bytes(b"12345")
    (root / "empty").write_bytes(b"")
    (root / "to a file").symlink_to("empty")
    (root / "to nothing").symlink_to("nowhere")
    outcome = copy(scan(str(root)), driver)
    assert (outcome.files, outcome.total_bytes, outcome.problems, outcome.skipped) == (3, 5, [], {})
    # A link to a file has been followed.
    assert contents(target) == {"directory/file": b"12345", "empty": b"", "to a file": b"", "to nothing": "nowhere"}


def test_a_copy_of_nothing(root: Path, copy: Copy, target: Path, driver: DriverChoice) -> None:
    outcome = copy(scan(str(root)), driver)
    assert (outcome.files, outcome.total_bytes, outcome.problems, outcome.skipped) == (0, 0, [], {})
    assert os.listdir(target) == []


def test_large_files_go_in_pieces_and_many_in_groups(
    root: Path, copy: Copy, target: Path, driver: DriverChoice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_demo, "PIECE_BYTES_MAX", 1000)
    monkeypatch.setattr(_demo, "GROUP_BYTES_MAX", 2500)
    monkeypatch.setattr(_demo, "GROUP_FILES_MAX", 3)
    for number in range(5):
        (root / f"large {number}").write_bytes(os.urandom(3500 + number))
        (root / f"small {number}").write_bytes(os.urandom(number))
    groups: list[int] = []
    outcome = copy(scan(str(root)), driver, groups.append)
    assert (outcome.files, outcome.problems, outcome.skipped) == (10, [], {})
    assert contents(target) == contents(root)
    assert max(groups) <= 2500
    assert sum(groups) == outcome.total_bytes == 5 * 3500 + 2 * (0 + 1 + 2 + 3 + 4)


def test_short_transfers_are_continued(root: Path, copy: Copy, target: Path) -> None:
    (root / "file").write_bytes(os.urandom(100_000))
    ring = FakeRing(1, faults=Faults(short=0.9))
    outcome = copy(scan(str(root)), ring)
    assert (outcome.files, outcome.problems, outcome.skipped) == (1, [], {})
    assert outcome.statistics.submissions > 10
    assert contents(target) == contents(root)


# --- an original that does not stay what it was -------------------------------------------------


def test_what_has_vanished_meanwhile_is_skipped(root: Path, copy: Copy, target: Path, driver: DriverChoice) -> None:
    (root / "file").write_bytes(b"12345")
    (root / "other").write_bytes(b"123")
    tree = scan(str(root))
    (root / "file").unlink()
    outcome = copy(tree, driver)
    assert outcome.skipped == {"file": "No such file or directory"}
    assert (outcome.files, outcome.total_bytes, outcome.problems) == (1, 3, [])
    assert contents(target) == {"other": b"123"}


def test_what_cannot_be_read_is_skipped_and_leaves_no_copy(
    root: Path, copy: Copy, target: Path, driver: DriverChoice
) -> None:
    (root / "file").write_bytes(b"12345")
    (root / "other").write_bytes(b"123")
    tree = scan(str(root))
    (root / "file").unlink()
    (root / "file").mkdir()  # can be opened
    outcome = copy(tree, driver)
    assert outcome.skipped == {"file": "Is a directory"}
    assert (outcome.files, outcome.total_bytes, outcome.problems) == (1, 3, [])
    assert contents(target) == {"other": b"123"}


def test_what_vanishes_between_its_pieces_is_skipped(
    root: Path, copy: Copy, target: Path, driver: DriverChoice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_demo, "PIECE_BYTES_MAX", 1000)
    monkeypatch.setattr(_demo, "GROUP_BYTES_MAX", 1000)
    (root / "file").write_bytes(bytes(3000))

    after_each_sync(monkeypatch, (root / "file").unlink)
    outcome = copy(scan(str(root)), driver)
    assert outcome.skipped == {"file": "No such file or directory"}
    assert (outcome.files, outcome.total_bytes, outcome.problems) == (0, 0, [])
    assert contents(target) == {}


def test_a_file_that_has_shrunk_is_copied_as_it_is(root: Path, copy: Copy, target: Path, driver: DriverChoice) -> None:
    (root / "file").write_bytes(b"12345")
    tree = scan(str(root))
    os.truncate(root / "file", 3)
    outcome = copy(tree, driver)
    assert (outcome.files, outcome.problems, outcome.skipped) == (1, [], {})
    assert contents(target) == {"file": b"123"}


def test_a_file_that_has_grown_has_not_been_copied_whole(root: Path, copy: Copy, driver: DriverChoice) -> None:
    (root / "file").write_bytes(b"12345")
    tree = scan(str(root))
    (root / "file").write_bytes(b"1234567")
    outcome = copy(tree, driver)
    assert outcome.problems == ["file: 5 bytes instead of 7"]


# --- a copy that is not its original ------------------------------------------------------------


def test_what_happens_to_a_copy_behind_its_back_is_found(
    root: Path, copy: Copy, target: Path, driver: DriverChoice, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("missing", "short", "whole"):
        (root / name).write_bytes(b"12345")
    for name in ("other link", "no link", "missing link", "whole link"):
        (root / name).symlink_to("nowhere")

    def damage() -> None:
        (target / "missing").unlink()
        os.truncate(target / "short", 4)
        for name in ("other link", "no link", "missing link"):
            (target / name).unlink()
        (target / "other link").symlink_to("elsewhere")
        (target / "no link").write_bytes(b"nowhere")

    after_each_sync(monkeypatch, nothing, damage)  # the second one is that of the directory
    outcome = copy(scan(str(root)), driver)
    assert outcome.problems == [
        "missing: No such file or directory",
        "short: 4 bytes instead of 5",
        "missing link: No such file or directory",
        "no link: Invalid argument",
        "other link: the link leads elsewhere",
    ]


def test_a_byte_that_differs_is_found(
    root: Path, copy: Copy, target: Path, driver: DriverChoice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_demo, "PIECE_BYTES_MAX", 1000)

    def change_a_byte() -> None:
        with (target / "large").open("r+b") as file:
            file.seek(1500)
            file.write(b"x")

    after_each_sync(monkeypatch, change_a_byte)
    (root / "large").write_bytes(bytes(3000))
    (root / "small").write_bytes(bytes(1000))
    outcome = copy(scan(str(root)), driver)
    assert outcome.problems == ["large: differs from the original at byte 1500"]


def test_bytes_that_are_missing_are_found(
    root: Path, copy: Copy, target: Path, driver: DriverChoice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_demo, "PIECE_BYTES_MAX", 1000)
    after_each_sync(monkeypatch, lambda: os.truncate(target / "large", 1500))
    (root / "large").write_bytes(bytes(3000))
    outcome = copy(scan(str(root)), driver)
    assert outcome.problems == [
        "large: differs from the original at byte 1500",
        "large: differs from the original at byte 2000",
        "large: 1500 bytes instead of 3000",
    ]


def test_a_copy_that_cannot_be_read_back_is_found(root: Path, copy: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "file").write_bytes(b"12345")
    ring = FakeRing(1)
    after_each_sync(monkeypatch, lambda: ring.fail_next("read"))
    outcome = copy(scan(str(root)), ring)
    assert outcome.problems == ["file: Input/output error"]


def test_a_failed_sync_is_an_error_and_leaves_nothing_open(root: Path, copy: Copy) -> None:
    (root / "file").write_bytes(b"12345")
    ring = FakeRing(1)
    ring.fail_next("fsync")
    before = os.listdir("/proc/self/fd")
    with pytest.raises(BatchError, match="Input/output error"):
        copy(scan(str(root)), ring)
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_write_of_nothing_is_an_error(
    root: Path, copy: Copy, driver: DriverChoice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise it would be tried for ever."""

    async def write_nothing(_io: AsyncIoManager, requests: list[Any]) -> list[int]:
        return [0] * len(requests)

    monkeypatch.setattr(AsyncIoManager, "write_batch", write_nothing)
    (root / "file").write_bytes(b"12345")
    with pytest.raises(OSError, match="the kernel wrote nothing") as caught:
        copy(scan(str(root)), driver)
    assert caught.value.errno == errno.EIO


# --- what is said, and the exit status ----------------------------------------------------------


def demonstrate(prelude: str, *arguments: str | Path) -> tuple[int, str, str]:
    """Run the command in a process of its own behind some Python; return its status, stdout and stderr."""
    code = (
        f"import errno, resource, sys; sys.path.insert(0, {str(denied.ROOT)!r})\n{prelude}\n"
        "from anyio_uring.__main__ import main; sys.exit(main(['demo', *sys.argv[1:]]))"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=50)
    return done.returncode, done.stdout, done.stderr


def test_copies_are_kept_where_it_says(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "file").write_bytes(b"12345")
    (tmp_path / "kept").mkdir()
    assert main(["demo", str(root), "--target", str(tmp_path / "kept"), "--keep"]) == 0
    (place,) = (tmp_path / "kept").iterdir()
    assert f"The copies are in {place}\n" in capsys.readouterr().out
    kept = list(place.iterdir())
    assert {"asyncio-threads", "trio-threads"} <= {copied.name for copied in kept}
    assert [contents(copied) for copied in kept] == [{"file": b"12345"}] * len(kept)


def test_a_few_findings_are_named_and_the_others_counted(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(25):
        os.mkfifo(root / f"fifo {number:02}", 0o600)
    assert main(["demo", str(root), "--target", str(tmp_path)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("skipped: ")]
    named = [f"skipped: fifo {number:02}: a special file (prw-------)" for number in range(20)]
    assert lines == [*named, "skipped: and 5 more"]
    assert os.listdir(tmp_path) == ["tree"]


def test_copies_that_differ_have_status_1(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "file").write_bytes(b"12345")

    def spoil() -> None:
        for copied in tmp_path.glob("anyio-uring-demo-*/*-threads/file"):
            copied.write_bytes(b"12x45")

    after_each_sync(monkeypatch, *[spoil] * 8)
    assert main(["demo", str(root), "--target", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "asyncio + threads: WRONG: file: differs from the original at byte 2\n" in out
    assert "trio + threads: WRONG: file: differs from the original at byte 2\n" in out
    assert "2 differences: the copies are NOT equal\n" in out
    assert "Every byte" not in out
    assert os.listdir(tmp_path) == ["tree"]


def test_what_vanishes_during_the_run_is_said_to_be_skipped(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "file").write_bytes(b"12345")
    (root / "other").write_bytes(b"12345")
    after_each_sync(monkeypatch, (root / "file").unlink)
    assert main(["demo", str(root), "--target", str(tmp_path)]) == 1  # the first copy is complete, and has no original
    assert "trio + threads: skipped: file: No such file or directory\n" in capsys.readouterr().out


@pytest.mark.parametrize("limit", [64, 65])  # the one that is not to be had is an original's, or a copy's
def test_too_few_descriptors_are_an_error(root: Path, tmp_path: Path, limit: int) -> None:
    for number in range(40):
        (root / str(number)).write_bytes(b"12345")
    prelude = f"resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))"
    status, out, err = demonstrate(prelude, root, "--target", tmp_path)
    assert (status, "Too many open files" in err, len(err.splitlines())) == (1, True, 1), err
    assert err.startswith("anyio-uring: ")
    assert "Every byte" not in out
    assert "The copies are in" not in out
    assert os.listdir(tmp_path) == ["tree"]


def test_a_copy_that_cannot_be_written_is_an_error(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "file").write_bytes(bytes(200_000))
    with file_size_limit(100_000):
        status = main(["demo", str(root), "--target", str(tmp_path)])
    printed = capsys.readouterr()
    assert (status, "File too large" in printed.err, len(printed.err.splitlines())) == (1, True, 1), printed.err
    assert "Every byte" not in printed.out
    assert os.listdir(tmp_path) == ["tree"]


@pytest.mark.parametrize("required", [False, True])
def test_without_a_ring_it_is_threads_alone(root: Path, tmp_path: Path, *, required: bool) -> None:
    (root / "file").write_bytes(b"12345")
    prelude = "from tests.denied import deny; deny('io_uring_setup', errno.EPERM)"
    status, out, err = demonstrate(prelude, root, "--target", tmp_path, *["--require-ring"] * required)
    assert (status, err) == (int(required), "")
    assert "No io_uring, so this is threads alone: io_uring_setup was refused with EPERM" in out
    assert [line for line in out.splitlines() if line.endswith(" ...")] == [
        "asyncio + threads ...",
        "trio + threads ...",
    ]
    assert "Every byte read back equals the original.\n" in out


def test_without_trio_it_is_asyncio_alone(root: Path, tmp_path: Path) -> None:
    (root / "file").write_bytes(b"12345")
    status, out, err = demonstrate("sys.modules['trio'] = None", root, "--target", tmp_path)
    assert (status, err) == (0, "")
    assert "trio is not installed, so this is asyncio alone: pip install 'anyio_uring[trio]'\n" in out
    assert "asyncio + threads ...\n" in out
    assert "trio + " not in out
    assert "Every byte read back equals the original.\n" in out


def test_without_rich_it_says_what_to_install(root: Path) -> None:
    prelude = """
import importlib.abc

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "rich":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Finder())
"""
    status, out, err = demonstrate(prelude, root)
    assert (status, out) == (1, "")
    assert err == "The demonstration needs rich, which is not installed: pip install 'anyio_uring[cli]'\n"


def test_a_terminal_has_a_bar(root: Path, tmp_path: Path) -> None:
    (root / "file").write_bytes(bytes(10_240))
    command = [sys.executable, "-m", "anyio_uring", "demo", str(root), "--target", str(tmp_path)]
    status, shown = shown_on_a_terminal(command, COLUMNS="100")
    assert status == 0, shown
    out = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert re.search(r"asyncio \+ threads +.* 10\.0/10\.0 KiB", out), out
    assert "Every byte read back equals the original." in out

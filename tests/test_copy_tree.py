"""Copying directories, and the command that copies."""

from __future__ import annotations

import errno
import os
import random
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from anyio_uring import AsyncIoManager, _copy_tree, copy_file, copy_tree
from anyio_uring.__main__ import main

from .faulty_disk import FaultyDisk
from .helpers import asyncio_only, shown_on_a_terminal


def _contents(root: Path) -> dict[str, Any]:
    """``{path: (mode, modification time, contents)}`` of everything in a directory, links as links."""
    found: dict[str, Any] = {}
    for path in sorted([root, *root.rglob("*")]):
        status = path.lstat()
        contents: Any = None
        if path.is_symlink():
            contents = path.readlink()
        elif path.is_file():
            contents = path.read_bytes()
        found[str(path.relative_to(root))] = stat.filemode(status.st_mode), status.st_mtime_ns, contents
    return found


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tree with what trees have: links, empty and read-only directories, files of many sizes."""
    root = tmp_path / "source"
    chance = random.Random(7)
    for name in ("a/b/c", "empty", "closed"):
        (root / name).mkdir(parents=True)
    for i in range(40):
        (root / "a" / f"file{i}").write_bytes(chance.randbytes(chance.choice([0, 1, 5000, 70000])))
    (root / "a/b/c/deep").write_bytes(b"deep")
    (root / "closed/file").write_bytes(b"closed")
    (root / "to a file").symlink_to("closed/file")
    (root / "to a directory").symlink_to("a/b")
    (root / "closed").chmod(0o555)
    (root / "empty").chmod(0o1770)
    for path in [*root.rglob("*"), root]:
        os.utime(path, ns=(10**18, 10**18 + len(path.name)), follow_symlinks=False)
    return root


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


# --- copy_tree --------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("symlinks", [False, True])
async def test_the_copy_is_what_copytree_makes(io: AsyncIoManager, source: Path, target: Path, symlinks: bool) -> None:
    model = target.with_name("model")
    shutil.copytree(source, model, symlinks=symlinks)
    reports: list[int] = []
    count = await copy_tree(source, target, symlinks=symlinks, progress=reports.append)
    assert _contents(target) == _contents(model)
    assert count == reports[-1] == sum(p.stat().st_size for p in model.rglob("*") if p.is_file() and not p.is_symlink())
    assert reports == sorted(reports)


@pytest.mark.anyio
async def test_what_is_ignored_is_left_out(io: AsyncIoManager, source: Path, target: Path) -> None:
    model = target.with_name("model")
    ignore = shutil.ignore_patterns("file1*", "b")
    shutil.copytree(source, model, symlinks=True, ignore=ignore)
    await copy_tree(source, target, symlinks=True, ignore=ignore)
    assert _contents(target) == _contents(model)


@pytest.mark.anyio
async def test_a_directory_that_exists_is_filled_if_it_may_be(io: AsyncIoManager, source: Path, target: Path) -> None:
    (target / "a").mkdir(parents=True)
    (target / "a/file1").write_bytes(b"old")
    (target / "a/other").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        await copy_tree(source, target)
    assert (target / "a/file1").read_bytes() == b"old"
    await copy_tree(source, target, symlinks=True, dirs_exist_ok=True)
    assert (target / "a/other").read_bytes() == b"mine"
    (target / "a/other").unlink()
    os.utime(target / "a", ns=(0, (source / "a").stat().st_mtime_ns))
    assert _contents(target) == _contents(source)


@pytest.mark.anyio
async def test_a_link_into_the_copy_does_not_replace_what_it_leads_to(
    io: AsyncIoManager, source: Path, target: Path
) -> None:
    (target / "a").mkdir(parents=True)
    (target / "a/link").write_bytes(b"mine")
    (source / "a/link").symlink_to(target / "a/link")
    with pytest.raises(shutil.Error, match="are the same file") as caught:
        await copy_tree(source, target, symlinks=True, dirs_exist_ok=True)
    assert [where for _, where, _ in caught.value.args[0]] == [str(target / "a/link")]
    assert (target / "a/link").read_bytes() == b"mine"


@pytest.mark.anyio
async def test_what_cannot_be_copied_is_reported_at_the_end(io: AsyncIoManager, source: Path, target: Path) -> None:
    (source / "dangling").symlink_to("nowhere")
    (source / "a/round").symlink_to("..")
    os.mkfifo(source / "fifo")
    with pytest.raises(shutil.Error) as caught:
        await copy_tree(source, target)
    errors = {os.path.relpath(path, source): (where, why) for path, where, why in caught.value.args[0]}
    assert set(errors) == {"dangling", "a/round", "fifo"}
    assert errors["fifo"][0] == str(target / "fifo")
    assert "special file" in errors["fifo"][1]
    assert f"Errno {errno.ELOOP}" in errors["a/round"][1]
    assert (target / "a/b/c/deep").read_bytes() == b"deep"


@pytest.mark.anyio
async def test_directories_that_cannot_be_read_or_set_are_reported_as_copytree_does(
    io: AsyncIoManager, disk: FaultyDisk, tmp_path: Path
) -> None:
    source, target = disk.path / "source", disk.path / "target"
    (source / "inner").mkdir(parents=True)
    (source / "inner" / "file").write_bytes(b"content")
    for operation, nth in (("readdir", 2), ("chmod", 2)):
        disk.fail(operation, errno.EDQUOT, nth=nth)
        with pytest.raises(shutil.Error) as theirs:
            shutil.copytree(source, target)
        disk.reset()
        shutil.rmtree(target)
        disk.fail(operation, errno.EDQUOT, nth=nth)
        with pytest.raises(shutil.Error) as ours:
            await copy_tree(source, target)
        disk.reset()
        shutil.rmtree(target)
        # shutil may give a DirEntry where it gives a path otherwise.
        assert ours.value.args[0] == [(os.fspath(path), where, why) for path, where, why in theirs.value.args[0]]
        assert [row[:2] for row in ours.value.args[0]] == [(str(source / "inner"), str(target / "inner"))], operation


@pytest.mark.anyio
async def test_roots_that_make_no_sense_are_refused(io: AsyncIoManager, source: Path, target: Path) -> None:
    with pytest.raises(NotADirectoryError):
        await copy_tree(source / "a/file1", target)
    with pytest.raises(FileNotFoundError):
        await copy_tree(source / "missing", target)
    for inside in (source, source / "a/new", source / "to a directory/new"):
        with pytest.raises(shutil.Error, match="into itself"):
            await copy_tree(source, inside, dirs_exist_ok=True)
    assert not target.exists()
    assert not (source / "a/new").exists()


def _assert_whole(source: Path, target: Path) -> None:
    """Whatever is in the target is in the source, too, and whole."""
    originals, copies = _contents(source), _contents(target)
    assert copies.keys() < originals.keys()
    for name, (_, _, contents) in copies.items():
        assert contents == originals[name][2], name


@pytest.mark.anyio
async def test_a_cancelled_copy_leaves_whole_files(io: AsyncIoManager, source: Path, target: Path) -> None:
    def cancel(done: int) -> None:
        if done > 300_000:
            scope.cancel()

    with anyio.CancelScope() as scope:
        await copy_tree(source, target, symlinks=True, progress=cancel)
    assert scope.cancelled_caught
    _assert_whole(source, target)


@asyncio_only
@pytest.mark.anyio
async def test_a_copy_cancelled_by_asyncio_leaves_whole_files(io: AsyncIoManager, source: Path, target: Path) -> None:
    import asyncio

    task = asyncio.ensure_future(
        copy_tree(source, target, symlinks=True, progress=lambda done: done > 300_000 and task.cancel())
    )
    with pytest.raises(asyncio.CancelledError):
        await task
    _assert_whole(source, target)


@pytest.mark.anyio
async def test_what_progress_raises_ends_the_copy_as_it_was_raised(
    io: AsyncIoManager, source: Path, target: Path
) -> None:
    def fail(done: int) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        await copy_tree(source, target, symlinks=True, progress=fail)
    _assert_whole(source, target)


@pytest.mark.anyio
async def test_no_more_than_eight_files_are_in_work(
    io: AsyncIoManager, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = most = 0

    async def counted(*arguments: Any, **options: Any) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            return await copy_file(*arguments, **options)
        finally:
            running -= 1

    monkeypatch.setattr(_copy_tree, "copy_file", counted)
    await copy_tree(source, target)
    assert 1 < most <= _copy_tree.FILES_MAX


# --- the command ------------------------------------------------------------------------------------


def test_the_command_copies_a_file(source: Path, target: Path, driver: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = source / "a/b/c/deep"
    assert main(["cp", str(file), str(target), "--driver", driver]) == 0
    assert target.read_bytes() == b"deep"
    assert capsys.readouterr().out == f"{file} -> {target}: 4 bytes\n"
    target.unlink()
    target.mkdir()
    assert main(["cp", str(file), str(target), "--driver", driver]) == 0
    assert (target / "deep").read_bytes() == b"deep"


def test_the_command_copies_a_tree(source: Path, target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cp", str(source), str(target)]) == 1
    assert "add -r" in capsys.readouterr().err
    assert main(["cp", "-r", str(source), str(target)]) == 0
    assert _contents(target) == _contents(source)
    assert main(["cp", "-r", f"{source}/", str(target)]) == 0  # into it, as cp does
    assert _contents(target / "source") == _contents(source)


def test_the_command_says_what_it_could_not_copy(
    source: Path, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(source / "fifo")
    assert main(["cp", "-r", str(source), str(target)]) == 1
    assert main(["cp", str(source / "missing"), str(target)]) == 1
    assert main(["cp", str(source / "a/file1"), str(source / "a/file1")]) == 1
    assert main(["cp", "-r", str(source), str(source)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith("anyio-uring: ") for line in lines] == [True] * 4
    for line, part in zip(lines, ("special file", "No such file", "same file", "into itself"), strict=True):
        assert part in line


@pytest.mark.parametrize("arguments", [["cp"], ["cp", "a"], ["cp", "a", "b", "--driver", "epoll"]])
def test_a_wrong_command_line_is_status_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_the_help_has_the_exit_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["cp", "--help"])
    assert caught.value.code == 0
    assert "130 after Ctrl-C" in " ".join(capsys.readouterr().out.split())


INTERRUPTED = """
import errno, os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored, as in a background job of a shell
from anyio_uring import _copy_steps
from anyio_uring.__main__ import main

steps = []
def refuse(*_): raise OSError(errno.EXDEV, "")
def step(source_fd, target_fd, offset, length):
    steps.append(offset)
    if len(steps) == 2:
        os.kill(os.getpid(), signal.SIGINT)
    return os.copy_file_range(source_fd, target_fd, min(length, 4096), offset, offset)
_copy_steps.STEP_BYTES = 4096
_copy_steps.clone, _copy_steps.copy_range = refuse, step
status = main(["cp", sys.argv[1], sys.argv[2]])
assert len(steps) < 10, steps
sys.exit(status)
"""


@pytest.mark.parametrize("existing", [None, b"old"], ids=["new", "existing"])
def test_ctrl_c_leaves_no_part_of_a_copy(tmp_path: Path, existing: bytes | None) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(bytes(4 << 20))
    if existing is not None:
        target.write_bytes(existing)
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, source, target], capture_output=True, text=True, check=False, timeout=30
    )
    assert (done.returncode, done.stderr) == (130, "anyio-uring: interrupted\n")
    assert set(os.listdir(tmp_path)) == ({"source"} if existing is None else {"source", "target"})
    assert existing is None or target.read_bytes() == existing


@pytest.mark.parametrize("recursive", [False, True], ids=["file", "tree"])
def test_a_terminal_sees_a_bar(source: Path, target: Path, recursive: bool) -> None:
    what = source if recursive else source / "a/b/c/deep"
    command: list[Any] = [sys.executable, "-m", "anyio_uring", "cp", "-r", what, target]
    status, shown = shown_on_a_terminal(command, COLUMNS="120")
    assert status == 0
    assert "copying" in shown
    assert "━" in shown
    assert target.exists()


@pytest.mark.anyio
async def test_what_the_callers_functions_raise_ends_the_copy(io: AsyncIoManager, source: Path, target: Path) -> None:
    """As it was raised, also if it looks like a file's error."""

    def fails(*_: object) -> Any:
        raise error

    error: Exception = ValueError("mine")
    with pytest.raises(ValueError, match="mine") as caught:
        await copy_tree(source, target, ignore=fails, io=io)
    assert caught.value is error
    error = BrokenPipeError(32, "nobody reads it")
    with pytest.raises(BrokenPipeError) as stopped:
        await copy_tree(source, target / "again", progress=fails, io=io)
    assert stopped.value is error

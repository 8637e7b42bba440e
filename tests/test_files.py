"""``open_file()`` and ``wrap_file()``: what the model in ``property/test_files_model.py`` does not show."""

from __future__ import annotations

import asyncio
import bz2
import codecs
import errno
import gc
import gzip
import io as stdio
import lzma
import os
import select
import socket
import sys
import tempfile
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from anyio_uring import AsyncIoManager, UringFile, open_file, open_uring, wrap_file
from anyio_uring._text_file import _Pieces
from anyio_uring._text_position import TextPosition, locate

from .helpers import WITHOUT_DEBUG, asyncio_only, file_size_limit, open_terminal, until

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["uring", "threads", None], ids=["uring", "threads", "no manager"])
async def manager(request: pytest.FixtureRequest) -> AsyncIterator[AsyncIoManager | None]:
    """What the files of a test work with; without page cache, so that reads are operations."""
    if request.param is None:
        yield None
        return
    async with open_uring(driver=request.param, nowait=False) as io:
        yield io


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _content(path: Path) -> bytes:
    return path.read_bytes()


def _store(path: Path, data: bytes) -> None:
    path.write_bytes(data)


# --- opening ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("rw",),
        ("",),
        ("b",),
        ("rbt",),
        ("q",),
        ("r", 0),
        ("rb", -1, "utf-8"),
        ("rb", -1, None, "strict"),
        ("rb", -1, None, None, "\n"),
        ("r", -1, "no such encoding"),
        ("r", -1, "hex"),
        ("r", -1, None, None, "\t"),
        (3,),
        ("r", "big"),
        ("r", -1, "utf-8", None, None, False),
    ],
)
async def test_what_open_refuses_is_refused_likewise(path: Path, arguments: tuple[Any, ...]) -> None:
    with pytest.raises((ValueError, TypeError, LookupError)) as expected:
        open(path, *arguments)  # noqa: SIM115 - it raises
    before = _descriptors()
    with pytest.raises(expected.type) as refused:
        await open_file(path, *arguments)
    assert str(refused.value) == str(expected.value)
    assert _descriptors() == before


@pytest.mark.parametrize("file", [-1, 3.5, None, "a\0b", b"a\0b", object()], ids=lambda file: type(file).__name__)
async def test_what_is_no_file_is_refused_likewise(file: Any) -> None:
    with pytest.raises((ValueError, TypeError)) as expected:
        open(file)  # noqa: SIM115 - it raises
    with pytest.raises(expected.type):
        await open_file(file)


def _error_of_open(target: str, mode: str) -> OSError | None:
    try:
        with open(target, mode):
            return None
    except OSError as exc:
        return exc


@pytest.mark.parametrize("mode", ["r", "rb", "r+b", "w", "x"])
@pytest.mark.parametrize("name", ["missing/file", ".", "data", "link"])
async def test_errors_of_opening_are_those_of_open(
    manager: AsyncIoManager | None, path: Path, mode: Any, name: str
) -> None:
    (path.parent / "link").symlink_to("link")
    target = str(path.parent / name)
    before = _descriptors()
    expected = _error_of_open(target, mode)
    if expected is not None:
        with pytest.raises(type(expected)) as raised:
            await open_file(target, mode)
        assert (raised.value.errno, raised.value.filename) == (expected.errno, expected.filename)
    else:
        async with await open_file(target, mode) as file:
            assert file.name == target
    assert _descriptors() == before


async def test_the_properties_are_those_of_open(manager: AsyncIoManager | None, path: Path) -> None:
    for mode in ("r", "w+", "rb", "wb", "r+b", "ab", "a+", "xb", "x+"):
        target = path.with_name(f"other{mode}") if "x" in mode else path
        model: Any
        with open(target, mode) as model:
            names = ("name", "mode", "closed", "encoding", "errors", "newlines", "line_buffering")
            expected = [getattr(model, name, None) for name in names]
            abilities = [model.readable(), model.writable(), model.seekable(), model.isatty()]
        if "x" in mode:
            target.unlink()
        async with await open_file(target, mode) as file:
            assert [getattr(file, name, None) for name in names] == expected
            assert [file.readable(), file.writable(), file.seekable(), file.isatty()] == abilities
            assert not os.get_inheritable(file.fileno())
        assert file.closed


async def test_an_opener_is_asked_in_a_thread(manager: AsyncIoManager | None, path: Path) -> None:
    asked: list[Any] = []

    def opener(name: str, flags: int) -> int:
        with pytest.raises(RuntimeError, match="no running event loop"):
            asyncio.get_running_loop()
        asked.append((name, flags & (os.O_ACCMODE | os.O_CREAT | os.O_APPEND)))
        return os.open(name, flags)

    async with await open_file(path, "ab+", opener=opener) as file:
        assert await file.tell() == 65536
    assert asked == [(str(path), os.O_RDWR | os.O_CREAT | os.O_APPEND)]


async def test_what_an_opener_must_not_return(path: Path) -> None:
    with pytest.raises(ValueError, match="opener returned -1"):
        await open_file(path, opener=lambda path, flags: -1)
    with pytest.raises(TypeError, match="expected integer from opener"):
        await open_file(path, opener=lambda path, flags: "3")  # type: ignore[arg-type,return-value]


async def test_a_descriptor_is_closed_unless_closefd_is_false(manager: AsyncIoManager | None, path: Path) -> None:
    fd = os.open(path, os.O_RDWR)
    os.lseek(fd, 8, os.SEEK_SET)
    async with await open_file(fd, "r+b", closefd=False) as file:
        assert file.name == fd
        assert await file.read(4) == (2).to_bytes(4, "big")
        await file.write(b"here")
    assert os.lseek(fd, 0, os.SEEK_CUR) == 16, "the position is where the file's was"
    assert os.pread(fd, 4, 12) == b"here"
    async with await open_file(fd, "rb"):
        pass
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


async def test_a_closed_manager_is_refused(path: Path, driver: Any) -> None:
    async with open_uring(driver=driver) as io:
        pass
    with pytest.raises(anyio.ClosedResourceError):
        await open_file(path, io=io)


async def test_a_named_manager_comes_before_the_innermost(path: Path, driver: Any) -> None:
    async with open_uring(driver=driver, nowait=False) as outer, open_uring(driver=driver, nowait=False) as inner:
        async with await open_file(path, "rb", io=outer) as file:
            await file.read()
        assert outer.statistics().bytes_read == 65536
        assert inner.statistics().bytes_read == 0


async def test_without_a_manager_the_limiter_governs_the_threads(path: Path) -> None:
    limiter = anyio.CapacityLimiter(1)
    opened: list[UringFile[Any]] = []

    async def open_it() -> None:
        opened.append(await open_file(path, limiter=limiter))

    async with limiter, anyio.create_task_group() as tasks:
        tasks.start_soon(open_it)
        await until(lambda: limiter.statistics().tasks_waiting == 1)
        limiter.total_tokens = 2
    (file,) = opened
    assert file.limiter is limiter
    await file.aclose()


async def test_a_cancelled_open_leaks_no_descriptor(manager: AsyncIoManager | None, path: Path) -> None:
    before = _descriptors()
    for passes in range(6):
        opened: list[UringFile[Any]] = []

        async def open_it(opened: list[UringFile[Any]] = opened) -> None:
            opened.append(await open_file(path))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(open_it)
            for _ in range(passes):
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        for file in opened:
            await file.aclose()
        assert _descriptors() == before, "C9"


# --- reading and writing ------------------------------------------------------------------------


@pytest.mark.parametrize("anyio_backend", WITHOUT_DEBUG)
async def test_lines(manager: AsyncIoManager | None, path: Path) -> None:
    lines = [f"line {i} {'x' * (i % 200)}\n" for i in range(4000)]
    _store(path, "".join(lines).encode())
    async with await open_file(path) as file:
        assert [line async for line in file] == lines
    async with await open_file(path, "rb") as binary:
        assert [line async for line in binary] == [line.encode() for line in lines]


async def test_everything_is_a_checkpoint(manager: AsyncIoManager | None, path: Path) -> None:
    """C1: what is cancelled beforehand does nothing, also where the buffer has it."""
    calls: list[tuple[str, Any]] = [
        ("read", (4,)),
        ("read", ()),
        ("read", (0,)),
        ("read1", (4,)),
        ("readinto", (bytearray(4),)),
        ("readline", ()),
        ("readlines", (1,)),
        ("write", (b"x",)),
        ("writelines", ([b"x"],)),
        ("seek", (0,)),
        ("tell", ()),
        ("truncate", (3,)),
        ("flush", ()),
        ("pread", (4, 0)),
        ("pwrite", (b"x", 0)),
        ("fsync", ()),
        ("fdatasync", ()),
    ]
    async with await open_file(path, "r+b") as file:
        await file.read(4)
        for verb, arguments in calls:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await getattr(file, verb)(*arguments)
            assert scope.cancelled_caught, verb
        assert await file.tell() == 4
        assert await file.read(4) == (1).to_bytes(4, "big")
    assert len(_content(path)) == 65536
    with anyio.CancelScope() as scope:
        scope.cancel()
        await open_file(path)
    assert scope.cancelled_caught


@pytest.mark.parametrize("anyio_backend", WITHOUT_DEBUG)
async def test_tasks_share_a_file(manager: AsyncIoManager | None, path: Path) -> None:
    """Each read gives a part that no other gives, and none is lost."""
    content = _content(path)
    parts: list[bytes] = []

    async def read(file: UringFile[bytes], size: int) -> None:
        while part := await file.read(size):
            parts.append(part)

    async with await open_file(path, "rb", buffering=1000) as file, anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(read, file, 4)
    assert sorted(parts) == [content[i : i + 4] for i in range(0, len(content), 4)]


async def test_tasks_write_to_one_file(manager: AsyncIoManager | None, path: Path) -> None:
    async def write(file: UringFile[str], number: int) -> None:
        for i in range(20):
            await file.write(f"{number} {i} {'x' * 500}\n")

    async with await open_file(path, "w", buffering=1300) as file, anyio.create_task_group() as tasks:
        for number in range(6):
            tasks.start_soon(write, file, number)
    lines = _content(path).decode().splitlines()
    assert sorted(lines) == sorted(f"{number} {i} {'x' * 500}" for number in range(6) for i in range(20))


async def test_a_pipe_is_read_line_by_line(manager: AsyncIoManager | None, pipe: tuple[int, int]) -> None:
    async with await open_file(pipe[0], closefd=False) as file:
        assert not file.seekable()
        with pytest.raises(stdio.UnsupportedOperation):
            await file.tell()
        os.write(pipe[1], b"one\ntw")
        assert await file.readline() == "one\n"
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(file.readline)
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
        os.write(pipe[1], b"o\n")
        assert await file.readline() == "two\n", "the cancelled one kept a part"


async def test_a_cancelled_read_loses_nothing(manager: AsyncIoManager | None, pipe: tuple[int, int]) -> None:
    buffer = bytearray(100)
    async with await open_file(pipe[0], "rb", closefd=False) as file:
        for verb, argument in (("read", 99), ("read", -1), ("readinto", buffer), ("readlines", 99), ("readline", 99)):
            os.write(pipe[1], b"ab")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(getattr(file, verb), argument)
                await anyio.wait_all_tasks_blocked()
                tasks.cancel_scope.cancel()
        assert await file.read(10) == b"ab" * 5


_READS: dict[str, Callable[[UringFile[bytes]], Awaitable[Any]]] = {
    "read": lambda file: file.read(),
    "readline": lambda file: file.readline(),
    "readlines": lambda file: file.readlines(1 << 30),
}


@pytest.mark.parametrize("verb", _READS)
async def test_what_an_unbuffered_read_that_failed_has_read_is_read_again(
    manager: AsyncIoManager | None, path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """From the file, where it may have changed meanwhile: without a buffer nothing is kept of it."""
    read = AsyncIoManager.read
    lines = [b"x" * 20_000 + b"\n"] if verb != "readlines" else [b"first\n", b"x" * 20_000 + b"\n"]
    _store(path, b"".join([b"head", *lines]))
    async with await open_file(path, "rb", 0) as file:
        assert await file.read(4) == b"head"
        passed = 0

        async def fails(self: AsyncIoManager, fd: Any, length: int, offset: int, **options: Any) -> bytes:
            nonlocal passed
            if offset >= 8192:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            passed += len(data := await read(self, fd, min(length, 8192), offset, **options))
            return data

        with monkeypatch.context() as patch:
            patch.setattr(AsyncIoManager, "read", fails)
            for _ in range(2):
                with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                    await _READS[verb](file)
                assert await file.tell() == 4
        assert passed >= 2 * 8192
        lines[-1] = b"y" * 20_000 + b"\n"
        _store(path, b"".join([b"head", *lines]))
        assert await _READS[verb](file) == (lines if verb == "readlines" else lines[0])


@pytest.mark.parametrize("verb", ["read", "readline"])
async def test_where_nothing_can_be_read_again_it_is_kept(
    manager: AsyncIoManager | None, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """Of an unbuffered pipe, for the next read."""
    read, left = AsyncIoManager.read, 3

    async def fails(self: AsyncIoManager, fd: Any, length: int, offset: int, **options: Any) -> bytes:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return await read(self, fd, min(length, 1), offset, **options)

    os.write(pipe[1], b"first\nsecond")
    async with await open_file(os.dup(pipe[0]), "rb", 0) as file:
        with monkeypatch.context() as patch:
            patch.setattr(AsyncIoManager, "read", fails)
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                await _READS[verb](file)
        assert await file.read(2) == b"fi"
        assert await file.readline() == b"rst\n"
        assert await file.read(10) == b"second"


async def test_writing_to_a_pipe(manager: AsyncIoManager | None, pipe: tuple[int, int]) -> None:
    async with await open_file(pipe[1], "w", closefd=False, newline="\r\n") as file:
        await file.write("a\n")
        await file.flush()
        assert os.read(pipe[0], 10) == b"a\r\n"
        await file.write("b")
    assert os.read(pipe[0], 10) == b"b"


async def test_lines_are_written_at_once_if_asked(manager: AsyncIoManager | None, path: Path) -> None:
    async with await open_file(path, "w", buffering=1) as file:
        assert file.line_buffering
        await file.write("one\n")
        assert _content(path) == b"one\n"
        await file.write("two")
        assert _content(path) == b"one\n"
    assert _content(path) == b"one\ntwo"


async def test_a_terminal_is_line_buffered(manager: AsyncIoManager | None) -> None:
    ends = open_terminal()
    try:
        async with await open_file(ends[1], "w", closefd=False) as file:
            assert file.line_buffering
            assert file.isatty()
            await file.write("hello\n")
            assert os.read(ends[0], 100) == b"hello\r\n"
    finally:
        os.close(ends[0])
        os.close(ends[1])


async def test_appending_with_others(manager: AsyncIoManager | None, path: Path) -> None:
    _store(path, b"0")
    async with await open_file(path, "ab") as first, await open_file(path, "ab") as second:
        await first.write(b"1")
        await first.flush()
        await second.write(b"2")
        await second.flush()
        assert await second.tell() == 3
        await first.write(b"3")
        await first.flush()
        assert await first.tell() == 4
    assert _content(path) == b"0123"


@pytest.mark.parametrize("is_read_before", [True, False])
async def test_truncating_at_the_position_keeps_what_was_just_appended(
    manager: AsyncIoManager | None, path: Path, is_read_before: bool
) -> None:
    async with await open_file(path, "a+b") as file:
        await file.truncate(0)
        _store(path, b"0123456789")  # somebody else's
        if is_read_before:
            await file.seek(0)
            assert await file.read(1) == b"0"
        await file.write(b"mine")
        assert await file.truncate() == 14
    assert _content(path) == b"0123456789mine"


async def test_the_position_behind_appended_text_is_where_it_has_gone(
    manager: AsyncIoManager | None, path: Path
) -> None:
    async with await open_file(path, "a+", encoding="ascii") as file:
        await file.truncate(0)
        _store(path, b"somebody else's ")
        await file.write("mine")
        assert await file.tell() == 20
        await file.seek(0)
        await file.write(", and more")
        await file.seek(0, os.SEEK_CUR)
        assert not await file.read()
        await file.seek(0)
        await file.write(", and yet more")
        await file.seek(await file.tell())
        assert not await file.read()
    assert _content(path) == b"somebody else's mine, and more, and yet more"


@pytest.mark.parametrize("newline", [None, ""])
async def test_positions_in_text_with_a_wide_state(manager: AsyncIoManager | None, path: Path, newline: Any) -> None:
    """The state of this decoder has more than 32 bits, for which the built-in file has no room."""
    text = "a\ud55c\uad6db\nc" * 50
    path.write_text(text, encoding="iso2022_kr")
    async with await open_file(path, encoding="iso2022_kr", newline=newline) as file:
        for index in range(0, len(text), 7):
            await file.seek(0)
            assert await file.read(index) == text[:index]
            cookie = await file.tell()
            assert await file.read(20) == text[index : index + 20]
            await file.seek(cookie)
            assert await file.read(20) == text[index : index + 20]


@pytest.mark.parametrize(
    ("encoding", "newline", "text", "count"),
    [
        ("ascii", "", "ab\r\n" + "old " * 10, 3),
        ("utf-7", None, "\u3042" * 9 + " " + "old " * 10, 2),
        ("iso2022_jp", None, "\u3042" * 9 + "old " * 10, 2),
        ("utf-16", None, "\u3042" * 9 + "old " * 10, 2),
    ],
)
async def test_text_is_read_again_behind_a_positional_write_wherever_the_position_is(  # noqa: PLR0917 - fixtures
    manager: AsyncIoManager | None, path: Path, encoding: str, newline: Any, text: str, count: int
) -> None:
    """Also between two characters of which the second cannot be decoded without the first."""
    expected = text.replace("old", "new").replace("\u3042", "\u3044")[count:]
    _store(path, text.encode(encoding))
    async with await open_file(path, "r+", encoding=encoding, newline=newline) as file:
        assert await file.read(count) == text[:count]
        cookie = await file.tell()
        assert await file.pwrite(text.replace("old", "new").replace("\u3042", "\u3044").encode(encoding), 0)
        assert await file.tell() == cookie
        await file.pwrite(b"", 0)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await file.read()
        assert await file.readlines() == expected.splitlines(keepends=True)
        await file.seek(cookie)
        assert await file.read(5) == expected[:5]


async def test_a_pipe_has_no_positional_verbs(manager: AsyncIoManager | None, pipe: tuple[int, int]) -> None:
    async with (
        await open_file(pipe[0], "rb", closefd=False) as reader,
        await open_file(pipe[1], "wb", closefd=False) as writer,
    ):
        with pytest.raises(OSError, match=rf"\[Errno {errno.ESPIPE}\]"):
            await writer.pwrite(b"lost", 7)
        with pytest.raises(OSError, match=rf"\[Errno {errno.ESPIPE}\]"):
            await reader.pread(2, 0)
        await writer.write(b"first")
        await writer.flush()
        assert await reader.read(5) == b"first"


@pytest.mark.parametrize("newline", [None, "", "\r\n"])
async def test_a_hint_does_not_have_a_long_line_put_together_again_and_again(
    path: Path, newline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["x" * 100_000 + "\r\n", "y\r\n", "z\r\n"]
    _store(path, "".join(lines).encode())
    peek, peeks = _Pieces.peek, 0

    def count(pieces: _Pieces) -> str:
        nonlocal peeks
        peeks += 1
        return peek(pieces)

    monkeypatch.setattr(_Pieces, "peek", count)
    async with await open_file(path, encoding="ascii", newline=newline) as file:
        with path.open(encoding="ascii", newline=newline) as model:
            for hint in (10, 3, 10):
                assert await file.readlines(hint) == model.readlines(hint)
    assert peeks < 6


async def test_positional_verbs_see_and_are_seen(manager: AsyncIoManager | None, path: Path) -> None:
    async with await open_file(path, "r+", encoding="ascii", newline="") as file:
        await file.truncate(0)
        await file.write("one\ntwo\nthree\n")
        assert await file.pread(3, 4) == b"two"
        await file.seek(0)
        assert await file.readline() == "one\n"
        assert await file.pwrite(b"TWO", 4) == 3
        assert await file.readline() == "TWO\n"
        await file.fsync()
        await file.fdatasync()
    async with await open_file(path, "rb") as binary:
        assert await binary.read(1) == b"o"
        with pytest.raises(stdio.UnsupportedOperation):
            await binary.pwrite(b"x", 0)
        with pytest.raises(ValueError, match="offset must be 0 or more"):
            await binary.pread(1, -1)


async def test_preads_go_on_beside_one_another(path: Path, driver: Any) -> None:
    async with open_uring(driver=driver, nowait=False) as io, await open_file(path, "rb") as file:
        parts: dict[int, bytes] = {}

        async def read(i: int) -> None:
            parts[i] = await file.pread(4, 4 * i)

        async with anyio.create_task_group() as tasks:
            for i in range(20):
                tasks.start_soon(read, i)
        assert parts == {i: i.to_bytes(4, "big") for i in range(20)}
        assert io.statistics().in_flight_max > 1


# --- as the built-in file does ------------------------------------------------------------------


def _outcome_of(verb: Any, arguments: list[Any]) -> Any:
    """What a call gives, or the type and the text of its error."""
    try:
        return verb(*arguments)
    except (OSError, TypeError, ValueError) as exc:
        return type(exc), str(exc)


async def _compare(
    target: Path | int, arguments: tuple[Any, ...], steps: list[tuple[Any, ...]], **options: Any
) -> list[Any]:
    """Carry the same calls out on a built-in file and on ours; return what both gave."""
    content = _content(target) if isinstance(target, Path) else b""
    model: Any
    with open(target, *arguments, **options) as model:
        expected = [_outcome_of(getattr(model, verb), values) for verb, *values in steps]
    results: list[Any] = []
    after = _content(target) if isinstance(target, Path) else b""
    if isinstance(target, Path):
        _store(target, content)
    file: UringFile[Any]
    async with await open_file(target, *arguments, **options) as file:
        for verb, *values in steps:
            try:
                results.append(await getattr(file, verb)(*values))
            except (OSError, TypeError, ValueError) as exc:
                results.append((type(exc), str(exc)))
    assert results == expected
    if isinstance(target, Path):
        assert _content(target) == after
    return results


async def test_calls_that_are_refused_likewise(manager: AsyncIoManager | None, path: Path) -> None:
    """With the same words; and the next call does what it would have done."""
    read = ("read", 2)
    text = [read, ("write", b"bytes"), ("seek", 3, 2), ("seek", 3, 1), ("seek", 0, 9), ("seek", -1), read, ("tell",)]
    assert await _compare(path, ("r+", -1, "latin-1"), text)
    binary = [read, ("read", -2), ("write", "text"), ("seek", 0, 99), ("truncate", -1), read, ("tell",)]
    assert await _compare(path, ("r+b",), binary)
    assert await _compare(path, ("r+b", 0), [read, ("write", "text"), ("truncate", -1), ("read", -2)])
    for buffer in (b"read-only", memoryview(b"read-only")):
        with path.open("rb") as model, pytest.raises(TypeError, match="read-write"):
            model.readinto(buffer)
        async with await open_file(path, "rb") as file:
            with pytest.raises(TypeError, match="read-only"):
                await file.readinto(buffer)
            assert await file.tell() == 0


async def test_read1_without_a_size_gives_what_one_read_does(manager: AsyncIoManager | None, path: Path) -> None:
    content = _content(path)
    async with await open_file(path, "rb") as file:
        first = await file.read1()
        assert first
        assert content.startswith(first)
        assert await file.read(4) == content[len(first) : len(first) + 4]
        rest = await file.read1(-1)
        assert rest == content[len(first) + 4 :][: len(rest)]


async def test_what_has_no_positions_is_refused_likewise(manager: AsyncIoManager | None, pipe: tuple[int, int]) -> None:
    moves = [("tell",), ("seek", 0), ("seek", 0, 2)]
    for arguments in (("rb", 0), ("rb",), ("r",)):
        results = await _compare(pipe[0], arguments, moves, closefd=False)
        assert all(issubclass(kind, OSError) for kind, _ in results)
    first, second = socket.socketpair()
    with first, second:
        with pytest.raises(stdio.UnsupportedOperation) as expected:
            open(first.fileno(), "r+b", closefd=False)  # noqa: SIM115 - it raises
        with pytest.raises(stdio.UnsupportedOperation) as refused:
            await open_file(first.fileno(), "r+b", closefd=False)
        assert str(refused.value) == str(expected.value)
        async with await open_file(first.fileno(), "r+b", 0, closefd=False) as file:
            await file.write(b"ping")
            assert second.recv(10) == b"ping"


@pytest.mark.parametrize("newline", [None, "", "\n", "\r", "\r\n"])
async def test_a_line_end_between_two_pieces(manager: AsyncIoManager | None, path: Path, newline: str | None) -> None:
    """Text is decoded 8192 bytes at a time; and a carriage return at the very end is a line end, too."""
    for before in range(8189, 8194):
        _store(path, b"x" * before + b"\r\nsecond\r\n" + b"y" * 8180 + b"\n\nend\r")
        lines: list[tuple[Any, ...]] = [("readline",), ("tell",)] * 7
        results = await _compare(path, ("r", -1, "ascii", None, newline), lines)
        assert "".join(results[::2]).replace("\r\n", "\n").count("\n") >= 3
        await _compare(path, ("r", -1, "ascii", None, newline), [("readlines", 8000), ("readlines", 1)])


@pytest.mark.parametrize("newline", [None, "\r\n"])
async def test_a_hint_behind_the_first_line_and_inside_the_second(
    manager: AsyncIoManager | None, path: Path, newline: str | None
) -> None:
    _store(path, b"ab\r\n" + b"c" * 300_000 + b"\r\nd\r\ne")
    results = await _compare(path, ("r", -1, "ascii", None, newline), [("readlines", 5), ("readline",), ("readlines",)])
    assert [[*map(len, lines)] for lines in (results[0], results[2])] in ([[3, 300_001], [1]], [[4, 300_002], [1]])


async def test_the_position_of_what_only_the_end_of_the_file_gives(manager: AsyncIoManager | None, path: Path) -> None:
    """A carriage return there is held back until it is known that no line feed follows; the rest of a letter, too."""
    for encoding, data, reads in (("ascii", b"a\r", [1, 1, 1]), ("utf-8", b"ab\xe2\x82", [2, 1, 1])):
        _store(path, data)
        arguments = ("r", -1, encoding, "replace")
        parts = await _compare(path, arguments, [("read", size) for size in reads])
        assert parts in (["a", "\n", ""], ["ab", "\ufffd", ""])
        for count in range(len(reads)):
            async with await open_file(path, encoding=encoding, errors="replace") as file:
                for size in reads[:count]:
                    await file.read(size)
                place = await file.tell()
            # The number need not be the built-in file's; but it means the same to it.
            results = await _compare(path, arguments, [("seek", place), ("read",), ("seek", place), ("read", 9)])
            assert results[1] == results[3] == "".join(parts[count:])


async def test_a_place_that_the_file_has_no_more(manager: AsyncIoManager | None, path: Path) -> None:
    """Of an encoding with a state, a place is some bytes in front of it and a count of letters."""
    letters = "\u3042\u3044\u3046\u3048" * 20
    _store(path, letters.encode("utf-7"))
    with path.open(encoding="utf-7") as model:
        model.read(50)
        place = model.tell()
    assert place > 1 << 64
    assert (await _compare(path, ("r", -1, "utf-7"), [("seek", place), ("read", 3)]))[1] == letters[50:53]
    os.truncate(path, 3)
    results = await _compare(path, ("r", -1, "utf-7"), [("seek", place)])
    assert results == [(OSError, "can't restore logical file position")]


def test_more_letters_than_the_bytes_have_are_nowhere() -> None:
    """As a codec says that decodes the same bytes to something else each time."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    assert locate(decoder, 10, 0, "a\u20ac".encode(), 2) == TextPosition(14)
    with pytest.raises(OSError, match="can't reconstruct logical file position"):
        locate(decoder, 10, 0, "a\u20ac".encode(), 3)


async def test_what_cannot_be_encoded_writes_nothing(manager: AsyncIoManager | None, path: Path) -> None:
    """Nor is the mark of the byte order taken for written, as a built-in file may take it."""
    for encoding in ("utf-16", "utf-8-sig"):
        async with await open_file(path, "w", encoding=encoding) as file:
            for text in ("text", "more"):
                with pytest.raises(UnicodeEncodeError):
                    await file.write("\ud800")
                assert await file.write(text) == 4
        assert _content(path) == "textmore".encode(encoding)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
async def test_text_that_has_room_but_for_its_bytes_is_written_at_once(
    manager: AsyncIoManager | None, path: Path, encoding: str
) -> None:
    """With one mark of the byte order, which the attempt to put it into the buffer does not use up."""
    for first, more in (("\u20ac" * 12, "end"), ("ab", "\u20ac" * 12)):
        steps = [("write", first), ("tell",), ("write", more), ("flush",), ("tell",)]
        await _compare(path, ("w", 16, encoding), steps)
        assert _content(path) == (first + more).encode(encoding)
        await _compare(path, ("w", 16, encoding), [("writelines", [first, more])])
        assert _content(path) == (first + more).encode(encoding)


# --- text ---------------------------------------------------------------------------------------


async def test_a_cancelled_write_of_text_has_written_no_mark(
    manager: AsyncIoManager | None, pipe: tuple[int, int]
) -> None:
    _fill(pipe[1])
    async with await open_file(pipe[1], "w", 16, encoding="utf-16", closefd=False) as file:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(file.write, "lost " * 10)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        os.set_blocking(pipe[0], False)
        with suppress(BlockingIOError):
            while True:
                os.read(pipe[0], 1 << 16)
        await file.write("kept")
    assert os.read(pipe[0], 100).decode("utf-16") == "kept"


@pytest.mark.parametrize("verb", ["readline", "read", "readlines"])
async def test_a_cancelled_read_of_text_loses_nothing(
    manager: AsyncIoManager | None, pipe: tuple[int, int], verb: str
) -> None:
    """Of the pieces that it has decoded before; not of what an earlier one has left, either."""
    async with await open_file(pipe[0], encoding="utf-8", closefd=False) as file:
        os.write(pipe[1], "first\n\u20ac".encode())
        assert await file.readline() == "first\n"
        arguments = {"readline": (), "read": (99,), "readlines": ()}[verb]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(getattr(file, verb), *arguments)
            await anyio.wait_all_tasks_blocked()
            for part in (b"a\xe2", b"\x82\xacb"):
                os.write(pipe[1], part)
                await until(lambda: not select.select([pipe[0]], [], [], 0)[0])
                await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        os.write(pipe[1], b"c\nd")
        assert await file.readline() == "\u20aca\u20acbc\n"
        assert await file.read(1) == "d"


async def test_a_positional_write_where_decoding_cannot_begin(manager: AsyncIoManager | None, path: Path) -> None:
    """What was decoded stays then, and the position with it; where it can begin, what was written is read."""
    letters = "\u3042\u3044\u3046\u3048" * 20
    _store(path, letters.encode("utf-7") + b"plain")
    async with await open_file(path, "r+", encoding="utf-7") as file:
        assert await file.read(50) == letters[:50]
        place = await file.tell()
        size = path.stat().st_size
        assert await file.pwrite(b"PLAIN", size - 5) == 5
        assert await file.tell() == place
        assert await file.read(3) == letters[50:53]
        await file.seek(place)
        assert await file.read() == letters[50:] + "PLAIN"
        await file.seek(0)
        assert await file.pwrite(b"again", size - 5) == 5
        assert await file.read() == letters + "again"


# --- errors at writing --------------------------------------------------------------------------


async def test_what_cannot_be_written_is_kept(manager: AsyncIoManager | None, tmp_path: Path) -> None:
    data = os.urandom(1500)
    async with await open_file(tmp_path / "file", "wb") as file:
        await file.write(data)
        with file_size_limit(1000):
            for _ in range(2):
                with pytest.raises(OSError) as raised:
                    await file.flush()
                assert raised.value.errno == errno.EFBIG
            assert await file.tell() == 1500
        await file.flush()
    assert _content(tmp_path / "file") == data


async def test_a_failing_close_closes(manager: AsyncIoManager | None, tmp_path: Path) -> None:
    before = _descriptors()
    file = await open_file(tmp_path / "file", "wb")
    await file.write(bytes(1500))
    with file_size_limit(1000), pytest.raises(OSError) as raised:
        await file.aclose()
    assert raised.value.errno == errno.EFBIG
    assert file.closed
    assert _descriptors() == before
    await file.aclose()


# --- the end ------------------------------------------------------------------------------------


async def test_a_closed_file_is_a_value_error(manager: AsyncIoManager | None, path: Path) -> None:
    file = await open_file(path, "r+b")
    await file.read(4)
    await file.aclose()
    await file.aclose()
    for verb, arguments in [
        ("read", (1,)),
        ("readline", ()),
        ("write", (b"x",)),
        ("tell", ()),
        ("seek", (0,)),
        ("flush", ()),
        ("pread", (1, 0)),
        ("pwrite", (b"x", 0)),
        ("fsync", ()),
        ("__anext__", ()),
    ]:
        with pytest.raises(ValueError, match="closed file"):
            await getattr(file, verb)(*arguments)
    for verb in ("fileno", "readable", "isatty"):
        with pytest.raises(ValueError, match="closed file"):
            getattr(file, verb)()


async def test_a_cancelled_close_writes_and_closes(manager: AsyncIoManager | None, path: Path) -> None:
    before = _descriptors()
    file = await open_file(path, "wb")
    await file.write(b"kept")
    with anyio.CancelScope() as scope:
        scope.cancel()
        await file.aclose()
    assert scope.cancelled_caught
    assert file.closed
    assert _content(path) == b"kept"
    assert _descriptors() == before


@asyncio_only
async def test_so_does_a_natively_cancelled_one(manager: AsyncIoManager | None, path: Path) -> None:
    for passes in range(8):
        before = _descriptors()
        file = await open_file(path, "wb")
        await file.write(b"kept")
        task = asyncio.ensure_future(file.aclose())
        for _ in range(passes):
            await asyncio.sleep(0)
        task.cancel()
        results = await asyncio.gather(task, return_exceptions=True)
        if not passes:  # cancelled before its first step, a coroutine never runs
            assert isinstance(results[0], asyncio.CancelledError)
            await file.aclose()
        assert file.closed
        assert _content(path) == b"kept"
        assert _descriptors() == before


def _fill(fd: int) -> None:
    os.set_blocking(fd, False)
    with suppress(BlockingIOError):
        while True:
            os.write(fd, bytes(4096))
    os.set_blocking(fd, True)


async def test_a_cancelled_close_does_not_wait_for_a_full_pipe(
    manager: AsyncIoManager | None, pipe: tuple[int, int]
) -> None:
    _fill(pipe[1])
    file = await open_file(os.dup(pipe[1]), "wb")
    await file.write(b"lost")
    with anyio.CancelScope() as scope:
        scope.cancel()
        await file.aclose()
    assert scope.cancelled_caught
    with pytest.raises(ValueError, match="closed"):
        file.fileno()


async def test_closing_waits_for_others(manager: AsyncIoManager | None, pipe: tuple[int, int]) -> None:
    file = await open_file(os.dup(pipe[0]), "rb")
    results: list[bytes] = []

    async def read() -> None:
        results.append(await file.read(2))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(file.aclose)
        await anyio.wait_all_tasks_blocked()
        assert file.fileno() >= 0, "C10"
        os.write(pipe[1], b"ok")
    assert results == [b"ok"]
    assert file.closed


async def test_what_was_written_outlives_the_manager(path: Path, driver: Any) -> None:
    async with open_uring(driver=driver):
        file = await open_file(path, "wb")
        await file.write(b"kept")
    with pytest.raises(anyio.ClosedResourceError):
        await file.flush()
    await file.aclose()
    assert _content(path) == b"kept"


async def test_a_write_of_nothing_is_an_error_and_not_tried_for_ever(
    manager: AsyncIoManager | None, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No filesystem at hand does that; what waited goes on waiting."""

    async def writes_nothing(*_arguments: object) -> int:
        return 0

    async with await open_file(path, "wb", 8) as file:
        await file.write(b"kept ")
        with monkeypatch.context() as patch:
            patch.setattr(AsyncIoManager, "write", writes_nothing)
            for call in (file.flush, lambda: file.write(b"much longer")):
                with pytest.raises(OSError, match="wrote nothing") as raised:
                    await call()
                assert raised.value.errno == errno.EIO
        await file.write(b"much longer")
    assert _content(path) == b"kept much longer"


async def test_a_forgotten_file_of_anothers_descriptor_leaves_it_open(
    manager: AsyncIoManager | None, path: Path
) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_TRUNC)
    files = [await open_file(fd, "w", closefd=False)]
    await files[0].write("kept")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        files.clear()
        gc.collect()
    os.write(fd, b"")
    assert _content(path) == b"kept"
    os.close(fd)


async def test_a_directorys_descriptor_is_refused_and_stays_open(
    manager: AsyncIoManager | None, tmp_path: Path
) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    for closefd in (False, True):
        with pytest.raises(IsADirectoryError) as expected:
            open(fd, closefd=closefd)  # noqa: SIM115 - it raises
        with pytest.raises(IsADirectoryError) as refused:
            await open_file(fd, closefd=closefd)
        assert (refused.value.errno, refused.value.filename) == (expected.value.errno, expected.value.filename)
        os.fstat(fd)
    os.close(fd)


async def test_a_budget_is_spent_by_what_is_in_the_buffer_too(path: Path, driver: Any) -> None:
    """A file lets others run now and then, and a cancellation strikes at once, as with a checkpoint on every call."""
    turns = 0
    done = anyio.Event()

    async def count() -> None:
        nonlocal turns
        while not done.is_set():
            turns += 1
            await anyio.lowlevel.checkpoint()

    content = _content(path)
    async with (
        open_uring(driver=driver, checkpoint="budget") as io,
        await open_file(path, "rb", io=io) as file,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(count)
        parts = [await file.read(1) for _ in range(3000)]
        done.set()
        assert b"".join(parts) == content[:3000]
        # Before Python 3.11 a task of asyncio's cannot know whether it is being cancelled: there it lets others run always.
        assert 1 < turns < 3000 or sys.version_info < (3, 11)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await file.read(1)
        assert scope.cancelled_caught
        assert await file.tell() == 3000


async def test_a_forgotten_file_is_written_and_warned_of(manager: AsyncIoManager | None, path: Path) -> None:
    files = [await open_file(path, "w")]
    await files[0].write("kept")
    with pytest.warns(ResourceWarning, match="unclosed file <UringFile"):
        files.clear()
    assert _content(path) == b"kept"


async def test_so_is_one_where_that_warning_is_an_error(
    manager: AsyncIoManager | None, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: raised.append(unraisable.exc_type))
    files = [await open_file(path, "w")]
    await files[0].write("kept")
    descriptors = _descriptors()
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        files.clear()
    assert raised == [ResourceWarning]
    assert _content(path) == b"kept"
    assert _descriptors() == descriptors - 1


# --- wrap_file ----------------------------------------------------------------------------------


async def test_wrapping_goes_on_where_the_other_is(manager: AsyncIoManager | None, path: Path) -> None:
    content = _content(path)
    other = path.open("r+b")
    other.read(5)
    async with wrap_file(other) as file:
        assert file.wrapped is other
        assert file.mode == "rb+"
        assert await file.read(5) == content[5:10]
        await file.write(b"here")
        assert await file.tell() == 14
    assert other.closed
    assert _content(path) == content[:10] + b"here" + content[14:]


async def test_what_waited_in_the_other_is_written_first(manager: AsyncIoManager | None, path: Path) -> None:
    other = path.open("wb")
    other.write(b"one ")
    async with wrap_file(other) as file:
        await file.write(b"two")
    assert _content(path) == b"one two"


async def test_wrapping_a_descriptor(manager: AsyncIoManager | None, path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    async with wrap_file(fd) as file:
        assert file.mode == "wb"
        await file.write(b"end")
    assert _content(path)[-3:] == b"end"
    with pytest.raises(OSError, match="Bad file descriptor"):
        wrap_file(fd)


async def test_wrapping_what_has_no_positions(manager: AsyncIoManager | None, pipe: tuple[int, int]) -> None:
    """For writing, and what waits is written first; for reading, its raw file."""
    other = os.fdopen(os.dup(pipe[1]), "wb")
    other.write(b"one ")
    async with wrap_file(other) as sink, wrap_file(os.fdopen(os.dup(pipe[0]), "rb", buffering=0)) as source:
        assert not sink.seekable()
        await sink.write(b"two")
        await sink.flush()
        assert await source.read(100) == b"one two"
    assert other.closed


async def test_a_raw_file_stays_without_a_buffer(manager: AsyncIoManager | None, path: Path) -> None:
    async with wrap_file(path.open("r+b", buffering=0)) as file:
        await file.write(b"seen")
        assert _content(path)[:4] == b"seen"
        with pytest.raises(AttributeError, match="has no read1"):
            await file.read1()


async def test_a_temporary_file_is_wrapped_and_removed(manager: AsyncIoManager | None) -> None:
    other = tempfile.NamedTemporaryFile()  # noqa: SIM115 - the file that wraps it closes it
    other.write(b"one ")
    async with wrap_file(other) as file:
        await file.write(b"two")
        assert await file.pread(10, 0) == b"one two"
        assert os.path.exists(other.name)
    assert not os.path.exists(other.name)


async def test_what_cannot_be_wrapped(path: Path, pipe: tuple[int, int]) -> None:
    with path.open() as text, pytest.raises(TypeError, match="not TextIOWrapper"):
        wrap_file(text)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not str"):
        wrap_file(str(path))  # type: ignore[arg-type]
    with open(pipe[0], "rb", closefd=False) as reader, pytest.raises(ValueError, match="give its raw file"):
        wrap_file(reader)
    for codec in (bz2, gzip, lzma):
        with codec.open(path, "wb") as packed, pytest.raises(TypeError, match=f"not {type(packed).__name__}"):
            wrap_file(packed)
    with tempfile.NamedTemporaryFile("w+") as named, pytest.raises(TypeError, match="not TextIOWrapper"):
        wrap_file(named)  # type: ignore[arg-type]
    with path.open("rb") as closed:
        pass
    with pytest.raises(ValueError, match="closed"):
        wrap_file(closed)


async def test_the_wrapped_file_is_a_raw_one(manager: AsyncIoManager | None, path: Path) -> None:
    async with await open_file(path, "rb") as file:
        raw = file.wrapped
        assert isinstance(raw, stdio.FileIO)
        assert raw.fileno() == file.fileno()
        assert raw.name == str(path)
    assert raw.closed


async def test_text_and_binary_have_their_own_methods(path: Path) -> None:
    async with await open_file(path, encoding="latin-1") as text, await open_file(path, "rb") as binary:
        for verb in ("read1", "readinto", "readinto1"):
            with pytest.raises(AttributeError, match=f"a text file has no {verb}"):
                await getattr(text, verb)(bytearray(3))
        for name in ("encoding", "errors", "newlines", "line_buffering"):
            assert not hasattr(binary, name)


@asyncio_only
async def test_a_native_cancellation_of_a_close_that_waits_for_a_pread(io: AsyncIoManager, tmp_path: Path) -> None:
    """It writes and closes all the same, and is raised behind that."""
    async with await open_file(tmp_path / "data", "w+b", io=io) as file:
        await file.write(b"old")
        await file.flush()
        gate = anyio.Event()
        raw = file._binary.raw
        read = AsyncIoManager.read

        async def waits(self: AsyncIoManager, *args: Any, **options: Any) -> bytes:
            await gate.wait()
            return await read(self, *args, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(AsyncIoManager, "read", waits)
            reader = asyncio.create_task(file.pread(3, 0))
            await until(lambda: file._preads == 1)
            await file.write(b" and new")
            closing = asyncio.create_task(file.aclose())
            await until(lambda: file.closed)
            closing.cancel()
            for _ in range(5):
                await asyncio.sleep(0)
            assert not closing.done()
            gate.set()
            assert await reader == b"old"
            with pytest.raises(asyncio.CancelledError):
                await closing
        assert raw.is_closed
        assert (tmp_path / "data").read_bytes() == b"old and new"


@asyncio_only
@pytest.mark.parametrize("passes", [0, 1, 2, 4, 6, 9])
async def test_a_cancelled_seek_of_a_text_file_has_not_moved(driver: Any, tmp_path: Path, passes: int) -> None:
    """Also where it has to decode: of an encoding with a state, a position is a place in front of it and a count."""
    letters = "".join(chr(0x3042 + i % 80) for i in range(300))
    (tmp_path / "text").write_text(letters + "\n" + "plain\n" * 5000, encoding="utf-7")
    async with (
        open_uring(driver=driver, nowait=False) as io,
        await open_file(tmp_path / "text", encoding="utf-7", io=io) as file,
    ):
        assert await file.read(100) == letters[:100]
        place = await file.tell()
        await file.seek(0, os.SEEK_END)
        await file.seek(0)
        assert await file.read(10) == letters[:10]
        await file.readline()
        before = await file.tell()
        seeking = asyncio.create_task(file.seek(place))
        for _ in range(passes):
            await asyncio.sleep(0)
        seeking.cancel()
        moved = (await asyncio.gather(seeking, return_exceptions=True))[0] == place
        assert await file.tell() == (place if moved else before)
        assert (await file.readline()) == (letters[100:] + "\n" if moved else "plain\n")

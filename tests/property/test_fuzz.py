"""Whatever is given to what parses, and to the public verbs: a result or a clear error; no crash, no hang."""

from __future__ import annotations

import os
import string
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from anyio_uring import (
    AsyncIoManager,
    BatchError,
    UringOptions,
    aligned_buffer,
    open_append_log,
    open_uring,
    read_append_log,
)
from anyio_uring._config import parse_size
from anyio_uring._errors import CorruptLogError

OPTIONS = [field.name for field in attrs.fields(UringOptions)]
FERRITE = ["uring_enabled", "uring_queue_depth", "uring_sqpoll", "uring_fixed_buffer_size", "uring_fixed_files"]

# --- what parses ----------------------------------------------------------------------------------

WORDS = st.text(string.ascii_letters + string.digits + " .-+_\"'\\\t\n[]{}=#é", max_size=12)
KEYS = st.sampled_from([*OPTIONS, *FERRITE]) | WORDS
NUMBERS = st.integers(-(2**70), 2**70) | st.sampled_from([0, 1, 255, 256, 4096, 65536])
SIZES = st.builds(
    "{}{}{}".format,
    st.integers(-5, 10**12),
    st.sampled_from(["", " "]),
    st.sampled_from(["KB", "MiB", "kb", "B", "GB", "XB"]),
)


def _toml(value: object) -> str:
    """Return a value as TOML has it; a text may break its line and be none."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, (int, float)) else f'"{value}"'


VALUES = st.booleans() | NUMBERS | st.floats() | WORDS | SIZES | st.sampled_from(["auto", "uring", "threads", "always"])


@given(WORDS | SIZES)
@example("64KB")
def test_a_size(text: str) -> None:
    complaint = ""
    try:
        size = parse_size(text)
    except ValueError as exc:
        complaint = str(exc)
    else:
        assert isinstance(size, int)
        assert size > 0
    assert not complaint or repr(text) in complaint or "size" in complaint


@given(st.dictionaries(KEYS, VALUES, max_size=5), WORDS)
@example({"depth": 64}, "")
@example({"sqpoll_cpu": 0}, "")
def test_a_table_of_options(table: dict[str, object], garbage: str) -> None:
    text = "[io]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in table.items()) + garbage
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "app.toml")
        path.write_bytes(text.encode())
        complaint = ""
        try:
            options = UringOptions.from_toml(path)
        except ValueError as exc:
            complaint = str(exc)
        else:
            assert options == attrs.evolve(options), "what was read is valid"
        assert not complaint or "app.toml" in complaint


@given(
    st.dictionaries(
        st.sampled_from([f"ANYIO_URING_{name.upper()}" for name in OPTIONS]), WORDS | SIZES | NUMBERS.map(str)
    )
)
def test_the_environment(environ: dict[str, str]) -> None:
    complaint = ""
    try:
        UringOptions.from_env(environ)
    except ValueError as exc:
        complaint = str(exc)
    assert not complaint or any(name in complaint for name in environ)


@settings(max_examples=settings().max_examples // 10)
@given(st.binary(max_size=300), st.integers(0, 200), st.booleans())
def test_a_file_that_is_no_log_or_a_damaged_one(data: bytes, at: int, is_log: bool) -> None:
    """Reading gives records that were appended, in order, or says that it is corrupt; opening does the same."""
    records = [b"%d" % number for number in range(8)]

    async def main(path: Path) -> None:
        content = data
        if is_log:
            async with open_append_log(path) as log:
                for record in records:
                    await log.append(record)
            content = path.read_bytes()[:at] + data
        path.write_bytes(content)
        try:
            found = [record async for _, record in read_append_log(path)]
            assert found == records[: len(found)]
            async with open_append_log(path) as log:
                assert log.recovery.records == len(found)
        except CorruptLogError as exc:
            assert str(path) in str(exc)  # noqa: PT017 - it may be raised, and need not be

    with tempfile.TemporaryDirectory() as directory:
        anyio.run(main, Path(directory, "log"))


# --- the verbs ------------------------------------------------------------------------------------

# No small numbers: those are descriptors of this process, such as the event loop's.
DESCRIPTORS = st.sampled_from(
    ["own", "own", "own", "file", -1, 1_000_000, 2**31, -(2**63), 2**64, None, "text", 1.0, b"", True]
)
OFFSETS = st.sampled_from([0, 1, 4095, 65536, -1, -2, 2**62, 2**63 - 1, 2**63, -(2**64), None, "0", 1.5, True])
LENGTHS = st.sampled_from([0, 1, 100, 4096, 70_000, -1, 2**63, -(2**64), None, "1", 2.0, True])


def _made(make: Callable[[], Any]) -> Any:
    return make()


BUFFERS = st.sampled_from(
    [
        *(lambda: bytearray(10), lambda: b"bytes", lambda: memoryview(b""), lambda: memoryview(bytearray(8))[::2]),
        *(bytearray, lambda: aligned_buffer(4096), lambda: memoryview(bytearray(16)).cast("I")),
        *(lambda: None, lambda: 5, lambda: "text", lambda: [1]),
    ]
).map(_made)
FLAGS = st.sampled_from([0, 0, 0, 1, 2, 8, 2**31, -1, 2**64, None, "0"])
PATHS = st.sampled_from(["data", b"data", "", "missing/x", "a\0b", "x" * 5000, None, 5.0, "\udcff", ["data"]])
MODES = st.sampled_from([0, 1, 2, 0o644, -1, 2**31, 2**64, None, "r"])

CALLS: dict[str, tuple[st.SearchStrategy[Any], ...]] = {
    "read": (DESCRIPTORS, LENGTHS, OFFSETS),
    "readinto": (DESCRIPTORS, BUFFERS, OFFSETS),
    "read_exactly": (DESCRIPTORS, LENGTHS, OFFSETS),
    "write": (DESCRIPTORS, BUFFERS, OFFSETS),
    "write_all": (DESCRIPTORS, BUFFERS, OFFSETS),
    "write_and_sync": (DESCRIPTORS, BUFFERS, OFFSETS),
    "readv": (DESCRIPTORS, st.lists(BUFFERS, max_size=3) | BUFFERS, OFFSETS),
    "writev": (DESCRIPTORS, st.lists(BUFFERS, max_size=3) | BUFFERS, OFFSETS),
    "fsync": (DESCRIPTORS,),
    "fdatasync": (DESCRIPTORS,),
    "read_batch": (st.lists(st.tuples(DESCRIPTORS, LENGTHS, OFFSETS) | BUFFERS, max_size=3) | LENGTHS,),
    "readinto_batch": (st.lists(st.tuples(DESCRIPTORS, BUFFERS, OFFSETS), max_size=3),),
    "write_batch": (st.lists(st.tuples(DESCRIPTORS, BUFFERS, OFFSETS) | st.tuples(DESCRIPTORS), max_size=3),),
    "fsync_batch": (st.lists(DESCRIPTORS, max_size=3),),
    "read_files": (st.lists(PATHS, max_size=3),),
    "stat_batch": (st.lists(PATHS, max_size=3),),
    "stat": (PATHS,),
    "rename": (PATHS, PATHS),
    "unlink": (PATHS,),
    "rmdir": (PATHS,),
    "mkdir": (PATHS, MODES),
    "link": (PATHS, PATHS),
    "symlink": (PATHS, PATHS),
    "truncate": (DESCRIPTORS, OFFSETS),
    "fallocate": (DESCRIPTORS, MODES, LENGTHS, LENGTHS),
    "fadvise": (DESCRIPTORS, OFFSETS, LENGTHS, MODES),
    "sync_file_range": (DESCRIPTORS, OFFSETS, LENGTHS, MODES),
    "getxattr": (DESCRIPTORS, PATHS),
    "setxattr": (DESCRIPTORS, PATHS, BUFFERS),
}
FLAGGED = {"read", "readinto", "write", "readv", "writev", "read_batch"}
CLEAR = (TypeError, ValueError, OSError, BatchError, anyio.IncompleteRead, MemoryError)


@st.composite
def _calls(draw: st.DrawFn) -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    calls = []
    for name in draw(st.lists(st.sampled_from(sorted(CALLS)), min_size=5, max_size=30)):
        keywords = {"flags": draw(FLAGS)} if name in FLAGGED else {}
        calls.append((name, tuple(draw(argument) for argument in CALLS[name]), keywords))
    return calls


async def _call(io: AsyncIoManager, file: Any, name: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    def own(value: Any) -> Any:
        if isinstance(value, list):
            return [own(each) for each in value]
        if isinstance(value, tuple):
            return tuple(own(each) for each in value)
        is_name = isinstance(value, str)
        return file.fileno() if is_name and value == "own" else file if is_name and value == "file" else value

    with anyio.fail_after(30):
        try:
            await getattr(io, name)(*own(arguments), **keywords)
        except CLEAR as exc:
            assert str(exc), name  # noqa: PT017 - an error is allowed, and one that says nothing is not


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("driver", ["uring", "threads"])
def test_the_verbs(driver: Any, backend: str) -> None:
    async def main(calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]]) -> None:
        with open("data", "w+b") as file:
            file.write(bytes(range(256)) * 300)
            file.flush()
            async with open_uring(driver=driver, depth=8) as io:
                for name, arguments, keywords in calls:
                    await _call(io, file, name, arguments, keywords)
                # It works all the same.
                os.pwrite(file.fileno(), b"behind", 100)
                assert await io.read(file, 6, 100) == b"behind"
                assert io.statistics().in_flight == 0

    @settings(max_examples=settings().max_examples // 10)
    @given(_calls())
    def fuzz(calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]]) -> None:
        before = os.getcwd()
        with tempfile.TemporaryDirectory() as directory:
            os.chdir(directory)
            try:
                anyio.run(main, calls, backend=backend)
            finally:
                os.chdir(before)

    fuzz()

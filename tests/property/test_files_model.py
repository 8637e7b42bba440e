"""Random operations on a file against the built-in ``open()``: the same results, positions, errors and bytes."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from anyio_uring import UringFile, open_file, open_uring

Step = tuple[str, tuple[Any, ...]]

# Above and below the sizes of the buffers, here and there.
SIZES = st.one_of(st.integers(-1, 40), st.sampled_from([8191, 8192, 8193, 20000]))
BYTES = st.one_of(
    st.binary(max_size=40).map(lambda data: data.replace(b"\x07", b"\n")),
    st.builds(lambda data, times: data * times, st.sampled_from([b"ab\n", b"x", b"1\r\n23"]), st.integers(1, 9000)),
)
# A mark of the byte order is text like any other, and "\x85" a line end for nobody here.
LETTERS = st.text(st.sampled_from("abc \n\r\t\x0b\x85é€"), max_size=40)
TEXTS = st.one_of(
    LETTERS,
    st.builds(lambda text, times: text * times, st.sampled_from(["ab\n", "é", "1\r\n2€3"]), st.integers(1, 6000)),
)
WHENCES = st.sampled_from([os.SEEK_SET, os.SEEK_CUR, os.SEEK_END, 9])
MODES = st.sampled_from(["r", "w", "a", "x", "r+", "w+", "a+", "x+"])
NOTHING: st.SearchStrategy[tuple[Any, ...]] = st.just(())


def _steps(verbs: dict[str, st.SearchStrategy[tuple[Any, ...]]]) -> st.SearchStrategy[list[Step]]:
    return st.lists(
        st.one_of([st.tuples(st.just(verb), arguments) for verb, arguments in verbs.items()]), min_size=1, max_size=20
    )


COMMON: dict[str, st.SearchStrategy[tuple[Any, ...]]] = {
    "read": st.one_of(st.tuples(SIZES), NOTHING),
    # Of files that cannot be read, the built-in ones give a line of no length.
    "readline": st.one_of(st.tuples(SIZES.filter(bool)), NOTHING),
    "readlines": st.one_of(st.tuples(SIZES), NOTHING),
    "lines": st.tuples(st.integers(1, 4)),
    "tell": NOTHING,
    "flush": NOTHING,
    "truncate": st.one_of(NOTHING, st.tuples(st.integers(-1, 20000))),
}
BINARY_STEPS = _steps(
    {
        **COMMON,
        "read1": st.tuples(st.integers(0, 9000)),
        "readinto": st.tuples(st.integers(0, 20000)),
        "readinto1": st.tuples(st.integers(0, 9000)),
        "write": st.tuples(BYTES),
        "writelines": st.tuples(st.lists(BYTES, max_size=3)),
        "seek": st.tuples(st.one_of(st.integers(-10, 100), st.integers(0, 30000)), WHENCES),
    }
)
TEXT_STEPS = _steps(
    {
        **COMMON,
        # Without a size it would be where the last piece of bytes ended.
        "truncate": st.tuples(st.integers(-1, 20000)),
        "write": st.tuples(TEXTS),
        "writelines": st.tuples(st.lists(TEXTS, max_size=3)),
        "seek": st.sampled_from(
            [(0, os.SEEK_SET), (0, os.SEEK_END), (0, os.SEEK_CUR), (3, os.SEEK_CUR), (3, 9), (-1, 0)]
        ),
        "mark": NOTHING,
        "return": NOTHING,
    }
)


def _of_error(exc: Exception) -> tuple[str, int | None]:
    return type(exc).__name__, exc.errno if isinstance(exc, OSError) else None


class BuiltIn:
    """A built-in file, step by step."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.mark: int | None = None

    def step(self, verb: str, arguments: tuple[Any, ...]) -> Any:
        file = self.file
        if verb in {"readinto", "readinto1"}:
            buffer = bytearray(arguments[0])
            return getattr(file, verb)(buffer), bytes(buffer)
        if verb == "lines":
            return [file.readline() for _ in range(arguments[0])]
        if verb == "mark":
            self.mark = file.tell()
            return None
        if verb == "return":
            return None if self.mark is None else bool(file.seek(self.mark) >= 0)
        if verb == "readlines" and isinstance(file, io.TextIOBase):
            return self._readlines(*arguments)
        return getattr(file, verb)(*arguments)

    def _readlines(self, hint: int = -1) -> list[str]:
        # Its own would switch tell() off, for it iterates.
        lines: list[str] = []
        while (hint <= 0 or sum(map(len, lines)) <= hint) and (line := self.file.readline()):
            lines.append(line)
        return lines

    def outcome(self, verb: str, arguments: tuple[Any, ...]) -> Any:
        try:
            return self.step(verb, arguments)
        except Exception as exc:  # noqa: BLE001 - the error is the outcome
            return _of_error(exc)


class Ours:
    """The same of ours."""

    def __init__(self, file: UringFile[Any]) -> None:
        self.file = file
        self.mark: int | None = None

    async def step(self, verb: str, arguments: tuple[Any, ...]) -> Any:
        file = self.file
        if verb in {"readinto", "readinto1"}:
            buffer = bytearray(arguments[0])
            return await getattr(file, verb)(buffer), bytes(buffer)
        if verb == "lines":
            return [line async for line in _first(file, arguments[0])]
        if verb == "mark":
            self.mark = await file.tell()
            return None
        if verb == "return":
            return None if self.mark is None else bool(await file.seek(self.mark) >= 0)
        return await getattr(file, verb)(*arguments)

    async def outcome(self, verb: str, arguments: tuple[Any, ...]) -> Any:
        try:
            return await self.step(verb, arguments)
        except Exception as exc:  # noqa: BLE001
            return _of_error(exc)


async def _first(file: UringFile[Any], count: int) -> AsyncIterator[Any]:
    """So many lines; behind the last one empty ones, as ``readline()`` has it."""
    left = count
    async for line in file:
        yield line
        left -= 1
        if not left:
            return
    for _ in range(left):
        yield await file.readline()


def _sees_buffers(verb: str, mode: str) -> bool:
    """
    Whether a step's result would tell how much waits to be written, and the size of buffers is everybody's own.

    An appending file learns its position when it writes: before that the built-in one reads on from where it was,
    or from what it had read ahead there.  And the built-in ``read1()``, on which text is built, too, overlooks what
    waits.
    """
    is_reading = verb.startswith(("read", "lines"))
    if "b" not in mode and "+" in mode and is_reading:
        return True
    return verb == "read1" or (mode[0] == "a" and (is_reading or verb in {"tell", "seek", "mark", "truncate"}))


def _reads_far(verb: str, arguments: tuple[Any, ...], mode: str) -> bool:
    """Whether it reads a text that is longer than one of our pieces."""
    return "b" not in mode and verb == "read" and max((0, *arguments)) > 8192


async def _compare_once(model: BuiltIn, ours: Ours, expected: Any, actual: Any) -> None:
    """Compare what one operation gave, of which the beginning is everybody's; and go on from the same position."""
    if isinstance(expected, tuple) and isinstance(expected[0], int):
        expected, actual = expected[1][: expected[0]], actual[1][: actual[0]]
    if isinstance(expected, bytes):
        length = min(len(expected), len(actual))
        assert actual[:length] == expected[:length]
        assert bool(actual) == bool(expected)
        position = min(model.file.tell(), await ours.file.tell())
        assert await ours.file.seek(position) == model.file.seek(position)
    else:
        assert actual == expected


async def _run(driver: Any, content: bytes, steps: list[Step], mode: str, options: dict[str, Any]) -> None:
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        paths = directory / "model", directory / "ours"
        if "x" not in mode:
            for path in paths:
                path.write_bytes(content)
        if driver is not None:
            await stack.enter_async_context(open_uring(driver=driver))
        with contextlib.closing(open(paths[0], mode, **options)) as file:
            model = BuiltIn(file)
            opened: UringFile[Any] = await open_file(paths[1], mode, **options)  # type: ignore[call-overload]
            async with opened as our_file:
                ours = Ours(our_file)
                await _compare(model, ours, steps, mode, is_exact=options["buffering"] == 0)
                names = ["mode", "closed", "encoding", "errors", "line_buffering"]
                if not {"tell", "mark", "seek"} & {verb for verb, _ in steps}:
                    names.append("newlines")  # to find a position, the built-in file decodes with the same decoder
                for name in names:
                    assert getattr(our_file, name, None) == getattr(file, name, None), name
        assert paths[1].read_bytes() == paths[0].read_bytes()


async def _compare(model: BuiltIn, ours: Ours, steps: list[Step], mode: str, *, is_exact: bool) -> None:
    is_far = False
    for number, (verb, arguments) in enumerate(steps):
        if is_far and verb in {"write", "writelines"}:
            return  # the built-in file reads large texts in larger pieces, and this goes behind the last one
        is_far = is_far or _reads_far(verb, arguments, mode)
        if _sees_buffers(verb, mode):
            assert await ours.outcome("flush", ()) == model.outcome("flush", ())
        expected = model.outcome(verb, arguments)
        actual = await ours.outcome(verb, arguments)
        if verb in {"read1", "readinto1"} and not is_exact:
            await _compare_once(model, ours, expected, actual)
            continue
        assert actual == expected, f"step {number}: {verb}{arguments!r:.60}"
        if isinstance(expected, tuple) and str(expected[0]).startswith("Unicode"):
            event(expected[0])
            if verb.startswith(("read", "lines")):
                return  # what comes next is text from the middle of a piece


DRIVERS = pytest.mark.parametrize("driver", ["uring", "threads", None], ids=["uring", "threads", "no manager"])
BACKENDS = pytest.mark.parametrize("backend", ["asyncio", "trio"])


BINARY_OPTIONS = st.fixed_dictionaries({"buffering": st.sampled_from([-1, -1, 0, 2, 16, 100, 8192, 100000])})
TEXT_OPTIONS = st.fixed_dictionaries(
    {
        "buffering": st.sampled_from([-1, 1, 8192]),
        "encoding": st.sampled_from(["utf-8", "utf-8", "utf-16", "utf-16-le", "latin-1", "utf-8-sig"]),
        "errors": st.sampled_from([None, "strict"]),
        "newline": st.sampled_from([None, "", "\n", "\r", "\r\n"]),
    }
)


@DRIVERS
@BACKENDS
@settings(max_examples=settings().max_examples // 5)
@given(case=st.tuples(BYTES, BINARY_STEPS, MODES.map("{}b".format), BINARY_OPTIONS))
def test_a_binary_file_is_what_open_gives(driver: Any, backend: str, case: tuple[Any, ...]) -> None:
    content, steps, mode, options = case
    anyio.run(_run, driver, content, steps, mode, options, backend=backend)


@DRIVERS
@BACKENDS
@settings(max_examples=settings().max_examples // 5)
@given(text=TEXTS, case=st.tuples(TEXT_STEPS, MODES, TEXT_OPTIONS))
def test_a_text_file_is_what_open_gives(driver: Any, backend: str, text: str, case: tuple[Any, ...]) -> None:
    content = text.encode(case[-1]["encoding"], "replace")
    steps, mode, options = case
    anyio.run(_run, driver, content, steps, mode, options, backend=backend)


@DRIVERS
@BACKENDS
@settings(max_examples=settings().max_examples // 10)
@given(
    content=st.binary(max_size=60),
    steps=TEXT_STEPS,
    options=TEXT_OPTIONS,
    errors=st.sampled_from(["strict", "replace", "surrogateescape"]),
)
def test_nor_do_bytes_that_are_no_text_make_a_difference(  # noqa: PLR0917 - hypothesis gives them by keyword
    driver: Any, backend: str, content: bytes, steps: list[Step], options: dict[str, Any], errors: str
) -> None:
    # Where several characters come of bytes that are none, numbers for positions between them are everybody's own.
    steps = [step for step in steps if step[0] not in {"tell", "seek"}]
    anyio.run(_run, driver, content, steps, "r", {**options, "errors": errors}, backend=backend)

"""Options: from keywords, from TOML, from the environment; and what is said of bad ones."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest

from anyio_uring import UringOptions, open_uring
from anyio_uring._config import Switch, as_bool, as_int, parse_size, read_environment, read_toml, variable, written

DOCUMENT = Path(__file__).parent.parent / "docs" / "configuration.md"
# The table of Ferrite's manual.
FERRITE = {
    "uring_enabled": "true",
    "uring_queue_depth": "256",
    "uring_sqpoll": "true",
    "uring_sqpoll_idle_ms": "1000",
    "uring_fixed_buffers": "true",
    "uring_fixed_buffer_count": "64",
    "uring_fixed_buffer_size": '"64KB"',
    "uring_fixed_files": "true",
}


@pytest.fixture
def toml(tmp_path: Path) -> Any:
    def write(text: str) -> Path:
        file = tmp_path / "app.toml"
        file.write_text(text)
        return file

    return write


@pytest.mark.anyio
async def test_a_manager_is_opened_with_options(driver: Any) -> None:
    async with open_uring(options=UringOptions(depth=3, driver=driver, nowait=False)) as io:
        assert (io.driver, io.features.depth) == (driver, 3)
        assert io._inline is None
        assert io._budget is None
    async with open_uring(options=UringOptions(driver=driver, checkpoint="budget")) as io:
        assert io._inline is not None
        assert io._budget is not None


def test_options_and_keywords_exclude_each_other() -> None:
    """Also a keyword that says what is the default: it would be ignored otherwise."""
    opens: Any = open_uring
    with pytest.raises(TypeError, match=r"options or keywords, not both \(depth\)"):
        opens(options=UringOptions(depth=1), depth=256)
    with pytest.raises(TypeError, match="options must be UringOptions, not dict"):
        opens(options={"depth": 1})
    with pytest.raises(TypeError, match="dpth"):
        opens(dpth=1)


def test_options_are_frozen_and_checked() -> None:
    options: Any = UringOptions
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        options().depth = 1
    with pytest.raises(TypeError, match="positional"):
        options(1)
    with pytest.raises(ValueError, match="depth must be between 1 and 32768, not 0"):
        attrs.evolve(UringOptions(), depth=0)
    with pytest.raises(TypeError, match="nowait must be true or false, not 1"):
        options(nowait=1)
    with pytest.raises(ValueError, match="checkpoint must be"):
        options(checkpoint=["always"])


def test_every_keyword_is_an_option_with_the_same_default() -> None:
    """The overload that type checkers see, and the documentation's table."""
    source = Path(sys.modules["anyio_uring._core"].__file__ or "").read_text(encoding="utf-8")
    (keywords,) = re.findall(r"@overload\ndef open_uring\(\n    \*,\n(.*?)\n\)", source, re.DOTALL)
    defaults = dict(re.findall(r"(\w+): .* = (.*),", keywords))
    table = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE))
    for field in attrs.fields(UringOptions):
        text = repr(field.default).replace("'", '"')
        assert defaults.pop(field.name) == text
        assert table.pop(field.name) == (text.lower() if isinstance(field.default, bool) else text)
        assert variable(field.name) in DOCUMENT.read_text(encoding="utf-8")
    assert defaults == {"instruments": "()"}  # objects, which cannot be written down
    assert not table


# --- TOML ---------------------------------------------------------------------------------------


def test_a_table_with_our_names(toml: Any) -> None:
    file = toml('[a.b]\ndepth = 8\ndriver = "threads"\nnowait = false\ncheckpoint = "budget"\n')
    expected = UringOptions(depth=8, driver="threads", nowait=False, checkpoint="budget")
    assert UringOptions.from_toml(file, table="a.b") == expected
    assert UringOptions.from_toml(str(file), table="a.b") == expected
    assert UringOptions.from_toml(toml("[io]\n")) == UringOptions()


@pytest.mark.parametrize(
    ("text", "driver"),
    [
        ("uring_enabled = true", "auto"),
        ("uring_enabled = false", "threads"),
        ('uring_enabled = true\ndriver = "uring"', "uring"),
        ('uring_enabled = false\ndriver = "uring"', "threads"),
    ],
)
def test_a_table_with_ferrites_names(toml: Any, text: str, driver: str) -> None:
    options = UringOptions.from_toml(toml(f"[io]\nuring_queue_depth = 64\n{text}\n"), table="io")
    assert (options.depth, options.driver) == (64, driver)


@pytest.mark.parametrize("key", FERRITE)
def test_each_of_ferrites_keys_takes_effect(toml: Any, key: str) -> None:
    file = toml(f"[io]\n{key} = {FERRITE[key]}\n")
    if key in {"uring_enabled", "uring_queue_depth"}:
        assert UringOptions.from_toml(file) == UringOptions()
    elif key in {"uring_sqpoll", "uring_sqpoll_idle_ms"}:
        assert UringOptions.from_toml(file) == UringOptions(**{key.removeprefix("uring_"): json.loads(FERRITE[key])})
    elif key in {"uring_fixed_buffers", "uring_fixed_buffer_count"}:
        assert UringOptions.from_toml(file) == UringOptions(fixed_buffers=64)
    elif key == "uring_fixed_buffer_size":
        assert UringOptions.from_toml(file) == UringOptions(fixed_buffer_size=65536)
    else:
        assert UringOptions.from_toml(file) == UringOptions(fixed_files=1024)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[io]\ndept = 8", r"app\.toml: \[io\] dept: there is no such option; there are checkpoint, depth, driver, "),
        ("[io]\ndepth = 0", r"app\.toml: \[io\] depth must be between 1 and 32768, not 0"),
        ('[io]\ndepth = "8"', r"app\.toml: \[io\] depth must be an int between 1 and 32768, not '8'"),
        ("[io]\ndepth = true", r"\[io\] depth must be an int between 1 and 32768, not True"),
        ("[io]\ndepth = [1]", r"\[io\] depth must be an int"),
        ("[io]\nuring_queue_depth = 32769", r"app\.toml: \[io\] uring_queue_depth must be between 1 and 32768"),
        ("[io]\nuring_enabled = 1", r"app\.toml: \[io\] uring_enabled must be true or false, not 1"),
        ("[io]\nnowait = 0", r"\[io\] nowait must be true or false, not 0"),
        ('[io]\ndriver = "epoll"', r'\[io\] driver must be "auto", "uring" or "threads", not \'epoll\''),
        ("[io]\ndriver = {}", r"\[io\] driver must be"),
        ("[io]\ndepth = 8\nuring_queue_depth = 8", r"\[io\] uring_queue_depth: depth sets the same option"),
        ("[ring]\n", r"app\.toml: there is no table \[io\]"),
        ("io = 3\n", r"app\.toml: there is no table \[io\]"),
        ("[io\n", r"app\.toml is no TOML: .*line 1"),
        (f"[io]\ndepth = {'9' * 5000}", r"app\.toml is no TOML: Exceeds the limit"),
        (f"[io]\ndepth = 0x{'f' * 5000}", r"app\.toml: \[io\] depth: Exceeds the limit"),
        (f"[io]\nuring_enabled = 0x{'f' * 5000}", r"app\.toml: \[io\] uring_enabled: Exceeds the limit"),
        (f"[io]\nfixed_buffer_size = '{'9' * 5000}'", r"app\.toml: \[io\] fixed_buffer_size: Exceeds the limit"),
        (f"[io]\ndepth = {'[' * 20000}", r"app\.toml is no TOML: .*(recursion|nested)"),
    ],
)
def test_a_bad_file_is_an_error_that_names_the_place(toml: Any, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UringOptions.from_toml(toml(text))


def test_options_that_need_one_another(toml: Any) -> None:
    """In a file and in the environment each is checked alone first."""
    assert UringOptions.from_toml(toml("[io]\nsqpoll_cpu = 0\nsqpoll = true\n")) == UringOptions(
        sqpoll=True, sqpoll_cpu=0
    )
    assert UringOptions.from_env({"ANYIO_URING_IOPOLL": "1"}) == UringOptions(iopoll=True)
    with pytest.raises(ValueError, match=r"app\.toml: \[io\]: sqpoll_cpu .* it needs sqpoll=True"):
        UringOptions.from_toml(toml("[io]\nsqpoll_cpu = 0\n"))
    with pytest.raises(ValueError, match=r"variables ANYIO_URING_NOWAIT, ANYIO_URING_IOPOLL: .*leave one of them out"):
        UringOptions.from_env({"ANYIO_URING_IOPOLL": "1", "ANYIO_URING_NOWAIT": "1"})


def test_a_file_that_is_not_there_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        UringOptions.from_toml(tmp_path / "app.toml")


def test_without_a_toml_parser_the_remedy_is_named(toml: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.version_info >= (3, 11):
        assert UringOptions.from_toml(toml("[io]\n")) == UringOptions()
    else:
        monkeypatch.setitem(sys.modules, "tomli", None)
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'anyio_uring\[toml\]'"):
            UringOptions.from_toml(toml("[io]\n"))


def test_the_buffers_switch_and_its_count(toml: Any) -> None:
    off = toml("[io]\nuring_fixed_buffers = false\nuring_fixed_buffer_count = 64\n")
    assert UringOptions.from_toml(off) == UringOptions()
    some = toml('[io]\nuring_fixed_buffers = true\nuring_fixed_buffer_count = 8\nuring_fixed_buffer_size = "4KB"\n')
    assert UringOptions.from_toml(some) == UringOptions(fixed_buffers=8, fixed_buffer_size=4096)
    assert UringOptions.from_toml(toml("[io]\nfixed_files = 5\nuring_fixed_files = true\n")).fixed_files == 5
    assert UringOptions.from_toml(toml("[io]\nfixed_files = 5\nuring_fixed_files = false\n")).fixed_files == 0
    with pytest.raises(ValueError, match=r"\[io\] fixed_files.* must be <= 1048576"):
        UringOptions.from_toml(toml("[io]\nfixed_files = 1048577\n"))
    with pytest.raises(ValueError, match=r"\[io\] uring_fixed_buffer_count must be 0 or more, not -1"):
        UringOptions.from_toml(toml("[io]\nuring_fixed_buffer_count = -1\n"))
    variables = {"ANYIO_URING_FIXED_BUFFERS": "2", "ANYIO_URING_FIXED_BUFFER_SIZE": "1MiB"}
    assert UringOptions.from_env(variables) == UringOptions(fixed_buffers=2, fixed_buffer_size=1 << 20)


# --- the environment ----------------------------------------------------------------------------


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYIO_URING_DEPTH", "8")
    monkeypatch.setenv("ANYIO_URING_DRIVER", "threads")
    monkeypatch.setenv("ANYIO_URING_NOWAIT", "False")
    monkeypatch.setenv("ANYIO_URING_CHECKPOINT", "")
    assert UringOptions.from_env() == UringOptions(depth=8, driver="threads", nowait=False)
    assert UringOptions.from_env({"ANYIO_URING_NOWAIT": "1", "HOME": "/"}) == UringOptions(nowait=True)
    defaults = UringOptions(depth=2, checkpoint="budget")
    assert UringOptions.from_env({"ANYIO_URING_DEPTH": "5"}, defaults=defaults) == attrs.evolve(defaults, depth=5)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("DEPHT", "8", "variable ANYIO_URING_DEPHT: there is no such option; there are ANYIO_URING_CHECKPOINT, "),
        ("DEPTH", "many", "variable ANYIO_URING_DEPTH must be an int between 1 and 32768, not 'many'"),
        ("DEPTH", "0x10", "ANYIO_URING_DEPTH must be an int"),
        ("DEPTH", "-1", "variable ANYIO_URING_DEPTH must be between 1 and 32768, not -1"),
        ("DEPTH", "9" * 5000, "variable ANYIO_URING_DEPTH: Exceeds the limit"),
        ("FIXED_BUFFER_SIZE", "9" * 5000, "variable ANYIO_URING_FIXED_BUFFER_SIZE: Exceeds the limit"),
        ("NOWAIT", "maybe", "variable ANYIO_URING_NOWAIT must be true or false, not 'maybe'"),
        ("DRIVER", "epoll", 'variable ANYIO_URING_DRIVER must be "auto", "uring" or "threads"'),
    ],
)
def test_a_bad_variable_is_named(name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UringOptions.from_env({f"ANYIO_URING_{name}": text})


# --- what options to come are made of -----------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1),
        (4096, 4096),
        ("4096", 4096),
        ("512B", 512),
        ("64KB", 65536),
        ("64KiB", 65536),
        ("64 kb", 65536),
        (" 16MiB ", 16 << 20),
        ("16MB", 16 << 20),
        ("1GB", 1 << 30),
        ("2GiB", 2 << 30),
    ],
)
def test_a_size(value: Any, expected: int) -> None:
    assert parse_size(value) == expected


@pytest.mark.parametrize("value", [0, -1, "", "0", "0KB", "-4KB", "64QB", "1.5MB", "KB", "64KB each", "6_4", "\u0664"])
def test_a_bad_size(value: Any) -> None:
    with pytest.raises(ValueError, match=r'"64KiB" or "64KB" \(both 65536\).*not ' + re.escape(repr(value))):
        parse_size(value)


@pytest.mark.parametrize("value", [True, 1.5, None, b"64KB"])
def test_a_size_of_a_wrong_type(value: Any) -> None:
    with pytest.raises(TypeError, match="must be an int or a text"):
        parse_size(value)


def _check_count(_options: object, attribute: attrs.Attribute[int], value: object) -> None:
    if not isinstance(value, int):
        raise TypeError(f"{attribute.name} must be an int, not {value!r}")


@attrs.frozen
class Pool:
    count: int = attrs.field(
        default=0,
        validator=_check_count,
        metadata=written(as_int, {"use_pool": Switch(off=0, on=16), "pool_count": None}),
    )
    size: int = attrs.field(default=65536, converter=parse_size, metadata=written(str, {"pool_size": None}))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("use_pool = true", {"count": 16}),
        ("use_pool = true\npool_count = 4", {"count": 4}),
        ("pool_count = 4\nuse_pool = false", {"count": 0}),
        ('pool_size = "1MB"', {"size": 1 << 20}),
        ("pool_size = 4096\ncount = 3", {"size": 4096, "count": 3}),
    ],
)
def test_a_switch_beside_a_count_and_a_size(toml: Any, text: str, expected: dict[str, int]) -> None:
    assert read_toml(Pool, toml(f"[io]\n{text}\n"), "io") == expected


def test_a_bad_size_is_named() -> None:
    fields = attrs.fields(Pool)
    assert read_environment(fields, {"ANYIO_URING_SIZE": "64KB"}) == {"size": 65536}
    with pytest.raises(ValueError, match=r"variable ANYIO_URING_SIZE: a size must be 1 or more.*not '64QB'"):
        read_environment(fields, {"ANYIO_URING_SIZE": "64QB"})


def test_a_bad_size_in_a_file_is_named(toml: Any) -> None:
    with pytest.raises(ValueError, match=r"app\.toml: \[io\] pool_size: a size must be 1 or more.*'64QB'"):
        read_toml(Pool, toml('[io]\npool_size = "64QB"\n'), "io")
    with pytest.raises(ValueError, match=r"app\.toml: \[io\] size: a size must be an int or a text.*1\.5"):
        read_toml(Pool, toml("[io]\nsize = 1.5\n"), "io")


def test_texts_that_say_nothing_stay_what_they_are() -> None:
    assert (as_int("12"), as_int("twelve"), as_bool("TRUE"), as_bool("yes")) == (12, "twelve", True, "yes")


def test_importing_reads_no_file_and_needs_no_toml_parser() -> None:
    code = "import sys, anyio_uring; assert not {'tomllib', 'tomli'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

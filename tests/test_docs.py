"""The site's pages say all that there is; ``nox -s docs`` builds them and follows their links."""

from __future__ import annotations

import logging
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

import anyio_uring
from anyio_uring import IoStatistics, UringOptions, open_uring, otel, testing
from anyio_uring.__main__ import main

from .helpers import in_flight

DOCS = Path(__file__).parent.parent / "docs"
REFERENCE = "\n".join(page.read_text(encoding="utf-8") for page in sorted((DOCS / "reference").glob("*.md")))
PICTURES = sorted((DOCS / "pictures").glob("*.svg"))
SVG = "{http://www.w3.org/2000/svg}"


def test_every_public_name_is_in_the_reference_once() -> None:
    described = re.findall(r"^\.\. (?:auto|py:)\w+:: anyio_uring\.([\w.]+)", REFERENCE, re.MULTILINE)
    expected = [*anyio_uring.__all__]
    for module, names in (("otel", otel.__all__), ("testing", testing.__all__)):
        expected += [f"{module}.{name}" for name in names]
    assert sorted(described) == sorted(expected)


def test_every_page_is_in_a_table_of_contents() -> None:
    listed = re.findall(r"^([\w/-]+)$", (DOCS / "index.md").read_text(encoding="utf-8"), re.MULTILINE)
    pages = {str(page.relative_to(DOCS).with_suffix("")) for page in DOCS.rglob("*.md")} - {"index"}
    assert sorted(listed) == sorted(page for page in pages if not page.startswith("_build"))


def test_every_option_has_its_environment_variable_in_the_reference() -> None:
    page = (DOCS / "reference/environment.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(ANYIO_URING_\w+)` \| `(\w+)` \|$", page, re.MULTILINE))
    assert rows == {f"ANYIO_URING_{field.name.upper()}": field.name for field in attrs.fields(UringOptions)}


def test_every_option_of_the_commands_is_in_the_reference(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # or argparse breaks lines
    page = (DOCS / "reference/commands.md").read_text(encoding="utf-8")
    with pytest.raises(SystemExit):
        main(["--help"])
    (commands,) = re.findall(r"COMMAND\n((?:    .*\n)+)", capsys.readouterr().out)
    for command in re.findall(r"^    (\w+) ", commands, re.MULTILINE):
        with pytest.raises(SystemExit) as exit_:
            main([command, "--help"])
        assert exit_.value.code == 0
        options = set(re.findall(r"--[\w-]+", capsys.readouterr().out)) - {"--help"}
        (heading,) = re.findall(rf"^## `anyio-uring {command}(.*)`$", page, re.MULTILINE)
        assert set(re.findall(r"--[\w-]+", heading)) == options


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    found: list[logging.LogRecord] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record)

    package, handler = logging.getLogger("anyio_uring"), Collector()
    before = package.level
    package.addHandler(handler)
    package.setLevel(5)
    yield found
    package.setLevel(before)
    package.removeHandler(handler)


@pytest.mark.anyio
async def test_every_log_record_is_in_the_reference(
    records: list[logging.LogRecord], driver: Any, path: Path, pipe: tuple[int, int]
) -> None:
    page = (DOCS / "reference/log_records.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\S+)` \| [^|]* \| `([^`]*)` \| ([^|]*) \|$", page, re.MULTILINE)
    # {(logger, how its message begins): names of the attributes}
    expected = {(row[0], row[1]): set(re.findall(r"`(\w+)`", row[2])) for row in rows}
    for what in ("ring", "threads"):
        expected["anyio_uring.ring", f"{what} closed"] = {field.name for field in attrs.fields(IoStatistics)}
    with path.open("rb") as file:
        async with open_uring(driver=driver) as io:
            await io.read(file, 100, 0)
            await io.read_batch([(file, 100, 0), (file, 100, 100)])
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(io.read, pipe[0], 100, -1)
                await in_flight(io, 1)
                tasks.cancel_scope.cancel()
    standard = set(vars(logging.makeLogRecord({}))) | {"message"}
    seen = set()
    for record in records:
        begins = [key for key in expected if key[0] == record.name and record.getMessage().startswith(key[1])]
        key = max(begins, key=lambda key: len(key[1]))
        assert set(vars(record)) - standard == expected[key], key
        seen.add(key)
    what = "ring" if driver == "uring" else "threads"
    elsewhere = {"fell back to threads", "an instrument failed"}
    assert {key[1] for key in seen} == {
        key[1] for key in expected if key[1] not in elsewhere and (key[0] != "anyio_uring.ring" or what in key[1])
    }


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.stem)
def test_a_picture_is_told_in_words_too_and_has_colours_for_the_dark(picture: Path) -> None:
    root = ET.parse(picture).getroot()
    assert root.findtext(f"{SVG}title")
    assert len(root.findtext(f"{SVG}desc") or "") > 100
    style = root.findtext(f"{SVG}style") or ""
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    # What is filled or drawn in the light has another colour in the dark.
    coloured = set(re.findall(r"(\S+) {[^}]*(?:fill|stroke): #", light))
    assert coloured == set(re.findall(r"(\S+) {[^}]*(?:fill|stroke): #", dark))


def test_there_are_pictures() -> None:
    assert [picture.stem for picture in PICTURES] == ["cancellation", "operation", "ring"]

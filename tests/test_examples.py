"""The README's examples run, and print what they say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_there_is_an_example_for_each_event_loop() -> None:
    assert [("trio.run" in code, "asyncio.run" in code) for code in EXAMPLES] == [(True, False), (False, True)]


@pytest.mark.parametrize("code", EXAMPLES, ids=["trio", "asyncio"])
def test_the_readmes_examples(code: str, tmp_path: Path, driver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYIO_URING_DRIVER", driver)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    expected = re.findall(r"# (\[.*\])$", code, re.MULTILINE)
    assert done.stdout.splitlines() == expected
    assert (tmp_path / "data.bin").read_bytes() == b"hello world"


def test_the_examples_are_ten_lines_and_few_more() -> None:
    assert all(len([line for line in code.splitlines() if line.strip()]) <= 10 for code in EXAMPLES)

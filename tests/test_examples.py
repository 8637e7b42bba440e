"""The examples of the README and of docs/ run, and print what they say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def _blocks(file: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / file).read_text(encoding="utf-8"), re.DOTALL)


(EXAMPLE,) = _blocks("README.md", "python")
# What its examples read lies beside them as app.toml.
CONFIGURATION = _blocks("docs/configuration.md", "python")


def _run(code: str, directory: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_the_readmes_example(backend: str, tmp_path: Path, driver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code = EXAMPLE
    if backend == "asyncio":
        code = code.replace("trio.run(main)", "asyncio.run(main())").replace("import trio", "import asyncio")
        assert "trio" not in code
    monkeypatch.setenv("ANYIO_URING_DRIVER", driver)
    expected = re.findall(r"# (\[.*\])$", code, re.MULTILINE)
    assert _run(code, tmp_path).splitlines() == expected
    assert (tmp_path / "data.bin").read_bytes() == b"hello world"


def test_the_example_is_ten_lines_and_few_more() -> None:
    assert len([line for line in EXAMPLE.splitlines() if line.strip()]) <= 10


@pytest.mark.parametrize("code", CONFIGURATION, ids=["toml", "environment"])
def test_the_examples_of_the_configuration(code: str, tmp_path: Path) -> None:
    (table,) = _blocks("docs/configuration.md", "toml")
    (tmp_path / "app.toml").write_text(table)
    expected = re.findall(r"^# (.*)$", code, re.MULTILINE)
    assert expected
    assert _run(code, tmp_path).splitlines() == expected


@pytest.mark.ring
def test_the_example_of_the_doctor(tmp_path: Path) -> None:
    (code,) = _blocks("docs/doctor.md", "python")
    expected = re.findall(r"^# (.*)$", code, re.MULTILINE)
    assert _run(code, tmp_path).splitlines() == expected == ["uring 0"]


@pytest.mark.parametrize("code", _blocks("docs/ring-modes.md", "python"), ids=["sqpoll", "iopoll", "restrict"])
def test_the_examples_of_the_rings_modes(
    code: str, tmp_path: Path, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANYIO_URING_DRIVER", driver)
    printed = _run(code, tmp_path)
    expected = re.findall(r"^anyio.run\(main\)  # (.*)$", code, re.MULTILINE)
    if not expected:
        assert re.match("polling: True|not here: .*poll queues", printed)  # as this machine's devices are
    else:  # without a ring the modes mean nothing, and cached reads are no entries either
        assert printed.splitlines() == [
            line if driver == "uring" else line.replace("True", "False") for line in expected
        ]


OBSERVING: dict[str, str] = dict(
    zip(("trace", "instrument", "statistics", "otel"), _blocks("docs/observing.md", "python"))
)


@pytest.mark.parametrize("name", ["instrument", "statistics", "otel"])
def test_the_examples_of_observing(name: str, tmp_path: Path, driver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYIO_URING_DRIVER", driver)
    expected = re.findall(r"^(?:anyio.run\(main\)  )?# (.*)$", OBSERVING[name], re.MULTILINE)
    assert expected
    assert _run(OBSERVING[name], tmp_path).splitlines() == expected


def test_the_trace_in_the_docs(tmp_path: Path, driver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYIO_URING_DRIVER", driver)
    monkeypatch.setenv("ANYIO_URING_LOG", "trace")
    (expected,) = _blocks("docs/observing.md", "text")
    printed = _run(f"import sys; sys.stderr = sys.stdout\n{OBSERVING['trace']}", tmp_path)
    # As the kernel and the disk please, a batch's operations end in any order.
    lines = [line for line in printed.splitlines() if line.startswith("TRACE")]
    assert sorted(lines) == sorted(expected.splitlines())
    assert lines[:5] == expected.splitlines()[:5]


@pytest.mark.parametrize("code", _blocks("docs/direct_and_flags.md", "python"))
def test_the_examples_of_direct_io_and_flags(
    code: str, tmp_path: Path, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANYIO_URING_DRIVER", driver)
    expected = re.findall(r"print\(.*\)  # (.*)$", code, re.MULTILINE)
    assert expected
    assert _run(code, tmp_path).splitlines() == expected


@pytest.mark.parametrize("code", _blocks("docs/files.md", "python") + _blocks("docs/migration.md", "python"))
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_examples_of_files(
    code: str, driver: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANYIO_URING_DRIVER", driver)
    expected = re.findall(r"^# (.*)$", code, re.MULTILINE)
    assert _run(code, tmp_path, backend).splitlines() == expected != []


@pytest.mark.parametrize("code", _blocks("docs/registered.md", "python"), ids=["buffers", "files"])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_examples_of_what_is_registered(
    code: str, driver: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANYIO_URING_DRIVER", driver)
    expected = re.findall(r"^# (.*)$", code, re.MULTILINE)
    if driver == "threads":
        plain = "plain descriptors" if "register_files" in code else "plain memory"
        expected = [line.replace("registered", f"{plain}: threads have no ring") for line in expected]
    assert _run(code, tmp_path, backend).splitlines() == expected != []


# Pages of one program, which prints what stands in the comments behind it, everywhere.
PAGES = ("atomic_write", "chains", "cold_tier", "copying", "durability", "paths", "streams")


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_example_of_a_page(
    page: str, driver: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANYIO_URING_DRIVER", driver)
    (code,) = _blocks(f"docs/{page}.md", "python")
    assert _run(code, tmp_path, backend).splitlines() == re.findall(r"^# (.*)$", code, re.MULTILINE) != []


@pytest.mark.parametrize("code", _blocks("docs/testing.md", "python"), ids=["seeds", "by name"])
def test_the_examples_of_testing(code: str, tmp_path: Path) -> None:
    expected = re.findall(r"^# (.*)$", code, re.MULTILINE)
    assert _run(code, tmp_path).splitlines() == expected != []


# {page: its programs}; each runs on the loop that the test names, and prints its comments at the margin.
PROGRAMS = {
    page: [code for code in _blocks(f"docs/{page}.md", "python") if re.search(r"^# ", code, re.MULTILINE)]
    for page in ("cancellation", "page_cache", "reading_many", "tuning", "tutorial", "tutorial_store")
}


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize(
    "code",
    [
        pytest.param(code, id=f"{page}-{number}")
        for page, programs in PROGRAMS.items()
        for number, code in enumerate(programs, 1)
    ],
)
def test_the_programs_of_a_page(
    code: str, driver: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANYIO_URING_DRIVER", driver)
    expected = re.findall(r"^# (.*)$", code, re.MULTILINE)
    assert _run(_on(backend, code), tmp_path).splitlines() == expected


def _on(backend: str, code: str) -> str:
    assert code.count("anyio.run(main)") == 1
    return code.replace("anyio.run(main)", f"anyio.run(main, backend={backend!r})")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_tutorial_tells_which_machine_this_is(
    driver: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANYIO_URING_DRIVER", driver)
    (code,) = [code for code in _blocks("docs/tutorial.md", "python") if code not in PROGRAMS["tutorial"]]
    expected = r"the ring of \S+ with 256 operations at once" if driver == "uring" else "threads: as asked for"
    assert re.fullmatch(expected, _run(_on(backend, code), tmp_path).strip())


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_page_of_the_containers_says_what_a_filter_does(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ANYIO_URING_DRIVER", raising=False)
    (code,) = _blocks("docs/containers.md", "python")
    (expected,) = _blocks("docs/containers.md", "text")
    denial = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.denied import deny; deny('io_uring_setup', 1)\n"
    )
    assert _run(denial + _on(backend, code), tmp_path) == expected


def test_the_sites_first_page_has_the_readmes_example_for_each_loop() -> None:
    asyncio, trio = _blocks("docs/index.md", "python")
    assert trio == EXAMPLE
    assert asyncio == EXAMPLE.replace("trio.run(main)", "asyncio.run(main())").replace("import trio", "import asyncio")

"""The benchmark suite: a run from end to end, how it finds out who does not do what they should, its arithmetic."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from benchmarks import __main__ as command_line
from benchmarks import data, participants
from benchmarks.cases import CASES, Case
from benchmarks.environments import ROOT, AbsentEnvironmentError, Environments, clean_environment
from benchmarks.figures import GOALS, Figure, Goal, Spread, figure, figures, ratios
from benchmarks.measure import Run
from benchmarks.participants import PARTICIPANTS
from benchmarks.report import figures_table
from benchmarks.worker import Job, Process
from benchmarks.workers import ours


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """Run the suite with who needs no installation, on a tiny file; returns status, results and tables."""

    def run(*arguments: str) -> tuple[int, Any, str]:
        status = command_line.main(
            [
                *("--quick", "--no-plots", "--rounds=2", "--file-size=1"),
                *("--participants=os.pread", "--participants=asyncio.to_thread"),
                *(f"--directory={tmp_path / 'data'}", f"--environments={tmp_path / 'environments'}"),
                *(f"--output={tmp_path / 'results'}", *arguments),
            ]
        )
        results = json.loads((tmp_path / "results" / "results.json").read_text())
        return status, results, (tmp_path / "results" / "tables.md").read_text()

    return run


def test_every_round_has_a_rate_of_everyone(run: Any) -> None:
    status, results, tables = run("--only=random-32", "--only=batch-32", "--only=files", "--only=write-sync")
    assert status == 0
    assert list(results["participants"]) == ["os.pread", "asyncio.to_thread"]
    for case in ("random-32", "batch-32", "files", "write-sync"):
        for name in results["participants"]:
            rates = results["cases"][case][name]
            assert len(rates) == 2
            assert all(rate > 0 for rate in rates)
        assert f"## {case}:" in tables
    assert not results["failures"]


def test_who_cannot_do_a_case_is_left_out_of_it(run: Any) -> None:
    status, results, _ = run("--only=batch-into-32", "--only=stall")
    assert status == 0
    assert list(results["cases"]["batch-into-32"]) == ["os.pread"]
    assert "stall" not in results["cases"], "64 MiB cannot be read of a file that has 1 MiB"


@pytest.mark.parametrize(
    ("changed", "expected"),
    [({"driver": "io_uring"}, "the driver is"), ({"evidence": frozenset({"io_uring"})}, "its process shows")],
)
def test_another_driver_than_the_asserted_one_fails_the_run(
    run: Any, monkeypatch: pytest.MonkeyPatch, changed: Any, expected: str
) -> None:
    changed_ones = [dataclasses.replace(p, **changed) if p.name == "os.pread" else p for p in PARTICIPANTS]
    monkeypatch.setattr(command_line, "PARTICIPANTS", changed_ones)
    status, results, _ = run("--only=random-1")
    assert status == 1
    (failure,) = results["failures"]
    assert failure.startswith(f"os.pread, start: {expected}")
    assert list(results["cases"]["random-1"]) == ["asyncio.to_thread"]


def test_wrong_bytes_fail_the_run(run: Any, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "big").write_bytes(bytes(1 << 20))
    status, results, _ = run("--only=random-1")
    assert status == 1
    assert all("WrongBytesError" in failure for failure in results["failures"])


def test_a_participant_that_dies_fails_the_run_and_the_others_go_on(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    original = Run.measure

    def measure(self: Any, *arguments: Any) -> None:
        start = self._start

        def start_and_kill(participant: Any) -> bool:
            started: bool = start(participant)
            if participant.name == "os.pread":
                process = self._processes[participant.name]._process
                process.kill()
                process.wait()
            return started

        self._start = start_and_kill
        original(self, *arguments)

    monkeypatch.setattr(Run, "measure", measure)
    status, results, _ = run("--only=random-1")
    assert status == 1
    assert "os.pread, random-1: the process" in results["failures"][0]
    assert None not in results["cases"]["random-1"]["asyncio.to_thread"]


def test_what_cannot_be_installed_is_absent_with_the_reason(tmp_path: Path) -> None:
    environments = Environments(tmp_path)
    with pytest.raises(AbsentEnvironmentError, match=r"needs Python 9\.0"):
        environments.python((), (9, 0))


def test_a_job_divides_its_offsets_among_its_tasks(tmp_path: Path) -> None:
    data.make_file(str(tmp_path / "big"), 1 << 20)
    job = Job(Case("", "", "reads", tasks=3), str(tmp_path), 10, seed=1)
    shares = job.shares()
    assert sorted(offset for (share,) in shares for offset in share) == sorted(job.offsets)
    assert [len(share) for (share,) in shares] == [4, 3, 3]
    batches = Job(Case("", "", "batches", batch=4), str(tmp_path), 10, seed=1)
    assert batches.count(batches.shares()) == 8, "an incomplete batch is not asked for"
    distinct = Job(Case("", "", "reads", order="distinct"), str(tmp_path), 256, seed=1)
    assert len(set(distinct.offsets)) == 256


def test_the_probe_tells_whether_reads_let_the_loop_turn(tmp_path: Path) -> None:
    data.make_file(str(tmp_path / "big"), 1 << 20)
    job = Job(Case("", "", "reads"), str(tmp_path), 8, seed=1)
    for module, options, waits in (("pread", {}, False), ("to_thread", {"through": "asyncio"}, True)):
        reply = Process(module, "sync" if module == "pread" else "asyncio", options).run(job, probe=True)
        assert reply["waits_for_loop"] is waits


def _results(**cases: Any) -> dict[str, Any]:
    names = {name for case in cases.values() for name in case}
    seen = {
        name: {"group": "peer" if "peer" in name else "ours", "waits_for_loop": "hasty" not in name} for name in names
    }
    return {"cases": cases, "participants": seen, "absent": {"gone": "it is gone"}}


def test_ratios_are_taken_within_a_round() -> None:
    assert ratios([10.0, None, 30.0], [5.0, 5.0, None]) == [2.0]
    assert ratios([10.0, 20.0], [5.0, 5.0]) == [2.0, 4.0]
    assert ratios([10.0], [5.0], inverse=True) == [0.5]


def test_a_figure_is_the_median_against_whoever_did_best() -> None:
    results = _results(case={"us": [10, 20, 30], "peer": [10, 10, 10], "hasty peer": [40, 40, 40]})
    best = figure(Goal("", "us", "case", ("*",), at_least=1.0), results)
    assert (best.against, best.spread) == ("hasty peer", Spread(0.5, 0.25, 0.75))
    assert (best.reached, best.verdict) == (False, "short by 50%")
    waiting = figure(Goal("", "us", "case", ("*",), at_least=1.0, waiting_only=True), results)
    assert (waiting.against, waiting.spread, waiting.verdict) == ("peer", Spread(2, 1, 3), "reached")


def test_a_value_may_have_an_upper_bound() -> None:
    results = _results(case={"us": [3, 5, 4]})
    assert figure(Goal("", "us", "case", at_most=4), results).reached
    assert figure(Goal("", "us", "case", at_most=2), results).verdict == "short by 100%"


@pytest.mark.parametrize(
    ("goal", "expected"),
    [
        (Goal("", "gone", "case", at_most=1), "it is gone"),
        (Goal("", "us", "case", ("gone",), at_least=1), "gone: it is gone"),
        (Goal("", "us", "other", at_most=1), "us has no result in other"),
    ],
)
def test_what_was_not_measured_says_why(goal: Goal, expected: str) -> None:
    found: Figure = figure(goal, _results(case={"us": [1]}))
    assert found.reached is None
    assert expected in found.verdict


def test_the_table_has_a_row_for_each_figure_of_the_cases() -> None:
    results = _results(**{"batch-256": {"ring (asyncio)": [10, 10], "os.pread": [5, 10]}})
    assert len(figures(results)) == 2
    assert "| `read_batch` of 256, of P | ≥ 1 | 1.50 [1.00..2.00] | reached |" in figures_table(results)


def test_goals_name_cases_and_participants_that_exist() -> None:
    cases = {case.name for case in CASES}
    names = {participant.name for participant in PARTICIPANTS} | {"*"}
    assert len(names) == len(PARTICIPANTS) + 1
    for goal in GOALS:
        assert {goal.case, goal.against_case or goal.case} <= cases
        assert {goal.subject, *goal.against} <= names
    assert participants.SINGLE in names


@pytest.mark.ring
@pytest.mark.parametrize("participant", [p for p in PARTICIPANTS if p.group == "ours"], ids=lambda p: p.name)
def test_the_library_itself_is_never_absent(participant: Any, path: Path) -> None:
    """With each of its options as they are; absence is for what cannot be installed."""
    worker = ours.Worker(dict(participant.options))

    async def read() -> bytes:
        await worker.open(CASES[0])
        try:
            assert worker.driver == participant.driver
            return await worker.io.read(worker.descriptor, 4, 4)
        finally:
            await worker.close()

    with path.open("rb") as file:
        worker.descriptor = file.fileno()
        assert anyio.run(read, backend="trio" if participant.loop == "trio" else "asyncio") == b"\0\0\0\1"


@pytest.mark.ring
@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_what_registered_resources_and_sqpoll_change(tmp_path: Path, loop: str) -> None:
    command = [sys.executable, "-m", "benchmarks.resources", "--file", str(tmp_path / "file"), "--size", "1"]
    command += ["--rounds", "1", "--each", "6", "--reads", "640", "--loop", loop]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=clean_environment())
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()]
    entries = {row[0]: int(row[1].replace(",", "")) for row in rows if row[0] in {"interrupts", "SQPOLL"}}
    assert entries["interrupts"] >= 640 / 64 > entries["SQPOLL"]
    ways = [row[0] for row in rows if len(row) == 3]
    assert ways[2:] == ["plain", "registered buffers", "registered file", "both"]


@pytest.mark.ring
@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_what_files_cost(tmp_path: Path, loop: str) -> None:
    command = [sys.executable, "-m", "benchmarks.files", "--directory", str(tmp_path), "--size", "1", "--text", "1"]
    command += ["--rounds", "1", "--files", "300", "--loop", loop]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=clean_environment())
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1].strip() for line in done.stdout.splitlines() if line.count("|") == 4]
    assert rows.count("ring") == rows.count("no manager") == rows.count("anyio.open_file") == 2
    assert rows.count("plain loop") == rows.count("uring") == rows.count("threads") >= 1
    assert rows.count("copy_file, uring") == rows.count("shutil.copyfile") == 1

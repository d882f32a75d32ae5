"""Whatever holds a rank, all ranks end within bounded time, and a report names the one and its phase."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scaletrain.launch.events import read_events
from scaletrain.launch.verdicts import read_verdict
from tests.processes import eventually, kill_all, living

# The first limit is long: on a busy machine ranks start apart.
LIMITS = {"factor": 5.0, "first_s": 60.0, "least_s": 4.0, "most_s": 60.0}
WITHIN_S = 120.0


@dataclass(frozen=True)
class Case:
    """What befalls a program of ranks, and what must be found."""

    fault: dict[str, Any]
    says: str
    verdict: str = "hang"
    blamed: tuple[int, ...] = (1,)
    stack: str = ""
    world_size: int = 2
    first_s: float = LIMITS["first_s"]


def at(phase: str, kind: str, **more: Any) -> dict[str, Any]:
    return {"rank": 1, "phase": phase, "step": 3, "kind": kind} | more


CASES = {
    "stopped": Case(at("data", "stopped"), "stopped in data of step 3", stack="strike"),
    "gil": Case(at("eval", "gil", without_py_spy=True), "in eval of step 3", stack="strike"),
    "killed": Case(at("forward", "killed"), "without a verdict, in forward of step 3", verdict="crash"),
    "network": Case(at("backward", "network", rank=None), "all ranks wait for each other in backward", blamed=()),
    "worker": Case(at("data", "worker"), " is stopped"),
    # The report must not name a rank for what it does once it goes on.
    "late": Case(
        at("agree", "until the report", steps=5000), "slow at step 3: the ranks moved on after a limit", blamed=()
    ),
    # A first save is longer than any limit of what is learnt.
    "saves": Case({"phase": "save", "step": 1, "slow": 6.0}, "", verdict="complete"),
}
MORE = {
    "early": Case(at("start", "stopped"), "stopped in start of step 0", first_s=15.0),
    "python": Case(at("update", "python"), "in update of step 3", stack="strike", world_size=3),
    "compiles": Case({"phase": "forward", "step": 1, "slow": 6.0}, "", verdict="complete"),
    "spins": Case(at("callbacks", "spins"), "in callbacks of step 3", stack="strike"),
    "regex": Case(at("save", "regex"), "in save of step 3", stack="match"),
    "leaves": Case(at("callbacks", "leaves"), "ended by exit code 3", verdict="crash", world_size=3),
    "alone": Case(at("forward", "python", rank=0), "does not move on: ", blamed=(0,), world_size=1),
}


@dataclass
class Started:
    """A program of ranks, and the folder that it runs in."""

    run_dir: Path
    ranks: "list[subprocess.Popen[bytes]]"
    begin_s: float

    def wait(self) -> list[int]:
        return [rank.wait(timeout=max(1.0, WITHIN_S - (time.monotonic() - self.begin_s))) for rank in self.ranks]

    def report(self) -> dict[str, Any]:
        (path,) = self.run_dir.glob("hang/*/report.json")
        content: dict[str, Any] = json.loads(path.read_text())
        return content | {"folder": path.parent}

    def verdicts(self) -> list[dict[str, Any]]:
        def found() -> list[dict[str, Any]] | None:
            files = [*self.run_dir.glob("exit/1/[0-9].json"), *self.run_dir.glob("exit/unclaimed/*.json")]
            read = [verdict for file in files if (verdict := read_verdict(file)) is not None]
            return read if len(read) == len(self.ranks) else None

        return eventually(found, 20, f"each rank has a verdict in {self.run_dir}")


def start(folder: Path, fault: dict[str, Any], world_size: int, limits: dict[str, float] = LIMITS) -> Started:
    folder.mkdir()
    command = [sys.executable, "-m", "tests.launch.hang.rank", str(folder / "run"), json.dumps(limits)]
    ranks = []
    for rank in range(world_size):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
        ranks.append(
            subprocess.Popen(
                [*command, json.dumps(fault)],
                env=os.environ | {name: str(value) for name, value in place.items()},
                cwd=Path(__file__).parents[3],
                stderr=(folder / f"rank-{rank}.txt").open("w"),
            )
        )
    return Started(folder / "run", ranks, time.monotonic())


@contextmanager
def all_started(folder: Path, cases: dict[str, Case]) -> Iterator[dict[str, Started]]:
    """All cases at the same time: most of them only wait."""
    try:
        yield {
            name: start(folder / name, case.fault, case.world_size, LIMITS | {"first_s": case.first_s})
            for name, case in cases.items()
        }
    finally:
        kill_all(folder)


def test_the_report_names_rank_and_phase_and_what_is_slow_is_no_hang(tmp_path: Path) -> None:
    with all_started(tmp_path, CASES) as started:
        for name, case in CASES.items():
            check(case, started[name])


@pytest.mark.thorough
def test_more_that_may_hold_a_rank(tmp_path: Path) -> None:
    with all_started(tmp_path, MORE) as started:
        for name, case in MORE.items():
            check(case, started[name])


def check(case: Case, run: Started) -> None:
    run.wait()
    verdicts = run.verdicts()
    if case.verdict == "complete":
        assert {verdict["verdict"] for verdict in verdicts} == {"complete"} and not (run.run_dir / "hang").exists()
        return
    report = run.report()
    assert report["verdict"] == case.verdict and tuple(report["blamed"]) == case.blamed, report
    assert case.says in report["conclusion"], report
    ended = [verdict for verdict in verdicts if report["conclusion"] in verdict["reason"]]
    assert len(ended) == case.world_size - len(report["gone"]), verdicts
    assert {verdict["verdict"] for verdict in verdicts} == {case.verdict}
    assert {verdict["exit_code"] for verdict in verdicts} == {77 if case.verdict == "hang" else 1}
    page = (report["folder"] / "report.md").read_text()
    assert report["conclusion"] in page
    for rank in case.blamed:
        text = (report["folder"] / f"rank-{rank}.txt").read_text() if not report["gone"] else case.stack
        assert case.stack in text, text
    kinds = [event["event"] for event in read_events(run.run_dir / "events.jsonl")]
    assert kinds.count("hang") == 1
    eventually(lambda: not living(run.run_dir), 15, lambda: f"nothing lives on: {living(run.run_dir)}")


def test_a_rank_that_goes_on_in_time_was_late_only(tmp_path: Path) -> None:
    """Late, it is looked after by a process of its own, which ends when it moves on."""
    run = start(tmp_path / "late", at("data", "stopped", step=1), 2)

    def examiners() -> list[str]:
        return [text for text in living(run.run_dir).values() if "hang.examiner" in text]

    try:
        eventually(lambda: len(examiners()) == 2, 40, "both ranks are looked after")
        run.ranks[1].send_signal(signal.SIGCONT)
        assert run.wait() == [0, 0] and not (run.run_dir / "hang").exists()
        eventually(lambda: not living(run.run_dir), 10, "nothing lives on")
    finally:
        kill_all(tmp_path)

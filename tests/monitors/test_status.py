"""How a run stands: facts and warnings from its records, and the screen that they fit on."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaletrain.errors import ConfigError
from scaletrain.hardware.rules import SEVERITIES
from scaletrain.launch.heartbeat import Lease
from scaletrain.launch.squeue import Queued
from scaletrain.monitors import status_warnings
from scaletrain.monitors.run_records import RunRecords
from scaletrain.monitors.status_records import Observed, observe
from scaletrain.monitors.status_text import COLUMNS, LINES, status_lines
from scaletrain.monitors.status_warnings import status_of

T0 = 1_790_000_000.0
CONFIG = {"train": {"max_steps": 1000, "max_seq_len": 64}, "checkpoint": {"every_steps": 50}}
LEASE = Lease("n1", "machine", 1, 1, "77", (), T0)


def event(kind: str, step: int, **fields: Any) -> dict[str, Any]:
    return {"event": kind, "step": step, "attempt": 1, "time_s": T0 + 2 * step, **fields}


def a_run(steps: int = 120, saves: tuple[int, ...] = (50, 100), **changes: Any) -> Observed:
    """A run with steps of a second, two seconds apart, that was looked at a second after its last step."""
    lines = [
        {
            "step": step,
            "attempt": 1,
            "time_s": T0 + 2 * step,
            "train/loss": 9.0 - step / 100,
            "optim/lr": 3e-4,
            "perf/step_time_s": 1.0,
            "perf/data_wait_s": 0.0,
            "perf/tokens_per_s": 512.0,
            "perf/mfu": 0.4,
            "data/sequences": 8.0 * step,
        }
        for step in range(1, steps + 1)
    ]
    events = [event("start", 0), *(event("save", step, bytes=10 << 30, seconds=1.0) for step in saves)]
    records = RunRecords(events, lines, {1: T0}, is_running=True, last_sign_s=T0 + 2 * steps + 1)
    told: dict[str, Any] = {
        "tail": lines,
        "evaluation": {"step": 100, "attempt": 1, "eval/loss": 8.5},
        "config": CONFIG,
        "lease": replace(LEASE, job_id=None),
        "heartbeat_age_s": 5.0,
        "free_bytes": 1 << 40,
    }
    return Observed("mine", T0 + 2 * steps + 1, records, **told | changes)


def told(run: Observed, *more: dict[str, Any]) -> Observed:
    return replace(run, records=replace(run.records, events=[*run.records.events, *more]))


def ended(run: Observed, verdict: str, reason: str) -> Observed:
    verdicts = {1: [{"verdict": verdict, "reason": reason, "rank": 0, "time_s": run.now_s}]}
    return replace(run, records=replace(run.records, verdicts=verdicts, is_running=False))


def warnings(run: Observed) -> list[str]:
    return [("grave: " if warning.is_grave else "") + warning.text for warning in status_of(run).warnings]


def test_the_facts_of_a_run_that_is_well() -> None:
    status = status_of(a_run())
    training = status.training
    assert status.state == "running" and status.warnings == () and training is not None
    assert (training.step, training.max_steps, training.tokens) == (120, 1000, 120 * 8 * 64)
    assert training.mean_loss == pytest.approx(9.0 - 1.105)
    assert (training.step_s, training.between_s, training.age_s) == (1.0, 2.0, 1.0)
    assert (training.validation_loss, training.validation_step) == (8.5, 100)
    assert status.time_left_s == (1000 - 120) * 2.0
    assert (status.checkpoint.step, status.checkpoint.age_s, status.checkpoint.next_step) == (100, 41.0, 150)
    assert status.checkpoint.next_in_s == 30 * 2.0 - 1.0
    assert status.goodput == pytest.approx(120 / 241, abs=0.01)
    assert status.job is None
    screen = "\n".join(line.text for line in status_lines(status))
    for text in ("running on n1", "120 of 1000, 12.0%", "10.0 GiB; next at step 150, in about 59s", "29m20s at"):
        assert text in screen


def test_a_run_that_saves_nothing_waits_for_no_checkpoint() -> None:
    config = CONFIG | {"checkpoint": {"every_steps": 0, "keep_last": 0}}
    status = status_of(a_run(saves=(), config=config))
    assert status.checkpoint.next_step is None and status.warnings == ()


def test_a_run_that_was_not_started_and_one_without_a_step() -> None:
    empty = Observed("new", T0, RunRecords((), ()), config=CONFIG)
    assert status_of(empty).state == "not started yet" and warnings(empty) == []
    starting = Observed("new", T0, RunRecords([event("start", 0)], (), {1: T0}, is_running=True), lease=LEASE)
    assert status_of(starting).state == "starting"
    assert warnings(replace(starting, now_s=T0 + 1700)) == []
    assert warnings(replace(starting, now_s=T0 + 1900)) == ["grave: no step yet, 31m40s after the start"]
    assert any("none yet" in line.text for line in status_lines(status_of(starting)))


def test_a_run_that_stands_still_is_told_and_one_that_evaluates_as_always_is_not() -> None:
    run = a_run()
    assert warnings(replace(run, now_s=run.now_s + 10)) == ["grave: no new step for 11s, where one takes 1.0s"]
    slow = [dict(line, time_s=line["time_s"] + (30 if line["step"] > 100 else 0)) for line in run.tail]
    assert warnings(replace(run, tail=slow, now_s=run.now_s + 30 + 25)) == []
    assert len(warnings(replace(run, tail=slow, now_s=run.now_s + 30 + 35))) == 1
    assert warnings(replace(run, heartbeat_age_s=70.0)) == ["grave: no heartbeat of the owner on n1 for 1m10s"]


def test_saves_that_failed_are_old_or_find_no_room() -> None:
    failed = event("save_failed", 110, reason="No space left", folder="step_00000110")
    assert warnings(told(a_run(), failed)) == ["grave: 1 failed save, the last at step 110: No space left"]
    mended = told(a_run(), failed, event("save", 115))
    assert warnings(mended) == ["1 failed save, the last at step 110, saved since: No space left"]
    assert warnings(a_run(steps=151, saves=(50,))) == [
        "grave: 101 steps since the last checkpoint; one is due every 50"
    ]
    assert warnings(a_run(steps=150, saves=(50,))) == []
    assert warnings(a_run(free_bytes=9 << 30)) == [
        "grave: the next checkpoint takes 10 GiB, and 9 GiB are free in checkpoints/"
    ]
    assert warnings(ended(a_run(free_bytes=9 << 30), "complete", "done")) == []


def test_saves_to_a_nodes_own_disk_do_not_count() -> None:
    status = status_of(told(a_run(), event("save", 115, tier="local")))
    assert status.checkpoint.step == 100


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("skipped_step", "1 step skipped"),
        ("loss_spike", "1 loss spike"),
        ("rollback", "1 rollback"),
        ("transient_fault", "1 transient fault"),
        ("skip_shard", "1 damaged shard left out"),
    ],
)
def test_what_happened_to_the_data_and_the_devices_is_counted(kind: str, said: str) -> None:
    (text,) = warnings(told(a_run(), event(kind, 119, reason="why", host="n3", to_step=119)))
    assert text.startswith(said) and "at step 119 on n3" in text and text.endswith(": why")


def test_who_holds_the_others_up_is_told() -> None:
    text = "rank 3 on n2: slow to compute, by 12%: a step takes 231 ms, others 206 ms"
    run = told(a_run(), event("straggler", 50, host="n1", text="rank 1"), event("straggler", 100, host="n2", text=text))
    assert warnings(run) == [f"2 stragglers named, the last at step 100: {text}"]


def finding(step: int, severity: str, host: str, attempt: int = 1) -> dict[str, Any]:
    text = f"GPU 1 of {host}"
    return event("health_finding", step, severity=severity, host=host, rule=f"rule_{step}", text=text, attempt=attempt)


def test_what_is_wrong_with_nodes_is_told_of_the_start_under_way() -> None:
    assert warnings(told(a_run(), finding(40, "info", "n1"), finding(50, "abort", "n2", attempt=0))) == []
    warned = told(a_run(), finding(50, "warn", "n2"), finding(60, "warn", "n3"), finding(70, "info", "n4"))
    assert warnings(warned) == ["2 health findings, the worst on n3 (warn, rule_60): GPU 1 of n3"]
    drains = told(warned, finding(80, "drain", "n5"), finding(90, "warn", "n6"))
    assert warnings(drains) == ["grave: 4 health findings, the worst on n5 (drain, rule_80): GPU 1 of n5"]
    aborts = told(drains, finding(100, "abort", "n7"), {"event": "health_finding", "attempt": 1})
    assert warnings(aborts) == ["grave: 5 health findings, the worst on n7 (abort, rule_100): GPU 1 of n7"]
    assert warnings(ended(drains, "requeue", "SIGTERM")) == []
    assert SEVERITIES[1:] == status_warnings._WORTH_A_LOOK


def test_stragglers_that_are_over_are_told_so() -> None:
    slow = (
        event("straggler", 50, cause="data", ranks=[1], text="rank 1"),
        event("straggler", 60, cause="link", ranks=[1, 2], text="ranks 1, 2"),
    )
    over = event("straggler_over", 80, cause="data", ranks=[1]), event("straggler_over", 90, cause="link", ranks=[2])
    (text,) = warnings(told(a_run(), *slow, *over))
    assert text == "2 stragglers named, the last at step 60: ranks 1, 2"
    for end in (event("straggler_over", 100, cause="link", ranks=[1]), event("resume", 100)):
        (text,) = warnings(told(a_run(), *slow, *over, end))
        assert text == "2 stragglers named, the last at step 60, all over since: ranks 1, 2"


@pytest.mark.parametrize("verdict", ["crash", "user_error", "gave_up", "sick_node"])
def test_an_end_that_nobody_wanted_is_told_with_its_reason(verdict: str) -> None:
    assert warnings(ended(a_run(), verdict, "because")) == [
        f"grave: the last start ended with {verdict}: rank 0: because"
    ]
    hang = "hang at step 3: rank 1 on n2 did not arrive"
    assert warnings(ended(a_run(), "hang", hang)) == [f"grave: the last start ended with hang: {hang}"]
    assert warnings(ended(a_run(), "requeue", "SIGTERM")) == []
    assert warnings(told(ended(a_run(), "complete", "done"))) == []


def test_a_start_that_never_had_a_number_counts_once_the_run_is_over() -> None:
    refused = {"verdict": "user_error", "reason": "no such key", "time_s": T0 + 1000, "rank": 0}
    run = ended(a_run(), "stopped", "Ctrl-C")
    later = replace(run, records=replace(run.records, unclaimed=[refused]))
    assert status_of(later).state == "user_error"
    assert warnings(later) == ["grave: the last start ended with user_error: rank 0: no such key"]
    earlier = replace(run.records, unclaimed=[refused | {"time_s": T0 + 1}])
    assert status_of(replace(run, records=earlier)).state == "stopped"
    beside = a_run()  # somebody typed the command twice
    assert warnings(replace(beside, records=replace(beside.records, unclaimed=[refused]))) == []


def job(kind: str, **fields: Any) -> dict[str, Any]:
    return {"event": kind, "time_s": T0, "job_id": "77", "restart": 1, **fields}


def test_a_job_with_what_its_supervisor_did_and_what_the_queue_says() -> None:
    jobs = [
        job("job_start", job_name="pretrain", nodes=["n1", "n2", "n3"], end_s=T0 + 600),
        job("launch", launch=1, nodes=["n1", "n2"], spares=["n3"], saved_step=100),
        job("launch_end", launch=1, verdict="crash", saved_step=100),
        job("decision", action="launch", reason="once more", delay_s=0.0),
        job("launch", launch=2, nodes=["n1", "n2"], saved_step=100),
        job("launch_end", launch=2, verdict="crash", saved_step=100),
        job("decision", action="requeue", reason="crashes", delay_s=60.0, excluded=["n2"]),
        {"event": "launch"},
    ]
    run = ended(a_run(jobs=jobs[:-1]), "crash", "because")
    found = status_of(replace(run, queued=Queued("PENDING", "BeginTime", "", 600.0, T0 + 900))).job
    assert found is not None
    assert (found.job_id, found.name, found.restart, found.launch) == ("77", "pretrain", 1, 2)
    assert (found.state, found.reason, found.start_s) == ("PENDING", "BeginTime", T0 + 900)
    assert (found.nodes, found.excluded) == ((), ("n2",))
    assert found.decision == "requeue in 60 s: crashes"
    assert "grave: 2 launches in a row ended without a new checkpoint" in warnings(run)

    again = a_run(jobs=jobs, lease=LEASE)
    status = status_of(replace(again, queued=Queued("RUNNING", "", "n1", 500.0, T0)))
    assert status.job is not None and status.job.end_s == again.now_s + 500.0
    screen = "\n".join(line.text for line in status_lines(status))
    assert "ends in 8m20s" in screen and "the job ends before, near step 370" in screen


def test_broken_records_are_no_obstacle() -> None:
    odd = [{"event": "save"}, {"event": "save_failed", "time_s": "x"}, {"event": "rollback", "attempt": None}]
    jobs = [
        {},
        {"job_id": 7},
        job("job_start", nodes="n1", end_s="never"),
        job("launch", saved_step="x"),
        job("decision"),
    ]
    run = a_run(jobs=jobs, config={"train": 3, "checkpoint": {"every_steps": "often"}}, lease=LEASE)
    status = status_of(told(run, *odd))
    assert status.training is not None and status.training.max_steps is None
    assert status_lines(status)


names = st.lists(st.text(max_size=30), max_size=40)


@settings(max_examples=60)
@given(st.text(max_size=300), names, st.integers(0, 30), st.integers(30, COLUMNS), st.integers(8, LINES))
def test_whatever_it_says_it_fits_on_the_screen(
    reason: str, nodes: list[str], failures: int, columns: int, rows: int
) -> None:
    jobs = [
        job("job_start", job_name=reason, nodes=nodes),
        job("decision", action="stop", reason=reason, excluded=nodes),
    ]
    run = ended(a_run(steps=3, saves=(2,), jobs=jobs), "crash", reason)
    kinds = ("save_failed", "skipped_step", "rollback", "loss_spike", "transient_fault", "skip_shard")
    run = told(run, *(event(kinds[number % 6], 1, reason=reason) for number in range(failures)))
    status = status_of(run)
    lines = [line.text for line in status_lines(status, columns, rows)]
    assert len(lines) <= rows
    assert all(len(line) <= columns and line.isprintable() for line in lines)
    json.dumps(asdict(status))


def test_no_warning_is_lost_without_a_word() -> None:
    run = ended(a_run(), "crash", "a long story " * 60)
    kinds = ("save_failed", "skipped_step", "rollback", "loss_spike", "transient_fault", "skip_shard")
    status = status_of(told(run, *(event(kind, 1, reason="a reason " * 20) for kind in kinds)))
    for rows in range(6, LINES + 1):
        shown = [line.text for line in status_lines(status, 80, rows) if line.text.startswith("! ")]
        hidden = re.search(r"^! (\d+) more warnings", shown[-1])
        assert len(shown) - (1 if hidden else 0) + (int(hidden.group(1)) if hidden else 0) == len(status.warnings)


def test_folders_as_they_are_found(tmp_path: Path) -> None:
    for folder, said in ((tmp_path, "holds no run"), (tmp_path / "nowhere", "is no folder")):
        with pytest.raises(ConfigError, match=said):
            observe(folder)
    (tmp_path / "job.jsonl").write_text(json.dumps(job("job_start", job_name="pretrain")) + "\n" + '{"torn": ')
    (tmp_path / "config.yaml").write_text("train: {max_steps: [")
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "attempt": 1, "train/lo')
    (tmp_path / "lease.json").write_text("{")
    status = status_of(observe(tmp_path))
    assert status.state == "not started yet" and status.job is not None and status.job.name == "pretrain"

"""The account of a run: exact for any records, and right where it is known what really happened."""

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaletrain.monitors.goodput import Spent, account
from scaletrain.monitors.goodput_page import binned, evaluations, page, stretches
from scaletrain.monitors.goodput_summary import summarize
from scaletrain.monitors.goodput_text import report_lines
from scaletrain.monitors.run_records import RunRecords

T0 = 1_790_000_000.0
STEP_MS = 1000


@dataclass
class Simulated:
    """A run that is played through, with a clock in milliseconds: its records, and what really happened."""

    clock_ms: int = 0
    attempt: int = 0
    step: int = 0
    saved: int = 0
    unsaved: list[int] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    lines: list[dict[str, Any]] = field(default_factory=list)
    claims: dict[int, float | None] = field(default_factory=dict)
    truth: Counter[Spent] = field(default_factory=Counter)
    lost: int = 0

    @property
    def now_s(self) -> float:
        return T0 + self.clock_ms / 1000

    def spend(self, spent: Spent, milliseconds: int) -> None:
        self.clock_ms += milliseconds
        self.truth[spent] += milliseconds

    def tell(self, event: str, **fields: Any) -> None:
        self.events.append({"time_s": self.now_s, "event": event, "step": self.step, "attempt": self.attempt, **fields})

    def start(self, down_ms: int, start_ms: int, compile_ms: int = 0) -> None:
        if self.attempt:
            self.spend(Spent.DOWN, down_ms)
        self.attempt += 1
        launched_s = self.now_s
        self.spend(Spent.START_UP, start_ms // 2)
        self.claims[self.attempt] = self.now_s
        self.spend(Spent.START_UP, start_ms - start_ms // 2)
        self.go_back()
        self.tell("resume" if self.step else "start", world_size=2, zero_stage=1, launched_s=launched_s)
        self.compile_ms = compile_ms

    def go_back(self) -> None:
        self.lost += len(self.unsaved)
        self.truth[Spent.PRODUCTIVE] -= STEP_MS * len(self.unsaved)
        self.truth[Spent.LOST] += STEP_MS * len(self.unsaved)
        self.unsaved, self.step = [], self.saved

    def train(self, wait_ms: int) -> None:
        self.spend(Spent.DATA_WAIT, wait_ms)
        self.spend(Spent.START_UP, self.compile_ms)
        self.spend(Spent.PRODUCTIVE, STEP_MS)
        self.step += 1
        self.unsaved.append(self.step)
        taken_s = (wait_ms + STEP_MS + self.compile_ms) / 1000
        self.compile_ms = 0
        self.lines.append(
            {
                "step": self.step,
                "attempt": self.attempt,
                "time_s": self.now_s,
                "train/loss": 9.0 / self.step,
                "perf/step_time_s": taken_s,
                "perf/data_wait_s": wait_ms / 1000,
            }
        )

    def evaluate(self, milliseconds: int) -> None:
        self.spend(Spent.EVALUATION, milliseconds)
        self.tell("evaluated", seconds=milliseconds / 1000)
        self.lines.append({"step": self.step, "attempt": self.attempt, "time_s": self.now_s, "eval/loss": 3.0})

    def save(self, stall_ms: int, background_steps: int, wait_ms: int) -> None:
        """Saves; with background steps the save is complete only after they were trained."""
        folder, began_ms = f"step_{self.step:08d}", self.clock_ms
        self.spend(Spent.CHECKPOINT, stall_ms)
        saved = self.step
        for _ in range(background_steps):
            self.train(wait_ms)
        self.saved, self.unsaved = saved, [step for step in self.unsaved if step > saved]
        seconds = (self.clock_ms - began_ms) / 1000
        self.tell("save", folder=folder, seconds=seconds, stall_s=stall_ms / 1000, bytes=10**9, tier="shared")

    def end(self, verdict: str, rest_ms: int) -> None:
        self.spend(Spent.OTHER if self.lines and self.lines[-1]["attempt"] == self.attempt else Spent.START_UP, rest_ms)
        self.tell("exit", verdict=verdict, reason="<script>alert(1)</script>")

    @property
    def records(self) -> RunRecords:
        return RunRecords(self.events, self.lines, self.claims)


milliseconds = st.integers(0, 5000)


@st.composite
def simulated_runs(draw: st.DrawFn) -> Simulated:
    run = Simulated()
    for _ in range(draw(st.integers(1, 5))):
        run.start(draw(milliseconds), draw(milliseconds), draw(milliseconds))
        for _ in range(draw(st.integers(0, 6))):
            run.train(draw(milliseconds))
            happens = draw(st.sampled_from(["nothing", "evaluate", "save", "both", "background", "rollback", "pause"]))
            if happens in ("evaluate", "both"):
                run.evaluate(draw(milliseconds))
            if happens in ("save", "both"):
                run.save(draw(milliseconds), 0, 0)
            if happens == "background":
                run.save(draw(milliseconds), draw(st.integers(0, 3)), draw(milliseconds))
            if happens == "rollback":
                run.go_back()
                run.tell("rollback", to_step=run.step, reason="loss spike")
            if happens == "pause":
                run.spend(Spent.OTHER, draw(milliseconds))
        run.end(draw(st.sampled_from(["crash", "hang", "requeue"])), draw(milliseconds))
    run.go_back()  # nobody goes on: what was not saved is lost
    return run


@given(simulated_runs())
def test_the_shares_are_what_really_happened(run: Simulated) -> None:
    # Without a step that was not an attempt's first, nothing tells compiling from training.
    several = any(
        sum(line["attempt"] == number and "train/loss" in line for line in run.lines) > 1 for number in run.claims
    )
    told = account(run.records)
    shares = told.shares_us
    if not several:
        for taken in (shares, run.truth):
            taken[Spent.OTHER] = sum(taken.pop(spent, 0) for spent in (Spent.PRODUCTIVE, Spent.LOST, Spent.START_UP))
    assert {spent: us / 1000 for spent, us in shares.items()} == pytest.approx(
        {spent: run.truth[spent] for spent in shares}, abs=0.1
    )
    assert sum(step.lost for step in told.steps) == run.lost


numbers = st.one_of(st.floats(0, 2e3), st.floats(), st.integers(-5, 2000), st.none(), st.text(max_size=3))
kinds = st.sampled_from(["start", "resume", "save", "save_failed", "rollback", "evaluated", "exit", "signal", "new"])
any_events = st.lists(
    st.fixed_dictionaries(
        {"event": kinds},
        optional={
            "attempt": st.one_of(st.integers(1, 4), st.none()),
            "folder": st.sampled_from(["step_00000002", "other", ""]),
            **dict.fromkeys(("time_s", "step", "seconds", "stall_s", "to_step", "launched_s", "rank"), numbers),
        },
    ),
    max_size=12,
)
any_lines = st.lists(
    st.fixed_dictionaries(
        {"step": st.integers(0, 9), "attempt": st.integers(1, 4)},
        optional=dict.fromkeys(("time_s", "train/loss", "perf/step_time_s", "perf/data_wait_s", "eval/loss"), numbers),
    ),
    max_size=20,
)


@given(
    any_events, any_lines, st.dictionaries(st.integers(1, 5), st.one_of(st.none(), st.floats(0, 2e3))), st.booleans()
)
def test_the_shares_of_any_records_add_up_to_the_wall_time(
    events: list[dict[str, Any]], lines: list[dict[str, Any]], claims: dict[int, float | None], is_running: bool
) -> None:
    records = RunRecords(events, lines, claims, {}, (), is_running, 1500.0 if is_running else None)
    summary = summarize(records)
    told = summary.account
    assert all(us >= 0 for us in told.shares_us.values())
    assert sum(told.shares_us.values()) == told.wall_us
    for one, other in zip(told.segments, told.segments[1:], strict=False):
        assert one.begin_us < one.end_us == other.begin_us
    if told.segments:
        assert told.wall_us == told.attempts[-1].end_us - told.attempts[0].begin_us
        for shares in binned(told.segments, 7):
            assert sum(shares.values()) == pytest.approx(1, abs=1e-6)
    assert 0 <= told.goodput <= 1
    assert report_lines(summary, "run")


@settings(max_examples=20)
@given(any_events, any_lines)
def test_any_records_can_be_drawn(events: list[dict[str, Any]], lines: list[dict[str, Any]]) -> None:
    assert page(summarize(RunRecords(events, lines)), lines, "run").endswith("</html>\n")


def run_with_failures(failures: int) -> Simulated:
    """Ten steps and a save, again and again; each failure comes four steps after a save."""
    run = Simulated()
    for number in range(failures + 1):
        run.start(20_000, 10_000)
        for _ in range(3):
            for _ in range(10):
                run.train(100)
            run.save(500, 0, 0)
        if number < failures:
            for _ in range(4):
                run.train(100)
            run.end("crash", 300)
    return run


def test_the_figures_of_interruptions_and_saves() -> None:
    run = run_with_failures(4)
    run.tell("save_failed", reason="no space left", stall_s=0.1)
    run.tell("transient_fault", rank=1, host="n1", local_rank=1)
    run.tell("skipped_step", grad_norm="nan")
    run.end("complete", 0)
    summary = summarize(run.records)
    assert (summary.interruptions, summary.failures, summary.lost_steps) == (4, 4, 16)
    assert summary.lost_per_interruption == 4
    up_s = (run.clock_ms - 4 * 20_000) / 1000
    assert summary.between_interruptions_s == pytest.approx(up_s / 4)
    assert summary.recovery_s == pytest.approx(30)
    (saves,) = summary.saves
    assert (saves.count, saves.stall_s, saves.seconds, saves.mean_bytes) == (15, 0.5, 0.5, 10**9)
    text = "\n".join(report_lines(summary, "runs/x"))
    for said in ("failed saves: 1: no space left", "1 at n1, local rank 1", "skipped steps: 1", "±25%"):
        assert said in text
    advice = summary.advice
    assert advice.present is not None and (advice.present.steps, advice.present.seconds) == (10, pytest.approx(11))
    assert advice.recommended[0].seconds == pytest.approx((2 * 0.5 * up_s / 4) ** 0.5)
    assert min(interval.cost for interval in advice.recommended) <= advice.present.cost


def test_a_run_without_a_failure_gets_a_bound_and_says_so() -> None:
    run = run_with_failures(0)
    summary = summarize(RunRecords(run.events, run.lines, run.claims, {}, (), True, run.now_s + 5))
    assert summary.verdict == "running" and summary.lost_steps == 0
    assert summary.account.shares_us[Spent.OTHER] == pytest.approx(5e6, abs=100)
    assert summary.advice.is_bound
    text = "\n".join(report_lines(summary, "x"))
    assert "no failure yet: only a bound is known" in text and "≥" in text and "interruptions: none" in text


@pytest.mark.parametrize(("verdict", "lost"), [("complete", 0), ("crash", 3)])
def test_a_complete_run_that_was_to_save_nothing_has_lost_nothing(verdict: str, lost: int) -> None:
    run = Simulated()
    run.start(0, 500)
    for _ in range(3):
        run.train(0)
    run.end(verdict, 0)
    assert summarize(run.records).lost_steps == lost


def test_too_little_is_told_in_words() -> None:
    run = Simulated()
    run.start(0, 500)
    assert "no step was trained yet" in "\n".join(report_lines(summarize(run.records), "x"))
    run.train(0)
    assert "no checkpoint was saved yet" in "\n".join(report_lines(summarize(run.records), "x"))
    run.save(0, 1, 0)
    assert "training never stood still for a save" in "\n".join(report_lines(summarize(run.records), "x"))


def test_old_saves_stall_as_long_as_they_take() -> None:
    run = Simulated()
    run.start(0, 500)
    for _ in range(2):
        run.train(0)
    run.spend(Spent.CHECKPOINT, 700)
    run.tell("save", folder="step_00000002", seconds=0.7)
    run.end("complete", 10)
    assert account(run.records).shares_us[Spent.CHECKPOINT] == pytest.approx(7e5, abs=100)


def test_a_complete_run_that_is_started_again_ended_when_it_was_complete() -> None:
    run = run_with_failures(0)
    run.end("complete", 10)
    wall_us = account(run.records).wall_us
    run.start(86_400_000, 3000)
    run.events.pop()  # such a start finds nothing to do, and tells of no start
    run.end("complete", 10)
    assert account(run.records).wall_us == wall_us


def test_the_cause_is_the_rank_that_died_without_a_word() -> None:
    run = run_with_failures(0)
    last_s = run.now_s
    verdicts = [
        {"verdict": "crash", "reason": "Connection closed by peer", "rank": 0, "time_s": last_s + 0.1},
        {"verdict": "crash", "reason": "signal 9", "rank": 1, "time_s": last_s + 1, "written_by": "keeper"},
    ]
    (attempt,) = account(RunRecords(run.events, run.lines, run.claims, {1: verdicts})).attempts
    assert (attempt.verdict, attempt.reason) == ("crash", "rank 1: signal 9")


def test_a_late_record_of_an_attempt_does_not_reach_into_the_next() -> None:
    run = run_with_failures(1)
    before = account(run.records).shares_us
    run.events.append(
        {"time_s": run.now_s, "event": "exit", "attempt": 1, "rank": 1, "verdict": "crash", "reason": "late"}
    )
    first, second = account(run.records).attempts
    assert first.end_us <= second.begin_us
    assert account(run.records).shares_us[Spent.PRODUCTIVE] == before[Spent.PRODUCTIVE]


def test_the_page_stands_alone_and_takes_no_markup_from_the_run() -> None:
    run = run_with_failures(3)
    run.evaluate(200)
    run.end("stopped", 10)
    text = page(summarize(run.records), run.lines, "a <b>")
    assert "<script" not in text and "&lt;script&gt;" in text and "a &lt;b&gt;" in text
    assert not re.findall(r"""(?:src|href|url)\s*[=(]|https?:""", text)
    assert "prefers-color-scheme: dark" in text and text.count("<svg") == 4
    for spent in Spent:
        assert spent.value in text


def rolled_back_twice(steps: int) -> Simulated:
    """A run that is saved at step 3, goes back there two times, and is evaluated after every step."""
    run = Simulated()
    run.start(0, 500)
    for _ in range(3):
        run.train(0)
    run.save(100, 0, 0)
    for number in (4, 4, steps):
        for _ in range(number):
            run.train(0)
            run.evaluate(10)
            run.lines[-1]["eval/loss"] = float(len(run.lines))
        if number != steps:
            run.go_back()
            run.tell("rollback", to_step=3, reason="loss spike " * 50)
    run.save(100, 0, 0)
    return run


def test_a_lost_stretch_is_drawn_anew_where_the_run_went_back() -> None:
    run = rolled_back_twice(2)
    told = summarize(run.records).account
    (attempt,) = told.attempts
    assert [[step.step for step in own] for own in stretches(attempt.steps)] == [
        [1, 2, 3],
        [4, 5, 6, 7],
        [4, 5, 6, 7],
        [4, 5],
    ]
    text = page(summarize(run.records), run.lines, "x")
    assert text.count('class="curve k1"') == 4  # two stretches in each of the two charts
    for drawn in re.findall(r'class="curve k1" points="(.*?)"', text):
        assert (places := [float(pair.split(",")[0]) for pair in drawn.split()]) == sorted(places)


def test_only_evaluations_of_steps_that_the_run_has_are_drawn() -> None:
    run = rolled_back_twice(2)
    run.lines.append({"step": 0, "attempt": 1, "time_s": T0, "eval/loss": 9.0})
    last = [line["eval/loss"] for line in run.lines if line["step"] in (4, 5) and "eval/loss" in line][-2:]
    found = evaluations(summarize(run.records).account.steps, run.lines)
    assert found == [(0.0, 9.0), (4.0, last[0]), (5.0, last[1])]


@pytest.mark.parametrize(("steps", "dots", "lines"), [(60, 60, 0), (61, 0, 1)])
def test_many_evaluations_are_a_thin_line(steps: int, dots: int, lines: int) -> None:
    run = rolled_back_twice(steps)
    text = page(summarize(run.records), run.lines, "x")
    assert (text.count('class="dot k5 thin"'), text.count('class="curve k5 thin"')) == (dots, lines)


def test_long_reasons_are_cut_and_say_so() -> None:
    run = rolled_back_twice(2)
    run.end("crash", 0)
    run.events[-1]["reason"] = "<" * 500
    summary = summarize(run.records)
    text = page(summary, run.lines, "x")
    whole, shown = "&lt;" * 500, "&lt;" * 159 + "…"
    assert f'<span title="{whole}">{shown}</span>' in text
    assert len(re.findall(r'<span title="rollback: to step 3: (?:loss spike ){50}">rollback[^<]{151}…<', text)) == 2
    (line,) = [line for line in report_lines(summary, "x") if "<<<" in line]
    assert line.endswith("<…") and line.count("<") == 99

"""A run goes back before a spike, leaves its sequences out, and comes to the same however it is cut."""

import json
import socket
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scaletrain.checkpoint.layout import list_checkpoints
from scaletrain.checkpoint.weights import read_weights
from scaletrain.launch.events import append_event
from scaletrain.training.data_history import DataHistory
from scaletrain.training.rollback import choose_step_back
from scaletrain.training.skipped import recorded_return
from tests.training.data_runs import STEPS, DataRun
from tests.training.mishaps import Mishap

# Steps 1 to 5 take 6 sequences, the others 8: step 13 takes 86 to 93, and 14 to 16 take 94 to 117. As the mixture
# changes in step 6, the window of 8 begins there: step 13 is the first that is judged, by 6 to 9.
SPIKE = Mishap(sequences=(96, 104, 112))
SPIKE_STEPS = 18
GOES_BACK = {
    "train.max_steps": SPIKE_STEPS,
    "optim.lr": 3e-3,
    "data.num_workers": 1,
    "stability.window_steps": 8,
    "checkpoint.every_steps": 3,
    "checkpoint.keep_last": 9,
    "log.writers": "[tensorboard]",
    "log.every_steps": 1,
}
# Steps 14 to 16 spike, with step 13 their sequences are left out; the run goes on from the checkpoint of step 12.
LEFT_OUT = range(86, 118)


def curve(run: DataRun) -> list[tuple[int, float, str, float]]:
    return [(row["step"], row["train/loss"], row["data/batch_hash"], row["data/sequences"]) for row in run.rows]


@pytest.fixture(scope="module")
def gone_back(corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> DataRun:
    run = DataRun(tmp_path_factory.mktemp("gone_back"), corpora, GOES_BACK)
    run.complete(2, mishap=SPIKE)
    return run


def test_a_spike_sends_the_run_back_and_its_sequences_are_left_out(gone_back: DataRun, uncut: DataRun) -> None:
    (event,) = gone_back.events("rollback")
    assert (event["to_step"], event["first_sequence"], event["stop_sequence"]) == (12, LEFT_OUT.start, LEFT_OUT.stop)
    assert event["reason"].startswith("the loss of step 16 is ") and len(event["documents"]) == 8
    assert event["reason"].endswith("the last of 3 steps in a row above 10")
    # One curve, without what the run went back from, and the attempt is the same.
    assert [row["step"] for row in gone_back.rows] == list(range(1, SPIKE_STEPS + 1))
    assert {row["attempt"] for row in gone_back.rows} == {1}
    assert gone_back.hashes[:12] == uncut.hashes
    assert gone_back.ends == [*range(6, 31, 6), *range(38, 87, 8), *range(126, 167, 8)]
    assert max(row["train/loss"] for row in gone_back.rows) < 7
    begins = [0, *gone_back.ends[:-1]]
    begins[12] = LEFT_OUT.stop
    dataset = gone_back.dataset()
    sums = [
        sum(dataset.micro_batch([sequence])["checksum"] for sequence in range(*step)) % 2**64
        for step in zip(begins, gone_back.ends, strict=True)
    ]
    assert gone_back.hashes == [f"{value:016x}" for value in sums]
    # The history of the data knows of it.
    history = DataHistory.open(gone_back.run_dir)
    assert all(found.recorded == found.computed for found in history.verify(range(1, SPIKE_STEPS + 1)))
    pieces = [piece for step in range(1, SPIKE_STEPS + 1) for piece in history.pieces(step)]
    assert not {piece.sequence for piece in pieces} & set(LEFT_OUT)
    key = event["documents"][0].partition("/")[2]
    assert {use.sequence for use in history.uses(key)} == {piece.sequence for piece in pieces if piece.key == key}
    # TensorBoard shows the same points.
    shown = EventAccumulator(str(gone_back.run_dir / "tb"), size_guidance={"scalars": 0})
    shown.Reload()
    points = [(point.step, point.value) for point in shown.Scalars("train/loss")]
    assert points == [(row["step"], pytest.approx(row["train/loss"])) for row in gone_back.rows]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "precision"),
    [
        ("zero1", "fp32"),
        pytest.param("zero3", "bf16", marks=pytest.mark.thorough),
        pytest.param("zero0", "bf16", marks=pytest.mark.thorough),
        pytest.param("zero2_offload", "bf16", marks=pytest.mark.thorough),
    ],
)
def test_wherever_the_run_is_cut_it_comes_to_the_same(
    settings: str, precision: str, corpora: Path, tmp_path: Path, gone_back: DataRun
) -> None:
    overrides = GOES_BACK | {"deepspeed": f"configs/ds/{settings}.json", "train.precision": precision}
    cut = DataRun(tmp_path, corpora, overrides)
    # Within the spike; then behind the rollback; the last start loses its newest checkpoints.
    assert cut.start(2, mishap=Mishap(SPIKE.sequences, kill_at=14))[0] == "requeue"
    assert [folder.name for folder in list_checkpoints(cut.run_dir / "checkpoints")][:1] == ["step_00000015"]
    assert cut.start(2, mishap=Mishap(SPIKE.sequences, kill_at=16))[0] == "requeue"
    cut.forget_checkpoints_behind(3)
    cut.complete(2, mishap=SPIKE)
    whole = gone_back
    if settings != "zero1":
        (tmp_path / "whole").mkdir()
        whole = DataRun(tmp_path / "whole", corpora, overrides)
        whole.complete(2, mishap=SPIKE)
    assert curve(cut) == curve(whole)
    assert len(cut.events("rollback")) == len(whole.events("rollback")) == 1
    last = [run.run_dir / "checkpoints" / f"step_{SPIKE_STEPS:08d}" for run in (cut, whole)]
    weights = [read_weights(folder) for folder in last]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0] | weights[1])
    states = [json.loads((folder / "state.json").read_text()) for folder in last]
    assert states[0]["training"] == states[1]["training"]
    assert states[0]["training"]["skipped_sequences"] == [{"first": LEFT_OUT.start, "stop": LEFT_OUT.stop}]
    assert states[0]["callbacks"]["Stability"] == states[1]["callbacks"]["Stability"]
    if settings == "zero1":  # with other ranks the steps hold the same, too
        cut.forget_checkpoints_behind(3)
        cut.complete(3, mishap=SPIKE)
        assert (cut.hashes, cut.ends) == (whole.hashes, whole.ends)


def test_a_run_does_not_go_back_to_the_same_step_twice_in_a_row(tmp_path: Path) -> None:
    def newest_intact(newest_step: int) -> int | None:
        return max((step for step in (50, 100, 150) if step <= newest_step), default=None)

    assert choose_step_back(newest_intact, 140, None) == choose_step_back(newest_intact, 140, 50) == 100
    assert choose_step_back(newest_intact, 140, 100) == 50
    assert choose_step_back(newest_intact, 99, 50) == 50  # there is none before
    assert choose_step_back(newest_intact, 49, None) is None
    assert recorded_return(tmp_path) is None
    for to_step in (100, 50):
        append_event(tmp_path / "events.jsonl", "rollback", time_s=1.0, step=140, attempt=1, to_step=to_step)
    assert recorded_return(tmp_path) == 50


@pytest.mark.slow
def test_steps_that_stay_bad_send_the_run_back_as_often_as_it_may(corpora: Path, tmp_path: Path) -> None:
    # Step 4 takes 18 to 23, step 5 takes 24 to 29.
    overrides = {"stability.bad_steps": 2, "stability.max_rollbacks": 1, "checkpoint.every_steps": 1}
    overrides |= {"checkpoint.keep_last": 20}
    run = DataRun(tmp_path, corpora, overrides)
    once = Mishap(sequences=(20, 25), factor=float("nan"))
    run.complete(2, mishap=once)
    (event,) = run.events("rollback")
    assert (event["to_step"], event["first_sequence"], event["stop_sequence"]) == (3, 18, 30)
    assert "2 steps in a row" in event["reason"] and "rank 1" in event["reason"]
    assert [skipped["step"] for skipped in run.events("skipped_step")] == [4, 5]
    assert run.ends[:5] == [6, 12, 18, 38, 46] and run.rows[-1]["optim/steps"] == STEPS
    # Cut once more, it remembers; another rollback is one too many.
    run.forget_checkpoints_behind(1)
    twice = Mishap((*once.sequences, 40, 50), float("nan"))
    for told in run.start(2, mishap=twice):
        assert told.startswith("DivergenceError: 2 steps in a row") and "gone back 1 times before" in told
        assert "Steps 5 to 6 hold sequences 38 to 53" in told and ("web/" in told or "books/" in told)
        assert "rank 0" in told
    assert len(run.events("rollback")) == 1
    # Without a checkpoint of before there is nothing to go back to.
    (tmp_path / "new").mkdir()
    new = DataRun(tmp_path / "new", corpora, overrides | {"checkpoint.every_steps": 5})
    for told in new.start(2, mishap=once):
        assert told.startswith("DivergenceError: 2 steps in a row") and "no intact checkpoint of step 3" in told


def test_without_an_older_checkpoint_a_run_goes_on_after_a_spike(corpora: Path, tmp_path: Path, uncut: DataRun) -> None:
    run = DataRun(tmp_path, corpora, GOES_BACK | {"checkpoint.every_steps": 0})
    run.complete(2, mishap=SPIKE)
    assert run.hashes[:12] == uncut.hashes and not run.events("rollback")
    # Once: what the loss is judged by is forgotten.
    assert [event["step"] for event in run.events("loss_spike")] == [16]
    (warning,) = run.warnings
    assert "no intact checkpoint of step 12 or before" in warning


def test_a_second_fault_of_one_device_is_told_and_ends_a_deterministic_run(
    corpora: Path, tmp_path: Path, uncut: DataRun
) -> None:
    run = DataRun(tmp_path, corpora, {"checkpoint.every_steps": 3})
    faults = Mishap(faults=((1, 1), (0, 4), (1, 7)))
    run.complete(2, mishap=faults)
    assert [(row["train/loss"], row["data/batch_hash"]) for row in run.rows] == [
        (row["train/loss"], row["data/batch_hash"]) for row in uncut.rows
    ]
    told = [(event["step"], event["rank"], event["reason"]) for event in run.events("transient_fault")]
    assert told == [(2, 1, "gradient"), (5, 0, "gradient"), (8, 1, "gradient")]
    assert [warning for warning in run.warnings if "no proof" in warning and "rank 1" in warning and "2, 8" in warning]
    # The diary counts over restarts.
    run.forget_checkpoints_behind(9)
    for error in run.start(2, mishap=Mishap(faults=((0, 10),)), train__deterministic=True):
        assert error.startswith("HealthError: ") and "rank 0 (device 0 of " in error and "in steps 5, 11" in error
    assert run.blamed(2) == [[socket.gethostname()]] * 2
    assert list_checkpoints(run.run_dir / "checkpoints")[0].name == "step_00000009"


def test_a_flipped_bit_ends_the_run_before_it_is_saved(corpora: Path, tmp_path: Path) -> None:
    overrides = {"checkpoint.every_steps": 2, "stability.check_every_steps": 4, "deepspeed": "configs/ds/zero2.json"}
    overrides |= {"checkpoint.background": False}
    run = DataRun(tmp_path, corpora, overrides)
    for error in run.start(3, mishap=Mishap(flip=(2, 7))):
        assert error.startswith("HealthError: At step 8 the ranks differ") and "weights of rank 2 (device 2 of" in error
    (event,) = run.events("ranks_differ")
    assert (event["step"], event["what"], event["ranks"]) == (8, "weights", [2])
    assert list_checkpoints(run.run_dir / "checkpoints")[0].name == "step_00000006"
    assert run.blamed(1) == [[socket.gethostname()]] * 3
    # Of two ranks nobody can tell which is wrong: no machine is to be taken out.
    run.start(2, mishap=Mishap(flip=(1, 7)))
    assert len(run.events("ranks_differ")) == 2 and run.blamed(2) == [None, None]

"""A run goes back before a spike, leaves its sequences out, and comes to the same however it is cut."""

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scaletrain.checkpoint.layout import list_checkpoints
from scaletrain.checkpoint.weights import read_weights
from scaletrain.training.data_history import DataHistory
from tests.training.data_runs import STEPS, DataRun
from tests.training.mishaps import Mishap

# Steps 1 to 5 take 6 sequences, the others 8: step 7 takes 38 to 45, and step 8 takes 46 to 53.
SPIKE = Mishap(sequences=(48,))
GOES_BACK = {
    "optim.lr": 3e-3,
    "data.num_workers": 1,
    "stability.window_steps": 8,
    "checkpoint.every_steps": 3,
    "checkpoint.keep_last": 9,
    "log.writers": "[tensorboard]",
    "log.every_steps": 1,
}
# Step 8 spikes, with step 7 its sequences are left out; the run goes on from the checkpoint of step 6.
LEFT_OUT = range(38, 54)


def curve(run: DataRun) -> list[tuple[int, float, str, float]]:
    return [(row["step"], row["train/loss"], row["data/batch_hash"], row["data/sequences"]) for row in run.rows]


@pytest.fixture(scope="module")
def gone_back(corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> DataRun:
    run = DataRun(tmp_path_factory.mktemp("gone_back"), corpora, GOES_BACK)
    run.complete(2, mishap=SPIKE)
    return run


def test_a_spike_sends_the_run_back_and_its_sequences_are_left_out(gone_back: DataRun, uncut: DataRun) -> None:
    (event,) = gone_back.events("rollback")
    assert (event["to_step"], event["first_sequence"], event["stop_sequence"]) == (6, LEFT_OUT.start, LEFT_OUT.stop)
    assert event["reason"].startswith("the loss of step 8 is ") and len(event["documents"]) == 8
    # One curve, without what the run went back from, and the attempt is the same.
    assert [row["step"] for row in gone_back.rows] == list(range(1, STEPS + 1))
    assert {row["attempt"] for row in gone_back.rows} == {1}
    assert gone_back.hashes[:6] == uncut.hashes[:6]
    assert gone_back.ends == [6, 12, 18, 24, 30, 38, 62, 70, 78, 86, 94, 102]
    assert max(row["train/loss"] for row in gone_back.rows) < 7
    begins = [0, *gone_back.ends[:-1]]
    begins[6] = LEFT_OUT.stop
    dataset = gone_back.dataset()
    sums = [
        sum(dataset.micro_batch([sequence])["checksum"] for sequence in range(*step)) % 2**64
        for step in zip(begins, gone_back.ends, strict=True)
    ]
    assert gone_back.hashes == [f"{value:016x}" for value in sums]
    # The history of the data knows of it.
    history = DataHistory.open(gone_back.run_dir)
    assert all(found.recorded == found.computed for found in history.verify(range(1, STEPS + 1)))
    pieces = [piece for step in range(1, STEPS + 1) for piece in history.pieces(step)]
    assert not {piece.sequence for piece in pieces} & set(LEFT_OUT)
    key = event["documents"][0].partition("/")[2]
    assert {use.sequence for use in history.uses(key)} == {piece.sequence for piece in pieces if piece.key == key}
    # TensorBoard shows the same points.
    shown = EventAccumulator(str(gone_back.run_dir / "tb"), size_guidance={"scalars": 0})
    shown.Reload()
    points = [(point.step, point.value) for point in shown.Scalars("train/loss")]
    assert points == [(row["step"], pytest.approx(row["train/loss"])) for row in gone_back.rows]


@pytest.mark.parametrize(
    ("settings", "precision"),
    [("zero0", "bf16"), ("zero1", "fp32"), ("zero2_offload", "bf16"), ("zero3", "bf16")],
)
def test_wherever_the_run_is_cut_it_comes_to_the_same(
    settings: str, precision: str, corpora: Path, tmp_path: Path, gone_back: DataRun
) -> None:
    overrides = GOES_BACK | {"deepspeed": f"configs/ds/{settings}.json", "train.precision": precision}
    cut = DataRun(tmp_path, corpora, overrides)
    # Between a checkpoint and the spike; then behind the rollback; the last start loses its newest checkpoints.
    assert cut.start(2, mishap=Mishap(SPIKE.sequences, kill_at=6))[0] == "requeue"
    assert cut.start(2, mishap=Mishap(SPIKE.sequences, kill_at=9))[0] == "requeue"
    cut.forget_checkpoints_behind(3)
    cut.complete(2, mishap=SPIKE)
    whole = gone_back
    if settings != "zero1":
        (tmp_path / "whole").mkdir()
        whole = DataRun(tmp_path / "whole", corpora, overrides)
        whole.complete(2, mishap=SPIKE)
    assert curve(cut) == curve(whole)
    assert len(cut.events("rollback")) == len(whole.events("rollback")) == 1
    last = [run.run_dir / "checkpoints" / "step_00000012" for run in (cut, whole)]
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
    assert run.hashes == uncut.hashes and not run.events("rollback")
    assert [event["step"] for event in run.events("loss_spike")] == [8]
    (warning,) = run.warnings
    assert "no intact checkpoint of step 6 or before" in warning


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
    assert list_checkpoints(run.run_dir / "checkpoints")[0].name == "step_00000009"


def test_a_flipped_bit_ends_the_run_before_it_is_saved(corpora: Path, tmp_path: Path) -> None:
    overrides = {"checkpoint.every_steps": 2, "stability.check_every_steps": 4, "deepspeed": "configs/ds/zero2.json"}
    run = DataRun(tmp_path, corpora, overrides)
    for error in run.start(3, mishap=Mishap(flip=(2, 7))):
        assert error.startswith("HealthError: At step 8 the ranks differ") and "weights of rank 2 (device 2 of" in error
    (event,) = run.events("ranks_differ")
    assert (event["step"], event["what"], event["ranks"]) == (8, "weights", [2])
    assert list_checkpoints(run.run_dir / "checkpoints")[0].name == "step_00000006"

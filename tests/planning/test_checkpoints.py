"""The size of a checkpoint, held against those that real engines write."""

import shutil
from pathlib import Path

import pytest

from scaletrain.config.schema import CheckpointConfig, LoraConfig, ModelConfig, TuneConfig
from scaletrain.config.tune_rules import trained_part
from scaletrain.planning.checkpoints import LOCAL_KEEP_LAST, Kept, Room, checkpoint_bytes, checkpoint_lines, room_for
from scaletrain.planning.parameters import count_parameters
from tests.distributed import run_on_ranks
from tests.engine import bodies
from tests.engine.bodies import MODEL, Case

# About a million parameters, in sizes that no number of ranks divides.
SHAPE = {"d_model": 189, "vocab_size": 803}
SHAPE_SWIGLU = SHAPE | {"activation": "swiglu", "norm": "rms_norm", "bias": False, "positions": "rotary", "d_ff": 480}


@pytest.mark.parametrize(
    ("stage", "precision", "ranks", "shape", "optimizer"),
    [
        (0, "fp32", 1, SHAPE, "adamw"),
        pytest.param(0, "bf16", 2, SHAPE, "adamw", marks=pytest.mark.thorough),
        pytest.param(1, "fp32", 2, SHAPE, "adamw", marks=pytest.mark.thorough),
        (1, "bf16", 2, SHAPE, "sgd"),
        (2, "bf16", 2, SHAPE_SWIGLU | {"head_dim": 62}, "adamw"),
        (3, "fp32", 2, SHAPE, "adamw"),
        (2, "bf16", 2, SHAPE, "adamw, averaged"),
        (1, "bf16", 2, SHAPE, "adamw, adapted"),
        pytest.param(3, "bf16", 2, SHAPE, "adamw, adapted", marks=pytest.mark.thorough),
        pytest.param(0, "fp32", 1, SHAPE, "adamw, adapted", marks=pytest.mark.thorough),
        pytest.param(3, "bf16", 1, SHAPE, "adam", marks=pytest.mark.thorough),
    ],
)
def test_it_is_what_is_written(
    tmp_path: Path, stage: int, precision: str, ranks: int, shape: dict[str, object], optimizer: str
) -> None:
    folder = tmp_path / "saved"
    name, _, way = optimizer.partition(", ")
    optim = {"name": name, "ema_decay": 0.9 if way == "averaged" else 0.0}
    lora = {"rank": 3} if way == "adapted" else {}
    case = Case(stage, precision, steps=(0, 1), model=shape, optim=optim, lora=lora, save=str(folder))
    run_on_ranks(ranks, bodies.train, case)
    size = sum(path.stat().st_size for path in folder.iterdir())
    model = ModelConfig(**(MODEL | shape))
    assert 0.9e6 < count_parameters(model).total < 1.2e6
    part = trained_part(model, LoraConfig(**lora), TuneConfig())
    planned = checkpoint_bytes(model, precision, stage, ranks, name, averages=way == "averaged", part=part)
    # Without moments of the frozen weights a tensor's name and padding weigh twice as much.
    assert planned == pytest.approx(size, rel=0.02 if lora else 0.01)
    assert planned >= size
    shutil.rmtree(folder)


def test_where_none_is_kept_no_room_is_needed() -> None:
    kept = Kept.of(CheckpointConfig(every_steps=0, keep_last=0), max_steps=100)
    assert checkpoint_lines(1 << 40, kept, Room(0, 0)) == ["checkpoint     none is saved: checkpoint.keep_last is 0"]


def test_what_is_kept_needs_one_more_while_it_is_written() -> None:
    gib = 2**30
    (line,) = checkpoint_lines(10 * gib, Kept(2), None)
    assert line == "checkpoint     10.0 GiB each; 2 kept and one being written: 30.0 GiB"
    fits = checkpoint_lines(10 * gib, Kept(2), Room(30 * gib, 0))
    assert len(fits) == 2 and fits[1].endswith("free at the run directory: 30.0 GiB")
    assert (
        "DOES NOT FIT: make room, lower checkpoint.keep_last"
        in checkpoint_lines(10 * gib, Kept(2), Room(29 * gib, 0))[2]
    )
    # What stands there already makes room in time.
    assert len(checkpoint_lines(10 * gib, Kept(2), Room(10 * gib, 20 * gib))) == 2


@pytest.mark.parametrize(
    ("every", "keep_every", "max_steps", "multiples"),
    [
        (100, 1000, 10_000, 10),
        (100, 0, 10_000, 0),
        (30, 100, 900, 3),
        (30, 100, 1000, 4),
        (0, 100, 1000, 1),
        (0, 7, 9, 0),
    ],
)
def test_those_that_stay_for_ever_are_counted(every: int, keep_every: int, max_steps: int, multiples: int) -> None:
    config = CheckpointConfig(every_steps=every, keep_every_steps=keep_every, keep_last=2, keep_best=True)
    saves = {*range(every, max_steps + 1, every)} | {max_steps} if every else {max_steps}
    assert multiples == sum(keep_every > 0 and step % keep_every == 0 for step in saves)
    kept = Kept.of(config, max_steps)
    assert (kept.multiples, kept.total) == (multiples, 2 + multiples + 1)


def test_what_stays_for_ever_and_the_best_need_room() -> None:
    gib = 2**30
    first, _, told = checkpoint_lines(10 * gib, Kept(2, 10, 1000, 1), Room(139 * gib, 0))
    assert first.endswith("each; 2, 10 at multiples of 1000 and the best kept and one being written: 140.0 GiB")
    assert "DOES NOT FIT: make room, raise checkpoint.keep_every_steps" in told
    first, second, told = checkpoint_lines(10 * gib, Kept(LOCAL_KEEP_LAST), Room(29 * gib, 0), is_local=True)
    assert first == "on each node   10.0 GiB each; 2 kept and one being written: 30.0 GiB"
    assert second.endswith("free at checkpoint.local_dir here: 29.0 GiB") and "with more space" in told


def test_a_nodes_part() -> None:
    model = ModelConfig(**(MODEL | SHAPE))
    total = count_parameters(model).total
    assert checkpoint_bytes(model, "bf16", 0, 8, ranks_there=4) == checkpoint_bytes(model, "bf16", 0, 8)
    assert checkpoint_bytes(model, "bf16", 3, 8, ranks_there=4) * 2 == checkpoint_bytes(model, "bf16", 3, 8)
    # Each node has the weights of the forward pass whole.
    assert checkpoint_bytes(model, "bf16", 1, 8, ranks_there=4) * 2 == checkpoint_bytes(model, "bf16", 1, 8) + 2 * total


def test_the_room_of_a_run_directory(tmp_path: Path) -> None:
    assert room_for(tmp_path / "none", 7) == Room(7, 0)
    folder = tmp_path / "checkpoints" / "step_00000001"
    folder.mkdir(parents=True)
    (folder / "a.pt").write_bytes(bytes(300))
    assert room_for(tmp_path / "checkpoints", 7) == Room(7, 300)

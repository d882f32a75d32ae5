"""A new run begins with the weights of another one's checkpoint: with these only, once, and only where they fit."""

import json
import math
import shutil
from pathlib import Path

import pytest

from scaletrain.checkpoint.weights import read_weights
from scaletrain.config.load import load_config
from scaletrain.errors import ConfigError
from scaletrain.training.dry_run import print_plan
from scaletrain.training.init_source import find_sources
from tests.distributed import run_on_ranks
from tests.engine import bodies
from tests.engine.bodies import Case
from tests.training.data_runs import DataRun
from tests.training.init_bodies import begin, begin_with_other_heads, evaluate_source
from tests.training.mishaps import Mishap

LEARNS = {"train.max_steps": 3, "checkpoint.every_steps": 1, "optim.lr": 1e-2, "train.batch_schedule": "[]"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights after five steps of two ranks in stage 2, without the commit protocol."""
    folder = tmp_path_factory.mktemp("init") / "step_00000005"
    run_on_ranks(2, bodies.train, Case(stage=2, steps=(0, 5), save=str(folder)))
    return folder


@pytest.fixture(scope="module")
def first_losses(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Of one rank without ZeRO."""
    scratch = tmp_path_factory.mktemp("scratch") / "saved"
    return run_on_ranks(1, begin, Case(stage=0), str(checkpoint), str(scratch))[0].losses  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("world_size", "case"),
    [
        (2, Case(stage=1)),
        (2, Case(stage=1, precision="bf16")),
        (1, Case(stage=2, offload="optimizer")),
        (2, Case(stage=3)),
        (2, Case(stage=3, precision="bf16", offload="all")),
    ],
    ids=lambda value: f"{value.stage}-{value.precision}-{value.offload}" if isinstance(value, Case) else None,
)
def test_the_weights_are_the_same_bits_and_all_else_begins_anew(
    checkpoint: Path, first_losses: list[float], tmp_path: Path, world_size: int, case: Case
) -> None:
    source = read_weights(checkpoint)
    evaluated = run_on_ranks(2, evaluate_source, Case(stage=2), str(checkpoint))[0]
    for begun in run_on_ranks(world_size, begin, case, str(checkpoint), str(tmp_path / "saved")):
        assert begun.masters.keys() == begun.live.keys() == source.keys()
        assert [name for name, weight in source.items() if not begun.masters[name].equal(weight)] == []
        assert [name for name, w in source.items() if not begun.live[name].equal(w.to(begun.live[name].dtype))] == []
        assert begun.applied_steps == 0
        tolerance = 1e-5 if case.precision == "fp32" else 5e-3
        assert begun.losses[0] == pytest.approx(evaluated, abs=tolerance)
        # With the moments of the source the third loss would be another: 2e-2 off.
        assert begun.losses == pytest.approx(first_losses, abs=tolerance)


@pytest.mark.parametrize(("world_size", "stage"), [(1, 0), (2, 1), (2, 2), (2, 3)])
def test_heads_begin_anew_and_new_tokens_at_the_mean(
    checkpoint: Path, tmp_path: Path, world_size: int, stage: int
) -> None:
    other = {"vocab_size": 106, "tie_embeddings": False, "output_bias": True, "pooler": True}
    case = Case(stage=stage, model=other)
    there = read_weights(checkpoint)
    for made, begun in run_on_ranks(world_size, begin_with_other_heads, case, str(checkpoint), str(tmp_path)):
        for name in ("output.bias", "pooler.weight", "pooler.bias"):
            assert begun[name].equal(made[name])
        for name in ("embedding.weight", "output.weight"):  # which were one tensor
            assert begun[name].shape == (106, 30)
            assert begun[name][:101].equal(there["embedding.weight"])
            mean = there["embedding.weight"].double().mean(0).float()
            assert all(row.allclose(mean, rtol=1e-6, atol=0) for row in begun[name][101:])
            assert all(row.equal(begun["embedding.weight"][101]) for row in begun[name][101:])
        same = begun.keys() - {"output.bias", "pooler.weight", "pooler.bias", "embedding.weight", "output.weight"}
        assert same and all(begun[name].equal(there[name]) for name in same)


@pytest.fixture(scope="module")
def source(corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> DataRun:
    run = DataRun(tmp_path_factory.mktemp("source"), corpora, LEARNS)
    run.complete(2)
    assert run.rows[-1]["train/loss"] < math.log(320) - 0.2
    return run


def test_a_run_begins_with_another_one_and_a_restart_goes_on_with_its_own(
    source: DataRun, corpora: Path, tmp_path: Path
) -> None:
    other = {"seed": 9, "deepspeed": "configs/ds/zero3.json", "train.max_seq_len": 8, "init": source.run_dir}
    run = DataRun(tmp_path, corpora, LEARNS | other)
    assert run.start(2, mishap=Mishap(kill_at=1)) == ("requeue", "requeue")
    (event,) = run.events("init")
    assert (event["folder"], event["source_step"]) == (str(source.run_dir / "checkpoints/step_00000003"), 3)
    (row, *_) = run.rows
    assert row["step"] == 1 and row["data/sequences"] == 8 and row["optim/steps"] == 1
    assert row["train/loss"] < math.log(320) - 0.2
    # What the run has saved counts, though the source be gone.
    run.complete(2, init=tmp_path / "gone")
    assert len(run.events("init")) == 1 and len(run.events("resume")) == 1
    assert [row["step"] for row in run.rows] == [1, 2, 3]


def test_a_damaged_checkpoint_is_passed_over(source: DataRun, corpora: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(source.run_dir, damaged)
    weights = damaged / "checkpoints/step_00000003/mp_rank_00_model_states.pt"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    run = DataRun(tmp_path, corpora, LEARNS | {"init": damaged, "train.max_steps": 1})
    run.complete(2)
    assert [Path(event["folder"]).name for event in run.events("refused_checkpoint")] == ["step_00000003"]
    assert run.events("init")[0]["source_step"] == 2
    # One that is asked for by its step is the only one that will do.
    told = DataRun(tmp_path, corpora, {"run_dir": tmp_path / "other", "init": f"{damaged}@3"}).start(2)
    assert set(told) == {told[0]} and told[0].startswith("CheckpointError: init: no checkpoint can be loaded:")
    assert "another checksum" in told[0]


def test_a_source_is_a_run_a_folder_of_checkpoints_or_a_checkpoint(source: DataRun, tmp_path: Path) -> None:
    checkpoints = source.run_dir / "checkpoints"
    renamed = shutil.copytree(checkpoints / "step_00000002", tmp_path / "best@home")
    assert [one.step for one in find_sources(str(source.run_dir), "sizes")] == [3, 2, 1]
    assert [one.step for one in find_sources(f"{source.run_dir}@1", "sizes")] == [1]
    assert [one.step for one in find_sources(f"{checkpoints}@2", "sizes")] == [2]
    assert [one.folder for one in find_sources(str(checkpoints / "step_00000002"), "sizes")] == [
        checkpoints / "step_00000002"
    ]
    assert [(one.folder, one.step) for one in find_sources(str(renamed), "sizes")] == [(renamed, 2)]


@pytest.mark.parametrize(
    ("init", "overrides", "told"),
    [
        ("nowhere", {}, "nowhere is no folder"),
        ("{run}@12", {}, "step 12 has no checkpoint in .*; there are: step_00000003, step_00000002"),
        ("{run}@last", {}, "last is no step; give RUN or RUN@STEP"),
        ("{run}/exit", {}, "holds no intact checkpoint"),
        ("{run}", {"model.d_model": 32, "model.bias": "false"}, r"d_model: 16 there, 32 .*bias: True there, False"),
        ("{other}", {}, "tokenizer: 000000000000 there, .* here; make the corpus with --tokenizer"),
    ],
)
def test_what_does_not_fit_is_refused_in_the_plan_and_by_the_run(
    source: DataRun, corpora: Path, tmp_path: Path, init: str, overrides: dict[str, object], told: str
) -> None:
    other = tmp_path / "of another tokenizer"
    shutil.copytree(source.run_dir, other)
    identity = json.loads((other / "identity.json").read_text())
    identity["fixed"]["tokenizer"] = "0" * 64
    (other / "identity.json").write_text(json.dumps(identity))
    run = DataRun(tmp_path, corpora, overrides | {"init": init.format(run=source.run_dir, other=other)})
    with pytest.raises(ConfigError, match=f"(?s)init: .*{told}"):
        print_plan(run.config, 1)
    (refusal,) = run.start(1)
    assert refusal.startswith("ConfigError: init: ")
    assert not (run.run_dir / "metrics.jsonl").exists()


def test_the_plan_of_an_unprepared_corpus_looks_at_the_source_too(source: DataRun, tmp_path: Path) -> None:
    given = {"run_dir": str(tmp_path / "run"), "init": str(source.run_dir)}
    with pytest.raises(ConfigError, match=r"do not fit this run:\n  model\.d_model: 16 there"):
        print_plan(load_config(Path("configs/demo.yaml"), given), 1)

"""Every task in the one loop: the same losses however many ranks share the state, and bit for bit after a restart."""

from pathlib import Path

import pytest

from scaletrain.data.loader import evaluation_sequences
from scaletrain.monitors.jsonl_writer import read_metrics
from scaletrain.training.corpus import open_corpora
from scaletrain.training.datasets import evaluation_dataset
from tests.training.task_runs import KINDS, TaskRun, build_examples

STEPS = 6
TOLERANCE = 2e-5
"""Ranks add the same numbers in other orders, in fp32 and over six updates."""


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("examples")
    return {format: build_examples(folder / format, format) for format in {kind.format for kind in KINDS.values()}}


OTHERS = sorted(KINDS.keys() - {"causal_lm", "seq2seq"})


def run_of(folder: Path, name: str, corpora: dict[str, Path]) -> TaskRun:
    folder.mkdir()
    return TaskRun(folder, corpora[KINDS[name].format], KINDS[name].overrides)


def curve(run: TaskRun) -> list[dict[str, float]]:
    """What each step and each evaluation told, without times."""
    told = ("train/", "eval/", "optim/", "data/")
    rows = list(read_metrics(run.run_dir / "metrics.jsonl"))
    return [{key: row[key] for key in row if key.startswith(told)} for row in rows]


@pytest.mark.parametrize(
    "name", ["causal_lm", *(pytest.param(name, marks=pytest.mark.slow) for name in KINDS if name != "causal_lm")]
)
def test_every_task_goes_on_bit_for_bit(name: str, tmp_path: Path, corpora: dict[str, Path]) -> None:
    uncut = run_of(tmp_path / "uncut", name, corpora)
    uncut.complete(2)
    steps = [row for row in curve(uncut) if "train/loss" in row]
    judged = [row for row in curve(uncut) if "eval/loss" in row]
    assert len(steps) == STEPS and len(judged) == 2
    # Of classes and numbers six examples a step say too little.
    assert KINDS[name].format in ("classes", "numbers") or steps[-1]["train/loss"] < steps[0]["train/loss"]
    assert judged[-1].keys() >= set(KINDS[name].figures)
    cut = run_of(tmp_path / "cut", name, corpora)
    cut.complete(2, train__max_steps=3)
    cut.complete(2)
    assert [row for row in curve(cut) if "train/loss" in row] == steps
    assert [row for row in curve(cut) if "eval/loss" in row][-1] == judged[-1]


def test_conversations_are_judged_whole(tmp_path: Path, corpora: dict[str, Path]) -> None:
    """Where rows are joined, an answer at the beginning of one would be told without its question."""
    config = run_of(tmp_path / "run", "sft", corpora).config
    dataset = evaluation_dataset(config, open_corpora(config))
    assert dataset is not None and config.data.packing == "concat"
    pieces = [dataset.order.pieces(sequence) for sequence in evaluation_sequences(dataset)]
    assert len(pieces) > 5 and all(len(row) == 1 and row[0].start == 0 for row in pieces)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["causal_lm", "seq2seq", *(pytest.param(name, marks=pytest.mark.thorough) for name in OTHERS)]
)
def test_losses_do_not_depend_on_ranks_and_stages(name: str, tmp_path: Path, corpora: dict[str, Path]) -> None:
    found = {}
    for ranks, stage in ((1, 0), (1, 3), (2, 1), (2, 2), (2, 3)):
        if (KINDS[name].overrides.get("model.kind"), stage) == ("lstm", 3):
            continue  # is refused: torch's LSTM holds its weights in one piece
        run = run_of(tmp_path / f"{ranks}_{stage}", name, corpora)
        run.complete(ranks, deepspeed=f"configs/ds/zero{stage}.json", checkpoint__every_steps=0)
        found[ranks, stage] = curve(run)
    reference = found.pop((1, 0))
    for rows in found.values():
        for row, wanted in zip(rows, reference, strict=True):
            texts = {key for key in wanted if isinstance(wanted[key], str)}
            assert {key: row[key] for key in texts} == {key: wanted[key] for key in texts}
            numbers = {key: value for key, value in wanted.items() if key not in texts}
            assert {key: row[key] for key in numbers} == pytest.approx(
                numbers, rel=TOLERANCE, abs=TOLERANCE, nan_ok=True
            )

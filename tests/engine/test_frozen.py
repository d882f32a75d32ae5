"""What is not trained stays as it is, bit for bit, in every stage, and is saved and loaded with all else."""

from pathlib import Path

import pytest

from tests.distributed import run_on_ranks
from tests.engine import tuned
from tests.engine.bodies import Case
from tests.engine.tuned import Trained

CUT, END = 3, 6
LORA = {"lora": {"rank": 3, "targets": ("q", "v", "up")}}
FREEZE = {"tune": {"freeze": ("embedding", "blocks.0", "attention_norm"), "layer_decay": 0.7}}
# Sums in another order in fp32, for six steps.
STAGES_APART = 1e-5


def is_trained(name: str, kind: dict[str, object]) -> bool:
    if kind is LORA:
        return "lora_" in name
    return not name.startswith(("embedding.", "output.", "blocks.0.")) and "attention_norm" not in name


@pytest.fixture(scope="module", params=[LORA, FREEZE], ids=["lora", "freeze"])
def kind(request: pytest.FixtureRequest) -> dict[str, dict[str, object]]:
    return request.param


@pytest.fixture(scope="module")
def uncut(kind: dict[str, dict[str, object]], tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, Path]:
    """One rank in stage 0."""
    folder = tmp_path_factory.mktemp("uncut")
    return run_on_ranks(1, tuned.train, Case(stage=0, **kind), CUT, END, str(folder))[0], folder


def check(trained: Trained, kind: dict[str, dict[str, object]]) -> None:
    begin, _, end = trained.weights
    assert begin.keys() == end.keys()
    for name, weight in begin.items():
        assert end[name].equal(weight) == (not is_trained(name, kind)), name


def test_only_what_is_trained_moves(kind: dict[str, dict[str, object]], uncut: tuple[Trained, Path]) -> None:
    check(uncut[0], kind)
    assert uncut[0].losses[-1] < uncut[0].losses[0] - 0.01


@pytest.mark.slow
@pytest.mark.parametrize("way", [{"offload": "all"}, {"checkpointing": True}], ids=str)
def test_offload_and_recomputed_activations_change_nothing(
    kind: dict[str, dict[str, object]], uncut: tuple[Trained, Path], tmp_path: Path, way: dict[str, object]
) -> None:
    case = Case(stage=3, **kind, **way)
    trained = run_on_ranks(2, tuned.train, case, CUT, END, str(tmp_path))[0]
    check(trained, kind)
    assert trained.losses == pytest.approx(uncut[0].losses, abs=STAGES_APART)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world_size", "stage", "precision"),
    [
        (2, 0, "fp32"),
        pytest.param(2, 1, "fp32", marks=pytest.mark.thorough),
        pytest.param(1, 2, "fp32", marks=pytest.mark.thorough),
        (2, 3, "fp32"),
        pytest.param(2, 2, "bf16", marks=pytest.mark.thorough),
        pytest.param(2, 3, "bf16", marks=pytest.mark.thorough),
    ],
)
def test_stages_agree_and_any_goes_on_from_any(
    kind: dict[str, dict[str, object]],
    uncut: tuple[Trained, Path],
    tmp_path: Path,
    world_size: int,
    stage: int,
    precision: str,
) -> None:
    reference, folder = uncut
    case = Case(stage=stage, precision=precision, **kind)
    tolerance = STAGES_APART if precision == "fp32" else 5e-3
    whole = run_on_ranks(world_size, tuned.train, case, CUT, END, str(tmp_path / "whole"))[0]
    check(whole, kind)
    if (stage, precision) != (3, "bf16"):  # where DeepSpeed draws other initial weights, in bf16 already
        assert whole.losses == pytest.approx(reference.losses, abs=tolerance)
    # On the same topology bit for bit.
    again = run_on_ranks(world_size, tuned.go_on, case, CUT, END, str(tmp_path / "whole"), str(tmp_path / "a"))[0]
    assert again.losses == whole.losses[CUT:]
    for loaded, before in zip(again.weights, whole.weights[1:], strict=True):
        assert all(loaded[name].equal(weight) for name, weight in before.items())
    # From another one, and to another one.
    moved = run_on_ranks(world_size, tuned.go_on, case, CUT, END, str(folder), str(tmp_path / "b"))[0]
    assert moved.losses == pytest.approx(reference.losses[CUT:], abs=tolerance)
    if precision == "fp32":
        assert all(moved.weights[0][name].equal(weight) for name, weight in reference.weights[1].items())
    back = Case(stage=1, **kind)
    returned = run_on_ranks(1, tuned.go_on, back, CUT, END, str(tmp_path / "whole"), str(tmp_path / "c"))[0]
    assert returned.losses == pytest.approx(whole.losses[CUT:], abs=tolerance)

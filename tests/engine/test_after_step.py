"""L1 and the moving average act on what each rank owns, alike in every stage, and go with the checkpoints."""

from pathlib import Path

import pytest
import torch

from tests.distributed import run_on_ranks
from tests.engine import tuned
from tests.engine.bodies import Case
from tests.engine.tuned import Trained

CUT, END = 4, 8
OPTIM = {"l1": 0.3, "ema_decay": 0.8}
PLACES = [
    (2, 0, "fp32"),
    (2, 3, "fp32"),
    (2, 1, "bf16"),
    pytest.param(2, 1, "fp32", marks=pytest.mark.thorough),
    pytest.param(1, 2, "fp32", marks=pytest.mark.thorough),
    pytest.param(2, 3, "bf16", marks=pytest.mark.thorough),
]


@pytest.fixture(scope="module")
def uncut(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, Path]:
    """One rank in stage 0."""
    folder = tmp_path_factory.mktemp("uncut")
    return run_on_ranks(1, tuned.train, Case(optim=OPTIM), CUT, END, str(folder))[0], folder


@pytest.mark.slow
@pytest.mark.parametrize(("world_size", "stage", "precision"), PLACES)
def test_stages_agree_and_any_goes_on_from_any(
    uncut: tuple[Trained, Path], tmp_path: Path, world_size: int, stage: int, precision: str
) -> None:
    reference, folder = uncut
    case = Case(stage=stage, precision=precision, optim=OPTIM)
    tolerance = 1e-5 if precision == "fp32" else 1e-2
    whole = run_on_ranks(world_size, tuned.train, case, CUT, END, str(tmp_path / "whole"))[0]
    if (stage, precision) != (3, "bf16"):  # where DeepSpeed draws other initial weights, in bf16 already
        assert whole.losses == pytest.approx(reference.losses, abs=tolerance)
    zeros = whole.weights[-1]["blocks.0.attention.q.weight"] == 0
    assert 0.02 < float(zeros.float().mean()) < 0.9
    # What is evaluated is the average, whose loss is another; and it leaves no trace.
    assert abs(whole.evaluated - whole.losses[-1]) > 1e-4
    again = run_on_ranks(world_size, tuned.go_on, case, CUT, END, str(tmp_path / "whole"), str(tmp_path / "a"))[0]
    assert again.losses == whole.losses[CUT:] and again.evaluated == whole.evaluated
    for name, average in whole.averages.items():
        assert again.averages[name].equal(average)
    moved = run_on_ranks(world_size, tuned.go_on, case, CUT, END, str(folder), str(tmp_path / "b"))[0]
    assert moved.losses == pytest.approx(reference.losses[CUT:], abs=tolerance)
    assert moved.evaluated == pytest.approx(reference.evaluated, abs=tolerance)
    if precision == "fp32":
        for name, average in reference.averages.items():
            torch.testing.assert_close(moved.averages[name], average, atol=2e-4, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("world_size", "stage", "precision"), PLACES)
def test_the_forward_pass_sees_exact_zeros_and_evaluation_the_average(
    tmp_path: Path, world_size: int, stage: int, precision: str
) -> None:
    case = Case(stage=stage, precision=precision, optim=OPTIM)
    for seen in run_on_ranks(world_size, tuned.look, case, str(tmp_path)):
        for name, weight in seen.masters.items():
            assert seen.before[name].equal(weight.to(seen.before[name].dtype)), name
            assert seen.during[name].equal(seen.averages[name].to(seen.during[name].dtype)), name
            assert seen.after[name].equal(seen.before[name]), name
        zeros = seen.masters["blocks.0.attention.q.weight"] == 0
        assert zeros.any() and (seen.before["blocks.0.attention.q.weight"] == 0).equal(zeros)


def test_a_run_that_begins_to_average_begins_with_what_it_is(tmp_path: Path) -> None:
    run_on_ranks(2, tuned.train, Case(stage=1), CUT, END, str(tmp_path / "plain"))
    case = Case(stage=1, optim={"ema_decay": 0.5})
    begun = run_on_ranks(2, tuned.go_on, case, CUT, CUT + 1, str(tmp_path / "plain"), str(tmp_path / "a"))[0]
    for name, average in begun.averages.items():
        expected = torch.lerp(begun.weights[0][name], begun.weights[1][name], 0.5)
        torch.testing.assert_close(average, expected, atol=1e-7, rtol=1e-6)

"""What is not finite once is computed again, what stays so is left out, and what differs between ranks is found."""

import pytest

from tests.distributed import run_on_ranks
from tests.engine import faults
from tests.engine.bodies import Case


@pytest.mark.parametrize(
    ("stage", "precision", "offload"),
    [
        (0, "fp32", ""),
        pytest.param(1, "fp32", "", marks=pytest.mark.thorough),
        pytest.param(2, "bf16", "optimizer", marks=pytest.mark.thorough),
        pytest.param(3, "bf16", "", marks=pytest.mark.thorough),
        pytest.param(3, "fp32", "all", marks=pytest.mark.thorough),
    ],
)
def test_a_fault_that_passes_leaves_no_trace_and_one_that_stays_is_left_out(
    stage: int, precision: str, offload: str
) -> None:
    case = Case(stage=stage, precision=precision, offload=offload, micro=1)
    per_rank = run_on_ranks(2, faults.compare_faulty_runs, case)
    for found in per_rank:
        # The local rank of a test's rank is its rank.
        assert found["gradient"] == {"faults": [(1, 1, "gradient")], "recomputed": [False, True, False], "equal": True}
        assert found["loss"] == {"faults": [(1, 1, "loss")], "recomputed": [False, True, False], "equal": True}
        assert found["reduction"] == {"faults": [], "recomputed": [False, True, False], "equal": True}
        for kind in ("gradient stays", "loss stays"):
            assert found[kind] == {"applied": [True, False, True], "kept": True, "equal": True, "ranks": [1]}


@pytest.mark.fp16
@pytest.mark.parametrize("stage", [0, 1])
def test_what_fp16_leaves_out_for_its_scale_is_no_fault(stage: int) -> None:
    results = run_on_ranks(2, faults.overflow, Case(stage=stage, precision="fp16", micro=4))[0]
    assert not any(result.recomputed for result in results)
    left_out = [not result.applied for result in results]
    assert left_out == [result.overflow for result in results]
    assert not all(left_out)


@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (1, "bf16"), (2, "fp32"), (3, "bf16")])
def test_a_flipped_bit_names_the_rank(stage: int, precision: str) -> None:
    case = Case(stage=stage, precision=precision)
    per_rank = run_on_ranks(3, faults.flip_and_compare, case, [1])
    for found in per_rank:
        assert found.pop("clean") == ()
        for what, differences in found.items():
            assert [(one.what, one.ranks, one.told_apart) for one in differences] == [(what, (1,), True)]
    assert set(per_rank[0]) == {"state", "weights"} | ({"moments"} if stage == 0 else set())


def test_of_two_ranks_nobody_can_tell_which_is_wrong() -> None:
    found = run_on_ranks(2, faults.flip_and_compare, Case(stage=1), [0])
    assert found[0] == found[1]
    (difference,) = found[0]["weights"]
    assert (difference.what, difference.ranks, difference.told_apart) == ("weights", (0, 1), False)

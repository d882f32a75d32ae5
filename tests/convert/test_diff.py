"""Comparison of two models' tensors, on real .safetensors folders and on every kind of number."""

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

import scaletrain.convert.diff as module
from scaletrain.convert.diff import TensorDifference, diff, lines
from scaletrain.convert.safetensors_files import SafetensorsFolder
from scaletrain.convert.tensors import TensorInfo
from scaletrain.errors import ConfigError

NAN, INF = math.nan, math.inf


class InMemory:
    """Tensors that are there already."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self.infos = {name: TensorInfo(tuple(t.shape), t.dtype) for name, t in tensors.items()}

    def read(self, name: str, start: int, numel: int) -> Tensor:
        return self._tensors[name].flatten()[start : start + numel].clone()

    def release(self) -> None:
        pass


def folder(path: Path, tensors: Mapping[str, Tensor]) -> SafetensorsFolder:
    path.mkdir()
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path / "model.safetensors")
    return SafetensorsFolder(path)


def only(a: Tensor, b: Tensor, tolerance: float = 0.0) -> TensorDifference:
    (found,) = diff(InMemory({"w": a}), InMemory({"w": b}), tolerance)
    return found


def test_each_name_is_told_with_what_is_wrong(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    same, near = torch.randn(7, 3, generator=generator), torch.randn(4, 5, generator=generator)
    changed = near.clone()
    changed[1, 2] += 0.25
    a = folder(tmp_path / "a", {"same": same, "near": near, "left": same, "shape": same})
    b = folder(tmp_path / "b", {"same": same, "near": changed, "right": same, "shape": same.T.contiguous()})
    found = {difference.name: difference for difference in diff(a, b)}
    assert found["same"].bits_equal and found["same"].agrees and found["same"].largest_absolute == 0
    assert found["left"].only_in == "a" and found["left"].shapes == ((7, 3), None) and not found["left"].agrees
    assert found["right"].only_in == "b" and found["right"].dtypes == (None, "fp32")
    assert found["shape"].shapes == ((7, 3), (3, 7)) and found["shape"].largest_absolute is None
    assert found["near"].largest_absolute == pytest.approx(0.25, rel=1e-6)
    largest = float(torch.stack([near, changed]).abs().max())
    assert found["near"].largest_relative == pytest.approx(0.25 / largest, rel=1e-6)
    assert found["near"].differing_share == 1 / 20 and not found["near"].bits_equal


# Equal in value, and by how much they differ, pair by pair.
PAIRS = [
    ([1.0, 2.0], [1.0, 2.0], True, 0.0, 0.0),
    ([0.0, 1.0], [-0.0, 1.0], False, 0.0, 0.0),
    ([NAN, 1.0], [NAN, 1.0], True, 0.0, 0.0),
    ([NAN, 1.0], [2.0, 1.0], False, INF, 0.5),
    ([2.0, 1.0], [NAN, 1.0], False, INF, 0.5),
    ([INF, 1.0], [INF, 1.0], True, 0.0, 0.0),
    ([INF, 1.0], [-INF, 1.0], False, INF, 0.5),
    ([INF, 1.0], [INF, 4.0], False, 3.0, 0.5),
    ([-INF, 1.0], [2.0, 1.0], False, INF, 0.5),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("left", "right", "bits_equal", "largest", "share"), PAIRS)
def test_special_values(
    left: list[float], right: list[float], bits_equal: bool, largest: float, share: float, dtype: torch.dtype
) -> None:
    found = only(torch.tensor(left, dtype=dtype), torch.tensor(right, dtype=dtype))
    assert (found.bits_equal, found.largest_absolute, found.differing_share) == (bits_equal, largest, share)


def test_nans_with_other_bits_differ() -> None:
    one = torch.tensor([0x7FC00000], dtype=torch.int32).view(torch.float32)
    other = torch.tensor([0x7FC00001], dtype=torch.int32).view(torch.float32)
    assert only(one, one).agrees
    found = only(one, other)
    assert found.largest_absolute == INF and found.differing_share == 1 and not found.agrees


def test_dtypes_are_compared_by_value() -> None:
    exact, rounded = torch.tensor([1.0, -2.5, 0.0]), torch.tensor([1.0, 0.1])
    found = only(exact, exact.bfloat16())
    assert found.agrees and not found.bits_equal and found.dtypes == ("fp32", "bf16")
    found = only(rounded, rounded.bfloat16())
    expected = abs(float(rounded[1].double() - rounded[1].bfloat16().double()))
    assert found.largest_absolute == expected and found.differing_share == 0.5
    assert not only(torch.tensor([NAN]), torch.tensor([NAN]).bfloat16()).agrees
    assert only(torch.tensor([1, 0], dtype=torch.bool), torch.tensor([1, 0], dtype=torch.bool)).bits_equal


def test_integers_beyond_the_precision_of_fp64_are_told_apart() -> None:
    found = only(torch.tensor([2**60, 5]), torch.tensor([2**60 + 1, 5]))
    assert found.differing_share == 0.5 and found.largest_absolute == 1


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_8_bit_numbers(dtype: torch.dtype) -> None:
    one, other = torch.tensor([1.0, 2.0]).to(dtype), torch.tensor([1.0, 3.0]).to(dtype)
    assert only(one, one).bits_equal
    assert only(one, other).largest_absolute == 1 and only(one, other).largest_relative == pytest.approx(1 / 3)


def test_the_tolerance_is_a_share_of_the_largest_value() -> None:
    one, other = torch.tensor([100.0, 1.0, 5.0]), torch.tensor([99.5, 1.25, 5.0])
    assert only(one, other).differing_share == pytest.approx(2 / 3)
    assert only(one, other, 0.0025).differing_share == pytest.approx(1 / 3)
    assert not only(one, other, 0.0049).agrees
    within = only(one, other, 0.0051)
    assert within.agrees and within.largest_absolute == 0.5 and not within.bits_equal
    assert only(one / 1000, other / 1000, 0.0051).agrees and not only(one / 1000, other / 1000, 0.0049).agrees
    # No tolerance makes NaN equal to a number, or hides a tensor that is not there.
    assert not only(torch.tensor([1.0, NAN]), torch.tensor([1.0, 1.0]), 1e300).agrees
    assert not diff(InMemory({"w": one}), InMemory({}), 1e300)[0].agrees


def test_the_largest_value_may_stand_in_a_later_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SLICE_NUMEL", 1)
    assert only(torch.tensor([1.0, 100.0]), torch.tensor([1.5, 100.0]), 0.01).agrees
    assert only(torch.tensor([1.0, 100.0]), torch.tensor([3.0, 100.0]), 0.01).differing_share == 0.5


@pytest.mark.parametrize("tolerance", [NAN, INF, -1.0])
def test_a_tolerance_that_would_pass_everything_is_refused(tolerance: float) -> None:
    with pytest.raises(ConfigError, match=r"--tolerance .* is out of range"):
        only(torch.ones(2), torch.zeros(2), tolerance)


def test_an_empty_tensor_and_a_number_alone_are_equal_to_themselves() -> None:
    assert only(torch.zeros(0, 3), torch.zeros(0, 3)).bits_equal
    assert not only(torch.zeros(0, 3), torch.zeros(0, 3).bfloat16()).bits_equal
    assert only(torch.tensor(2.0), torch.tensor(2.0)).bits_equal
    assert only(torch.tensor(0.0), torch.tensor(2.0)).largest_relative == 1


@given(
    st.lists(st.floats(width=32), min_size=1, max_size=40),
    st.lists(st.floats(width=32), min_size=40, max_size=40),
    st.integers(0, 2**40),
    st.integers(1, 11),
)
def test_slices_give_what_the_whole_gives(left: list[float], drawn: list[float], picks: int, numel: int) -> None:
    # The right side is the left one, with some elements drawn anew.
    right = [other if picks >> place & 1 else one for place, (one, other) in enumerate(zip(left, drawn, strict=False))]
    a, b = torch.tensor(left), torch.tensor(right)
    whole = only(a, b)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_SLICE_NUMEL", numel)
        assert only(a, b) == whole
    same = (a == b) | (a.view(torch.int32) == b.view(torch.int32))
    assert whole.differing_share == pytest.approx(float((~same).double().mean()))
    assert whole.bits_equal == a.view(torch.int32).equal(b.view(torch.int32))


def test_only_slices_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SLICE_NUMEL", 10)
    sizes = []

    class Watched(InMemory):
        def read(self, name: str, start: int, numel: int) -> Tensor:
            sizes.append(numel)
            return super().read(name, start, numel)

    tensors = {"w": torch.randn(7, 5)}
    assert diff(Watched(tensors), Watched(tensors))[0].bits_equal
    assert sizes == [10, 10, 10, 10, 10, 10, 5, 5]


def test_the_worst_is_told_first() -> None:
    a = {"exact": torch.ones(3), "small": torch.ones(4), "large": torch.ones(4), "gone": torch.ones(2, 3)}
    b = {"exact": torch.ones(3), "small": torch.tensor([1.0, 1.0, 1.0, 1.001]), "large": torch.tensor([1.0, 3, 3, 1])}
    a |= {"spoilt": torch.ones(2), "turned": torch.ones(2, 3), "cast": torch.ones(2)}
    b |= {"spoilt": torch.tensor([1.0, NAN]), "turned": torch.ones(3, 2), "cast": torch.ones(2).bfloat16()}
    told = lines(diff(InMemory(a), InMemory(b)), ("old", "new"))
    assert [line.split()[0] for line in told[:5]] == ["gone", "turned", "spoilt", "large", "small"]
    assert told[0].endswith("  only in old, [2, 3]")
    assert told[1].endswith("  [2, 3] in old, [3, 2] in new")
    assert "largest difference inf" in told[2]
    assert told[3].endswith("largest difference 2, 0.667 of the largest value; 50 % of the elements differ")
    assert told[5:] == [
        "1 tensor is within the tolerance, largest difference 0, stored as fp32 and bf16",
        "1 tensor is bit-identical",
    ]
    short = lines(diff(InMemory(a), InMemory(b)), most=2)
    assert [line.split()[0] for line in short[:2]] == ["gone", "turned"]
    assert short[2] == "... and 3 more tensors that differ"

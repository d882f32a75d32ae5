"""Two models' tensors against each other, read in slices: which differ, and by how much."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from scaletrain.convert.tensors import TensorInfo, Tensors, dtype_name
from scaletrain.errors import ConfigError

# Elements compared at once. Two slices in fp64 with what is computed from them stay below 100 MiB.
_SLICE_NUMEL = 1 << 20
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class TensorDifference:
    """What two models hold under one name.

    Attributes:
        name: The tensor's name.
        only_in: The side that alone has it; None where both have it.
        shapes: Its shape on each side; None where it is missing.
        dtypes: Its dtype on each side, as ``bf16``; None where it is missing.
        largest_absolute: Largest absolute difference of two elements; infinite where one of them alone is NaN or
            infinite. None where the shapes differ or a side lacks the tensor, as for the following.
        largest_relative: That, divided by the largest finite absolute value of either side.
        differing_share: Share of the elements that differ by more than the tolerance.
        bits_equal: Whether shape, dtype and every bit are equal.
    """

    name: str
    only_in: Literal["a", "b"] | None
    shapes: tuple[tuple[int, ...] | None, tuple[int, ...] | None]
    dtypes: tuple[str | None, str | None]
    largest_absolute: float | None = None
    largest_relative: float | None = None
    differing_share: float | None = None
    bits_equal: bool = False

    @property
    def agrees(self) -> bool:
        """Whether both sides have the tensor, in one shape, and no element differs by more than the tolerance."""
        return self.differing_share == 0


def diff(a: Tensors, b: Tensors, tolerance: float = 0.0) -> list[TensorDifference]:
    """Compares all tensors of two models; only a slice of each is held in memory.

    Args:
        a: One model's tensors.
        b: The other's.
        tolerance: Difference up to which two elements count as equal, as a share of the largest finite absolute value
            of the tensor on either side.

    Returns:
        One entry for each name on either side, in the order of ``a``, then of what ``b`` alone has.

    Raises:
        ConfigError: The tolerance is negative, or no finite number.
    """
    if not 0 <= tolerance < math.inf:
        # Everything would be equal to NaN and infinity too.
        raise ConfigError(f"--tolerance {tolerance} is out of range; give a share such as 0.01, or 0 for none")
    lefts, rights = a.infos, b.infos
    names = [*lefts, *(name for name in rights if name not in lefts)]
    found = []
    for name in names:
        left, right = lefts.get(name), rights.get(name)
        numerical = None
        if left is not None and right is not None and left.shape == right.shape:
            numerical = _compare(name, a, b, left.numel, tolerance)
        found.append(_difference(name, left, right, numerical))
    return found


def _compare(name: str, a: Tensors, b: Tensors, numel: int, tolerance: float) -> "_Comparison":
    found = _read(name, a, b, numel, 0.0)
    if tolerance == 0 or found.n_differing == 0:
        return found
    bound = tolerance * found.largest_value
    # What the tolerance is a share of is known only now: elements are counted in a second reading, where some may be
    # beyond it.
    is_beyond = found.largest_absolute > bound
    found.n_differing = _read(name, a, b, numel, bound).n_differing if is_beyond else 0
    return found


def _read(name: str, a: Tensors, b: Tensors, numel: int, bound: float) -> "_Comparison":
    found = _Comparison(bound)
    for start in range(0, numel, _SLICE_NUMEL):
        length = min(_SLICE_NUMEL, numel - start)
        found.add(a.read(name, start, length), b.read(name, start, length))
        a.release()
        b.release()
    return found


def _difference(
    name: str, left: TensorInfo | None, right: TensorInfo | None, found: "_Comparison | None"
) -> TensorDifference:
    shapes = (None if left is None else left.shape, None if right is None else right.shape)
    dtypes = (None if left is None else dtype_name(left.dtype), None if right is None else dtype_name(right.dtype))
    if left is None or right is None:
        return TensorDifference(name, "b" if left is None else "a", shapes, dtypes)
    if found is None:
        return TensorDifference(name, None, shapes, dtypes)
    return TensorDifference(
        name,
        None,
        shapes,
        dtypes,
        found.largest_absolute,
        found.largest_relative,
        found.n_differing / max(1, left.numel),
        found.bits_equal and left.dtype == right.dtype,
    )


class _Comparison:
    """Sums over the slices of one tensor; counts what differs by more than an absolute bound."""

    def __init__(self, bound: float) -> None:
        self._bound = bound
        self.largest_value = 0.0
        self.largest_absolute = 0.0
        self.n_differing = 0
        self.bits_equal = True

    @property
    def largest_relative(self) -> float:
        if self.largest_absolute == 0:
            return 0.0
        return self.largest_absolute / self.largest_value if self.largest_value else math.inf

    def add(self, left: Tensor, right: Tensor) -> None:
        """Takes a slice of each side: 1-d tensors of equal length."""
        same_bits = left.dtype == right.dtype and torch.equal(_bits(left), _bits(right))
        for values in (left,) if same_bits else (left, right):
            self.largest_value = max(self.largest_value, _largest_finite(values))
        if same_bits:
            return
        self.bits_equal = False
        distance = _distance(left, right)
        self.largest_absolute = max(self.largest_absolute, float(distance.max()))
        self.n_differing += int((distance > self._bound).sum())


def _distance(left: Tensor, right: Tensor) -> Tensor:
    """Absolute difference of each pair in fp64; 0 for equal bits, infinite where NaN meets anything else."""
    left_fp64, right_fp64 = left.double(), right.double()
    distance = (left_fp64 - right_fp64).abs().nan_to_num(nan=math.inf, posinf=math.inf)
    equal = left_fp64 == right_fp64  # infinities too, whose difference is NaN
    if left.dtype == right.dtype:
        same_bits = _bits(left) == _bits(right)
        # Large integers may meet in fp64 though they differ.
        equal = equal | same_bits if left.is_floating_point() else same_bits
        if not left.is_floating_point():
            distance = distance.clamp(min=1)
    return distance.masked_fill(equal, 0)


def _largest_finite(values: Tensor) -> float:
    if not values.is_floating_point():
        return float(values.double().abs().max())
    # What has no arithmetic of its own, as 8-bit numbers, is exact in fp32.
    wide = values if values.dtype in (torch.float32, torch.float64) else values.float()
    return float(wide.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).abs().max())


def _bits(values: Tensor) -> Tensor:
    return values.view(_BITS[values.element_size()])


def lines(differences: Sequence[TensorDifference], names: tuple[str, str] = ("a", "b"), most: int = 40) -> list[str]:
    """Tells a comparison to people.

    Args:
        differences: What ``diff`` found.
        names: How the two sides are called.
        most: Tensors that are told one by one.

    Returns:
        The worst first: what one side lacks, other shapes, then by the largest relative difference; at the end how
        many tensors are equal.
    """
    wrong = sorted((difference for difference in differences if not difference.agrees), key=_badness, reverse=True)
    width = max((len(difference.name) for difference in wrong[:most]), default=0)
    told = [f"{difference.name:<{width}}  {_described(difference, names)}" for difference in wrong[:most]]
    if len(wrong) > most:
        told.append(f"... and {len(wrong) - most} more tensors that differ")
    identical = sum(difference.bits_equal for difference in differences)
    close = [difference for difference in differences if difference.agrees and not difference.bits_equal]
    if close:
        largest = max(difference.largest_absolute or 0.0 for difference in close)
        dtypes = sorted({f"{one} and {two}" for one, two in (d.dtypes for d in close) if one != two})
        kinds = f", stored as {', '.join(dtypes)}" if dtypes else ""
        told.append(f"{_counted(len(close))} within the tolerance, largest difference {largest:.3g}{kinds}")
    return [*told, f"{_counted(identical)} bit-identical"]


def _badness(difference: TensorDifference) -> tuple[bool, bool, float]:
    is_missing = difference.only_in is not None
    return is_missing, difference.largest_relative is None, difference.largest_relative or 0.0


def _described(difference: TensorDifference, names: tuple[str, str]) -> str:
    left, right = difference.shapes
    if difference.only_in is not None:
        shape = left if difference.only_in == "a" else right
        return f"only in {names[difference.only_in == 'b']}, {list(shape or ())}"
    if difference.largest_absolute is None:
        return f"{list(left or ())} in {names[0]}, {list(right or ())} in {names[1]}"
    share = 100 * (difference.differing_share or 0.0)
    kinds = "" if difference.dtypes[0] == difference.dtypes[1] else f", {' and '.join(map(str, difference.dtypes))}"
    return (
        f"largest difference {difference.largest_absolute:.3g}, {difference.largest_relative:.3g} of the largest "
        f"value; {share:.3g} % of the elements differ{kinds}"
    )


def _counted(number: int) -> str:
    return f"{number} tensor is" if number == 1 else f"{number} tensors are"

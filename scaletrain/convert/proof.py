"""What a comparison of two models found: the figures, the verdict, and a text for people."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_SMALLEST = torch.finfo(torch.float32).tiny  # divides where both sides are zero, and agree therefore


@dataclass(frozen=True)
class StageDifference:
    """How far two models are apart at one place.

    Attributes:
        name: ``embedding``, ``layer 0`` and so on, or the name of an output, such as ``logits``.
        largest: Largest absolute difference of two numbers.
        relative: For hidden states the largest length of a position's difference, relative to the length of its state;
            for an output ``largest`` relative to the largest absolute number. NaN where either side is not finite.
    """

    name: str
    largest: float
    relative: float

    def __str__(self) -> str:
        if math.isnan(self.relative):
            return f"{self.name}: not finite"
        return f"{self.name}: largest difference {self.largest:.1e}, relative {self.relative:.1e}"


@dataclass(frozen=True)
class Comparison:
    """How far two models are apart, from the embedding to the output.

    Attributes:
        states: The hidden states' differences, in the order of the computation.
        outputs: The outputs' differences, that of the logits first where there are logits.
        n_positions: Positions whose first output was compared.
        agreeing_share: Share of them whose arg max is the same on both sides.
    """

    states: tuple[StageDifference, ...]
    outputs: tuple[StageDifference, ...]
    n_positions: int
    agreeing_share: float

    @property
    def largest(self) -> float:
        """Largest absolute difference of two logits, or of two numbers of whatever else is the first output."""
        return self.outputs[0].largest

    @property
    def relative(self) -> float:
        """That difference relative to the largest absolute logit."""
        return self.outputs[0].relative

    def first_above(self, bound: float) -> StageDifference | None:
        """Finds the first place where the relative difference is above a bound, or is not a number."""
        return next((stage for stage in self.states + self.outputs if not stage.relative <= bound), None)


@dataclass(frozen=True)
class Proof:
    """What the comparison of a model with its converted form has shown.

    Attributes:
        text: Which tokens the models read, in words.
        dtype: Name of the dtype that both sides' weights were rounded to.
        comparison: The differences with weights that are rounded alike, so that only kernels may differ.
        bound: Largest relative difference that is allowed there, at each stage.
        rounding: The differences with the weights as each side stores them; None where rounding changes neither.
        rounding_bound: Largest relative difference of the outputs that is allowed there.
        tables: Embeddings that were compared row by row, whether or not the text has their token.
        table_faults: Rows of embeddings that differ, in words.
        not_finite: Stored tensors with a number that is not finite.
        unread: Stored tensors that no comparison needed, so that nothing is known of them.
    """

    text: str
    dtype: str
    comparison: Comparison
    bound: float
    rounding: Comparison | None
    rounding_bound: float
    tables: tuple[str, ...]
    table_faults: tuple[str, ...]
    not_finite: tuple[str, ...]
    unread: tuple[str, ...]

    @property
    def faults(self) -> tuple[str, ...]:
        """Why the two are not the same model, in words; empty if they are."""
        return tuple(self._find_faults())

    def lines(self) -> list[str]:
        """Says it in a few aligned lines."""
        names = " and ".join(stage.name for stage in self.comparison.outputs)
        furthest = max(self.comparison.states, key=lambda stage: _rank(stage.relative))
        found = [
            ("compared", f"{names}, {self.comparison.n_positions} positions of {self.text}"),
            ("same weights", f"{_describe(self.comparison)} (bound {self.bound:.0e})"),
            ("hidden states", f"the furthest apart: {furthest}"),
        ]
        if self.rounding is not None:
            found.append((f"{self.dtype} rounding", f"{_describe(self.rounding)} (bound {self.rounding_bound:.0e})"))
        if self.tables:
            found.append(("row by row", ", ".join(self.tables)))
        if self.unread:
            found.append(("not compared", _enumerate(self.unread)))
        found += [("fault", fault) for fault in self.faults]
        width = max(len(title) for title, _ in found) + 2
        return [f"{title:<{width}}{text}" for title, text in found]

    def _find_faults(self) -> Iterator[str]:
        if self.not_finite:
            yield f"values that are not finite in {_enumerate(self.not_finite)}"
        yield from self.table_faults
        first = self.comparison.first_above(self.bound)
        if first is not None:
            yield f"{first}, above {self.bound:.0e}; it is the first that deviates ({_describe(self.comparison)})"
        elif self.rounding is not None and not self.rounding.relative <= self.rounding_bound:
            yield (
                f"rounding to {self.dtype} alone changes the {self.rounding.outputs[0].name} by more than "
                f"{self.rounding_bound:.0e}, so that these weights need fp32: {_describe(self.rounding)}"
            )


def difference_of_states(name: str, ours_BTD: Tensor, theirs_BTD: Tensor) -> StageDifference:
    """Compares hidden states, position by position.

    Some positions of trained models have states a thousand times as long as others; relative to those, a fault in the
    others would be lost.

    Args:
        name: Name of the place.
        ours_BTD: States of one model, fp32.
        theirs_BTD: States of the other one.

    Returns:
        The difference.
    """
    apart_BTD = ours_BTD - theirs_BTD
    relative_BT = apart_BTD.norm(dim=-1) / theirs_BTD.norm(dim=-1).clamp_min(_SMALLEST)
    return StageDifference(name, float(apart_BTD.abs().max()), float(relative_BT.max()))


def difference_of_outputs(name: str, ours_BTV: Tensor, theirs_BTV: Tensor) -> StageDifference:
    """Compares outputs, row by row, so that nothing of their size is made beside them.

    Args:
        name: Name of the output.
        ours_BTV: Logits of one model, fp32.
        theirs_BTV: Logits of the other one.

    Returns:
        The difference.
    """
    rows = list(zip(ours_BTV, theirs_BTV, strict=True))
    largest = float(torch.stack([(ours_TV - theirs_TV).abs().max() for ours_TV, theirs_TV in rows]).max())
    size = float(torch.stack([theirs_TV.abs().max() for _, theirs_TV in rows]).max())
    is_finite = math.isfinite(largest) and math.isfinite(size)
    return StageDifference(name, largest, largest / max(size, _SMALLEST) if is_finite else math.nan)


def agreeing_share(ours_BTV: Tensor, theirs_BTV: Tensor) -> float:
    """Share of positions at which two models would choose the same token."""
    agree = [
        ours_TV.argmax(-1) == theirs_TV.argmax(-1) for ours_TV, theirs_TV in zip(ours_BTV, theirs_BTV, strict=True)
    ]
    return float(torch.stack(agree).float().mean())


def _describe(comparison: Comparison) -> str:
    return (
        f"{comparison.outputs[0].name}: largest difference {comparison.largest:.1e}, {comparison.relative:.1e} of the "
        f"largest; arg max agrees in {comparison.agreeing_share:.2%} of {comparison.n_positions} positions"
    )


def _rank(relative: float) -> float:
    return math.inf if math.isnan(relative) else relative


def _enumerate(names: tuple[str, ...], shown: int = 4) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more

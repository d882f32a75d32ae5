"""Cross-entropy as sums over targets, in fp32, in little memory.

Shapes: B sequences, T places of a sequence, R places of all sequences (B * T), V vocabulary.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

IGNORED = -100  # target that counts for nothing

# Numbers of one fp32 working copy: 64 MiB, whatever the size of the logits.
_CHUNK_NUMBERS = 2**24


class LossTerms(NamedTuple):
    """Sums over the targets of a batch. Whoever knows the number of targets in the global batch divides.

    Attributes:
        loss_sum: what is differentiated: cross-entropy with label smoothing and z-loss; fp32, in nats.
        nll_B: plain cross-entropy of each sequence, without gradient; fp32, in nats.
        targets_B: targets of each sequence that count; int64.
        outputs_BC: in evaluation, what a task wants to know of each sequence to judge the whole set by; fp32.
    """

    loss_sum: Tensor
    nll_B: Tensor
    targets_B: Tensor
    outputs_BC: Tensor | None = None


def cross_entropy_terms(
    logits_BTV: Tensor, targets_BT: Tensor, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> LossTerms:
    """Sum the cross-entropy over all targets that are not -100.

    With ``lse`` for the logarithm of the sum of exponentials of the logits x of a place with target t, that place adds
    ``(1 - s) (lse - x_t) + s (lse - mean(x)) + z lse^2`` to ``loss_sum``, and ``lse - x_t`` to ``nll_B``.

    Beside the logits and their gradient (both in the logits' own type) there is one fp32 working copy of a bounded
    number of places, where plain autograd would hold several of all places.

    Source: Szegedy et al. 2016, "Rethinking the Inception Architecture", section 7 (smoothing, as in
    ``torch.nn.functional.cross_entropy``); Chowdhery et al. 2022, "PaLM", section 5 (z-loss).

    Args:
        logits_BTV: logits in any floating-point type; (B, V) where a sequence has one place.
        targets_BT: int64 targets in [0, V), or -100 where there is none; (B,) where a sequence has one place.
        label_smoothing: share s of the target's probability that is spread over the vocabulary.
        z_loss: weight z of the squared log-normaliser (PaLM: 1e-4).

    Returns:
        The sums; without any target they are 0 and so is the gradient.
    """
    logits_RV = logits_BTV.flatten(0, -2)
    targets_R = targets_BT.flatten()
    loss_sum, nll_R = _SummedCrossEntropy.apply(  # type: ignore[no-untyped-call]  # torch does not annotate it
        logits_RV, targets_R, label_smoothing, z_loss
    )
    counts_BT = targets_BT != IGNORED
    return LossTerms(loss_sum, _sum_of_each(nll_R.view_as(targets_BT)), _sum_of_each(counts_BT))


def _sum_of_each(values_BT: Tensor) -> Tensor:
    return values_BT.unsqueeze(-1).flatten(1).sum(1)


class _SummedCrossEntropy(torch.autograd.Function):
    """The sum that is differentiated, and the cross-entropy of each place.

    The backward pass recomputes the softmax chunk by chunk.
    """

    @staticmethod
    def forward(
        ctx: Any, logits_RV: Tensor, targets_R: Tensor, label_smoothing: float, z_loss: float
    ) -> tuple[Tensor, Tensor]:
        counts_R = targets_R != IGNORED
        safe_targets_R = targets_R.where(counts_R, 0)
        lse_R = torch.cat([chunk.float().logsumexp(-1) for chunk in _chunks(logits_RV)])
        nll_R = lse_R - logits_RV.gather(1, safe_targets_R.unsqueeze(1)).squeeze(1).float()
        loss_R = nll_R
        if label_smoothing:
            mean_R = logits_RV.mean(-1, dtype=torch.float32)
            loss_R = (1 - label_smoothing) * nll_R + label_smoothing * (lse_R - mean_R)
        if z_loss:
            loss_R = loss_R + z_loss * lse_R.square()
        # where, not a product: a place without target may hold anything, and 0 * inf is NaN.
        loss_sum, nll_R = loss_R.where(counts_R, 0.0).sum(), nll_R.where(counts_R, 0.0)
        ctx.save_for_backward(logits_RV, safe_targets_R, counts_R, lse_R)
        ctx.label_smoothing, ctx.z_loss = label_smoothing, z_loss
        ctx.mark_non_differentiable(nll_R)
        return loss_sum, nll_R

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        logits_RV, targets_R, counts_R, lse_R = ctx.saved_tensors
        scale_R = gradients[0].float()
        # d lse / d x is the softmax; lse enters once through the cross-entropy and squared through the z-loss.
        softmax_scale_R = (scale_R * (1 + 2 * ctx.z_loss * lse_R)).where(counts_R, 0.0)
        scale_R = scale_R.where(counts_R, 0.0)
        spread_R = scale_R * (ctx.label_smoothing / logits_RV.shape[1])
        target_R = scale_R * (1 - ctx.label_smoothing)
        gradient_RV = torch.empty_like(logits_RV)
        start = 0
        for chunk in _chunks(logits_RV):
            rows = slice(start, start + chunk.shape[0])
            start += chunk.shape[0]
            work = (chunk.float() - lse_R[rows, None]).exp_().mul_(softmax_scale_R[rows, None])
            if ctx.label_smoothing:
                work.sub_(spread_R[rows, None])
            work.scatter_add_(1, targets_R[rows, None], -target_R[rows, None])
            gradient_RV[rows] = work
        return gradient_RV, None, None, None


def _chunks(logits_RV: Tensor) -> tuple[Tensor, ...]:
    return torch.split(logits_RV, max(1, _CHUNK_NUMBERS // logits_RV.shape[1]))

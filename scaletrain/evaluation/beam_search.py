"""Generation by an encoder-decoder model: the likeliest text for each source, by beam search or greedily.

Shapes: B sources, S tokens of a source, T tokens of a text, K beams, D d_model, V vocabulary; (BK) both in one
dimension, the beams of a source beside each other.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from scaletrain.errors import ConfigError
from scaletrain.evaluation.generation import Mode, undisturbed

GNMT_PENALTY = 0.6
"""Exponent of the length penalty with which the first Transformers translated (Vaswani et al. 2017, section 6.1)."""


class DecoderCache(Protocol):
    """What a decoder has computed for the tokens so far."""

    def reorder(self, rows_B: Tensor) -> None:
        """Lets row i go on from what was row ``rows_B[i]``."""


class EncoderDecoder(Mode, Protocol):
    """What is asked of a model, which is a ``torch.nn.Module`` otherwise."""

    def encode(self, source_BS: Tensor, source_mask_BS: Tensor | None) -> Tensor:
        """Reads the sources; the mask is true at real tokens."""

    def decode(
        self, tokens_BT: Tensor, memory_BSD: Tensor, source_mask_BS: Tensor | None, cache: DecoderCache
    ) -> Tensor:
        """Hidden states of new tokens, behind those in the cache."""

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Logits of the tokens that follow."""

    def new_cache(self, max_len: int) -> DecoderCache:
        """An empty cache for texts of so many tokens."""


@dataclass(frozen=True)
class Search:
    """How texts are searched for.

    Attributes:
        max_new_tokens: Tokens of a text at most, the one that ends it included.
        start_id: Token that the decoder reads first.
        eos_id: Token that ends a text.
        beams: Texts that are followed at the same time, for each source; 1 takes the likeliest token always.
        length_penalty: Exponent of the penalty; 0 prefers short texts, 1 is near the mean over the tokens.
    """

    max_new_tokens: int
    start_id: int
    eos_id: int
    beams: int = 4
    length_penalty: float = GNMT_PENALTY

    def __post_init__(self) -> None:
        for name, value, is_right, rule in (
            ("max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 1, "1 or more"),
            ("beams", self.beams, self.beams >= 1, "1 (greedy) or more"),
            ("length_penalty", self.length_penalty, 0 <= self.length_penalty < math.inf, "0 (none) or more"),
        ):
            if not is_right:
                raise ConfigError(f"{name} = {value} is out of range; give {rule}")


def length_divisor(length: int, exponent: float) -> float:
    """What a text's log probability is divided by, so that long texts can win.

    Args:
        length: Tokens of the text, the one that ends it included.
        exponent: Of the penalty.

    Returns:
        1 for one token, and more for more.

    Source:
        Wu et al. 2016, "Google's Neural Machine Translation System" (arXiv 1609.08144), equation 14.
    """
    return math.pow((5.0 + length) / 6.0, exponent)


def search_texts(
    model: EncoderDecoder,
    source_BS: Tensor,
    source_mask_BS: Tensor | None,
    search: Search,
    agree: Callable[[bool], bool] | None = None,
) -> list[list[int]]:
    """Writes a text for each source.

    Under ZeRO-3 a forward pass gathers weights from all ranks, so all ranks must make as many of them: a rank whose
    texts are complete goes on for the others' sake, until ``agree`` says that all are. Each rank may have sources of
    its own, but must call this as often as the others, with the same search.

    Args:
        model: The model; dropout is off meanwhile.
        source_BS: Tokens of the sources; one at least.
        source_mask_BS: True at real tokens; None where all are.
        search: How to search.
        agree: Maps whether this rank is done to whether all are, for instance by an all-reduce; called once a token.

    Returns:
        Tokens of each text, without start and end. The same input gives the same texts.
    """
    agree = agree or bool
    with undisturbed(model):
        memory_BSD = model.encode(source_BS, source_mask_BS)
        if search.beams == 1:
            tokens_BT = _greedy(model, memory_BSD, source_mask_BS, search, agree)
        else:
            tokens_BT = _beams(model, memory_BSD, source_mask_BS, search, agree)
    return [_until(row, search.eos_id) for row in tokens_BT.tolist()]


def _until(tokens: list[int], eos_id: int) -> list[int]:
    return tokens[: tokens.index(eos_id)] if eos_id in tokens else tokens


def _greedy(
    model: EncoderDecoder,
    memory_BSD: Tensor,
    source_mask_BS: Tensor | None,
    search: Search,
    agree: Callable[[bool], bool],
) -> Tensor:
    cache = model.new_cache(search.max_new_tokens)
    B = memory_BSD.shape[0]
    last_B = torch.full((B,), search.start_id, device=memory_BSD.device)
    is_done_B = torch.zeros_like(last_B, dtype=torch.bool)
    chosen = []
    for _ in range(search.max_new_tokens):
        hidden_B1D = model.decode(last_B.unsqueeze(1), memory_BSD, source_mask_BS, cache)
        last_B = model.logits(hidden_B1D)[:, -1].argmax(-1)
        chosen.append(last_B)
        is_done_B |= last_B == search.eos_id
        if agree(bool(is_done_B.all())):
            break
    return torch.stack(chosen, dim=1)


class _Best:
    """The best text of each source that has ended, and which sources need no more search."""

    def __init__(self, B: int, search: Search, device: torch.device) -> None:
        self.search = search
        self.tokens_BT = torch.full((B, search.max_new_tokens), search.eos_id, device=device)
        self.score_B = torch.full((B,), -math.inf, device=device)
        self.ended_B = torch.zeros(B, dtype=torch.long, device=device)
        self.is_done_B = torch.zeros(B, dtype=torch.bool, device=device)

    def take(self, tokens_BKT: Tensor, scores_BK: Tensor, has_ended_BK: Tensor) -> None:
        """Compares texts that have ended just now with the best before them.

        Args:
            tokens_BKT: Texts of the same length.
            scores_BK: Their log probabilities.
            has_ended_BK: Which of them have ended.
        """
        length = tokens_BKT.shape[2]
        has_ended_BK = has_ended_BK & scores_BK.isfinite() & ~self.is_done_B.unsqueeze(1)
        normed_BK = scores_BK / length_divisor(length, self.search.length_penalty)
        score_B, beam_B = normed_BK.masked_fill(~has_ended_BK, -math.inf).max(dim=1)
        sources_N = (score_B > self.score_B).nonzero().squeeze(1)
        self.score_B[sources_N] = score_B[sources_N]
        self.tokens_BT[sources_N, :length] = tokens_BKT[sources_N, beam_B[sources_N]]
        self.tokens_BT[sources_N, length:] = self.search.eos_id
        self.ended_B += has_ended_BK.sum(dim=1)

    def settle(self, running_B: Tensor) -> None:
        """Finds the sources that are done: as many texts as beams have ended, or none that goes on can be better.

        Args:
            running_B: Highest log probability of those that go on. It only falls, and the divisor only grows.
        """
        bound_B = running_B / length_divisor(self.search.max_new_tokens, self.search.length_penalty)
        self.is_done_B |= (self.ended_B >= self.search.beams) | (self.score_B >= bound_B)


def _beams(
    model: EncoderDecoder,
    memory_BSD: Tensor,
    source_mask_BS: Tensor | None,
    search: Search,
    agree: Callable[[bool], bool],
) -> Tensor:
    K, (B, _, _), device = search.beams, memory_BSD.shape, memory_BSD.device
    memory_BSD = memory_BSD.repeat_interleave(K, dim=0)
    mask_BS = None if source_mask_BS is None else source_mask_BS.repeat_interleave(K, dim=0)
    cache, best = model.new_cache(search.max_new_tokens), _Best(B, search, device)
    first_row_B1 = torch.arange(B, device=device).unsqueeze(1) * K
    tokens_BKT = torch.empty(B, K, 0, dtype=torch.long, device=device)
    last_BK = torch.full((B, K), search.start_id, device=device)
    # All beams begin equal: only the first counts, lest each text be found as often as there are beams.
    scores_BK = torch.full((B, K), -math.inf, device=device)
    scores_BK[:, 0] = 0.0
    for length in range(1, search.max_new_tokens + 1):
        hidden = model.decode(last_BK.view(B * K, 1), memory_BSD, mask_BS, cache)
        log_probs = model.logits(hidden)[:, -1].float().log_softmax(-1)
        V = log_probs.shape[-1]
        extended = (scores_BK.view(B * K, 1) + log_probs).view(B, K * V)
        # Twice as many as beams: even if each beam could end, as many go on.
        scores_BC, place_BC = extended.topk(min(2 * K, K * V), dim=1)
        origin_BC, token_BC = place_BC // V, place_BC % V
        tokens_BCT = torch.cat([_rows(tokens_BKT, origin_BC), token_BC.unsqueeze(2)], dim=2)
        ends_BC = token_BC == search.eos_id
        # An end that is not among the best K texts would not have been followed either.
        has_ended_BK = ends_BC[:, :K] | (length == search.max_new_tokens)
        best.take(tokens_BCT[:, :K], scores_BC[:, :K], has_ended_BK)
        scores_BK, chosen_BK = scores_BC.masked_fill(ends_BC, -math.inf).topk(K, dim=1)
        best.settle(scores_BK[:, 0])
        if agree(bool(best.is_done_B.all())):
            break
        tokens_BKT = _rows(tokens_BCT, chosen_BK)
        last_BK = tokens_BKT[:, :, -1]
        cache.reorder((first_row_B1 + origin_BC.gather(1, chosen_BK)).flatten())
    return best.tokens_BT


def _rows(texts: Tensor, row_BK: Tensor) -> Tensor:
    """Texts (B, rows, T) of the given rows of each source."""
    return texts.gather(1, row_BK.unsqueeze(2).expand(-1, -1, texts.shape[2]))

"""Generation by an encoder-decoder model: the likeliest text for each source, by beam search or greedily.

Shapes: B sources, L those of them that are not done, S tokens of a source, T tokens of a text, K beams, C candidates
for them, D d_model, V vocabulary, N some of whatever it is. Beams of a source are rows beside each other.
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

    def reorder(self, rows_B: Tensor, within_sources: bool) -> None:
        """Lets row i go on from what was row ``rows_B[i]``; there may be fewer than before.

        Where each row goes on from one of the same source, what was computed from the sources can stay.
        """


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
    device, reading = memory_BSD.device, _Reading(model, memory_BSD, source_mask_BS, search.max_new_tokens)
    tokens_BT = torch.full((len(memory_BSD), search.max_new_tokens), search.eos_id, device=device)
    sources_L = torch.arange(len(memory_BSD), device=device)
    last_L = torch.full_like(sources_L, search.start_id)
    for place in range(search.max_new_tokens):
        last_L = reading.next_logits(last_L).argmax(-1)
        # A row that is gone on with for the others' sake alone has ended before.
        has_ended_L = (tokens_BT[sources_L, :place] == search.eos_id).any(1)
        tokens_BT[sources_L, place] = last_L.masked_fill(has_ended_L, search.eos_id)
        is_live_L = ~has_ended_L & (last_L != search.eos_id)
        if agree(not is_live_L.any()):
            break
        live_N = _live(is_live_L)
        sources_L, last_L = sources_L[live_N], last_L[live_N]
        if len(live_N) < len(is_live_L):
            reading.go_on_from(live_N)
    return tokens_BT


def _beams(
    model: EncoderDecoder,
    memory_BSD: Tensor,
    source_mask_BS: Tensor | None,
    search: Search,
    agree: Callable[[bool], bool],
) -> Tensor:
    K, B, device = search.beams, len(memory_BSD), memory_BSD.device
    mask_BS = None if source_mask_BS is None else source_mask_BS.repeat_interleave(K, dim=0)
    reading = _Reading(model, memory_BSD.repeat_interleave(K, dim=0), mask_BS, search.max_new_tokens)
    best = _Best(B, search, device)
    sources_L = torch.arange(B, device=device)
    tokens_LKT = torch.empty(B, K, 0, dtype=torch.long, device=device)
    last_LK = torch.full((B, K), search.start_id, device=device)
    # All beams begin equal: only the first counts, lest each text be found as often as there are beams.
    scores_LK = torch.full((B, K), -math.inf, device=device)
    scores_LK[:, 0] = 0.0
    for length in range(1, search.max_new_tokens + 1):
        log_probs = reading.next_logits(last_LK.flatten()).float().log_softmax(-1)
        V = log_probs.shape[-1]
        extended = (scores_LK.view(-1, 1) + log_probs).view(-1, K * V)
        # Twice as many as beams: even if each beam could end, as many go on.
        scores_LC, place_LC = extended.topk(min(2 * K, K * V), dim=1)
        origin_LC, token_LC = place_LC // V, place_LC % V
        tokens_LCT = torch.cat([_rows(tokens_LKT, origin_LC), token_LC.unsqueeze(2)], dim=2)
        ends_LC = token_LC == search.eos_id
        # An end that is not among the best K texts would not have been followed either.
        has_ended_LK = ends_LC[:, :K] | (length == search.max_new_tokens)
        best.take(sources_L, tokens_LCT[:, :K], scores_LC[:, :K], has_ended_LK)
        scores_LK, chosen_LK = scores_LC.masked_fill(ends_LC, -math.inf).topk(K, dim=1)
        best.settle(sources_L, scores_LK[:, 0])
        is_live_L = ~best.is_done_B[sources_L]
        if agree(not is_live_L.any()):
            break
        live_N = _live(is_live_L)
        rows_LK = torch.arange(len(sources_L), device=device).unsqueeze(1) * K + origin_LC.gather(1, chosen_LK)
        sources_L, scores_LK = sources_L[live_N], scores_LK[live_N]
        tokens_LKT = _rows(tokens_LCT, chosen_LK)[live_N]
        last_LK = tokens_LKT[:, :, -1]
        reading.go_on_from(rows_LK[live_N].flatten())
    return best.tokens_BT


class _Reading:
    """The rows that are still gone on with: what the decoder looks at, and what it has computed."""

    def __init__(self, model: EncoderDecoder, memory_BSD: Tensor, mask_BS: Tensor | None, max_len: int) -> None:
        self._model = model
        self._memory_BSD = memory_BSD
        self._mask_BS = mask_BS
        self._cache = model.new_cache(max_len)

    def next_logits(self, tokens_B: Tensor) -> Tensor:
        """Logits (B, V) behind one more token of each row."""
        hidden_B1D = self._model.decode(tokens_B.unsqueeze(1), self._memory_BSD, self._mask_BS, self._cache)
        return self._model.logits(hidden_B1D)[:, -1]

    def go_on_from(self, rows_N: Tensor) -> None:
        """Makes row i of what was row ``rows_N[i]``: of the same source, or there are fewer rows than before."""
        has_fewer = len(rows_N) < len(self._memory_BSD)
        self._cache.reorder(rows_N, within_sources=not has_fewer)
        if has_fewer:
            self._memory_BSD = self._memory_BSD[rows_N]
            self._mask_BS = None if self._mask_BS is None else self._mask_BS[rows_N]


def _live(is_live_L: Tensor) -> Tensor:
    """Places of what is not done; where all is, the first one goes on for the sake of other ranks."""
    live_N = is_live_L.nonzero().squeeze(1)
    return live_N if len(live_N) else live_N.new_zeros(1)


class _Best:
    """The best text of each source that has ended, and which sources need no more search."""

    def __init__(self, B: int, search: Search, device: torch.device) -> None:
        self._search = search
        self.tokens_BT = torch.full((B, search.max_new_tokens), search.eos_id, device=device)
        self.is_done_B = torch.zeros(B, dtype=torch.bool, device=device)
        self._score_B = torch.full((B,), -math.inf, device=device)
        self._ended_B = torch.zeros(B, dtype=torch.long, device=device)

    def take(self, sources_L: Tensor, tokens_LKT: Tensor, scores_LK: Tensor, has_ended_LK: Tensor) -> None:
        """Compares texts that have ended just now with the best before them.

        Args:
            sources_L: Whose texts they are.
            tokens_LKT: Texts of the same length.
            scores_LK: Their log probabilities.
            has_ended_LK: Which of them have ended.
        """
        length = tokens_LKT.shape[2]
        has_ended_LK = has_ended_LK & scores_LK.isfinite() & ~self.is_done_B[sources_L].unsqueeze(1)
        normed_LK = scores_LK / length_divisor(length, self._search.length_penalty)
        score_L, beam_L = normed_LK.masked_fill(~has_ended_LK, -math.inf).max(dim=1)
        better_N = (score_L > self._score_B[sources_L]).nonzero().squeeze(1)
        better_sources_N = sources_L[better_N]
        self._score_B[better_sources_N] = score_L[better_N]
        self.tokens_BT[better_sources_N, :length] = tokens_LKT[better_N, beam_L[better_N]]
        self.tokens_BT[better_sources_N, length:] = self._search.eos_id
        self._ended_B[sources_L] += has_ended_LK.sum(dim=1)

    def settle(self, sources_L: Tensor, running_L: Tensor) -> None:
        """Finds the sources that are done: as many texts as beams have ended, or none that goes on can be better.

        Args:
            sources_L: Those that were gone on with.
            running_L: Highest log probability of what goes on. It only falls, and the divisor only grows.
        """
        bound_L = running_L / length_divisor(self._search.max_new_tokens, self._search.length_penalty)
        has_enough_L = self._ended_B[sources_L] >= self._search.beams
        self.is_done_B[sources_L] |= has_enough_L | (self._score_B[sources_L] >= bound_L)


def _rows(texts_LKT: Tensor, row_LK: Tensor) -> Tensor:
    """The given texts of each source."""
    return texts_LKT.gather(1, row_LK.unsqueeze(2).expand(-1, -1, texts_LKT.shape[2]))

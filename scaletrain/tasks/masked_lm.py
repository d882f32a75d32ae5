"""Masked language modelling, as of BERT: hidden tokens are told from those on both sides.

Shapes: B rows, T places of a row, K hidden places of a row, D d_model, V vocabulary.

Source: Devlin et al. 2018, "BERT", sections 3.1 and A.1.
"""

import math
import re
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from scaletrain.config.batch_plan import FILLING
from scaletrain.data.packing import IGNORED
from scaletrain.data.rows import Collated, Rows
from scaletrain.data.shuffle import fold
from scaletrain.errors import ConfigError
from scaletrain.model.losses import LossTerms
from scaletrain.monitors import names
from scaletrain.tasks.bidirectional import document_tensors, padded, separated
from scaletrain.tasks.sentence_pairs import pair_sentences
from scaletrain.tasks.task import Task, TaskSetting
from scaletrain.tasks.text_loss import TextModel

_MASK_NAMES = ("<mask>", "[MASK]", "<|mask|>")
_MASKS_IN_TEXT = re.compile(r"\s*(?:" + "|".join(map(re.escape, _MASK_NAMES)) + ")")
_MASK, _RANDOM = 0.8, 0.9
"""Of the hidden tokens 80 % are masked, the next 10 % are another token, the last 10 % stay."""
_HIDING = 11
"""What noise is for: each kind draws from a stream of its own."""


class MaskedLMTask(Task):
    """Pretraining of encoders, with or without the prediction of the next sentence."""

    def __init__(self, setting: TaskSetting) -> None:
        """Looks up the mask, and where words begin.

        Args:
            setting: Of the run.

        Raises:
            ConfigError: The model has no room for a mask.
        """
        tokenizer, corpus = setting.tokenizer, setting.corpus
        named = [tokenizer.token_to_id(name) for name in _MASK_NAMES]
        # A corpus made for other models has none: the first row behind its vocabulary is free for it.
        self._mask_id = next((token for token in named if token is not None), corpus.vocab_size)
        if self._mask_id >= setting.model.vocab_size:
            raise ConfigError(
                f"model.vocab_size is {setting.model.vocab_size}, and the tokenizer of {corpus.shown} has as "
                f"many tokens, none of them {' or '.join(_MASK_NAMES)}: there is no row for the mask. Set "
                f"--model.vocab_size {-(-(corpus.vocab_size + 1) // 64) * 64}."
            )
        self._loss = setting.loss
        self._tokenizer, self._borders = tokenizer, corpus.borders
        self._share = setting.task.mask_share
        self.reads_others = setting.task.next_sentence
        special = {corpus.borders.eos_id, self._mask_id, *tokenizer.get_added_tokens_decoder()}
        special |= set() if corpus.borders.bos_id is None else {corpus.borders.bos_id}
        self._is_ordinary = np.ones(max(corpus.vocab_size, self._mask_id + 1), dtype=bool)
        self._is_ordinary[[token for token in special if token < len(self._is_ordinary)]] = False
        self._ordinary = np.flatnonzero(self._is_ordinary[: corpus.vocab_size])
        self._goes_on = None
        if setting.task.whole_words:
            self._goes_on = np.zeros(len(self._is_ordinary), dtype=bool)
            for name, token in tokenizer.get_vocab(with_added_tokens=False).items():
                self._goes_on[token] = continues_a_word(name)

    def collate(self, rows: Rows, seed: int) -> Collated:
        """Hides tokens of each row.

        Args:
            rows: Of documents, whose first T tokens are read.
            seed: Of the noise.

        Returns:
            ``tokens``, ``documents`` and ``positions`` as ``separated`` makes them, ``places`` and ``targets`` (B, K)
            int64: what is hidden and what stood there, ``IGNORED`` where a row hides fewer; with sentence pairs also
            ``segments`` (B, T) and ``follows`` (B,), int64.
        """
        pairs: dict[str, Tensor | None] = {}
        if self.reads_others:
            rows, pairs = pair_sentences(rows, seed)
        inputs = separated(rows) | pairs
        tokens_BT = inputs["tokens"]
        assert tokens_BT is not None
        size = tokens_BT.shape[1]
        n_places = max(1, round(self._share * size))
        places = np.zeros((len(tokens_BT), n_places), dtype=np.int64)
        targets = np.full_like(places, IGNORED)
        found, padding = tokens_BT.numpy(), padded(rows)
        for row, sequence in enumerate(rows.sequences):
            if sequence == FILLING:
                continue
            may_hide = self._is_ordinary[found[row]] & ~padding[row]
            for first, behind in rows.placed[row].masked:
                may_hide[first:behind] = False
            noise = np.random.Generator(np.random.Philox(fold(seed, _HIDING, sequence)))
            chosen = self._choose(noise, may_hide, found[row])
            places[row, : len(chosen)] = chosen
            targets[row, : len(chosen)] = found[row, chosen]
            found[row, chosen] = self._hide(noise, found[row, chosen])
        inputs |= {"places": torch.from_numpy(places), "targets": torch.from_numpy(targets)}
        return Collated(inputs, torch.from_numpy((targets != IGNORED).sum(1)))

    def _choose(
        self, noise: np.random.Generator, may_hide: NDArray[np.bool_], tokens: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Places to hide, a share of those that may be, at least one; whole words where that is asked for."""
        candidates = np.flatnonzero(may_hide)
        wanted = min(len(candidates), max(1, round(self._share * len(candidates))))
        if self._goes_on is None:
            return np.sort(noise.permutation(candidates)[:wanted])
        # A word begins at each token that does not go on with one that stands right before it.
        is_begin = ~(self._goes_on[tokens[candidates]] & (np.diff(candidates, prepend=-2) == 1))
        words = np.split(candidates, np.flatnonzero(is_begin)[1:]) if len(candidates) else []
        chosen: list[NDArray[np.int64]] = []
        room = wanted
        for word in noise.permutation(len(words)).tolist():
            if len(words[word]) <= room:
                chosen.append(words[word])
                room -= len(words[word])
        return np.sort(np.concatenate(chosen)) if chosen else candidates[:0]

    def _hide(self, noise: np.random.Generator, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        fate = noise.random(len(tokens))
        others = noise.choice(self._ordinary, len(tokens))
        return np.where(fate < _MASK, self._mask_id, np.where(fate < _RANDOM, others, tokens))

    def module(self, model: Any) -> nn.Module:
        """The model with the loss of what is hidden."""
        return MaskedLM(model, self._loss)

    def figures(self, loss: float, outputs: Tensor | None) -> dict[str, float]:
        """The perplexity of hidden tokens, the share of them that is told rightly, and that of pairs."""
        assert outputs is not None  # the module tells them
        found = {
            names.EVAL_PERPLEXITY: math.exp(min(loss, 700.0)),
            names.EVAL_MASKED_ACCURACY: float(outputs[:, 0].sum() / outputs[:, 1].sum()),
        }
        if self.reads_others:
            found[names.EVAL_NEXT_SENTENCE_ACCURACY] = float(outputs[:, 2].mean())
        return found

    def tokens_of(self, text: str) -> list[int]:
        """Makes tokens of a text in which some are hidden.

        Args:
            text: With ``<mask>`` for each hidden token, or by another name that masks have. Blanks before it belong to
                what it hides, as a token has the blank before its word with it.

        Returns:
            The tokens of a document.
        """
        tokens = [] if self._borders.bos_id is None else [self._borders.bos_id]
        pieces = _MASKS_IN_TEXT.split(text)
        for number, piece in enumerate(pieces):
            tokens += [self._mask_id] if number else []
            tokens += self._tokenizer.encode(piece, add_special_tokens=False).ids
        return [*tokens, self._borders.eos_id]

    def fill(self, model: Any, rows: Rows, most: int) -> list[list[list[tuple[str, float]]]]:
        """Tells what stands where tokens are hidden.

        Args:
            model: In evaluation.
            rows: One document each, as ``tokens_of`` makes them.
            most: Guesses for each hidden token.

        Returns:
            For each row and each hidden token in it, the likeliest tokens as texts, with their probabilities.
        """
        inputs, device = document_tensors(rows), next(model.parameters()).device
        tokens_BT, documents_BT = inputs["tokens"], inputs["documents"]
        assert tokens_BT is not None
        documents_BT = None if documents_BT is None else documents_BT.to(device)
        hidden_BTD = model.hidden(tokens_BT.to(device), None, documents_BT)
        found: list[list[list[tuple[str, float]]]] = []
        for row, tokens_T in enumerate(tokens_BT):
            places_K = (tokens_T == self._mask_id).nonzero().squeeze(1)
            probabilities_KV = model.logits(hidden_BTD[row, places_K.to(device)]).float().softmax(-1).cpu()
            likeliest = probabilities_KV[:, self._ordinary].topk(min(most, len(self._ordinary)))
            found.append(
                [
                    [
                        (self._tokenizer.decode([int(self._ordinary[place])]), chance)
                        for place, chance in zip(*pair, strict=True)
                    ]
                    for pair in zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
                ]
            )
        return found


def continues_a_word(name: str) -> bool:
    """Whether a token goes on with the word before it, by its name in the vocabulary.

    Args:
        name: Of a byte-level BPE, where a token with a space before it begins with ``Ġ``, or of WordPiece, where one
            that goes on begins with ``##``.

    Returns:
        True for letters and digits without a space before them.
    """
    if name.startswith("##"):
        return True
    # In the byte-level alphabet, what is not ASCII is written with characters that count as letters too.
    return not name.startswith("Ġ") and name[:1].isalnum()


class MaskedLM(TextModel):
    """A bidirectional model together with its loss."""

    def forward(
        self,
        tokens: Tensor,
        places: Tensor,
        targets: Tensor,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        follows: Tensor | None = None,
    ) -> LossTerms:
        """Sums of the loss over one micro batch.

        Args:
            tokens: Inputs (B, T), int64, some hidden.
            places: The hidden places (B, K), int64.
            targets: What stood there (B, K), int64; -100 where nothing is hidden.
            documents: Number of each token's document (B, T), or None.
            positions: Position of each token in its document (B, T), or None for 0 to T - 1.
            segments: Sentence of each token (B, T), int64.
            follows: Whether the second sentence follows the first (B,), int64: class 1.

        Returns:
            Sums. A row's pair counts as much as all its hidden tokens together, so that the loss is the mean over
            tokens plus the mean over pairs, as in the paper.
        """
        hidden_BTD = self.model.hidden(tokens, positions, documents, segments_BT=segments)
        hidden_BKD = hidden_BTD.gather(1, places.unsqueeze(-1).expand(-1, -1, hidden_BTD.shape[-1]))
        logits_BKV = self.model.logits(hidden_BKD)
        terms = self.terms(logits_BKV, targets)
        is_right_BK = (logits_BKV.argmax(-1) == targets) & (targets != IGNORED)
        told = [is_right_BK.sum(1), terms.targets_B]
        if follows is not None:
            pair_logits_B2 = self.model.class_logits(hidden_BTD).float()
            pair_loss_B = functional.cross_entropy(pair_logits_B2, follows, reduction="none")
            terms = terms._replace(loss_sum=terms.loss_sum + (pair_loss_B * terms.targets_B).sum())
            told.append(pair_logits_B2.argmax(1) == follows)
        return terms if self.training else terms._replace(outputs_BC=torch.stack(told, 1).float())

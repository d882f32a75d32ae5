"""From one text to another: translation, summarisation, and whatever else pairs of texts are.

Shapes: B rows, S tokens of the sources, T of the targets.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scaletrain.config.batch_plan import FILLING
from scaletrain.data.packing import IGNORED
from scaletrain.data.rows import Collated, Rows, rounded_width
from scaletrain.data.tokenizer import prompt_tokens
from scaletrain.evaluation.beam_search import Search, search_texts
from scaletrain.evaluation.text_overlap import signatures, summary_metrics, translation_metrics
from scaletrain.model.losses import LossTerms
from scaletrain.tasks.task import Sampling, Task, TaskSetting, Written
from scaletrain.tasks.text_loss import TextModel


class Seq2SeqTask(Task):
    """Teacher forcing: each token of the target is told from the source and the target before it."""

    predicts_text = True

    def __init__(self, setting: TaskSetting) -> None:
        """Looks up the token that begins a target: the one that ends documents.

        Args:
            setting: With a corpus of pairs, and a model with an encoder.
        """
        self._borders, model = setting.corpus.borders, setting.model
        self._begin_id = self._borders.eos_id
        # A text goes on until it ends; beyond its learned positions the model cannot.
        is_bounded = model.kind == "transformer" and model.positions == "learned"
        self._longest = model.max_seq_len if is_bounded else None
        self._loss = setting.loss
        self._tokenizer = setting.tokenizer
        self._text_metrics = setting.task.text_metrics
        self._beams = setting.task.beams
        self.writes = self._text_metrics != "none"
        if self.writes:  # now, so that a library that is missing is told before anything is trained
            own = self.text_figures(())
            self.judged_by = {name: told for name, told in signatures().items() if name in own}

    def collate(self, rows: Rows, seed: int) -> Collated:
        """Parts 0 and 1 of each document, side by side.

        Args:
            rows: Of a corpus with parts, one document each.
            seed: Is not used.

        Returns:
            ``source`` (B, S) and ``source_mask``, true where a token stands; ``tokens`` and ``targets`` (B, T): the
            target behind the token that begins one, and what comes next, ``IGNORED`` behind its end.
        """
        assert rows.parts is not None  # the corpus was checked before the run began
        sources, targets = [], []
        for row, (placed, sequence) in enumerate(zip(rows.placed, rows.sequences, strict=True)):
            end = 0 if placed.masked or sequence == FILLING else placed.end
            words, parts = rows.tokens[row, :end], rows.parts[row, :end]
            sources.append(words[parts == 0])
            targets.append(words[parts == 1])
        source_BS, lengths_B = _side_by_side(sources, self._begin_id)
        target_BT, target_lengths_B = _side_by_side(targets, self._begin_id)
        tokens_BT = np.concatenate([np.full((len(targets), 1), self._begin_id), target_BT[:, :-1]], 1)
        target_BT[np.arange(target_BT.shape[1]) >= target_lengths_B[:, None]] = IGNORED
        # A source without tokens keeps a place, or its target would have nothing to look at.
        mask_BS = np.arange(source_BS.shape[1]) < np.maximum(1, lengths_B)[:, None]
        inputs: dict[str, Tensor | None] = {
            "source": torch.from_numpy(source_BS),
            "source_mask": torch.from_numpy(mask_BS),
            "tokens": torch.from_numpy(tokens_BT),
            "targets": torch.from_numpy(target_BT),
        }
        return Collated(inputs, torch.from_numpy((target_BT != IGNORED).sum(1)))

    def module(self, model: Any) -> nn.Module:
        """The model with the loss of the target's tokens."""
        return Seq2Seq(model, self._loss)

    def sample(self, model: Any, prompt: str, sampling: Sampling) -> str:
        """The likeliest text for a source."""
        source = [*prompt_tokens(self._tokenizer, prompt, self._borders), self._begin_id]
        device = next(model.parameters()).device
        source_1S, search = torch.tensor([source], device=device), self._search(sampling.max_new_tokens)
        # Ranks whose logits differ in the last bit would end after different numbers of tokens.
        tokens = search_texts(model, source_1S, None, search, lambda is_done: bool(sampling.agree(is_done)))
        return self._tokenizer.decode(tokens[0])

    def write(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        sequences: Sequence[int],
        max_new_tokens: int,
        all_are: Callable[[bool], bool],
    ) -> list[Written]:
        """The likeliest text for each source."""
        search = self._search(max_new_tokens)
        texts = search_texts(model, inputs["source"], inputs["source_mask"], search, all_are)
        found = []
        for sequence, text, target in zip(sequences, texts, inputs["targets"].tolist(), strict=True):
            if sequence != FILLING:
                reference = [token for token in target if token not in (IGNORED, self._begin_id)]
                found.append(Written(sequence, self._tokenizer.decode(text), self._tokenizer.decode(reference)))
        return found

    def text_figures(self, written: Sequence[Written]) -> dict[str, float]:
        """BLEU and chrF, or ROUGE."""
        judge = translation_metrics if self._text_metrics == "bleu" else summary_metrics
        return judge([one.text for one in written], [one.reference for one in written])

    def _search(self, max_new_tokens: int) -> Search:
        limit = max_new_tokens if self._longest is None else min(max_new_tokens, self._longest)
        return Search(limit, self._begin_id, self._begin_id, self._beams)


def _side_by_side(
    texts: list[NDArray[np.unsignedinteger]], filling: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Texts as rows of one width, filled up at their ends, and their lengths."""
    lengths = np.array([len(text) for text in texts])
    laid_out = np.full((len(texts), rounded_width(int(lengths.max()))), filling, dtype=np.int64)
    for row, text in enumerate(texts):
        laid_out[row, : len(text)] = text
    return laid_out, lengths


class Seq2Seq(TextModel):
    """An encoder-decoder together with its loss."""

    def forward(self, source: Tensor, source_mask: Tensor, tokens: Tensor, targets: Tensor) -> LossTerms:
        """Sums of the loss over one micro batch.

        Args:
            source: Tokens of the sources (B, S), int64.
            source_mask: Where one stands (B, S), bool.
            tokens: Inputs of the decoder (B, T), int64.
            targets: The next tokens (B, T), int64; -100 behind the end.

        Returns:
            Sums.
        """
        logits_BTV = self.model(source, tokens, source_mask)
        return self.terms(logits_BTV, targets)

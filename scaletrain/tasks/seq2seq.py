"""From one text to another: translation, summarisation, and whatever else pairs of texts are.

Shapes: B rows, S tokens of the sources, T of the targets.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scaletrain.config.schema import LossConfig
from scaletrain.data.packing import IGNORED
from scaletrain.data.rows import Collated, Rows
from scaletrain.errors import ConfigError
from scaletrain.model.losses import LossTerms, cross_entropy_terms
from scaletrain.tasks.task import Task, TaskSetting

_WIDTH_STEP = 16
"""Few different widths, so that few graphs are compiled and kernels meet shapes that suit them."""


class Seq2SeqTask(Task):
    """Teacher forcing: each token of the target is told from the source and the target before it."""

    predicts_text = True

    def __init__(self, setting: TaskSetting) -> None:
        """Looks up the token that begins a target: the one that ends documents.

        Args:
            setting: With a corpus of pairs.

        Raises:
            ConfigError: The model has no encoder.
        """
        if not setting.model.n_encoder_layers:
            raise ConfigError(
                "task seq2seq reads the source with an encoder, but model.n_encoder_layers is 0. Set it, or train a "
                "causal model on the same pairs with --task.name sft."
            )
        self._begin_id = setting.manifest.tokenizer.eos_id
        self._loss = setting.loss

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
            end = 0 if placed.masked or sequence < 0 else placed.end
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


def _side_by_side(
    texts: list[NDArray[np.unsignedinteger]], filling: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Texts as rows of one width, filled up at their ends, and their lengths."""
    lengths = np.array([len(text) for text in texts])
    width = -(-max(1, int(lengths.max())) // _WIDTH_STEP) * _WIDTH_STEP
    laid_out = np.full((len(texts), width), filling, dtype=np.int64)
    for row, text in enumerate(texts):
        laid_out[row, : len(text)] = text
    return laid_out, lengths


class Seq2Seq(nn.Module):
    """An encoder-decoder together with its loss."""

    def __init__(self, model: nn.Module, loss: LossConfig) -> None:
        """Wraps a model.

        Args:
            model: Turns sources and targets into logits.
            loss: Terms added to the cross-entropy while training.
        """
        super().__init__()
        self.model = model
        self.label_smoothing = loss.label_smoothing
        self.z_loss = loss.z_loss

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
        smoothing, z_loss = (self.label_smoothing, self.z_loss) if self.training else (0.0, 0.0)
        return cross_entropy_terms(logits_BTV, targets, smoothing, z_loss)

"""Tasks that tell something of a whole document: what their rows and modules share.

Shapes: B rows, T places of a row, M values of a document, C outputs of the model's head, N documents.
"""

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scaletrain.config.batch_plan import FILLING
from scaletrain.data.rows import Collated, Rows
from scaletrain.model.losses import LossTerms
from scaletrain.tasks.bidirectional import document_tensors
from scaletrain.tasks.task import Task


class LabelledTask(Task):
    """A document in, its values out."""

    def collate(self, rows: Rows, seed: int) -> Collated:
        """One document a row, with its values.

        Args:
            rows: Of a corpus with values, one document each.
            seed: Is not used.

        Returns:
            ``tokens``, ``mask``, ``documents`` and ``segments`` as ``document_tensors`` makes them, and ``values``
            (B, M), fp32. A row counts once.
        """
        assert rows.values is not None  # the corpus was checked before the run began
        inputs: dict[str, Tensor | None] = {
            **document_tensors(rows),
            "values": torch.from_numpy(np.float32(rows.values)),
        }
        inputs["is_real"] = is_real_B = torch.tensor([row.end > 0 and not row.masked for row in rows.placed]) & (
            torch.tensor(rows.sequences) != FILLING
        )
        return Collated(inputs, is_real_B.long())

    def tell(self, outputs_NC: Tensor) -> list[dict[str, Any]]:
        """What a model says of documents, for people.

        Args:
            outputs_NC: Of the head, fp32.

        Returns:
            Plain values by name, for each document; here the outputs as they are.
        """
        return [{"outputs": row_C} for row_C in outputs_NC.tolist()]


class LabelledModel(nn.Module):
    """A model with a head, together with its loss."""

    def __init__(self, model: Any) -> None:
        """Wraps a model with ``class_logits``."""
        super().__init__()
        self.model = model

    @abstractmethod
    def losses(self, outputs_BC: Tensor, values_BM: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of each row, as it is learnt (B,) and as it is told (B,), fp32."""

    def forward(
        self,
        tokens: Tensor,
        mask: Tensor,
        values: Tensor,
        is_real: Tensor,
        documents: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> LossTerms:
        """Sums of the loss over one micro batch.

        Args:
            tokens: Inputs (B, T), int64.
            mask: Whether a place holds a token of the document (B, T), bool.
            values: Of each document (B, M), fp32.
            is_real: Whether a row counts (B,), bool.
            documents: Keeps padding apart (B, T); see ``document_tensors``.
            segments: Part of each token (B, T), int64, where the model tells them apart.

        Returns:
            Sums over rows; in evaluation also the head's outputs and the values of each, side by side.
        """
        hidden_BTD = self.model.hidden(tokens, None, documents, segments_BT=segments)
        outputs_BC = self.model.class_logits(hidden_BTD, mask).float()
        learnt_B, told_B = self.losses(outputs_BC, values)
        zero = torch.zeros((), device=outputs_BC.device)
        told = None if self.training else torch.cat([outputs_BC, values], 1)
        nll_B = told_B.detach().where(is_real, zero)
        return LossTerms(learnt_B.where(is_real, zero).sum(), nll_B, is_real.long(), told)

"""What modules share whose loss is the cross-entropy of tokens."""

from typing import Any

from torch import Tensor, nn

from scaletrain.config.schema import LossConfig
from scaletrain.model.losses import LossTerms, cross_entropy_terms


class TextModel(nn.Module):
    """A model together with the loss of its tokens."""

    def __init__(self, model: Any, loss: LossConfig) -> None:
        """Wraps a model.

        Args:
            model: What gives logits.
            loss: Terms added to the cross-entropy while training; evaluation is without them.
        """
        super().__init__()
        self.model = model
        self.label_smoothing = loss.label_smoothing
        self.z_loss = loss.z_loss

    def terms(self, logits_BTV: Tensor, targets_BT: Tensor) -> LossTerms:
        """Sums the loss.

        Args:
            logits_BTV: Of each place.
            targets_BT: Tokens, int64; -100 where none is predicted.

        Returns:
            Sums, not means: the engine divides by the number of targets of the whole global batch.
        """
        smoothing, z_loss = (self.label_smoothing, self.z_loss) if self.training else (0.0, 0.0)
        return cross_entropy_terms(logits_BTV, targets_BT, smoothing, z_loss)

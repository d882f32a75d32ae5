"""Causal language modelling: each token is predicted from those before it in its document."""

from torch import Tensor, nn

from scaletrain.config.schema import LossConfig
from scaletrain.model.losses import LossTerms, cross_entropy_terms
from scaletrain.model.transformer import Transformer


class CausalLM(nn.Module):
    """A Transformer together with its loss: the module that DeepSpeed wraps.

    The loss is computed inside the wrapped module, so that ``torch.compile`` fuses it and ZeRO-3 gathers
    the output embedding for it.
    """

    def __init__(self, model: Transformer, loss: LossConfig) -> None:
        """Wraps a model.

        Args:
            model: The Transformer.
            loss: Terms added to the cross-entropy while training; evaluation is without them.
        """
        super().__init__()
        self.model = model
        self.label_smoothing = loss.label_smoothing
        self.z_loss = loss.z_loss

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> LossTerms:
        """Sums of the loss over one micro batch.

        Args:
            tokens: Inputs (B, T), int64.
            targets: Next tokens (B, T), int64; -100 where none is predicted.
            documents: Number of each token's document in its sequence (B, T), or None when each row is one.
            positions: Position of each token in its document (B, T), or None for 0 to T - 1.

        Returns:
            Sums, not means: the engine divides by the number of targets of the whole global batch.
        """
        logits_BTV = self.model(tokens, positions, documents)
        smoothing, z_loss = (self.label_smoothing, self.z_loss) if self.training else (0.0, 0.0)
        return cross_entropy_terms(logits_BTV, targets, smoothing, z_loss)

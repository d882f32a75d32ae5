"""Adapters of low rank beside frozen linear layers.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models"; initial values as in the PEFT library.

Shapes: B batch, T time, I in_features, O out_features, R rank.
"""

from torch import Tensor, nn
from torch.nn import functional

from scaletrain.config.patterns import belongs
from scaletrain.config.schema import LoraConfig
from scaletrain.config.tune_rules import adapted, target_problems
from scaletrain.errors import ConfigError


class ZeroLinear(nn.Linear):
    """A linear layer without a bias whose weights are zero.

    Args:
        in_features: width of the input.
        out_features: width of the output.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)


class LoraLinear(nn.Module):
    """A linear layer with an adapter: ``W x + alpha / rank * B A dropout(x)``.

    ``W`` and its bias keep their names, so that checkpoints with and without adapters name them alike. ``B`` is zero
    at first: the model begins as what it was.

    Args:
        base: the layer; its parameters become those of this module.
        rank: rows of A and columns of B.
        alpha: the product is multiplied by ``alpha / rank``.
        dropout: share of the adapter's inputs dropped in training.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        self.weight = base.weight
        self.bias = base.bias
        # As torch initialises any linear layer, which is what PEFT does too.
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = ZeroLinear(rank, base.out_features)
        self.dropout = nn.Dropout(dropout)
        self.scale = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer's output with what the adapter adds.

        Args:
            x: (..., I).

        Returns:
            (..., O).
        """
        added: Tensor = self.lora_B(self.lora_A(self.dropout(x)))
        return functional.linear(x, self.weight, self.bias) + added * self.scale


def add_adapters(model: nn.Module, lora: LoraConfig) -> list[str]:
    """Freezes a model, and gives linear layers of it adapters, in place.

    Args:
        model: the model; under ZeRO-3 its weights may be in partitions.
        lora: rank, targets, and what else is trained.

    Returns:
        Names of the layers that have one.

    Raises:
        ConfigError: a target is no linear layer, or shares its weight with another module.
    """
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    chosen = adapted(linear, lora.targets)
    shared = [name for name in chosen if _holders(model, linear[name].weight) > 1]
    if problems := list(target_problems(linear, shared, lora.targets)):
        raise ConfigError("; ".join(problems))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(belongs(name, pattern) for pattern in lora.also_train))
    for name in chosen:
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, LoraLinear(linear[name], lora.rank, lora.alpha, lora.dropout))
    return chosen


def _holders(model: nn.Module, weight: Tensor) -> int:
    return sum(held is weight for module in model.modules() for held in module.parameters(recurse=False))

"""What of a model is trained: all of it, all but what is frozen, or adapters alone."""

from torch import nn

from scaletrain.config.patterns import belongs
from scaletrain.config.schema import LoraConfig, TuneConfig
from scaletrain.config.tune_rules import freeze_problems, nothing_left
from scaletrain.errors import ConfigError
from scaletrain.model.lora import add_adapters


def prepare(model: nn.Module, lora: LoraConfig, tune: TuneConfig) -> None:
    """Adds adapters and freezes parameters, in place, before the optimizer is made.

    Args:
        model: The model, with the names that patterns mean.
        lora: Adapters; rank 0 for none.
        tune: What is frozen.

    Raises:
        ConfigError: A pattern means nothing in this model, or nothing is left to train.
    """
    if lora.rank:
        add_adapters(model, lora)
    names = [name for name, _ in model.named_parameters()]
    if problems := list(freeze_problems(names, tune.freeze)):
        raise ConfigError("; ".join(problems))
    for name, parameter in model.named_parameters():
        if any(belongs(name, pattern) for pattern in tune.freeze):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(nothing_left(tune.freeze))

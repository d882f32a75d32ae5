"""All families, and which of them a model belongs to."""

from collections.abc import Iterator
from itertools import combinations
from typing import Any

from scaletrain.config.schema import ModelConfig
from scaletrain.convert.families.bert import BERT
from scaletrain.convert.families.gpt2 import GPT2
from scaletrain.convert.families.gpt_neox import GPT_NEOX
from scaletrain.convert.families.llama import LLAMA
from scaletrain.convert.families.marian import MARIAN
from scaletrain.convert.families.mistral import MISTRAL
from scaletrain.convert.families.qwen2 import QWEN2
from scaletrain.convert.families.qwen3 import QWEN3
from scaletrain.convert.families.t5 import T5
from scaletrain.convert.family import Family
from scaletrain.errors import ConfigError

FAMILIES = {family.model_type: family for family in (GPT2, GPT_NEOX, LLAMA, MISTRAL, QWEN2, QWEN3, BERT, T5, MARIAN)}

_SEGMENTS = 2
"""As many as BERT has."""


def family_named(model_type: str) -> Family:
    """The family of that name in ``config.json``.

    Raises:
        ConfigError: There is none.
    """
    if model_type not in FAMILIES:
        raise ConfigError(f"model_type {model_type!r} is none that can be converted; there are {', '.join(FAMILIES)}")
    return FAMILIES[model_type]


def family_for(model: ModelConfig, model_type: str | None = None) -> tuple[Family, ModelConfig]:
    """The family that a model is one of.

    A model without biases computes what one with biases of zero does, and a bidirectional one without segments what
    one with segments of zero does; as that it is taken where no family has it as it is, with as few of them as can be.

    Args:
        model: The description.
        model_type: One that was asked for; the first that fits by default.

    Returns:
        The family, and the description of the model in it: with biases and segments where they are to be written as
        zeros.

    Raises:
        ConfigError: None fits; names, for each, what it does not have.
    """
    asked = FAMILIES.values() if model_type is None else [family_named(model_type)]
    for zeros in _zeros(model):
        described = model.model_copy(update=zeros)
        for family in asked:
            if not family.cannot_tell(described):
                return family, described
    told = "".join(f"\n  {family.model_type}: {', '.join(family.cannot_tell(model))}" for family in asked)
    raise ConfigError(f"this model is none of the families that can be written; what each does not have:{told}")


def _zeros(model: ModelConfig) -> Iterator[dict[str, Any]]:
    """What may be added to a model without a change of what it computes, if it is zero: nothing first, all last."""
    addable: list[dict[str, Any]] = [dict.fromkeys(("bias", "qkv_bias", "attention_out_bias"), True)]
    addable.append({"output_bias": True})
    if not (model.causal or model.n_segments):
        addable.append({"n_segments": _SEGMENTS})
    for count in range(len(addable) + 1):
        for chosen in combinations(addable, count):
            yield {key: value for fields in chosen for key, value in fields.items()}

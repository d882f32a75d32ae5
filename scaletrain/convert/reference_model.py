"""The model of a Hugging Face folder as transformers itself defines it, without weights.

It is what a conversion is measured against, so nothing of it is written here: only which class to take, how its
tensors may be spelled in the files, and where its layers are.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scaletrain.convert.sample_text import written_tokens
from scaletrain.convert.streaming import build_without_weights
from scaletrain.errors import CheckpointError, ConfigError

# How files spell what the class of today's transformers calls otherwise.
_OLD_SPELLINGS = {
    "LayerNorm.weight": "LayerNorm.gamma",
    "LayerNorm.bias": "LayerNorm.beta",
    "lm_head.weight": "embed_out.weight",  # GPT-NeoX
}
# What transformers calls an output, and what it is called here.
_OUTPUTS = {
    "prediction_logits": "logits",
    "logits": "logits",
    "seq_relationship_logits": "classes",
    "last_hidden_state": "states",
    "pooler_output": "pooled",
}
# By the end of the class's name.
_AUTO_CLASSES = {
    "ForPreTraining": "AutoModelForPreTraining",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForCausalLM": "AutoModelForCausalLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForConditionalGeneration": "AutoModelForSeq2SeqLM",
    "MTModel": "AutoModelForSeq2SeqLM",
    "LMHeadModel": "AutoModelForCausalLM",
}


def build_reference(folder: Path) -> nn.Module:
    """Builds transformers' model of a folder in fp32, without weights.

    The class is the one that ``architectures`` in ``config.json`` calls for: with a head for causal or masked language
    modelling, or the bare model. No code that comes with the folder is run.

    Args:
        folder: A folder with a ``config.json``.

    Returns:
        A transformers model for evaluation, its parameters on the meta device, but for tables that it computes itself.

    Raises:
        ConfigError: transformers is not installed.
        CheckpointError: The folder's configuration cannot be read, or transformers knows no such model.
    """
    try:
        import transformers
    except ImportError:
        raise ConfigError(
            "The proof of a conversion runs the model of the transformers library, which is not installed. Run "
            "pip install scaletrain[hf], or convert without a proof: --verify false."
        ) from None
    try:
        content = json.loads((folder / "config.json").read_text())
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        config.use_cache = False
        auto_class = getattr(transformers, _auto_class(content))
        model: nn.Module = build_without_weights(
            lambda: auto_class.from_config(config, dtype=torch.float32, trust_remote_code=False)
        )
        for module in model.modules():
            compute = getattr(module, "create_weight", None)
            if callable(compute):  # Marian's positions, which are in no file
                module.weight = nn.Parameter(compute(), requires_grad=False)
    except Exception as error:  # whatever transformers raises for a folder that it cannot use
        raise CheckpointError(
            f"transformers cannot build the model of {folder}: {error}. Check its config.json, or convert without a "
            f"proof: --verify false."
        ) from None
    return model


def reference_spellings(model: nn.Module) -> Callable[[str], Iterable[str]]:
    """Tells how a parameter of a transformers model may be spelled in its files.

    A model may be saved without its head, and then without the prefix before all other names, or with the prefix where
    the bare model is wanted.

    Args:
        model: The model.

    Returns:
        Maps the name of a parameter to the names of tensors to look for.
    """
    prefix = f"{getattr(model, 'base_model_prefix', '')}."

    def spellings(name: str) -> list[str]:
        found = [name]
        if len(prefix) > 1:
            found.append(name.removeprefix(prefix) if name.startswith(prefix) else prefix + name)
        for new, old in _OLD_SPELLINGS.items():
            found += [spelling.removesuffix(new) + old for spelling in found if spelling.endswith(new)]
        return found

    return spellings


def reference_layers(model: Any, n_layers: Mapping[str, int]) -> dict[str, list[nn.Module]]:
    """Finds the layers of a transformers model, first to last.

    Args:
        model: The transformers model.
        n_layers: How many there are of each side: of ``encoder`` and ``decoder``, or of a model that is one stack,
            which has no name.

    Returns:
        The modules of each side.

    Raises:
        CheckpointError: No list of that many modules is part of that side.
    """
    found = {}
    for side, count in n_layers.items():
        part = {"": lambda: model, "encoder": model.get_encoder, "decoder": model.get_decoder}[side]()
        lists = (module for module in part.modules() if isinstance(module, nn.ModuleList) and len(module) == count)
        layers = next(lists, None)
        if layers is None:
            raise CheckpointError(
                f"transformers' {type(model).__name__} has no list of {count} layers, the number in our "
                f"configuration. The two configurations describe different models."
            )
        found[side] = list(layers)
    return found


def reference_outputs(model: Any, tokens_BT: Tensor) -> dict[str, Tensor]:
    """Runs a transformers model.

    Args:
        model: The model, with its weights.
        tokens_BT: int64 tokens; a decoder is given ``written_tokens`` of them.

    Returns:
        By name what it tells, the most telling first: ``logits`` (B, T, V) of tokens, ``classes`` (B, 1, C) of whole
        sequences, and of a model without a head ``states`` (B, T, D) and ``pooled`` (B, 1, D).

    Raises:
        CheckpointError: It cannot run on these tokens, or tells nothing of these.
    """
    try:
        texts = {"decoder_input_ids": written_tokens(tokens_BT)} if model.config.is_encoder_decoder else {}
        output = model(input_ids=tokens_BT, **texts)
    except (IndexError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"transformers' {type(model).__name__} cannot run on {tuple(tokens_BT.shape)} tokens below "
            f"{int(tokens_BT.max()) + 1}: {error}. Our configuration describes another model than config.json."
        ) from error
    found: dict[str, Tensor] = {}
    for attribute, name in _OUTPUTS.items():
        tensor = getattr(output, attribute, None)
        if isinstance(tensor, Tensor):
            is_of_sequence = tensor.dim() == 2
            name = "classes" if name == "logits" and is_of_sequence else name
            found[name] = tensor.unsqueeze(1) if is_of_sequence else tensor
    if not found:
        raise CheckpointError(
            f"transformers' {type(model).__name__} returns neither logits nor hidden states. Convert without a proof: "
            f"--verify false."
        )
    return found


def reference_order(model: Any, width: int) -> Tensor | None:
    """Tells in which order a transformers model has the dimensions of its hidden states.

    Args:
        model: The transformers model.
        width: How many there are.

    Returns:
        For each of our dimensions the number of theirs (width,); None where they are in the same order.
    """
    # All sines of a position before all cosines, where each cosine follows its sine here.
    return torch.arange(width).view(2, -1).T.flatten() if model.config.model_type == "marian" else None


def reference_tables(model: Any) -> dict[str, torch.Size]:
    """Lists the embeddings of a transformers model, that of the tokens first.

    Args:
        model: The transformers model.

    Returns:
        Names of their weights, a tied one once, and their shapes.
    """
    of_tokens = model.get_input_embeddings().weight
    return dict(sorted(tables_of(model).items(), key=lambda item: model.get_parameter(item[0]) is not of_tokens))


def tables_of(model: nn.Module) -> dict[str, torch.Size]:
    """Lists the embeddings of any model.

    Args:
        model: The model.

    Returns:
        Names of their weights, a tied one once, and their shapes, in the order of the model.
    """
    tables = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    return {name: weight.shape for name, weight in model.named_parameters() if name in tables}


def _auto_class(content: dict[str, Any]) -> str:
    architectures = content.get("architectures")
    if not architectures:
        return "AutoModelForMaskedLM" if content.get("model_type") == "bert" else "AutoModelForCausalLM"
    for suffix, auto_class in _AUTO_CLASSES.items():
        if architectures[0].endswith(suffix):
            return auto_class
    return "AutoModel"

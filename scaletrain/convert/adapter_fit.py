"""Fits what an adapter changes to the model that it is merged into: names, shapes, shared tensors.

Shapes: O out_features, I in_features, R rank. A weight is (O, I); in Conv1D, GPT-2's layer, (I, O); an embedding
(rows, columns).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scaletrain.convert.adapters import Change, LowRank
from scaletrain.convert.tensors import DTYPES, TensorInfo, Tensors
from scaletrain.errors import CheckpointError, ConfigError

_SLICE_NUMEL = 1 << 20

# Model types of transformers that hold their matrices in Conv1D, and the names of these modules.
_CONV1D_TYPES = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
_CONV1D_MODULES = ("c_attn", "q_attn", "c_proj", "c_fc")

# Modules that are a model's input embedding, the heads that may share its tensor, and biases with two names.
_INPUTS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "tokens_embed", "shared")
_HEADS = ("lm_head.weight", "embed_out.weight", "cls.predictions.decoder.weight", "lm_head.decoder.weight")
_BIASES = {"cls.predictions.decoder.bias": "cls.predictions.bias", "lm_head.decoder.bias": "lm_head.bias"}


@dataclass(frozen=True)
class Source:
    """The model that an adapter is merged into.

    Attributes:
        folder: Its Hugging Face folder, for messages.
        infos: Its tensors.
        config: Content of its ``config.json``.
    """

    folder: Path
    infos: Mapping[str, TensorInfo]
    config: Mapping[str, Any]

    @property
    def is_tied(self) -> bool:
        """Whether input and output embedding are one tensor."""
        nested = self.config.get("text_config") or {}
        said = self.config.get("tie_word_embeddings", nested.get("tie_word_embeddings"))
        return not any(head in self.infos for head in _HEADS) if said is None else bool(said)


def fit(changes: Mapping[str, Change], source: Source, adapter: Tensors) -> dict[str, Change]:
    """Gives changes the names of the model that they are applied to, and checks that they can be.

    Args:
        changes: By the names of the model that was trained.
        source: The model.
        adapter: The adapter's tensors.

    Returns:
        The same changes, by the names of the source.

    Raises:
        CheckpointError: The source lacks a tensor, or it has another shape.
        ConfigError: The source is quantised, or one use of a tensor that has two is changed.
    """
    if source.config.get("quantization_config"):
        raise ConfigError(
            f"{source.folder / 'config.json'} has a quantization_config: nothing can be added to quantised weights; "
            "give the folder of the model in fp32, bf16 or fp16"
        )
    wanted = {name: change for name, change in changes.items() if not _is_twin(name, changes, source, adapter)}
    _refuse_one_use_of_two(wanted, source, has_twin=len(wanted) < len(changes))
    prefixes = sorted({there.partition(".")[0] for there in source.infos})
    found = {name: _name_in(source, name, prefixes) for name in wanted}
    missing = [name for name, there in found.items() if there is None]
    if missing:
        told = "".join(f"\n  {name}" for name in missing)
        raise CheckpointError(
            f"{source.folder} lacks {len(missing)} of the tensors that the adapter changes; give the model that it "
            f"was trained on, with the same head:{told}"
        )
    fitted = {there: wanted[name] for name, there in found.items() if there is not None}
    infos = adapter.infos
    for name, change in fitted.items():
        _check(name, change, source.infos[name], infos)
    return fitted


def is_transposed(
    name: str, low_rank: LowRank, source: Source, adapter: Mapping[str, TensorInfo], is_fan_in_first: bool
) -> bool:
    """Whether a product B A (O, I) is added transposed: to an embedding, or to a weight that is (I, O).

    Args:
        name: The weight's name in the source.
        low_rank: What is added.
        source: The model.
        adapter: The adapter's tensors.
        is_fan_in_first: What the adapter's configuration says of weights: (I, O) if true.

    Raises:
        CheckpointError: The weight has another shape than the product in either way.
    """
    shape = source.infos[name].shape
    straight = (adapter[low_rank.b].shape[0], adapter[low_rank.a].shape[1])
    if low_rank.is_embedding:
        allowed = {True: straight[::-1]}
    elif straight[0] != straight[1]:
        allowed = {False: straight, True: straight[::-1]}
    elif source.config.get("model_type") in _CONV1D_TYPES:
        # The flag in an adapter's file is that of the last module that PEFT adapted: where a model has both kinds of
        # layers it says nothing of this one. Its name does.
        allowed = {_module(name) in _CONV1D_MODULES: straight}
    else:
        allowed = {is_fan_in_first: straight}
    for transposed, expected in allowed.items():
        if shape == expected:
            return transposed
    raise CheckpointError(
        f"{name} is {list(shape)} in the source, but the adapter was trained on {list(straight)}; give the model that "
        "it was trained on (after a change of the vocabulary: the resized model, saved by save_pretrained)"
    )


def _module(name: str) -> str:
    """Last part of the name of the module that a tensor belongs to."""
    return name.rpartition(".")[0].rpartition(".")[2]


def _name_in(source: Source, name: str, prefixes: list[str]) -> str | None:
    """A tensor's name in the source: models are saved with and without the name of what is below their head."""
    longer = [f"{prefix}.{name}" for prefix in prefixes if f"{prefix}.{name}" in source.infos]
    candidates = [name, name.partition(".")[2], *(longer if len(longer) == 1 else [])]
    return next((candidate for candidate in candidates if candidate in source.infos), None)


def _refuse_one_use_of_two(changes: Mapping[str, Change], source: Source, has_twin: bool) -> None:
    if not source.is_tied:
        return
    changed = [name for name in changes if name in _HEADS or _module(name) in _INPUTS]
    if changed and not (has_twin and all(changes[name].low_rank is None for name in changed)):
        raise ConfigError(
            f"{source.folder}: input and output embedding are one tensor (tie_word_embeddings), and the adapter "
            f"changes one of its two uses: {', '.join(changed)}. Merge into an untied model: load it with "
            "transformers, set config.tie_word_embeddings to False, give the head a copy of the weight, and save it"
        )


def _is_twin(name: str, changes: Mapping[str, Change], source: Source, adapter: Tensors) -> bool:
    """Whether a replacement is that of a tensor which the source holds once, under another name."""
    change = changes[name]
    if change.replacement is None or change.low_rank is not None or name in source.infos:
        return False
    if name in _HEADS:
        twins = [other for other in changes if _module(other) in _INPUTS]
    else:
        twins = [other for other in changes if other == _BIASES.get(name)]
    stored = [changes[other].replacement for other in twins]
    return any(_are_equal(adapter, change.replacement, other) for other in stored if other is not None)


def _are_equal(adapter: Tensors, one: str, other: str) -> bool:
    info = adapter.infos[one]
    if info != adapter.infos[other]:
        return False
    for start in range(0, info.numel, _SLICE_NUMEL):
        numel = min(_SLICE_NUMEL, info.numel - start)
        if not adapter.read(one, start, numel).equal(adapter.read(other, start, numel)):
            return False
    return True


def _check(name: str, change: Change, info: TensorInfo, adapter: Mapping[str, TensorInfo]) -> None:
    if info.dtype not in (torch.float64, *DTYPES.values()):
        raise ConfigError(f"{name} is {info.dtype} in the source; give a model in fp32, bf16 or fp16")
    for stored in (change.replacement, change.added and change.added[0]):
        if stored is not None and adapter[stored].shape != info.shape:
            raise CheckpointError(
                f"{name} is {list(info.shape)} in the source, but {list(adapter[stored].shape)} in the adapter; after "
                "a change of the vocabulary give the resized model, saved by save_pretrained"
            )

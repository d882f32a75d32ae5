"""What a family of models is: a table of names, and two functions between descriptions."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from pydantic import ValidationError

from scaletrain.config.schema import ModelConfig
from scaletrain.convert.pairs import Pair, View, row_major
from scaletrain.convert.rows import ENCODER_LAYER, LAYER, Row
from scaletrain.convert.tensors import TensorInfo
from scaletrain.errors import ConfigError


@dataclass(frozen=True)
class Family:
    """A family of models, as Hugging Face's transformers has it.

    Attributes:
        model_type: Its name in ``config.json``.
        architectures: Its classes that can be converted, the usual one first.
        rows: The table; rows with ``{layer}`` or ``{encoder_layer}`` hold for every layer.
        defaults: Values of the keys of ``config.json`` that say what the model computes, where they are left out.
        read: Makes values of a ModelConfig from such keys, all given and unified.
        write: Makes such keys from a ModelConfig, as far as they can tell it; what they cannot is found by reading
            them again.
        unify: Gives keys with one meaning one form.
        prefix: Of the names in folders that were saved without a head, and so lack it.
        bare: Those of the classes that have no head.
        computed: Patterns of names, in older folders, that are no weights.
        renamed: Patterns of names in older folders, with what stands there now.
    """

    model_type: str
    architectures: tuple[str, ...]
    rows: tuple[Row, ...]
    defaults: Mapping[str, Any]
    read: Callable[[Mapping[str, Any]], dict[str, Any]]
    write: Callable[[ModelConfig], dict[str, Any]]
    unify: Callable[[Mapping[str, Any]], dict[str, Any]] = dict
    prefix: str = ""
    bare: tuple[str, ...] = ()
    computed: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)

    def model_of(self, theirs: Mapping[str, Any]) -> ModelConfig:
        """The description of a model in ours.

        Args:
            theirs: The content of ``config.json``.

        Raises:
            ConfigError: It has features that the model here does not, and all are named; or it describes no model.
        """
        named = theirs.get("architectures") or self.architectures[:1]
        is_list = isinstance(named, list | tuple)
        first = named[0] if is_list else named
        if not is_list or first not in self.architectures:
            raise ConfigError(
                f"config.json names the architecture {first}; of {self.model_type} there are "
                f"{', '.join(self.architectures)} here, one of them in a list"
            )
        unified, model = self._read({**theirs, "architectures": [first]})
        problems = [
            f"{key} = {unified[key]}"
            for key, value in self.write(model).items()
            if unified.get(key) is not None and unified[key] != value
        ]
        if problems:
            raise ConfigError(
                f"config.json ({self.model_type}) asks for what the model here does not have: {', '.join(problems)}"
            )
        return model

    def cannot_tell(self, model: ModelConfig) -> list[str]:
        """Features of a model that this family does not have.

        Args:
            model: The description.

        Returns:
            ``key = value`` of each; none where the model is one of the family.
        """
        try:
            told = _with_effect(self._read(self.write(model))[1])
        except ConfigError:  # such as less than one dimension for a head, where this family divides
            return [f"d_model = {model.d_model} with n_heads = {model.n_heads}"]
        return [f"{key} = {value}" for key, value in _with_effect(model).items() if told.get(key, value) != value]

    def pairs(self, infos: Mapping[str, TensorInfo], model: ModelConfig) -> tuple[list[Pair], dict[str, TensorInfo]]:
        """Which of our numbers are which of theirs.

        Args:
            infos: Our tensors, a tied one once.
            model: The description.

        Returns:
            The pairs, and their tensors in the order of the table, with the types of ours.

        Raises:
            ConfigError: A tensor of ours has no place in the family.
        """
        pairs: list[Pair] = []
        theirs: dict[str, TensorInfo] = {}
        for row in self._expanded(model):
            there = [name for name in row.ours if name in infos]
            if len(there) < len(row.ours):
                continue
            shape, views = row.layout(row.theirs, [infos[name].shape for name in there], model)
            theirs[row.theirs] = TensorInfo(shape, infos[there[0]].dtype)
            pairs += [
                Pair(View(name, view.shape, row_major(view.shape)), view)
                for name, view in zip(there, views, strict=True)
            ]
        without = sorted(set(infos) - {pair.ours.name for pair in pairs})
        if without:
            raise ConfigError(f"these weights have no place in {self.model_type}: {', '.join(without)}")
        return pairs, theirs

    def current_name(self, name: str) -> str | None:
        """The name under which a tensor of a folder stands in the table; None for what is no weight."""
        if any(re.search(pattern, name) for pattern in self.computed):
            return None
        for pattern, now in self.renamed.items():
            name = re.sub(pattern, now, name)
        return name

    def _read(self, theirs: Mapping[str, Any]) -> tuple[dict[str, Any], ModelConfig]:
        """Unified keys, and what they describe; values of any type may stand in a damaged file."""
        try:
            unified = self.unify({**self.defaults, **theirs})
            return unified, ModelConfig(**self.read(unified))
        except ValidationError as error:
            wrong = "; ".join(
                f"{'.'.join(map(str, detail['loc']))} would be {detail['input']}: {detail['msg']}"
                for detail in error.errors(include_url=False)
                if detail["type"] != "default_factory_not_called"
            )
            raise ConfigError(
                f"config.json ({self.model_type}) describes no model: {wrong}; get an intact copy"
            ) from None
        except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            told = f"{type(error).__name__}: {error}"
            raise ConfigError(
                f"config.json ({self.model_type}) describes no model: {told}; get an intact copy"
            ) from None

    def _expanded(self, model: ModelConfig) -> Iterator[Row]:
        rows = (row for row in self.rows if row.holds is None or row.holds(model))
        n_layers = {None: 1, LAYER: model.n_layers, ENCODER_LAYER: model.n_encoder_layers}
        for number, group in groupby(rows, lambda row: row.counts):
            of_layer = list(group)
            for layer in range(n_layers[number]):
                yield from (row if number is None else row.of_layer(layer) for row in of_layer)


def _with_effect(model: ModelConfig) -> dict[str, Any]:
    """What has a say in the numbers that a trained model computes."""
    values = model.model_dump(exclude={"preset", "dropout", "attention_dropout", "init_std"})
    without = {
        "rope_theta": model.positions != "rotary",
        "rotary_dim": model.positions != "rotary",
        "rope_scaling": model.positions != "rotary",
        "rope_factor": model.rope_scaling == "none",
        "rope_low_freq_factor": model.rope_scaling != "llama3",
        "rope_high_freq_factor": model.rope_scaling != "llama3",
        "rope_original_max_seq_len": model.rope_scaling != "llama3",
        "sliding_window_from_layer": not model.sliding_window,
        "relative_buckets": model.positions != "relative",
        "relative_max_distance": model.positions != "relative",
        "pooling": not (model.pooler or model.n_classes),
        "kernel_widths": model.kind != "cnn",
    }
    return {key: value for key, value in values.items() if not without.get(key, False)}

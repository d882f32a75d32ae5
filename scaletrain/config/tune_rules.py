"""What of a model is trained, told from names alone: before the model is built, and when it is."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from scaletrain.config.patterns import belongs, matches, unmatched
from scaletrain.config.schema import LoraConfig, ModelConfig, TuneConfig
from scaletrain.config.tensors import Shape, linear_layers, numbers_in, tensors_of


@dataclass(frozen=True)
class TrainedPart:
    """How much of a model is trained.

    Attributes:
        trained: Numbers that have gradients, those of adapters among them.
        frozen: Numbers that stay as they are.
        tensors: Tensors of both together.
    """

    trained: int
    frozen: int
    tensors: int

    @property
    def total(self) -> int:
        """All numbers."""
        return self.trained + self.frozen


def trained_part(model: ModelConfig, lora: LoraConfig, tune: TuneConfig) -> TrainedPart:
    """Counts what is trained.

    Args:
        model: The model's description.
        lora: Adapters; rank 0 for none.
        tune: What is frozen.

    Returns:
        The counts, which are those of the built model.
    """
    shapes = tensors_of(model)
    trained = set(shapes)
    if lora.rank:
        adapters = dict(_adapters(linear_layers(model), lora))
        beside_them = {name for name in shapes if any(belongs(name, pattern) for pattern in lora.also_train)}
        trained, shapes = beside_them | set(adapters), shapes | adapters
    trained = {name for name in trained if not any(belongs(name, pattern) for pattern in tune.freeze)}
    count = numbers_in([shapes[name] for name in trained])
    return TrainedPart(count, numbers_in(list(shapes.values())) - count, len(shapes))


def tune_problems(model: ModelConfig, lora: LoraConfig, tune: TuneConfig) -> Iterator[str]:
    """Finds patterns that mean nothing in a model, and what leaves nothing to train.

    Args:
        model: The model's description.
        lora: Adapters; rank 0 for none.
        tune: What is frozen.

    Yields:
        A text for each rule that is broken, with the values and a remedy.
    """
    names, layers = list(tensors_of(model)), linear_layers(model)
    found: list[str] = []
    if lora.rank:
        names += [name for name, _ in _adapters(layers, lora)]
        found += target_problems(layers, ["output"] if model.tie_embeddings else [], lora.targets)
    found += freeze_problems(names, tune.freeze)
    if not found and not trained_part(model, lora, tune).trained:
        found.append(nothing_left(tune.freeze))
    yield from found


def target_problems(layers: Collection[str], shared: Collection[str], targets: Sequence[str]) -> Iterator[str]:
    """Finds targets of adapters that are none.

    Args:
        layers: Names of the linear layers.
        shared: Those of them whose weight is another module's too.
        targets: Patterns.

    Yields:
        A text for each rule that is broken.
    """
    idle = [pattern for pattern in targets if not any(matches(name, pattern) for name in layers)]
    if idle or not targets:
        known = ", ".join(sorted({name.rpartition(".")[2] for name in layers}))
        several = "; several are given in brackets: [q, v]" if any("," in pattern for pattern in idle) else ""
        yield f"lora.targets: no linear layer is called {', '.join(idle) or 'so'}; there are {known}{several}"
    if chosen := [name for name in shared if name in adapted(layers, targets)]:
        yield (
            f"lora.targets: {', '.join(chosen)} shares its weight with another module, which an adapter would not "
            "change with it; leave it out, or set model.tie_embeddings false"
        )


def adapted(layers: Collection[str], targets: Sequence[str]) -> list[str]:
    """The linear layers that get an adapter."""
    return [name for name in layers if any(matches(name, pattern) for pattern in targets)]


def freeze_problems(names: Collection[str], freeze: Sequence[str]) -> Iterator[str]:
    """Finds patterns that freeze nothing.

    Args:
        names: Of all parameters, those of adapters among them.
        freeze: Patterns.

    Yields:
        A text for each rule that is broken.
    """
    if idle := unmatched(names, freeze):
        tops = ", ".join(sorted({name.split(".")[0] for name in names}))
        yield f"tune.freeze: nothing in the model is called {', '.join(idle)}; its parts are {tops}"


def nothing_left(freeze: Sequence[str]) -> str:
    """What is said where nothing is left to train."""
    return f"tune.freeze = {', '.join(freeze)} leaves nothing to train; freeze less"


def _adapters(layers: dict[str, Shape], lora: LoraConfig) -> Iterator[tuple[str, Shape]]:
    for name in adapted(layers, lora.targets):
        width_out, width_in = layers[name]
        yield f"{name}.lora_A.weight", (lora.rank, width_in)
        yield f"{name}.lora_B.weight", (width_out, lora.rank)

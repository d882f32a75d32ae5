"""What sources, phases and batch schedules may be together."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from scaletrain.config.fields import nearest
from scaletrain.config.problems import item_key
from scaletrain.config.schema import DataConfig, PhaseConfig, SourceConfig, TrainConfig


def data_problems(data: DataConfig) -> Iterator[str]:
    """Checks that there is one thing to train on, and that a mixture can be drawn.

    Args:
        data: The section, whose fields are within their own ranges.

    Returns:
        A line for each rule that is broken, with the values and a remedy.
    """
    given = {"manifest": data.manifest, "sources": ", ".join(source.name for source in data.sources)}
    given = {f"data.{name}": value for name, value in {**given, "corpus": data.corpus}.items() if value}
    if not given:
        yield (
            "data.manifest, data.sources and data.corpus are all none: there is nothing to train on; give "
            "--data.manifest FILE (made by tools/make_shards.py) or --data.corpus python_stdlib"
        )
    if len(given) > 1:
        nothing = {"data.manifest": "none", "data.sources": "'[]'", "data.corpus": "none"}
        values = " and ".join(f"{key} = {value}" for key, value in given.items())
        remedies = " or ".join(f"--{key} {nothing[key]}" for key in reversed(given))
        number = "both" if len(given) == 2 else "all"
        yield f"{values} are {number} given: only one can be trained on; give {remedies}"
    if data.phases and not data.sources:
        yield (
            "data.phases are given without data.sources, whose weights they are: there is nothing to weigh; give "
            "--data.sources, or --data.phases '[]'"
        )
    elif data.sources:
        yield from _mixture_problems(data.sources, data.phases)
    yield from _ascent_problems("data.phases", [phase.until_tokens for phase in data.phases])


def batch_problems(train: TrainConfig) -> Iterator[str]:
    """Checks that every global batch of the run holds a micro batch, and that the schedule's parts follow each other.

    Args:
        train: The section, whose fields are within their own ranges.

    Returns:
        A line for each rule that is broken, with the values and a remedy.
    """
    sizes = {"train.global_batch_size": train.global_batch_size}
    for number, phase in enumerate(train.batch_schedule):
        sizes[item_key("train.batch_schedule", number, "global_batch_size")] = phase.global_batch_size
    for key, size in sizes.items():
        if train.micro_batch_size > size:
            yield (
                f"train.micro_batch_size = {train.micro_batch_size} is larger than {key} = {size}: a forward pass "
                "holds at most the whole batch; lower the one or raise the other"
            )
    yield from _ascent_problems("train.batch_schedule", [phase.until_tokens for phase in train.batch_schedule])


def _mixture_problems(sources: Sequence[SourceConfig], phases: Sequence[PhaseConfig]) -> Iterator[str]:
    names = [source.name for source in sources]
    found = [
        f"{item_key('data.sources', number, 'name')} = {name} is the name of item {names.index(name) + 1} too: "
        "weights and metrics tell sources apart by name; give another one"
        for number, name in enumerate(names)
        if name in names[:number]
    ]
    if not any(source.weight for source in sources):
        found.append(
            "data.sources: every weight is 0, so that nothing is read after the last phase; raise the weight of one"
        )
    for number, phase in enumerate(phases):
        found += _weight_problems(item_key("data.phases", number, "weights"), phase.weights, names)
    yield from found
    # A source may seem unread only because of a mistake that is told already.
    for number, source in enumerate(sources if not found else ()):
        if not source.weight and not any(phase.weights.get(source.name) for phase in phases):
            yield (
                f"{item_key('data.sources', number)}: {source.name} is never read: its weight is 0 in every phase and "
                "after the last; raise one of them, or remove the source"
            )


def _weight_problems(key: str, weights: Mapping[str, float], names: Sequence[str]) -> Iterator[str]:
    for name, weight in weights.items():
        if name not in names:
            near = nearest(name, names)
            remedy = f"did you mean {' or '.join(near)}?" if near else f"data.sources has {', '.join(names)}"
            yield f"{key}.{name} = {weight:g}: no such source; {remedy}"
        if weight < 0:
            yield f"{key}.{name} = {weight:g}: must be at least 0; give another value"
    if not any(weights.values()):
        yield f"{key}: every weight is 0, so that nothing is read in this phase; raise the weight of a source"


def _ascent_problems(key: str, ends: Sequence[int]) -> Iterator[str]:
    for number, (before, after) in enumerate(pairwise(ends)):
        if after <= before:
            yield (
                f"{item_key(key, number + 1, 'until_tokens')} = {after} is not more than that of item {number + 1}, "
                f"{before}: a phase begins where the one before ends; raise it, or put the items in order"
            )

"""What a model tells: the task that it is for, and how ``config.json`` names its classes or numbers."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from scaletrain.config.schema import ModelConfig, TaskConfig
from scaletrain.config.task_rules import LABELLED
from scaletrain.data.corpus_facts import CorpusFacts
from scaletrain.data.manifest import LABEL
from scaletrain.errors import ConfigError

CLASSIFIER = "ForSequenceClassification"
"""End of the names of classes that tell something of a whole text, and of no token."""
_SINGLE, _MULTI, _REGRESSION = "single_label_classification", "multi_label_classification", "regression"


def check_architecture(architecture: str, task: TaskConfig) -> None:
    """Refuses a class that does not tell what was trained.

    Args:
        architecture: The class's name.
        task: What the model was trained for.

    Raises:
        ConfigError: It tells classes, but the task tells tokens.
    """
    if architecture.endswith(CLASSIFIER) and task.name not in LABELLED:
        raise ConfigError(
            f"this model would be a {architecture}, which tells no tokens, as task {task.name} does; for that the "
            "family needs model.output_transform and model.output_bias"
        )


def describe_labels(model: ModelConfig, task: TaskConfig, facts: CorpusFacts | None) -> dict[str, Any]:
    """Names the outputs of a head.

    Args:
        model: The description, with ``n_classes``.
        task: Classification or regression.
        facts: What a run keeps of its corpus; None where it keeps nothing.

    Returns:
        Keys of ``config.json``.
    """
    names = _numbered(model.n_classes)
    problem = _REGRESSION if task.name == "regression" else _SINGLE
    if facts is not None:
        told = facts.values if problem == _REGRESSION else facts.classes
        names = list(told) if len(told) == model.n_classes else names
        if problem == _SINGLE and facts.values == facts.classes != ():
            problem = _MULTI
    return {
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
        "problem_type": problem,
    }


def read_labels(facts: CorpusFacts, model: ModelConfig, theirs: Mapping[str, Any]) -> CorpusFacts:
    """Reads what ``describe_labels`` writes.

    Args:
        facts: What else is known.
        model: The description.
        theirs: Content of ``config.json``.

    Returns:
        The facts with names of values and classes.
    """
    try:
        by_number = {int(number): str(name) for number, name in (theirs.get("id2label") or {}).items()}
    except (AttributeError, TypeError, ValueError):
        by_number = {}
    names = tuple(name for _, name in sorted(by_number.items()))
    if len(set(names)) != model.n_classes or sorted(by_number) != list(range(model.n_classes)):
        names = tuple(_numbered(model.n_classes))
    problem = _problem_of(model, theirs)
    if problem == _REGRESSION:
        return replace(facts, values=names)
    return replace(facts, values=(LABEL,) if problem == _SINGLE else names, classes=names)


def task_of(model: ModelConfig, theirs: Mapping[str, Any]) -> TaskConfig:
    """The task that a model is for.

    Args:
        model: The description.
        theirs: Content of ``config.json``.
    """
    if model.n_encoder_layers:
        return TaskConfig(name="seq2seq")
    if model.causal:
        return TaskConfig(name="causal_lm")
    if model.output_transform:
        return TaskConfig(name="masked_lm", next_sentence=bool(model.n_classes))
    is_regression = bool(model.n_classes) and _problem_of(model, theirs) == _REGRESSION
    return TaskConfig(name="regression" if is_regression else "classification")


def _problem_of(model: ModelConfig, theirs: Mapping[str, Any]) -> str:
    """As transformers decides where nothing is said, without looking at labels."""
    told = theirs.get("problem_type")
    if told in (_SINGLE, _MULTI, _REGRESSION):
        return str(told)
    return _REGRESSION if model.n_classes == 1 else _SINGLE


def _numbered(count: int) -> list[str]:
    """The names that transformers gives to outputs without any."""
    return [f"LABEL_{number}" for number in range(count)]

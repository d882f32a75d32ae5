"""Classification of documents: one class of several, or any number of them.

Shapes: B rows, M values of a document, C classes, N documents.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from scaletrain.config.task_rules import head_problem
from scaletrain.errors import ConfigError
from scaletrain.evaluation.classification import multi_label_metrics, single_label_metrics
from scaletrain.tasks.labelled import LabelledModel, LabelledTask
from scaletrain.tasks.task import TaskSetting


class ClassificationTask(LabelledTask):
    """Fine-tuning, or training from scratch, on documents with classes."""

    def __init__(self, setting: TaskSetting) -> None:
        """Looks up the classes.

        Args:
            setting: With a corpus that has classes.

        Raises:
            ConfigError: The model has another number of classes.
        """
        corpus, n_classes = setting.corpus, setting.model.n_classes
        if problem := head_problem(n_classes, corpus.classes, "classes", corpus.shown):
            raise ConfigError(problem)
        self._is_single = corpus.values == ("label",)
        self._n_classes = n_classes
        self._classes = corpus.classes
        self._label_smoothing = setting.loss.label_smoothing
        self._weights_C = _balanced(setting, n_classes) if setting.task.class_weights == "balanced" else None

    def module(self, model: Any) -> nn.Module:
        """The model with the cross-entropy of its classes."""
        if self._is_single:
            return SingleLabel(model, self._weights_C, self._label_smoothing)
        return MultiLabel(model, self._weights_C)

    def figures(self, loss: float, outputs: Tensor | None) -> dict[str, float]:
        """Accuracy, F1 and calibration."""
        assert outputs is not None  # the module tells them
        logits_NC, values_NM = outputs[:, : self._n_classes], outputs[:, self._n_classes :]
        if self._is_single:
            return single_label_metrics(logits_NC, values_NM[:, 0])
        return multi_label_metrics(logits_NC, values_NM)

    def tell(self, outputs_NC: Tensor) -> list[dict[str, Any]]:
        """The likeliest class, or all that are likelier than not, and the probability of each."""
        told = []
        for row_C in (outputs_NC.softmax(1) if self._is_single else outputs_NC.sigmoid()).tolist():
            probabilities = dict(zip(self._classes, row_C, strict=True))
            likely: str | list[str] = [name for name, probability in probabilities.items() if probability >= 0.5]
            if self._is_single:
                likely = max(probabilities, key=lambda name: probabilities[name])
            told.append({"label": likely, "probabilities": probabilities})
        return told


def _balanced(setting: TaskSetting, n_classes: int) -> Tensor:
    """Weights that give each class the same sum over the training split: n / (C n_c), scikit-learn's ``balanced``."""
    counts = np.zeros(n_classes)
    for reader in setting.readers:
        for shard in range(len(reader.shards)):
            values = reader.all_values(shard)
            if setting.corpus.values == ("label",):
                counts += np.bincount(values[:, 0].astype(np.int64), minlength=n_classes)
            else:
                counts += values.sum(0)
    if not counts.all():
        absent = [setting.corpus.classes[number] for number in np.flatnonzero(counts == 0)]
        raise ConfigError(
            f"task.class_weights is balanced, but no document of the training split is of class {', '.join(absent)}. "
            "Set it to none, or add such documents."
        )
    return torch.tensor(counts.sum() / (n_classes * counts), dtype=torch.float32)


class SingleLabel(LabelledModel):
    """Softmax over the classes."""

    def __init__(self, model: Any, weights_C: Tensor | None, label_smoothing: float) -> None:
        """Wraps a model.

        Args:
            model: With ``class_logits``.
            weights_C: Of each class in what is learnt; None for 1 each.
            label_smoothing: Share of the target's probability that is spread over the classes, in what is learnt.
        """
        super().__init__(model)
        self.label_smoothing = label_smoothing
        self.weights = None if weights_C is None else weights_C.tolist()

    def losses(self, outputs_BC: Tensor, values_BM: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy in nats."""
        labels_B = values_BM[:, 0].long()
        nll_B = functional.cross_entropy(outputs_BC, labels_B, reduction="none")
        if not self.training:
            return nll_B, nll_B
        learnt_B = nll_B
        if self.label_smoothing:
            smooth_B = -outputs_BC.log_softmax(1).mean(1)
            learnt_B = (1 - self.label_smoothing) * nll_B + self.label_smoothing * smooth_B
        if self.weights is not None:
            learnt_B = learnt_B * outputs_BC.new_tensor(self.weights)[labels_B]
        return learnt_B, nll_B


class MultiLabel(LabelledModel):
    """A sigmoid for each class."""

    def __init__(self, model: Any, weights_C: Tensor | None) -> None:
        """Wraps a model.

        Args:
            model: With ``class_logits``.
            weights_C: Of each class in what is learnt; None for 1 each.
        """
        super().__init__(model)
        self.weights = None if weights_C is None else weights_C.tolist()

    def losses(self, outputs_BC: Tensor, values_BM: Tensor) -> tuple[Tensor, Tensor]:
        """Binary cross-entropy in nats, the mean over the classes."""
        nll_BC = functional.binary_cross_entropy_with_logits(outputs_BC, values_BM, reduction="none")
        if not self.training or self.weights is None:
            return nll_BC.mean(1), nll_BC.mean(1)
        return (nll_BC * outputs_BC.new_tensor(self.weights)).mean(1), nll_BC.mean(1)

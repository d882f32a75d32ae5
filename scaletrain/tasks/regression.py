"""Regression: numbers told of a whole document.

Shapes: B rows, M values of a document, N documents, C = M outputs of the head.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from scaletrain.config.task_rules import head_problem
from scaletrain.errors import ConfigError
from scaletrain.evaluation.regression import regression_metrics
from scaletrain.tasks.labelled import LabelledModel, LabelledTask
from scaletrain.tasks.task import TaskSetting


class RegressionTask(LabelledTask):
    """Squared error, or Huber's loss."""

    def __init__(self, setting: TaskSetting) -> None:
        """Looks up the values.

        Args:
            setting: With a corpus that has values.

        Raises:
            ConfigError: The model has another number of outputs.
        """
        corpus, n_outputs = setting.corpus, setting.model.n_classes
        if problem := head_problem(n_outputs, corpus.values, "values", corpus.shown):
            raise ConfigError(problem)
        self._n_outputs = n_outputs
        self._huber_delta = setting.task.huber_delta

    def module(self, model: Any) -> nn.Module:
        """The model with its loss."""
        return Regression(model, self._huber_delta)

    def figures(self, loss: float, outputs: Tensor | None) -> dict[str, float]:
        """Errors and correlations; over all values where there are several."""
        assert outputs is not None  # the module tells them
        told, values = outputs[:, : self._n_outputs], outputs[:, self._n_outputs :]
        return regression_metrics(told, values)

    def tell(self, outputs_NC: Tensor) -> list[dict[str, Any]]:
        """The number, or a list where documents have several, in the corpus's order."""
        return [{"value": row_C[0] if self._n_outputs == 1 else row_C} for row_C in outputs_NC.tolist()]


class Regression(LabelledModel):
    """A model together with the loss of its numbers."""

    def __init__(self, model: Any, huber_delta: float) -> None:
        """Wraps a model.

        Args:
            model: With ``class_logits``.
            huber_delta: Error from which the loss is linear; 0 for squared error everywhere.
        """
        super().__init__(model)
        self.huber_delta = huber_delta

    def losses(self, outputs_BC: Tensor, values_BM: Tensor) -> tuple[Tensor, Tensor]:
        """Mean over the values: the squared error, or Huber's loss of it (Huber 1964, as ``torch.nn.HuberLoss``)."""
        if self.huber_delta:
            loss_BM = functional.huber_loss(outputs_BC, values_BM, reduction="none", delta=self.huber_delta)
        else:
            loss_BM = functional.mse_loss(outputs_BC, values_BM, reduction="none")
        return loss_BM.mean(1), loss_BM.mean(1)

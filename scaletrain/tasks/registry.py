"""The tasks by name."""

from scaletrain.tasks.causal_lm import CausalLMTask
from scaletrain.tasks.classification import ClassificationTask
from scaletrain.tasks.masked_lm import MaskedLMTask
from scaletrain.tasks.regression import RegressionTask
from scaletrain.tasks.seq2seq import Seq2SeqTask
from scaletrain.tasks.sft import SFTTask
from scaletrain.tasks.task import Task, TaskSetting

TASKS: dict[str, type[Task]] = {
    "causal_lm": CausalLMTask,
    "masked_lm": MaskedLMTask,
    "seq2seq": Seq2SeqTask,
    "sft": SFTTask,
    "classification": ClassificationTask,
    "regression": RegressionTask,
}


def build_task(setting: TaskSetting) -> Task:
    """Makes the task of a run.

    Args:
        setting: What it is made of.

    Returns:
        The task.

    Raises:
        ConfigError: The model or the corpus does not fit it.
    """
    return TASKS[setting.task.name](setting)

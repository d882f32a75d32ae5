"""What a task is: how rows become tensors, what is learnt from them, and by which figures it is judged.

A task is one file of this package and one line of ``registry.py``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from tokenizers import Tokenizer
from torch import Tensor, nn

from scaletrain.config.schema import LossConfig, ModelConfig, TaskConfig
from scaletrain.data.corpus_facts import CorpusFacts
from scaletrain.data.rows import Collated, Rows
from scaletrain.data.shards import ShardReader


@dataclass(frozen=True)
class TaskSetting:
    """What a task is made of.

    Attributes:
        task: Its own settings.
        loss: Terms of the training's loss.
        model: The model's description.
        corpus: What is known of the first source, whose tokenizer and classes are those of all.
        tokenizer: Of the corpora.
        readers: Of the training split of each source; none where nothing is trained.
    """

    task: TaskConfig
    loss: LossConfig
    model: ModelConfig
    corpus: CorpusFacts
    tokenizer: Tokenizer
    readers: Sequence[ShardReader] = ()


@dataclass(frozen=True)
class Sampling:
    """How a text is continued as a sample.

    Attributes:
        max_new_tokens: Tokens at most.
        temperature: Divisor of the logits; 0 takes the likeliest token always.
        seed: Of what is drawn.
        max_context: Tokens that the model was trained to see.
        agree: Maps this rank's token to the one that all ranks use.
    """

    max_new_tokens: int
    temperature: float
    seed: int
    max_context: int
    agree: Callable[[int], int]


class Written(NamedTuple):
    """A text that a model wrote for an example.

    Attributes:
        sequence: Index of the example.
        text: What the model wrote.
        reference: What stands in the corpus.
    """

    sequence: int
    text: str
    reference: str


class Task(ABC):
    """One kind of training.

    Attributes:
        predicts_text: Whether the targets are all tokens of a text, in ``targets`` of the inputs, so that the loss is
            the cost of that text: then perplexity and bits per byte are told.
        continues: Whether what it samples goes on with the prompt itself, so that both make one text.
        writes: Whether evaluations have it write texts, by which it is judged.
        judged_by: Settings and version behind each figure of these texts, so that others can compare theirs.
        reads_others: Whether each row comes with another document of its window.
    """

    predicts_text = False
    continues = False
    writes = False
    judged_by: Mapping[str, str] = MappingProxyType({})
    reads_others = False

    @abstractmethod
    def __init__(self, setting: TaskSetting) -> None:
        """Looks up what the task needs to know.

        Args:
            setting: Of the run.

        Raises:
            ConfigError: The model or the corpus does not fit.
        """

    @abstractmethod
    def collate(self, rows: Rows, seed: int) -> Collated:
        """Makes tensors of rows, in whichever process fetches them.

        Args:
            rows: Of a micro batch.
            seed: Of noise: what is drawn for a row depends on it and the row's index in the run alone.

        Returns:
            The arguments of the module.
        """

    @abstractmethod
    def module(self, model: Any) -> nn.Module:
        """Joins a model and its loss; DeepSpeed wraps both together.

        So ``torch.compile`` fuses the loss, and ZeRO-3 gathers the output layer for it.

        Args:
            model: As ``build_model`` makes it.

        Returns:
            A module whose attribute ``model`` is the model, and which turns a micro batch's inputs into ``LossTerms``.
        """

    def figures(self, loss: float, outputs: Tensor | None) -> dict[str, float]:
        """Judges the whole validation set by more than the loss.

        Args:
            loss: Its mean over all targets.
            outputs: What the module told of each sequence (sequences, C), fp32, each once; None where it tells nothing.

        Returns:
            Metrics by name.
        """
        return {}

    def sample(self, model: Any, prompt: str, sampling: Sampling) -> str:
        """Writes what a prompt asks for; all ranks make the same calls.

        Args:
            model: In evaluation.
            prompt: The text.
            sampling: How.

        Returns:
            What was written.
        """
        raise NotImplementedError  # a task that does not write is given no prompts

    def write(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        sequences: Sequence[int],
        max_new_tokens: int,
        all_are: Callable[[bool], bool],
    ) -> list[Written]:
        """Writes a text for each row; all ranks call it equally often.

        Args:
            model: In evaluation.
            inputs: Of the module, on its device.
            sequences: Index of each row in the set; ``FILLING`` for one of filling.
            max_new_tokens: Tokens of a text at most.
            all_are: Whether what is true on this rank is so on all.

        Returns:
            One for each row that is not filling.
        """
        raise NotImplementedError  # only a task that ``writes`` is asked

    def text_figures(self, written: Sequence[Written]) -> dict[str, float]:
        """Judges texts.

        Args:
            written: Of all ranks, in the order of the examples.

        Returns:
            Metrics by name.
        """
        raise NotImplementedError  # only a task that ``writes`` is asked

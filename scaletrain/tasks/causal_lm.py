"""Causal language modelling: each token is predicted from those before it in its document."""

from typing import Any, NamedTuple

from torch import Tensor, nn

from scaletrain.data.rows import Collated, Rows, next_tokens
from scaletrain.data.tokenizer import prompt_tokens
from scaletrain.evaluation.generation import generate
from scaletrain.model.losses import LossTerms
from scaletrain.tasks.task import Sampling, Task, TaskSetting
from scaletrain.tasks.text_loss import TextModel


class Prompt(NamedTuple):
    """Tokens that a model is to go on with, and those at which it is to stop."""

    tokens: list[int]
    ends: frozenset[int]


class CausalLMTask(Task):
    """Pretraining as of GPT."""

    predicts_text = True
    continues = True

    def __init__(self, setting: TaskSetting) -> None:
        """Keeps the loss's terms, and how prompts become tokens."""
        self._loss = setting.loss
        self._tokenizer = setting.tokenizer
        self._borders = setting.corpus.borders

    def collate(self, rows: Rows, seed: int) -> Collated:
        """Every token but a document's first is a target; see ``next_tokens``."""
        return next_tokens(rows)

    def module(self, model: Any) -> nn.Module:
        """The model with the loss of the next tokens."""
        return CausalLM(model, self._loss)

    def prompt(self, text: str) -> Prompt:
        """Makes tokens of a text that is to be gone on with.

        Args:
            text: The beginning of a document.

        Returns:
            Its tokens, and those at which to stop.
        """
        return Prompt(prompt_tokens(self._tokenizer, text, self._borders), frozenset({self._borders.eos_id}))

    def sample(self, model: Any, prompt: str, sampling: Sampling) -> str:
        """Goes on with what the prompt stands for."""
        tokens, ends = self.prompt(prompt)
        made = generate(
            model,
            tokens,
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            seed=sampling.seed,
            ends=ends,
            max_context=sampling.max_context,
            agree=sampling.agree,
        )
        return self._tokenizer.decode(list(made))


class CausalLM(TextModel):
    """A causal model together with its loss."""

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> LossTerms:
        """Sums of the loss over one micro batch.

        Args:
            tokens: Inputs (B, T), int64.
            targets: Next tokens (B, T), int64; -100 where none is predicted.
            documents: Number of each token's document in its sequence (B, T), or None when each row is one.
            positions: Position of each token in its document (B, T), or None for 0 to T - 1.

        Returns:
            Sums, not means: the engine divides by the number of targets of the whole global batch.
        """
        logits_BTV = self.model(tokens, positions, documents)
        return self.terms(logits_BTV, targets)

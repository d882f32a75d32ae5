"""Supervised fine-tuning: the next token is learnt in a document's second part, such as an assistant's answers.

Documents are packed with borders as in pretraining, so that no place is lost and no example sees another.
"""

import torch

from scaletrain.data.chat import ChatEncoder, ChatTemplate
from scaletrain.data.packing import IGNORED
from scaletrain.data.rows import Collated, Rows, next_tokens
from scaletrain.tasks.causal_lm import CausalLMTask, Prompt
from scaletrain.tasks.task import TaskSetting


class SFTTask(CausalLMTask):
    """Instruction tuning and dialogue with a causal model.

    Attributes:
        chat: Makes tokens of conversations; None for a corpus of other pairs.
    """

    continues = False

    def __init__(self, setting: TaskSetting) -> None:
        """Looks up how prompts become tokens.

        Args:
            setting: With a corpus of conversations, or of other pairs.

        Raises:
            ConfigError: The corpus's template is none.
        """
        super().__init__(setting)
        self.chat: ChatEncoder | None = None
        corpus = setting.corpus
        if corpus.chat_template is not None:
            template = ChatTemplate(corpus.chat_template, f"The chat template of {corpus.shown}")
            self.chat = ChatEncoder(template, setting.tokenizer, corpus.borders)

    def collate(self, rows: Rows, seed: int) -> Collated:
        """Next tokens, of which those of part 0 are no targets.

        Args:
            rows: Of a corpus with parts.
            seed: Is not used.

        Returns:
            As ``next_tokens``.
        """
        collated = next_tokens(rows)
        targets_BT = collated.inputs["targets"]
        assert rows.parts is not None and targets_BT is not None  # the corpus was checked before the run began
        targets_BT[torch.from_numpy(rows.parts[:, 1:]) == 0] = IGNORED
        return Collated(collated.inputs, (targets_BT != IGNORED).sum(1))

    def prompt(self, text: str) -> Prompt:
        """What a user says in a conversation, up to where the answer begins; or the first part of a pair."""
        if self.chat is not None:
            return Prompt(self.chat.prompt([{"role": "user", "content": text}]), self.chat.ends)
        tokens, ends = super().prompt(text)
        return Prompt([*tokens, self._borders.eos_id], ends)

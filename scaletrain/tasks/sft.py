"""Supervised fine-tuning: the next token is learnt in a document's second part, such as an assistant's answers.

Documents are packed with borders as in pretraining, so that no place is lost and no example sees another.
"""

import torch

from scaletrain.data.packing import IGNORED
from scaletrain.data.rows import Collated, Rows, next_tokens
from scaletrain.tasks.causal_lm import CausalLMTask


class SFTTask(CausalLMTask):
    """Instruction tuning and dialogue with a causal model."""

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

"""Predictions of a trained model for texts that nobody has prepared: classes, numbers, hidden tokens.

Shapes: B documents of a batch, N documents, T tokens that the model reads.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from scaletrain.corpus.encoding import ExamplePlan, encode_examples
from scaletrain.corpus.examples import take_texts
from scaletrain.corpus.meaning import Meaning
from scaletrain.data.packing import Row
from scaletrain.data.parts import split_parts
from scaletrain.data.rows import Rows
from scaletrain.errors import ConfigError, DataError
from scaletrain.tasks.labelled import LabelledTask
from scaletrain.tasks.masked_lm import MaskedLMTask
from scaletrain.training.trained_run import TrainedRun

_BATCH, _CHUNK = 32, 32 * 32
"""Documents that are computed together, and those among which they are chosen by their length."""
_GUESSES = 5
_WORDS = np.dtype("<u4")


class Record(NamedTuple):
    """A record, parsed, and where it stands, for messages."""

    content: Any
    place: str


class Prediction(NamedTuple):
    """What is said of a record, and whether the end of its text was left out."""

    told: dict[str, Any]
    is_cut: bool


class Predictor:
    """Predicts for records, one after the other."""

    def __init__(self, trained: TrainedRun) -> None:
        """Checks that there is something to predict.

        Args:
            trained: A run of a task that tells something of a text.

        Raises:
            ConfigError: It writes texts.
        """
        task = trained.task
        if not isinstance(task, LabelledTask | MaskedLMTask):
            raise ConfigError(
                f"--run_dir {trained.run_dir} is a run of task {trained.config.task.name}, which writes; use python "
                f"tools/generate.py --run_dir {trained.run_dir} --prompt TEXT"
            )
        self._trained = trained
        self._task = task
        self._module = task.module(trained.model).eval()

    @property
    def longest(self) -> int:
        """Tokens of a text that the model reads at most, with those that mark borders."""
        return self._trained.config.train.max_seq_len

    def predict(self, records: Iterable[Record]) -> Iterator[Prediction]:
        """Predicts in the order of the records.

        Args:
            records: Objects with ``text``, and ``text_pair`` where the run's corpus has pairs.

        Yields:
            For classes ``label`` and ``probabilities``, for numbers ``value``, for hidden tokens ``fills``: of each
            ``<mask>`` in the text the likeliest tokens.

        Raises:
            DataError: A record has no such text.
        """
        remaining = iter(records)
        while chunk := list(islice(remaining, _CHUNK)):
            documents = self._encode(chunk)
            told: dict[int, dict[str, Any]] = {}
            # Documents of one length, so that little is computed for padding.
            order = sorted(range(len(chunk)), key=lambda number: len(documents[number]))
            for first in range(0, len(order), _BATCH):
                numbers = order[first : first + _BATCH]
                told |= dict(zip(numbers, self._tell([documents[number] for number in numbers]), strict=True))
            for number, words in enumerate(documents):
                yield Prediction(told[number], len(words) > self.longest)

    def _encode(self, chunk: Sequence[Record]) -> list[NDArray[np.unsignedinteger]]:
        """Documents as the corpus has them: tokens with their parts."""
        corpus, task = self._trained.corpus, self._task
        texts = [take_texts(*record) for record in chunk]
        for record, text in zip(chunk, texts, strict=True):
            if not corpus.parts and "text_pair" in json.loads(text):
                raise DataError(f"{record.place}: text_pair, but the run has learnt from single texts. Remove it.")
        if isinstance(task, MaskedLMTask):
            return [np.array(task.tokens_of(json.loads(text)["text"]), dtype=_WORDS) for text in texts]
        plan = ExamplePlan("classes", Meaning(corpus.parts))
        tokenizer = self._trained.run_dir / "tokenizer.json"
        return [one.words for one in encode_examples(plan, tokenizer, corpus.borders, _WORDS, texts)]

    @torch.no_grad()
    def _tell(self, documents: Sequence[NDArray[np.unsignedinteger]]) -> list[dict[str, Any]]:
        rows, task = self._rows(documents), self._task
        if isinstance(task, MaskedLMTask):
            fills = task.fill(self._trained.model, rows, _GUESSES)
            return [
                {"fills": [[{"token": text, "probability": chance} for text, chance in guesses] for guesses in row]}
                for row in fills
            ]
        collated = task.collate(rows, seed=0)
        inputs = {key: value.to(self._trained.device) for key, value in collated.inputs.items() if value is not None}
        outputs = self._module(**inputs).outputs_BC
        assert outputs is not None  # in evaluation the head's outputs are told, and values behind them
        return task.tell(outputs[:, : self._trained.config.model.n_classes].float().cpu())

    def _rows(self, documents: Sequence[NDArray[np.unsignedinteger]]) -> Rows:
        """Documents as a dataset would hand them over, with zeros for the values that nobody knows."""
        corpus = self._trained.corpus
        words = np.full((len(documents), self.longest + 1), corpus.borders.eos_id, dtype=_WORDS)
        placed = []
        for row, document in enumerate(documents):
            end = min(len(document), self.longest + 1)
            words[row, :end] = document[:end]
            placed.append(Row((0,), end))
        tokens, parts = split_parts(words) if corpus.parts else (words, None)
        values = np.zeros((len(documents), len(corpus.values)))
        return Rows(tokens, placed, range(len(documents)), parts=parts, values=values)

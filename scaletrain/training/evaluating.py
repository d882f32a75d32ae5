"""Evaluation on the fixed validation set, and samples of generated text."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence

from tokenizers import Tokenizer

from scaletrain.config.schema import EvalConfig
from scaletrain.data.rows import MicroBatch
from scaletrain.engine.engine import Engine
from scaletrain.errors import DataError
from scaletrain.launch.hang.heartbeat import Phase
from scaletrain.monitors.progress import evaluation_line
from scaletrain.protocols import Callback, Run
from scaletrain.tasks.task import Sampling, Task
from scaletrain.training.judging import ByteCount, figures_of, write_texts

logger = logging.getLogger(__name__)


class Evaluating(Callback):
    """Evaluates every so many steps and at the end."""

    def __init__(
        self,
        engine: Engine,
        config: EvalConfig,
        batches: Callable[[], Iterator[MicroBatch]],
        tokenizer: Tokenizer,
        seed: int,
        max_context: int,
        source_names: Sequence[str],
        task: Task,
    ) -> None:
        """Holds what an evaluation needs.

        Args:
            engine: The model on all ranks.
            config: How often, and the prompts of samples.
            batches: Makes this rank's part of the validation set anew.
            tokenizer: Gives the bytes of tokens.
            seed: Of the samples.
            max_context: Tokens that the model was trained to see.
            source_names: Of the sources of the set; without any there are only samples.
            task: Says by what a model is judged.
        """
        self._engine = engine
        self._config = config
        self._batches = batches
        self._seed = seed
        self._max_context = max_context
        self._source_names = source_names
        self._task = task
        self._count_bytes = ByteCount(task, tokenizer)
        self._evaluated_at: int | None = None
        self._samples: list[tuple[str, str]] = []
        self._fetched: list[MicroBatch] | None = None

    def on_start(self, run: Run) -> None:
        """Forgets what a run that went back had evaluated."""
        self._evaluated_at = None

    def on_step_end(self, run: Run, metrics: dict[str, float]) -> None:
        """Evaluates when it is time."""
        every = self._config.every_steps
        # The last step's too, so that its loss stands in the last checkpoint.
        if (every and run.state.step % every == 0) or run.state.step >= run.max_steps:
            self._evaluate(run)

    def on_end(self, run: Run) -> None:
        """Evaluates a complete run's last weights."""
        if run.state.step >= run.max_steps and self._evaluated_at != run.state.step:
            self._evaluate(run)

    @property
    def samples(self) -> list[tuple[str, str]]:
        """Prompts and continuations of the last evaluation."""
        return self._samples

    def _fetch(self) -> list[MicroBatch]:
        """This rank's part of the set, read once; a rank that cannot read it takes all others with it."""
        if self._fetched is None:
            found: list[MicroBatch] = []
            problem = ""
            try:
                found = list(self._batches())
            except DataError as error:
                problem = str(error)
            if self._engine.agree((), (bool(problem),)).requests[0]:
                raise DataError("\n".join(dict.fromkeys(filter(None, self._engine.collect_texts(problem)))))
            self._fetched = found
        return self._fetched

    def _evaluate(self, run: Run) -> None:
        start_s = time.perf_counter()
        self._evaluated_at = run.state.step
        with self._engine.heartbeat.during(Phase.EVAL):
            metrics = self._judge(run) if self._source_names else {}
            self._samples = [self._continue(prompt, index) for index, prompt in enumerate(self._config.prompts)]
        told = {"judged_by": dict(self._task.judged_by)} if self._task.judged_by else {}
        seconds = time.perf_counter() - start_s
        self._engine.heartbeat.observe(Phase.EVAL, seconds)
        run.record_event("evaluated", seconds=round(seconds, 3), **told)
        run.notify("on_eval", metrics)

    def _judge(self, run: Run) -> dict[str, float]:
        sums = self._engine.evaluate(iter(self._fetch()), self._count_bytes)
        metrics = figures_of(sums, self._task, self._source_names)
        if self._task.writes:
            metrics |= self._judge_texts()
        if run.is_main:
            logger.info(evaluation_line(run.state.step, metrics))
        return metrics

    def _continue(self, prompt: str, index: int) -> tuple[str, str]:
        sampling = Sampling(
            self._config.sample_tokens,
            self._config.temperature,
            self._seed + index,
            self._max_context,
            self._engine.broadcast_number,
        )
        with self._engine.generating() as model:
            text = self._task.sample(model, prompt, sampling)
        return prompt, text if self._task.continues else "\n" + text

    def _judge_texts(self) -> dict[str, float]:
        """Has the model write texts for the first examples of the set."""
        # The ranks hold equally many micro batches, of equally many rows.
        batches, engine = self._fetch(), self._engine
        size = len(batches[0]["targets"]) * engine.world_size
        first = batches[: -(-self._config.max_texts // size)]
        limit = self._config.sample_tokens
        with engine.generating() as model:
            written = write_texts(self._task, model, first, limit, engine.device, engine.all_are, engine.gather)
        return self._task.text_figures(written[: self._config.max_texts])


def format_samples(samples: Sequence[tuple[str, str]]) -> str:
    """Lays generated texts out below each other.

    Args:
        samples: Prompts and their continuations.

    Returns:
        One text; a line of dashes between samples.
    """
    return "\n----------\n".join(prompt + text for prompt, text in samples)

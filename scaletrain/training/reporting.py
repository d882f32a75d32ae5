"""Writes metrics and prints progress."""

import logging
from collections.abc import Callable, Sequence

import psutil
import torch

from scaletrain.monitors import names
from scaletrain.monitors.jsonl_writer import JsonlWriter
from scaletrain.monitors.progress import Progress, progress_line
from scaletrain.monitors.throughput import Throughput
from scaletrain.monitors.writers import ImageWriter, MetricWriter
from scaletrain.protocols import Callback, Run
from scaletrain.training.evaluating import Evaluating, format_samples
from scaletrain.training.rollback import RollBack
from scaletrain.training.stragglers import Stragglers

logger = logging.getLogger(__name__)

_GIB = 2**30


class Reporting(Callback):
    """Sends metrics to the writers, and a progress line to the log; on rank 0 only."""

    def __init__(
        self,
        every_step: Sequence[JsonlWriter],
        every_interval: Sequence[MetricWriter],
        interval_steps: int,
        timing: Throughput,
        epochs: Callable[[int], dict[str, float]],
        config_text: str,
        evaluating: Evaluating,
        stragglers: Stragglers | None = None,
    ) -> None:
        """Holds the writers.

        Args:
            every_step: Writers that get every step.
            every_interval: Writers that get a step in ``interval_steps``, the first and the last step.
            interval_steps: Interval of those, and of progress lines.
            timing: Gives the time left.
            epochs: Gives the passes over each source after so many sequences, as metrics.
            config_text: The resolved configuration.
            evaluating: Gives the samples.
            stragglers: Gives the picture of all ranks; None where nobody compares them.
        """
        self._every_step = every_step
        self._every_interval = every_interval
        self._interval_steps = interval_steps
        self._timing = timing
        self._epochs = epochs
        self._config_text = config_text
        self._evaluating = evaluating
        self._stragglers = stragglers

    def on_start(self, run: Run) -> None:
        """Writes the configuration as text."""
        self._write_text(names.TEXT_CONFIG, run.state.step, self._config_text)

    def on_step_end(self, run: Run, metrics: dict[str, float]) -> None:
        """Writes the step's metrics."""
        if not run.is_main:
            return
        metrics.update(self._epochs(run.state.sequences))
        metrics[names.DATA_SEQUENCES] = float(run.state.sequences)
        metrics[names.OPTIM_STEPS] = float(run.state.optimizer_steps)
        metrics[names.MEM_RESERVED_GIB] = _reserved_gib()
        if run.state.skipped:
            metrics[names.DATA_SKIPPED_SHARDS] = float(len({(one.source, one.shard) for one in run.state.skipped}))
        step = run.state.step
        picture = None if self._stragglers is None else self._stragglers.take_picture()
        if picture is not None:
            for shower in self._every_interval:
                if isinstance(shower, ImageWriter):
                    shower.write_image(names.IMAGE_STRAGGLERS, step, picture)
        for record in self._every_step:
            record.write(step, {**metrics, names.DATA_BATCH_HASH: run.batch_hash})
        if step % self._interval_steps and step not in (1, run.max_steps):
            return
        for writer in self._every_interval:
            writer.write(step, metrics)
        progress = Progress(
            step,
            run.max_steps,
            metrics[names.TRAIN_LOSS],
            metrics[names.OPTIM_LR],
            self._timing.tokens_per_s,
            self._timing.mfu,
            self._timing.time_left_s(run.max_steps - step),
        )
        logger.info(progress_line(progress))

    def on_eval(self, run: Run, metrics: dict[str, float]) -> None:
        """Writes the evaluation's metrics and samples."""
        for writer in (*self._every_step, *self._every_interval):
            writer.write(run.state.step, metrics)
        if self._evaluating.samples:
            self._write_text(names.TEXT_SAMPLES, run.state.step, format_samples(self._evaluating.samples))

    def on_exception(self, run: Run, error: BaseException) -> None:
        """Keeps what was measured; a run that goes back goes on with the writers of every step."""
        self._close(() if isinstance(error, RollBack) else self._every_step)

    def on_end(self, run: Run) -> None:
        """Closes the writers; this callback comes last."""
        self._close(self._every_step)

    def _write_text(self, name: str, step: int, text: str) -> None:
        # Texts are for people: metrics.jsonl holds numbers, and stays empty until a step was taken.
        for writer in self._every_interval:
            writer.write_text(name, step, text)

    def _close(self, every_step: Sequence[JsonlWriter]) -> None:
        for writer in (*every_step, *self._every_interval):
            writer.close()


def _reserved_gib() -> float:
    """Memory this rank holds: reserved by torch on its GPU, resident without one."""
    if torch.cuda.is_available():
        return torch.cuda.memory_reserved() / _GIB
    return float(psutil.Process().memory_info().rss) / _GIB

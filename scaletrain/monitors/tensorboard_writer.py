"""TensorBoard: the metrics of a run as curves, its configuration and samples as text."""

from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

# A curve should follow the run, and a killed process lose little of it.
_FLUSH_S = 5


class TensorBoardWriter:
    """Writes event files that ``tensorboard --logdir`` shows.

    Args:
        folder: Folder of the event files; made if missing.
        first_step: The first step that will be written. What earlier attempts wrote at this step and later is hidden,
            so that steps done again do not show twice.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self._writer = SummaryWriter(str(folder), purge_step=first_step, flush_secs=_FLUSH_S)

    def write(self, step: int, metrics: Mapping[str, int | float]) -> None:
        """Adds a point to the curve of each metric.

        Args:
            step: Global batches consumed.
            metrics: Values by name.
        """
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def write_text(self, name: str, step: int, text: str) -> None:
        """Adds a text, shown as it is.

        Args:
            name: Name of the text.
            step: Global batches consumed.
            text: The text; no character of it is taken for markup.
        """
        # TensorBoard renders Markdown, in which indented lines are shown literally.
        literal = "\n".join("    " + line for line in text.splitlines())
        self._writer.add_text(name, literal, step)

    def close(self) -> None:
        """Writes what is left; a second call does nothing."""
        self._writer.close()

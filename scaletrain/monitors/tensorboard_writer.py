"""TensorBoard: the metrics of a run as curves, its configuration and samples as text."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from scaletrain.monitors.rank_heat_map import Pixels

logger = logging.getLogger(__name__)

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
        self._folder = folder
        self._writer: SummaryWriter | None = None
        self._purge_step: int | None = first_step  # until a file begins with it
        self._is_refused = False

    def write(self, step: int, metrics: Mapping[str, int | float]) -> None:
        """Adds a point to the curve of each metric. What the file system refuses is missing in the curves.

        Args:
            step: Global batches consumed.
            metrics: Values by name.
        """

        def add_points(writer: SummaryWriter) -> None:
            for name, value in metrics.items():
                writer.add_scalar(name, value, step)

        self._try(add_points)

    def write_text(self, name: str, step: int, text: str) -> None:
        """Adds a text, shown as it is.

        Args:
            name: Name of the text.
            step: Global batches consumed.
            text: The text; no character of it is taken for markup.
        """
        # TensorBoard renders Markdown, in which indented lines are shown literally.
        literal = "\n".join("    " + line for line in text.splitlines())
        self._try(lambda writer: writer.add_text(name, literal, step))

    def write_image(self, name: str, step: int, pixels: Pixels) -> None:
        """Adds a picture.

        Args:
            name: Name of the picture.
            step: Global batches consumed.
            pixels: Red, green and blue, of shape (height, width, 3).
        """
        self._try(lambda writer: writer.add_image(name, pixels, step, dataformats="HWC"))

    def close(self) -> None:
        """Writes what is left; a second call does nothing."""
        if self._writer is not None:
            self._try(lambda writer: writer.close())

    def _try(self, use: Callable[[SummaryWriter], None]) -> None:
        """With a new writer and a new file where the one before could not write, which it never does again."""
        try:
            if self._writer is None:
                self._writer = SummaryWriter(str(self._folder), purge_step=self._purge_step, flush_secs=_FLUSH_S)
                self._purge_step = None
            use(self._writer)
            self._is_refused = False
        except OSError as error:
            if not self._is_refused:
                logger.error("TensorBoard's files in %s cannot be written: %s", self._folder, error.strerror)
            self._writer, self._is_refused = None, True

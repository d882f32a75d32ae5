"""A picture of all ranks over time: how slow each was, by cause, in the last windows."""

from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from scaletrain.monitors.stragglers import CAUSES, Cause

Pixels = NDArray[np.uint8]

_WINDOWS = 80
_CELL_WIDTH = 8
_PANEL_HEIGHT = 192
_LARGEST_CELL_HEIGHT = 16
_LEFT, _TOP, _BELOW = 56, 18, 22
_TITLES: Mapping[Cause, str] = {
    "compute": "slow to compute",
    "data": "slow to get data",
    "link": "slow link",
}
# As usual, at the limit from which on a rank is slow, and at twice that and more.
_LEVELS = (0.0, 1.0, 2.0)
_COLOURS = ((247, 247, 247), (244, 165, 130), (178, 24, 43))
_UNKNOWN = (200, 210, 220)
_INK = (40, 40, 40)


class RankHeatMap:
    """Keeps the last windows, and draws them: a panel for each cause, a row for each rank, a column for each window.

    Of more ranks than a panel has rows for, several share one: the slowest of them is shown.

    Args:
        world_size: Number of ranks.
    """

    def __init__(self, world_size: int) -> None:
        self._world_size = world_size
        self._windows: deque[Mapping[Cause, Sequence[float]]] = deque(maxlen=_WINDOWS)
        self._last_step = 0

    def add(self, step: int, severities: Mapping[Cause, Sequence[float]]) -> None:
        """Takes in a window.

        Args:
            step: At which it ended.
            severities: By cause and rank: 0 is usual, from 1 on it counts as slow.
        """
        self._windows.append(severities)
        self._last_step = step

    def draw(self) -> Pixels:
        """Draws the windows so far.

        Returns:
            Red, green and blue, 0 to 255, of shape (height, width, 3).
        """
        per_row = -(-self._world_size // _PANEL_HEIGHT)
        rows = -(-self._world_size // per_row)
        cell_height = max(1, min(_LARGEST_CELL_HEIGHT, _PANEL_HEIGHT // rows))
        panel_height = _TOP + rows * cell_height + _BELOW
        image = Image.new("RGB", (_LEFT + _WINDOWS * _CELL_WIDTH + _CELL_WIDTH, panel_height * len(CAUSES)), "white")
        pen = ImageDraw.Draw(image)
        for panel, cause in enumerate(CAUSES):
            top = panel * panel_height + _TOP
            pen.text((_LEFT, top - 14), _TITLES[cause], fill=_INK)
            cells = self._cells(cause, rows, per_row).repeat(cell_height, axis=0).repeat(_CELL_WIDTH, axis=1)
            image.paste(Image.fromarray(cells), (_LEFT, top))
            step_between_labels = -(-12 // cell_height)
            for row in range(0, rows, step_between_labels):
                pen.text((4, top + row * cell_height), f"rank {row * per_row}", fill=_INK)
            # The newest window stands at the right.
            pen.text((_LEFT, top + rows * cell_height + 3), f"windows, up to step {self._last_step}", fill=_INK)
        return np.asarray(image)

    def _cells(self, cause: Cause, rows: int, per_row: int) -> Pixels:
        severities = np.full((rows * per_row, _WINDOWS), -np.inf)
        first = _WINDOWS - len(self._windows)
        for column, window in enumerate(self._windows, start=first):
            if cause in window:
                severities[: self._world_size, column] = window[cause]
        worst = severities.reshape(rows, per_row, _WINDOWS).max(axis=1)
        channels = [np.interp(worst, _LEVELS, [colour[place] for colour in _COLOURS]) for place in range(3)]
        cells = np.stack(channels, axis=-1).astype(np.uint8)
        cells[np.isneginf(worst)] = _UNKNOWN
        return cells

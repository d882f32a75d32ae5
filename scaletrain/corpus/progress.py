"""How far a build is: a bar on a terminal, a line now and then in a log."""

import contextlib
import logging
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from scaletrain.monitors.progress import format_count, format_duration

logger = logging.getLogger(__name__)

LOG_EVERY_S = 10.0
_REFRESH_S = 0.2


class BuildProgress(contextlib.AbstractContextManager["BuildProgress"]):
    """Shows documents, megabytes and tokens a second, and the time left."""

    def __init__(self, what: str, share_done: Callable[[], float] | None = None) -> None:
        """Shows nothing yet.

        Args:
            what: What is being done, "tokenizing" for instance.
            share_done: Share of the input that is read, 0 to 1; None where that is not known.
        """
        self._what = what
        self._share_done = share_done
        self._bytes = self._documents = self._tokens = 0
        self._start = self._shown = time.monotonic()
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._streams: list[logging.StreamHandler[TextIO]] = []

    def advance(self, n_bytes: int, n_tokens: int) -> None:
        """Counts a document.

        Args:
            n_bytes: Of its text.
            n_tokens: Made of it.
        """
        self._documents += 1
        self._bytes += n_bytes
        self._tokens += n_tokens
        now = time.monotonic()
        if now - self._shown < (_REFRESH_S if self._bar else LOG_EVERY_S):
            return
        self._shown = now
        share = min(1.0, self._share_done()) if self._share_done else None
        if self._bar:
            self._bar.update(self._task, completed=share, rates=self._rates(now))
        else:
            left = f", {format_duration((now - self._start) * (1 - share) / share)} left" if share else ""
            done = "" if share is None else f" {share:4.0%}"
            logger.info("%s%s: %s%s", self._what, done, self._rates(now), left)

    def __enter__(self) -> "BuildProgress":
        self._start = self._shown = time.monotonic()
        if sys.stderr.isatty() and self._share_done is not None:
            self._open_bar()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        seconds = max(1e-9, time.monotonic() - self._start)
        if self._bar:
            if kind is None:
                self._bar.update(self._task, completed=1.0, rates=self._rates(time.monotonic()))
            self._bar.stop()
            for handler in self._streams:
                handler.setStream(sys.stderr)
        if kind is None and seconds > 1:
            logger.info("%s took %s: %s", self._what, format_duration(seconds), self._rates(time.monotonic()))

    def _open_bar(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f}%"))
        self._bar = Progress(
            *columns, TextColumn("{task.fields[rates]}"), TimeRemainingColumn(), console=Console(stderr=True)
        )
        original = sys.stderr
        self._task = self._bar.add_task(self._what, total=1.0, rates="")
        self._bar.start()
        # Log lines go above the bar, through the stream that rich has put in place of standard error.
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is original:
                handler.setStream(sys.stderr)
                self._streams.append(handler)

    def _rates(self, now: float) -> str:
        seconds = max(1e-9, now - self._start)
        rates = [
            f"{format_count(self._documents / seconds)} documents/s",
            f"{self._bytes / seconds / 1e6:.1f} MB/s",
        ]
        if self._tokens:
            rates.append(f"{format_count(self._tokens / seconds)} tokens/s")
        return ", ".join(rates)

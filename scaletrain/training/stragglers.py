"""Has the ranks compare how long they compute, wait for data and take to answer, and names the slow ones."""

import logging
import math
from collections.abc import Callable
from dataclasses import asdict
from statistics import fmean

from scaletrain.config.monitor_schema import StragglersConfig
from scaletrain.engine.engine import Engine
from scaletrain.engine.link_probe import neighbour_stride
from scaletrain.monitors import names
from scaletrain.monitors.rank_heat_map import Pixels, RankHeatMap
from scaletrain.monitors.stragglers import CAUSES, RankTimes, StragglerJudge, link_times, parts_of
from scaletrain.protocols import Callback, Run
from scaletrain.ranks import Ranks

logger = logging.getLogger(__name__)

STRAGGLER_EVENT = "straggler"
STRAGGLER_OVER_EVENT = "straggler_over"

_METRICS = {
    "compute": names.STRAGGLER_MAX_COMPUTE_SHARE,
    "data": names.STRAGGLER_MAX_DATA_SHARE,
    "link": names.STRAGGLER_MAX_LINK_SHARE,
}
_PICTURE_EVERY_WINDOWS = 40
"""Half of what a picture shows: each window is in two of them."""


class Stragglers(Callback):
    """Gathers the times of all ranks at the end of each window, and has them judged, on all ranks alike."""

    def __init__(
        self,
        engine: Engine,
        ranks: Ranks,
        config: StragglersConfig,
        interval_steps: int,
        note_slow: Callable[[frozenset[int]], None],
    ) -> None:
        """Begins with nothing known.

        Args:
            engine: Times computation and links, and lets the ranks tell each other.
            ranks: The place of this process.
            config: What the user wants of it.
            interval_steps: Interval of metrics.
            note_slow: Is told which ranks are slow to compute.
        """
        self._engine, self._config = engine, config
        self._interval_steps, self._note_slow = interval_steps, note_slow
        self._host = ranks.host
        self._stride: int | None = None
        self._judge: StragglerJudge | None = None
        self._heat_map = RankHeatMap(ranks.world_size)
        self._picture: Pixels | None = None
        self._metrics: dict[str, float] = {}
        self._steps: list[tuple[float, float, float]] | None = None
        self._windows = 0

    def on_start(self, run: Run) -> None:
        """Begins a window."""
        if self._judge is None:
            hosts = self._engine.gather(self._host)
            self._stride = neighbour_stride(hosts)
            self._judge = StragglerJudge(hosts, self._config.slowdown)
        self._steps = None

    def on_step_end(self, run: Run, metrics: dict[str, float]) -> None:
        """Notes the step's times, and compares the ranks where a window ends."""
        if self._steps is None:  # the first step compiles, and waits for the first data
            self._steps = []
            return
        self._steps.append(
            (metrics[names.PERF_STEP_TIME_S], metrics[names.PERF_DATA_WAIT_S], self._engine.clock.read_s())
        )
        if len(self._steps) == self._config.every_steps:
            self._compare(run)
            self._steps.clear()
        if self._metrics and run.state.step % self._interval_steps == 0:
            metrics.update(self._metrics)
            self._metrics = {}

    def take_picture(self) -> Pixels | None:
        """The ranks over time, where there is a picture that was not taken yet; on rank 0 only."""
        taken, self._picture = self._picture, None
        return taken

    def _compare(self, run: Run) -> None:
        assert self._judge is not None and self._steps is not None  # the run has started
        steps_s, waits_s, computes_s = zip(*self._steps, strict=True)
        own = (
            fmean(steps_s),
            fmean(waits_s),
            math.nan if self._stride is None else self._engine.round_trip_s(self._stride),
            *map(self._engine.clock.typical_s, (computes_s, *parts_of(computes_s))),
        )
        gathered = self._engine.gather_numbers(own)
        trips_s = [numbers[2] for numbers in gathered]
        links = trips_s if self._stride is None else link_times(trips_s, self._stride)
        window = [
            RankTimes(step_s, data_s, compute_s, parts_s, link_s)
            for (step_s, data_s, _, compute_s, *parts_s), link_s in zip(gathered, links, strict=True)
        ]
        before = {cause: self._judge.named(cause) for cause in CAUSES}
        found = self._judge.judge(window)
        self._note_slow(self._judge.named("compute"))
        if not run.is_main:
            return
        for one in found:
            logger.warning("straggler: %s", one.describe())
            run.record_event(STRAGGLER_EVENT, **asdict(one), text=one.describe())
        for cause, named in before.items():
            if recovered := sorted(named - self._judge.named(cause)):
                logger.info("no stragglers any more for %s: ranks %s", cause, ", ".join(map(str, recovered)))
                run.record_event(STRAGGLER_OVER_EVENT, cause=cause, ranks=recovered)
        self._metrics = {_METRICS[cause]: share for cause, share in self._judge.worst_shares.items()}
        self._metrics[names.STRAGGLER_COUNT] = float(len(self._judge.slow))
        self._heat_map.add(run.state.step, self._judge.severities)
        self._windows += 1
        # Often at first, so that there is something to see.
        if found or self._windows & (self._windows - 1) == 0 or self._windows % _PICTURE_EVERY_WINDOWS == 0:
            self._picture = self._heat_map.draw()

"""Has the nodes looked after while a run trains: metrics, events, health.json, and the end of a run on a sick node."""

import logging
import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from scaletrain.config.monitor_schema import HealthConfig
from scaletrain.errors import HealthError, ScaletrainError
from scaletrain.hardware.host_judging import HostJudge
from scaletrain.hardware.judging import Judge
from scaletrain.hardware.repairs import RepairHistory
from scaletrain.hardware.rules import load_both_rules
from scaletrain.launch.endings import end_at_once
from scaletrain.launch.run_dir import RunDirectory
from scaletrain.launch.verdicts import Ending
from scaletrain.monitors.node_health import open_sampler
from scaletrain.monitors.run_health import history_path
from scaletrain.protocols import Callback, Run
from scaletrain.ranks import Ranks
from scaletrain.training.node_view import NodeView
from scaletrain.training.node_watch import NodeWatch, Place
from scaletrain.training.rollback import RollBack
from scaletrain.training.signals import Sickness, StopRequests

logger = logging.getLogger(__name__)

_LONGEST_WAIT_S = 1800.0
"""Until a drain no longer waits for a checkpoint: to save once more costs less than what may be lost."""
_LAST_LOOK_S = 3.0


class NodeMonitor(Callback):
    """Takes what the thread of this node left; a step costs it a few comparisons.

    It stands first among the callbacks: all see the metrics that it adds, and it is the last to hear of an end.
    """

    def __init__(
        self,
        seen: NodeWatch | NodeView,
        stop: StopRequests,
        gather: Callable[[Any], list[Any]],
        interval_steps: int,
        waits_for_save: bool,
        longest_wait_s: float = _LONGEST_WAIT_S,
    ) -> None:
        """Holds what it takes from and whom it tells.

        Args:
            seen: Looks after this node, or sees what the rank leaves that does.
            stop: Is asked to end the run.
            gather: What each rank has, on all ranks.
            interval_steps: Interval of metrics.
            waits_for_save: Whether a checkpoint will come by itself.
            longest_wait_s: For how long a drain waits for it, in seconds.
        """
        self._seen, self._stop, self._gather = seen, stop, gather
        self._watch = seen if isinstance(seen, NodeWatch) else None
        self._interval_steps = interval_steps
        self._wait_s = longest_wait_s if waits_for_save else 0.0
        self._drains_since_s: float | None = None

    def on_start(self, run: Run) -> None:
        """Starts the thread."""
        if self._watch is not None:
            self._watch.start(run.record_event)

    def on_step_end(self, run: Run, metrics: dict[str, float]) -> None:
        """Asks for the end of the run where a node is to be drained."""
        if self._watch is None:
            return
        if run.is_main and run.state.step % self._interval_steps == 0:
            metrics.update(self._watch.take_metrics())
        ending = self._watch.ending("drain")
        if ending is None:
            return
        now_s = time.monotonic()
        if self._drains_since_s is None:
            self._drains_since_s = now_s
        if now_s - self._drains_since_s >= self._wait_s:
            self._ask(ending)

    def on_save(self, run: Run, folder: Path) -> None:
        """A drain has waited for this."""
        ending = None if self._watch is None else self._watch.ending("drain")
        if ending is not None:
            self._ask(ending)

    def on_exception(self, run: Run, error: BaseException) -> None:
        """Looks once more: an error of a library may be the first that a run hears of a GPU that is gone.

        Raises:
            HealthError: A GPU of this node is sick.
        """
        if isinstance(error, RollBack):
            return
        is_unexplained = not isinstance(error, ScaletrainError)
        # Only an error that nobody has explained yet, or a node that another rank has named, is worth waiting for.
        if isinstance(self._seen, NodeView):
            if is_unexplained and isinstance(error, Exception):
                self._seen.await_look(_LAST_LOOK_S)
        elif (
            self._seen.has_gpus and isinstance(error, Exception) and (is_unexplained or isinstance(error, HealthError))
        ):
            self._seen.look_again(_LAST_LOOK_S)
        if self._watch is not None:
            self._watch.close()
        ending = self._seen.ending("abort")
        if ending is not None and is_unexplained:
            raise HealthError(f"{ending.reason}. Before it was known: {error}", ending.hosts) from error

    def on_end(self, run: Run) -> None:
        """Brings together what the nodes have found last."""
        nodes = [one for one in self._gather(None if self._watch is None else self._watch.node) if one is not None]
        if self._watch is None:
            return
        self._watch.close()
        if run.is_main:
            self._watch.gather(nodes)

    def _ask(self, ending: Ending) -> None:
        if self._stop.sickness is None:
            self._stop.sickness = Sickness(ending, may_save=True)


def open_watch(
    config: HealthConfig,
    folder: RunDirectory,
    attempt: int,
    ranks: Ranks,
    folders: Mapping[str, Path],
    counts_on_gpus: bool,
    stop: StopRequests,
) -> NodeWatch | NodeView:
    """Makes what looks after this node, on its first rank, and what sees that on the others.

    Args:
        config: What the user wants of it.
        folder: The run's folder.
        attempt: Number of this start.
        ranks: The place of this process.
        folders: Folders whose room is told, by what they are for.
        counts_on_gpus: Whether each rank of the node computes on a GPU.
        stop: Is asked to end the run.

    Returns:
        The watch, which is not started yet, or the view.

    Raises:
        ConfigError: The rules cannot be used.
    """
    if ranks.local_rank != 0:
        return NodeView(folder.path, attempt, ranks.rank - ranks.local_rank, config.every_s)
    rules, host_rules = load_both_rules(config.rules)
    history = RepairHistory(history_path(folder.path, ranks.host))
    judge = Judge(rules, "running", ranks.local_world_size if counts_on_gpus else None, history)

    def demand(ending: Ending) -> None:
        stop.sickness = Sickness(ending, may_save=False)

    host_judge = HostJudge(host_rules)
    sampler = partial(open_sampler, ranks.host, ranks.rank, rules, judge, host_judge, folders, os.environ)
    place = Place(folder.path, attempt, ranks.is_main)
    leave = partial(end_at_once, folder, attempt, ranks, event="abort")
    return NodeWatch(sampler, config.every_s, place, demand, leave)

"""The thread that looks after a node beside the training, and what it leaves for the step to take."""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from scaletrain.hardware.rules import Severity
from scaletrain.launch.verdicts import Ending
from scaletrain.monitors.node_health import NodeHealth, NodeSampler, ending_of
from scaletrain.monitors.run_health import News, metrics_of, read_nodes, write_node, write_report

logger = logging.getLogger(__name__)

FINDING_EVENT = "health_finding"

_GRACE_S = 10.0
"""Time for the ranks to end together; a launcher kills the others 30 s after one that has failed by itself."""
_CLOSE_S = 1.0
_OLD_S = 60.0
_LEVELS: Mapping[str, int] = {"info": logging.INFO, "warn": logging.WARNING}


@dataclass(frozen=True)
class Place:
    """Where the thread leaves what it finds.

    Attributes:
        run_dir: The run's folder.
        attempt: Which start of the run.
        is_main: Whether this rank gathers what all nodes tell.
    """

    run_dir: Path
    attempt: int
    is_main: bool


class NodeWatch:
    """Looks after a node, on a thread of its own.

    Args:
        open_sampler: Makes what looks; called on the thread.
        every_s: Pause between two looks, in seconds.
        place: Where it leaves what it finds.
        demand: Asks the loop to end without a save.
        end_at_once: Ends this process where the loop does not do so soon.

    Attributes:
        has_gpus: Whether there is a driver of GPUs to ask.
        grace_s: For how long the loop may go on when it was asked to end at once.
    """

    def __init__(
        self,
        open_sampler: Callable[[], NodeSampler],
        every_s: float,
        place: Place,
        demand: Callable[[Ending], None],
        end_at_once: Callable[[Ending], None],
    ) -> None:
        self._open_sampler, self._every_s, self._place = open_sampler, every_s, place
        self._demand, self._end_at_once = demand, end_at_once
        self._thread: threading.Thread | None = None
        self._wake, self._looked = threading.Event(), threading.Event()
        self._is_closing = False
        self._began_s = 0.0
        self._heard = News()
        self._metrics: dict[str, float] = {}
        self._demanded_s: float | None = None
        self._complaints: set[str] = set()
        self._node: NodeHealth | None = None
        self.has_gpus = False
        self._slow_ranks: frozenset[int] = frozenset()
        self.grace_s = _GRACE_S

    def start(self, record: Callable[..., None]) -> None:
        """Starts to look, where it has not begun yet.

        Args:
            record: Adds to the run's diary, as ``Run.record_event``; called on the thread.
        """
        self._record = record
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="node-watch", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Ends the thread, without waiting for a driver that does not answer."""
        self._is_closing = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(_CLOSE_S)

    def note_slow(self, slow_ranks: frozenset[int]) -> None:
        """Takes note of which ranks hold the others up; what slows their GPUs down weighs more from the next look on.

        Args:
            slow_ranks: Of the run, those that are slow to compute.
        """
        self._slow_ranks = slow_ranks

    @property
    def node(self) -> NodeHealth | None:
        """What the node has told last; None before the first look."""
        return self._node

    def ending(self, severity: Severity) -> Ending | None:
        """How the run has to end by what this node told; see ``ending_of``."""
        return None if self._node is None else ending_of(self._node.current, severity)

    def look_again(self, within_s: float) -> None:
        """Has the thread look now, and waits until it has, but no longer than told.

        Args:
            within_s: The longest wait, in seconds.
        """
        asked_s = time.monotonic()
        while (left_s := asked_s + within_s - time.monotonic()) > 0 and self._began_s < asked_s:
            # A look that was under way may have passed what has happened since.
            self._looked.clear()
            self._wake.set()
            self._looked.wait(left_s)

    def take_metrics(self) -> dict[str, float]:
        """The last numbers of all nodes that were not taken yet; only where this rank gathers them."""
        taken, self._metrics = self._metrics, {}
        return taken

    def gather(self, nodes: Sequence[NodeHealth]) -> None:
        """Takes in what nodes told, and writes health.json; what is new goes to the log, and becomes events.

        It does so at once: a finding may explain why the step under way does not end.

        Args:
            nodes: All that have told anything.
        """
        new = self._heard.take(nodes)
        for one in new:
            logger.log(_LEVELS.get(one.severity, logging.ERROR), "%s: %s: %s", one.severity, one.host, one.text)
            self._record(FINDING_EVENT, **asdict(one))
        try:
            write_report(self._place.run_dir, self._place.attempt, nodes)
        except OSError as error:
            self._complain(f"health.json cannot be written: {error.strerror}")

    def _run(self) -> None:
        try:
            sampler = self._open_sampler()
        except Exception:  # whatever is wrong with looking: the training is not
            logger.exception("nobody looks after this node")
            return
        self.has_gpus = sampler.has_gpus
        if not self.has_gpus:
            logger.info("no NVIDIA GPUs here: only what the host tells is watched")
        next_s = time.monotonic()
        while not self._is_closing:
            self._wake.clear()
            began_s = time.monotonic()
            try:
                self._look(sampler)
            except Exception:  # one look that failed, whatever of: the next may not
                self._complain("a look at this node failed", trace=True)
            self._began_s = began_s
            self._looked.set()
            self._act()
            next_s = max(next_s + self._every_s, time.monotonic())
            self._wake.wait(self._pause_s(next_s))
            self._act()  # before the driver is asked again, which may take long where it is sick
        sampler.close()

    def _look(self, sampler: NodeSampler) -> None:
        node = sampler.sample(self._slow_ranks)
        try:
            self._tell(node)
        finally:
            self._node = node  # last: what is done about a finding stands behind it in the diary

    def _tell(self, node: NodeHealth) -> None:
        try:
            write_node(self._place.run_dir, self._place.attempt, node)
        except OSError as error:
            self._complain(f"the health of this node cannot be written: {error.strerror}")
        if not self._place.is_main:
            for one in self._heard.take([node]):
                logger.warning("%s: %s: %s", one.severity, one.host, one.text)
        else:
            others = [one for one in read_nodes(self._place.run_dir, self._place.attempt) if one.rank != node.rank]
            nodes = [node, *others]
            self.gather(nodes)
            self._metrics = metrics_of(nodes, time.time() - 3 * self._every_s - _OLD_S)

    def _act(self) -> None:
        ending = self.ending("abort")
        if ending is None or self._is_closing:
            return
        if self._demanded_s is None:
            self._demanded_s = time.monotonic()
            self._demand(ending)
        elif time.monotonic() - self._demanded_s >= self.grace_s:
            self._end_at_once(ending)

    def _pause_s(self, next_s: float) -> float:
        now_s = time.monotonic()
        left_s = next_s - now_s
        if self._demanded_s is not None:
            left_s = min(left_s, self._demanded_s + self.grace_s - now_s)
        return max(0.0, left_s)

    def _complain(self, problem: str, trace: bool = False) -> None:
        if problem not in self._complaints:
            self._complaints.add(problem)
            logger.warning("%s; said once", problem, exc_info=trace)

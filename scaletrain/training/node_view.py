"""What a rank sees of its node that does not look after it: what the node's first rank leaves of its looks."""

import time
from pathlib import Path

from scaletrain.hardware.rules import Severity
from scaletrain.launch.verdicts import Ending, verdict_path
from scaletrain.monitors.node_health import NodeHealth, ending_of
from scaletrain.monitors.run_health import read_node

_LONGEST_PAUSE_S = 30.0
_TICK_S = 0.1


class NodeView:
    """The node, as its first rank tells of it.

    Args:
        run_dir: The run's folder.
        attempt: Which start of the run.
        first_rank: The first rank of the node.
        every_s: Pause between two of its looks, in seconds.
    """

    def __init__(self, run_dir: Path, attempt: int, first_rank: int, every_s: float) -> None:
        self._run_dir, self._attempt, self._first_rank = run_dir, attempt, first_rank
        self._pause_s = min(every_s, _LONGEST_PAUSE_S)

    @property
    def node(self) -> NodeHealth | None:
        """What the node has told last; None before the first look."""
        return read_node(self._run_dir, self._attempt, self._first_rank)

    def ending(self, severity: Severity) -> Ending | None:
        """How the run has to end by what the node told; see ``ending_of``."""
        node = self.node
        return None if node is None else ending_of(node.current, severity)

    def await_look(self, within_s: float) -> None:
        """Waits for a look that begins from now on; not where there are no GPUs, or nobody looks any more.

        Args:
            within_s: The longest wait, in seconds, from when that look is due.
        """
        asked_s, began_s = time.time(), time.monotonic()
        ended = verdict_path(self._run_dir, self._attempt, self._first_rank, pid=0)
        while time.monotonic() - began_s < self._pause_s + within_s:
            node = self.node
            if node is None or node.driver == "absent" or node.time_s >= asked_s or ended.exists():
                return
            time.sleep(_TICK_S)

"""Has the ranks agree on how long each phase may last."""

from scaletrain.engine.engine import Engine
from scaletrain.protocols import Callback, Run

_EVERY_STEPS = 50


class PhaseLimits(Callback):
    """Tells the heartbeat the longest that any rank has seen each phase last, often at first and then now and then.

    So a rank that is quick by itself is as patient as the slowest one: that of a node with a slow disk, or the one that
    commits checkpoints.
    """

    def __init__(self, engine: Engine) -> None:
        """Begins anew: what was slow in an earlier start may not be so in this one.

        Args:
            engine: Has the heartbeat, and lets the ranks tell each other.
        """
        self._engine = engine
        self._steps = 0

    def on_step_end(self, run: Run, metrics: dict[str, float]) -> None:
        """Agrees after 1, 2, 4, ... steps, and after every fifty."""
        self._steps += 1
        if self._steps & (self._steps - 1) == 0 or self._steps % _EVERY_STEPS == 0:
            heartbeat = self._engine.heartbeat
            heartbeat.agree(self._engine.largest(heartbeat.longest_s))

"""What a run keeps of its mixture: the passes over each source, and that what was consumed stays what it was."""

from collections.abc import Mapping, Sequence
from typing import Any

from scaletrain.data.mixture import Phase, weight_units
from scaletrain.data.order import Order
from scaletrain.errors import ConfigError
from scaletrain.monitors import names
from scaletrain.protocols import Callback, Run

Consumed = list[tuple[int, list[int]]]


class Mixing(Callback):
    """Refuses to go on with weights under which the run would have consumed other data."""

    def __init__(self, order: Order, phases: Sequence[Phase], source_names: Sequence[str]) -> None:
        """Holds the mixture.

        Args:
            order: Of the run's sequences.
            phases: The weights over time.
            source_names: Of the sources.
        """
        self._order = order
        self._phases = phases
        self._names = source_names
        self._sequences = 0

    def on_start(self, run: Run) -> None:
        """Notes where the run goes on."""
        self._sequences = run.state.sequences

    def on_step_end(self, run: Run, metrics: dict[str, float]) -> None:
        """Notes what was consumed."""
        self._sequences = run.state.sequences

    def epochs(self, sequences: int) -> dict[str, float]:
        """Passes over the data after so many sequences: of all of it, and of each source where there are several."""
        lengths = [source.sequences_per_epoch for source in self._order.sources]
        metrics = {names.DATA_EPOCH: sequences / sum(lengths)}
        if len(lengths) > 1:
            for name, count, length in zip(self._names, self._order.consumed(sequences), lengths, strict=True):
                metrics[names.of_source(names.DATA_EPOCH, name)] = float(count) / length
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """The weights that were in force, up to what was consumed."""
        places = -(-self._sequences // self._order.num_lanes)
        return {"places": places, "weights": consumed_weights(self._phases, places)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Compares them with those of this start.

        Raises:
            ConfigError: The mixture of what was consumed is another one.
        """
        if not state:
            return
        then = [(int(start), list(units)) for start, units in state["weights"]]
        if then != consumed_weights(self._phases, state["places"]):
            tokens = state["places"] * self._order.num_lanes * self._order.max_seq_len
            raise ConfigError(
                "data.sources and data.phases give other weights for what this run has consumed already. To change "
                f"the mixture from here on, keep the phases so far, end the last one with until_tokens: {tokens} or "
                "more, and put the new weights behind it."
            )


def consumed_weights(phases: Sequence[Phase], places: int) -> Consumed:
    """The weights of the first places of each lane.

    Args:
        phases: The weights over time.
        places: How many places.

    Returns:
        For each phase that begins before, its first place and its weights in whole shares.
    """
    starts = [0, *(phase.until_place or 0 for phase in phases[:-1])]
    return [(start, weight_units(phase.weights)) for start, phase in zip(starts, phases, strict=True) if start < places]

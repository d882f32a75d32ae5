"""Finds sick devices: numbers that go wrong once, and weights or states that part between ranks."""

import json
import logging
import socket
from collections import defaultdict
from dataclasses import asdict
from typing import Any

import torch.distributed as dist

from scaletrain.engine.engine import Engine
from scaletrain.engine.equality import Difference
from scaletrain.errors import HealthError
from scaletrain.launch.events import read_events
from scaletrain.monitors import names
from scaletrain.protocols import Callback, Fault, Run
from scaletrain.ranks import from_environment

logger = logging.getLogger(__name__)

FAULT_EVENT = "transient_fault"


class Health(Callback):
    """Records faults that a second computation did not have, and compares the ranks now and then."""

    def __init__(self, engine: Engine, check_every_steps: int, deterministic: bool, identity: str) -> None:
        """Holds what is compared.

        Args:
            engine: The model on all ranks.
            check_every_steps: Interval of comparisons; 0 for none.
            deterministic: Whether the same computation gives the same bits.
            identity: What the order of the data is made of, as this rank has it.
        """
        self._engine = engine
        self._check_every_steps = check_every_steps
        self._deterministic = deterministic
        self._identity = identity

    def on_step_end(self, run: Run, metrics: dict[str, float]) -> None:
        """Looks at the step, and at all ranks when it is time; before anything is saved.

        Raises:
            HealthError: A device is sick.
        """
        result = run.last_step
        assert result is not None  # this is the end of one
        if result.recomputed and (result.applied or result.overflow):
            self._settle_faults(run, result.faults)
        if self._check_every_steps and run.state.step % self._check_every_steps == 0:
            self._compare(run, metrics[names.OPTIM_LR])

    def _settle_faults(self, run: Run, faults: tuple[Fault, ...]) -> None:
        again: list[Any] = [None]
        if run.is_main:
            before = _recorded_steps(run)
            again = [[(fault, before[fault.host, fault.local_rank]) for fault in faults]]
            for fault in faults:
                logger.warning(
                    "step %d: a %s of rank %d (%s) was not finite, and was when it was computed again",
                    *(run.state.step, fault.reason, fault.rank, fault.host),
                )
            if not faults:
                logger.warning("step %d was not finite in the reduction, and was when computed again", run.state.step)
        for fault in faults:
            run.record_event(FAULT_EVENT, **asdict(fault))
        if not faults:
            run.record_event(FAULT_EVENT, rank=None, host=None, local_rank=None, reason="in the reduction")
        dist.broadcast_object_list(again, src=0)
        repeated = [(fault, steps) for fault, steps in again[0] if steps]
        if not repeated:
            return
        told = "; ".join(
            f"rank {fault.rank} (device {fault.local_rank} of {fault.host}) in steps "
            + ", ".join(map(str, [*steps, run.state.step]))
            for fault, steps in repeated
        )
        if self._deterministic:
            raise HealthError(
                f"Numbers were not finite, and were when the same was computed again: {told}. The same computation "
                "gives the same bits on a sound device. Take the node out and have the device tested.",
                tuple(sorted({fault.host for fault, _ in repeated})),
            )
        if run.is_main:
            logger.warning(
                "faults that pass, on one device again: %s. Without train.deterministic this is no proof that it is "
                "sick, since the same computation may give other bits on a sound one, too",
                told,
            )

    def _compare(self, run: Run, lr: float) -> None:
        state = json.dumps([run.state.to_json(), self._identity, lr])
        differences = self._engine.find_differences(state)
        if not differences:
            return
        places: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(places, (socket.gethostname(), from_environment().local_rank))
        told = "; ".join(_told(difference, places) for difference in differences)
        for one in differences:
            run.record_event("ranks_differ", what=one.what, ranks=one.ranks, hosts=[places[r][0] for r in one.ranks])
        raise HealthError(
            f"At step {run.state.step} the ranks differ in what must be equal: {told}. A device or a connection "
            "changes numbers without a word. Nothing of this step is saved. Take the node out and have it tested; the "
            "run goes on from the checkpoint before.",
            tuple(sorted({places[r][0] for one in differences if one.told_apart for r in one.ranks})),
        )


def _told(difference: Difference, places: list[Any]) -> str:
    ranks = ", ".join(f"rank {rank} (device {places[rank][1]} of {places[rank][0]})" for rank in difference.ranks)
    who = "against most others" if difference.told_apart else "and it cannot be told which is wrong"
    return f"{difference.what} of {ranks}, {who}"


def _recorded_steps(run: Run) -> dict[tuple[str, int], list[int]]:
    """The steps in which each device had faults that passed, in all starts of the run."""
    found: dict[tuple[str, int], list[int]] = defaultdict(list)
    for event in read_events(run.folder / "events.jsonl"):
        if event.get("event") == FAULT_EVENT and event.get("host") is not None:
            found[event["host"], event["local_rank"]].append(event["step"])
    return found

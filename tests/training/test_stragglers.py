"""What the ranks of a run gather, and what they make of it."""

from pathlib import Path
from typing import Any

import torch.distributed as dist

from scaletrain.config.batch_plan import BatchPlan
from scaletrain.config.monitor_schema import StragglersConfig
from scaletrain.engine.compute_clock import HostClock
from scaletrain.launch.events import read_events
from scaletrain.protocols import TrainingState
from scaletrain.ranks import from_environment
from scaletrain.training.loop import TrainingRun
from scaletrain.training.stragglers import Stragglers
from tests.distributed import run_on_ranks
from tests.engine.bodies import GLOBAL_BATCH, Case, build_engine

WORLD_SIZE, SLOW_RANK, STEPS, SLOW_STEPS, WINDOW_STEPS, INTERVAL_STEPS = 3, 1, 61, 40, 10, 10


class Fixed(HostClock):
    """A rank that takes equally long in each step, or did for a while; but in some of them somebody is in its way."""

    steps = 0

    def read_s(self) -> float:
        self.steps += 1
        disturbed = 5.0 if self.steps % 2 else 0.0
        is_slow = dist.get_rank() == SLOW_RANK and self.steps <= SLOW_STEPS
        return disturbed + (0.6 if is_slow else 0.5)


def train_with_fixed_times(folder: str) -> dict[str, Any]:
    """Steps of known times; what this rank was told, and when it had metrics and a picture."""
    ranks, told = from_environment(), list[set[int]]()
    engine = build_engine(Case(), BatchPlan(GLOBAL_BATCH, 2, WORLD_SIZE))
    engine._stepping.clock = Fixed()
    config = StragglersConfig(every_steps=WINDOW_STEPS)
    callback = Stragglers(engine, ranks, config, INTERVAL_STEPS, lambda slow: told.append(set(slow)))
    run = TrainingRun(TrainingState(), 100, Path(folder), 1, ranks.is_main, (callback,))
    run.notify("on_start")
    lines, pictures = {}, []
    for step in range(1, STEPS + 1):
        run.state.step = step
        metrics = {"perf/step_time_s": 1.0, "perf/data_wait_s": 0.01}
        run.notify("on_step_end", metrics)
        lines[step] = {name: value for name, value in metrics.items() if name.startswith("straggler/")}
        pictures += [step] if callback.take_picture() is not None else []
    return {"told": told, "lines": lines, "pictures": pictures}


def test_all_ranks_know_and_the_first_one_says(tmp_path: Path) -> None:
    results = run_on_ranks(WORLD_SIZE, train_with_fixed_times, str(tmp_path))
    # The first step is no part of a window.
    assert all(result["told"] == [set(), *[{SLOW_RANK}] * 4, set()] for result in results)
    event, over = read_events(tmp_path / "events.jsonl")
    assert (event["event"], event["step"], event["cause"], event["ranks"]) == ("straggler", 21, "compute", [SLOW_RANK])
    assert event["host"] == from_environment().host and event["seconds"] == 0.6 and round(event["share"], 6) == 0.2
    assert (over["event"], over["step"], over["cause"], over["ranks"]) == ("straggler_over", 61, "compute", [SLOW_RANK])
    first, *others = results
    assert [step for step, line in first["lines"].items() if line] == [20, 30, 40, 50, 60]
    assert first["lines"][30]["straggler/count"] == 1 and first["lines"][20]["straggler/count"] == 0
    assert round(first["lines"][30]["straggler/max_compute_share"], 6) == 0.2
    assert "straggler/max_link_share" not in first["lines"][30], "there is no link on one machine"
    assert first["pictures"] == [11, 21, 41]
    assert not any(other["pictures"] or any(other["lines"].values()) for other in others)

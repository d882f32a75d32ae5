"""What sends a run back, what does not, and which sequences are then left out."""

import json
import logging
from collections.abc import Iterable
from pathlib import Path

import pytest

from scaletrain.config.batch_plan import BatchSchedule
from scaletrain.config.schema import StabilityConfig
from scaletrain.data.mixture import Phase
from scaletrain.errors import DivergenceError
from scaletrain.launch.events import read_events
from scaletrain.protocols import SequenceRange, StepResult, TrainingState
from scaletrain.training.loop import TrainingRun
from scaletrain.training.rollback import RollBack
from scaletrain.training.stability import MOST_OVERFLOWS, Stability, loss_borders

BATCH = 8
OVERFLOW = StepResult(2.0, float("inf"), applied=False, source_nll=(), overflow=True)
BAD = StepResult(float("nan"), float("nan"), applied=False, source_nll=(), recomputed=True)
SPIKE = [9.0] * 3


class Steps:
    """A run whose steps are given, judged as it goes on."""

    def __init__(self, folder: Path, config: StabilityConfig, borders: tuple[int, ...] = (), oldest: int = 0) -> None:
        self.run = TrainingRun(TrainingState(), 1000, folder, 1, True, ())
        self.config, self.borders, self.oldest = config, borders, oldest
        self.stability = self.begin()

    def begin(self) -> Stability:
        def step_back(run: object, newest_step: int) -> int | None:
            return newest_step if newest_step >= self.oldest else None

        return Stability(self.config, self.borders, step_back, lambda sequences: ["web/7"])

    def restart(self) -> None:
        state = json.loads(json.dumps(self.stability.state_dict()))
        self.stability = self.begin()
        self.stability.load_state_dict(state)

    def take(self, steps: Iterable[float | StepResult]) -> None:
        self.stability.on_start(self.run)
        for step in steps:
            self.run.state.step += 1
            self.run.state.sequences += BATCH
            self.run.last_step = step if isinstance(step, StepResult) else StepResult(step, 1.0, True, ())
            self.stability.on_step_end(self.run, {})

    def events(self, kind: str) -> list[int]:
        path = self.run.folder / "events.jsonl"
        return [event["step"] for event in read_events(path) if event["event"] == kind]


def noisy(steps: int, middle: float = 2.5) -> list[float]:
    return [middle + 0.01 * (step % 5) for step in range(steps)]


def test_only_high_steps_in_a_row_send_a_run_back(tmp_path: Path) -> None:
    steps = Steps(tmp_path, StabilityConfig())
    steps.take([*noisy(200), 9.0, *noisy(200), 9.0, 9.0, *noisy(200)])
    with pytest.raises(RollBack, match=r"the last of 3 steps in a row above 10") as back:
        steps.take(SPIKE)
    assert steps.run.state.step == 606
    # Steps 604 to 606, and the one before.
    assert (back.value.newest_step, back.value.left_out) == (602, SequenceRange(602 * BATCH, 606 * BATCH))


@pytest.mark.parametrize(
    ("config", "spike", "left_out_steps"),
    [
        ({"spike_steps": 1}, [9.0], 2),
        ({"skip_steps": 0}, SPIKE, 3),
        ({"skip_steps": 4}, SPIKE, 7),
        ({}, [9.0, BAD, 9.0, OVERFLOW, 9.0], 6),  # what is not applied has no part in it
    ],
)
def test_what_is_left_out_begins_before_the_first_high_step(
    tmp_path: Path, config: dict[str, int], spike: list[float | StepResult], left_out_steps: int
) -> None:
    steps = Steps(tmp_path, StabilityConfig(**config))
    steps.take(noisy(200))
    with pytest.raises(RollBack) as back:
        steps.take(spike)
    last = steps.run.state.step
    assert last == 200 + len(spike) and back.value.newest_step == last - left_out_steps
    assert back.value.left_out == SequenceRange((last - left_out_steps) * BATCH, last * BATCH)


def test_a_restart_within_a_spike_decides_the_same(tmp_path: Path) -> None:
    for cut in range(3):
        steps = Steps(tmp_path, StabilityConfig())
        steps.take([*noisy(200), *SPIKE[:cut]])
        steps.restart()
        with pytest.raises(RollBack) as back:
            steps.take(SPIKE[cut:])
        assert back.value.left_out == SequenceRange(199 * BATCH, 203 * BATCH)


def test_a_change_of_the_mixture_is_no_spike(tmp_path: Path) -> None:
    losses = [*noisy(200, 0.02), *noisy(200, 2.5)]
    with pytest.raises(RollBack):
        Steps(tmp_path, StabilityConfig()).take(losses)
    # The border lies in the middle of step 201; a restart behind it knows of it.
    steps = Steps(tmp_path, StabilityConfig(), borders=(200 * BATCH + 3,))
    steps.take(losses[:210])
    steps.restart()
    steps.take(losses[210:])
    with pytest.raises(RollBack):  # it is watched again
        steps.take(SPIKE)


def test_the_borders_of_a_configuration() -> None:
    phases = [Phase(10, (1.0, 0.0)), Phase(30, (0.5, 0.5)), Phase(None, (0.0, 1.0))]
    growing = BatchSchedule(((50, 4), (70, 8)), 16)
    assert loss_borders(phases, 4, growing) == [40, 120]
    falling = BatchSchedule(((50, 4), (70, 8)), 2)
    assert loss_borders(phases, 4, falling) == [40, 70, 120]
    assert loss_borders([Phase(None, (1.0,))], 4, BatchSchedule((), 8)) == []


def test_a_spike_with_nowhere_to_go_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    steps = Steps(tmp_path, StabilityConfig(), oldest=500)
    with caplog.at_level(logging.WARNING):
        steps.take([*noisy(200), *[9.0] * 400])
    assert steps.events("loss_spike") == [203] and len(caplog.records) == 1


def test_overflows_and_bad_steps_are_counted_apart(tmp_path: Path) -> None:
    steps = Steps(tmp_path, StabilityConfig(bad_steps=2))
    almost = [OVERFLOW] * (MOST_OVERFLOWS - 1)
    steps.take([*noisy(9), *almost, BAD, *almost, BAD, *almost])
    with pytest.raises(RollBack, match=r"^goes back to step \d+ or before: 2 steps in a row had no finite") as back:
        steps.take([BAD, BAD])
    last = steps.run.state.step
    assert back.value.newest_step == last - 2
    assert back.value.left_out == SequenceRange((last - 2) * BATCH, last * BATCH)
    with pytest.raises(DivergenceError, match="at any loss scale"):
        Steps(tmp_path, StabilityConfig()).take([OVERFLOW] * MOST_OVERFLOWS)


@pytest.mark.parametrize(
    ("config", "spike", "told"),
    [
        ({"spike_steps": 1, "skip_steps": 0}, [9.0], "Step 99 holds sequences 784 to 791,"),
        ({}, SPIKE, "Steps 98 to 101 hold sequences 776 to 807,"),
    ],
)
def test_a_run_that_gives_up_says_where_and_what_to_set(
    tmp_path: Path, config: dict[str, int], spike: list[float], told: str
) -> None:
    steps = Steps(tmp_path, StabilityConfig(max_rollbacks=1, **config))
    steps.take(noisy(98))
    steps.run.state.skipped_sequences = (SequenceRange(1, 2),)
    with pytest.raises(DivergenceError, match=told) as error:
        steps.take(spike)
    assert "stability.spike_zscore" in str(error.value) and "web/7" in str(error.value)

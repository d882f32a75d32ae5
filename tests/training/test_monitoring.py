"""The thread beside the training and what a run makes of it: who is asked for an end, when, and what is left alone."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scaletrain.errors import DataError, HealthError
from scaletrain.hardware.readings import Reading
from scaletrain.launch.events import read_events
from scaletrain.launch.verdicts import Ending, Verdict, write_verdict
from scaletrain.protocols import SequenceRange, TrainingState
from scaletrain.training.loop import TrainingRun
from scaletrain.training.monitoring import NodeMonitor
from scaletrain.training.node_view import NodeView
from scaletrain.training.node_watch import NodeWatch, Place
from scaletrain.training.rollback import RollBack
from tests.monitors.test_node_health import gpu, reading, sampler
from tests.processes import eventually

PENDING = reading(gpu(0, row_remap_pending=True))
LOST = reading(gpu(0), gpu(1), xid=79)
HEALTHY = reading(gpu(0))


class Watched:
    """A node that is looked after, and what was asked of its run."""

    def __init__(self, folder: Path, readings: Sequence[Reading], every_s: float = 0.01) -> None:
        self.demanded: list[Ending] = []
        self.ended = threading.Event()
        self.watch = NodeWatch(
            lambda: sampler(readings),
            every_s,
            Place(folder, 1, True),
            self.demanded.append,
            lambda ending: self.ended.set(),
        )
        self.stop: Any = SimpleNamespace(sickness=None)
        self.run = TrainingRun(TrainingState(step=10), 100, folder, 1, True, ())

    def monitor(self, waits_for_save: bool = True, longest_wait_s: float = 1000.0) -> NodeMonitor:
        monitor = NodeMonitor(self.watch, self.stop, lambda one: [one, None], 10, waits_for_save, longest_wait_s)
        monitor.on_start(self.run)
        eventually(lambda: self.watch.node, 60, "a first look")
        return monitor

    def rules(self) -> list[str]:
        path = self.run.folder / "events.jsonl"
        events = read_events(path) if path.exists() else []
        return [one["rule"] for one in events if one["event"] == "health_finding"]


NewWatched = Callable[..., Watched]


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[NewWatched]:
    made: list[Watched] = []

    def make(readings: Sequence[Reading], every_s: float = 0.01) -> Watched:
        made.append(Watched(tmp_path, readings, every_s))
        return made[-1]

    yield make
    for one in made:
        one.watch.close()


def test_a_drain_waits_for_a_checkpoint(watched: NewWatched) -> None:
    node = watched([PENDING])
    monitor, metrics = node.monitor(), dict[str, float]()
    monitor.on_step_end(node.run, metrics)
    assert node.stop.sickness is None and node.rules() == ["row_remap_pending"]
    assert metrics["host/max_memory_used_share"] > 0
    monitor.on_save(node.run, Path("step_00000010"))
    assert node.stop.sickness.may_save and node.stop.sickness.ending.hosts == ("n1",)
    monitor.on_end(node.run)
    assert node.rules() == ["row_remap_pending"] and not node.demanded


@pytest.mark.parametrize(("waits_for_save", "longest_wait_s"), [(False, 1000.0), (True, 0.0)])
def test_a_drain_does_not_wait_in_vain(watched: NewWatched, waits_for_save: bool, longest_wait_s: float) -> None:
    node = watched([PENDING])
    node.monitor(waits_for_save, longest_wait_s).on_step_end(node.run, {})
    assert node.stop.sickness.may_save


def test_a_slowed_gpu_is_drained_once_its_rank_holds_the_others_up(watched: NewWatched) -> None:
    node = watched([reading(gpu(0, clock_event_reasons=0x40))])
    monitor = node.monitor(waits_for_save=False)
    eventually(lambda: node.watch.node is not None and node.watch.node.current, 60, "the warning")
    monitor.on_step_end(node.run, {})
    assert node.stop.sickness is None and node.rules() == ["hw_thermal"]
    node.watch.note_slow(frozenset({0}))
    eventually(lambda: node.watch.ending("drain"), 60, "it weighs more")
    monitor.on_step_end(node.run, {})
    assert node.stop.sickness.may_save and node.stop.sickness.ending.hosts == ("n1",)
    assert node.rules() == ["hw_thermal"] * 2


def test_a_healthy_node_asks_for_nothing(watched: NewWatched) -> None:
    node = watched([HEALTHY])
    monitor = node.monitor()
    monitor.on_step_end(node.run, {})
    monitor.on_save(node.run, Path("step_00000010"))
    monitor.on_exception(node.run, RuntimeError("of the program's own"))
    assert node.stop.sickness is None and not node.demanded and not node.rules() and not node.ended.is_set()


def test_a_loop_that_does_not_end_is_ended(watched: NewWatched, caplog: pytest.LogCaptureFixture) -> None:
    node = watched([LOST])
    node.watch.grace_s = 0.2
    node.monitor()
    assert node.ended.wait(60)
    # No step has ended since, and yet it is told.
    assert node.rules() == ["xid_79"] and "n1: GPU 1" in caplog.text
    assert read_events(node.run.folder / "events.jsonl")[0]["step"] == 10
    (ending,) = node.demanded  # once
    assert "fallen off the bus" in ending.reason


def test_a_finding_that_cannot_be_written_comes_with_the_next_event(watched: NewWatched, tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").mkdir()
    node = watched([PENDING])
    node.monitor()
    (tmp_path / "events.jsonl").rmdir()
    assert node.rules() == []
    node.run.record_event("save")
    assert [event["event"] for event in read_events(tmp_path / "events.jsonl")] == ["health_finding", "save"]


def test_a_loop_that_ends_by_itself_is_left_alone(watched: NewWatched) -> None:
    node = watched([LOST])
    node.watch.grace_s = 600.0
    monitor = node.monitor()
    eventually(lambda: node.demanded, 60, "it is asked to end")
    monitor.on_exception(node.run, HealthError("as it was asked", ("n1",)))
    assert node.rules() == ["xid_79"] and not node.ended.is_set()


def test_an_error_that_nobody_has_explained_is_looked_into(watched: NewWatched) -> None:
    # The next look by itself would be in a minute: an error of a library comes first.
    node = watched([HEALTHY, LOST], every_s=60.0)
    monitor = node.monitor()
    error = RuntimeError("CUDA error: unspecified launch failure")
    with pytest.raises(HealthError, match=r"XID|fallen off the bus") as raised:
        monitor.on_exception(node.run, error)
    assert raised.value.hosts == ("n1",) and raised.value.__cause__ is error and "unspecified" in str(raised.value)
    assert node.rules() == ["xid_79"]


def other_rank(node: Watched, every_s: float = 30.0) -> tuple[NodeMonitor, TrainingRun]:
    """What rank 1 of the same node has."""
    view = NodeView(node.run.folder, 1, 0, every_s)
    run = TrainingRun(TrainingState(step=10), 100, node.run.folder, 1, False, ())
    return NodeMonitor(view, node.stop, lambda one: [None, one], 10, True), run


def test_another_rank_that_meets_the_error_first_waits_for_the_next_look(watched: NewWatched) -> None:
    node = watched([HEALTHY, LOST], every_s=0.5)
    node.monitor()
    monitor, run = other_rank(node)
    error = RuntimeError("CUDA error: unspecified launch failure")
    with pytest.raises(HealthError, match="fallen off the bus") as raised:
        monitor.on_exception(run, error)
    assert raised.value.hosts == ("n1",) and raised.value.__cause__ is error


def test_another_rank_does_not_wait_in_vain(watched: NewWatched) -> None:
    node = watched([HEALTHY], every_s=60.0)
    node.monitor()
    monitor, run = other_rank(node, every_s=60.0)
    began_s = time.monotonic()
    monitor.on_exception(run, DataError("no such shard"))
    monitor.on_exception(run, KeyboardInterrupt())
    write_verdict(run.folder, 1, 0, Verdict.CRASH, "the rank that looks has ended")
    monitor.on_exception(run, RuntimeError("connection closed by peer"))
    assert time.monotonic() - began_s < 30.0


@pytest.mark.parametrize("error", [DataError("no such shard"), KeyboardInterrupt()])
def test_an_error_that_is_explained_keeps_its_cause(watched: NewWatched, error: BaseException) -> None:
    node = watched([HEALTHY, LOST], every_s=60.0)
    node.monitor().on_exception(node.run, error)
    assert not node.demanded


def test_a_run_that_goes_back_is_looked_after_as_before(watched: NewWatched) -> None:
    node = watched([HEALTHY])
    monitor = node.monitor()
    monitor.on_exception(node.run, RollBack(SequenceRange(0, 8), "a spike", 0))
    monitor.on_start(node.run)
    first = node.watch.node
    eventually(lambda: node.watch.node is not first, 60, "another look")


def test_what_goes_wrong_with_looking_is_not_the_runs_trouble(tmp_path: Path) -> None:
    class Broken:
        has_gpus = False

        def sample(self, slow_ranks: frozenset[int]) -> Any:
            raise ZeroDivisionError

        def close(self) -> None:
            pass

    def open_broken() -> Any:
        return Broken()

    asked: list[Ending] = []
    watch = NodeWatch(open_broken, 0.01, Place(tmp_path, 1, True), asked.append, asked.append)
    watch.start(lambda kind, **fields: None)
    watch.look_again(60)
    assert watch.node is None and watch.ending("abort") is None
    watch.close()
    assert not asked

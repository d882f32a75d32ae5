"""A GPU of one node falls ill while a job trains, on a real Slurm: the run goes on without that node."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from scaletrain.launch.events import read_events
from scaletrain.launch.verdicts import read_verdicts
from tests.fake_nvml import FakeDriver
from tests.slurm.cluster import NODES, Cluster
from tests.slurm.jobs import SlurmRun

NewRun = Callable[[str], SlurmRun]


@pytest.fixture
def drivers(tmp_path: Path) -> Mapping[str, FakeDriver]:
    """A driver with a GPU on each node."""
    return {node: FakeDriver(tmp_path, gpus=1, host=node) for node in NODES}


def falls_ill(run: SlurmRun, drivers: Mapping[str, FakeDriver], xid: int) -> list[dict[str, Any]]:
    """Trains a job during which the second node's GPU has an XID, and returns the events of its first start."""
    run.submit("--monitor.health.every_s", 0.2, environment=drivers["n2"].environment)
    run.reaches(100)
    drivers["n2"].xid(0, xid)
    run.ends_as("COMPLETED")
    assert run.nodes() == [["n1", "n2"], ["n1", "n3"]]
    assert run.actions() == ["requeue", "stop"]
    for content in read_verdicts(run.run_dir, 1).values():
        assert (content["verdict"], content["hosts"]) == ("sick_node", ["n2"]) and f"XID {xid}" in content["reason"]
    assert [line["node"] for line in run.journal("sick_node")] == ["n2"]
    assert len(list(run.ledger.glob("n2-*.json"))) == 1
    assert "DRAIN" in run.cluster.run("scontrol", "show", "node", "n2")
    events = [one for one in read_events(run.run_dir / "events.jsonl") if one.get("attempt") == 1]
    found = [(one["host"], one["rank"], one["rule"]) for one in events if one["event"] == "health_finding"]
    assert found == [("n2", 1, f"xid_{xid}")]
    return events


def step_of(events: list[dict[str, Any]], kind: str) -> int:
    """The step of the last event of a kind."""
    return max(int(one["step"]) for one in events if one["event"] == kind)


def test_one_that_is_to_be_repaired(
    new_run: NewRun, drivers: Mapping[str, FakeDriver], cluster: Cluster, undisturbed: SlurmRun
) -> None:
    """What was trained is saved before the node is left."""
    run = new_run("drained")
    events = falls_ill(run, drivers, 156)
    assert step_of(events, "save") == step_of(events, "drain")
    assert run.losses() == undisturbed.losses()


@pytest.mark.thorough
def test_one_that_cannot_be_trusted(
    new_run: NewRun, drivers: Mapping[str, FakeDriver], cluster: Cluster, undisturbed: SlurmRun
) -> None:
    """Nothing is saved: the run goes on from the checkpoint before, and trains the steps since then again."""
    run = new_run("aborted")
    events = falls_ill(run, drivers, 79)
    assert step_of(events, "save") < step_of(events, "abort")
    assert run.losses() == undisturbed.losses()

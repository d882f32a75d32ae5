"""Runs on a node whose GPUs or disks fall ill: what is said, how they end, and that they go on."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scaletrain.checkpoint.layout import list_checkpoints
from scaletrain.launch.events import read_events
from scaletrain.launch.verdicts import read_verdicts
from scaletrain.monitors.jsonl_writer import read_metrics
from scaletrain.ranks import from_environment
from tests.fake_nvml import FakeDriver
from tests.integration.runs import NewRun, TinyRun
from tests.processes import eventually

HOST = from_environment().host
FLAGS = ("--train.max_steps", 1_000_000, "--monitor.health.every_s", 0.2, "--eval.every_steps", 0)


def findings(run: TinyRun, attempt: int) -> dict[str, dict[str, Any]]:
    """Events of findings by rule; each is told once."""
    path = run.run_dir / "events.jsonl"
    events = read_events(path) if path.exists() else []
    found = [one for one in events if one["event"] == "health_finding" and one["attempt"] == attempt]
    assert len({one["rule"] for one in found}) == len(found)
    return {one["rule"]: one for one in found}


def report(run: TinyRun) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run.run_dir / "health.json").read_text())
    return content


def start(run: TinyRun, driver: FakeDriver, name: str, *flags: object) -> Any:
    return run.start_ranks(2, *FLAGS, *flags, environment=driver.environment, name=name)


def codes(processes: Any) -> list[int]:
    return [process.wait(timeout=140) for process in processes]


def test_a_warning_is_told_and_a_gpu_that_is_gone_ends_the_run_unsaved(new_run: NewRun, tmp_path: Path) -> None:
    run, driver = new_run("lost"), FakeDriver(tmp_path, gpus=2)
    processes = start(run, driver, "first", "--checkpoint.every_steps", 1_000_000)
    run.wait_for_step(2, attempt=1, within_s=140)
    driver.set("1.temperature", 97)
    eventually(lambda: "temperature" in findings(run, 1), 60, "the warning")
    (hot,) = report(run)["findings"]
    assert (hot["severity"], hot["host"], hot["gpu"], hot["rank"]) == ("warn", HOST, 1, 1)
    assert all(process.poll() is None for process in processes)

    driver.xid(1, 79)
    assert codes(processes) == [76, 76], run.output_of("first-0").read_text()
    for content in read_verdicts(run.run_dir, 1).values():
        assert (content["verdict"], content["hosts"]) == ("sick_node", [HOST])
        assert "GPU 1" in content["reason"] and "fallen off the bus" in content["reason"]
    assert not list_checkpoints(run.run_dir / "checkpoints")
    gone = findings(run, 1)["xid_79"]
    assert (gone["severity"], gone["action"], gone["host"], gone["rank"]) == ("abort", "reboot", HOST, 1)
    assert report(run)["findings"][0]["rule"] == "xid_79"
    lines = [line for line in read_metrics(run.run_dir / "metrics.jsonl") if "gpu/max_temp_c" in line]
    assert lines[-1]["gpu/max_temp_c"] == lines[-1]["gpu/1/temp_c"] == 97 > lines[0]["gpu/max_temp_c"]
    assert 0 < lines[-1]["host/max_memory_used_share"] <= 1


def test_a_pending_repair_ends_the_run_after_the_next_checkpoint_and_it_goes_on(
    new_run: NewRun, tmp_path: Path
) -> None:
    run, driver = new_run("drained"), FakeDriver(tmp_path, gpus=2)
    processes = start(run, driver, "first", "--checkpoint.every_steps", 25)
    run.wait_for_step(2, attempt=1, within_s=140)
    driver.set("0.rows_pending", 1)
    assert codes(processes) == [76, 76], run.output_of("first-0").read_text()
    for content in read_verdicts(run.run_dir, 1).values():
        assert (content["verdict"], content["hosts"]) == ("sick_node", [HOST])
        assert "rule row_remap_pending" in content["reason"]
    kinds = run.events(1)
    assert kinds.index("health_finding") < kinds.index("save") < kinds.index("drain") < kinds.index("exit")
    steps = [line["step"] for line in read_metrics(run.run_dir / "metrics.jsonl")]
    saved = [folder.name for folder in list_checkpoints(run.run_dir / "checkpoints")]
    assert f"step_{max(steps):08d}" in saved
    assert report(run)["findings"][0]["action"] == "reset_gpu"
    asks = json.loads((run.run_dir / "health" / "history" / f"{HOST}.json").read_text())
    assert [one["rule"] for (found,) in [asks.values()] for one in found] == ["row_remap_pending"]

    driver.heal()
    again = start(run, driver, "second")
    run.wait_for_step(max(steps) + 2, attempt=2, within_s=140)
    (run.run_dir / "stop").touch()
    assert codes(again) == [130, 130], run.output_of("second-0").read_text()
    assert not findings(run, 2) and report(run)["attempt"] == 2 and not report(run)["findings"]
    assert os.listdir(run.run_dir / "health" / "2") == ["0.json"]


# Rank 1 meets the error of a GPU before anybody has heard of its XID.
FAILS_FIRST = """
import os, runpy, sys
from scaletrain.engine.engine import Engine
train_step = Engine.train_step
def fails(engine, batches, targets, step, lr):
    if os.environ["RANK"] == "1" and step == 20:
        with open(os.environ["FAKE_NVML"], "a") as file:
            file.write("event=1.79\\n")
        raise RuntimeError("CUDA error: unspecified launch failure")
    return train_step(engine, batches, targets, step, lr)
Engine.train_step = fails
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.thorough
def test_an_error_that_another_rank_meets_first_is_explained_by_the_node(new_run: NewRun, tmp_path: Path) -> None:
    run, driver = new_run("first"), FakeDriver(tmp_path, gpus=2)
    more = ("--checkpoint.every_steps", 0, "--monitor.health.every_s", 6)
    through = (sys.executable, "-c", FAILS_FIRST)
    ranks = run.start_ranks(2, *FLAGS, *more, environment=driver.environment, through=through)
    assert codes(ranks) == [76, 76], run.output_of("rank-1").read_text()
    for content in read_verdicts(run.run_dir, 1).values():
        assert (content["verdict"], content["hosts"]) == ("sick_node", [HOST])
        assert "fallen off the bus" in content["reason"]
    assert "unspecified launch failure" in read_verdicts(run.run_dir, 1)[1]["reason"]


# A file system of its own for the rank, which ends with it.
ON_ITS_OWN_DISK = ("unshare", "--mount", "sh", "-ec", 'mount -t tmpfs -o size=1m none "$0"; exec "$@"')


def test_a_disk_that_is_full_is_told_and_one_that_becomes_read_only_drains_the_node(
    new_run: NewRun, tmp_path: Path
) -> None:
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("only root can make a mount namespace (unshare --mount)")
    run, cache, rules = new_run("disk"), tmp_path / "cache", tmp_path / "rules.yaml"
    cache.mkdir()
    rules.write_text("host_folder_full: {above: 0.5}\nhw_slowdown: {polls: 9}\n")
    more = ("--data.cache_dir", cache, "--checkpoint.every_steps", 25, "--monitor.health.rules", rules)
    (rank,) = run.start_ranks(1, *FLAGS, *more, through=(*ON_ITS_OWN_DISK, str(cache), sys.executable))
    run.wait_for_step(2, attempt=1, within_s=140)
    assert not findings(run, 1)
    (Path(f"/proc/{rank.pid}/root") / cache.relative_to("/") / "file").write_bytes(bytes(700_000))
    eventually(lambda: "host_folder_full" in findings(run, 1), 60, "the warning")
    (full,) = report(run)["findings"]
    assert (full["severity"], full["host"], "gpu" in full) == ("warn", HOST, False)
    assert "host.folder.cache_dir.used_share" in full["text"]

    subprocess.run(["nsenter", f"--target={rank.pid}", "--mount", "mount", "-o", "remount,ro", cache], check=True)
    assert codes([rank]) == [76], run.output_of("rank-0").read_text()
    (content,) = read_verdicts(run.run_dir, 1).values()
    assert (content["verdict"], content["hosts"]) == ("sick_node", [HOST])
    assert "host.folder.cache_dir.read_only" in content["reason"]
    assert list_checkpoints(run.run_dir / "checkpoints")
    assert [one["rule"] for one in report(run)["findings"]] == ["host_folder_read_only", "host_folder_full"]

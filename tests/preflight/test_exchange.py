"""The all-reduce of a check with real processes: right sums, a rate, and an end in time whoever is missing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from scaletrain.preflight import exchange
from scaletrain.preflight.all_reduce import bus_bandwidth
from tests.integration.runs import ENVIRONMENT, free_port
from tests.processes import eventually, living


def start(folder: Path, port: int, node_rank: int, nodes: int, limit_s: float) -> "subprocess.Popen[str]":
    task = {
        "node_rank": node_rank,
        "nodes": nodes,
        "gpus": 0,
        "master_addr": "127.0.0.1",
        "master_port": port,
        "mib": 4,
        "repeats": 3,
        "limit_s": limit_s,
        "result": str(folder / f"{node_rank}.json"),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "scaletrain.preflight.exchange", json.dumps(task)],
        env=ENVIRONMENT | {"GLOO_SOCKET_IFNAME": "lo"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_three_nodes_reach_each_other(tmp_path: Path) -> None:
    port = free_port()
    nodes = [start(tmp_path, port, rank, 3, 60) for rank in range(3)]
    assert [node.wait(timeout=90) for node in nodes] == [0, 0, 0], [node.communicate()[0] for node in nodes]
    told: list[dict[str, Any]] = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    assert all(one["correct"] for one in told)
    assert all(one["gb_per_s"] > 0 for one in told)
    # Two thirds of the bytes pass each node twice.
    assert told[0]["gb_per_s"] * told[0]["seconds"] * 1e9 == pytest.approx(4 / 3 * 4 * 2**20)


@pytest.mark.slow
def test_a_node_that_never_comes_holds_the_others_no_longer_than_the_limit(tmp_path: Path) -> None:
    started_s = time.monotonic()
    node = start(tmp_path, free_port(), 0, 2, 5)
    assert node.wait(timeout=60) != 0
    assert time.monotonic() - started_s < 30
    assert not (tmp_path / "0.json").exists()


def ranks_of(folder: Path) -> list[int]:
    return [pid for pid, command in living(folder).items() if "all_reduce" in command]


@pytest.mark.thorough
def test_two_nodes_that_count_differently_end_in_time(tmp_path: Path) -> None:
    port = free_port()
    started_s = time.monotonic()
    nodes = [start(tmp_path, port, 0, 2, 5), start(tmp_path, port, 1, 3, 5)]
    assert all(node.wait(timeout=60) != 0 for node in nodes)
    assert time.monotonic() - started_s < 30
    assert list(tmp_path.iterdir()) == []
    assert ranks_of(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_rank_outlives_who_started_it(tmp_path: Path, number: signal.Signals) -> None:
    node = start(tmp_path, free_port(), 0, 2, 60)
    eventually(lambda: ranks_of(tmp_path), 30, "no rank was started")
    node.send_signal(number)
    assert node.wait(timeout=30) != 0
    eventually(lambda: not ranks_of(tmp_path), 10, lambda: f"a rank lives on: {living(tmp_path)}")


def test_a_rank_that_dies_ends_its_node_at_once(tmp_path: Path) -> None:
    started_s = time.monotonic()
    node = start(tmp_path, free_port(), 0, 2, 120)
    (rank,) = eventually(lambda: ranks_of(tmp_path), 30, "no rank was started")
    os.kill(rank, signal.SIGKILL)
    assert node.wait(timeout=60) == 128 + signal.SIGKILL
    assert time.monotonic() - started_s < 60
    assert list(tmp_path.iterdir()) == []


# Stands in for a rank of the all-reduce, since a machine without GPUs has no second rank on a node.
RANK = """
import json, os, sys
task = json.loads(sys.argv[1])
told = [{"gb_per_s": 3.0, "correct": True, "seconds": 0.1}, {"gb_per_s": 2.0, "correct": False, "seconds": 0.2}]
os.write(task["report"], json.dumps(told[task["local"]]).encode())
print("NCCL INFO something", flush=True)
"""


def test_the_slowest_rank_counts_and_every_sum(tmp_path: Path) -> None:
    package = tmp_path / "scaletrain" / "preflight"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "all_reduce.py").write_text(RANK)
    source = Path(exchange.__file__).parents[1]
    for name in ("files.py", "lifetime.py", "preflight/exchange.py"):
        shutil.copy(source / name, package.parent / name)
    task = {"node_rank": 4, "nodes": 9, "gpus": 2, "limit_s": 30, "result": str(tmp_path / "told.json")}
    command = [sys.executable, "-m", "scaletrain.preflight.exchange", json.dumps(task)]
    subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}, check=True, timeout=60)
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["node_rank"] == 4
    assert (told["gb_per_s"], told["correct"], told["seconds"]) == (2.0, False, 0.2)


def test_bus_bandwidth() -> None:
    """The figures of nccl-tests: half a second for 10 GB over 8 ranks is an algorithm bandwidth of 20, a bus of 35."""
    assert bus_bandwidth(8, 10_000_000_000, 0.5) / 1e9 == pytest.approx(35)
    assert bus_bandwidth(2, 100, 1.0) == 100

"""The all-reduce of a check with real processes: right sums, a rate, and an end in time whoever is missing."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.runs import ENVIRONMENT, free_port


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


def test_three_nodes_reach_each_other(tmp_path: Path) -> None:
    port = free_port()
    nodes = [start(tmp_path, port, rank, 3, 60) for rank in range(3)]
    assert [node.wait(timeout=90) for node in nodes] == [0, 0, 0], [node.communicate()[0] for node in nodes]
    told: list[dict[str, Any]] = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    assert all(one["correct"] for one in told)
    assert all(one["gb_per_s"] > 0 for one in told)
    # Two thirds of the bytes pass each node twice.
    assert told[0]["gb_per_s"] * told[0]["seconds"] * 1e9 == pytest.approx(4 / 3 * 4 * 2**20)


def test_a_node_that_never_comes_holds_the_others_no_longer_than_the_limit(tmp_path: Path) -> None:
    started_s = time.monotonic()
    node = start(tmp_path, free_port(), 0, 2, 5)
    assert node.wait(timeout=60) != 0
    assert time.monotonic() - started_s < 30
    assert not (tmp_path / "0.json").exists()

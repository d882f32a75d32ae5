"""What is measured of one node, on the CPU: the same code that a GPU runs, with gloo in place of NCCL."""

import tempfile
from pathlib import Path

import pytest

from scaletrain.preflight.bandwidth import measure_bandwidth
from scaletrain.preflight.node_all_reduce import reduce_on_node


def test_the_memory_of_the_host() -> None:
    (found,) = measure_bandwidth(0)
    assert (found.check, found.status) == ("cpu bandwidth", "ok")
    assert found.figures["memory_gb_per_s"] > 0


@pytest.mark.thorough
def test_an_all_reduce_over_processes_of_this_node() -> None:
    found = reduce_on_node(2, on_gpus=False, limit_s=100.0)
    assert (found.check, found.status) == ("all-reduce", "ok"), found.detail
    assert found.figures["all_reduce_gb_per_s"] > 0


def test_an_all_reduce_on_gpus_that_are_not_there_fails() -> None:
    found = reduce_on_node(1, on_gpus=True, limit_s=100.0)
    assert (found.check, found.status) == ("all-reduce", "fail")
    assert "over 1 GPUs: ended with code" in found.detail


def test_an_all_reduce_that_does_not_end_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too short a time for a process to start."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = reduce_on_node(2, on_gpus=False, limit_s=0.2)
    assert found.status == "fail"
    assert "no end within 0.2 s" in found.detail
    assert list(tmp_path.iterdir()) == []

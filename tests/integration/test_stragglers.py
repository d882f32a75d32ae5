"""Real trainings of four ranks: those that are slow are named with the cause, equal ones are not."""

import faulthandler
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scaletrain.checkpoint.layout import list_checkpoints
from scaletrain.launch.verdicts import read_verdicts
from scaletrain.monitors.jsonl_writer import read_metrics
from scaletrain.ranks import from_environment
from tests.chaos.fork_server import ForkServer
from tests.fake_nvml import FakeDriver
from tests.integration.network import lacking, networked
from tests.integration.runs import ENVIRONMENT, NewRun, TinyRun
from tests.integration.slowed_runs import SLOWED_RANK, Setting, named, start, windows
from tests.processes import eventually

HOST = from_environment().host
WITHIN_S, HUNDRED_WINDOWS_S = 600.0, 3600.0
# Takes cores from the ranks, and the caches of others with them, by fits and starts.
DISTURB = """
import random, sys, time
import numpy as np
source, end_s = random.Random(int(sys.argv[1])), time.monotonic() + 4800
while time.monotonic() < end_s:
    numbers, until_s = np.ones(source.choice([1 << 12, 1 << 16, 1 << 22])), time.monotonic() + source.uniform(0.1, 3)
    while time.monotonic() < until_s:
        numbers = np.sqrt(numbers * numbers + 1)
    time.sleep(source.uniform(0, 2))
"""


@pytest.fixture(autouse=True)
def longer_limit() -> Iterator[None]:
    """Two windows of real steps take a while, and a hundred of them longer than any other test may."""
    faulthandler.dump_traceback_later(HUNDRED_WINDOWS_S + WITHIN_S, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    server = ForkServer(tmp_path_factory.mktemp("server"))
    yield server
    server.close()


def end(run: TinyRun, ranks: int) -> None:
    """Has a run end, and waits until it has."""
    (run.run_dir / "stop").touch()
    eventually(lambda: len(read_verdicts(run.run_dir, 1)) == ranks, 60, "all ranks end")


@pytest.mark.parametrize(
    ("slow", "extra_work", "delays_ms", "window_steps"),
    [
        # Beside other tests, on cores that are shared with them, a tenth may take longer to be told.
        ({1: "compute", 2: "data"}, 0.3, {3: 2.0}, 15),
        pytest.param({1: "compute", 2: "data"}, 0.1, {3: 2.0}, 30, marks=pytest.mark.thorough),
        pytest.param({2: "compute"}, 0.1, {}, 30, marks=pytest.mark.thorough),
        pytest.param({3: "data"}, 0.0, {}, 15, marks=pytest.mark.thorough),
        pytest.param({}, 0.0, {0: 5.0}, 15, marks=pytest.mark.thorough),
    ],
    ids=["all three", "all three, by little", "compute", "data", "link"],
)
def test_slow_ranks_are_named_with_the_cause(
    slow: dict[int, str],
    extra_work: float,
    delays_ms: dict[int, float],
    window_steps: int,
    new_run: NewRun,
    server: ForkServer,
) -> None:
    if delays_ms and (reason := lacking()):
        pytest.skip(reason)
    run, wanted = new_run("slowed"), slow | dict.fromkeys(delays_ms, "link")
    with networked(4, delays_ms) if delays_ms else nullcontext() as network:
        host = HOST if network is None else "n{}"
        setting = Setting(slow=slow, extra_work=extra_work, network=network, window_steps=window_steps)
        start(run, server, setting)
        eventually(lambda: named(run).keys() >= wanted.keys(), WITHIN_S, lambda: f"{wanted}, not only {named(run)}")
        end(run, 4)
    assert named(run) == wanted
    log = run.output_of("rank-0").read_text()
    assert all(f"straggler: rank {rank} on {host.format(rank)}: " in log for rank in wanted)
    last = [line for line in read_metrics(run.run_dir / "metrics.jsonl") if "straggler/count" in line][-1]
    assert last["straggler/count"] == len(wanted)
    assert EventAccumulator(str(run.run_dir / "tb")).Reload().Images("straggler/ranks")


@pytest.mark.thorough
def test_a_link_that_has_lost_bandwidth_is_named(new_run: NewRun, server: ForkServer) -> None:
    if reason := lacking():
        pytest.skip(reason)
    run = new_run("narrow")
    with networked(4, {}) as network:
        network.limit(2, "100mbit")
        start(run, server, Setting(network=network))
        eventually(lambda: named(run), WITHIN_S, "it is named")
        end(run, 4)
    assert named(run) == {2: "link"}


@pytest.mark.thorough
def test_equal_ranks_on_cores_that_others_use_are_not_named(new_run: NewRun, server: ForkServer) -> None:
    run = new_run("equal")
    others = [subprocess.Popen([sys.executable, "-c", DISTURB, str(seed)], env=ENVIRONMENT) for seed in range(2)]
    try:
        start(run, server, Setting(window_steps=50))
        eventually(
            lambda: windows(run) >= 100 or named(run), HUNDRED_WINDOWS_S, lambda: f"100 windows, not {windows(run)}"
        )
        assert not named(run), named(run)
        end(run, 4)
    finally:
        for other in others:
            other.kill()
            other.wait()


@pytest.mark.thorough
def test_a_hot_gpu_is_left_once_its_rank_holds_the_others_up(new_run: NewRun, tmp_path: Path) -> None:
    run, driver = new_run("hot"), FakeDriver(tmp_path, gpus=2)
    driver.set("1.reasons", 0x40)
    flags = ("--monitor.health.every_s", 0.2, "--checkpoint.every_steps", 25)
    setting = Setting(world_size=2, slow={1: "compute"}, flags=flags)
    # Not forked: which libraries it finds is settled when a process is started.
    through, environment = (sys.executable, str(SLOWED_RANK)), setting.environment | driver.environment
    ranks = run.start_ranks(2, *setting.arguments, through=through, environment=environment)
    assert [rank.wait(timeout=WITHIN_S) for rank in ranks] == [76, 76], run.output_of("rank-0").read_text()
    assert named(run) == {1: "compute"}
    for content in read_verdicts(run.run_dir, 1).values():
        assert (content["verdict"], content["hosts"]) == ("sick_node", [HOST])
        assert "rule hw_thermal" in content["reason"] and "rank 1 holds the others up" in content["reason"]
    kinds = run.events(1)
    # A warning first, a drain when the rank is slow, and an end behind a checkpoint.
    assert kinds.count("health_finding") == 2 and kinds.index("straggler") < kinds.index("drain")
    assert list_checkpoints(run.run_dir / "checkpoints")

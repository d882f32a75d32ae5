"""A real training of which a rank is held: it is named, everywhere; more of it: ``python -m tests.hangs``."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.fork_server import ForkServer
from tests.chaos.strikes import can_mount
from tests.hangs import slow_run
from tests.hangs.trial import KINDS, PHASES, Trial, carry_out
from tests.integration.runs import TinyRun, build_tiny_corpus


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_corpus(tmp_path_factory.mktemp("hangs"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    server = ForkServer(tmp_path_factory.mktemp("server"))
    yield server
    server.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "trial",
    [
        # In the one phase where both wait in collectives that are called in it, so that the stacks must tell.
        Trial(rank=1, phase="backward", step=4, kind="gil"),
        *(
            pytest.param(
                Trial(number % 2, phase, 4, KINDS[number % len(KINDS)], number % 4, 2 + number % 3),
                marks=pytest.mark.thorough,
            )
            for number, phase in enumerate(PHASES)
        ),
        # A first step and a first save that are longer than any limit of what is learnt.
        pytest.param(Trial(0, "forward", 1, "slow"), marks=pytest.mark.thorough),
        pytest.param(Trial(1, "save", 2, "slow"), marks=pytest.mark.thorough),
    ],
    ids=str,
)
def test_the_rank_is_named_and_all_end(trial: Trial, manifest: Path, server: ForkServer, tmp_path: Path) -> None:
    assert carry_out(trial, TinyRun(tmp_path / "run", manifest), server).problems == []


@pytest.mark.thorough
def test_nobody_hangs_who_saves_to_a_disk_that_stops(manifest: Path, server: ForkServer, tmp_path: Path) -> None:
    """For longer than the least limit; with a first step that compiles: ``python -m tests.hangs.slow_run``."""
    if not can_mount(tmp_path / "disk"):
        pytest.skip("a disk cannot be mounted here: that needs root")
    slow = slow_run.SlowRun(background=False, compile=False, every_steps=4, stops=3, minutes=3)
    problems, told = slow_run.carry_out(slow, TinyRun(tmp_path / "run", manifest), server)
    assert not problems and "the disk stopped 3 times" in told, told

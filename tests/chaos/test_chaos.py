"""A run that is killed, damaged and moved ends as the one that nothing cut; more of it: ``python -m tests.chaos``."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.fork_server import ForkServer
from tests.chaos.launching import Setting
from tests.chaos.reference import References
from tests.chaos.strikes import Strike, can_mount
from tests.chaos.trial import Trial, carry_out
from tests.integration.runs import build_tiny_corpus

ZERO3 = Setting(stage=3, precision="bf16", workers=1, every_steps=3, local_every_steps=2)

KILLED = Trial(
    "killed",
    (ZERO3,),
    strikes=(
        (Strike("kill_one", "save", steps=5, delay_s=0.01, rank=1),),
        (Strike("term_one", "start", delay_s=1.0, rank=1),),
        (Strike("pause_one", steps=1), Strike("kill_all", "evaluation", steps=2, delay_s=0.01)),
    ),
    damages=("flipped", "incomplete", "truncated"),
)
MOVED = Trial(
    "moved",
    (
        Setting(stage=1, ranks=2, dropout=0.0, every_steps=3, local_every_steps=1),
        Setting(stage=3, ranks=3, dropout=0.0, every_steps=2, background=False),
        Setting(stage=0, ranks=1, dropout=0.0),
    ),
    strikes=((Strike("usr2_all", "save", steps=2),), (Strike("kill_all", steps=5),)),
    damages=("unfinished", "gone"),
)
FULL = Trial(
    "full",
    (Setting(stage=2, max_steps=48, every_steps=2),),
    strikes=((Strike("fill_disk", steps=5), Strike("fill_disk", steps=20)),),
    disk="run",
    nan="1:12",
    most_attempts=1,
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    server = ForkServer(tmp_path_factory.mktemp("server"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def references(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> References:
    manifest = build_tiny_corpus(tmp_path_factory.mktemp("chaos"))
    return References(tmp_path_factory.mktemp("references"), manifest, server)


@pytest.mark.parametrize(
    "trial", [KILLED, pytest.param(MOVED, marks=pytest.mark.thorough), FULL], ids=lambda trial: trial.name
)
def test_a_run_ends_as_if_nothing_had_been(
    trial: Trial, references: References, server: ForkServer, tmp_path: Path
) -> None:
    if trial.disk and not can_mount(tmp_path / "disk"):
        pytest.skip("a small disk cannot be mounted here: that needs root")
    result = carry_out(trial, tmp_path, references, server)
    assert not result.problems, f"{trial}: {result}"

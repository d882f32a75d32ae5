"""Corpora and runs that several tests look at; none of them changes them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.runs import TRAIN, NewRun, TinyRun, build_tiny_corpus, fresh_python
from tests.processes import kill_all


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of invented words in several shards."""
    return build_tiny_corpus(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def new_run(manifest: Path, tmp_path: Path) -> Iterator[NewRun]:
    """Makes runs in folders of the test; whatever they started is gone afterwards."""
    made: list[TinyRun] = []

    def make(name: str) -> TinyRun:
        made.append(TinyRun(tmp_path / name, manifest))
        return made[-1]

    yield make
    kill_all(tmp_path)
    for process in (process for run in made for process in run.started):
        process.wait(timeout=30)


@pytest.fixture(scope="session")
def finished(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A complete run of twelve steps by one process, with evaluations and samples."""
    run = TinyRun(tmp_path_factory.mktemp("finished"), manifest)
    environment = {"TORCH_EXTENSIONS_DIR": str(run.folder / "extensions")}
    result = fresh_python(TRAIN, "--config", run.config, environment=environment)
    assert result.returncode == 0, result.stdout
    return run

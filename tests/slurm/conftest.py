"""One cluster for all tests of jobs; each finds it as new, and what a test leaves behind is cancelled."""

import faulthandler
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.runs import build_tiny_corpus
from tests.slurm.cluster import Cluster, missing_commands
from tests.slurm.jobs import SlurmRun

_LONGEST_S = 800.0


@pytest.fixture(autouse=True)
def longer_limit() -> Iterator[None]:
    """A job that is requeued takes minutes: more than any other test may."""
    faulthandler.dump_traceback_later(_LONGEST_S, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="session")
def whole_cluster() -> Iterator[Cluster]:
    missing = missing_commands()
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (apt-get install slurm-wlm munge iproute2)")
    kept = tempfile.TemporaryDirectory(prefix="scaletrain-slurm-", ignore_cleanup_errors=True)
    with kept as folder, Cluster(Path(folder)) as cluster:
        yield cluster


@pytest.fixture
def cluster(whole_cluster: Cluster) -> Iterator[Cluster]:
    yield whole_cluster
    whole_cluster.restore()


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_corpus(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def new_run(cluster: Cluster, manifest: Path, tmp_path: Path) -> Callable[[str], SlurmRun]:
    return lambda name: SlurmRun(cluster, tmp_path / name, manifest)


@pytest.fixture(scope="session")
def undisturbed(whole_cluster: Cluster, manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> SlurmRun:
    """A run on two nodes to which nothing happens."""
    run = SlurmRun(whole_cluster, tmp_path_factory.mktemp("undisturbed") / "run", manifest)
    run.submit()
    run.ends_as("COMPLETED")
    return run

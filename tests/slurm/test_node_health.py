"""The check of a node as Slurm's HealthCheckProgram, by the lines of docs/node_check.md."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.fake_nvml import FakeDriver
from tests.integration.runs import ROOT
from tests.processes import eventually
from tests.slurm.cluster import Cluster

PAGE = (ROOT / "docs" / "node_check.md").read_text()
SICK = "n2"


def program(folder: Path, fake: FakeDriver, conf: Path) -> Path:
    """The script of the page, for a checkout and an environment that lie elsewhere; each node meets a driver."""
    (script,) = [text for text in re.findall(r"```bash\n(#!/bin/bash\n.*?)```", PAGE, re.DOTALL) if "scontrol" in text]
    python = f"{folder}/checkout/.venv/bin/python"
    Path(python).parent.mkdir(parents=True)
    environment = {**fake.environment, "PYTHONPATH": str(ROOT)}
    settings = "".join(f"export {name}={value}\n" for name, value in environment.items())
    # The fault is on one node: the others have another file of answers.
    other = f"[ $(hostname) = {SICK} ] || export FAKE_NVML={folder}/healthy.txt\n"
    Path(python).write_text(f'#!/bin/bash\n{settings}{other}exec {sys.executable} "$@"\n')
    (folder / "healthy.txt").write_text("gpus=8\n")
    (folder / "checkout" / "tools").symlink_to(ROOT / "tools")
    path = folder / "health.sh"
    script = script.replace("/opt/scaletrain/checkout", str(folder / "checkout"))
    # Slurm's own configuration lies elsewhere, too, and the program's environment does not tell where.
    path.write_text(script.replace("\n", f"\nexport SLURM_CONF={conf}\n", 1))
    for file in (Path(python), path):
        file.chmod(0o755)
    return path


@contextmanager
def health_check(cluster: Cluster, path: Path) -> Iterator[None]:
    """Has Slurm run it on idle nodes, and tells it to stop."""
    conf = cluster.folder / "slurm.conf"
    before = conf.read_text()
    lines = (f"HealthCheckProgram={path}", "HealthCheckInterval=20", "HealthCheckNodeState=IDLE")
    try:
        conf.write_text("\n".join([*lines, before]))
        cluster.run("scontrol", "reconfigure")
        yield
    finally:
        conf.write_text(before)
        cluster.run("scontrol", "reconfigure")


def test_a_node_with_a_sick_gpu_is_drained_and_the_others_are_not(cluster: Cluster) -> None:
    folder = cluster.folder / "health"
    folder.mkdir()
    fake = FakeDriver(folder, gpus=8)
    fake.set("3.rows_pending", 1)

    def reason() -> str | None:
        shown = cluster.run("scontrol", "show", "node", SICK)
        return shown if "DRAIN" in shown else None

    with health_check(cluster, program(folder, fake, cluster.folder / "slurm.conf")):
        shown = eventually(reason, 150, cluster.logs)
    assert "Reason=CRITICAL - n2: gpu 3 row_remap_pending: GPU 3" in shown
    states = cluster.run("sinfo", "--noheader", "-N", "-p", "main", "-o", "%N %T").split("\n")
    assert {line.split()[0] for line in states if line and "idle" in line} == {"n1", "n3"}

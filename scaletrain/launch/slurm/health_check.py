"""Checks the nodes of a job as before a training: ``python -m scaletrain.launch.slurm.health_check``."""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from scaletrain.errors import ConfigError
from scaletrain.launch.slurm.checks import Checks
from scaletrain.launch.slurm.commands import Slurm
from scaletrain.launch.slurm.job import Job
from scaletrain.launch.slurm.settings import Settings
from scaletrain.launch.verdicts import EXIT_CODES, Verdict


def main(arguments: Sequence[str]) -> int:
    """Checks each node, then the connections between those that passed, and prints what was found.

    Args:
        arguments: None are known.

    Returns:
        0, or 1 where a node or a connection failed.
    """
    logging.basicConfig(level=logging.WARNING, format="scaletrain: %(message)s")
    try:
        if arguments:
            raise ConfigError(f"{' '.join(arguments)}: healthcheck.sh takes no arguments; options go before its name")
        settings = Settings.from_environment(os.environ)
        job = Job.of_this_process(os.environ, Slurm())
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_CODES[Verdict.USER_ERROR]
    folder = Path.cwd() / f"healthcheck-{job.job_id}"
    root = Path(__file__).resolve().parents[3]
    checks = Checks(job, settings, folder, (root, Path.cwd()), lambda: False)
    nodes = checks.check_nodes(job.nodes)
    failed = {**nodes.failed, **nodes.sick}
    sound = [node for node in job.nodes if node not in failed]
    between = checks.check_connections(sound)
    sick = {**failed, **between.sick}
    for warning in (*nodes.warnings, *between.warnings):
        print(f"warning  {warning}")
    for problem in (*nodes.unclear, *between.unclear):
        print(f"unclear  {problem}")
    for node in job.nodes:
        print(f"{'FAIL' if node in sick else 'ok':<8} {node}  {sick.get(node, '')}".rstrip())
    if between.bandwidth_gb_s is not None:
        print(f"all-reduce over {len(sound)} nodes: {between.bandwidth_gb_s:.3g} GB/s (bus bandwidth)")
    print(f"all findings: {folder}")
    return int(bool(sick or nodes.unclear or between.unclear))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

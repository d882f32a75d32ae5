"""Ports of a job, by its number, so that two jobs can share a node."""

_FIRST_PORT = 10240
_PORTS_PER_JOB = 20
_BLOCKS = 1100  # up to 32239, below the range from which Linux takes ports for outgoing connections
_TRAINING_PORTS = 8


def training_port(job_id: int, launch: int) -> int:
    """Port of the first rank; each launch has another one, so that what the last one left cannot be in the way.

    Args:
        job_id: Slurm's number of the job: jobs whose numbers differ by less than 1100 never meet.
        launch: Number of the launch.

    Returns:
        A port between 10240 and 32239.
    """
    return _first(job_id) + launch % _TRAINING_PORTS


def check_port(job_id: int, round_: int) -> int:
    """Port for a round of checks of the connections; groups that are tested at once have different first nodes.

    Args:
        job_id: As for ``training_port``.
        round_: Number of the round.

    Returns:
        A port of the same block, not one of training.
    """
    return _first(job_id) + _TRAINING_PORTS + round_ % (_PORTS_PER_JOB - _TRAINING_PORTS)


def _first(job_id: int) -> int:
    return _FIRST_PORT + job_id % _BLOCKS * _PORTS_PER_JOB

"""Who this process is among the processes of a run, read from the launcher's environment."""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Ranks:
    """Place of one process in a run.

    Attributes:
        rank: Global index of this process, 0 to world_size - 1.
        local_rank: Index among the processes of this node.
        world_size: Number of processes of the run.
        local_world_size: Number of processes on this node.
        host: Name of this node.
    """

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    host: str

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes what the run writes once."""
        return self.rank == 0


def from_environment(environ: Mapping[str, str] | None = None) -> Ranks:
    """Reads RANK, LOCAL_RANK, WORLD_SIZE and LOCAL_WORLD_SIZE (deepspeed: LOCAL_SIZE), as the launchers set them.

    Args:
        environ: The environment to read; the process's own by default.

    Returns:
        The place of this process; a process started without a launcher is the only rank.
    """
    env = os.environ if environ is None else environ
    world_size = int(env.get("WORLD_SIZE", "1"))
    return Ranks(
        rank=int(env.get("RANK", "0")),
        local_rank=int(env.get("LOCAL_RANK", "0")),
        world_size=world_size,
        local_world_size=int(env.get("LOCAL_WORLD_SIZE", env.get("LOCAL_SIZE", str(world_size)))),
        host=socket.gethostname(),
    )

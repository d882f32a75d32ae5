"""The places for checkpoints: storage that all ranks see, and each node's own disk."""

import secrets
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist

from scaletrain.checkpoint.retention import Retention
from scaletrain.config.schema import CheckpointConfig
from scaletrain.errors import ConfigError
from scaletrain.launch.run_dir import RunDirectory, local_folder
from scaletrain.planning.checkpoints import LOCAL_KEEP_LAST
from scaletrain.ranks import Ranks


@dataclass(frozen=True)
class Tier:
    """A place for checkpoints.

    Attributes:
        name: ``shared``: all ranks see one folder; ``local``: each node has its own.
        checkpoints: The folder.
        every_steps: Interval of saves; 0 for none.
        retention: What stays.
        committer: The rank that makes and commits the folder that this rank writes to.
    """

    name: Literal["shared", "local"]
    checkpoints: Path
    every_steps: int
    retention: Retention
    committer: int = 0

    @property
    def is_committer(self) -> bool:
        """Whether this rank makes and commits the folder."""
        return self.committer == dist.get_rank()


def open_tiers(
    checkpoint: CheckpointConfig, folder: RunDirectory, ranks: Ranks, keeps_best: bool = False
) -> list[Tier]:
    """The places of a run, the shared one first; every rank calls it.

    Args:
        checkpoint: When and where the run saves.
        folder: The run's folder, claimed.
        ranks: The place of this process.
        keeps_best: Whether the best one stays, whatever ``checkpoint`` says.

    Returns:
        One or two places.

    Raises:
        ConfigError: The folder on the nodes' own disks cannot be used; on all ranks.
    """
    retention = Retention(checkpoint.keep_last, checkpoint.keep_every_steps, checkpoint.keep_best or keeps_best)
    tiers = [Tier("shared", folder.checkpoints, checkpoint.every_steps, retention)]
    if checkpoint.local_dir is not None:
        place = local_folder(checkpoint.local_dir, folder.run_id)
        committer = ranks.rank - ranks.local_rank
        tiers.append(Tier("local", place, checkpoint.local_every_steps, Retention(LOCAL_KEEP_LAST), committer))
        _check_local(tiers[-1], ranks)
    return tiers


def _check_local(tier: Tier, ranks: Ranks) -> None:
    """Tries the folder of each node now, and not at the first save."""
    nonce = _gather(secrets.token_hex(8))[0]
    mark = tier.checkpoints / f"start_{nonce}_{ranks.rank}"
    problem = ""
    try:
        if tier.is_committer:
            tier.checkpoints.mkdir(parents=True, exist_ok=True)
            for mark_there in tier.checkpoints.glob("start_*"):
                if nonce not in mark_there.name:  # of a start that was killed here
                    mark_there.unlink(missing_ok=True)
            mark.touch()
    except OSError as error:
        problem = f"{error.strerror} on {ranks.host}"
    gathered = _gather((tier.committer, ranks.local_world_size, problem))  # all marks are there
    seen = sum(1 for _ in tier.checkpoints.glob(f"start_{nonce}_*")) if not problem else 1
    problems = [text for _, _, text in gathered if text]
    of_node = Counter(committer for committer, _, _ in gathered)
    if any(of_node[committer] != size for committer, size, _ in gathered):
        problems.append("the ranks of a node are not consecutive, so that a node's files cannot be told apart")
    if max(_gather(seen)) > 1:
        problems.append("several nodes see the same folder: it must be on each node's own disk")
    if tier.is_committer and not problem:
        mark.unlink(missing_ok=True)
    if problems:
        told = "; ".join(dict.fromkeys(problems))
        raise ConfigError(
            f"checkpoint.local_dir cannot be used: {told} ({tier.checkpoints}). Give another, or none with "
            "--checkpoint.local_dir null --checkpoint.local_every_steps 0."
        )


def _gather(own: Any) -> list[Any]:
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, own)
    return gathered

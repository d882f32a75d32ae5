"""Logging: one handler on standard error, the rank in every line."""

import logging

from scaletrain.ranks import Ranks

_NOISY = ("DeepSpeed", "deepspeed", "torch.distributed", "fsspec", "asyncio")


def configure(ranks: Ranks, level: int = logging.INFO) -> None:
    """Sets the root logger up for this process.

    Rank 0 logs at ``level``; the others only warnings and worse, so that a message common to all
    ranks stands once in the job's log.

    Args:
        ranks: The place of this process.
        level: Lowest level that rank 0 prints.
    """
    name = "" if ranks.world_size == 1 else f" rank {ranks.rank}"
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"%(asctime)s{name} %(levelname).1s %(name)s: %(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level if ranks.is_main else logging.WARNING)
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)

"""Real trainings of four ranks, some of which are slow, or none."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scaletrain.launch.events import read_events
from tests.chaos.fork_server import ForkServer
from tests.integration.delayed_link import INTERFACE
from tests.integration.network import Network
from tests.integration.runs import ENVIRONMENT, ROOT, TinyRun, free_port

WORLD_SIZE = 4
SLOWED_RANK = Path(__file__).parent / "slowed_rank.py"
# A step of some 50 ms of CPU time: large enough that a tenth of it is more than the noise of a machine that is shared.
SIZES = (
    *("--model.d_model", 128, "--model.n_heads", 4, "--model.max_seq_len", 64, "--train.max_seq_len", 64),
    *("--train.global_batch_size", 40, "--train.micro_batch_size", 10, "--train.max_steps", 100_000),
    *("--eval.every_steps", 0, "--checkpoint.every_steps", 0),
)


def start(
    run: TinyRun,
    server: ForkServer,
    window_steps: int,
    slow: Mapping[int, str],
    network: Network | None,
    *flags: object,
) -> list[int]:
    """Starts the ranks of a run.

    Args:
        run: That has not begun.
        server: Forks the ranks.
        window_steps: Length of a window.
        slow: By rank, what slows it down; see ``slowed_rank``.
        network: In which each rank has its own link; None for the machine's.
        *flags: Further ones.

    Returns:
        Their process numbers.
    """
    ranks = range(WORLD_SIZE)
    slowed = {"slow": slow, "namespaces": [] if network is None else list(map(network.namespace, ranks))}
    common = ENVIRONMENT | {"SLOWED": json.dumps(slowed), "PYTHONPATH": str(ROOT), "MASTER_PORT": str(free_port())}
    common |= {"WORLD_SIZE": str(WORLD_SIZE), "LOCAL_WORLD_SIZE": str(WORLD_SIZE), "MASTER_ADDR": "127.0.0.1"}
    if network is not None:
        common |= {"MASTER_ADDR": network.address(0), "GLOO_SOCKET_IFNAME": INTERFACE}
    arguments = ["--config", run.config, *SIZES, "--monitor.stragglers.every_steps", window_steps, *flags]
    return [
        server.fork(
            SLOWED_RANK,
            list(map(str, arguments)),
            common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            run.folder / f"rank-{rank}.txt",
        )
        for rank in ranks
    ]


def stragglers(run: TinyRun) -> list[dict[str, Any]]:
    """What was said so far."""
    path = run.run_dir / "events.jsonl"
    return [one for one in read_events(path) if one["event"] == "straggler"] if path.exists() else []

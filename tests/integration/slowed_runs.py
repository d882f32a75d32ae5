"""Real trainings, some of whose ranks are slow, or none."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from scaletrain.launch.events import read_events
from scaletrain.monitors.jsonl_writer import read_metrics
from tests.chaos.fork_server import ForkServer
from tests.integration.delayed_link import INTERFACE
from tests.integration.network import Network
from tests.integration.runs import ENVIRONMENT, ROOT, TRAIN, TinyRun, free_port

SLOWED_RANK = Path(__file__).parent / "slowed_rank.py"
# A step of some 40 ms of CPU time: large enough that a tenth of it is more than the noise of cores that are shared.
SIZES = (
    *("--model.d_model", 128, "--model.n_heads", 4, "--model.max_seq_len", 64, "--train.max_seq_len", 64),
    *("--train.global_batch_size", 40, "--train.max_steps", 100_000, "--eval.every_steps", 0),
)


@dataclass(frozen=True)
class Setting:
    """How a run is started.

    Attributes:
        world_size: Number of ranks.
        slow: By rank, what slows it down; see ``slowed_rank``.
        extra_work: How much more a rank computes that is slow for that, as a share of a step.
        network: In which each rank has a node and a link of its own; None for this machine.
        window_steps: Length of a window.
        flags: What else is asked of the run.
    """

    world_size: int = 4
    slow: Mapping[int, str] = field(default_factory=dict)
    extra_work: float = 0.1
    network: Network | None = None
    window_steps: int = 30
    flags: tuple[object, ...] = ("--checkpoint.every_steps", 0)

    @property
    def environment(self) -> dict[str, str]:
        """What its processes have in their environment."""
        places = [] if self.network is None else list(map(self.network.namespaces, range(self.world_size)))
        address = "127.0.0.1" if self.network is None else self.network.address(0)
        interface = {} if self.network is None else {"GLOO_SOCKET_IFNAME": INTERFACE}
        slowed = json.dumps({"slow": self.slow, "extra_work": self.extra_work, "nodes": places})
        return {"SLOWED": slowed, "PYTHONPATH": str(ROOT), "MASTER_ADDR": address, **interface}

    @property
    def arguments(self) -> tuple[object, ...]:
        """What is asked of the run."""
        size = ("--train.micro_batch_size", 40 // self.world_size)
        return (*SIZES, *size, "--monitor.stragglers.every_steps", self.window_steps, *self.flags)


def start(run: TinyRun, server: ForkServer, setting: Setting) -> None:
    """Starts the ranks of a run.

    Args:
        run: One that has not begun.
        server: Forks the ranks.
        setting: How they are.
    """
    per_node = setting.world_size if setting.network is None else 1
    sizes = {"WORLD_SIZE": str(setting.world_size), "LOCAL_WORLD_SIZE": str(per_node)}
    common = ENVIRONMENT | setting.environment | sizes | {"MASTER_PORT": str(free_port())}
    arguments = list(map(str, (TRAIN, "--config", run.config, *setting.arguments)))
    for rank in range(setting.world_size):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank % per_node)}
        server.fork(SLOWED_RANK, arguments, common | own, run.output_of(f"rank-{rank}"))


def named(run: TinyRun) -> dict[int, str]:
    """Which ranks were named so far, and for what cause."""
    path = run.run_dir / "events.jsonl"
    events = [one for one in read_events(path) if one["event"] == "straggler"] if path.exists() else []
    return {rank: one["cause"] for one in events for rank in one["ranks"]}


def windows(run: TinyRun) -> int:
    """How many windows have been judged."""
    path = run.run_dir / "metrics.jsonl"
    return sum("straggler/count" in line for line in read_metrics(path)) if path.exists() else 0

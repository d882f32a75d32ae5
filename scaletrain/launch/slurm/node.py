"""What runs on each node of a step: finds the way to the others, then starts the node's ranks or a check.

``python -m scaletrain.launch.slurm.node PLAN.json``, by srun.
"""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from scaletrain.files import replace_text
from scaletrain.launch.processes import this_process
from scaletrain.launch.slurm.interface import interface_towards
from scaletrain.lifetime import end_with
from scaletrain.log import FOLDER_VARIABLE

_SHIELDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)
_STALE_LOCK_S = 300.0
"""Age from which the lock of a build of torch's extensions belongs to a build that was killed: one takes a minute."""


def main(plan_path: Path) -> int:
    """Runs this node's part of a plan.

    Args:
        plan_path: JSON: ``nodes`` in order, ``addresses``, ``port``, ``slots`` (ranks on each), ``command``, and for a
            training ``log_dir``; without that the command is a check, which gets the plan and its place in it.

    Returns:
        The exit code of what ran.
    """
    plan = json.loads(plan_path.read_text())
    node = os.environ.get("SLURMD_NODENAME", socket.gethostname())
    node_rank = plan["nodes"].index(node)
    master = plan["addresses"][plan["nodes"][0]]
    # The way to oneself is the loopback, and so is one's own name in many hosts files: no other node comes by that.
    interface = interface_towards(master if node_rank else plan["addresses"][plan["nodes"][-1]])
    if interface == "lo" and len(plan["nodes"]) > 1:
        interface = None
    environment = dict(os.environ) | added_variables(plan, interface, os.environ)
    if "log_dir" not in plan:
        result = f"{plan['check']['result']}-{node}.json"
        place = {"node_rank": node_rank, "master_addr": master, "master_port": plan["port"], "result": result}
        os.execve(sys.executable, [sys.executable, *plan["command"], json.dumps(plan["check"] | place)], environment)
    return _train(plan, node, node_rank, master, interface, environment)


def _train(
    plan: dict[str, Any], node: str, node_rank: int, master: str, interface: str | None, environment: dict[str, str]
) -> int:
    log_dir = Path(plan["log_dir"])
    told = {
        "node": node,
        "host": socket.gethostname(),
        "step": os.environ.get("SLURM_STEP_ID"),
        "process": asdict(this_process()),
        "interface": interface,
        "socket": environment.get("NCCL_SOCKET_IFNAME"),
        "ranks": list(range(node_rank * plan["slots"], (node_rank + 1) * plan["slots"])),
        "started_s": time.time(),
    }
    replace_text(log_dir / f"node-{node}.json", json.dumps(told) + "\n")
    _unlock_extensions(environment)
    # Slurm signals every process of a step. DeepSpeed's launcher would kill its ranks 30 s after the first one: blocked
    # signals are inherited, and the ranks unblock theirs.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SHIELDED)
    with (log_dir / f"launcher-{node}.log").open("ab") as log:
        launcher = subprocess.Popen(
            launcher_command(plan, node_rank, master, environment),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            preexec_fn=partial(end_with, os.getpid()),
        )
    code = launcher.wait()
    told |= {"exit_code": code, "ended_s": time.time()}
    replace_text(log_dir / f"node-{node}.json", json.dumps(told) + "\n")
    return code if code >= 0 else 128 - code


def added_variables(plan: Mapping[str, Any], interface: str | None, environment: Mapping[str, str]) -> dict[str, str]:
    """Environment variables that the ranks of a node get, besides those that are there.

    Args:
        plan: As for ``main``.
        interface: The network interface that leads to the first node; None where none does.
        environment: What is there; what a user has set stays.
    """
    wanted: dict[str, Any] = {"NCCL_SOCKET_IFNAME": interface, "GLOO_SOCKET_IFNAME": interface}
    if "log_dir" in plan:
        wanted["SCALETRAIN_JOB_END_TIME"] = plan.get("end_s")
    added = {name: str(value) for name, value in wanted.items() if value is not None and name not in environment}
    return added | ({FOLDER_VARIABLE: str(plan["log_dir"])} if "log_dir" in plan else {})


def launcher_command(plan: Mapping[str, Any], node_rank: int, master: str, environment: Mapping[str, str]) -> list[str]:
    """DeepSpeed's launcher for one node, as its runner calls it on each node of several.

    Args:
        plan: As for ``main``.
        node_rank: Place of this node.
        master: Address of the first node.
        environment: Says which GPUs Slurm gave to this node.

    Returns:
        The command.
    """
    slots: list[list[int | str]] = [list(range(plan["slots"])) for _ in plan["nodes"]]
    visible = [one for one in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
    if len(visible) >= plan["slots"]:
        # The launcher sets the variable anew: without this a job that shares its node would take the other's GPUs.
        slots[node_rank] = [int(one) if one.isdigit() else one for one in visible[: plan["slots"]]]
    world = dict(zip(plan["nodes"], slots, strict=True))
    return [
        sys.executable,
        "-u",
        "-m",
        "deepspeed.launcher.launch",
        f"--world_info={base64.urlsafe_b64encode(json.dumps(world).encode()).decode()}",
        f"--node_rank={node_rank}",
        f"--master_addr={master}",
        f"--master_port={plan['port']}",
        "--no_local_rank",
        *plan["command"],
    ]


def _unlock_extensions(environment: Mapping[str, str]) -> None:
    """Removes locks of killed builds, for which the next one would wait for ever."""
    home = Path(environment.get("HOME", "/"))
    root = Path(environment.get("TORCH_EXTENSIONS_DIR") or home / ".cache" / "torch_extensions")
    for lock in (*root.glob("*/lock"), *root.glob("*/*/lock")):
        try:
            if time.time() - lock.stat().st_mtime > _STALE_LOCK_S:
                lock.unlink()
        except OSError:
            continue


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

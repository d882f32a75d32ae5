"""How fast the devices of one node sum up together.

``python -m scaletrain.preflight.node_all_reduce RANKS ON_GPUS LIMIT_S`` prints a finding as JSON; ON_GPUS is 1 or 0.
"""

import json
import os
import socket
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from scaletrain.hardware.bounded import announce
from scaletrain.hardware.findings import Finding
from scaletrain.preflight.exchange import OUT_OF_TIME, run_node

_GPU_MIB, _CPU_MIB = 512, 16
_REPEATS = 10


def reduce_on_node(ranks: int, on_gpus: bool, limit_s: float) -> Finding:
    """Runs an all-reduce over processes of this node.

    Args:
        ranks: How many.
        on_gpus: Each has a GPU of its own, and NCCL connects them; else they are on the CPU, and gloo does.
        limit_s: Longest time, the start of the processes included.

    Returns:
        The finding, with the bus bandwidth of the slowest rank.
    """
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ[name] = "lo"  # nothing leaves the node, whatever its network is like
    with tempfile.TemporaryDirectory(prefix="scaletrain-all-reduce-") as folder, socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        number = port.getsockname()[1]
        port.close()
        result = Path(folder) / "result.json"
        task = {
            "node_rank": 0,
            "nodes": 1,
            "gpus": ranks if on_gpus else 0,
            "ranks": ranks,
            "master_addr": "127.0.0.1",
            "master_port": number,
            "mib": _GPU_MIB if on_gpus else _CPU_MIB,
            "repeats": _REPEATS,
            "limit_s": limit_s,
            "result": str(result),
        }
        announce(f"starts an all-reduce over {ranks} processes")
        code = run_node(task)
        told = json.loads(result.read_text()) if result.exists() else None
    whom = f"{ranks} {'GPUs' if on_gpus else 'processes on the CPU'}"
    if told is not None and told["correct"] and code == 0:
        rate = float(told["gb_per_s"])
        text = f"{rate:.3g} GB/s bus bandwidth over {whom}"
        return Finding("all-reduce", "ok", text, {"all_reduce_gb_per_s": rate})
    if told is not None and not told["correct"]:
        return Finding("all-reduce", "fail", f"sums over {whom} are wrong; have NVLinks and GPUs tested")
    why = f"no end within {limit_s:.1f} s" if code == OUT_OF_TIME else f"ended with code {code}"
    return Finding("all-reduce", "fail", f"over {whom}: {why}; run it with NCCL_DEBUG=INFO, and look at NVLinks")


if __name__ == "__main__":
    print(json.dumps([asdict(reduce_on_node(int(sys.argv[1]), sys.argv[2] == "1", float(sys.argv[3])))]))

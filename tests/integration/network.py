"""A node of its own for each rank: namespaces with a host name, joined by links that can be made slow."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.integration.delayed_link import INTERFACE, PORT

ROOT = Path(__file__).parents[2]
_LONGEST_S = 1200
_MTU_BYTES = 60_000
"""As large as it may be: what a link costs is what it does to a frame, and not to a byte."""
_HOLD = f"""
import socket, sys, time
socket.sethostname(sys.argv[1])
print("there", flush=True)
time.sleep({_LONGEST_S})
"""


class Network:
    """Namespaces, kept by a process each, and gone with it.

    Attributes:
        hub: The process in the namespace of the bridge.
        ranks: The process in the namespace of each rank.
    """

    def __init__(self, hub: int, ranks: list[int]) -> None:
        self.hub, self.ranks = hub, ranks
        run_in(self.hub, "ip link add bridge0 type bridge")
        run_in(self.hub, "ip link set bridge0 up")

    def address(self, rank: int) -> str:
        """Of a rank."""
        return f"10.77.0.{rank + 1}"

    @staticmethod
    def host(rank: int) -> str:
        """Name of a rank's node."""
        return f"n{rank}"

    def namespaces(self, rank: int) -> str:
        """The folder by which a process enters the node of a rank."""
        return _namespaces(self.ranks[rank])

    def connect(self, rank: int) -> None:
        """Joins a rank to the bridge by a link that is quick."""
        port = PORT.format(rank=rank)
        run_in(self.hub, f"ip link add {port} type veth peer name {INTERFACE} netns {self.ranks[rank]}")
        self.plug_in(rank)

    def plug_in(self, rank: int) -> None:
        """Puts the two ends of a rank's link into use."""
        port = PORT.format(rank=rank)
        run_in(self.hub, f"ip link set {port} mtu {_MTU_BYTES} master bridge0 up")
        run_in(self.ranks[rank], f"ip address add {self.address(rank)}/24 dev {INTERFACE}")
        run_in(self.ranks[rank], f"ip link set {INTERFACE} mtu {_MTU_BYTES} up")
        run_in(self.ranks[rank], "ip link set lo up")

    def limit(self, rank: int, rate: str) -> None:
        """Limits what a rank sends to a rate, such as 20mbit."""
        run_in(self.ranks[rank], f"tc qdisc add dev {INTERFACE} root tbf rate {rate} burst 128kb latency 200ms")


def lacking() -> str:
    """What a machine lacks for it; empty where it has all."""
    if os.geteuid() != 0:
        return "namespaces of networks need root"
    missing = [name for name in ("unshare", "nsenter", "ip", "tc") if shutil.which(name) is None]
    missing += [] if Path("/dev/net/tun").exists() else ["/dev/net/tun"]
    return f"there is no {', '.join(missing)}" if missing else ""


@contextmanager
def networked(world_size: int, delays_ms: Mapping[int, float]) -> Iterator[Network]:
    """Makes the nodes of some ranks, and takes them down.

    Args:
        world_size: Number of ranks.
        delays_ms: By rank, for how long its link holds what it carries, each way, in milliseconds.
    """
    with ExitStack() as stack:

        def start(*command: object) -> int:
            process = stack.enter_context(
                subprocess.Popen(list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, text=True)
            )
            stack.callback(process.kill)
            assert process.stdout is not None and process.stdout.readline()
            return process.pid

        hosts = ["hub", *map(Network.host, range(world_size))]
        hub, *ranks = (start("unshare", "--net", "--uts", sys.executable, "-c", _HOLD, host) for host in hosts)
        network = Network(hub, ranks)
        for rank in range(world_size):
            if rank in delays_ms:
                link = (_namespaces(hub), _namespaces(ranks[rank]), rank, delays_ms[rank])
                start(sys.executable, "-m", "tests.integration.delayed_link", *link)
                network.plug_in(rank)
            else:
                network.connect(rank)
        yield network


def run_in(namespace_of: int, command: str) -> None:
    """Runs a command in the namespace of a process."""
    inside = ["nsenter", f"--net={_namespaces(namespace_of)}/net", *command.split()]
    done = subprocess.run(inside, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"


def _namespaces(pid: int) -> str:
    return f"/proc/{pid}/ns"

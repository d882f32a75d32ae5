"""How long a message takes to a neighbour and back: what tells a slow link from a slow rank.

A collective does not tell: in a ring all ranks wait for its slowest link. Nor do the round trip times that the kernel
keeps for its connections, which count how long a peer takes to acknowledge.
"""

import time
from collections.abc import Sequence

import torch
import torch.distributed as dist

_BYTES = 2**20
"""Large enough to show that a link has lost bandwidth: there and back 0.2 ms at 100 Gbit/s, and 1.7 ms at 10."""
_TRIPS = 12


def neighbour_stride(hosts: Sequence[str]) -> int | None:
    """How far apart neighbours are, so that they are on different nodes where there are several.

    Args:
        hosts: The node of each rank; the same on all ranks, or they would wait for different ones.

    Returns:
        The stride: the ranks of a node; 1 where nodes have unequal numbers of ranks. None on a single node, whose
        ranks have no link.
    """
    per_node = hosts.count(hosts[0])
    nodes = {tuple(hosts[first : first + per_node]) for first in range(0, len(hosts), per_node)}
    are_alike = all(node == (node[0],) * per_node for node in nodes) and len(nodes) * per_node == len(hosts)
    if per_node == len(hosts):
        return None
    return per_node if are_alike else 1


def round_trip_s(rank: int, world_size: int, stride: int) -> float:
    """Sends messages to the next rank of a ring and back, over the host's network; every rank calls it.

    The fastest trip counts: on a machine that is busy most take longer than the link does. The first is not timed, as
    it waits until the neighbour has come here.

    Args:
        rank: Of this process.
        world_size: Number of ranks, at least 2.
        stride: Between neighbours, as from ``neighbour_stride``.

    Returns:
        Seconds to the rank that is ``stride`` further on, and back.
    """
    ahead, behind = (rank + stride) % world_size, (rank - stride) % world_size
    message = torch.zeros(_BYTES, dtype=torch.uint8, device="cpu")
    fastest_s = float("inf")
    # Each rank is in two pairs. All pairs of a turn are apart, so that none waits for another one's.
    for _, asks in sorted(((_turn(rank, world_size, stride), True), (_turn(behind, world_size, stride), False))):
        for trip in range(_TRIPS):
            if asks:
                begin_s = time.perf_counter()
                dist.send(message, ahead)
                dist.recv(message, ahead)
                if trip:
                    fastest_s = min(fastest_s, time.perf_counter() - begin_s)
            else:
                dist.recv(message, behind)
                dist.send(message, behind)
    return fastest_s


def _turn(rank: int, world_size: int, stride: int) -> int:
    """When a rank asks the next one: every other one at once, and in an odd ring the last one by itself."""
    length, place = world_size // stride, rank // stride
    return 2 if length % 2 and place == length - 1 else place % 2

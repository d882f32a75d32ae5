"""A link that holds all that it carries for a while, which not every kernel can do by itself, with netem.

``python -m tests.integration.delayed_link HUB NODE RANK MILLISECONDS`` joins two virtual network cards, one in each
node's namespaces. They exist for as long as the process does.
"""

import ctypes
import fcntl
import os
import select
import struct
import sys
import time
from collections import deque

INTERFACE = "eth0"
PORT = "port{rank}"
_SET_INTERFACE = 0x400454CA  # TUNSETIFF of linux/if_tun.h
_WHOLE_FRAMES = 0x0002 | 0x1000  # IFF_TAP, IFF_NO_PI
_NAMESPACES = {"net": 0x40000000, "uts": 0x04000000}  # CLONE_NEWNET, CLONE_NEWUTS of linux/sched.h
_LARGEST_FRAME = 65536
_LONGEST_S = 1200


def enter_node(namespaces: str) -> None:
    """Has this process, and all that it starts, use the network and the host name of a node.

    Args:
        namespaces: The folder with the files of its namespaces.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    for name, flag in _NAMESPACES.items():
        descriptor = os.open(f"{namespaces}/{name}", os.O_RDONLY)
        if libc.setns(descriptor, flag):
            raise OSError(ctypes.get_errno(), "setns", f"{namespaces}/{name}")
        os.close(descriptor)


def open_card(namespaces: str, name: str) -> int:
    """Makes a network card of a node, and returns the other end of its cable."""
    enter_node(namespaces)
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, _SET_INTERFACE, struct.pack("16sH22x", name.encode(), _WHOLE_FRAMES))
    return descriptor


def carry(ends: tuple[int, int], delay_s: float) -> None:
    """Hands frames on from each end to the other."""
    waiting: deque[tuple[float, int, bytes]] = deque()
    stop_s = time.monotonic() + _LONGEST_S
    while (now_s := time.monotonic()) < stop_s:
        while waiting and waiting[0][0] <= now_s:
            _, target, frame = waiting.popleft()
            try:
                os.write(target, frame)
            except OSError:  # not in use yet, or full: lost, as on any link
                continue
        pause_s = waiting[0][0] - now_s if waiting else 1.0
        for end in select.select(ends, [], [], max(0.0, pause_s))[0]:
            other = ends[1] if end == ends[0] else ends[0]
            waiting.append((time.monotonic() + delay_s, other, os.read(end, _LARGEST_FRAME)))


def main() -> None:
    """Makes the link, says so, and carries what comes."""
    hub, node, rank, delay_ms = sys.argv[1:]
    ends = open_card(hub, PORT.format(rank=rank)), open_card(node, INTERFACE)
    print("there", flush=True)
    carry(ends, float(delay_ms) / 1000)


if __name__ == "__main__":
    main()

"""The network interface by which a node reaches the others of its job."""

import ipaddress
import socket

import psutil


def interface_towards(address: str) -> str | None:
    """The network interface by which this machine reaches an address, or that has it.

    Args:
        address: A name or a number of another node, or of this one.

    Returns:
        The interface's name, as NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME want it; None where there is no way.
    """
    try:
        family, _, _, _, target = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)  # sends nothing: the kernel only looks the way up
            own = ipaddress.ip_address(probe.getsockname()[0].partition("%")[0])
    except (OSError, ValueError):
        return None
    for name, addresses in psutil.net_if_addrs().items():
        for one in addresses:
            is_ip = one.family in (socket.AF_INET, socket.AF_INET6)
            if is_ip and ipaddress.ip_address(one.address.partition("%")[0]) == own:
                return name
    return None

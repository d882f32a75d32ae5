"""Whether the nodes of a job can be looked up.

``python -m scaletrain.hardware.names JSON LIMIT_S``, with each node's address by name, prints the findings as JSON:
a process of its own, since a resolver whose server is gone takes minutes to say so, and cannot be told not to.
"""

import ipaddress
import json
import os
import socket
import sys
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict

from scaletrain.hardware.bounded import announce
from scaletrain.hardware.findings import Finding

_AT_ONCE = 64
_MOST_NAMED = 8


def check_names(addresses: Mapping[str, str], limit_s: float) -> list[Finding]:
    """Looks up the nodes and this host.

    Launchers use the addresses, so only these must be right; names matter to libraries that look their own host up.

    Args:
        addresses: Address of each node by name.
        limit_s: Longest time to wait for the resolver.

    Returns:
        One finding.
    """
    own = socket.gethostname()
    announce("looks up names")
    unclear = {address for address in addresses.values() if not _is_ip(address)}
    # What matters most goes first: behind many names without an answer the rest is not asked for in time.
    unknown = _not_found(list(dict.fromkeys([*unclear, own, *addresses])), limit_s)
    lost = [f"{name} ({address})" for name, address in addresses.items() if address in unclear & unknown]
    if lost:
        return [Finding("names", "fail", f"no address for {_listed(lost)}; add it to DNS or /etc/hosts")]
    names = unknown - unclear
    if names:
        text = f"{_listed(names)} cannot be looked up within {limit_s:g} s; add it to DNS or /etc/hosts"
        return [Finding("names", "warn", f"{text} (the launch uses addresses)")]
    return [Finding("names", "ok", f"{len(addresses)} nodes and {own} can be looked up")]


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _not_found(names: Collection[str], limit_s: float) -> set[str]:
    """Names without an answer when the time is over; threads that wait for one go on until the process ends."""
    pool = ThreadPoolExecutor(_AT_ONCE)
    asked = {pool.submit(socket.getaddrinfo, name, None): name for name in names}
    answered = wait(asked, limit_s).done
    pool.shutdown(wait=False, cancel_futures=True)
    return {name for future, name in asked.items() if future not in answered or future.exception() is not None}


def _listed(names: Collection[str]) -> str:
    some = sorted(names)[:_MOST_NAMED]
    return ", ".join(some) + (f" and {len(names) - len(some)} more" if len(names) > len(some) else "")


if __name__ == "__main__":
    print(json.dumps([asdict(one) for one in check_names(json.loads(sys.argv[1]), float(sys.argv[2]))]), flush=True)
    os._exit(0)  # without waiting for the threads

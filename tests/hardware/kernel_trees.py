"""Folders shaped like /proc, /sys and the tree of control groups, with the lines that real kernels write."""

from collections.abc import Mapping
from pathlib import Path

from scaletrain.hardware.host_health import HostReading, Roots, read_host

PRESSURE = (
    "some avg10=12.00 avg60=25.50 avg300=4.05 total=5000000\nfull avg10=1.00 avg60=12.25 avg300=1.00 total=2500000\n"
)
CALM = "some avg10=0.00 avg60=0.10 avg300=0.00 total=9000\nfull avg10=0.00 avg60=0.05 avg300=0.00 total=7000\n"
ROUTES = (
    "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
    "eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
    "docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n"
    "cali1\t0A00000A\t00000000\t0005\t0\t0\t0\tFFFFFFFF\t0\t0\t0\n"
)


def net_dev(*names: str) -> str:
    """The content of /proc/net/dev for interfaces of these names."""
    head = "Inter-|   Receive                       |  Transmit\n face |bytes    packets errs drop |bytes    packets\n"
    return head + "".join(f"{name:>6}: 67932724   43258    0    0 67932724   43258\n" for name in names)


def interface(name: str, carrier: str = "1\n", flags: str = "0x1003\n", **more: str) -> dict[str, str]:
    """Files of a network interface with four errors, by their paths."""
    folder = f"sys/class/net/{name}"
    files = {"type": "1\n", "flags": flags, "carrier": carrier, "carrier_changes": "2\n", "speed": "-1\n"} | more
    counters = {"rx_errors": "1\n", "tx_errors": "2\n", "rx_dropped": "3\n", "tx_dropped": "4\n"}
    return {f"{folder}/{file}": text for file, text in files.items()} | {
        f"{folder}/statistics/{file}": text for file, text in counters.items()
    }


def port(device: str, state: str = "4: ACTIVE\n", rate: str = "400 Gb/sec (4X NDR)\n") -> dict[str, str]:
    """Files of port 1 of an InfiniBand device, by their paths."""
    folder = f"sys/class/infiniband/{device}/ports/1"
    counters = {"symbol_error": "5\n", "link_downed": "1\n", "port_rcv_errors": "0\n"}
    return {f"{folder}/state": state, f"{folder}/rate": rate} | {
        f"{folder}/counters/{name}": text for name, text in counters.items()
    }


def plant(folder: Path, files: Mapping[str, str]) -> Roots:
    """Writes files below a folder, and returns it as the place where a kernel tells of itself."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Roots(folder / "proc", folder / "sys", folder / "cgroup")


def read(folder: Path, files: Mapping[str, str]) -> HostReading:
    """What a host tells that has these files."""
    return read_host({}, plant(folder, files))

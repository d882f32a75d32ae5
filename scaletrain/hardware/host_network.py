"""Network interfaces and InfiniBand ports of a host: whether their links are up, and what went wrong on them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scaletrain.hardware.kernel_files import list_names, read_number, read_text

_LOOPBACK_TYPE = 772  # ARPHRD_LOOPBACK of linux/if_arp.h
_IS_UP = 1  # IFF_UP of linux/if.h
_ACTIVE = 4  # IB_PORT_ACTIVE

# All of them grow when a cable, a plug or a transceiver is bad; port_xmit_discards also when the fabric is congested.
_PORT_COUNTERS = (
    "symbol_error",
    "link_error_recovery",
    "link_downed",
    "port_rcv_errors",
    "port_xmit_discards",
    "local_link_integrity_errors",
    "excessive_buffer_overrun_errors",
)
_INTERFACE_COUNTERS = ("rx_errors", "tx_errors", "rx_dropped", "tx_dropped")


@dataclass(frozen=True)
class InterfaceReading:
    """A network interface; None where it is not told.

    Attributes:
        name: Such as "eth0".
        has_carrier: Whether its link is up. An interface that is gone or was switched off has none.
        carrier_changes: How often the link went up or down.
        speed_mbit_per_s: Of the link.
        slowed_share: How much of the speed it had in the beginning it has lost, 0 to 1.
        errors: Counters since the interface was made, by name.
    """

    name: str
    has_carrier: bool
    carrier_changes: int | None
    speed_mbit_per_s: int | None
    slowed_share: float | None
    errors: dict[str, int]


@dataclass(frozen=True)
class PortReading:
    """A port of an InfiniBand or RoCE device; None where it is not told.

    Attributes:
        name: Device and port, such as "mlx5_0.1".
        is_active: Whether the link carries traffic.
        rate_gbit_per_s: Of the link: it falls where lanes are lost.
        slowed_share: How much of the rate it had in the beginning it has lost, 0 to 1.
        errors: Counters by name. The older ones stop at their largest value, until somebody resets them.
    """

    name: str
    is_active: bool
    rate_gbit_per_s: float | None
    slowed_share: float | None
    errors: dict[str, int]


class Network:
    """The interfaces and ports that a host worked with when this began.

    Those that had no link then are left out: a port that nobody has plugged in is no finding.

    Args:
        proc: Where procfs is mounted.
        sys: Where sysfs is mounted.
        interfaces: Names of the interfaces; by default all that have a link and are devices, bonds, or have a route to
            a network. Bridges and the host's ends of containers' interfaces are left out: they come and go.
    """

    def __init__(self, proc: Path, sys: Path, interfaces: Sequence[str] | None = None) -> None:
        self._net = sys / "class/net"
        self._ports_root = sys / "class/infiniband"
        self._interfaces = list(interfaces) if interfaces is not None else self._find_interfaces(proc)
        self._first_speeds: dict[str, float] = {}
        self._ports = [port for port in self._find_ports() if self._read_port(port).is_active]

    def read(self) -> tuple[tuple[InterfaceReading, ...], tuple[PortReading, ...]]:
        """Reads all interfaces and all ports."""
        return tuple(map(self._read_interface, self._interfaces)), tuple(map(self._read_port, self._ports))

    def _find_interfaces(self, proc: Path) -> list[str]:
        names = [name for name in list_names(self._net) if (self._net / name).is_dir()]
        # sysfs shows the interfaces of the network namespace that it was mounted in, which may not be this process's.
        listed = [line.partition(":")[0].strip() for line in (read_text(proc / "self/net/dev") or "").splitlines()[2:]]
        if listed and sorted(listed) != names:
            return []
        routed = _routed(read_text(proc / "self/net/route") or "")
        return [name for name in names if self._is_watched(self._net / name, name in routed)]

    def _is_watched(self, folder: Path, is_routed: bool) -> bool:
        if read_number(folder / "type") == _LOOPBACK_TYPE:
            return False
        if not (read_number(folder / "flags", 0) or 0) & _IS_UP or read_number(folder / "carrier") != 1:
            return False
        if (folder / "bridge").exists():
            return False
        return is_routed or (folder / "device").exists() or (folder / "bonding").exists()

    def _read_interface(self, name: str) -> InterfaceReading:
        folder = self._net / name
        told = read_number(folder / "speed")
        speed = told if told is not None and told > 0 else None  # virtual ones say -1
        counters = {one: read_number(folder / "statistics" / one) for one in _INTERFACE_COUNTERS}
        return InterfaceReading(
            name,
            read_number(folder / "carrier") == 1,
            read_number(folder / "carrier_changes"),
            speed,
            self._slowed_share(name, speed),
            {one: count for one, count in counters.items() if count is not None},
        )

    def _find_ports(self) -> list[tuple[str, str]]:
        return [
            (device, port)
            for device in list_names(self._ports_root)
            for port in list_names(self._ports_root / device / "ports")
        ]

    def _read_port(self, place: tuple[str, str]) -> PortReading:
        device, port = place
        folder = self._ports_root / device / "ports" / port
        state = (read_text(folder / "state") or "").partition(":")[0]  # "4: ACTIVE"
        words = (read_text(folder / "rate") or "").split()  # "400 Gb/sec (4X NDR)"
        rate, name = _number(words[0]) if words else None, f"{device}.{port}"
        counters = {one: read_number(folder / "counters" / one) for one in _PORT_COUNTERS}
        return PortReading(
            name,
            state == str(_ACTIVE),
            rate,
            self._slowed_share(name, rate),
            {one: count for one, count in counters.items() if count is not None},
        )

    def _slowed_share(self, name: str, speed: float | None) -> float | None:
        """Against the speed that it told first; a link that is down has none."""
        if speed is None:
            return None
        first = self._first_speeds.setdefault(name, speed)
        return max(0.0, 1 - speed / first) if first > 0 else None


def _routed(routes: str) -> set[str]:
    """Interfaces with a route to more than one address, from /proc/net/route."""
    rows = [line.split() for line in routes.splitlines()[1:]]
    return {row[0] for row in rows if len(row) > 7 and row[7] != "FFFFFFFF"}


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None

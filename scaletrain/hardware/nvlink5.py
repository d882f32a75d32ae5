"""Errors of NVLink 5, XIDs 144 to 150: which of their sub-codes need a reset, as the kernel's log tells them.

Source: NVIDIA's XID catalogue, "XID 144-150 Decode", column "Resolution Bucket (Data Center Recovery Action)"
(https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html). What it lists with IGNORE, or leaves to the
recovery action that the driver asks for (XID_154_EVAL), stands here; all else is reset.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType

from scaletrain.hardware.readings import Reading, XidEvent

CODES = range(144, 151)

# By XID and unit: the error statuses.
NO_RESET: Mapping[tuple[int, str], frozenset[int]] = MappingProxyType(
    {
        (144, "SAW_MVB"): frozenset({0x1, 0x4, 0x8, 0x20}),
        (145, "RLW_CTRL"): frozenset({0x80000000}),
        (145, "RLW_REMAP"): frozenset({0x1, 0x2, 0x4, 0x8, 0x10, 0x20, 0x100, 0x200, 0x80000000}),
        (145, "RLW_RSPCOL"): frozenset({0x1, 0x80000000}),
        (145, "RLW_RXPIPE"): frozenset({0x1, 0x2, 0x4, 0x8, 0x80000000}),
        (145, "RLW_SRC_TRACK"): frozenset({0x2, 0x4, 0x8, 0x80000000}),
        (145, "RLW_TAGSTATE"): frozenset({0x1, 0x10000, 0x80000000}),
        (146, "TLW_CTRL"): frozenset({0x1, 0x2, 0x80000000}),
        (146, "TLW_RX"): frozenset({0x1, 0x2, 0x80000000}),
        (146, "TLW_TX"): frozenset({0x1, 0x2, 0x80000000}),
        (147, "TREX"): frozenset({0x1, 0x80000000}),
        (148, "NVLPW"): frozenset({0x80000000}),
        (149, "NETIR_BER_EVENT"): frozenset({0x0, 0x1, 0x2, 0x3}),
        (149, "NETIR_MFDE_EVENT"): frozenset({0x3}),
    }
)
LINK_DOWN = (149, "NETIR_LINK_DOWN")
NO_RESET_REASONS = frozenset({38, 40})
"""Of a link that went down: why, in bits 20 to 25 of the first word; the software asked for it, or the host did."""

_ALSO_CALLED: Mapping[str, str] = MappingProxyType(
    {
        "TLW_RX_PIPE0": "TLW_RX",
        "TLW_RX_PIPE1": "TLW_RX",
        "TLW_TX_PIPE0": "TLW_TX",
        "TLW_TX_PIPE1": "TLW_TX",
        "NVLPW_CTRL": "NVLPW",
        "NETIR_LINK_EVT": "NETIR_LINK_DOWN",
    }
)
# "RLW_REMAP Nonfatal XC0 i0 Link 02 (0x00000004 0x00000001 ...)": unit, whether fatal, then what it tells of itself.
_LINE = re.compile(
    r"(\w+)\s+(Fatal|Nonfatal)\s+XC\s?\d+\s+i\s?\d+\s+Link\s+-?\d+\s+[(\[](0x[0-9a-fA-F]+)(?: (0x[0-9a-fA-F]+))?"
)
_REASON_SHIFT, _REASON_MASK = 20, 0x3F


def needs_no_reset(code: int, text: str) -> bool:
    """Whether an XID of NVLink 5 is known to need no reset of the GPU.

    Args:
        code: The XID.
        text: What the kernel's log says behind it.

    Returns:
        True where the catalogue asks for none; False also where the text does not tell enough.
    """
    found = _LINE.match(text)
    if not found:
        return False
    unit, severity, info, status = found.groups()
    unit, info = _ALSO_CALLED.get(unit, unit), int(info, 16)
    reason = info >> _REASON_SHIFT & _REASON_MASK
    if (code, unit) == LINK_DOWN:
        return reason in NO_RESET_REASONS
    if status is None or severity == "Fatal" or reason or _asks_for_second_action(unit, info):
        return False
    return int(status, 16) in NO_RESET.get((code, unit), ())


class KernelWords:
    """Has the kernel's log speak for NVML where both tell of an XID of NVLink 5: which error it is the log alone says.

    Its line may come with the reading before, or with the next one. Where it has not come by then, as it was
    overwritten or the log has ended, NVML's word counts.
    """

    def __init__(self) -> None:
        self._waiting: list[XidEvent] = []
        self._said: set[tuple[int, str | None]] = set()

    def xids(self, reading: Reading) -> list[XidEvent]:
        """What has to be judged now.

        Args:
            reading: The next one.
        """
        vague = [one for one in reading.xids if one.origin == "nvml" and one.code in CODES]
        sure = [one for one in reading.xids if one not in vague]
        said = {(one.code, one.bus_id) for one in sure}
        due = [one for one in self._waiting if (one.code, one.bus_id) not in said]
        self._waiting = [one for one in vague if (one.code, one.bus_id) not in said | self._said]
        self._said = said
        if reading.kernel_log is None:
            due, self._waiting = due + self._waiting, []
        return sure + due


def _asks_for_second_action(unit: str, info: int) -> bool:
    """The catalogue's "Action 2" of RLW_RXPIPE, which is a reset: bit 7 from R575 on, bit 10 with older drivers."""
    if unit != "RLW_RXPIPE":
        return False
    is_new_form = info & 0x7F == 0b0000110
    return bool(info & (1 << 7 if is_new_form else 1 << 10))

"""XIDs and SXIDs as the kernel's log spells them, and the names of places on the PCI bus."""

import re

from scaletrain.hardware.readings import XidEvent

# Domain of four or eight digits, or none; bus, device, and a function or none.
_BUS_ID = r"(?:[0-9a-fA-F]{1,8}:)?[0-9a-fA-F]{2}:[0-9a-fA-F]{2}(?:\.[0-7])?"
_BUS_PARTS = re.compile(r"(?:([0-9a-fA-F]{1,8}):)?([0-9a-fA-F]{2}):([0-9a-fA-F]{2})(?:\.([0-7]))?")
# With MIG the instance stands behind the bus id: "(PCI:0000:01:00 GPU-I:05)".
_XID = re.compile(rf"NVRM: Xid \((?:PCI:)?({_BUS_ID})(?: [^)]*)?\): (\d+)(?:, *(.*))?")
_SXID = re.compile(rf"nvidia-nvswitch\d*: SXid \(PCI:({_BUS_ID})\): (\d+), *(.*)")
_OFF_THE_BUS = re.compile(rf"NVRM: GPU (?:at )?(?:PCI:)?({_BUS_ID}): GPU has fallen off the bus")
_FALLEN_OFF_THE_BUS = 79


def normalise_bus_id(text: str) -> str | None:
    """One spelling for what NVML, the kernel and ``lspci`` write differently.

    Args:
        text: Such as "00000000:0F:00.0", "0000:0f:00" or "0f:00.0".

    Returns:
        "0000:0f:00.0"; None where the text is no place on the PCI bus.
    """
    parts = _BUS_PARTS.fullmatch(text.strip())
    if not parts:
        return None
    domain, bus, device, function = parts.groups()
    return f"{int(domain or '0', 16):04x}:{bus}:{device}.{function or '0'}".lower()


def parse_kernel_line(line: str) -> XidEvent | None:
    """Reads a line of the kernel's log.

    Source: the forms are those of NVIDIA's XID documentation ("XID Errors", section on log messages) and of its manual
    of memory errors (table 3, with the instance of MIG).

    Args:
        line: Any line, with or without what stands before the driver's words.

    Returns:
        The XID or SXID that it tells of, if it does. A GPU may leave the bus with no XID at all, but a line in words:
        this is XID 79, too.
    """
    found = _XID.search(line)
    if found:
        bus_id, code, text = found.groups()
        return XidEvent(int(code), normalise_bus_id(bus_id), (text or "").strip(), "kernel log")
    found = _SXID.search(line)
    if found:
        bus_id, code, text = found.groups()
        is_fatal = text.lower().startswith("fatal")
        return XidEvent(int(code), normalise_bus_id(bus_id), text.strip(), "kernel log", True, is_fatal)
    found = _OFF_THE_BUS.search(line)
    if found:
        text = "GPU has fallen off the bus"
        return XidEvent(_FALLEN_OFF_THE_BUS, normalise_bus_id(found.group(1)), text, "kernel log")
    return None

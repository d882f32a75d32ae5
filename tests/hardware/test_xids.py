"""Lines of the kernel's log as drivers write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaletrain.hardware.readings import XidEvent
from scaletrain.hardware.xids import normalise_bus_id, parse_kernel_line


def kernel(code: int, bus_id: str, text: str = "") -> XidEvent:
    return XidEvent(code, bus_id, text, "kernel log")


@pytest.mark.parametrize(
    ("line", "event"),
    [
        (
            "NVRM: Xid (PCI:0000:0f:00): 94, pid=2503421, name=python3, Ch 00000008",
            kernel(94, "0000:0f:00.0", "pid=2503421, name=python3, Ch 00000008"),
        ),
        (
            "[1234.5] NVRM: Xid (PCI:0000:0F:00.0): 64, pid='<unknown>', name=<unknown>, row",
            kernel(64, "0000:0f:00.0", "pid='<unknown>', name=<unknown>, row"),
        ),
        (
            "NVRM: Xid (PCI:0000:01:00 GPU-I:05): 94, pid=7194, Contained: CE User Channel (0x9). RST: No",
            kernel(94, "0000:01:00.0", "pid=7194, Contained: CE User Channel (0x9). RST: No"),
        ),
        ("Oct  6 17:59:27 n7 kernel: NVRM: Xid (0000:01:00): 31, Ch 0b", kernel(31, "0000:01:00.0", "Ch 0b")),
        ("NVRM: Xid (PCI:0008:06:00): 79", kernel(79, "0008:06:00.0")),
        (
            "NVRM: Xid (PCI:0000:5f:00): 154, GPU recovery action changed from 0x0 (None) to 0x2 (Reboot)",
            kernel(154, "0000:5f:00.0", "GPU recovery action changed from 0x0 (None) to 0x2 (Reboot)"),
        ),
        (
            "NVRM: GPU 0000:5f:00.0: GPU has fallen off the bus.",
            kernel(79, "0000:5f:00.0", "GPU has fallen off the bus"),
        ),
        (
            "nvidia-nvswitch2: SXid (PCI:0000:85:00.0): 12028, Non-fatal, Link 61 egress non-posted PRIV error",
            XidEvent(
                12028, "0000:85:00.0", "Non-fatal, Link 61 egress non-posted PRIV error", "kernel log", True, False
            ),
        ),
        (
            "nvidia-nvswitch0: SXid (PCI:0000:86:00.0): 20034, Fatal, Link 30 LTSSM Fault Up",
            XidEvent(20034, "0000:86:00.0", "Fatal, Link 30 LTSSM Fault Up", "kernel log", True, True),
        ),
        ("NVRM: loading NVIDIA UNIX x86_64 Kernel Module", None),
        ("NVRM: GPU Board Serial Number: 1322321043914", None),
        ("a user wrote of an Xid 79 in a log", None),
        ("", None),
    ],
)
def test_a_line(line: str, event: XidEvent | None) -> None:
    assert parse_kernel_line(line) == event


@given(
    st.integers(0, 0xFFFF), st.integers(0, 0xFF), st.integers(0, 0x1F), st.integers(0, 7), st.booleans(), st.booleans()
)
def test_all_spellings_of_a_place_are_one(
    domain: int, bus: int, device: int, function: int, is_long: bool, is_upper: bool
) -> None:
    text = f"{domain:0{8 if is_long else 4}x}:{bus:02x}:{device:02x}.{function}"
    expected = f"{domain:04x}:{bus:02x}:{device:02x}.{function}"
    assert normalise_bus_id(text.upper() if is_upper else text) == expected
    if function == 0:
        assert normalise_bus_id(text.removesuffix(".0")) == expected


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    parse_kernel_line(f"NVRM: Xid ({text}): {text}")
    assert normalise_bus_id(text) is None or ":" in text

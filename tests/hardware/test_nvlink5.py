"""Errors of NVLink 5 as the kernel's log tells them: which of them take a node out, and the page that lists them."""

from dataclasses import replace
from pathlib import Path

import pytest

from scaletrain.hardware.judging import Judge
from scaletrain.hardware.nvlink5 import NO_RESET, needs_no_reset
from scaletrain.hardware.readings import GpuReading, Reading, XidEvent
from scaletrain.hardware.rules import load_rules
from scaletrain.hardware.xids import parse_kernel_line

PAGE = (Path(__file__).parents[2] / "docs/gpu_health.md").read_text()
GPU = GpuReading(0, uuid="GPU-0", bus_id="0000:18:00.0")
LINE = "NVRM: Xid (PCI:0000:18:00): {}"
BIT_ERRORS = LINE.format("149, NETIR_BER_EVENT Nonfatal XC0 i0 Link 03 (0x00086226 0x00000001 0x00000000 0x00000000)")
LINK_DOWN = LINE.format("149, NETIR_LINK_EVT  Fatal   XC0 i0 Link 01 (0x021425c6 0x00000000 0x00000000 0x00000000)")


@pytest.mark.parametrize(
    ("code", "text", "is_harmless"),
    [
        (144, "SAW_MVB Nonfatal XC0 i0 Link 00 (0x00000001 0x00000001 0x00000000)", True),
        (144, "SAW_MVB Fatal XC0 i0 Link 00 (0x00000001 0x00000002 0x00000000)", False),
        # A status that needs a reset, though the line does not say so, and one that the line calls fatal.
        (144, "SAW_MVB Nonfatal XC0 i0 Link 00 (0x00000001 0x00000002 0x00000000)", False),
        (144, "SAW_MVB Fatal XC0 i0 Link 00 (0x00000001 0x00000001 0x00000000)", False),
        (145, "RLW_REMAP Nonfatal XC1 i0 Link 02 (0x00000004 0x00000001)", True),
        (145, "RLW_REMAP Nonfatal XC1 i0 Link 02 (0x00000004 0x00000040)", False),
        (145, "RLW_REMAP Nonfatal XC1 i0 Link 02", False),
        (146, "TLW_RX_PIPE1 Nonfatal XC0 i0 Link 03 (0x0000000b 0x00000002)", True),
        (146, "TLW_RX Nonfatal XC 0 i 0 Link 03 [0x00000143 0x00000002]", True),
        (148, "NVLPW_CTRL Nonfatal XC0 i0 Link -1 (0x0000000f 0x80000000)", True),
        # The second action of the catalogue, in both forms of the first word.
        (145, "RLW_RXPIPE Nonfatal XC0 i0 Link 05 (0x00000006 0x00000001)", True),
        (145, "RLW_RXPIPE Nonfatal XC0 i0 Link 05 (0x00000086 0x00000001)", False),
        (145, "RLW_RXPIPE Nonfatal XC0 i0 Link 05 (0x000000c2 0x00000001)", True),
        (145, "RLW_RXPIPE Nonfatal XC0 i0 Link 05 (0x000004c2 0x00000001)", False),
        # Links that went down: because the other end did, and because the software asked for it.
        (149, "NETIR_LINK_EVT Fatal XC0 i0 Link 00 (0x025001c6 0x00000000)", False),
        (149, "NETIR_LINK_EVT Fatal XC0 i0 Link 00 (0x026001c6 0x00000000)", True),
        (149, "NETIR_LINK_DOWN Fatal XC0 i0 Link 00 (0x02800011)", True),
        (149, "NETIR_LINK_DOWN Fatal XC0 i0 Link 00 (0x00000011 0x00000000)", False),
        (150, "MSE_WATCHDOG Fatal XC0 i0 Link 00 (0x00000000 0x00000000)", False),
        (149, "", False),
        (149, "RLW_REMAP Nonfatal XC1 i0 Link 02 (0x00000004 0x00000001)", False),
    ],
)
def test_a_sub_code(code: int, text: str, is_harmless: bool) -> None:
    assert needs_no_reset(code, text) is is_harmless


def told(*events: XidEvent, log: str | None = "/dev/kmsg") -> list[tuple[str, str]]:
    reading = Reading("ok", uptime_s=1e6, gpus=(GPU,), xids=events, kernel_log=log)
    return [(one.rule, one.severity) for one in Judge(load_rules()).judge(reading, 0.0)]


def parsed(line: str) -> XidEvent:
    event = parse_kernel_line(line)
    assert event is not None
    return event


def test_a_line_of_the_kernels_log_says_more_than_the_driver_does() -> None:
    vague = XidEvent(149, GPU.bus_id)
    assert told(vague, parsed(BIT_ERRORS)) == [("nvlink5_no_reset", "warn")]
    assert told(vague, parsed(LINK_DOWN)) == [("xid_149", "drain")]
    assert told(vague, log=None) == [("xid_149", "drain")], "the log may not be read: whatever it is"
    assert told(vague) == [], "its line may come with the next reading"
    assert told(XidEvent(79, GPU.bus_id)) == [("xid_79", "abort")]
    assert told(parsed(BIT_ERRORS), parsed(LINK_DOWN)) == [("xid_149", "drain"), ("nvlink5_no_reset", "warn")]


@pytest.mark.parametrize(
    ("readings", "wanted"),
    [
        ([["vague"], ["line"], []], ["nvlink5_no_reset"]),
        ([["line"], ["vague"], []], ["nvlink5_no_reset"]),
        ([["vague", "line"], [], []], ["nvlink5_no_reset"]),
        ([["vague"], [], []], ["xid_149"]),
        ([["line"], [], ["vague"], []], ["nvlink5_no_reset", "xid_149"]),
        ([["vague"], ["other's line"], []], ["nvlink5_no_reset", "xid_149"]),
    ],
)
def test_the_line_comes_with_a_reading_beside_it_or_the_drivers_word_counts(
    readings: list[list[str]], wanted: list[str]
) -> None:
    line = parsed(BIT_ERRORS)
    events = {"vague": XidEvent(149, GPU.bus_id), "line": line, "other's line": replace(line, bus_id="0000:ff:00.0")}
    judge, found = Judge(load_rules()), []
    for number, names in enumerate(readings):
        xids = tuple(events[name] for name in names)
        reading = Reading("ok", uptime_s=1e6, gpus=(GPU,), xids=xids, kernel_log="/dev/kmsg")
        found += [one.rule for one in judge.judge(reading, 15.0 * number)]
    assert sorted(found) == wanted


def test_the_page_lists_the_sub_codes() -> None:
    heading = "| XID | unit | error status, the second number in the line |\n|---|---|---|\n"
    rows = PAGE.split(heading)[1].split("\n\n")[0].splitlines()
    listed = {}
    for row in rows[:-1]:
        code, units, statuses = (cell.strip() for cell in row.strip("|").split("|"))
        listed[int(code), units.split(",")[0].strip("`")] = frozenset(int(one, 16) for one in statuses.split(","))
    assert listed == dict(NO_RESET) and "38 or 40" in rows[-1]

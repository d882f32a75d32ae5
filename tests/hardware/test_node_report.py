import re

from scaletrain.hardware.findings import Finding
from scaletrain.hardware.node_report import as_data, as_nagios, as_text, worst

OK = Finding("memory", "ok", "12.0 GiB can be had", {"free_gib": 12.0})
WARN = Finding("gpu 0 temperature", "warn", "GPU 0 is hot")
FAIL = Finding("gpu 1 gpu_lost", "fail", "GPU 1 is\nlost | gone; reboot")
UNKNOWN = Finding("gpu 2 not told", "unknown", "ECC")


def test_the_gravest_counts() -> None:
    assert [worst(found) for found in ([OK], [OK, UNKNOWN], [UNKNOWN, WARN], [WARN, FAIL, OK], [])] == [
        "ok",
        "unknown",
        "warn",
        "fail",
        "unknown",
    ]


def test_one_line_for_nagios() -> None:
    assert as_nagios([OK, UNKNOWN], "n1") == "UNKNOWN - n1: gpu 2 not told: ECC | 'memory free_gib'=12"
    assert as_nagios([OK], "n1") == "OK - n1: 1 checks | 'memory free_gib'=12"
    assert as_nagios([WARN], "n1") == "WARNING - n1: gpu 0 temperature: GPU 0 is hot"
    assert as_nagios([WARN, FAIL, OK], "n1") == (
        "CRITICAL - n1: gpu 1 gpu_lost: GPU 1 is lost / gone; reboot | 'memory free_gib'=12"
    )


def test_figures_stay_figures_whatever_their_names_hold() -> None:
    """'label'=value, where the label may hold no = and no quote, and the text no bar."""
    odd = Finding("it's | a=b", "fail", "x" * 5000, {"gb_per_s": 1234567.891})
    line = as_nagios([odd, OK], "n1")
    text, _, figures = line.partition(" | ")
    assert "\n" not in line and len(text) < 1100
    assert re.fullmatch(r"('[^'=|]+'=[-0-9.]+ ?)+", figures)
    assert figures == "'it s a b gb_per_s'=1234567.891 'memory free_gib'=12"


def test_text_has_a_line_for_each() -> None:
    assert as_text([OK, WARN], "n1") == [
        "n1: ok      memory: 12.0 GiB can be had",
        "n1: warn    gpu 0 temperature: GPU 0 is hot",
    ]


def test_data_has_all() -> None:
    told = as_data([OK, FAIL], "n1")
    assert (told["host"], told["status"]) == ("n1", "fail")
    assert told["findings"] == [
        {"check": "memory", "status": "ok", "detail": "12.0 GiB can be had", "figures": {"free_gib": 12.0}},
        {"check": "gpu 1 gpu_lost", "status": "fail", "detail": FAIL.detail, "figures": {}},
    ]

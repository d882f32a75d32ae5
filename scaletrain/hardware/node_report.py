"""What was found on a node, as text, as JSON, and as a monitoring system reads it."""

import os
import re
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType

from scaletrain.hardware.findings import Finding, Status

# From the gravest on. Source: Monitoring Plugins development guidelines, plugin return codes; their order of gravity.
_GRAVITY: tuple[Status, ...] = ("fail", "warn", "unknown", "ok")
NAGIOS_CODES: Mapping[Status, int] = MappingProxyType({"ok": 0, "warn": 1, "fail": 2, "unknown": 3})
_NAGIOS_WORDS = ("OK", "WARNING", "CRITICAL", "UNKNOWN")
_LONGEST_TEXT = 1000
"""Characters before the figures: agents of monitoring systems pass on a few kilobytes of a line."""


def node_name() -> str:
    """Slurm's name of this node, or the machine's own."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def worst(findings: Sequence[Finding]) -> Status:
    """The gravest status; unknown where nothing was found at all."""
    return min((one.status for one in findings), key=_GRAVITY.index, default="unknown")


def as_text(findings: Sequence[Finding], name: str) -> list[str]:
    """A line for each finding."""
    return [f"{name}: {one.status:<7} {one.check}: {one.detail}" for one in findings]


def as_data(findings: Sequence[Finding], name: str) -> dict[str, object]:
    """The whole as plain data for JSON: ``host``, ``time_s``, ``status`` and ``findings``."""
    told = [asdict(one) for one in findings]
    return {"host": name, "time_s": time.time(), "status": worst(findings), "findings": told}


def as_nagios(findings: Sequence[Finding], name: str) -> str:
    """One line for a monitoring system: the status, what is worst, and all figures.

    Args:
        findings: What was found.
        name: The node's.

    Returns:
        ``STATUS - text | 'label'=value ...``. Source: Monitoring Plugins development guidelines, performance data.
    """
    status = worst(findings)
    meant = [one for one in findings if one.status == status]
    if status == "ok":
        text = f"{name}: {len(findings)} checks"
    else:
        text = f"{name}: " + "; ".join(f"{one.check}: {one.detail}" for one in meant)
    text = re.sub(r"\s+", " ", text.replace("|", "/"))[:_LONGEST_TEXT]
    figures = [
        f"'{_label(one.check)} {_label(figure)}'={_decimal(value)}"
        for one in findings
        for figure, value in one.figures.items()
    ]
    line = f"{_NAGIOS_WORDS[NAGIOS_CODES[status]]} - {text}"
    return f"{line} | {' '.join(figures)}" if figures else line


def _decimal(value: float) -> str:
    """Digits and a point: an exponent is not part of the format."""
    return f"{value:.4f}".rstrip("0").rstrip(".")


def _label(text: str) -> str:
    return re.sub(r"['=|\s]+", " ", text)

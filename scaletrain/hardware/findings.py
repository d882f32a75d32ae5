"""What a check of a node says of one thing."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Status = Literal["ok", "warn", "fail", "unknown"]


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        check: What was looked at.
        status: ``fail``: the node must not be used. ``unknown``: the device or the system does not tell.
        detail: What was found, with the rule and the remedy where something is wrong.
        figures: What was measured, by names that end with the unit.
    """

    check: str
    status: Status
    detail: str
    figures: Mapping[str, float] = field(default_factory=dict)

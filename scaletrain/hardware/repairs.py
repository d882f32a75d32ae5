"""Which GPUs asked for a repair before, over restarts of the job and reboots of the machine."""

import contextlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scaletrain.files import replace_text

logger = logging.getLogger(__name__)

_MOST_ASKS = 20  # kept of each GPU
_FORGET_S = 90 * 86400.0  # chosen: a fault of another season is another fault
_REBOOTS = 2


class RepairHistory:
    """Asks for a reset or a reboot by the GPU's UUID, in a small JSON file.

    A file has one writer: give each node its own. One that cannot be read or written counts as empty, and is said
    once, as no training should end for it.

    Args:
        path: The file; made with the first ask.
        boot: What this boot of the machine is known by.
    """

    def __init__(self, path: Path, boot: str | None = None) -> None:
        self._path = path
        self._boot = boot if boot is not None else _boot_id()
        self._asks = _read(path)

    def is_repeated(self, uuid: str, now_s: float) -> bool:
        """Whether a GPU asked in two boots before this one: repairs of this kind do not help it."""
        return len(self._boots_before(uuid, now_s)) >= _REBOOTS

    def record(self, uuid: str, rule: str, action: str, now_s: float) -> None:
        """Adds an ask.

        Args:
            uuid: The GPU's.
            rule: Name of the rule that was broken.
            action: What it asks for.
            now_s: Unix time.
        """
        ask = {"boot": self._boot, "time_s": now_s, "rule": rule, "action": action}
        self._asks[uuid] = [*self._asks.get(uuid, []), ask][-_MOST_ASKS:]
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_text(self._path, json.dumps(self._asks, indent=1) + "\n")
        except OSError as error:
            logger.warning("%s cannot be written: %s; repeated faults will not be known", self._path, error.strerror)

    def _boots_before(self, uuid: str, now_s: float) -> set[str]:
        asks = [one for one in self._asks.get(uuid, []) if now_s - float(one["time_s"]) < _FORGET_S]
        return {str(one["boot"]) for one in asks} - {self._boot}


def _read(path: Path) -> dict[str, list[Mapping[str, Any]]]:
    try:
        content = json.loads(path.read_text())
        return {
            str(uuid): [one for one in asks if float(one["time_s"]) >= 0 and one["boot"]]
            for uuid, asks in content.items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        logger.warning("%s cannot be read: %s; it begins anew", path, error)
        return {}


def _boot_id() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return "unknown"

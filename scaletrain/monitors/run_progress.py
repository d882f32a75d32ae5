"""What the files of a run under way tell beyond its last metrics: what happened, what is wrong, where the time went."""

import json
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from scaletrain.errors import ScaletrainError
from scaletrain.launch.events import read_line
from scaletrain.monitors.goodput import account
from scaletrain.monitors.metrics_sample import read_sample
from scaletrain.monitors.run_health import REPORT
from scaletrain.monitors.run_records import USED, read_what_is_there

_ACCOUNT_EVERY_S = 300.0
"""Reading a long run takes a tenth of a second of the interpreter that trains as well: 0.03 % at this interval."""


@dataclass(frozen=True)
class Progress:
    """What happened in a run, in all its starts, and what is wrong in this one.

    Attributes:
        events: How often each kind of event happened.
        findings: How many findings hold, by host, severity and rule.
        goodput: Productive share of the wall time; None before the first step. Some minutes old.
        spent_s: Seconds of the wall time by what they went into, as old.
    """

    events: Mapping[str, int] = field(default_factory=dict)
    findings: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    goodput: float | None = None
    spent_s: Mapping[str, float] = field(default_factory=dict)


class RunProgress:
    """Follows the files of a run; for any thread.

    Events are read on as they are written. Where the time went is computed anew now and then, from a sample where the
    run is long.

    Args:
        run_dir: The run's folder.
        attempt: Number of this start.
    """

    def __init__(self, run_dir: Path, attempt: int) -> None:
        self._run_dir, self._attempt = run_dir, attempt
        self._offset = 0
        self._events: Counter[str] = Counter()
        self._known = Progress()
        self._accounted_s = -float("inf")
        self._lock = threading.Lock()

    def read(self) -> Progress:
        """Reads on, or gives what is known while another thread does: a file server may keep that one waiting."""
        if self._lock.acquire(blocking=False):
            try:
                self._read_events()
                goodput, spent_s = self._known.goodput, self._known.spent_s
                if time.monotonic() - self._accounted_s > _ACCOUNT_EVERY_S:
                    goodput, spent_s = self._account()
                self._known = Progress(dict(self._events), self._findings(), goodput, spent_s)
            finally:
                self._lock.release()
        return self._known

    def _read_events(self) -> None:
        try:
            with (self._run_dir / "events.jsonl").open("rb") as file:
                file.seek(self._offset)
                whole, newline, _ = file.read().rpartition(b"\n")
        except OSError:
            return
        self._offset += len(whole) + len(newline)
        for line in whole.decode(errors="replace").splitlines():
            event = read_line(line)
            if event is not None and "event" in event:
                self._events[str(event["event"])] += 1

    def _findings(self) -> Mapping[tuple[str, str, str], int]:
        """Those that hold by health.json; none where this start has not written it."""
        try:
            report = json.loads((self._run_dir / REPORT).read_text(encoding="utf-8"))
            if report["attempt"] != self._attempt:
                return {}
            return Counter((str(one["host"]), str(one["severity"]), str(one["rule"])) for one in report["findings"])
        except (OSError, ValueError, TypeError, KeyError):
            return {}

    def _account(self) -> tuple[float | None, Mapping[str, float]]:
        try:
            records = read_what_is_there(self._run_dir, lambda path: read_sample(path, USED).lines)
        except (OSError, ScaletrainError):
            return self._known.goodput, self._known.spent_s
        spent = account(records)
        if not spent.steps:
            return None, {}
        self._accounted_s = time.monotonic()
        return spent.goodput, {share.value: taken_us / 1e6 for share, taken_us in spent.shares_us.items()}

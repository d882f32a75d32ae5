"""How often a job will be requeued by its time limit, and by what that is told."""

import math
import re
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from scaletrain.launch.events import read_line
from scaletrain.launch.slurm.batch_options import Option, signal_lead_s

START_S = 180.0
"""What is assumed to be lost at each start: checks, imports, loading of a checkpoint, compilation."""
_STEP_TIME = "perf/step_time_s"
_LAST_STEPS = 200
"""Steps of a run from which its step time is taken: many enough to pass over evaluations and saves."""
_UNITS_S = {"seconds": 1.0, "minutes": 60.0, "hours": 3600.0, "days": 86400.0}


def count_requeues(training_s: float, limit_s: float, lead_s: float) -> int | None:
    """Requeues until a training is complete.

    Args:
        training_s: What is left of it, in seconds.
        limit_s: Time limit of a start, in seconds.
        lead_s: Time before it at which the job saves, in seconds.

    Returns:
        Their number; None where a start leaves no time to train.
    """
    usable_s = limit_s - START_S - lead_s
    return max(0, math.ceil(training_s / usable_s) - 1) if usable_s > 0 else None


def requeue_lines(
    options: Mapping[str, Option], limit_s: float | None, estimate: tuple[float, str] | None
) -> list[str]:
    """The expected number of requeues by the time limit, for people.

    Args:
        options: The job's, by long name.
        limit_s: Its time limit in seconds; None for none, or one that is not known.
        estimate: What is left of the training, in seconds, and what that is computed from; None where it is unknown.
    """
    if "no-requeue" in options:
        source = options["no-requeue"].source
        return [f"none: --no-requeue ({source}) forbids it; at the time limit the job ends and must be submitted again"]
    if "time" not in options:
        return ["unknown: no --time is given, so that the partition's limit holds"]
    if limit_s is None:
        return ["none by the time limit: there is no limit"]
    if estimate is None:
        return ["unknown: the plan has no time, because the GPU is not known here; give --gpu H100 or --step_s 3.5"]
    training_s, told = estimate
    lead_s = signal_lead_s(options)
    expected = count_requeues(training_s, limit_s, lead_s)
    if expected is None:
        return [f"--time is too short: {START_S:.0f} s to start and {lead_s:.0f} s to save leave nothing to train"]
    return [
        f"{expected}: {training_s / 3600:.1f} h of training, {(limit_s - START_S - lead_s) / 3600:.1f} h in each start",
        f"assumed: {told};",
        f"of the {limit_s / 3600:.1f} h of a start {START_S:.0f} s go to checks and loading, and {lead_s:.0f} s are "
        "left for its last save (--signal)",
    ]


def measured_step_s(run_dir: Path) -> float | None:
    """Median duration of a run's last steps in seconds; None where it has not trained yet.

    Args:
        run_dir: The run's folder.
    """
    try:
        with (run_dir / "metrics.jsonl").open(encoding="utf-8", errors="replace") as file:
            lines = deque((line for line in file if _STEP_TIME in line), maxlen=_LAST_STEPS)
    except FileNotFoundError:
        return None
    records = [record for line in lines if (record := read_line(line)) is not None]
    times = [record[_STEP_TIME] for record in records if isinstance(record.get(_STEP_TIME), float)]
    return median(times) if times else None


def planned_s(plan: Sequence[str]) -> tuple[float, str] | None:
    """The time that a plan gives for the whole training.

    Args:
        plan: Its lines.

    Returns:
        Seconds, and what the plan assumes; None where it gives no time, because the GPU is not known.
    """
    for line in plan:
        found = re.match(r"time +([\d.,]+) (seconds|minutes|hours|days) (at .*)", line)
        if found:
            return float(found[1].replace(",", "")) * _UNITS_S[found[2]], found[3]
    return None

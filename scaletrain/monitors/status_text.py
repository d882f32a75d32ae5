"""A run's status as a screen for people."""

import time
from collections.abc import Mapping

from scaletrain.monitors.progress import format_count, format_duration
from scaletrain.monitors.status import Status
from scaletrain.planning.report import format_bytes

_MOST_WARNINGS = 6
_LABEL = 11


def status_lines(status: Status, slurm: Mapping[str, str], goodput: str, width: int, now_s: float) -> list[str]:
    """Writes a status.

    Args:
        status: How the run stands.
        slurm: What Slurm says of its job; empty without one.
        goodput: Share of the time that was of use, in words; empty where it is not known.
        width: Columns of the screen.
        now_s: The time in Unix seconds.

    Returns:
        Lines without line ends, none longer than the screen is wide.
    """
    rows = [("run", f"{status.run_dir}  {status.state}")]
    rows += _job_rows(status, slurm, now_s)
    share = f"  {100 * status.step / status.max_steps:.1f}%" if status.max_steps else ""
    of_all = f" of {status.max_steps:,}" if status.max_steps else ""
    tokens = f"   {format_count(status.tokens)} tokens" if status.tokens is not None else ""
    rows.append(("step", f"{status.step:,}{of_all}{share}{tokens}"))
    rows += _training_rows(status, now_s)
    if goodput:
        rows.append(("goodput", goodput))
    rows += _save_rows(status, now_s)
    if status.time_left_s is not None:
        end = time.strftime("%a %d %b %H:%M", time.localtime(now_s + status.time_left_s))
        rows.append(("left", f"{format_duration(status.time_left_s)} at this speed, until {end}"))
    for position, (attempt, verdict, reason) in enumerate(status.starts):
        rows.append(("starts" if position == 0 else "", f"{attempt}  {verdict}{': ' if reason else ''}{reason}"))
    for position, warning in enumerate(status.warnings[:_MOST_WARNINGS]):
        rows.append(("WARNING" if position == 0 else "", warning))
    return [_fit(f"{label:<{_LABEL}}{text}", width) for label, text in rows]


def _job_rows(status: Status, slurm: Mapping[str, str], now_s: float) -> list[tuple[str, str]]:
    job = status.job
    if not job.get("job_id"):
        return []
    state = slurm.get("JobState", "")
    words = [f"{job['job_id']} {job.get('job_name') or ''}".strip()]
    if state:
        reason = slurm.get("Reason", "None")
        words.append(state if state != "PENDING" else f"PENDING ({reason}), starts {slurm.get('StartTime', 'Unknown')}")
    if state in ("", "RUNNING") and job.get("nodes"):
        words.append(f"on {','.join(job['nodes'])}")
    if job.get("spares"):
        words.append(f"spare {','.join(job['spares'])}")
    words.append(f"requeued {job.get('restart') or 0} times")
    if status.state == "running" and isinstance(job.get("end_s"), int | float) and job["end_s"] > now_s:
        words.append(f"ends in {format_duration(job['end_s'] - now_s)}")
    rows = [("job", ", ".join(words))]
    if job.get("action") in ("requeue", "stop", "launch"):
        rows.append(("", f"last decision: {job['action']}: {job.get('reason')}"))
    return rows


def _training_rows(status: Status, now_s: float) -> list[tuple[str, str]]:
    if status.loss is None:
        return []
    loss = f"{status.loss:.4f} train"
    if status.eval_loss is not None:
        loss += f", {status.eval_loss[1]:.4f} validation (step {status.eval_loss[0]:,})"
    if status.lr is not None:
        loss += f", lr {status.lr:.2e}"
    speed = f"{format_count(status.tokens_per_s or 0)} tokens/s"
    if status.mfu is not None:
        speed += f", MFU {100 * status.mfu:.1f}%"
    if status.step_s is not None:
        speed += f", {status.step_s:.3g} s a step"
    if status.last_step_s is not None:
        speed += f"; last step {format_duration(max(0.0, now_s - status.last_step_s))} ago"
    return [("loss", loss), ("speed", speed)]


def _save_rows(status: Status, now_s: float) -> list[tuple[str, str]]:
    later = f"; next at step {status.next_save_step:,}" if status.next_save_step and status.state == "running" else ""
    if status.save is None:
        return [("checkpoint", f"none yet{later}")]
    size = f", {format_bytes(status.save.size_bytes)}" if status.save.size_bytes is not None else ""
    age = format_duration(max(0.0, now_s - status.save.time_s))
    return [("checkpoint", f"step {status.save.step:,}, {age} ago{size}{later}")]


def _fit(line: str, width: int) -> str:
    return line if len(line) <= width else f"{line[: width - 3]}..."

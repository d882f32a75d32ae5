"""The status of a run on one screen."""

import textwrap
import time
from collections.abc import Sequence
from typing import NamedTuple

from scaletrain.monitors.goodput_summary import COMPLETE, RUNNING
from scaletrain.monitors.goodput_text import cut, short_duration
from scaletrain.monitors.progress import format_count, format_duration
from scaletrain.monitors.status import STARTING, CheckpointStatus, JobStatus, Status, Training, Warned

LINES = 24
COLUMNS = 100
_LABEL = 11
_MOST_LINES = 4  # of one warning
_ENDED_WELL = (RUNNING, COMPLETE)
_ON_ITS_WAY = (STARTING, "not started yet", "requeue", "stopped")


class Line(NamedTuple):
    """A line of the screen, and its mood: ``good``, ``warn``, ``bad``, or empty."""

    text: str
    mood: str = ""


def status_lines(status: Status, columns: int = COLUMNS, lines: int = LINES) -> list[Line]:
    """Lays a status out.

    Args:
        status: How the run stands.
        columns: Longest line.
        lines: Most lines.

    Returns:
        The lines; warnings that find no room are counted.
    """
    mood = "good" if status.state in _ENDED_WELL else "warn" if status.state in _ON_ITS_WAY else "bad"
    shown = [Line(_headline(status), mood)]
    shown += [_fact(label, text) for label, text in _facts(status) if text]
    shown += _attempts(status)
    shown = [Line(cut(_printable(line.text), columns), line.mood) for line in shown]
    if status.warnings:
        shown = shown[: lines - 1]  # in a low window a warning is worth more than a fact
    return (shown + _warnings(status.warnings, columns, lines - len(shown)))[:lines]


def _warnings(warnings: Sequence[Warned], columns: int, room: int) -> list[Line]:
    """As many as find room; what a grave one says is told in several lines where there are."""
    left = len(warnings)
    shown: list[Line] = []
    for warning in warnings:
        if left > 1 and room - len(shown) < 2:
            return [*shown, Line(cut(f"! {left} more warnings; --json tells all", columns), "warn")]
        most = max(1, min(_MOST_LINES if warning.is_grave else 1, room - len(shown) - left + 1))
        told = textwrap.wrap(
            f"! {_printable(warning.text)}",
            columns,
            subsequent_indent="  ",
            max_lines=most,
            placeholder="…",
            break_on_hyphens=False,
        )
        shown += [Line(text, "bad" if warning.is_grave else "warn") for text in told]
        left -= 1
    return shown


def _printable(text: str) -> str:
    """A text on one line; what a log or a file name brings must not steer the terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


def _headline(status: Status) -> str:
    where = f" on {status.host}" if status.host and status.state in (RUNNING, STARTING) else ""
    if status.job is not None and status.job.state == "PENDING":
        return f"{status.name}: its job waits in the queue; its last start: {status.state}"
    known = f", wall time {format_duration(status.wall_s)}" if status.wall_s else ""
    return f"{status.name}: {status.state}{where}{known}"


def _fact(label: str, text: str) -> Line:
    return Line(f"{label:<{_LABEL}}{text}")


def _facts(status: Status) -> list[tuple[str, str]]:
    training = status.training
    facts = _job_facts(status.job, status.time_s) if status.job else [("job", "started by hand, outside of Slurm")]
    if training is None:
        facts.append(("step", "none yet"))
    else:
        facts += [
            ("step", _step(training, status.state)),
            ("tokens", "" if training.tokens is None else format_count(training.tokens)),
            ("loss", _loss(training)),
            ("lr", "" if training.lr is None else f"{training.lr:.3g}"),
            ("speed", _speed(training)),
        ]
    if status.goodput is not None:
        about = "" if status.is_goodput_exact else "about "
        facts.append(("goodput", f"{about}{status.goodput:.1%}"))
    facts.append(("checkpoint", _checkpoint(status.checkpoint)))
    if status.time_left_s is not None:
        facts.append(("time left", _time_left(status)))
    return facts


def _job_facts(job: JobStatus, now_s: float) -> list[tuple[str, str]]:
    parts = [" ".join(part for part in (job.job_id, job.name, job.state) if part)]
    if job.reason:
        parts.append(f"waits: {job.reason}")
    if job.start_s is not None:
        parts.append(f"expected to start {_clock(job.start_s, now_s)}")
    if job.restart:
        parts.append(f"requeued {job.restart} times" if job.restart > 1 else "requeued once")
    if job.launch is not None:
        parts.append(f"launch {job.launch}")
    is_over = job.state == "" and job.decision.startswith(("stop", "requeue"))
    if job.end_s is not None and job.state != "PENDING" and not is_over:
        parts.append(
            f"ends in {format_duration(job.end_s - now_s)} ({_clock(job.end_s, now_s)})"
            if job.end_s > now_s
            else f"ended by {_clock(job.end_s, now_s)}"
        )
    nodes = "" if not job.nodes else f"{len(job.nodes)}: {','.join(job.nodes)}"
    nodes += f"; in reserve {','.join(job.spares)}" if job.spares else ""
    nodes += f"; avoids {','.join(job.excluded)}" if job.excluded else ""
    return [("job", ", ".join(parts)), ("nodes", nodes.removeprefix("; ")), ("decided", job.decision)]


def _step(training: Training, state: str) -> str:
    text = str(training.step)
    if training.max_steps:
        text += f" of {training.max_steps}, {min(1.0, training.step / training.max_steps):.1%}"
    return text if state == COMPLETE else f"{text}, {format_duration(training.age_s)} ago"


def _loss(training: Training) -> str:
    parts = ["train not finite" if training.loss is None else f"train {training.loss:.4f}"]
    if training.mean_loss is not None:
        parts.append(f"recent mean {training.mean_loss:.4f}")
    if training.validation_loss is not None:
        parts.append(f"validation {training.validation_loss:.4f} at step {training.validation_step}")
    return ", ".join(parts)


def _speed(training: Training) -> str:
    parts = []
    if training.tokens_per_s is not None:
        parts.append(f"{format_count(training.tokens_per_s)} tokens/s")
    if training.mfu is not None:
        parts.append(f"MFU {training.mfu:.1%}")
    if training.step_s is not None:
        parts.append(f"{short_duration(training.step_s)} a step")
    return ", ".join(parts)


def _checkpoint(checkpoint: CheckpointStatus) -> str:
    parts = ["none yet"] if checkpoint.step is None else [f"step {checkpoint.step}"]
    if checkpoint.age_s is not None:
        parts.append(f"{format_duration(checkpoint.age_s)} ago")
    if checkpoint.size_bytes is not None:
        gib = checkpoint.size_bytes / 2**30
        parts.append(f"{gib:.1f} GiB" if gib >= 1 else f"{gib * 1024:.1f} MiB")
    text = ", ".join(parts)
    if checkpoint.next_step is not None:
        text += f"; next at step {checkpoint.next_step}"
        if checkpoint.next_in_s is not None:
            text += f", in about {format_duration(checkpoint.next_in_s)}"
    return text


def _time_left(status: Status) -> str:
    left_s = status.time_left_s or 0.0
    text = f"{format_duration(left_s)} at this speed, done {_clock(status.time_s + left_s, status.time_s)}"
    end_s = status.job.end_s if status.job else None
    training = status.training
    if end_s is not None and training is not None and training.between_s and end_s < status.time_s + left_s:
        reached = training.step + int(max(0.0, end_s - status.time_s) / training.between_s)
        text += f"; the job ends before, near step {reached}"
    return text


def _attempts(status: Status) -> list[Line]:
    shown = []
    for index, attempt in enumerate(status.attempts):
        label = f"{status.attempt_count} starts" if index == 0 and status.attempt_count > 1 else "start"
        begun = "" if attempt.from_step is None else f" from step {attempt.from_step}"
        # What the run died of stands below, among the warnings, in full.
        is_told = any(warning.is_grave and attempt.reason in warning.text for warning in status.warnings)
        reason = f": {attempt.reason}" if attempt.reason and not is_told else ""
        shown.append(_fact(label if index == 0 else "", f"#{attempt.number}{begun}: {attempt.verdict}{reason}"))
    return shown


def _clock(unix_s: float, now_s: float) -> str:
    """A time of day, with the date where it is not today."""
    then, now = time.localtime(unix_s), time.localtime(now_s)
    return time.strftime("%H:%M" if then[:3] == now[:3] else "%a %Y-%m-%d %H:%M", then)

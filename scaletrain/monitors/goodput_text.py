"""A run's account as text and as tables: what tools/report.py prints, and what its page shows."""

import time
from dataclasses import dataclass

from scaletrain.monitors.goodput import Spent
from scaletrain.monitors.goodput_summary import Summary
from scaletrain.monitors.interval_advice import Advice
from scaletrain.monitors.progress import format_duration
from scaletrain.monitors.run_history import whole
from scaletrain.monitors.run_records import Record

MEANINGS = {
    Spent.PRODUCTIVE: "training that the run still has",
    Spent.LOST: "training that was done again, or never saved",
    Spent.CHECKPOINT: "training stood still for a save",
    Spent.START_UP: "from the start of a process to its first step, with what that step took longer than others",
    Spent.DATA_WAIT: "steps that waited for their data",
    Spent.EVALUATION: "validation and samples",
    Spent.OTHER: "between steps, and from an attempt's last step to its end",
    Spent.DOWN: "no attempt was under way",
}

_MOST_REASON = 100  # characters of a reason in a terminal


@dataclass(frozen=True)
class Table:
    """A table for people; the first column is text, the others are aligned to the right but for the last."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def report_lines(summary: Summary, title: str) -> list[str]:
    """Writes the whole report.

    Args:
        summary: The run's figures.
        title: Name of the run.

    Returns:
        Lines without line ends.
    """
    advice = summary.advice
    return [
        f"{title}: {headline(summary)}",
        *([f"goodput {summary.account.goodput:.1%}"] if summary.account.attempts else []),
        "",
        *([*_layout(shares_table(summary)), ""] if summary.account.wall_us else []),
        *([*_layout(attempts_table(summary)), ""] if summary.account.attempts else []),
        *facts(summary),
        "",
        "checkpoint interval",
        *(f"  {line}" for line in advice_notes(advice)),
        *([] if advice.problem else _layout(interval_table(advice))),
    ]


def headline(summary: Summary) -> str:
    """How the run stands, in one line."""
    attempts = len(summary.account.attempts)
    if not attempts:
        return "no attempt was numbered yet"
    return ", ".join(
        [
            summary.verdict or "ended without a verdict",
            _count(attempts, "attempt"),
            f"{format_duration(summary.account.wall_us / 1e6)} of wall time",
        ]
    )


def shares_table(summary: Summary) -> Table:
    """Where the time went."""
    wall_us = summary.account.wall_us
    rows = [
        (spent.value, short_duration(taken_us / 1e6), _percent(taken_us / wall_us if wall_us else 0.0), MEANINGS[spent])
        for spent, taken_us in summary.account.shares_us.items()
    ]
    total = ("wall time", short_duration(wall_us / 1e6), _percent(1.0 if wall_us else 0.0), "")
    return Table(("where the time went", "time", "share", ""), (*rows, total))


def attempts_table(summary: Summary) -> Table:
    """The attempts."""
    rows = []
    for attempt in summary.account.attempts:
        lost = sum(step.lost for step in attempt.steps)
        rows.append(
            (
                str(attempt.number),
                time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(attempt.begin_us / 1e6)),
                format_duration((attempt.end_us - attempt.begin_us) / 1e6),
                _or_dash(attempt.world_size),
                _or_dash(attempt.zero_stage),
                _or_dash(attempt.from_step),
                str(len(attempt.steps)),
                str(lost),
                attempt.verdict or "none",
                " ".join(attempt.reason.split()),
            )
        )
    head = ("attempt", "start", "time", "ranks", "ZeRO", "from step", "steps", "lost", "verdict", "why it ended")
    return Table(head, tuple(rows))


def facts(summary: Summary) -> list[str]:
    """Interruptions, saves and faults, a line each."""
    lines = _attempt_lines(summary) if summary.account.attempts else []
    if summary.unnumbered_starts:
        verdict, reason = summary.last_unnumbered
        lines.append(
            f"starts that ended before they had a number: {summary.unnumbered_starts}, the last as {verdict}: "
            f"{' '.join(reason.split())}"
        )
    for event in summary.rollbacks:
        lines.append(f"rollback: to step {event.get('to_step', '?')}{_skipped_range(event)}: {event.get('reason', '')}")
    if summary.transient_faults:
        places = "; ".join(f"{count} at {place}" for place, count in summary.transient_faults)
        lines.append(f"transient faults: {places}")
    if summary.skipped_steps:
        lines.append(f"skipped steps: {summary.skipped_steps} without a finite gradient")
    return lines


def _attempt_lines(summary: Summary) -> list[str]:
    lines = []
    if summary.interruptions:
        asked = summary.interruptions - summary.failures
        lines.append(
            f"interruptions: {summary.interruptions}, {asked} of them asked for; one every "
            f"{format_duration(summary.between_interruptions_s or 0.0)}"
        )
    else:
        lines.append(f"interruptions: none in {format_duration(summary.up_s)}")
    if summary.failed_starts:
        lines.append(f"starts that ended before their first step: {summary.failed_starts}")
    lost = f"lost steps: {summary.lost_steps} of {len(summary.account.steps)}"
    if summary.lost_per_interruption is not None:
        lost += f", {summary.lost_per_interruption:.1f} per interruption or rollback"
    lines.append(lost)
    if summary.recovery_s is not None:
        lines.append(f"recovery: {format_duration(summary.recovery_s)} from a failure to the next step")
    return lines + _save_lines(summary)


def advice_notes(advice: Advice) -> list[str]:
    """What the recommended intervals rest on."""
    if advice.problem:
        return [advice.problem]
    stall = (
        f"a save stops training for {short_duration(advice.stall_s)} and takes {short_duration(advice.save_s)} in all"
    )
    if advice.is_bound:
        return [
            stall,
            "no failure yet: only a bound is known. With 95 % confidence the mean time between failures is at least "
            f"{format_duration(advice.failure_s)}; intervals should be at least, and cost at most, what stands here",
        ]
    counted = f"{_count(advice.failures - advice.rollbacks, 'failure')}, {_count(advice.rollbacks, 'rollback')}"
    if advice.recovery_s is None:
        recovery = "how long recovery takes is not known yet, and counts as no time"
    else:
        recovery = f"recovery takes {format_duration(advice.recovery_s)}"
    notes = [stall, f"{counted}: one every {format_duration(advice.failure_s)}; {recovery}"]
    if advice.uncertainty > 0.15:
        notes.append(f"too few failures for a sharp figure: the intervals are known to ±{advice.uncertainty:.0%}")
    if any(interval.seconds < advice.save_s for interval in advice.recommended):
        notes.append(f"no save can begin before the last is complete: not less than {short_duration(advice.save_s)}")
    return notes


def interval_table(advice: Advice) -> Table:
    """The present interval and the recommended ones, with what each costs."""
    sign, most = ("≥ ", "≤ ") if advice.is_bound else ("", "")
    rows = []
    for interval in advice.recommended:
        rows.append(
            (
                interval.name,
                f"{sign}{short_duration(interval.seconds)}",
                f"{sign}{interval.steps}",
                f"{most}{_percent(interval.cost)}",
                interval.source,
            )
        )
    now = advice.present
    if now is not None:
        rows.insert(0, (now.name, short_duration(now.seconds), str(now.steps), f"{most}{_percent(now.cost)}", ""))
    return Table(("save every", "training", "steps", "cost", "formula"), tuple(rows))


def cut(text: str, most: int) -> str:
    """A text of at most so many characters; an ellipsis tells that there was more."""
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def short_duration(seconds: float) -> str:
    """A duration that may be much shorter than a second."""
    return f"{seconds * 1000:.0f}ms" if 0 < seconds < 0.995 else format_duration(seconds)


def _save_lines(summary: Summary) -> list[str]:
    lines = []
    for saves in summary.saves:
        size = "" if saves.mean_bytes is None else f", {_size(saves.mean_bytes)} each"
        lines.append(
            f"saves ({saves.tier}): {saves.count}, each stops training for {short_duration(saves.stall_s)} and takes "
            f"{short_duration(saves.seconds)} in all{size}"
        )
    if not summary.saves:
        lines.append("saves: none")
    for reason, count in summary.failed_saves:
        lines.append(f"failed saves: {count}: {reason}")
    return lines


def _skipped_range(event: Record) -> str:
    first, stop = whole(event.get("first_sequence")), whole(event.get("stop_sequence"))
    return "" if first is None or stop is None else f", leaving out the sequences {first} to {stop - 1}"


def _layout(table: Table) -> list[str]:
    rows = [table.head, *table.rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.head))]
    last = len(widths) - 1
    lines = []
    for row in rows:
        cells = [
            cut(cell, _MOST_REASON) if column == last else f"{cell:<{width}}" if column == 0 else f"{cell:>{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def _size(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'s' if number > 1 else ''}"


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)

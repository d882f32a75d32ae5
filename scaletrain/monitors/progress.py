"""What a person reads while a run goes on: a banner at the start, a line per interval, numbers in human units."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        step: Global batches consumed.
        max_steps: Global batches of the whole run.
        loss: Training loss of the step, per target token, in nats.
        lr: Learning rate of the step.
        tokens_per_s: Tokens per second over all ranks.
        mfu: Model FLOP utilization, 0 to 1; None where the peak is not known.
        time_left_s: Estimated seconds to the end; None where it is not known yet.
    """

    step: int
    max_steps: int
    loss: float
    lr: float
    tokens_per_s: float
    mfu: float | None
    time_left_s: float | None


def progress_line(progress: Progress) -> str:
    """Writes one line of fixed columns, for a log as well as a terminal.

    Args:
        progress: Where the run stands.

    Returns:
        The line, without its end.
    """
    width = len(str(progress.max_steps))
    percent = 100 * progress.step // progress.max_steps
    fields = [
        f"step {progress.step:>{width}}/{progress.max_steps} {percent:>3}%",
        f"loss {progress.loss:7.4f}",
        f"lr {progress.lr:.2e}",
        f"{format_count(progress.tokens_per_s):>6} tokens/s",
    ]
    if progress.mfu is not None:
        fields.append(f"MFU {100 * progress.mfu:4.1f}%")
    if progress.time_left_s is not None:
        fields.append(f"{format_duration(progress.time_left_s)} left")
    return "  ".join(fields)


def evaluation_line(step: int, metrics: Mapping[str, float]) -> str:
    """Writes the line that reports an evaluation.

    Args:
        step: Global batches consumed.
        metrics: By name; those of single sources are left out.

    Returns:
        The line, without its end.
    """
    told = {name.removeprefix("eval/"): value for name, value in metrics.items() if name.count("/") == 1}
    parts = [f"step {step}", f"validation loss {told.pop('loss'):.4f}"]
    if "perplexity" in told:
        perplexity = told.pop("perplexity")
        # That of a model that has diverged has hundreds of digits.
        parts.append(f"perplexity {perplexity:.2f}" if perplexity < 1e6 else f"perplexity {perplexity:.3g}")
    if "bits_per_byte" in told:
        parts.append(f"{told.pop('bits_per_byte'):.4f} bits per byte")
    return "  ".join([*parts, *(f"{name.replace('_', ' ')} {value:.4g}" for name, value in told.items())])


def start_banner(title: str, rows: Sequence[tuple[str, str]]) -> str:
    """Lays out what a run is made of, derived numbers included.

    Args:
        title: First line.
        rows: Name and value of each fact, in the order to print them.

    Returns:
        The lines, names and values in two columns, without the last line's end.
    """
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in rows)])


def format_count(value: float) -> str:
    """Shortens a count to three digits or so.

    Args:
        value: The count.

    Returns:
        Text such as "950", "12.3k", "1.24M", "6.74B" or "1.4T".
    """
    if not math.isfinite(value):
        return str(value)
    # What rounds to 1000 of a unit is written as 1 of the next.
    units = [(1.0, ""), (1e3, "k"), (1e6, "M"), (1e9, "B"), (1e12, "T")]
    unit, suffix = next(((unit, suffix) for unit, suffix in units if abs(value) < 999.5 * unit), units[-1])
    scaled = value / unit
    digits = 0 if not suffix or abs(scaled) >= 99.95 else 1 if abs(scaled) >= 9.995 else 2
    return f"{scaled:.{digits}f}{suffix}"


def format_duration(seconds: float) -> str:
    """Writes a duration in its two largest units.

    Args:
        seconds: The duration; anything but a finite number of at least 0 is shown as "?".

    Returns:
        Text such as "0.4s", "12s", "3m12s", "5h04m" or "2d11h".
    """
    if not 0 <= seconds < float("inf"):
        return "?"
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60}h{minutes % 60:02}m"
    hours = round(seconds / 3600)
    return f"{hours // 24}d{hours % 24:02}h"

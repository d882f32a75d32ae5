"""A run's account as one HTML page that stands alone: no script, nothing to fetch, for light and dark screens."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from html import escape

from scaletrain.monitors import names
from scaletrain.monitors.goodput import Account, Segment, Spent
from scaletrain.monitors.goodput_summary import Summary
from scaletrain.monitors.goodput_text import (
    Table,
    advice_notes,
    attempts_table,
    cut,
    facts,
    headline,
    interval_table,
    shares_table,
)
from scaletrain.monitors.progress import format_count, format_duration
from scaletrain.monitors.run_history import Step
from scaletrain.monitors.run_records import Record, number
from scaletrain.monitors.svg_charts import Series, curves, stacked_bar, stacked_columns

_COLUMNS = 240  # of the timeline
_MOST_DOTS = 60  # of the validation: more are drawn as a line
_MOST_TEXT = 160  # characters of a reason; the whole text shows under the pointer
_STYLES = {spent: f"k{index}" for index, spent in enumerate(Spent)}

_CSS = """
:root { color-scheme: light dark; --ink: #1d2530; --soft: #5b6673; --rule: #d9dee4; --ground: #ffffff; --card: #f6f8fa;
  --k0: #2a9d6f; --k1: #d64545; --k2: #e8962e; --k3: #7a5bc7; --k4: #d9c02b; --k5: #3c8fd0; --k6: #9aa5b1;
  --k7: #4b5563; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ed; --soft: #9aa5b3; --rule: #333b46; --ground: #14181e;
  --card: #1c222a; --k0: #3fbf8a; --k1: #f06a6a; --k2: #f2a94c; --k3: #a48be6; --k4: #e6d35a; --k5: #62aeea;
  --k6: #77828f; --k7: #cbd2da; } }
body { margin: 0 auto; max-width: 60rem; padding: 1.5rem 1rem 4rem; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; margin: 0; } h2 { font-size: 1.05rem; margin: 2.2rem 0 .6rem; }
.note, .under { color: var(--soft); margin: .2rem 0 .8rem; }
.figures { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0; }
.figures div { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: .6rem 1rem; }
.figures b { display: block; font-size: 1.5rem; line-height: 1.3; } .figures span { color: var(--soft); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem .25rem 0; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule);
  vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
th:first-child, td:first-child, th:last-child, td:last-child { text-align: left; }
td:last-child { white-space: normal; min-width: 14rem; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .5em; }
.axis { fill: var(--soft); font-size: 12px; } .middle { text-anchor: middle; } .end { text-anchor: end; }
.grid { stroke: var(--rule); } .base { stroke: var(--soft); }
.curve { fill: none; stroke-width: 1.6; stroke-linejoin: round; } .curve.thin { stroke-width: .9; }
"""


def page(summary: Summary, lines: Sequence[Record], title: str) -> str:
    """Draws the report.

    Args:
        summary: The run's figures.
        lines: Raw lines of metrics.jsonl, for the validation loss.
        title: Name of the run.

    Returns:
        The page's text.
    """
    account = summary.account
    colours = "".join(f".{style} {{ fill: var(--{style}); background: var(--{style}); }}" for style in _STYLES.values())
    strokes = "".join(f".curve.{style} {{ fill: none; stroke: var(--{style}); }}" for style in _STYLES.values())
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="under">{escape(headline(summary))}</p>',
        *(_course(summary, lines) if account.attempts else []),
        "<h2>Interruptions, saves and faults</h2>",
        _list(map(_shortened, facts(summary))),
        "<h2>Checkpoint interval</h2>",
        _list(map(escape, advice_notes(summary.advice))),
        "" if summary.advice.problem else _table(interval_table(summary.advice)),
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    style = f"<style>{_CSS}{colours}{strokes}</style>"
    content = "\n".join(filter(None, body))
    return f'<!doctype html>\n<html lang="en"><head>{head}{style}</head><body>\n{content}\n</body></html>\n'


def _course(summary: Summary, lines: Sequence[Record]) -> list[str]:
    """What the attempts did."""
    account = summary.account
    return [
        _figures(summary),
        "<h2>Where the time went</h2>",
        stacked_bar(
            [(_STYLES[spent], f"{spent.value}: {us / 1e6:,.1f} s", us) for spent, us in account.shares_us.items()]
        ),
        _table(shares_table(summary), [_STYLES[spent] for spent in Spent]),
        "<h2>Over the run</h2>",
        _timeline(account),
        '<p class="note">Share of each stretch of time; the colours are those of the table.</p>',
        "<h2>Steps over time</h2>",
        _progress(account),
        '<p class="note">Red: trained in vain. After a restart the curve begins where the run went back to.</p>',
        "<h2>Loss</h2>",
        _losses(account, lines),
        '<p class="note">Over steps. Red: trained in vain. Blue: validation.</p>',
        "<h2>Attempts</h2>",
        _table(attempts_table(summary)),
    ]


def _figures(summary: Summary) -> str:
    account = summary.account
    between_s = summary.between_interruptions_s
    cells = [
        (f"{account.goodput:.1%}", "goodput"),
        (format_duration(account.wall_us / 1e6), "wall time"),
        (format_count(len(account.steps) - summary.lost_steps), "steps kept"),
        (format_count(summary.lost_steps), "steps lost"),
        (str(summary.interruptions), "interruptions"),
        ("-" if between_s is None else format_duration(between_s), "between interruptions"),
    ]
    return f'<div class="figures">{"".join(f"<div><b>{escape(a)}</b><span>{b}</span></div>" for a, b in cells)}</div>'


def _table(table: Table, keys: Sequence[str] = ()) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.head)
    rows = []
    for index, row in enumerate(table.rows):
        key = f'<i class="key {keys[index]}"></i>' if index < len(keys) else ""
        rows.append(
            "<tr>"
            + "".join(f"<td>{key if not column else ''}{_shortened(cell)}</td>" for column, cell in enumerate(row))
            + "</tr>"
        )
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _list(items: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>"


def _shortened(text: str) -> str:
    """A text as markup."""
    if len(text) <= _MOST_TEXT:
        return escape(text)
    return f'<span title="{escape(text)}">{escape(cut(text, _MOST_TEXT))}</span>'


def _timeline(account: Account) -> str:
    columns = []
    for index, shares in enumerate(binned(account.segments, _COLUMNS)):
        when = format_duration(index * account.wall_us / _COLUMNS / 1e6)
        columns.append(
            [(_STYLES[spent], f"{spent.value}, {share:.0%} at {when}", share) for spent, share in shares.items()]
        )
    unit_s, label = _time_axis(account)
    return stacked_columns(columns, account.wall_us / 1e6 / unit_s, label)


def binned(segments: Sequence[Segment], count: int) -> list[dict[Spent, float]]:
    """Cuts a run into stretches of the same length.

    Args:
        segments: All the run's time, without a gap.
        count: How many stretches.

    Returns:
        For each, the share of its time that went into each kind, those without any left out.
    """
    if not segments:
        return []
    first_us = segments[0].begin_us
    width_us = (segments[-1].end_us - first_us) / count
    bins: list[dict[Spent, float]] = [{} for _ in range(count)]
    for segment in segments:
        begin, end = (segment.begin_us - first_us) / width_us, (segment.end_us - first_us) / width_us
        for index in range(int(begin), min(count, int(end) + 1)):
            share = min(end, index + 1) - max(begin, index)
            if share > 0:
                bins[index][segment.spent] = bins[index].get(segment.spent, 0.0) + share
    return [{spent: own[spent] for spent in Spent if spent in own} for own in bins]


def _progress(account: Account) -> str:
    unit_s, label = _time_axis(account)
    first_s = account.attempts[0].begin_us / 1e6 if account.attempts else 0.0
    series = []
    for attempt in account.attempts:
        for steps in stretches(attempt.steps):
            points = [(max(0.0, step.time_s - first_s) / unit_s, float(step.step)) for step in steps]
            series.append(Series(_style(steps[0].lost), points))
    return curves(series, label, format_count, "steps over time")


def _time_axis(account: Account) -> tuple[float, Callable[[float], str]]:
    """A unit in which the wall time is a handy number, and how its values are written."""
    wall_s = account.wall_us / 1e6
    for unit_s, sign in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if wall_s >= 2 * unit_s:
            return unit_s, f"{{:g}} {sign}".format
    return 1.0, "{:g} s".format


def _losses(account: Account, lines: Sequence[Record]) -> str:
    lost, kept = [], []
    for attempt in account.attempts:
        for steps in stretches(attempt.steps):
            points = [(float(step.step), step.loss) for step in steps if step.loss is not None]
            if steps[0].lost:
                lost.append(Series(_style(True), points))
            else:
                kept += points
    points = evaluations(account.steps, lines)
    validation = Series(f"{_STYLES[Spent.EVALUATION]} thin", points, len(points) > _MOST_DOTS)
    return curves([Series(_style(False), kept), *lost, validation], format_count, "{:g}".format, "loss over steps")


def stretches(steps: Iterable[Step]) -> list[list[Step]]:
    """Cuts an attempt's steps where they begin or cease to be lost, and where the run went back.

    Args:
        steps: The steps, in the order in which they were trained.

    Returns:
        The stretches, none of them empty; the steps of each ascend.
    """
    found: list[list[Step]] = []
    for step in steps:
        if not found or step.lost != found[-1][-1].lost or step.step <= found[-1][-1].step:
            found.append([])
        found[-1].append(step)
    return found


def evaluations(steps: Iterable[Step], lines: Iterable[Record]) -> list[tuple[float, float]]:
    """The validation loss over the steps that the run still has.

    Args:
        steps: All the run's steps, the lost ones included.
        lines: Raw lines of metrics.jsonl.

    Returns:
        Step and loss, ascending; of a step that was evaluated again, the last.
    """
    trained: dict[int, list[Step]] = defaultdict(list)
    for step in steps:
        trained[step.step].append(step)
    found: dict[int, float] = {}
    for line in lines:
        loss = number(line.get(names.EVAL_LOSS))
        if loss is None:
            continue
        when = (line["attempt"], number(line.get("time_s")) or 0.0)
        before = [step for step in trained[line["step"]] if (step.attempt, step.time_s) <= when]
        if not (before and before[-1].lost):
            found[line["step"]] = loss
    return [(float(step), loss) for step, loss in sorted(found.items())]


def _style(lost: bool) -> str:
    return _STYLES[Spent.LOST if lost else Spent.PRODUCTIVE]

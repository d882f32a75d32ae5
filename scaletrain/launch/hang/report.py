"""The report of a hang: a folder in the run directory to which each rank's keeper adds what it found.

``exit/<attempt>/hang.json`` says that there is one, and is made by whoever saw a limit passed first. The folder holds
``rank-N.json`` and ``rank-N.txt`` of each rank, and at last ``report.json`` and ``report.md``.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaletrain.files import create_text, replace_text
from scaletrain.launch.attempts import attempt_numbers
from scaletrain.launch.hang.blame import Gone, Judgement
from scaletrain.launch.hang.evidence import Evidence
from scaletrain.launch.hang.heartbeat import Phase
from scaletrain.launch.verdicts import Verdict, read_verdicts

_MARK = "hang.json"
_REPORT = "report.json"
_MOST_ROWS = 64
_IN_ORDER = (Verdict.COMPLETE, Verdict.REQUEUE, Verdict.STOPPED)


@dataclass(frozen=True)
class Begun:
    """A report that somebody has begun.

    Attributes:
        folder: Where it is; made by whoever adds something first.
        by: The rank whose keeper began it, and concludes it.
        because: What it saw.
        time_s: When, as Unix time.
    """

    folder: Path
    by: int
    because: str
    time_s: float


def find_report(run_dir: Path, attempt: int) -> Begun | None:
    """The report of an attempt; None where there is none."""
    content = _read(run_dir / "exit" / str(attempt) / _MARK)
    if content is None:
        return None
    folder = run_dir / "hang" / str(content["folder"])
    return Begun(folder, int(content["by"]), str(content["because"]), float(content["time_s"]))


def begin_report(run_dir: Path, attempt: int, step: int, by: int, because: str) -> Begun:
    """Begins the report of an attempt, or finds the one that another has begun in the same moment.

    Args:
        run_dir: The run's folder.
        attempt: Which start of the run.
        step: Where the rank stands.
        by: The rank.
        because: What was seen of it.

    Returns:
        The one report of this attempt.

    Raises:
        OSError: The run directory cannot be written.
    """
    mark = run_dir / "exit" / str(attempt) / _MARK
    content = {"folder": f"{attempt}-{step}", "by": by, "because": because, "time_s": time.time()}
    create_text(mark, json.dumps(content) + "\n")
    found = find_report(run_dir, attempt)
    assert found is not None  # made just now, by this or another
    return found


def attempt_to_join(run_dir: Path, rank: int) -> int | None:
    """The attempt that a rank which has not joined any belongs to: the newest, where no rank of it has ended yet.

    Args:
        run_dir: The run's folder.
        rank: Global index of the rank.

    Returns:
        The attempt; None where the newest is an older start.
    """
    newest = max(attempt_numbers(run_dir), default=None)
    if newest is None or (run_dir / "exit" / str(newest) / f"{rank}.pid").exists():
        return None
    return None if read_verdicts(run_dir, newest) else newest


def add_evidence(folder: Path, evidence: Evidence, stacks: str) -> None:
    """Adds what a keeper found of its rank; the JSON comes last, and then all of it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"rank-{evidence.rank}.txt").write_text(stacks)
    _write(folder / f"rank-{evidence.rank}.json", evidence.to_json())


def read_evidence(folder: Path) -> dict[int, Evidence]:
    """What the keepers have found so far, by rank."""
    found = {}
    for path in folder.glob("rank-*.json"):
        content = _read(path)
        if content is not None:
            found[int(content["rank"])] = Evidence.from_json(content)
    return dict(sorted(found.items()))


def read_gone(run_dir: Path, attempt: int) -> dict[int, Gone]:
    """Ranks that have ended otherwise than in order, by rank."""
    return {
        rank: Gone(
            rank,
            str(content.get("host")),
            Verdict(content["verdict"]),
            str(content.get("reason")),
            tuple(map(str, content.get("hosts", ()))),
        )
        for rank, content in read_verdicts(run_dir, attempt).items()
        if content["verdict"] not in _IN_ORDER
    }


def host_of_ranks(run_dir: Path, attempt: int) -> dict[int, str]:
    """Machines of the ranks that have joined an attempt."""
    found = {}
    for path in (run_dir / "exit" / str(attempt)).glob("*.pid"):
        content = _read(path)
        if content is not None and path.stem.isdigit():
            found[int(path.stem)] = str(content.get("host"))
    return found


def write_report(
    begun: Begun, attempt: int, judgement: Judgement, seen: Mapping[int, Evidence], gone: Mapping[int, Gone]
) -> None:
    """Writes the conclusion, for people and for the keepers that wait for it.

    Args:
        begun: The report.
        attempt: Which start of the run.
        judgement: Who is to blame.
        seen: What each rank's keeper found.
        gone: Ranks that had ended.
    """
    (begun.folder / "report.md").write_text(_page(begun, attempt, judgement, seen, gone))
    content = {
        "attempt": attempt,
        "because": begun.because,
        "verdict": judgement.verdict.value,
        "conclusion": judgement.conclusion,
        "why": judgement.why,
        "blamed": list(judgement.blamed),
        "hosts": list(judgement.hosts),
        "ranks": [one.to_json() for one in seen.values()],
        "gone": [{"rank": one.rank, "host": one.host, "verdict": one.verdict.value} for one in gone.values()],
        "time_s": time.time(),
    }
    _write(begun.folder / _REPORT, content)


def read_conclusion(folder: Path) -> Judgement | None:
    """What a report concludes; None where it is not there yet."""
    content = _read(folder / _REPORT)
    if content is None:
        return None
    return Judgement(
        Verdict(content["verdict"]),
        str(content["conclusion"]),
        tuple(content["blamed"]),
        tuple(content["hosts"]),
        str(content["why"]),
    )


def _page(
    begun: Begun, attempt: int, judgement: Judgement, seen: Mapping[int, Evidence], gone: Mapping[int, Gone]
) -> str:
    first = [rank for rank in judgement.blamed if rank in seen]
    others = [rank for rank in seen if rank not in first]
    rows = [_row(seen[rank], rank in judgement.blamed) for rank in (*first, *others)[:_MOST_ROWS]]
    rows += [f"| {one.rank} | {one.host} |  |  |  |  | ended: {one.verdict} |" for one in gone.values()]
    lines = [
        f"# Hang in attempt {attempt}",
        "",
        f"**{judgement.conclusion}**",
        "",
        f"{'Named because' if judgement.blamed else 'Nobody is named'}: {judgement.why}.",
        f"Begun by the keeper of rank {begun.by}: {begun.because}.",
        "",
        "| rank | host | GPU | step | phase | seconds | state |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
    ]
    if len(seen) > _MOST_ROWS:
        lines += [f"{len(seen) - _MOST_ROWS} more ranks are in report.json.", ""]
    # Of those that wait one is as good as another.
    for rank in (*first[:4], *others[:1]):
        told = (begun.folder / f"rank-{rank}.txt").read_text()
        lines += [f"## Rank {rank}", "", "```", told.strip(), "```", ""]
    lines.append("The stacks of all ranks and of their workers are in rank-N.txt. How to read this: docs/hangs.md")
    return "\n".join(lines) + "\n"


def _row(one: Evidence, is_blamed: bool) -> str:
    rank = f"**{one.rank}**" if is_blamed else str(one.rank)
    phase = Phase(one.phase).label
    return f"| {rank} | {one.host} | {one.gpu} | {one.step} | {phase} | {one.seconds:.1f} | {one.stands} |"


def _write(path: Path, content: Mapping[str, Any]) -> None:
    replace_text(path, json.dumps(content, indent=1) + "\n")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None

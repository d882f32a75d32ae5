"""How a launch ended, told from what its ranks left: verdict files first, then exit codes and logs."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scaletrain.launch.attempts import attempt_with_logs
from scaletrain.launch.verdicts import UNCLAIMED, Verdict, read_verdict, read_verdicts
from scaletrain.log import rank_log

_WEIGHT = (
    Verdict.USER_ERROR,
    Verdict.GAVE_UP,
    Verdict.STOPPED,
    Verdict.SICK_NODE,
    Verdict.HANG,
    Verdict.REQUEUE,
    Verdict.CRASH,
)
"""Of ranks that ended differently the first of these counts: a peer of a rank that knows why only sees it gone."""

_SICK_DEVICE = (
    # Texts of CUDA's runtime errors 214, 226, 46, 802 and 100 (CUDA Runtime API, cudaError_t), and of NVML's 15.
    (r"uncorrectable ECC error encountered", "uncorrectable ECC error"),
    (r"uncorrectable NVLink error", "uncorrectable NVLink error"),
    (r"CUDA-capable device\(s\) is/are busy or unavailable", "a GPU is unavailable"),
    (r"system not yet initialized", "the GPUs' fabric is not ready"),
    (r"no CUDA-capable device is detected", "no GPU is found"),
    (r"GPU is lost", "a GPU is lost"),
)
_USERS_MISTAKE = (
    (r"^ModuleNotFoundError: .*", "a package is missing in the environment of the job"),
    (r"^SyntaxError: .*", "the code cannot be read"),
)
_KILL_SHOWS_S = 15.0
"""Time within which a killed rank's peers fail. DeepSpeed's launcher kills the others 30 s after one has failed."""
_TAIL_BYTES = 64 * 1024
_QUOTED_LINES = 12


@dataclass(frozen=True)
class Outcome:
    """How a launch ended, over all its ranks.

    Attributes:
        verdict: The weightiest of its ranks.
        reason: Of that rank, for people.
        sick: Nodes that are to blame, with the reason.
        log: Log of the rank that tells most; None where there is none.
    """

    verdict: Verdict
    reason: str
    sick: Mapping[str, str] = field(default_factory=dict)
    log: Path | None = None


def read_outcome(run_dir: Path, log_dir: Path, ranks: Mapping[int, str], exit_code: int | None) -> Outcome:
    """Reads how a launch ended.

    Args:
        run_dir: The run's folder.
        log_dir: Folder of the launch's logs, by which its verdicts are told from those of another job in the same run.
        ranks: The node of each rank.
        exit_code: Of the step; None where it had to be killed.

    Returns:
        The outcome.
    """
    attempt = attempt_with_logs(run_dir, log_dir)
    verdicts = {} if attempt is None else read_verdicts(run_dir, attempt)
    found = list(verdicts.values()) + _unclaimed(run_dir, log_dir)
    if len(verdicts) == len(ranks) and all(one["verdict"] == Verdict.COMPLETE for one in verdicts.values()):
        return Outcome(Verdict.COMPLETE, str(verdicts[0]["reason"]))
    chosen = _weightiest(found)
    if chosen is None:
        how = "had to be killed" if exit_code is None else f"ended with code {exit_code}"
        who = f"only {len(verdicts)} of {len(ranks)} ranks" if verdicts else "no rank"
        outcome = Outcome(Verdict.CRASH, f"the step {how}, and {who} left a verdict", log=_last_log(log_dir))
    else:
        outcome = _told(chosen, log_dir, ranks)
    if outcome.verdict is not Verdict.CRASH:
        return outcome
    # What a rank that was struck down had met and survived before, such as a missing package, was not the cause.
    mistakes = () if chosen is not None and _was_killed(chosen) else _USERS_MISTAKE
    return _reread(outcome, log_dir, ranks, mistakes)


def quote(log: Path) -> list[str]:
    """The last lines of a log."""
    return _tail(log).splitlines()[-_QUOTED_LINES:]


def _unclaimed(run_dir: Path, log_dir: Path) -> list[dict[str, Any]]:
    found = [read_verdict(path) for path in (run_dir / "exit" / UNCLAIMED).glob("*.json")]
    return [one for one in found if one is not None and one.get("log_dir") == str(log_dir)]


def _weightiest(found: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    for verdict in _WEIGHT:
        of_it = [one for one in found if one["verdict"] == verdict]
        if of_it:
            return _first_cause(of_it)
    return None


def _first_cause(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of ranks that ended in the same way the one that the others only followed."""
    struck_until_s = min(map(_time_s, found)) + _KILL_SHOWS_S
    return min(
        found,
        key=lambda one: (
            not (_was_killed(one) and _time_s(one) <= struck_until_s),
            _only_followed(one),
            _time_s(one),
        ),
    )


def _time_s(verdict: dict[str, Any]) -> float:
    return float(verdict.get("time_s", 0))


def _was_killed(verdict: dict[str, Any]) -> bool:
    """Killed from outside, for no reason that its keeper knew: its peers then fail because it is gone."""
    return str(verdict.get("manner", "")).startswith("signal") and str(verdict.get("reason")).startswith("ended by")


def _only_followed(verdict: dict[str, Any]) -> bool:
    """Ended because of others: it was asked for there, one of them had ended, or their launcher was gone."""
    reason = str(verdict.get("reason"))
    return any(words in reason for words in ("on another rank", "its launcher", "and this waited"))


def _told(verdict: dict[str, Any], log_dir: Path, ranks: Mapping[int, str]) -> Outcome:
    rank = int(verdict.get("rank", 0))
    node = ranks.get(rank, str(verdict.get("host")))
    reason = str(verdict.get("reason", ""))
    kind = Verdict(verdict["verdict"])
    sick = {str(host): reason for host in verdict.get("hosts", ())}
    log = rank_log(log_dir, rank)
    # A hang's reason names the rank that the others waited for, and is the same of all of them.
    told = reason if kind is Verdict.HANG else f"rank {rank} on {node}: {reason}"
    return Outcome(kind, told, sick, log if log.exists() else None)


def _reread(outcome: Outcome, log_dir: Path, ranks: Mapping[int, str], mistakes: Sequence[tuple[str, str]]) -> Outcome:
    """Looks for what a crash was in the logs of all ranks."""
    for rank, node in ranks.items():
        text = _tail(rank_log(log_dir, rank))
        for pattern, what in _SICK_DEVICE:
            if re.search(pattern, text):
                reason = f"rank {rank} on {node}: {what}"
                return Outcome(Verdict.SICK_NODE, reason, {node: reason}, rank_log(log_dir, rank))
        raised = re.findall(r"^\w+(?:Error|Exception)\b.*", text, re.MULTILINE)[-1:]  # what came before was survived
        for pattern, what in mistakes:
            line = re.match(pattern, *raised) if raised else None
            if line:
                reason = f"rank {rank} on {node}: {what}: {line[0]}"
                return Outcome(Verdict.USER_ERROR, reason, log=rank_log(log_dir, rank))
    return outcome


def _last_log(log_dir: Path) -> Path | None:
    logs = [path for path in log_dir.glob("rank-*.log") if path.stat().st_size]
    return max(logs, key=lambda path: path.stat().st_mtime, default=None)


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""

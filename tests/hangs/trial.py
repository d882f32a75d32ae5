"""One trial: a real training of two ranks, one of which is held, and what must be found."""

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaletrain.launch.verdicts import read_verdicts
from tests.hangs.held_rank import __file__ as held_rank
from tests.integration.runs import ROOT, TinyRun
from tests.processes import eventually, kill_all, living

PHASES = ("data", "agree", "forward", "backward", "update", "callbacks", "eval", "save")
KINDS = ("stopped", "python", "gil", "regex", "killed")
WITHIN_S = 240.0
# The limits are short; how long the machine takes for a step of a tiny model still is not.
LIMITS = ("--monitor.hang.min_limit_s", 8, "--monitor.hang.first_limit_s", 90, "--train.collective_timeout_s", 200)


@dataclass(frozen=True)
class Trial:
    """Which rank is held where, and how.

    Attributes:
        rank: Global index.
        phase: In which phase.
        step: From which step on.
        kind: See ``collective.strike``.
        stage: Of ZeRO.
    """

    rank: int
    phase: str
    step: int
    kind: str
    stage: int = 2

    def __str__(self) -> str:
        return f"rank {self.rank} {self.kind} in {self.phase} from step {self.step} on, ZeRO {self.stage}"


def carry_out(trial: Trial, run: TinyRun) -> list[str]:
    """Carries a trial out.

    Args:
        trial: What happens.
        run: A run that has not begun.

    Returns:
        What is not as it must be; nothing of the run is left where all is.
    """
    held = {"rank": trial.rank, "phase": trial.phase, "step": trial.step, "kind": trial.kind}
    flags = (*LIMITS, "--deepspeed", f"configs/ds/zero{trial.stage}.json", "--train.max_steps", 5000)
    flags += ("--checkpoint.every_steps", 2, "--eval.every_steps", 3, "--checkpoint.background", "false")
    ranks = run.start_ranks(
        2,
        *flags,
        environment={"HELD": json.dumps(held), "PYTHONPATH": str(ROOT)},
        script=Path(held_rank),
    )
    try:
        begin_s = time.monotonic()
        for rank in ranks:
            rank.wait(timeout=max(1.0, WITHIN_S - (time.monotonic() - begin_s)))
        eventually(lambda: len(read_verdicts(run.run_dir, 1)) == 2, 30, "both have a verdict")
        problems = deviations(trial, run)
        eventually(lambda: not living(run.folder), 30, lambda: f"nothing lives on: {living(run.folder)}")
    except Exception as error:
        problems = [f"{type(error).__name__}: {error}"]
    finally:
        kill_all(run.folder)
    if not problems:
        shutil.rmtree(run.folder)
    return problems


def deviations(trial: Trial, run: TinyRun) -> list[str]:
    """What the verdicts and the report say otherwise than they must."""
    verdicts = read_verdicts(run.run_dir, 1)
    told = [f"{content['verdict']}: {content['reason']}" for content in verdicts.values()]
    if trial.kind == "killed":
        # Gloo tells the other rank at once that its peer is gone: there is nothing to wait for.
        dead = verdicts[trial.rank]
        is_so = dead["verdict"] == "crash" and dead["manner"] == "signal 9 (SIGKILL)"
        return [] if is_so and verdicts[1 - trial.rank]["verdict"] == "crash" else told
    reports = [json.loads(path.read_text()) for path in run.run_dir.glob("hang/1-*/report.json")]
    if len(reports) != 1:
        return [f"{len(reports)} reports", *told]
    return [*_of_report(trial, reports[0]), *(text for text in told if not text.startswith("hang: hang at step"))]


def _of_report(trial: Trial, report: dict[str, Any]) -> list[str]:
    (named,) = [one for one in report["ranks"] if one["rank"] == trial.rank] or [{}]
    wanted = {"blamed": [trial.rank], "phase": trial.phase, "verdict": "hang", "has stacks": True}
    found = {
        "blamed": report["blamed"],
        "phase": named.get("phase"),
        "verdict": report["verdict"],
        "has stacks": named.get("has_stacks"),
    }
    wrong = [f"{name} is {found[name]}, not {wanted[name]}" for name in wanted if found[name] != wanted[name]]
    return [*wrong, report["conclusion"]] if wrong else []

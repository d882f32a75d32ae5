"""One trial: a real training of two ranks, one of which is held, and what must be found."""

import json
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaletrain.launch.processes import Process, kill, process_of
from scaletrain.launch.verdicts import read_verdicts
from tests.chaos.fork_server import ForkServer
from tests.integration.runs import ENVIRONMENT, ROOT, TinyRun, free_port
from tests.processes import eventually, kill_all, living

PHASES = ("data", "agree", "forward", "backward", "update", "callbacks", "eval", "save")
KINDS = ("stopped", "python", "gil", "regex", "killed")
WITHIN_S = 240.0
HELD_RANK = Path(__file__).parent / "held_rank.py"
# The limits are short; how long the machine takes for a step of a tiny model still is not.
LIMITS = ("--monitor.hang.min_limit_s", 8, "--monitor.hang.first_limit_s", 90, "--train.collective_timeout_s", 200)


@dataclass(frozen=True)
class Trial:
    """Which rank is held where, and how.

    Attributes:
        rank: Global index.
        phase: In which phase.
        step: From which step on.
        kind: See ``collective.strike``; ``slow`` is no hang, and the run completes.
        stage: Of ZeRO.
    """

    rank: int
    phase: str
    step: int
    kind: str
    stage: int = 2

    def __str__(self) -> str:
        return f"rank {self.rank} {self.kind} in {self.phase} from step {self.step} on, ZeRO {self.stage}"


def carry_out(trial: Trial, run: TinyRun, server: ForkServer) -> list[str]:
    """Carries a trial out.

    Args:
        trial: What happens.
        run: A run that has not begun.
        server: Forks the ranks.

    Returns:
        What is not as it must be; nothing of the run is left where all is.
    """
    ranks = start(trial, run, server)
    try:
        eventually(lambda: not any(rank.is_alive() for rank in ranks), WITHIN_S, "both ranks end")
        eventually(lambda: len(read_verdicts(run.run_dir, 1)) == 2, 30, "both have a verdict")
        problems = deviations(trial, run)
        eventually(lambda: not living(run.folder), 30, lambda: f"nothing lives on: {living(run.folder)}")
    except Exception as error:  # whatever went wrong is what the trial came to
        problems = [f"{type(error).__name__}: {error}"]
    finally:
        for rank in ranks:
            kill(rank, signal.SIGKILL)
        kill_all(run.folder)
    if not problems:
        shutil.rmtree(run.folder)
    return problems


def start(trial: Trial, run: TinyRun, server: ForkServer) -> list[Process]:
    """Starts the ranks of a trial."""
    held = {"rank": trial.rank, "phase": trial.phase, "step": trial.step, "kind": trial.kind}
    steps = 12 if trial.kind == "slow" else 5000
    flags = (*LIMITS, "--deepspeed", f"configs/ds/zero{trial.stage}.json", "--train.max_steps", steps)
    flags += ("--checkpoint.every_steps", 2, "--eval.every_steps", 3, "--checkpoint.background", "false")
    common = ENVIRONMENT | {"HELD": json.dumps(held), "PYTHONPATH": str(ROOT), "MASTER_PORT": str(free_port())}
    common |= {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    arguments = ["--config", str(run.config), *map(str, flags)]
    pids = [
        server.fork(
            HELD_RANK, arguments, common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, run.folder / f"rank-{rank}.txt"
        )
        for rank in range(2)
    ]
    return [process for pid in pids if (process := process_of(pid)) is not None]


def deviations(trial: Trial, run: TinyRun) -> list[str]:
    """What the verdicts and the report say otherwise than they must."""
    verdicts = read_verdicts(run.run_dir, 1)
    told = [f"{content['verdict']}: {content['reason']}" for content in verdicts.values()]
    if trial.kind == "slow":
        is_so = all(content["verdict"] == "complete" for content in verdicts.values())
        return [] if is_so and not (run.run_dir / "hang").exists() else told
    if trial.kind == "killed":
        # Gloo tells the other rank at once that its peer is gone: there is nothing to wait for.
        dead = verdicts[trial.rank]
        is_so = dead["verdict"] == "crash" and dead["written_by"] == "keeper"
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

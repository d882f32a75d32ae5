"""One trial: a real training of a few ranks, one of which is held, and what must be found."""

import json
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaletrain.launch.processes import Process, kill, process_of
from scaletrain.launch.verdicts import read_verdicts
from tests.chaos.fork_server import ForkServer
from tests.hangs.held_rank import STRUCK
from tests.integration.runs import ENVIRONMENT, ROOT, TinyRun, free_port
from tests.processes import eventually, kill_all, living

PHASES = ("start", "data", "agree", "forward", "backward", "update", "callbacks", "eval", "save")
KINDS = ("stopped", "killed", "python", "gil", "regex")
WITHIN_S = 300.0
HELD_RANK = Path(__file__).parent / "held_rank.py"
# The limits are short; how long the machine takes for a step of a tiny model still is not.
LEAST_S, FIRST_S, FIRST_OF_START_S = 8, 90, 40
REPORT_S = 60.0  # time in which all keepers tell what they found: examiner.COLLECT_S


@dataclass(frozen=True)
class Trial:
    """Which rank is held where, and how.

    Attributes:
        rank: Global index.
        phase: In which phase.
        step: From which step on; nothing for the phase ``start``.
        kind: See ``collective.strike``; ``slow`` is no hang, and the run completes.
        stage: Of ZeRO.
        world_size: Ranks of the run.
    """

    rank: int
    phase: str
    step: int
    kind: str
    stage: int = 2
    world_size: int = 2

    def __str__(self) -> str:
        where = f"{self.phase} from step {self.step} on" if self.phase != "start" else self.phase
        return f"rank {self.rank} of {self.world_size} {self.kind} in {where}, ZeRO {self.stage}"


@dataclass(frozen=True)
class Outcome:
    """What a trial came to.

    Attributes:
        problems: What is not as it must be.
        named_s: Seconds from the moment at which the rank was held until a verdict or a report named it.
        limit_s: How long the phase might last.
    """

    problems: list[str]
    named_s: float = 0.0
    limit_s: float = 0.0


def carry_out(trial: Trial, run: TinyRun, server: ForkServer) -> Outcome:
    """Carries a trial out.

    Args:
        trial: What happens.
        run: A run that has not begun.
        server: Forks the ranks.

    Returns:
        What it came to; nothing of the run is left where there is no problem.
    """
    ranks = start(trial, run, server)
    try:
        eventually(lambda: not any(rank.is_alive() for rank in ranks), WITHIN_S, "all ranks end")
        eventually(lambda: len(read_verdicts(run.run_dir, 1)) == trial.world_size, 30, "all have a verdict")
        outcome = judged(trial, run)
        eventually(lambda: not living(run.folder), 30, lambda: f"nothing lives on: {living(run.folder)}")
    except Exception as error:  # whatever went wrong is what the trial came to
        outcome = Outcome([f"{type(error).__name__}: {error}"])
    finally:
        for rank in ranks:
            kill(rank, signal.SIGKILL)
        kill_all(run.folder)
    if not outcome.problems:
        shutil.rmtree(run.folder)
    return outcome


def start(trial: Trial, run: TinyRun, server: ForkServer) -> list[Process]:
    """Starts the ranks of a trial."""
    held = {"rank": trial.rank, "phase": trial.phase, "step": trial.step, "kind": trial.kind}
    first_s = FIRST_OF_START_S if trial.phase == "start" else FIRST_S
    flags: tuple[object, ...] = ("--monitor.hang.min_limit_s", LEAST_S, "--monitor.hang.first_limit_s", first_s)
    flags += ("--train.collective_timeout_s", 200, "--train.max_steps", 12 if trial.kind == "slow" else 5000)
    flags += ("--deepspeed", zero_json(trial.stage, run.folder), "--checkpoint.background", "false")
    flags += ("--checkpoint.every_steps", 2, "--eval.every_steps", 3)
    size = str(trial.world_size)
    common = ENVIRONMENT | {"HELD": json.dumps(held), "PYTHONPATH": str(ROOT), "MASTER_PORT": str(free_port())}
    common |= {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    arguments = ["--config", str(run.config), *map(str, flags)]
    pids = [
        server.fork(
            HELD_RANK, arguments, common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, run.folder / f"rank-{rank}.txt"
        )
        for rank in range(trial.world_size)
    ]
    return [process for pid in pids if (process := process_of(pid)) is not None]


def zero_json(stage: int, folder: Path) -> Path:
    """DeepSpeed's settings; under ZeRO-3 weights are gathered that are as small as those of a tiny model."""
    settings = json.loads((ROOT / "configs" / "ds" / f"zero{stage}.json").read_text())
    if stage == 3:
        settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    path = folder / "zero.json"
    path.write_text(json.dumps(settings))
    return path


def judged(trial: Trial, run: TinyRun) -> Outcome:
    """What the verdicts and the report say, and what of it they must not."""
    verdicts = read_verdicts(run.run_dir, 1)
    told = [f"rank {rank}: {content['verdict']}: {content['reason']}" for rank, content in verdicts.items()]
    if trial.kind == "slow":
        is_so = all(content["verdict"] == "complete" for content in verdicts.values())
        return Outcome([] if is_so and not (run.run_dir / "hang").exists() else told)
    struck_s = float((run.folder / STRUCK).read_text())
    if trial.kind == "killed":
        # Gloo tells the other ranks at once that their peer is gone: there is nothing to wait for.
        dead = verdicts[trial.rank]
        is_so = all(content["verdict"] == "crash" for content in verdicts.values()) and dead["written_by"] == "keeper"
        is_so = is_so and f"without a verdict, in {trial.phase} of step " in dead["reason"]
        return Outcome([] if is_so else told, dead["time_s"] - struck_s)
    reports = [json.loads(path.read_text()) for path in run.run_dir.glob("hang/1-*/report.json")]
    if len(reports) != 1:
        return Outcome([f"{len(reports)} reports", *told])
    problems = [text for text in told if ": hang: hang at step" not in text]
    return _of_report(trial, reports[0], reports[0]["time_s"] - struck_s, problems)


def _of_report(trial: Trial, report: dict[str, Any], named_s: float, problems: list[str]) -> Outcome:
    (named,) = [one for one in report["ranks"] if one["rank"] == trial.rank] or [{}]
    limit_s = max((one["limit_s"] for one in report["ranks"]), default=0.0)
    wanted = {"blamed": [trial.rank], "phase": trial.phase, "verdict": "hang", "has stacks": True, "in time": True}
    found = {
        "blamed": report["blamed"],
        "phase": named.get("phase"),
        "verdict": report["verdict"],
        "has stacks": named.get("has_stacks"),
        "in time": named_s < limit_s + REPORT_S,
    }
    wrong = [f"{name} is {found[name]}, not {wanted[name]}" for name in wanted if found[name] != wanted[name]]
    return Outcome([*problems, *([*wrong, report["conclusion"]] if wrong else [])], named_s, limit_s)

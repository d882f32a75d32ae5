"""One launch of a training on some nodes of a job: its start, the wait for its end, and how it ended."""

import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scaletrain.launch.attempts import attempt_with_logs
from scaletrain.launch.processes import Process, kill
from scaletrain.launch.slurm.asked import Requests
from scaletrain.launch.slurm.commands import Slurm
from scaletrain.launch.slurm.decision import Asked
from scaletrain.launch.slurm.evidence import Outcome, read_outcome
from scaletrain.launch.slurm.job import Job, unix_s
from scaletrain.launch.slurm.ports import training_port
from scaletrain.launch.slurm.settings import Settings
from scaletrain.launch.slurm.steps import Step, node_python, slots, srun_command

_LOOK_S = 60.0
"""How often Slurm is asked whether this is still the job: on a node that it holds to be dead nothing else tells."""
_BEFORE_END_S = 20.0
"""Time before the job's end at which nothing is waited for any more: the job must be given back before."""
_AFTER_FIRST_S = 90.0
"""Time in which all nodes end once one has: srun ends them after 60 s, but waits for one that is out of reach."""
_VERDICTS_S = 15.0
"""Time for keepers to write the verdicts of ranks that were killed."""
_END_LOOK_S = 10.0
"""How often the files of all nodes are read: there may be hundreds, on a shared file system, for weeks."""
_TRY_AGAIN_S = 5.0
_TICK_S = 0.2


def log_dir_of(run_dir: Path, number: int) -> Path:
    """Folder for the logs of a launch."""
    return run_dir / "logs" / f"launch-{number:04d}"


def claim_log_dir(run_dir: Path, number: int) -> int:
    """Makes the folder of a launch that nobody else has: another job may try to train in the same run.

    Args:
        run_dir: The run's folder.
        number: The lowest number that will do.

    Returns:
        The number that was free.
    """
    while True:
        try:
            log_dir_of(run_dir, number).mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return number


class Launch:
    """A training on some nodes.

    Args:
        number: Its number among all launches of the run.
        job: The job.
        settings: What the user said.
        run_dir: The run's folder.
        root: Folder of the project.
        nodes: Where to train, the first rank's node first.
        arguments: The training's.

    Attributes:
        log_dir: Folder of its logs.
        plan: What each node reads.
        command: The step's command line.
    """

    def __init__(
        self,
        number: int,
        job: Job,
        settings: Settings,
        run_dir: Path,
        root: Path,
        nodes: Sequence[str],
        arguments: Sequence[str],
    ) -> None:
        self._job, self._run_dir, self._nodes = job, run_dir, tuple(nodes)
        self._slots = slots(job, settings)
        self.log_dir = log_dir_of(run_dir, number)
        self.plan: dict[str, Any] = {
            "nodes": list(nodes),
            "addresses": {node: job.addresses[node] for node in nodes},
            "port": training_port(int(job.job_id), number),
            "slots": self._slots,
            "log_dir": str(self.log_dir),
            "end_s": job.end_s,
            "command": [str(root / "scaletrain" / "train.py"), *arguments],
        }
        plan_path = self.log_dir / "plan.json"
        command = [node_python(settings), "-m", "scaletrain.launch.slurm.node", str(plan_path)]
        self.command = srun_command(job, settings, "train", nodes, command, (root, run_dir, Path.cwd()))

    def run(self, requests: Requests, slurm: Slurm) -> Outcome:
        """Trains.

        Args:
            requests: What is asked of the job.
            slurm: To pass it on.

        Returns:
            How it ended.
        """
        (self.log_dir / "plan.json").write_text(json.dumps(self.plan, indent=1) + "\n")
        step = Step(self.command)
        exit_code = self._watch(step, requests, slurm)
        step.end()
        self._await_verdicts()
        return read_outcome(self._run_dir, self.log_dir, self._node_of_rank(), exit_code)

    def as_nodes(self, sick: Mapping[str, str]) -> dict[str, str]:
        """Names of hosts, as processes know them, as Slurm's names of nodes."""
        told = self._told()
        by_host = {str(content.get("host")): node for node, content in told.items()}
        return {by_host.get(host, host): reason for host, reason in sick.items() if by_host.get(host, host) in told}

    def _watch(self, step: Step, requests: Requests, slurm: Slurm) -> int | None:
        """Waits for the end; what is asked of the job is passed on to the ranks once."""
        is_told, next_try_s = False, 0.0
        give_up_s = float("inf")
        next_look_s, next_end_look_s = time.monotonic() + _LOOK_S, 0.0
        while (code := step.poll()) is None:
            time.sleep(_TICK_S)
            now_s = time.monotonic()
            asked = requests.asked()
            if asked is Asked.NOBODY and now_s >= next_look_s:
                asked, next_look_s = requests.look(), now_s + _LOOK_S
            if asked is Asked.REPLACED:
                self._signal(step, slurm, "KILL")
                self._kill_here()
                return None
            # Of what Slurm has decided itself, such as scancel, it has told all processes: they may be saving.
            if asked in (Asked.TIME_LIMIT, Asked.PREEMPTED) and not is_told and now_s >= next_try_s:
                is_told, next_try_s = self._signal(step, slurm, "USR1"), now_s + _TRY_AGAIN_S
                give_up_s = min(give_up_s, now_s + self._time_to_save_s(slurm))
            if now_s >= next_end_look_s:
                next_end_look_s = now_s + _END_LOOK_S
                ended_s = self._first_end_s()
                if ended_s is not None:
                    give_up_s = min(give_up_s, now_s - (time.time() - ended_s) + _AFTER_FIRST_S)
            if now_s >= give_up_s:
                self._signal(step, slurm, "KILL")
                return None
        return code

    def _time_to_save_s(self, slurm: Slurm) -> float:
        """Asked anew: a preempted job ends with its time of grace, and somebody may have changed the limit."""
        end_s = unix_s(slurm.show_job(self._job.job_id).get("EndTime", "")) or self._job.end_s
        return float("inf") if end_s is None else max(0.0, end_s - time.time() - _BEFORE_END_S)

    def _signal(self, step: Step, slurm: Slurm, name: str) -> bool:
        number = next((str(one["step"]) for one in self._told().values() if one.get("step")), None)
        if number is None:
            step.end()  # nothing runs yet that could save
            return True
        return slurm.signal_step(self._job.job_id, number, name)

    def _kill_here(self) -> None:
        """Ends this node's ranks without Slurm, whose daemon here may be gone: their launcher takes them with it."""
        here = self._told().get(os.environ.get("SLURMD_NODENAME", ""), {}).get("process")
        if here is not None:
            kill(Process(**here), signal.SIGKILL)

    def _told(self) -> dict[str, dict[str, Any]]:
        """What each node has said of itself."""
        found = {}
        for node in self._nodes:
            try:
                found[node] = json.loads((self.log_dir / f"node-{node}.json").read_text())
            except (OSError, ValueError):
                continue
        return found

    def _first_end_s(self) -> float | None:
        return min((one["ended_s"] for one in self._told().values() if "ended_s" in one), default=None)

    def _node_of_rank(self) -> dict[int, str]:
        return {rank: self._nodes[rank // self._slots] for rank in range(len(self._nodes) * self._slots)}

    def _await_verdicts(self) -> None:
        until_s = time.monotonic() + _VERDICTS_S
        ranks = len(self._nodes) * self._slots
        while time.monotonic() < until_s:
            attempt = attempt_with_logs(self._run_dir, self.log_dir)
            files = list((self._run_dir / "exit" / str(attempt)).glob("[0-9]*.json"))
            if attempt is not None and len(files) >= ranks:
                return
            if attempt is None and not any(self.log_dir.glob("rank-*.log")):
                return  # no rank has started
            time.sleep(_TICK_S)

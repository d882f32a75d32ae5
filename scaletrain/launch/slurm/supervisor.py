"""Keeps a training job alive: checks nodes, launches, and decides what follows each end."""

import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path

from scaletrain.launch.slurm.asked import Requests
from scaletrain.launch.slurm.checks import Checks
from scaletrain.launch.slurm.commands import Slurm
from scaletrain.launch.slurm.decision import Action, Asked, Kind, Situation, decide, most_excluded
from scaletrain.launch.slurm.evidence import Outcome, quote
from scaletrain.launch.slurm.hook import run_hook
from scaletrain.launch.slurm.job import Job
from scaletrain.launch.slurm.journal import Journal
from scaletrain.launch.slurm.launching import Launch, claim_log_dir
from scaletrain.launch.slurm.ledger import DAY_S, Failure, Ledger
from scaletrain.launch.slurm.settings import Settings
from scaletrain.launch.slurm.suspects import choose_suspect
from scaletrain.launch.verdicts import EXIT_CODES, Verdict

_LONGEST_ABSENCE_S = 900.0
"""Longest time for which Slurm's controller is waited for, in seconds."""
_FULL_DISK_S = 600.0
"""Seconds until a job starts again whose run directory cannot be written."""


class Supervisor:
    """Runs the training of one job.

    Args:
        job: The job.
        settings: What the user said.
        slurm: Slurm's commands.
        run_dir: The run's folder.
        root: Folder of the project.
        arguments: The training's.
    """

    def __init__(
        self, job: Job, settings: Settings, slurm: Slurm, run_dir: Path, root: Path, arguments: Sequence[str]
    ) -> None:
        self._job, self._settings, self._slurm, self._run_dir = job, settings, slurm, run_dir
        self._root, self._arguments = root, tuple(arguments)
        self._node = os.environ.get("SLURMD_NODENAME", socket.gethostname())
        self._requests = Requests(job, slurm, self._node)
        self._journal = Journal(run_dir, job.job_id, job.restarts)
        self._ledger = Ledger(settings.ledger_folder(os.environ), settings.ledger_days)
        self._sick: dict[str, str] = {}
        self._kept_out: set[str] = set()
        self._acquitted: frozenset[str] = frozenset()
        self._forgiven: Set[str] = frozenset()
        self._crashes_here = 0
        self._needed = max(1, len(job.nodes) - settings.spare_nodes)
        self._excluded: dict[str, str] = {}
        known = len({*job.nodes, *job.excluded})
        self._most_excluded = most_excluded(job.partition_nodes or known, settings.max_excluded_share)

    def run(self) -> int:
        """Trains until the job is over or given back.

        Returns:
            The job's exit code.
        """
        try:
            return self._supervise()
        except OSError as error:
            # Not even its own records can be written: somebody makes room, and the same job goes on.
            reason = f"{self._run_dir} cannot be used: {error}"
            self._say(f"requeue in {_FULL_DISK_S:.0f} s: {reason}")
            return self._end(Action(Kind.REQUEUE, reason, delay_s=_FULL_DISK_S))

    def _supervise(self) -> int:
        (self._run_dir / "logs").mkdir(parents=True, exist_ok=True)
        self._say(self._first_line())
        self._journal.write("job_start", job_name=self._job.name, nodes=self._job.nodes, end_s=self._job.end_s)
        self._excluded = self._journal.blamed(time.time() - self._settings.ledger_days * DAY_S)
        self._forgiven = self._journal.blamed().keys() - self._excluded.keys()
        for node, reason in self._ledger.avoided().items():
            if node in self._job.nodes:
                self._excluded[node] = reason
                self._leave_out(node, reason)
        while True:
            problem = self._check()
            usable = self._usable()
            is_refused = problem or len(usable) < self._needed or self._has_too_many()
            if is_refused or self._requests.asked() is not Asked.NOBODY:
                situation = self._without_launch(problem)
            else:
                situation = self._launch(usable)
            action = decide(situation)
            self._carry_out(action)
            if action.kind is not Kind.LAUNCH:
                return self._end(action)

    def _first_line(self) -> str:
        job, run_dir = self._job, self._run_dir
        array = f" (task {job.array[1]} of {job.array[0]})" if job.array else ""
        return (
            f"job {job.job_id}{array}, start {job.restarts + 1}, on {','.join(job.nodes)}: run {run_dir}, logs "
            f"{run_dir / 'logs'}, what jobs did {run_dir / 'job.jsonl'}, ends of ranks {run_dir / 'exit'}, "
            f"failed nodes {self._ledger.folder}"
        )

    def _usable(self) -> list[str]:
        return [node for node in self._job.nodes if node not in self._sick]

    def _check(self) -> str:
        """Checks the nodes that could be used; what is wrong without a node being to blame is returned."""
        unusable = self._slurm.unusable(self._usable())
        # Slurm gives these to nobody by itself: excluded they would be missing once they are mended.
        self._kept_out |= unusable.keys()
        for node, reason in unusable.items():
            self._leave_out(node, reason, by_slurm=True)
        if self._settings.preflight == "off":
            return ""
        self._say(f"checks {','.join(self._usable())}")
        folder = self._run_dir / "logs" / f"checks-{self._job.job_id}-{time.time_ns()}"
        mounts = (self._root, self._run_dir, Path.cwd())
        checks = Checks(self._job, self._settings, folder, mounts, self._is_asked)
        found = checks.check_nodes(self._usable())
        if not self._is_asked():
            # Of one node alone it cannot be told whether it or the environment is broken.
            self._blame(found.sick, remember=len(self._usable()) > 1)
        if found.unclear:
            return "; ".join(found.unclear)
        between = None
        if self._settings.preflight == "full" and not self._is_asked() and len(self._usable()) >= self._needed:
            between = checks.check_connections(self._usable())
            self._blame(between.sick)
        for warning in (*found.warnings, *(between.warnings if between else ())):
            self._say(f"warning: {warning}")
        if between is not None and between.bandwidth_gb_s is not None:
            self._say(f"the nodes reach each other at {between.bandwidth_gb_s:.3g} GB/s (bus bandwidth)")
        if between is None:
            return ""
        if between.suspects:
            self._suspect(between.suspects, between.unclear[0])
        return "; ".join(between.unclear)

    def _suspect(self, nodes: Sequence[str], problem: str) -> None:
        """Does without one of several nodes that fail together; the next start, with another, will tell more."""
        groups = [*self._journal.suspicions(), tuple(nodes)]
        suspect, self._acquitted = choose_suspect(groups)
        self._journal.write("suspicion", nodes=nodes, suspect=suspect, cleared=sorted(self._acquitted))
        self._excluded = {node: reason for node, reason in self._excluded.items() if node not in self._acquitted}
        self._blame({suspect: f"{problem}, and it cannot be told which is to blame"}, remember=False)

    def _is_asked(self) -> bool:
        return self._requests.asked() is not Asked.NOBODY

    def _blame(self, sick: Mapping[str, str], remember: bool = True) -> None:
        new = {node: reason for node, reason in sick.items() if node not in self._sick}
        self._excluded |= new
        for node, reason in new.items():
            self._leave_out(node, reason)
            if not remember or self._has_too_many():
                continue
            try:
                self._ledger.record(Failure(node, time.time(), self._job.job_id, reason))
            except OSError as error:
                self._say(f"warning: {self._ledger.folder} cannot be written: {error.strerror}")
            if self._settings.drain_nodes and self._slurm.drain(node, f"job {self._job.job_id}: {reason}"):
                self._kept_out.add(node)
                self._say(f"node {node} is drained: scontrol update NodeName={node} State=RESUME takes it back")

    def _leave_out(self, node: str, reason: str, by_slurm: bool = False) -> None:
        self._sick[node] = reason
        self._say(f"node {node} is not used: {reason}")
        self._journal.write("sick_node", node=node, reason=reason, by_slurm=by_slurm)

    def _without_launch(self, problem: str) -> Situation:
        reason = problem or "; ".join(f"{node}: {why}" for node, why in self._sick.items()) or "the checks were left"
        if self._requests.asked() in (Asked.NOBODY, Asked.TIME_LIMIT):
            self._journal.write("fruitless_start", reason=reason)
        return self._situation(None, reason, self._sick, fruitless_starts=self._journal.fruitless_starts())

    def _launch(self, usable: Sequence[str]) -> Situation:
        number = claim_log_dir(self._run_dir, self._journal.launches() + 1)
        nodes, spares = list(usable[: self._needed]), list(usable[self._needed :])
        saved_step, known = self._journal.saved_step(), set(self._sick)
        self._journal.write("launch", launch=number, nodes=nodes, spares=spares, saved_step=saved_step)
        launch = Launch(number, self._job, self._settings, self._run_dir, self._root, nodes, self._arguments)
        waiting = f", {','.join(spares)} in reserve" if spares else ""
        self._say(f"launch {number} on {','.join(nodes)}{waiting}, from step {saved_step}; logs {launch.log_dir}")
        outcome = launch.run(self._requests, self._slurm)
        asked = self._requests.look()
        new_step = self._journal.saved_step()
        self._journal.write(
            "launch_end",
            launch=number,
            verdict=outcome.verdict,
            reason=outcome.reason,
            was_asked=asked not in (Asked.NOBODY, Asked.TIME_LIMIT),
            saved_step=new_step,
        )
        self._explain(outcome)
        self._blame(launch.as_nodes(outcome.sick))
        without = self._journal.without_progress(new_step)
        if new_step > saved_step:
            self._crashes_here = 0
        elif outcome.verdict in (Verdict.CRASH, Verdict.HANG):
            self._crashes_here += 1
        sick = {node: why for node, why in self._sick.items() if node not in known}
        situation = self._situation(outcome.verdict, outcome.reason, sick, progressed=new_step > saved_step)
        return replace(situation, asked=asked, without_progress=without)

    def _situation(
        self,
        verdict: Verdict | None,
        reason: str,
        sick: Mapping[str, str],
        progressed: bool = False,
        fruitless_starts: int = 0,
    ) -> Situation:
        return Situation(
            verdict=verdict,
            reason=reason,
            asked=self._requests.asked(),
            sick=dict(sick),
            healthy=len(self._usable()),
            needed=self._needed,
            excluded=self._excluded,
            most_excluded=self._most_excluded,
            progressed=progressed,
            crashes_here=self._crashes_here,
            fruitless_starts=fruitless_starts,
            crash_limit=self._settings.crash_limit,
            backoff_s=self._settings.backoff_s,
        )

    def _explain(self, outcome: Outcome) -> None:
        self._say(f"the launch ended: {outcome.verdict}: {outcome.reason}")
        if outcome.log is not None and outcome.verdict in (Verdict.CRASH, Verdict.SICK_NODE, Verdict.HANG):
            self._say(f"the last lines of {outcome.log}:")
            for line in quote(outcome.log):
                self._say(f"  | {line}")

    def _carry_out(self, action: Action) -> None:
        excluded = self._to_exclude()
        self._journal.write(
            "decision",
            action=action.kind,
            reason=action.reason,
            delay_s=action.delay_s,
            excluded=excluded if action.kind is Kind.REQUEUE else [],
        )
        without = f", without {','.join(excluded)}" if excluded and action.kind is Kind.REQUEUE else ""
        delay = f" in {action.delay_s:.0f} s" if action.delay_s else ""
        self._say(f"{action.kind}{delay}{without}: {action.reason}")
        if action.kind is Kind.STOP and action.code == EXIT_CODES[Verdict.GAVE_UP]:
            self._summarize()

    def _summarize(self) -> None:
        """After a crash loop: what was tried."""
        for line in self._journal.history():
            self._say(f"  {line}")

    def _end(self, action: Action) -> int:
        if action.kind is Kind.LEAVE:
            return action.code
        if action.kind is Kind.STOP:
            run_hook(self._settings.on_end, action.code, action.reason)
            return action.code
        before = set(self._job.excluded) - self._acquitted - self._forgiven
        excluded = sorted({*before, *self._to_exclude()})
        code = EXIT_CODES[Verdict.REQUEUE]
        if not self._slurm.requeue(self._job.queue_name, excluded, action.delay_s, self._insist_s()):
            reason = "Slurm does not take the job back; type the same sbatch command again"
            self._say(reason)
            run_hook(self._settings.on_end, code, reason)
        return code

    def _has_too_many(self) -> bool:
        """Whether more nodes were to be left out than may be: what is wrong with so many is not theirs."""
        return len(self._excluded) > self._most_excluded

    def _to_exclude(self) -> list[str]:
        """The nodes that Slurm shall not give again; none where they are too many, which ends the next start."""
        if self._has_too_many():
            return []
        return [node for node in self._sick if node not in self._kept_out]

    def _insist_s(self) -> float:
        """How long Slurm is asked to take the job back: it may be away for a while, and the job has its time."""
        left_s = _LONGEST_ABSENCE_S if self._job.end_s is None else self._job.end_s - time.time() - 5
        return max(20.0, min(_LONGEST_ABSENCE_S, left_s))

    def _say(self, text: str) -> None:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        print(f"{stamp} scaletrain: {text}", file=sys.stderr, flush=True)

"""Looks after a rank that is late: a process that its keeper starts, and that may wait for storage where it may not.

It ends without a word where the rank moves on. Otherwise it takes part in a report, and prints how the rank is to end.
``python -S -E -m scaletrain.launch.hang.examiner TASK``, by ``watch``.
"""

import contextlib
import json
import os
import signal
import sys
import time
import traceback
from dataclasses import replace
from typing import Any

from scaletrain.launch.attempts import RankProcess
from scaletrain.launch.events import append_event
from scaletrain.launch.hang.blame import Judgement, judge
from scaletrain.launch.hang.evidence import (
    MOVING,
    Evidence,
    describe_process,
    kernel_place,
    stacks_of_all,
    watch_for_a_moment,
    workers_that_stand,
)
from scaletrain.launch.hang.flight_recorder import take_dump
from scaletrain.launch.hang.heartbeat import Beat, HeartbeatReader, Phase
from scaletrain.launch.hang.limits import StandingStill, Watched
from scaletrain.launch.hang.report import (
    Begun,
    add_evidence,
    attempt_to_join,
    begin_report,
    find_report,
    host_of_ranks,
    read_conclusion,
    read_evidence,
    read_gone,
    write_report,
)
from scaletrain.launch.processes import descendants, kill
from scaletrain.launch.verdicts import Ending, Verdict
from scaletrain.lifetime import end_with

_TICK_S = 0.25
_LOOK_S = 2.0
_PER_RANK_S = 0.01  # a thousand of these must not keep a file server busy
COLLECT_S = 60.0
"""Time in which all keepers must have told what they found, and 20 ms more for each rank."""
_MARGIN_S = 15.0  # for who concludes
_CLOCKS_S = 2.0  # by which the machines' clocks may differ
_FALLEN_S = 5.0  # time in which the ranks that wait for one that has ended may end by themselves


class Examiner:
    """Looks after one rank.

    Args:
        rank: The rank.
        watched: How to see it, and the limits.
        seconds: For how long it has been in its phase.
        collect_s: Time for all keepers to tell what they found.
    """

    def __init__(
        self,
        rank: RankProcess,
        watched: Watched,
        seconds: float,
        collect_s: float = COLLECT_S,
    ) -> None:
        self._rank_process, self._watched = rank, watched
        self._run_dir, self._rank, self._process = rank.run_dir, rank.rank, rank.process
        self._reader = HeartbeatReader(watched.heartbeat)
        self._first = self._reader.read()
        self._still = StandingStill(self._reader, 4 * _TICK_S, seconds)
        self._collect_s = collect_s + 2 * _PER_RANK_S * watched.world_size
        self._attempt: int | None = None
        self._fallen_s: float | None = None

    def examine(self) -> Ending | None:
        """How the rank is to end; None where it has moved on or ended by itself."""
        every_s = min(_LOOK_S, self._watched.limits.late_s / 2) + _PER_RANK_S * self._watched.world_size
        next_look_s = 0.0
        while True:
            now_s = time.monotonic()
            beat, seconds = self._still.look(now_s)
            if beat.marks != self._first.marks or not self._process.is_alive():
                return None
            if now_s >= next_look_s:
                next_look_s = now_s + every_s
                if (begun := self._find_report()) is not None:
                    return self._take_part(begun, beat, seconds)
                if self._waits_for_a_fallen(beat, seconds, now_s):
                    return self._begin("a rank has ended, and this one does not move on", beat, seconds)
            limit_s = self._limit_s(beat.phase)
            if seconds >= limit_s:
                because = f"{seconds:.0f} s in {beat.phase.label} of step {beat.step}, more than {limit_s:.0f} s"
                return self._begin(because, beat, seconds)
            time.sleep(_TICK_S)

    def _limit_s(self, phase: Phase) -> float:
        return self._watched.limits.of(self._reader.longest_s(phase))

    def _find_report(self) -> Begun | None:
        if self._attempt is None:
            found = self._rank_process.attempt()
            self._attempt = attempt_to_join(self._run_dir, self._rank) if found is None else found
        return None if self._attempt is None else find_report(self._run_dir, self._attempt)

    def _waits_for_a_fallen(self, beat: Beat, seconds: float, now_s: float) -> bool:
        """Whether another rank has ended, and this one has been in its phase for longer than ever."""
        if (
            self._attempt is None
            or beat.phase in (Phase.END, Phase.ERROR)
            or seconds <= self._reader.longest_s(beat.phase)
        ):
            return False
        if not read_gone(self._run_dir, self._attempt):
            return False
        self._fallen_s = self._fallen_s or now_s
        return now_s - self._fallen_s >= _FALLEN_S

    def _begin(self, because: str, beat: Beat, seconds: float) -> Ending:
        if self._attempt is None:  # nobody can be told, and nobody asks
            return Ending(Verdict.HANG, f"hang of rank {self._rank} before it had joined the run: {because}")
        try:
            begun = begin_report(self._run_dir, self._attempt, beat.step, self._rank, because)
        except OSError as error:
            return Ending(
                Verdict.HANG, f"hang of rank {self._rank}: {because}; no report can be written: {error.strerror}"
            )
        return self._take_part(begun, beat, seconds)

    def _take_part(self, begun: Begun, beat: Beat, seconds: float) -> Ending:
        print("reporting", flush=True)
        deadline_s = time.monotonic() + self._collect_s
        moved_on = time.time() - seconds > begun.time_s + _CLOCKS_S
        evidence, stacks = self._look_closely(beat, seconds, moved_on)
        if self._reader.read().marks != beat.marks:
            evidence = replace(evidence, state=MOVING, collective="", moved_on=True)
        if self._watched.dumps:
            stacks += self._dump_collectives(begun)
        if self._watched.world_size > 1:
            # It stands still until it is ended: of the ranks that end first the others would see errors, and say
            # that those had been what was wrong.
            kill(self._process, signal.SIGSTOP)
        hang = f"hang of rank {begun.by}: {begun.because}"
        try:
            add_evidence(begun.folder, evidence, stacks)
            if begun.by == self._rank:
                self._conclude(begun, evidence, deadline_s)
        except OSError as error:
            return Ending(Verdict.HANG, f"{hang}; no report can be written: {error.strerror}")
        while (found := read_conclusion(begun.folder)) is None:
            if time.monotonic() > deadline_s + _MARGIN_S:
                return Ending(Verdict.HANG, f"{hang}; its keeper has not concluded the report")
            time.sleep(_TICK_S)
        return Ending(found.verdict, f"{found.conclusion}; see hang/{begun.folder.name}/report.md", found.hosts)

    def _look_closely(self, beat: Beat, seconds: float, moved_on: bool) -> tuple[Evidence, str]:
        pid, watched = self._process.pid, self._watched
        workers = descendants(pid)
        seen, *of_workers = watch_for_a_moment([pid, *(worker.pid for worker in workers)])
        place = kernel_place(pid)
        own, others = stacks_of_all(self._process, workers, watched.py_spy, watched.stacks)
        collective = next((thread.collective for thread in own.threads if thread.collective), "")
        evidence = Evidence(
            self._rank,
            os.uname().nodename,
            watched.gpu,
            pid,
            beat.step,
            int(beat.phase),
            beat.ordinal,
            beat.micro_step,
            round(seconds, 3),
            round(self._limit_s(beat.phase), 3),
            seen.state,
            round(seen.cpu_share, 3),
            collective,
            bool(own.threads),
            place,
            moved_on,
            workers_that_stand({worker.pid: one for worker, one in zip(workers, of_workers, strict=True)}),
        )
        texts = [describe_process(pid), str(own)]
        for worker in workers:
            texts += ["", describe_process(worker.pid), str(others.get(worker.pid, "(no stacks: not looked at)"))]
        return evidence, "\n".join(texts) + "\n"

    def _dump_collectives(self, begun: Begun) -> str:
        try:
            why = take_dump(self._watched.dumps, self._rank, begun.folder / "collectives")
        except OSError as error:
            why = f"it cannot be copied: {error.strerror}"
        return f"\nflight recorder: {why or 'see collectives/'}\n"

    def _conclude(self, begun: Begun, own: Evidence, deadline_s: float) -> None:
        assert self._attempt is not None  # a report belongs to one
        world_size = self._watched.world_size
        while True:
            seen, gone = read_evidence(begun.folder), read_gone(self._run_dir, self._attempt)
            if len(seen.keys() | gone.keys()) >= world_size or time.monotonic() > deadline_s:
                break
            time.sleep(_TICK_S + _PER_RANK_S * world_size)
        seen = {rank: one for rank, one in seen.items() if rank not in gone} or {self._rank: own}
        judgement = judge(seen, gone, world_size, host_of_ranks(self._run_dir, self._attempt))
        write_report(begun, self._attempt, judgement, seen, gone)
        self._record(begun, own, judgement)

    def _record(self, begun: Begun, own: Evidence, judgement: Judgement) -> None:
        with contextlib.suppress(OSError):
            append_event(
                self._run_dir / "events.jsonl",
                "hang",
                attempt=self._attempt,
                step=own.step,
                folder=begun.folder.name,
                reason=judgement.conclusion,
                ranks=list(judgement.blamed),
                hosts=list(judgement.hosts),
            )


def main(task: dict[str, Any]) -> None:
    """Examines, and prints the end as JSON.

    Args:
        task: What ``watch`` says.
    """
    end_with(task["keeper"])
    examiner = Examiner(
        RankProcess.from_json(task["rank"]),
        Watched.from_json(task["heartbeat"]),
        task["seconds"],
    )
    ending = examiner.examine()
    if ending is not None:
        told = {"verdict": ending.verdict.value, "reason": ending.reason, "hosts": ending.hosts}
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    told = json.loads(sys.argv[1])
    try:
        main(told)
    except Exception:
        # Nobody reads its standard error: what went wrong stands with the run's other logs.
        rank = RankProcess.from_json(told["rank"])
        logs = rank.run_dir / "logs"
        logs.mkdir(exist_ok=True)
        (logs / f"hang-{rank.rank}.log").write_text(traceback.format_exc())
        sys.exit(1)

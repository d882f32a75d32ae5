"""The keeper: a small process that watches one rank and its launchers. See ``keeper.start_keeper``.

It imports little and holds no thread, so that nothing of what goes wrong in a rank can go wrong here.
"""

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import stat
import sys
import time
import traceback
from typing import Any

from scaletrain.launch.attempts import RankProcess
from scaletrain.launch.events import append_event
from scaletrain.launch.hang.limits import Watched
from scaletrain.launch.hang.watch import HangWatch
from scaletrain.launch.heartbeat import REFRESH_S, refresh_lease
from scaletrain.launch.processes import Process, ProcessEnd, descendants, kill
from scaletrain.launch.siblings import Siblings
from scaletrain.launch.verdicts import Ending, Verdict, verdict_path, write_verdict

_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_REQUESTS = {Verdict.STOPPED: signal.SIGINT, Verdict.REQUEUE: signal.SIGTERM}
_PIDFD_GETFD = 438  # from <asm-generic/unistd.h>: the same on all machines
_TICK_S = 2.0  # how often the rank's children are listed: after its end they could no longer be found
_LEFT_BEHIND_S = 2.0  # time in which children of a rank that has ended may end by themselves
_LAUNCHER_MARGIN_S = 5.0  # time for a launcher to notice that its ranks have ended


class Keeper:
    """Watches one rank until it has ended, and settles what it left.

    Args:
        rank_process: The rank.
        launchers: The launchers above it, the nearest first.
        grace_s: Seconds between SIGUSR1 and SIGKILL when the outermost launcher is gone; twice the time for which the
            rank may wait for a sibling that is gone.
        end_s: When the rank is killed, in Unix seconds; None for never.
        sockets: Folder for the sockets of the rank's children, which goes with them.
        hangs: Watches the rank's heartbeat; None where nobody does.
    """

    def __init__(
        self,
        rank_process: RankProcess,
        launchers: list[Process],
        grace_s: float,
        end_s: float | None,
        sockets: str,
        hangs: HangWatch | None = None,
    ) -> None:
        self._rank_process = rank_process
        self._run_dir, self._rank, self._process = rank_process.run_dir, rank_process.rank, rank_process.process
        self._end = ProcessEnd(self._process)
        self._launchers = launchers
        self._grace_s = grace_s
        self._end_s, self._sockets = end_s, sockets
        self._hangs = hangs
        self._children: set[Process] = set()
        self._refreshed_s = float("-inf")
        self._siblings = Siblings(rank_process, grace_s / 2)
        self._fallen: Ending | None = None
        self._ending: Ending | None = None
        self._gone_launcher = ""

    def watch(self) -> None:
        """Returns when the rank has ended and everything is settled."""
        while (
            self._time_left_s() > 0
            and self._fallen is None
            and not self._wait([self._process, *self._launchers], min(_TICK_S, self._time_left_s()))
        ):
            self.look_around()
            self._fallen = self._siblings.fallen() or (self._hangs.look(time.monotonic()) if self._hangs else None)
        gone = next((launcher for launcher in self._launchers if not launcher.is_alive()), None)
        if gone is not None:
            self._gone_launcher = f"its launcher (process {gone.pid}) ended, and it was ended with it"
            if self._process.is_alive():
                self._end_rank()
        elif self._process.is_alive():
            late = "the job is about to end (train.exit_by_s), and the rank had not ended by itself"
            self._end_for(self._fallen or Ending(Verdict.REQUEUE, late))
        if self._hangs is not None and (hang := self._hangs.settle()) is not None:
            # Somebody was quicker to end it than its keeper, such as the launcher of a rank that was ended first.
            self._ending = hang
        manner = self._end.signal_or_code()
        try:
            self._write_verdict(manner)
        finally:
            self._clear_away(self._children, _LEFT_BEHIND_S)
            shutil.rmtree(self._sockets, ignore_errors=True)

    def _time_left_s(self) -> float:
        return float("inf") if self._end_s is None else self._end_s - time.time()

    def look_around(self) -> None:
        """Notes the rank's children, and refreshes the lease when it is time."""
        self._children = {child for child in self._children if child.is_alive()}
        self._children.update(child for child in descendants(self._process.pid) if child.pid != os.getpid())
        if time.monotonic() - self._refreshed_s >= REFRESH_S:
            refresh_lease(self._run_dir, self._process)
            self._refreshed_s = time.monotonic()

    def _end_for(self, ending: Ending) -> None:
        """Ends a rank that hangs, is too late, or waits for a sibling that is gone, with a word in its log."""
        self._ending = ending
        self.look_around()
        log = open_stderr(self._process)
        if self._fallen is not None and ending.verdict in _REQUESTS:
            # Before the first step a rank that is asked gives back what it holds, within seconds.
            kill(self._process, _REQUESTS[ending.verdict])
            self._wait([self._process], _LAUNCHER_MARGIN_S)
        kill(self._process, signal.SIGKILL)
        if log is not None:
            with contextlib.suppress(OSError):
                os.write(log, f"ended by its keeper: rank {self._rank}: {ending.reason}\n".encode())
            os.close(log)
        self._wait([self._process], _LAUNCHER_MARGIN_S)

    def _end_rank(self) -> None:
        self.look_around()
        nearest, *outer = self._launchers
        deadline_s = time.monotonic() + self._grace_s
        if outer and nearest.is_alive():
            # Not SIGTERM: a launcher sends that as well, and the same signal twice would cut the save short.
            kill(self._process, signal.SIGUSR1)
            while time.monotonic() < deadline_s and not self._wait([self._process, nearest], _TICK_S):
                self.look_around()
        kill(self._process, signal.SIGKILL)
        self._wait([self._process], _LAUNCHER_MARGIN_S)
        # Not before the grace of its other ranks has passed: they die with it.
        self._wait([nearest], max(0.0, deadline_s - time.monotonic()) + _LAUNCHER_MARGIN_S)
        self._clear_away(set(self._launchers), 0.0)

    def _write_verdict(self, manner: str | None) -> None:
        if not self._run_dir.is_dir():
            return  # somebody has deleted the run: it must not come to life again as an empty folder
        attempt = self._rank_process.attempt()
        unclaimed = verdict_path(self._run_dir, None, self._rank, self._process.pid)
        if unclaimed.exists() or verdict_path(self._run_dir, attempt, self._rank, self._process.pid).exists():
            return
        ending = self._ending or Ending(Verdict.CRASH, self._how_it_crashed(manner))
        facts: dict[str, Any] = {"written_by": "keeper", "manner": manner}
        if ending.hosts:
            facts["hosts"] = ending.hosts
        write_verdict(self._run_dir, attempt, self._rank, ending.verdict, ending.reason, pid=self._process.pid, **facts)
        append_event(
            self._run_dir / "events.jsonl",
            "exit",
            rank=self._rank,
            attempt=attempt,
            verdict=ending.verdict.value,
            reason=ending.reason,
        )

    def _how_it_crashed(self, manner: str | None) -> str:
        how = f"ended by {manner}" if manner else "ended"
        where = f", in {self._hangs.place}" if self._hangs is not None else ""
        return "; ".join(part for part in (self._gone_launcher, f"{how} without a verdict{where}") if part)

    def _clear_away(self, processes: set[Process], patience_s: float) -> None:
        deadline_s = time.monotonic() + patience_s
        while any(process.is_alive() for process in processes) and time.monotonic() < deadline_s:
            time.sleep(0.1)
        for process in processes:
            kill(process, signal.SIGKILL)

    def _wait(self, processes: list[Process], timeout_s: float) -> bool:
        """Whether one of the processes has ended, after waiting for that at most this long."""
        poller = select.poll()
        descriptors = []
        try:
            for process in processes:
                try:
                    descriptor = os.pidfd_open(process.pid)
                except ProcessLookupError:
                    return True
                descriptors.append(descriptor)
                poller.register(descriptor, select.POLLIN)
                if not process.is_alive():  # also true for another process that has got the number
                    return True
            return bool(poller.poll(timeout_s * 1000))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)


def open_stderr(process: Process) -> int | None:
    """The standard error of another process, in a way that can never wait for a reader.

    Args:
        process: It has to live.

    Returns:
        A descriptor to be closed; None where there is none. Of a file it has the place in common with all that write to
        it, as long as the kernel allows that (pidfd_getfd(2)): who writes next does not write over what is told there.
    """
    with contextlib.suppress(OSError):
        if stat.S_ISREG(os.stat(f"/proc/{process.pid}/fd/2").st_mode):
            handle = os.pidfd_open(process.pid)
            try:
                shared: int = ctypes.CDLL(None).syscall(_PIDFD_GETFD, handle, 2, 0)
            finally:
                os.close(handle)
            if shared >= 0:
                return shared
    flags = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        return os.open(f"/proc/{process.pid}/fd/2", flags)
    except OSError:
        return None


def main(task: dict[str, Any]) -> None:
    """Runs a keeper until its rank has ended.

    Args:
        task: What ``start_keeper`` says: where, whom, and whose launchers.
    """
    if os.fork():
        os._exit(0)  # the child is nobody's child now: no launcher finds it in a process tree
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    os.chdir("/")
    rank_process = RankProcess.from_json(task["rank"])
    keeper = Keeper(
        rank_process,
        [Process(**launcher) for launcher in task["launchers"]],
        task["grace_s"],
        task["end_s"],
        task["sockets"],
        HangWatch(Watched.from_json(task["heartbeat"]), rank_process) if task["heartbeat"] else None,
    )
    keeper.look_around()
    print(os.getpid(), flush=True)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    try:
        keeper.watch()
    except Exception:
        # Nobody reads a keeper's standard error: what went wrong stands with the run's other logs.
        logs = rank_process.run_dir / "logs"
        logs.mkdir(exist_ok=True)
        (logs / f"keeper-{rank_process.rank}.log").write_text(traceback.format_exc())


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

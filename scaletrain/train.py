"""Pretrains a model: ``deepspeed scaletrain/train.py [--config FILE] [--key VALUE ...]``."""

import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from scaletrain import log
from scaletrain.config.command_line import parse
from scaletrain.config.derive import check
from scaletrain.config.help import help_text
from scaletrain.config.load import dump_yaml, load_config
from scaletrain.config.schema import RunConfig
from scaletrain.errors import ConfigError, DataError, ScaletrainError, UnreachableError
from scaletrain.hardware.rules import load_both_rules
from scaletrain.launch.deadline import SLURM_VARIABLE, hard_end_s, is_stale
from scaletrain.launch.endings import end_at_once, let_go_of_streams, record_ending, say
from scaletrain.launch.events import append_event
from scaletrain.launch.hang.heartbeat import Heartbeat
from scaletrain.launch.hang.start import limits_of, watch_this_process
from scaletrain.launch.keeper import start_keeper
from scaletrain.launch.processes import die_with_launcher
from scaletrain.launch.run_dir import RunDirectory
from scaletrain.launch.signal_thread import ENDING_SIGNALS, SignalThread
from scaletrain.launch.verdicts import EXIT_CODES, Ending, Verdict, verdict_of
from scaletrain.ranks import Ranks, from_environment

logger = logging.getLogger("scaletrain.train")

_LEAVE_S = 2.0
"""Time for the main thread to end by itself where a signal comes before the first step."""


def main(argv: Sequence[str], needs_init: bool = False) -> int:
    """Runs the command.

    Args:
        argv: Arguments without the program's name.
        needs_init: Whether the run must be told whose weights it begins with.

    Returns:
        The exit code of the verdict.
    """
    die_with_launcher()
    # Whoever started this rank may have blocked them for a launcher in between, which would kill its ranks soon after.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (*ENDING_SIGNALS, signal.SIGQUIT))
    ranks = from_environment()
    log.configure(ranks)
    overrides: dict[str, str] = {}
    try:
        command = parse(argv)
        overrides = command.overrides
        if command.help:
            print(help_text())
            return 0
        config = load_config(command.config, overrides)
        check(config)
        if config.monitor.health.rules is not None:
            load_both_rules(config.monitor.health.rules)
        if needs_init and config.init is None:
            raise ConfigError(
                "--init is missing: name the run, the checkpoint or the folder of tools/convert.py from_hf whose "
                "weights are to be fine-tuned, as --init runs/pretrain"
            )
        if command.dry_run:
            return _dry_run(config, ranks)
    except ScaletrainError as error:
        log.redirect(ranks, os.environ)
        # A folder is not made for a typing mistake, but a launch, or an existing run, gets its verdict.
        if "run_dir" in overrides and ("RANK" in os.environ or Path(overrides["run_dir"]).is_dir()):
            record_ending(RunDirectory(Path(overrides["run_dir"])), None, ranks, Ending(Verdict.USER_ERROR, str(error)))
        _complain(error, ranks)
        return EXIT_CODES[verdict_of(error)]  # what --dry_run cannot reach now may be there later
    log.redirect(ranks, os.environ)  # not before: the help and a plan are for whoever asked for them
    return _run(config, ranks, command.trust_checkpoint)


def _dry_run(config: RunConfig, ranks: Ranks) -> int:
    from scaletrain.training.dry_run import print_plan

    print_plan(config, ranks.world_size)
    return 0


def _run(config: RunConfig, ranks: Ranks, trust_checkpoint: bool) -> int:
    folder = RunDirectory(config.run_dir)
    attempt: int | None = None

    def leave_stuck(number: int) -> None:
        # The main thread may import a library or wait for its peers, where no exception reaches it.
        time.sleep(_LEAVE_S)
        end_at_once(folder, attempt, ranks, _asked_by(number))

    try:
        for number in ENDING_SIGNALS:
            signal.signal(number, _leave)
        SignalThread(leave_stuck)
        end_s = _hard_end_s(config.train.exit_by_s, ranks)
        heartbeat = _start_watched(config, ranks, end_s)
        from scaletrain.training.corpus import EventReport, bind_folder, open_corpora

        if ranks.is_main:
            attempt = folder.claim()
        corpora = open_corpora(config, EventReport(folder.events, ranks.rank), ranks.local_world_size)
        if ranks.is_main:
            for change in bind_folder(folder, config, corpora):
                append_event(folder.events, "change", attempt=attempt, what=change)
                logger.info("changed since the last start: %s", change)
            folder.describe(dump_yaml(config))
        # Only now torch and then deepspeed are imported: a mistake is told before they are.
        from scaletrain.training.processes import connect, disconnect, naming_the_limit, share_attempt

        with naming_the_limit(config.train.collective_timeout_s):
            connect(ranks, config.train.deterministic, config.train.collective_timeout_s)
            attempt = share_attempt(attempt)
            folder.join(attempt, ranks.rank)
            from scaletrain.training.run import Start, train

            ending = train(config, corpora, folder, Start(attempt, end_s, trust_checkpoint, heartbeat), ranks)
    except BaseException as error:
        ending = Ending.of_error(error)
        # First of all: words may fail, where nobody reads them any more or the disk of a log is full.
        record_ending(folder, attempt, ranks, ending)
        if isinstance(error, ScaletrainError):
            _complain(error, ranks, is_alone=attempt is None)
        elif isinstance(error, SystemExit):
            logger.info("ends before the first step: %s", ending.reason)
        else:
            say("".join(traceback.format_exception(error)).rstrip())
    else:
        record_ending(folder, attempt, ranks, ending)
        disconnect()
    for number in ENDING_SIGNALS:
        # The interpreter takes its handlers back before it is gone: a late signal would change the exit code.
        signal.signal(number, signal.SIG_IGN)
    return EXIT_CODES[ending.verdict]


def _start_watched(config: RunConfig, ranks: Ranks, end_s: float | None) -> Heartbeat:
    """Starts the keeper of this rank, and makes the heartbeat by which it sees whether the rank hangs."""
    hang = config.monitor.hang
    if not hang.enabled:
        start_keeper(config.run_dir, ranks.rank, end_s=end_s)
        return Heartbeat()
    limits = limits_of(hang.factor, hang.first_limit_s, hang.min_limit_s, config.train.collective_timeout_s)
    heartbeat, watched = watch_this_process(limits, ranks, os.environ)
    start_keeper(config.run_dir, ranks.rank, end_s=end_s, watched=watched)
    return heartbeat


def _hard_end_s(exit_by_s: float, ranks: Ranks) -> float | None:
    """When this rank will be ended; a job that ends before anything can be trained gets its verdict now."""
    now_s = time.time()
    end_s = hard_end_s(os.environ, exit_by_s, now_s)
    if exit_by_s and ranks.is_main and is_stale(os.environ, now_s):
        stale = f"{SLURM_VARIABLE}={os.environ[SLURM_VARIABLE]}"
        logger.warning("%s is over, and so of another job: this run ends at no certain time", stale)
    if end_s is not None and end_s <= now_s:
        leaving = SystemExit(EXIT_CODES[Verdict.REQUEUE])
        left_s = end_s + exit_by_s - now_s
        leaving.add_note(f"the job ends in {left_s:.0f} s, and train.exit_by_s = {exit_by_s:g} leaves no time")
        raise leaving
    return end_s


def _leave(number: int, frame: FrameType | None) -> None:
    """Asked to end before the loop listens: nothing is trained yet, so nothing needs saving."""
    for other in ENDING_SIGNALS:
        # The launcher's, after the terminal's, must not cut the last words short.
        signal.signal(other, lambda number, frame: None)
    asked = _asked_by(number)
    leaving = SystemExit(EXIT_CODES[asked.verdict])
    leaving.add_note(asked.reason)
    raise leaving


def _asked_by(number: int) -> Ending:
    verdict = Verdict.STOPPED if number == signal.SIGINT else Verdict.REQUEUE
    return Ending(verdict, f"{signal.Signals(number).name} before the first step")


def _complain(error: ScaletrainError, ranks: Ranks, is_alone: bool = False) -> None:
    """Prints a user's mistake. Every rank finds the same one in configuration and data, so a node says it once.

    What a network did to a rank before it was connected to the others only this rank can tell.
    """
    is_shared = isinstance(error, ConfigError | DataError) and not (is_alone and isinstance(error, UnreachableError))
    if ranks.local_rank == 0 or not is_shared:
        say(f"error: {error}")


if __name__ == "__main__":
    code = main(sys.argv[1:])
    let_go_of_streams()
    sys.exit(code)

"""How a run stands now, from the ends of its files: cheap enough to be asked every two seconds."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from scaletrain.errors import ConfigError
from scaletrain.launch.attempts import attempt_numbers
from scaletrain.launch.events import read_events
from scaletrain.launch.heartbeat import lease_path, read_lease
from scaletrain.launch.lease import is_alive
from scaletrain.launch.verdicts import UNCLAIMED, read_verdict
from scaletrain.monitors import names

_TAIL_BYTES = 256 * 1024
_STALLED_STEPS = 5
_LEAST_STALL_S = 60.0
_SHOWN_STARTS = 3
_GONE_WRONG = ("crash", "user_error", "gave_up", "sick_node", "hang")


@dataclass(frozen=True)
class Save:
    """The last checkpoint on the shared place.

    Attributes:
        step: Its step.
        time_s: When it was complete, in Unix seconds.
        size_bytes: Its size; None where it was not recorded.
    """

    step: int
    time_s: float
    size_bytes: int | None


@dataclass(frozen=True)
class Status:
    """How a run stands.

    Attributes:
        run_dir: Its folder.
        state: ``running``, a verdict, or ``not started``.
        step: Steps done; 0 before the first.
        max_steps: Steps of the whole run; None where its configuration cannot be read.
        tokens: Inputs consumed; None where it is not known.
        loss: Training loss of the last step, in nats.
        eval_loss: Last validation loss, with its step.
        lr: Learning rate of the last step.
        tokens_per_s: Speed over the last steps.
        mfu: Model FLOP utilization, 0 to 1.
        step_s: Median duration of the last steps, in seconds.
        last_step_s: When the last step ended, in Unix seconds.
        save: The last checkpoint.
        next_save_step: Step of the next one; None where none is planned before the end.
        time_left_s: Until the end at this speed, in seconds.
        job: What the last job said of itself: ``job_id``, ``job_name``, ``nodes``, ``restart``, ``end_s``.
        starts: The last starts, each with its verdict and the reason.
        warnings: What should worry somebody.
    """

    run_dir: Path
    state: str
    step: int = 0
    max_steps: int | None = None
    tokens: int | None = None
    loss: float | None = None
    eval_loss: tuple[int, float] | None = None
    lr: float | None = None
    tokens_per_s: float | None = None
    mfu: float | None = None
    step_s: float | None = None
    last_step_s: float | None = None
    save: Save | None = None
    next_save_step: int | None = None
    time_left_s: float | None = None
    job: Mapping[str, Any] = field(default_factory=dict)
    starts: tuple[tuple[int, str, str], ...] = ()
    warnings: tuple[str, ...] = ()


def read_status(run_dir: Path, now_s: float | None = None) -> Status:
    """Reads how a run stands; whatever is missing or torn is left out.

    Args:
        run_dir: The run's folder.
        now_s: The time in Unix seconds; now by default.

    Returns:
        The status.

    Raises:
        ConfigError: It is no run's folder.
    """
    now_s = time.time() if now_s is None else now_s
    events = read_events(run_dir / "events.jsonl")
    jobs = read_events(run_dir / "job.jsonl")
    attempts = attempt_numbers(run_dir)
    if not (events or jobs or attempts or (run_dir / "exit" / UNCLAIMED).is_dir()):
        raise ConfigError(f"--run_dir {run_dir} holds no run: neither events.jsonl nor job.jsonl nor exit/ is there")
    lines = _tail(run_dir / "metrics.jsonl")
    steps = [line for line in lines if names.TRAIN_LOSS in line]
    evaluations = [line for line in lines if isinstance(line.get(names.EVAL_LOSS), float)]
    config = _config(run_dir)
    lease = read_lease(run_dir)
    is_running = lease is not None and is_alive(run_dir, lease)
    starts = _starts(run_dir, attempts, is_running)
    last: Mapping[str, Any] = steps[-1] if steps else {}
    step = int(last.get("step", 0))
    step_s = (
        median(float(line[names.PERF_STEP_TIME_S]) for line in steps[-50:] if names.PERF_STEP_TIME_S in line)
        if steps
        else None
    )
    max_steps, seq_len = config.get("train", {}).get("max_steps"), config.get("train", {}).get("max_seq_len")
    sequences = last.get(names.DATA_SEQUENCES)
    save, every = _save(events), config.get("checkpoint", {}).get("every_steps") or 0
    status = Status(
        run_dir,
        "running" if is_running else starts[-1][1] if starts else "not started",
        step=step,
        max_steps=max_steps,
        tokens=int(sequences * seq_len) if sequences is not None and seq_len else None,
        loss=last.get(names.TRAIN_LOSS),
        eval_loss=(int(evaluations[-1]["step"]), evaluations[-1][names.EVAL_LOSS]) if evaluations else None,
        lr=last.get(names.OPTIM_LR),
        tokens_per_s=last.get(names.PERF_TOKENS_PER_S),
        mfu=last.get(names.PERF_MFU),
        step_s=step_s,
        last_step_s=last.get("time_s"),
        save=save,
        next_save_step=(step // every + 1) * every if every else max_steps,
        time_left_s=(max_steps - step) * step_s if max_steps and step_s and is_running else None,
        job=_job(jobs),
        starts=tuple(starts[-_SHOWN_STARTS:]),
    )
    heartbeat_s = _modified_s(lease_path(run_dir))
    warnings = _warnings(status, events, every, heartbeat_s, now_s)
    return Status(**{**vars(status), "warnings": tuple(warnings)})


def _warnings(
    status: Status, events: Sequence[Mapping[str, Any]], every: int, heartbeat_s: float | None, now_s: float
) -> list[str]:
    found = []
    if status.state == "running" and status.last_step_s and status.step_s:
        silent_s = now_s - status.last_step_s
        if silent_s > max(_LEAST_STALL_S, _STALLED_STEPS * status.step_s):
            found.append(f"no step for {silent_s:.0f} s, where one takes {status.step_s:.3g} s")
    if status.state == "running" and heartbeat_s is not None and now_s - heartbeat_s > 60:
        found.append(f"no heartbeat of its owner for {now_s - heartbeat_s:.0f} s")
    if status.state in _GONE_WRONG and status.starts:
        found.append(f"it ended as {status.state}: {status.starts[-1][2]}")
    if status.save is not None and every and status.step - status.save.step > 2 * every:
        found.append(f"the last checkpoint is {status.step - status.save.step} steps old; one was due every {every}")
    for kind, text in (
        ("save_failed", "saves failed"),
        ("skipped_step", "steps were left out, since they were not finite"),
        ("loss_spike", "high losses"),
        ("rollback", "times it went back"),
        ("transient_fault", "faults of devices that passed"),
        ("skip_shard", "shards were left out"),
        ("ranks_differ", "differences between ranks"),
        ("refused_checkpoint", "checkpoints were refused"),
    ):
        of_kind = [event for event in events if event.get("event") == kind]
        if of_kind:
            last = of_kind[-1]
            where = f" at step {last['step']}" if "step" in last else ""
            found.append(f"{len(of_kind)} {text}, the last one{where}: {last.get('reason', '')}".rstrip(": "))
    return found


def _tail(path: Path) -> list[dict[str, Any]]:
    """The last lines of a file of JSON lines; torn ones are left out."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            begin = max(0, file.tell() - _TAIL_BYTES)
            file.seek(begin)
            lines = file.read().splitlines()[1 if begin else 0 :]
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            found.append(record)
    return found


def _config(run_dir: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load((run_dir / "config.yaml").read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _save(events: Sequence[Mapping[str, Any]]) -> Save | None:
    for event in reversed(events):
        step, time_s, size = event.get("step"), event.get("time_s"), event.get("bytes")
        if event.get("event") == "save" and event.get("tier", "shared") == "shared" and isinstance(step, int):
            return Save(step, float(time_s or math.nan), size if isinstance(size, int) else None)
    return None


def _starts(run_dir: Path, attempts: Sequence[int], is_running: bool) -> list[tuple[int, str, str]]:
    found = []
    for attempt in attempts[-_SHOWN_STARTS:]:
        if is_running and attempt == attempts[-1]:
            found.append((attempt, "running", ""))
            continue
        told = [read_verdict(path) for path in sorted((run_dir / "exit" / str(attempt)).glob("[0-9]*.json"))]
        known = [content for content in told if content is not None]
        # The first that ended wrong: the others of such a start only found it gone.
        wrong = sorted((one for one in known if one["verdict"] in _GONE_WRONG), key=lambda one: one.get("time_s", 0))
        chosen = wrong[0] if wrong else known[0] if known else None
        if chosen is None:
            found.append((attempt, "crash", "no rank left a verdict"))
        else:
            where = f"rank {chosen.get('rank')} on {chosen.get('host')}: " if wrong else ""
            found.append((attempt, str(chosen["verdict"]), f"{where}{chosen.get('reason', '')}"))
    return found


def _job(jobs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The last job of the run, with where it trained last and what it decided last."""
    found: dict[str, Any] = {}
    for event in jobs:
        if event.get("event") == "job_start":
            found = {key: event.get(key) for key in ("job_id", "job_name", "nodes", "restart", "end_s")}
        elif event.get("event") == "launch":
            found |= {"nodes": event.get("nodes"), "spares": event.get("spares"), "launch": event.get("launch")}
        elif event.get("event") == "decision":
            found |= {"action": event.get("action"), "reason": event.get("reason")}
    return found


def _modified_s(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None

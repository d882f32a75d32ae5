"""What a run left behind, and what the run that nothing cut leaves behind."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from scaletrain.checkpoint.fragments import FragmentReader
from scaletrain.checkpoint.layout import STATE
from scaletrain.checkpoint.verify import require_checkpoint
from scaletrain.checkpoint.weights import load_weights
from scaletrain.monitors.jsonl_writer import read_metrics
from tests.chaos.fork_server import ForkServer
from tests.chaos.launching import Setting, start
from tests.integration.runs import TinyRun
from tests.processes import eventually

HASH, LOSS = "data/batch_hash", "train/loss"
MEASURED = (HASH, LOSS, "train/grad_norm", "optim/lr", "eval/loss")
ELASTIC_TOLERANCE = 1e-4
REFERENCE_S = 120.0


@dataclass(frozen=True)
class Outcome:
    """What counts of a run.

    Attributes:
        curve: For each step the metrics that must not depend on what happened to the run.
        tensors: Final weights and moments by kind and name.
    """

    curve: dict[int, dict[str, Any]]
    tensors: dict[str, Tensor]


def read_curve(run_dir: Path) -> dict[int, dict[str, Any]]:
    """Metrics of each step that was trained."""
    rows = (row for row in read_metrics(run_dir / "metrics.jsonl") if LOSS in row)
    return {row["step"]: {name: row.get(name) for name in MEASURED} for row in rows}


def read_outcome(run_dir: Path, step: int) -> Outcome:
    """Reads what a complete run left."""
    checkpoints = run_dir / "checkpoints"
    folder = require_checkpoint(checkpoints, step, "full")
    state = json.loads((folder / STATE).read_text())["engine"]
    reader = FragmentReader(folder, state["zero_stage"])
    tensors = {f"weight of {name}": tensor for name, tensor in load_weights(checkpoints, step).items()}
    for kind in state["moments"]:
        for name, shape in state["shapes"].items():
            moment = reader.read(name, kind, 0, math.prod(shape))
            assert moment is not None
            tensors[f"{kind} of {name}"] = moment
    return Outcome(read_curve(run_dir), tensors)


def deviations(run_dir: Path, max_steps: int, reference: Outcome, is_exact: bool) -> list[str]:
    """What differs from the run that nothing cut.

    Args:
        run_dir: A run that says it is complete.
        max_steps: Where it must have ended.
        reference: The run that nothing cut.
        is_exact: Whether the bits must be the same; otherwise the batches must, and losses within a tolerance.

    Returns:
        Differences in words.
    """
    found = []
    outcome = read_outcome(run_dir, max_steps)
    if list(outcome.curve) != list(reference.curve):
        found.append(f"steps {sorted(set(reference.curve) ^ set(outcome.curve))} are not on both curves")
    for step, attempt, name, value in _all_values(run_dir):
        expected = reference.curve.get(step, {}).get(name)
        if not _is_near(value, expected, 0.0 if is_exact or name == HASH else ELASTIC_TOLERANCE):
            found.append(f"step {step} of attempt {attempt}: {name} is {value} instead of {expected}")
    if is_exact:
        found += [n for n, tensor in reference.tensors.items() if not tensor.equal(outcome.tensors[n])]
    return found


def _is_near(value: Any, expected: Any, tolerance: float) -> bool:
    if value == expected:
        return True
    return isinstance(value, float) and isinstance(expected, float) and abs(value - expected) <= tolerance


def _all_values(run_dir: Path) -> list[tuple[int, int, str, Any]]:
    """Every value that any attempt wrote, also of steps that were done again: (step, attempt, name, value)."""
    values = []
    for line in (run_dir / "metrics.jsonl").read_bytes().split(b"\n")[:-1]:
        try:
            row = json.loads(line)
        except ValueError:
            continue  # torn, by a kill
        named = ((name, row[name]) for name in MEASURED if name in row)
        values += [(row["step"], row["attempt"], name, value) for name, value in named]
    return values


class References:
    """Runs that nothing cuts, one for each setting whose numbers are its own.

    Attributes:
        manifest: What all of them are trained on.
    """

    def __init__(self, folder: Path, manifest: Path, server: ForkServer) -> None:
        self._folder = folder
        self.manifest = manifest
        self._server = server
        self._known: dict[Setting, Outcome] = {}

    def of(self, setting: Setting) -> Outcome:
        """The outcome that a setting must have."""
        key = setting.arithmetic()
        if key not in self._known:
            run = TinyRun(self._folder / f"reference-{len(self._known)}", self.manifest)
            attempt = start(run, key, "forked", self._server, 1)
            try:
                eventually(lambda: not attempt.is_alive(), REFERENCE_S, f"the run that nothing cuts: {key}")
            finally:
                attempt.kill()
            self._known[key] = read_outcome(run.run_dir, key.max_steps)
        return self._known[key]

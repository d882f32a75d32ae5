"""What stands in the places of a run's checkpoints, for people: without torch, and whatever state they are in."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from scaletrain.checkpoint.layout import COMPLETE, CONFIG, STATE, step_of
from scaletrain.checkpoint.verify import Level, find_damage
from scaletrain.errors import CheckpointError
from scaletrain.launch.run_dir import local_folder, read_run_id


@dataclass(frozen=True)
class Place:
    """A folder of checkpoints.

    Attributes:
        name: ``shared``: the run directory's; ``local``: on this node's own disk; ``given``: one that belongs to no run
            directory, such as a backup.
        folder: Where it is.
    """

    name: Literal["shared", "local", "given"]
    folder: Path


@dataclass(frozen=True)
class Summary:
    """One folder, as a row of a table.

    Attributes:
        folder: Where it stands.
        where: Name of its place.
        step: Global batches before it; None where the name is not that of a checkpoint.
        is_complete: Whether a reader would look at it.
        damage: What is wrong with a complete one; None where nothing is.
        note: Why another one is passed over; empty for a complete one.
        written_s: When it was finished, or last written to, in Unix seconds.
        size_bytes: Of all its files.
        zero_stage: ZeRO stage that wrote it; None where it cannot be read.
        world_size: Ranks that wrote it; None where it cannot be read.
        precision: Of the run's forward pass; None where it cannot be read.
    """

    folder: Path
    where: Literal["shared", "local", "given"]
    step: int | None
    is_complete: bool
    damage: str | None
    note: str
    written_s: float
    size_bytes: int
    zero_stage: int | None
    world_size: int | None
    precision: str | None


@dataclass(frozen=True)
class Details:
    """One checkpoint, looked into.

    Attributes:
        files: Bytes of each file, by path in the folder.
        training: Where the run stood: step, sequences, optimizer steps, target tokens, skipped shards.
        engine: Counters and layout of the engine: stage, ranks, moments, loss scale.
        shapes: Shape of each parameter, by name; a tied one stands once.
        tied: Names that share the tensor of another, with that.
    """

    files: dict[str, int]
    training: dict[str, Any]
    engine: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    tied: dict[str, str]

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(map(math.prod, self.shapes.values()))

    @property
    def bytes_per_parameter(self) -> float:
        """Of all files together."""
        return sum(self.files.values()) / max(1, self.parameters)


def find_places(run_dir: Path) -> list[Place]:
    """Where the checkpoints of a run are, as far as this machine sees them.

    Args:
        run_dir: The run's folder, or a bare folder of checkpoints.

    Returns:
        The shared place first; a local one also where it is not on this machine.

    Raises:
        CheckpointError: There is neither.
    """
    shared, local = run_dir / "checkpoints", _local_place(run_dir)
    places = [Place("shared", shared)] if shared.is_dir() else []
    if local is not None:
        places.append(local)
    if places:
        return places
    if run_dir.is_dir() and any(step_of(folder) is not None for folder in run_dir.iterdir()):
        return [Place("given", run_dir)]
    raise CheckpointError(
        f"{shared} is no folder; give the --run_dir of a run that has saved something, or a folder of checkpoints."
    )


def summarise(places: Sequence[Place], level: Level) -> list[Summary]:
    """Looks at every folder, also those that no reader would take.

    Args:
        places: Where the folders are; one that is not there has none.
        level: How much of each complete one is checked.

    Returns:
        The newest first, of one step in the order of the places; then those without a step.
    """
    found = [
        _summary(folder, place.name, level)
        for place in places
        if place.folder.is_dir()
        for folder in sorted(place.folder.iterdir())
        if folder.is_dir()
    ]
    return sorted(found, key=lambda summary: -1 if summary.step is None else summary.step, reverse=True)


def look_into(folder: Path) -> Details:
    """Reads what a checkpoint says of itself; no tensor is read.

    Args:
        folder: The checkpoint.

    Returns:
        Its details.

    Raises:
        CheckpointError: ``state.json`` cannot be read, or is none.
    """
    try:
        state = json.loads((folder / STATE).read_text())
        engine = dict(state["engine"])
        shapes = {str(name): tuple(map(int, shape)) for name, shape in engine.pop("shapes").items()}
        tied = {str(name): str(saved_as) for name, saved_as in engine.pop("tied").items()}
        return Details(_sizes(folder), dict(state.get("training", {})), engine, shapes, tied)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / STATE} cannot be read: {_told(error)}. Choose another step.") from error


def _told(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, json.JSONDecodeError):
        return f"it is no JSON: {error}"
    return f"it lacks {error}" if isinstance(error, KeyError) else f"it is none that a run writes: {error}"


def ranks_missing(folder: Path) -> int:
    """How many ranks' files stand elsewhere: a node's own checkpoint holds those of its ranks."""
    engine = _engine_of(folder)
    if not engine.get("zero_stage"):
        return 0  # one rank of each node writes the whole
    return int(engine.get("world_size", 0)) - sum(1 for _ in folder.glob("fragments_*[0-9].json"))


def _local_place(run_dir: Path) -> Place | None:
    try:
        local_dir = yaml.safe_load((run_dir / CONFIG).read_text())["checkpoint"]["local_dir"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return None
    run_id = read_run_id(run_dir)
    return Place("local", local_folder(Path(local_dir), run_id)) if local_dir and run_id else None


def _summary(folder: Path, where: Literal["shared", "local", "given"], level: Level) -> Summary:
    step, marker = step_of(folder), folder / COMPLETE
    is_complete = step is not None and marker.is_file()
    if is_complete:
        note = ""
    elif step is not None:
        note = f"{COMPLETE} is missing: being deleted, or made by hand"
    else:
        note = "unfinished: being written, or left by a killed run" if folder.name.startswith("partial_") else "unknown"
    engine = _engine_of(folder)
    sizes = _sizes(folder)
    return Summary(
        folder=folder,
        where=where,
        step=step,
        is_complete=is_complete,
        damage=(find_damage(folder, level) or _wrong_name(folder, step)) if is_complete else None,
        note=note,
        written_s=(marker if is_complete else folder).stat().st_mtime,
        size_bytes=sum(sizes.values()),
        zero_stage=engine.get("zero_stage"),
        world_size=engine.get("world_size"),
        precision=_precision_of(folder),
    )


def _wrong_name(folder: Path, step: int | None) -> str | None:
    try:
        told = int(json.loads((folder / STATE).read_text())["training"]["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None if told == step else f"{STATE} is that of step {told}: the folder was renamed or copied by hand"


def _sizes(folder: Path) -> dict[str, int]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _engine_of(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / STATE).read_text())["engine"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _precision_of(folder: Path) -> str | None:
    try:
        return str(yaml.safe_load((folder / CONFIG).read_text())["train"]["precision"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return None

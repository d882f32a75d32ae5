"""Lists a run's checkpoints, or tells what stands in one of them.

python tools/inspect_checkpoint.py --run_dir runs/demo
python tools/inspect_checkpoint.py --run_dir runs/demo --step newest --verify
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import fire
from fire_tool import run_tool

from scaletrain.checkpoint.inspection import Details, Place, Summary, find_places, look_into, ranks_missing, summarise
from scaletrain.errors import CheckpointError, ConfigError
from scaletrain.planning.report import format_bytes


@dataclass(frozen=True)
class Request:
    """What was typed, each value of its type."""

    run_dir: Path
    step: int | None
    newest: bool
    verify: bool


@fire.decorators.SetParseFn(str)  # type: ignore[untyped-decorator]  # a path such as "2024_01" is text
def parse(*, run_dir: str, step: str | None = None, verify: str = "false") -> Request:
    """Lists a run's checkpoints, or tells what stands in one of them.

    Args:
        run_dir: Folder of the run, or a bare folder of checkpoints, such as a backup.
        step: Checkpoint to look into; without a number, or with "newest", the newest complete one.
        verify: Reads every byte and compares checksums; with --step, also gives the norm of each weight. The exit code
            is 1 where something is damaged, and where no complete checkpoint is intact.
    """
    is_newest = step is not None and step.lower() in ("newest", "true")
    if step is not None and not is_newest and not step.isdecimal():
        raise ConfigError(f"--step {step} is not a whole number; give one, or --step newest")
    if run_dir == "True":  # what fire gives for a flag without a value
        raise ConfigError("--run_dir needs a folder; for one of that name give ./True")
    if verify.lower() not in ("true", "false"):
        raise ConfigError(f"--verify {verify}: expected true or false, or nothing at all")
    number = None if step is None or is_newest else int(step)
    return Request(Path(run_dir), number, is_newest, verify.lower() == "true")


def run(request: Request) -> int:
    places = find_places(request.run_dir)
    found = summarise(places, "full" if request.verify else "sizes")
    if request.step is None and not request.newest:
        if found:
            print_table(found)
        else:
            print("no checkpoint")
        print_places(places)
        is_without_intact = not any(summary.is_complete and not summary.damage for summary in found)
        if request.verify and is_without_intact:
            print("\nno complete checkpoint is intact")
        return int(any(summary.damage for summary in found) or (request.verify and is_without_intact))
    chosen = next((s for s in found if s.is_complete and request.step in (None, s.step)), None)
    if chosen is None:
        steps = ", ".join(str(summary.step) for summary in found if summary.is_complete) or "none"
        raise CheckpointError(f"{request.run_dir} has no complete checkpoint of that step; there are: {steps}.")
    missing = ranks_missing(chosen.folder)
    norms = norms_of(chosen) if request.verify and not missing else {}
    print_details(chosen, look_into(chosen.folder), norms, request.verify, missing)
    return int(chosen.damage is not None)


def norms_of(summary: Summary) -> dict[str, float]:
    if summary.damage:
        return {}
    # Imported here, so that everything else is answered before torch is loaded.
    from scaletrain.checkpoint.weights import weight_norms

    return weight_norms(summary.folder)


def print_table(found: list[Summary]) -> None:
    rows: list[tuple[str, ...]] = [
        ("step", "where", "complete", "written", "size", "stage", "ranks", "precision", "what is wrong")
    ]
    for summary in found:
        rows.append(
            (
                summary.folder.name if summary.step is None else str(summary.step),
                summary.where,
                "yes" if summary.is_complete else "no",
                written(summary),
                format_bytes(summary.size_bytes),
                *("-" if value is None else str(value) for value in (summary.zero_stage, summary.world_size)),
                summary.precision or "-",
                summary.damage or summary.note or "-",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_places(places: list[Place]) -> None:
    for place in places:
        if place.name == "local":
            there = "local to this node" if place.folder.is_dir() else "not on this node"
            print(f"\nlocal: {place.folder}, {there}")


def print_details(
    summary: Summary, details: Details, norms: dict[str, float], is_verified: bool, missing_ranks: int
) -> None:
    print(f"{summary.folder}  {written(summary)}")
    print(f"damaged: {summary.damage}" if summary.damage else "intact" if is_verified else "intact by its sizes")
    if missing_ranks:
        print(f"a node's part: the files of {missing_ranks} ranks are on other nodes; no norms")
    print("\nfiles")
    for name, size in details.files.items():
        print(f"  {size:>16,}  {name}")
    print(f"  {sum(details.files.values()):>16,}  bytes, {details.bytes_per_parameter:.2f} a parameter")
    for title, values in (("training", details.training), ("engine", details.engine)):
        print(f"\n{title}")
        for key, value in values.items():
            print(f"  {key:<16}  {value}")
    print(f"\n{len(details.shapes)} tensors, {details.parameters:,} parameters")
    for name, shape in details.shapes.items():
        norm = f"  norm {norms[name]:.6g}" if name in norms else ""
        print(f"  {'x'.join(map(str, shape)):>16}  {name}{norm}")
    for name, saved_as in details.tied.items():
        print(f"  {'tied':>16}  {name} is {saved_as}")


def written(summary: Summary) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(summary.written_s))


if __name__ == "__main__":
    sys.exit(run_tool("inspect_checkpoint.py", parse, run))

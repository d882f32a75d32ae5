"""Tells how good a trained model is on a whole split of its corpus, by the figures of its task.

python tools/evaluate.py --run_dir runs/demo --split test
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import fire
from fire_tool import run_tool
from typed_values import step_number, truth

from scaletrain.corpus.splits import SPLITS
from scaletrain.errors import ConfigError
from scaletrain.protocols import Step

if TYPE_CHECKING:
    from scaletrain.training.scoring import Score
    from scaletrain.training.trained_run import TrainedRun


@dataclass(frozen=True)
class Request:
    """What was typed, each value of its type."""

    run_dir: Path
    step: Step | None
    split: str
    manifest: str | None
    json: bool
    trust_checkpoint: bool


@fire.decorators.SetParseFn(str)  # type: ignore[untyped-decorator]  # a path such as "2024_01" is text
def parse(
    *,
    run_dir: str,
    step: str | None = None,
    split: str = "validation",
    manifest: str | None = None,
    json: str = "false",
    trust_checkpoint: str = "false",
) -> Request:
    """Tells how good a trained model is on a whole split of its corpus, by the figures of its task.

    Args:
        run_dir: Folder of the run whose model to use.
        step: Checkpoint to use, or best for the one with the lowest validation loss; the newest intact one by
            default.
        split: validation, test or train.
        manifest: Another corpus, made with the run's tokenizer; the run's own by default.
        json: Prints one JSON object, with the metrics by their names in metrics.jsonl.
        trust_checkpoint: Unpickle objects of any class in it: whoever wrote the checkpoint can run code here.
    """
    if split not in SPLITS:
        raise ConfigError(f"--split {split}: must be one of {', '.join(SPLITS)}")
    return Request(
        Path(run_dir),
        step_number(step),
        split,
        manifest,
        truth("json", json),
        truth("trust_checkpoint", trust_checkpoint),
    )


def run(request: Request) -> None:
    # Imported here, so that --help and a misspelt option are answered before torch is loaded.
    from scaletrain.training.scoring import score
    from scaletrain.training.trained_run import TrainedRun

    trained = TrainedRun.open(request.run_dir, request.step, request.trust_checkpoint)
    report = [show_progress] if sys.stderr.isatty() else []
    tell(request, trained, score(trained, request.split, request.manifest, *report))


def show_progress(what: str, done: int, of: int) -> None:
    print(f"\r{what}: {done} of {of} batches", end="\n" if done == of else "", file=sys.stderr, flush=True)


def tell(request: Request, trained: "TrainedRun", found: "Score") -> None:
    from scaletrain.monitors.jsonl_writer import as_json

    if request.json:
        facts = {"run_dir": str(request.run_dir), "step": trained.step, "split": request.split}
        sizes = {"sequences": found.sequences, "targets": found.targets}
        metrics = {name: as_json(value) for name, value in found.metrics.items()}
        print(json.dumps(facts | sizes | metrics))
        return
    print(f"{request.run_dir} at step {trained.step}, {trained.config.task.name}: {request.split} split of ", end="")
    print(request.manifest or ", ".join(corpora_of(trained)))
    print(f"  {found.sequences:,} sequences, {found.targets:,} targets")
    width = max(len(name) for name in found.metrics)
    for name, value in found.metrics.items():
        print(f"  {name:<{width}}  {value:.6g}")


def corpora_of(trained: "TrainedRun") -> list[str]:
    content = json.loads((trained.run_dir / "corpus.json").read_text())
    return list(content["sources"].values())


if __name__ == "__main__":
    sys.exit(run_tool("evaluate.py", parse, run))

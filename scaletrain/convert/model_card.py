"""What is told beside the weights: where they come from, in a README for people and in plain values for programs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

import scaletrain
from scaletrain.checkpoint.layout import COMPLETE, CONFIG
from scaletrain.convert.checkpoint_tensors import CheckpointTensors
from scaletrain.convert.family import Family
from scaletrain.errors import CheckpointError

# By the end of the class's name; what else there is generates text.
_HUB_TASKS = {
    "ForMaskedLM": "fill-mask",
    "ForPreTraining": "fill-mask",
    "ForSequenceClassification": "text-classification",
    "ForConditionalGeneration": "text2text-generation",
    "MTModel": "text2text-generation",
    "BertModel": "feature-extraction",
}


def describe_provenance(checkpoint: CheckpointTensors) -> dict[str, Any]:
    """Where the weights of a checkpoint come from, as far as its folder tells.

    Args:
        checkpoint: The checkpoint.

    Returns:
        Plain values: step, tokens, corpora, and the settings of the training.

    Raises:
        CheckpointError: ``provenance.json`` of a start cannot be read.
    """
    config = yaml.safe_load((checkpoint.folder / CONFIG).read_text())
    training, engine = checkpoint.state.get("training", {}), checkpoint.state["engine"]
    told = {
        "scaletrain": scaletrain.__version__,
        "run": Path(config["run_dir"]).name,
        "step": training.get("step"),
        "optimizer_steps": training.get("optimizer_steps"),
        "sequences": training.get("sequences"),
        "target_tokens": training.get("target_tokens"),
        "checkpoint": (checkpoint.folder / COMPLETE).read_text().strip(),
        "zero_stage": engine.get("zero_stage"),
        "world_size": engine.get("world_size"),
        **{key: config[key] for key in ("seed", "data", "optim", "train")},
    }
    given = checkpoint.folder.parent.parent / "provenance.json"
    if given.is_file():
        try:
            told["begun_with"] = json.loads(given.read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{given} cannot be read: {error}. Copy it anew, or delete it.") from None
    elif config.get("init"):
        told["begun_with"] = Path(str(config["init"])).name
    return told


def write_card(folder: Path, provenance: Mapping[str, Any], family: Family, architecture: str, parameters: int) -> None:
    """Writes ``README.md``, the card that a model has on a hub, and ``scaletrain.json``.

    Args:
        folder: The folder that is being written.
        provenance: As from ``describe_provenance``.
        family: What the model is one of.
        architecture: Its class there.
        parameters: How many it has.
    """
    (folder / "scaletrain.json").write_text(json.dumps(provenance, indent=1) + "\n")
    task = next((task for end, task in _HUB_TASKS.items() if architecture.endswith(end)), "text-generation")
    header = {"library_name": "transformers", "pipeline_tag": task, "tags": ["scaletrain", family.model_type]}
    train, optim, data = provenance["train"], provenance["optim"], provenance["data"]
    corpora = [str(source["name"]) for source in data.get("sources") or []] or [
        Path(str(data.get("manifest") or data.get("corpus") or "none")).name
    ]
    rows = {
        "parameters": f"{parameters:,}",
        "steps": f"{provenance['step'] or 0:,}",
        "tokens learnt from": f"{provenance['target_tokens'] or 0:,}",
        "corpora": ", ".join(corpora),
        "sequence": f"{train['max_seq_len']:,} tokens",
        "global batch": f"{train['global_batch_size']:,} sequences",
        "precision": str(train["precision"]),
        "optimizer": f"{optim['name']}, highest learning rate {optim['lr']:g}, {optim['schedule']} schedule",
        "seed": str(provenance["seed"]),
        "checkpoint": f"`{provenance['checkpoint']}`",
    }
    table = "".join(f"| {key} | {value} |\n" for key, value in rows.items())
    (folder / "README.md").write_text(
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n\n# {provenance['run']}\n\n"
        f"A model of the {family.model_type} family, trained with scaletrain {provenance['scaletrain']}.\n\n"
        f"| | |\n|---|---|\n{table}\nAll settings of the training stand in `scaletrain.json`.\n"
    )

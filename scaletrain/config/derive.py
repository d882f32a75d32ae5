"""What the fields of a configuration may be together, and what follows from them."""

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scaletrain.config.files import find_file, read_json_object
from scaletrain.config.load import raise_all
from scaletrain.config.mixture_rules import batch_problems, data_problems
from scaletrain.config.model_rules import model_problems
from scaletrain.config.monitor_schema import LogConfig
from scaletrain.config.schema import (
    CheckpointConfig,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
)
from scaletrain.config.task_rules import task_problems
from scaletrain.config.tune_rules import tune_problems
from scaletrain.errors import ConfigError

_DECAYING = ("linear", "cosine", "wsd")

# Keys of a DeepSpeed file that the run config owns, and what owns them.
_OWNED = {
    "train_batch_size": "train.global_batch_size",
    "train_micro_batch_size_per_gpu": "train.micro_batch_size",
    "gradient_accumulation_steps": "train.global_batch_size and train.micro_batch_size, from which it is derived",
    "fp16": "train.precision",
    "bf16": "train.precision",
    "bfloat16": "train.precision",
    "amp": "train.precision",
    "torch_autocast": "train.precision",
    "optimizer": "optim.name, optim.lr, optim.betas, optim.eps and optim.weight_decay",
    "scheduler": "optim.schedule, optim.warmup_steps and optim.decay_steps",
    "gradient_clipping": "optim.grad_clip",
    "activation_checkpointing": "train.activation_checkpointing",
    "checkpoint": "checkpoint.*, since scaletrain writes DeepSpeed's files itself",
    "compile": "train.compile",
    "tensorboard": "log.writers",
    "wandb": "log.writers",
    "csv_monitor": "log.writers",
    "data_efficiency": "data.*, which fixes the order of the data",
    "curriculum_learning": "data.*, which fixes the order of the data",
    "seed": "seed",
}

# DeepSpeed takes no notice of a key it does not know: a misspelt "zero_optimization" would silently be stage 0.
_DEEPSPEED_KEYS = (
    "zero_optimization",
    "communication_data_type",
    "prescale_gradients",
    "gradient_predivide_factor",
    "sparse_gradients",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
    "steps_per_print",
    "wall_clock_breakdown",
    "dump_state",
    "memory_breakdown",
    "flops_profiler",
    "comms_logger",
    "data_types",
    "tensor_parallel",
    "timers",
    "aio",
    "zenflow",
)
_OFFLOAD_DEVICES = ("none", "cpu", "nvme")


def check(config: RunConfig) -> None:
    """Checks all rules between fields, and the DeepSpeed file.

    Args:
        config: The configuration, whose fields are within their own ranges.

    Raises:
        ConfigError: Lists all rules that are broken, with the values and a remedy.
    """
    problems = [
        *model_problems(config.model),
        *task_problems(config.task, config.model, config.data, config.eval.prompts),
        *_tune_problems(config),
        *_length_problems(config.model, config.train),
        *_checkpointing_problems(config.model, config.train),
        *batch_problems(config.train),
        *data_problems(config.data),
        *_schedule_problems(config.optim, config.train.max_steps),
        *_checkpoint_problems(config.checkpoint),
        *_patience_problems(config.eval, config.checkpoint),
        *_prometheus_problems(config.log),
    ]
    try:
        load_deepspeed_json(config.deepspeed)
    except ConfigError as error:
        problems.append(str(error))
    raise_all(problems)


def effective_decay_steps(optim: OptimConfig, max_steps: int) -> int:
    """Step at which the learning rate's schedule ends."""
    return max_steps if optim.decay_steps is None else optim.decay_steps


def load_deepspeed_json(path: Path) -> dict[str, Any]:
    """Reads DeepSpeed's own settings.

    Args:
        path: A file of ``configs/ds``, looked up as given and then in the repository.

    Returns:
        The settings, which hold nothing that the run config owns.

    Raises:
        ConfigError: No such file, bad JSON (with the line), or a setting that cannot be there.
    """
    found = find_file(path, "--deepspeed")
    ds = read_json_object(found)
    conflict = deepspeed_conflicts(ds)
    if conflict is not None:
        raise ConfigError(f"--deepspeed {path}: {conflict}")
    return ds


def deepspeed_conflicts(ds: dict[str, Any]) -> ConfigError | None:
    """Finds settings that the run config owns, and settings that DeepSpeed would pass over without a word.

    Args:
        ds: Content of a DeepSpeed file.

    Returns:
        An error that names each key and the key of the run config which owns it; None where all is well.
    """
    problems = [f"{key} belongs to {_OWNED[key]}; remove it here and set it there" for key in ds if key in _OWNED]
    for key in ds.keys() - _OWNED.keys() - set(_DEEPSPEED_KEYS):
        near = difflib.get_close_matches(key, [*_DEEPSPEED_KEYS, *_OWNED], n=1, cutoff=0.85)
        problems += [
            f"{key} is not known to DeepSpeed, which would pass over it; did you mean {near[0]}?" for _ in near
        ]
    zero = ds.get("zero_optimization", {})
    if not isinstance(zero, dict):
        problems.append(f'zero_optimization = {zero!r} must be an object such as {{"stage": 1}}')
        zero = {}
    stage = zero.get("stage", 0)
    if isinstance(stage, bool) or stage not in (0, 1, 2, 3):
        problems.append(f"zero_optimization.stage = {stage!r} must be 0, 1, 2 or 3")
    for part in ("offload_optimizer", "offload_param"):
        device = _offload_device(ds, part)
        if device not in _OFFLOAD_DEVICES:
            problems.append(
                f"zero_optimization.{part}.device = {device!r} must be one of {', '.join(_OFFLOAD_DEVICES)}"
            )
        elif device != "none" and stage in (0, 1) and (part == "offload_param" or stage == 0):
            problems.append(f"zero_optimization.{part} has no effect at stage {stage}; raise the stage or remove it")
    return ConfigError("; ".join(problems)) if problems else None


def zero_stage(ds: dict[str, Any]) -> int:
    """ZeRO stage that a DeepSpeed file asks for, 0 to 3."""
    return int(ds.get("zero_optimization", {}).get("stage", 0))


def offloads_optimizer(ds: dict[str, Any]) -> bool:
    """Whether the optimizer's state lives outside the accelerator."""
    return _offload_device(ds, "offload_optimizer") != "none"


def offloads_parameters(ds: dict[str, Any]) -> bool:
    """Whether the parameters live outside the accelerator (stage 3)."""
    return _offload_device(ds, "offload_param") != "none"


def _offload_device(ds: dict[str, Any], part: str) -> str:
    zero = ds.get("zero_optimization")
    offload = zero.get(part) if isinstance(zero, dict) else None
    return str(offload.get("device", "none")) if isinstance(offload, dict) else "none"


def _tune_problems(config: RunConfig) -> Iterator[str]:
    # Of a model that cannot be, nothing is looked for.
    if not list(model_problems(config.model)):
        yield from tune_problems(config.model, config.lora, config.tune)


def _length_problems(model: ModelConfig, train: TrainConfig) -> Iterator[str]:
    # Rotary and sinusoidal positions are computed, not looked up: a longer sequence is a choice there.
    if model.kind == "transformer" and model.positions == "learned" and train.max_seq_len > model.max_seq_len:
        yield (
            f"train.max_seq_len = {train.max_seq_len} is longer than model.max_seq_len = {model.max_seq_len}, the "
            "number of learned positions; lower train.max_seq_len or raise model.max_seq_len"
        )


def _checkpointing_problems(model: ModelConfig, train: TrainConfig) -> Iterator[str]:
    if model.kind != "transformer" and train.activation_checkpointing:
        yield (
            f"train.activation_checkpointing recomputes the layers of a Transformer, and model.kind {model.kind} has "
            "none; set it to false"
        )


def _checkpoint_problems(checkpoint: CheckpointConfig) -> Iterator[str]:
    if checkpoint.local_every_steps and checkpoint.local_dir is None:
        yield (
            f"checkpoint.local_every_steps is {checkpoint.local_every_steps}, but there is no checkpoint.local_dir: "
            "give a folder on each node's own disk"
        )
    if checkpoint.local_dir is not None and not checkpoint.local_every_steps:
        yield (
            f"checkpoint.local_dir is {checkpoint.local_dir}, but checkpoint.local_every_steps is 0: nothing would be "
            "saved there; give an interval shorter than checkpoint.every_steps"
        )
    if checkpoint.keep_last == 0:
        asked = ("every_steps", "keep_every_steps", "keep_best", "local_every_steps")
        for key in (key for key in asked if getattr(checkpoint, key)):
            yield (
                f"checkpoint.{key} = {getattr(checkpoint, key)} asks for checkpoints, but checkpoint.keep_last = 0 "
                "saves none; leave one of them out"
            )


def _patience_problems(evaluation: EvalConfig, checkpoint: CheckpointConfig) -> Iterator[str]:
    if evaluation.patience and checkpoint.keep_last == 0:
        yield (
            f"eval.patience = {evaluation.patience} keeps the best checkpoint, but checkpoint.keep_last = 0 saves "
            "none; leave one of them out"
        )
    if evaluation.patience and not evaluation.every_steps:
        yield (
            f"eval.patience = {evaluation.patience} counts evaluations, but eval.every_steps = 0 makes one at the end "
            "only; give an interval"
        )


def _schedule_problems(optim: OptimConfig, max_steps: int) -> Iterator[str]:
    end = effective_decay_steps(optim, max_steps)
    if optim.schedule in _DECAYING and optim.warmup_steps >= end:
        name = "train.max_steps" if optim.decay_steps is None else "optim.decay_steps"
        yield (
            f"optim.warmup_steps = {optim.warmup_steps} is not less than {name} = {end}, where the {optim.schedule} "
            "schedule ends: nothing would be left to decay in; lower warmup_steps or raise the other"
        )
    if optim.schedule == "range_test" and not optim.min_lr_ratio:
        yield "optim.min_lr_ratio = 0 is no rate that range_test could grow from; give the first one as a share of lr"


def _prometheus_problems(log: LogConfig) -> Iterator[str]:
    textfile = log.prometheus_textfile
    if "prometheus" not in log.writers:
        if textfile is not None:
            yield f"log.prometheus_textfile = {textfile} has no effect; add prometheus to log.writers, or remove it"
        return
    if textfile is None and log.prometheus_port is None:
        yield "log.prometheus_port = none leaves the writer prometheus nothing to do; set log.prometheus_textfile too"
    if textfile is not None and textfile.suffix != ".prom":
        yield f"log.prometheus_textfile = {textfile} must end in .prom: node_exporter reads no other files; rename it"

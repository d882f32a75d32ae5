"""Saves a DeepSpeed engine with DeepSpeed's own files, and loads such files into any topology."""

from pathlib import Path
from typing import Any

import torch.distributed as dist

from scaletrain.engine.partitions import (
    base_optimizer,
    ensure_state,
    live_fragments,
    moment_keys,
    refresh_weights,
    tied_names,
)
from scaletrain.errors import CheckpointError
from scaletrain.protocols import Fragment, FragmentSource, SavedPart


def save(engine: Any, stage: int, applied_steps: int, folder: Path) -> SavedPart:
    """Writes DeepSpeed's files, and tells which fragments stand where.

    Args:
        engine: A ``deepspeed.DeepSpeedEngine``; every rank calls.
        stage: Its ZeRO stage.
        applied_steps: Updates that the moments hold.
        folder: Where the files go.

    Returns:
        This rank's part, with the counters and shapes that ``load`` and readers need.
    """
    root, tag = str(folder.parent), folder.name
    engine.save_checkpoint(root, tag=tag, save_latest=False)
    file: str | None = Path(engine._get_zero_ckpt_name(root, tag) if stage else engine._get_ckpt_name(root, tag)).name
    owned = [Fragment(f.name, f.start, f.numel, f.group, f.offset) for f in live_fragments(engine, stage)]
    if stage == 0 and dist.get_rank() > 0:
        file, owned = None, []
    state = {
        "zero_stage": stage,
        "world_size": dist.get_world_size(),
        "applied_steps": applied_steps,
        "global_steps": int(engine.global_steps),
        "moments": list(moment_keys(base_optimizer(engine, stage))),
        "loss_scale": _loss_scale_state(engine, stage),
        "shapes": {n: list(getattr(p, "ds_shape", p.shape)) for n, p in engine.module.named_parameters()},
        "tied": tied_names(engine.module),
    }
    return SavedPart(file, owned, state)


def load(engine: Any, stage: int, source: FragmentSource, state: dict[str, Any]) -> None:
    """Fills the live fragments of this rank from a checkpoint of any stage and number of ranks.

    Args:
        engine: A ``deepspeed.DeepSpeedEngine`` just initialised; every rank calls.
        stage: Its ZeRO stage.
        source: Reads the checkpoint's tensors.
        state: What ``save`` gave for it.

    Raises:
        CheckpointError: Shapes differ, or a range is missing.
    """
    _check_shapes(engine, state)
    optimizer = base_optimizer(engine, stage)
    keys = moment_keys(optimizer) if tuple(state["moments"]) == moment_keys(optimizer) else ()
    for fragment in live_fragments(engine, stage):
        where = (fragment.start, fragment.numel)
        weight = source.read(fragment.name, "weight", *where)
        fragment.master().copy_(_present(weight, fragment.name))
        if state["applied_steps"] == 0 or not keys:
            continue
        moments = ensure_state(optimizer, fragment.owner, keys, state["applied_steps"])
        for key in keys:
            value = source.read(fragment.name, key, *where)
            target = moments[key].view(-1).narrow(0, fragment.offset, fragment.numel)
            target.copy_(_present(value, f"{key} of {fragment.name}"))
    refresh_weights(engine, stage)
    engine.global_steps = state["global_steps"]
    _restore_loss_scale(engine, stage, state["loss_scale"])


def _present(value: Any, what: str) -> Any:
    if value is None:
        raise CheckpointError(f"The checkpoint does not hold {what}. Use an older checkpoint.")
    return value


def _check_shapes(engine: Any, state: dict[str, Any]) -> None:
    live = {n: list(getattr(p, "ds_shape", p.shape)) for n, p in engine.module.named_parameters()}
    saved = state["shapes"]
    wrong = [f"{n}: {saved.get(n)} saved, {live.get(n)} here" for n in {**live, **saved} if live.get(n) != saved.get(n)]
    if wrong:
        raise CheckpointError(
            f"The checkpoint is of another model: {'; '.join(wrong[:5])}. Use another run_dir for this one."
        )


def _loss_scale_state(engine: Any, stage: int) -> dict[str, Any]:
    """The dynamic loss scale of fp16: a handful of numbers."""
    if stage == 0:
        scaler = engine.torch_autocast_z0_gradscaler
        return {} if scaler is None else dict(scaler.state_dict())
    attributes = vars(engine.optimizer.loss_scaler)
    return {key: value for key, value in attributes.items() if isinstance(value, bool | int | float)}


def _restore_loss_scale(engine: Any, stage: int, state: dict[str, Any]) -> None:
    if stage == 0:
        if engine.torch_autocast_z0_gradscaler is not None and "scale" in state:
            engine.torch_autocast_z0_gradscaler.load_state_dict(state)
        return
    scaler = engine.optimizer.loss_scaler
    for key, value in state.items():
        # A checkpoint of another precision has another scaler: only what both have is taken.
        if hasattr(scaler, key) and "cur_scale" in state and hasattr(scaler, "cur_iter"):
            setattr(scaler, key, value)

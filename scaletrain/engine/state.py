"""What a DeepSpeed engine saves into DeepSpeed's own files, and how such files load into any topology."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import deepspeed
import torch.distributed as dist
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine
from torch import nn

from scaletrain.engine.partitions import (
    base_optimizer,
    ensure_state,
    live_fragments,
    moment_keys,
    refresh_weights,
    tied_names,
)
from scaletrain.errors import CheckpointError
from scaletrain.protocols import EMA, FROZEN, Fragment, FragmentSource, SavedPart


class _Recorder(CheckpointEngine):  # type: ignore[misc]  # deepspeed has no types
    """Stands where DeepSpeed has its writer of files, and writes nothing: it keeps what was to be written."""

    def __init__(self) -> None:
        super().__init__()
        self.contents: dict[str, Any] = {}

    def create(self, info: Any) -> None:
        """Nothing begins."""

    def save(self, state_dict: Any, path: str) -> None:
        """Keeps one file's content."""
        self.contents[Path(path).name] = state_dict

    def load(self, path: str, map_location: Any = None) -> Any:
        """Is never asked to."""
        raise NotImplementedError

    def commit(self, info: Any) -> bool:
        """Nothing ends."""
        return True


def collect(engine: Any, stage: int, applied_steps: int, is_writer: bool) -> SavedPart:
    """Has DeepSpeed make the content of its files, without writing them; every rank calls it.

    DeepSpeed's ``save_checkpoint`` would write between its collectives, where an error of one rank leaves the others
    waiting, and forces nothing to the disk.

    Args:
        engine: A ``deepspeed.DeepSpeedEngine``.
        stage: Its ZeRO stage.
        applied_steps: Updates that the moments hold.
        is_writer: Whether this rank also writes what is the same on all ranks.

    Returns:
        This rank's part. Its tensors are the live ones: they change with the next step.
    """
    recorder = _Recorder()
    root, tag = "", "checkpoint"
    writer, engine.checkpoint_engine = engine.checkpoint_engine, recorder
    writes, engine.save_non_zero_checkpoint = engine.save_non_zero_checkpoint, is_writer or stage == 3
    try:
        if stage == 3:
            engine.optimizer.checkpoint_event_prologue()
        engine._save_checkpoint(root, tag)
        if stage:
            # As its _save_zero_checkpoint does, which also copies scripts into the folder.
            optimizer_state = engine.optimizer.state_dict()
            # Python 3.11.0 to 3.11.3 pickle a member of an enumeration as a call of getattr, which no reader trusts.
            optimizer_state["zero_stage"] = int(optimizer_state["zero_stage"])
            content = {
                "optimizer_state_dict": optimizer_state,
                "ds_config": engine.config,
                "ds_version": deepspeed.__version__,
            }
            recorder.save(content, engine._get_zero_ckpt_name(root, tag))
        if stage == 3:
            engine.optimizer.checkpoint_event_epilogue()
    finally:
        engine.checkpoint_engine, engine.save_non_zero_checkpoint = writer, writes
    owner = engine._get_zero_ckpt_name(root, tag) if stage else engine._get_ckpt_name(root, tag)
    file: str | None = Path(owner).name
    owned = [Fragment(f.name, f.start, f.numel, f.group, f.offset) for f in live_fragments(engine, stage)]
    frozen: list[Fragment] = []
    if stage == 0 and not is_writer:
        file, owned = None, []
    elif stage:
        frozen = [fragment for fragment in owned if fragment.group == FROZEN and (stage == 3 or is_writer)]
        owned = [fragment for fragment in owned if fragment.group != FROZEN]
    frozen_file = Path(engine._get_ckpt_name(root, tag)).name if frozen else None
    state = {
        "zero_stage": stage,
        "world_size": dist.get_world_size(),
        "applied_steps": applied_steps,
        "global_steps": int(engine.global_steps),
        "moments": list(moment_keys(base_optimizer(engine, stage))),
        "loss_scale": _loss_scale_state(engine, stage),
        "shapes": parameter_shapes(engine.module),
        "tied": tied_names(engine.module),
    }
    return SavedPart(recorder.contents, file, owned, state, frozen_file, frozen)


def parameter_shapes(module: nn.Module) -> dict[str, list[int]]:
    """Shapes of all parameters by name, a tied one once, also where ZeRO-3 has cut them into partitions."""
    return {name: list(getattr(p, "ds_shape", p.shape)) for name, p in module.named_parameters()}


def fill(engine: Any, stage: int, source: FragmentSource, state: dict[str, Any], initial: Collection[str] = ()) -> None:
    """Fills the live fragments of this rank from a checkpoint of any stage and number of ranks.

    It uses no collective, so that a rank on which it fails keeps no other waiting; ``finish_loading`` follows once all
    ranks have succeeded.

    Args:
        engine: A ``deepspeed.DeepSpeedEngine``.
        stage: Its ZeRO stage.
        source: Reads the checkpoint's tensors.
        state: What ``collect`` gave for it.
        initial: Names of parameters that keep the values they have.

    Raises:
        CheckpointError: Shapes differ, or a range is missing.
    """
    _check_shapes(engine, state)
    optimizer = base_optimizer(engine, stage)
    keys, saved = moment_keys(optimizer), state["moments"]
    if set(saved) - {EMA} != set(keys) - {EMA}:
        keys = ()
    for fragment in live_fragments(engine, stage):
        where = (fragment.start, fragment.numel)
        if fragment.name not in initial:
            weight = source.read(fragment.name, "weight", *where)
            fragment.master().copy_(_present(weight, fragment.name))
        is_new = state["applied_steps"] == 0 and fragment.owner not in optimizer.state
        if fragment.group == FROZEN or not keys or is_new:
            continue
        moments = ensure_state(optimizer, fragment.owner, keys, state["applied_steps"])
        for key in keys:
            target = moments[key].view(-1).narrow(0, fragment.offset, fragment.numel)
            if state["applied_steps"] == 0:
                target.zero_()  # an engine that has trained goes back to its beginning
            elif key == EMA and EMA not in saved:
                target.copy_(fragment.master())  # it begins now
            else:
                value = source.read(fragment.name, key, *where)
                target.copy_(_present(value, f"{key} of {fragment.name}"))


def finish_loading(engine: Any, stage: int, state: dict[str, Any]) -> None:
    """Makes DeepSpeed work with what ``fill`` put there; every rank calls it.

    Args:
        engine: The engine that was filled.
        stage: Its ZeRO stage.
        state: What ``collect`` gave for the checkpoint.
    """
    refresh_weights(engine, stage)
    engine.global_steps = state["global_steps"]
    _restore_loss_scale(engine, stage, state["loss_scale"])


def _present(value: Any, what: str) -> Any:
    if value is None:
        raise CheckpointError(f"The checkpoint does not hold {what}. Use an older checkpoint.")
    return value


def _check_shapes(engine: Any, state: dict[str, Any]) -> None:
    live = parameter_shapes(engine.module)
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

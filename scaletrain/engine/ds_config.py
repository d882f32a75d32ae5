"""Merges DeepSpeed's own settings (configs/ds/*.json) with what the run config owns."""

from typing import Any

from scaletrain.config.derive import zero_stage
from scaletrain.config.schema import OptimConfig, TrainConfig


def merge(
    own: dict[str, Any], train: TrainConfig, optim: OptimConfig, micro_steps: int, world_size: int
) -> dict[str, Any]:
    """Builds the dictionary for ``deepspeed.initialize``.

    ZeRO stage 0 keeps fp32 weights and casts by autocast: DeepSpeed's own half precision without ZeRO takes
    another optimizer path, whose losses deviate from those of stages 1 to 3.

    Args:
        own: Content of a file in configs/ds, already checked for keys that the run config owns.
        train: Gives the batch sizes and the precision.
        optim: Gives the gradient clipping.
        micro_steps: Forward passes of a rank in one step.
        world_size: Number of ranks.

    Returns:
        A new dictionary.
    """
    stage = zero_stage(own)
    merged: dict[str, Any] = {
        "steps_per_print": None,
        "zero_allow_untested_optimizer": True,
        # Offloaded optimizers run torch's fused AdamW: one implementation, one numeric result.
        "zero_force_ds_cpu_optimizer": False,
        **own,
        "train_micro_batch_size_per_gpu": train.micro_batch_size,
        "gradient_accumulation_steps": micro_steps,
        "train_batch_size": train.micro_batch_size * micro_steps * world_size,
        "gradient_clipping": optim.grad_clip,
    }
    if train.precision != "fp32":
        if stage == 0:
            dtype = {"bf16": "bfloat16", "fp16": "float16"}[train.precision]
            merged["torch_autocast"] = {"enabled": True, "dtype": dtype}
        else:
            merged[train.precision] = {"enabled": True}
    return merged

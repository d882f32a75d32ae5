"""Which part of which parameter this rank's optimizer owns, in a live DeepSpeed engine.

Each ZeRO stage lays parameters out in its own way. Here they all become fragments: a range of the
flattened parameter, and where its fp32 master values and optimizer state stand. Saving describes a
checkpoint by its fragments, and loading fills the live fragments from them, so a checkpoint of any stage
and number of ranks loads into any other.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scaletrain.protocols import EMA, FROZEN

_CHUNK_NUMBERS = 2**24


@dataclass(frozen=True)
class LiveFragment:
    """A range of one parameter that this rank owns.

    Attributes:
        name: The parameter's name in the wrapped module.
        start: First element of the range in the flattened parameter.
        numel: Elements in the range.
        group: Index of ``owner`` in the optimizer's state_dict; ``FROZEN`` for what is not trained.
        owner: The tensor the optimizer updates: the parameter itself, or a flat fp32 partition. Of what is not trained
            the weights of the forward pass, in their type: there are no others.
        offset: Where the range begins in the flattened owner.
    """

    name: str
    start: int
    numel: int
    group: int
    owner: Tensor
    offset: int

    def master(self) -> Tensor:
        """The values of the range that are saved, fp32 where it is trained, as a flat view."""
        return self.owner.detach().view(-1).narrow(0, self.offset, self.numel)


def live_fragments(engine: Any, stage: int) -> list[LiveFragment]:
    """Lists what this rank owns.

    Args:
        engine: A ``deepspeed.DeepSpeedEngine``.
        stage: Its ZeRO stage.

    Returns:
        Fragments in the order of the optimizer's groups, and behind them what is not trained. Together with those of
        the other ranks they cover every parameter exactly once; but of stage 0, and of what is not trained in stages 1
        and 2, every rank has all.
    """
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    if stage == 0:
        trained = _whole(engine.optimizer.param_groups, names)
    else:
        trained = (_zero3 if stage == 3 else _zero12)(engine.optimizer, names)
    return [*trained, *_frozen(engine, stage)]


def _frozen(engine: Any, stage: int) -> Iterator[LiveFragment]:
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            continue
        if stage < 3:
            yield LiveFragment(name, 0, parameter.numel(), FROZEN, parameter, 0)
            continue
        size = parameter.partition_numel()
        start = torch.distributed.get_rank(group=engine.optimizer.dp_process_group) * size
        numel = min(size, parameter.ds_numel - start)
        if numel > 0:
            yield LiveFragment(name, start, numel, FROZEN, parameter.ds_tensor, 0)


def _whole(param_groups: list[dict[str, Any]], names: dict[int, str]) -> Iterator[LiveFragment]:
    parameters = [parameter for group in param_groups for parameter in group["params"]]
    for index, parameter in enumerate(parameters):
        yield LiveFragment(names[id(parameter)], 0, parameter.numel(), index, parameter, 0)


def _zero12(optimizer: Any, names: dict[int, str]) -> Iterator[LiveFragment]:
    for group, parameters in enumerate(optimizer.round_robin_bit16_groups):
        rank = torch.distributed.get_rank(group=optimizer.real_dp_process_group[group])
        size = optimizer.partition_size[group]
        for parameter, position in zip(parameters, optimizer.round_robin_bit16_offsets[group], strict=True):
            first = max(position, rank * size)
            last = min(position + parameter.numel(), (rank + 1) * size)
            if first < last:
                owner = optimizer.single_partition_of_fp32_groups[group]
                yield LiveFragment(
                    names[id(parameter)], first - position, last - first, group, owner, first - rank * size
                )


def _zero3(optimizer: Any, names: dict[int, str]) -> Iterator[LiveFragment]:
    rank = torch.distributed.get_rank(group=optimizer.dp_process_group)
    for group, parameters in enumerate(optimizer.fp16_groups):
        owner = optimizer.fp32_partitioned_groups_flat[group]
        offset = 0
        for parameter in parameters:
            size = parameter.partition_numel()
            start = rank * size
            numel = min(size, parameter.ds_numel - start)
            # The last ranks own only padding where the size is not divisible by the ranks.
            if numel > 0:
                yield LiveFragment(names[id(parameter)], start, numel, group, owner, offset)
            offset += size


def base_optimizer(engine: Any, stage: int) -> torch.optim.Optimizer:
    """The torch optimizer inside DeepSpeed's wrapper.

    Args:
        engine: A ``deepspeed.DeepSpeedEngine``.
        stage: Its ZeRO stage.

    Returns:
        The optimizer whose ``state`` is keyed by the fragments' owners.
    """
    optimizer: torch.optim.Optimizer = engine.optimizer if stage == 0 else engine.optimizer.optimizer
    return optimizer


def ensure_state(
    optimizer: torch.optim.Optimizer, owner: Tensor, keys: tuple[str, ...], step: float
) -> dict[str, Tensor]:
    """Makes the optimizer's state of one owner where no step has made it yet.

    Args:
        optimizer: The torch optimizer.
        owner: The tensor it updates.
        keys: Names of its moments, such as ("exp_avg", "exp_avg_sq").
        step: Number of updates that the moments hold.

    Returns:
        The state; its moments have the shape of ``owner``.
    """
    state = optimizer.state[owner]
    for key in keys:
        if key not in state:
            state[key] = torch.zeros_like(owner.detach())
    if "exp_avg" in keys:
        # Fused kernels want the count on the tensor's own device.
        state["step"] = torch.tensor(float(step), dtype=torch.float32, device=owner.device)
    return dict(state)


def refresh_weights(engine: Any, stage: int) -> None:
    """Recomputes the weights of the forward pass from the masters; all ranks call it.

    Without it the next forward pass of stages 1 to 3 would still use the old values.

    Args:
        engine: A ``deepspeed.DeepSpeedEngine``.
        stage: Its ZeRO stage.
    """
    if stage in (1, 2):
        engine.optimizer.update_lp_params()
    elif stage == 3:
        _refresh_zero3(engine.optimizer)


def _refresh_zero3(optimizer: Any) -> None:
    for group, master in enumerate(optimizer.fp32_partitioned_groups_flat):
        flat = optimizer.fp16_partitioned_groups_flat[group]
        flat.data.copy_(master.data)
        views = optimizer.unflatten(flat, optimizer.fp16_partitioned_groups[group])
        for partition, view in zip(optimizer.fp16_partitioned_groups[group], views, strict=True):
            partition.data = view.data
    # Small parameters stay gathered between steps: gather them anew.
    persistent = optimizer.persistent_parameters
    if persistent:
        persistent[0].partition(persistent)
        persistent[0].all_gather(persistent)


def moment_keys(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """Names of the optimizer's moments, tensors of the size of the weights.

    Args:
        optimizer: AdamW, Adam or SGD.

    Returns:
        ("exp_avg", "exp_avg_sq"), ("momentum_buffer",), or none for SGD without momentum; and behind them the moving
        average of the weights, where one is kept.
    """
    group = optimizer.param_groups[0]
    average = (EMA,) if group.get("ema_decay") else ()
    if isinstance(optimizer, torch.optim.SGD):
        return (("momentum_buffer",) if group["momentum"] else ()) + average
    return ("exp_avg", "exp_avg_sq", *average)


def exchange_averages(engine: Any, stage: int) -> bool:
    """Puts the moving average in the place of the weights, and the weights in its place; all ranks call it.

    Done twice, every number is where it was.

    Args:
        engine: A ``deepspeed.DeepSpeedEngine``.
        stage: Its ZeRO stage.

    Returns:
        Whether there is an average; before the first update there is none.
    """
    optimizer = base_optimizer(engine, stage)
    owners = {id(one.owner): one.owner for one in live_fragments(engine, stage) if one.group != FROZEN}
    pairs = [(owner, optimizer.state[owner][EMA]) for owner in owners.values() if EMA in optimizer.state.get(owner, {})]
    for owner, average in pairs:
        weights, averages = owner.detach().view(-1), average.view(-1)
        for start in range(0, len(weights), _CHUNK_NUMBERS):
            one, other = weights[start : start + _CHUNK_NUMBERS], averages[start : start + _CHUNK_NUMBERS]
            held = one.clone()
            one.copy_(other)
            other.copy_(held)
    if pairs:
        refresh_weights(engine, stage)
    return bool(pairs)


def unwrapped_name(name: str) -> str:
    """A parameter's name in the model, without the task around it."""
    return name.removeprefix("model.")


def tied_names(module: nn.Module) -> dict[str, str]:
    """Names under which a tensor stands again.

    Args:
        module: The wrapped module.

    Returns:
        Each further name of a tensor, with the name it is saved under.
    """
    first: dict[int, str] = {}
    again: dict[str, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if id(parameter) in first:
            again[name] = first[id(parameter)]
        else:
            first[id(parameter)] = name
    return again

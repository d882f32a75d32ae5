"""One global batch through a DeepSpeed engine: forward, backward, update, and once more where that went wrong."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from scaletrain.data.rows import MicroBatch
from scaletrain.engine.batches import add_by_source, to_device
from scaletrain.engine.compute_clock import open_clock
from scaletrain.engine.gradient_watch import GradientWatch
from scaletrain.engine.randomness import seed_dropout
from scaletrain.launch.hang.heartbeat import Heartbeat, Phase
from scaletrain.model.losses import LossTerms
from scaletrain.protocols import Fault, StepResult
from scaletrain.ranks import from_environment

# What DeepSpeed counts, though a step that is recomputed is one step.
_COUNTERS = ("global_steps", "micro_steps", "global_samples", "skipped_steps")


class Stepping:
    """Takes steps; one that is not finite is computed twice before it is given up.

    Attributes:
        clock: Tells how long this rank has computed in the last attempt at a step.
    """

    def __init__(
        self, ds: Any, stage: int, seed: int, n_sources: int, device: torch.device, heartbeat: Heartbeat
    ) -> None:
        """Sets up what is looked at in each step.

        Args:
            ds: The ``deepspeed.DeepSpeedEngine``.
            stage: Its ZeRO stage.
            seed: Of the dropout.
            n_sources: Sources whose losses are summed one by one.
            device: Where the model is.
            heartbeat: Is told which pass this rank is in.
        """
        self._heartbeat = heartbeat
        self._ds = ds
        self._stage = stage
        self._seed = seed
        self._n_sources = n_sources
        self._device = device
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
        self._scales_loss = (stage > 0 and ds.fp16_enabled()) or ds.torch_autocast_z0_gradscaler is not None
        scaler: Any = getattr(ds.optimizer, "loss_scaler", None)
        if hasattr(scaler, "raise_error_at_min_scale"):
            scaler.raise_error_at_min_scale = False  # who counts the steps left out gives up with a word of explanation
        self._watch = GradientWatch(ds.module.parameters())
        self._own_sums = self._zeros()
        self.clock = open_clock(device, stage)

    def step(self, micro_batches: Sequence[MicroBatch], targets: int, step: int, lr: float) -> StepResult:
        """Forward, backward and update for one global batch; every rank calls it.

        A step whose loss or gradient is not finite changes nothing, and is computed again from the same state with the
        same micro batches and the same dropout. What fp16 leaves out to find its loss scale is not computed again.

        Args:
            micro_batches: This rank's micro batches, at least one, and as many as on every rank.
            targets: Target tokens of the global batch.
            step: Number of the global batch, from 0.
            lr: Learning rate of this step.

        Returns:
            What the step did, and what went wrong in it.
        """
        counted = {name: getattr(self._ds, name) for name in _COUNTERS}
        scale = self._loss_scale()
        applied, norm, by_source = self._attempt(micro_batches, targets, step, lr)
        faults: tuple[Fault, ...] = ()
        recomputed = not applied and not self._is_overflow(by_source)
        if recomputed:  # on all ranks alike
            faults = self._find_faults()
            for name, value in counted.items():
                setattr(self._ds, name, value)
            self._restore_loss_scale(scale)
            applied, norm, by_source = self._attempt(micro_batches, targets, step, lr)
            if not applied and not self._is_overflow(by_source):
                self._restore_loss_scale(scale)  # which has no part in a loss that is not finite
        loss = sum(by_source) / max(1, targets)
        overflow = not applied and self._is_overflow(by_source)
        return StepResult(loss, norm, applied, tuple(by_source), recomputed, overflow, faults)

    def _attempt(
        self, micro_batches: Sequence[MicroBatch], targets: int, step: int, lr: float
    ) -> tuple[bool, float, list[float]]:
        """Whether the step was applied, the gradient's norm, and the sum of the cross-entropy by source."""
        self.clock.begin_step()
        for group in self._ds.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        self._expect(len(micro_batches))
        self._watch.begin()
        # DeepSpeed averages gradients over ranks; undo it and divide by the targets.
        scale = self._world_size / max(1, targets)
        sums = self._zeros()
        applied, norm = True, 0.0
        for index, micro in enumerate(micro_batches):
            is_last = index == len(micro_batches) - 1
            self._ds.set_gradient_accumulation_boundary(is_last)
            self._heartbeat.enter(Phase.FORWARD, micro_step=index)
            seed_dropout(self._seed, step, index, self._rank)
            self.clock.begin_forward()
            terms: LossTerms = self._ds(**to_device(micro, self._device))
            self.clock.end_forward()
            add_by_source(sums[:-1], micro, terms.nll_B)
            sums[-1] += terms.loss_sum.detach()
            self._heartbeat.enter(Phase.BACKWARD, micro_step=index)
            if is_last:
                self._own_sums = sums.clone()
                # Before the last backward pass: a loss that is not finite must not be learnt from, whatever its
                # gradient is.
                dist.all_reduce(sums)
                self._watch.spoil_unless(sums)
            self._ds.backward(terms.loss_sum * scale, scale_wrt_gas=False)
            if is_last and self._stage == 0:
                norm, applied = self._inspect_whole_gradients()
            if is_last:
                self._heartbeat.enter(Phase.UPDATE)
            self._update(applied)
        if self._stage > 0:
            norm = float(self._ds.get_global_grad_norm())
            applied = bool(self._ds.was_step_applied())
        by_source = sums[:-1].tolist()  # waits for the device
        self.clock.end_step()
        return applied, norm, by_source

    def _expect(self, micro_steps: int) -> None:
        """Tells DeepSpeed's own reports how large this step is.

        Its training must not go by that number: it takes a step to end where its count of all micro steps so far is
        a multiple of it, which fails once it changes. So each micro step is told whether it is the last.
        """
        if micro_steps != self._ds.gradient_accumulation_steps():
            rows = self._ds.train_micro_batch_size_per_gpu() * self._ds.dp_world_size
            self._ds.set_train_batch_size(rows * micro_steps)

    def _zeros(self) -> Tensor:
        """One sum for each source, and one for what is differentiated."""
        return torch.zeros(self._n_sources + 1, dtype=torch.float64, device=self._device)

    def _inspect_whole_gradients(self) -> tuple[float, bool]:
        """Norm of the reduced gradients of stage 0, whose plain optimizer neither reports nor checks it."""
        gradients = [p.grad for p in self._ds.module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        # Each rank has computed it for itself. One that erred alone must not leave out alone.
        finite = torch.isfinite(norm).to(torch.int32)
        dist.all_reduce(finite, op=dist.ReduceOp.MIN)
        scaler = self._ds.torch_autocast_z0_gradscaler
        return float(norm) if scaler is None else float(norm) / float(scaler.get_scale()), bool(finite)

    def _update(self, finite: bool) -> None:
        if finite or self._ds.torch_autocast_z0_gradscaler is not None:
            self._ds.step()  # the scaler itself skips a step that is not finite, and lowers its scale
            return
        self._ds.zero_grad()
        self._ds.micro_steps += 1
        self._ds.global_steps += 1

    def _is_overflow(self, by_source: Sequence[float]) -> bool:
        """Whether a step that was not applied is one that fp16 leaves out: its loss is finite."""
        return self._scales_loss and all(map(math.isfinite, by_source))

    def _find_faults(self) -> tuple[Fault, ...]:
        """The ranks whose own loss or gradients were not finite; every rank calls it."""
        own_loss = bool(torch.isfinite(self._own_sums).all())
        reason = "gradient" if self._watch.saw_non_finite() else ""
        reason = reason if own_loss else "loss"
        place = from_environment()
        told: list[Any] = [None] * self._world_size
        dist.all_gather_object(told, Fault(self._rank, place.host, place.local_rank, reason))
        return tuple(fault for fault in told if fault.reason)

    def _loss_scale(self) -> dict[str, Any]:
        if not self._scales_loss:
            return {}
        scaler = self._ds.torch_autocast_z0_gradscaler
        return dict(vars(self._ds.optimizer.loss_scaler)) if scaler is None else dict(scaler.state_dict())

    def _restore_loss_scale(self, state: dict[str, Any]) -> None:
        scaler = self._ds.torch_autocast_z0_gradscaler
        if scaler is None:
            if state:
                vars(self._ds.optimizer.loss_scaler).update(state)
        elif state:
            scaler.load_state_dict(state)

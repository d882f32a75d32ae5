"""Drives a DeepSpeed engine through steps whose loss is normalised over the global batch."""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime import torch_autocast
from deepspeed.utils import set_z3_leaf_modules
from pydantic import ValidationError
from torch import Tensor, nn

from scaletrain.config.derive import zero_stage
from scaletrain.data.loader import MicroBatch
from scaletrain.engine import state as engine_state
from scaletrain.engine.randomness import derive_seed, seed_dropout
from scaletrain.errors import ConfigError
from scaletrain.model.losses import LossTerms
from scaletrain.model.transformer import Block, Transformer
from scaletrain.protocols import FragmentSource, SavedPart

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Agreement:
    """What all ranks know before a step begins.

    Attributes:
        targets: Target tokens of the global batch.
        requests: For each kind of request, how many ranks made it.
    """

    targets: int
    requests: tuple[int, ...]


@dataclass(frozen=True)
class StepResult:
    """What one step did.

    Attributes:
        loss: Cross-entropy per target token over the global batch, in nats.
        grad_norm: Norm of the gradient before clipping; NaN or infinite for a step that was not applied.
        applied: Whether the weights were changed.
    """

    loss: float
    grad_norm: float
    applied: bool


class Engine:
    """A model, its optimizer and its shards, on all ranks together."""

    def __init__(
        self,
        build_module: Callable[[], nn.Module],
        build_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        ds_config: dict[str, Any],
        seed: int,
        compile_module: bool = False,
    ) -> None:
        """Builds the model and hands it to DeepSpeed; every rank calls it.

        Args:
            build_module: Makes the task's module; called once, after the generators are seeded, under
                ``deepspeed.zero.Init`` for stage 3, so that no rank holds all weights.
            build_optimizer: Makes the torch optimizer for the module.
            ds_config: As from ``ds_config.merge``.
            seed: The run's seed; gives the initial weights and the dropout.
            compile_module: Whether to use torch.compile.
        """
        self.stage = zero_stage(ds_config)
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self.device = torch.device(get_accelerator().current_device_name())
        self._seed = seed
        self._applied_steps = 0
        self._micro_steps: int = ds_config["gradient_accumulation_steps"]
        if self.device.type == "cpu":
            # Compiling the all-reduce of its inference would take DeepSpeed half a minute and more at a first start,
            # and again whenever another environment has built it meanwhile. Training never calls it.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        # Tells DeepSpeed that the ranks are connected; zero.Init would otherwise count one.
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
        # DeepSpeed keeps this per process: left over from an engine before, it would scale this one's gradients.
        torch_autocast.TORCH_AUTOCAST_INITIALIZED = False
        torch.manual_seed(derive_seed("init", seed))
        with _told_as_config_error(), self._sharded_construction(ds_config):
            module = build_module()
        if self.stage == 3:
            # A block's weights are gathered together, and torch.compile sees a block as one graph: hooks on each of
            # its linear layers would break it into small ones.
            set_z3_leaf_modules(module, [Block])
        with _told_as_config_error():
            self.ds, _, _, _ = deepspeed.initialize(model=module, optimizer=build_optimizer(module), config=ds_config)
        if compile_module:
            self.ds.compile()

    @contextlib.contextmanager
    def _sharded_construction(self, ds_config: dict[str, Any]) -> Iterator[None]:
        # On the device itself, so that all stages draw the initial weights from the same generator.
        with torch.device(self.device):
            if self.stage == 3:
                with deepspeed.zero.Init(config_dict_or_path=ds_config):
                    yield
            else:
                yield

    def agree(self, micro_batches: Sequence[MicroBatch], requests: Sequence[bool]) -> Agreement:
        """Sums up what each rank holds and wants; the one collective before a step.

        Args:
            micro_batches: This rank's part of the global batch.
            requests: Which kinds of request this rank makes.

        Returns:
            The same on all ranks.
        """
        targets = sum(int((micro["targets"] >= 0).sum()) for micro in micro_batches)
        # On the host, over gloo: nothing waits for a GPU here.
        totals = torch.tensor([targets, *map(int, requests)], dtype=torch.int64, device="cpu")
        dist.all_reduce(totals)
        target_total, *counts = totals.tolist()
        return Agreement(target_total, tuple(counts))

    def train_step(self, micro_batches: Sequence[MicroBatch], targets: int, step: int, lr: float) -> StepResult:
        """Forward, backward and update for one global batch; every rank calls it.

        Args:
            micro_batches: This rank's micro batches, as many as the gradient accumulation counts.
            targets: Target tokens of the global batch, as agreed.
            step: Number of the global batch, from 0.
            lr: Learning rate of this step.

        Returns:
            The step's loss and gradient norm.
        """
        for group in self.ds.optimizer.param_groups:
            group["lr"] = lr
        # DeepSpeed averages gradients over ranks and micro steps; undo both and divide by the targets.
        scale = self.world_size * self._micro_steps / max(1, targets)
        nll_sum = torch.zeros((), device=self.device)
        applied, norm = True, 0.0
        for index, micro in enumerate(micro_batches):
            seed_dropout(self._seed, step, index, self.rank)
            terms: LossTerms = self.ds(**self._to_device(micro))
            self.ds.backward(terms.loss_sum * scale)
            nll_sum += terms.nll_sum.detach()
            if index == len(micro_batches) - 1 and self.stage == 0:
                norm, applied = self._inspect_whole_gradients()
            self._update(applied)
        if self.stage > 0:
            norm = float(self.ds.get_global_grad_norm())
            applied = bool(self.ds.was_step_applied())
        self._applied_steps += applied
        dist.all_reduce(nll_sum)
        return StepResult(float(nll_sum) / max(1, targets), norm, applied)

    def _inspect_whole_gradients(self) -> tuple[float, bool]:
        """Norm of the reduced gradients of stage 0, whose plain optimizer neither reports nor checks it."""
        gradients = [p.grad for p in self.ds.module.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        scaler = self.ds.torch_autocast_z0_gradscaler
        return norm if scaler is None else norm / float(scaler.get_scale()), math.isfinite(norm)

    def _update(self, finite: bool) -> None:
        if finite or self.ds.torch_autocast_z0_gradscaler is not None:
            self.ds.step()  # the scaler itself skips a step that is not finite, and lowers its scale
            return
        self.ds.zero_grad()
        self.ds.micro_steps += 1
        self.ds.global_steps += 1

    @torch.no_grad()
    def evaluate(self, micro_batches: Iterator[MicroBatch], weigh: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Sums over a fixed set of micro batches; every rank calls it with equally many.

        Args:
            micro_batches: This rank's part.
            weigh: A further sum over targets (B, T), such as their length in bytes.

        Returns:
            ``nll`` in nats, ``targets``, ``weight`` (what ``weigh`` gave), over all ranks.
        """
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        with self._evaluating():
            for micro in micro_batches:
                terms: LossTerms = self.ds(**self._to_device(micro))
                weight = weigh(micro["targets"])
                sums += torch.stack([terms.nll_sum.double(), terms.targets.double(), weight.double().to(self.device)])
        dist.all_reduce(sums)
        nll, targets, weight_sum = sums.tolist()
        return {"nll": nll, "targets": targets, "weight": weight_sum}

    @contextlib.contextmanager
    def generating(self) -> Iterator[Transformer]:
        """Lends the model for generation; under ZeRO-3 all ranks must then make the same calls."""
        with torch.no_grad(), self._evaluating(), self._autocast():
            model: Transformer = self.ds.module.model
            yield model

    def broadcast_number(self, number: int) -> int:
        """Rank 0's number, on all ranks."""
        value = torch.tensor(number, dtype=torch.int64, device="cpu")
        dist.broadcast(value, src=0)
        return int(value)

    def collect_texts(self, text: str) -> list[str]:
        """What the ranks have to say, each text once; every rank calls it.

        Args:
            text: Of this rank; empty where it has nothing to say.

        Returns:
            The same on all ranks, in their order.
        """
        texts = [""] * self.world_size
        dist.all_gather_object(texts, text)
        return list(dict.fromkeys(filter(None, texts)))

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The autocast that DeepSpeed applies around its own forward pass."""
        if not self.ds.torch_autocast_enabled():
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.ds.torch_autocast_dtype())

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        self.ds.module.eval()
        # On a CPU compiling a second graph takes longer than all evaluations of a short run.
        eager = self.device.type == "cpu"
        try:
            with torch.compiler.set_stance("force_eager") if eager else contextlib.nullcontext():
                yield
        finally:
            self.ds.module.train()

    def save(self, folder: Path) -> SavedPart:
        """Writes this rank's share of a checkpoint; every rank calls it.

        Args:
            folder: An empty folder that all ranks see.

        Returns:
            What this rank wrote, and the engine's own state for ``load``.
        """
        return engine_state.save(self.ds, self.stage, self._applied_steps, folder)

    def load(self, source: FragmentSource, state: dict[str, Any]) -> None:
        """Takes weights, moments and counters from a checkpoint of any stage and number of ranks.

        Args:
            source: Reads the checkpoint's tensors.
            state: The state that ``save`` gave for it.

        Raises:
            CheckpointError: The checkpoint does not hold what this model needs.
        """
        engine_state.load(self.ds, self.stage, source, state)
        self._applied_steps = state["applied_steps"]

    def _to_device(self, micro: MicroBatch) -> dict[str, Any]:
        moved = {"tokens": micro["tokens"], "targets": micro["targets"]}
        moved |= {key: value for key in ("documents", "positions") if (value := micro[key]) is not None}
        return {key: value.to(self.device, non_blocking=True) for key, value in moved.items()}


@contextlib.contextmanager
def _told_as_config_error() -> Iterator[None]:
    """DeepSpeed checks its own settings with pydantic, whose traceback no user wants."""
    try:
        yield
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in error.errors())
        raise ConfigError(f"--deepspeed: DeepSpeed refuses {problems}. Correct the file.") from None

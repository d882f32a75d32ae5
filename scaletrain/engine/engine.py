"""Drives a DeepSpeed engine through steps whose loss is normalised over the global batch."""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
from scaletrain.data.dataset import MicroBatch
from scaletrain.engine import state as engine_state
from scaletrain.engine.randomness import derive_seed, seed_dropout
from scaletrain.errors import CheckpointError, ConfigError
from scaletrain.model.losses import LossTerms
from scaletrain.model.transformer import Block, Transformer
from scaletrain.protocols import FragmentSource, SavedPart

logger = logging.getLogger(__name__)

_WORD, _HALF_WORD = 2**64, 2**32


@dataclass(frozen=True)
class Agreement:
    """What all ranks know before a step begins.

    Attributes:
        targets: Target tokens of the global batch.
        requests: For each kind of request, how many ranks made it.
        source_targets: Target tokens of the global batch by source.
        checksum: Sum of the checksums of all its sequences modulo 2^64, whichever ranks hold them.
    """

    targets: int
    requests: tuple[int, ...]
    source_targets: tuple[int, ...]
    checksum: int


@dataclass(frozen=True)
class StepResult:
    """What one step did.

    Attributes:
        loss: Cross-entropy per target token over the global batch, in nats.
        grad_norm: Norm of the gradient before clipping; NaN or infinite for a step that was not applied.
        applied: Whether the weights were changed.
        source_nll: Sum of the cross-entropy by source over the global batch, in nats; 0 where it has no target.
    """

    loss: float
    grad_norm: float
    applied: bool
    source_nll: tuple[float, ...]


@dataclass(frozen=True)
class EvaluationSums:
    """Sums over an evaluated set, on all ranks together.

    Attributes:
        nll: Cross-entropy, in nats.
        targets: Target tokens.
        weight: What the caller weighed them with, such as their length in bytes.
        source_nll: Cross-entropy by source, in nats.
        source_targets: Target tokens by source.
    """

    nll: float
    targets: int
    weight: float
    source_nll: tuple[float, ...]
    source_targets: tuple[int, ...]


class Engine:
    """A model, its optimizer and its shards, on all ranks together."""

    def __init__(
        self,
        build_module: Callable[[], nn.Module],
        build_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        ds_config: dict[str, Any],
        seed: int,
        compile_module: bool = False,
        n_sources: int = 1,
    ) -> None:
        """Builds the model and hands it to DeepSpeed; every rank calls it.

        Args:
            build_module: Makes the task's module; called once, after the generators are seeded, under
                ``deepspeed.zero.Init`` for stage 3, so that no rank holds all weights.
            build_optimizer: Makes the torch optimizer for the module.
            ds_config: As from ``ds_config.merge``.
            seed: The run's seed; gives the initial weights and the dropout.
            compile_module: Whether to use torch.compile.
            n_sources: Sources that the rows of micro batches are numbered by.
        """
        self.stage = zero_stage(ds_config)
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self.device = torch.device(get_accelerator().current_device_name())
        self._seed = seed
        self._n_sources = n_sources
        self._applied_steps = 0
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
        source_targets = torch.zeros(self._n_sources, dtype=torch.int64, device="cpu")
        for micro in micro_batches:
            source_targets.index_add_(0, micro["sources"], (micro["targets"] >= 0).sum(1))
        # In two halves: their sums over ranks stay far within int64, whose overflow nobody defines.
        high, low = divmod(sum(micro["checksum"] for micro in micro_batches) % _WORD, _HALF_WORD)
        numbers = [*source_targets.tolist(), high, low, *map(int, requests)]
        # On the host, over gloo: nothing waits for a GPU here.
        totals = torch.tensor(numbers, dtype=torch.int64, device="cpu")
        dist.all_reduce(totals)
        by_source, (high, low, *counts) = totals[: self._n_sources].tolist(), totals[self._n_sources :].tolist()
        return Agreement(sum(by_source), tuple(counts), tuple(by_source), (high * _HALF_WORD + low) % _WORD)

    def train_step(self, micro_batches: Sequence[MicroBatch], targets: int, step: int, lr: float) -> StepResult:
        """Forward, backward and update for one global batch; every rank calls it.

        Args:
            micro_batches: This rank's micro batches: at least one, as many as on every rank, another number in each
                step where need be.
            targets: Target tokens of the global batch, as agreed.
            step: Number of the global batch, from 0.
            lr: Learning rate of this step.

        Returns:
            The step's loss and gradient norm.
        """
        for group in self.ds.optimizer.param_groups:
            group["lr"] = lr
        self._expect(len(micro_batches))
        # DeepSpeed averages gradients over ranks; undo it and divide by the targets.
        scale = self.world_size / max(1, targets)
        source_nll = self._zeros_by_source()
        applied, norm = True, 0.0
        for index, micro in enumerate(micro_batches):
            is_last = index == len(micro_batches) - 1
            self.ds.set_gradient_accumulation_boundary(is_last)
            seed_dropout(self._seed, step, index, self.rank)
            terms: LossTerms = self.ds(**self._to_device(micro))
            self.ds.backward(terms.loss_sum * scale, scale_wrt_gas=False)
            self._add_by_source(source_nll, micro, terms.nll_B)
            if is_last and self.stage == 0:
                norm, applied = self._inspect_whole_gradients()
            self._update(applied)
        if self.stage > 0:
            norm = float(self.ds.get_global_grad_norm())
            applied = bool(self.ds.was_step_applied())
        self._applied_steps += applied
        dist.all_reduce(source_nll)
        by_source = source_nll.tolist()
        return StepResult(sum(by_source) / max(1, targets), norm, applied, tuple(by_source))

    def _expect(self, micro_steps: int) -> None:
        """Tells DeepSpeed's own reports how large this step is.

        Its training must not go by that number: it takes a step to end where its count of all micro steps so far is
        a multiple of it, which fails once it changes. So each micro step is told whether it is the last.
        """
        if micro_steps != self.ds.gradient_accumulation_steps():
            rows = self.ds.train_micro_batch_size_per_gpu() * self.ds.dp_world_size
            self.ds.set_train_batch_size(rows * micro_steps)

    def _zeros_by_source(self) -> Tensor:
        return torch.zeros(self._n_sources, dtype=torch.float64, device=self.device)

    def _add_by_source(self, sums: Tensor, micro: MicroBatch, values_B: Tensor) -> None:
        sources_B = micro["sources"].to(self.device, non_blocking=True)
        sums.index_add_(0, sources_B, values_B.detach().to(sums.dtype))

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
    def evaluate(self, micro_batches: Iterator[MicroBatch], weigh: Callable[[Tensor], Tensor]) -> EvaluationSums:
        """Sums over a fixed set of micro batches; every rank calls it with equally many.

        Args:
            micro_batches: This rank's part.
            weigh: A further sum over targets (B, T), such as their length in bytes.

        Returns:
            The sums over all ranks.
        """
        nll, targets = self._zeros_by_source(), self._zeros_by_source()
        weight = torch.zeros(1, dtype=torch.float64, device=self.device)
        with self._evaluating():
            for micro in micro_batches:
                terms: LossTerms = self.ds(**self._to_device(micro))
                self._add_by_source(nll, micro, terms.nll_B)
                self._add_by_source(targets, micro, terms.targets_B)
                weight += weigh(micro["targets"]).to(self.device)
        sums = torch.cat([weight, nll, targets])
        dist.all_reduce(sums)
        weight_sum, *by_source = sums.tolist()
        source_nll = tuple(by_source[: self._n_sources])
        source_targets = tuple(map(int, by_source[self._n_sources :]))
        return EvaluationSums(sum(source_nll), sum(source_targets), weight_sum, source_nll, source_targets)

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

    def collect(self, is_writer: bool) -> SavedPart:
        """This rank's share of a checkpoint; every rank calls it.

        Args:
            is_writer: Whether this rank also writes what is the same on all ranks.

        Returns:
            Live tensors, which the next step changes, and the engine's own state for ``load``.
        """
        return engine_state.collect(self.ds, self.stage, self._applied_steps, is_writer)

    def load(self, source: FragmentSource, state: dict[str, Any]) -> None:
        """Takes weights, moments and counters from a checkpoint of any stage and number of ranks; every rank calls it.

        Args:
            source: Reads the checkpoint's tensors.
            state: The state that ``collect`` gave for it.

        Raises:
            CheckpointError: The checkpoint does not hold what this model needs, as one rank or more found. All ranks
                raise it, and the engine holds parts of it: another one has to be loaded.
        """
        problem = ""
        try:
            engine_state.fill(self.ds, self.stage, source, state)
        except CheckpointError as error:
            problem = str(error)
        if problems := self.collect_texts(problem):
            raise CheckpointError("; ".join(problems))
        engine_state.finish_loading(self.ds, self.stage, state)
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
    except ValueError as error:
        if "not supported on your device" not in str(error):
            raise
        raise ConfigError(f"train.precision: {error} Give --train.precision bf16 or fp32.") from None

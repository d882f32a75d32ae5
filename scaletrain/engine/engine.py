"""Drives a DeepSpeed engine through steps whose loss is normalised over the global batch."""

import contextlib
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
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
from scaletrain.data.rows import MicroBatch
from scaletrain.engine import state as engine_state
from scaletrain.engine.compute_clock import ComputeClock
from scaletrain.engine.equality import Difference, find_differences
from scaletrain.engine.link_probe import round_trip_s
from scaletrain.engine.partitions import base_optimizer, exchange_averages
from scaletrain.engine.randomness import derive_seed
from scaletrain.engine.stepping import Stepping
from scaletrain.engine.summing import EvaluationSums, sum_over
from scaletrain.errors import CheckpointError, ConfigError
from scaletrain.launch.hang.heartbeat import Heartbeat
from scaletrain.model.stack import Block
from scaletrain.protocols import FragmentSource, SavedPart, StepResult

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
        heartbeat: Heartbeat | None = None,
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
            heartbeat: Is told what this rank does; None where nobody looks.
        """
        self.heartbeat = heartbeat or Heartbeat()
        self.stage = zero_stage(ds_config)
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self.device = torch.device(get_accelerator().current_device_name())
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
            set_z3_leaf_modules(module, [Block], raise_if_not_found=False)  # not every kind of model has them
        with _told_as_config_error():
            self.ds, _, _, _ = deepspeed.initialize(model=module, optimizer=build_optimizer(module), config=ds_config)
        if self.stage == 3:
            _differentiate_from_the_bottom(module)
        if compile_module:
            self.ds.compile()
        self._stepping = Stepping(self.ds, self.stage, seed, n_sources, self.device, self.heartbeat)

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
            source_targets.index_add_(0, micro["sources"], micro["targets"])
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
            The step's loss and gradient norm, and what went wrong: see ``Stepping.step``.
        """
        result = self._stepping.step(micro_batches, targets, step, lr)
        self._applied_steps += result.applied
        return result

    @torch.no_grad()
    def evaluate(self, micro_batches: Iterator[MicroBatch], weigh: Callable[[MicroBatch], Tensor]) -> EvaluationSums:
        """Sums over a fixed set of micro batches; every rank calls it with equally many.

        Args:
            micro_batches: This rank's part.
            weigh: A further sum over a micro batch, such as the length of its targets in bytes.

        Returns:
            The sums over all ranks.
        """
        with self._evaluating():
            return sum_over(self.ds, micro_batches, weigh, self._n_sources, self.device, dist.all_reduce, self.gather)

    @contextlib.contextmanager
    def generating(self) -> Iterator[Any]:
        """Lends the model for generation; under ZeRO-3 all ranks must then make the same calls."""
        with torch.no_grad(), self._evaluating(), self._autocast():
            yield self.ds.module.model

    def broadcast_number(self, number: int) -> int:
        """Rank 0's number, on all ranks."""
        value = torch.tensor(number, dtype=torch.int64, device="cpu")
        dist.broadcast(value, src=0)
        return int(value)

    def all_are(self, is_so: bool) -> bool:
        """Whether something is true on all ranks; every rank calls it."""
        value = torch.tensor(is_so, dtype=torch.int32, device="cpu")
        dist.all_reduce(value, op=dist.ReduceOp.MIN)
        return bool(value)

    def largest(self, values: Sequence[float]) -> list[float]:
        """The largest on any rank of each of some numbers; every rank calls it with equally many."""
        numbers = torch.tensor(values, dtype=torch.float64, device="cpu")
        dist.all_reduce(numbers, op=dist.ReduceOp.MAX)
        return list(map(float, numbers.tolist()))

    def gather_numbers(self, values: Sequence[float]) -> list[list[float]]:
        """Some numbers of each rank, on all ranks and in their order; every rank calls it with equally many."""
        own = torch.tensor(values, dtype=torch.float64, device="cpu")
        gathered = [torch.empty_like(own) for _ in range(self.world_size)]
        dist.all_gather(gathered, own)
        return [numbers.tolist() for numbers in gathered]

    @property
    def clock(self) -> ComputeClock:
        """Tells how long this rank computes in a step."""
        return self._stepping.clock

    def round_trip_s(self, stride: int) -> float:
        """How long a message takes to another rank and back; see ``link_probe``. Every rank calls it."""
        return round_trip_s(self.rank, self.world_size, stride)

    def gather(self, value: Any) -> list[Any]:
        """What each rank has, on all ranks and in their order; every rank calls it."""
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def collect_texts(self, text: str) -> list[str]:
        """What the ranks have to say, each text once; every rank calls it.

        Args:
            text: Of this rank; empty where it has nothing to say.

        Returns:
            The same on all ranks, in their order.
        """
        return list(dict.fromkeys(filter(None, self.gather(text))))

    def find_differences(self, state: str) -> tuple[Difference, ...]:
        """Compares what must be equal on all ranks: the replicated numbers, and a state; every rank calls it.

        Args:
            state: Of this rank, as text.

        Returns:
            The same on all ranks; nothing where all is equal.
        """
        return find_differences(self.ds, self.stage, state)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The autocast that DeepSpeed applies around its own forward pass."""
        if not self.ds.torch_autocast_enabled():
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.ds.torch_autocast_dtype())

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        """The module as it is judged: without dropout, and with the moving average of its weights, if there is one."""
        self.ds.module.eval()
        # On a CPU compiling a second graph takes longer than all evaluations of a short run.
        eager = self.device.type == "cpu"
        averaged = exchange_averages(self.ds, self.stage)
        try:
            with torch.compiler.set_stance("force_eager") if eager else contextlib.nullcontext():
                yield
        finally:
            self.ds.module.train()
        if averaged:  # not behind an error, which ends the run: other ranks may not come here
            exchange_averages(self.ds, self.stage)

    def collect(self, is_writer: bool) -> SavedPart:
        """This rank's share of a checkpoint; every rank calls it.

        Args:
            is_writer: Whether this rank also writes what is the same on all ranks.

        Returns:
            Live tensors, which the next step changes, and the engine's own state for ``load``.
        """
        return engine_state.collect(self.ds, self.stage, self._applied_steps, is_writer)

    @property
    def shapes(self) -> dict[str, list[int]]:
        """Of all parameters of the wrapped module by name, a tied one once."""
        return engine_state.parameter_shapes(self.ds.module)

    def load(self, source: FragmentSource, state: dict[str, Any], initial: Collection[str] = ()) -> None:
        """Takes weights, moments and counters from a checkpoint of any stage and number of ranks; every rank calls it.

        Args:
            source: Reads the checkpoint's tensors.
            state: The state that ``collect`` gave for it.
            initial: Names of parameters that keep the values they have: the source has none.

        Raises:
            CheckpointError: The checkpoint does not hold what this model needs, as one rank or more found. All ranks
                raise it, and the engine holds parts of it: another one has to be loaded.
        """
        if state["applied_steps"] == 0:
            # A live optimizer that goes back to before its first update must know nothing of those it made.
            base_optimizer(self.ds, self.stage).state.clear()
        problem = ""
        try:
            engine_state.fill(self.ds, self.stage, source, state, initial)
        except CheckpointError as error:
            problem = str(error)
        if problems := self.collect_texts(problem):
            raise CheckpointError("; ".join(problems))
        engine_state.finish_loading(self.ds, self.stage, state)
        self._applied_steps = state["applied_steps"]


def _differentiate_from_the_bottom(module: nn.Module) -> None:
    """Has the outputs of frozen embeddings require gradients.

    ZeRO-3 lets go of a block's weights when the gradient of the block's input is there. Where nothing below it is
    trained there is no such gradient, and it would let go of them before they were used.
    """

    def require(embedding: nn.Module, inputs: Any, output: Tensor) -> None:
        if torch.is_grad_enabled() and not output.requires_grad:
            output.requires_grad_()

    for part in module.modules():
        if isinstance(part, nn.Embedding) and not part.weight.requires_grad:
            part.register_forward_hook(require)


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

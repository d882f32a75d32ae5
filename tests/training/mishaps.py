"""Sequences with which a forward pass goes wrong, on whatever rank they are and however often they come."""

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

from scaletrain.data.dataset import SequenceDataset
from scaletrain.engine.engine import Engine
from scaletrain.training import run
from tests.engine.faults import fault


@dataclass(frozen=True)
class Mishap:
    """What goes wrong in a start.

    Attributes:
        sequences: Their loss is multiplied, for ever.
        factor: By this; NaN is a loss that is not finite.
        faults: (rank, step): a gradient of the rank is NaN once in that step.
        flip: (rank, step): after that step a bit of the rank's weights is another.
        kill_at: Step before which rank 0 is asked to end.
    """

    sequences: tuple[int, ...] = ()
    factor: float = 9.0
    faults: tuple[tuple[int, int], ...] = ()
    flip: tuple[int, int] | None = None
    kill_at: int | None = None


@contextlib.contextmanager
def mishaps(mishap: Mishap | None, dataset: SequenceDataset) -> Iterator[None]:
    """Makes the engine of the run that is built meanwhile go wrong."""
    if mishap is None:
        yield
        return
    rows = [dataset.micro_batch([sequence])["inputs"]["tokens"][0] for sequence in mishap.sequences]
    build_engine = run.build_engine

    def build_one(*args: Any) -> Engine:
        engine = build_engine(*args)
        engine.ds.module.register_forward_hook(lambda *call: _spoil(*call, rows, mishap.factor), with_kwargs=True)
        train_step = engine.train_step

        def step_with_faults(micro_batches: Any, targets: int, step: int, lr: float) -> Any:
            faulty = (dist.get_rank(), step) in mishap.faults
            if mishap.kill_at == step and dist.get_rank() == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            with fault(engine, "gradient") if faulty else contextlib.nullcontext():
                result = train_step(micro_batches, targets, step, lr)
            if mishap.flip == (dist.get_rank(), step):
                next(engine.ds.module.parameters()).detach().view(-1).view(torch.int32)[5] ^= 1
            return result

        engine.train_step = step_with_faults  # type: ignore[method-assign]
        return engine

    with patch.object(run, "build_engine", build_one):
        yield


def _spoil(module: Any, args: Any, kwargs: dict[str, Any], terms: Any, rows: list[Any], factor: float) -> Any:
    if not module.training:
        return terms
    bad = torch.tensor([any(torch.equal(own, row) for row in rows) for own in kwargs["tokens"]])
    factors = torch.where(bad, factor, 1.0)
    return terms._replace(nll_B=terms.nll_B * factors, loss_sum=terms.loss_sum * factors.max())

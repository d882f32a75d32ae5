"""What the ranks of the model's tests do: train on packed documents, by documents or with the mask."""

import torch
import torch.distributed as dist

from scaletrain.config.batch_plan import BatchPlan
from scaletrain.model.document_attention import MIN_SEQ_LEN
from tests.engine.bodies import GLOBAL_BATCH, VOCAB, Case, build_engine

SHAPE = {"n_heads": 2, "d_model": 16, "max_seq_len": MIN_SEQ_LEN, "positions": "sinusoidal"}


def train_packed(threads: int, checkpointing: bool) -> list[float]:
    """Losses of three steps of ZeRO-3; more threads than heads make it take the mask."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        size = GLOBAL_BATCH // dist.get_world_size()
        case = Case(stage=3, micro=size, checkpointing=checkpointing, model=SHAPE)
        engine = build_engine(case, BatchPlan(GLOBAL_BATCH, size, dist.get_world_size()))
        losses = []
        for step in range(3):
            generator = torch.Generator().manual_seed(
                dist.get_rank()
            )  # the same in each step, so that it can be learnt
            documents, _ = (torch.rand(size, MIN_SEQ_LEN, generator=generator) < 0.05).int().cumsum(1).sort(1)
            tokens = torch.randint(VOCAB, (size, MIN_SEQ_LEN + 1), generator=generator)
            inputs = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "documents": documents, "positions": None}
            micro = {"inputs": inputs, "sources": torch.zeros(size, dtype=torch.int64)}
            losses.append(engine.train_step([micro], GLOBAL_BATCH * MIN_SEQ_LEN, step, 1e-2).loss)
        return losses
    finally:
        torch.set_num_threads(before)

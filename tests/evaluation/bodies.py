"""What the ranks of the search's tests do."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from scaletrain.config.schema import LossConfig, ModelConfig, OptimConfig, TrainConfig
from scaletrain.engine.ds_config import merge
from scaletrain.engine.engine import Engine
from scaletrain.evaluation.beam_search import Search, search_texts
from scaletrain.model.build import build_model
from scaletrain.optim.optimizers import build_optimizer, parameter_groups
from scaletrain.tasks.seq2seq import Seq2Seq
from tests.engine.bodies import SMALL_BUCKET

VOCAB, SEED = 23, 5
MODEL = {"vocab_size": VOCAB, "d_model": 30, "n_layers": 2, "n_encoder_layers": 2, "n_heads": 3, "init_std": 0.8}
SEARCHES = (Search(12, 0, 18, beams=1), Search(12, 0, 18, beams=4))


def wrapped(config: ModelConfig) -> nn.Module:
    """The module that DeepSpeed wraps."""
    return Seq2Seq(build_model(config), LossConfig())


def all_sources() -> tuple[Tensor, Tensor]:
    """Seven sources of several lengths."""
    generator = torch.Generator().manual_seed(0)
    source_BS = torch.randint(1, VOCAB, (7, 9), generator=generator)
    return source_BS, torch.arange(9) < torch.randint(1, 10, (7, 1), generator=generator)


def search_under_zero(stage: int, only: slice | None = None) -> list[list[list[int]]]:
    """Texts of this rank's sources, greedily and by beams.

    Args:
        stage: Of ZeRO.
        only: The sources; by default the first rank has five and the second two.

    Returns:
        Texts by search.
    """
    config, optim = ModelConfig(**MODEL), OptimConfig()
    train = TrainConfig(precision="fp32", micro_batch_size=2, global_batch_size=4)
    engine = Engine(
        lambda: wrapped(config),
        lambda module: build_optimizer(optim, parameter_groups(module.named_parameters(), 0.0)),
        merge({"zero_optimization": {"stage": stage, **SMALL_BUCKET}}, train, optim, 1, dist.get_world_size()),
        seed=SEED,
    )
    source_BS, mask_BS = all_sources()
    own = only or (slice(0, 5) if dist.get_rank() == 0 else slice(5, 7))

    def all_are_done(is_done: bool) -> bool:
        return not engine.agree((), (not is_done,)).requests[0]

    with engine.generating() as model:
        return [search_texts(model, source_BS[own], mask_BS[own], search, all_are_done) for search in SEARCHES]

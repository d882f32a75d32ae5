"""Wires a run's configuration into objects."""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from scaletrain.config.batch_plan import BatchPlan, BatchSchedule
from scaletrain.config.derive import load_deepspeed_json
from scaletrain.config.load import dump_yaml
from scaletrain.config.schema import RunConfig
from scaletrain.data.corpus_facts import CorpusFacts
from scaletrain.data.dataset import SequenceDataset
from scaletrain.data.loader import Share, evaluation_batches, evaluation_sequences
from scaletrain.data.rows import MicroBatch
from scaletrain.engine.ds_config import merge
from scaletrain.engine.engine import Engine
from scaletrain.launch.hang.heartbeat import Heartbeat
from scaletrain.launch.run_dir import RunDirectory
from scaletrain.model.build import build_model
from scaletrain.model.tuning import prepare
from scaletrain.monitors.jsonl_writer import JsonlWriter
from scaletrain.monitors.throughput import Throughput
from scaletrain.monitors.writers import WriterTarget, open_writers
from scaletrain.optim.optimizers import build_optimizer, parameter_groups
from scaletrain.protocols import Callback, Run, SequenceRange, TrainingState
from scaletrain.ranks import Ranks
from scaletrain.tasks.task import Task, TaskSetting
from scaletrain.training.checkpointing import Checkpointing
from scaletrain.training.corpus import Corpora, phases_of, training_readers
from scaletrain.training.datasets import evaluation_dataset
from scaletrain.training.evaluating import Evaluating
from scaletrain.training.health import Health
from scaletrain.training.mixing import Mixing
from scaletrain.training.monitoring import NodeMonitor, open_watch
from scaletrain.training.node_view import NodeView
from scaletrain.training.node_watch import NodeWatch
from scaletrain.training.reporting import Reporting
from scaletrain.training.resuming import newest_intact
from scaletrain.training.rollback import (
    choose_step_back,
    documents_of,
    shared_return,
)
from scaletrain.training.signals import StopRequests
from scaletrain.training.stability import Stability, loss_borders
from scaletrain.training.stragglers import Stragglers
from scaletrain.training.tiers import Tier

logger = logging.getLogger(__name__)


def _shared_documents(engine: Engine, dataset: SequenceDataset, sequences: SequenceRange) -> list[str]:
    own = documents_of(dataset, sequences) if engine.rank == 0 else []
    return engine.collect_texts(", ".join(own))


def setting_of(config: RunConfig, corpora: Corpora) -> TaskSetting:
    """What the task of a run is made of.

    Args:
        config: The run's configuration.
        corpora: What it reads.

    Returns:
        The setting.
    """
    readers, facts = training_readers(corpora), CorpusFacts.of(corpora.first)
    return TaskSetting(config.task, config.loss, config.model, facts, corpora.read_tokenizer(), readers)


def share_of(config: RunConfig, ranks: Ranks, state: TrainingState) -> Share:
    """Which part of each step this rank fetches, without what rollbacks have left out.

    Args:
        config: The run's configuration.
        ranks: The place of this process.
        state: Where the run stands.

    Returns:
        The share.
    """
    schedule = BatchSchedule.of(config.train, state.skipped_sequences)
    return Share(schedule, config.train.micro_batch_size, ranks.rank, ranks.world_size)


def build_stability(
    config: RunConfig,
    engine: Engine,
    dataset: SequenceDataset,
    checkpointing: Checkpointing,
    tiers: Sequence[Tier],
    run_dir: Path,
    ranks: Ranks,
) -> Stability:
    """The callback that sends the run back.

    Args:
        config: The run's configuration.
        engine: The model on all ranks.
        dataset: What the run reads.
        checkpointing: May be saving one still.
        tiers: The places for checkpoints.
        run_dir: The run directory, with the diary.
        ranks: The place of this process.

    Returns:
        The callback.
    """

    def step_back(run: Run, newest_step: int) -> int | None:
        checkpointing.settle(run)
        find = partial(newest_intact, engine, tiers, config.checkpoint.verify, ranks)
        return choose_step_back(find, newest_step, shared_return(run_dir))

    phases = phases_of(config.data, config.train.max_seq_len)
    borders = loss_borders(phases, config.data.num_lanes, BatchSchedule.of(config.train))
    return Stability(config.stability, borders, step_back, partial(_shared_documents, engine, dataset))


def build_health(config: RunConfig, corpora: Corpora, engine: Engine) -> Health:
    """The callback that compares the ranks.

    Args:
        config: The run's configuration.
        corpora: What it reads.
        engine: The model on all ranks.

    Returns:
        The callback.
    """
    identity = f"{config.seed} {corpora.fingerprint}"
    return Health(engine, config.stability.check_every_steps, config.train.deterministic, identity)


def build_monitor(
    config: RunConfig, folder: RunDirectory, attempt: int, engine: Engine, stop: StopRequests, ranks: Ranks
) -> list[Callback]:
    """The callbacks that look after nodes and ranks; none where nobody is to.

    Args:
        config: The run's configuration.
        folder: The run's folder.
        attempt: Number of this start.
        engine: Lets the ranks tell each other.
        stop: Is asked to end the run.
        ranks: The place of this process.

    Returns:
        Two callbacks at most, the same on all ranks.
    """
    watch: NodeWatch | NodeView | None = None
    callbacks: list[Callback] = []
    if config.monitor.health.enabled:
        watch = _open_node_watch(config, folder, attempt, engine, stop, ranks)
        will_save = config.checkpoint.every_steps > 0 and config.checkpoint.keep_last != 0
        callbacks.append(NodeMonitor(watch, stop, engine.gather, config.log.every_steps, will_save))
    if config.monitor.stragglers.enabled and ranks.world_size > 1:
        note_slow = watch.note_slow if isinstance(watch, NodeWatch) else _ignore
        callbacks.append(Stragglers(engine, ranks, config.monitor.stragglers, config.log.every_steps, note_slow))
    return callbacks


def _ignore(slow_ranks: frozenset[int]) -> None:
    """Where no GPU is looked after by this rank."""


def _open_node_watch(
    config: RunConfig, folder: RunDirectory, attempt: int, engine: Engine, stop: StopRequests, ranks: Ranks
) -> NodeWatch | NodeView:
    given = {"run_dir": folder.path, "local_dir": config.checkpoint.local_dir, "cache_dir": config.data.cache_dir}
    folders = {name: path for name, path in given.items() if path is not None and path.is_dir()}
    has_gpus = engine.device.type == "cuda"
    return open_watch(config.monitor.health, folder, attempt, ranks, folders, has_gpus, stop)


def build_reporting(
    config: RunConfig,
    records: list[JsonlWriter],
    target: WriterTarget,
    timing: Throughput,
    mixing: Mixing,
    evaluating: Evaluating,
    ranks: Ranks,
    monitor: Sequence[Callback],
) -> Reporting:
    """The callback that writes metrics, from the target's first step on.

    Args:
        config: The run's configuration.
        records: Writers that get every step.
        target: Where the other writers write.
        timing: Gives the time left.
        mixing: Gives the passes over each source.
        evaluating: Gives the samples.
        ranks: The place of this process; only rank 0 writes.
        monitor: What looks after nodes and ranks; gives the picture of the ranks.

    Returns:
        The callback.
    """
    return Reporting(
        records,
        open_writers(config.log.writers, target) if ranks.is_main else (),
        config.log.every_steps,
        timing,
        mixing.epochs,
        dump_yaml(config),
        evaluating,
        next((one for one in monitor if isinstance(one, Stragglers)), None),
    )


def build_evaluating(config: RunConfig, corpora: Corpora, engine: Engine, task: Task, ranks: Ranks) -> Evaluating:
    """The evaluation on one fixed set: neither seed, lanes nor the number of ranks choose what a run is judged by.

    Args:
        config: The run's configuration.
        corpora: What it reads.
        engine: The model on all ranks.
        task: What the run learns.
        ranks: The place of this process.

    Returns:
        The callback.
    """
    dataset = evaluation_dataset(config, corpora, task)
    size = config.train.micro_batch_size
    chosen = [] if dataset is None else evaluation_sequences(dataset, config.eval.max_sequences)

    def batches() -> Iterator[MicroBatch]:
        assert dataset is not None  # is not asked where there is nothing to evaluate on
        return evaluation_batches(dataset, chosen, size, ranks.rank, ranks.world_size)

    names = [] if dataset is None else dataset.names
    if not names and ranks.is_main:
        logger.warning("no source has a validation split: the loss on unseen text is not measured")
    context, tokenizer = config.train.max_seq_len, corpora.read_tokenizer()
    return Evaluating(engine, config.eval, batches, tokenizer, config.seed, context, names, task)


def build_engine(
    config: RunConfig,
    plan: BatchPlan,
    n_sources: int,
    join_loss: Callable[[Any], torch.nn.Module],
    heartbeat: Heartbeat,
) -> Engine:
    """Builds the model and hands it to DeepSpeed; every rank calls it.

    Args:
        config: The run's configuration.
        plan: How a step is cut.
        n_sources: Sources whose losses are told one by one.
        join_loss: Joins a model and the loss of its task.
        heartbeat: Is told what this rank does.

    Returns:
        The engine, with initial weights.
    """
    train, optim = config.train, config.optim

    def module() -> torch.nn.Module:
        model = build_model(config.model, checkpoint_activations=train.activation_checkpointing)
        prepare(model, config.lora, config.tune)
        return join_loss(model)

    def optimizer(module: torch.nn.Module) -> torch.optim.Optimizer:
        groups = parameter_groups(module.named_parameters(), optim.weight_decay, config.tune.layer_decay)
        return build_optimizer(optim, groups)

    ds_config = merge(load_deepspeed_json(config.deepspeed), train, optim, plan.micro_steps, plan.world_size)
    return Engine(module, optimizer, ds_config, config.seed, train.compile, n_sources, heartbeat)

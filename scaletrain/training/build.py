"""Wires a run's configuration into objects, and trains."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from scaletrain.config.batch_plan import BatchPlan, BatchSchedule
from scaletrain.config.derive import effective_decay_steps, load_deepspeed_json
from scaletrain.config.load import dump_yaml
from scaletrain.config.schema import RunConfig
from scaletrain.data.corpus_facts import CorpusFacts
from scaletrain.data.dataset import SequenceDataset
from scaletrain.data.loader import Share, StepStream, evaluation_batches, evaluation_sequences, iterate_steps
from scaletrain.data.rows import MicroBatch
from scaletrain.engine.ds_config import merge
from scaletrain.engine.engine import Engine
from scaletrain.launch.endings import end_at_once
from scaletrain.launch.hang.heartbeat import Heartbeat
from scaletrain.launch.processes import own_start_s
from scaletrain.launch.run_dir import RunDirectory
from scaletrain.launch.verdicts import Ending
from scaletrain.model.build import build_model
from scaletrain.model.tuning import prepare
from scaletrain.monitors.jsonl_writer import JsonlWriter
from scaletrain.monitors.throughput import Throughput
from scaletrain.monitors.writers import WriterTarget, open_writers
from scaletrain.optim.optimizers import build_optimizer, parameter_groups
from scaletrain.optim.schedules import learning_rate
from scaletrain.planning.flops import flops_per_token, output_share
from scaletrain.protocols import Callback, Run, SequenceRange, SkippedShard, TrainingState
from scaletrain.ranks import Ranks
from scaletrain.tasks.registry import build_task
from scaletrain.tasks.task import Task, TaskSetting
from scaletrain.training.announcing import announce, conclude
from scaletrain.training.checkpointing import Checkpointing
from scaletrain.training.corpus import Corpora, phases_of, training_readers
from scaletrain.training.datasets import evaluation_dataset, training_dataset
from scaletrain.training.evaluating import Evaluating
from scaletrain.training.feed import Feed
from scaletrain.training.health import Health
from scaletrain.training.init_source import choose_sources
from scaletrain.training.lineage import Lineage, shared_lineage
from scaletrain.training.loop import TrainingRun, done_before, fit
from scaletrain.training.mixing import Mixing
from scaletrain.training.monitoring import NodeMonitor, open_watch
from scaletrain.training.overfitting import Overfitting
from scaletrain.training.phase_limits import PhaseLimits
from scaletrain.training.processes import find_peak, limit_collectives
from scaletrain.training.range_test import RangeTest
from scaletrain.training.reporting import Reporting
from scaletrain.training.resuming import Resumed, begin_with, newest_intact, resume
from scaletrain.training.rollback import (
    RollBack,
    choose_step_back,
    documents_of,
    restore_skipped,
    settle_rollback,
    shared_return,
)
from scaletrain.training.saving import Saver
from scaletrain.training.signals import StopRequests
from scaletrain.training.stability import Stability, loss_borders
from scaletrain.training.tiers import Tier, open_tiers

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """What is so in this start of a run only.

    Attributes:
        attempt: Its number.
        end_s: When this process will be ended, in Unix seconds; None for never.
        trust_checkpoint: Whether objects of any class in a checkpoint may be unpickled, which runs what it says.
        heartbeat: Is told what this rank does.
    """

    attempt: int
    end_s: float | None
    trust_checkpoint: bool
    heartbeat: Heartbeat = field(default_factory=Heartbeat)


def train(config: RunConfig, corpora: Corpora, folder: RunDirectory, start: Start, ranks: Ranks) -> Ending:
    """Starts a run or goes on with it; every rank calls it, connected to the others.

    Args:
        config: The run's configuration, checked.
        corpora: What it reads.
        folder: The run's folder, claimed by rank 0.
        start: What is so this time only.
        ranks: The place of this process.

    Returns:
        How the run ended.
    """
    train, attempt, verify = config.train, start.attempt, config.checkpoint.verify
    first_plan = BatchSchedule.of(train).plan_at(0, train.micro_batch_size, ranks.world_size)
    task = build_task(setting_of(config, corpora))
    engine = build_engine(config, first_plan, len(corpora.manifests), task.module, start.heartbeat)
    limit_collectives(train.collective_timeout_s)
    timing = Throughput(_flops_per_token(config), find_peak(train), ranks.world_size)
    evaluating = build_evaluating(config, corpora, engine, task, ranks)
    records = [JsonlWriter(folder.metrics, attempt)] if ranks.is_main else []
    tiers = open_tiers(config.checkpoint, folder, ranks, keeps_best=config.eval.patience > 0)
    checkpointing = Checkpointing(Saver(engine, config.checkpoint.background, records), tiers, dump_yaml(config))
    dataset = training_dataset(config, corpora)
    mixing = Mixing(dataset.order, phases_of(config.data, train.max_seq_len), dataset.names)
    stability = build_stability(config, engine, dataset, checkpointing, tiers, folder.path, ranks)
    health = build_health(config, corpora, engine)
    overfitting = Overfitting(config.eval.patience, lambda wants: engine.agree((), wants).requests)
    range_test = [RangeTest(train.max_steps)] if config.optim.schedule == "range_test" else []
    stateful = (mixing, overfitting, *range_test, health, stability, evaluating, checkpointing)
    lineage = shared_lineage(folder.path)
    resumed = _begin(config, corpora, engine, tiers, stateful, lineage, start, ranks)
    state = resumed.state
    checkpointing.note_resumed(state.step, resumed.folder, [path for path, _ in resumed.refused])
    restore_skipped(folder.path, state)
    announce(config, share_of(config, ranks, state), engine, dataset, state, start.end_s)
    if checkpointing.saved_at == state.step and (done := done_before(state.step, train.max_steps, overfitting.reason)):
        return done
    stop = StopRequests(folder.path, ranks.is_main, partial(end_at_once, folder, attempt, ranks), start.end_s)
    monitor = build_monitor(config, folder, attempt, engine, stop, ranks)
    run = TrainingRun(state, train.max_steps, folder.path, attempt, ranks.is_main, (), heartbeat=start.heartbeat)
    run.complete_because = overfitting.reason
    resumed.record(run, world_size=ranks.world_size, zero_stage=engine.stage, launched_s=own_start_s())
    while True:
        target = WriterTarget(folder.path, attempt, state.step + 1, config.log)
        reporting = build_reporting(config, records, target, timing, mixing, evaluating, ranks)
        run.state, run.callbacks = state, (*monitor, mixing, overfitting, reporting, *stateful[2:], PhaseLimits(engine))
        try:
            open_dataset = partial(training_dataset, config, corpora, task=task)
            ending = _fit(config, open_dataset, run, engine, share_of(config, ranks, state), timing, stop)
        except RollBack as back:
            checkpointing.settle(run)
            resumed = resume(engine, tiers, verify, stateful, ranks, lineage, start.trust_checkpoint, back.newest_step)
            resumed.record_refused(run)
            state = resumed.state
            settle_rollback(run, tiers, back, state, documents_of(dataset, back.left_out) if ranks.is_main else ())
            continue
        conclude(ending, run, evaluating)
        return ending


def _begin(
    config: RunConfig,
    corpora: Corpora,
    engine: Engine,
    tiers: Sequence[Tier],
    stateful: Sequence[Callback],
    lineage: Lineage,
    start: Start,
    ranks: Ranks,
) -> Resumed:
    """Goes on from the newest checkpoint; a new run begins with the weights that it was told to."""
    verify = config.checkpoint.verify
    resumed = resume(engine, tiers, verify, stateful, ranks, lineage, start.trust_checkpoint)
    find = partial(choose_sources, config, corpora.tokenizer, "off" if verify == "off" else "sizes")
    return begin_with(engine, find, resumed, verify, ranks, start.trust_checkpoint)


def _flops_per_token(config: RunConfig) -> float:
    return flops_per_token(config.model, config.train.max_seq_len, output_share(config.task))


def _fit(
    config: RunConfig,
    open_dataset: Callable[[Sequence[SkippedShard]], SequenceDataset],
    run: TrainingRun,
    engine: Engine,
    share: Share,
    timing: Throughput,
    stop: StopRequests,
) -> Ending:
    """Trains from the state of a run, with data fetched from there on."""
    train, data = config.train, config.data
    rates = partial(learning_rate, config.optim, decay_steps=effective_decay_steps(config.optim, train.max_steps))

    def open_stream(dataset: SequenceDataset, state: TrainingState) -> StepStream:
        return iterate_steps(dataset, share, state.step, state.sequences, data.num_workers, data.prefetch)

    feed = Feed(open_dataset, open_stream, engine, data.on_bad_shard == "skip")
    feed.start(run.state)
    told_apart = tuple(source.name for source in data.sources) if len(data.sources) > 1 else ()
    try:
        return fit(run, engine, feed, rates, timing, stop, train.max_seq_len, told_apart)
    finally:
        feed.close()


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
) -> list[NodeMonitor]:
    """The callback that looks after the nodes; none where nobody is to.

    Args:
        config: The run's configuration.
        folder: The run's folder.
        attempt: Number of this start.
        engine: Lets the ranks tell each other.
        stop: Is asked to end the run.
        ranks: The place of this process.

    Returns:
        One callback or none, the same on all ranks.
    """
    if not config.monitor.health.enabled:
        return []
    given = {"run_dir": folder.path, "local_dir": config.checkpoint.local_dir, "cache_dir": config.data.cache_dir}
    folders = {name: path for name, path in given.items() if path is not None and path.is_dir()}
    has_gpus = engine.device.type == "cuda"
    watch = open_watch(config.monitor.health, folder, attempt, ranks, folders, has_gpus, stop)
    will_save = config.checkpoint.every_steps > 0 and config.checkpoint.keep_last != 0
    return [NodeMonitor(watch, stop, engine.gather, config.log.every_steps, will_save)]


def build_reporting(
    config: RunConfig,
    records: list[JsonlWriter],
    target: WriterTarget,
    timing: Throughput,
    mixing: Mixing,
    evaluating: Evaluating,
    ranks: Ranks,
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

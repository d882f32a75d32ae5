"""A run from its configuration to its end."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from scaletrain.config.batch_plan import BatchSchedule
from scaletrain.config.derive import effective_decay_steps
from scaletrain.config.load import dump_yaml
from scaletrain.config.schema import RunConfig
from scaletrain.data.dataset import SequenceDataset
from scaletrain.data.loader import Share, StepStream, iterate_steps
from scaletrain.engine.engine import Engine
from scaletrain.launch.endings import end_at_once
from scaletrain.launch.hang.heartbeat import Heartbeat
from scaletrain.launch.processes import own_start_s
from scaletrain.launch.run_dir import RunDirectory
from scaletrain.launch.verdicts import Ending
from scaletrain.monitors.jsonl_writer import JsonlWriter
from scaletrain.monitors.throughput import Throughput
from scaletrain.monitors.writers import WriterTarget
from scaletrain.optim.schedules import learning_rate
from scaletrain.planning.flops import flops_per_token, output_share
from scaletrain.protocols import Callback, SkippedShard, TrainingState
from scaletrain.ranks import Ranks
from scaletrain.tasks.registry import build_task
from scaletrain.training.announcing import announce, conclude
from scaletrain.training.build import (
    build_engine,
    build_evaluating,
    build_health,
    build_monitor,
    build_reporting,
    build_stability,
    setting_of,
    share_of,
)
from scaletrain.training.checkpointing import Checkpointing
from scaletrain.training.corpus import Corpora, phases_of
from scaletrain.training.datasets import training_dataset
from scaletrain.training.feed import Feed
from scaletrain.training.init_source import choose_sources
from scaletrain.training.lineage import Lineage, shared_lineage
from scaletrain.training.loop import TrainingRun, done_before, fit
from scaletrain.training.mixing import Mixing
from scaletrain.training.overfitting import Overfitting
from scaletrain.training.phase_limits import PhaseLimits
from scaletrain.training.processes import find_peak, limit_collectives
from scaletrain.training.range_test import RangeTest
from scaletrain.training.resuming import Resumed, begin_with, resume
from scaletrain.training.rollback import (
    RollBack,
    documents_of,
    restore_skipped,
    settle_rollback,
)
from scaletrain.training.saving import Saver
from scaletrain.training.signals import StopRequests
from scaletrain.training.tiers import Tier, open_tiers


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
        reporting = build_reporting(config, records, target, timing, mixing, evaluating, ranks, monitor)
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

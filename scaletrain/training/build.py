"""Wires a run's configuration into objects, and trains."""

import logging
from collections.abc import Iterator
from functools import partial

import torch

from scaletrain.config.batch_plan import BatchPlan
from scaletrain.config.derive import effective_decay_steps, load_deepspeed_json
from scaletrain.config.load import dump_yaml
from scaletrain.config.schema import RunConfig
from scaletrain.data.loader import MicroBatch, SequenceDataset, evaluation_batches, iterate_steps
from scaletrain.data.manifest import Manifest
from scaletrain.data.tokenizer import Borders, load_tokenizer
from scaletrain.engine.ds_config import merge
from scaletrain.engine.engine import Engine
from scaletrain.launch.run_dir import RunDirectory
from scaletrain.launch.verdicts import Ending, Verdict
from scaletrain.model.transformer import Transformer
from scaletrain.monitors.progress import format_count, start_banner
from scaletrain.monitors.throughput import Throughput
from scaletrain.monitors.writers import WriterTarget, open_writers
from scaletrain.optim.optimizers import build_optimizer, parameter_groups
from scaletrain.optim.schedules import learning_rate
from scaletrain.planning.flops import flops_per_token
from scaletrain.planning.parameters import count_parameters
from scaletrain.protocols import TrainingState
from scaletrain.ranks import Ranks
from scaletrain.tasks.causal_lm import CausalLM
from scaletrain.training.checkpointing import Checkpointing, resume
from scaletrain.training.evaluating import Evaluating
from scaletrain.training.loop import TrainingRun, fit
from scaletrain.training.processes import find_peak
from scaletrain.training.reporting import Reporting
from scaletrain.training.signals import StopRequests

logger = logging.getLogger(__name__)


def train(config: RunConfig, manifest: Manifest, folder: RunDirectory, attempt: int, ranks: Ranks) -> Ending:
    """Starts a run or goes on with it; every rank calls it, connected to the others.

    Args:
        config: The run's configuration, checked.
        manifest: The corpus.
        folder: The run's folder, claimed by rank 0.
        attempt: Number of this start.
        ranks: The place of this process.

    Returns:
        How the run ended.
    """
    plan = BatchPlan(config.train.global_batch_size, config.train.micro_batch_size, ranks.world_size)
    max_steps = config.train.max_steps
    engine = build_engine(config, plan)
    dataset = open_dataset(config, manifest)
    timing = Throughput(
        flops_per_token(config.model, config.train.max_seq_len), find_peak(config.train), ranks.world_size
    )
    evaluating = build_evaluating(config, manifest, engine, ranks)
    checkpointing = Checkpointing(engine, config.checkpoint, dump_yaml(config))
    state = resume(engine, folder.checkpoints, config.checkpoint.verify, (evaluating, checkpointing))
    _announce(config, plan, engine, dataset, state)
    if state.step >= max_steps:
        beyond = " (it was trained with a larger train.max_steps)" if state.step > max_steps else ""
        logger.info("the run is complete: it is at step %d of %d%s", state.step, max_steps, beyond)
        return Ending(Verdict.COMPLETE, "all steps were done before")
    target = WriterTarget(folder.path, attempt, state.step + 1)
    reporting = Reporting(
        open_writers(("jsonl",), target) if ranks.is_main else (),
        open_writers(config.log.writers, target) if ranks.is_main else (),
        config.log.every_steps,
        timing,
        len(dataset),
        dump_yaml(config),
        evaluating,
    )
    callbacks = (reporting, evaluating, checkpointing)
    run = TrainingRun(state, max_steps, folder.path, attempt, ranks.is_main, callbacks)
    run.record_event("resume" if state.step else "start", world_size=ranks.world_size, zero_stage=engine.stage)
    stop = StopRequests(folder.path, watch_file=ranks.is_main)
    rates = partial(learning_rate, config.optim, decay_steps=effective_decay_steps(config.optim, max_steps))
    batches = iterate_steps(dataset, plan, ranks.rank, state.step, config.data.num_workers, config.data.prefetch)
    try:
        ending = fit(run, engine, batches, rates, timing, stop, plan.global_batch_size, config.train.max_seq_len)
    finally:
        batches.close()
    _conclude(ending, run, evaluating)
    return ending


def open_dataset(config: RunConfig, manifest: Manifest) -> SequenceDataset:
    """The training split in the run's order.

    Args:
        config: The run's configuration.
        manifest: The corpus.

    Returns:
        The sequences, by index.

    Raises:
        DataError: The split cannot be dealt to so many lanes.
    """
    data = config.data
    return SequenceDataset.open(
        manifest,
        "train",
        config.train.max_seq_len,
        data.num_lanes,
        data.window_shards,
        config.seed,
        data.document_borders,
    )


def build_evaluating(config: RunConfig, manifest: Manifest, engine: Engine, ranks: Ranks) -> Evaluating:
    """The evaluation on one fixed set: neither seed, lanes nor the number of ranks choose what a run is judged by.

    Args:
        config: The run's configuration.
        manifest: The corpus.
        engine: The model on all ranks.
        ranks: The place of this process.

    Returns:
        The callback.
    """
    max_seq_len = config.train.max_seq_len
    dataset = SequenceDataset.open(manifest, "validation", max_seq_len, document_borders=config.data.document_borders)

    def batches() -> Iterator[MicroBatch]:
        return evaluation_batches(
            dataset, config.eval.max_sequences, config.train.micro_batch_size, ranks.rank, ranks.world_size
        )

    tokenizer = load_tokenizer(manifest.tokenizer_path)
    borders = Borders(manifest.tokenizer.eos_id, manifest.tokenizer.bos_id)
    return Evaluating(engine, config.eval, batches, tokenizer, borders, config.seed, max_seq_len)


def build_engine(config: RunConfig, plan: BatchPlan) -> Engine:
    """Builds the model and hands it to DeepSpeed; every rank calls it.

    Args:
        config: The run's configuration.
        plan: How a step is cut.

    Returns:
        The engine, with initial weights.
    """
    train, optim = config.train, config.optim

    def module() -> CausalLM:
        model = Transformer(config.model, checkpoint_activations=train.activation_checkpointing)
        return CausalLM(model, config.loss)

    def optimizer(module: torch.nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(optim, parameter_groups(module.named_parameters(), optim.weight_decay))

    ds_config = merge(load_deepspeed_json(config.deepspeed), train, optim, plan.micro_steps, plan.world_size)
    return Engine(module, optimizer, ds_config, config.seed, train.compile)


def _announce(
    config: RunConfig, plan: BatchPlan, engine: Engine, dataset: SequenceDataset, state: TrainingState
) -> None:
    train = config.train
    tokens = plan.global_batch_size * train.max_seq_len
    epochs = train.max_steps * plan.global_batch_size / len(dataset)
    rows = [
        ("parameters", f"{count_parameters(config.model).total:,}"),
        ("batch", f"{plan.global_batch_size} sequences x {train.max_seq_len} = {format_count(tokens)} tokens a step"),
        ("", f"{plan.world_size} ranks x {plan.micro_steps} micro steps x {plan.micro_batch_size} sequences"),
        ("run", f"{train.max_steps} steps = {format_count(tokens * train.max_steps)} tokens = {epochs:.2f} epochs"),
        ("arithmetic", f"{train.precision}, ZeRO {engine.stage}, {'compiled' if train.compile else 'eager'}"),
        ("device", f"{engine.device.type}, {torch.get_num_threads()} threads a rank"),
    ]
    if plan.filling_share > 0:
        rows.append(("filling", f"{plan.filling_share:.1%} of the rows are masked: the sizes do not divide"))
    start = f"goes on at step {state.step}" if state.step else "starts"
    logger.info("%s", start_banner(f"{config.run_dir} {start}", rows))


def _conclude(ending: Ending, run: TrainingRun, evaluating: Evaluating) -> None:
    if ending.verdict is not Verdict.COMPLETE:
        logger.info("ends at step %d (%s); the same command goes on", run.state.step, ending.reason)
        return
    for prompt, text in evaluating.samples:
        logger.info("sample, from %r:\n%s%s", prompt, prompt, text)
    logger.info("the run is complete: %d steps; watch it: tensorboard --logdir %s", run.state.step, run.folder.parent)

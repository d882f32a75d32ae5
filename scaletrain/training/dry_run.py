"""Everything but training: opens the corpus, counts, plans and prints."""

import os
import shutil
from functools import partial
from pathlib import Path

from scaletrain.config.batch_plan import BatchSchedule
from scaletrain.config.derive import load_deepspeed_json, offloads_optimizer, offloads_parameters, zero_stage
from scaletrain.config.load import dump_yaml
from scaletrain.config.schema import RunConfig
from scaletrain.config.tune_rules import trained_part
from scaletrain.data.order import order_of
from scaletrain.errors import ConfigError
from scaletrain.hardware.host import HostInfo, describe_host
from scaletrain.hardware.peaks import peak_flops_per_s
from scaletrain.launch.identity import identity_of
from scaletrain.launch.run_dir import RunDirectory, local_folder, read_run_id
from scaletrain.planning.checkpoints import LOCAL_KEEP_LAST, Kept, Room, checkpoint_bytes, checkpoint_lines, room_for
from scaletrain.planning.flops import output_share
from scaletrain.planning.memory import Offload, plan_memory
from scaletrain.planning.report import Hardware, format_bytes, plan_lines
from scaletrain.training.corpus import check_corpora, dataset_options, open_corpora, phases_of, training_readers
from scaletrain.training.init_source import CorpusTokenizer, choose_sources
from scaletrain.training.skipped import recorded_ranges

_GIB = 2**30
_PLAN_GPU = "SCALETRAIN_PLAN_GPU"
"""Environment variable with the name of a GPU to plan for, where the plan is made on another machine."""


def print_plan(config: RunConfig, world_size: int) -> None:
    """Prints the resolved configuration and the plan of a run.

    Args:
        config: The run's configuration, checked.
        world_size: Ranks that the plan is for.

    Raises:
        ConfigError: The tokenizer has more tokens than the model, or the run directory belongs to another run.
        DataError: The corpus cannot be used.
    """
    schedule = BatchSchedule.of(config.train)
    plan = schedule.plan_at(0, config.train.micro_batch_size, world_size)
    ds = load_deepspeed_json(config.deepspeed)
    stage = zero_stage(ds)
    offload: Offload = "all" if offloads_parameters(ds) else "optimizer" if offloads_optimizer(ds) else "none"
    averages = config.optim.ema_decay > 0
    part = trained_part(config.model, config.lora, config.tune)
    memory = plan_memory(config.model, config.train, stage, world_size, offload, config.optim.name, averages, part)
    host = describe_host()
    corpus_lines = _corpus_lines(config)  # before anything is printed: a URL with a password is refused here
    print(dump_yaml(config))
    print("\n".join(corpus_lines))
    print(
        f"{'batch':<14} {world_size} ranks x {plan.micro_steps} micro steps x {plan.micro_batch_size} sequences, "
        f"ZeRO {stage}"
    )
    if plan.filling_share > 0:
        print(f"{'filling':<14} {plan.filling_share:.1%} of the rows are masked, because the sizes do not divide")
    hardware = _hardware(host, config, world_size)
    lines = plan_lines(config.model, config.train, memory, hardware, output_share(config.task), part)
    arithmetic = (config.train.precision, stage, world_size, config.optim.name)
    count = partial(checkpoint_bytes, config.model, *arithmetic, averages=averages, part=part)
    size = count()
    kept = Kept.of(config.checkpoint, config.train.max_steps, keeps_best=config.eval.patience > 0)
    print("\n".join([*lines, *checkpoint_lines(size, kept, _room(config.run_dir / "checkpoints"))]))
    if config.checkpoint.local_dir is not None:
        there = _ranks_of_node(host, world_size)
        size_there = count(there)
        folder = local_folder(config.checkpoint.local_dir, read_run_id(config.run_dir) or "new")
        print("\n".join(checkpoint_lines(size_there, Kept(LOCAL_KEEP_LAST), _room(folder), is_local=True)))
    if config.checkpoint.background:
        print(f"{'':<14} a copy of one in the hosts' memory while it is written: {format_bytes(size)} over all ranks")


def _room(checkpoints: Path) -> Room:
    return room_for(checkpoints, shutil.disk_usage(_existing(checkpoints)).free)


def _existing(folder: Path) -> Path:
    """The folder, or what it would be made in."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _corpus_lines(config: RunConfig) -> list[str]:
    if config.data.manifest is None and not config.data.sources:
        prepared = f"{'corpus':<14} {config.data.corpus}, prepared in {config.data.corpus_dir} when the run starts"
        return [*_beginning(config, None), prepared]
    corpora = open_corpora(config)
    check_corpora(config, corpora)
    identity = identity_of(config, corpora.first.tokenizer.sha256, corpora.fingerprint)
    lines = _beginning(config, corpora.tokenizer) + [
        f"{'changed':<14} {change.key}: {change.old} -> {change.new}"
        for change in RunDirectory(config.run_dir).compare(identity)
    ]
    for name, manifest in corpora.manifests.items():
        lines.append(f"{name:<14} {manifest.shown}: {manifest.source}")
        for split, total in manifest.totals.items():
            lines.append(f"{'':<14} {split}: {total.documents:,} documents, {total.tokens:,} tokens")
    schedule = BatchSchedule.of(config.train, recorded_ranges(config.run_dir))
    sequences = schedule.sequence_after(0, config.train.max_steps)
    order = order_of(
        training_readers(corpora), dataset_options(config), phases_of(config.data, config.train.max_seq_len)
    )
    for name, consumed, source in zip(corpora.manifests, order.consumed(sequences), order.sources, strict=True):
        label = "epochs" if len(order.sources) == 1 else f"epochs of {name}"
        lines.append(f"{label:<14} {consumed / source.sequences_per_epoch:.2f}")
    return lines


def _beginning(config: RunConfig, tokenizer: CorpusTokenizer | None) -> list[str]:
    if RunDirectory(config.run_dir).has_trained():
        return []  # it goes on from its own checkpoint, whatever stands there
    sources = choose_sources(config, tokenizer, "sizes")
    return [f"{'begins with':<14} the weights of {source.folder}" for source in sources[:1]]


def _ranks_of_node(host: HostInfo, world_size: int) -> int:
    """As many as it has GPUs; without any all of them are taken to be here."""
    return max(1, min(world_size, len(host.gpus) or world_size))


def _hardware(host: HostInfo, config: RunConfig, world_size: int) -> Hardware:
    host_memory = int(host.memory_gib * _GIB) // _ranks_of_node(host, world_size)
    planned_for = os.environ.get(_PLAN_GPU)
    if planned_for:
        peak = peak_flops_per_s(planned_for, config.train.precision)
        if peak is None:
            raise ConfigError(f"{_PLAN_GPU}={planned_for}: its rate is not known; give another, such as H100")
        return Hardware(peak_flops_per_s=peak * world_size)
    if not host.gpus:
        return Hardware(device_memory=host_memory, host_memory=host_memory)
    gpu = host.gpus[0]
    peak = peak_flops_per_s(gpu.name, config.train.precision)
    device_memory = None if gpu.memory_gib is None else int(gpu.memory_gib * _GIB)
    return Hardware(device_memory, host_memory, None if peak is None else peak * world_size)

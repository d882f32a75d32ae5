"""Everything but training: opens the corpus, counts, plans and prints."""

from scaletrain.config.batch_plan import BatchPlan
from scaletrain.config.derive import load_deepspeed_json, offloads_optimizer, offloads_parameters, zero_stage
from scaletrain.config.load import dump_yaml
from scaletrain.config.schema import RunConfig
from scaletrain.hardware.host import describe_host
from scaletrain.hardware.peaks import peak_flops_per_s
from scaletrain.planning.memory import Offload, plan_memory
from scaletrain.planning.report import Hardware, plan_lines
from scaletrain.training.corpus import check_corpus, open_manifest

_GIB = 2**30


def print_plan(config: RunConfig, world_size: int) -> None:
    """Prints the resolved configuration and the plan of a run.

    Args:
        config: The run's configuration, checked.
        world_size: Ranks that the plan is for.

    Raises:
        ConfigError: The tokenizer has more tokens than the model.
        DataError: The corpus cannot be used.
    """
    plan = BatchPlan(config.train.global_batch_size, config.train.micro_batch_size, world_size)
    ds = load_deepspeed_json(config.deepspeed)
    stage = zero_stage(ds)
    offload: Offload = "all" if offloads_parameters(ds) else "optimizer" if offloads_optimizer(ds) else "none"
    memory = plan_memory(config.model, config.train, stage, world_size, offload, config.optim.name)
    print(dump_yaml(config))
    for line in _corpus_lines(config):
        print(line)
    print(
        f"{'batch':<14} {world_size} ranks x {plan.micro_steps} micro steps x {plan.micro_batch_size} sequences, "
        f"ZeRO {stage}"
    )
    if plan.filling_share > 0:
        print(f"{'filling':<14} {plan.filling_share:.1%} of the rows are masked, because the sizes do not divide")
    for line in plan_lines(config.model, config.train, memory, _hardware(config, world_size)):
        print(line)


def _corpus_lines(config: RunConfig) -> list[str]:
    if config.data.manifest is None:
        return [f"{'corpus':<14} {config.data.corpus}, prepared in {config.data.corpus_dir} when the run starts"]
    manifest = open_manifest(config.data.manifest, config.model.vocab_size)
    check_corpus(config, manifest)
    lines = [f"{'corpus':<14} {config.data.manifest}: {manifest.source}"]
    for name, total in manifest.totals.items():
        lines.append(f"{'':<14} {name}: {total.documents:,} documents, {total.tokens:,} tokens")
    tokens = config.train.max_steps * config.train.global_batch_size * config.train.max_seq_len
    lines.append(f"{'epochs':<14} {tokens / max(1, manifest.totals['train'].tokens):.2f}")
    return lines


def _hardware(config: RunConfig, world_size: int) -> Hardware:
    host = describe_host()
    host_memory = int(host.memory_gib * _GIB) // max(1, min(world_size, len(host.gpus) or world_size))
    if not host.gpus:
        return Hardware(device_memory=host_memory, host_memory=host_memory)
    gpu = host.gpus[0]
    peak = peak_flops_per_s(gpu.name, config.train.precision)
    device_memory = None if gpu.memory_gib is None else int(gpu.memory_gib * _GIB)
    return Hardware(device_memory, host_memory, None if peak is None else peak * world_size)

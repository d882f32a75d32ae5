"""A plan of a run as lines for people."""

from dataclasses import dataclass

from scaletrain.config.batch_plan import BatchSchedule
from scaletrain.config.schema import ModelConfig, TrainConfig
from scaletrain.config.tune_rules import TrainedPart
from scaletrain.planning.flops import flops_per_token, training_time_s
from scaletrain.planning.memory import MemoryPlan
from scaletrain.planning.parameters import count_parameters

ASSUMED_MFU = 0.4  # what well-tuned runs on GPUs reach; PaLM reports 0.46, Llama 3 0.38 to 0.43

_GIB = 2**30


@dataclass(frozen=True)
class Hardware:
    """What the run has at hand; None where it is not known.

    Attributes:
        device_memory: bytes of one GPU, or, without a GPU, of the host's memory that one rank can have.
        host_memory: bytes of the host's memory that one rank can have, for offload.
        peak_flops_per_s: peak of all devices together, at the run's precision.
        mfu: share of the peak that is assumed to be reached.
    """

    device_memory: int | None = None
    host_memory: int | None = None
    peak_flops_per_s: float | None = None
    mfu: float = ASSUMED_MFU


def plan_lines(
    model: ModelConfig,
    train: TrainConfig,
    memory: MemoryPlan,
    hardware: Hardware,
    output_share: float = 1.0,
    part: TrainedPart | None = None,
) -> list[str]:
    """Describe a run before it starts.

    Source: Hoffmann et al. 2022, "Training Compute-Optimal Large Language Models", for 20 tokens per parameter.

    Args:
        model: the model's description.
        train: the run's size.
        memory: what ``plan_memory`` returned.
        hardware: what there is to run on.
        output_share: of the task, see ``flops.output_share``.
        part: what is trained; all of the model by default.

    Returns:
        Lines without line ends.
    """
    count = count_parameters(model)
    tokens = BatchSchedule.of(train).sequence_after(0, train.max_steps) * train.max_seq_len
    sizes = [*(phase.global_batch_size for phase in train.batch_schedule), train.global_batch_size]
    step_tokens = ", then ".join(f"{size * train.max_seq_len:,}" for size in sizes)
    per_token = flops_per_token(model, train.max_seq_len, output_share)
    rows = [
        ("parameters", f"{count.total:,} ({count.non_embedding:,} without embeddings, {count.per_layer:,} in a layer)"),
        *_trained_row(part),
        ("tokens", f"{step_tokens} a step x {train.max_steps:,} steps = {tokens:,}"),
        ("", f"{tokens / count.total:.3g} per parameter (about 20 are compute-optimal)"),
        ("compute", f"{per_token:.3g} FLOPs a token, {per_token * tokens:.3g} in all"),
    ]
    if hardware.peak_flops_per_s is not None:
        duration = format_duration(training_time_s(per_token * tokens, hardware.peak_flops_per_s, hardware.mfu))
        rows.append(("time", f"{duration} at {hardware.mfu:.0%} of {hardware.peak_flops_per_s / 1e12:,.1f} TFLOP/s"))
    rows += [
        ("memory", f"{format_bytes(memory.device)} a rank{_verdict(memory.device, hardware.device_memory)}"),
        ("", f"weights {format_bytes(memory.weights)}, gradients {format_bytes(memory.gradients)}"),
        ("", f"optimizer {format_bytes(memory.optimizer)}"),
        ("", f"activations {format_bytes(memory.activations)}, logits {format_bytes(memory.logits)}"),
    ]
    if memory.host:
        host = f"{format_bytes(memory.host)} a rank, offloaded{_verdict(memory.host, hardware.host_memory)}"
        rows.append(("host memory", host))
    return [f"{name:<14} {text}" for name, text in rows]


def _trained_row(part: TrainedPart | None) -> list[tuple[str, str]]:
    if part is None or not part.frozen:
        return []
    return [("trained", f"{part.trained:,} of {part.total:,} ({part.trained / part.total:.2%})")]


def format_bytes(size: int) -> str:
    """Write a number of bytes for people.

    Args:
        size: bytes.

    Returns:
        For instance ``1.5 GiB``.
    """
    for unit, factor in (("TiB", 2**40), ("GiB", _GIB), ("MiB", 2**20)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size / 2**10:.1f} KiB"


def format_duration(seconds: float) -> str:
    """Write a duration for people.

    Args:
        seconds: the duration.

    Returns:
        For instance ``3.2 days`` or ``5.0 minutes``.
    """
    for unit, factor in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * factor:
            return f"{seconds / factor:.1f} {unit}"
    return f"{seconds:.1f} seconds"


def _verdict(needed: int, available: int | None) -> str:
    if available is None:
        return ""
    if needed > available:
        return (
            f"; DOES NOT FIT the {format_bytes(available)} there are: lower train.micro_batch_size, set "
            f"train.activation_checkpointing, or take a higher ZeRO stage or offload"
        )
    return f"; there are {format_bytes(available)}"

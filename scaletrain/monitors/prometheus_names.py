"""The names that metrics have in Prometheus: base units, labels for what there are several of, and what each means."""

import re
from dataclasses import dataclass
from typing import Literal

from scaletrain.monitors import names

_PREFIX = "scaletrain"

# What an end of a name says of the unit, what it becomes, and by what the value is multiplied.
# Source: Prometheus, "Metric and label naming": base units, in the plural, at the end of the name.
_UNITS: tuple[tuple[str, str, float], ...] = (
    ("_mbit_per_s", "_bytes_per_second", 1e6 / 8),
    ("_gbit_per_s", "_bytes_per_second", 1e9 / 8),
    ("_per_s", "_per_second", 1),
    ("_gib", "_bytes", 2**30),
    ("_mib", "_bytes", 2**20),
    ("_mhz", "_hertz", 1e6),
    ("_percent", "_ratio", 0.01),
    ("_share", "_ratio", 1),
    ("_s", "_seconds", 1),
    ("_c", "_celsius", 1),
    ("_w", "_watts", 1),
    ("mfu", "mfu_ratio", 1),
)

# Of several things of a kind: which part of the name tells which it is, and the label that it becomes.
_SEVERAL = (
    re.compile(r"(?P<group>gpu)[/.](?P<rank>\d+)[/.](?P<name>.+)"),
    re.compile(r"(?P<group>host[/.]nic)[/.](?P<nic>.+)[/.](?P<name>\w+)"),
    re.compile(r"(?P<group>host[/.]ib)[/.](?P<port>.+)[/.](?P<name>\w+)"),
    re.compile(r"(?P<group>host[/.]disk)[/.](?P<disk>.+)[/.](?P<name>\w+)"),
    re.compile(r"(?P<group>host[/.]file_system)[/.](?P<device>.+)[/.](?P<name>\w+)"),
    re.compile(r"(?P<group>host[/.]folder)[/.](?P<folder>.+)[/.](?P<name>\w+)"),
    re.compile(r"(?P<group>host[/.]edac)[/.](?P<controller>.+)[/.](?P<name>\w+)"),
    re.compile(r"(?P<group>train|eval|data)/(?P<name>\w+)/(?P<source>.+)"),
)

# What only grows while a host is up. What a run counts is none of it: it falls where the run goes back to a checkpoint,
# which Prometheus would take for a restart from 0, and add all of it to what was counted before.
_COUNTERS = re.compile(
    r"host[/.](oom_kills|group_oom_kills|cpu[/.].*|kernel[/.].*|\w+[/.]stalled_full_s|edac[/.].*"
    r"|file_system[/.].*[/.]errors|disk[/.].*[/.](errors|timeouts)|nic[/.].*[/.](carrier_changes|[rt]x_\w+)"
    r"|ib[/.].*[/.](symbol_error|link_\w+|port_\w+|local_\w+|excessive_\w+))"
)

_MEANINGS = {
    names.TRAIN_LOSS: "Cross-entropy of the last global batch, in nats per target token.",
    names.TRAIN_GRAD_NORM: "Norm of the gradient before clipping.",
    names.TRAIN_TARGET_TOKENS: "Target tokens in the last global batch.",
    names.OPTIM_LR: "Learning rate.",
    names.OPTIM_STEPS: "Global batches that were applied; it falls where a run goes back to a checkpoint.",
    names.PERF_TOKENS_PER_S: "Tokens of all ranks per second, over the last 20 steps.",
    names.PERF_MFU: "Share of the devices' peak that the model's own arithmetic takes, 0 to 1.",
    names.PERF_STEP_TIME_S: "Duration of the last step.",
    names.PERF_DATA_WAIT_S: "How long the last step waited for its data.",
    names.MEM_RESERVED_GIB: "Memory of rank 0: reserved on its GPU, resident without one.",
    names.GPU_MAX_TEMP_C: "Of the hottest GPU of the run.",
    names.GPU_MAX_MEMORY_TEMP_C: "Of the hottest memory of a GPU.",
    names.GPU_MEAN_POWER_W: "Power of a GPU, on average over the run.",
    names.GPU_MIN_CLOCK_MHZ: "Clock of the slowest GPU.",
    names.GPU_MIN_UTILIZATION_PERCENT: "Of the GPU that has least to do.",
    names.GPU_MAX_MEMORY_USED_GIB: "Memory of the GPU that has least left.",
    names.HOST_MAX_MEMORY_USED_SHARE: "Memory in use on the node that has least left.",
    names.HOST_MAX_MEMORY_STALLED_SHARE: "Share of a minute in which all waited for memory, on the worst node.",
    names.HOST_MAX_STORAGE_STALLED_SHARE: "Share of a minute in which all waited for storage, on the worst node.",
    names.HOST_OOM_KILLS: "Processes that were killed for lack of memory, on all nodes, since they were booted.",
    names.HOST_MIN_RUN_DIR_FREE_GIB: "Room in the run directory, on the node that sees least.",
    names.STRAGGLER_COUNT: "Ranks that hold the others up.",
    names.STRAGGLER_MAX_COMPUTE_SHARE: "How much longer than usual the slowest rank computes, as a share.",
    names.STRAGGLER_MAX_DATA_SHARE: "How much longer than usual a rank waits for data, as a share of a step.",
    names.STRAGGLER_MAX_LINK_SHARE: "How much longer than usual messages take on the slowest link, as a share.",
    names.DATA_EPOCH: "Passes over the data.",
    names.DATA_SEQUENCES: "Sequences consumed; it falls where a run goes back to a checkpoint.",
    names.DATA_SKIPPED_SHARDS: "Shards that could not be read, and are left out.",
    names.EVAL_LOSS: "Cross-entropy on the validation set, in nats per target token.",
    names.EVAL_PERPLEXITY: "Perplexity on the validation set.",
    names.EVAL_BITS_PER_BYTE: "Bits for each byte of text of the validation set.",
    names.EVAL_GAP: "How much larger the validation loss is than the training loss.",
}


@dataclass(frozen=True)
class Series:
    """How a metric is told to Prometheus.

    Attributes:
        name: Of the family; a counter's ends in "_total" where it is written.
        labels: Which of several it is.
        factor: What a value is multiplied by, for the base unit.
        kind: What the number does over time.
        meaning: For people.
    """

    name: str
    labels: tuple[tuple[str, str], ...]
    factor: float
    kind: Literal["gauge", "counter"]
    meaning: str


def series_of(metric: str) -> Series:
    """Finds the name that a metric has in Prometheus.

    Args:
        metric: Its name in metrics.jsonl and TensorBoard, or a signal such as ``host.nic.eth0.rx_errors``.

    Returns:
        The series. Metrics that nobody has described here get a name of the same kind.
    """
    base, labels = metric, {}
    for pattern in _SEVERAL:
        if found := pattern.fullmatch(metric):
            labels = found.groupdict()
            base = f"{labels.pop('group')}/{labels.pop('name')}"
            break
    name, factor = base, 1.0
    for end, unit, multiplier in _UNITS:
        if name.endswith(end):
            name, factor = name.removesuffix(end) + unit, multiplier
            break
    if "source" in labels:  # beside the same of all sources together, which must not be added to them
        name += "_by_source"
    meaning = _MEANINGS.get(base, f"The metric {base} of scaletrain.")
    if "source" in labels:
        meaning = f"By source: {meaning}"
    return Series(
        f"{_PREFIX}_{re.sub('[^a-zA-Z0-9]+', '_', name)}",
        tuple(sorted(labels.items())),
        factor,
        "counter" if _COUNTERS.fullmatch(metric) else "gauge",
        meaning,
    )

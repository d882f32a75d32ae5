"""The names of metrics, the same in metrics.jsonl, in TensorBoard and wherever else a writer sends them."""

TRAIN_LOSS = "train/loss"
TRAIN_GRAD_NORM = "train/grad_norm"
TRAIN_TARGET_TOKENS = "train/target_tokens"

OPTIM_LR = "optim/lr"
OPTIM_STEPS = "optim/steps"

PERF_TOKENS_PER_S = "perf/tokens_per_s"
PERF_MFU = "perf/mfu"
PERF_STEP_TIME_S = "perf/step_time_s"
PERF_DATA_WAIT_S = "perf/data_wait_s"

MEM_RESERVED_GIB = "mem/reserved_gib"

DATA_EPOCH = "data/epoch"
DATA_SEQUENCES = "data/sequences"
DATA_BATCH_HASH = "data/batch_hash"
DATA_SKIPPED_SHARDS = "data/skipped_shards"

EVAL_LOSS = "eval/loss"
EVAL_PERPLEXITY = "eval/perplexity"
EVAL_BITS_PER_BYTE = "eval/bits_per_byte"
EVAL_GAP = "eval/gap"

TEXT_CONFIG = "text/config"
TEXT_SAMPLES = "text/samples"


def of_source(name: str, source: str) -> str:
    """The metric of one source of a mixture, such as ``train/loss/web``."""
    return f"{name}/{source}"

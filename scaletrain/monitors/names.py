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

GPU_MAX_TEMP_C = "gpu/max_temp_c"
GPU_MAX_MEMORY_TEMP_C = "gpu/max_memory_temp_c"
GPU_MEAN_POWER_W = "gpu/mean_power_w"
GPU_MIN_CLOCK_MHZ = "gpu/min_clock_mhz"
GPU_MIN_UTILIZATION_PERCENT = "gpu/min_utilization_percent"
GPU_MAX_MEMORY_USED_GIB = "gpu/max_memory_used_gib"

HOST_MAX_MEMORY_USED_SHARE = "host/max_memory_used_share"
HOST_MAX_MEMORY_STALLED_SHARE = "host/max_memory_stalled_share"
HOST_MAX_STORAGE_STALLED_SHARE = "host/max_storage_stalled_share"
HOST_OOM_KILLS = "host/oom_kills"
HOST_MIN_RUN_DIR_FREE_GIB = "host/min_run_dir_free_gib"

STRAGGLER_COUNT = "straggler/count"
STRAGGLER_MAX_COMPUTE_SHARE = "straggler/max_compute_share"
STRAGGLER_MAX_DATA_SHARE = "straggler/max_data_share"
STRAGGLER_MAX_LINK_SHARE = "straggler/max_link_share"

DATA_EPOCH = "data/epoch"
DATA_SEQUENCES = "data/sequences"
DATA_BATCH_HASH = "data/batch_hash"
DATA_SKIPPED_SHARDS = "data/skipped_shards"

EVAL_LOSS = "eval/loss"
EVAL_PERPLEXITY = "eval/perplexity"
EVAL_BITS_PER_BYTE = "eval/bits_per_byte"
EVAL_GAP = "eval/gap"
EVAL_MASKED_ACCURACY = "eval/masked_accuracy"
EVAL_NEXT_SENTENCE_ACCURACY = "eval/next_sentence_accuracy"
EVAL_ACCURACY = "eval/accuracy"
EVAL_SUBSET_ACCURACY = "eval/subset_accuracy"
EVAL_MACRO_F1 = "eval/macro_f1"
EVAL_MICRO_F1 = "eval/micro_f1"
EVAL_ECE = "eval/ece"
EVAL_MSE = "eval/mse"
EVAL_MAE = "eval/mae"
EVAL_PEARSON = "eval/pearson"
EVAL_SPEARMAN = "eval/spearman"
EVAL_R2 = "eval/r2"
EVAL_BLEU = "eval/bleu"
EVAL_CHRF = "eval/chrf"
EVAL_ROUGE1 = "eval/rouge1"
EVAL_ROUGE2 = "eval/rouge2"
EVAL_ROUGE_L = "eval/rougeL"

IMAGE_STRAGGLERS = "straggler/ranks"

TEXT_CONFIG = "text/config"
TEXT_SAMPLES = "text/samples"


def of_source(name: str, source: str) -> str:
    """The metric of one source of a mixture, such as ``train/loss/web``."""
    return f"{name}/{source}"


def of_gpu(rank: int, name: str) -> str:
    """The metric of the GPU of one rank, such as ``gpu/3/temp_c``."""
    return f"gpu/{rank}/{name}"

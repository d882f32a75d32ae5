"""The configuration of a run: one tree of frozen pydantic models.

Each field states its range and unit. What a field may be is checked here, alone; what fields may be
together is checked in ``derive``.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import TypeAliasType

from scaletrain.config.monitor_schema import LogConfig, MonitorConfig
from scaletrain.config.section import Section

Beta = Annotated[float, Field(ge=0, lt=1)]

# A name of its own, unlike Annotated, stays on the field, so that reading the text can expand a leading "~". It stays
# text, since a Path would make one slash of the two in a URL.
Location = TypeAliasType("Location", str)


KernelWidth = Annotated[int, Field(ge=1)]


def _like(field: str, description: str = "") -> Any:
    """A default that copies another field of the same section."""
    described = f"{description}; default {field}" if description else f"default {field}"
    return Field(default_factory=lambda data: data.get(field, 1), ge=1, description=described)


def _bias_of(place: str) -> Any:
    return Field(default_factory=lambda data: data.get("bias", True), description=f"biases of {place}; default bias")


def _head_dim(data: dict[str, Any]) -> int:
    return int(data.get("d_model", 1)) // max(1, int(data.get("n_heads", 1))) or 1


class ModelConfig(Section):
    """The model, described by data: a Transformer, or one of the kinds that it is compared with."""

    preset: str | None = Field(
        None, description="name of a file in configs/model whose values stand below the ones given"
    )
    kind: Literal["transformer", "lstm", "cnn"] = Field(
        "transformer", description="lstm and cnn are baselines, which read few of these fields"
    )
    vocab_size: int = Field(8192, ge=2, description="rows of the embedding; at least the tokenizer's")
    d_model: int = Field(384, ge=1, description="width of the residual stream")
    n_layers: int = Field(6, ge=1)
    n_encoder_layers: int = Field(0, ge=0, description="more than 0: a source is read by them, and n_layers decode")
    n_heads: int = Field(6, ge=1)
    n_kv_heads: int = _like("n_heads")
    head_dim: int = Field(default_factory=_head_dim, ge=1, description="default d_model / n_heads")
    d_ff: int = Field(
        default_factory=lambda data: 4 * data.get("d_model", 1),
        ge=1,
        description="width of the feed-forward layer, or feature maps of each width in a cnn; default 4 d_model",
    )
    max_seq_len: int = Field(1024, ge=1, description="positions the model is made for, in tokens")
    positions: Literal["learned", "sinusoidal", "rotary", "relative", "none"] = "learned"
    rope_theta: float = Field(10_000.0, gt=0, description="base of the rotary frequencies")
    rotary_dim: int = _like("head_dim", "leading dimensions of each head that are rotated")
    rope_scaling: Literal["none", "linear", "llama3"] = Field(
        "none", description="how rotary frequencies are stretched for sequences longer than the model was made for"
    )
    rope_factor: float = Field(1.0, ge=1, description="of the stretching")
    rope_low_freq_factor: float = Field(1.0, gt=0, description="llama3: wavelengths above length / this are stretched")
    rope_high_freq_factor: float = Field(
        4.0, gt=0, description="llama3: wavelengths below length / this are left alone"
    )
    rope_original_max_seq_len: int = _like("max_seq_len", "llama3: the length before the stretching, in tokens")
    relative_buckets: int = Field(32, ge=4, description="distances that relative positions tell apart, as in T5")
    relative_max_distance: int = Field(128, ge=2, description="distance from which on they are one, in tokens")
    causal: bool = Field(True, description="a token sees no token after it; false sees all, as BERT")
    sliding_window: int = Field(0, ge=0, description="tokens that a token sees, itself among them; 0 for all")
    sliding_window_from_layer: int = Field(0, ge=0, description="first layer with the window; those before see all")
    norm: Literal["layer_norm", "rms_norm"] = "layer_norm"
    norm_eps: float = Field(1e-5, gt=0)
    norm_position: Literal["pre", "post"] = Field(
        "pre", description="before each branch and at the end, or behind each sum, as in BERT"
    )
    embedding_norm: bool = Field(False, description="a norm behind the embeddings")
    qk_norm: bool = Field(False, description="an RMSNorm over each head of queries and keys, before their rotation")
    attention_scale: bool = Field(True, description="scores are divided by sqrt(head_dim); not so in T5")
    parallel_residual: bool = Field(False, description="both branches of a layer read its input, as in GPT-NeoX")
    activation: Literal["gelu", "gelu_tanh", "relu", "swiglu", "geglu"] = "gelu_tanh"
    bias: bool = Field(True, description="biases in linear layers and LayerNorm")
    qkv_bias: bool = _bias_of("queries, keys and values")
    attention_out_bias: bool = _bias_of("the projection behind attention")
    tie_embeddings: bool = Field(True, description="input and output embedding are one tensor")
    n_segments: int = Field(0, ge=0, description="rows of a segment embedding; 0 for none")
    output_transform: bool = Field(
        False, description="a linear layer, the activation and a norm before the output layer"
    )
    output_bias: bool = Field(False, description="a bias in the output layer")
    output_scale: float = Field(1.0, gt=0, description="of what the output layer reads; d_model**-0.5 in T5")
    pooling: Literal["first", "mean", "last"] = Field("first", description="which token stands for the whole sequence")
    pooler: bool = Field(False, description="linear layer and tanh on what stands for the whole sequence, as in BERT")
    n_classes: int = Field(0, ge=0, description="classes, or numbers, told from it; 0 for no such layer")
    kernel_widths: tuple[KernelWidth, ...] = Field((3, 4, 5), description="cnn: tokens that its filters see at once")
    dropout: float = Field(0.0, ge=0, lt=1, description="after the embedding, on each residual branch, before classes")
    attention_dropout: float = Field(0.0, ge=0, lt=1, description="on attention weights; 3 to 6 times slower on CPU")
    init_std: float = Field(
        0.02, gt=0, description="standard deviation of initial weights; residual outputs get 1/sqrt(2 n_layers) of it"
    )


class SourceConfig(Section):
    """One of several corpora that are mixed."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9_.-]+$", description="how metrics and phases call it")
    manifest: Location = Field(min_length=1, description="manifest.json of the corpus, made by tools/make_shards.py")
    weight: float = Field(1.0, ge=0, description="share of the sequences, relative to the other sources")


class PhaseConfig(Section):
    """A part of the run with weights of its own."""

    until_tokens: int = Field(ge=1, description="inputs consumed at which the phase ends")
    weights: dict[str, float] = Field(description="weight of each source by name; 0 for one that is not named")


class BatchPhaseConfig(Section):
    """A part of the run with another batch size."""

    until_tokens: int = Field(ge=1, description="inputs consumed at which the phase ends")
    global_batch_size: int = Field(ge=1, description="sequences in one step until then")


class DataConfig(Section):
    """Where documents come from, and how they are spread."""

    manifest: Location | None = Field(None, description="manifest.json of a corpus made by tools/make_shards.py")
    sources: tuple[SourceConfig, ...] = Field(
        (), description="several corpora with one tokenizer, mixed by weight; instead of a manifest"
    )
    phases: tuple[PhaseConfig, ...] = Field(
        (), description="weights of the sources in the first parts of the run; then those of the sources hold"
    )
    corpus: Literal["python_stdlib"] | None = Field(
        None, description="embedded corpus, prepared on first use; instead of a manifest"
    )
    corpus_dir: Path = Field(Path("data"), description="folder in which an embedded corpus is prepared")
    num_lanes: int = Field(1, ge=1, description="streams that the shards are dealt to, whatever the number of ranks")
    window_shards: int = Field(8, ge=1, description="shards whose documents are shuffled together")
    packing: Literal["concat", "best_fit", "document"] = Field(
        "concat",
        description="best_fit cuts no document that fits in a sequence, at the price of some padding; document gives "
        "each a sequence of its own",
    )
    document_borders: bool = Field(True, description="attention and positions start anew at each document")
    on_bad_shard: Literal["fail", "skip"] = Field(
        "fail", description="skip masks the sequences of a shard that cannot be read, and goes on"
    )
    cache_dir: Path | None = Field(
        None,
        description="folder on this node for remote shards; default scaletrain-cache-UID in the temporary folder",
    )
    cache_gib: float = Field(64.0, gt=0, description="largest size of that folder, in GiB")
    fetch_attempts: int = Field(8, ge=1, description="tries to read remote data before it counts as unreadable")
    fetch_stall_s: float = Field(
        60.0, gt=0, description="seconds without progress after which a transfer is tried anew"
    )
    allow_pipe: bool = Field(False, description="run the commands of pipe: URLs in a manifest")
    num_workers: int = Field(1, ge=0, description="DataLoader processes per rank")
    prefetch: int = Field(4, ge=1, description="micro batches fetched ahead by each worker")


class OptimConfig(Section):
    """The optimizer and the course of its learning rate."""

    name: Literal["adamw", "adam", "sgd"] = Field(
        "adamw", description="adamw decays decoupled; adam and sgd add coupled L2"
    )
    lr: float = Field(6e-4, gt=0, description="highest learning rate of the schedule")
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    weight_decay: float = Field(0.1, ge=0, description="on matrices only; norms, biases and positions are left alone")
    l1: float = Field(
        0.0, ge=0, description="on matrices: after each update they move by lr * l1 towards zero, and stop there"
    )
    ema_decay: float = Field(
        0.0, ge=0, lt=1, description="of the moving average of the weights, which evaluation then uses; 0 for none"
    )
    schedule: Literal["constant", "linear", "cosine", "wsd", "inverse_sqrt", "step", "range_test"] = "cosine"
    warmup_steps: int = Field(100, ge=0)
    decay_steps: int | None = Field(None, ge=1, description="step at which the schedule ends; default train.max_steps")
    min_lr_ratio: float = Field(
        0.1,
        ge=0,
        le=1,
        description="last learning rate as a share of lr (linear, cosine, wsd); the first of range_test",
    )
    cooldown_ratio: float = Field(0.2, gt=0, le=1, description="last share of the steps, in which wsd decays")
    step_every_steps: int = Field(1000, ge=1, description="interval of the step schedule")
    step_factor: float = Field(0.5, gt=0, le=1, description="factor of the step schedule at each interval")
    grad_clip: float = Field(1.0, ge=0, description="largest norm of the gradient; 0 leaves it alone")


class TaskConfig(Section):
    """What is learnt of the documents; each task reads the keys that say so."""

    name: Literal["causal_lm", "masked_lm", "seq2seq", "sft", "classification", "regression"] = Field(
        "causal_lm", description="a file of scaletrain/tasks"
    )
    mask_share: float = Field(0.15, gt=0, lt=1, description="masked_lm: share of the tokens that are hidden")
    whole_words: bool = Field(False, description="masked_lm: hides all tokens of a word or none")
    next_sentence: bool = Field(False, description="masked_lm: also tells whether two texts follow each other, as BERT")
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="classification: balanced weighs each class by the inverse of its share"
    )
    huber_delta: float = Field(
        0.0, ge=0, description="regression: error from which the loss is linear; 0 for the squared error"
    )
    text_metrics: Literal["none", "bleu", "rouge"] = Field(
        "none", description="seq2seq: figures of the texts that evaluations have the model write"
    )
    beams: int = Field(4, ge=1, description="seq2seq: texts that are followed at the same time; 1 is greedy")


Pattern = Annotated[str, Field(min_length=1)]


class TuneConfig(Section):
    """What is trained of a model that has weights already, and how fast."""

    freeze: tuple[Pattern, ...] = Field(
        (), description="parameters and modules that stay as they are, by name: embedding, blocks.[0-5], attention"
    )
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="each layer learns this much slower than the one above it; 1 for all alike"
    )


class LoraConfig(Section):
    """Adapters of low rank, trained in place of the weights (LoRA)."""

    rank: int = Field(0, ge=0, description="of each adapter; 0 for none")
    alpha: float = Field(16.0, gt=0, description="what adapters add is multiplied by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="on what adapters read")
    targets: tuple[Pattern, ...] = Field(
        ("q", "v"), description="linear layers that get one, by the end of their names: q, feed_forward.up, blocks.0.*"
    )
    also_train: tuple[Pattern, ...] = Field(
        ("pooler", "classifier"), description="parts of the model that are trained beside them, as far as there are any"
    )


class LossConfig(Section):
    """Terms added to the cross-entropy of training (never of evaluation)."""

    label_smoothing: float = Field(0.0, ge=0, lt=1)
    z_loss: float = Field(0.0, ge=0, description="weight of log(Z)^2, which keeps logits near zero mean (PaLM: 1e-4)")


class TrainConfig(Section):
    """The size and the arithmetic of the run."""

    max_steps: int = Field(1000, ge=1, description="global batches of the whole run")
    max_seq_len: int = Field(256, ge=1, description="tokens in a sequence")
    global_batch_size: int = Field(32, ge=1, description="sequences in one step, over all ranks")
    batch_schedule: tuple[BatchPhaseConfig, ...] = Field(
        (), description="other global batch sizes in the first parts of the run; then global_batch_size holds"
    )
    micro_batch_size: int = Field(8, ge=1, description="sequences in one forward pass of a rank")
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    compile: bool = Field(False, description="torch.compile; more than twice as fast, after 30 to 60 s")
    activation_checkpointing: bool = Field(False, description="recompute activations in the backward pass")
    deterministic: bool = Field(False, description="deterministic kernels on GPUs, for bit-identical restarts")
    collective_timeout_s: float = Field(
        1800.0, gt=0, description="longest time, in seconds, for which a rank waits for another one in a collective"
    )
    exit_by_s: float = Field(
        30.0, ge=0, description="seconds before the job's end at which a rank that still runs is ended; 0 never does"
    )


Prompt = Annotated[str, Field(min_length=1)]


class EvalConfig(Section):
    """Evaluation on the fixed validation set."""

    every_steps: int = Field(100, ge=0, description="0 evaluates at the end only")
    patience: int = Field(
        0, ge=0, description="evaluations in a row without a lower loss after which the run is complete; 0 for no end"
    )
    max_sequences: int = Field(256, ge=1, description="sequences of the validation set that are used")
    prompts: tuple[Prompt, ...] = Field((), description="continued at each evaluation, as samples")
    sample_tokens: int = Field(64, ge=1, description="tokens of a sample, or of a text to be judged by, at most")
    max_texts: int = Field(64, ge=1, description="texts that the model writes to be judged by, where the task writes")
    temperature: float = Field(0.8, ge=0, description="of the samples; 0 is greedy")


class CheckpointConfig(Section):
    """When the state is saved and where, and what is kept."""

    every_steps: int = Field(200, ge=0, description="0 saves at the end only")
    background: bool = Field(
        True, description="files are written beside the training, from a copy of the state in host memory"
    )
    keep_last: int = Field(2, ge=0, description="newest checkpoints that stay; 0 saves nothing at all")
    keep_every_steps: int = Field(0, ge=0, description="checkpoints at multiples of it stay for ever; 0 for none")
    keep_best: bool = Field(False, description="the checkpoint with the lowest validation loss stays")
    local_dir: Path | None = Field(None, description="folder on each node's own disk for saves in between")
    local_every_steps: int = Field(0, ge=0, description="interval of saves to local_dir")
    verify: Literal["full", "sizes", "off"] = Field("full", description="what is checked before a checkpoint is loaded")


class StabilityConfig(Section):
    """What is done about steps that went wrong, and about ranks that differ."""

    spike_zscore: float = Field(
        10.0, ge=0, description="robust z-score from which a loss is high; 0 switches off, so that no run goes back"
    )
    spike_steps: int = Field(3, ge=1, description="high steps in a row after which the run goes back before them")
    window_steps: int = Field(128, ge=8, description="steps that a loss is compared with")
    skip_steps: int = Field(1, ge=0, description="steps before the high ones whose sequences are left out with theirs")
    bad_steps: int = Field(10, ge=1, description="steps in a row without a finite result after which the run goes back")
    max_rollbacks: int = Field(3, ge=0, description="times that the run goes back before it gives up")
    check_every_steps: int = Field(
        500, ge=0, description="interval at which ranks compare their weights and states; 0 switches off"
    )


class RunConfig(Section):
    """All that a run is made of."""

    run_dir: Path = Field(Path("runs/run"), description="the run's folder; default runs/<name of the config>")
    seed: int = Field(1337, ge=0, lt=2**63)
    init: str | None = Field(
        None, min_length=1, description="RUN[@STEP]: a new run begins with the weights of that checkpoint"
    )
    deepspeed: Path = Field(Path("configs/ds/zero1.json"), description="DeepSpeed's own settings")
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    task: TaskConfig = TaskConfig()
    tune: TuneConfig = TuneConfig()
    lora: LoraConfig = LoraConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    stability: StabilityConfig = StabilityConfig()
    monitor: MonitorConfig = MonitorConfig()
    log: LogConfig = LogConfig()

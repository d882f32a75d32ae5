"""How much memory training takes on each rank."""

from dataclasses import dataclass
from typing import Literal

from scaletrain.config.schema import ModelConfig, TrainConfig
from scaletrain.config.tune_rules import TrainedPart
from scaletrain.planning.parameters import count_parameters

Offload = Literal["none", "optimizer", "all"]

# The loss works on a bounded number of fp32 logits at a time; see model/losses.py.
_LOSS_WORK_BYTES = 4 * 2**24


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of training, per rank where nothing else is said.

    Attributes:
        weights: weights that the forward pass reads, on the device.
        gradients: gradients, on the device.
        optimizer: fp32 master weights and the optimizer's moments, on the device.
        activations: what the layers keep for the backward pass of one micro batch.
        logits: logits of one micro batch, their gradient, and the loss's working copy.
        host: weights and optimizer state kept in the host's memory by offload.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    host: int

    @property
    def device(self) -> int:
        """All that lies on the device."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


def plan_memory(
    model: ModelConfig,
    train: TrainConfig,
    zero_stage: int,
    world_size: int,
    offload: Offload = "none",
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw",
    averages: bool = False,
    part: TrainedPart | None = None,
) -> MemoryPlan:
    """Estimate the memory of a training run.

    Stage 1 spreads the optimizer's state over the ranks, stage 2 the gradients too, stage 3 the weights too. Buffers
    for communication, the allocator's fragmentation and the runtime itself (about 1 GiB on a GPU) come on top.

    Source: Rajbhandari et al. 2020, "ZeRO", section 3, for what each stage spreads; Korthikanti et al. 2022, "Reducing
    Activation Recomputation in Large Transformer Models", section 4, for activations.

    Args:
        model: the model's description.
        train: sequence length, micro batch size, precision and activation checkpointing.
        zero_stage: 0 to 3.
        world_size: ranks of the run.
        offload: what lies in the host's memory: nothing, the optimizer's state, or that and the weights (stage 3).
        optimizer: the optimizer's name; Adam keeps two moments per parameter, SGD one.
        averages: whether a moving average of the weights is kept (``optim.ema_decay``).
        part: what is trained, with adapters or frozen weights: only that has gradients, masters and moments. All of the
            model by default. Activations are those of a model that is trained as a whole: of frozen layers, whose
            inputs need not be kept, they are a bound.

    Returns:
        The plan.
    """
    part = part or TrainedPart(count_parameters(model).total, 0, 0)
    number_bytes = 4 if train.precision == "fp32" else 2
    moments_bytes = (4 if optimizer == "sgd" else 8) + 4 * averages
    # DeepSpeed keeps master weights beside fp32 weights too, once it spreads them.
    master_bytes = 0 if train.precision == "fp32" and zero_stage == 0 else 4
    state_bytes = master_bytes + moments_bytes

    weights = _share(part.total * number_bytes, world_size, zero_stage >= 3)
    gradients = _share(part.trained * number_bytes, world_size, zero_stage >= 2)
    optimizer_state = _share(part.trained * state_bytes, world_size, zero_stage >= 1)
    host = optimizer_state if offload != "none" else 0
    if offload == "all":
        host += weights
    tokens = train.micro_batch_size * train.max_seq_len
    return MemoryPlan(
        weights=0 if offload == "all" else weights,
        gradients=gradients,
        optimizer=0 if offload != "none" else optimizer_state,
        activations=_activation_bytes(model, train, number_bytes),
        logits=2 * tokens * model.vocab_size * number_bytes + min(_LOSS_WORK_BYTES, 4 * tokens * model.vocab_size),
        host=host,
    )


def layer_activation_bytes_per_token(model: ModelConfig, number_bytes: int) -> int:
    """Count what one layer of a Transformer keeps of a token for the backward pass, cross attention left out.

    Kept are the inputs of the norms, of the projections, of the activation function and of the last feed-forward layer,
    queries, keys, values, and one byte per dropout decision. The attention weights are not: fused kernels recompute
    them, and keep one fp32 number per head. With 16-bit numbers, d_ff = 4 d_model, dropout and GELU this is the paper's
    34 d_model, without its term for attention weights.

    Source: Korthikanti et al. 2022, section 4.1.

    Args:
        model: the model's description.
        number_bytes: bytes of one activation.

    Returns:
        Bytes per token and layer.
    """
    query_width, key_value_width = model.n_heads * model.head_dim, model.n_kv_heads * model.head_dim
    attention = 2 * model.d_model + 2 * query_width + 2 * key_value_width
    # GELU keeps its input and output, ReLU its output; SwiGLU keeps both branches, the activated gate and the product.
    inner = {"relu": 1, "swiglu": 4, "geglu": 4}.get(model.activation, 2)
    feed_forward = 2 * model.d_model + inner * model.d_ff
    dropout_masks = 2 * model.d_model if model.dropout else 0
    return number_bytes * (attention + feed_forward) + dropout_masks + 4 * model.n_heads


def _activation_bytes(model: ModelConfig, train: TrainConfig, number_bytes: int) -> int:
    tokens = train.micro_batch_size * train.max_seq_len
    if model.kind != "transformer":
        return tokens * number_bytes * _baseline_numbers_per_token(model)
    # A sequence is source and text where there is an encoder: planned for is that all of it goes where more is kept.
    per_layer = layer_activation_bytes_per_token(model, number_bytes)
    n_layers = max(model.n_layers, model.n_encoder_layers)
    if model.n_encoder_layers:
        crossing = model.n_layers * _crossing_bytes_per_token(model, number_bytes)
        per_layer = max(model.n_encoder_layers * per_layer, model.n_layers * per_layer + crossing) // n_layers
    mask = train.micro_batch_size * train.max_seq_len**2
    if model.positions == "relative":
        # Kernels that never hold the attention weights give no gradient to what is added to the scores.
        per_layer += number_bytes * model.n_heads * train.max_seq_len
        mask += train.micro_batch_size * number_bytes * model.n_heads * train.max_seq_len**2
    if train.activation_checkpointing:
        kept = n_layers * number_bytes * model.d_model + per_layer
    else:
        kept = n_layers * per_layer
    final_norm_and_output = 2 * number_bytes * model.d_model
    return tokens * (kept + final_norm_and_output) + mask


def _crossing_bytes_per_token(model: ModelConfig, number_bytes: int) -> int:
    """What the cross attention of one layer keeps of a token of the text and one of the source."""
    query_width, key_value_width = model.n_heads * model.head_dim, model.n_kv_heads * model.head_dim
    dropout_mask = model.d_model if model.dropout else 0
    return number_bytes * (2 * model.d_model + 2 * query_width + 2 * key_value_width) + dropout_mask + 4 * model.n_heads


def _baseline_numbers_per_token(model: ModelConfig) -> int:
    """What a CNN keeps of a token: input and answers; an LSTM: what torch's kernels were seen to keep on a CPU.

    Those are 17 d_model in each layer, 24 where it reads in both directions: more than input, gates, state and output.
    """
    if model.kind == "cnn":
        return 2 * model.d_model + 2 * len(model.kernel_widths) * model.d_ff
    if not model.n_encoder_layers:
        return (model.n_layers * (17 if model.causal else 24) + 2) * model.d_model
    attention = 6 * model.d_model
    return max(24 * model.n_encoder_layers * model.d_model, 17 * model.n_layers * model.d_model + attention)


def _share(size: int, world_size: int, is_spread: bool) -> int:
    return -(-size // world_size) if is_spread else size

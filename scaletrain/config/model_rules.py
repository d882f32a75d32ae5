"""What the fields of a model's description may be together."""

from collections.abc import Iterator, Sequence

from scaletrain.config.schema import ModelConfig

# Fields that ask for what a kind of model does not have.
_NOT_IN_BASELINES = (
    "n_segments",
    "sliding_window",
    "embedding_norm",
    "output_transform",
    "output_scale",
    "pooler",
)
_NOT_IN_CNN = ("n_encoder_layers", "output_bias", "pooling")
_NOT_IN_ENCODER_DECODER = (
    "n_segments",
    "sliding_window",
    "parallel_residual",
    "output_transform",
    "pooler",
    "n_classes",
)
_NOT_IN_LSTM_SEQ2SEQ = ("n_classes",)


def model_problems(model: ModelConfig) -> Iterator[str]:
    """Finds what cannot be built, or would not be what was asked for.

    Args:
        model: The model's description, whose fields are within their own ranges.

    Yields:
        A text for each rule that is broken, with the values and a remedy.
    """
    if model.n_encoder_layers and not model.causal:
        yield (
            f"model.n_encoder_layers = {model.n_encoder_layers} asks for a decoder, which writes token by token, but "
            "model.causal is false, that of the decoder; set it true: an encoder sees all tokens anyway"
        )
    if model.kind == "transformer":
        yield from _transformer_problems(model)
    else:
        yield from _baseline_problems(model)


def _transformer_problems(model: ModelConfig) -> Iterator[str]:
    if model.n_heads % model.n_kv_heads:
        yield (
            f"model.n_heads = {model.n_heads} is not a multiple of model.n_kv_heads = {model.n_kv_heads}: "
            "each key/value head serves the same number of query heads; change one of them"
        )
    if model.d_model % model.n_heads and model.head_dim == model.d_model // model.n_heads:
        yield (
            f"model.d_model = {model.d_model} is not a multiple of model.n_heads = {model.n_heads}, so that heads of "
            f"{model.head_dim} would not fill it; choose a divisor, or give another model.head_dim"
        )
    yield from _rotary_problems(model)
    # Half of the buckets hold one distance each; where a token sees both sides, each side has half of all.
    if model.positions == "relative" and model.relative_max_distance <= model.relative_buckets // 2:
        yield (
            f"model.relative_max_distance = {model.relative_max_distance} is not above half of model.relative_buckets "
            f"= {model.relative_buckets}, which hold one distance each; raise the one or lower the other"
        )
    if model.sliding_window and not model.causal:
        yield (
            f"model.sliding_window = {model.sliding_window} looks back from a token, but model.causal is false; "
            "set one of them to its default"
        )
    if model.parallel_residual and model.norm_position == "post":
        yield (
            "model.parallel_residual needs branches that normalise their own input, but model.norm_position is post; "
            "set it to pre"
        )
    if model.output_transform and model.activation in ("swiglu", "geglu"):
        yield (
            f"model.output_transform has no gate, but model.activation is {model.activation}; choose gelu, gelu_tanh "
            "or relu"
        )
    if model.n_encoder_layers:
        yield from _unknown(model, _NOT_IN_ENCODER_DECODER, "an encoder-decoder model (model.n_encoder_layers)")


def _baseline_problems(model: ModelConfig) -> Iterator[str]:
    kind = f"model.kind {model.kind}"
    yield from _unknown(model, _NOT_IN_BASELINES, kind)
    if model.kind == "cnn":
        yield from _unknown(model, _NOT_IN_CNN, kind)
        if not model.kernel_widths:
            yield "model.kernel_widths is empty, and a cnn has no filters then; give some, such as 3,4,5"
        return
    if model.n_encoder_layers:
        yield from _unknown(model, _NOT_IN_LSTM_SEQ2SEQ, f"{kind} with model.n_encoder_layers")
    if (model.n_encoder_layers or not model.causal) and model.d_model % 2:
        yield (
            f"model.d_model = {model.d_model} is odd, but an lstm that reads in both directions gives half of it to "
            "each; choose an even one"
        )


def _unknown(model: ModelConfig, keys: Sequence[str], what: str) -> Iterator[str]:
    for key in keys:
        value, default = getattr(model, key), ModelConfig.model_fields[key].default
        if value != default:
            yield f"model.{key} = {value} is not known to {what}; leave it at {default}"


def _rotary_problems(model: ModelConfig) -> Iterator[str]:
    if model.positions != "rotary":
        return
    # A head_dim and the rotary_dim that follows from it are one mistake.
    key = "head_dim" if model.rotary_dim == model.head_dim else "rotary_dim"
    if model.rotary_dim % 2:
        yield (
            f"model.{key} = {model.rotary_dim} is odd: rotary positions turn pairs of dimensions; "
            f"choose an even {key}, or other model.positions"
        )
    if model.rotary_dim > model.head_dim:
        yield f"model.rotary_dim = {model.rotary_dim} is more than model.head_dim = {model.head_dim}; lower it"
    if model.rope_scaling == "llama3" and model.rope_high_freq_factor <= model.rope_low_freq_factor:
        yield (
            f"model.rope_high_freq_factor = {model.rope_high_freq_factor:g} is not above model.rope_low_freq_factor = "
            f"{model.rope_low_freq_factor:g}; between the two the frequencies are mixed"
        )

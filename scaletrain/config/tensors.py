"""Names and shapes of the parameters that a model's description asks for, without building it.

They are those of the built model, in ``model/``: a test compares the two.
"""

from collections.abc import Iterator, Sequence
from math import prod

from scaletrain.config.schema import ModelConfig

Shape = tuple[int, ...]
Named = Iterator[tuple[str, Shape]]

_TABLES = ("embedding", "position_embedding", "segment_embedding", "position_bias")
"""Modules whose matrix is looked up, not multiplied with."""


def tensors_of(model: ModelConfig) -> dict[str, Shape]:
    """Lists the parameters of a model.

    Args:
        model: The model's description.

    Returns:
        The shape of each by its name in the model; a tied one stands once, under its first name.
    """
    if model.kind == "cnn":
        return dict(_cnn(model))
    if model.kind == "lstm":
        return dict(_lstm(model))
    if not model.n_encoder_layers:
        return {**dict(_stack(model, model.n_layers)), **dict(_heads(model))}
    encoder = {f"encoder.{name}": shape for name, shape in _stack(model, model.n_encoder_layers)}
    decoder = {f"decoder.{name}": shape for name, shape in _stack(model, model.n_layers, crosses=True)}
    del decoder["decoder.embedding.weight"]  # that of the encoder
    return {**encoder, **decoder, **dict(_output(model))}


def numbers_in(shapes: Sequence[Shape]) -> int:
    """All numbers of some tensors."""
    return sum(map(prod, shapes))


def linear_layers(model: ModelConfig) -> dict[str, Shape]:
    """The linear layers of a model.

    Args:
        model: The model's description.

    Returns:
        Outputs and inputs of each by name, in no order that means anything.
    """
    layers = {
        name.removesuffix(".weight"): shape
        for name, shape in tensors_of(model).items()
        if name.endswith(".weight") and len(shape) == 2
    }
    if model.kind != "cnn":
        layers["output"] = (model.vocab_size, model.d_model)  # also where it is tied to the embedding
    return {name: shape for name, shape in layers.items() if name.rpartition(".")[2] not in _TABLES}


def _stack(model: ModelConfig, n_layers: int, crosses: bool = False) -> Named:
    width = model.d_model
    yield "embedding.weight", (model.vocab_size, width)
    if model.positions == "learned":
        yield "position_embedding.weight", (model.max_seq_len, width)
    if model.positions == "relative":
        yield "position_bias.weight", (model.relative_buckets, model.n_heads)
    if model.n_segments:
        yield "segment_embedding.weight", (model.n_segments, width)
    if model.embedding_norm:
        yield from _norm(model, "embedding_norm")
    for number in range(n_layers):
        yield from _block(model, f"blocks.{number}", crosses)
    if model.norm_position == "pre":
        yield from _norm(model, "norm")


def _block(model: ModelConfig, place: str, crosses: bool) -> Named:
    for name in ("attention", *(("cross_attention",) if crosses else ())):
        yield from _norm(model, f"{place}.{name}_norm")
        yield from _attention(model, f"{place}.{name}")
    yield from _norm(model, f"{place}.feed_forward_norm")
    for name in ("gate", "up") if model.activation in ("swiglu", "geglu") else ("up",):
        yield from _linear(f"{place}.feed_forward.{name}", model.d_model, model.d_ff, model.bias)
    yield from _linear(f"{place}.feed_forward.down", model.d_ff, model.d_model, model.bias)


def _attention(model: ModelConfig, place: str) -> Named:
    query_width, key_value_width = model.n_heads * model.head_dim, model.n_kv_heads * model.head_dim
    for name, width in (("q", query_width), ("k", key_value_width), ("v", key_value_width)):
        yield from _linear(f"{place}.{name}", model.d_model, width, model.qkv_bias)
    yield from _linear(f"{place}.out", query_width, model.d_model, model.attention_out_bias)
    if model.qk_norm:
        yield f"{place}.q_norm.weight", (model.head_dim,)
        yield f"{place}.k_norm.weight", (model.head_dim,)


def _heads(model: ModelConfig) -> Named:
    width = model.d_model
    if model.output_transform:
        yield from _linear("output_transform.dense", width, width, model.bias)
        yield from _norm(model, "output_transform.norm")
    yield from _output(model)
    if model.pooler:
        yield from _linear("pooler", width, width, True)
    yield from _classifier(model, width)


def _output(model: ModelConfig) -> Named:
    if not model.tie_embeddings:
        yield "output.weight", (model.vocab_size, model.d_model)
    if model.output_bias:
        yield "output.bias", (model.vocab_size,)


def _classifier(model: ModelConfig, width: int) -> Named:
    if model.n_classes:
        yield from _linear("classifier", width, model.n_classes, True)


def _lstm(model: ModelConfig) -> Named:
    width = model.d_model
    yield "embedding.weight", (model.vocab_size, width)
    if model.n_encoder_layers:
        yield from _recurrent("encoder", width, model.n_encoder_layers, both_directions=True)
        yield from _linear("bridge", width, model.n_layers * width, True)
        yield from _recurrent("decoder", width, model.n_layers, both_directions=False)
        yield from _linear("query", width, width, False)
        yield from _linear("combine", 2 * width, width, False)
    else:
        yield from _recurrent("lstm", width, model.n_layers, both_directions=not model.causal)
    yield from _output(model)
    yield from _classifier(model, width)


def _recurrent(place: str, d_model: int, n_layers: int, both_directions: bool) -> Named:
    """Four gates of input, state and two biases; of two directions each has half of the width."""
    width = d_model // 2 if both_directions else d_model
    for direction in ("forwards", "backwards") if both_directions else ("forwards",):
        for number in range(n_layers):
            yield f"{place}.{direction}.{number}.weight_ih_l0", (4 * width, d_model)
            yield f"{place}.{direction}.{number}.weight_hh_l0", (4 * width, width)
            yield f"{place}.{direction}.{number}.bias_ih_l0", (4 * width,)
            yield f"{place}.{direction}.{number}.bias_hh_l0", (4 * width,)


def _cnn(model: ModelConfig) -> Named:
    yield "embedding.weight", (model.vocab_size, model.d_model)
    for number, width in enumerate(model.kernel_widths):
        yield f"filters.{number}.weight", (model.d_ff, model.d_model, width)
        yield f"filters.{number}.bias", (model.d_ff,)
    yield from _classifier(model, len(model.kernel_widths) * model.d_ff)


def _linear(name: str, width_in: int, width_out: int, bias: bool) -> Named:
    yield f"{name}.weight", (width_out, width_in)
    if bias:
        yield f"{name}.bias", (width_out,)


def _norm(model: ModelConfig, name: str) -> Named:
    yield f"{name}.weight", (model.d_model,)
    if model.norm == "layer_norm" and model.bias:
        yield f"{name}.bias", (model.d_model,)

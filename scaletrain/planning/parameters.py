"""How many parameters a model has, without building it."""

from dataclasses import dataclass

from scaletrain.config.schema import ModelConfig


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of a model, by place.

    Attributes:
        embedding: token embedding; with tied embeddings also the output layer.
        position_embedding: learned positions, or what relative ones add to scores, or 0.
        segment_embedding: embedding of segments, or 0.
        output: output layer, or 0 where it is tied to the embedding.
        head: what stands before, in and behind the output layer without its matrix: BERT's transform, the output's
            bias, pooler and classes.
        encoder: layers and norms of an encoder, and what joins it to the decoder outside of the layers, or 0.
        per_layer: one layer of the model, or of its decoder; all filters of a cnn.
        final_norm: normalisation of the embeddings and before the output layer.
        n_layers: layers, without an encoder's.
    """

    embedding: int
    position_embedding: int
    segment_embedding: int
    output: int
    head: int
    encoder: int
    per_layer: int
    final_norm: int
    n_layers: int

    @property
    def non_embedding(self) -> int:
        """Parameters of the layers and the final norm, as scaling laws count them (Kaplan et al. 2020)."""
        return self.encoder + self.n_layers * self.per_layer + self.final_norm

    @property
    def total(self) -> int:
        """All parameters, a tied tensor counted once."""
        embeddings = self.embedding + self.position_embedding + self.segment_embedding
        return embeddings + self.non_embedding + self.head + self.output


def count_parameters(model: ModelConfig) -> ParameterCount:
    """Count the parameters of a model from its description.

    Args:
        model: the model's description.

    Returns:
        The counts; ``total`` equals the number of elements of the built model's parameters.
    """
    if model.kind == "cnn":
        return _cnn(model)
    if model.kind == "lstm":
        return _lstm(model)
    norm, embedding = _norm(model), model.vocab_size * model.d_model
    positions = {"learned": model.max_seq_len * model.d_model, "relative": model.relative_buckets * model.n_heads}
    norms_of_a_stack = norm * (model.embedding_norm + (model.norm_position == "pre"))
    attention, feed_forward = _attention(model), _feed_forward(model)
    layer, encoder = attention + feed_forward + 2 * norm, 0
    if model.n_encoder_layers:
        encoder = model.n_encoder_layers * layer + norms_of_a_stack
        layer += attention + norm
    return ParameterCount(
        embedding=embedding,
        position_embedding=positions.get(model.positions, 0) * (2 if model.n_encoder_layers else 1),
        segment_embedding=model.n_segments * model.d_model,
        output=0 if model.tie_embeddings else embedding,
        head=_head(model, norm),
        encoder=encoder,
        per_layer=layer,
        final_norm=norms_of_a_stack,
        n_layers=model.n_layers,
    )


def _attention(model: ModelConfig) -> int:
    query_width, key_value_width = model.n_heads * model.head_dim, model.n_kv_heads * model.head_dim
    attention = 2 * model.d_model * query_width + 2 * model.d_model * key_value_width
    if model.qkv_bias:
        attention += query_width + 2 * key_value_width
    if model.attention_out_bias:
        attention += model.d_model
    return attention + (2 * model.head_dim if model.qk_norm else 0)


def _feed_forward(model: ModelConfig) -> int:
    n_inner = 2 if model.activation in ("swiglu", "geglu") else 1
    feed_forward = (n_inner + 1) * model.d_model * model.d_ff
    return feed_forward + (n_inner * model.d_ff + model.d_model if model.bias else 0)


def _norm(model: ModelConfig) -> int:
    return model.d_model * (2 if model.norm == "layer_norm" and model.bias else 1)


def _head(model: ModelConfig, norm: int) -> int:
    head = model.d_model * (model.d_model + model.bias) + norm if model.output_transform else 0
    head += model.vocab_size if model.output_bias else 0
    head += model.d_model * (model.d_model + 1) if model.pooler else 0
    return head + model.n_classes * (model.d_model + 1)


def _lstm(model: ModelConfig) -> ParameterCount:
    width, embedding, encoder = model.d_model, model.vocab_size * model.d_model, 0
    if model.n_encoder_layers:
        bridge = (width + 1) * model.n_layers * width
        query_and_combine = 3 * width * width
        encoder = model.n_encoder_layers * _recurrent_layer(width, directions=2) + bridge + query_and_combine
    return ParameterCount(
        embedding=embedding,
        position_embedding=0,
        segment_embedding=0,
        output=0 if model.tie_embeddings else embedding,
        head=(model.vocab_size if model.output_bias else 0) + model.n_classes * (width + 1),
        encoder=encoder,
        per_layer=_recurrent_layer(width, directions=1 if model.causal else 2),
        final_norm=0,
        n_layers=model.n_layers,
    )


def _recurrent_layer(d_model: int, directions: int) -> int:
    """Four gates of input, state and two biases; of several directions each has its share of the width."""
    width = d_model // directions
    return directions * 4 * width * (d_model + width + 2)


def _cnn(model: ModelConfig) -> ParameterCount:
    n_features = len(model.kernel_widths) * model.d_ff
    return ParameterCount(
        embedding=model.vocab_size * model.d_model,
        position_embedding=0,
        segment_embedding=0,
        output=0,
        head=model.n_classes * (n_features + 1),
        encoder=0,
        per_layer=sum(model.kernel_widths) * model.d_model * model.d_ff + n_features,
        final_norm=0,
        n_layers=1,
    )

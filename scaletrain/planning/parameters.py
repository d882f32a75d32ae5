"""How many parameters a model has, without building it."""

from dataclasses import dataclass

from scaletrain.config.schema import ModelConfig


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of a model, by place.

    Attributes:
        embedding: token embedding; with tied embeddings also the output layer.
        position_embedding: learned positions, or 0.
        segment_embedding: embedding of segments, or 0.
        output: output layer, or 0 where it is tied to the embedding.
        head: what stands before, in and behind the output layer without its matrix: BERT's transform, the output's
            bias, pooler and classes.
        attention_per_layer: query, key, value and output projections of one layer, and the norms of its heads.
        feed_forward_per_layer: feed-forward layers of one layer.
        norms_per_layer: the two normalisations of one layer.
        final_norm: normalisation of the embeddings and before the output layer.
        n_layers: layers.
    """

    embedding: int
    position_embedding: int
    segment_embedding: int
    output: int
    head: int
    attention_per_layer: int
    feed_forward_per_layer: int
    norms_per_layer: int
    final_norm: int
    n_layers: int

    @property
    def per_layer(self) -> int:
        """Parameters of one layer."""
        return self.attention_per_layer + self.feed_forward_per_layer + self.norms_per_layer

    @property
    def non_embedding(self) -> int:
        """Parameters of the layers and the final norm, as scaling laws count them (Kaplan et al. 2020)."""
        return self.n_layers * self.per_layer + self.final_norm

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
    query_width, key_value_width = model.n_heads * model.head_dim, model.n_kv_heads * model.head_dim
    attention = 2 * model.d_model * query_width + 2 * model.d_model * key_value_width
    feed_forward = (3 if model.activation == "swiglu" else 2) * model.d_model * model.d_ff
    if model.qkv_bias:
        attention += query_width + 2 * key_value_width
    if model.attention_out_bias:
        attention += model.d_model
    if model.qk_norm:
        attention += 2 * model.head_dim
    if model.bias:
        feed_forward += (2 if model.activation == "swiglu" else 1) * model.d_ff + model.d_model
    norm = model.d_model * (2 if model.norm == "layer_norm" and model.bias else 1)
    embedding = model.vocab_size * model.d_model
    return ParameterCount(
        embedding=embedding,
        position_embedding=model.max_seq_len * model.d_model if model.positions == "learned" else 0,
        segment_embedding=model.n_segments * model.d_model,
        output=0 if model.tie_embeddings else embedding,
        head=_head(model, norm),
        attention_per_layer=attention,
        feed_forward_per_layer=feed_forward,
        norms_per_layer=2 * norm,
        final_norm=norm * (model.embedding_norm + (model.norm_position == "pre")),
        n_layers=model.n_layers,
    )


def _head(model: ModelConfig, norm: int) -> int:
    head = model.d_model * (model.d_model + model.bias) + norm if model.output_transform else 0
    head += model.vocab_size if model.output_bias else 0
    head += model.d_model * (model.d_model + 1) if model.pooler else 0
    return head + model.n_classes * (model.d_model + 1)

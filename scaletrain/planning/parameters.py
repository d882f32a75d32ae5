"""How many parameters a model has, without building it."""

from dataclasses import dataclass

from scaletrain.config.schema import ModelConfig
from scaletrain.config.tensors import Shape, numbers_in, tensors_of

_PLACES = ("embedding", "position_embedding", "segment_embedding", "output", "head", "encoder", "final_norm")
_EMBEDDINGS = {
    "embedding": "embedding",
    "position_embedding": "position_embedding",
    "position_bias": "position_embedding",
    "segment_embedding": "segment_embedding",
}


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
    places: dict[str, list[Shape]] = {}
    for name, shape in tensors_of(model).items():
        places.setdefault(_place(name), []).append(shape)
    counts = {place: numbers_in(shapes) for place, shapes in places.items()}
    n_layers = 1 if model.kind == "cnn" else model.n_layers
    per_layer = counts.pop("layers") // n_layers
    return ParameterCount(**{place: counts.get(place, 0) for place in _PLACES}, per_layer=per_layer, n_layers=n_layers)


def _place(name: str) -> str:
    """The field of ``ParameterCount`` that a tensor is counted in; ``layers`` for those of all layers."""
    words = name.split(".")
    if name == "output.weight":
        return "output"
    if words[-2] in _EMBEDDINGS:
        return _EMBEDDINGS[words[-2]]
    if words[0] in ("output_transform", "output", "pooler", "classifier"):
        return "head"
    if words[0] in ("encoder", "bridge", "query", "combine"):
        return "encoder"
    return "final_norm" if words[-2] in ("norm", "embedding_norm") else "layers"

"""What the fields of a model's description may be together."""

from collections.abc import Iterator

from scaletrain.config.schema import ModelConfig


def model_problems(model: ModelConfig) -> Iterator[str]:
    """Finds what cannot be built, or would not be what was asked for.

    Args:
        model: The model's description, whose fields are within their own ranges.

    Yields:
        A text for each rule that is broken, with the values and a remedy.
    """
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
    if model.n_classes and not model.pooler:
        yield f"model.n_classes = {model.n_classes} are told from the pooler's output; set model.pooler true"
    if model.output_transform and model.activation == "swiglu":
        yield "model.output_transform has no gate, but model.activation is swiglu; choose gelu or gelu_tanh"


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

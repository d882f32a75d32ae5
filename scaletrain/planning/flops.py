"""How many floating-point operations training takes."""

from scaletrain.config.schema import ModelConfig, TaskConfig


def flops_per_token(model: ModelConfig, max_seq_len: int, output_share: float = 1.0) -> float:
    """Count the operations of one token's forward and backward pass.

    Each weight of a matrix product costs a multiplication and an addition in the forward pass and twice that in the
    backward pass: 6 per weight. The products of queries with keys and of weights with values add
    ``12 n_layers n_heads head_dim max_seq_len``. The look-up of an embedding is no product and counts nothing; the
    output layer counts, tied or not.

    Attention is counted in full, though causal kernels and document borders skip half of it or more: this is the PaLM
    paper's convention, by which utilisations (MFU) are published. Recomputed activations count nothing, for the same
    reason.

    Of a model with an encoder, a sequence is source and text, and each is taken to be half of it: a token costs the
    mean of both. What is computed once a sequence, such as the logits of classes, counts nothing.

    Source: Chowdhery et al. 2022, "PaLM", appendix B.

    Args:
        model: the model's description.
        max_seq_len: tokens in a training sequence.
        output_share: share of the tokens for which the output layer is computed; see ``output_share``.

    Returns:
        Floating-point operations per token.
    """
    if model.kind == "cnn":
        return 6.0 * sum(model.kernel_widths) * model.d_model * model.d_ff
    if model.kind == "lstm":
        return _lstm(model, max_seq_len, output_share)
    key_value = 2 * model.d_model * model.head_dim * model.n_kv_heads
    query_out = 2 * model.d_model * model.head_dim * model.n_heads
    feed_forward = (3 if model.activation in ("swiglu", "geglu") else 2) * model.d_model * model.d_ff
    layer = key_value + query_out + feed_forward
    outer = (model.vocab_size + model.d_model * model.output_transform) * model.d_model * output_share
    scores_per_key = 12 * model.n_heads * model.head_dim
    if not model.n_encoder_layers:
        return float(6 * (model.n_layers * layer + outer) + model.n_layers * scores_per_key * max_seq_len)
    half = max_seq_len / 2
    of_source = 6.0 * (model.n_encoder_layers * layer + model.n_layers * key_value)
    of_source += model.n_encoder_layers * scores_per_key * half
    of_text = 6 * (model.n_layers * (layer + query_out) + outer) + 2 * model.n_layers * scores_per_key * half
    return (of_source + of_text) / 2


def _lstm(model: ModelConfig, max_seq_len: int, output_share: float) -> float:
    width, outer = model.d_model, model.vocab_size * model.d_model * output_share
    # Four gates read input and state; in both directions each has half of the width.
    one_direction, both_directions = 8 * width**2, 6 * width**2
    if not model.n_encoder_layers:
        return 6.0 * (model.n_layers * (one_direction if model.causal else both_directions) + outer)
    of_source = 6 * model.n_encoder_layers * both_directions
    query_and_combine = 3 * width**2
    of_text = 6 * (model.n_layers * one_direction + query_and_combine + outer) + 12 * width * max_seq_len / 2
    return (of_source + of_text) / 2


def output_share(task: TaskConfig) -> float:
    """Share of a sequence's tokens for which a task computes the output layer.

    Args:
        task: the task.

    Returns:
        1 where each token is predicted from, the hidden share in masked language modelling, 0 where only documents are
        told of.
    """
    return {"masked_lm": task.mask_share, "classification": 0.0, "regression": 0.0}.get(task.name, 1.0)


def training_time_s(flops: float, peak_flops_per_s: float, mfu: float) -> float:
    """Estimate how long a number of operations takes.

    Args:
        flops: floating-point operations of the whole run.
        peak_flops_per_s: peak of all devices together, at the run's precision.
        mfu: share of the peak that is reached, between 0 and 1.

    Returns:
        Seconds.
    """
    return flops / (peak_flops_per_s * mfu)

"""How many floating-point operations training takes."""

from scaletrain.config.schema import ModelConfig


def flops_per_token(model: ModelConfig, max_seq_len: int) -> float:
    """Count the operations of one token's forward and backward pass.

    Each weight of a matrix product costs a multiplication and an addition in the forward pass and twice that in the
    backward pass: 6 per weight. The products of queries with keys and of weights with values add
    ``12 n_layers n_heads head_dim max_seq_len``. The look-up of an embedding is no product and counts nothing; the
    output layer counts, tied or not.

    Attention is counted in full, though causal kernels and document borders skip half of it or more: this is the PaLM
    paper's convention, by which utilisations (MFU) are published. Recomputed activations count nothing, for the same
    reason.

    Source: Chowdhery et al. 2022, "PaLM", appendix B.

    Args:
        model: the model's description.
        max_seq_len: tokens in a training sequence.

    Returns:
        Floating-point operations per token.
    """
    heads = model.n_heads + model.n_kv_heads
    attention = 2 * model.d_model * model.head_dim * heads
    feed_forward = (3 if model.activation == "swiglu" else 2) * model.d_model * model.d_ff
    weights = model.n_layers * (attention + feed_forward) + model.vocab_size * model.d_model
    if model.output_transform:
        weights += model.d_model**2
    scores = 12 * model.n_layers * model.n_heads * model.head_dim * max_seq_len
    return float(6 * weights + scores)


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

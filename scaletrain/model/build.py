"""The model that a description asks for."""

from scaletrain.config.schema import ModelConfig
from scaletrain.model.baselines import CNN, LSTM, LSTMSeq2Seq
from scaletrain.model.encoder_decoder import EncoderDecoder
from scaletrain.model.transformer import Transformer

LanguageModel = Transformer | LSTM
"""Has ``hidden``, ``logits`` and ``new_cache``, and ``class_logits`` where there are classes."""

Classifier = Transformer | LSTM | CNN
"""Has ``hidden`` and ``class_logits``."""

Seq2Seq = EncoderDecoder | LSTMSeq2Seq
"""Has ``encode``, ``decode``, ``logits`` and ``new_cache``."""

Model = Transformer | LSTM | CNN | EncoderDecoder | LSTMSeq2Seq


def build_model(config: ModelConfig, *, checkpoint_activations: bool = False) -> Model:
    """Build a model with its initial weights.

    Args:
        config: the model's description.
        checkpoint_activations: keep only the input of each block in training, and recompute the rest in the backward
            pass; without effect on what has no blocks.

    Returns:
        The model.

    Raises:
        ConfigError: what the description asks for cannot be together; see ``model_problems``.
    """
    if config.kind == "cnn":
        return CNN(config)
    if config.kind == "lstm":
        return LSTMSeq2Seq(config) if config.n_encoder_layers else LSTM(config)
    kind = EncoderDecoder if config.n_encoder_layers else Transformer
    return kind(config, checkpoint_activations=checkpoint_activations)

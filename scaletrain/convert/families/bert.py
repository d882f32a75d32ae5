"""BERT: bidirectional, norms behind the sums, segments, and heads for masked tokens, pairs of sentences and classes."""

from collections.abc import Mapping
from typing import Any

from scaletrain.config.schema import ModelConfig
from scaletrain.convert.activations import read_gelu, unify_gelu, write_gelu
from scaletrain.convert.family import Family
from scaletrain.convert.rows import same, where

# Classes, with what stands behind the encoder in each.
_HEADS: dict[str, dict[str, Any]] = {
    "BertForMaskedLM": {"output_transform": True, "output_bias": True},
    "BertForPreTraining": {"output_transform": True, "output_bias": True, "pooler": True, "n_classes": 2},
    "BertForSequenceClassification": {"pooler": True},
    "BertModel": {"pooler": True},
}


def _head_of(theirs: Mapping[str, Any]) -> dict[str, Any]:
    return _HEADS[theirs["architectures"][0]]


def _unify(theirs: Mapping[str, Any]) -> dict[str, Any]:
    labels = theirs.get("id2label")
    return {
        **theirs,
        "hidden_act": unify_gelu(theirs["hidden_act"]),
        # Without a head that tells tokens there is no output layer.
        "tie_word_embeddings": theirs["tie_word_embeddings"] or "output_transform" not in _head_of(theirs),
        # Two are not told by older versions.
        "num_labels": theirs.get("num_labels") or 2 if labels is None else len(labels),
    }


def _read(theirs: Mapping[str, Any]) -> dict[str, Any]:
    has_classes = theirs["architectures"][0] == "BertForSequenceClassification"
    classes = {"n_classes": theirs["num_labels"]} if has_classes else {}
    return {
        "vocab_size": theirs["vocab_size"],
        "d_model": theirs["hidden_size"],
        "n_layers": theirs["num_hidden_layers"],
        "n_heads": theirs["num_attention_heads"],
        "d_ff": theirs["intermediate_size"],
        "max_seq_len": theirs["max_position_embeddings"],
        "n_segments": theirs["type_vocab_size"],
        "norm_eps": theirs["layer_norm_eps"],
        "activation": read_gelu(theirs["hidden_act"]),
        "causal": False,
        "norm_position": "post",
        "embedding_norm": True,
        "tie_embeddings": theirs["tie_word_embeddings"],
        **_head_of(theirs),
        **classes,
    }


def _write(model: ModelConfig) -> dict[str, Any]:
    if _tells_tokens(model):
        architecture, labels = "BertForPreTraining" if model.pooler else "BertForMaskedLM", {}
    elif model.n_classes:
        architecture, labels = "BertForSequenceClassification", {"num_labels": model.n_classes}
    else:
        architecture, labels = "BertModel", {}
    return {
        "architectures": [architecture],
        **labels,
        "vocab_size": model.vocab_size,
        "hidden_size": model.d_model,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "intermediate_size": model.d_ff,
        "max_position_embeddings": model.max_seq_len,
        # At least one, which transformers looks up always: who reads it again finds a model without any to differ.
        "type_vocab_size": max(1, model.n_segments),
        "layer_norm_eps": model.norm_eps,
        "hidden_act": write_gelu(model.activation),
        "tie_word_embeddings": model.tie_embeddings,
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
    }


def _tells_tokens(model: ModelConfig) -> bool:
    return model.output_transform


def _tells_classes(model: ModelConfig) -> bool:
    return not model.output_transform


_EMBEDDINGS, _LAYER = "bert.embeddings.", "bert.encoder.layer.{layer}."

BERT = Family(
    model_type="bert",
    architectures=tuple(_HEADS),
    rows=(
        same("embedding.weight", f"{_EMBEDDINGS}word_embeddings.weight"),
        same("position_embedding.weight", f"{_EMBEDDINGS}position_embeddings.weight"),
        same("segment_embedding.weight", f"{_EMBEDDINGS}token_type_embeddings.weight"),
        same("embedding_norm.weight", f"{_EMBEDDINGS}LayerNorm.weight"),
        same("embedding_norm.bias", f"{_EMBEDDINGS}LayerNorm.bias"),
        *(
            same(f"blocks.{{layer}}.{ours}.{kind}", f"{_LAYER}{theirs}.{kind}")
            for ours, theirs in (
                ("attention.q", "attention.self.query"),
                ("attention.k", "attention.self.key"),
                ("attention.v", "attention.self.value"),
                ("attention.out", "attention.output.dense"),
                ("attention_norm", "attention.output.LayerNorm"),
                ("feed_forward.up", "intermediate.dense"),
                ("feed_forward.down", "output.dense"),
                ("feed_forward_norm", "output.LayerNorm"),
            )
            for kind in ("weight", "bias")
        ),
        *(
            same(f"{ours}.{kind}", f"{theirs}.{kind}")
            for ours, theirs in (
                ("pooler", "bert.pooler.dense"),
                ("output_transform.dense", "cls.predictions.transform.dense"),
                ("output_transform.norm", "cls.predictions.transform.LayerNorm"),
            )
            for kind in ("weight", "bias")
        ),
        *(
            where(holds, same(f"classifier.{kind}", f"{theirs}.{kind}"))
            for holds, theirs in ((_tells_tokens, "cls.seq_relationship"), (_tells_classes, "classifier"))
            for kind in ("weight", "bias")
        ),
        where(_tells_tokens, same("output.weight", "cls.predictions.decoder.weight")),
        where(_tells_tokens, same("output.bias", "cls.predictions.bias")),
    ),
    defaults={
        "architectures": ["BertForMaskedLM"],
        "vocab_size": 30522,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "hidden_act": "gelu",
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "tie_word_embeddings": True,
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
    },
    read=_read,
    write=_write,
    unify=_unify,
    prefix="bert.",
    bare=("BertModel",),
    computed=(r"^(bert\.)?embeddings\.position_ids$",),
    renamed={r"\.gamma$": ".weight", r"\.beta$": ".bias", r"^cls\.predictions\.decoder\.bias$": "cls.predictions.bias"},
)

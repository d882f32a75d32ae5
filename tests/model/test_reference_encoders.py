"""Encoders and encoder-decoders give the logits and gradients of transformers and torch.nn, with the same weights."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForPreTraining, BertForSequenceClassification, T5Config
from transformers import T5ForConditionalGeneration as T5

from scaletrain.config.schema import ModelConfig
from scaletrain.model.encoder_decoder import EncoderDecoder
from scaletrain.model.transformer import Transformer

V, D = 97, 48
# Sums in another order differ in the last bits of fp32: of the largest number of a tensor, which cancels in others.
TOLERANCE = 1e-5


class Pair(NamedTuple):
    """Our model and the reference, with the same weights.

    Attributes:
        ours: Ours.
        theirs: Theirs.
        names: For each of our parameters, theirs; and the part of it that is ours, where it is not the whole.
    """

    ours: nn.Module
    theirs: nn.Module
    names: Mapping[str, tuple[str, slice]]


def same_weights(ours: nn.Module, theirs: nn.Module, rename: Callable[[str], tuple[str, slice]]) -> Pair:
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in theirs.parameters():  # wide enough for a comparison to mean something; norms too
            weight.add_(torch.randn_like(weight) * 0.1)
    state = theirs.state_dict()
    names = {name: rename(name) for name, _ in ours.named_parameters()}
    with torch.no_grad():
        for name, weight in ours.named_parameters():
            there, part = names[name]
            weight.copy_(state[there][part])
    return Pair(ours.eval(), theirs.eval(), names)


def check_close(ours: Tensor, theirs: Tensor, name: str = "outputs") -> None:
    scale = float(theirs.detach().abs().max())
    torch.testing.assert_close(
        ours, theirs, rtol=TOLERANCE, atol=TOLERANCE * max(scale, 1.0), msg=lambda it: f"{name}: {it}"
    )


def check_gradients(pair: Pair) -> None:
    theirs = dict(pair.theirs.named_parameters())
    for name, weight in pair.ours.named_parameters():
        there, part = pair.names[name]
        expected = theirs[there].grad
        assert expected is not None and weight.grad is not None, name
        # The bias of keys adds the same to all scores of a query, and so has none but rounding.
        assert float(expected[part].abs().max()) > 1e-4 or name.endswith("k.bias"), name
        check_close(weight.grad, expected[part], name)


def seq2seq_loss(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), ignore_index=-100)


@pytest.fixture
def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    source, tokens = (torch.randint(V, (3, length), generator=generator) for length in (150, 21))
    lengths = torch.tensor([150, 37, 5])
    return {"source": source, "tokens": tokens, "mask": torch.arange(150) < lengths.unsqueeze(1)}


def whole(name: str) -> tuple[str, slice]:
    return name, slice(None)


def t5_pair(**shape: Any) -> Pair:
    torch.manual_seed(0)
    is_gated = shape.get("feed_forward_proj") == "gated-gelu"
    is_scaled = not is_gated  # T5 1.1 has a gate, and an output layer that reads what is not scaled
    sizes = {"num_layers": 2, "num_decoder_layers": 3, "num_heads": 4, "d_kv": 10, "d_ff": 80}
    theirs = T5(
        T5Config(
            vocab_size=V,
            d_model=D,
            dropout_rate=0.0,
            tie_word_embeddings=is_scaled,  # this version of transformers ties always, and scales so
            decoder_start_token_id=0,
            **sizes,
            **shape,
        )
    )
    config = ModelConfig(
        vocab_size=V,
        d_model=D,
        n_encoder_layers=2,
        n_layers=3,
        n_heads=4,
        head_dim=10,
        d_ff=80,
        positions="relative",
        norm="rms_norm",
        norm_eps=1e-6,
        attention_scale=False,
        activation="geglu" if is_gated else "relu",
        bias=False,
        output_scale=D**-0.5 if is_scaled else 1.0,
    )

    def rename(name: str) -> tuple[str, slice]:
        if name.endswith("embedding.weight"):
            return whole("shared.weight")
        side = name.split(".")[0]
        name = name.replace(f"{side}.norm.", f"{side}.final_layer_norm.").replace(".blocks.", ".block.")
        name = name.replace("position_bias", "block.0.layer.0.SelfAttention.relative_attention_bias")
        last = 2 if side == "decoder" else 1
        up = "wi_1" if is_gated else "wi"
        for here, there in (
            (".cross_attention_norm.", ".layer.1.layer_norm."),
            (".cross_attention.", ".layer.1.EncDecAttention."),
            (".attention_norm.", ".layer.0.layer_norm."),
            (".attention.", ".layer.0.SelfAttention."),
            (".feed_forward_norm.", f".layer.{last}.layer_norm."),
            (".feed_forward.up.", f".layer.{last}.DenseReluDense.{up}."),
            (".feed_forward.gate.", f".layer.{last}.DenseReluDense.wi_0."),
            (".feed_forward.down.", f".layer.{last}.DenseReluDense.wo."),
            (".out.", ".o."),
        ):
            name = name.replace(here, there)
        return whole(name)

    return same_weights(EncoderDecoder(config), theirs, rename)


@pytest.mark.parametrize("feed_forward_proj", ["relu", "gated-gelu"])
def test_t5(feed_forward_proj: str, batch: dict[str, Tensor]) -> None:
    pair = t5_pair(feed_forward_proj=feed_forward_proj)
    inputs = {
        "input_ids": batch["source"],
        "attention_mask": batch["mask"].long(),
        "decoder_input_ids": batch["tokens"],
    }
    theirs = pair.theirs(**inputs).logits
    ours = pair.ours(batch["source"], batch["tokens"], batch["mask"])
    assert float(theirs.detach().std()) > 0.5
    check_close(ours, theirs)
    for logits in (ours, theirs):
        seq2seq_loss(logits, batch["tokens"].roll(-1, 1)).backward()
    check_gradients(pair)


def torch_pair(norm_first: bool, activation: str) -> Pair:
    torch.manual_seed(0)
    shared = {"d_model": D, "nhead": 4, "dim_feedforward": 80, "dropout": 0.0, "activation": activation}
    options = {"batch_first": True, "norm_first": norm_first, "layer_norm_eps": 1e-5}
    # By itself nn.Transformer ends in a norm also where each sum has one, which the paper has not.
    ends = [nn.LayerNorm(D) if norm_first else None for _ in range(2)]
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(**shared, **options), 2, ends[0], enable_nested_tensor=False
    )
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**shared, **options), 3, ends[1])
    theirs = nn.Module()
    theirs.body = nn.Transformer(D, 4, custom_encoder=encoder, custom_decoder=decoder, batch_first=True)
    theirs.embedding = nn.Embedding(V, D)
    config = ModelConfig(
        vocab_size=V,
        d_model=D,
        n_encoder_layers=2,
        n_layers=3,
        n_heads=4,
        d_ff=80,
        positions="none",
        norm_position="pre" if norm_first else "post",
        activation=activation,
    )

    def rename(name: str) -> tuple[str, slice]:
        if "embedding" in name or name.startswith("output."):
            return whole("embedding.weight")
        is_decoder = name.startswith("decoder")
        name = "body." + name.replace(".blocks.", ".layers.")
        for here, there in (
            (".cross_attention_norm.", ".norm2."),
            (".feed_forward_norm.", ".norm3." if is_decoder else ".norm2."),
            (".attention_norm.", ".norm1."),
            (".cross_attention.", ".multihead_attn."),
            (".attention.", ".self_attn."),
            (".feed_forward.up.", ".linear1."),
            (".feed_forward.down.", ".linear2."),
            (".out.", ".out_proj."),
        ):
            name = name.replace(here, there)
        for place, letter in enumerate("qkv"):
            if f"attn.{letter}." in name:
                return name.replace(f".{letter}.", ".in_proj_"), slice(place * D, (place + 1) * D)
        return whole(name)

    return same_weights(EncoderDecoder(config), theirs, rename)


@pytest.mark.parametrize(("norm_first", "activation"), [(False, "relu"), (True, "relu"), (True, "gelu")])
def test_the_transformer_of_torch(norm_first: bool, activation: str, batch: dict[str, Tensor]) -> None:
    pair = torch_pair(norm_first, activation)
    embed, padding = pair.theirs.embedding, ~batch["mask"]
    causal = nn.Transformer.generate_square_subsequent_mask(batch["tokens"].shape[1])
    hidden = pair.theirs.body(
        embed(batch["source"]),
        embed(batch["tokens"]),
        tgt_mask=causal,
        tgt_is_causal=True,
        src_key_padding_mask=padding,
        memory_key_padding_mask=padding,
    )
    theirs = hidden @ embed.weight.T
    ours = pair.ours(batch["source"], batch["tokens"], batch["mask"])
    assert float(theirs.detach().std()) > 0.5
    check_close(ours, theirs)
    for logits in (ours, theirs):
        seq2seq_loss(logits, batch["tokens"].roll(-1, 1)).backward()
    check_gradients(pair)


def bert_pair(kind: type[nn.Module], n_classes: int, **heads: Any) -> Pair:
    torch.manual_seed(0)
    theirs = kind(
        BertConfig(
            vocab_size=V,
            hidden_size=D,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=80,
            max_position_embeddings=160,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            num_labels=n_classes,
        )
    )
    config = ModelConfig(
        vocab_size=V,
        d_model=D,
        n_layers=3,
        n_heads=4,
        d_ff=80,
        max_seq_len=160,
        causal=False,
        norm_position="post",
        norm_eps=1e-12,
        embedding_norm=True,
        activation="gelu",
        n_segments=2,
        pooler=True,
        n_classes=n_classes,
        **heads,
    )
    classifier = "cls.seq_relationship" if kind is BertForPreTraining else "classifier"

    def rename(name: str) -> tuple[str, slice]:
        for here, there in (
            ("position_embedding.", "bert.embeddings.position_embeddings."),
            ("segment_embedding.", "bert.embeddings.token_type_embeddings."),
            ("embedding_norm.", "bert.embeddings.LayerNorm."),
            ("blocks.", "bert.encoder.layer."),
            (".attention_norm.", ".attention.output.LayerNorm."),
            (".attention.q.", ".attention.self.query."),
            (".attention.k.", ".attention.self.key."),
            (".attention.v.", ".attention.self.value."),
            (".attention.out.", ".attention.output.dense."),
            (".feed_forward_norm.", ".output.LayerNorm."),
            (".feed_forward.up.", ".intermediate.dense."),
            (".feed_forward.down.", ".output.dense."),
            ("pooler.", "bert.pooler.dense."),
            ("classifier.", f"{classifier}."),
            ("output_transform.dense.", "cls.predictions.transform.dense."),
            ("output_transform.norm.", "cls.predictions.transform.LayerNorm."),
            ("output.bias", "cls.predictions.bias"),
        ):
            if name.startswith(here) or here.startswith("."):
                name = name.replace(here, there, 1)
        return whole("bert.embeddings.word_embeddings.weight" if name == "embedding.weight" else name)

    return same_weights(Transformer(config), theirs, rename)


def test_bert_tells_classes(batch: dict[str, Tensor]) -> None:
    pair = bert_pair(BertForSequenceClassification, 5)
    source, mask = batch["source"], batch["mask"]
    segments = (torch.arange(150) > 30).long().expand(3, -1)
    theirs = pair.theirs(source, attention_mask=mask.long(), token_type_ids=segments).logits
    hidden = pair.ours.hidden(source, documents_BT=(~mask).int(), segments_BT=segments)
    ours = pair.ours.class_logits(hidden, mask)
    assert float(theirs.detach().std()) > 0.1
    check_close(ours, theirs)
    for logits in (ours, theirs):
        nn.functional.cross_entropy(logits, torch.tensor([0, 3, 4])).backward()
    check_gradients(pair)


def test_bert_tells_hidden_tokens_and_what_follows(batch: dict[str, Tensor]) -> None:
    pair = bert_pair(BertForPreTraining, 2, output_transform=True, output_bias=True)
    source, mask = batch["source"], batch["mask"]
    segments = (torch.arange(150) > 30).long().expand(3, -1)
    theirs = pair.theirs(source, attention_mask=mask.long(), token_type_ids=segments)
    hidden = pair.ours.hidden(source, documents_BT=(~mask).int(), segments_BT=segments)
    ours, our_classes = pair.ours.logits(hidden)[mask], pair.ours.class_logits(hidden, mask)
    check_close(ours, theirs.prediction_logits[mask])
    check_close(our_classes, theirs.seq_relationship_logits)
    for logits, classes in ((ours, our_classes), (theirs.prediction_logits[mask], theirs.seq_relationship_logits)):
        loss = nn.functional.cross_entropy(logits, source[mask])
        (loss + nn.functional.cross_entropy(classes, torch.tensor([0, 1, 1]))).backward()
    check_gradients(pair)

"""Logits and gradients equal those of the reference implementations in transformers, with the same weights."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from scaletrain.config.schema import ModelConfig
from scaletrain.model.transformer import Transformer


def gpt2_pair() -> tuple[Transformer, torch.nn.Module]:
    torch.manual_seed(0)
    reference = GPT2LMHeadModel(
        GPT2Config(vocab_size=97, n_positions=40, n_embd=48, n_layer=3, n_head=4, initializer_range=0.2)
    ).eval()
    theirs = reference.state_dict()
    model = Transformer(ModelConfig(vocab_size=97, max_seq_len=40, d_model=48, n_layers=3, n_heads=4))
    ours = {"embedding.weight": theirs["transformer.wte.weight"], "output.weight": theirs["lm_head.weight"]}
    ours["position_embedding.weight"] = theirs["transformer.wpe.weight"]
    for kind in ("weight", "bias"):
        ours[f"norm.{kind}"] = theirs[f"transformer.ln_f.{kind}"]
        for layer in range(3):
            there, here = f"transformer.h.{layer}", f"blocks.{layer}"
            # Their projections are stored input x output, and query, key and value in one.
            queries_keys_values = theirs[f"{there}.attn.c_attn.{kind}"].chunk(3, dim=-1)
            for name, tensor in zip("qkv", queries_keys_values, strict=True):
                ours[f"{here}.attention.{name}.{kind}"] = tensor.mT if kind == "weight" else tensor
            for name, place in (
                ("attention.out", "attn.c_proj"),
                ("feed_forward.up", "mlp.c_fc"),
                ("feed_forward.down", "mlp.c_proj"),
            ):
                tensor = theirs[f"{there}.{place}.{kind}"]
                ours[f"{here}.{name}.{kind}"] = tensor.mT if kind == "weight" else tensor
            ours[f"{here}.attention_norm.{kind}"] = theirs[f"{there}.ln_1.{kind}"]
            ours[f"{here}.feed_forward_norm.{kind}"] = theirs[f"{there}.ln_2.{kind}"]
    model.load_state_dict(ours)
    return model.eval(), reference


def llama_pair() -> tuple[Transformer, torch.nn.Module]:
    torch.manual_seed(0)
    reference = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=97,
            hidden_size=48,
            intermediate_size=80,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=40,
            rms_norm_eps=1e-5,
            initializer_range=0.2,
            tie_word_embeddings=False,
        )
    ).eval()
    config = ModelConfig(
        vocab_size=97,
        d_model=48,
        d_ff=80,
        n_layers=3,
        n_heads=4,
        n_kv_heads=2,
        max_seq_len=40,
        positions="rotary",
        norm="rms_norm",
        activation="swiglu",
        bias=False,
        tie_embeddings=False,
    )
    renamed = {}
    for name, tensor in reference.state_dict().items():
        for there, here in (
            ("model.layers.", "blocks."),
            ("model.embed_tokens", "embedding"),
            ("model.norm", "norm"),
            ("lm_head", "output"),
            ("self_attn.o_proj", "attention.out"),
            ("self_attn.", "attention."),
            ("post_attention_layernorm", "feed_forward_norm"),
            ("input_layernorm", "attention_norm"),
            ("mlp.", "feed_forward."),
            ("_proj", ""),
        ):
            name = name.replace(there, here)
        renamed[name] = tensor
    model = Transformer(config)
    model.load_state_dict(renamed)
    return model.eval(), reference


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(97, (2, 40), generator=torch.Generator().manual_seed(1))


def loss(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


@pytest.mark.parametrize("pair", [gpt2_pair, llama_pair])
def test_logits_are_the_references(pair, tokens: torch.Tensor) -> None:
    model, reference = pair()
    with torch.no_grad():
        ours, theirs = model(tokens), reference(tokens).logits
    assert float(theirs.std()) > 0.5  # wide enough for the comparison to mean something
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_gradients_are_the_references(tokens: torch.Tensor) -> None:
    model, reference = llama_pair()
    loss(model(tokens), tokens).backward()
    loss(reference(tokens).logits, tokens).backward()
    theirs = dict(reference.named_parameters())
    for here, there in (
        ("embedding.weight", "model.embed_tokens.weight"),
        ("blocks.0.attention.q.weight", "model.layers.0.self_attn.q_proj.weight"),
        ("blocks.1.attention.k.weight", "model.layers.1.self_attn.k_proj.weight"),
        ("blocks.2.feed_forward.gate.weight", "model.layers.2.mlp.gate_proj.weight"),
        ("norm.weight", "model.norm.weight"),
        ("output.weight", "lm_head.weight"),
    ):
        torch.testing.assert_close(model.get_parameter(here).grad, theirs[there].grad, rtol=1e-4, atol=1e-6)

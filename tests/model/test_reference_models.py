"""Logits and gradients equal those of the reference implementations in transformers, with the same weights."""

from collections.abc import Callable, Mapping

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from scaletrain.config.schema import ModelConfig
from scaletrain.model.transformer import Transformer

Renaming = Callable[[Mapping[str, torch.Tensor]], dict[str, torch.Tensor]]


def gpt2_renamed(theirs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Their weights, or the gradients of those, by our names."""
    ours = {"embedding.weight": theirs["transformer.wte.weight"]}
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
    return ours


def gpt2_pair() -> tuple[Transformer, torch.nn.Module, Renaming]:
    torch.manual_seed(0)
    reference = GPT2LMHeadModel(
        GPT2Config(vocab_size=97, n_positions=40, n_embd=48, n_layer=3, n_head=4, initializer_range=0.2)
    ).eval()
    model = Transformer(ModelConfig(vocab_size=97, max_seq_len=40, d_model=48, n_layers=3, n_heads=4))
    return filled(model, reference, gpt2_renamed)


def llama_renamed(theirs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Their weights, or the gradients of those, by our names."""
    ours = {}
    for name, tensor in theirs.items():
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
        ours[name] = tensor
    return ours


def llama_pair() -> tuple[Transformer, torch.nn.Module, Renaming]:
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
    return filled(Transformer(config), reference, llama_renamed)


def filled(
    model: Transformer, reference: torch.nn.Module, renamed: Renaming
) -> tuple[Transformer, torch.nn.Module, Renaming]:
    ours = renamed(reference.state_dict())
    missing, unknown = model.load_state_dict(ours, strict=False)
    assert not unknown and set(missing) <= {"output.weight"}  # which is the embedding where they are tied
    return model.eval(), reference, renamed


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(97, (2, 40), generator=torch.Generator().manual_seed(1))


def loss(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


@pytest.mark.parametrize("pair", [gpt2_pair, llama_pair])
def test_logits_are_the_references(pair, tokens: torch.Tensor) -> None:
    model, reference, _ = pair()
    with torch.no_grad():
        ours, theirs = model(tokens), reference(tokens).logits
    assert float(theirs.std()) > 0.5  # wide enough for the comparison to mean something
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pair", [gpt2_pair, llama_pair])
def test_all_gradients_are_the_references(pair, tokens: torch.Tensor) -> None:
    model, reference, renamed = pair()
    loss(model(tokens), tokens).backward()
    loss(reference(tokens).logits, tokens).backward()
    theirs = renamed({name: weight.grad for name, weight in reference.named_parameters()})
    for name, weight in model.named_parameters():
        # The bias of keys adds the same to all scores of a query, and so has no gradient but rounding.
        assert float(theirs[name].abs().max()) > 1e-4 or name.endswith("k.bias"), name
        torch.testing.assert_close(weight.grad, theirs[name], rtol=1e-5, atol=1e-5, msg=name)

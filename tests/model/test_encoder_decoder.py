"""What a user can notice of models that read a source and write: who sees what, and that one by one is as at once."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scaletrain.config.schema import ModelConfig
from scaletrain.errors import ConfigError
from scaletrain.model.build import Seq2Seq, build_model
from scaletrain.model.losses import cross_entropy_terms
from scaletrain.model.positions import distance_buckets

V = 61
SMALL = {"vocab_size": V, "d_model": 32, "n_encoder_layers": 2, "n_layers": 2, "n_heads": 4, "max_seq_len": 32}
SHAPES: dict[str, dict[str, Any]] = {
    "original": {"positions": "sinusoidal", "norm_position": "post", "activation": "relu"},
    "t5": {
        "positions": "relative",
        "relative_buckets": 8,
        "relative_max_distance": 20,
        "norm": "rms_norm",
        "bias": False,
        "attention_scale": False,
        "activation": "geglu",
        "output_scale": 32**-0.5,
    },
    "modern": {"positions": "rotary", "norm": "rms_norm", "activation": "swiglu", "n_kv_heads": 2, "qk_norm": True},
    "learned": {"tie_embeddings": False, "embedding_norm": True, "n_encoder_layers": 1},
    "lstm": {"kind": "lstm"},
}


def build(shape: str, **options: Any) -> Seq2Seq:
    torch.manual_seed(0)
    model = build_model(ModelConfig(**{**SMALL, "init_std": 0.2, **SHAPES[shape], **options}))
    assert isinstance(model, Seq2Seq)
    return model.eval()


def some_tokens(seed: int, *shape: int) -> Tensor:
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


def first(lengths: list[int], width: int) -> Tensor:
    return torch.arange(width) < torch.tensor(lengths).unsqueeze(1)


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@settings(max_examples=12, deadline=None)
@given(
    name=st.sampled_from(sorted(SHAPES)),
    seed=st.integers(0, 2**31),
    lengths=st.lists(st.integers(1, 9), min_size=2, max_size=3),
    cuts=st.lists(st.integers(1, 4), min_size=1, max_size=5),
)
def test_written_in_parts_a_text_has_the_logits_it_has_at_once(
    name: str, seed: int, lengths: list[int], cuts: list[int]
) -> None:
    model, B, T = build(name), len(lengths), sum(cuts)
    source, tokens, mask = some_tokens(seed, B, 9), some_tokens(seed + 1, B, T), first(lengths, 9)
    with torch.no_grad():
        memory, cache = model.encode(source, mask), model.new_cache(T)
        parts = [model.logits(model.decode(part, memory, mask, cache)) for part in tokens.split(cuts, dim=1)]
        torch.testing.assert_close(torch.cat(parts, 1), model(source, tokens, mask), rtol=1e-5, atol=2e-5)
    assert cache.length == T


@settings(max_examples=12, deadline=None)
@given(
    name=st.sampled_from(sorted(SHAPES)), seed=st.integers(0, 2**31), length=st.integers(1, 8), place=st.integers(1, 6)
)
def test_neither_padding_nor_what_comes_after_changes_a_logit(name: str, seed: int, length: int, place: int) -> None:
    model = build(name)
    source, tokens = some_tokens(seed, 1, length), some_tokens(seed + 1, 1, 8)
    with torch.no_grad():
        expected = model(source, tokens)
        # Beside a longer source, behind which stands anything, and in a text that goes on in another way.
        padded = torch.cat((source, some_tokens(seed + 2, 1, 11 - length)), 1)
        beside = torch.cat((padded, some_tokens(seed + 3, 1, 11)))
        changed = tokens.clone()
        changed[:, place:] = (changed[:, place:] + 1 + seed % (V - 1)) % V
        found = model(beside, changed.expand(2, -1), first([length, 11], 11))[:1]
    torch.testing.assert_close(found[:, :place], expected[:, :place], rtol=1e-5, atol=2e-5)
    assert (found[:, place:] - expected[:, place:]).abs().amax(-1).min() > 1e-4


def test_each_token_of_the_source_is_seen(shape: str) -> None:
    model, source, tokens = build(shape), some_tokens(1, 1, 6), some_tokens(2, 1, 5)
    with torch.no_grad():
        before = model(source, tokens)
        for place in range(6):
            changed = source.clone()
            changed[0, place] = (changed[0, place] + 7) % V
            assert (model(changed, tokens) != before).any(-1).all(), place


def test_the_order_of_the_source_matters(shape: str) -> None:
    model, source, tokens = build(shape), some_tokens(1, 1, 6), some_tokens(2, 1, 5)
    assert not torch.allclose(model(source, tokens), model(source.flip(1), tokens), atol=1e-3)


def test_rows_of_the_cache_go_on_from_others(shape: str) -> None:
    model, sources, mask = build(shape), some_tokens(1, 3, 6), first([6, 2, 4], 6)
    begun, rest, rows = some_tokens(2, 3, 4), some_tokens(3, 5, 3), torch.tensor([2, 0, 0, 1, 2])
    with torch.no_grad():
        memory, cache = model.encode(sources, mask), model.new_cache(7)
        model.decode(begun, memory, mask, cache)
        cache.reorder(rows)
        found = model.logits(model.decode(rest, memory[rows], mask[rows], cache))
        expected = model(sources[rows], torch.cat((begun[rows], rest), 1), mask[rows])[:, 4:]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)
        # And a cache that was cleared takes another source.
        cache.clear()
        again = model.decode(begun, model.encode(sources.flip(1)), None, cache)
        torch.testing.assert_close(model.logits(again), model(sources.flip(1), begun), rtol=1e-5, atol=2e-5)


def test_a_source_without_tokens_is_finite_and_leaves_the_others_alone(shape: str) -> None:
    model, source, tokens = build(shape), some_tokens(1, 2, 6), some_tokens(2, 2, 5)
    logits = model(source, tokens, first([5, 0], 6))
    torch.testing.assert_close(logits[:1], model(source[:1], tokens[:1], first([5], 6)), rtol=1e-5, atol=2e-5)
    cross_entropy_terms(logits, tokens.where(torch.tensor([[True], [False]]), -100)).loss_sum.backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())


def test_the_first_loss_is_that_of_a_uniform_guess(shape: str) -> None:
    model = build(shape, vocab_size=8192, d_model=320, n_layers=3, n_heads=5, n_kv_heads=5, init_std=0.02)
    tokens = torch.randint(8192, (4, 33), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        terms = cross_entropy_terms(model(tokens[:, :16], tokens[:, :-1]), tokens[:, 1:])
    assert abs(float(terms.nll_B.sum() / terms.targets_B.sum()) - math.log(8192)) < 0.15


@pytest.mark.parametrize("shape", ["original", "t5", "modern"])
def test_checkpointed_activations_change_no_gradient_even_with_dropout(shape: str) -> None:
    config = ModelConfig(**{**SMALL, **SHAPES[shape], "dropout": 0.2, "attention_dropout": 0.1})
    source, tokens, gradients = some_tokens(1, 2, 9), some_tokens(2, 2, 7), []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        model = build_model(config, checkpoint_activations=checkpointed)
        torch.manual_seed(7)
        cross_entropy_terms(model(source, tokens, first([9, 4], 9)), tokens).loss_sum.backward()
        gradients.append([weight.grad for weight in model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-6, atol=1e-7)


def test_bf16_autocast_runs_forward_backward_and_cached(shape: str) -> None:
    model, source, tokens, mask = build(shape), some_tokens(1, 2, 9), some_tokens(2, 2, 7), first([9, 4], 9)
    with torch.autocast("cpu", torch.bfloat16):
        cross_entropy_terms(model(source, tokens, mask), tokens).loss_sum.backward()
        memory, cache = model.encode(source, mask), model.new_cache(7)
        parts = [model.logits(model.decode(part, memory, mask, cache)) for part in tokens.split([4, 3], dim=1)]
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())
    exact = model(source, tokens, mask)
    assert ((torch.cat(parts, 1).float() - exact).norm() / exact.norm()).item() < 0.05


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape", ["t5", *(pytest.param(name, marks=pytest.mark.thorough) for name in ("original", "modern"))]
)
def test_the_model_is_captured_as_one_graph(shape: str) -> None:
    model, source, tokens, mask = build(shape), some_tokens(1, 2, 9), some_tokens(2, 2, 7), first([9, 4], 9)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(source, tokens, mask), model(source, tokens, mask), rtol=1e-5, atol=1e-5)


def test_source_and_text_share_one_embedding(shape: str) -> None:
    model = build(shape)
    tables = [weight for weight in model.parameters() if weight.shape == (V, 32)]
    assert len(tables) == (1 if model.config.tie_embeddings else 2)


@pytest.mark.parametrize("both_sides", [False, True])
def test_near_distances_have_buckets_of_their_own_and_far_ones_share_one(both_sides: bool) -> None:
    """The numbers that the published code of T5 gives at 32 buckets and a distance of 128."""
    places = torch.tensor([[0]])
    others = torch.tensor([[-200, -128, -127, -64, -16, -9, -8, -7, -1, 0, 1, 7, 8, 127, 500]])
    found = distance_buckets(places, others, n_buckets=32, max_distance=128, both_sides=both_sides)[0, 0].tolist()
    if both_sides:
        assert found == [15, 15, 15, 14, 10, 8, 8, 7, 1, 0, 17, 23, 24, 31, 31]
    else:
        assert found == [31, 31, 31, 26, 16, 9, 8, 7, 1, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"causal": False}, r"n_encoder_layers = 2 asks for a decoder.*model.causal is false"),
        ({"n_segments": 2}, r"model.n_segments = 2 is not known to an encoder-decoder model"),
        ({"n_classes": 3}, r"model.n_classes = 3 is not known to an encoder-decoder"),
        ({"kind": "lstm", "n_classes": 3}, r"model.n_classes = 3 is not known to model.kind lstm with"),
        ({"kind": "lstm", "d_model": 33}, r"model.d_model = 33 is odd"),
        ({"kind": "cnn"}, r"model.n_encoder_layers = 2 is not known to model.kind cnn"),
        ({"positions": "relative", "relative_max_distance": 16}, r"relative_max_distance = 16 is not above half"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(ModelConfig(**{**SMALL, **wrong}))

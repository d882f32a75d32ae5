"""What a user can notice of the model: who sees whom, how it starts, what survives a cast, a cache or a compiler."""

import math

import pytest
import torch

from scaletrain.config.schema import ModelConfig
from scaletrain.errors import ConfigError
from scaletrain.model.attention import KVCache
from scaletrain.model.losses import cross_entropy_terms
from scaletrain.model.positions import Rotary, rotary_tables, rotate, sinusoidal_encoding
from scaletrain.model.transformer import Transformer

SMALL = {"vocab_size": 61, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 32, "init_std": 0.2}
LLAMA_SHAPE = {
    "positions": "rotary",
    "norm": "rms_norm",
    "activation": "swiglu",
    "bias": False,
    "tie_embeddings": False,
    "n_kv_heads": 2,
    "head_dim": 12,
    "d_ff": 40,
}
SHAPES = {
    "gpt": {},
    "llama": LLAMA_SHAPE,
    "neox": {"positions": "rotary", "rotary_dim": 4, "parallel_residual": True, "tie_embeddings": False},
    "qwen": {**LLAMA_SHAPE, "qkv_bias": True, "qk_norm": True, "rope_scaling": "llama3", "rope_factor": 4.0},
    "window": {**LLAMA_SHAPE, "sliding_window": 5, "sliding_window_from_layer": 1},
    "post": {"norm_position": "post", "embedding_norm": True, "output_transform": True, "output_bias": True},
    "sinusoidal": {"positions": "sinusoidal", "activation": "gelu", "n_kv_heads": 1},
}


@pytest.fixture(params=SHAPES, ids=str)
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return ModelConfig(**SMALL, **SHAPES[request.param])


def build(config: ModelConfig, **options: bool) -> Transformer:
    torch.manual_seed(0)
    return Transformer(config, **options)


def some_tokens(config: ModelConfig, *shape: int) -> torch.Tensor:
    return torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(1))


def two_documents(first_length: int, total: int) -> tuple[torch.Tensor, torch.Tensor]:
    documents = (torch.arange(total) >= first_length).long().unsqueeze(0)
    positions = torch.cat((torch.arange(first_length), torch.arange(total - first_length))).unsqueeze(0)
    return documents, positions


def test_a_token_changes_no_logit_before_it(config: ModelConfig) -> None:
    model, tokens = build(config), some_tokens(config, 1, 12)
    changed = tokens.clone()
    changed[0, 7] = (changed[0, 7] + 1) % config.vocab_size
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :7], after[:, :7], rtol=0, atol=0)
    assert (before[:, 7:] != after[:, 7:]).any(-1).all()


def test_a_document_changes_no_logit_of_the_one_packed_behind_it(config: ModelConfig) -> None:
    model, tokens = build(config), some_tokens(config, 1, 20)
    documents, positions = two_documents(9, 20)
    changed = tokens.clone()
    changed[0, :9] = (changed[0, :9] + 5) % config.vocab_size
    before, after = model(tokens, positions, documents), model(changed, positions, documents)
    assert torch.equal(before[:, 9:], after[:, 9:])
    assert (before[:, :9] != after[:, :9]).any()


def test_a_packed_document_has_the_logits_it_has_alone(config: ModelConfig) -> None:
    model, tokens = build(config), some_tokens(config, 1, 20)
    documents, positions = two_documents(9, 20)
    packed = model(tokens, positions, documents)
    torch.testing.assert_close(packed[:, :9], model(tokens[:, :9]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(packed[:, 9:], model(tokens[:, 9:]), rtol=1e-5, atol=1e-5)


def test_a_bidirectional_model_sees_what_comes_after_but_no_other_document() -> None:
    model = build(ModelConfig(**SMALL, causal=False, norm_position="post", embedding_norm=True, n_segments=2))
    tokens = some_tokens(model.config, 1, 20)
    documents, positions = two_documents(9, 20)
    changed = tokens.clone()
    changed[0, 19] = (changed[0, 19] + 1) % model.config.vocab_size
    assert (model(tokens) != model(changed)).any(-1).all()
    packed = [model(each, positions, documents) for each in (tokens, changed)]
    assert torch.equal(packed[0][:, :9], packed[1][:, :9])
    assert (packed[0][:, 9:] != packed[1][:, 9:]).any(-1).all()
    second_segment = torch.ones_like(tokens)
    assert not torch.allclose(model(tokens), model(tokens, segments_BT=second_segment), atol=1e-3)


def test_a_token_sees_as_far_as_its_window() -> None:
    model = build(ModelConfig(**SMALL, **SHAPES["window"] | {"sliding_window_from_layer": 0}))
    tokens = some_tokens(model.config, 1, 16)
    changed = tokens.clone()
    changed[0, 3] = (changed[0, 3] + 1) % model.config.vocab_size
    differs = (model(tokens) != model(changed)).any(-1)[0].tolist()
    # Two layers with a window of five: four places further in each.
    assert [place for place, it in enumerate(differs) if it] == list(range(3, 12))


def test_positions_matter(config: ModelConfig) -> None:
    model, tokens = build(config), torch.tensor([[3, 4, 5, 6]])
    stretched = torch.tensor([[0, 5, 6, 11]])
    assert not torch.allclose(model(tokens), model(tokens, stretched), atol=1e-3)


@pytest.mark.parametrize("steps", [(12,), (1,) * 12, (5, 1, 1, 4, 1)], ids=["at once", "one by one", "in parts"])
def test_cached_logits_are_the_uncached_ones(config: ModelConfig, steps: tuple[int, ...]) -> None:
    model, tokens = build(config), some_tokens(config, 2, 12)
    cache = KVCache(config.n_layers, max_len=12)
    with torch.no_grad():
        parts = [model(part, cache=cache) for part in tokens.split(list(steps), dim=1)]
        torch.testing.assert_close(torch.cat(parts, 1), model(tokens), rtol=1e-5, atol=1e-5)


def test_a_full_cache_says_so_and_is_good_again_once_cleared(config: ModelConfig) -> None:
    model, tokens = build(config), some_tokens(config, 1, 8)
    cache = KVCache(config.n_layers, max_len=8)
    with torch.no_grad():
        model(some_tokens(config, 1, 8).flip(1), cache=cache)
        with pytest.raises(ValueError, match="holds 8 tokens"):
            model(tokens[:, :1], cache=cache)
        cache.clear()
        torch.testing.assert_close(model(tokens, cache=cache), model(tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_first_loss_is_that_of_a_uniform_guess(shape: str) -> None:
    config = ModelConfig(vocab_size=8192, d_model=320, n_layers=3, n_heads=5, **{**SHAPES[shape], "n_kv_heads": 5})
    model, tokens = build(config), some_tokens(config, 4, 65)
    with torch.no_grad():
        terms = cross_entropy_terms(model(tokens[:, :-1]), tokens[:, 1:])
    assert abs(float(terms.nll_B.sum() / terms.targets_B.sum()) - math.log(8192)) < 0.1


def test_initial_weights_are_as_wide_as_they_should_be() -> None:
    config = ModelConfig(vocab_size=500, d_model=128, n_layers=8, n_heads=4, max_seq_len=200, init_std=0.02)
    model = build(config)
    narrow = 0.02 / math.sqrt(16)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            assert not weight.any(), name
        elif "norm" in name:
            assert (weight == 1).all(), name
        else:
            expected = narrow if name.endswith(("out.weight", "down.weight")) else 0.02
            assert weight.std().item() == pytest.approx(expected, rel=0.05), name


def test_tied_embeddings_are_one_parameter() -> None:
    tied = build(ModelConfig(**SMALL))
    assert tied.output.weight is tied.embedding.weight
    untied = build(ModelConfig(**SMALL, tie_embeddings=False))
    assert untied.output.weight is not untied.embedding.weight


def test_a_cast_to_bf16_keeps_far_positions_apart() -> None:
    config = ModelConfig(**{**SMALL, "max_seq_len": 4096}, **LLAMA_SHAPE)
    model = build(config)
    tokens, positions = some_tokens(config, 1, 8), torch.arange(3000, 3008).unsqueeze(0)
    with torch.no_grad():
        exact = model(tokens, positions)
        rounded = model.bfloat16()(tokens, positions).float()
    # Only the rounding of weights and activations is left; angles rounded to bf16 would be wrong by up to 8 radians.
    assert float((exact - rounded).norm() / exact.norm()) < 0.03


def test_bf16_autocast_runs_forward_backward_and_cached(config: ModelConfig) -> None:
    model, tokens = build(config), some_tokens(config, 2, 12)
    documents, positions = two_documents(5, 12)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(tokens, positions.expand(2, -1), documents.expand(2, -1))
        cross_entropy_terms(logits, tokens).loss_sum.backward()
        cached = model(tokens, cache=KVCache(config.n_layers, 12))
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())
    exact = model(tokens)
    assert ((cached.float() - exact).norm() / exact.norm()).item() < 0.03


def test_checkpointed_activations_change_no_gradient_even_with_dropout(config: ModelConfig) -> None:
    config = config.model_copy(update={"dropout": 0.2, "attention_dropout": 0.1})
    tokens = some_tokens(config, 2, 16)
    gradients = []
    for checkpointed in (False, True):
        model = build(config, checkpoint_activations=checkpointed)
        torch.manual_seed(7)
        cross_entropy_terms(model(tokens), tokens).loss_sum.backward()
        gradients.append([weight.grad for weight in model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-6, atol=1e-7)


def test_dropout_is_for_training_only(config: ModelConfig) -> None:
    model = build(config.model_copy(update={"dropout": 0.3})).eval()
    tokens = some_tokens(config, 1, 8)
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))


@pytest.mark.slow
def test_the_model_is_captured_as_one_graph(config: ModelConfig) -> None:
    model, tokens = build(config), some_tokens(config, 2, 12)
    documents, positions = two_documents(5, 12)
    arguments = (tokens, positions.expand(2, -1), documents.expand(2, -1))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*arguments), model(*arguments), rtol=1e-5, atol=1e-5)


def test_it_can_be_built_on_the_meta_device_and_filled_later(config: ModelConfig) -> None:
    tokens, source = some_tokens(config, 1, 8), build(config)
    with torch.device("meta"):
        hollow = Transformer(config)
    hollow.load_state_dict(source.state_dict(), assign=True)
    assert torch.equal(hollow(tokens), source(tokens))


def test_more_tokens_than_learned_positions_are_refused() -> None:
    config = ModelConfig(**SMALL)
    with pytest.raises(ConfigError, match=r"33 tokens .* model.max_seq_len = 32"):
        build(config)(some_tokens(config, 1, 33))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_kv_heads": 3}, r"model.n_heads = 4 .*n_kv_heads = 3"),
        ({"positions": "rotary", "head_dim": 7}, r"head_dim = 7 is odd"),
    ],
)
def test_shapes_that_cannot_be_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(ModelConfig(**SMALL, **wrong))


def test_sinusoidal_encoding_is_the_papers() -> None:
    encoding = sinusoidal_encoding(torch.tensor([[0, 1, 1001]]), 6)
    for row, position in enumerate((0, 1, 1001)):
        for column in range(6):
            angle = position / 10_000 ** (2 * (column // 2) / 6)
            expected = math.cos(angle) if column % 2 else math.sin(angle)
            assert float(encoding[0, row, column]) == pytest.approx(expected, abs=1e-4)


def test_rotary_scores_depend_on_distance_alone() -> None:
    q, k = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(0))

    def score(query_position: int, key_position: int) -> float:
        tables = [rotary_tables(torch.tensor([[p]]), Rotary(16, 10_000.0)) for p in (query_position, key_position)]
        return float((rotate(q, tables[0]) * rotate(k, tables[1])).sum())

    assert score(7, 2) == pytest.approx(score(1007, 1002), abs=1e-3)
    assert score(7, 2) != pytest.approx(score(7, 0), abs=0.1)

"""Generated text is what the model says, drawn as asked, and printed whole."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from scaletrain.config.schema import ModelConfig
from scaletrain.data.tokenizer import train_byte_level_bpe
from scaletrain.errors import ConfigError
from scaletrain.evaluation.generation import generate, sample, stream_text
from scaletrain.model.transformer import Transformer

PROMPT = [3, 14, 15, 9]


def build(**shape: object) -> Transformer:
    torch.manual_seed(0)
    return Transformer(
        ModelConfig(vocab_size=50, d_model=32, n_layers=2, n_heads=4, init_std=0.3, **{"max_seq_len": 64, **shape})
    )


@pytest.fixture
def model() -> Transformer:
    return build()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_byte_level_bpe(["def main():\n    print('hello')\n" * 20, "naïve café 😀"], vocab_size=300)


def likeliest(model: Transformer, tokens: list[int]) -> int:
    with torch.no_grad():
        return int(model(torch.tensor([tokens]))[0, -1].argmax())


def test_greedy_tokens_are_the_uncached_models(model: Transformer) -> None:
    tokens = list(PROMPT)
    for token in generate(model, PROMPT, 30, temperature=0):
        assert token == likeliest(model, tokens)
        tokens.append(token)
    assert len(tokens) == len(PROMPT) + 30


@pytest.mark.parametrize("positions", ["learned", "rotary", "sinusoidal"])
def test_a_text_may_be_longer_than_the_models_sequences(positions: str) -> None:
    model = build(max_seq_len=8, positions=positions)
    tokens, context = list(range(20)), list(range(12, 20))
    for token in generate(model, tokens, 20, temperature=0):
        if len(context) > 8:
            context = context[-4:]
        assert token == likeliest(model, context)
        context.append(token)
    assert len(list(generate(model, tokens, 20, temperature=0))) == 20


def test_the_model_sees_no_more_than_it_was_trained_on(model: Transformer) -> None:
    first = next(generate(model, list(range(30)), 1, temperature=0, max_context=5))
    assert first == likeliest(model, list(range(25, 30)))


def test_the_seed_alone_decides(model: Transformer) -> None:
    def text(seed: int) -> list[int]:
        return list(generate(model, PROMPT, 20, temperature=1.5, seed=seed))

    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert text(1) == text(1) != text(2)
    assert torch.equal(torch.get_rng_state(), state)


def test_it_ends_at_eos_without_yielding_it(model: Transformer) -> None:
    whole = list(generate(model, PROMPT, 20, temperature=0))
    eos_id = whole[7]
    assert list(generate(model, PROMPT, 20, temperature=0, ends={eos_id})) == whole[: whole.index(eos_id)]


def test_all_ranks_go_on_from_the_token_agreed_on(model: Transformer) -> None:
    whole = list(generate(model, PROMPT, 10, temperature=0, agree=lambda token: (token + 1) % 50))
    tokens = list(PROMPT)
    for token in whole:
        assert token == (likeliest(model, tokens) + 1) % 50
        tokens.append(token)


def test_a_model_in_training_drops_nothing_while_generating_and_goes_on_training() -> None:
    model = build(dropout=0.5)
    in_training = list(generate(model, PROMPT, 10, temperature=0))
    assert model.training
    assert in_training == list(generate(model.eval(), PROMPT, 10, temperature=0))
    model.train()
    model(torch.tensor([PROMPT])).sum().backward()
    assert model.embedding.weight.grad is not None


LOGITS = torch.tensor([1.0, 3.0, 2.0, -1.0, 0.0])  # probabilities 0.086, 0.636, 0.234, 0.012, 0.032


def drawn(count: int = 400, **options: float) -> list[int]:
    generator = torch.Generator().manual_seed(0)
    options = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, **options}
    return [sample(LOGITS, generator=generator, **options) for _ in range(count)]


def test_tokens_are_drawn_by_their_probabilities() -> None:
    frequencies = torch.bincount(torch.tensor(drawn(4000)), minlength=5) / 4000
    torch.testing.assert_close(frequencies, LOGITS.softmax(0), rtol=0, atol=0.03)


def test_temperature_sharpens() -> None:
    expected = (LOGITS / 0.5).softmax(0)
    frequencies = torch.bincount(torch.tensor(drawn(4000, temperature=0.5)), minlength=5) / 4000
    torch.testing.assert_close(frequencies, expected, rtol=0, atol=0.03)
    assert set(drawn(20, temperature=0)) == {1}


def test_top_k_keeps_the_likeliest() -> None:
    assert set(drawn(top_k=1)) == {1}
    assert set(drawn(top_k=3)) == {0, 1, 2}
    assert set(drawn(top_k=99)) == {0, 1, 2, 3, 4}


def test_top_p_keeps_the_fewest_that_reach_it() -> None:
    assert set(drawn(top_p=0.01)) == {1}
    assert set(drawn(top_p=0.6)) == {1}
    assert set(drawn(top_p=0.7)) == {1, 2}
    assert set(drawn(top_p=0.9)) == {0, 1, 2}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prompt_tokens": []}, "no tokens"),
        ({"prompt_tokens": [50]}, "token 50, but the model knows 50"),
        ({"max_new_tokens": -1}, "max_new_tokens = -1"),
        ({"temperature": -0.1}, "temperature = -0.1"),
        ({"temperature": float("nan")}, "temperature = nan"),
        ({"top_k": -1}, "top_k = -1"),
        ({"top_p": 0.0}, "top_p = 0.0"),
        ({"max_context": 0}, "max_context = 0"),
        ({"seed": 2**70}, "seed = "),
    ],
)
def test_arguments_out_of_range_are_refused_at_once(model: Transformer, wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        generate(model, **{"prompt_tokens": PROMPT, "max_new_tokens": 5, **wrong})


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=30))
def test_pieces_of_any_text_are_whole_characters_and_together_the_text(tokenizer: Tokenizer, text: str) -> None:
    pieces = list(stream_text(tokenizer, tokenizer.encode(text).ids))
    assert "".join(pieces) == text
    assert all(pieces) and ("�" in text or not any("�" in piece for piece in pieces))


def test_any_tokens_make_the_text_that_they_make_at_once(tokenizer: Tokenizer) -> None:
    draw = random.Random(0)
    for _ in range(200):
        tokens = [draw.randrange(tokenizer.get_vocab_size()) for _ in range(40)]
        assert "".join(stream_text(tokenizer, tokens)) == tokenizer.decode(tokens)


def test_text_comes_as_soon_as_its_token(tokenizer: Tokenizer) -> None:
    taken: list[int] = []

    def tokens() -> object:
        for token in tokenizer.encode("a😀b").ids:
            taken.append(token)
            yield token

    lengths = [(piece, len(taken)) for piece in stream_text(tokenizer, tokens())]
    total = len(tokenizer.encode("a😀b").ids)
    assert total > 3  # the character of four bytes is split
    assert lengths == [("a", 1), ("😀", total - 1), ("b", total)]

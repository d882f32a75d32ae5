"""Beam search finds the likeliest text where nothing is pruned, and what transformers finds where something is."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scaletrain.config.schema import ModelConfig
from scaletrain.errors import ConfigError
from scaletrain.evaluation.beam_search import Search, length_divisor, search_texts
from scaletrain.model.build import build_model
from tests.distributed import run_on_ranks
from tests.evaluation import bodies
from tests.evaluation.searched_models import EOS, START, HuggingFaceT5, TableModel
from tests.model.test_reference_encoders import t5_pair


def sources(n_rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Sources of several lengths, padded at their ends."""
    generator = torch.Generator().manual_seed(seed)
    source_BS = torch.randint(2, 14, (n_rows, 7), generator=generator)
    lengths_B = torch.randint(2, 8, (n_rows,), generator=generator)
    mask_BS = torch.arange(7) < lengths_B.unsqueeze(1)
    return source_BS.masked_fill(~mask_BS, START), mask_BS


def every_text(vocab_size: int, max_len: int) -> list[tuple[int, ...]]:
    """All texts that end with EOS, and all of the greatest length that do not."""
    words = [token for token in range(vocab_size) if token != EOS]
    ended = [(*text, EOS) for n in range(max_len) for text in itertools.product(words, repeat=n)]
    return ended + list(itertools.product(words, repeat=max_len))


def score(model: TableModel, source: tuple[int, ...], text: tuple[int, ...], exponent: float) -> float:
    prefixes = [(START, *text[:n]) for n in range(len(text))]
    log_probs = [model.logits_of(source, prefix).log_softmax(0) for prefix in prefixes]
    total = sum(float(probs[token]) for probs, token in zip(log_probs, text, strict=True))
    return total / (((5 + len(text)) / (5 + 1)) ** exponent)  # equation 14 of Wu et al. 2016


@settings(max_examples=60)
@given(
    size=st.sampled_from([(2, 1), (2, 3), (2, 5), (3, 2), (3, 4), (4, 3)]),
    seed=st.integers(0, 10**6),
    spread=st.sampled_from([0.3, 1.0, 3.0]),
    exponent=st.sampled_from([0.0, 0.6, 1.0, 3.0]),
)
def test_where_nothing_is_pruned_the_best_of_all_texts_is_found(
    size: tuple[int, int], seed: int, spread: float, exponent: float
) -> None:
    vocab_size, max_len = size
    model = TableModel(vocab_size, seed, spread)
    search = Search(max_len, START, EOS, beams=max(2, vocab_size**max_len), length_penalty=exponent)
    found = search_texts(model, torch.tensor([[5, 6], [7, 8]]), None, search)
    for source, text in zip([(5, 6), (7, 8)], found, strict=True):
        best = max(score(model, source, other, exponent) for other in every_text(vocab_size, max_len))
        ended = text if len(text) == max_len else [*text, EOS]
        # The search adds in fp32: of two texts as likely to 1e-6, it may take either.
        assert score(model, source, tuple(ended), exponent) == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize("early_stopping", [True, False])
@pytest.mark.parametrize(
    "seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.thorough) for seed in range(4, 12))]
)
def test_texts_are_those_of_transformers(seed: int, early_stopping: bool) -> None:
    model = HuggingFaceT5(seed)
    source_BS, mask_BS = sources(6, seed)
    # Its penalty is another one than equation 14; without any both say the same.
    expected = model.t5.generate(
        source_BS,
        attention_mask=mask_BS.long(),
        num_beams=4,
        do_sample=False,
        max_new_tokens=12,
        length_penalty=0.0,
        early_stopping=early_stopping,
        eos_token_id=EOS,
    )
    texts = [row[1:] for row in expected.tolist()]
    texts = [row[: row.index(EOS)] if EOS in row else row for row in texts]
    assert search_texts(model, source_BS, mask_BS, Search(12, START, EOS, beams=4, length_penalty=0.0)) == texts


@pytest.mark.parametrize("seed", range(3))
def test_one_beam_takes_the_likeliest_token_as_transformers_does(seed: int) -> None:
    model = HuggingFaceT5(seed)
    source_BS, mask_BS = sources(6, seed)
    expected = model.t5.generate(source_BS, attention_mask=mask_BS.long(), do_sample=False, max_new_tokens=12)
    texts = [row[1:] for row in expected.tolist()]
    texts = [row[: row.index(EOS)] if EOS in row else row for row in texts]
    assert search_texts(model, source_BS, mask_BS, Search(12, START, EOS, beams=1)) == texts


def test_a_source_has_the_same_text_alone_and_beside_others() -> None:
    model = HuggingFaceT5(2)
    source_BS, mask_BS = sources(5)
    search = Search(12, START, EOS)
    together = search_texts(model, source_BS, mask_BS, search)
    alone = [search_texts(model, source_BS[[row]], mask_BS[[row]], search)[0] for row in range(5)]
    assert together == alone and len(set(map(tuple, together))) > 1


def test_the_penalty_is_the_formula_and_lets_longer_texts_win() -> None:
    assert length_divisor(1, 0.6) == 1.0 and length_divisor(31, 0.5) == pytest.approx(math.sqrt(6))
    source = torch.arange(2, 32).unsqueeze(1)
    model = TableModel(6, seed=3, spread=1.0)
    short, long = (
        sum(map(len, search_texts(model, source, None, Search(10, START, EOS, length_penalty=exponent))))
        for exponent in (0.0, 2.0)
    )
    assert short < long


def test_the_search_ends_early_and_goes_on_where_another_rank_is_not_done() -> None:
    model = TableModel(4, seed=0, spread=2.0)
    source = torch.tensor([[3]])
    for beams in (1, 4):
        model.calls = 0
        # With such a penalty a longer text could be better for a long time: that enough have ended must end it.
        search = Search(50, START, EOS, beams=beams, length_penalty=5.0)
        alone = search_texts(model, source, None, search)
        assert model.calls < 40
        done: list[bool] = []

        def others_take_40(is_done: bool, done: list[bool] = done) -> bool:
            done.append(is_done)
            return len(done) >= 40

        model.calls = 0
        assert search_texts(model, source, None, search, others_take_40) == alone
        assert model.calls == len(done) == 40
        assert done == sorted(done), "once done, always done"


def test_dropout_is_off_and_the_model_goes_on_training() -> None:
    model = HuggingFaceT5(1, dropout=0.5)
    source_BS, mask_BS = sources(4)
    expected = search_texts(model.eval(), source_BS, mask_BS, Search(12, START, EOS))
    assert search_texts(model.train(), source_BS, mask_BS, Search(12, START, EOS)) == expected
    assert model.training and model.t5.training


def test_a_diverged_model_writes_something_and_ends() -> None:
    class Broken(TableModel):
        def logits(self, hidden_BTD: Tensor) -> Tensor:
            return hidden_BTD * math.nan

    for beams in (1, 3):
        assert len(search_texts(Broken(5, 0, 1.0), torch.tensor([[3]]), None, Search(6, START, EOS, beams=beams))) == 1


@pytest.mark.parametrize("wrong", [{"beams": 0}, {"max_new_tokens": 0}, {"length_penalty": -1.0}])
def test_searches_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Search(**{"max_new_tokens": 5, "start_id": START, "eos_id": EOS, **wrong})


@pytest.mark.parametrize("beams", [1, 4])
def test_our_model_with_the_weights_of_a_t5_writes_what_transformers_writes(beams: int) -> None:
    pair = t5_pair(feed_forward_proj="relu")
    source_BS, mask_BS = sources(6)
    # The weights are random: let the second token of a text be what ends texts, so that others end elsewhere.
    eos_id = search_texts(pair.ours, source_BS[:1], mask_BS[:1], Search(3, START, EOS, beams=1))[0][1]
    expected = pair.theirs.generate(
        source_BS,
        attention_mask=mask_BS.long(),
        num_beams=beams,
        do_sample=False,
        max_new_tokens=20,
        length_penalty=0.0,
        early_stopping=True,
        eos_token_id=eos_id,
        pad_token_id=START,
        use_cache=False,  # theirs has as many layers as the encoder, and so too few here
    )
    texts = [row[1:] for row in expected.tolist()]
    texts = [row[: row.index(eos_id)] if eos_id in row else row for row in texts]
    search = Search(20, START, eos_id, beams=beams, length_penalty=0.0)
    assert search_texts(pair.ours, source_BS, mask_BS, search) == texts
    assert len(set(map(len, texts))) > 1


@pytest.mark.parametrize("shape", [{"positions": "sinusoidal"}, {"positions": "rotary"}, {"kind": "lstm"}])
def test_greedy_tokens_are_those_of_the_whole_text_read_anew(shape: dict[str, str]) -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(**{**bodies.MODEL, **shape})).eval()
    source_BS, mask_BS = bodies.all_sources()
    (greedy, _) = bodies.SEARCHES
    for row, text in enumerate(search_texts(model, source_BS, mask_BS, greedy)):
        tokens = [greedy.start_id]
        while len(tokens) <= greedy.max_new_tokens and (len(tokens) == 1 or tokens[-1] != greedy.eos_id):
            with torch.no_grad():
                logits = model(source_BS[[row]], torch.tensor([tokens]), mask_BS[[row]])
            tokens.append(int(logits[0, -1].argmax()))
        assert text == [token for token in tokens[1:] if token != greedy.eos_id]


@pytest.mark.parametrize("stage", [1, 3])
def test_ranks_with_sources_of_their_own_write_what_one_process_writes(stage: int) -> None:
    first, second = run_on_ranks(2, bodies.search_under_zero, stage)
    (alone,) = run_on_ranks(1, bodies.search_under_zero, stage, slice(0, 7))
    together = [left + right for left, right in zip(first, second, strict=True)]
    assert together == alone
    lengths = [[len(text) for text in texts] for texts in together]
    assert all(max(own[:5]) != max(own[5:]) for own in lengths), "the ranks are done after different numbers of tokens"

"""What is hidden: how much, of what kind, as a pure function of the row, and never padding."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from scaletrain.config.batch_plan import FILLING
from scaletrain.config.schema import LossConfig, ModelConfig
from scaletrain.data.packing import IGNORED, Row
from scaletrain.data.rows import Collated
from scaletrain.errors import ConfigError
from scaletrain.model.transformer import Transformer
from scaletrain.tasks.masked_lm import MaskedLM, MaskedLMTask, continues_a_word
from tests.tasks.made_rows import EOS, rows, setting, tokenizer

MASK = 300  # the first row behind the vocabulary
BERT = {"causal": False}


def task(**options: object) -> MaskedLMTask:
    return MaskedLMTask(setting({"name": "masked_lm", **options}, BERT))


def shown(collated: Collated, row: int) -> tuple[list[int], list[int], list[int]]:
    """Tokens, places and targets of a row."""
    kept = collated.inputs["targets"][row] != IGNORED
    return (
        collated.inputs["tokens"][row].tolist(),
        collated.inputs["places"][row][kept].tolist(),
        collated.inputs["targets"][row][kept].tolist(),
    )


def test_shares_are_those_of_the_paper() -> None:
    """Of 400 rows of 100 ordinary tokens each 15 are hidden: 80, 10 and 10 %, within four standard deviations."""
    made = rows([[101]] * 400, 100)
    collated = task().collate(made, 7)
    assert collated.targets_B.tolist() == [15] * 400
    places, targets = collated.inputs["places"], collated.inputs["targets"]
    assert torch.equal(torch.from_numpy(made.tokens.astype(np.int64)).gather(1, places), targets)
    found = collated.inputs["tokens"].gather(1, places)
    n = found.numel()
    for share, hits in ((0.8, found == MASK), (0.1, found == targets)):
        # Another token drawn at random is the same one once in 300.
        assert abs(float(hits.float().mean()) - share) < 4 * (share * (1 - share) / n) ** 0.5 + 0.1 / 300
    others = found[(found != MASK) & (found != targets)]
    assert others.min() > 0 and others.max() < 300 and len(others.unique()) > 200
    untouched = torch.ones(400, 100, dtype=torch.bool).scatter(1, places, False)
    assert torch.equal(
        collated.inputs["tokens"][untouched], torch.from_numpy(made.tokens[:, :-1].astype(np.int64))[untouched]
    )


@given(
    pieces=st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=4), min_size=1, max_size=5),
    whole_words=st.booleans(),
    order=st.randoms(use_true_random=False),
)
def test_a_row_is_hidden_alike_whatever_stands_beside_it(pieces: list[list[int]], whole_words: bool, order) -> None:
    made, numbers = task(whole_words=whole_words), list(range(len(pieces)))
    together = made.collate(rows(pieces, 48), 3)
    order.shuffle(numbers)
    again = made.collate(rows([pieces[n] for n in numbers] + [[1]], 48, [*numbers, FILLING]), 3)
    for place, number in enumerate(numbers):
        assert shown(again, place) == shown(together, number)
    assert again.targets_B[-1] == 0 and shown(again, -1)[1] == []


def test_another_seed_hides_other_places() -> None:
    made = rows([[101]] * 20, 100)
    seeds = [task().collate(made, seed).inputs["places"] for seed in (1, 2)]
    assert all(not torch.equal(*places) for places in zip(*seeds, strict=True))


@given(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.booleans())
def test_neither_ends_nor_padding_are_hidden_and_padding_is_apart(pieces: list[int], whole_words: bool) -> None:
    made = rows([pieces], 48)
    collated = task(whole_words=whole_words).collate(made, 1)
    _, places, targets = shown(collated, 0)
    end = sum(pieces)
    assert EOS not in targets and all(place < end for place in places)
    ordinary = end - len(pieces)
    assert len(places) <= max(1, round(0.15 * ordinary)) if ordinary else not places
    documents = collated.inputs["documents"][0].tolist()
    expected = [number for number, length in enumerate(pieces) for _ in range(length)]
    assert documents == expected + [len(pieces)] * (48 - end)


def test_whole_words_are_hidden_whole() -> None:
    words = tokenizer()
    text = words.encode("the quick brown fox xyzzy jumps over qwertyuiop and the lazy dog", add_special_tokens=False)
    made = rows([[len(text.ids)]], len(text.ids))
    made.tokens[0, :-1] = text.ids
    goes_on = [continues_a_word(token) for token in text.tokens]
    word_of = np.cumsum(~np.array(goes_on))
    hidden_together = 0
    for seed in range(30):
        _, places, _ = shown(task(whole_words=True, mask_share=0.5).collate(made, seed), 0)
        for word in set(word_of[places]):
            members = np.flatnonzero(word_of == word).tolist()
            assert set(members) <= set(places)
            hidden_together += len(members) > 1
    assert hidden_together > 10


@pytest.mark.parametrize(
    ("name", "expected"), [("Ġthe", False), ("the", True), ("##ing", True), ("[", False), (".", False), ("Ã©", True)]
)
def test_which_tokens_go_on_with_a_word(name: str, expected: bool) -> None:
    assert continues_a_word(name) is expected


def test_what_a_shard_lost_is_not_learnt() -> None:
    made = rows([[20, 20]], 40)
    made.placed[0] = Row([0, 20], 40, [(20, 40)])
    for seed in range(20):
        assert all(place < 20 for place in shown(task().collate(made, seed), 0)[1])


def test_pairs_are_half_from_one_document() -> None:
    made = rows([[41]] * 400, 40)
    made = type(made)(**{**made.__dict__, "others": rows([[30]] * 400, 40, seed=1)})
    pairing = MaskedLMTask(setting({"name": "masked_lm", "next_sentence": True}, BERT))
    collated = pairing.collate(made, 2)
    follows, segments = collated.inputs["follows"], collated.inputs["segments"]
    assert 160 <= int(follows.sum()) <= 240
    for row in range(400):
        cut = int((segments[row] == 0).sum())
        assert 10 <= cut <= 30 and segments[row].tolist() == [0] * cut + [1] * (40 - cut)
        tokens, places, targets = shown(collated, row)
        for place, target in zip(places, targets, strict=True):
            tokens[place] = target
        own, other = made.tokens[row].tolist(), made.others.tokens[row].tolist()
        assert tokens[:cut] == own[:cut]
        if follows[row]:
            assert tokens == own[:40]
            continue
        taken = (
            [t for t, d in zip(tokens[cut:], collated.inputs["documents"][row, cut:].tolist(), strict=True) if d == 0]
            if collated.inputs["documents"] is not None
            else tokens[cut:]
        )
        assert any(other[begin : begin + len(taken)] == taken for begin in range(16))


def test_a_model_without_a_row_for_the_mask_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"there is no row for the mask\. Set --model.vocab_size 320"):
        MaskedLMTask(setting({"name": "masked_lm"}, BERT | {"vocab_size": 300}))


def test_the_loss_is_that_of_the_hidden_places() -> None:
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=320,
        d_model=16,
        n_layers=2,
        n_heads=2,
        max_seq_len=48,
        causal=False,
        n_segments=2,
        pooler=True,
        n_classes=2,
        init_std=0.3,
    )
    model = Transformer(config)
    made = rows([[30], [48], [49]], 48)
    made = type(made)(**{**made.__dict__, "others": rows([[30]] * 3, 48, seed=1)})
    inputs = MaskedLMTask(setting({"name": "masked_lm", "next_sentence": True}, BERT)).collate(made, 2).inputs
    terms = MaskedLM(model, LossConfig())(**inputs)
    hidden = model.hidden(inputs["tokens"], None, inputs["documents"], segments_BT=inputs["segments"])
    nll, pair_nll = torch.zeros(3), torch.zeros(3)
    for row in range(3):
        kept = inputs["targets"][row] != IGNORED
        logits = model.logits(hidden)[row][inputs["places"][row][kept]]
        nll[row] = cross_entropy(logits, inputs["targets"][row][kept], reduction="sum")
        pair_nll[row] = cross_entropy(model.class_logits(hidden)[row], inputs["follows"][row])
    torch.testing.assert_close(terms.nll_B, nll)
    torch.testing.assert_close(terms.loss_sum, (nll + pair_nll * terms.targets_B).sum())
    assert terms.outputs_BC is None
    told = MaskedLM(model.eval(), LossConfig()).eval()(**inputs).outputs_BC
    assert told.shape == (3, 3) and told[:, 1].tolist() == terms.targets_B.tolist()


def test_masks_in_a_text_take_the_blanks_before_them() -> None:
    words = tokenizer()
    mask = words.get_vocab_size()

    def encode(text: str) -> list[int]:
        return words.encode(text, add_special_tokens=False).ids

    assert task().tokens_of("the <mask> fox") == [*encode("the"), mask, *encode(" fox"), EOS]
    assert task().tokens_of("<mask>  [MASK]<|mask|>!") == [mask, mask, mask, *encode("!"), EOS]
    assert task().tokens_of("") == [EOS]

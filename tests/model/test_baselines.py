"""The models that Transformers are compared with are what their papers write down, and keep documents apart."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import rnn

from scaletrain.config.schema import ModelConfig
from scaletrain.errors import ConfigError
from scaletrain.evaluation.generation import generate
from scaletrain.model.baselines import CNN, LSTM, LSTMSeq2Seq, Recurrent
from scaletrain.model.build import build_model

V, D = 61, 24
SMALL = {"vocab_size": V, "d_model": D, "n_layers": 2, "max_seq_len": 32, "init_std": 0.3}
# Sums in another order differ in the last bits of fp32; all numbers here are of size 1.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def build(**options: Any) -> Any:
    torch.manual_seed(0)
    return build_model(ModelConfig(**{**SMALL, **options})).eval()


def some_tokens(seed: int, *shape: int) -> Tensor:
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


def first(lengths: list[int], width: int) -> Tensor:
    return torch.arange(width) < torch.tensor(lengths).unsqueeze(1)


def step(x: Tensor, h: Tensor, c: Tensor, lstm: nn.LSTM) -> tuple[Tensor, Tensor]:
    """One step of one layer for one row, as Hochreiter and Schmidhuber's gates are written in any textbook."""
    gates = lstm.weight_ih_l0 @ x + lstm.bias_ih_l0 + lstm.weight_hh_l0 @ h + lstm.bias_hh_l0
    i, f, g, o = gates.chunk(4)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def by_hand(recurrent: Recurrent, x_TD: Tensor, first_h_LD: Tensor | None = None) -> Tensor:
    """Hidden states of the last layer for one row, in a loop over layers, directions and places."""
    for layer in range(len(recurrent.forwards)):
        directions = []
        for reverse, layers in enumerate((recurrent.forwards, recurrent.backwards)[: 1 + bool(recurrent.backwards)]):
            lstm = layers[layer]
            h = torch.zeros(lstm.hidden_size) if first_h_LD is None else first_h_LD[layer]
            c, states = torch.zeros(lstm.hidden_size), []
            for x in x_TD.flip(0) if reverse else x_TD:
                h, c = step(x, h, c, lstm)
                states.append(h)
            directions.append(torch.stack(states[::-1] if reverse else states))
        x_TD = torch.cat(directions, -1)
    return x_TD


def gradients(model: nn.Module, result: Tensor) -> list[Tensor | None]:
    weights = list(model.parameters())
    pull = torch.randn(result.shape, generator=torch.Generator().manual_seed(9))
    return list(torch.autograd.grad((result * pull).sum(), weights, allow_unused=True))


@pytest.mark.parametrize("causal", [True, False])
def test_an_lstm_is_the_textbooks_and_so_are_its_gradients(causal: bool) -> None:
    model, tokens = build(kind="lstm", causal=causal), some_tokens(1, 1, 9)
    ours = model(tokens)
    theirs = by_hand(model.lstm, model.embedding.weight[tokens[0]]) @ model.embedding.weight.T
    torch.testing.assert_close(ours[0], theirs, **CLOSE)
    torch.testing.assert_close(gradients(model, ours[0]), gradients(model, theirs), rtol=1e-5, atol=1e-4)


def test_an_lstm_with_attention_is_the_papers_and_so_are_its_gradients() -> None:
    model: LSTMSeq2Seq = build(kind="lstm", n_encoder_layers=2)
    source, tokens = some_tokens(1, 1, 7), some_tokens(2, 1, 5)
    table = model.embedding.weight
    memory_SD = by_hand(model.encoder, table[source[0]])
    # The last state of each direction: at the last token, and at the first.
    ends = torch.cat((memory_SD[-1, : D // 2], memory_SD[0, D // 2 :]))
    first_h_LD = (model.bridge.weight @ ends + model.bridge.bias).tanh().view(2, D)
    hidden = []
    for h in by_hand(model.decoder, table[tokens[0]], first_h_LD):
        weights_S = torch.stack([h @ model.query.weight.T @ m for m in memory_SD]).softmax(0)
        context = (weights_S.unsqueeze(1) * memory_SD).sum(0)
        hidden.append((model.combine.weight @ torch.cat((context, h))).tanh())
    theirs = torch.stack(hidden) @ table.T
    ours = model(source, tokens)[0]
    torch.testing.assert_close(ours, theirs, **CLOSE)
    torch.testing.assert_close(gradients(model, ours), gradients(model, theirs), rtol=1e-5, atol=1e-4)


def test_a_cnn_is_the_papers_and_so_are_its_gradients() -> None:
    model: CNN = build(kind="cnn", d_ff=10, n_classes=3, kernel_widths=(2, 3))
    tokens = some_tokens(1, 1, 6)
    x_TD, greatest = model.embedding.weight[tokens[0]], []
    for filters, width in zip(model.filters, (2, 3), strict=True):
        padded_TD = torch.cat((x_TD, torch.zeros(width - 1, D)))
        answers = [
            torch.stack([(filters.weight[f] * padded_TD[t : t + width].T).sum() + filters.bias[f] for f in range(10)])
            for t in range(6)
        ]
        greatest.append(torch.stack(answers).relu().amax(0))
    theirs = model.classifier.weight @ torch.cat(greatest) + model.classifier.bias
    ours = model.class_logits(model.hidden(tokens))[0]
    torch.testing.assert_close(ours, theirs, **CLOSE)
    torch.testing.assert_close(gradients(model, ours), gradients(model, theirs), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("both_directions", [False, True])
def test_layers_are_those_of_torch_over_packed_sequences(both_directions: bool) -> None:
    torch.manual_seed(0)
    ours = Recurrent(D, 3, both_directions=both_directions, dropout=0.0)
    theirs = nn.LSTM(D, ours.forwards[0].hidden_size, 3, batch_first=True, bidirectional=both_directions)
    for layer in range(3):
        for suffix, layers in (("", ours.forwards), ("_reverse", ours.backwards)):
            for name, weight in layers[layer].named_parameters() if layers else ():
                weight.data.copy_(theirs.get_parameter(name.replace("l0", f"l{layer}{suffix}")))
    x, lengths = torch.randn(4, 9, D), torch.tensor([9, 1, 5, 9])
    packed = rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    expected, _ = rnn.pad_packed_sequence(theirs(packed)[0], batch_first=True)
    mask = first(lengths.tolist(), 9)
    torch.testing.assert_close(ours(x, lengths)[mask], expected[mask], **CLOSE)
    torch.testing.assert_close(ours.read_packed(x, (~mask).int())[mask], expected[mask], **CLOSE)


@settings(max_examples=15, deadline=None)
@given(causal=st.booleans(), lengths=st.lists(st.integers(1, 7), min_size=1, max_size=4), seed=st.integers(0, 2**31))
def test_a_packed_document_has_the_states_it_has_alone(causal: bool, lengths: list[int], seed: int) -> None:
    model: LSTM = build(kind="lstm", causal=causal)
    tokens = some_tokens(seed, 2, sum(lengths))
    documents = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).expand(2, -1)
    alone = torch.cat([model.hidden(part) for part in tokens.split(lengths, dim=1)], 1)
    torch.testing.assert_close(model.hidden(tokens, documents_BT=documents), alone, **CLOSE)


@settings(max_examples=15, deadline=None)
@given(
    shape=st.sampled_from(
        [
            {"kind": "lstm", "pooling": "last"},
            {"kind": "lstm", "pooling": "mean", "causal": False},
            {"kind": "cnn", "d_ff": 10},
            {"kind": "cnn", "d_ff": 10, "kernel_widths": (1, 7)},
        ]
    ),
    length=st.integers(1, 9),
    padding=st.integers(0, 8),
    seed=st.integers(0, 2**31),
)
def test_padding_changes_no_class(shape: dict[str, Any], length: int, padding: int, seed: int) -> None:
    model = build(**shape, n_classes=3)
    tokens = some_tokens(seed, 1, length)
    expected = model.class_logits(model.hidden(tokens))
    mask = first([length, length + padding], length + padding)
    padded = torch.cat((tokens, some_tokens(seed + 1, 1, padding)), 1)
    hidden = model.hidden(torch.cat((padded, padded)), documents_BT=(~mask).int())
    torch.testing.assert_close(model.class_logits(hidden, mask)[:1], expected, **CLOSE)


@pytest.mark.parametrize("steps", [(12,), (1,) * 12, (5, 1, 1, 4, 1)], ids=["at once", "one by one", "in parts"])
def test_a_text_continued_has_the_logits_it_has_at_once(steps: tuple[int, ...]) -> None:
    model, tokens = build(kind="lstm"), some_tokens(1, 2, 12)
    cache = model.new_cache(12)
    with torch.no_grad():
        parts = [model(part, cache=cache) for part in tokens.split(list(steps), dim=1)]
        torch.testing.assert_close(torch.cat(parts, 1), model(tokens), **CLOSE)
        assert cache.length == 12
        cache.reorder(torch.tensor([1, 1]))
        found = model(tokens[:, :1], cache=cache)
        expected = model(torch.cat((tokens[[1, 1]], tokens[:, :1]), 1))[:, -1:]
        torch.testing.assert_close(found, expected, **CLOSE)


def test_an_lstm_writes_what_is_likeliest() -> None:
    model = build(kind="lstm")
    expected = [3, 5]
    for _ in range(6):
        expected.append(int(model(torch.tensor([expected]))[0, -1].argmax()))
    assert [3, 5, *generate(model, [3, 5], 6, temperature=0)] == expected


def test_what_writes_no_text_says_so() -> None:
    with pytest.raises(ConfigError, match="CNN continues no text"):
        generate(build(kind="cnn", n_classes=2), [1], 3)
    with pytest.raises(ConfigError, match="bidirectional"):
        generate(build(kind="lstm", causal=False), [1], 3)


def test_an_lstm_that_reads_both_ways_takes_no_cache() -> None:
    model = build(kind="lstm", causal=False)
    with pytest.raises(ValueError, match="a cache continues one document"):
        model.hidden(some_tokens(1, 1, 3), cache=model.new_cache(3))


@pytest.mark.parametrize("shape", [{"kind": "lstm"}, {"kind": "lstm", "tie_embeddings": False, "causal": False}])
def test_the_first_loss_is_that_of_a_uniform_guess(shape: dict[str, Any]) -> None:
    model = build(**shape, init_std=0.02)
    tokens = some_tokens(1, 4, 33)
    loss = functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    assert abs(loss.item() - math.log(V)) < 0.1


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"kind": "lstm", "d_model": 25, "causal": False}, "model.d_model = 25 is odd"),
        ({"kind": "lstm", "n_segments": 2}, "model.n_segments = 2 is not known to model.kind lstm; leave it at 0"),
        ({"kind": "cnn", "pooler": True}, "model.pooler = True is not known to model.kind cnn"),
        ({"kind": "cnn", "pooling": "mean"}, "model.pooling = mean is not known to model.kind cnn"),
        ({"kind": "cnn", "kernel_widths": ()}, "model.kernel_widths is empty"),
    ],
)
def test_what_cannot_be_is_refused(shape: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**shape)


@pytest.mark.parametrize("shape", [{"kind": "lstm"}, {"kind": "lstm", "causal": False}, {"kind": "cnn", "d_ff": 8}])
def test_in_bf16_they_are_near_the_exact_result(shape: dict[str, Any]) -> None:
    model, tokens, mask = build(**shape, n_classes=3), some_tokens(1, 3, 9), first([9, 4, 1], 9)
    exact = model.class_logits(model.hidden(tokens, documents_BT=(~mask).int()), mask)
    rounded = model.bfloat16()
    found = rounded.class_logits(rounded.hidden(tokens, documents_BT=(~mask).int()), mask)
    assert ((found.float() - exact).norm() / exact.norm()).item() < 0.05
    functional.cross_entropy(found.float(), torch.tensor([0, 1, 2])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())

"""Attention within documents is the masked attention: values, gradients, compiled, in the model, in the engine."""

import copy
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from scaletrain.config.schema import ModelConfig
from scaletrain.model.attention import visible_keys
from scaletrain.model.document_attention import MIN_SEQ_LEN, attend_within_documents, find_spans
from scaletrain.model.transformer import Transformer
from tests.distributed import run_on_ranks
from tests.model import bodies

HEAD_DIM = 8
# Query and key/value heads: as many, fewer, one.
HEADS = [(3, 3), (4, 2), (4, 1)]
# How much farther from the same in fp64 than the mask's: sums in another order were 1.4 times as far in 24 batches.
FARTHER = 3.0


@pytest.fixture(autouse=True)
def as_many_threads_as_found() -> Iterator[None]:
    found = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(found)


@st.composite
def packings(draw: st.DrawFn) -> Tensor:
    """Numbers of documents (B, T): any lengths, others in each row, numbers with gaps."""
    T = draw(st.sampled_from([1, 2, 33, 80]))
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        borders = draw(st.sets(st.integers(1, T - 1))) if T > 1 else set()
        every = draw(st.sampled_from(["some", "none", "all"]))
        chosen = {"some": borders, "none": set(), "all": set(range(1, T))}[every]
        steps = torch.tensor([draw(st.integers(1, 3)) if place in chosen else 0 for place in range(T)])
        rows.append(draw(st.integers(0, 5)) + steps.cumsum(0))
    return torch.stack(rows).to(draw(st.sampled_from([torch.int32, torch.int64])))


def random_heads(documents: Tensor, heads: tuple[int, int], dtype: torch.dtype) -> list[Tensor]:
    """Queries, keys and values as the projections leave them, and a gradient of the output."""
    B, T = documents.shape
    generator = torch.Generator().manual_seed(T)
    return [
        torch.randn(B, T, n, HEAD_DIM, generator=generator).to(dtype).transpose(1, 2)
        for n in (heads[0], heads[1], heads[1], heads[0])
    ]


def masked(q: Tensor, k: Tensor, v: Tensor, documents: Tensor) -> Tensor:
    mask = (documents.unsqueeze(-1) == documents.unsqueeze(-2)).tril().unsqueeze(1)
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])


def results(attend: object, heads: list[Tensor], documents: Tensor) -> list[Tensor]:
    """The output and the gradients of queries, keys and values."""
    q, k, v, gradient = (x.detach().requires_grad_() for x in heads)
    mixed = attend(q, k, v, documents)  # type: ignore[operator]
    return [mixed.detach(), *torch.autograd.grad(mixed, (q, k, v), gradient)]


@settings(max_examples=40, deadline=None)
@given(documents=packings(), heads=st.sampled_from(HEADS))
def test_it_is_the_masked_attention(documents: Tensor, heads: tuple[int, int]) -> None:
    inputs = random_heads(documents, heads, torch.float32)
    torch.testing.assert_close(
        results(attend_within_documents, inputs, documents), results(masked, inputs, documents), rtol=1e-5, atol=1e-5
    )


@settings(max_examples=15, deadline=None)
@given(documents=packings(), heads=st.sampled_from(HEADS))
def test_in_bf16_it_is_as_near_to_the_exact_result_as_the_mask(documents: Tensor, heads: tuple[int, int]) -> None:
    inputs = random_heads(documents, heads, torch.bfloat16)
    exact = results(masked, [x.double() for x in inputs], documents)
    ours, with_mask = (results(attend, inputs, documents) for attend in (attend_within_documents, masked))
    for truth, mine, other in zip(exact, ours, with_mask, strict=True):
        # Half a unit in the last of bf16's 8 bits is 2**-9 of a number; a few roundings follow each other.
        allowed = max(1.5 * float((other.double() - truth).norm()), 2**-7 * float(truth.norm()), 2**-9)
        assert float((mine.double() - truth).norm()) <= allowed


@settings(max_examples=40, deadline=None)
@given(documents=packings())
def test_spans_are_the_documents(documents: Tensor) -> None:
    found = torch.full_like(documents, -1)
    for number, span in enumerate(find_spans(documents)):
        assert (found[span.row, span.start : span.stop] == -1).all()
        found[span.row, span.start : span.stop] = number
    assert (found >= 0).all()
    assert torch.equal(found.diff(dim=1) > 0, documents.diff(dim=1) > 0)


def test_what_cannot_be_multiplied_away_stays_in_its_document() -> None:
    # With a mask the NaN of a hidden value gets through: its weight is 0, and 0 * NaN is NaN.
    documents = (torch.arange(48) >= 20).long().unsqueeze(0)
    inputs = random_heads(documents, (2, 2), torch.float32)
    clean = results(attend_within_documents, inputs, documents)
    for x in inputs[:3]:
        x[:, :, :20] = torch.nan
    dirty = results(attend_within_documents, inputs, documents)
    assert masked(*inputs[:3], documents)[:, :, 20:].isnan().any()
    for before, after in zip(clean, dirty, strict=True):
        assert torch.equal(before[:, :, 20:], after[:, :, 20:])


def test_numbers_that_decrease_are_refused() -> None:
    documents = torch.tensor([[0, 1, 1], [0, 1, 0]])
    with pytest.raises(ValueError, match="decreases along a row"):
        attend_within_documents(*random_heads(documents, (2, 2), torch.float32)[:3], documents)


@pytest.mark.parametrize("layout", ["a sum's gradient", "heads apart in memory"])
def test_any_layout_in_memory_will_do(layout: str) -> None:
    documents = torch.tensor([[0] * 5 + [1] * 7])
    inputs = random_heads(documents, (2, 2), torch.float32)
    if layout == "a sum's gradient":
        inputs[3] = torch.ones(()).expand_as(inputs[3])
    else:
        inputs = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in inputs]
        assert inputs[0].stride(-1) != 1
    torch.testing.assert_close(
        results(attend_within_documents, inputs, documents), results(masked, inputs, documents), rtol=1e-5, atol=1e-5
    )


def packed(n_rows: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, positions and documents of rows that are long enough; about 5 documents in each."""
    generator = torch.Generator().manual_seed(seed)
    begins = torch.rand(n_rows, MIN_SEQ_LEN, generator=generator) < 5 / MIN_SEQ_LEN
    places = torch.arange(MIN_SEQ_LEN).expand(n_rows, -1)
    positions = places - (places * begins).cummax(1).values
    return torch.randint(61, (n_rows, MIN_SEQ_LEN), generator=generator), positions, begins.long().cumsum(1)


def build(n_layers: int = 2, **options: bool) -> Transformer:
    shape = {"positions": "rotary", "norm": "rms_norm", "n_heads": 4, "n_kv_heads": 2, "init_std": 0.2}
    torch.manual_seed(0)
    return Transformer(ModelConfig(vocab_size=61, d_model=32, n_layers=n_layers, **shape), **options)


def gradients(model: torch.nn.Module, batch: tuple[Tensor, Tensor, Tensor], threads: int) -> list[Tensor]:
    """The logits and all gradients; more threads than heads make the model take the mask."""
    torch.set_num_threads(threads)
    model.zero_grad()
    logits = model(*batch)
    functional.cross_entropy(logits.flatten(0, 1), batch[0].flatten()).backward()  # in the logits' own precision
    return [logits.detach(), *(weight.grad.clone() for weight in model.parameters())]


def assert_as_exact_as_with_the_mask(
    ours: list[Tensor], model: Transformer, batch: tuple[Tensor, Tensor, Tensor]
) -> None:
    """Logits and gradients in fp32 are about as near to those in fp64 as the mask's are."""
    with_mask = gradients(model, batch, 5)
    exact = gradients(copy.deepcopy(model).double(), batch, 5)
    for truth, mine, other in zip(exact, ours, with_mask, strict=True):
        assert float((mine - truth).norm()) <= FARTHER * float((other - truth).norm())


@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_model_learns_the_same_by_documents_as_with_the_mask(checkpointed: bool) -> None:
    model, batch = build(checkpoint_activations=checkpointed), packed(3, seed=1)
    assert_as_exact_as_with_the_mask(gradients(model, batch, 1), model, batch)


def test_under_autocast_the_model_learns_what_it_does_with_the_mask() -> None:
    model, batch = build(), packed(2, seed=2)
    exact = gradients(model, batch, 5)
    with torch.autocast("cpu", torch.bfloat16):
        ours, with_mask = gradients(model, batch, 1), gradients(model, batch, 5)
    for truth, mine, other in zip(exact, ours, with_mask, strict=True):
        assert float((mine - truth).norm()) <= 1.5 * float((other - truth).norm()) + 1e-6


@pytest.mark.slow
def test_other_borders_neither_break_the_compiled_graph_nor_compile_again() -> None:
    model = build(n_layers=1)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    gradients(compiled, packed(2, seed=3), 1)
    with torch.compiler.set_stance("fail_on_recompile"):
        for seed in (4, 5):
            batch = packed(2, seed)
            assert_as_exact_as_with_the_mask(gradients(compiled, batch, 1), model, batch)


@pytest.mark.slow
def test_the_compiler_keeps_what_the_operator_computes() -> None:
    documents = (torch.arange(40) >= 13).long().expand(2, -1)
    inputs = random_heads(documents, (4, 2), torch.float32)
    compiled = torch.compile(lambda q, k, v, d: attend_within_documents(q * 2, k, v, d).transpose(1, 2).flatten(2))
    plain = [masked(inputs[0] * 2, *inputs[1:3], documents).transpose(1, 2).flatten(2)]
    torch.testing.assert_close([compiled(*inputs[:3], documents)], plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("device", "length", "n_heads", "dropout", "by_documents"),
    [
        ("cpu", MIN_SEQ_LEN, 2, 0.0, True),
        ("cpu", MIN_SEQ_LEN - 1, 2, 0.0, False),
        ("cpu", MIN_SEQ_LEN, 1, 0.0, False),
        ("cpu", MIN_SEQ_LEN, 2, 0.1, False),
        ("meta", MIN_SEQ_LEN, 2, 0.0, False),
    ],
    ids=["long enough", "too short", "fewer heads than threads", "dropout", "no CPU"],
)
def test_the_mask_is_kept_where_it_is_needed(
    device: str, length: int, n_heads: int, dropout: float, by_documents: bool
) -> None:
    torch.set_num_threads(2)
    documents = torch.zeros(1, length, dtype=torch.int32, device=device)
    visibility = visible_keys(documents, documents, 0, n_heads=n_heads, dropout=dropout)
    assert (visibility.documents is not None) == by_documents
    assert (visibility.mask is None) == by_documents


def test_attention_dropout_in_training_needs_the_mask_and_evaluation_does_not() -> None:
    model, batch = build(), packed(1, seed=6)
    with_dropout = Transformer(model.config.model_copy(update={"attention_dropout": 0.5}))
    with_dropout.load_state_dict(model.state_dict())
    assert not torch.allclose(with_dropout(*batch), model(*batch), atol=1e-3)
    assert torch.equal(with_dropout.eval()(*batch), model(*batch))


def test_zero_3_with_checkpointed_activations_learns_the_same() -> None:
    by_documents = run_on_ranks(1, bodies.train_packed, 1, True)[0]
    assert by_documents == pytest.approx(run_on_ranks(1, bodies.train_packed, 3, True)[0], abs=1e-5)
    assert by_documents[-1] < by_documents[0]


def test_the_model_loads_without_the_compiler() -> None:
    """It takes a second and 70 MiB."""
    code = "import sys, scaletrain.model.transformer; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=100).returncode == 0

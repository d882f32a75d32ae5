"""The pretrained models that conversions are tested with are real: in transformers alone, they know their language."""

import difflib
import heapq
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    set_seed,
)

from tests.convert.pretrained import antibodies

# What converted models are compared with; the conversions themselves are among the default tests.
pytestmark = pytest.mark.thorough

# Prose of the standard library: what a heap is good for, and how two texts are compared.
TEXTS = [heapq.__about__, (inspect.getdoc(difflib.SequenceMatcher) or "").partition("Example,")[0]]
MAX_TOKENS = 200
RELATED = [
    ("The cat sleeps on the warm sofa.", "A kitten is napping on the couch."),
    ("The central bank raised interest rates.", "Borrowing money became more expensive after the decision."),
    ("How do I bake a loaf of bread?", "A recipe with flour, yeast and an oven."),
    ("The rocket reached its orbit around the moon.", "A spacecraft is circling the lunar surface."),
]


@torch.no_grad()
def perplexity(model: Any, ids_BT: torch.Tensor) -> float:
    """Of tokens, each predicted from those before it."""
    return float(model(input_ids=ids_BT, labels=ids_BT).loss.exp())


@torch.no_grad()
def masked_perplexity(model: Any, ids_T: torch.Tensor, mask_id: int) -> float:
    """Pseudo-perplexity: every sixth token between the borders is masked in turn, and predicted from all others."""
    places = torch.arange(1, len(ids_T) - 1, 6)
    masked_BT = ids_T.repeat(len(places), 1)
    masked_BT[torch.arange(len(places)), places] = mask_id
    logits_BV = model(input_ids=masked_BT).logits[torch.arange(len(places)), places]
    return float(torch.nn.functional.cross_entropy(logits_BV, ids_T[places]).exp())


@torch.no_grad()
def similarities(model: Any, tokenizer: Any, first: list[str], second: list[str]) -> torch.Tensor:
    """Cosine of each sentence of `first` (rows) and `second` (columns), embedded as the mean of their tokens."""
    embedded = []
    for sentences in (first, second):
        batch = tokenizer(sentences, return_tensors="pt", padding=True)
        mask_BT1 = batch["attention_mask"].unsqueeze(-1)
        mean_BD = (model(**batch).last_hidden_state * mask_BT1).sum(1) / mask_BT1.sum(1)
        embedded.append(torch.nn.functional.normalize(mean_BD, dim=-1))
    return embedded[0] @ embedded[1].mT


def shuffled(ids_T: torch.Tensor) -> torch.Tensor:
    return ids_T[torch.randperm(len(ids_T), generator=torch.Generator().manual_seed(0))]


def test_the_llama_reads_prose_and_needs_its_order(pretrained_llama: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(pretrained_llama).eval()
    tokenizer = AutoTokenizer.from_pretrained(pretrained_llama)
    set_seed(0)
    untrained = LlamaForCausalLM(LlamaConfig.from_pretrained(pretrained_llama)).eval()
    for text in TEXTS:
        ids_T = tokenizer(text, return_tensors="pt")["input_ids"][0, :MAX_TOKENS]
        real, without_order = perplexity(model, ids_T[None]), perplexity(model, shuffled(ids_T)[None])
        random = perplexity(untrained, ids_T[None])
        print(f"llama, {len(ids_T)} tokens: perplexity {real:.1f}, shuffled {without_order:.0f}, random {random:.0f}")
        # With the rotary halves of all layers mistaken for pairs it would be above 100.
        assert real < 60
        assert without_order > 20 * real
        assert random > 500 * real


def test_the_tokenizer_of_the_llama_gives_text_back(pretrained_llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(pretrained_llama)
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert len(ids) < len(text) / 2.5


def test_the_bert_tells_related_sentences_from_unrelated(pretrained_bert: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(pretrained_bert)
    set_seed(0)
    models = {
        "real": BertModel.from_pretrained(pretrained_bert).eval(),
        "random": BertModel(BertConfig.from_pretrained(pretrained_bert)).eval(),
    }
    gaps = {}
    for name, model in models.items():
        found = similarities(model, tokenizer, [one for one, _ in RELATED], [other for _, other in RELATED])
        related, unrelated = found.diagonal(), found[~torch.eye(len(RELATED), dtype=torch.bool)]
        gaps[name] = float(related.min() - unrelated.max())
        print(
            f"bert, {name}: related {related.min():.2f} .. {related.max():.2f}, unrelated up to {unrelated.max():.2f}"
        )
    assert gaps["real"] > 0.1
    assert gaps["random"] < 0


def test_the_bert_loads_with_all_of_its_weights(pretrained_bert: Path) -> None:
    _, report = BertModel.from_pretrained(pretrained_bert, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]


def test_the_masked_bert_knows_antibodies(pretrained_masked_bert: Path) -> None:
    model = BertForMaskedLM.from_pretrained(pretrained_masked_bert).eval()
    tokenizer = AutoTokenizer.from_pretrained(pretrained_masked_bert)
    set_seed(0)
    untrained = BertForMaskedLM(BertConfig.from_pretrained(pretrained_masked_bert)).eval()
    sequences = antibodies()
    assert sequences
    for sequence in sequences:
        ids_T = tokenizer(" ".join(sequence), return_tensors="pt")["input_ids"][0]
        assert tokenizer.convert_ids_to_tokens(ids_T) == ["[CLS]", *sequence, "[SEP]"]
        inside = torch.cat([ids_T[:1], shuffled(ids_T[1:-1]), ids_T[-1:]])
        real, without_order, random = (
            masked_perplexity(one, ids, tokenizer.mask_token_id)
            for one, ids in ((model, ids_T), (model, inside), (untrained, ids_T))
        )
        print(f"masked bert, {len(sequence)} residues: {real:.2f}, shuffled {without_order:.1f}, random {random:.1f}")
        # Guessing among the amino acids makes 20.
        assert real < 4
        assert without_order > 5 * real
        assert random > 5 * real

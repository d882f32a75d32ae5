"""Real pretrained models, converted, are as good as they were: the same perplexity as transformers finds."""

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertForMaskedLM, BertModel, LlamaForCausalLM

from scaletrain.checkpoint.weights import load_weights
from scaletrain.convert.checkpoint_tensors import CheckpointTensors, find_checkpoint
from scaletrain.convert.from_hf import from_hf
from scaletrain.convert.proof import Proof
from scaletrain.data.tokenizer import load_tokenizer
from scaletrain.evaluation.generation import generate
from scaletrain.model.transformer import Transformer
from tests.convert.pretrained import antibodies
from tests.convert.test_pretrained_reference import MAX_TOKENS, RELATED, TEXTS, masked_perplexity, perplexity


def converted(folder: Path, out: Path) -> tuple[Transformer, Proof]:
    _, proof = from_hf(folder, out, proves=True)
    assert proof is not None
    model = Transformer(CheckpointTensors(find_checkpoint(out)).config)
    model.load_state_dict(load_weights(out / "checkpoints"))
    return model.eval(), proof


@pytest.mark.thorough
def test_the_llama_reads_prose_as_well_as_in_transformers(pretrained_llama: Path, tmp_path: Path) -> None:
    model, proof = converted(pretrained_llama, tmp_path / "start")
    assert proof.comparison.agreeing_share > 0.99
    reference = LlamaForCausalLM.from_pretrained(pretrained_llama).eval()
    tokenizer = load_tokenizer(tmp_path / "start" / "tokenizer.json")
    torch.manual_seed(0)
    untrained = LlamaForCausalLM(reference.config).eval()
    for text in TEXTS:
        ids_BT = torch.tensor([tokenizer.encode(text).ids[:MAX_TOKENS]])
        with torch.no_grad():
            nll = torch.nn.functional.cross_entropy(model(ids_BT)[0, :-1], ids_BT[0, 1:])
        here, there = math.exp(nll), perplexity(reference, ids_BT)
        print(f"llama, {ids_BT.shape[1]} tokens: perplexity {here:.3f} here, {there:.3f} in transformers")
        assert math.isclose(here, there, rel_tol=1e-4)
        assert here < 60
        assert perplexity(untrained, ids_BT) > 500 * here
    prompt = tokenizer.encode("The capital of France is").ids
    expected = reference.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, len(prompt) :]
    found = list(generate(model, prompt, 12, temperature=0))
    assert found == expected.tolist()
    assert "Paris" in tokenizer.decode(found)


@pytest.mark.slow
def test_the_bert_embeds_sentences_as_in_transformers(pretrained_bert: Path, tmp_path: Path) -> None:
    model, _ = converted(pretrained_bert, tmp_path / "start")
    reference = BertModel.from_pretrained(pretrained_bert).eval()
    tokenizer = AutoTokenizer.from_pretrained(pretrained_bert)
    for sentence in [sentence for pair in RELATED for sentence in pair]:
        ids_BT = tokenizer(sentence, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            there, hidden_BTD = reference(ids_BT), model.hidden(ids_BT)
            torch.testing.assert_close(hidden_BTD, there.last_hidden_state, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(model.pooled(hidden_BTD), there.pooler_output, rtol=1e-4, atol=1e-5)


@pytest.mark.thorough
def test_the_masked_bert_knows_antibodies_as_well_as_in_transformers(
    pretrained_masked_bert: Path, tmp_path: Path
) -> None:
    model, _ = converted(pretrained_masked_bert, tmp_path / "start")
    reference = BertForMaskedLM.from_pretrained(pretrained_masked_bert).eval()
    tokenizer = AutoTokenizer.from_pretrained(pretrained_masked_bert)
    for sequence in antibodies():
        ids_T = tokenizer(" ".join(sequence), return_tensors="pt")["input_ids"][0]
        here = masked_perplexity(AsInTransformers(model), ids_T, tokenizer.mask_token_id)
        there = masked_perplexity(reference, ids_T, tokenizer.mask_token_id)
        print(f"masked bert, {len(sequence)} residues: {here:.4f} here, {there:.4f} in transformers")
        assert math.isclose(here, there, rel_tol=1e-4)
        assert here < 4


class AsInTransformers:
    """Calls a model as transformers' are called."""

    def __init__(self, model: Transformer) -> None:
        self.model = model

    def __call__(self, input_ids: torch.Tensor) -> "AsInTransformers":
        self.logits = self.model(input_ids)
        return self

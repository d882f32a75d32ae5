"""Heads that tell something of a whole text go out with the names of what they tell, and come back."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
)

from scaletrain.checkpoint.weights import load_weights
from scaletrain.config.derive import check
from scaletrain.config.load import load_config
from scaletrain.config.schema import ModelConfig, TaskConfig
from scaletrain.convert.checkpoint_tensors import CheckpointTensors, find_checkpoint
from scaletrain.convert.copying import copy_tensors
from scaletrain.convert.from_hf import from_hf
from scaletrain.convert.merging import start_like
from scaletrain.convert.pairs import Copy, whole
from scaletrain.convert.safetensors_files import SafetensorsFolder
from scaletrain.convert.start import Start, write_start
from scaletrain.convert.tensors import TensorInfo
from scaletrain.convert.to_hf import to_hf
from scaletrain.data.corpus_facts import CorpusFacts
from scaletrain.errors import ConfigError
from scaletrain.model.transformer import Transformer
from tests.convert.tiny_models import SIZES, VOCAB, tokenizer

NAMES = ("cheerful", "angry", "neither")
SMALL = {"vocab_size": VOCAB, "d_model": 48, "n_layers": 2, "n_heads": 4, "max_seq_len": 32}
BERT = {
    "causal": False,
    "norm_position": "post",
    "norm_eps": 1e-12,
    "embedding_norm": True,
    "activation": "gelu",
    "n_segments": 2,
}
PRETRAINED = {"output_transform": True, "output_bias": True}


def save(folder: Path, **options: Any) -> BertForSequenceClassification:
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**{**SIZES, "pad_token_id": 0, "eos_token_id": 0, **options}))
    model.eval().save_pretrained(folder)
    tokenizer().save(str(folder / "tokenizer.json"))
    return model


def start_of(folder: Path) -> CheckpointTensors:
    return CheckpointTensors(find_checkpoint(folder))


def config_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_text()))


NAMED = {"id2label": dict(enumerate(NAMES)), "label2id": {name: number for number, name in enumerate(NAMES)}}
HEADS: dict[str, tuple[dict[str, Any], str, tuple[str, ...], tuple[str, ...]]] = {
    "of several classes one": (NAMED, "classification", ("label",), NAMES),
    "any of several classes": (
        {**NAMED, "problem_type": "multi_label_classification"},
        "classification",
        NAMES,
        NAMES,
    ),
    "numbers": ({**NAMED, "problem_type": "regression"}, "regression", NAMES, ()),
    "one number": ({"num_labels": 1}, "regression", ("LABEL_0",), ()),
    "two classes without names": ({}, "classification", ("label",), ("LABEL_0", "LABEL_1")),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
def test_a_head_comes_here_with_its_names_and_goes_back(tmp_path: Path, name: str) -> None:
    options, task, values, classes = HEADS[name]
    reference = save(tmp_path / "there", **options)
    _, proof = from_hf(tmp_path / "there", tmp_path / "here", proves=True)
    assert proof is not None and [stage.name for stage in proof.comparison.outputs] == ["classes"] and not proof.unread
    start = start_of(tmp_path / "here")
    assert start.task.name == task
    facts = CorpusFacts.read(tmp_path / "here")
    assert (facts.values, facts.classes) == (values, classes)
    # As tools/convert.py says to begin a run with it: but for data, which it has none of, nothing is missing.
    check(load_config(tmp_path / "here" / "config.yaml", {"data.corpus": "python_stdlib"}))
    to_hf(start, tmp_path / "back", proves=True)
    there, back = load_file(tmp_path / "there/model.safetensors"), load_file(tmp_path / "back/model.safetensors")
    assert there.keys() == back.keys() and all(torch.equal(there[name], back[name]) for name in there)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "back").eval()
    tokens = torch.arange(40).view(2, 20)
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, reference(tokens).logits)
    assert again.config.id2label == reference.config.id2label
    assert again.config.label2id == reference.config.label2id
    told = config_of(tmp_path / "there").get("problem_type")
    assert again.config.problem_type == (told or ("regression" if name == "one number" else SINGLE))


SINGLE = "single_label_classification"


def test_names_survive_where_a_start_is_made_of_another(tmp_path: Path) -> None:
    save(tmp_path / "there", **NAMED)
    from_hf(tmp_path / "there", tmp_path / "here")
    checkpoint = start_of(tmp_path / "here")
    again = start_like(checkpoint, checkpoint.infos, {})
    assert again.task == checkpoint.task and again.facts is not None and again.facts.classes == NAMES


@pytest.mark.parametrize("labels", [{"0": "good", "5": "bad"}, {"0": "good", "1": "good"}, {"a": "good", "b": "bad"}])
def test_labels_that_are_no_names_of_classes_are_numbered(tmp_path: Path, labels: dict[str, str]) -> None:
    save(tmp_path / "there")
    config = {**config_of(tmp_path / "there"), "id2label": labels}
    (tmp_path / "there" / "config.json").write_text(json.dumps(config))
    from_hf(tmp_path / "there", tmp_path / "here")
    assert CorpusFacts.read(tmp_path / "here").classes == ("LABEL_0", "LABEL_1")


def write(model: Transformer, out: Path, task: TaskConfig) -> CheckpointTensors:
    """A start with a model's weights."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    infos = {name: TensorInfo(tuple(weight.shape), weight.dtype) for name, weight in model.named_parameters()}
    save_file(dict(model.named_parameters()), out.with_suffix(".safetensors"))
    copies = [Copy(whole(name, info.shape), whole(name, info.shape)) for name, info in infos.items()]
    source = functools.partial(SafetensorsFolder, out.with_suffix(".safetensors"))
    start = Start(model.config, infos, None, None, {}, task=task)
    write_start(out, start, lambda places: copy_tensors(source, copies, places))
    return start_of(out)


def test_an_output_layer_that_nothing_reads_is_not_asked_for(tmp_path: Path) -> None:
    save(tmp_path / "there", tie_word_embeddings=False)
    from_hf(tmp_path / "there", tmp_path / "here", proves=True)
    assert start_of(tmp_path / "here").config.tie_embeddings


@pytest.mark.parametrize("lacking", [("n_segments",), ("output_bias",), ("n_segments", "output_bias")])
def test_what_a_masked_model_lacks_goes_out_as_zeros(tmp_path: Path, lacking: tuple[str, ...]) -> None:
    shape = {**BERT, **PRETRAINED, **{key: type((BERT | PRETRAINED)[key])() for key in lacking}}
    model = Transformer(ModelConfig(**SMALL, **shape)).eval()
    to_hf(write(model, tmp_path / "here", TaskConfig(name="masked_lm")), tmp_path / "there", proves=True)
    stored = load_file(tmp_path / "there" / "model.safetensors")
    assert stored["bert.embeddings.token_type_embeddings.weight"].any() == ("n_segments" not in lacking)
    there = AutoModelForMaskedLM.from_pretrained(tmp_path / "there").eval()
    tokens = torch.arange(40).view(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(there(tokens).logits, model(tokens), rtol=1e-5, atol=1e-5)
    from_hf(tmp_path / "there", tmp_path / "back", proves=True)
    returned = load_weights(tmp_path / "back" / "checkpoints")
    assert all(torch.equal(returned[name], weight) for name, weight in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "task", "told"),
    [
        ({"pooling": "mean"}, "classification", "bert: pooling = mean"),
        ({"pooler": False}, "regression", "bert: pooler = False"),
        ({"causal": True, "pooling": "last"}, "classification", "n_classes = 3"),
        ({"norm_position": "pre"}, "classification", "norm_position = pre"),
        ({"tie_embeddings": False}, "classification", "tie_embeddings = False"),
        ({}, "masked_lm", "BertForSequenceClassification, which tells no tokens, as task masked_lm does"),
        ({**PRETRAINED}, "masked_lm", "n_classes = 3"),
    ],
)
def test_a_head_that_bert_does_not_have_is_named(tmp_path: Path, change: dict[str, Any], task: Any, told: str) -> None:
    model = Transformer(ModelConfig(**{**SMALL, **BERT, "pooler": True, "n_classes": 3, **change}))
    checkpoint = write(model, tmp_path / "here", TaskConfig(name=task))
    with pytest.raises(ConfigError, match=told):
        to_hf(checkpoint, tmp_path / "there")
    assert not (tmp_path / "there").exists()

"""A finished run of every task goes through tools/convert.py: into one file always, to transformers where it can."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    pipeline,
)

from scaletrain.checkpoint.weights import load_weights
from scaletrain.config.derive import check
from scaletrain.config.load import load_config
from scaletrain.data.chat import ChatEncoder, ChatTemplate
from scaletrain.data.corpus_facts import CorpusFacts
from scaletrain.data.tokenizer import load_tokenizer
from scaletrain.evaluation.beam_search import Search, search_texts
from scaletrain.model.build import Model, build_model
from scaletrain.model.encoder_decoder import EncoderDecoder
from scaletrain.model.transformer import Transformer
from tests.tools.test_convert import convert, told
from tests.training.task_runs import KINDS, WORDS, TaskRun, build_examples

_BERT = {
    "model.causal": False,
    "model.norm_position": "post",
    "model.embedding_norm": True,
    "model.activation": "gelu",
}
_TOKENS = {"model.output_transform": True, "model.output_bias": True}
_CLASSES = {"model.pooler": True, "model.pooling": "first"}
_T5 = {
    "model.positions": "relative",
    "model.norm": "rms_norm",
    "model.bias": False,
    "model.attention_scale": False,
    "model.output_scale": 0.25,  # 16**-0.5
    "model.activation": "relu",
}


@dataclass(frozen=True)
class Trained:
    """What is trained, and what becomes of it.

    Attributes:
        kind: One of ``KINDS``.
        changes: Of its configuration.
        architecture: The class that it becomes; None for none.
        refusal: Why not.
    """

    kind: str
    changes: dict[str, object]
    architecture: str | None
    refusal: str = ""


RUNS = {
    "causal_lm": Trained("causal_lm", {}, "GPT2LMHeadModel"),
    "sft": Trained("sft", {}, "GPT2LMHeadModel"),
    "masked_lm": Trained("masked_lm", {}, None, "bert: norm_position = pre, embedding_norm = False"),
    "masked_lm, bert": Trained(
        "masked_lm",
        _BERT
        | _TOKENS
        | {"task.next_sentence": False, "model.n_classes": 0, "model.pooler": False}
        # Segments are not read then, and go out as zeros.
        | {"model.n_segments": 0},
        "BertForMaskedLM",
    ),
    "masked_lm and pairs, bert": Trained("masked_lm", _BERT | _TOKENS, "BertForPreTraining"),
    "seq2seq": Trained("seq2seq", {}, None, "t5: positions = learned, norm = layer_norm"),
    "seq2seq, t5": Trained("seq2seq", _T5, "T5ForConditionalGeneration"),
    "seq2seq, original": Trained(
        "seq2seq",
        {"model.positions": "sinusoidal", "model.norm_position": "post", "model.activation": "relu"},
        "MarianMTModel",
    ),
    "classification": Trained("classification", {}, None, "bert: .*pooling = mean"),
    "classification, bert": Trained("classification", _BERT | _CLASSES, "BertForSequenceClassification"),
    "regression": Trained("regression", {}, None, "gpt2: n_classes = 2"),
    "regression, bert": Trained("regression", _BERT | _CLASSES, "BertForSequenceClassification"),
    "lstm": Trained("lstm", {}, None, "bert: kind = lstm"),
    "cnn": Trained("cnn", {}, None, "bert: kind = cnn"),
}
TO_TRANSFORMERS = [name for name, trained in RUNS.items() if trained.architecture]
ONLY_HERE = [name for name, trained in RUNS.items() if not trained.architecture]


def test_every_task_is_tried() -> None:
    assert {trained.kind for trained in RUNS.values()} == set(KINDS)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run directories; each is trained when it is first asked for."""
    base, corpora, found = tmp_path_factory.mktemp("runs"), {}, {}

    class Runs(dict[str, Path]):
        def __missing__(self, name: str) -> Path:
            trained = RUNS[name]
            kind = KINDS[trained.kind]
            if kind.format not in corpora:
                corpora[kind.format] = build_examples(base / "corpora" / kind.format, kind.format)
            folder = base / str(len(found))
            folder.mkdir()
            run = TaskRun(folder, corpora[kind.format], {**kind.overrides, **trained.changes})
            run.complete(1, train__max_steps=3, eval__every_steps=0)
            found[name] = self[name] = run.run_dir
            return run.run_dir

    return Runs()


def model_of(run_dir: Path) -> Model:
    model = build_model(load_config(run_dir / "config.yaml", {}).model)
    model.load_state_dict(load_weights(run_dir / "checkpoints"))
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_its_weights_come_into_one_file(name: str, runs: dict[str, Path], tmp_path: Path) -> None:
    told(convert("consolidate", "--source", runs[name], "--out", tmp_path / "weights.safetensors"))
    weights = load_file(tmp_path / "weights.safetensors")
    wanted = dict(model_of(runs[name]).named_parameters())
    assert weights.keys() == wanted.keys() and all(torch.equal(weights[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("name", ONLY_HERE)
def test_what_no_family_has_is_named(name: str, runs: dict[str, Path], tmp_path: Path) -> None:
    done = convert("to_hf", "--source", runs[name], "--out", tmp_path / "hf")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    with pytest.raises(AssertionError, match=RUNS[name].refusal):
        raise AssertionError(done.stderr)
    assert not (tmp_path / "hf").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", TO_TRANSFORMERS)
def test_it_becomes_a_model_of_transformers_and_comes_back(name: str, runs: dict[str, Path], tmp_path: Path) -> None:
    out = told(convert("to_hf", "--source", runs[name], "--out", tmp_path / "hf"))
    assert "same weights" in out and "fault" not in out
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["architectures"] == [RUNS[name].architecture]
    told(convert("from_hf", "--source", tmp_path / "hf", "--out", tmp_path / "start"))
    begun = load_config(tmp_path / "start" / "config.yaml", {"data.corpus": "python_stdlib"})
    assert begun.task.name in (RUNS[name].kind, "causal_lm")
    check(begun)  # with data a run can begin so
    told(convert("to_hf", "--source", tmp_path / "start", "--out", tmp_path / "again", "--verify", "false"))
    there, again = (load_file(tmp_path / folder / "model.safetensors") for folder in ("hf", "again"))
    assert there.keys() == again.keys() and all(torch.equal(there[key], again[key]) for key in there)
    kept = json.loads((tmp_path / "again" / "config.json").read_text())
    assert {key: value for key, value in kept.items() if value != config.get(key)} == {}


def tokens_of(run_dir: Path, text: str) -> torch.Tensor:
    return torch.tensor([load_tokenizer(run_dir / "tokenizer.json").encode(text).ids])


def test_a_dialogue_is_written_there_as_it_was_learnt(runs: dict[str, Path], tmp_path: Path) -> None:
    told(convert("to_hf", "--source", runs["sft"], "--out", tmp_path / "hf"))
    words = AutoTokenizer.from_pretrained(tmp_path / "hf")
    facts = CorpusFacts.read(runs["sft"])
    assert facts.chat_template is not None and words.chat_template == facts.chat_template
    template = ChatTemplate(facts.chat_template)
    tokenizer = load_tokenizer(runs["sft"] / "tokenizer.json")
    question = [{"role": "user", "content": "red green blue"}]
    encoder = ChatEncoder(template, tokenizer, facts.borders)
    prompt = words.apply_chat_template(question, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert prompt == encoder.prompt(question)
    turns = [*question, {"role": "assistant", "content": "blue"}]
    masked = words.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
    learnt = [token for token, is_said in zip(masked["input_ids"], masked["assistant_masks"], strict=True) if is_said]
    encoded = encoder.encode(turns)
    assert learnt == [token for token, part in zip(encoded.tokens, encoded.parts, strict=True) if part]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    ours = model_of(runs["sft"])
    assert isinstance(ours, Transformer)
    with torch.no_grad():
        ids = torch.tensor([prompt])
        torch.testing.assert_close(model(ids).logits, ours(ids), rtol=1e-5, atol=1e-5)
    told(convert("from_hf", "--source", tmp_path / "hf", "--out", tmp_path / "start"))
    assert CorpusFacts.read(tmp_path / "start").chat_template == facts.chat_template


@pytest.mark.parametrize("name", ["seq2seq, t5", "seq2seq, original"])
def test_a_text_is_written_there_as_here(name: str, runs: dict[str, Path], tmp_path: Path) -> None:
    run_dir = runs[name]
    told(convert("to_hf", "--source", run_dir, "--out", tmp_path / "hf"))
    there, ours = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "hf").eval(), model_of(run_dir)
    assert isinstance(ours, EncoderDecoder)
    eos_id = CorpusFacts.read(run_dir).borders.eos_id
    source = torch.cat([tokens_of(run_dir, "red one cats"), torch.tensor([[eos_id]])], 1)
    words = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert words("red one cats").input_ids == source[0, :-1].tolist() and words.eos_token_id == eos_id
    # The cache of this version of transformers has as many layers as the encoder, which is one less.
    options = {"max_new_tokens": 12, "do_sample": False, "use_cache": False}
    # After three steps it may have nothing to say: one runs on behind the end, the other begins and ends by itself.
    never = ours.config.vocab_size - 1
    for end, kept in ((never, {"eos_token_id": never}), (eos_id, {})):
        written = there.generate(source, **options, **kept)[0].tolist()
        found = search_texts(ours, source, None, Search(12, eos_id, end, beams=1))[0]
        assert written == [eos_id, *found, *[end] * (len(written) - 1 - len(found))]
        assert len(found) == 12 or end == eos_id


def test_hidden_tokens_and_pairs_are_told_there_as_here(runs: dict[str, Path], tmp_path: Path) -> None:
    for name, kind in (
        ("masked_lm, bert", AutoModelForMaskedLM),
        ("masked_lm and pairs, bert", AutoModelForPreTraining),
    ):
        told(convert("to_hf", "--source", runs[name], "--out", tmp_path / name))
        there, ours = kind.from_pretrained(tmp_path / name).eval(), model_of(runs[name])
        assert isinstance(ours, Transformer)
        tokens = tokens_of(runs[name], " ".join(WORDS))
        segments = (torch.arange(tokens.shape[1]) > 9).long().unsqueeze(0)
        has_pairs = bool(ours.config.n_classes)
        with torch.no_grad():
            found = there(tokens, token_type_ids=segments if has_pairs else None)
            hidden = ours.hidden(tokens, segments_BT=segments if has_pairs else None)
            logits = found.prediction_logits if has_pairs else found.logits
            torch.testing.assert_close(logits, ours.logits(hidden), rtol=1e-5, atol=1e-5)
            if has_pairs:
                classes = ours.class_logits(hidden)
                torch.testing.assert_close(found.seq_relationship_logits, classes, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "problem"), [("classification", "single_label_classification"), ("regression", "regression")]
)
def test_a_text_is_judged_there_as_here_by_names(
    name: str, problem: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    run_dir = runs[f"{name}, bert"]
    told(convert("to_hf", "--source", run_dir, "--out", tmp_path / "hf"))
    there, ours = AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf").eval(), model_of(run_dir)
    assert isinstance(ours, Transformer)
    facts = CorpusFacts.read(run_dir)
    names = facts.classes if name == "classification" else facts.values
    assert tuple(there.config.id2label.values()) == names
    assert there.config.problem_type == problem
    assert (
        names == (tuple(sorted(WORDS)) if name == "classification" else names) and len(names) == ours.config.n_classes
    )
    text = "red green blue"
    tokens = tokens_of(run_dir, text)
    with torch.no_grad():
        logits = ours.class_logits(ours.hidden(tokens))[0]
    judge = pipeline("text-classification", model=str(tmp_path / "hf"), top_k=None)
    scores: Any = {one["label"]: one["score"] for one in judge([text])[0]}
    expected = logits.softmax(0) if name == "classification" else logits
    torch.testing.assert_close(torch.tensor([scores[each] for each in names]), expected, rtol=1e-5, atol=1e-5)

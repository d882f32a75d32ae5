"""Documents of two parts: answers that are learnt in their context, and targets beside their sources."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scaletrain.config.batch_plan import FILLING
from scaletrain.data.chat import ChatEncoder, ChatTemplate
from scaletrain.data.packing import IGNORED
from scaletrain.data.rows import next_tokens
from scaletrain.data.tokenizer import END_OF_TEXT, train_byte_level_bpe
from scaletrain.model.build import build_model
from scaletrain.tasks.seq2seq import Seq2SeqTask
from scaletrain.tasks.sft import SFTTask
from scaletrain.tasks.task import Sampling
from tests.tasks.made_rows import EOS, TEXT, rows, setting


def pairs_of(lengths: list[tuple[int, int]], width: int, sequences: list[int] | None = None):
    """Rows of one pair each, with lengths of both parts; each ends with EOS, as a build writes them."""
    made = rows([[source + target] for source, target in lengths], width, sequences)
    parts = np.zeros(made.tokens.shape, dtype=np.uint8)
    for row, (source, target) in enumerate(lengths):
        parts[row, source : source + target] = 1
        if source:
            made.tokens[row, source - 1] = EOS
    return type(made)(**{**made.__dict__, "parts": parts})


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=5), st.randoms())
def test_sources_and_targets_stand_side_by_side(lengths: list[tuple[int, int]], order) -> None:
    task = Seq2SeqTask(setting({"name": "seq2seq"}, {"n_encoder_layers": 1}, parts=True))
    numbers = list(range(len(lengths)))
    order.shuffle(numbers)
    made = pairs_of([*[lengths[n] for n in numbers], (1, 0)], 40, [*numbers, FILLING])
    collated = task.collate(made, 0)
    source, mask, tokens, targets = (collated.inputs[key] for key in ("source", "source_mask", "tokens", "targets"))
    assert source.shape[1] % 16 == tokens.shape[1] % 16 == 0
    for row, number in enumerate(numbers):
        n_source, n_target = lengths[number]
        stored = made.tokens[row].astype(np.int64).tolist()
        assert source[row, :n_source].tolist() == stored[:n_source] and mask[row].sum() == n_source
        assert mask[row, :n_source].all()
        target = stored[n_source : n_source + n_target]
        assert tokens[row, :n_target].tolist() == [EOS, *target[:-1]]
        assert targets[row].tolist() == target + [IGNORED] * (targets.shape[1] - n_target)
        assert collated.targets_B[row] == n_target
    assert collated.targets_B[-1] == 0 and (targets[-1] == IGNORED).all() and mask[-1].sum() == 1


def test_a_source_is_asked_as_it_is_learnt_and_its_text_ends_where_learned_positions_do() -> None:
    made = setting({"name": "seq2seq", "beams": 2}, {"n_encoder_layers": 1, "max_seq_len": 16}, parts=True)
    borders, words = replace(made.corpus.borders, bos_id=5), made.tokenizer.encode("the fox").ids
    model = build_model(made.model)
    sources: list[list[int]] = []
    encode = model.encode
    model.encode = lambda source, mask: encode(source, sources.append(source[0].tolist()))
    task = Seq2SeqTask(replace(made, corpus=replace(made.corpus, borders=borders)))
    assert isinstance(task.sample(model, "the fox", Sampling(50, 0.0, seed=0, max_context=16, agree=int)), str)
    assert sources == [[5, *words, EOS]]


def test_figures_of_texts_are_told_with_what_they_depend_on() -> None:
    model = {"n_encoder_layers": 1}
    told = {
        kind: Seq2SeqTask(setting({"name": "seq2seq", "text_metrics": kind}, model, parts=True)).judged_by
        for kind in ("none", "bleu", "rouge")
    }
    assert told["none"] == {} and set(told["bleu"]) == {"eval/bleu", "eval/chrf"}
    assert set(told["rouge"]) == {"eval/rouge1", "eval/rouge2", "eval/rougeL"}
    assert "tok:13a" in told["bleu"]["eval/bleu"]


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=4), st.integers(0, 99))
def test_answers_are_learnt_and_nothing_else(pieces: list[list[int]], seed: int) -> None:
    made = rows(pieces, 36)
    parts = np.random.default_rng(seed).integers(0, 2, made.tokens.shape).astype(np.uint8)
    made = type(made)(**{**made.__dict__, "parts": parts})
    task = SFTTask(setting({"name": "sft"}, {}, parts=True))
    collated, plain = task.collate(made, 0), next_tokens(made)
    for row in range(len(pieces)):
        for place in range(36):
            expected = plain.inputs["targets"][row, place] if parts[row, place + 1] else IGNORED
            assert collated.inputs["targets"][row, place] == expected
    assert collated.targets_B.tolist() == (collated.inputs["targets"] != IGNORED).sum(1).tolist()
    for key in ("tokens", "documents", "positions"):
        found, wanted = collated.inputs[key], plain.inputs[key]
        assert (found is None and wanted is None) or torch.equal(found, wanted)


@pytest.mark.parametrize("template", ["chatml", "llama3", "plain", None])
def test_a_prompt_is_what_stands_before_an_answer_that_was_learnt(template: str | None) -> None:
    source = None if template is None else ChatTemplate.load(template).source
    special = ("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    words = train_byte_level_bpe(TEXT, 300, special)
    made = setting({"name": "sft"}, {}, parts=True, chat_template=source)
    task = SFTTask(replace(made, tokenizer=words))
    tokens, ends = task.prompt("the fox")
    named = {words.id_to_token(end) for end in ends}
    if source is None:
        assert tokens == [*words.encode("the fox").ids, EOS] and named == {END_OF_TEXT}
        return
    conversation = [{"role": "user", "content": "the fox"}, {"role": "assistant", "content": "jumps"}]
    learnt = ChatEncoder(ChatTemplate(source), words, made.corpus.borders).encode(conversation)
    assert tokens == [token for token, part in zip(learnt.tokens, learnt.parts, strict=True) if not part]
    answer = [token for token, part in zip(learnt.tokens, learnt.parts, strict=True) if part]
    assert answer[len(words.encode("jumps").ids)] in ends
    assert named == {END_OF_TEXT, *{"chatml": ["<|im_end|>"], "llama3": ["<|eot_id|>"], "plain": []}[str(template)]}

"""tools/generate.py with what each task has learnt: conversations, sources, and what writes nothing."""

import io
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoTokenizer

from scaletrain.checkpoint.weights import load_weights
from scaletrain.config.load import load_config
from scaletrain.data.tokenizer import load_tokenizer
from scaletrain.evaluation.beam_search import Search, search_texts
from scaletrain.model.build import build_model
from tests.tools.trained import CONTEXT, TOOLS, Tool, TrainedRuns

GREEDY = ("--temperature", "0", "--max_new_tokens", "6")
EOS = 0


def likeliest(run: Path, text: str) -> str:
    """What a causal model makes of a text, token by token and without a cache."""
    tokenizer, model = load_tokenizer(run / "tokenizer.json"), build_model(load_config(run / "config.yaml", {}).model)
    model.load_state_dict(load_weights(run / "checkpoints"))
    tokens = tokens_of(run, text)
    made: list[int] = []
    with torch.no_grad():
        for _ in range(6):
            made.append(int(model.eval()(torch.tensor([tokens + made]))[0, -1].argmax()))
    return str(tokenizer.decode(made[: made.index(EOS)] if EOS in made else made))


def tokens_of(run: Path, text: str) -> list[int]:
    """A text with the name of the token that ends a document in its places."""
    tokenizer = load_tokenizer(run / "tokenizer.json")
    pieces = [tokenizer.encode(piece, add_special_tokens=False).ids for piece in text.split("<|endoftext|>")]
    return [token for number, piece in enumerate(pieces) for token in ([EOS] if number else []) + piece]


def test_a_turn_is_answered_as_the_template_asks(trained: TrainedRuns, tool: Tool) -> None:
    run = trained.run("sft").run_dir
    answer = likeliest(run, "### User:\nred one\n\n### Assistant:\n")
    for flag in ("--chat", "--prompt"):  # samples of evaluations are rendered the same way
        assert tool("generate.py", "--run_dir", str(run), flag, "red one", *GREEDY) == (0, answer + "\n", "")


def test_samples_of_a_run_are_what_its_user_is_answered(trained: TrainedRuns, tool: Tool) -> None:
    run = trained.run("sft")
    events = EventAccumulator(str(run.run_dir / "tb")).Reload()
    shown = events.Tensors("text/samples/text_summary")[-1].tensor_proto.string_val[0].decode()
    judged = load_config(run.run_dir / "config.yaml", {})
    drawn = ("--seed", str(judged.seed), "--temperature", str(judged.eval.temperature))
    arguments = ("--run_dir", str(run.run_dir), "--chat", "red", *drawn)
    answer = tool("generate.py", *arguments, "--max_new_tokens", str(judged.eval.sample_tokens))[1]
    assert judged.eval.prompts == ("red",)
    # As a block of Markdown that is shown as it is, without the line's end at which the tool stops.
    assert shown == "\n".join("    " + line for line in ("red\n" + answer[:-1]).splitlines())


def test_turns_are_remembered(trained: TrainedRuns, tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained.run("sft").run_dir
    monkeypatch.setattr(sys, "stdin", io.StringIO("a\n\nb"))
    code, out, err = tool("generate.py", "--run_dir", str(run), "--chat", *GREEDY)
    first = likeliest(run, "### User:\na\n\n### Assistant:\n")
    asked = f"### User:\na\n\n### Assistant:\n{first}<|endoftext|>\n\n### User:\nb\n\n### Assistant:\n"
    assert len(tokens_of(run, asked)) + 6 <= CONTEXT, "all of it is seen"
    assert (code, out, err) == (0, f"{first}\n{likeliest(run, asked)}\n", "")


def test_what_no_longer_fits_is_left_out_and_told(
    trained: TrainedRuns, tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained.run("sft").run_dir
    monkeypatch.setattr(sys, "stdin", io.StringIO("red cats run fast " * 8 + "\nblue"))
    code, out, err = tool("generate.py", "--run_dir", str(run), "--chat", "--temperature", "0")
    assert code == 0 and "no more than the last turns" in err
    monkeypatch.setattr(sys, "stdin", io.StringIO("blue"))
    alone = tool("generate.py", "--run_dir", str(run), "--chat", "--temperature", "0")[1]
    assert out.endswith(alone)


def test_a_message_that_is_no_text_ends_one_turn_only(
    trained: TrainedRuns, tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained.run("sft").run_dir
    monkeypatch.setattr(sys, "stdin", io.StringIO("a\ufdd0\nred one"))
    code, out, err = tool("generate.py", "--run_dir", str(run), "--chat", *GREEDY)
    assert (code, out) == (0, likeliest(run, "### User:\nred one\n\n### Assistant:\n") + "\n")
    assert "U+FDD0" in err
    code, out, err = tool("generate.py", "--run_dir", str(run), "--chat", "a\ufdd0", *GREEDY)
    assert (code, out) == (2, "") and "U+FDD0" in err


@pytest.mark.slow
def test_a_conversation_on_a_terminal_ends_with_ctrl_d(trained: TrainedRuns) -> None:
    run = trained.run("sft").run_dir
    answer = likeliest(run, "### User:\nred one\n\n### Assistant:\n")
    ours, theirs = pty.openpty()
    command = [sys.executable, str(TOOLS / "generate.py"), "--run_dir", str(run), "--chat", *GREEDY]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True) as process:
        os.close(theirs)
        try:
            assert "Ctrl-D ends" in read_until(ours, "> ")
            os.write(ours, b"red one\n")
            shown = read_until(ours, "\r\n> ")
            # The terminal shows what is typed, and ends lines in its own way.
            assert answer.replace("\n", "\r\n") in shown.partition("red one\r\n")[2]
            os.write(ours, b"\x04")
            assert process.wait(60) == 0
        finally:
            process.kill()
            os.close(ours)


def read_until(descriptor: int, end: str) -> str:
    shown, deadline = b"", time.monotonic() + 120
    while end not in shown.decode(errors="replace"):
        left = deadline - time.monotonic()
        assert left > 0 and select.select([descriptor], [], [], left)[0], shown
        shown += os.read(descriptor, 1 << 16)
    return shown.decode(errors="replace")


@pytest.mark.parametrize("name", ["seq2seq", "lstm"])
def test_a_source_becomes_the_likeliest_text(name: str, trained: TrainedRuns, tool: Tool) -> None:
    run = trained.run(name).run_dir
    model = build_model(load_config(run / "config.yaml", {}).model)
    model.load_state_dict(load_weights(run / "checkpoints"))
    source = torch.tensor([[*tokens_of(run, "red one"), EOS]])
    found = search_texts(model.eval(), source, None, Search(12, EOS, EOS, beams=4))
    expected = load_tokenizer(run / "tokenizer.json").decode(found[0])
    arguments = ("--run_dir", str(run), "--prompt", "red one", "--max_new_tokens", "12")
    assert tool("generate.py", *arguments) == (0, expected + "\n", "")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("seq2seq", ["--prompt", "a", "--seed", "3"], "--seed 3 is for texts that are drawn"),
        ("seq2seq", ["--chat", "a"], "has not learnt from conversations"),
        ("causal_lm", ["--chat"], "has not learnt from conversations"),
        ("classification", ["--prompt", "a"], "use python tools/predict.py"),
        ("masked_lm", ["--prompt", "a"], "use python tools/predict.py"),
        ("sft", [], "give one of --prompt"),
        ("sft", ["--chat", "a", "--prompt", "b"], "give one of --prompt"),
    ],
)
def test_what_a_task_does_not_write_is_said(
    name: str, arguments: Sequence[str], message: str, trained: TrainedRuns, tool: Tool
) -> None:
    code, out, err = tool("generate.py", "--run_dir", str(trained.run(name).run_dir), *arguments)
    assert (code, out) == (2, "") and message in err


def test_the_template_goes_out_with_the_weights(trained: TrainedRuns, tool: Tool, tmp_path: Path) -> None:
    run = trained.run("sft").run_dir
    assert tool("convert.py", "to_hf", "--source", str(run), "--out", str(tmp_path / "hf"))[0] == 0
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
    asked = theirs.apply_chat_template([{"role": "user", "content": "red one"}], add_generation_prompt=True)
    assert asked["input_ids"] == tokens_of(run, "### User:\nred one\n\n### Assistant:\n")

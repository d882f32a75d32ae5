"""tools/generate.py as a user meets it: text on standard output, or a message and exit code 2."""

import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from scaletrain.checkpoint.commit import commit
from scaletrain.checkpoint.layout import STATE, folder_name, partial_name
from scaletrain.checkpoint.records import checksum
from scaletrain.checkpoint.writing import write_part
from scaletrain.config.load import dump_yaml, load_config
from scaletrain.config.schema import ModelConfig, RunConfig, TrainConfig
from scaletrain.data.tokenizer import find_borders, load_tokenizer, train_byte_level_bpe
from scaletrain.evaluation.generation import generate
from scaletrain.model.transformer import Transformer
from scaletrain.protocols import Fragment, SavedPart

TOOL = Path(__file__).parents[2] / "tools" / "generate.py"
Tool = Callable[..., tuple[int, str, str]]
ODD_PROMPTS = ["1e5", "[1,2]", "naïve 😀 <|endoftext|>"]


@pytest.fixture
def tool(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Tool:
    """Calls the tool in this process, which has imported torch already."""
    monkeypatch.syspath_prepend(str(TOOL.parent))
    tool = runpy.run_path(str(TOOL))

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [str(TOOL), *arguments])
        try:
            code = tool["run_tool"](TOOL.name, tool["parse"], tool["run"])
        except SystemExit as ending:
            code = int(ending.code or 0)
        return code, *capsys.readouterr()

    return call


def save(run_dir: Path, step: int, model: Transformer) -> None:
    """Writes a checkpoint as one rank without ZeRO does."""
    partial, name = run_dir / "checkpoints" / partial_name(step), "mp_rank_00_model_states.pt"
    partial.mkdir(parents=True)
    weights = {f"model.{name}": weight.detach() for name, weight in model.named_parameters()}
    fragments = [Fragment(key, 0, weight.numel(), 0, 0) for key, weight in weights.items()]
    shapes = {key: list(weight.shape) for key, weight in weights.items()}
    tied = {"model.output.weight": "model.embedding.weight"}
    part = SavedPart({name: {"module": weights}}, name, fragments, {"zero_stage": 0, "shapes": shapes, "tied": tied})
    records = write_part(partial, 0, part, {STATE: json.dumps({"engine": part.state})})
    commit(partial, run_dir / "checkpoints" / folder_name(step), records)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train_byte_level_bpe(["def main():\n    return 1\n"], vocab_size=270).save(str(folder / "tokenizer.json"))
    (folder / "corpus.json").write_text(json.dumps({"eos_id": 0, "bos_id": None}))
    config = RunConfig(
        run_dir=folder,
        model=ModelConfig(vocab_size=272, d_model=32, n_layers=2, n_heads=2, max_seq_len=64, init_std=0.3),
        train=TrainConfig(max_seq_len=16),
    )
    (folder / "config.yaml").write_text(dump_yaml(config))
    for step in (5, 10):
        torch.manual_seed(step)
        save(folder, step, Transformer(config.model))
    return folder


@pytest.mark.parametrize("prompt", ODD_PROMPTS)
def test_any_prompt_is_text_and_is_continued(run_dir: Path, tool: Tool, prompt: str) -> None:
    code, text, _ = tool("--run_dir", str(run_dir), "--prompt", prompt, "--max_new_tokens", "8")
    assert code == 0 and text.startswith(prompt) and len(text) > len(prompt) + 1


def test_it_prints_what_the_model_of_that_step_says(run_dir: Path, tool: Tool) -> None:
    tokenizer = load_tokenizer(run_dir / "tokenizer.json")
    config = load_config(run_dir / "config.yaml", {}).model
    printed = {}
    for step in (5, 10):
        torch.manual_seed(step)
        model = Transformer(config)
        tokens = generate(
            model,
            tokenizer.encode("def ", add_special_tokens=False).ids,
            12,
            temperature=0,
            ends={find_borders(tokenizer).eos_id},
            max_context=16,
        )
        arguments = ["--step", str(step)] if step == 5 else []  # 10 is the newest
        options = (f"--run_dir={run_dir}", "--prompt=def ", "--temperature=0", "--max_new_tokens=12")
        printed[step] = tool(*options, *arguments)[1]
        assert printed[step] == "def " + tokenizer.decode(list(tokens)) + "\n"
    assert printed[5] != printed[10]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--run_dir", "no/such/run"], "--run_dir no/such/run holds no config.yaml"),
        (["--step", "7"], "7"),
        (["--temperature", "hot"], "--temperature hot is not a number"),
        (["--max_new_tokens", "1.5"], "--max_new_tokens 1.5 is not a whole number"),
        (["--top_p", "2"], "top_p = 2.0"),
        (["--prompt", ""], "no tokens"),
        (["--temperatur", "1"], "--temperatur"),
        (["--trust_checkpoint", "yes"], "--trust_checkpoint yes: expected true or false"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_said(run_dir: Path, tool: Tool, wrong: list[str], message: str) -> None:
    code, out, err = tool("--run_dir", str(run_dir), "--prompt", "a", *wrong)
    assert (code, out) == (2, "") and message in err


def test_only_a_trusted_checkpoint_may_hold_other_classes(run_dir: Path, tool: Tool, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run_dir, folder)
    path = folder / "checkpoints" / folder_name(10) / "mp_rank_00_model_states.pt"
    content = torch.load(path) | {"made_by": Fraction(1, 3)}
    torch.save(content, path)
    # As whoever made it would: with its checksums.
    (partial := path.parents[1] / partial_name(10)).mkdir()
    for file in ("mp_rank_00_model_states.pt", "fragments_00000.json", STATE):
        shutil.copy(path.parent / file, partial / file)
    commit(partial, path.parent, {file.name: checksum(file) for file in partial.iterdir()})
    arguments = ("--run_dir", str(folder), "--prompt", "a", "--max_new_tokens", "2")
    code, out, err = tool(*arguments)
    assert (
        (code, out) == (2, "")
        and "fractions.Fraction" in err
        and "give --trust_checkpoint to train.py, generate.py or convert.py" in err
    )
    code, out, err = tool(*arguments, "--trust_checkpoint")
    assert (code, err) == (0, "") and out.startswith("a")


def test_help_names_the_options() -> None:
    result = subprocess.run([sys.executable, str(TOOL), "--help"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0
    assert all(option in result.stdout + result.stderr for option in ("--run_dir", "--prompt", "--top_p", "--step"))

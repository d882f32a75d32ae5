"""tools/convert.py as a user types it, on a run of two ranks with ZeRO-3 and on models of transformers."""

import contextlib
import io
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from scaletrain.checkpoint.layout import list_checkpoints
from tests.convert import saving_bodies
from tests.convert.small_disk import small_disk
from tests.convert.tiny_models import save, tokenizer
from tests.distributed import run_on_ranks
from tests.engine.bodies import Case
from tests.integration.runs import python

TOOL = Path(__file__).parents[2] / "tools" / "convert.py"
LLAMA = {"positions": "rotary", "norm": "rms_norm", "activation": "swiglu", "bias": False}


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def convert(*words: str | Path) -> Done:
    """Runs the tool in this process, which has loaded torch already."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as end,
    ):
        patch.setattr(sys, "argv", [str(TOOL), *map(str, words)])
        patch.syspath_prepend(str(TOOL.parent))
        runpy.run_path(str(TOOL), run_name="__main__")
    return Done(end.value.code or 0, out.getvalue(), err.getvalue())


def test_a_checkpoint_names_no_enumeration(run_dir: Path) -> None:
    """Python 3.11.0 to 3.11.3 would pickle its members as calls of getattr, which weights_only refuses."""
    files = sorted(list_checkpoints(run_dir / "checkpoints")[0].glob("*_optim_states.pt"))
    assert len(files) == 2
    for file in files:
        with zipfile.ZipFile(file) as archive:
            (pickled,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
            assert b"ZeroStageEnum" not in archive.read(pickled)


def told(done: Done) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "mine"
    case = Case(stage=3, model={"vocab_size": 320, "d_model": 32, "n_heads": 4, **LLAMA})
    run_on_ranks(2, saving_bodies.train_and_save, case, str(folder), 3)
    tokenizer().save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.slow
def test_out_and_in_and_out_again(run_dir: Path, tmp_path: Path) -> None:
    out = told(convert("to_hf", "--source", run_dir, "--out", tmp_path / "hf"))
    assert "arg max agrees in 100.00%" in out and "a llama model" in out
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "| steps | 3 |" in card and "trained with scaletrain" in card
    assert json.loads((tmp_path / "hf" / "scaletrain.json").read_text())["zero_stage"] == 3
    out = told(convert("from_hf", "--source", tmp_path / "hf", "--out", tmp_path / "start"))
    assert "--init" in out
    told(convert("to_hf", "--source", tmp_path / "start", "--out", tmp_path / "again", "--verify", "false"))
    assert not convert("diff", "--a", tmp_path / "hf", "--b", tmp_path / "again").returncode
    assert not convert("diff", "--a", f"{run_dir}@3", "--b", tmp_path / "start").returncode
    assert told(convert("average", "--source", f"{run_dir},{run_dir}@3", "--out", tmp_path / "mean"))
    assert not convert("diff", "--a", run_dir, "--b", tmp_path / "mean").returncode
    told(convert("to_hf", "--source", run_dir, "--out", tmp_path / "half", "--dtype", "bf16", "--processes", "2"))
    differing = convert("diff", "--a", tmp_path / "hf", "--b", tmp_path / "half")
    assert differing.returncode == 1 and "bf16" in differing.stdout
    done = convert("diff", "--a", tmp_path / "hf", "--b", tmp_path / "half", "--tolerance", "0.01")
    assert done.returncode == 0, done.stdout
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "half").config.num_hidden_layers == 2


def test_a_file_and_its_content(run_dir: Path, tmp_path: Path) -> None:
    told(convert("consolidate", "--source", run_dir, "--out", tmp_path / "weights.safetensors"))
    told(convert("to_gguf", "--source", run_dir, "--out", tmp_path / "model.gguf", "--dtype", "fp32"))
    told(convert("universal", "--source", run_dir, "--out", tmp_path / "universal"))
    assert (tmp_path / "universal" / "latest_universal").is_file()
    seen = {}
    for name in (run_dir, tmp_path / "weights.safetensors", tmp_path / "model.gguf"):
        seen[name.suffix] = json.loads(told(convert("inspect", "--source", name, "--json_output")))
    numbers = sum(tensor.numel() for tensor in load_file(tmp_path / "weights.safetensors").values())
    assert seen[""]["parameters"] == seen[".safetensors"]["parameters"] == seen[".gguf"]["parameters"] == numbers
    assert (seen[""]["step"], seen[""]["zero_stage"], seen[""]["config"]["d_model"]) == (3, 3, 32)
    table = told(convert("inspect", "--source", run_dir))
    assert "blocks.*.attention.q.weight        2 x  [32, 32]" in table
    assert "  output.weight is embedding.weight\n" in table


def spoil_complete(folder: Path) -> None:
    (folder / "COMPLETE").unlink()


def spoil_rank(folder: Path) -> None:
    next(folder.glob("*rank_1*optim_states.pt")).unlink()


def spoil_state(folder: Path) -> None:
    (folder / "state.json").write_text("{")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_complete, "holds no intact checkpoint"),
        (spoil_rank, "optim_states.pt is missing"),
        (spoil_state, "state.json has 1 bytes instead of"),
    ],
)
@pytest.mark.parametrize("verb", ["to_hf", "universal"])
def test_a_damaged_checkpoint_is_told_and_leaves_nothing(
    run_dir: Path, tmp_path: Path, verb: str, spoil: object, message: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    assert callable(spoil)
    spoil(list_checkpoints(copy / "checkpoints")[0])
    done = convert(verb, "--source", copy, "--out", tmp_path / "out")
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("to_hf", "--source", "RUN", "--out", "THERE"), "exists already; give another"),
        (("to_hf", "--source", "RUN", "--out", "out", "--dtype", "int8"), "--dtype int8 is no type"),
        (("to_hf", "--source", "RUN", "--out", "out", "--family", "gpt5"), "model_type 'gpt5' is none"),
        (("to_hf", "--source", "RUN", "--out", "out", "--family", "gpt2"), "gpt2: positions = rotary"),
        (("to_hf", "--source", "RUN", "--out", "out", "--step", "7"), "step 7 has no checkpoint"),
        (("to_hf", "--source", "RUN", "--out", "out", "--processes", "0"), "--processes 0 is out of range"),
        (("to_hf", "--source", "nowhere", "--out", "out"), "nowhere is no folder"),
        (("from_hf", "--source", "RUN", "--out", "out"), "holds no config.json"),
        (("average", "--source", "RUN", "--out", "out"), "give two or more"),
        (("inspect", "--source", "FILE", "--step", "3"), "is no run, so that it has no step 3"),
        (("diff", "--a", "RUN", "--b", "nowhere"), "nowhere is no folder"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    run_dir: Path, tmp_path: Path, arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    places = {"RUN": str(run_dir), "THERE": str(tmp_path / "there"), "FILE": str(run_dir / "tokenizer.json")}
    done = convert(arguments[0], *(places.get(each, each) for each in arguments[1:]))
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_full_disk_is_told_and_leaves_nothing(run_dir: Path, tmp_path: Path) -> None:
    save("llama", tmp_path / "there")
    with small_disk(tmp_path / "disk", 1) as disk:
        (disk / "filler").write_bytes(bytes(900_000))
        for verb, source in (("from_hf", tmp_path / "there"), ("to_hf", run_dir), ("to_gguf", run_dir)):
            done = convert(verb, "--source", source, "--out", disk / "out", "--dtype", "fp32")
            assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
            assert "are free" in done.stderr, done.stderr
            assert [path.name for path in disk.iterdir()] == ["filler"]


@pytest.mark.slow
def test_a_process_of_its_own_ends_with_the_code(run_dir: Path, tmp_path: Path) -> None:
    for place, code in ((run_dir, 0), (tmp_path, 2)):
        assert python(TOOL, "inspect", "--source", place).returncode == code


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_conversion_begins_anew(run_dir: Path, tmp_path: Path, number: int) -> None:
    out = tmp_path / "hf"
    command = [sys.executable, str(TOOL), "to_hf", "--source", str(run_dir), "--out", str(out)]
    # A child of pytest may have been told to ignore Ctrl-C.
    process = subprocess.Popen(
        command, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler), stderr=subprocess.DEVNULL
    )
    draft = out.with_name(".hf.partial")
    deadline = time.monotonic() + 60
    while not (draft / "model.safetensors").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, number)
    assert process.wait(60) != 0
    assert not out.exists()
    assert draft.exists() == (number == signal.SIGKILL)
    told(convert("to_hf", "--source", run_dir, "--out", out))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]

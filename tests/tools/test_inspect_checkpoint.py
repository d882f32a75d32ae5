"""tools/inspect_checkpoint.py on checkpoints that a real engine of two ranks wrote, whole, damaged and unfinished."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scaletrain.checkpoint.commit import commit
from scaletrain.checkpoint.inspection import Place, find_places, ranks_missing, summarise
from scaletrain.checkpoint.layout import COMPLETE, CONFIG, FILES, STATE, folder_name, partial_name
from scaletrain.checkpoint.records import checksum
from scaletrain.checkpoint.weights import read_weights
from scaletrain.launch.run_dir import local_folder
from tests.distributed import run_on_ranks
from tests.engine import bodies
from tests.engine.bodies import Case

TOOL = Path(__file__).parents[2] / "tools" / "inspect_checkpoint.py"


def tool(run_dir: Path, *flags: str, python: tuple[str, ...] = ()) -> tuple[int, str, str]:
    command = [sys.executable, *python, str(TOOL), "--run_dir", str(run_dir), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the steps 10 and 20 complete, step 30 being written, and step 5 half deleted."""
    run_dir = tmp_path_factory.mktemp("run")
    checkpoints = run_dir / "checkpoints"
    saved = run_dir / "saved"
    run_on_ranks(2, bodies.train, Case(stage=2, precision="bf16", steps=(0, 1), save=str(saved)))
    training = {"step": 10, "sequences": 80, "optimizer_steps": 9, "target_tokens": 2000, "skipped": []}
    for step in (10, 20):
        partial = checkpoints / partial_name(step)
        shutil.copytree(saved, partial)
        state = json.loads((partial / STATE).read_text()) | {"training": training | {"step": step}}
        (partial / STATE).write_text(json.dumps(state))
        (partial / CONFIG).write_text("train: {precision: bf16}\n")
        commit(partial, checkpoints / folder_name(step), {file.name: checksum(file) for file in partial.iterdir()})
    (checkpoints / partial_name(30)).mkdir()
    (checkpoints / partial_name(30) / "some.pt").write_bytes(bytes(5000))
    (checkpoints / folder_name(5)).mkdir()
    return run_dir


def test_the_table_lists_every_folder_without_torch(run_dir: Path) -> None:
    code, out, err = tool(run_dir, python=("-X", "importtime"))
    assert code == 0 and "torch" not in err
    head, *rows = [line.split("  ") for line in out.splitlines()]
    assert [cell.strip() for cell in head if cell] == (
        ["step", "where", "complete", "written", "size", "stage", "ranks", "precision", "what is wrong"]
    )
    told = {row[0]: [cell.strip() for cell in row if cell.strip()] for row in rows}
    assert list(told) == ["20", "10", "5", "partial_step_00000030"]
    assert told["20"][1:3] == ["shared", "yes"] and told["20"][5:] == ["2", "2", "bf16", "-"]
    assert told["5"][2] == "no" and told["5"][-1].startswith("COMPLETE is missing")
    assert told["partial_step_00000030"][2] == "no" and told["partial_step_00000030"][4] == "4.9 KiB"
    assert told["partial_step_00000030"][-1].startswith("unfinished")


@pytest.mark.slow
def test_the_details_are_those_of_the_files(run_dir: Path) -> None:
    folder = run_dir / "checkpoints" / folder_name(20)
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    weights = read_weights(folder)
    parameters = sum(weight.numel() for name, weight in weights.items() if name != "output.weight")
    code, out, _ = tool(run_dir, "--step", "newest")
    assert code == 0 and out.startswith(f"{folder}  ") and "intact by its sizes" in out
    for name, size in sizes.items():
        assert f"{size:>16,}  {name}\n" in out
    total = sum(sizes.values())
    assert f"{total:>16,}  bytes, {total / parameters:.2f} a parameter" in out
    assert f"{parameters:,} parameters" in out and "  norm " not in out
    for key, value in {"step": 20, "sequences": 80, "optimizer_steps": 9, "zero_stage": 2, "world_size": 2}.items():
        assert f"  {key:<16}  {value}\n" in out
    assert "101x30  model.embedding.weight\n" in out
    assert "tied  model.output.weight is model.embedding.weight" in out
    assert tool(run_dir, "--step")[1] == out and tool(run_dir, "--step", "20")[1] == out
    assert f"  {'step':<16}  10\n" in tool(run_dir, "--step", "10")[1]

    code, out, _ = tool(run_dir, "--step", "20", "--verify")
    assert code == 0 and "\nintact\n" in out
    norm = float(torch.linalg.vector_norm(weights["embedding.weight"].double()))
    assert f"model.embedding.weight  norm {norm:.6g}\n" in out


def test_damage_is_found_and_told(run_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    path = copy / "checkpoints" / folder_name(20) / "mp_rank_00_model_states.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert tool(copy)[0] == 0  # sizes alone do not show it
    code, out, _ = tool(copy, "--verify")
    assert code == 1 and f"{path.name} has another checksum than when it was saved" in out
    code, out, _ = tool(copy, "--step", "20", "--verify")
    assert code == 1 and f"damaged: {path.name} has another checksum" in out
    os.truncate(path, 100)
    code, out, _ = tool(copy)
    assert code == 1 and f"{path.name} has 100 bytes instead of" in out
    (copy / "checkpoints" / folder_name(10) / STATE).write_text("{")
    code, out, err = tool(copy, "--step", "10")
    assert code == 2 and f"{STATE} cannot be read: it is no JSON: Expecting" in err and "Error" not in err


def test_without_an_intact_checkpoint_a_check_fails(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    assert tool(tmp_path)[:2] == (0, "no checkpoint\n")
    (tmp_path / "checkpoints" / folder_name(5)).mkdir()
    code, out, _ = tool(tmp_path)
    assert code == 0 and "COMPLETE is missing" in out
    code, out, _ = tool(tmp_path, "--verify")
    assert code == 1 and "no complete checkpoint is intact" in out


def test_a_folder_with_the_name_of_another_step_is_told(run_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(run_dir / "checkpoints" / folder_name(10), tmp_path / folder_name(40))
    (summary,) = summarise(find_places(tmp_path), "sizes")
    assert summary.is_complete and str(summary.damage).startswith(f"{STATE} is that of step 10")


def test_the_nodes_own_checkpoints_are_listed(run_dir: Path, tmp_path: Path) -> None:
    copy, local_dir = tmp_path / "copy", tmp_path / "disk"
    shutil.copytree(run_dir, copy)
    (copy / "run_id").write_text(json.dumps({"id": "0123456789abcdef", "path": str(copy)}))
    (copy / "config.yaml").write_text(f"checkpoint: {{local_dir: {local_dir}}}\n")
    own = local_folder(local_dir, "0123456789abcdef")
    shared = find_places(copy)[0]
    assert find_places(copy) == [Place("shared", copy / "checkpoints"), Place("local", own)]
    assert {summary.where for summary in summarise(find_places(copy), "sizes")} == {"shared"}
    own.mkdir(parents=True)
    part = shutil.copytree(shared.folder / folder_name(20), own / partial_name(25))
    state = json.loads((part / STATE).read_text())
    (part / STATE).write_text(json.dumps(state | {"training": state["training"] | {"step": 25}}))
    next(part.glob("fragments_00001.json")).unlink()  # as if the second rank ran on another node
    names = {file.name for file in part.iterdir()} - {FILES, COMPLETE}
    commit(part, own / folder_name(25), {name: checksum(part / name) for name in names})
    shutil.copytree(shared.folder / folder_name(20), own / folder_name(20))
    found = summarise(find_places(copy), "sizes")
    assert [(s.step, s.where) for s in found[:3]] == [(25, "local"), (20, "shared"), (20, "local")]
    code, out, _ = tool(copy)
    assert code == 0 and out.splitlines()[1].split()[:3] == ["25", "local", "yes"]
    assert f"local: {own}, local to this node" in out
    assert ranks_missing(own / folder_name(25)) == 1 and ranks_missing(own / folder_name(20)) == 0
    code, out, _ = tool(copy, "--step", "25", "--verify")
    assert code == 0 and "\nintact\n" in out
    assert "a node's part: the files of 1 ranks are on other nodes" in out and "  norm " not in out


def test_a_bare_folder_of_checkpoints_is_taken(run_dir: Path) -> None:
    (place,) = find_places(run_dir / "checkpoints")
    assert place == Place("given", run_dir / "checkpoints")
    assert [summary.step for summary in summarise([place], "full")] == [20, 10, 5, None]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--step", "7"), "has no complete checkpoint of that step; there are: 20, 10."),
        (("--step", "last"), "--step last is not a whole number"),
        (("--verify", "perhaps"), "--verify perhaps: expected true or false"),
        (("--run_dir",), "--run_dir needs a folder"),
        (("--run_dir", "no/such"), "no/such/checkpoints is no folder"),
    ],
)
def test_what_cannot_be_done_is_said(run_dir: Path, flags: tuple[str, ...], message: str) -> None:
    code, out, err = tool(run_dir, *flags)
    assert (code, out) == (2, "") and message in err

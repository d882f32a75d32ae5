"""What plain DeepSpeed loads of a converted checkpoint is what was saved, bit for bit, on any stage and ranks."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from scaletrain.checkpoint.commit import commit
from scaletrain.checkpoint.fragments import FragmentReader, describe_fragments
from scaletrain.checkpoint.layout import list_checkpoints
from scaletrain.checkpoint.records import checksum
from scaletrain.convert.universal import to_universal
from scaletrain.errors import CheckpointError
from scaletrain.protocols import Fragment
from tests.convert import saving_bodies
from tests.distributed import run_on_ranks
from tests.engine.bodies import Case

CUT, END = 5, 8
UNTIED = {"tie_embeddings": False}


def saved(tmp_path: Path, case: Case, world_size: int, steps: int = CUT) -> Path:
    run_on_ranks(world_size, saving_bodies.train_and_save, case, str(tmp_path / "run"), steps)
    return list_checkpoints(tmp_path / "run" / "checkpoints")[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "on", "target", "to"),
    [
        pytest.param(Case(stage=3), 2, Case(stage=1), 3, marks=pytest.mark.thorough),
        pytest.param(Case(stage=0, model=UNTIED), 2, Case(stage=3, model=UNTIED), 3, marks=pytest.mark.thorough),
        (Case(stage=2, offload="optimizer"), 2, Case(stage=2), 1),
        pytest.param(
            Case(stage=1, precision="bf16"), 2, Case(stage=3, precision="bf16"), 4, marks=pytest.mark.thorough
        ),
        pytest.param(Case(stage=1), 4, Case(stage=2, offload="optimizer"), 3, marks=pytest.mark.thorough),
        pytest.param(
            Case(stage=3, offload="all"), 2, Case(stage=3, offload="optimizer"), 1, marks=pytest.mark.thorough
        ),
        pytest.param(
            Case(stage=3, precision="bf16"), 4, Case(stage=2, precision="bf16"), 2, marks=pytest.mark.thorough
        ),
        pytest.param(Case(stage=2, model=UNTIED), 4, Case(stage=1, model=UNTIED), 2, marks=pytest.mark.thorough),
    ],
    ids=str,
)
def test_deepspeed_goes_on_with_it_as_the_run_would(
    source: Case, on: int, target: Case, to: int, tmp_path: Path
) -> None:
    checkpoint = saved(tmp_path, source, on)
    to_universal(checkpoint, tmp_path / "out", processes=2)
    steps = range(CUT, END)
    expected = run_on_ranks(to, saving_bodies.load_ours, target, str(checkpoint), steps)[0]
    arguments = (target, str(tmp_path / "out"), str(checkpoint), steps)
    for problems, losses in run_on_ranks(to, saving_bodies.load_universal, *arguments):
        assert problems == []
        assert losses == expected  # the same state in the same layout: nothing may differ


def test_a_checkpoint_before_the_first_update_has_moments_of_zero(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, Case(stage=3), 2, steps=0)
    to_universal(checkpoint, tmp_path / "out")
    arguments = (Case(stage=2), str(tmp_path / "out"), str(checkpoint), range(1, 3))
    results = run_on_ranks(2, saving_bodies.load_universal, *arguments)
    assert [problems for problems, _ in results] == [[], []]
    assert results[0][1] == run_on_ranks(2, saving_bodies.load_ours, Case(stage=2), str(checkpoint), range(1, 3))[0]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, pytest.param(3, marks=pytest.mark.thorough)])
def test_it_is_what_deepspeeds_own_conversion_writes(stage: int, tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, Case(stage=stage), 2)
    to_universal(checkpoint, tmp_path / "out")
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    folders = ["--input_folder", str(checkpoint), "--output_folder", str(tmp_path / "theirs")]
    environ = os.environ | {"DS_ACCELERATOR": "cpu"}
    done = subprocess.run([*command, *folders], env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    ours = tmp_path / "out" / (tmp_path / "out" / "latest_universal").read_text() / "zero"
    compared = 0
    for path in sorted((tmp_path / "theirs" / "zero").rglob("*.pt")):
        if path.name == "optimizer_state.pt" or path.parent.name == "model.output.weight":
            continue  # a tied tensor once more, which nobody reads
        theirs, own = torch.load(path), torch.load(ours / path.relative_to(tmp_path / "theirs" / "zero"))
        if isinstance(theirs, dict):
            theirs, shape = theirs["param"], own["param"].shape
            assert theirs.shape == shape
        own = own["param"] if isinstance(own, dict) else own
        assert theirs.flatten().equal(own.flatten()), path
        compared += 1
    assert compared == len(list(ours.rglob("*.pt"))) - 1 - (stage == 3) * len(list(ours.rglob("step.pt")))


def test_its_files_are_whole_archives(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, Case(stage=3), 2)
    to_universal(checkpoint, tmp_path / "out")
    files = list((tmp_path / "out").rglob("*.pt"))
    assert len(files) > 100
    assert [path for path in files if zipfile.ZipFile(path).testzip() is not None] == []
    state = json.loads((checkpoint / "state.json").read_text())["engine"]
    reader = FragmentReader(checkpoint, 3)
    for path in (path for path in files if path.name == "exp_avg.pt"):
        mapped = torch.load(path, mmap=True)["param"]
        assert list(mapped.shape) == state["shapes"][path.parent.name]
        assert mapped.flatten().equal(reader.read(path.parent.name, "exp_avg", 0, mapped.numel()))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: flip_a_bit(next(folder.glob("*rank_1*optim_states.pt"))),
            "optim_states.pt has another checksum",
        ),
        (lambda folder: next(folder.glob("*rank_1*optim_states.pt")).unlink(), "optim_states.pt is missing"),
        (lambda folder: (folder / "COMPLETE").unlink(), "cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_refused_before_anything_is_written(
    damage: object, message: str, tmp_path: Path
) -> None:
    checkpoint = saved(tmp_path, Case(stage=3), 2)
    assert callable(damage)
    damage(checkpoint)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=message):
        to_universal(checkpoint, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def test_a_nodes_part_is_refused(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, Case(stage=2), 2)
    part = tmp_path / "step_00000005"
    part.mkdir()
    kept = [path for path in checkpoint.iterdir() if "rank_1" not in path.name and path.name not in ("COMPLETE",)]
    for path in kept:
        if path.name not in ("files.json", "fragments_00001.json"):
            shutil.copy(path, part)
    publish(part)
    with pytest.raises(CheckpointError, match="files of 1 ranks are on other nodes"):
        to_universal(part, tmp_path / "out")


def test_another_optimizer_is_refused_with_its_moments(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, Case(stage=1, optim={"name": "sgd"}), 2)
    with pytest.raises(CheckpointError, match=r"momentum_buffer.*exp_avg.*consolidate"):
        to_universal(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_imported_weights_are_refused_since_they_have_no_moments(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, Case(stage=0), 1)
    state = json.loads((checkpoint / "state.json").read_text())
    state["engine"]["moments"] = []
    (checkpoint / "state.json").write_text(json.dumps(state))
    publish(checkpoint)
    with pytest.raises(CheckpointError, match=r"of no optimizer.*consolidate"):
        to_universal(checkpoint, tmp_path / "out")


@pytest.mark.parametrize("lost", ["param_groups", "ds_version"])
def test_files_without_what_the_optimizer_needs_are_refused(lost: str, tmp_path: Path) -> None:
    folder = tmp_path / "step_00000001"
    folder.mkdir()
    large_checkpoint(folder, 2048)
    (file,) = folder.glob("*optim_states.pt")
    content = torch.load(file)
    content.pop(lost, None)
    content["optimizer_state_dict"]["base_optimizer_state"].pop(lost, None)
    torch.save(content, file)
    publish(folder)
    with pytest.raises(CheckpointError, match=f"{lost}.*Choose another"):
        to_universal(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_that_lead_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, Case(stage=1), 1)
    text = (checkpoint / "state.json").read_text().replace("model.norm.weight", "../../model.norm.weight")
    (checkpoint / "state.json").write_text(text)
    publish(checkpoint)
    with pytest.raises(CheckpointError, match="names of folders"):
        to_universal(checkpoint, tmp_path / "out")


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def publish(folder: Path) -> None:
    """Makes a folder of files a complete checkpoint."""
    for name in ("files.json", "COMPLETE"):
        (folder / name).unlink(missing_ok=True)
    partial = folder.with_name(f"partial_{folder.name}")
    folder.rename(partial)
    commit(partial, folder, {path.name: checksum(path) for path in partial.iterdir()})


MEASURE = """
import sys
from pathlib import Path
from scaletrain.convert.universal import to_universal
import scaletrain.convert.copying, torch

def peak_mib():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024

torch.zeros(1).add_(1)
before = peak_mib()
to_universal(Path(sys.argv[1]), Path(sys.argv[2]))
print(peak_mib() - before)
"""


@pytest.mark.thorough
def test_memory_does_not_grow_with_the_largest_tensor(tmp_path: Path) -> None:
    folder = tmp_path / "step_00000001"
    folder.mkdir()
    numel = 100 << 20
    large_checkpoint(folder, numel)
    publish(folder)
    command = [sys.executable, "-c", MEASURE, str(folder), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    # One tensor has 400 MiB; 16 MiB are copied at a time, from a mapped file.
    assert float(done.stdout) < 150
    tag = (tmp_path / "out" / "latest_universal").read_text()
    for kind in ("fp32", "exp_avg", "exp_avg_sq"):
        path = tmp_path / "out" / tag / "zero" / "model.embedding.weight" / f"{kind}.pt"
        assert torch.load(path, mmap=True)["param"].shape == (numel // 1024, 1024)


def large_checkpoint(folder: Path, numel: int) -> None:
    """A checkpoint of ZeRO-1 on one rank with a single large tensor of zeros, which take no space on the disk."""
    flat = [torch.from_file(str(folder / "hole"), shared=True, size=numel) for _ in range(3)]
    (folder / "hole").unlink()
    base = {"state": {0: {"exp_avg": flat[1], "exp_avg_sq": flat[2], "step": torch.tensor(1.0)}}, "param_groups": [{}]}
    optimizer = {"single_partition_of_fp32_groups": flat[:1], "base_optimizer_state": base}
    file = "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"
    with torch.serialization.skip_data():
        torch.save({"optimizer_state_dict": optimizer, "ds_version": "0.19.8"}, folder / file)
    torch.save({"global_samples": 8, "skipped_steps": 0, "ds_version": "0.19.8"}, folder / "mp_rank_00_model_states.pt")
    name, text = describe_fragments(0, file, [Fragment("model.embedding.weight", 0, numel, 0, 0)])
    (folder / name).write_text(text)
    engine = {
        "zero_stage": 1,
        "world_size": 1,
        "applied_steps": 1,
        "global_steps": 1,
        "moments": ["exp_avg", "exp_avg_sq"],
        "shapes": {"model.embedding.weight": [numel // 1024, 1024]},
        "tied": {},
    }
    (folder / "state.json").write_text(json.dumps({"engine": engine, "training": {"step": 1}}))

"""Boxes of tensors arrive where they belong, cut into whatever slices."""

import functools
import json
import math
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from scaletrain.convert import copying
from scaletrain.convert.copying import copy_tensors, read_box, runs_of
from scaletrain.convert.output import new_folder
from scaletrain.convert.pairs import Copy, View, cut, row_major, whole
from scaletrain.convert.placing import lay_out_safetensors
from scaletrain.convert.safetensors_files import SafetensorsFolder
from scaletrain.convert.tensors import TensorInfo
from scaletrain.errors import CheckpointError, ConfigError
from tests.convert.small_disk import small_disk


def source_of(folder: Path, tensors: dict[str, torch.Tensor]) -> functools.partial:
    folder.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return functools.partial(SafetensorsFolder, folder)


shapes = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)


@settings(max_examples=150, deadline=None)
@given(shapes, st.data(), st.integers(1, 40))
def test_the_parts_of_a_copy_are_the_copy(shape: tuple[int, ...], data: st.DataObject, most: int) -> None:
    order = data.draw(st.permutations(range(len(shape))))
    permuted = tuple(shape[side] for side in order)
    strides = row_major(permuted)
    target = View("t", shape, tuple(strides[order.index(side)] for side in range(len(shape))))
    flat = torch.arange(math.prod(shape))
    result = torch.full_like(flat, -1)
    for part in cut(Copy(whole("s", shape), target), most):
        assert part.source.numel <= most
        box = flat.as_strided(part.source.shape, part.source.strides, part.source.offset)
        result.as_strided(part.target.shape, part.target.strides, part.target.offset).copy_(box)
        places = [place for start, length in runs_of(part.target) for place in range(start, start + length)]
        assert torch.equal(result[places], box.reshape(-1))
    assert torch.equal(result.view(permuted), flat.view(shape).permute(order))


@pytest.mark.parametrize("processes", [1, pytest.param(3, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_joined_and_transposed_tensors_arrive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, processes: int
) -> None:
    monkeypatch.setattr(copying, "_SLICE_ELEMENTS", 100)
    monkeypatch.setattr(copying, "_RELEASE_ELEMENTS", 250)
    monkeypatch.setattr(copying, "_WORK_ELEMENTS", 500)
    tensors = {name: torch.randn(40, 24) for name in ("q", "k", "v")}
    open_source = source_of(tmp_path / "source", tensors)
    # Input x output, and the three beside each other, as GPT-2 has them.
    copies = [
        Copy(whole(name, (40, 24)), View("qkv", (40, 24), (1, 120), 40 * place)) for place, name in enumerate("qkv")
    ]
    copies.append(Copy(whole("q", (40, 24)), whole("alone", (40, 24))))
    (tmp_path / "out").mkdir()
    infos = {"qkv": TensorInfo((24, 120), dtype), "alone": TensorInfo((40, 24), torch.float32)}
    places = lay_out_safetensors(tmp_path / "out", infos, 1 << 30, {"format": "pt"})
    copy_tensors(open_source, copies, places, processes)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(written["qkv"], torch.cat([tensors[name].mT for name in "qkv"], 1).to(dtype))
    assert torch.equal(written["alone"], tensors["q"])


def test_a_box_with_wide_gaps_is_read_run_by_run(tmp_path: Path) -> None:
    table = torch.arange(6000).view(60, 100)
    source = source_of(tmp_path, {"x": table})()
    box = read_box(source, View("x", (3, 60), (1, 100), 7))
    assert torch.equal(box, table[:, 7:10].mT)


def test_shards_hold_what_their_index_says(tmp_path: Path) -> None:
    tensors = {f"x{number}": torch.randn(10, 10) for number in range(5)} | {"big": torch.randn(30, 30)}
    open_source = source_of(tmp_path / "source", tensors)
    (tmp_path / "out").mkdir()
    infos = {name: TensorInfo(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    places = lay_out_safetensors(tmp_path / "out", infos, 1000, {})
    copy_tensors(
        open_source, [Copy(whole(name, info.shape), whole(name, info.shape)) for name, info in infos.items()], places
    )
    assert len(list((tmp_path / "out").glob("model-*-of-00004.safetensors"))) == 4
    back = SafetensorsFolder(tmp_path / "out")
    assert all(torch.equal(back.read(name, 0, tensor.numel()), tensor.view(-1)) for name, tensor in tensors.items())
    shard = next((tmp_path / "out").glob("model-00002-*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="it is cut off"):
        SafetensorsFolder(tmp_path / "out")


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", ""])
def test_an_index_leads_out_of_no_folder(tmp_path: Path, name: str) -> None:
    save_file({"x": torch.ones(2)}, tmp_path / "model.safetensors")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(CheckpointError, match="is refused"):
        SafetensorsFolder(folder)


def test_a_number_too_large_for_fp16_is_no_infinity(tmp_path: Path) -> None:
    open_source = source_of(tmp_path / "source", {"x": torch.tensor([1.0, 70_000.0])})
    (tmp_path / "out").mkdir()
    places = lay_out_safetensors(tmp_path / "out", {"x": TensorInfo((2,), torch.float16)}, 1 << 30, {})
    with pytest.raises(CheckpointError, match="x holds 70000, but fp16 ends at 65504"):
        copy_tensors(open_source, [Copy(whole("x", (2,)), whole("x", (2,)))], places)


def test_a_disk_without_room_is_told_before_anything_is_copied(tmp_path: Path) -> None:
    open_source = source_of(tmp_path / "source", {"x": torch.ones(2)})
    (tmp_path / "out").mkdir()
    # A file with a hole of four TiB.
    places = lay_out_safetensors(tmp_path / "out", {"x": TensorInfo((1 << 40,), torch.float32)}, 1 << 60, {})
    with pytest.raises(ConfigError, match="make room"):
        copy_tensors(open_source, [], places)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.thorough)])
def test_a_disk_that_others_fill_in_the_meantime_leaves_nothing(tmp_path: Path, processes: int) -> None:
    open_source = source_of(tmp_path / "source", {"x": torch.ones(1 << 20), "y": torch.ones(1 << 20)})
    with small_disk(tmp_path / "disk", 12) as disk:
        copies = [Copy(whole(name, (1 << 20,)), whole(name, (1 << 20,))) for name in "xy"]
        infos = {name: TensorInfo((1 << 20,), torch.float32) for name in "xy"}
        fills = functools.partial(fill_and_open, disk / "filler", open_source)
        full = pytest.raises(ConfigError, match=r"cannot be written: No space left on device; 0.00 GiB are free")
        with full, new_folder(disk / "out") as draft:
            copy_tensors(fills, copies, lay_out_safetensors(draft, infos, 1 << 30, {}), processes)
        assert [path.name for path in disk.iterdir()] == ["filler"]


def fill_and_open(filler: Path, open_source: functools.partial) -> SafetensorsFolder:
    filler.write_bytes(bytes(9 << 20))
    return open_source()


PEAK = """
import sys
from functools import partial
from pathlib import Path
import torch
from scaletrain.convert.copying import copy_tensors
from scaletrain.convert.pairs import Copy, View, whole
from scaletrain.convert.placing import lay_out_safetensors
from scaletrain.convert.safetensors_files import SafetensorsFolder
from scaletrain.convert.tensors import TensorInfo
source, out, rows = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
def peak_mib():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024
torch.zeros(1).add_(1)
before = peak_mib()
places = lay_out_safetensors(out, {"x": TensorInfo((1024, rows), torch.float32)}, 1 << 40, {})
copy = Copy(whole("x", (rows, 1024)), View("x", (rows, 1024), (1, rows)))
copy_tensors(partial(SafetensorsFolder, source), [copy], places)
print(peak_mib() - before)
"""


@pytest.mark.thorough
@pytest.mark.parametrize("mib", [64, 512])
def test_memory_does_not_depend_on_the_tensor(tmp_path: Path, mib: int) -> None:
    """One matrix, transposed."""
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    rows = mib * 256
    places = lay_out_safetensors(source, {"x": TensorInfo((rows, 1024), torch.float32)}, 1 << 40, {})
    with places["x"].path.open("r+b") as file:
        file.seek(places["x"].offset)
        for row in range(0, rows, 256):
            file.write(torch.full((256, 1024), float(row)).numpy().tobytes())
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(source), str(out), str(rows)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 130, done.stdout
    back = SafetensorsFolder(out)
    assert back.read("x", rows - 1, 1).item() == back.read("x", 1024 * rows - 1, 1).item() == rows - 256


class SlowTensors:
    """A tensor that takes a minute to read; each process that reads it leaves a file with its number."""

    infos = MappingProxyType({"x": TensorInfo((2,), torch.float32)})

    def __init__(self, readers: Path) -> None:
        self._readers = readers

    def read(self, name: str, start: int, numel: int) -> torch.Tensor:
        (self._readers / str(os.getpid())).touch()
        time.sleep(60)
        return torch.zeros(numel)

    def release(self) -> None:
        pass


def copy_slowly(folder: Path) -> None:
    (folder / "readers").mkdir(parents=True)
    places = lay_out_safetensors(folder, SlowTensors.infos, 1 << 30, {})
    parts = [Copy(View("x", (1,), (1,), place), View("x", (1,), (1,), place)) for place in (0, 1)]
    copy_tensors(functools.partial(SlowTensors, folder / "readers"), parts, places, processes=2)


def readers_in(folder: Path) -> list[psutil.Process]:
    deadline = time.monotonic() + 60
    while len(list((folder / "readers").glob("*"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return [psutil.Process(int(path.name)) for path in (folder / "readers").iterdir()]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.thorough)])
def test_no_process_outlives_the_one_that_began_it(tmp_path: Path, number: int) -> None:
    code = f"from pathlib import Path; from {__name__} import copy_slowly; copy_slowly(Path({str(tmp_path / 'out')!r}))"
    parent = subprocess.Popen(
        [sys.executable, "-c", code], preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler)
    )
    readers = readers_in(tmp_path / "out")
    parent.send_signal(number)
    assert parent.wait(20) != 0
    assert not psutil.wait_procs(readers, timeout=20)[1]


@pytest.mark.slow
def test_a_process_that_is_killed_is_told(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as thread:
        copied = thread.submit(copy_slowly, tmp_path / "out")
        readers_in(tmp_path / "out")[0].kill()
        with pytest.raises(ConfigError, match="ended from outside"):
            copied.result(30)


def test_what_fp16_cannot_hold_is_told_beside_an_infinity(tmp_path: Path) -> None:
    open_source = source_of(tmp_path / "source", {"x": torch.tensor([math.inf, 1e6])})
    places = lay_out_safetensors(tmp_path, {"x": TensorInfo((2,), torch.float16)}, 1 << 30, {})
    with pytest.raises(CheckpointError, match=r"x holds 1e\+06, but"):
        copy_tensors(open_source, [Copy(whole("x", (2,)), whole("x", (2,)))], places)

"""A checkpoint may come from a stranger: its files are read without running anything in them."""

import os
import pickle
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from scaletrain.checkpoint.fragments import FragmentReader, load_tensors
from scaletrain.checkpoint.weights import read_weights
from scaletrain.errors import CheckpointError
from tests.distributed import run_on_ranks
from tests.engine import bodies
from tests.engine.bodies import Case


class Malicious:
    """Makes a folder where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = str(mark)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self._mark,)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "one"
    run_on_ranks(2, bodies.train, Case(stage=2, steps=(0, 1), save=str(folder)))
    return folder


@pytest.fixture
def checkpoint(saved: Path, tmp_path: Path) -> Path:
    """A copy of a real checkpoint of two ranks, to spoil."""
    copy = tmp_path / "checkpoint"
    copy.mkdir()
    for file in saved.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert len(read_weights(copy)) > 10
    return copy


def shard_of(checkpoint: Path) -> Path:
    return next(checkpoint.glob("*zero_pp_rank_1*optim_states.pt"))


@pytest.mark.parametrize("format_of_torch", [True, False])
def test_a_pickle_with_code_is_refused_and_not_run(checkpoint: Path, tmp_path: Path, format_of_torch: bool) -> None:
    mark = tmp_path / "mark"
    content = {"optimizer_state_dict": {"single_partition_of_fp32_groups": [Malicious(mark)]}}
    path = shard_of(checkpoint)
    if format_of_torch:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    reason = "import and call posix.mkdir.*--trust_checkpoint" if format_of_torch else "only be used with files saved"
    with pytest.raises(CheckpointError, match=rf"{path.name} cannot be read: .*{reason}"):
        read_weights(checkpoint)
    assert not mark.exists()
    # The file is what it claims to be: whoever unpickles it without care runs its code.
    load_tensors(path, trusted=True) if format_of_torch else pickle.loads(path.read_bytes())
    assert mark.is_dir()


def test_a_trusted_checkpoint_may_hold_other_classes(checkpoint: Path) -> None:
    path = shard_of(checkpoint)
    content = load_tensors(path, trusted=True)
    content["made_by"] = Fraction(1, 3)
    torch.save(content, path.with_suffix(".new"))  # the tensors are mapped from the file itself
    os.replace(path.with_suffix(".new"), path)
    with pytest.raises(CheckpointError, match=r"it holds fractions\.Fraction, and nothing but"):
        read_weights(checkpoint)
    assert len(read_weights(checkpoint, trusted=True)) > 10


def test_a_missing_rank_is_noticed(checkpoint: Path) -> None:
    (checkpoint / "fragments_00001.json").unlink()
    with pytest.raises(CheckpointError, match="A rank's file is missing"):
        read_weights(checkpoint)


def test_a_damaged_description_is_noticed(checkpoint: Path) -> None:
    (checkpoint / "fragments_00001.json").write_text('{"file": ')
    with pytest.raises(CheckpointError, match=r"cannot be read.*Use an older checkpoint"):
        FragmentReader(checkpoint, 2)


def test_a_truncated_file_is_noticed(checkpoint: Path) -> None:
    path = shard_of(checkpoint)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(CheckpointError, match=f"{path.name} cannot be read"):
        load_tensors(path)


def test_any_range_of_a_tensor_can_be_read(checkpoint: Path) -> None:
    weights = read_weights(checkpoint)
    reader = FragmentReader(checkpoint, 2)
    # Two ranks hold a part each of the flattened parameters; a range may begin in one and end in the other.
    for name in reader.names:
        whole = weights[name.removeprefix("model.")].flatten()
        for first, numel in ((0, len(whole)), (len(whole) // 3, len(whole) // 2), (len(whole) - 1, 1)):
            found = reader.read(name, "weight", first, numel)
            assert found is not None and found.dtype == torch.float32
            assert found.equal(whole[first : first + numel])

"""Writes a checkpoint as DeepSpeed's universal one, which plain DeepSpeed loads on any number of ranks.

What comes out is what ``python -m deepspeed.checkpoint.ds_to_universal`` makes of DeepSpeed's own checkpoints, with
these differences: any ZeRO stage leads to one form, which stages 1, 2 and 3 load; tensors are copied in pieces; and the
numbers of groups of parameters that DeepSpeed would mix up are left to the engine (see ``_optimizer_state``).
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scaletrain.checkpoint.durable import write_text
from scaletrain.checkpoint.fragments import WEIGHT, FragmentReader, load_tensors
from scaletrain.checkpoint.inspection import ranks_missing
from scaletrain.checkpoint.layout import STATE
from scaletrain.checkpoint.verify import Level, find_damage
from scaletrain.checkpoint.writing import write_tensors
from scaletrain.convert.copying import copy_tensors
from scaletrain.convert.output import new_folder
from scaletrain.convert.pairs import Copy, whole
from scaletrain.convert.placing import Place
from scaletrain.convert.tensors import TensorInfo
from scaletrain.convert.torch_placing import lay_out_torch_file, seal_torch_file
from scaletrain.errors import CheckpointError

MOMENTS = ("exp_avg", "exp_avg_sq")
# DeepSpeed's name of each kind of tensor.
_KINDS = {"fp32": WEIGHT} | {moment: moment for moment in MOMENTS}
# Where an engine of stages 1 and 2, and one of stage 3, looks for what is no tensor.
_COUNTERS = ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt")
# Keys that lead to the torch optimizer's state in each stage's files.
_OPTIMIZERS = {
    0: ("optimizer",),
    1: ("optimizer_state_dict", "base_optimizer_state"),
    2: ("optimizer_state_dict", "base_optimizer_state"),
    3: ("optimizer_state_dict", "optimizer_state_dict"),
}


class TrainingTensors:
    """Weights and moments of a checkpoint, each by the path ``<parameter>/<DeepSpeed's name of the kind>``."""

    infos: Mapping[str, TensorInfo]

    def __init__(self, folder: Path, state: dict[str, Any], trusted: bool) -> None:
        """Opens a checkpoint.

        Args:
            folder: The checkpoint.
            state: The engine's part of its state.json.
            trusted: Whether objects of any class may be unpickled.
        """
        self._reader = FragmentReader(folder, state["zero_stage"], trusted)
        self._is_fresh = state["applied_steps"] == 0
        self.infos = {
            f"{name}/{kind}": TensorInfo(tuple(shape), torch.float32)
            for name, shape in state["shapes"].items()
            for kind in _KINDS
        }

    def read(self, name: str, start: int, numel: int) -> Tensor:
        """A range of a flattened tensor (numel,), fp32."""
        parameter, _, kind = name.rpartition("/")
        found = self._reader.read(parameter, _KINDS[kind], start, numel)
        if found is None and self._is_fresh and kind in MOMENTS:
            return torch.zeros(numel)  # what Adam begins with
        if found is None:
            raise CheckpointError(f"The checkpoint does not hold {kind} of {parameter}. Use an older checkpoint.")
        return found

    def release(self) -> None:
        """Gives mapped memory back."""
        self._reader.release()


def to_universal(checkpoint: Path, out: Path, processes: int = 1, trusted: bool = False, level: Level = "full") -> None:
    """Writes a checkpoint of any ZeRO stage and number of ranks as a universal one, in bounded memory.

    An engine whose configuration has ``"checkpoint": {"load_universal": true}`` loads it by
    ``engine.load_checkpoint(out)``. Its module must have the parameters' names of the module that was trained (the
    model's, with ``model.`` before them), its optimizer must be an Adam.

    DeepSpeed's loader for stage 3 (0.19.8) hands one and the same counter of steps to all parts of the optimizer, which
    then count it up once each. Torch's optimizers need a line after ``load_checkpoint`` that parts them::

        for state in engine.optimizer.optimizer.state.values():
            state["step"] = state["step"].clone()

    Args:
        checkpoint: A complete checkpoint; one of DeepSpeed's own files in it may hold any class if it is trusted.
        out: A new folder: ``latest_universal``, and the checkpoint's own folder that it names.
        processes: That copy at the same time.
        trusted: Whether objects of any class may be unpickled, which runs what the files say.
        level: How much of the checkpoint is compared with its checksums before.

    Raises:
        CheckpointError: The checkpoint is incomplete or damaged, or its optimizer was no Adam; nothing is written.
    """
    state = _require_whole(checkpoint, level)
    tensors = TrainingTensors(checkpoint, state["engine"], trusted)
    try:
        counters = _counters(checkpoint, state, trusted)
        optimizer = _optimizer_state(checkpoint, state["engine"], trusted)
    except (LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{checkpoint} does not hold what a training saves of its optimizer: {error!r}. Choose another checkpoint."
        ) from error
    tag = f"{checkpoint.resolve().name}_universal"
    with new_folder(out) as folder:
        zero = folder / tag / "zero"
        zero.mkdir(parents=True)
        places = {}
        for parameter in state["engine"]["shapes"]:
            (zero / parameter).mkdir()
            write_tensors(zero / parameter / "step.pt", _step(state["engine"]))
            for kind in _KINDS:
                name = f"{parameter}/{kind}"
                places[name] = lay_out_torch_file(zero / f"{name}.pt", "param", tensors.infos[name])
        write_tensors(zero / "optimizer_state.pt", optimizer)
        for name in _COUNTERS:
            write_tensors(folder / tag / name, counters)
        _copy(checkpoint, state["engine"], places, processes, trusted)
        write_text(folder / "latest_universal", tag)


def _copy(checkpoint: Path, engine: dict[str, Any], places: dict[str, Place], processes: int, trusted: bool) -> None:
    wholes = [whole(name, place.info.shape) for name, place in places.items()]
    copies = [Copy(tensor, tensor) for tensor in wholes]
    copy_tensors(partial(TrainingTensors, checkpoint, engine, trusted), copies, places, processes)
    for place in places.values():
        seal_torch_file(place)


def _require_whole(checkpoint: Path, level: Level) -> dict[str, Any]:
    """The content of state.json of a checkpoint that can be converted."""
    damage = find_damage(checkpoint, level)
    if damage is not None:
        raise CheckpointError(f"{checkpoint}: {damage}. Choose another checkpoint.")
    missing = ranks_missing(checkpoint)
    if missing:
        raise CheckpointError(
            f"{checkpoint} is a node's part of a checkpoint: the files of {missing} ranks are on other nodes. Take one "
            "from the run directory, or bring the nodes' folders together."
        )
    state: dict[str, Any] = json.loads((checkpoint / STATE).read_text())
    moments = tuple(state["engine"]["moments"])
    if moments != MOMENTS:
        raise CheckpointError(
            f"{checkpoint} holds the moments {', '.join(moments) or 'of no optimizer'}; a universal checkpoint is of "
            f"Adam's, {' and '.join(MOMENTS)}. Convert its weights alone, with consolidate."
        )
    frozen = FragmentReader(checkpoint, state["engine"]["zero_stage"]).frozen
    if frozen:
        raise CheckpointError(
            f"{checkpoint} has {len(frozen)} parameters that were not trained, of which there are no moments; a "
            "universal checkpoint is of a training of all. Convert its weights alone, with consolidate."
        )
    unsafe = [name for name in state["engine"]["shapes"] if Path(name).name != name]
    if unsafe:
        raise CheckpointError(f"{checkpoint} has parameters whose names are no names of folders: {unsafe[:3]}.")
    return state


def _step(engine: dict[str, Any]) -> Tensor:
    return torch.tensor(float(engine["applied_steps"]))


def _counters(checkpoint: Path, state: dict[str, Any], trusted: bool) -> dict[str, Any]:
    """What DeepSpeed's engine takes besides tensors; a caller gets the rest of it as its client state."""
    saved = load_tensors(sorted(checkpoint.glob("*mp_rank_00_model_states.pt"))[0], trusted)
    engine = state["engine"]
    return {
        "module": {},  # its weights are read from zero/
        "buffer_names": [],
        "optimizer": None,
        "lr_scheduler": None,
        "param_shapes": [{name: torch.Size(shape) for name, shape in engine["shapes"].items()}],
        "shared_params": dict(engine["tied"]),
        "global_steps": engine["global_steps"],
        "global_samples": int(saved["global_samples"]),
        "skipped_steps": int(saved["skipped_steps"]),
        "dp_world_size": engine["world_size"],
        "mp_world_size": 1,
        "ds_version": str(saved["ds_version"]),
        "scaletrain": state.get("training", {}),
    }


def _optimizer_state(checkpoint: Path, engine: dict[str, Any], trusted: bool) -> dict[str, Any]:
    """What DeepSpeed's optimizers take besides tensors.

    Stages 1 and 2 take each group's numbers (learning rate, weight decay) from its like in ``param_groups``. Stage 3
    gives all groups those of the first in ``optimizer_state_dict``; there stand only those in which all groups agree,
    so that its engine keeps its own of the others. The loss scale of fp16 begins anew: it is an object of DeepSpeed's.
    """
    file = json.loads(sorted(checkpoint.glob("fragments_*.json"))[0].read_text())["file"]
    saved: Any = load_tensors(checkpoint / file, trusted)
    version = str(saved["ds_version"])
    for key in _OPTIMIZERS[engine["zero_stage"]]:
        saved = saved[key]
    groups = [_plain_numbers(group, index) for index, group in enumerate(saved["param_groups"])]
    return {
        "ds_version": version,
        "param_groups": groups,
        "optimizer_state_dict": {"state": {0: {"step": _step(engine)}}, "param_groups": [_agreed(groups)]},
    }


def _plain_numbers(group: dict[str, Any], index: int) -> dict[str, Any]:
    plain = (bool, int, float, str, tuple, list, type(None))
    return {key: value for key, value in group.items() if isinstance(value, plain)} | {"params": [index]}


def _agreed(groups: Sequence[dict[str, Any]]) -> dict[str, Any]:
    shared = {key for key in groups[0] if all(group.get(key) == groups[0][key] for group in groups)}
    return {key: groups[0][key] for key in shared} | {"params": [0]}

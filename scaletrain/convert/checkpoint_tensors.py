"""The weights of a checkpoint of any ZeRO stage and number of ranks, read slice by slice."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from scaletrain.checkpoint.fragments import WEIGHT, FragmentReader
from scaletrain.checkpoint.layout import COMPLETE, CONFIG, STATE, list_checkpoints, step_of
from scaletrain.checkpoint.verify import find_damage, require_checkpoint
from scaletrain.config.load import load_config
from scaletrain.config.schema import LoraConfig, ModelConfig, TaskConfig
from scaletrain.convert.low_rank import add_product
from scaletrain.convert.tensors import TensorInfo
from scaletrain.errors import CheckpointError
from scaletrain.protocols import Step

_PREFIX = "model."  # of the task that a model is trained in
_A, _B = ".lora_A.weight", ".lora_B.weight"


class CheckpointTensors:
    """The weights of a checkpoint, by their names in the model; a tied one stands once.

    Where it holds adapters, the weights are those with what the adapters add, in fp32.

    Attributes:
        folder: The checkpoint.
        trusted: Whether objects of any class may be unpickled.
        infos: What there is, by name, in the stored type.
        tied: Further names of tensors, with the names they are stored under.
        state: The content of ``state.json``.
        kind: Which of its numbers are read.
        config: The model.
        task: What it was trained for.
        lora: The settings of its adapters.
        adapters: Names of the layers that have one.
        frozen: Names of what was not trained.
    """

    def __init__(self, folder: Path, trusted: bool = False, kind: str = WEIGHT) -> None:
        """Reads what the checkpoint says of itself.

        Args:
            folder: A complete checkpoint.
            trusted: Whether objects of any class may be unpickled, which runs what the files say.
            kind: ``weight``, or ``ema`` for the moving average of what was trained.

        Raises:
            CheckpointError: It is incomplete or damaged, as far as sizes tell, or has no moving average.
        """
        if not (folder / COMPLETE).exists():
            raise CheckpointError(f"{folder} is no complete checkpoint: {COMPLETE} is missing. Choose another one.")
        damage = find_damage(folder, "sizes")
        if damage is not None:
            raise CheckpointError(f"{folder}: {damage}. Choose another one.")
        self.folder, self.trusted, self.kind = folder, trusted, kind
        try:
            self.state = json.loads((folder / STATE).read_text())
            engine = self.state["engine"]
            self._reader = FragmentReader(folder, engine["zero_stage"], trusted)
            self.tied = {_name(name): _name(saved_as) for name, saved_as in engine["tied"].items()}
            stored = {
                _name(name): TensorInfo(tuple(shape), self._reader.dtype_of(name))
                for name, shape in engine["shapes"].items()
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{folder / STATE} cannot be read: {error}. Choose another checkpoint.") from None
        if kind != WEIGHT and not (kind in engine.get("moments", ()) and engine.get("applied_steps")):
            raise CheckpointError(f"{folder} has no moving average of its weights; optim.ema_decay makes one")
        config = load_config(folder / CONFIG, {})
        self.config: ModelConfig = config.model
        self.task: TaskConfig = config.task
        self.lora: LoraConfig = config.lora
        self.frozen = frozenset(map(_name, self._reader.frozen))
        self.adapters = tuple(name.removesuffix(_B) for name in stored if name.endswith(_B))
        self._factor_infos = {name: info for name, info in stored.items() if name.endswith((_A, _B))}
        self._held: tuple[str, Tensor, Tensor] | None = None
        merged = {f"{name}.weight" for name in self.adapters}
        self.infos: Mapping[str, TensorInfo] = {
            name: TensorInfo(info.shape, torch.float32) if name in merged else info
            for name, info in stored.items()
            if name not in self._factor_infos
        }

    def read(self, name: str, start: int, numel: int) -> Tensor:
        """Reads a range of a flattened tensor; see ``Tensors``."""
        layer = name.removesuffix(".weight")
        values = self._stored(name, start, numel)
        if layer in self.adapters and name.endswith(".weight"):
            if self._held is None or self._held[0] != layer:
                self._held = (layer, *self.factors(layer))
            add_product(values, start, self._held[2], self._held[1], self.lora.alpha / self.lora.rank)
        return values

    def factors(self, layer: str) -> tuple[Tensor, Tensor]:
        """The factors of a layer's adapter.

        Args:
            layer: One of ``adapters``.

        Returns:
            A (rank, in_features) and B (out_features, rank), fp32.
        """
        names = f"{layer}{_A}", f"{layer}{_B}"
        infos = [self._factor_infos[name] for name in names]
        a, b = (
            self._stored(name, 0, info.numel).float().view(info.shape) for name, info in zip(names, infos, strict=True)
        )
        return a, b

    def _stored(self, name: str, start: int, numel: int) -> Tensor:
        infos = self._factor_infos if name in self._factor_infos else self.infos
        kind = WEIGHT if name in self.frozen else self.kind
        flat = self._reader.read(_PREFIX + name, kind, start, numel, infos[name].dtype)
        assert flat is not None  # weights are always there, and averages once a step was taken
        return flat

    def release(self) -> None:
        """Unmaps the files."""
        self._reader.release()


def find_checkpoint(source: Path, step: Step | None = None) -> Path:
    """Finds the checkpoint that a user means.

    Args:
        source: A run directory, a folder of checkpoints, or one checkpoint.
        step: Which; the newest intact one by default.

    Returns:
        Its folder, an absolute path without links.

    Raises:
        CheckpointError: There is none, it is damaged as far as sizes tell, or ``source`` is one of another step.
    """
    if not source.is_dir():
        raise CheckpointError(f"{source} is no folder; give a run directory or a checkpoint")
    # Resolved, so that a link or "." leads to the run's tokenizer, which lies two folders above.
    source = source.resolve()
    if (source / COMPLETE).exists() or (source / STATE).exists():
        if step not in (None, step_of(source)):
            raise CheckpointError(f"{source} is one checkpoint, and not that of --step {step}; give its run directory")
        return source
    checkpoints = source / "checkpoints"
    if not checkpoints.is_dir() and not list_checkpoints(source):
        raise CheckpointError(
            f"{source} is neither a run directory, nor a folder of checkpoints, nor a checkpoint; give one of them"
        )
    return require_checkpoint(checkpoints if checkpoints.is_dir() else source, step, "sizes")


def _name(name: str) -> str:
    return name.removeprefix(_PREFIX)

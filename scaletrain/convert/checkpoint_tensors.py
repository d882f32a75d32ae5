"""The weights of a checkpoint of any ZeRO stage and number of ranks, read slice by slice."""

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from scaletrain.checkpoint.fragments import WEIGHT, FragmentReader
from scaletrain.checkpoint.layout import COMPLETE, CONFIG, STATE, list_checkpoints, step_of
from scaletrain.checkpoint.verify import find_damage, require_checkpoint
from scaletrain.config.load import load_config
from scaletrain.config.schema import ModelConfig
from scaletrain.convert.tensors import TensorInfo
from scaletrain.errors import CheckpointError

_PREFIX = "model."  # of the task that a model is trained in


class CheckpointTensors:
    """The weights of a checkpoint, by their names in ``Transformer``; a tied one stands once.

    Attributes:
        folder: The checkpoint.
        trusted: Whether objects of any class may be unpickled.
        infos: What there is, by name, in the stored type.
        tied: Further names of tensors, with the names they are stored under.
        state: The content of ``state.json``.
        config: The model.
    """

    def __init__(self, folder: Path, trusted: bool = False) -> None:
        """Reads what the checkpoint says of itself.

        Args:
            folder: A complete checkpoint.
            trusted: Whether objects of any class may be unpickled, which runs what the files say.

        Raises:
            CheckpointError: It is incomplete or damaged, as far as sizes tell.
        """
        if not (folder / COMPLETE).exists():
            raise CheckpointError(f"{folder} is no complete checkpoint: {COMPLETE} is missing. Choose another one.")
        damage = find_damage(folder, "sizes")
        if damage is not None:
            raise CheckpointError(f"{folder}: {damage}. Choose another one.")
        self.folder, self.trusted = folder, trusted
        try:
            self.state = json.loads((folder / STATE).read_text())
            engine = self.state["engine"]
            self._reader = FragmentReader(folder, engine["zero_stage"], trusted)
            self.tied = {_name(name): _name(saved_as) for name, saved_as in engine["tied"].items()}
            self.infos: Mapping[str, TensorInfo] = {
                _name(name): TensorInfo(tuple(shape), self._reader.dtype_of(name))
                for name, shape in engine["shapes"].items()
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{folder / STATE} cannot be read: {error}. Choose another checkpoint.") from None
        self.config: ModelConfig = load_config(folder / CONFIG, {}).model

    def read(self, name: str, start: int, numel: int) -> Tensor:
        """Reads a range of a flattened tensor; see ``Tensors``."""
        flat = self._reader.read(_PREFIX + name, WEIGHT, start, numel, self.infos[name].dtype)
        assert flat is not None  # weights, unlike moments, are always there
        return flat

    def release(self) -> None:
        """Unmaps the files."""
        self._reader.release()


def find_checkpoint(source: Path, step: int | None = None) -> Path:
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

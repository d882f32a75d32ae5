"""What stands in the header of a GGUF file."""

from pathlib import Path
from typing import Any

from scaletrain.errors import CheckpointError, ConfigError


class GgufTensors:
    """The header of a GGUF file.

    Attributes:
        metadata: Its keys with one number or text each.
        tensors: Name, shape, type and bytes of each tensor.
    """

    def __init__(self, path: Path) -> None:
        """Reads the header; the file is mapped, and no tensor is read.

        Raises:
            ConfigError: The package ``gguf`` is not installed.
            CheckpointError: It is no GGUF file.
        """
        try:
            import gguf
        except ImportError:
            raise ConfigError(
                f"{path} is a GGUF file, and the package gguf is not installed; pip install scaletrain[gguf]"
            ) from None
        try:
            reader = gguf.GGUFReader(path)
        except (OSError, ValueError, IndexError) as error:
            raise CheckpointError(f"{path} is no GGUF file: {error}. Copy it anew.") from None
        values = {key: field.contents() for key, field in reader.fields.items() if len(field.types) == 1}
        self.metadata: dict[str, Any] = {key: value for key, value in values.items() if not key.startswith("GGUF.")}
        # The format lists sides from the innermost one.
        self.tensors = [
            (tensor.name, tuple(map(int, reversed(tensor.shape))), tensor.tensor_type.name.lower(), int(tensor.n_bytes))
            for tensor in reader.tensors
        ]

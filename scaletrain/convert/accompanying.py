"""What lies in a Hugging Face folder beside the weights: configuration, tokenizer, code, texts."""

import json
import shutil
from pathlib import Path

from scaletrain.errors import CheckpointError

# Weights in any format. A copy of the old ones beside new ones would be loaded by some.
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx", ".ckpt", ".index.json")
_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def copy_other_files(source: Path, into: Path, dtype: str | None) -> list[str]:
    """Copies all files but weights and hidden ones, those in folders too.

    Args:
        source: Hugging Face folder.
        into: Folder that is being made.
        dtype: Of the new weights, as ``bf16``, which ``config.json`` is made to tell; None leaves it as it is.

    Returns:
        Paths of what was copied, relative to the folder.

    Raises:
        CheckpointError: A file cannot be copied, or ``config.json`` is none.
    """
    copied = []
    try:
        for path in sorted(source.rglob("*")):
            inside = path.relative_to(source)
            is_hidden = any(part.startswith(".") for part in inside.parts)
            if is_hidden or not path.is_file() or path.name.endswith(_WEIGHTS):
                continue
            (into / inside).parent.mkdir(parents=True, exist_ok=True)
            # The content: in the cache of a hub the files are links to elsewhere.
            shutil.copyfile(path, into / inside)
            copied.append(inside.as_posix())
        if dtype is not None:
            _tell_dtype(into / "config.json", _NAMES[dtype])
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{source} cannot be copied: {error}. Give a folder in the format of transformers."
        ) from None
    return copied


def _tell_dtype(path: Path, dtype: str) -> None:
    config = json.loads(path.read_text())
    # The key of transformers 5, and that of the versions before.
    key = "dtype" if "dtype" in config else "torch_dtype"
    config[key] = dtype
    path.write_text(json.dumps(config, indent=2) + "\n")

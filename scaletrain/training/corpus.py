"""Opens the corpus of a run; without torch, so that a mistake is told at once."""

import json
from pathlib import Path

from scaletrain.config.schema import RunConfig
from scaletrain.data.manifest import FILE_NAME, Manifest
from scaletrain.data.order import deal_to_lanes
from scaletrain.data.shards import ShardReader
from scaletrain.data.tokenizer import load_tokenizer, token_byte_lengths
from scaletrain.errors import ConfigError
from scaletrain.launch.identity import identity_of
from scaletrain.launch.run_dir import RunDirectory


def open_corpus(config: RunConfig) -> Manifest:
    """Opens the manifest, preparing an embedded corpus first where that was asked for.

    Args:
        config: The run's configuration, checked.

    Returns:
        The corpus.

    Raises:
        ConfigError: The tokenizer has more tokens than the model.
        DataError: The corpus cannot be used.
    """
    if config.data.manifest is not None:
        path = config.data.manifest
    else:
        # Here, since what writes shards brings torch with it, and who gives a manifest needs none of it.
        from scaletrain.data.embedded import prepare_python_stdlib

        path = prepare_python_stdlib(config.data.corpus_dir, config.model.vocab_size)
    return open_manifest(path, config.model.vocab_size)


def open_manifest(path: Path, vocab_size: int) -> Manifest:
    """Opens a manifest for a model.

    Args:
        path: The manifest.
        vocab_size: Rows of the model's embedding.

    Returns:
        The corpus.

    Raises:
        ConfigError: The tokenizer has more tokens than the model.
        DataError: The corpus cannot be used.
    """
    manifest = Manifest.open(path)
    for split in ("train", "validation"):
        manifest.split(split)
    if manifest.tokenizer.vocab_size > vocab_size:
        needed = manifest.tokenizer.vocab_size
        raise ConfigError(
            f"model.vocab_size is {vocab_size}, but the tokenizer of {path} has {needed} tokens. "
            f"Set --model.vocab_size {-(-needed // 64) * 64} or more."
        )
    return manifest


def check_corpus(config: RunConfig, manifest: Manifest) -> None:
    """Finds now what would otherwise be found when the engine is built, or in a worker hours later.

    Args:
        config: The run's configuration.
        manifest: The corpus.

    Raises:
        DataError: There are more lanes than shards, the tokenizer is not byte-level, or a shard does not match its
            index: every shard's index and edges are looked at.
    """
    deal_to_lanes([shard.tokens for shard in manifest.split("train")], config.data.num_lanes)
    token_byte_lengths(load_tokenizer(manifest.tokenizer_path))
    for split in manifest.splits:
        ShardReader.of_split(manifest, split).check()


def bind_folder(folder: RunDirectory, config: RunConfig, manifest: Manifest) -> list[str]:
    """Checks that a run's folder belongs to this run, and keeps in it what generation needs of the corpus. For rank 0.

    Args:
        folder: The run's folder, claimed.
        config: The run's configuration.
        manifest: The corpus.

    Returns:
        What changed since the start before, for people.

    Raises:
        ConfigError: The folder belongs to another run.
        DataError: A shard does not match its index.
    """
    check_corpus(config, manifest)
    found = folder.bind(identity_of(config, manifest.tokenizer.sha256, manifest.fingerprint))
    corpus = {
        "manifest": str(manifest.folder.absolute() / FILE_NAME),
        "fingerprint": manifest.fingerprint,
        "eos_id": manifest.tokenizer.eos_id,
        "bos_id": manifest.tokenizer.bos_id,
    }
    (folder.path / "corpus.json").write_text(json.dumps(corpus, indent=1) + "\n")
    (folder.path / "tokenizer.json").write_bytes(manifest.tokenizer_path.read_bytes())
    return [f"{change.key}: {change.old} -> {change.new}" for change in found]

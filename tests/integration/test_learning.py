"""The embedded default, in a short form, learns more than how often each token occurs."""

import math
from pathlib import Path

import numpy as np
import pytest

from scaletrain.data.manifest import Manifest
from scaletrain.data.shards import ShardReader
from scaletrain.monitors.jsonl_writer import read_metrics
from tests.integration.runs import TRAIN, python

VOCAB_SIZE = 512


def unigram_entropy(manifest: Manifest, split: str) -> float:
    """Entropy of the frequencies of a split's tokens, in nats: what knowing them alone could reach."""
    counts = np.zeros(manifest.tokenizer.vocab_size)
    reader = ShardReader(manifest, split)
    for shard in range(len(reader.shards)):
        for document, n_tokens in enumerate(reader.token_counts(shard)):
            counts += np.bincount(reader.tokens(shard, document, 0, int(n_tokens)), minlength=len(counts))
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def test_the_standard_library_is_learnt(tmp_path: Path) -> None:
    # The embedded default, smaller in every direction, since it has seconds and not minutes.
    flags = {
        "config": "configs/demo.yaml",
        "run_dir": tmp_path / "run",
        "data.corpus_dir": tmp_path / "data",
        "model.vocab_size": VOCAB_SIZE,
        "model.d_model": 128,
        "model.n_layers": 2,
        "train.max_steps": 60,
        "train.max_seq_len": 128,
        "train.compile": "false",
        "train.precision": "fp32",  # some processors only imitate bf16, ten times slower
        "optim.lr": 1e-2,
        "eval.every_steps": 0,
        "checkpoint.every_steps": 0,
    }
    arguments = [word for key, value in flags.items() for word in (f"--{key}", value)]
    result = python(TRAIN, *arguments, timeout_s=140)
    assert result.returncode == 0, result.stdout
    steps = read_metrics(tmp_path / "run" / "metrics.jsonl")
    losses = [step["train/loss"] for step in steps if "train/loss" in step]
    assert losses[0] == pytest.approx(math.log(VOCAB_SIZE), abs=0.1)
    manifest = Manifest.open(tmp_path / "data" / f"python_stdlib-{VOCAB_SIZE}")
    assert steps[-1]["eval/loss"] < unigram_entropy(manifest, "validation") - 0.5
    assert "tensorboard --logdir" in result.stdout and "def main(" in result.stdout  # what to do next, and a sample

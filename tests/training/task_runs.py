"""A tiny run of each task: examples that a real build makes, and the configuration of its run."""

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from scaletrain.corpus.build import BuildOptions, build_from_files
from scaletrain.corpus.documents import find_corpus
from scaletrain.corpus.examples import ExampleOptions
from tests.training.data_runs import DataRun

WORDS = ("red", "green", "blue", "one", "two", "three", "cats", "dogs", "run", "sleep", "fast", "slow")
CONFIG = """
run_dir: {run_dir}
seed: 5
deepspeed: configs/ds/zero1.json
model: {{vocab_size: 384, d_model: 16, n_layers: 2, n_heads: 2, max_seq_len: 64, init_std: 0.1}}
data: {{manifest: {base}/manifest.json, window_shards: 2, num_workers: 0}}
optim: {{lr: 3e-3, warmup_steps: 0, schedule: constant}}
train: {{max_seq_len: 48, global_batch_size: 6, micro_batch_size: 2, precision: fp32, max_steps: 6}}
eval: {{every_steps: 3, max_sequences: 7, sample_tokens: 4, max_texts: 5}}
checkpoint: {{every_steps: 3, keep_last: 9}}
log: {{every_steps: 100, writers: []}}
"""


def records(format: str, count: int = 60) -> Iterator[dict[str, object]]:
    """Examples with something to be learnt in them."""
    draw = random.Random(3)
    for number in range(count):
        words = draw.choices(WORDS, k=draw.randint(2, 9))
        text = " ".join(words)
        split = "validation" if number % 5 == 0 else "train"
        if format == "pairs":
            yield {"source": text, "target": " ".join(reversed(words)), "split": split}
        elif format == "chat":
            turns = [{"role": "user", "content": text}, {"role": "assistant", "content": words[-1]}]
            yield {"messages": turns * draw.randint(1, 2), "split": split}
        elif format == "classes":
            yield {
                "text": text,
                "text_pair": words[0],
                "label": words[0] if number > 11 else WORDS[number],
                "split": split,
            }
        elif format == "numbers":
            yield {"text": text, "value": [len(words), len(text) / 10], "split": split}
        else:
            yield {"text": text + "."}


@dataclass(frozen=True)
class Kind:
    """What a task is run with.

    Attributes:
        format: Of its records.
        overrides: Of the configuration.
        figures: Metrics of its evaluations besides the loss.
    """

    format: str
    overrides: Mapping[str, object] = field(default_factory=dict)
    figures: tuple[str, ...] = ()


_BIDIRECTIONAL = {"model.causal": False}
_TOGETHER = {"data.packing": "document"}
_OF_TEXT = ("eval/perplexity", "eval/bits_per_byte")
KINDS = {
    "causal_lm": Kind("text", {"task.name": "causal_lm", "eval.prompts": ["red"]}, _OF_TEXT),
    "masked_lm": Kind(
        "text",
        {"task.name": "masked_lm", "task.next_sentence": True, "model.n_classes": 2, "model.pooler": True}
        | {"model.n_segments": 2, **_BIDIRECTIONAL, **_TOGETHER},
        ("eval/perplexity", "eval/masked_accuracy", "eval/next_sentence_accuracy"),
    ),
    "seq2seq": Kind(
        "pairs",
        {"task.name": "seq2seq", "task.text_metrics": "bleu", "model.n_encoder_layers": 1, "eval.prompts": ["red"]}
        | _TOGETHER,
        (*_OF_TEXT, "eval/bleu", "eval/chrf"),
    ),
    "sft": Kind("chat", {"task.name": "sft", "eval.prompts": ["red"]}, _OF_TEXT),
    "classification": Kind(
        "classes",
        {"task.name": "classification", "task.class_weights": "balanced", "model.n_classes": 12, "model.n_segments": 2}
        | {"model.pooling": "mean", **_BIDIRECTIONAL, **_TOGETHER},
        ("eval/accuracy", "eval/macro_f1", "eval/ece"),
    ),
    "regression": Kind(
        "numbers",
        {"task.name": "regression", "model.n_classes": 2, "model.pooling": "last", **_TOGETHER},
        ("eval/mse", "eval/pearson", "eval/spearman", "eval/r2"),
    ),
    "lstm": Kind("pairs", {"task.name": "seq2seq", "model.kind": "lstm", "model.n_encoder_layers": 1} | _TOGETHER),
    "cnn": Kind("classes", {"task.name": "classification", "model.kind": "cnn", "model.n_classes": 12, **_TOGETHER}),
}


def build_examples(folder: Path, format: str) -> Path:
    """Builds a corpus of examples in two or more shards.

    Args:
        folder: To be made.
        format: Of the records.

    Returns:
        The folder of its manifest.
    """
    folder.mkdir(parents=True)
    file = folder / "records.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records(format)))
    template = "plain" if format == "chat" else None
    examples = None if format == "text" else ExampleOptions(format, chat_template=template)
    options = BuildOptions(300, source="made", validation_share=0.2, shard_tokens=400, examples=examples)
    build_from_files(find_corpus(file, examples=examples), folder / "corpus", options)
    return folder / "corpus"


class TaskRun(DataRun):
    """A run of a task in a folder of its own."""

    template = CONFIG

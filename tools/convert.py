"""Converts checkpoints: to Hugging Face and back, to one file, to GGUF, and what else is done with weights.

python tools/convert.py to_hf --source runs/demo --out out/demo
python tools/convert.py from_hf --source path/to/model --out out/start

Each verb has a --help of its own.
"""

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import fire
from fire_tool import run_tool
from typed_values import choice, not_negative, positive, split_step, step_number, truth, whole

Verb = TypeVar("Verb", bound=Callable[..., Any])

# fire has no types, and would take 2024_01 for a number.
strings: Callable[[Verb], Verb] = fire.decorators.SetParseFn(str)


@dataclass(frozen=True)
class Request:
    """What was asked for, checked as far as it can be without the weights."""

    run: Callable[[], int | None]


@strings
def to_hf(
    *,
    source: str,
    out: str,
    step: str | None = None,
    dtype: str | None = None,
    family: str | None = None,
    weights: str = "trained",
    shard_gb: str = "5",
    verify: str = "true",
    processes: str = "1",
    trust_checkpoint: str = "false",
) -> Request:
    """Writes a checkpoint as a Hugging Face folder, and proves that both compute the same.

    Args:
        source: A run directory, a folder of checkpoints, or one checkpoint.
        out: The new folder.
        step: Which checkpoint; the newest intact one by default.
        dtype: fp32, bf16 or fp16; as stored by default, which is fp32 for a training.
        family: Such as llama or gpt2; the first that has all of the model's features by default.
        weights: trained, or ema for their moving average.
        shard_gb: Most gigabytes of a file of weights.
        verify: Run both models layer by layer, and compare; needs transformers.
        processes: Processes that share the work.
        trust_checkpoint: Unpickle objects of any class in it: whoever wrote the checkpoint can run code here.
    """

    def run() -> None:
        from scaletrain.convert.checkpoint_tensors import CheckpointTensors, find_checkpoint
        from scaletrain.convert.tensors import parse_dtype
        from scaletrain.convert.to_hf import to_hf as convert

        kind = parse_dtype(dtype)
        checkpoint = CheckpointTensors(find_checkpoint(Path(source), found_step), trusts, kind_of)
        print(f"reads {checkpoint.folder}")
        written, proof = convert(checkpoint, Path(out), kind, family, count, shard_bytes, proves)
        for line in () if proof is None else proof.lines():
            print(line)
        print(f"wrote {out}, a {written.model_type} model: from_pretrained({out!r})")

    kind_of = choice("weights", weights, {"trained": "weight", "ema": "ema"})
    found_step, count = step_number(step), whole("processes", processes)
    proves, trusts = truth("verify", verify), truth("trust_checkpoint", trust_checkpoint)
    shard_bytes = int(positive("shard_gb", shard_gb) * 10**9)
    return Request(run)


@strings
def from_hf(*, source: str, out: str, dtype: str | None = None, verify: str = "true", processes: str = "1") -> Request:
    """Makes a start of a Hugging Face folder: give it to --init of a training, or to tools/generate.py.

    Args:
        source: A Hugging Face folder.
        out: The new folder.
        dtype: fp32, bf16 or fp16, in which the start is stored; as in the source by default.
        verify: Run both models layer by layer, and compare; needs transformers.
        processes: Processes that share the work.
    """

    def run() -> None:
        from scaletrain.convert.from_hf import from_hf as convert
        from scaletrain.convert.tensors import parse_dtype

        found, proof = convert(Path(source), Path(out), parse_dtype(dtype), count, proves)
        for line in () if proof is None else proof.lines():
            print(line)
        print(f"wrote {out}, from a {found.family.model_type} model; begin a run with it:")
        start = shlex.quote(out)
        print(f"  deepspeed scaletrain/train.py --config {start}/config.yaml --init {start} --run_dir runs/NAME ...")

    count, proves = whole("processes", processes), truth("verify", verify)
    return Request(run)


@strings
def consolidate(
    *,
    source: str,
    out: str,
    step: str | None = None,
    dtype: str = "fp32",
    processes: str = "1",
    trust_checkpoint: str = "false",
) -> Request:
    """Writes the weights of a checkpoint into one safetensors file, under the names that they have here.

    Args:
        source: A run directory, a folder of checkpoints, or one checkpoint.
        out: The new file.
        step: Which checkpoint; the newest intact one by default.
        dtype: fp32, bf16 or fp16.
        processes: Processes that share the work.
        trust_checkpoint: Unpickle objects of any class in it: whoever wrote the checkpoint can run code here.
    """

    def run() -> None:
        from scaletrain.convert.checkpoint_tensors import find_checkpoint
        from scaletrain.convert.consolidate import consolidate as convert

        convert(find_checkpoint(Path(source), found_step), Path(out), dtype, count, trusts)
        print(f"wrote {out}")

    found_step, count, trusts = (
        step_number(step),
        whole("processes", processes),
        truth("trust_checkpoint", trust_checkpoint),
    )
    return Request(run)


@strings
def universal(
    *, source: str, out: str, step: str | None = None, processes: str = "1", trust_checkpoint: str = "false"
) -> Request:
    """Writes a checkpoint in DeepSpeed's universal format, which plain DeepSpeed loads with load_universal.

    Args:
        source: A run directory, a folder of checkpoints, or one checkpoint.
        out: The new folder.
        step: Which checkpoint; the newest intact one by default.
        processes: Processes that share the work.
        trust_checkpoint: Unpickle objects of any class in it: whoever wrote the checkpoint can run code here.
    """

    def run() -> None:
        from scaletrain.convert.checkpoint_tensors import find_checkpoint
        from scaletrain.convert.universal import to_universal

        to_universal(find_checkpoint(Path(source), found_step), Path(out), count, trusts)
        print(f"wrote {out}; DeepSpeed loads it with {{'checkpoint': {{'load_universal': true}}}}")

    found_step, count, trusts = (
        step_number(step),
        whole("processes", processes),
        truth("trust_checkpoint", trust_checkpoint),
    )
    return Request(run)


@strings
def merge_lora(
    *,
    source: str,
    out: str,
    adapter: str | None = None,
    step: str | None = None,
    dtype: str | None = None,
    processes: str = "1",
) -> Request:
    """Adds a LoRA adapter to the model that it was trained on: one of PEFT, or those of a run.

    Args:
        source: Hugging Face folder of the model; or a run that trained adapters, which becomes a start for --init.
        out: The new folder.
        adapter: PEFT folder of the adapter: adapter_config.json and adapter_model.safetensors; none for a run.
        step: Which checkpoint of a run; the newest intact one by default.
        dtype: fp32, bf16 or fp16; as in the source by default.
        processes: Processes that share the work.
    """

    def run() -> None:
        if adapter is not None:
            from scaletrain.convert.lora import merge_lora as merge

            merge(Path(source), Path(adapter), Path(out), dtype, count)
        else:
            from scaletrain.convert.checkpoint_tensors import CheckpointTensors, find_checkpoint
            from scaletrain.convert.merging import merge_run
            from scaletrain.convert.tensors import parse_dtype

            checkpoint = CheckpointTensors(find_checkpoint(Path(source), found_step))
            merge_run(checkpoint, Path(out), parse_dtype(dtype), count)
        print(f"wrote {out}")

    count, found_step = whole("processes", processes), step_number(step)
    return Request(run)


@strings
def export_lora(
    *, source: str, out: str, step: str | None = None, base: str = "", family: str | None = None
) -> Request:
    """Writes the adapters of a run as a PEFT folder: what was trained, and nothing else.

    Args:
        source: A run directory, a folder of checkpoints, or one checkpoint.
        out: The new folder.
        step: Which checkpoint; the newest intact one by default.
        base: Name or folder of the model that PEFT is to load them on.
        family: Such as llama or gpt2, whose names are used; the first that has all of the model's features by default.
    """

    def run() -> None:
        from scaletrain.convert.adapter_export import export_adapter
        from scaletrain.convert.checkpoint_tensors import CheckpointTensors, find_checkpoint

        checkpoint = CheckpointTensors(find_checkpoint(Path(source), found_step))
        adapted = export_adapter(checkpoint, Path(out), base, family)
        print(f"wrote {out}, adapters of {len(adapted)} modules: PeftModel.from_pretrained(base, {out!r})")

    found_step = step_number(step)
    return Request(run)


@strings
def to_gguf(
    *,
    source: str,
    out: str,
    step: str | None = None,
    dtype: str = "fp16",
    tokenizer: str | None = None,
    processes: str = "1",
    trust_checkpoint: str = "false",
) -> Request:
    """Writes a checkpoint as a GGUF file, which llama.cpp runs: models of the Llama family, Qwen and GPT-2.

    Args:
        source: A run directory, a folder of checkpoints, or one checkpoint.
        out: The new file.
        step: Which checkpoint; the newest intact one by default.
        dtype: fp32, fp16 or bf16, of the matrices.
        tokenizer: The tokenizer.json; that of the run by default.
        processes: Processes that share the work.
        trust_checkpoint: Unpickle objects of any class in it: whoever wrote the checkpoint can run code here.
    """

    def run() -> None:
        from scaletrain.convert.checkpoint_tensors import find_checkpoint
        from scaletrain.convert.gguf_export import to_gguf as convert

        words = None if tokenizer is None else Path(tokenizer)
        convert(find_checkpoint(Path(source), found_step), Path(out), dtype, count, words, trusts)
        print(f"wrote {out}")

    found_step, count, trusts = (
        step_number(step),
        whole("processes", processes),
        truth("trust_checkpoint", trust_checkpoint),
    )
    return Request(run)


@strings
def average(*, source: str, out: str, weights: str | None = None, processes: str = "1") -> Request:
    """Makes a start of the mean of several checkpoints of one model.

    Args:
        source: Checkpoints with commas between them, such as runs/x@1000,runs/x@2000; a run alone means its newest.
        out: The new folder, for --init.
        weights: A number for each, with commas; equal ones by default.
        processes: Processes that share the work.
    """

    def run() -> None:
        from scaletrain.convert.average import average as convert
        from scaletrain.convert.checkpoint_tensors import find_checkpoint

        folders = [find_checkpoint(place, at) for place, at in map(split_step, source.split(","))]
        convert(folders, Path(out), shares, count)
        print(f"wrote {out}, the mean of {len(folders)} checkpoints: give it to --init")

    count = whole("processes", processes)
    shares = None if weights is None else [positive("weights", share) for share in weights.split(",")]
    return Request(run)


@strings
def inspect(*, source: str, step: str | None = None, json_output: str = "false") -> Request:
    """Tells what a checkpoint or a model holds; no tensor is read.

    Args:
        source: A run directory, a checkpoint, a Hugging Face folder, or a safetensors or GGUF file.
        step: Which checkpoint of a run; the newest intact one by default.
        json_output: Print one JSON object instead of a table.
    """

    def run() -> None:
        from scaletrain.convert.inspection import inspect as look

        seen = look(Path(source), found_step)
        print(json.dumps(seen.to_json(), indent=1) if as_json else "\n".join(seen.lines()))

    found_step, as_json = step_number(step), truth("json_output", json_output)
    return Request(run)


@strings
def diff(*, a: str, b: str, tolerance: str = "0") -> Request:
    """Compares two models tensor by tensor; exits 1 where they differ.

    Args:
        a: A run directory or RUN@STEP, a checkpoint, a Hugging Face folder, or a safetensors file.
        b: Another one, with the same names of tensors.
        tolerance: Differences up to this share of a tensor's largest value count as none.
    """

    def run() -> int:
        from scaletrain.convert.diff import diff as compare
        from scaletrain.convert.diff import lines
        from scaletrain.convert.open_tensors import open_tensors

        one, other = (open_tensors(*split_step(text)) for text in (a, b))
        differences = compare(one, other, bound)
        print("\n".join(lines(differences, (a, b))))
        return 0 if all(difference.agrees for difference in differences) else 1

    bound = not_negative("tolerance", tolerance)
    return Request(run)


VERBS = (to_hf, from_hf, consolidate, universal, merge_lora, export_lora, to_gguf, inspect, diff, average)

if __name__ == "__main__":
    sys.exit(run_tool("convert.py", {verb.__name__: verb for verb in VERBS}, lambda request: request.run()))

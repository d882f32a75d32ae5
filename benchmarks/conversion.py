"""What it costs to get weights out of a ZeRO-3 checkpoint, beside DeepSpeed's zero_to_fp32 and cp of the same bytes.

    python benchmarks/conversion.py --rounds 5

Each variant is a process of its own; all take turns. The checkpoints are made first, by two ranks.
"""

import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import fire
import torch.distributed as dist
import torch.multiprocessing as mp
from checkpoints import micro_batch
from conditions import print_conditions

from scaletrain.checkpoint.layout import list_checkpoints
from scaletrain.checkpoint.retention import Retention
from scaletrain.config.batch_plan import BatchPlan
from scaletrain.config.load import dump_yaml
from scaletrain.config.schema import ModelConfig, OptimConfig, RunConfig, TrainConfig
from scaletrain.launch.hang.heartbeat import Heartbeat
from scaletrain.planning.parameters import count_parameters
from scaletrain.protocols import TrainingState
from scaletrain.ranks import from_environment
from scaletrain.tasks.causal_lm import CausalLM
from scaletrain.training.build import build_engine
from scaletrain.training.checkpointing import Checkpointing
from scaletrain.training.loop import TrainingRun
from scaletrain.training.processes import connect
from scaletrain.training.saving import Saver
from scaletrain.training.tiers import Tier

ROOT = Path(__file__).parents[1]
RANKS = 2
LLAMA = {"positions": "rotary", "norm": "rms_norm", "activation": "swiglu", "bias": False, "vocab_size": 32768}
MODELS = {
    "100M": ModelConfig(d_model=768, n_layers=11, n_heads=12, d_ff=2048, max_seq_len=128, **LLAMA),
    "300M": ModelConfig(d_model=1024, n_layers=21, n_heads=16, d_ff=2816, max_seq_len=128, **LLAMA),
}
# Runs a script, or a function of ours, and tells the largest memory of this process and the seconds of the call alone.
MEASURE = """
import runpy, sys, time
from functools import partial
from pathlib import Path
def told(name):
    return next(int(l.split()[1]) // 1024 for l in Path("/proc/self/status").read_text().splitlines() if name in l)
bare = told("VmHWM")
import torch
with_torch = told("VmHWM")
kind, *arguments = sys.argv[1:]
sys.argv = arguments
if kind == "consolidate":
    from scaletrain.convert.consolidate import consolidate as convert
elif kind == "to_hf":
    from scaletrain.convert.checkpoint_tensors import CheckpointTensors
    from scaletrain.convert.to_hf import to_hf
    proves = arguments[2] == "true"
    convert = lambda source, out: to_hf(CheckpointTensors(source), out, proves=proves)
else:
    convert = None
start_s = time.perf_counter()
if convert is None:
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        assert not end.code, end.code
else:
    convert(Path(arguments[0]), Path(arguments[1]))
print("measured", time.perf_counter() - start_s, told("VmHWM") - bare, told("VmHWM") - with_torch)
"""


def make_checkpoint(rank: int, port: int, name: str, folder: str) -> None:
    """One rank of a step and a save."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(RANKS), LOCAL_WORLD_SIZE=str(RANKS))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    connect(from_environment(), deterministic=False, collective_timeout_s=600)
    train = TrainConfig(max_seq_len=128, global_batch_size=8, micro_batch_size=4, precision="bf16")
    zero3 = Path("configs/ds/zero3.json")
    config = RunConfig(model=MODELS[name], train=train, optim=OptimConfig(), deepspeed=zero3)
    engine = build_engine(config, BatchPlan(8, 4, RANKS), 1, partial(CausalLM, loss=config.loss), Heartbeat())
    batch = [micro_batch(rank, 0)]
    engine.train_step(batch, engine.agree(batch, ()).targets, 0, 1e-4)
    tier = Tier("shared", Path(folder) / "checkpoints", 1, Retention(1))
    run = TrainingRun(TrainingState(step=1), 1, Path(folder), 1, rank == 0, ())
    Checkpointing(Saver(engine, False, []), [tier], dump_yaml(config)).on_end(run)
    dist.barrier()
    dist.destroy_process_group()


def measured(*arguments: str) -> tuple[float, float, int, int]:
    """Seconds of a process, seconds of its work alone, and MiB above an interpreter, and above one with torch."""
    start_s = time.perf_counter()
    command = [sys.executable, "-c", MEASURE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    seconds = time.perf_counter() - start_s
    if done.returncode:
        raise SystemExit(done.stderr)
    work_s, above_bare, above_torch = done.stdout.splitlines()[-1].split()[1:]
    return seconds, float(work_s), int(above_bare), int(above_torch)


def copied(source: Path, target: Path) -> float:
    """Seconds of cp, and of forcing the copy to the disk."""
    start_s = time.perf_counter()
    subprocess.run(["cp", source, target], check=True)
    subprocess.run(["sync", target], check=True)
    return time.perf_counter() - start_s


def zero_to_fp32(checkpoint: Path, out: Path) -> tuple[float, float, int, int]:
    """DeepSpeed's own script, on the same files."""
    import deepspeed.utils.zero_to_fp32 as script

    arguments = (str(script.__file__), str(checkpoint.parent), str(out), "--tag", checkpoint.name)
    return measured("script", *arguments)


def run_rounds(folder: Path, checkpoint: Path, rounds: int) -> dict[str, list[tuple[float, ...]]]:
    """All variants in turns; the first round is left out."""
    found: dict[str, list[tuple[float, ...]]] = {}
    for number in range(rounds + 1):
        weights, out = folder / "weights.safetensors", folder / "hf"
        figures: dict[str, tuple[float, ...]] = {"consolidate": measured("consolidate", str(checkpoint), str(weights))}
        figures["cp and fsync"] = (copied(weights, folder / "copy"),) * 2
        weights.unlink()
        (folder / "copy").unlink()
        figures["to_hf --verify false"] = measured("to_hf", str(checkpoint), str(out), "false")
        shutil.rmtree(out)
        figures["to_hf"] = measured("to_hf", str(checkpoint), str(out), "true")
        shutil.rmtree(out)
        figures["zero_to_fp32"] = zero_to_fp32(checkpoint, out)
        shutil.rmtree(out, ignore_errors=True)
        for name, values in figures.items() if number else ():
            found.setdefault(name, []).append(values)
    return found


def print_table(found: dict[str, list[tuple[float, ...]]]) -> None:
    """Medians with the smallest and largest, and the ratio to cp of the same round."""
    print("| what | whole process, s | work alone, s | work / cp | MiB above Python | MiB above Python with torch |")
    print("|---|---|---|---|---|---|")
    copies = [values[0] for values in found["cp and fsync"]]
    for name, rows in found.items():
        whole, work = ([row[column] for row in rows] for column in (0, 1))
        ratio = statistics.median(one / other for one, other in zip(work, copies, strict=True))
        peaks = [str(max(row[column] for row in rows)) if len(rows[0]) > 2 else "" for column in (2, 3)]
        print(f"| {' | '.join([name, spread(whole), spread(work), f'{ratio:.2f}', *peaks])} |")


def spread(values: Sequence[float]) -> str:
    """Median, smallest and largest."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main(rounds: int = 5, folder: str | None = None) -> None:
    """Prints a page's list and tables.

    Args:
        rounds: Rounds of all variants, after one that is left out.
        folder: Where the files go; a temporary folder by default.
    """
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print_conditions("torch", "deepspeed", "safetensors", "transformers")
    for name, model in MODELS.items():
        with tempfile.TemporaryDirectory(dir=folder) as place:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            mp.spawn(make_checkpoint, (port, name, place), nprocs=RANKS)
            (checkpoint,) = list_checkpoints(Path(place) / "checkpoints")
            print(f"\n{name}: {count_parameters(model).total:,} parameters, ZeRO-3, {RANKS} ranks, fp32\n", flush=True)
            print_table(run_rounds(Path(place), checkpoint, rounds))


if __name__ == "__main__":
    fire.Fire(main)

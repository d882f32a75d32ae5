"""What documents cost in attention on a CPU: hidden by a mask, or attended one by one; beside none at all.

Times forward and backward passes, the variants in turns and each round on other borders.

    python benchmarks/attention_borders.py --rounds 7
"""

import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import fire
import torch
from torch import Tensor
from torch.nn import functional

from scaletrain.config.schema import ModelConfig
from scaletrain.model import attention
from scaletrain.model.document_attention import attend_within_documents
from scaletrain.model.losses import cross_entropy_terms
from scaletrain.model.transformer import Transformer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
VARIANTS = ("no borders", "mask", "by documents")
# As many tokens in each micro batch; heads as in the preset demo's family.
MICRO_BATCH_TOKENS, N_HEADS, HEAD_DIM = 4096, 6, 64
MODEL = {"vocab_size": 1024, "d_model": 384, "n_layers": 2, "n_heads": N_HEADS, "positions": "rotary"}

Step = Callable[[Tensor], None]


def draw_documents(n_rows: int, seq_len: int, mean_tokens: float, seed: int) -> Tensor:
    """Numbers of documents (B, T): a stream of documents of lognormal lengths (sigma 1), cut into rows."""
    generator = torch.Generator().manual_seed(seed)
    total = n_rows * seq_len
    lengths = (torch.randn(total, generator=generator) + math.log(mean_tokens) - 0.5).exp().clamp(min=1).long()
    offset = int(torch.randint(int(mean_tokens), (1,), generator=generator))
    stream = torch.arange(total).repeat_interleave(lengths.clamp(max=total))[offset : offset + total]
    rows = stream.view(n_rows, seq_len)
    return (rows - rows[:, :1]).int()


def attention_steps(n_rows: int, seq_len: int, dtype: torch.dtype) -> dict[str, Step]:
    """Attention alone, on heads as the projections leave them."""
    q, k, v, gradient = (
        torch.randn(n_rows, seq_len, N_HEADS, HEAD_DIM, dtype=dtype).transpose(1, 2).requires_grad_() for _ in range(4)
    )

    def masked(documents: Tensor) -> Tensor:
        visible = (documents.unsqueeze(-1) == documents.unsqueeze(-2)).tril().unsqueeze(1)
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=visible)

    attend: dict[str, Callable[[Tensor], Tensor]] = {
        "no borders": lambda _: functional.scaled_dot_product_attention(q, k, v, is_causal=True),
        "mask": masked,
        "by documents": lambda documents: attend_within_documents(q, k, v, documents),
    }
    return {name: lambda d, f=f: torch.autograd.grad(f(d), (q, k, v), gradient) for name, f in attend.items()}


def model_steps(n_rows: int, seq_len: int, dtype: torch.dtype, compiled: bool) -> dict[str, Step]:
    """A Transformer with its loss."""
    torch._dynamo.reset()
    model = Transformer(ModelConfig(**MODEL, max_seq_len=seq_len))
    call = torch.compile(model, dynamic=False, fullgraph=True) if compiled else model
    tokens = torch.randint(MODEL["vocab_size"], (n_rows, seq_len))

    def step(documents: Tensor | None, by_documents: bool) -> None:
        model.zero_grad()
        # dynamo holds a graph for each of the two rules and checks which of them is in force.
        rule = _always if by_documents else _never
        with (
            mock.patch.object(attention, "can_attend_within_documents", rule),
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16),
        ):
            logits = call(tokens, None, documents)
        cross_entropy_terms(logits, tokens).loss_sum.backward()

    return {
        "no borders": lambda _: step(None, False),
        "mask": lambda documents: step(documents, False),
        "by documents": lambda documents: step(documents, True),
    }


def _always(*_: object) -> bool:
    return True


def _never(*_: object) -> bool:
    return False


def measure(steps: dict[str, Step], batches: list[Tensor]) -> dict[str, list[float]]:
    """Seconds of each variant on each batch; the first batch warms up, and nothing may compile after it."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step(batches[0])
    with torch.compiler.set_stance("fail_on_recompile"):
        for documents in batches[1:]:
            for name, step in steps.items():
                start = time.perf_counter()
                step(documents)
                seconds[name].append(time.perf_counter() - start)
    return seconds


def main(
    *,
    rounds: str = "7",
    seq_lens: str = "256,1024,2048",
    precisions: str = "fp32,bf16",
    what: str = "attention,model,compiled",
    mean_tokens: str = "400",
    threads: str = "2",
    out: str = "",
) -> None:
    """Measures and prints a table.

    Args:
        rounds: Turns of each variant.
        seq_lens: Tokens of a row.
        precisions: Among fp32 and bf16.
        what: Among attention alone, the whole model, and the model compiled.
        mean_tokens: Mean length of a document.
        threads: Threads of torch.
        out: JSON file to write.
    """
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    rows = []
    print(f"{'what':<10} {'type':<5} {'T':>5} {'variant':<13} {'ms':>7} {'min-max':>13} {'of mask':>8}")
    for kind in _items(what):
        for precision in _items(precisions):
            for seq_len in map(int, _items(seq_lens)):
                n_rows = max(1, MICRO_BATCH_TOKENS // seq_len)
                if kind == "attention":
                    steps = attention_steps(n_rows, seq_len, DTYPES[precision])
                else:
                    steps = model_steps(n_rows, seq_len, DTYPES[precision], kind == "compiled")
                batches = [draw_documents(n_rows, seq_len, float(mean_tokens), seed) for seed in range(int(rounds) + 1)]
                seconds = measure(steps, batches)
                for name in VARIANTS:
                    print(f"{kind:<10} {precision:<5} {seq_len:>5} {name:<13} {describe(seconds, name)}", flush=True)
                rows.append({"what": kind, "precision": precision, "seq_len": seq_len, "seconds": seconds})
    if out:
        Path(out).write_text(json.dumps(rows, indent=1))


def describe(seconds: dict[str, list[float]], name: str) -> str:
    """Median and spread in ms, and the median of the ratios to the mask of the same round."""
    found = [1000 * value for value in seconds[name]]
    ratio = statistics.median(mine / mask for mine, mask in zip(seconds[name], seconds["mask"], strict=True))
    spread = f"{min(found):.0f}-{max(found):.0f}"
    return f"{statistics.median(found):>7.0f} {spread:>13} {ratio:>8.2f}"


def _items(text: str) -> list[str]:
    # fire turns "1,2" into a tuple.
    return [item.strip(" '\"") for item in str(text).strip("()").split(",") if item.strip()]


if __name__ == "__main__":
    print(" ".join(sys.argv), f"torch {torch.__version__}", file=sys.stderr)
    fire.Fire(main)

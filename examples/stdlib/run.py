"""Pretrains a small model on Python's standard library, teaches it to answer, and judges it: see README.md.

python -m examples.stdlib.run --data data/stdlib --out runs/stdlib
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import fire

from examples.running import Corpus, Example, Plan, folder_of, short_run
from examples.stdlib import answers
from tools.fire_tool import run_tool

CONFIGS = Path(__file__).parent / "configs"
MARKS = "<|im_start|>,<|im_end|>"
# A step that moves nothing, so that the figures are those of the weights that it begins with.
STILL = ("--train.max_steps", "1", "--optim.lr", "1e-12", "--optim.warmup_steps", "0", "--train.compile", "false")
LORA = ("--lora.rank", "16", "--lora.targets", "[q,k,v,out]", "--optim.lr", "2e-3")


def corpora() -> dict[str, Corpus]:
    """The corpora of all examples, by name."""
    shards = ("--shard_tokens", "500000")
    found = [
        Corpus("code", "code", ("--train_tokenizer", "4096", "--special_tokens", MARKS, *shards)),
        Corpus("chat", "chat", ("--format", "chat", "--chat_template", "chatml", *shards), "code"),
    ]
    return {corpus.name: corpus for corpus in found}


def examples() -> dict[str, Example]:
    """All examples by name, each behind the one that it begins with."""
    code, chat = CONFIGS / "code.yaml", CONFIGS / "chat.yaml"
    found = [
        Example("code", "code", "pretrained", "code", code, split="validation"),
        Example("chat_before", "chat", "pretrained, before tuning", "chat", chat, STILL, "code"),
        Example("chat", "chat", "pretrained, tuned", "chat", chat, (), "code"),
        Example("chat_lora", "chat", "pretrained, tuned with LoRA", "chat", chat, LORA, "code"),
    ]
    return {example.name: example for example in found}


@dataclass(frozen=True)
class Request:
    """What was typed, each value of its type."""

    plan: Plan
    only: tuple[str, ...]


@fire.decorators.SetParseFn(str)  # type: ignore[untyped-decorator]  # a folder such as "2024_01" is text
def parse(*, data: str, out: str, only: str = "", max_steps: str | None = None) -> Request:
    """Builds corpora, trains, judges on the test split, and writes results.md, results.json and answers.md.

    Args:
        data: Folder of the files of prepare.py.
        out: Folder of corpora, runs and results; the same command goes on there.
        only: Names of examples with commas between them; default: all.
        max_steps: Steps of each training, for a trial.
    """
    plan = Plan(folder_of("data", data), Path(out).resolve(), corpora(), examples(), None, short_run(max_steps))
    return Request(plan, tuple(plan.with_needed(only.split(",") if only else ())))


def run(request: Request) -> None:
    """Runs what was asked for, and has the tuned model answer."""
    plan = request.plan
    plan.run_all(request.only)
    if "chat" in request.only:
        answers.run(answers.Request(plan.out / "runs" / "chat", plan.data / "chat.jsonl", plan.out / "answers.md"))


if __name__ == "__main__":
    sys.exit(run_tool("run.py", parse, run))

"""Has a tuned model answer held-out requests, and counts the answers that have the right form.

python -m examples.stdlib.answers --run_dir runs/stdlib/runs/chat --records data/stdlib/chat.jsonl --out answers.md
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import fire

from examples.splits import read_records
from scaletrain.errors import ConfigError
from tools.fire_tool import run_tool

if TYPE_CHECKING:
    from scaletrain.training.trained_run import TrainedRun

COUNT, SHOWN, MAX_NEW_TOKENS = 40, 5, 160


@dataclass(frozen=True)
class Request:
    """What was typed, each value of its type."""

    run_dir: Path
    records: Path
    out: Path


@dataclass(frozen=True)
class Answer:
    """What a model says.

    Attributes:
        question: What it was asked.
        text: Its answer.
        has_ended: Whether it ended by itself, before the limit.
    """

    question: str
    text: str
    has_ended: bool


@fire.decorators.SetParseFn(str)  # type: ignore[untyped-decorator]  # a folder such as "2024_01" is text
def parse(*, run_dir: str, records: str, out: str) -> Request:
    """Writes the first answers, and how many have the right form.

    Args:
        run_dir: Folder of a run of task sft.
        records: The file chat.jsonl of prepare.py; its test split is asked.
        out: File to write, in Markdown.
    """
    return Request(Path(run_dir), Path(records), Path(out))


def run(request: Request) -> None:
    """Asks, writes and tells."""
    # Imported here, so that --help is answered before torch is loaded.
    from scaletrain.training.trained_run import TrainedRun

    trained = TrainedRun.open(request.run_dir)
    records = [record for record in read_records(request.records) if record["split"] == "test"][:COUNT]
    answers = [ask(trained, record["messages"][0]["content"]) for record in records]
    ended, formed = (sum(map(judge, answers)) for judge in (lambda answer: answer.has_ended, is_well_formed))
    told = f"Of {len(answers)} answers {ended} end by themselves, and {formed} have the right form as well."
    request.out.write_text(f"{told}\n\n{page(answers[:SHOWN])}")
    print(told)


def ask(trained: "TrainedRun", question: str) -> Answer:
    """Takes the likeliest token always.

    Args:
        trained: A run of a causal model.
        question: What a user says.

    Returns:
        The answer.

    Raises:
        ConfigError: The run's model does not converse.
    """
    from scaletrain.evaluation.generation import generate
    from scaletrain.tasks.sft import SFTTask

    if not isinstance(trained.task, SFTTask):
        raise ConfigError(f"--run_dir {trained.run_dir} is no run of task sft, which alone learns to answer")
    prompt = trained.task.prompt(question)
    limit = trained.config.train.max_seq_len
    made = list(
        generate(trained.model, prompt.tokens, MAX_NEW_TOKENS, temperature=0.0, ends=prompt.ends, max_context=limit)
    )
    return Answer(question, trained.tokenizer.decode(made), len(made) < MAX_NEW_TOKENS)


def is_well_formed(answer: Answer) -> bool:
    """Whether code was answered by one fence with the function asked for, and a question by a text without a fence."""
    if not answer.has_ended:
        return False
    asked = re.search(r"```python\n\s*(?:async )?def (\w+)", answer.question)
    if asked is None:
        return bool(answer.text.strip()) and "```" not in answer.text
    return re.fullmatch(rf"```python\n.*\bdef {asked[1]}\b.*\n```\s*", answer.text, re.DOTALL) is not None


def page(answers: Sequence[Answer]) -> str:
    """Questions and answers, each indented so that fences in them stay text."""
    parts = []
    for answer in answers:
        for who, text in (("asked", answer.question), ("answered", answer.text)):
            parts.append(f"{who}:\n\n" + "".join(f"    {line}\n" for line in text.splitlines()))
    return "\n".join(parts)


if __name__ == "__main__":
    sys.exit(run_tool("answers.py", parse, run))

"""Trains the examples on Debian's descriptions, and writes what they come to beside simple methods: see README.md.

python -m examples.debian.run --data data/debian --out runs/debian
"""

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fire

from examples.outcomes import Outcome
from examples.running import START, Corpus, Example, Plan, folder_of, short_run
from scaletrain.monitors.svg_charts import WIDTH, Series, curves, standalone
from tools.fire_tool import run_tool

CONFIGS = Path(__file__).parent / "configs"
BUDGETS = {"topics_1": 1, "topics_10": 10, "topics": 100}  # percent of the labels
# Passes over the records of each: few labels are learnt in many, and many in few.
TUNED_STEPS = {"topics_1": 90, "topics_10": 174, "topics": 580}
SMALL_STEPS = {"topics_1": 100, "topics_10": 200, "topics": 580}
WORDS_STEPS = {"topics_1": 300, "topics_10": 600, "topics": 2000}


def corpora() -> dict[str, Corpus]:
    """The corpora of all examples, by name."""
    found = [Corpus("text", "language_model", ("--train_tokenizer", "8192", "--special_tokens", "<cls>,<mask>"))]
    for name in BUDGETS:
        found.append(Corpus(name, name, ("--format", "classes"), "text"))
        found.append(Corpus(f"minilm_{name}", name, ("--format", "classes"), START))
    numbers = ("--format", "numbers", "--shard_tokens", "1000000")
    found.append(Corpus("minilm_regression", "regression", numbers, START))
    pairs = ("--format", "pairs", "--shard_tokens", "500000")
    cut = ("--max_source_tokens", "63", "--max_target_tokens", "31")
    found.append(Corpus("summarisation", "summarisation", (*pairs, *cut), "text"))
    cut = ("--max_source_tokens", "47", "--max_target_tokens", "47")  # a few that hold a long address or a drawing
    found.append(Corpus("translation_it", "translation_it", ("--train_tokenizer", "4096", *pairs, *cut)))
    return {corpus.name: corpus for corpus in found}


def examples() -> dict[str, Example]:
    """All examples by name, each behind the one that it begins with."""
    encoder = CONFIGS / "encoder.yaml"
    found = [Example("encoder", "language_model", "encoder, hidden tokens", "text", encoder, split="validation")]
    # All labels first: what has the larger budget stands first in a table.
    for name in reversed(BUDGETS):
        found += _of_topics(name)
    found.append(
        Example(
            "minilm_size", "regression", "MiniLM, tuned", "minilm_regression", CONFIGS / "minilm_size.yaml", (), START
        )
    )
    # A step of it takes half the time, so it makes twice as many: both train equally long.
    recurrent = ("--model.kind", "lstm", "--model.n_encoder_layers", "2", "--model.n_layers", "2")
    steps = {"translation": "2100", "summarisation": "1800"}
    for name in ("translation", "summarisation"):
        corpus = "translation_it" if name == "translation" else name
        config = CONFIGS / f"{name}.yaml"
        longer = (*recurrent, "--train.max_steps", steps[name])
        found.append(Example(name, corpus, "Transformer", corpus, config))
        found.append(Example(f"{name}_lstm", corpus, "LSTM with attention", corpus, config, longer))
    return {example.name: example for example in found}


def _of_topics(name: str) -> Iterable[Example]:
    tuned, small, words = (_steps(steps[name]) for steps in (TUNED_STEPS, SMALL_STEPS, WORDS_STEPS))
    minilm, encoder, cnn = (CONFIGS / f"{file}_topics.yaml" for file in ("minilm", "encoder", "cnn"))
    yield Example(f"minilm_{name}", name, "MiniLM, tuned", f"minilm_{name}", minilm, tuned, START)
    yield Example(f"tuned_{name}", name, "own encoder, tuned", name, encoder, small, "encoder")
    yield Example(f"scratch_{name}", name, "own encoder, from scratch", name, encoder, small)
    yield Example(f"cnn_{name}", name, "CNN", name, cnn, words)
    if name == "topics":
        lstm = ("--model.kind", "lstm", "--model.causal", "false", "--model.pooling", "mean")
        yield Example("lstm_topics", name, "LSTM", name, cnn, (*lstm, *_steps(1800)))


def _steps(steps: int) -> tuple[str, ...]:
    return ("--train.max_steps", str(steps), "--optim.warmup_steps", str(min(60, steps // 14)))


@dataclass(frozen=True)
class Request:
    """What was typed, each value of its type."""

    plan: Plan
    only: tuple[str, ...]


@fire.decorators.SetParseFn(str)  # type: ignore[untyped-decorator]  # a folder such as "2024_01" is text
def parse(
    *, data: str, out: str, only: str = "", pretrained: str | None = None, max_steps: str | None = None
) -> Request:
    """Builds corpora, trains, judges on the test split, and writes results.md and results.json.

    Args:
        data: Folder of the files of prepare.py, and of baselines.json where that is made.
        out: Folder of corpora, runs and results; the same command goes on there.
        only: Names of examples with commas between them; default: all that can be run.
        pretrained: Folder of an encoder from Hugging Face, such as all-MiniLM-L6-v2, for the examples named minilm.
        max_steps: Steps of each training, for a trial.
    """
    start = None if pretrained is None else folder_of("pretrained", pretrained)
    plan = Plan(folder_of("data", data), Path(out).resolve(), corpora(), examples(), start, short_run(max_steps))
    return Request(plan, tuple(plan.with_needed(only.split(",") if only else ())))


def run(request: Request) -> None:
    """Runs what was asked for, and writes tables and the plot after each example."""
    plan = request.plan
    chart, simple = plan.out / "topics.svg", plan.baselines()
    plan.run_all(request.only, lambda outcomes: chart.write_text(plot(outcomes, simple)))


_COLOURS = ("#1b6ca8", "#2a9d5c", "#c77d0a", "#8a4fbf", "#777", "#c0392b", "#0b7a75")


def plot(outcomes: Sequence[Outcome], baselines: Sequence[dict[str, Any]]) -> str:
    """Draws the accuracy on topics over the share of labels.

    Args:
        outcomes: Of examples.
        baselines: Lines of ``baselines.json``.

    Returns:
        Text of an SVG file, with one curve for each method that was run with two budgets or more.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    rows = [(one.subject, one.method, one.figures) for one in outcomes]
    rows += [(one["file"], one["method"], one["test"]) for one in baselines if one["method"] != "majority"]
    for subject, method, figures in rows:
        if subject in BUDGETS:
            points.setdefault(method, []).append((math.log10(BUDGETS[subject]), 100 * figures["accuracy"]))
    drawn = {method: sorted(found) for method, found in points.items() if len(found) > 1}
    series = [Series(f"s{number}", found) for number, found in enumerate(drawn.values())]
    chart = curves(series, _share, lambda y: f"{y:.0f} %", "accuracy over labels")
    styles = "text { font: 12px sans-serif; fill: #555 } .end { text-anchor: end } .middle { text-anchor: middle }"
    styles += ".grid { stroke: #ddd } .base { stroke: #999 } .curve { fill: none; stroke-width: 2 }"
    legend = ""
    for number, method in enumerate(drawn):
        colour = _COLOURS[number % len(_COLOURS)]
        styles += f".s{number} {{ stroke: {colour}; }}"
        legend += (
            f'<text x="{WIDTH - 30}" y="{120 + 16 * number}" style="text-anchor: end; fill: {colour}">{method}</text>'
        )
    return standalone(chart.replace("</svg>", f"{legend}</svg>"), styles)


def _share(power: float) -> str:
    return f"{10**power:.0f} % of the labels" if abs(power - round(power)) < 1e-6 else ""


if __name__ == "__main__":
    sys.exit(run_tool("run.py", parse, run))

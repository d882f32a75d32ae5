"""Tells what a trained model says of texts: their classes, their numbers, or the tokens that are hidden in them.

python tools/predict.py --run_dir runs/sections --input texts.jsonl --out predictions.jsonl
echo '{"text": "The <mask> is green."}' | python tools/predict.py --run_dir runs/encoder --input -
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import fire
from fire_tool import run_tool
from typed_values import step_number, truth

from scaletrain.errors import ConfigError
from scaletrain.protocols import Step

if TYPE_CHECKING:
    from scaletrain.training.predicting import Record

STANDARD_INPUT = "/dev/stdin"


@dataclass(frozen=True)
class Request:
    """What was typed, each value of its type."""

    run_dir: Path
    input: str
    out: Path | None
    step: Step | None
    trust_checkpoint: bool


@fire.decorators.SetParseFn(str)  # type: ignore[untyped-decorator]  # a path such as "2024_01" is text
def parse(
    *, run_dir: str, input: str, out: str | None = None, step: str | None = None, trust_checkpoint: str = "false"
) -> Request:
    """Tells what a trained model says of texts.

    Each line of the input is a JSON object with "text", and "text_pair" where the run has learnt from pairs. Each line
    of the output is the same object with what the model says: "label" and "probabilities" of classes, "value" of
    numbers, "fills" of each <mask> in the text; and "truncated" where the text is longer than the model reads.

    Args:
        run_dir: Folder of the run whose model to use.
        input: A file of JSON lines, plain, .gz or .zst; - for standard input.
        out: A file, which appears whole or not at all; standard output by default.
        step: Checkpoint to use, or best for the one with the lowest validation loss; the newest intact one by
            default.
        trust_checkpoint: Unpickle objects of any class in it: whoever wrote the checkpoint can run code here.
    """
    if "True" in (input, out):  # fire's for a flag alone
        raise ConfigError("--input and --out need the name of a file; --input also takes -")
    return Request(
        Path(run_dir),
        input,
        None if out is None else Path(out),
        step_number(step),
        truth("trust_checkpoint", trust_checkpoint),
    )


def run(request: Request) -> None:
    # Imported here, so that --help and a misspelt option are answered before torch is loaded.
    from scaletrain.training.predicting import Predictor
    from scaletrain.training.trained_run import TrainedRun

    predictor = Predictor(TrainedRun.open(request.run_dir, request.step, request.trust_checkpoint))
    given: list[Record] = []

    def noted() -> Iterator["Record"]:
        for record in records(request.input):
            given.append(record)
            yield record

    done = cut = 0
    with opened(request.out) as stream:
        for prediction in predictor.predict(noted()):
            record = given.pop(0)
            done, cut = done + 1, cut + prediction.is_cut
            told = prediction.told | ({"truncated": True} if prediction.is_cut else {})
            stream.write(json.dumps(joined(record.content, told), ensure_ascii=False).encode() + b"\n")
            stream.flush()
    if cut:
        print(
            f"{cut} of {done} texts are longer than the {predictor.longest} tokens that the model reads; their ends "
            "were left out",
            file=sys.stderr,
        )


def records(source: str) -> Iterator["Record"]:
    """Records of a file, as they come."""
    from scaletrain.corpus.examples import parse_record
    from scaletrain.corpus.jsonl import read_lines
    from scaletrain.corpus.reading import Reading
    from scaletrain.training.predicting import Record

    for number, line in read_lines(Path(source), Reading()):
        place = f"{source}, line {number}"
        yield Record(parse_record(line, place), place)


def joined(given: dict[str, Any], told: dict[str, Any]) -> dict[str, Any]:
    """A record with what the model says of it; what it says itself under the same name is kept as given."""
    kept = {f"given_{name}" if name in told else name: value for name, value in given.items()}
    return kept | told


@contextmanager
def opened(out: Path | None) -> Iterator[BinaryIO]:
    from scaletrain.files import whole_file

    if out is None:
        yield sys.stdout.buffer
        return
    try:
        with whole_file(out) as stream:
            yield stream
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be written: {error.strerror}; give another one") from None


def name_standard_input(words: list[str]) -> list[str]:
    """The words of a command with a file for -, which fire would take for the end of the options."""
    given = {"-": STANDARD_INPUT, "--input=-": f"--input={STANDARD_INPUT}"}
    return [given.get(word, word) for word in words]


if __name__ == "__main__":
    sys.argv[1:] = name_standard_input(sys.argv[1:])
    sys.exit(run_tool("predict.py", parse, run))

"""Has a trained model write: it goes on with a prompt, answers in a conversation, or tells what a source becomes.

python tools/generate.py --run_dir runs/demo --prompt "def main("
"""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import fire
from fire_tool import run_tool
from typed_values import step_number, truth

from scaletrain.errors import ConfigError, DataError
from scaletrain.protocols import Step

if TYPE_CHECKING:
    from scaletrain.tasks.causal_lm import Prompt
    from scaletrain.training.trained_run import TrainedRun

Number = TypeVar("Number", int, float)
TALK = "True"  # fire's for a flag alone


@dataclass(frozen=True)
class Request:
    """What was typed, each value of its type; one of prompt and chat is given, and None stands for a default."""

    run_dir: Path
    prompt: str | None
    chat: str | None
    max_new_tokens: int
    temperature: float | None
    top_k: int | None
    top_p: float | None
    seed: int | None
    step: Step | None
    trust_checkpoint: bool


@fire.decorators.SetParseFn(str)  # type: ignore[untyped-decorator]  # a prompt such as "1e5" or "[1,2]" is text
def parse(
    *,
    run_dir: str,
    prompt: str | None = None,
    chat: str | None = None,
    max_new_tokens: str = "200",
    temperature: str | None = None,
    top_k: str | None = None,
    top_p: str | None = None,
    seed: str | None = None,
    step: str | None = None,
    trust_checkpoint: str = "false",
) -> Request:
    """Has a trained model write, and prints the text as it comes.

    Args:
        run_dir: Folder of the run whose model to use.
        prompt: Text to continue; of a run of task seq2seq the source, of one of task sft what a user says.
        chat: What a user says to a model that has learnt from conversations. Without a text it reads one turn after
            the other from the terminal, until Ctrl-D.
        max_new_tokens: Tokens to make at most; fewer if the model ends the text.
        temperature: 0 takes the likeliest token always; 1 samples as the model predicts; above 1 is wilder. 0.8 by
            default.
        top_k: Sample among the k likeliest tokens; 0, the default, among all.
        top_p: Sample among the likeliest tokens that together have this probability; 1, the default, among all.
        seed: The same seed gives the same text; 0 by default.
        step: Checkpoint to use, or best for the one with the lowest validation loss; the newest intact one by
            default.
        trust_checkpoint: Unpickle objects of any class in it: whoever wrote the checkpoint can run code here.
    """
    if (prompt is None) == (chat is None):
        raise ConfigError("give one of --prompt, with a text to go on with, and --chat, for a conversation")
    return Request(
        run_dir=Path(run_dir),
        prompt=prompt,
        chat=chat,
        max_new_tokens=number("max_new_tokens", max_new_tokens, int),
        temperature=None if temperature is None else number("temperature", temperature, float),
        top_k=None if top_k is None else number("top_k", top_k, int),
        top_p=None if top_p is None else number("top_p", top_p, float),
        seed=None if seed is None else number("seed", seed, int),
        step=step_number(step),
        trust_checkpoint=truth("trust_checkpoint", trust_checkpoint),
    )


def number(name: str, text: str, kind: type[Number]) -> Number:
    try:
        return kind(text)
    except ValueError:
        rule = "a whole number" if kind is int else "a number"
        raise ConfigError(f"--{name} {text} is not {rule}; give one, such as --{name} 1") from None


def run(request: Request) -> None:
    # Imported here, so that --help and a misspelt option are answered before torch is loaded.
    from scaletrain.tasks.causal_lm import CausalLMTask
    from scaletrain.tasks.seq2seq import Seq2SeqTask
    from scaletrain.training.trained_run import TrainedRun

    trained = TrainedRun.open(request.run_dir, request.step, request.trust_checkpoint)
    if request.chat is not None:
        converse(trained, request)
    elif request.prompt is None or not isinstance(trained.task, CausalLMTask | Seq2SeqTask):
        raise ConfigError(
            f"--run_dir {request.run_dir} is a run of task {trained.config.task.name}, which writes no text; use "
            f"python tools/predict.py --run_dir {request.run_dir} --input FILE.jsonl"
        )
    elif isinstance(trained.task, Seq2SeqTask):
        sys.stdout.write(likeliest(trained, request, request.prompt) + "\n")
    else:
        pieces = written(trained, request, trained.task.prompt(request.prompt))
        if trained.task.continues:
            sys.stdout.write(request.prompt)
        show(pieces)


def likeliest(trained: "TrainedRun", request: Request, source: str) -> str:
    """What a source becomes, by a search in which nothing is drawn."""
    from scaletrain.tasks.task import Sampling

    for name in ("temperature", "top_k", "top_p", "seed"):
        if getattr(request, name) is not None:
            raise ConfigError(
                f"--{name} {getattr(request, name)} is for texts that are drawn, but a run of task seq2seq searches "
                "for the likeliest text; leave it out"
            )
    sampling = Sampling(request.max_new_tokens, 0.0, 0, trained.config.train.max_seq_len, int)
    return trained.task.sample(trained.model, source, sampling)


def written(trained: "TrainedRun", request: Request, prompt: "Prompt") -> Iterator[str]:
    """Pieces of what a causal model writes behind some tokens."""
    from scaletrain.evaluation.generation import generate, stream_text

    tokens = generate(
        trained.model,
        prompt.tokens,
        request.max_new_tokens,
        temperature=0.8 if request.temperature is None else request.temperature,
        top_k=request.top_k or 0,
        top_p=1.0 if request.top_p is None else request.top_p,
        seed=request.seed or 0,
        ends=prompt.ends,
        max_context=trained.config.train.max_seq_len,
    )
    return stream_text(trained.tokenizer, tokens)


def show(pieces: Iterator[str]) -> str:
    """Prints pieces of a text as they come, and a line's end; returns the text."""
    shown = ""
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
        shown += piece
    sys.stdout.write("\n")
    sys.stdout.flush()
    return shown


def converse(trained: "TrainedRun", request: Request) -> None:
    """Answers one turn, or all that are typed."""
    from scaletrain.tasks.causal_lm import Prompt
    from scaletrain.tasks.sft import SFTTask

    chat = trained.task.chat if isinstance(trained.task, SFTTask) else None
    if chat is None:
        raise ConfigError(
            f"--chat: {request.run_dir} has not learnt from conversations, and keeps no chat template; give --prompt, "
            "or train with --task.name sft on a corpus that was built with --format chat"
        )
    limit = trained.config.train.max_seq_len
    room = min(request.max_new_tokens, limit // 2)  # for the answer
    messages: list[dict[str, str]] = []
    for question in typed() if request.chat == TALK else [request.chat or ""]:
        messages.append({"role": "user", "content": question})
        try:
            tokens = chat.prompt(messages)
            while len(tokens) + room > limit and len(messages) > 1:
                del messages[:2]
                tokens = chat.prompt(messages)
                print("(the model sees no more than the last turns)", file=sys.stderr)
        except DataError as error:
            if request.chat != TALK:
                raise
            print(f"error: {error}", file=sys.stderr)
            messages.pop()
            continue
        answer = show(written(trained, request, Prompt(tokens, chat.ends)))
        messages.append({"role": "assistant", "content": answer})


def typed() -> Iterator[str]:
    """Lines of a terminal, or of a file, one after the other."""
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - lets lines be edited
        print("One line is one turn; Ctrl-D ends.", file=sys.stderr)
    while True:
        try:
            line = input("> " if is_terminal else "")
        except EOFError:
            return
        if line.strip():
            yield line


if __name__ == "__main__":
    sys.exit(run_tool("generate.py", parse, run))

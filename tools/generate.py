"""Continues a prompt with a trained model, and prints the text as it comes.

python tools/generate.py --run_dir runs/demo --prompt "def main("
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import fire

from scaletrain.errors import ConfigError, ScaletrainError

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Request:
    """What was typed, each value of its type."""

    run_dir: Path
    prompt: str
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int
    step: int | None
    trust_checkpoint: bool


@fire.decorators.SetParseFn(str)  # type: ignore[untyped-decorator]  # a prompt such as "1e5" or "[1,2]" is text
def parse(
    *,
    run_dir: str,
    prompt: str,
    max_new_tokens: str = "200",
    temperature: str = "0.8",
    top_k: str = "0",
    top_p: str = "1.0",
    seed: str = "0",
    step: str | None = None,
    trust_checkpoint: str = "false",
) -> Request:
    """Continues a prompt with a trained model, and prints the text as it comes.

    Args:
        run_dir: Folder of the run whose model to use.
        prompt: Text to continue.
        max_new_tokens: Tokens to make at most; fewer if the model ends the text.
        temperature: 0 takes the likeliest token always; 1 samples as the model predicts; above 1 is wilder.
        top_k: Sample among the k likeliest tokens; 0 among all.
        top_p: Sample among the likeliest tokens that together have this probability; 1 among all.
        seed: The same seed gives the same text.
        step: Checkpoint to use; the newest intact one by default.
        trust_checkpoint: Unpickle objects of any class in it: whoever wrote the checkpoint can run code here.
    """
    if trust_checkpoint.lower() not in ("true", "false"):
        raise ConfigError(f"--trust_checkpoint {trust_checkpoint}: expected true or false, or nothing at all")
    return Request(
        run_dir=Path(run_dir),
        prompt=prompt,
        max_new_tokens=number("max_new_tokens", max_new_tokens, int),
        temperature=number("temperature", temperature, float),
        top_k=number("top_k", top_k, int),
        top_p=number("top_p", top_p, float),
        seed=number("seed", seed, int),
        step=None if step is None else number("step", step, int),
        trust_checkpoint=trust_checkpoint.lower() == "true",
    )


def number(name: str, text: str, kind: type[Number]) -> Number:
    try:
        return kind(text)
    except ValueError:
        rule = "a whole number" if kind is int else "a number"
        raise ConfigError(f"--{name} {text} is not {rule}; give one, such as --{name} 1") from None


def continuation(request: Request) -> Iterator[str]:
    # Imported here, so that --help and a misspelt option are answered before torch is loaded.
    from scaletrain.checkpoint.weights import load_weights
    from scaletrain.config.load import load_config
    from scaletrain.data.tokenizer import load_tokenizer, prompt_tokens, read_borders
    from scaletrain.evaluation.generation import generate, stream_text
    from scaletrain.model.build import build_model

    if not (request.run_dir / "config.yaml").is_file():
        raise ConfigError(
            f"--run_dir {request.run_dir} holds no config.yaml; give the folder of a run that was started"
        )
    config = load_config(request.run_dir / "config.yaml", {})
    tokenizer = load_tokenizer(request.run_dir / "tokenizer.json")
    borders = read_borders(request.run_dir / "corpus.json")
    model = build_model(config.model)
    model.load_state_dict(load_weights(request.run_dir / "checkpoints", request.step, request.trust_checkpoint))
    model.eval()
    tokens = generate(
        model,
        prompt_tokens(tokenizer, request.prompt, borders),
        request.max_new_tokens,
        temperature=request.temperature,
        top_k=request.top_k,
        top_p=request.top_p,
        seed=request.seed,
        eos_id=borders.eos_id,
        max_context=config.train.max_seq_len,
    )
    return stream_text(tokenizer, tokens)


def main() -> int:
    try:
        request = fire.Fire(parse, name="generate.py", serialize=lambda _: None)
        if not isinstance(request, Request):
            raise ConfigError("a word stands where an option should; give all values as --name value")
        pieces = continuation(request)
        sys.stdout.write(request.prompt)
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")
    except ScaletrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print()
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

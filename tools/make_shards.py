"""Makes a corpus for training out of folders of text and JSONL files: see `make_shards.py build --help`."""

import logging
import os
import sys
from pathlib import Path
from typing import Any

import fire
from fire.decorators import SetParseFn
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scaletrain import log, ranks
from scaletrain.data.corpus import TEXT_SUFFIXES, find_corpus
from scaletrain.data.manifest import Manifest
from scaletrain.errors import ConfigError, ScaletrainError


class BuildOptions(BaseModel):
    """What `build` was asked for; the strings of the command line become what each field declares."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: Path
    out: Path
    tokenizer: Path | None = None
    train_tokenizer: int | None = Field(None, ge=257)
    eos_token: str | None = None
    validation_share: float | None = Field(None, ge=0, lt=1)
    shard_tokens: int | None = Field(None, ge=1)
    text_field: str = "text"
    suffixes: str | None = None


def build(
    *,
    input: str,
    out: str,
    tokenizer: str | None = None,
    train_tokenizer: str | None = None,
    eos_token: str | None = None,
    validation_share: str | None = None,
    shard_tokens: str | None = None,
    text_field: str | None = None,
    suffixes: str | None = None,
) -> dict[str, str]:
    """Makes shards, their indexes and a manifest.

    Args:
        input: Folder of texts (UTF-8) and JSONL files (plain, .gz, .zst), or one such file.
        out: Folder to write the corpus to.
        tokenizer: A tokenizer.json to use.
        train_tokenizer: Or: train a byte-level BPE with this many tokens, for example 8192.
        eos_token: Name of the token that ends a document, where it is not one of the usual names.
        validation_share: Share of documents held out, chosen by a hash of their text; default 0.02.
        shard_tokens: Tokens after which a shard is finished; default 16777216.
        text_field: Field of a JSONL line that holds the text; default text.
        suffixes: Suffixes of text files, such as .txt,.py; default: the usual ones.

    Returns:
        The options that were given; nothing is done before all of the command line is understood.
    """
    given = dict(locals())
    return {name: value for name, value in given.items() if value is not None}


def run_build(options: BuildOptions) -> None:
    """Builds, and prints what was made."""
    if (options.tokenizer is None) == (options.train_tokenizer is None):
        given = "neither" if options.tokenizer is None else "both"
        raise ConfigError(
            f"--tokenizer FILE and --train_tokenizer SIZE: {given} of them given, and exactly one is needed. "
            "Give --train_tokenizer 8192 to train one on the corpus."
        )
    suffixes = TEXT_SUFFIXES if options.suffixes is None else tuple(options.suffixes.lower().split(","))
    corpus = find_corpus(options.input, options.text_field, suffixes)
    tokenizer = options.tokenizer or options.train_tokenizer
    assert tokenizer is not None  # one of them is given, as was checked
    # Here, since it brings torch with it: a mistake on the command line is told at once.
    from scaletrain.data.build import build_corpus

    optional = options.model_dump(include={"eos_token", "validation_share", "shard_tokens"}, exclude_none=True)
    path = build_corpus(corpus.documents, options.out, tokenizer, source=str(options.input), **optional)
    manifest = Manifest.open(path)
    for split, totals in manifest.totals.items():
        shards = len(manifest.splits[split])
        print(f"{split}: {shards} shards, {totals.documents:,} documents, {totals.tokens:,} tokens")
    print(f"skipped: {corpus.describe_skipped()}")
    print(f"wrote {path}")


def parse(argv: list[str]) -> BuildOptions:
    """Turns the command line into options; fire reports a misspelt flag itself."""
    given: Any = fire.Fire(
        {"build": SetParseFn(str)(build)}, command=argv or ["--help"], name="make_shards.py", serialize=lambda _: None
    )
    if not isinstance(given, dict) or "input" not in given:
        raise ConfigError(f"{' '.join(argv)!r} is not understood. Only flags may follow build; see build --help.")
    for name, value in given.items():
        if value == "True":  # what fire makes of a flag without a value
            raise ConfigError(f"--{name} needs a value. See build --help.")
    try:
        return BuildOptions.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"--{name} is {first['input']!r}: {first['msg']}. See build --help.") from None


def main() -> int:
    """Runs the tool; the exit code is 2 for a mistake in what was given."""
    os.environ.setdefault("PAGER", "cat")
    log.configure(ranks.from_environment({}), logging.INFO)
    try:
        run_build(parse(sys.argv[1:]))
    except ScaletrainError as error:
        print(f"make_shards.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

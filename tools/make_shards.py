"""Makes a corpus for training: see `make_shards.py --help`, and docs/corpora.md.

A verb is a function whose keyword-only parameters are its flags, a model that says what each flag is, and a function
that does the work; VERBS lists them.
"""

import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import fire
from fire.decorators import SetParseFn
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scaletrain import log, ranks
from scaletrain.config.fields import limits
from scaletrain.config.schema import DataConfig
from scaletrain.corpus.build import build_from_files
from scaletrain.corpus.documents import TEXT_SUFFIXES, find_corpus
from scaletrain.corpus.examples import ExampleOptions
from scaletrain.corpus.index import index_corpus
from scaletrain.corpus.options import BuildOptions
from scaletrain.corpus.report import read_report
from scaletrain.corpus.rules import load_rules
from scaletrain.corpus.upkeep import check_shards, count_packed
from scaletrain.data.foreign import content_of
from scaletrain.data.manifest import Manifest
from scaletrain.errors import ConfigError, DataError, ScaletrainError
from scaletrain.storage.fetch import FetchPolicy
from scaletrain.training.corpus import open_storage


class Flags(BaseModel):
    """The flags of a verb; the strings of the command line become what each field declares."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class BuildFlags(Flags):
    """What `build` was asked for."""

    input: Path
    out: Path
    tokenizer: Path | None = None
    train_tokenizer: int | None = Field(None, ge=257)
    config: Path | None = None
    eos_token: str | None = None
    validation_share: float | None = Field(None, ge=0, lt=1)
    shard_tokens: int | None = Field(None, ge=1)
    text_field: str = "text"
    suffixes: str | None = None
    keep_text: bool = False
    num_workers: int = Field(default_factory=lambda: len(os.sched_getaffinity(0)), ge=0)
    format: Literal["text", "pairs", "chat", "classes", "numbers"] = "text"
    chat_template: str | None = None
    classes: str | None = None
    max_source_tokens: int | None = Field(None, ge=1)
    max_target_tokens: int | None = Field(None, ge=1)
    special_tokens: str | None = None


def build(
    *,
    input: str,
    out: str,
    tokenizer: str | None = None,
    train_tokenizer: str | None = None,
    config: str | None = None,
    eos_token: str | None = None,
    validation_share: str | None = None,
    shard_tokens: str | None = None,
    text_field: str | None = None,
    suffixes: str | None = None,
    keep_text: str | None = None,
    num_workers: str | None = None,
    format: str | None = None,
    chat_template: str | None = None,
    classes: str | None = None,
    max_source_tokens: str | None = None,
    max_target_tokens: str | None = None,
    special_tokens: str | None = None,
) -> dict[str, str]:
    """Makes shards, their indexes and a manifest out of texts. Interrupted, the same command goes on where it was.

    Args:
        input: Folder of texts (UTF-8), JSON lines (plain, .gz, .zst), Parquet and WebDataset tar files, or one such
            file; with a format other than text, JSON lines and Parquet only.
        out: Folder to write the corpus to.
        tokenizer: A tokenizer.json to use; for texts and conversations it must be byte-level.
        train_tokenizer: Or: train a byte-level BPE with this many tokens, for example 8192.
        config: YAML file of rules by which documents are dropped and changed, such as configs/corpus/clean.yaml;
            default: only exact copies are dropped.
        eos_token: Name of the token that ends a document, where it is not one of the usual names.
        validation_share: Share of documents held out, chosen by a hash of their text; default 0.02; 0 for none.
        shard_tokens: Tokens after which a shard is finished; default 16777216.
        text_field: Field of JSONL, JSON and Parquet that holds the text; default text.
        suffixes: Suffixes of text files, such as .txt,.py; default: the usual ones.
        keep_text: Store the text in the shards too, as KEY.txt.
        num_workers: Processes; default: one for each core. The result does not depend on it.
        format: What the input holds: text (default), or records to fine-tune with, see docs/corpora.md: pairs {source,
            target}, chat {messages}, classes {text, text_pair, label}, numbers {text, text_pair, value}.
        chat_template: What renders conversations: chatml, llama3, plain, or a file in Jinja as Hugging Face's are.
        classes: Names of all classes in the order of their numbers, separated by commas; default: those found, sorted.
        max_source_tokens: Tokens after which a source is cut; default: none is.
        max_target_tokens: Tokens after which a target is cut; default: none is.
        special_tokens: Names of special tokens that a trained tokenizer gets: '<|im_start|>,<|im_end|>'.

    Returns:
        The flags that were given; nothing is done before all of the command line is understood.
    """
    return _given(locals())


def run_build(flags: BuildFlags) -> None:
    """Builds, and prints what was made."""
    if (flags.tokenizer is None) == (flags.train_tokenizer is None):
        given = "neither" if flags.tokenizer is None else "both"
        raise ConfigError(
            f"--tokenizer FILE and --train_tokenizer SIZE: {given} of them given, and exactly one is needed. "
            "Give --train_tokenizer 8192 to train one on the corpus."
        )
    tokenizer = flags.tokenizer or flags.train_tokenizer
    assert tokenizer is not None  # one of them is given, as was checked
    named = flags.model_dump(include={"eos_token", "validation_share", "shard_tokens"}, exclude_none=True)
    examples = _examples(flags)
    options = BuildOptions(
        tokenizer,
        source=str(flags.input).encode(errors="backslashreplace").decode(),
        rules=load_rules(flags.config),
        keep_text=flags.keep_text,
        num_workers=flags.num_workers,
        examples=examples,
        special_tokens=_names(flags.special_tokens) or (),
        **named,
    )
    corpus = find_corpus(flags.input, flags.text_field, _suffixes(flags.suffixes), flags.out, examples)
    path = build_from_files(corpus, flags.out, options)
    print("\n".join(read_report(flags.out).lines()))
    _print_totals(path)


def _examples(flags: BuildFlags) -> ExampleOptions | None:
    given: dict[str, Any] = {
        "chat_template": flags.chat_template,
        "classes": _names(flags.classes),
        "max_source_tokens": flags.max_source_tokens,
        "max_target_tokens": flags.max_target_tokens,
    }
    if flags.format != "text":
        if flags.text_field != "text" or flags.suffixes is not None:
            raise ConfigError(f"--text_field and --suffixes belong to texts, not to --format {flags.format}.")
        return ExampleOptions(flags.format, **given)
    for name, value in given.items():
        if value is not None:
            raise ConfigError(f"--{name} belongs to records to fine-tune with: give their --format too.")
    return None


def _names(given: str | None) -> tuple[str, ...] | None:
    return None if given is None else tuple(name.strip() for name in given.split(","))


def _suffixes(given: str | None) -> tuple[str, ...]:
    if given is None:
        return TEXT_SUFFIXES
    suffixes = tuple(suffix.strip().lower() for suffix in given.split(","))
    for suffix in suffixes:
        if not suffix.startswith(".") or suffix == ".":
            raise ConfigError(f"--suffixes is {given!r}: {suffix!r} must begin with a dot, as in .txt,.py.")
    return suffixes


class IndexFlags(Flags):
    """What `index` was asked for."""

    shards: str
    field: str
    tokenizer: Path
    out: Path
    key: str | None = None
    eos_token: str | None = None
    validation: str | None = None
    validation_shards: int = Field(0, ge=0)
    on_bad_document: Literal["fail", "skip"] = "fail"
    num_workers: int = Field(default_factory=lambda: len(os.sched_getaffinity(0)), ge=0)
    allow_pipe: bool = False


def index(
    *,
    shards: str,
    field: str,
    tokenizer: str,
    out: str,
    key: str | None = None,
    eos_token: str | None = None,
    validation: str | None = None,
    validation_shards: str | None = None,
    on_bad_document: str | None = None,
    num_workers: str | None = None,
    allow_pipe: str | None = None,
) -> dict[str, str]:
    """Makes a manifest of WebDataset tars that are there, without copying them: see docs/foreign_shards.md.

    Args:
        shards: Paths and URLs, separated by commas: 's3://corpus/part-{000000..000999}.tar', '/data/*.tar'.
        field: The member of a sample that is the document: txt, json, npy (ready tokens), with or without .gz.
        tokenizer: A tokenizer.json; it must be byte-level.
        out: The manifest to write, such as corpus/manifest.json; the indexes go beside it.
        key: Of the JSON object, where the field is json.
        eos_token: Name of the token that ends a document, where it is not one of the usual names.
        validation: Shards that are held out, named as in shards.
        validation_shards: Or: how many of the last shards are held out; default 0.
        on_bad_document: fail (default) or skip: whether one that cannot be decoded ends the command or is left out.
        num_workers: Processes; default: one for each core. The result does not depend on it.
        allow_pipe: Run the commands of shards that are named pipe:COMMAND.

    Returns:
        The flags that were given; nothing is done before all of the command line is understood.
    """
    return _given(locals())


def run_index(flags: IndexFlags) -> None:
    """Indexes, and prints what was found."""
    if flags.validation is not None and flags.validation_shards:
        raise ConfigError("--validation and --validation_shards are both given; give one of them.")
    options = flags.model_dump(include={"eos_token", "num_workers", "on_bad_document"})
    path = index_corpus(
        flags.shards,
        content_of(flags.field, flags.key),
        flags.tokenizer,
        flags.out,
        validation=flags.validation or flags.validation_shards,
        policy=FetchPolicy(allow_pipe=flags.allow_pipe),
        **options,
    )
    _print_totals(path)


class PackFlags(Flags):
    """What `pack` was asked for."""

    manifest: Path
    max_seq_len: str


def pack(*, manifest: str, max_seq_len: str) -> dict[str, str]:
    """Counts the sequences of best-fit packing, which data.packing best_fit needs, and keeps them in the manifest.

    Args:
        manifest: The corpus's manifest.json, or its folder.
        max_seq_len: Tokens of a sequence; several lengths with commas between them.

    Returns:
        The flags that were given.
    """
    return _given(locals())


def run_pack(flags: PackFlags) -> None:
    """Counts, and prints what it means."""
    lengths = flags.max_seq_len.split(",")
    if not all(length.isdecimal() for length in lengths):
        raise ConfigError(f"--max_seq_len is {flags.max_seq_len!r}; give whole numbers, such as 2048 or 1024,2048.")
    manifest = count_packed(flags.manifest, [int(length) for length in lengths])
    for split, totals in manifest.totals.items():
        for length in map(int, lengths):
            sequences = sum(shard.packed[length] for shard in manifest.splits[split])
            filled = (totals.tokens - totals.documents) / max(1, sequences * length)
            print(f"{split}: {sequences:,} sequences of {length}, {filled:.1%} of their places have a target")


class VerifyFlags(Flags):
    """What `verify` was asked for."""

    manifest: str
    cache_dir: Path | None = None
    cache_gib: float = Field(64.0, gt=0)
    allow_pipe: bool = False


def verify(
    *, manifest: str, cache_dir: str | None = None, cache_gib: str | None = None, allow_pipe: str | None = None
) -> dict[str, str]:
    """Reads every byte of a corpus and compares it with the manifest's checksums; exit code 2 if something is damaged.

    Args:
        manifest: The corpus's manifest.json: a path or a URL.
        cache_dir: Where remote shards are brought to.
        cache_gib: Largest size of that folder; default 64.
        allow_pipe: Run the commands of pipe: URLs.

    Returns:
        The flags that were given.
    """
    return _given(locals())


def run_verify(flags: VerifyFlags) -> None:
    """Checks, and names each shard that is not whole."""
    given = flags.model_dump(exclude={"manifest"}, exclude_none=True)
    storage = open_storage(DataConfig(manifest=flags.manifest, **given))
    checked = list(check_shards(Manifest.open(flags.manifest, storage), storage))
    damaged = [shard for shard in checked if shard.problem]
    for shard in damaged:
        print(f"{shard.shard}: {shard.problem}")
    print(f"{len(checked) - len(damaged)} of {len(checked)} shards are whole")
    if damaged:
        raise DataError(f"{len(damaged)} shards are damaged or missing.")


@dataclass(frozen=True)
class Verb:
    """What may stand after the tool's name: its flags, what they are, and what is done."""

    flags: Callable[..., dict[str, str]]
    model: type[Flags]
    run: Callable[[Any], None]


VERBS = {
    "build": Verb(build, BuildFlags, run_build),
    "index": Verb(index, IndexFlags, run_index),
    "pack": Verb(pack, PackFlags, run_pack),
    "verify": Verb(verify, VerifyFlags, run_verify),
}


def _given(flags: dict[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in flags.items() if value is not None}


def _print_totals(path: Path) -> None:
    manifest = Manifest.open(path)
    for split, totals in manifest.totals.items():
        shards = len(manifest.splits[split])
        print(f"{split}: {shards} shards, {totals.documents:,} documents, {totals.tokens:,} tokens")
    print(f"wrote {path}")


def parse(argv: list[str]) -> tuple[Verb, Flags]:
    """Turns the command line into a verb and its flags; fire reports a misspelt flag itself."""
    commands = {name: SetParseFn(str)(verb.flags) for name, verb in VERBS.items()}
    given: Any = fire.Fire(commands, command=argv or ["--help"], name="make_shards.py", serialize=lambda _: None)
    verb = VERBS.get(argv[0] if argv else "")
    if verb is None or not isinstance(given, dict) or given.keys() - verb.model.model_fields.keys():
        known = " or ".join(VERBS)
        raise ConfigError(f"{' '.join(argv)!r} is not understood. Only flags may follow {known}; see VERB --help.")
    for name, value in given.items():
        if value == "True" and verb.model.model_fields[name].annotation is not bool:  # fire's for a flag alone
            raise ConfigError(f"--{name} needs a value. See {argv[0]} --help.")
    try:
        return verb, verb.model.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        rule = limits(verb.model.model_fields[name])
        reason = f"must be {rule}" if rule and first["type"].startswith(("greater", "less")) else first["msg"]
        raise ConfigError(f"--{name} is {first['input']!r}: {reason}. See {argv[0]} --help.") from None


def main() -> int:
    """Runs the tool; the exit code is 2 for a mistake in what was given, 130 for Ctrl-C."""
    os.environ.setdefault("PAGER", "cat")
    log.configure(ranks.from_environment({}), logging.INFO)
    try:
        verb, flags = parse(sys.argv[1:])
        verb.run(flags)
    except ScaletrainError as error:
        print(f"make_shards.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("make_shards.py: interrupted; the same command goes on where it was", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

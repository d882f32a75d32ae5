"""What a build was asked for, and by what a later command knows it again."""

import hashlib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers

import scaletrain
from scaletrain.config.fields import flatten
from scaletrain.corpus.bands import load_datasketch
from scaletrain.corpus.documents import Corpus
from scaletrain.corpus.examples import ExampleOptions
from scaletrain.corpus.journal import BuildIdentity
from scaletrain.corpus.rules import CleaningRules
from scaletrain.data.chat import ChatTemplate
from scaletrain.data.tokenizer import load_tokenizer
from scaletrain.errors import ConfigError

SHARD_TOKENS = 1 << 24
VALIDATION_SHARE = 0.02


@dataclass(frozen=True)
class BuildOptions:
    """What is to be made of the documents.

    Attributes:
        tokenizer: A ``tokenizer.json``, or the size of the vocabulary of one to train on the training split.
        source: Where the text comes from, for people.
        eos_token: Name of the token that ends a document, where it is not one of the usual names.
        validation_share: Share of the documents that are held out, in [0, 1), chosen by a hash of their text.
        shard_tokens: Tokens after which a shard is finished.
        rules: What is dropped, and what replaced.
        keep_text: Whether a shard holds the text beside the tokens.
        num_workers: Processes that work beside this one; 0 for none. The result does not depend on it.
        examples: What the records are; None for texts.
        special_tokens: Names of special tokens that a tokenizer to train gets besides its own.
    """

    tokenizer: Path | int
    source: str
    eos_token: str | None = None
    validation_share: float = VALIDATION_SHARE
    shard_tokens: int = SHARD_TOKENS
    rules: CleaningRules = field(default_factory=CleaningRules)
    keep_text: bool = False
    num_workers: int = 0
    examples: ExampleOptions | None = None
    special_tokens: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.validation_share < 1:
            raise ConfigError(f"validation_share is {self.validation_share}, but must be at least 0 and below 1.")
        if self.shard_tokens < 1:
            raise ConfigError(f"shard_tokens is {self.shard_tokens}, but must be at least 1.")
        if self.num_workers < 0:
            raise ConfigError(f"num_workers is {self.num_workers}, but must be at least 0.")
        if self.special_tokens and isinstance(self.tokenizer, Path):
            raise ConfigError("--special_tokens are those of a tokenizer to train; --tokenizer has its own already.")
        others = self.rules.model_copy(update={"duplicates": CleaningRules().duplicates})
        if self.examples is not None and others != CleaningRules():
            raise ConfigError(
                f"--config has rules for texts, but of --format {self.examples.format} only copies can be dropped "
                "(duplicates.*). Clean the records before, and leave the other rules out."
            )

    def template(self) -> ChatTemplate | None:
        """The template of conversations, read anew; None where there are none."""
        name = self.examples.chat_template if self.examples else None
        return None if name is None else ChatTemplate.load(name)

    def identity(self, corpus: Corpus) -> BuildIdentity:
        """By what this build is known again.

        Args:
            corpus: Its input.

        Returns:
            All that changes the result.
        """
        versions = {"scaletrain": scaletrain.__version__, "tokenizers": tokenizers.__version__}
        if self.rules.look_at_text:  # what a letter, a word and a lower case are stands in Python's tables
            versions["Python"] = ".".join(map(str, sys.version_info[:2]))
        if self.rules.duplicates.near:
            versions["datasketch"] = load_datasketch().__version__
        given = self.tokenizer
        options = {
            "the input": self.source,
            "--text_field": corpus.text_field,
            "the tokenizer": hashlib.sha256(read_tokenizer(given)).hexdigest() if isinstance(given, Path) else given,
            "--eos_token": self.eos_token,
            "--validation_share": self.validation_share,
            "--shard_tokens": self.shard_tokens,
            "--keep_text": self.keep_text,
            **self._of_examples(),
        }
        return BuildIdentity(versions | options | flatten(self.rules), corpus.files)

    def _of_examples(self) -> dict[str, Any]:
        """None for what was not asked for, as a build that knew no examples has it."""
        examples, template = self.examples, self.template()
        return {
            "--special_tokens": ",".join(self.special_tokens) or None,
            "--format": examples and examples.format,
            "--chat_template": template and hashlib.sha256(template.source.encode()).hexdigest(),
            "--classes": examples and examples.classes,
            "--max_source_tokens": examples and examples.max_source_tokens,
            "--max_target_tokens": examples and examples.max_target_tokens,
        }


def read_tokenizer(path: Path) -> bytes:
    """The content of a ``tokenizer.json``, once it has been seen to be one."""
    load_tokenizer(path)
    return path.read_bytes()

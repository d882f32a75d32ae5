"""Builds a corpus: documents become tokens, tokens become shards, and a manifest says what there is."""

import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal

import filelock
from tokenizers import Tokenizer

from scaletrain.corpus.documents import Corpus, Document
from scaletrain.corpus.encoding import ExamplePlan
from scaletrain.corpus.examples import texts_within
from scaletrain.corpus.journal import BuildIdentity, Journal, check_finished, open_journal
from scaletrain.corpus.meaning import Meaning, find_meaning
from scaletrain.corpus.options import SHARD_TOKENS, VALIDATION_SHARE, BuildOptions, read_tokenizer
from scaletrain.corpus.pipeline import keep_documents
from scaletrain.corpus.processes import call_with_stream
from scaletrain.corpus.progress import BuildProgress
from scaletrain.corpus.report import Report
from scaletrain.corpus.shard_sink import ShardSink
from scaletrain.corpus.splits import SPLITS, TEST, TRAIN, VALIDATION
from scaletrain.corpus.worker import WorkPlan
from scaletrain.data.chat import check_names
from scaletrain.data.manifest import FILE_NAME, Manifest, TokenizerEntry, largest_vocabulary, totals_of
from scaletrain.data.tokenizer import (
    END_OF_TEXT,
    added_names,
    find_borders,
    load_tokenizer,
    token_byte_lengths,
    train_byte_level_bpe,
    vocabulary_rows,
)
from scaletrain.errors import DataError
from scaletrain.files import whole_file

logger = logging.getLogger(__name__)

_TOKENIZER_FILE = "tokenizer.json"
_TRAINING_CHARACTERS = 1 << 30  # of text that a tokenizer learns from; its merges hardly change with more
# The trainer's time grows with the square of a word's length, and a line of data without a space is one word to it. No
# word of a language is as long as this.
_LONG_RUN = re.compile(r"\S{64}|\s{64}")


def build_corpus(
    open_documents: Callable[[], Iterable[Document]],
    out: Path,
    tokenizer: Path | int,
    source: str,
    eos_token: str | None = None,
    validation_share: float = VALIDATION_SHARE,
    shard_tokens: int = SHARD_TOKENS,
) -> Path:
    """Makes a corpus of documents from anywhere, in this process; one that is interrupted begins anew.

    Args:
        open_documents: Gives all documents anew at each call; called twice where a tokenizer is trained.
        out: The folder of the corpus.
        tokenizer: See ``BuildOptions`` for this and the following.
        source: Where the text comes from, for people.
        eos_token: Name of the token that ends a document.
        validation_share: Share of the documents that are held out.
        shard_tokens: Tokens after which a shard is finished.

    Returns:
        Path of the manifest.

    Raises:
        DataError: There is a corpus already, ``out`` cannot be written, or there is nothing to train on.
        ConfigError: A number is out of its range.
    """
    options = BuildOptions(tokenizer, source, eos_token, validation_share, shard_tokens)
    return _Build(open_documents, None, out, options).run()


def build_from_files(corpus: Corpus, out: Path, options: BuildOptions) -> Path:
    """Makes a corpus of files; called again after an interruption it goes on where it was.

    Documents keep their order. Training shuffles them within windows of shards only: where neighbours in the input
    are much alike and the corpus has many more shards than a window, shuffle the input first.

    Args:
        corpus: The files.
        out: The folder of the corpus: shards, their indexes, the tokenizer's copy, the report, and last the manifest.
        options: What is made of them.

    Returns:
        Path of the manifest; at once where the same build is finished already. All files are the same, byte for byte,
        for the same input and options, whatever the number of workers and interruptions.

    Raises:
        DataError: There is a corpus of somebody else already, ``out`` cannot be written, the input is damaged, or
            there is nothing to train on.
        ConfigError: A number is out of its range, or ``out`` holds another build, interrupted or finished.
    """
    return _Build(corpus.documents, corpus, out, options).run()


class _Build:
    def __init__(
        self,
        open_documents: Callable[[], Iterable[Document]],
        corpus: Corpus | None,
        out: Path,
        options: BuildOptions,
    ) -> None:
        self.open_documents = open_documents
        self.corpus = corpus
        self.out = out
        self.options = options
        self.report = Report()

    def run(self) -> Path:
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(self.out / ".lock", blocking=False):
                if (self.out / FILE_NAME).exists():
                    check_finished(self.out, self._identity())
                    logger.info("the corpus in %s is complete; nothing is left to do", self.out)
                    return self.out / FILE_NAME
                self._check_template()
                meaning = self._meaning()
                journal = open_journal(self.out, self._identity())
                tokenizer = self._tokenizer(journal)
                path = self._write(journal, tokenizer, meaning)
                journal.close()
                return path
        except filelock.Timeout:
            raise DataError(
                f"Another process is building a corpus in {self.out}. Wait for it, or give another --out."
            ) from None
        except OSError as error:
            raise DataError(
                f"The corpus cannot be written to {self.out}: {error.strerror or error}. Make room, or give another "
                "--out."
            ) from None

    def _identity(self) -> BuildIdentity | None:
        return None if self.corpus is None else self.options.identity(self.corpus)

    def _check_template(self) -> None:
        """Before anything is written: else the folder would have to be deleted for another try."""
        template, given = self.options.template(), self.options.tokenizer
        if template is not None:
            trained = {END_OF_TEXT, *self.options.special_tokens}
            check_names(template, added_names(load_tokenizer(given)) if isinstance(given, Path) else trained)

    def _meaning(self) -> Meaning | None:
        examples = self.options.examples
        return None if examples is None else find_meaning(self.open_documents(), examples)

    def _tokenizer(self, journal: Journal) -> Tokenizer:
        """The tokenizer of the corpus, which lies in its folder from here on."""
        path = self.out / _TOKENIZER_FILE
        if journal.tokenizer is None or not path.exists() or _sha256(path) != journal.tokenizer:
            given = self.options.tokenizer
            content = read_tokenizer(given) if isinstance(given, Path) else self._train(given)
            with whole_file(path) as stream:
                stream.write(content)
            journal.add_tokenizer(_sha256(path))
        tokenizer = load_tokenizer(path)
        if self.options.examples is None or self.options.examples.format == "chat":
            token_byte_lengths(tokenizer)  # raises where evaluation could not tell bits per byte later
        return tokenizer

    def _train(self, vocab_size: int) -> bytes:
        report = Report()
        texts = self._texts_to_learn_from(report)
        first = next(texts, None)
        if first is None:
            raise self._nothing_left(report)
        logger.info("training a tokenizer of %d tokens", vocab_size)
        train = partial(_train_tokenizer, vocab_size=vocab_size, special_tokens=self.options.special_tokens)
        if self.options.num_workers == 0:
            return train(chain([first], texts))
        return call_with_stream(train, chain([first], texts))  # the trainer does not listen to Ctrl-C

    def _nothing_left(self, report: Report) -> DataError:
        report.skipped.update(self.corpus.skipped() if self.corpus else {})
        return DataError(
            f"The corpus is empty: {self.options.source} gave no document to train on; {'; '.join(report.lines())}. "
            "Check the input, the rules and --validation_share."
        )

    def _texts_to_learn_from(self, report: Report) -> Iterator[str]:
        plan = WorkPlan(self.options.rules, self.options.validation_share, want_text=True)
        workers = self.options.num_workers if self.options.rules.look_at_text else 0
        characters = 0
        with BuildProgress("reading for the tokenizer", self._share_done()) as progress:
            for kept in keep_documents(self.open_documents(), plan, workers, report, progress):
                text = kept.worked.text
                if kept.worked.split != TRAIN or text is None:
                    continue
                for part in [text] if self.options.examples is None else texts_within(text):
                    yield from _cut_long_runs(part)
                characters += len(text)
                if characters > _TRAINING_CHARACTERS:
                    logger.info("the tokenizer is trained on the first %s characters", f"{characters:,}")
                    return

    def _write(self, journal: Journal, tokenizer: Tokenizer, meaning: Meaning | None) -> Path:
        options = self.options
        borders = find_borders(tokenizer, options.eos_token)
        rows = vocabulary_rows(tokenizer)
        means = meaning or Meaning()
        dtype: Literal["uint16", "uint32"] = "uint16" if rows <= largest_vocabulary("uint16", means.parts) else "uint32"
        plan = WorkPlan(
            options.rules,
            options.validation_share,
            self.out / _TOKENIZER_FILE,
            borders,
            dtype,
            options.keep_text,
            None if meaning is None else self._example_plan(meaning),
        )
        self._write_shards(journal, plan)
        self._finish_report(journal)
        entry = TokenizerEntry(
            file=_TOKENIZER_FILE,
            sha256=_sha256(self.out / _TOKENIZER_FILE),
            vocab_size=rows,
            eos_id=borders.eos_id,
            bos_id=borders.bos_id,
        )
        splits = {split: tuple(shards) for split, shards in journal.shards.items() if shards or split != TEST}
        template = options.template()
        manifest = Manifest(
            location=str(self.out / FILE_NAME),
            source=options.source,
            dtype=dtype,
            tokenizer=entry,
            parts=means.parts,
            values=means.values,
            classes=means.classes,
            chat_template=template and template.source,
            splits=splits,
            totals={name: totals_of(shards) for name, shards in splits.items()},
        )
        return manifest.write()

    def _example_plan(self, meaning: Meaning) -> ExamplePlan:
        examples, template = self.options.examples, self.options.template()
        assert examples is not None
        return ExamplePlan(
            examples.format,
            meaning,
            None if template is None else (template.source, template.name),
            (examples.max_source_tokens, examples.max_target_tokens),
        )

    def _finish_report(self, journal: Journal) -> None:
        if not journal.shards[TRAIN]:
            raise self._nothing_left(self.report)
        if not journal.shards[VALIDATION] and self.options.validation_share > 0:
            logger.warning("no document was held out for validation: raise --validation_share or set it to 0")
        if self.corpus:
            self.report.skipped.update(self.corpus.skipped())
            self.corpus.log_skipped_files()
        self.report.write(self.out)
        journal.keep_plan()

    def _write_shards(self, journal: Journal, plan: WorkPlan) -> None:
        finished = dict(journal.until)
        if any(finished.values()):
            shards = [entry for entries in journal.shards.values() for entry in entries]
            held = sum(entry.documents for entry in shards)
            logger.info("going on after %d finished shards, which hold %s documents", len(shards), f"{held:,}")

        def sink(split: str) -> ShardSink:
            entries = journal.shards[split]
            return ShardSink(self.out, split, self.options.shard_tokens, entries, journal.add_shard)

        with (
            BuildProgress("tokenizing", self._share_done()) as progress,
            sink(TRAIN) as train,
            sink(VALIDATION) as validation,
            sink(TEST) as test,
        ):
            sinks = dict(zip(SPLITS, (train, validation, test), strict=True))
            documents = self.open_documents()
            for kept in keep_documents(documents, plan, self.options.num_workers, self.report, progress, finished):
                if kept.ordinal >= finished[kept.worked.split]:
                    sinks[kept.worked.split].add(kept)

    def _share_done(self) -> Callable[[], float] | None:
        corpus = self.corpus
        if corpus is None:
            return None
        size = max(1, corpus.size)
        return lambda: corpus.reading.bytes / size


def _train_tokenizer(texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str]) -> bytes:
    return train_byte_level_bpe(texts, vocab_size, special_tokens).to_str().encode()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _cut_long_runs(text: str) -> Iterator[str]:
    done = 0
    for run in _LONG_RUN.finditer(text):
        yield text[done : run.end()]
        done = run.end()
    yield text[done:]

"""From documents to what is kept of them: copies are found here, in order; the work is done in the workers."""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

from scaletrain.corpus.documents import Document
from scaletrain.corpus.duplicates import ExactDuplicates, NearDuplicates, digest_of
from scaletrain.corpus.processes import run_in_order
from scaletrain.corpus.progress import BuildProgress
from scaletrain.corpus.report import Report
from scaletrain.corpus.worker import Batch, Worked, WorkPlan, work
from scaletrain.errors import DataError

EXACT, NEAR = "duplicates.exact", "duplicates.near"
_BATCH_CHARACTERS = 1 << 17  # of text in a batch: some hundredths of a second of work
_BATCH_DOCUMENTS = 1 << 10


class Kept(NamedTuple):
    """A document of the corpus: its number in the input, where it comes from, and what the worker made of it."""

    ordinal: int
    source: str
    worked: Worked


def keep_documents(
    documents: Iterable[Document],
    plan: WorkPlan,
    num_workers: int,
    report: Report,
    progress: BuildProgress,
    finished: Mapping[str, int] | None = None,
) -> Iterator[Kept]:
    """Applies the rules to documents.

    Args:
        documents: All of the input, from its beginning.
        plan: What the workers do.
        num_workers: Processes; 0 for none but this one. The result does not depend on it.
        report: Counts what is read, removed and kept.
        progress: Is told how far it is.
        finished: For each split the ordinal below which documents need no tokens, since their shards are there.

    Yields:
        What stays, in the order of the input.

    Raises:
        DataError: An example cannot be encoded.
    """
    passed_on: dict[int, tuple[str, int]] = {}  # source and bytes of what is with the workers
    near = NearDuplicates()
    replaced = ExactDuplicates()
    batches = _batches(documents, plan, report, passed_on, dict(finished or {}))
    for batch, results in run_in_order(partial(work, plan), batches, num_workers):
        for ordinal, worked in zip(batch.ordinals, results, strict=True):
            source, n_bytes = passed_on.pop(ordinal)
            if worked.problem is not None:
                raise DataError(f"{source}: {worked.problem}")
            rule = worked.removed_by
            if rule is None and worked.digest is not None and replaced.is_copy(worked.digest):
                rule = EXACT
            if rule is None and worked.bands is not None and near.is_copy(worked.bands):
                rule = NEAR
            progress.advance(n_bytes, worked.n_tokens)
            if rule is not None:
                report.add_removed(rule, n_bytes)
                continue
            report.add_kept(worked)
            yield Kept(ordinal, source, worked)


def _batches(
    documents: Iterable[Document],
    plan: WorkPlan,
    report: Report,
    passed_on: dict[int, tuple[str, int]],
    finished: dict[str, int],
) -> Iterator[Batch]:
    exact = ExactDuplicates() if plan.rules.duplicates.exact else None
    batch = Batch([], [], [], finished)
    characters = 0
    for ordinal, document in enumerate(documents):
        content = document.text.encode()
        report.add_read(len(content))
        # Here rather than in a worker, so that no copy is tokenized only to be dropped.
        if exact is not None and exact.is_copy(digest_of(content)):
            report.add_removed(EXACT, len(content))
            continue
        passed_on[ordinal] = document.source, len(content)
        batch.ordinals.append(ordinal)
        batch.texts.append(document.text)
        batch.splits.append(document.split)
        characters += len(document.text)
        if characters >= _BATCH_CHARACTERS or len(batch.texts) >= _BATCH_DOCUMENTS:
            yield batch
            batch, characters = Batch([], [], [], finished), 0
    if batch.texts:
        yield batch

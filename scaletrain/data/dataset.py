"""The sequences of a run by their index, as tokens: the order says which pieces, the readers fetch them."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray

from scaletrain.config.batch_plan import FILLING
from scaletrain.data.mixture import Phase
from scaletrain.data.order import DatasetOptions, order_of
from scaletrain.data.packing import Row, row_checksum, value_checksum
from scaletrain.data.parts import split_parts
from scaletrain.data.rows import Collate, MicroBatch, Rows, next_tokens
from scaletrain.data.shards import ShardReader, Wanted
from scaletrain.data.source_order import Window
from scaletrain.errors import BadShardError
from scaletrain.protocols import SkippedShard


class SequenceDataset:
    """The sequences of a run: item i is the same on every rank and in every worker."""

    def __init__(
        self,
        readers: Sequence[ShardReader],
        options: DatasetOptions,
        phases: Sequence[Phase] | None = None,
        skipped: Sequence[SkippedShard] = (),
        collate: Collate = next_tokens,
        reads_others: bool = False,
    ) -> None:
        """Computes the order; opens no shard.

        Args:
            readers: Of each source, with one tokenizer.
            options: What the order depends on.
            phases: Weights of the sources over time; equal ones by default.
            skipped: Shards whose tokens are masked from a sequence on.
            collate: Makes tensors of rows.
            reads_others: Whether each row comes with another one of its window.

        Raises:
            DataError: A source has fewer shards than there are lanes, or was not counted for best-fit packing.
            ConfigError: The sources have different tokenizers.
        """
        self.readers = list(readers)
        self.options = options
        self.names = [reader.name for reader in readers]
        manifest = readers[0].manifest
        self.eos_id, self.vocab_size = manifest.tokenizer.eos_id, manifest.tokenizer.vocab_size
        self._dtype = readers[0].dtype
        self.order = order_of(readers, options, phases)
        self._masked_from = self._first_sequences(skipped)
        self._lost_from = self._first_sequences([shard for shard in skipped if shard.of_index])
        self._entered: dict[tuple[int, int], tuple[int, int, Window]] = {}
        self._in_use: dict[tuple[int, int], list[Wanted]] = {}
        self._ahead: dict[tuple[int, int], list[Wanted]] = {}
        self._collate, self._reads_others = collate, reads_others
        self._has_parts = manifest.parts
        # Of rows that hold several documents no value is asked for.
        self._n_values = len(manifest.values) if options.packing == "document" else 0

    def micro_batch(self, indices: Sequence[int]) -> MicroBatch:
        """Collates sequences into what one forward pass takes.

        Args:
            indices: Of the sequences in the run, from 0; ``FILLING`` for rows without targets.

        Returns:
            The micro batch, on the CPU.

        Raises:
            BadShardError: A shard or its index is missing or damaged, and not skipped.
        """
        sources, rows, checksum = self._rows(indices)
        if self._reads_others:
            _, others, _ = self._rows(indices, halves=1)
            rows = dataclasses.replace(rows, others=others)
        collated = self._collate(rows)
        return MicroBatch(
            inputs=collated.inputs,
            targets=collated.targets_B,
            sources=torch.from_numpy(np.array(sources)),
            sequences=torch.tensor(indices, dtype=torch.int64),
            checksum=checksum % 2**64,
        )

    def _rows(self, indices: Sequence[int], halves: int = 0) -> tuple[list[int], Rows, int]:
        """The sources of sequences, their rows, or those that many half windows further on, and their checksum."""
        words = np.full((len(indices), self.options.max_seq_len + 1), self.eos_id, dtype=self._dtype)
        values = np.zeros((len(indices), self._n_values))
        placed, sources, pieces, checksum = [], [], [], 0
        for number, index in enumerate(indices):
            source, row, read = (0, _EMPTY, _NOTHING)
            if index != FILLING:
                source, row, read = self._read(index, words[number], values[number], halves)
                checksum += row_checksum(index, words[number], row) + value_checksum(index, values[number])
            placed.append(row)
            sources.append(source)
            pieces.append(read)
        tokens, parts = split_parts(words) if self._has_parts else (words, None)
        if int(tokens.max()) >= self.vocab_size:
            self._blame(tokens, indices, sources, pieces)
        borders = self.options.document_borders
        return sources, Rows(tokens, placed, indices, borders, parts, values if self._n_values else None), checksum

    def _read(
        self, index: int, out: NDArray[np.unsignedinteger], values: NDArray[np.float64], halves: int
    ) -> tuple[int, Row, Sequence[Sequence[int]]]:
        """Fills a row with a sequence's tokens, and with the values of its document; and says from which pieces."""
        if self.lost_shards(index):
            return self.order.locate(index).source, _EMPTY, _NOTHING
        place, lane = divmod(index, self.options.num_lanes)
        source, number = self.order.mixture.locate(lane, place)
        # Neighbours of a lane mostly lie in one window: only the first of them is looked up.
        begin, end, window = self._entered.get((source, lane), _NOWHERE)
        if not begin <= number < end:
            begin, end, window = self._enter(source, lane, number)
        left_out: Collection[int] = ()
        if self._masked_from:
            left_out = [shard for (of, shard), first in self._masked_from.items() if of == source and first <= index]
        pieces = window.pieces_of((number - begin + halves * len(window) // 2) % len(window))
        if self._n_values:
            shard, document, *_ = pieces[0]
            values[:] = self.readers[source].values(shard, document)
        return source, self.readers[source].read_row(out, pieces, left_out), pieces

    def _enter(self, source: int, lane: int, number: int) -> tuple[int, int, Window]:
        """Opens the window of a sequence of a lane; fetches all of it at once, and the next one ahead of need."""
        own, reader = self.order.sources[source], self.readers[source]
        for other in self.readers:
            other.release_evicted()
        place = own.locate(lane, number)
        if reader.is_remote:
            self._in_use.pop((source, lane), None)  # the lane that waits now goes before those that have begun
            self._in_use = {(source, lane): reader.wanted(own.members(lane, place.window).tolist()), **self._in_use}
            self._ahead[source, lane] = reader.wanted(own.members_after(lane, place).tolist())
            reader.storage.prefetch(list(chain(*self._in_use.values(), *self._ahead.values())))
        window = own.window(lane, place.epoch, place.window)
        begin = number - place.position
        self._entered[source, lane] = (begin, begin + len(window), window)
        return self._entered[source, lane]

    def lost_shards(self, index: int) -> list[int]:
        """Shards without an index in the window of a sequence: the places of all its documents are unknown, then."""
        if not self._lost_from:
            return []
        location = self.order.locate(index)
        shards = self.order.members(location).tolist()
        return [shard for shard in shards if self._lost_from.get((location.source, shard), index + 1) <= index]

    def is_masked(self, index: int, source: int, shard: int) -> bool:
        """Whether the tokens of a shard are left out of a sequence."""
        return self._masked_from.get((source, shard), index + 1) <= index or bool(self.lost_shards(index))

    def is_left_out(self, source: int, shard: int) -> bool:
        """Whether the tokens of a shard are left out from some sequence on."""
        return (source, shard) in self._masked_from

    def _first_sequences(self, skipped: Sequence[SkippedShard]) -> Mapping[tuple[int, int], int]:
        """For each shard the first sequence from which it is left out."""
        first: dict[tuple[int, int], int] = {}
        for shard in skipped:
            key = (self.names.index(shard.source), shard.shard)
            first[key] = min(shard.from_sequence, first.get(key, shard.from_sequence))
        return first

    def _blame(
        self,
        tokens: NDArray[np.unsignedinteger],
        indices: Sequence[int],
        sources: Sequence[int],
        pieces: Sequence[Sequence[Sequence[int]]],
    ) -> None:
        row, place = np.argwhere(tokens >= self.vocab_size)[0].tolist()
        begin, reader = 0, self.readers[sources[row]]
        for shard, _, start, stop in pieces[row]:
            end = begin + stop - start
            if place < end:
                raise BadShardError(
                    f"Sequence {indices[row]} holds token {int(tokens[row, place])}, but the vocabulary has "
                    f"{self.vocab_size}: {reader.describe(shard)} is damaged. Copy it again from where it came, "
                    "or build the corpus again with tools/make_shards.py.",
                    reader.name,
                    shard,
                )
            begin = end


_EMPTY = Row((0,), 1)
"""A row without targets, which fills up a micro batch and weighs nothing."""
_NOTHING: Sequence[Sequence[int]] = ()
_NOWHERE = (0, 0, Window(np.zeros(1, dtype=np.int64), np.zeros((0, 4), dtype=np.int32)))

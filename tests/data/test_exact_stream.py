"""The promise of the data, all of it at once: whatever cuts a run, its stream of batches is the one of the reference.

HYPOTHESIS_PROFILE=thorough runs many more examples.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from scaletrain.config.batch_plan import BatchSchedule
from scaletrain.data.dataset import SequenceDataset
from scaletrain.data.loader import Share, iterate_steps
from scaletrain.data.mixture import Phase
from scaletrain.data.order import DatasetOptions, Order
from scaletrain.data.rows import MicroBatch
from scaletrain.data.shards import ShardReader
from scaletrain.protocols import SkippedShard
from tests.data.readers import MemoryReader, write_tars
from tests.data.reference_order import (
    BLOCK,
    EOS,
    IGNORED,
    PERIOD,
    Lengths,
    Located,
    Recipe,
    Row,
    lanes_of,
    row_of,
    told,
    walk,
    weight_units,
)

FILLING = -1


@dataclass(frozen=True)
class Segment:
    """A part of a run, from one start to the next."""

    world_size: int
    micro_batch_size: int
    num_workers: int
    steps: int


@dataclass(frozen=True)
class Story:
    """A whole run: what its data depends on, and how it was cut. ``schedule`` has (first sequence behind, size)."""

    recipe: Recipe
    schedule: tuple[tuple[int | None, int], ...]
    first_step: int
    segments: tuple[Segment, ...]
    skipped: tuple[SkippedShard, ...]


# Sources that lie on a disk as well, so that the tars are written once.
ON_DISK: tuple[Lengths, ...] = (
    ((5, 9, 3), (7, 4, 6), (12, 3, 0, 2), (8, 6), (30,), (2, 2, 1, 2)),
    ((4, 4, 4), (17, 2), (1, 6, 11), (9,), (3, 13, 5, 8)),
    ((20,), (2,), (6, 6, 6, 7), (10, 3)),
)
ON_DISK_LENGTHS = (3, 8)


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], ShardReader]:
    folder = tmp_path_factory.mktemp("tars")
    manifests = [write_tars(folder, source, shards, ON_DISK_LENGTHS) for source, shards in enumerate(ON_DISK)]
    return lambda source: ShardReader(manifests[source], "train", name=f"source {source}")


def lengths_of_sources(n_sources: int, num_lanes: int) -> st.SearchStrategy[tuple[Lengths, ...]]:
    # At least one token to predict in each shard, or a lane could have none.
    shard = st.builds(
        lambda some, long, at: (*some[:at], long, *some[at:]),
        st.lists(st.integers(0, 12) | st.integers(0, 30), max_size=5).map(tuple),
        st.integers(2, 30),
        st.integers(0, 5),
    )
    shards = st.lists(shard, min_size=num_lanes, max_size=num_lanes + 3).map(tuple)
    return st.tuples(*[shards] * n_sources)


def weights(n_sources: int) -> st.SearchStrategy[tuple[float, ...]]:
    weight = st.sampled_from([0.0, 1.0, 1.0, 3.0, 0.25, 1e-9]) | st.floats(0, 1, allow_subnormal=False)
    return st.tuples(*[weight] * n_sources).filter(any)


@st.composite
def ascending(draw: st.DrawFn, values: st.SearchStrategy[Any], longest: int) -> tuple[tuple[int | None, Any], ...]:
    """Phases with their ends, of which the last has none."""
    until, phases = 0, []
    for _ in range(draw(st.integers(0, 2))):
        until += draw(st.integers(1, longest))
        phases.append((until, draw(values)))
    return (*phases, (None, draw(values)))


@st.composite
def stories(draw: st.DrawFn, on_disk: bool) -> Story:
    n_sources, num_lanes = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    recipe = Recipe(
        sources=ON_DISK[:n_sources] if on_disk else draw(lengths_of_sources(n_sources, num_lanes)),
        phases=draw(ascending(weights(n_sources), draw(st.sampled_from([20, 600])))),
        max_seq_len=draw(st.sampled_from(ON_DISK_LENGTHS) if on_disk else st.integers(1, 14)),
        num_lanes=num_lanes,
        window_shards=draw(st.integers(1, 3)),
        seed=draw(st.integers(0, 2**63 - 1)),
        packing=draw(st.sampled_from(["concat", "best_fit", "document"])),
    )
    schedule = draw(ascending(st.integers(1, 9), draw(st.sampled_from([12, 60]))))
    first_step = draw(st.just(0) | st.integers(0, 300))
    micro_batch_size = st.integers(1, min(size for _, size in schedule))
    unforked = st.builds(Segment, st.integers(1, 4), micro_batch_size, st.just(0), st.integers(1, 12))
    # Workers are processes, and take time to start: few examples have some, and then not for long.
    forked = st.builds(Segment, st.integers(1, 2), micro_batch_size, st.integers(1, 2), st.integers(1, 4))
    segment = st.integers(0, 19).flatmap(lambda die: forked if die == 19 else unforked)
    segments = tuple(draw(st.lists(segment, min_size=1, max_size=4)))
    first = sizes_and_starts(schedule, first_step)[-1][0]
    last = sizes_and_starts(schedule, first_step + sum(segment.steps for segment in segments))[-1][0]
    shards = [(source, shard) for source in range(n_sources) for shard in range(len(recipe.sources[source]))]
    skipped = st.builds(
        lambda which, start, of_index: SkippedShard(f"source {which[0]}", which[1], "", start, of_index),
        st.sampled_from(shards),
        st.integers(max(0, first - 20), last),
        st.booleans(),
    )
    return Story(recipe, schedule, first_step, segments, tuple(draw(st.lists(skipped, max_size=3))))


def sizes_and_starts(schedule: Sequence[tuple[int | None, int]], steps: int) -> list[tuple[int, int]]:
    """First sequence and size of the first steps and of the one behind them, one after the other."""
    found, sequence = [], 0
    for _ in range(steps + 1):
        size = next(size for until, size in schedule if until is None or sequence < until)
        found.append((sequence, size))
        sequence += size
    return found


def open_dataset(story: Story, readers: Sequence[ShardReader], skipped: Sequence[SkippedShard]) -> SequenceDataset:
    recipe = story.recipe
    options = DatasetOptions(recipe.max_seq_len, recipe.num_lanes, recipe.window_shards, recipe.seed, recipe.packing)
    return SequenceDataset(readers, options, [Phase(*phase) for phase in recipe.phases], skipped)


def rows_of(micro_batch: MicroBatch) -> list[Row]:
    """The rows of a micro batch, with the borders that are left out where each row is one document."""
    width = micro_batch["inputs"]["tokens"].shape[1]
    tokens, targets = micro_batch["inputs"]["tokens"].tolist(), micro_batch["inputs"]["targets"].tolist()
    documents = (
        [[0] * width] * len(tokens)
        if micro_batch["inputs"]["documents"] is None
        else micro_batch["inputs"]["documents"].tolist()
    )
    whole = [list(range(width))] * len(tokens)
    positions = whole if micro_batch["inputs"]["positions"] is None else micro_batch["inputs"]["positions"].tolist()
    assert micro_batch["inputs"]["documents"] is None or any(any(row) for row in documents), (
        "borders are told where none are"
    )
    sources = micro_batch["sources"].tolist()
    # One checksum for all rows: it is compared apart.
    return [Row(*row, 0) for row in zip(tokens, targets, documents, positions, sources, strict=True)]


def filling(width: int) -> Row:
    return Row([EOS] * width, [IGNORED] * width, [0] * width, list(range(width)), 0, 0)


def check_segment(
    story: Story, segment: Segment, first_step: int, expected: Callable[[int], Row], open_readers: Callable[[], Any]
) -> None:
    """Fetches the steps of a segment on all of its ranks and compares each row with the reference."""
    phases = tuple((until, size) for until, size in story.schedule if until is not None)
    schedule = BatchSchedule(phases, story.schedule[-1][1])
    steps = sizes_and_starts(story.schedule, first_step + segment.steps)[first_step:-1]
    first_sequence = schedule.sequence_after(0, first_step)
    assert first_sequence == steps[0][0], "the schedule's closed form"
    read: list[set[tuple[int, int]]] = []
    opened: list[set[tuple[int, int]]] = []
    for rank in range(segment.world_size):
        readers = open_readers()
        lose(story, readers, first_sequence)
        dataset = open_dataset(story, readers, story.skipped)
        share = Share(schedule, segment.micro_batch_size, rank, segment.world_size)
        stream = iterate_steps(dataset, share, first_step, first_sequence, segment.num_workers, prefetch=2)
        read.append(set())
        for step, (first, size) in enumerate(steps, start=first_step):
            batch = next(stream)
            assert (batch.step, batch.first_sequence, batch.global_batch_size) == (step, first, size)
            most = -(-size // segment.world_size)
            assert len(batch.micro_batches) == -(-most // segment.micro_batch_size)
            own = [sequence for sequence in range(first, first + size) if sequence % segment.world_size == rank]
            own += [FILLING] * (len(batch.micro_batches) * segment.micro_batch_size - len(own))
            for number, micro_batch in enumerate(batch.micro_batches):
                held = own[number * segment.micro_batch_size :][: segment.micro_batch_size]
                check_micro_batch(micro_batch, held, expected, f"step {step}, rank {rank}, micro step {number}")
                for row in rows_of(micro_batch):
                    read[rank] |= {told(token)[:2] for token in row.tokens if token != EOS}
        stream.close()
        opened.append({(source, shard) for source, reader in enumerate(readers) for shard in opened_by(reader)})
    if story.recipe.num_lanes % segment.world_size == 0:
        check_locality(story.recipe, segment.world_size, read)
        check_locality(story.recipe, segment.world_size, opened)


def check_micro_batch(micro_batch: MicroBatch, held: list[int], expected: Callable[[int], Row], where: str) -> None:
    width = micro_batch["inputs"]["tokens"].shape[1]
    rows = [filling(width) if sequence == FILLING else expected(sequence) for sequence in held]
    for sequence, row, found in zip(held, rows, rows_of(micro_batch), strict=True):
        for name in ("tokens", "targets", "documents", "positions", "source"):
            wanted, there = getattr(row, name), getattr(found, name)
            if there != wanted:
                show = written if name in ("tokens", "targets") else str
                pytest.fail(f"{where}, sequence {sequence}: {name} {show(there)}, but the reference has {show(wanted)}")
    assert micro_batch["checksum"] == sum(row.checksum for row in rows) % 2**64, f"{where}: checksum of {held}"


def written(tokens: Sequence[int]) -> str:
    """Ranges of tokens as source.shard.document[start:stop]; EOS and IGNORED as they are, each with its number."""
    ranges: list[list[Any]] = []
    for token in tokens:
        *document, place = ("", token, 0, 0) if token in (EOS, IGNORED) else told(token)
        if ranges and ranges[-1][0] == document and (ranges[-1][2] == place or document[0] == ""):
            ranges[-1][2] += 1
        else:
            ranges.append([document, place, place + 1])
    return " ".join(
        f"{document[1]} x {stop - start}" if document[0] == "" else f"{'.'.join(map(str, document))}[{start}:{stop}]"
        for document, start, stop in ranges
    )


def lose(story: Story, readers: Sequence[ShardReader], first_sequence: int) -> None:
    """Takes away what is skipped from the start on: nothing may try to read it again."""
    for shard in story.skipped:
        reader = readers[int(shard.source.split()[1])]
        if isinstance(reader, MemoryReader) and shard.from_sequence <= first_sequence:
            (reader.lost_indexes if shard.of_index else reader.lost_content).add(shard.shard)


def opened_by(reader: ShardReader) -> set[int]:
    return reader.opened if isinstance(reader, MemoryReader) else set()


def check_locality(recipe: Recipe, world_size: int, shards_of_ranks: Sequence[set[tuple[int, int]]]) -> None:
    """Each rank touches shards of its own lanes only, so that no two touch the same."""
    for rank, shards in enumerate(shards_of_ranks):
        own = {
            (source, shard)
            for source, lengths in enumerate(recipe.sources)
            for lane in lanes_of(lengths, recipe.num_lanes)[rank::world_size]
            for shard in lane
        }
        assert shards <= own, (
            f"rank {rank} of {world_size} reads {sorted(shards - own)}, (source, shard) of other lanes"
        )


def check_exactly_once(
    recipe: Recipe, clean: Sequence[Row], walked: Sequence[Located], before: Sequence[Located]
) -> None:
    """In each epoch of a lane that lies in the stream as a whole, each token but a first one is a target once."""
    begun = {(entry.source, entry.lane, entry.epoch) for entry in before}
    ended = {(entry.source, entry.lane, entry.epoch - 1) for entry in walked}
    predicted: dict[tuple[int, int, int], Counter[tuple[int, ...]]] = {}
    for row, entry in zip(clean, walked, strict=True):
        targets = [told(target) for target in row.targets if target != IGNORED]
        predicted.setdefault((entry.source, entry.lane, entry.epoch), Counter()).update(targets)
        for place, target in enumerate(row.targets):
            if target != IGNORED:
                source, shard, document, at = told(row.tokens[place])
                assert told(target) == (source, shard, document, at + 1), (
                    "a target is not the next token of its document"
                )
    for source, lane, epoch in (predicted.keys() & ended) - begun:
        everything = {
            (source, shard, document, place)
            for shard in lanes_of(recipe.sources[source], recipe.num_lanes)[lane]
            for document, length in enumerate(recipe.sources[source][shard])
            # A document with a row of its own is cut where the row ends.
            for place in range(1, min(length, recipe.max_seq_len + 1) if recipe.packing == "document" else length)
        }
        assert predicted[source, lane, epoch] == Counter(everything), f"epoch {epoch} of lane {lane} of source {source}"


def check_quotas(recipe: Recipe, order: Order, first: int) -> None:
    """In each whole block of a lane a source has its share, rounded up or down: in the blocks from the start on."""
    starts = [0, *(until for until, _ in recipe.phases if until is not None)]
    for lane, phase in itertools.product(range(recipe.num_lanes), range(len(starts))):
        begin, (until, shares) = starts[phase], recipe.phases[phase]
        block = begin + max(0, first // recipe.num_lanes - begin) // BLOCK * BLOCK
        if until is None or block + BLOCK <= until:
            places = range(block, block + BLOCK)
            counts = Counter(order.locate(place * recipe.num_lanes + lane).source for place in places)
            for source, units in enumerate(weight_units(shares)):
                assert abs(counts[source] - units / PERIOD) < 1, f"source {source} in {places} of lane {lane}: {counts}"


def check_skipping(story: Story, masked: Sequence[Row], clean: Sequence[Row], walked: Sequence[Located]) -> None:
    """What is masked is what was skipped, from its sequence on; everything else is as without skipping."""
    for row, whole, entry in zip(masked, clean, walked, strict=True):
        active = [
            shard
            for shard in story.skipped
            if shard.source == f"source {entry.source}" and shard.from_sequence <= entry.index
        ]
        gone = {shard.shard for shard in active}
        if {shard.shard for shard in active if shard.of_index} & set(entry.window):
            assert row._replace(checksum=0) == filling(len(row.tokens))._replace(source=entry.source)
            continue
        kept = [token == EOS or told(token)[1] not in gone for token in whole.tokens]
        for place, keep in enumerate(kept):
            assert row.tokens[place] == (whole.tokens[place] if keep else EOS), (entry, place)
            assert row.targets[place] == (whole.targets[place] if keep else IGNORED), (entry, place)
        assert (row.documents, row.positions, row.source) == (whole.documents, whole.positions, whole.source), entry


def check(story: Story, open_readers: Callable[[], Any]) -> None:
    recipe = story.recipe
    steps = sizes_and_starts(story.schedule, story.first_step + sum(segment.steps for segment in story.segments))
    first, last = steps[story.first_step][0], steps[-1][0]
    sequences = list(itertools.islice(walk(recipe), last))
    before, walked = sequences[:first], sequences[first:]

    def expected(sequence: int) -> Row:
        entry = sequences[sequence]
        active = [
            shard
            for shard in story.skipped
            if shard.source == f"source {entry.source}" and shard.from_sequence <= sequence
        ]
        lost = any(shard.of_index and shard.shard in entry.window for shard in active)
        return row_of(entry, recipe.max_seq_len, {shard.shard for shard in active}, lost)

    first_step = story.first_step
    for segment in story.segments:
        note(f"{segment} begins at step {first_step}, sequence {steps[first_step][0]}")
        check_segment(story, segment, first_step, expected, open_readers)
        first_step += segment.steps
    dataset = open_dataset(story, open_readers(), ())
    clean = rows_of(dataset.micro_batch(range(first, last)))
    check_exactly_once(recipe, clean, walked, before)
    check_quotas(recipe, dataset.order, first)
    check_skipping(story, [expected(sequence) for sequence in range(first, last)], clean, walked)


@settings(deadline=None)
@given(stories(on_disk=False))
def test_however_a_run_is_cut_its_stream_is_that_of_the_reference(story: Story) -> None:
    recipe = story.recipe
    check(story, lambda: [MemoryReader(n, shards, recipe.max_seq_len) for n, shards in enumerate(recipe.sources)])


@settings(deadline=None, max_examples=settings().max_examples // 10)
@given(story=stories(on_disk=True))
def test_the_same_from_tars_on_a_disk(story: Story, tars: Callable[[int], ShardReader]) -> None:
    check(story, lambda: [tars(source) for source in range(len(story.recipe.sources))])

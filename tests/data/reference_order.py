"""The order of the data in its plainest form, written from docs/data_order.md and from nothing else.

It walks from the first sequence on, place by place, and materialises every window: no search, no closed form, no
numpy. What the program computes is compared with it.
"""

import itertools
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple

import xxhash

Packing = Literal["concat", "best_fit", "document"]

WORD = 2**64
EOS = 0
IGNORED = -100
BLOCK, PERIOD, STRIDE = 256, 4096, 2531
SHARDS, WINDOWS, CONTENT, MIXTURE, SOURCE, TURN = 1, 2, 3, 4, 5, 6

Lengths = tuple[tuple[int, ...], ...]
"""Tokens of each document of each shard of a source."""
Piece = tuple[int, int, int, int]
"""Shard, document, first token, token behind the last."""


@dataclass(frozen=True)
class Recipe:
    """What the order depends on; ``phases`` are (first place behind, weights), the last without an end."""

    sources: tuple[Lengths, ...]
    phases: tuple[tuple[int | None, tuple[float, ...]], ...]
    max_seq_len: int
    num_lanes: int
    window_shards: int
    seed: int
    packing: Packing


class Located(NamedTuple):
    """One sequence of the run, and where it comes from."""

    index: int
    source: int
    lane: int
    epoch: int
    window: tuple[int, ...]
    pieces: tuple[Piece, ...]


class Row(NamedTuple):
    """What a model is given of a sequence, and its checksum."""

    tokens: list[int]
    targets: list[int]
    documents: list[int]
    positions: list[int]
    source: int
    checksum: int


def splitmix64(word: int) -> int:
    word = (word + 0x9E3779B97F4A7C15) % WORD
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB % WORD
    return word ^ (word >> 31)


def fold(*names: int) -> int:
    word = 0
    for name in names:
        word = splitmix64(word ^ name)
    return word


def permutation(size: int, *names: int) -> list[int]:
    base = fold(*names)
    return sorted(range(size), key=lambda thing: splitmix64((base + thing) % WORD))


def token(source: int, shard: int, document: int, place: int) -> int:
    """A token that says where it stands: tokens can be told apart without knowing the order. 0 is none of them."""
    return 1 + place + 32 * (document + 8 * (shard + 8 * source))


def told(token: int) -> tuple[int, int, int, int]:
    """Source, shard, document and place of a token."""
    rest, place = divmod(token - 1, 32)
    rest, document = divmod(rest, 8)
    return *divmod(rest, 8), document, place


def lanes_of(shards: Lengths, num_lanes: int) -> list[list[int]]:
    lanes: list[list[int]] = [[] for _ in range(num_lanes)]
    for shard in sorted(range(len(shards)), key=lambda shard: (-sum(shards[shard]), shard)):
        loads = [sum(sum(shards[member]) for member in lane) for lane in lanes]
        lanes[loads.index(min(loads))].append(shard)
    return [sorted(lane) for lane in lanes]


def concat(documents: Sequence[tuple[int, int, int]], max_seq_len: int) -> list[tuple[Piece, ...]]:
    """Joins documents (shard, document, length) in their order and cuts them."""
    stream = [(shard, document, place) for shard, document, length in documents for place in range(length)]
    rows = []
    for begin in range(0, len(stream) - 1, max_seq_len):
        row = stream[begin : begin + max_seq_len + 1]
        if len(row) > max_seq_len and row[-1][2] == 0:
            row.pop()  # another document begins behind the last input: no document predicts the next
        pieces = []
        for (shard, document), tokens in itertools.groupby(row, key=lambda entry: entry[:2]):
            places = [place for _, _, place in tokens]
            pieces.append((shard, document, places[0], places[-1] + 1))
        rows.append(tuple(pieces))
    return rows


def best_fit(shard: int, lengths: Sequence[int], max_seq_len: int) -> list[tuple[Piece, ...]]:
    """Packs one shard: every bin is looked at for every piece."""
    rows: list[tuple[Piece, ...]] = []
    rests = []
    for document, length in enumerate(lengths):
        start = 0
        while length - start > max_seq_len + 1:
            rows.append(((shard, document, start, start + max_seq_len + 1),))
            start += max_seq_len
        if length - start >= 2:
            rests.append((shard, document, start, length))
    bins: list[list[Piece]] = []
    changed: list[int] = []
    for turn, piece in enumerate(sorted(rests, key=lambda piece: (piece[2] - piece[3], piece[1]))):
        rooms = [max_seq_len + 1 - sum(stop - start for _, _, start, stop in members) for members in bins]
        fitting = [number for number, room in enumerate(rooms) if room >= piece[3] - piece[2]]
        if fitting:
            best = min(fitting, key=lambda number: (rooms[number], -changed[number]))
            bins[best].append(piece)
            changed[best] = turn
        else:
            bins.append([piece])
            changed.append(turn)
    return rows + [tuple(members) for members in bins]


def walk_source(recipe: Recipe, source: int, lane: int) -> Iterator[tuple[int, tuple[int, ...], tuple[Piece, ...]]]:
    """Epoch, shards of the window and pieces of the sequences of a source in a lane, without end."""
    shards, seed = recipe.sources[source], source_seed(recipe.seed, source)
    members = lanes_of(shards, recipe.num_lanes)[lane]
    shuffled = [members[thing] for thing in permutation(len(members), seed, SHARDS, lane)]
    size = recipe.window_shards
    windows = [tuple(shuffled[start : start + size]) for start in range(0, len(shuffled), size)]
    for epoch in itertools.count():
        for window in permutation(len(windows), seed, WINDOWS, epoch, lane):
            names = (seed, CONTENT, epoch, lane, window)
            if recipe.packing == "best_fit":
                packed = [
                    row for shard in windows[window] for row in best_fit(shard, shards[shard], recipe.max_seq_len)
                ]
                rows = [packed[thing] for thing in permutation(len(packed), *names)]
            else:
                documents = [
                    (shard, document, length)
                    for shard in windows[window]
                    for document, length in enumerate(shards[shard])
                ]
                shuffled_documents = [documents[thing] for thing in permutation(len(documents), *names)]
                if recipe.packing == "concat":
                    rows = concat(shuffled_documents, recipe.max_seq_len)
                else:
                    rows = [((*name, 0, min(n, recipe.max_seq_len + 1)),) for *name, n in shuffled_documents]
            for row in rows:
                yield epoch, windows[window], row


def source_seed(seed: int, source: int) -> int:
    return seed if source == 0 else fold(seed, SOURCE, source)


def weight_units(weights: Sequence[float]) -> list[int]:
    """Shares of 2^20: rounded down but at least 1, then the largest remainders up by one, or the largest share down."""
    shares = [Fraction(weight) / sum(map(Fraction, weights)) * 2**20 for weight in weights]
    units = [0 if share == 0 else max(1, int(share)) for share in shares]
    for number in sorted(range(len(units)), key=lambda number: (units[number] - shares[number], number)):
        if sum(units) < 2**20 and shares[number]:
            units[number] += 1
    while sum(units) > 2**20:
        units[units.index(max(units))] -= 1
    return units


def quotas(weights: Sequence[float], turn: int) -> list[int]:
    """Places of each source in a block, for a turn of the rounding."""
    units = weight_units(weights)
    line = turn * STRIDE % PERIOD
    found = []
    for unit in units:
        whole, remainder = divmod(unit, PERIOD)
        # The part of this source on the line, without its first point and with its last.
        rounded_up = any(point % PERIOD == 0 for point in range(line + 1, line + remainder + 1))
        found.append(whole + rounded_up)
        line += remainder
    return found


def walk_mixture(recipe: Recipe, lane: int) -> Iterator[int]:
    """The source of each place of a lane, without end."""
    turn = fold(recipe.seed, TURN, lane) % PERIOD
    place = 0
    for phase, (until, weights) in enumerate(recipe.phases):
        for block in itertools.count():
            if until is not None and place >= until:
                break
            of_block = [0] * BLOCK
            owners = [source for source, quota in enumerate(quotas(weights, turn + block)) for _ in range(quota)]
            for owner, slot in zip(owners, permutation(BLOCK, recipe.seed, MIXTURE, phase, lane, block), strict=True):
                of_block[slot] = owner
            for owner in of_block:
                if until is not None and place >= until:
                    break
                yield owner
                place += 1


def walk(recipe: Recipe) -> Iterator[Located]:
    """All sequences of a run, from the first on."""
    lanes = range(recipe.num_lanes)
    one = len(recipe.sources) == 1
    mixtures = [itertools.repeat(0) if one else walk_mixture(recipe, lane) for lane in lanes]
    sources = [[walk_source(recipe, source, lane) for lane in lanes] for source in range(len(recipe.sources))]
    for index in itertools.count():
        lane = index % recipe.num_lanes
        source = next(mixtures[lane])
        yield Located(index, source, lane, *next(sources[source][lane]))


def row_of(sequence: Located, max_seq_len: int, masked: set[int], lost: bool) -> Row:
    """The arrays of a sequence.

    Args:
        sequence: The sequence.
        max_seq_len: Inputs of it.
        masked: Shards of its source whose content is skipped.
        lost: Whether an index of its window is skipped, so that nothing of it is known.
    """
    stored = [EOS] * (max_seq_len + 1)
    owner = [-1] * (max_seq_len + 1)
    begins, end, masks = [0], 1, []
    if not lost:
        begins, end = [], 0
        for number, (shard, document, start, stop) in enumerate(sequence.pieces):
            begins.append(end)
            for place in range(start, stop):
                if shard not in masked:
                    stored[end] = token(sequence.source, shard, document, place)
                    owner[end] = number
                end += 1
            if shard in masked:
                masks += [begins[-1], end]
    places = range(max_seq_len)
    documents = [max(number for number, begin in enumerate(begins) if begin <= place) for place in places]
    tokens_digest = xxhash.xxh3_64_intdigest(struct.pack(f"<{len(stored)}H", *stored), seed=sequence.index)
    borders = [*begins, end, *masks]
    return Row(
        tokens=stored[:-1],
        targets=[stored[place + 1] if owner[place] == owner[place + 1] >= 0 else IGNORED for place in places],
        documents=documents,
        positions=[place - begins[documents[place]] for place in places],
        source=sequence.source,
        checksum=xxhash.xxh3_64_intdigest(struct.pack(f"<{len(borders)}i", *borders), seed=tokens_digest),
    )

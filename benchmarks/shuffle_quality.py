"""How well windows of shards mix a corpus, beside one permutation of all of its documents.

The corpus is invented, and what is measured is arithmetic on its order: the figures are the same on every machine.
Prints the table of the page in Markdown.

    python benchmarks/shuffle_quality.py
"""

import fire
import numpy as np
from numpy.typing import NDArray

from scaletrain.data.order import Order
from scaletrain.data.source_order import SourceShards

MAX_SEQ_LEN = 1024
SHARDS, DOCUMENTS, MEAN_TOKENS = 256, 1000, 400
SEED = 1
Rows = list[NDArray[np.int64]]


def lengths_of(shard: int) -> NDArray[np.int64]:
    """Tokens of the documents of a shard: most are short, few are long."""
    drawn = np.random.default_rng(shard).lognormal(0.0, 1.0, DOCUMENTS)
    return 2 + (drawn / np.exp(0.5) * (MEAN_TOKENS - 2)).astype(np.int64)


def epoch(num_lanes: int, window_shards: int) -> Rows:
    """For each sequence of an epoch its documents, counted through the corpus in the order of the input."""
    n_tokens = [int(lengths_of(shard).sum()) for shard in range(SHARDS)]
    source = SourceShards("invented", n_tokens, lengths_of)
    order = Order([source], MAX_SEQ_LEN, num_lanes, window_shards, SEED)
    # Lanes differ a little in length; what is looked at ends with the shortest.
    places = min(order.sources[0].sequences_of_lane(lane) for lane in range(num_lanes))
    return [
        np.array([piece.shard * DOCUMENTS + piece.document for piece in order.pieces(sequence)])
        for sequence in range(places * num_lanes)
    ]


def measure(rows: Rows, batch: int) -> dict[str, float]:
    """Looks at the order that an epoch gives to documents.

    Args:
        rows: Documents of each sequence.
        batch: Sequences in a global batch.

    Returns:
        The quantities of the table.
    """
    first = np.full(SHARDS * DOCUMENTS, -1)
    for sequence in range(len(rows) - 1, -1, -1):
        first[rows[sequence]] = sequence
    neighbours = first.reshape(SHARDS, DOCUMENTS)
    known = (neighbours[:, :-1] >= 0) & (neighbours[:, 1:] >= 0)
    distances = np.abs(np.diff(neighbours, axis=1))[known]
    same_batch = (neighbours[:, :-1] // batch == neighbours[:, 1:] // batch)[known]
    batches = [
        np.concatenate(rows[start : start + batch]) // DOCUMENTS for start in range(0, len(rows) - batch + 1, batch)
    ]
    shares = np.array([np.bincount(shards, minlength=SHARDS) / len(shards) for shards in batches])
    # Quantities that are the same in all documents of a shard, as where each shard is one web site: the hardest case.
    quantities = np.random.default_rng(SEED).standard_normal((SHARDS, 500))
    spread = float(np.sqrt((shares @ quantities).var(axis=0).mean()))
    return {
        "neighbours in one batch, %": 100 * float(same_batch.mean()),
        "their distance, % of the epoch": 100 * float(np.median(distances)) / len(rows),
        "shards in a batch": float(np.median([len(np.unique(shards)) for shards in batches])),
        "spread of a batch's mean": spread,
    }


def main(*, batch: str = "64", windows: str = "1,2,4,8,16,32,64,256", lanes: str = "1,8") -> None:
    """Measures and prints the table.

    Args:
        batch: Sequences in a global batch.
        windows: Values of data.window_shards.
        lanes: Values of data.num_lanes.
    """
    numbers = [[int(item) for item in str(part).strip("()").split(",")] for part in (windows, lanes)]
    variants = [
        (num_lanes, window) for num_lanes in numbers[1] for window in numbers[0] if num_lanes * window <= SHARDS
    ]
    # The same sequences in one lane and one window are one permutation of all documents of the corpus.
    whole = measure(epoch(1, SHARDS), int(batch))
    print(
        "| lanes | shards in a window | share of the corpus in use | " + " | ".join(whole) + ", of a full permutation |"
    )
    print("|---|" + "---|" * (len(whole) + 2))
    for num_lanes, window in variants:
        found = measure(epoch(num_lanes, window), int(batch))
        found["spread of a batch's mean"] /= whole["spread of a batch's mean"]
        cells = [f"{value:.2f}" if value < 10 else f"{value:.0f}" for value in found.values()]
        print(f"| {num_lanes} | {window} | {num_lanes * window / SHARDS:.1%} | {' | '.join(cells)} |")


if __name__ == "__main__":
    fire.Fire(main)

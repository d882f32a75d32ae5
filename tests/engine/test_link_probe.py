"""Messages to neighbours and back: among any number of ranks, and whose turn it is."""

import pytest
import torch.distributed as dist

from scaletrain.engine.link_probe import _turn, neighbour_stride, round_trip_s
from tests.distributed import run_on_ranks


def probe(stride: int) -> float:
    return round_trip_s(dist.get_rank(), dist.get_world_size(), stride)


@pytest.mark.parametrize(("world_size", "stride"), [(2, 1), (3, 1), (4, 1), (4, 2)])
def test_every_rank_gets_an_answer(world_size: int, stride: int) -> None:
    times_s = run_on_ranks(world_size, probe, stride)
    assert len(times_s) == world_size and all(0 < seconds < 60 for seconds in times_s)


@pytest.mark.parametrize(("world_size", "stride"), [(2, 1), (3, 1), (4, 2), (9, 1), (9, 3), (24, 8), (32, 8)])
def test_pairs_of_a_turn_are_apart(world_size: int, stride: int) -> None:
    for turn in range(3):
        asks = [rank for rank in range(world_size) if _turn(rank, world_size, stride) == turn]
        busy = asks + [(rank + stride) % world_size for rank in asks]
        assert len(set(busy)) == len(busy)


@pytest.mark.parametrize(
    ("sizes", "stride"),
    [
        ([8], None),
        ([8, 8], 8),
        ([1, 1], 1),
        # Here one of the nodes alone would take its own size for that of all.
        ([8, 8, 4], 1),
        ([4, 8, 8], 1),
        ([2, 4], 1),
    ],
)
def test_neighbours_are_on_different_nodes(sizes: list[int], stride: int | None) -> None:
    assert neighbour_stride([f"n{node}" for node, size in enumerate(sizes) for _ in range(size)]) == stride


def test_ranks_of_a_node_that_are_not_in_a_row_have_the_next_one_for_a_neighbour() -> None:
    assert neighbour_stride(["n1", "n2", "n1", "n2"]) == 1

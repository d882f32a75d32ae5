"""The pages in docs/ are recomputed: the example of the data's order, the keys of the configuration, the presets."""

import re
from pathlib import Path

import numpy as np
import pytest

from scaletrain.config.batch_plan import BatchPlan
from scaletrain.config.coercion import describe
from scaletrain.config.derive import deepspeed_conflicts
from scaletrain.config.fields import fields, flatten, limits
from scaletrain.config.load import load_config
from scaletrain.config.schema import RunConfig
from scaletrain.data.mixture import Mixture, Phase, weight_units
from scaletrain.data.order import Order, Piece
from scaletrain.data.shuffle import fold, splitmix64
from scaletrain.data.source_order import SourceShards, deal_to_lanes
from scaletrain.planning.parameters import count_parameters

ROOT = Path(__file__).parents[1]
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()
ORDER = (ROOT / "docs/data_order.md").read_text()
CONFIGURATION = (ROOT / "docs/configuration.md").read_text()

# The corpus of the worked example in docs/data_order.md.
SHARDS = ((5, 9), (7, 4, 6), (12, 3), (8, 6))
MAX_SEQ_LEN, NUM_LANES, WINDOW_SHARDS, SEED = 8, 2, 1, 7
PLAN = BatchPlan(global_batch_size=3, micro_batch_size=1, world_size=2)


@pytest.fixture(scope="module")
def order() -> Order:
    totals = [sum(documents) for documents in SHARDS]
    shards = SourceShards("example", totals, lambda shard: np.array(SHARDS[shard]))
    return Order([shards], MAX_SEQ_LEN, NUM_LANES, WINDOW_SHARDS, SEED)


def written(piece: Piece) -> str:
    return f"{piece.shard}.{piece.document}[{piece.start}:{piece.stop}]"


def test_the_words_of_the_example() -> None:
    names: list[tuple[int, ...]] = [(7,), (7, 1, 0), (7, 3, 0, 0, 0)]
    lines = [f"splitmix64(0)          {int(splitmix64(np.zeros(1, dtype=np.uint64))[0]):#x}"]
    lines += [f"fold({', '.join(map(str, name))})".ljust(23) + f"{fold(*name):#x}" for name in names]
    assert "\n".join(lines) in ORDER


def test_the_lanes_of_the_example(order: Order) -> None:
    totals = [sum(documents) for documents in SHARDS]
    assert "The shards hold {}, {}, {} and {} tokens.".format(*totals) in ORDER
    assert deal_to_lanes(totals, NUM_LANES) == [[1, 3], [0, 2]]
    assert [order.sources[0].sequences_of_lane(lane) for lane in range(NUM_LANES)] == [4, 4]


def test_the_sequences_of_the_example(order: Order) -> None:
    lines = ["sequence  lane  epoch  window  pieces"]
    for sequence in range(16):
        place = order.locate(sequence)
        pieces = " ".join(map(written, order.pieces(sequence)))
        lines.append(f"{sequence:<10}{place.lane:<6}{place.epoch:<7}{place.window:<8}{pieces}")
    assert "\n".join(lines) in ORDER


def test_the_batches_of_the_example() -> None:
    lines = ["step  rank 0     rank 1"]
    for step in range(3):
        ranks = [" ".join(map(str, PLAN.micro_batches(rank, 3 * step))) for rank in range(2)]
        lines.append(f"{step:<6}{ranks[0]:<11}{ranks[1]}")
    assert "\n".join(lines) in ORDER
    assert "a micro batch of 3, step 1 is `[3, 4, 5]`" in ORDER
    assert BatchPlan(3, 3, 1).micro_batches(0, 3) == [[3, 4, 5]]


def test_the_mixture_of_the_example() -> None:
    assert weight_units((2.0, 1.0)) == [699051, 349525]
    turn = fold(7, 6, 0) % 4096
    assert f"the turn of lane 0 is {turn}." in ORDER
    mixture = Mixture([Phase(None, (2.0, 1.0))], num_lanes=1, seed=7)
    lines = ["block  d      quotas"]
    for block in range(4):
        quotas = mixture.counts(0, (block + 1) * 256) - mixture.counts(0, block * 256)
        lines.append(f"{block:<7}{2531 * (turn + block) % 4096:<7}{quotas[0]} {quotas[1]}")
    assert "\n".join(lines) in ORDER


@pytest.mark.parametrize("key", fields())
def test_every_key_stands_in_the_page_with_its_type_and_default(key: str) -> None:
    field = fields()[key]
    kind = ", ".join(part for part in (describe(field.annotation), limits(field)) if part)
    default = "derived" if field.default_factory else in_words(flatten(RunConfig())[key])
    assert f"| `{key}` | {kind} | {default} | " in CONFIGURATION


def in_words(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "empty"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def test_no_key_stands_in_the_page_that_is_none() -> None:
    tables = [part.split("\n\n")[0] for part in CONFIGURATION.split("| key | takes |")[1:]]
    keys = [line.split("`")[1] for table in tables for line in table.splitlines()[2:]]
    assert keys == list(fields())


def test_every_preset_stands_in_the_page() -> None:
    for path in (ROOT / "configs/model").glob("*.yaml"):
        model = load_config(None, {"model.preset": path.stem}).model
        shape = (model.d_model, model.n_layers, model.n_heads, model.n_kv_heads, model.max_seq_len, model.vocab_size)
        row = f"| `{path.stem}` | {count_parameters(model).total:,} | {' | '.join(map(str, shape))} |"
        assert row in CONFIGURATION


def test_keys_that_the_run_owns_are_refused_in_the_files_of_deepspeed() -> None:
    table = CONFIGURATION[CONFIGURATION.index("| key of DeepSpeed |") :].split("\n\n")[0]
    named = [name for line in table.splitlines()[2:] for name in line.split("|")[1].strip(" `").split("`, `")]
    assert len(named) > 10
    for name in named:
        conflict = deepspeed_conflicts({name: 1})
        assert conflict is not None and "belongs to" in str(conflict), name


def test_every_file_of_deepspeed_stands_in_the_page() -> None:
    for path in (ROOT / "configs/ds").glob("*.json"):
        assert f"| `configs/ds/{path.name}`" in CONFIGURATION


def test_the_contracts_name_what_is_there() -> None:
    contracts = ARCHITECTURE.split("\n## Contracts")[1].split("\n## ")[0]
    entries = re.findall(r"^    ([\w/]+\.py) +(.*(?:\n {30}.*)*)", contracts, re.MULTILINE)
    assert len(entries) > 30
    for file, text in entries:
        source = (ROOT / "scaletrain" / file).read_text()
        missing = [name for name in re.findall(r"(\w+)\(", text) if name not in source]
        assert not missing, f"{file} has no {missing}"


def test_the_floors_name_every_package() -> None:
    floors = ARCHITECTURE.split("\n## Floors")[1].split("\n## ")[0]
    names = {path.name for path in (ROOT / "scaletrain").iterdir() if any(path.glob("[!_]*.py"))}
    assert {name for name in names if f" {name}/ " not in floors} == set()

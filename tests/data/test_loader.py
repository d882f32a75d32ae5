import cProfile
import itertools
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from scaletrain.config.batch_plan import FILLING, BatchSchedule
from scaletrain.data.dataset import SequenceDataset
from scaletrain.data.loader import Share, evaluation_batches, evaluation_sequences, iterate_steps
from scaletrain.data.manifest import Manifest
from scaletrain.data.order import DatasetOptions
from scaletrain.data.packing import IGNORED
from scaletrain.data.rows import MicroBatch
from scaletrain.data.shard_index import ShardIndex, index_path
from scaletrain.data.shards import ShardReader
from scaletrain.errors import BadShardError, DataError

T = 24
EIGHT = BatchSchedule((), 8)
Rows = list[tuple[list[int], list[int]]]


def open_train(corpus: Manifest, **options: Any) -> SequenceDataset:
    chosen = DatasetOptions(**{"max_seq_len": T, "num_lanes": 2, "window_shards": 2, "seed": 3, **options})
    return SequenceDataset([ShardReader(corpus, "train")], chosen)


def epoch_length(dataset: SequenceDataset) -> int:
    return dataset.order.sources[0].sequences_per_epoch


def rows_of(micro_batches: list[MicroBatch]) -> Rows:
    """Tokens and targets of the rows that are no filling."""
    rows = [
        (tokens.tolist(), targets.tolist())
        for micro_batch in micro_batches
        for tokens, targets in zip(micro_batch["inputs"]["tokens"], micro_batch["inputs"]["targets"], strict=True)
    ]
    return [row for row in rows if set(row[1]) != {IGNORED}]


def global_batches(corpus: Manifest, world_size: int, workers: int, first_step: int, steps: int) -> list[Rows]:
    placed: list[dict[int, Any]] = [{} for _ in range(steps)]
    for rank in range(world_size):
        share = Share(EIGHT, micro_batch_size=2, rank=rank, world_size=world_size)
        stream = iterate_steps(open_train(corpus), share, first_step, first_step * 8, workers, prefetch=2)
        for step, batch in enumerate(itertools.islice(stream, steps)):
            plan = share.plan(batch.first_sequence)
            assert batch.step == first_step + step and batch.first_sequence == batch.step * 8
            assert len(batch.micro_batches) == plan.micro_steps and batch.global_batch_size == 8
            assert all(micro_batch["inputs"]["tokens"].shape == (2, T) for micro_batch in batch.micro_batches)
            own = plan.sequences(rank, batch.first_sequence)
            placed[step].update(zip(own, rows_of(batch.micro_batches), strict=True))
        stream.close()
    return [[rows[sequence] for sequence in sorted(rows)] for rows in placed]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")  # more than this machine has cores for
def test_batches_do_not_depend_on_ranks_and_workers(corpus: Manifest) -> None:
    expected = global_batches(corpus, world_size=1, workers=0, first_step=0, steps=6)
    assert all(len(rows) == 8 for rows in expected)
    for world_size, workers in [(1, 1), (1, 4), (2, 0), (2, 1), (3, 0), (3, 1)]:
        assert global_batches(corpus, world_size, workers, 0, 6) == expected, (world_size, workers)


@pytest.mark.parametrize("first_step", [1, 5, 40])
def test_starting_late_gives_the_rest_of_the_same_run(corpus: Manifest, first_step: int) -> None:
    # Step 40 is several epochs on: the corpus has some 250 sequences.
    whole = global_batches(corpus, 1, 0, 0, first_step + 3)
    assert global_batches(corpus, 2, 2, first_step, 3) == whole[first_step:]


def calls_until_the_first_batch(corpus: Manifest, step: int) -> int:
    """How much Python does, which unlike time does not depend on what else the machine does."""
    profile = cProfile.Profile()
    profile.enable()
    stream = iterate_steps(open_train(corpus), Share(EIGHT, 2), step, 8 * step, num_workers=0)
    assert next(stream).step == step
    profile.disable()
    return sum(entry.callcount for entry in profile.getstats())


def test_starting_very_late_takes_no_longer(corpus: Manifest) -> None:
    calls_until_the_first_batch(corpus, 1)  # what is only done once in a process
    soon, late = (calls_until_the_first_batch(corpus, step) for step in (1, 10**12))
    assert abs(late - soon) < soon / 2


def test_an_epoch_predicts_each_token_of_the_corpus_once(corpus: Manifest) -> None:
    dataset = open_train(corpus, num_lanes=1)
    targets = int((dataset.micro_batch(range(epoch_length(dataset)))["inputs"]["targets"] != IGNORED).sum())
    totals = corpus.totals["train"]
    assert targets == totals.tokens - totals.documents


def test_borders_are_given_where_there_are_some(corpus: Manifest) -> None:
    dataset = open_train(corpus)
    indices = list(range(60))
    single = [index for index in indices if len(dataset.order.pieces(index)) == 1]
    mixed = [index for index in indices if index not in single]
    assert single and mixed
    assert (
        dataset.micro_batch(single)["inputs"]["documents"] is None
        and dataset.micro_batch(single)["inputs"]["positions"] is None
    )
    batch = dataset.micro_batch([single[0], mixed[0], FILLING])
    assert batch["inputs"]["documents"] is not None and batch["inputs"]["positions"] is not None
    assert batch["inputs"]["documents"].dtype == torch.int32 and batch["inputs"]["positions"].dtype == torch.int64
    lengths = [piece.stop - piece.start for piece in dataset.order.pieces(mixed[0])]
    expected = [number for number, length in enumerate(lengths) for _ in range(length)][:T]
    expected += [len(lengths) - 1] * (T - len(expected))
    assert batch["inputs"]["documents"].tolist() == [[0] * T, expected, [0] * T]
    assert batch["inputs"]["positions"][1].tolist() == [expected[:place].count(expected[place]) for place in range(T)]
    assert batch["inputs"]["positions"][0].tolist() == batch["inputs"]["positions"][2].tolist() == list(range(T))
    assert set(batch["inputs"]["targets"][2].tolist()) == {IGNORED}
    assert set(batch["inputs"]["tokens"][2].tolist()) == {corpus.tokenizer.eos_id}
    without = open_train(corpus, document_borders=False).micro_batch(mixed)
    assert without["inputs"]["documents"] is None and without["inputs"]["positions"] is None
    assert torch.equal(without["inputs"]["targets"], dataset.micro_batch(mixed)["inputs"]["targets"])


@pytest.mark.parametrize("wanted", [1, 10, 10**6])
def test_the_evaluation_set_is_the_same_for_all_ranks(corpus: Manifest, wanted: int) -> None:
    dataset = SequenceDataset([ShardReader(corpus, "validation")], DatasetOptions(T))
    length = epoch_length(dataset)
    chosen = evaluation_sequences(dataset, wanted)
    assert 10 < length < 10**6 and chosen == list(range(min(wanted, length)))
    whole = dataset.micro_batch(chosen)
    for world_size in (1, 2, 3):
        ranks = [list(evaluation_batches(dataset, chosen, 4, rank, world_size)) for rank in range(world_size)]
        assert len({len(batches) for batches in ranks}) == 1
        assert len({batch["inputs"]["tokens"].shape for batches in ranks for batch in batches}) == 1
        assert sorted(row for batches in ranks for row in rows_of(batches)) == sorted(rows_of([whole]))


def open_files_in(folder: Path) -> list[str]:
    links = [Path(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    return [target for link in links if link.is_symlink() and (target := os.readlink(link)).startswith(str(folder))]


def test_the_evaluation_set_leaves_no_shard_open(corpus: Manifest, tmp_path: Path) -> None:
    own = Path(shutil.copytree(Path(corpus.location).parent, tmp_path / "corpus"))
    dataset = SequenceDataset([ShardReader(Manifest.open(own), "validation")], DatasetOptions(T))
    batches = evaluation_batches(dataset, evaluation_sequences(dataset, 10), 4, 0, 1)
    next(batches)
    assert open_files_in(own)
    assert list(batches) and not open_files_in(own)


@pytest.mark.parametrize(("most", "share"), [(1, 1), (5, 2), (31, 11)])
def test_the_evaluation_set_is_rounded_up_to_equal_shares(corpus: Manifest, most: int, share: int) -> None:
    readers = [ShardReader(corpus, "train", name=name) for name in ("a", "b", "c")]
    dataset = SequenceDataset(readers, DatasetOptions(T))
    sources = [dataset.order.locate(sequence).source for sequence in evaluation_sequences(dataset, most)]
    assert [sources.count(source) for source in range(3)] == [share] * 3


def test_the_evaluation_set_has_as_much_of_each_source(corpus: Manifest) -> None:
    readers = [ShardReader(corpus, split, name=split) for split in ("validation", "train")]
    dataset = SequenceDataset(readers, DatasetOptions(T))
    chosen = evaluation_sequences(dataset, 40)
    assert len(set(chosen)) == 40
    places = [dataset.order.locate(sequence) for sequence in chosen]
    assert [sum(place.source == source for place in places) for source in (0, 1)] == [20, 20]
    assert {place.epoch for place in places} == {0}
    everything = [dataset.order.locate(sequence) for sequence in evaluation_sequences(dataset, 10**5)]
    assert len(set(everything)) == sum(source.sequences_per_epoch for source in dataset.order.sources)
    assert {place.epoch for place in everything} == {0}


def test_the_random_generator_of_the_run_is_left_alone(corpus: Manifest) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    stream = iterate_steps(open_train(corpus), Share(EIGHT, 2), 0, 0, num_workers=1)
    next(stream)
    stream.close()
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 1])
def test_damage_found_by_a_worker_is_told_without_a_traceback(build_small: Any, tmp_path: Path, workers: int) -> None:
    manifest = build_small(tmp_path)
    dataset = open_train(manifest)
    for shard in manifest.split("train"):
        os.truncate(tmp_path / shard.path, 2048)
    stream = iterate_steps(dataset, Share(EIGHT, 2), 0, 0, workers)
    with pytest.raises(DataError, match=r"^Shard .* is truncated: it has 2048 bytes") as refusal:
        next(stream)
    assert "Traceback" not in str(refusal.value)
    stream.close()


@pytest.mark.parametrize("beyond", ["just", "far"])
def test_a_token_outside_of_the_vocabulary_is_refused(build_small: Any, tmp_path: Path, beyond: str) -> None:
    manifest = build_small(tmp_path)
    token = manifest.tokenizer.vocab_size if beyond == "just" else 65535
    for shard in manifest.split("train"):
        index = ShardIndex.read(index_path(tmp_path / shard.path))
        content = bytearray((tmp_path / shard.path).read_bytes())
        # A document in the middle: the ends are checked when the shard is opened.
        middle = int(index.offsets[len(index.offsets) // 2])
        content[middle : middle + 2] = token.to_bytes(2, "little")
        (tmp_path / shard.path).write_bytes(content)
    dataset = open_train(manifest)
    with pytest.raises(BadShardError, match=rf"holds token {token}, but the vocabulary has .*train-0.*is damaged"):
        dataset.micro_batch(range(epoch_length(dataset)))


def test_signals_to_the_process_group_do_not_end_workers(corpus: Manifest) -> None:
    others = multiprocessing.active_children()
    stream = iterate_steps(open_train(corpus), Share(EIGHT, 2), 0, 0, num_workers=2, prefetch=1)
    next(stream)
    workers = [child for child in multiprocessing.active_children() if child not in others]
    assert len(workers) == 2
    for worker in workers:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(worker.pid or 0, number)
    assert [next(stream).step for _ in range(20)] == list(range(1, 21))
    assert all(worker.is_alive() for worker in workers)
    stream.close()
    assert not any(worker.is_alive() for worker in workers)
    assert next(stream, None) is None


PROGRAM = """
import multiprocessing, sys, time
from scaletrain.config.batch_plan import BatchSchedule
from scaletrain.data.dataset import SequenceDataset
from scaletrain.data.loader import Share, iterate_steps
from scaletrain.data.manifest import Manifest
from scaletrain.data.order import DatasetOptions
from scaletrain.data.shards import ShardReader
dataset = SequenceDataset([ShardReader(Manifest.open(sys.argv[1]), "train")], DatasetOptions(24))
stream = iterate_steps(dataset, Share(BatchSchedule((), 8), 2), num_workers=2)
next(stream)
print(*[worker.pid for worker in multiprocessing.active_children()], flush=True)
time.sleep(float(sys.argv[2]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kill", [True, False])
def test_workers_end_with_the_rank(corpus: Manifest, tmp_path: Path, kill: bool) -> None:
    command = [sys.executable, "-c", PROGRAM, corpus.location, "60" if kill else "0"]
    # Who is killed leaves his sockets' folders behind.
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            workers = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()] if kill else []
            assert len(workers) == (2 if kill else 0)
            if kill:
                process.kill()
            # Without a kill the program ends while its workers are busy: it must not wait for them for ever.
            assert process.wait(timeout=30) == (-signal.SIGKILL if kill else 0)
        finally:
            process.kill()
    # torch looks for a dead parent every five seconds; here the kernel tells.
    _, alive = psutil.wait_procs(workers, timeout=3)
    assert not alive

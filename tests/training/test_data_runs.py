"""What a run reads is the same however it is cut and wherever its shards lie, and its metrics tell what that was."""

from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch.nn.functional import cross_entropy

from scaletrain.checkpoint.weights import load_weights
from scaletrain.corpus.build import build_corpus
from scaletrain.corpus.documents import Document
from scaletrain.data.dataset import SequenceDataset
from scaletrain.data.loader import evaluation_sequences
from scaletrain.model.transformer import Transformer
from scaletrain.protocols import SkippedShard
from scaletrain.training.corpus import open_corpora
from scaletrain.training.datasets import evaluation_dataset
from scaletrain.training.scoring import score
from scaletrain.training.trained_run import TrainedRun
from tests.storage.faults import FaultProxy, fault_proxy
from tests.storage.servers import nginx, s3_environment, s3_server, upload
from tests.training.data_runs import SOURCES, STEPS, DataRun, batch_hashes, cache_of_half_the_shards, first_touched

TARS = r"\.tar$"


@pytest.fixture(scope="module")
def http(corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultProxy]:
    with nginx(corpora, tmp_path_factory.mktemp("nginx")) as url, fault_proxy(url) as proxy:
        yield proxy


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["concat", pytest.param("best_fit", marks=pytest.mark.thorough)])
def test_a_cut_run_reads_what_the_uncut_one_reads(uncut: DataRun, corpora: Path, tmp_path: Path, packing: str) -> None:
    run = DataRun(tmp_path, corpora, {"data.packing": packing})
    # The batches grow with the sixth step, where one start ends; the weights change within the sixth.
    for world_size, steps, micro, workers in ((2, 3, 2, 0), (4, 5, 1, 0), (1, 9, 4, 1), (3, STEPS, 3, 1)):
        run.complete(world_size, train__max_steps=steps, train__micro_batch_size=micro, data__num_workers=workers)
    assert [event["event"] for event in run.events("start") + run.events("resume")] == ["start"] + 3 * ["resume"]
    whole = uncut
    if packing == "best_fit":
        (tmp_path / "whole").mkdir()
        whole = DataRun(tmp_path / "whole", corpora, run.overrides)
        whole.complete(2)
        assert not set(whole.hashes) & set(uncut.hashes)
    assert run.hashes == whole.hashes == batch_hashes(run.dataset(), run.ends)
    assert run.ends == whole.ends == [6, 12, 18, 24, 30, 38, 46, 54, 62, 70, 78, 86]
    assert len(set(run.hashes)) == STEPS


def test_another_global_batch_goes_on_with_the_very_next_sequence(
    uncut: DataRun, corpora: Path, tmp_path: Path
) -> None:
    run = DataRun(tmp_path, corpora)
    run.complete(2, train__max_steps=4)
    run.complete(3, train__max_steps=7, train__global_batch_size=5, train__batch_schedule="[]")
    run.complete(1, train__max_steps=9, train__global_batch_size=15, train__batch_schedule="[]")
    assert run.ends == [6, 12, 18, 24, 29, 34, 39, 54, 69]
    assert run.hashes == batch_hashes(run.dataset(), run.ends)
    # The checksums of sequences are summed up: as many sequences without gap or overlap have one sum.
    assert _sum(run.hashes[:8]) == _sum(uncut.hashes[:8])
    assert uncut.ends[7] == run.ends[7]


def _sum(hashes: list[str]) -> int:
    return sum(int(text, 16) for text in hashes) % 2**64


def test_metrics_tell_the_sources_apart(uncut: DataRun) -> None:
    dataset, rows = uncut.dataset(), uncut.rows
    begins = [0, *uncut.ends[:-1]]
    counted = {source: 0 for source in SOURCES}
    located = [dataset.order.locate(sequence) for sequence in range(1000)]
    per_epoch = [sum((place.source, place.epoch) == (number, 0) for place in located) for number in range(2)]
    for row, *step in zip(rows, begins, uncut.ends, strict=True):
        nll, targets = _judge(uncut, dataset, range(*step))
        assert row["train/target_tokens"] == sum(targets)
        for number, source in enumerate(SOURCES):
            assert row[f"train/target_tokens/{source}"] == targets[number]
            # The rate is so low that all steps are taken with the first weights.
            assert row[f"train/loss/{source}"] == pytest.approx(nll[number] / targets[number], rel=1e-5)
            counted[source] += sum(place.source == number for place in located[slice(*step)])
            assert row[f"data/epoch/{source}"] == pytest.approx(counted[source] / per_epoch[number])
        assert row["train/loss"] == pytest.approx(sum(nll) / sum(targets), rel=1e-5)
        assert row["data/epoch"] == pytest.approx(row["data/sequences"] / sum(per_epoch))
    judged = evaluation_dataset(uncut.config, open_corpora(uncut.config))
    assert judged is not None
    chosen = evaluation_sequences(judged, uncut.config.eval.max_sequences)
    nll, targets = _judge(uncut, judged, chosen)
    assert {judged.order.locate(sequence).source for sequence in chosen} == {0, 1}
    for number, source in enumerate(SOURCES):
        assert rows[-1][f"eval/loss/{source}"] == pytest.approx(nll[number] / targets[number], rel=1e-5)
    assert rows[-1]["eval/loss"] == pytest.approx(sum(nll) / sum(targets), rel=1e-5)


def test_all_of_a_mixture_is_judged_afterwards(uncut: DataRun) -> None:
    found = score(TrainedRun.open(uncut.run_dir), "validation")
    judged = evaluation_dataset(uncut.config, open_corpora(uncut.config))
    assert judged is not None
    chosen = evaluation_sequences(judged)
    places = [judged.order.locate(sequence) for sequence in chosen]
    for number, own in enumerate(judged.order.sources):
        assert sum((place.source, place.epoch) == (number, 0) for place in places) == own.sequences_per_epoch
    assert found.sequences == len(chosen) == sum(own.sequences_per_epoch for own in judged.order.sources)
    nll, targets = _judge(uncut, judged, chosen)
    assert found.targets == sum(targets)
    for number, source in enumerate(SOURCES):
        assert found.metrics[f"eval/loss/{source}"] == pytest.approx(nll[number] / targets[number], rel=1e-5)
    assert found.metrics["eval/loss"] == pytest.approx(sum(nll) / sum(targets), rel=1e-5)


@torch.no_grad()
def _judge(run: DataRun, dataset: SequenceDataset, sequences: "range | list[int]") -> tuple[list[float], list[int]]:
    """Cross-entropy and targets by source, with the weights that the run saved and no engine."""
    model = Transformer(run.config.model)
    model.load_state_dict(load_weights(run.run_dir / "checkpoints"))
    nll, targets = [0.0, 0.0], [0, 0]
    for sequence in sequences:
        batch = dataset.micro_batch([sequence])
        source = dataset.order.locate(sequence).source
        logits = model.eval()(batch["inputs"]["tokens"], batch["inputs"]["positions"], batch["inputs"]["documents"])
        nll[source] += float(
            cross_entropy(logits[0], batch["inputs"]["targets"][0], ignore_index=-100, reduction="sum")
        )
        targets[source] += int((batch["inputs"]["targets"] >= 0).sum())
    return nll, targets


def test_a_corpus_without_a_validation_split_trains(corpora: Path, tmp_path: Path) -> None:
    texts = [Document(f"{number}", f"text {number} " * 5) for number in range(20)]
    tokenizer = corpora / "web" / "tokenizer.json"
    manifest = build_corpus(lambda: texts, tmp_path / "plain", tokenizer, "plain", None, 0.0, 150)
    only = {"data.sources": "[]", "data.phases": "[]", "data.manifest": manifest}
    run = DataRun(tmp_path, corpora, only)
    run.complete(2, train__max_steps=2)
    assert run.warnings == ["no source has a validation split: the loss on unseen text is not measured"]
    assert run.hashes == batch_hashes(run.dataset(), run.ends)
    assert not [name for row in run.rows for name in row if name.startswith("eval/") or name.endswith("/corpus")]


@pytest.mark.slow
def test_over_http_a_run_reads_the_same_whatever_breaks(uncut: DataRun, http: FaultProxy, tmp_path: Path) -> None:
    http.clear()
    faults = {"unavailable": 3, "reset": 2, "truncate": 2, "flip": 2, "stall": 1}
    for kind, times in faults.items():
        http.inject(kind, times, TARS)  # type: ignore[arg-type]
    http.inject("unavailable", 2, r"manifest\.json$")
    run = DataRun(tmp_path, http.url, {"data.fetch_stall_s": 1.0})
    run.complete(2, data__num_workers=1)
    assert run.hashes == uncut.hashes
    retries = run.events("fetch_retry")
    assert len(retries) == sum(faults.values()) + 2
    reasons = [event["reason"] for event in retries if event["url"].endswith(".tar")]
    assert len(reasons) == sum(faults.values()) and all(reasons)
    assert reasons.count("no byte in time") == 1
    assert sum("503" in reason for reason in reasons) == 3
    assert sum("checksum" in reason for reason in reasons) == 2
    assert {event["rank"] for event in retries} <= {0, 1}
    assert all(event["url"].startswith(http.url) and event["attempt"] >= 1 for event in retries)
    # What lies in the cache now is fetched no more, whoever asks.
    http.clear()
    (tmp_path / "again").mkdir()
    again = DataRun(tmp_path / "again", http.url)
    again.complete(3, data__cache_dir=tmp_path / "cache")
    assert again.hashes == uncut.hashes
    assert http.count(TARS) == 0


@pytest.mark.slow
def test_ranks_and_workers_fetch_a_shard_once_unless_the_cache_is_too_small(
    uncut: DataRun, corpora: Path, http: FaultProxy, tmp_path: Path
) -> None:
    http.clear()
    # With one lane every rank reads from every shard, and the answers take long enough for all to want them at once.
    run = DataRun(tmp_path, http.url, {"data.num_lanes": 1})
    with patch.object(http, "delay_s", 0.05):
        run.complete(2, data__num_workers=2)
    assert run.hashes == batch_hashes(run.dataset(), run.ends)
    fetched = [request.path for request in http.requests if request.path.endswith(".tar")]
    assert fetched and sorted(fetched) == sorted(set(fetched))
    assert not run.events("fetch_retry")
    # Room for half of what is read: it is fetched again and again, and gives the same.
    http.clear()
    (tmp_path / "small").mkdir()
    small = DataRun(tmp_path / "small", http.url)
    small.complete(2, data__cache_gib=cache_of_half_the_shards(corpora), train__max_steps=8)
    assert small.hashes == uncut.hashes[:8]
    assert sum(path.stat().st_size for path in (tmp_path / "small" / "cache").glob("*.shard")) <= (
        cache_of_half_the_shards(corpora) * 2**30
    )
    (tmp_path / "none").mkdir()
    none = DataRun(tmp_path / "none", http.url)
    told = none.start(2, data__cache_gib=10_000 / 2**30)
    assert len(set(told)) == 1
    assert "does not fit into the cache of 10000 bytes" in told[0] and "--data.cache_gib" in told[0]
    assert not none.run_dir.joinpath("metrics.jsonl").read_text()


def test_a_shard_that_never_comes_is_left_out(http: FaultProxy, corpora: Path, tmp_path: Path) -> None:
    http.clear()
    run = DataRun(tmp_path, http.url, {"data.on_bad_shard": "skip", "data.fetch_attempts": 2})
    dataset = run.dataset()
    http.inject("unavailable", 1000, "/books/train-000000.tar")
    run.complete(2, data__num_workers=1)
    http.clear()
    (event,) = run.events("skip_shard")
    skipped = SkippedShard("books", 0, f"{http.url}/books/train-000000.tar", event["from_sequence"])
    first = first_touched(dataset, "books", 0, "deleted")
    assert (event["path"], event["of_index"]) == (skipped.path, False)
    assert event["from_sequence"] == max(end for end in [0, *run.ends] if end <= first)
    assert "2 times in a row, at last: HTTP status 503" in event["reason"]
    assert run.hashes == batch_hashes(run.dataset([skipped]), run.ends)
    # Who fetches ahead meets it too, and leaves it to whoever needs it.
    assert {told["url"] for told in run.events("fetch_retry") + run.events("prefetch_failed")} == {skipped.path}


@pytest.mark.slow
def test_nothing_is_left_out_because_of_its_server_or_of_this_machine(
    uncut: DataRun, http: FaultProxy, tmp_path: Path
) -> None:
    http.clear()
    run = DataRun(tmp_path, http.url, {"data.on_bad_shard": "skip", "data.fetch_attempts": 2})
    told = run.start(2, data__cache_gib=10_000 / 2**30)
    assert len(set(told)) == 1
    assert told[0].startswith("DataError: ") and "does not fit into the cache" in told[0]
    http.inject("unavailable", 1000, TARS)
    told = run.start(2)
    assert len(set(told)) == 1
    assert told[0].startswith("UnreachableError: ") and "cannot be read either" in told[0] and "503" in told[0]
    http.clear()
    run.complete(2)
    assert run.hashes == uncut.hashes
    assert not run.events("skip_shard")


@pytest.mark.thorough
def test_over_s3_a_run_reads_the_same_and_tells_no_secret(
    uncut: DataRun, corpora: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with s3_server(tmp_path_factory.mktemp("s3")) as endpoint, fault_proxy(endpoint) as proxy:
        upload(endpoint, "corpora", corpora)
        faults = {"unavailable": 3, "reset": 1, "truncate": 1, "flip": 1}
        for kind, times in faults.items():
            proxy.inject(kind, times, r"\.tar")  # type: ignore[arg-type]
        environment = s3_environment(proxy.url)
        run = DataRun(tmp_path, "s3://corpora", environment=environment)
        run.complete(2, data__num_workers=1, train__max_steps=8)
        assert run.hashes == uncut.hashes[:8]
        retries = run.events("fetch_retry")
        assert len(retries) == sum(faults.values())
        assert all(event["url"].startswith("s3://corpora/") for event in retries)
    written = b"".join(path.read_bytes() for path in run.run_dir.rglob("*") if path.is_file())
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert environment[name].encode() not in written

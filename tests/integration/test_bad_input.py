"""A mistake is told in one message with its value, rule and remedy; quickly, without a traceback, with exit code 2."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from scaletrain.data.dataset import SequenceDataset
from scaletrain.data.manifest import Manifest
from scaletrain.data.order import DatasetOptions
from scaletrain.data.shard_index import ShardIndex, index_path
from scaletrain.data.shards import ShardReader
from scaletrain.launch.verdicts import read_verdicts
from tests.integration.runs import ENVIRONMENT, MAKE_SHARDS, TRAIN, NewRun, TinyRun, python

# Value, rule and remedy, as parts of the message.
Message = tuple[str, ...]
Damage = Callable[[Path], object]


def refused(run: TinyRun, flags: tuple[object, ...], message: Message) -> str:
    result = run.alone(*flags)
    assert result.returncode == 2, result.stdout
    assert "Traceback" not in result.stdout
    missing = [part for part in message if part not in result.stdout]
    assert not missing, f"{missing} not in: {result.stdout}"
    return result.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        pytest.param(("--optim.lrr", "1"), ("--optim.lrr", "no such key", "did you mean optim.lr"), id="unknown key"),
        pytest.param(
            ("--train.max_steps", "many"),
            ("train.max_steps = many", "expected a whole number", "such as 1000"),
            id="wrong type",
        ),
        pytest.param(
            ("--config", "nowhere.yaml"), ("--config 'nowhere.yaml'", "does not exist", "give the path"), id="no config"
        ),
        pytest.param(
            ("--data.manifest", "nowhere/manifest.json"), ("nowhere/manifest.json", "make_shards"), id="no manifest"
        ),
        pytest.param(
            ("--train.micro_batch_size", 9),
            ("train.micro_batch_size = 9", "larger than train.global_batch_size = 8", "lower the one"),
            id="micro batch larger than the global batch",
        ),
        pytest.param(
            ("--train.max_seq_len", 64),
            ("train.max_seq_len = 64", "model.max_seq_len = 32", "lower train.max_seq_len"),
            id="sequence longer than learned positions",
        ),
        pytest.param(
            ("--data.num_lanes", 99, "--dry_run"),
            ("data.num_lanes is 99", "needs a shard of its own", "Lower --data.num_lanes"),
            id="more lanes than shards, already in the plan",
        ),
    ],
)
def test_what_is_typed_wrong_is_said(new_run: NewRun, flags: tuple[object, ...], message: Message) -> None:
    run = new_run("one")
    refused(run, flags, message)
    assert not (run.run_dir / "metrics.jsonl").exists()


def truncate_shard(corpus: Path) -> None:
    shard = corpus / "train-000000.tar"
    shard.write_bytes(shard.read_bytes()[:-700])


def swap_indexes(corpus: Path) -> None:
    first, second, *_ = sorted(corpus.glob("train-*.tar"))
    shutil.copy(index_path(second), index_path(first))


def change_tokenizer(corpus: Path) -> None:
    path = corpus / "tokenizer.json"
    path.write_text(path.read_text().replace("beta", "Beta") + " ")


def empty_corpus(corpus: Path) -> None:
    path = corpus / "manifest.json"
    content = json.loads(path.read_text())
    content["splits"]["train"] = []
    content["totals"]["train"] = {"documents": 0, "tokens": 0, "bytes": 0}
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(truncate_shard, ("train-000000.tar", "bytes", "make_shards"), id="truncated tar"),
        pytest.param(
            swap_indexes, ("is not the index of train-000000.tar", "manifest says", "make_shards"), id="index"
        ),
        pytest.param(change_tokenizer, ("tokenizer.json", "sha256", "make_shards"), id="tokenizer"),
        pytest.param(empty_corpus, ("manifest.json", "train", "make_shards"), id="empty corpus"),
    ],
)
def test_a_corpus_that_cannot_be_used_is_told_apart(
    new_run: NewRun, manifest: Path, tmp_path: Path, damage: Damage, message: Message
) -> None:
    corpus = tmp_path / "corpus"
    shutil.copytree(manifest.parent, corpus)
    damage(corpus)
    run = new_run("one")
    refused(run, ("--data.manifest", corpus / "manifest.json"), message)
    assert [content["verdict"] for content in read_verdicts(run.run_dir, 1).values()] == ["user_error"]


def test_a_folder_without_text_makes_no_corpus(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    result = python(
        MAKE_SHARDS, "build", "--input", tmp_path / "texts", "--out", tmp_path / "out", "--train_tokenizer", 300
    )
    assert result.returncode == 2 and "Traceback" not in result.stdout
    assert "empty" in result.stdout and str(tmp_path / "texts") in result.stdout


def test_the_run_directory_of_another_model_is_left_alone(finished: TinyRun, new_run: NewRun) -> None:
    run = new_run("copy")
    shutil.copytree(finished.run_dir, run.run_dir)
    before = run.curve("train/loss")
    told = refused(run, ("--model.d_model", 64), ("model.d_model: 32 there, 64 here", "another run", "--run_dir"))
    assert "model.head_dim" in told  # all that differs, not the first thing only
    assert run.curve("train/loss") == before and run.verdicts(2) == ["user_error"]
    # A plan finds it too, and writes nothing.
    plan = run.alone("--dry_run", "--model.d_model", 64)
    assert plan.returncode == 2 and "model.d_model: 32 there, 64 here" in plan.stdout
    local = ("--checkpoint.local_dir", run.folder / "disk", "--checkpoint.local_every_steps", 1)
    plan = run.alone("--dry_run", "--optim.lr", 1e-3, *local)
    assert plan.returncode == 0 and "changed        optim.lr: 0.003 -> 0.001" in plan.stdout
    assert "\non each node   " in plan.stdout and "free at checkpoint.local_dir here: " in plan.stdout


def test_settings_of_deepspeed_leave_alone_what_the_run_decides(new_run: NewRun) -> None:
    run = new_run("one")
    path = run.folder / "mine.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 1}, "train_batch_size": 64, "bf16": {"enabled": True}}))
    refused(run, ("--deepspeed", path), (str(path), "train_batch_size", "train.global_batch_size", "remove it"))


def test_a_run_directory_that_cannot_be_made_is_said(new_run: NewRun) -> None:
    run = new_run("one")
    (run.folder / "file").touch()
    run_dir = run.folder / "file" / "run"
    refused(run, ("--run_dir", run_dir), (f"run directory {run_dir}", "Not a directory", "give another --run_dir"))


def fastest_s(*commands: tuple[object, ...]) -> list[float]:
    """The shortest of three times of each command; taken in turn, so that a busy moment meets all of them."""
    times = []
    for _ in range(3):
        for command in commands:
            start_s = time.perf_counter()
            python(*command)
            times.append(time.perf_counter() - start_s)
    return [min(times[number :: len(commands)]) for number in range(len(commands))]


def test_help_and_plans_and_mistakes_are_answered_within_a_second(new_run: NewRun) -> None:
    nothing, usage, plan, mistake = fastest_s(
        ("-c", "pass"),
        (TRAIN, "--help"),
        (TRAIN, "--config", new_run("one").config, "--dry_run"),
        (TRAIN, "--dry_run", "--optim.lr", "-1"),
    )
    # On a busy machine an empty program takes its time too: it is about 15 ms on an idle one.
    limit_s = max(1.0, nothing / 0.02)
    assert usage < limit_s and plan < limit_s and mistake < limit_s
    result = python(TRAIN, "--dry_run", "--optim.lr", "-1")
    assert result.returncode == 2 and "optim.lr = -1" in result.stdout and "Traceback" not in result.stdout
    assert "--optim.lr" in python(TRAIN, "--help").stdout


def damage_a_sequence(corpus: Path, sequence: int) -> None:
    """Writes a token that the tokenizer does not have into one sequence of the training split."""
    manifest = Manifest.open(corpus / "manifest.json")
    dataset = SequenceDataset([ShardReader(manifest, "train")], DatasetOptions(32, seed=7))
    size = manifest.token_dtype.itemsize
    # In the middle of a document: its ends are checked when the run starts.
    piece = max(dataset.order.pieces(sequence), key=lambda piece: piece.stop - piece.start)
    shard = corpus / manifest.splits["train"][piece.shard].path
    index = ShardIndex.read(index_path(shard))
    offset = int(index.offsets[piece.document]) + size * (piece.start + piece.stop) // 2 // size * size
    with shard.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * size)


def test_a_shard_found_damaged_by_one_rank_ends_all_ranks(new_run: NewRun, manifest: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    shutil.copytree(manifest.parent, corpus)
    damage_a_sequence(corpus, 6 * 8 + 3)  # of step 6, and of rank 1
    run = new_run("one")
    ranks = run.start_ranks(2, "--data.manifest", corpus / "manifest.json")
    run.wait_for_step(5, attempt=1)
    start_s = time.monotonic()
    assert [rank.wait(timeout=30) for rank in ranks] == [2, 2]
    assert time.monotonic() - start_s < 15
    assert run.verdicts(1) == ["user_error", "user_error"]
    for rank in (0, 1):
        told = run.output_of(f"rank-{rank}").read_text()
        assert "Traceback" not in told and "gloo" not in told
    told = run.output_of("rank-0").read_text()
    assert "Sequence 51 holds token 65535" in told and "make_shards" in told


def test_a_mistake_that_cannot_be_told_leaves_its_verdict(new_run: NewRun) -> None:
    run = new_run("untold")
    command = [sys.executable, str(TRAIN), "--config", str(run.config)]
    with open("/dev/full", "w") as full:
        code = subprocess.call(command, env=ENVIRONMENT | {"SCALETRAIN_JOB_END_TIME": "soon"}, stdout=full, stderr=full)
    (verdict,) = (run.run_dir / "exit" / "unclaimed").glob("*.json")
    assert code == 2 and "SCALETRAIN_JOB_END_TIME=soon is no time" in json.loads(verdict.read_text())["reason"]


def test_a_job_that_ends_before_anything_is_trained_says_so(new_run: NewRun) -> None:
    run = new_run("short")
    result = run.alone(environment={"SCALETRAIN_JOB_END_TIME": str(time.time() + 20)})
    assert result.returncode == 75, result.stdout
    assert "s, and train.exit_by_s = 30 leaves no time" in result.stdout and "Traceback" not in result.stdout
    (verdict,) = (run.run_dir / "exit" / "unclaimed").glob("*.json")
    assert json.loads(verdict.read_text())["verdict"] == "requeue"

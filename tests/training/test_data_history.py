"""Every step of a run can be traced to its documents, those done and those to come, and checked."""

import json
import shutil
import tarfile
from collections import defaultdict
from pathlib import Path

import pytest

from scaletrain.data.shard_index import ShardIndex, index_path
from scaletrain.data.tokenizer import load_tokenizer
from scaletrain.errors import ConfigError, DataError
from scaletrain.training.data_history import DataHistory, UsedPiece
from tests.training.conftest import invented_texts
from tests.training.data_runs import STEPS, Damage, DataRun, shard_path


def texts_by_place(base: Path) -> dict[tuple[str, str], str]:
    """The text of each document by its shard's path and its key."""
    texts = invented_texts()
    found = {}
    for path in base.glob("*/train-*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    content = tar.extractfile(member)
                    assert content is not None
                    facts = json.loads(content.read())
                    text = texts[path.parent.name][int(facts["source"])]
                    found[str(path), member.name.removesuffix(".json")] = text
    return found


def uses_by_key(pieces: dict[int, list[UsedPiece]]) -> dict[str, list[tuple[object, ...]]]:
    """The uses of each key, by looking at all steps."""
    found = defaultdict(list)
    for step, own in pieces.items():
        for piece in own:
            found[piece.key].append((step, piece.sequence, piece.source, piece.shard, piece.start, piece.stop))
    return found


def check_uses(history: DataHistory, pieces: dict[int, list[UsedPiece]]) -> None:
    expected = uses_by_key(pieces)
    for key in sorted(expected)[::5]:
        uses = list(history.uses(key))
        assert sorted(use[:1] + use[2:] for use in uses) == sorted(expected[key])
        assert all(use.is_past == (use.step <= len(history.ends)) for use in uses)


@pytest.mark.slow
def test_documents_are_told_before_they_are_used_as_they_are_afterwards(
    uncut: DataRun, corpora: Path, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(corpora, tmp_path / "corpora"))
    run = DataRun(tmp_path, own, {"checkpoint.every_steps": 3})
    path = shard_path(own, "books", 0)
    assert str(path) in run.start(2, [(str(path), "token")])[0]
    done = len(run.hashes)
    assert 3 < done < 10 and done % 3
    shutil.copytree(corpora, own, dirs_exist_ok=True)
    before = DataHistory.open(run.run_dir)
    told = {step: list(before.pieces(step)) for step in range(1, STEPS + 1)}
    assert (len(before.ends), before.world_size) == (done, 2)
    check_uses(before, told)
    # What was done behind the last checkpoint is done again, by other ranks.
    run.forget_checkpoints_behind(done // 3 * 3)
    run.complete(3)
    after = DataHistory.open(run.run_dir)
    assert (len(after.ends), after.world_size) == (STEPS, 3)
    for step in range(1, STEPS + 1):
        pieces = list(after.pieces(step))
        assert [piece._replace(rank=0) for piece in pieces] == [piece._replace(rank=0) for piece in told[step]]
        assert {piece.rank for piece in told[step]} == {0, 1} and {piece.rank for piece in pieces} == {0, 1, 2}
        assert all(piece.rank == piece.sequence % 3 for piece in pieces)
    check_uses(after, told)
    assert [found.computed for found in after.verify(range(1, STEPS + 1))] == uncut.hashes
    # The text is that of the corpus.
    texts, tokenizer = texts_by_place(own), load_tokenizer(own / "web" / "tokenizer.json")
    for piece in (piece for pieces in told.values() for piece in pieces):
        tokens = [*tokenizer.encode(texts[piece.shard, piece.key]).ids, after.dataset.eos_id]
        assert piece.stop <= len(tokens)
        assert piece.text == tokenizer.decode(tokens[piece.start : piece.stop], skip_special_tokens=False)
        assert piece.source in texts[piece.shard, piece.key]


def test_a_run_that_went_back_and_on_with_other_sizes_has_one_history(corpora: Path, tmp_path: Path) -> None:
    run = DataRun(tmp_path, corpora, {"checkpoint.every_steps": 4})
    run.complete(2)
    run.forget_checkpoints_behind(4)
    run.complete(1, train__global_batch_size=10, train__batch_schedule="[]", train__max_steps=6)
    history = DataHistory.open(run.run_dir)
    assert history.ends == [6, 12, 18, 24, 34, 44]
    assert all(found.recorded == found.computed for found in history.verify(range(1, 7)))
    check_uses(history, {step: list(history.pieces(step)) for step in range(1, 7)})


def test_a_changed_byte_is_found_in_the_steps_that_it_is_part_of(corpora: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(corpora, tmp_path / "corpora"))
    run = DataRun(tmp_path, own)
    run.complete(2)
    path = shard_path(own, "books", 1)
    index = ShardIndex.read(index_path(path))
    document = len(index.offsets) // 2
    with path.open("rb+") as stream:
        stream.seek(int(index.offsets[document]))
        byte = stream.read(1)[0]
        stream.seek(int(index.offsets[document]))
        stream.write(bytes([byte ^ 1]))
    history = DataHistory.open(run.run_dir)
    wrong = [found.step for found in history.verify(range(1, STEPS + 1)) if found.recorded != found.computed]
    key = history.dataset.readers[1].keys(1)[document]
    uses = [use for use in history.uses(key) if use.shard == str(path)]
    assert wrong and set(wrong) == {use.step for use in uses if use.start == 0}


@pytest.mark.parametrize("how", ["deleted", "index"])
def test_what_was_left_out_is_said(corpora: Path, tmp_path: Path, how: Damage) -> None:
    own = Path(shutil.copytree(corpora, tmp_path / "corpora"))
    run = DataRun(tmp_path, own, {"data.on_bad_shard": "skip"})
    path = shard_path(own, "web", 2)
    run.complete(2, [(str(path), how)])
    (event,) = run.events("skip_shard")
    whole = DataHistory.open(run.run_dir)
    # The shard is still gone.
    pieces = [piece for step in range(1, STEPS + 1) for piece in whole.pieces(step)]
    left_out = {piece.sequence for piece in pieces if piece.text is None}
    assert left_out and min(left_out) == event["from_sequence"]
    assert {(piece.key, piece.stop) for piece in pieces if piece.shard == str(path)} == {(None, 0)} or how != "index"
    assert {piece.shard for piece in pieces if piece.text is None} >= {str(path)}
    assert all(piece.text is None for piece in pieces if piece.shard == str(path))
    assert all(found.recorded == found.computed for found in whole.verify(range(1, STEPS + 1)))
    other = next(piece for piece in pieces if piece.text is not None)
    assert other.sequence in {use.sequence for use in whole.uses(other.key or "")}
    # So it is when it has come back, which is no reason to think that the run had read it.
    shutil.copytree(corpora, own, dirs_exist_ok=True)
    again = DataHistory.open(run.run_dir)
    mended = [piece for step in range(1, STEPS + 1) for piece in again.pieces(step)]
    assert left_out == {piece.sequence for piece in mended if piece.text is None}
    used = {use.sequence for key in again.dataset.readers[0].keys(2) for use in again.uses(key)}
    assert used and not used & left_out


def test_what_cannot_be_told_is_an_error(uncut: DataRun, corpora: Path, tmp_path: Path) -> None:
    history = DataHistory.open(uncut.run_dir)
    for step in (0, STEPS + 1):
        with pytest.raises(ConfigError, match=f"--step {step} is not in this run, which has the steps 1 to 12"):
            list(history.pieces(step))
    with pytest.raises(DataError, match="--key nobody: no document of the training data has it"):
        list(history.uses("nobody"))
    for steps in (range(0, 3), range(12, 14), range(5, 5)):
        with pytest.raises(ConfigError, match=r"metrics\.jsonl has the steps 1 to 12"):
            list(history.verify(steps))
    with pytest.raises(ConfigError, match=r"holds no config\.yaml; give the folder of a run"):
        DataHistory.open(tmp_path)
    own = Path(shutil.copytree(corpora, tmp_path / "corpora"))
    run = DataRun(tmp_path, own)
    run.complete(1, train__max_steps=2)
    own.rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=str(own / "web" / "manifest.json")):
        DataHistory.open(run.run_dir)
    # Another corpus at the same place.
    shutil.copytree(tmp_path / "elsewhere" / "web", own / "web")
    shutil.copytree(tmp_path / "elsewhere" / "web", own / "books")
    with pytest.raises(DataError, match="are not those that it was trained on"):
        DataHistory.open(run.run_dir)
    shutil.rmtree(own)
    (tmp_path / "elsewhere").rename(own)
    assert len(DataHistory.open(run.run_dir).hashes) == 2
    lines = (run.run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run.run_dir / "metrics.jsonl").write_text("".join(line for line in lines if '"step": 1,' not in line))
    with pytest.raises(DataError, match=r"metrics\.jsonl lacks steps before step 2"):
        DataHistory.open(run.run_dir)
    # A run that has not done a step yet has only steps to come.
    (run.run_dir / "metrics.jsonl").unlink()
    assert [DataHistory.open(run.run_dir).sequences(step) for step in (1, 2)] == [range(6), range(6, 12)]

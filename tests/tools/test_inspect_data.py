"""tools/inspect_data.py as a user meets it: what a run's steps were made of, or a message and an exit code."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from scaletrain.data.shard_index import ShardIndex, index_path
from scaletrain.training.data_history import DataHistory
from tests.training.conftest import build_corpora
from tests.training.data_runs import DataRun, first_touched, shard_path

TOOL = Path(__file__).parents[2] / "tools" / "inspect_data.py"
DONE, STEPS = 6, 9
Inspect = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> DataRun:
    """A run that was stopped after six of nine steps, and has left a shard out from the fifth on."""
    folder = tmp_path_factory.mktemp("inspected")
    run = DataRun(folder, build_corpora(folder / "corpora"), {"data.on_bad_shard": "skip"})
    path = shard_path(folder / "corpora", "books", 0)
    assert 24 <= first_touched(run.dataset(), "books", 0, "token") < 30
    run.complete(1, [(str(path), "token")], train__max_steps=DONE)
    (run.run_dir / "stop").touch()
    assert run.start(1, train__max_steps=STEPS) == ("stopped",)
    return run


@pytest.fixture
def inspect(run: DataRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Inspect:
    """Calls the tool in this process, which has imported torch already."""
    monkeypatch.syspath_prepend(str(TOOL.parent))
    tool = runpy.run_path(str(TOOL))

    def call(*arguments: object, run_dir: object = run.run_dir) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [str(TOOL), "--run_dir", str(run_dir), *map(str, arguments)])
        code = tool["run_tool"](TOOL.name, tool["parse"], tool["run"])
        return code, *capsys.readouterr()

    return call


def test_a_step_is_listed_with_its_documents(run: DataRun, inspect: Inspect) -> None:
    history = DataHistory.open(run.run_dir)
    for step, state in ((1, ""), (DONE, ""), (DONE + 1, ", to come"), (STEPS, ", to come")):
        code, out, _ = inspect("--step", step)
        own = history.sequences(step)
        assert code == 0
        assert out.splitlines()[0] == f"step {step}{state}: sequences {own.start} to {own.stop - 1}, of 1 ranks"
        pieces = list(history.pieces(step))
        assert re.findall(r"^sequence (\d+), rank 0$", out, re.MULTILINE) == [str(sequence) for sequence in own]
        lines = [
            f"  {piece.source} {piece.shard} {piece.key} tokens {piece.start}:{piece.stop}"
            + (" left out" if piece.text is None else "")
            for piece in pieces
        ]
        assert [line for line in out.splitlines() if line.startswith("  ") and line[2] != " "] == lines
        assert re.findall(r"^    (.*)$", out, re.MULTILINE) == [repr(piece.text) for piece in pieces if piece.text]
    assert " left out" in inspect("--step", 5)[1] and " left out" not in inspect("--step", 4)[1]
    assert "    " not in inspect("--step", 1, "--characters", 0)[1]
    assert "    'we'\n" in inspect("--step", 1, "--characters", 2)[1]


def test_a_key_is_listed_with_its_uses(run: DataRun, inspect: Inspect) -> None:
    history = DataHistory.open(run.run_dir)
    key = next(piece.key for piece in history.pieces(STEPS) if piece.text is not None)
    code, out, _ = inspect("--key", key)
    expected = [
        f"{'used' if step <= DONE else 'will be used'} in step {step}, sequence {piece.sequence}: tokens "
        f"{piece.start}:{piece.stop} of {piece.source} {piece.shard}"
        for step in range(1, STEPS + 1)
        for piece in history.pieces(step)
        if piece.key == key and piece.text is not None
    ]
    assert code == 0 and expected
    assert out.splitlines() == expected


@pytest.mark.slow
def test_steps_are_verified(run: DataRun, tmp_path: Path) -> None:
    # As a command: nothing else is on its standard output, and DeepSpeed is not loaded.
    command = [
        sys.executable,
        "-X",
        "importtime",
        str(TOOL),
        "--run_dir",
        str(run.run_dir),
        "--verify",
        f"1:{DONE + 1}",
    ]
    result = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stdout) == (0, "6 of 6 steps are as recorded\n"), result.stderr
    assert re.search(r"\| +torch\n", result.stderr) and "deepspeed" not in result.stderr


def test_a_changed_byte_is_reported(run: DataRun, inspect: Inspect) -> None:
    path = shard_path(Path(run.base), "web", 1)
    kept, index = path.read_bytes(), ShardIndex.read(index_path(path))
    assert first_touched(run.dataset(), "web", 1, "deleted") < 6
    try:
        with path.open("rb+") as stream:
            # Not at the edges, whose checksum is looked at.
            inner = (index.offsets > index.offsets[0] + 4096) & (index.offsets < index.offsets[-1] - 4096)
            for offset in index.offsets[inner].tolist():
                stream.seek(offset)
                stream.write(bytes([kept[offset] ^ 1]))
        code, out, _ = inspect("--verify", f"1:{DONE + 1}")
        assert code == 1
        wrong = re.findall(r"^step \d: the run recorded [0-9a-f]{16}, the data gives [0-9a-f]{16}$", out, re.MULTILINE)
        assert 0 < len(wrong) < DONE
        assert out.splitlines()[len(wrong) :] == [f"{DONE - len(wrong)} of 6 steps are as recorded"]
        steps = {step for step in range(1, DONE + 1) if "checksum is another one" in inspect("--step", step)[1]}
        assert steps == {int(line.split()[1].rstrip(":")) for line in wrong}
    finally:
        path.write_bytes(kept)


def test_mistakes_are_told_with_exit_code_2(run: DataRun, inspect: Inspect, tmp_path: Path) -> None:
    mistakes = {
        (): "one of --step, --key and --verify must be given, not none",
        ("--step", "1", "--key", "a"): "one of --step, --key and --verify must be given, not --step and --key",
        ("--step", "one"): "--step one is not a whole number",
        ("--step", "0"): "--step 0 is not in this run, which has the steps 1 to 9",
        ("--step", "10"): "--step 10 is not in this run",
        ("--key", "nobody"): "--key nobody: no document of the training data has it",
        ("--verify", "3"): "--verify 3 is no range of steps",
        ("--verify", "1:9"): "metrics.jsonl has the steps 1 to 6",
        ("--verify", "5:5"): "--verify 5:5 holds no step",
        ("--verify",): "--verify needs a value",
        ("--step",): "--step needs a value",
        ("--key",): "--key needs a value",
    }
    for arguments, message in mistakes.items():
        code, out, err = inspect(*arguments)
        assert (code, out) == (2, ""), arguments
        assert err.startswith("error: ") and message in err, arguments
    code, _, err = inspect("--step", 1, run_dir=tmp_path)
    assert code == 2 and "holds no config.yaml" in err
    base = Path(run.base)
    moved = base.rename(tmp_path / "moved")
    try:
        code, _, err = inspect("--step", 1)
        assert code == 2 and str(base) in err
    finally:
        shutil.move(moved, base)

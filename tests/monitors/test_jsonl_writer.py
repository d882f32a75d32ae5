"""metrics.jsonl keeps every finished line, whatever happens to its writer."""

import json
import math
import resource
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaletrain.monitors.jsonl_writer import JsonlWriter, read_metrics


def same_float(a: float, b: float) -> bool:
    return (math.isnan(a) and math.isnan(b)) or struct.pack("d", a) == struct.pack("d", b)


@given(values=st.lists(st.floats(width=64), min_size=1, max_size=5))
def test_any_float_comes_back_in_full_precision_through_strict_json(
    tmp_path_factory: pytest.TempPathFactory, values: list[float]
) -> None:
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    writer = JsonlWriter(path, attempt=1)
    for step, value in enumerate(values):
        writer.write(step, {"train/loss": value})
    writer.close()

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is no JSON")

    for line in path.read_text().splitlines():
        assert {"step", "attempt", "time_s", "train/loss"} == json.loads(line, parse_constant=refuse).keys()
    assert all(same_float(a, record["train/loss"]) for a, record in zip(values, read_metrics(path), strict=True))


def test_numbers_of_numpy_and_counts_are_taken(tmp_path: Path) -> None:
    writer = JsonlWriter(tmp_path / "m", attempt=1)
    writer.write(1, {"a": np.float32(0.5), "b": np.int64(3), "c": 2**60})
    writer.write_text("text/samples", 2, 'def f():\n    return "é"\n')
    writer.close()
    first, second = read_metrics(tmp_path / "m")
    assert (first["a"], first["b"], first["c"]) == (0.5, 3, 2**60)
    assert second["text/samples"] == 'def f():\n    return "é"\n'


def test_a_step_done_again_counts_as_the_highest_attempt_did_it(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for attempt, steps in ((1, range(1, 7)), (2, range(4, 6)), (3, range(5, 8))):
        writer = JsonlWriter(path, attempt)
        for step in steps:
            writer.write(step, {"train/loss": 10.0 * attempt + step})
            if attempt == 1 and step % 3 == 0:
                writer.write(step, {"eval/loss": 0.5})
        writer.close()
    records = read_metrics(path)
    assert [(r["step"], r["attempt"]) for r in records] == [(1, 1), (2, 1), (3, 1), (4, 2), (5, 3), (6, 3), (7, 3)]
    assert [r["train/loss"] for r in records] == [11.0, 12.0, 13.0, 24.0, 35.0, 36.0, 37.0]
    # What was measured of step 6 was of weights that the second start did away with.
    assert [r["step"] for r in records if "eval/loss" in r] == [3]
    # Who goes back further, and is not as far yet, has no part in what was done behind there.
    writer = JsonlWriter(path, attempt=4)
    writer.write(3, {"train/loss": 43.0})
    writer.close()
    assert [(r["step"], r["attempt"]) for r in read_metrics(path)] == [(1, 1), (2, 1), (3, 4)]


def test_what_a_rollback_went_back_from_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = JsonlWriter(path, attempt=1)
    for step in (1, 2, 3, 4):
        writer.write(step, {"train/loss": 10.0 + step})
        writer.write(step, {"eval/loss": 10.0 + step})
    writer.write(3, {"train/loss": 23.0})
    writer.close()
    records = read_metrics(path)
    assert [(r["step"], r["train/loss"], r.get("eval/loss")) for r in records] == [
        *((1, 11.0, 11.0), (2, 12.0, 12.0)),
        (3, 23.0, None),  # evaluated were weights that are no part of the run any more
    ]


def test_a_rollback_to_the_step_right_before_replaces_the_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = JsonlWriter(path, attempt=1)
    for loss, digits in ((1.0, "a1"), (2.0, "b2")):
        writer.write(3, {"train/loss": loss, "data/batch_hash": digits, f"train/loss/of_{digits}": loss})
        writer.write(3, {"eval/loss": loss} if loss == 1.0 else {"eval/bits": loss})
    writer.close()
    (row,) = read_metrics(path)
    assert (row["train/loss"], row["data/batch_hash"], row["eval/bits"]) == (2.0, "b2", 2.0)
    assert not {"train/loss/of_a1", "eval/loss"} & row.keys()


@pytest.mark.parametrize(
    "torn", [b'{"step": 3, "attempt": 1, "train/lo', b'{"step": 3, "attempt": 1, "x": 1}', b"\x00\xff"]
)
def test_a_torn_line_is_ignored_and_the_next_writer_goes_on(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = JsonlWriter(path, attempt=1)
    writer.write(1, {"train/loss": 3.0})
    writer.close()
    with path.open("ab") as file:
        file.write(torn)
    before = path.read_bytes()
    assert [r["step"] for r in read_metrics(path)] == [1]
    writer = JsonlWriter(path, attempt=2)
    writer.write(2, {"train/loss": 2.0})
    writer.close()
    assert path.read_bytes().startswith(before)
    assert [(r["step"], r["train/loss"]) for r in read_metrics(path) if "train/loss" in r] == [(1, 3.0), (2, 2.0)]


WRITE_FOREVER = """
import sys
from pathlib import Path
from scaletrain.monitors.jsonl_writer import JsonlWriter
writer = JsonlWriter(Path(sys.argv[1]), attempt=1)
for step in range(10**9):
    writer.write(step, {f"metric/{i}": step + i / 7 for i in range(20)})
    if step == 100:
        print("going", flush=True)
"""


def test_a_killed_writer_loses_nothing_that_it_wrote(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with subprocess.Popen([sys.executable, "-c", WRITE_FOREVER, path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "going\n"
        process.send_signal(signal.SIGKILL)
    records = read_metrics(path)
    assert [r["step"] for r in records] == list(range(len(records)))
    assert len(records) > 100
    assert all(len(r) == 23 for r in records)


def test_a_disk_that_is_full_for_a_while_loses_no_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = JsonlWriter(path, attempt=1)
    writer.write(1, {"train/loss": 1.0})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, hard))
    try:
        writer.write(2, {"train/loss": 1.0})
        writer.write(3, {"train/loss": 1.0})
        with pytest.raises(OSError, match="File too large"):  # a checkpoint must not count on these lines
            writer.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [r["step"] for r in read_metrics(path)] == [1]
    writer.write(4, {"train/loss": 1.0})
    writer.flush()
    assert [r["step"] for r in read_metrics(path)] == [1, 2, 3, 4]
    writer.close()
    assert [record.levelname for record in caplog.records] == ["ERROR"]

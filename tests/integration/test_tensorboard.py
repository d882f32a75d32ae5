"""TensorBoard's own server shows what a run wrote."""

import json
import re
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.runs import TinyRun
from tests.processes import eventually, kill_all

SCALARS = {
    "train/loss",
    "train/grad_norm",
    "optim/lr",
    "perf/tokens_per_s",
    "perf/mfu",
    "perf/data_wait_s",
    "perf/step_time_s",
    "mem/reserved_gib",
    "data/epoch",
    "eval/loss",
    "eval/perplexity",
    "eval/bits_per_byte",
    "eval/gap",
}


class Server:
    """What TensorBoard answers over HTTP."""

    def __init__(self, address: str) -> None:
        self.address = address

    def ask(self, path: str, **query: str) -> Any:
        url = f"{self.address}data/plugin/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)


@pytest.fixture(scope="module")
def server(finished: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("tensorboard")
    printed = folder / "printed.txt"
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(finished.folder), "--port", "0"]
    with printed.open("w") as output:
        process = subprocess.Popen([*command, "--host", "127.0.0.1"], stdout=output, stderr=output)

    def address() -> str:
        assert process.poll() is None, printed.read_text()
        found = re.search(r"http://127\.0\.0\.1:\d+/", printed.read_text())
        return found.group() if found else ""

    try:
        yield Server(eventually(address, 60, "the server listens"))
    finally:
        process.terminate()
        process.wait(timeout=20)
        # It may have a process of its own that reads the event files.
        kill_all(finished.folder / "run" / "tb")


def test_every_scalar_of_the_design_is_served(server: Server, finished: TinyRun) -> None:
    def tags() -> dict[str, Any]:
        runs = server.ask("scalars/tags")
        return runs if any("eval/loss" in of_run for of_run in runs.values()) else {}

    ((run, found),) = eventually(tags, 60, "the run is read").items()
    assert Path(run).parts[:2] == ("run", "tb") and set(found) >= SCALARS
    curves = {
        name: [(step, value) for _, step, value in server.ask("scalars/scalars", run=run, tag=name)]
        for name in ("train/loss", "eval/loss")
    }
    for name, curve in curves.items():
        written = [(step, value) for step, value in finished.curve(name) if value is not None]
        assert [step for step, _ in curve] == [step for step, _ in written]
        assert [value for _, value in curve] == pytest.approx([value for _, value in written], rel=1e-6)


def test_configuration_and_samples_are_served_as_text(server: Server, finished: TinyRun) -> None:
    ((run, tags),) = eventually(lambda: server.ask("text/tags"), 60, "the run is read").items()
    texts = {tag.removesuffix("/text_summary"): server.ask("text/text", run=run, tag=tag) for tag in tags}
    assert "vocab_size: 320" in texts["text/config"][0]["text"]
    assert [sample["step"] for sample in texts["text/samples"]] == [4, 8, 12]
    assert all("alpha" in sample["text"] for sample in texts["text/samples"])

"""Tools called in this process, which has imported torch already, and tiny runs of each task to call them with."""

import runpy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.training.task_runs import KINDS, Kind, TaskRun, build_examples

TOOLS = Path(__file__).parents[2] / "tools"
Tool = Callable[..., tuple[int, str, str]]

ADAPTED = "adapted"
"""Adapters of low rank in an average over steps: what is used must have both."""
CONTEXT = 96
"""Tokens of a conversation that the model sees: two short turns fit."""
_OWN = {
    ADAPTED: Kind("classes", KINDS["classification"].overrides | {"lora.rank": 2, "optim.ema_decay": 0.6}),
    "sft": Kind(
        "chat",
        KINDS["sft"].overrides
        | {"train.max_seq_len": CONTEXT, "model.max_seq_len": CONTEXT}
        | {"log.writers": "[tensorboard]", "log.every_steps": 1},
    ),
}


@dataclass
class TrainedRuns:
    """Runs that are trained when they are first asked for.

    Attributes:
        folder: Where they lie.
    """

    folder: Path

    def corpus(self, format: str) -> Path:
        """The folder of a corpus's manifest; beside it lie the records."""
        folder = self.folder / f"corpus_{format}"
        if not folder.exists():
            build_examples(folder, format)
        return folder / "corpus"

    def run(self, name: str) -> TaskRun:
        """A run of a task, evaluated on all of its validation split."""
        kind = (KINDS | _OWN)[name]
        folder = self.folder / name
        is_new = not folder.exists()
        folder.mkdir(exist_ok=True)
        run = TaskRun(folder, self.corpus(kind.format), kind.overrides)
        if is_new:
            more = {"init": self.run("classification").run_dir} if name == ADAPTED else {}
            run.complete(1, eval__max_sequences=1000, eval__max_texts=1000, **more)
        return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedRuns:
    return TrainedRuns(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def tool(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Tool:
    """Calls a tool, by its name and arguments: exit code, standard output, standard error."""
    monkeypatch.syspath_prepend(str(TOOLS))

    def call(name: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [str(TOOLS / name), *arguments])
        try:
            runpy.run_path(str(TOOLS / name), run_name="__main__")
        except SystemExit as ending:
            return int(ending.code or 0), *capsys.readouterr()
        raise AssertionError("a tool ends with an exit code")

    return call

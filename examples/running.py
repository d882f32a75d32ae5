"""Runs the examples of a folder: builds their corpora, trains, judges on the test split, and writes one table.

Each step is a command of the project, printed as it is run, so that it can be typed as well. What is finished is not
done again.
"""

import json
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from examples.outcomes import Outcome, table
from scaletrain.errors import ConfigError

ROOT = Path(__file__).parents[1]
START = "start"
"""Name that stands for the model which ``--pretrained`` brings."""


@dataclass(frozen=True)
class Corpus:
    """Records, and how a corpus is made of them.

    Attributes:
        name: Folder of the corpus.
        records: Name of the file of records, without ``.jsonl``.
        options: Of ``tools/make_shards.py build``.
        tokenizer: Corpus whose tokenizer is used, or ``START``; None where it trains its own.
    """

    name: str
    records: str
    options: tuple[str, ...] = ()
    tokenizer: str | None = None


@dataclass(frozen=True)
class Example:
    """A line of the table: one training.

    Attributes:
        name: Its run's folder.
        subject: File of records whose test split it is judged by; those of one subject can be compared.
        method: What it is, for people.
        corpus: Name of its corpus.
        config: File with its configuration.
        arguments: Of its training, above the file.
        init: Example whose weights it begins with, or ``START``; None for its own.
        split: By which it is judged.
    """

    name: str
    subject: str
    method: str
    corpus: str
    config: Path
    arguments: tuple[str, ...] = ()
    init: str | None = None
    split: str = "test"


@dataclass
class Record:
    """What is kept of an example, so that a command that is given again goes on.

    Attributes:
        file: Where it is kept.
        command: Of the training.
        configuration: Text of its file.
        train_s: Seconds that the training has taken so far, over all its starts.
        train_cpu_s: The same of processor time.
        is_trained: Whether it is complete.
        outcome: What it came to; None before it was judged.
    """

    file: Path
    command: list[str]
    configuration: str
    train_s: float = 0.0
    train_cpu_s: float = 0.0
    is_trained: bool = False
    outcome: Outcome | None = None

    @classmethod
    def read(cls, file: Path) -> "Record | None":
        """Reads what is there.

        Args:
            file: Perhaps not there.
        """
        if not file.is_file():
            return None
        found = json.loads(file.read_text())
        outcome = None if found["outcome"] is None else Outcome(**found["outcome"])
        return cls(**{**found, "file": file, "outcome": outcome})

    def write(self) -> None:
        """Keeps it."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(json.dumps({**asdict(self), "file": self.file.name}, indent=1) + "\n")

    def train(self) -> None:
        """Trains, or goes on with it, and keeps how long that took."""
        start, before = time.perf_counter(), _children_cpu_s()
        try:
            call(self.command)
            self.is_trained = True
        finally:
            self.train_s += time.perf_counter() - start
            self.train_cpu_s += _children_cpu_s() - before
            self.write()


@dataclass(frozen=True)
class Plan:
    """All that can be run of one folder of records.

    Attributes:
        data: Folder of the records.
        out: Folder of corpora, runs and results.
        corpora: By name.
        examples: By name, each behind those that it begins with.
        pretrained: A Hugging Face folder, for examples that begin with ``START``.
        arguments: Of all trainings, above their own.
    """

    data: Path
    out: Path
    corpora: Mapping[str, Corpus]
    examples: Mapping[str, Example]
    pretrained: Path | None = None
    arguments: tuple[str, ...] = ()

    def with_needed(self, names: Sequence[str]) -> list[str]:
        """Adds the examples whose weights others begin with.

        Args:
            names: Of examples; none for all that can be run.

        Returns:
            Names in the plan's order.

        Raises:
            ConfigError: There is no such example, or it needs a pretrained model.
        """
        for name in names:
            if name not in self.examples:
                raise ConfigError(f"--only names {name!r}; known are {', '.join(self.examples)}.")
            if self._begins_with_start(name) and self.pretrained is None:
                raise ConfigError(f"{name} begins with a pretrained encoder; name its folder with --pretrained")
        wanted = set(names) or {
            name for name in self.examples if self.pretrained is not None or not self._begins_with_start(name)
        }
        for name in reversed(list(self.examples)):
            init = self.examples[name].init
            if name in wanted and init is not None and init != START:
                wanted.add(init)
        return [name for name in self.examples if name in wanted]

    def run(self, name: str) -> Outcome:
        """Does what an example needs, as far as it is not done.

        Args:
            name: Of the example, behind those that it begins with.

        Returns:
            What came of it, which also stands in ``results/NAME.json``.

        Raises:
            ConfigError: A command failed, or what is there was trained in another way.
        """
        example = self.examples[name]
        training = self._training(example)
        new = Record(self.out / "results" / f"{name}.json", training, example.config.read_text())
        record = Record.read(new.file) or new
        if (record.command, record.configuration) != (new.command, new.configuration):
            raise ConfigError(
                f"{record.file} is of another command or configuration of {name}. Give another --out, or remove that "
                f"file and {self.out / 'runs' / name}."
            )
        if record.outcome is not None:
            return record.outcome
        if START in (example.init, self.corpora[example.corpus].tokenizer):
            self._convert_start()
        self._build(self.corpora[example.corpus])
        run_dir = self.out / "runs" / name
        if not record.is_trained:
            record.train()
        asked = ["tools/evaluate.py", "--run_dir", str(run_dir), "--split", example.split, "--json"]
        start = time.perf_counter()
        told = json.loads(output_of(asked))
        record.outcome = Outcome(
            name,
            example.subject,
            example.method,
            {key.removeprefix("eval/"): value for key, value in told.items() if isinstance(value, float)},
            example.split,
            **_size(run_dir),
            train_s=round(record.train_s, 1),
            train_cpu_s=round(record.train_cpu_s, 1),
            evaluate_s=round(time.perf_counter() - start, 1),
        )
        record.write()
        return record.outcome

    def run_all(self, names: Sequence[str], after_each: Callable[[list[Outcome]], object] = len) -> None:
        """Runs examples, and writes ``results.json`` and ``results.md`` after each, of all that are done.

        Args:
            names: As ``with_needed`` orders them.
            after_each: Makes more of the same outcomes.
        """
        simple = self.baselines()
        for name in names:
            self.run(name)
            outcomes = self.outcomes()
            (self.out / "results.json").write_text(json.dumps([asdict(one) for one in outcomes], indent=1) + "\n")
            (self.out / "results.md").write_text(table(outcomes, simple))
            after_each(outcomes)
        print(f"\n{(self.out / 'results.md').read_text()}\nwrote {self.out}/results.md and results.json")

    def baselines(self) -> list[dict[str, Any]]:
        """What ``baselines.py`` wrote beside the records; nothing where it has not run."""
        file = self.data / "baselines.json"
        return list(json.loads(file.read_text())) if file.is_file() else []

    def outcomes(self) -> list[Outcome]:
        """What all examples came to that are done, in the plan's order."""
        found = (Record.read(self.out / "results" / f"{name}.json") for name in self.examples)
        return [record.outcome for record in found if record is not None and record.outcome is not None]

    def _training(self, example: Example) -> list[str]:
        script = "train" if example.init is None else "finetune"
        words = [f"scaletrain/{script}.py", "--config", str(example.config)]
        if example.init is not None:
            begin = self.out / START if example.init == START else self.out / "runs" / example.init
            words += ["--init", str(begin)]
        words += ["--data.manifest", str(self.out / "corpora" / example.corpus / "manifest.json")]
        return [*words, "--run_dir", str(self.out / "runs" / example.name), *example.arguments, *self.arguments]

    def _begins_with_start(self, name: str) -> bool:
        init = self.examples[name].init
        return init == START or (init is not None and self._begins_with_start(init))

    def _convert_start(self) -> None:
        start = self.out / START
        if not start.is_dir():
            call(["tools/convert.py", "from_hf", "--source", str(self.pretrained), "--out", str(start)])

    def _build(self, corpus: Corpus) -> None:
        folder = self.out / "corpora"
        tokenizer: list[str] = []
        if corpus.tokenizer is not None:
            where = self.out / START
            if corpus.tokenizer != START:
                self._build(self.corpora[corpus.tokenizer])
                where = folder / corpus.tokenizer
            tokenizer = ["--tokenizer", str(where / "tokenizer.json")]
        records = self.data / f"{corpus.records}.jsonl"
        words = ["tools/make_shards.py", "build", "--input", str(records), "--out", str(folder / corpus.name)]
        call([*words, *tokenizer, *corpus.options])


def short_run(max_steps: str | None) -> tuple[str, ...]:
    """Arguments of a training that is a trial.

    Args:
        max_steps: As it was typed; None for a whole training.

    Raises:
        ConfigError: It is no number of steps.
    """
    if max_steps is None:
        return ()
    if not max_steps.isdecimal() or not int(max_steps):
        raise ConfigError(f"--max_steps is {max_steps!r}; give a whole number, at least 1.")
    return ("--train.max_steps", max_steps, "--optim.warmup_steps", "0", "--train.compile", "false")


def folder_of(name: str, text: str) -> Path:
    """A folder that was typed, for commands that run elsewhere.

    Args:
        name: Of the option.
        text: Its value.

    Raises:
        ConfigError: There is no such folder.
    """
    if not Path(text).is_dir():
        raise ConfigError(f"--{name} {text} is no folder")
    return Path(text).resolve()


def call(words: Sequence[str]) -> None:
    """Runs a command of the project, and shows it.

    Args:
        words: A Python file below the project's folder, and its arguments.

    Raises:
        ConfigError: It failed; what it said is on the screen.
    """
    print(f"\n$ python {shlex.join(words)}", flush=True)
    code = subprocess.run([sys.executable, str(ROOT / words[0]), *words[1:]], cwd=ROOT).returncode
    if code:
        raise ConfigError(f"the command above ended with exit code {code}; once that is mended, this one goes on")


def output_of(words: Sequence[str]) -> str:
    """Runs a command of the project, shows it, and returns what it printed.

    Args:
        words: A Python file below the project's folder, and its arguments.

    Raises:
        ConfigError: It failed.
    """
    print(f"\n$ python {shlex.join(words)}", flush=True)
    done = subprocess.run(
        [sys.executable, str(ROOT / words[0]), *words[1:]], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise ConfigError(f"the command above ended with exit code {done.returncode}: {done.stdout}")
    return done.stdout


def _children_cpu_s() -> float:
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def _size(run_dir: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    last = max((line for line in lines if "data/epoch" in line), key=lambda line: line["step"])
    return {"steps": last["step"], "epochs": last["data/epoch"]}

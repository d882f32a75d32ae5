"""What is typed after the program's name."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from scaletrain.config.command_line import Command, parse
from scaletrain.config.fields import fields
from scaletrain.config.help import help_text
from scaletrain.errors import ConfigError


def told(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(argv)
    return str(caught.value)


def test_nothing() -> None:
    assert parse([]) == Command(None, {}, dry_run=False, help=False)


def test_flags_with_a_space_or_an_equals_sign() -> None:
    command = parse(["--config", "a.yaml", "--optim.lr=3e-4", "--train.max-steps", "5", "--run_dir", "x=y"])
    assert command.config == Path("a.yaml")
    assert command.overrides == {"optim.lr": "3e-4", "train.max_steps": "5", "run_dir": "x=y"}


@pytest.mark.parametrize(
    "value",
    [
        "[{name: a, manifest: b=c}]",
        "2024_01",
        "1.10",
        "True",
        "None",
        "-1",
        "-",
        "[1, 2]",
        "a b",
        "",
        "no_x",
        "x=y",
        "'q'",
        "0x10",
        "日本",
        "#",
    ],
)
@pytest.mark.parametrize("form", ["apart", "joined"])
def test_a_value_stays_the_text_it_is(value: str, form: str) -> None:
    argv = ["--run_dir", value] if form == "apart" else [f"--run_dir={value}"]
    assert parse(argv).overrides == {"run_dir": value}


def test_a_value_that_looks_like_a_flag_can_be_joined() -> None:
    assert parse(["--eval.prompts=--help"]).overrides == {"eval.prompts": "--help"}
    assert "--eval.prompts: has no value" in told("--eval.prompts", "--seed", "3")


def test_switches() -> None:
    assert parse(["--dry_run"]).dry_run and parse(["--dry_run", "true"]).dry_run and parse(["--dry-run=True"]).dry_run
    assert not parse(["--dry_run=false"]).dry_run
    assert parse(["--trust_checkpoint"]).trust_checkpoint and not parse([]).trust_checkpoint
    assert parse(["--train.compile", "--seed", "1"]).overrides == {"train.compile": "true", "seed": "1"}
    assert parse(["-h"]).help and parse(["--seed", "1", "--help"]).help
    assert "--dry_run = configs/x.yaml: expected true or false" in told("--dry_run", "configs/x.yaml")


def test_the_last_of_two_counts() -> None:
    assert parse(["--seed", "1", "--seed=2"]).overrides == {"seed": "2"}


@pytest.mark.parametrize("argv", [["--local_rank=1"], ["--local_rank", "1"], ["--local-rank=1"]])
def test_what_the_launcher_adds_is_no_override(argv: list[str]) -> None:
    assert parse([*argv, "--seed", "3"]).overrides == {"seed": "3"}


def test_all_that_cannot_be_is_told_at_once() -> None:
    text = told("configs/demo.yaml", "--confg", "x", "--optim.lrr", "1", "--seed", "--no_compile")
    assert text.startswith("5 problems")
    assert "configs/demo.yaml: not a flag" in text
    assert "--confg: no such key; did you mean config" in text
    assert "optim.lr" in text
    assert "--seed: has no value" in text
    assert "--no_compile: no such key; did you mean train.compile" in text


def test_help_names_every_key_with_its_range_and_default() -> None:
    text = help_text()
    for key in fields():
        assert f"--{key} " in text
    assert "a number, more than 0 [0.0006]: highest learning rate" in text
    assert re.findall(r"\{.*", text) == ["{name: web, manifest: data/web}]'."], "no object is printed as Python sees it"


def test_help_describes_the_items_of_a_list() -> None:
    text = help_text()
    begin = text.index("  --data.sources  ")
    items = text[begin : text.index("  --data.phases  ")].splitlines()[1:]
    assert [line.split()[0] for line in items] == ["name", "manifest", "weight"]
    assert "a path or a URL [required]" in items[1] and "a number, at least 0 [1.0]: share" in items[2]


def test_it_is_quick_because_it_does_without_torch() -> None:
    code = (
        "import sys, scaletrain.config.command_line, scaletrain.config.help, scaletrain.config.derive\n"
        "import scaletrain.launch.run_dir, scaletrain.launch.keeper\n"
        "assert not {'torch', 'deepspeed', 'numpy'} & set(sys.modules), 'too much is imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

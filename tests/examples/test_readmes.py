"""The commands in the pages of the examples run, on a small archive and on a part of the library."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from examples.splits import write_records
from scaletrain.data.manifest import Manifest
from tests.examples.invented_lists import invented, write_lists

ROOT = Path(__file__).parents[2]
MODULES = ("heapq.py", "bisect.py", "textwrap.py", "statistics.py", "fractions.py", "calendar.py", "shlex.py")


def commands(example: str) -> list[str]:
    page = (ROOT / f"examples/{example}/README.md").read_text()
    return [line for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]


def run(command: str, folder: Path, *more: str | Path) -> None:
    words = [re.sub("^(data|runs)/", f"{folder}/", word) for word in shlex.split(command)]
    words[0] = sys.executable
    if "--train_tokenizer" in words:
        words[words.index("--train_tokenizer") + 1] = "300"
    done = subprocess.run(
        [*words, *map(str, more)], cwd=ROOT, capture_output=True, text=True, env=os.environ, timeout=300
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-1000:]}{done.stderr[-2000:]}"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few modules."""
    folder = tmp_path_factory.mktemp("library")
    for name in MODULES:
        shutil.copy(Path(sysconfig.get_path("stdlib")) / name, folder)
    return folder


@pytest.mark.thorough
def test_the_page_of_debian(tmp_path: Path) -> None:
    lists = write_lists(tmp_path / "lists", [invented(number) for number in range(300)])
    prepare, baselines, *builds, examples = commands("debian")
    run(prepare, tmp_path, "--lists", lists)
    run(baselines, tmp_path, "--files", "topics_10,regression_1,translation_it,summarisation")
    for build in builds:
        run(build, tmp_path, "--num_workers", "0")
    splits = {"train", "validation", "test"}
    for name in ("topics", "regression", "summarisation", "translation_it"):
        assert Manifest.open(tmp_path / f"debian/{name}/manifest.json").totals.keys() == splits
    run(examples, tmp_path, "--only", "translation", "--max_steps", "1")
    assert "| copy of the source (no network) |" in (tmp_path / "debian/results.md").read_text()
    assert Manifest.open(tmp_path / "debian/topics/manifest.json").classes == ("admin", "games", "net", "sound")


@pytest.mark.thorough
def test_the_page_of_the_library(tmp_path: Path, library: Path) -> None:
    prepare, *builds, examples = commands("stdlib")
    run(prepare, tmp_path, "--library", library)
    for build in builds:
        run(build, tmp_path, "--num_workers", "0")
    manifest = Manifest.open(tmp_path / "stdlib/chat/manifest.json")
    assert manifest.parts
    assert sum(totals.documents for totals in manifest.totals.values()) > 50
    # So few modules that none may be held out.
    write_records(
        tmp_path / "stdlib/code.jsonl", [{"text": f"def f{one}():\n    return {one}\n"} for one in range(300)]
    )
    run(examples, tmp_path, "--only", "code", "--max_steps", "1")
    assert "| pretrained | " in (tmp_path / "stdlib/results.md").read_text()

import json
from pathlib import Path

import pytest

from scaletrain.data.manifest import Manifest
from tests.integration.runs import python

TOOL = Path(__file__).parents[2] / "tools" / "make_shards.py"


def test_examples_are_built_from_the_command_line(tmp_path: Path) -> None:
    records = [{"text": f"number {n}", "label": "ab"[n % 2], "split": ["train", "test"][n % 2]} for n in range(8)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    flags = ("--input", tmp_path / "a.jsonl", "--out", tmp_path / "out", "--train_tokenizer", 300, "--num_workers", 0)
    done = python(TOOL, "build", *flags, "--format", "classes", "--classes", "b, a", "--special_tokens", "<mask>,<cls>")
    assert done.returncode == 0, done.stdout
    assert "test: 1 shards, 4 documents" in done.stdout and "train: 1 shards, 4 documents" in done.stdout
    manifest = Manifest.open(tmp_path / "out")
    assert manifest.classes == ("b", "a") and '"<cls>"' in manifest.read_tokenizer().decode()
    again = python(TOOL, "build", *flags, "--format", "classes", "--special_tokens", "<mask>,<cls>")
    assert again.returncode == 2 and 'had --classes = ["b", "a"], now it is null' in again.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--format", "pair"), "--format is 'pair': Input should be 'text', 'pairs'"),
        (("--chat_template", "chatml"), "--chat_template belongs to records to fine-tune with: give their --format"),
        (("--format", "pairs", "--text_field", "body"), "--text_field and --suffixes belong to texts"),
        (("--format", "pairs", "--max_source_tokens", "0"), "--max_source_tokens is '0': must be at least 1"),
        (("--format", "chat"), "--format chat needs --chat_template"),
    ],
)
def test_flags_that_do_not_go_together_are_told(tmp_path: Path, flags: tuple[str, ...], message: str) -> None:
    done = python(TOOL, "build", "--input", tmp_path, "--out", tmp_path / "out", "--train_tokenizer", 300, *flags)
    assert done.returncode == 2 and message in done.stdout, done.stdout
    assert not (tmp_path / "out").exists()

"""Writers are found by name, those of installed packages as well."""

import sys
from pathlib import Path

import pytest

from scaletrain.errors import ConfigError
from scaletrain.monitors.jsonl_writer import read_metrics
from scaletrain.monitors.writers import WriterTarget, open_writers

PLUGIN = """
class LineWriter:
    def __init__(self, target):
        self.file = open(target.run_dir / "lines.txt", "w")
    def write(self, step, metrics):
        self.file.write(f"{step} {sorted(metrics)}\\n")
    def write_text(self, name, step, text):
        self.file.write(f"{step} {name} {text}\\n")
    def close(self):
        self.file.close()
"""


@pytest.fixture
def installed_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    info = site / "line_writer-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "line_writer.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: line-writer\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[scaletrain.metric_writers]\nlines = line_writer:LineWriter\n")
    monkeypatch.syspath_prepend(str(site))


@pytest.mark.usefixtures("installed_plugin")
def test_all_named_writers_get_the_metrics(tmp_path: Path) -> None:
    writers = open_writers(["jsonl", "tensorboard", "lines"], WriterTarget(tmp_path, attempt=1, first_step=1))
    for writer in writers:
        writer.write(1, {"train/loss": 2.0})
        writer.write_text("text/samples", 1, "x")
        writer.close()
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["train/loss"] == 2.0
    assert (tmp_path / "lines.txt").read_text() == "1 ['train/loss']\n1 text/samples x\n"
    assert list((tmp_path / "tb").glob("events.*"))


@pytest.mark.usefixtures("installed_plugin")
def test_an_unknown_writer_is_refused_before_any_file_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'wandb'.*use one of jsonl, lines, prometheus, tensorboard"):
        open_writers(["jsonl", "wandb"], WriterTarget(tmp_path, attempt=1, first_step=1))
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_writer_that_lacks_its_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "scaletrain.monitors.prometheus_writer", raising=False)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)  # as Python marks what cannot be imported
    with pytest.raises(ConfigError, match=r"prometheus_client.*pip install 'scaletrain\[prometheus\]'"):
        open_writers(["prometheus"], WriterTarget(tmp_path, attempt=1, first_step=1))

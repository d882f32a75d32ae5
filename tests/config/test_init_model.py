"""A run that begins with another one's weights need not describe the model again."""

from pathlib import Path

import pytest

from scaletrain.config.init_model import split_init
from scaletrain.config.load import dump_yaml, load_config
from scaletrain.errors import ConfigError


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    """A run directory, as far as its description goes."""
    (tmp_path / "first.yaml").write_text("model: {d_model: 24, n_heads: 4, n_layers: 3, d_ff: 50, dropout: 0.1}\n")
    run_dir = tmp_path / "pretrained"
    checkpoint = run_dir / "checkpoints" / "step_00000003"
    checkpoint.mkdir(parents=True)
    for folder in (run_dir, checkpoint):
        (folder / "config.yaml").write_text(dump_yaml(load_config(tmp_path / "first.yaml", {})))
    return run_dir


def written(folder: Path, text: str) -> Path:
    (folder / "second.yaml").write_text(text)
    return folder / "second.yaml"


@pytest.mark.parametrize("place", ["", "@3", "/checkpoints", "/checkpoints@3", "/checkpoints/step_00000003"])
def test_fields_that_are_not_given_are_those_of_the_source(pretrained: Path, tmp_path: Path, place: str) -> None:
    config = written(tmp_path, f"init: {pretrained}{place}\nmodel: {{dropout: 0.3, pooler: true}}\n")
    model = load_config(config, {"model.n_classes": "5"}).model
    assert (model.d_model, model.n_layers, model.d_ff, model.head_dim) == (24, 3, 50, 6)
    assert (model.dropout, model.pooler, model.n_classes) == (0.3, True, 5)


def test_a_preset_describes_a_model_of_its_own(pretrained: Path, tmp_path: Path) -> None:
    config = written(tmp_path, f"init: {pretrained}\nmodel: {{preset: gpt2}}\n")
    assert load_config(config, {}).model.d_ff == 3072
    config = written(tmp_path, f"init: {pretrained}\n")
    assert load_config(config, {"model.preset": "gpt2"}).model.d_ff == 3072


def test_a_resolved_configuration_needs_the_source_no_more(pretrained: Path, tmp_path: Path) -> None:
    resolved = load_config(written(tmp_path, f"init: {pretrained}\n"), {})
    assert load_config(written(tmp_path, dump_yaml(resolved)), {"init": "gone"}).model == (resolved.model)


def test_where_the_source_is_gone_the_run_itself_knows_its_model(pretrained: Path, tmp_path: Path) -> None:
    text = f"init: {tmp_path / 'gone'}\nrun_dir: {pretrained}\n"
    assert load_config(written(tmp_path, text), {}).model.d_model == 24
    assert load_config(written(tmp_path, "init: gone\n"), {"run_dir": str(pretrained)}).model.d_model == 24


def test_nothing_is_taken_where_nothing_is_named(pretrained: Path, tmp_path: Path) -> None:
    text = f"init: none\nrun_dir: {pretrained}\n"
    assert load_config(written(tmp_path, text), {}).model.d_model == 384


def test_a_step_is_a_number_or_the_best(tmp_path: Path) -> None:
    assert split_init("runs/a@12") == (Path("runs/a"), 12)
    assert split_init("runs/a@best") == (Path("runs/a"), "best")
    (tmp_path / "b@home").mkdir()
    assert split_init(str(tmp_path / "b@home")) == (tmp_path / "b@home", None)
    with pytest.raises(ConfigError, match="last is no step"):
        split_init("runs/a@last")

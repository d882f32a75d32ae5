from pathlib import Path

import pytest

from scaletrain.errors import ConfigError
from scaletrain.launch.slurm.settings import Settings


def test_settings_are_read_from_the_environment() -> None:
    assert Settings.from_environment({}) == Settings()
    given = {"SPARE_NODES": "2", "PREFLIGHT": "off", "DRAIN_NODES": "0", "BACKOFF_S": "1.5", "CONTAINER": "a.sif"}
    settings = Settings.from_environment(given)
    assert (settings.spare_nodes, settings.preflight, settings.drain_nodes) == (2, "off", False)
    assert (settings.backoff_s, settings.container) == (1.5, "a.sif")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SPARE_NODES", "one"),
        ("SPARE_NODES", "-1"),
        ("PREFLIGHT", "some"),
        ("DRAIN_NODES", "yes"),
        ("CRASH_LIMIT", "0"),
        ("SPARE_NODES", "1.5"),
        ("BACKOFF_S", "nan"),
        ("CHECK_LIMIT_S", "inf"),
        ("MIN_BANDWIDTH_GB_S", "1e"),
        ("MAX_EXCLUDED_SHARE", "1.5"),
    ],
)
def test_wrong_settings_are_told(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}={value}: expected"):
        Settings.from_environment({name: value})


def test_an_empty_variable_is_none() -> None:
    assert Settings.from_environment({"SPARE_NODES": "", "PREFLIGHT": ""}) == Settings()


def test_where_failures_of_nodes_are_remembered() -> None:
    home = {"HOME": "/home/a"}
    assert Settings().ledger_folder(home) == Path("/home/a/.local/state/scaletrain/nodes")
    assert Settings().ledger_folder(home | {"XDG_STATE_HOME": "/s"}) == Path("/s/scaletrain/nodes")
    assert Settings(node_ledger="/team").ledger_folder(home) == Path("/team")

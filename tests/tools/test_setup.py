"""tools/setup.sh: quick when all is there, and plain about what is missing."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SYSTEM_TOOLS = ("bash", "cat", "dirname", "head", "sha256sum", "flock", "id", "mktemp")


def setup_in(checkout: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", checkout / "tools/setup.sh"], env=environment, capture_output=True, text=True, timeout=100
    )


def environment_with(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SCALETRAIN")}
    return kept | changes


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "tools").mkdir()
    for name in ("tools/setup.sh", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_it_takes_no_time_when_all_is_there() -> None:
    if not Path(sys.prefix, "scaletrain.stamp").exists():
        pytest.skip("this environment was not made by tools/setup.sh")
    assert setup_in(ROOT, os.environ).returncode == 0
    start_s = time.perf_counter()
    result = setup_in(ROOT, os.environ)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert time.perf_counter() - start_s < 1.0


def test_an_interpreter_that_is_too_old_is_refused(checkout: Path) -> None:
    old = checkout / "python3.10"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    result = setup_in(checkout, environment_with(PYTHON=str(old)))
    assert result.returncode == 1
    assert f"PYTHON={old} does not run or is older than 3.11" in result.stderr
    assert not (checkout / ".venv").exists()


def test_a_missing_compiler_is_named_with_the_command_that_installs_it(checkout: Path) -> None:
    # A machine on which nothing can be installed: no g++, and no apt-get either.
    tools = checkout / "bin"
    tools.mkdir()
    for name in SYSTEM_TOOLS:
        found = shutil.which(name)
        assert found is not None, f"{name} belongs to every Debian"
        (tools / name).symlink_to(found)
    result = setup_in(checkout, environment_with(PATH=str(tools), PYTHON=sys.executable))
    assert result.returncode == 1
    assert "missing on this system: g++; type: sudo apt-get install -y g++" in result.stderr
    assert not (checkout / ".venv").exists()


def test_an_environment_without_torch_is_not_taken_over(checkout: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", checkout / "env"], check=True, timeout=60)
    result = setup_in(checkout, environment_with(SCALETRAIN_PYTHON=str(checkout / "env/bin/python")))
    assert result.returncode == 1
    assert "has no torch; install it there" in result.stderr

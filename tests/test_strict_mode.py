"""A skip is a failure where the check script promises what the test needs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parent / "conftest.py"
TESTS = """
import pytest

def test_passes():
    pass

@pytest.mark.skipif(SKIP, reason="its dependency is missing")
def test_may_be_skipped():
    pass
"""


@pytest.mark.parametrize(("strict", "skip", "exit_code"), [("1", True, 1), ("0", True, 0), ("1", False, 0)])
def test_a_skip_fails_the_session_in_strict_mode_only(tmp_path: Path, strict: str, skip: bool, exit_code: int) -> None:
    shutil.copy(CONFTEST, tmp_path)
    (tmp_path / "test_it.py").write_text(TESTS.replace("SKIP", str(skip)))
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        env=os.environ | {"SCALETRAIN_STRICT": strict},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == exit_code, result.stdout + result.stderr
    assert ("1 skipped, which counts as a failure" in result.stdout) == (exit_code == 1)

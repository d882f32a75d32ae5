import subprocess
import sys
import time
from pathlib import Path

import pytest

from scaletrain.corpus.embedded import prepare_python_stdlib
from scaletrain.data.manifest import Manifest
from scaletrain.errors import DataError


@pytest.mark.slow
def test_processes_that_call_at_once_share_one_corpus(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from scaletrain.corpus.embedded import prepare_python_stdlib\n"
        "print(prepare_python_stdlib(Path(sys.argv[1]), 512))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "data")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = {process.communicate(timeout=100)[0].strip() for process in processes}
    assert answers == {str(tmp_path / "data" / "python_stdlib-512" / "manifest.json")}
    start = time.perf_counter()
    manifest = Manifest.open(prepare_python_stdlib(tmp_path / "data", 512))
    assert time.perf_counter() - start < 1
    assert manifest.tokenizer.vocab_size == 512
    assert len(manifest.split("train")) >= 8 and manifest.totals["validation"].documents >= 2
    # Real text of some size, without the tests, which are twice as much.
    assert 4e6 < manifest.totals["train"].bytes < 2e7


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"--data\.corpus_dir"):
        prepare_python_stdlib(tmp_path / "file", 512)

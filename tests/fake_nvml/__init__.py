"""A driver without GPUs: a library of NVML's name that real clients load, and whose answers a test edits as it likes.

``nvml.c`` beside this file says which lines it understands.
"""

import atexit
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest

from scaletrain.hardware.prober import Prober
from scaletrain.hardware.readings import Reading

_SOURCE = Path(__file__).with_name("nvml.c")
_LONGEST_S = 60.0  # for a process to start, on a busy machine


class FakeDriver:
    """A driver with healthy GPUs, for processes that are started with its environment.

    A change is seen by the next call that such a process makes.

    Args:
        folder: Where its file may lie.
        gpus: How many GPUs it has.
        is_old: Leaves out the functions that came with later drivers.
        host: Of several machines that share the environment: whose driver it is.
    """

    def __init__(self, folder: Path, gpus: int = 8, is_old: bool = False, host: str = "") -> None:
        self._library = _compiled(is_old)
        self._path = folder / f"fake_nvml{host and '-'}{host}.txt"
        self._named = folder / f"fake_nvml{host and '-%h'}.txt"
        self._values: dict[str, str] = {}
        self._events: list[str] = []
        self._gpus = gpus
        self.heal()

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to meet this driver."""
        others = os.environ.get("LD_LIBRARY_PATH", "")
        return {"LD_LIBRARY_PATH": f"{self._library}:{others}".rstrip(":"), "FAKE_NVML": str(self._named)}

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Lets all processes meet it that the test starts from now on."""
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)

    def set(self, key: str, value: int | str) -> None:
        """Sets a value: ``set("3.temperature", 91)``, or of all GPUs ``set("*.temperature", 91)``."""
        self._values[key] = str(value)
        self._write()

    def unset(self, key: str) -> None:
        """Goes back to the usual value."""
        self._values.pop(key, None)
        self._write()

    def heal(self) -> None:
        """Goes back to healthy GPUs, as many as at first."""
        self._values = {"gpus": str(self._gpus)}
        self._write()

    def xid(self, gpu: int, code: int) -> None:
        """Has a GPU tell of an XID, once, to those who listen already."""
        self._events.append(f"event={gpu}.{code}")
        self._write()

    def _write(self) -> None:
        lines = [f"{key}={value}" for key, value in self._values.items()] + self._events
        draft = self._path.with_suffix(".draft")
        draft.write_text("\n".join(lines) + "\n")
        os.replace(draft, self._path)


def read_hung(prober: Prober, limit_s: float = 1.0) -> Reading:
    """Reads from a driver that hangs: with growing limits, until the process has come to ask it at all."""
    reading = prober.read(limit_s)
    while reading.driver == "unasked" and limit_s < _LONGEST_S:
        limit_s *= 2
        reading = prober.read(limit_s)
    return reading


@cache
def _compiled(is_old: bool) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="fake_nvml_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    # As C++, whose compiler the project needs anyway.
    text = f'extern "C" {{\n{_SOURCE.read_text()}\n}}\n'
    flags = ["-x", "c++", "-w", "-O1", "-shared", "-fPIC", *(["-DOLD_DRIVER"] if is_old else [])]
    command = ["g++", *flags, "-o", str(folder / "libnvidia-ml.so.1"), "-"]
    subprocess.run(command, input=text, text=True, check=True)
    return folder

"""Reads the GPUs for another process, which may give it up: ``python -m scaletrain.hardware.prober_process``.

For each line of its standard input it writes lines of JSON: ``doing`` and ``gpu``, what the driver is asked next;
``xids``, what the kernel's log told, before the driver is asked at all; at the end ``reading``. See ``prober.py``.
"""

import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scaletrain.hardware.kernel_log import open_kernel_log
from scaletrain.hardware.nvml import NvmlReader
from scaletrain.hardware.xids import parse_kernel_line
from scaletrain.lifetime import end_with

# A job's signals reach all its processes; this one ends with the end of its input, or with who started it.
_NOT_HEEDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def main(arguments: Sequence[str]) -> int:
    """Answers until the standard input ends.

    Args:
        arguments: Process number of the one that asks; the kernel's log; its last record that is known, or "".

    Returns:
        0.
    """
    for one in _NOT_HEEDED:
        signal.signal(one, signal.SIG_IGN)
    parent, log_path, after = arguments
    end_with(int(parent))
    log = open_kernel_log(Path(log_path), int(after) if after else None)
    reader = NvmlReader(lambda doing, gpu: _say({"doing": doing, "gpu": gpu}))
    for _line in sys.stdin:
        events = [event for line in (log.lines() if log else []) if (event := parse_kernel_line(line))]
        record = log.last_record if log else None
        _say({"xids": [asdict(one) for one in events], "record": record, "log": log.origin if log else None})
        _say({"reading": reader.read().to_json()})
    reader.close()
    return 0


def _say(content: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Whether a node may take part in a training: looked at on the node, before the training starts there.

``python -m scaletrain.hardware.node_check JSON`` prints what it finds, and leaves it in the shared folder that the JSON
names. See ``Expectation`` for its keys.
"""

import json
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from scaletrain.errors import ConfigError
from scaletrain.files import replace_text
from scaletrain.hardware.checklist import check_for_job
from scaletrain.hardware.expectation import Expectation
from scaletrain.hardware.findings import Finding
from scaletrain.hardware.node_report import as_data, as_text, node_name

_WRITE_S = 10.0


def _write(path: Path, findings: Sequence[Finding], name: str) -> str:
    """Leaves the result for the first node; returns what was wrong, or nothing."""
    # Not said before it is done: a thread that hangs in the file system says nothing.
    problems = [f"no answer within {_WRITE_S:g} s"]

    def write() -> None:
        try:
            replace_text(path, json.dumps(as_data(findings, name)) + "\n")
            problems[:] = []
        except OSError as error:
            problems[:] = [str(error.strerror)]

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    thread.join(_WRITE_S)
    return "".join(problems)


def main(argv: Sequence[str]) -> int:
    """Checks this node.

    Args:
        argv: The expectation as JSON.

    Returns:
        0, or 1 where a check failed or the result cannot be written; 2 where the expectation is none.
    """
    if len(argv) != 1:
        print("usage: python -m scaletrain.hardware.node_check JSON", file=sys.stderr)
        return 2
    try:
        expected = Expectation.from_json(argv[0])
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    findings = check_for_job(expected)
    name = node_name()
    print("\n".join(as_text(findings, name)), flush=True)
    path = Path(expected.shared_dir) / f"{name}.json"
    problem = _write(path, findings, name)
    if problem:
        print(f"{name}: fail    shared files: {path} cannot be written: {problem}", flush=True)
        return 1
    return int(any(one.status == "fail" for one in findings))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

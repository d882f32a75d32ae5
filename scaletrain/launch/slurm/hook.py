"""The user's last command, ``ON_END``: runs when a job stops, and not when it is requeued."""

import os
import subprocess
import sys

_LONGEST_S = 300.0


def run_hook(command: str, code: int, reason: str) -> None:
    """Runs it in a shell; what goes wrong with it is told, and changes nothing.

    Args:
        command: The command; empty for none.
        code: The job's exit code, which it finds in ``EXIT_CODE``.
        reason: Why the job stops, in ``REASON``.
    """
    if not command:
        return
    environment = dict(os.environ) | {"EXIT_CODE": str(code), "REASON": reason}
    try:
        done = subprocess.run(
            ["bash", "-c", command], env=environment, stdin=subprocess.DEVNULL, timeout=_LONGEST_S, check=False
        )
        problem = f"ended with code {done.returncode}" if done.returncode else ""
    except subprocess.TimeoutExpired:
        problem = f"did not end within {_LONGEST_S:.0f} s"
    if problem:
        print(f"warning: ON_END {problem}", file=sys.stderr, flush=True)

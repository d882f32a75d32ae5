"""The kernel's log as it grows: from its device, or through systemd's journal where only that may be read."""

import contextlib
import errno
import os
import shutil
import subprocess
from functools import partial
from pathlib import Path

from scaletrain.lifetime import end_with

KMSG = Path("/dev/kmsg")
_RECORD_BYTES = 8192  # the kernel gives no record that is longer (Documentation/ABI/testing/dev-kmsg)
_MOST_RECORDS = 200_000  # at once, so that a flood of lines ends; more than the kernel's buffer holds
_JOURNAL = ["journalctl", "--dmesg", "--output=cat"]
_ASK_S = 5.0


class KernelLog:
    """Lines that were written after a record.

    Args:
        descriptor: Open for reading, without waiting.
        origin: What it is, for people.
        after: Number of the last record that is known already; None where all are new.
        process: What writes into it, if a process does.

    Attributes:
        last_record: Number of the last record that was read, where they have numbers.
    """

    def __init__(
        self,
        descriptor: int,
        origin: str,
        after: int | None = None,
        process: "subprocess.Popen[bytes] | None" = None,
    ) -> None:
        self._descriptor, self.origin, self._process = descriptor, origin, process
        self._rest = b""
        self.last_record = after

    def lines(self) -> list[str]:
        """What was added since the call before; never waits."""
        found: list[str] = []
        for _ in range(_MOST_RECORDS):
            try:
                content = os.read(self._descriptor, _RECORD_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == errno.EPIPE:  # records were overwritten before they were read: the rest is there
                    continue
                break
            if not content:
                break
            *whole, self._rest = (self._rest + content).split(b"\n")
            found += [text for one in whole if (text := self._new_text(one.decode(errors="replace")))]
        return found

    def close(self) -> None:
        """Ends it, and the process behind it."""
        os.close(self._descriptor)
        if self._process:
            self._process.kill()
            self._process.wait()

    def _new_text(self, line: str) -> str:
        """The words of a record "6,339,5140900,-;NVRM: ...", other lines as they are; nothing of a known record."""
        head, separator, text = line.partition(";")
        numbers = head.split(",")
        if not separator or len(numbers) < 3 or not numbers[1].isdigit():
            return line
        if self.last_record is not None and int(numbers[1]) <= self.last_record:
            return ""
        self.last_record = int(numbers[1])
        return text


def open_kernel_log(path: Path = KMSG, after: int | None = None) -> KernelLog | None:
    """Opens the kernel's log.

    Args:
        path: The kernel's device.
        after: Number of the last record that is known already; None where all that stands there now is.

    Returns:
        The log; None where neither the device nor the journal may be read by this user.
    """
    with contextlib.suppress(OSError):
        log = KernelLog(os.open(path, os.O_RDONLY | os.O_NONBLOCK), str(path), after)
        if after is None:
            log.lines()
        return log
    return _open_journal()


def _open_journal() -> KernelLog | None:
    if shutil.which(_JOURNAL[0]) is None:
        return None
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        # Who may not read it gets a hint in the standard error, and nothing else.
        seen = subprocess.run([*_JOURNAL, "--lines=1"], capture_output=True, timeout=_ASK_S, stdin=subprocess.DEVNULL)
        if seen.returncode or not seen.stdout.strip():
            return None
        process = subprocess.Popen(
            [*_JOURNAL, "--lines=0", "--follow"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            preexec_fn=partial(end_with, os.getpid()),
        )
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        return KernelLog(os.dup(process.stdout.fileno()), "journal", process=process)
    return None

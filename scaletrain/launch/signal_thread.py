"""Hears signals while the main thread is in C code, where Python's own handlers wait until it comes back."""

import signal
import socket
import threading
from collections.abc import Callable

REQUEUE_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
ENDING_SIGNALS = (*REQUEUE_SIGNALS, signal.SIGINT)
"""Signals that ask a rank to end."""


class SignalThread:
    """Calls a function for each signal that arrives, in a thread of its own.

    The interpreter writes the number of a signal into a socket as soon as the kernel delivers it, and this thread
    reads it: it needs the interpreter's lock, which collectives and kernels give back, but not the main thread.
    Only signals that have a Python handler are heard.
    """

    def __init__(self, heard: Callable[[int], None]) -> None:
        """Starts the thread; for the main thread, and the last one made hears.

        Args:
            heard: Called with the number of each signal of ``ENDING_SIGNALS``.
        """
        self._heard = heard
        self._reading, self._writing = socket.socketpair()
        self._writing.setblocking(False)
        # A full buffer means that thousands of signals were not read yet: one more tells nothing new.
        signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._hear, name="signals", daemon=True).start()

    def close(self) -> None:
        """Ends the thread; for the main thread."""
        previous = signal.set_wakeup_fd(-1)
        if previous not in (-1, self._writing.fileno()):
            signal.set_wakeup_fd(previous)
        self._writing.close()

    def _hear(self) -> None:
        while numbers := self._reading.recv(64):
            for number in numbers:
                if number in ENDING_SIGNALS:
                    self._heard(number)
        self._reading.close()

"""Lets a process end with the one that started it, however that ends."""

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1  # from <sys/prctl.h>


def end_with(parent: int) -> None:
    """Asks the kernel to kill this process as soon as its parent is gone; what is forked later does not inherit it.

    Args:
        parent: Process number of the parent, as it was when this process was started.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the kernel was asked
        os.kill(os.getpid(), signal.SIGKILL)

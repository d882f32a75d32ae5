"""The host's clock: whether something keeps it right, and whether it was set."""

import ctypes
import time
from dataclasses import dataclass
from functools import cache

_UNSYNCHRONIZED = 0x0040  # STA_UNSYNC of linux/timex.h
_NANOSECONDS = 0x2000  # STA_NANO


class _Timex(ctypes.Structure):
    # struct timex of linux/timex.h; only the first fields are read, the kernel writes 208 bytes.
    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_long * 32),
    )


@dataclass(frozen=True)
class ClockReading:
    """The clock at one moment; None where it is not told.

    Source: adjtimex(2).

    Attributes:
        is_synchronized: Whether a time service keeps it. Virtual machines that take the time of their host say no.
        offset_s: What the kernel has still to correct, in seconds; 0 where the service corrects by itself, as chrony.
        max_error_s: Bound of the error that the service gave the kernel, in seconds: the way to the server and back
            included, and growing until it is told again.
        boot_s: When the machine was started, in Unix seconds, as the clock tells it now: it changes when the clock is
            set, and does not while it is corrected by running slower or faster.
        set_by_s: How far the clock was set since the first reading, forward or back, in seconds.
    """

    is_synchronized: bool | None
    offset_s: float | None
    max_error_s: float | None
    boot_s: float
    set_by_s: float


def read_clock(first_boot_s: float | None = None) -> ClockReading:
    """Asks the kernel about the clock.

    Args:
        first_boot_s: When the machine was started, as the first reading told it.

    Returns:
        The reading.
    """
    timex = _Timex()
    boot_s = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    set_by_s = 0.0 if first_boot_s is None else abs(boot_s - first_boot_s)
    try:
        # With no modes set it changes nothing, and needs no privilege; a container's filter may still refuse it.
        state = _libc().adjtimex(ctypes.byref(timex))
    except AttributeError:
        state = -1
    if state < 0:
        return ClockReading(None, None, None, boot_s, set_by_s)
    unit_s = 1e-9 if timex.status & _NANOSECONDS else 1e-6
    is_synchronized = not timex.status & _UNSYNCHRONIZED
    # Without a service the bound is a limit of the kernel's, which says nothing.
    max_error_s = timex.maxerror * 1e-6 if is_synchronized else None
    return ClockReading(is_synchronized, timex.offset * unit_s, max_error_s, boot_s, set_by_s)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)

"""What a page has to say besides its numbers: date, commit, hardware, load and versions."""

import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path


def print_conditions(*packages: str) -> None:
    """Prints them as the list that a page begins with.

    Args:
        packages: Whose versions matter.
    """
    names = [line.partition(":")[2] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    print(f"- Command: `python {' '.join(sys.argv)}`")
    print(f"- Date: {time.strftime('%Y-%m-%d', time.gmtime())}, at commit {commit.stdout.strip()}")
    print(f"- Hardware: {(names or ['?'])[0].strip()}, {os.cpu_count()} cores, {memory:.0f} GiB")
    print(f"- Load before: {os.getloadavg()[0]:.2f}")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    print(f"- Python {platform.python_version()}, {versions}", flush=True)

"""First process of a Slurm cluster on one machine: a controller, and nodes, each with namespaces of its own.

``python cluster_init.py controller FOLDER NODES`` and, started by it, ``python cluster_init.py node FOLDER NAME``. Both
are the first processes of their process namespaces: the kernel ends all that is in one as soon as its first is gone.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

BRIDGE = "br0"
ADDRESS = "10.77.0."
UNSHARE = ("unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc")
_PATIENCE_S = 20.0


def address_of(name: str) -> str:
    """Address of the node n1, n2, ...; the controller, ctl, has the first one."""
    return ADDRESS + str(1 if name == "ctl" else 10 + int(name[1:]))


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def bind_hosts(folder: Path) -> None:
    subprocess.run(["mount", "--bind", str(folder / "hosts"), "/etc/hosts"], check=True)


def start(name: str, folder: Path, *command: str) -> "subprocess.Popen[bytes]":
    with (folder / f"{name}.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)


def control(folder: Path, names: list[str]) -> None:
    """Starts everything; each node gets its end of a cable to the bridge."""
    subprocess.run(["hostname", "ctl"], check=True)
    bind_hosts(folder)
    ip("link", "set", "lo", "up")
    ip("link", "add", BRIDGE, "type", "bridge")
    ip("addr", "add", f"{address_of('ctl')}/24", "dev", BRIDGE)
    ip("link", "set", BRIDGE, "up")
    munge = folder / "munge"
    start(
        *("munged", folder, "setpriv", "--reuid=munge", "--regid=munge", "--clear-groups", "munged", "--foreground"),
        *(f"--key-file={munge / 'key'}", f"--socket={munge / 'socket'}", f"--pid-file={munge / 'pid'}"),
        *(f"--seed-file={munge / 'seed'}", f"--log-file={munge / 'log'}", "--force"),
    )
    wait_for(munge / "socket")
    for name in names:
        node = start(f"{name}-init", folder, *UNSHARE, sys.executable, __file__, "node", str(folder), name)
        # The namespace of the network is there as soon as it differs from ours.
        ours = os.readlink("/proc/self/ns/net")
        deadline_s = time.monotonic() + _PATIENCE_S
        while os.readlink(f"/proc/{node.pid}/ns/net") == ours and time.monotonic() < deadline_s:
            time.sleep(0.01)
        ip("link", "add", f"cable-{name}", "type", "veth", "peer", "name", "eth0", "netns", str(node.pid))
        ip("link", "set", f"cable-{name}", "master", BRIDGE)
        ip("link", "set", f"cable-{name}", "up")
    start("slurmctld", folder, "slurmctld", "-D", "-f", str(folder / "slurm.conf"))


def be_node(folder: Path, name: str) -> None:
    """Starts what a node runs."""
    subprocess.run(["hostname", name], check=True)
    bind_hosts(folder)
    ip("link", "set", "lo", "up")
    wait_for(Path("/sys/class/net/eth0"), lambda: subprocess.call(["ip", "link", "show", "eth0"], stdout=-3, stderr=-3))
    ip("addr", "add", f"{address_of(name)}/24", "dev", "eth0")
    ip("link", "set", "eth0", "up")
    start_slurmd(folder, name)


def start_slurmd(folder: Path, name: str) -> None:
    start(f"slurmd-{name}", folder, "slurmd", "-D", "-N", name, "-f", str(folder / "slurm.conf"))


def wait_for(path: Path, failed: "object | None" = None) -> None:
    deadline_s = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline_s:
        if (failed() == 0) if callable(failed) else path.exists():
            return
        time.sleep(0.02)
    raise SystemExit(f"{path} does not come")


def reap() -> None:
    """What the first process of a namespace is for: ends those that lost their parents."""
    while True:
        try:
            os.wait()
        except ChildProcessError:
            time.sleep(0.2)


if __name__ == "__main__":
    role, place, rest = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    # SIGUSR1 starts a slurmd that was killed.
    signal.signal(signal.SIGUSR1, lambda number, frame: start_slurmd(place, rest[0]))
    if role == "controller":
        control(place, rest)
    else:
        be_node(place, rest[0])
    reap()

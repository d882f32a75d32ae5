"""A real Slurm cluster on this machine: a controller and three nodes, each in namespaces of its own, with a network.

Nothing of it can be seen from outside: interfaces, host names, process numbers and mounts are the namespaces', and all
of it ends with its first process, which ends with the process that made it.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.processes import eventually
from tests.slurm.cluster_init import UNSHARE, address_of

INIT = Path(__file__).with_name("cluster_init.py")
NODES = ("n1", "n2", "n3")
COMMANDS = ("slurmctld", "slurmd", "sbatch", "munged", "unshare", "nsenter", "setpriv", "ip")

_CONF = """
ClusterName=test
SlurmctldHost=ctl({controller})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
GresTypes=gpu
SlurmdTimeout=10
MessageTimeout=5
KillWait=15
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/accounting.txt
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=1,sched_interval=3,bf_interval=3
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 GraceTime=20 OverSubscribe=YES:2
PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""


class Cluster:
    """The cluster; ``with`` starts and ends it.

    Attributes:
        folder: Configuration, logs and accounting.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._inits: dict[str, int] = {}

    def __enter__(self) -> "Cluster":
        self._write_configuration()
        # Ends with this process, however that ends: the kernel kills unshare, and with it the first process inside.
        command = ["setpriv", "--pdeathsig=KILL", *UNSHARE, sys.executable, str(INIT), "controller", str(self.folder)]
        with (self.folder / "init.log").open("wb") as log:
            self._process = subprocess.Popen(
                [*command, *NODES], env=self._environment({}), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            eventually(self._find_inits, 20, self.logs)
            eventually(self._is_up, 30, self.logs)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *unused: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=30)
        eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in self._inits.values()), 30, "the end of all")

    def run(
        self,
        *command: str,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
        node: str = "ctl",
        timeout_s: float = 60,
    ) -> str:
        """Runs a command on a node, or on the controller, and returns what it printed; it must succeed."""
        inside = ["nsenter", f"--target={self._inits[node]}", "--net", "--mount", "--uts", f"--wd={cwd or self.folder}"]
        done = subprocess.run(
            [*inside, *command],
            env=self._environment(environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
        )
        assert done.returncode == 0, f"{command}: {done.returncode}: {done.stdout}"
        return done.stdout

    def sbatch(self, *words: object, cwd: Path, environment: Mapping[str, str] | None = None) -> str:
        """Submits a job, and returns its number."""
        printed = self.run("sbatch", "--parsable", *map(str, words), cwd=cwd, environment=environment)
        return printed.strip().splitlines()[-1]

    def job(self, job_id: str) -> dict[str, str]:
        """What Slurm knows of a job."""
        words = self.run("scontrol", "--oneliner", "show", "job", job_id).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for_job(self, job_id: str, *states: str, within_s: float = 120, told: Path | None = None) -> str:
        """Waits until a job is in one of some states, and returns that."""

        def reached() -> str | None:
            state = self.job(job_id)["JobState"]
            return state if state in states else None

        def why() -> str:
            log = told.read_text()[-6000:] if told is not None and told.exists() else ""
            return f"{states} of job {job_id}: {self.job(job_id)}\n{log}"

        return eventually(reached, within_s, why)

    def start_now(self, job_id: str) -> None:
        """Lets a requeued job start without Slurm's wait of two minutes."""
        with contextlib.suppress(AssertionError):  # it may start in this moment
            self.run("scontrol", "update", f"JobId={job_id}", "StartTime=now")

    def cut(self, node: str) -> None:
        """Pulls the network cable of a node."""
        self.run("ip", "link", "set", f"cable-{node}", "down")

    def mend(self, node: str) -> None:
        self.run("ip", "link", "set", f"cable-{node}", "up")

    def slow_down(self, node: str, rate: str) -> None:
        """Limits what a node can send, such as to ``8mbit``."""
        self.run(
            "tc",
            "qdisc",
            "replace",
            "dev",
            "eth0",
            "root",
            "tbf",
            "rate",
            rate,
            "burst",
            "32k",
            "latency",
            "400ms",
            node=node,
        )

    def kill_slurmd(self, node: str) -> None:
        """Ends Slurm's daemon of a node, and nothing else there: its jobs run on."""
        for pid in self._pids(node):
            if _command(pid)[:1] == ["slurmd"] or _command(pid)[:1] == ["/usr/sbin/slurmd"]:
                os.kill(pid, signal.SIGKILL)

    def power_off(self, node: str) -> None:
        """Ends all that runs on a node, at once; ``restore`` starts it again."""
        self.cut(node)
        for pid in self._pids(node):
            if pid != self._inits[node]:
                os.kill(pid, signal.SIGKILL)

    def pids_of(self, node: str, word: str) -> list[int]:
        """Processes of a node with a word among their arguments."""
        return [pid for pid in self._pids(node) if any(word in argument for argument in _command(pid))]

    def restore(self) -> None:
        """Cancels all jobs, and brings all nodes back."""
        self.run("scancel", "--user=root")
        for node in NODES:
            self.mend(node)
            subprocess.run(
                ["nsenter", f"--target={self._inits[node]}", "--net", "tc", "qdisc", "del", "dev", "eth0", "root"],
                stderr=subprocess.DEVNULL,
            )
            if not [pid for pid in self._pids(node) if "slurmd" in _command(pid)[0]]:
                os.kill(self._inits[node], signal.SIGUSR1)

        def all_idle() -> bool:
            if self.run("squeue", "--noheader"):
                return False
            states = self.run("sinfo", "--noheader", "-N", "-p", "main", "-o", "%N %T").split("\n")
            bad = [line.split()[0] for line in states if line and line.split()[1] not in ("idle",)]
            for node in bad:
                try:
                    self.run("scontrol", "update", f"NodeName={node}", "State=RESUME")
                except AssertionError:
                    continue  # it comes back by itself
            return not bad

        eventually(all_idle, 60, lambda: self.run("sinfo", "-N", "-l") + self.run("squeue"))

    def logs(self) -> str:
        """The end of each log."""
        return "\n".join(f"{path.name}:\n{path.read_text()[-1500:]}" for path in sorted(self.folder.glob("*.log")))

    def _write_configuration(self) -> None:
        folder = self.folder
        for name in ("munge", "state", "spool", "dev"):
            (folder / name).mkdir(parents=True)
        (folder / "munge" / "key").write_bytes(secrets.token_bytes(1024))
        (folder / "munge" / "key").chmod(0o400)
        for path in (folder / "munge", folder / "munge" / "key"):
            shutil.chown(path, "munge", "munge")
        # munged runs as its own user: it must get through all that is above.
        for path in (folder / "munge", folder, *folder.parents):
            if path.stat().st_uid == os.getuid() and not path.stat().st_mode & 0o001:
                path.chmod(path.stat().st_mode | 0o011)
        (folder / "munge").chmod(0o711)
        for number in range(2):
            os.mknod(folder / "dev" / f"gpu{number}", 0o20666, os.makedev(1, 3))
        hosts = [f"127.0.0.1 localhost\n{address_of('ctl')} ctl\n", *(f"{address_of(node)} {node}\n" for node in NODES)]
        (folder / "hosts").write_text("".join(hosts))
        nodes = [f"NodeName={node} NodeAddr={address_of(node)} CPUs=4 RealMemory=2000 Gres=gpu:2\n" for node in NODES]
        head, _, partitions = _CONF.partition("PartitionName")
        text = head + "".join(nodes) + "PartitionName" + partitions
        (folder / "slurm.conf").write_text(text.format(folder=folder, controller=address_of("ctl")))
        (folder / "gres.conf").write_text(f"NodeName={','.join(NODES)} Name=gpu File={folder}/dev/gpu[0-1]\n")

    def _environment(self, more: Mapping[str, str]) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        return kept | {"SLURM_CONF": str(self.folder / "slurm.conf")} | dict(more)

    def _find_inits(self) -> bool:
        """The first process of each namespace of processes, by the number that it has out here."""
        for entry in os.listdir("/proc"):
            words = _command(int(entry)) if entry.isdigit() else []
            if str(INIT) not in words or "unshare" in words[0] or "setpriv" in words[0]:
                continue
            # What a first process starts has its name until it becomes another program, and may be gone soon.
            if str(self.folder) in words and _is_first(int(entry)):
                role = words[words.index(str(INIT)) + 1]
                self._inits["ctl" if role == "controller" else words[-1]] = int(entry)
        return len(self._inits) == len(NODES) + 1

    def _is_up(self) -> bool:
        try:
            return self.run("sinfo", "--noheader", "-p", "main", "-t", "idle", "-o", "%D").strip() == str(len(NODES))
        except (AssertionError, subprocess.TimeoutExpired):
            return False

    def _pids(self, node: str) -> list[int]:
        """All processes of a node, by their numbers out here."""
        inside = os.readlink(f"/proc/{self._inits[node]}/ns/pid")
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    if os.readlink(f"/proc/{entry}/ns/pid") == inside:
                        found.append(int(entry))
                except OSError:
                    continue
        return found


def _is_first(pid: int) -> bool:
    """Whether a process is the first one of its namespace."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return False
    return next(line for line in lines if line.startswith("NSpid:")).split()[-1] == "1"


def _command(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1] or [""]
    except OSError:
        return [""]


def missing_commands() -> list[str]:
    """What this machine lacks for a cluster."""
    return [name for name in COMMANDS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]

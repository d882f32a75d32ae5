import base64
import json
import socket
import subprocess
import sys
from pathlib import Path

import psutil

from scaletrain.launch.slurm.interface import interface_towards
from scaletrain.launch.slurm.job import Job
from scaletrain.launch.slurm.node import added_variables, launcher_command
from scaletrain.launch.slurm.settings import Settings
from scaletrain.launch.slurm.steps import srun_command

JOB = Job("17", "x", 0, ("n1", "n2"), {"n1": "10.0.0.1", "n2": "10.0.0.2"}, 2, 8, None, ())
PLACE = Path("/shared/run")


def test_without_a_container_the_command_stands_alone() -> None:
    command = srun_command(JOB, Settings(), "train", ["n1", "n2"], ["python", "x"], [PLACE])
    assert command[0] == "srun"
    assert command[-2:] == ["python", "x"]
    assert {"--nodes=2", "--nodelist=n1,n2", "--cpus-per-task=8", "--no-kill"} <= set(command)
    assert not [word for word in command if "container" in word]


def test_pyxis_gets_the_image_and_the_folders() -> None:
    settings = Settings(container="image.sqsh", container_mounts="/data:/data")
    command = srun_command(JOB, settings, "train", ["n1"], ["python"], [PLACE, PLACE])
    assert "--container-image=image.sqsh" in command
    assert "--container-mounts=/shared/run:/shared/run,/data:/data" in command


def test_apptainer_stands_before_the_command() -> None:
    command = srun_command(JOB, Settings(container="image.sif"), "train", ["n1"], ["python", "x"], [PLACE])
    assert command[-7:] == ["apptainer", "exec", "--nv", "--bind=/shared/run:/shared/run", "image.sif", "python", "x"]


def test_a_job_that_shares_a_node_keeps_to_its_own_gpus() -> None:
    plan = {"nodes": ["n1", "n2"], "slots": 2, "port": 12345, "command": ["train.py", "--seed", "1"]}
    command = launcher_command(plan, 1, "10.0.0.1", {"CUDA_VISIBLE_DEVICES": "2,3"})
    (world,) = [word.partition("=")[2] for word in command if word.startswith("--world_info")]
    assert json.loads(base64.urlsafe_b64decode(world + "==")) == {"n1": [0, 1], "n2": [2, 3]}
    assert {"--node_rank=1", "--master_addr=10.0.0.1", "--master_port=12345"} <= set(command)
    assert command[-3:] == ["train.py", "--seed", "1"]


def test_ranks_of_a_node_are_told_the_interface_their_folder_and_the_end() -> None:
    plan = {"log_dir": "/logs", "end_s": 1800000000.5}
    assert added_variables(plan, "ib0", {"GLOO_SOCKET_IFNAME": "eth9"}) == {
        "NCCL_SOCKET_IFNAME": "ib0",
        "SCALETRAIN_JOB_END_TIME": "1800000000.5",
        "SCALETRAIN_LOG_DIR": "/logs",
    }
    assert added_variables({"log_dir": "/logs", "end_s": None}, None, {}) == {"SCALETRAIN_LOG_DIR": "/logs"}
    assert added_variables({}, "ib0", {}) == {"NCCL_SOCKET_IFNAME": "ib0", "GLOO_SOCKET_IFNAME": "ib0"}


def test_gpus_by_their_unique_names_and_those_that_do_not_fit() -> None:
    plan = {"nodes": ["n1"], "slots": 2, "port": 12345, "command": ["train.py"]}

    def of(visible: str) -> object:
        command = launcher_command(plan, 0, "n1", {"CUDA_VISIBLE_DEVICES": visible})
        return json.loads(base64.urlsafe_b64decode(command[4].partition("=")[2]))["n1"]

    assert of("GPU-a,GPU-b") == ["GPU-a", "GPU-b"]
    assert of("5") == of("") == [0, 1]


def test_the_interface_of_this_machines_own_addresses() -> None:
    for name, addresses in psutil.net_if_addrs().items():
        for one in addresses:
            if one.family == socket.AF_INET:
                assert interface_towards(one.address) in (name, "lo")


def test_fewer_ranks_than_gpus_take_the_first_of_its_own() -> None:
    plan = {"nodes": ["n1"], "slots": 2, "port": 12345, "command": ["train.py"]}
    command = launcher_command(plan, 0, "10.0.0.1", {"CUDA_VISIBLE_DEVICES": "4,5,6,7"})
    (world,) = [word.partition("=")[2] for word in command if word.startswith("--world_info")]
    assert json.loads(base64.urlsafe_b64decode(world + "==")) == {"n1": [4, 5]}


def test_the_interface_that_leads_somewhere() -> None:
    assert interface_towards("127.0.0.1") == "lo"
    assert interface_towards("localhost") == "lo"
    assert interface_towards("no.such.host.invalid") is None


def test_the_supervisor_needs_the_standard_library_alone() -> None:
    """Where packages are in the container only, the host's plain Python runs it."""
    root = Path(__file__).parents[3]
    code = f"import sys; sys.path.insert(0, {str(root)!r}); from scaletrain.launch.slurm.supervise import main"
    command = [sys.executable, "-S", "-E", "-c", f"{code}; sys.exit(main([]))"]
    done = subprocess.run(command, env={}, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: this is no Slurm job")

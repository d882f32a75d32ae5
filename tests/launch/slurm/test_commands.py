"""What a job says to Slurm, through commands that log what they are given; the real ones are met in tests/slurm."""

import time
from pathlib import Path

import pytest

from scaletrain.launch.slurm import commands
from scaletrain.launch.slurm.commands import Slurm

LOGS = '#!/bin/sh\nprintf "%s|" "$(basename "$0")" "$@" >>"$CALLS"\necho >>"$CALLS"\n'


class Commands:
    """Stand-ins for Slurm's commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, name: str, script: str) -> None:
        path = self.folder / name
        path.write_text(LOGS + script)
        path.chmod(0o755)

    def calls(self) -> list[list[str]]:
        path = self.folder / "calls"
        return [line.split("|")[:-1] for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    stands_in = Commands(tmp_path)
    for name in ("scontrol", "scancel", "squeue"):
        stands_in.put(name, "")
    return stands_in


def test_a_job_that_slurm_does_not_know_has_no_fields(slurm: Commands) -> None:
    slurm.put("scontrol", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1\n")
    assert Slurm().show_job("17") == {}
    slurm.put("scontrol", "echo 'JobId=18 JobName=other JobState=RUNNING'\n")
    assert Slurm().show_job("17") == {}


def test_values_with_spaces_and_equals_signs(slurm: Commands) -> None:
    slurm.put("scontrol", "echo 'JobId=17 JobName=my job TRES=cpu=2,mem=1G StdOut=/tmp/w/job.sh-17.out Power='\n")
    shown = Slurm().show_job("17")
    assert (shown["JobName"], shown["TRES"], shown["Power"]) == ("my", "cpu=2,mem=1G", "")
    assert shown["StdOut"] == "/tmp/w/job.sh-17.out"


def test_addresses_where_slurm_says_nothing_are_the_names(slurm: Commands) -> None:
    slurm.put("scontrol", "exit 1\n")
    assert Slurm().addresses(["n1", "n2"]) == {"n1": "n1", "n2": "n2"}
    assert Slurm().unusable(["n1", "n2"]) == {}


@pytest.mark.parametrize(
    ("state", "usable"),
    [
        ("IDLE", True),
        ("ALLOCATED", True),
        ("MIXED+PLANNED", True),
        ("DOWN", False),
        ("IDLE+DRAIN", False),
        ("ALLOCATED*", False),
        ("MIXED+NOT_RESPONDING", False),
        ("ALLOCATED+FAIL", False),
    ],
)
def test_which_states_of_a_node_allow_a_launch(slurm: Commands, state: str, usable: bool) -> None:
    slurm.put("scontrol", f"echo 'NodeName=n1 NodeAddr=n1 State={state} Owner=N/A'\n")
    assert (Slurm().unusable(["n1"]) == {}) is usable


def test_without_nodes_to_avoid_only_the_time_is_set(slurm: Commands) -> None:
    assert Slurm().requeue("17", [], 600.4)
    assert slurm.calls() == [["scontrol", "requeue", "17"], ["scontrol", "update", "JobId=17", "StartTime=now+600"]]


def test_a_requeue_that_slurm_will_never_do_is_given_up_at_once(slurm: Commands) -> None:
    slurm.put("scontrol", "echo 'Requested operation is presently disabled' >&2; exit 1\n")
    assert not Slurm().requeue("17", ["n2"], 0.0, 600.0)
    assert [call[1] for call in slurm.calls()] == ["requeue"]  # nodes of a job that runs on are not excluded


def test_a_requeue_whose_answer_was_struck_down_counts(slurm: Commands) -> None:
    slurm.put("scontrol", "test $1 = update || { echo 'Job is pending execution for job 17' >&2; exit 1; }\n")
    assert Slurm().requeue("17", ["n2"], 0.0)
    assert [call[1] for call in slurm.calls()] == ["requeue", "update"]


def test_a_controller_that_is_away_is_waited_for(slurm: Commands) -> None:
    slurm.put("scontrol", "echo 'Unable to contact slurm controller' >&2; exit 1\n")
    begins_s = time.monotonic()
    assert not Slurm().requeue("17", ["n2"], 0.0, 2.0)
    assert 2.0 <= time.monotonic() - begins_s < 10.0
    assert {call[1] for call in slurm.calls()} == {"requeue"}
    assert len(slurm.calls()) >= 2


def test_a_requeue_counts_though_the_rest_is_refused(slurm: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_INSIST_S", 0.5)
    slurm.put("scontrol", "test $1 = requeue\n")
    assert Slurm().requeue("17", ["n2"], 0.0)


def test_an_answer_that_does_not_come_is_none(slurm: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_ANSWER_S", 0.3)
    slurm.put("scontrol", "exec sleep 20\n")
    begins_s = time.monotonic()
    assert Slurm().show_job("17") == {}
    assert not Slurm().drain("n2", "ECC")
    assert time.monotonic() - begins_s < 5


def test_without_slurm_on_the_path_nothing_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Slurm().show_job("17") == {}
    assert Slurm().expand("n[1-2]") == []
    assert not Slurm().signal_step("17", "0", "USR1")


def test_a_drain_says_who_asks_and_why(slurm: Commands) -> None:
    assert Slurm().drain("n2", 'job 17: "GPU" is lost ' + "x" * 300)
    ((*command, reason),) = slurm.calls()
    assert command == ["scontrol", "update", "NodeName=n2", "State=DRAIN"]
    assert reason.startswith("Reason=scaletrain: job 17: 'GPU' is lost xxx")
    assert len(reason) < 250


def test_a_signal_goes_to_one_step(slurm: Commands) -> None:
    assert Slurm().signal_step("17", "3", "USR1")
    assert slurm.calls() == [["scancel", "--signal=USR1", "17.3"]]


def test_no_host_list_is_not_asked_for(slurm: Commands) -> None:
    assert Slurm().expand("") == []
    assert slurm.calls() == []

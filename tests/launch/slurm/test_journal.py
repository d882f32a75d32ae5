from pathlib import Path
from typing import Any

from scaletrain.launch.events import append_event
from scaletrain.launch.slurm.journal import Journal, count_without_progress


def launch(number: int, saved_step: int) -> dict[str, Any]:
    return {"event": "launch", "launch": number, "saved_step": saved_step}


def asked(number: int) -> dict[str, Any]:
    return {"event": "launch_end", "launch": number, "was_asked": True}


def test_launches_count_until_one_has_saved_something() -> None:
    events = [launch(1, 0), launch(2, 100), launch(3, 100), launch(4, 100)]
    assert count_without_progress(events, 100) == 3
    assert count_without_progress(events, 150) == 0
    assert count_without_progress(events[:2], 100) == 1
    assert count_without_progress([], 0) == 0


def test_what_others_ended_neither_counts_nor_helps() -> None:
    events = [launch(1, 0), launch(2, 0), asked(2), launch(3, 0)]
    assert count_without_progress(events, 0) == 2


def test_a_launch_whose_supervisor_was_gone_counts() -> None:
    events = [launch(1, 50), {"event": "job_start"}, launch(2, 50)]
    assert count_without_progress(events, 50) == 2


def test_progress_is_what_was_saved(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "7", 0)
    assert (journal.saved_step(), journal.launches()) == (0, 0)
    append_event(tmp_path / "events.jsonl", "save", step=40)
    append_event(tmp_path / "events.jsonl", "save_failed", step=60)
    journal.write("launch", launch=1, nodes=["n1"], saved_step=0)
    journal.write("launch_end", launch=1, verdict="crash", reason="killed", saved_step=40)
    assert (journal.saved_step(), journal.launches()) == (40, 1)
    assert journal.history() == ["launch 1 on n1: crash, saved up to step 40: killed"]


def test_fruitless_starts_are_those_of_this_job_since_its_last_launch(tmp_path: Path) -> None:
    other, journal = Journal(tmp_path, "6", 0), Journal(tmp_path, "7", 1)
    other.write("fruitless_start")
    journal.write("job_start")
    assert journal.fruitless_starts() == 0
    journal.write("fruitless_start")
    journal.write("job_start")
    journal.write("fruitless_start")
    assert journal.fruitless_starts() == 2
    journal.write("launch", launch=1)
    journal.write("fruitless_start")
    assert journal.fruitless_starts() == 1


def test_nodes_are_blamed_until_they_are_cleared_and_those_that_slurm_holds_back_never(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "7", 1)
    for node, by_slurm in (("n1", False), ("n2", True), ("n3", False)):
        journal.write("sick_node", node=node, reason=f"why {node}", by_slurm=by_slurm)
    Journal(tmp_path, "6", 0).write("sick_node", node="n4", reason="of another job")
    assert journal.blamed() == {"n1": "why n1", "n3": "why n3"}
    journal.write("suspicion", nodes=["n1", "n5"], suspect="n5", cleared=["n1"])
    assert journal.blamed() == {"n3": "why n3"}


def test_nodes_that_were_left_out_long_ago_are_forgiven(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "7", 1)
    for time_s, node in ((100, "n1"), (100, "n2"), (200, "n2"), (200, "n3")):
        journal.write("sick_node", node=node, reason=f"at {time_s}", by_slurm=False, time_s=time_s)
    assert journal.blamed(since_s=150) == {"n2": "at 200", "n3": "at 200"}


def test_a_job_that_is_submitted_anew_begins_with_a_clean_record(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        Journal(tmp_path, "6", 0).write("launch", launch=number, saved_step=0)
    journal = Journal(tmp_path, "7", 0)
    journal.write("launch", launch=4, saved_step=0)
    assert journal.without_progress(0) == 1
    assert journal.launches() == 4


def test_suspicions_are_those_of_this_job(tmp_path: Path) -> None:
    Journal(tmp_path, "6", 0).write("suspicion", nodes=["n1", "n9"])
    Journal(tmp_path, "7", 0).write("suspicion", nodes=["n1", "n2"])
    assert Journal(tmp_path, "7", 1).suspicions() == [("n1", "n2")]

import subprocess
import sys
from pathlib import Path

from scaletrain.launch.slurm.ledger import Failure, Ledger

NOW_S = 1_800_000_000.0
DAY_S = 86400.0


def failure(node: str, days_ago: float, job_id: str = "1") -> Failure:
    return Failure(node, NOW_S - days_ago * DAY_S, job_id, "ECC")


def test_a_node_is_avoided_once_it_has_failed_twice_in_the_window(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "nodes", days=7)
    assert ledger.avoided(NOW_S) == {}
    for one in (failure("n1", 1), failure("n2", 1), failure("n2", 6, "2"), failure("n3", 1), failure("n3", 8, "2")):
        ledger.record(one)
    assert list(ledger.avoided(NOW_S)) == ["n2"]
    assert "2 times in 7 days" in ledger.avoided(NOW_S)["n2"]
    assert ledger.avoided(NOW_S + 7 * DAY_S) == {}


def test_one_failure_told_twice_counts_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, days=7)
    ledger.record(Failure("n1", NOW_S, "1", "silent"))
    ledger.record(Failure("n1", NOW_S + 5, "1", "down"))
    assert len(ledger.failures(NOW_S + 5)) == 1


def test_garbage_is_passed_over(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, days=7)
    ledger.record(failure("n1", 1))
    (tmp_path / "torn.json").write_text('{"node": "n1", "time')
    (tmp_path / "other.json").write_text('{"time_s": "yesterday"}')
    assert [one.node for one in ledger.failures(NOW_S)] == ["n1"]


def test_jobs_that_write_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from scaletrain.launch.slurm.ledger import Failure, Ledger\n"
        "for i in range(50): Ledger(Path(sys.argv[1]), 7).record(Failure(f'n{i}', 1.8e9 + i, sys.argv[2], 'ECC'))"
    )
    jobs = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(job)]) for job in range(3)]
    assert [job.wait(timeout=60) for job in jobs] == [0, 0, 0]
    assert len(Ledger(tmp_path, 7).failures(1.8e9 + 50)) == 150
    assert len(Ledger(tmp_path, 7).avoided(1.8e9 + 50)) == 50

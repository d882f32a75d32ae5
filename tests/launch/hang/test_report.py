"""A report is one for all ranks, whoever begins it."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from scaletrain.launch.hang.report import Begun, begin_report


def test_all_that_begin_a_report_at_the_same_time_find_the_same_one(tmp_path: Path) -> None:
    ranks = 12
    together = threading.Barrier(ranks)
    with ThreadPoolExecutor(ranks) as pool:
        for attempt in range(1, 21):
            (tmp_path / "exit" / str(attempt)).mkdir(parents=True)

            def begin(rank: int, attempt: int = attempt) -> Begun:
                together.wait(20)
                return begin_report(tmp_path, attempt, 7 + rank % 2, rank, "8 s in data")

            assert len(set(pool.map(begin, range(ranks)))) == 1

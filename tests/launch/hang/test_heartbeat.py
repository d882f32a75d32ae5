"""What a rank says of itself is read from outside, costs next to nothing, and makes limits."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from scaletrain.launch.hang.heartbeat import Heartbeat, HeartbeatReader, Phase, shared_memory
from scaletrain.launch.hang.limits import HangLimits, StandingStill, Watched
from scaletrain.launch.hang.start import limits_of
from tests.processes import eventually

LIMITS = HangLimits(factor=5.0, first_s=1200.0, least_s=600.0, most_s=1350.0)

# Beats without a pause, so that it is stopped in the midst of a write now and then; both numbers are always equal.
WRITER = """
import sys
from scaletrain.launch.hang.heartbeat import Heartbeat, Phase
beat = Heartbeat(int(sys.argv[1]))
number = 0
while True:
    number += 1
    beat.enter(Phase.FORWARD, number, number % 2**32)
"""


def test_a_beat_is_read_by_another_process_and_never_half_of_one() -> None:
    memory = shared_memory()
    reader = HeartbeatReader(memory)
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(memory)], pass_fds=(memory,))
    try:
        eventually(lambda: reader.read().step > 0, 30, "it beats")
        for _ in range(200):
            writer.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, writer.pid, os.WSTOPPED)
            beat = reader.read()
            assert beat.step == beat.micro_step and beat.phase is Phase.FORWARD and beat.marks == beat.step + 1
            assert 0 <= time.monotonic() - beat.since_s < 60
            writer.send_signal(signal.SIGCONT)
    finally:
        writer.kill()
        writer.wait()
        os.close(memory)


def test_places_are_ordered_by_the_phases_entered_in_a_step() -> None:
    memory = shared_memory()
    beat, reader = Heartbeat(memory), HeartbeatReader(memory)
    places = []
    for phase in (Phase.DATA, Phase.AGREE, Phase.FORWARD, Phase.BACKWARD, Phase.FORWARD, Phase.BACKWARD, Phase.END):
        beat.enter(phase, 1 if phase is Phase.DATA else None)
        places.append((reader.read().step, reader.read().ordinal))
    assert places == [(1, ordinal) for ordinal in range(7)]
    beat.enter(Phase.DATA, 2)
    assert (reader.read().step, reader.read().ordinal) == (2, 0)


def test_the_longest_counts_once_all_ranks_have_spoken_of_it() -> None:
    memory = shared_memory()
    beat, reader = Heartbeat(memory), HeartbeatReader(memory)
    beat.enter(Phase.DATA)
    time.sleep(0.02)
    beat.enter(Phase.AGREE)
    assert beat.longest_s[Phase.DATA] >= 0.02 and reader.longest_s(Phase.DATA) == 0.0
    beat.agree([0.01] * len(Phase))
    assert reader.longest_s(Phase.DATA) == beat.longest_s[Phase.DATA], "this rank has seen it last longer"
    assert reader.longest_s(Phase.SAVE) == 0.01
    # What a save takes beside the training is told, not measured by how long the training stands still.
    with beat.during(Phase.SAVE):
        assert reader.read().phase is Phase.SAVE
    assert reader.read().phase is Phase.AGREE and beat.longest_s[Phase.SAVE] == 0.0
    beat.observe(Phase.SAVE, 90.0)
    assert reader.longest_s(Phase.SAVE) == 90.0


@pytest.mark.parametrize(
    ("longest_s", "limit_s"),
    [(0.0, 1200.0), (0.01, 600.0), (119.0, 600.0), (200.0, 1000.0), (600.0, 1350.0), (1000.0, 2000.0)],
)
def test_limits(longest_s: float, limit_s: float) -> None:
    assert LIMITS.of(longest_s) == limit_s


def test_limits_end_before_collectives_do() -> None:
    assert limits_of(5.0, 1200.0, 600.0, 1800.0) == LIMITS
    assert limits_of(5.0, 1200.0, 600.0, 900.0).of(0.0) == 675.0
    # Whoever wants collectives to end sooner than the least limit is told sooner who holds them up, ...
    sooner = limits_of(5.0, 1200.0, 600.0, 300.0)
    assert [sooner.of(longest_s) for longest_s in (0.0, 0.1, 50.0, 200.0)] == [600.0, 225.0, 225.0, 400.0]
    # ... but not where there is no time to find out.
    at_once = limits_of(5.0, 1200.0, 600.0, 10.0)
    assert (at_once.of(0.0), at_once.of(0.1)) == (600.0, 90.0)
    assert limits_of(5.0, 60.0, 8.0, 20.0).of(0.1) == 8.0, "a limit of one's own stays"
    assert LIMITS.late_s == 30.0 and replace(LIMITS, least_s=4.0).late_s == 2.0


def test_time_for_which_nobody_looked_does_not_count() -> None:
    """A job that is suspended for an hour, keepers and all, does not hang."""
    memory = shared_memory()
    beat = Heartbeat(memory)
    still = StandingStill(HeartbeatReader(memory), longest_gap_s=4.0)
    now_s = time.monotonic()
    assert [still.look(now_s + after)[1] for after in (0.0, 2.0, 4.0)] == [0.0, 2.0, 4.0]
    assert still.look(now_s + 3604.0)[1] == 8.0
    beat.enter(Phase.DATA)
    assert still.look(now_s + 3606.0)[1] <= 4.0
    assert still.look(now_s + 3608.0)[1] <= 6.0


def test_what_a_keeper_must_know_goes_through_json() -> None:
    watched = Watched(3, 4, LIMITS, 8, "GPU 1", "")
    assert Watched.from_json(watched.to_json()) == watched

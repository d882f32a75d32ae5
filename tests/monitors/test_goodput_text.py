"""How the advice on the checkpoint interval words what it rests on."""

import pytest

from scaletrain.monitors.goodput_text import advice_notes
from scaletrain.monitors.interval_advice import advise
from scaletrain.monitors.run_records import Record

SAVE = {"event": "save", "attempt": 1, "step": 10, "stall_s": 1.0, "seconds": 2.0}
ROLLBACK = {"event": "rollback", "attempt": 1, "to_step": 10}


@pytest.mark.parametrize(
    ("failures", "events", "said"),
    [
        (1, [], "1 failure, no rollback: one every 1h00m"),
        (3, [ROLLBACK], "2 failures, 1 rollback: one every 20m00s"),
        (2, [ROLLBACK] * 2, "no failure, 2 rollbacks: one every 30m00s"),
    ],
)
def test_failures_and_rollbacks_are_counted_apart(failures: int, events: list[Record], said: str) -> None:
    advice = advise([], [SAVE, *events], 1.0, 3600.0, failures, 30.0)
    assert f"{said}; recovery takes 30s" in advice_notes(advice)


def test_a_recovery_that_was_never_measured_is_not_told_as_no_time() -> None:
    unknown, known = (advise([], [SAVE], 1.0, 3600.0, 1, recovery_s) for recovery_s in (None, 0.0))
    assert "how long recovery takes is not known yet" in advice_notes(unknown)[1]
    assert "recovery takes 0.0s" in advice_notes(known)[1]
    assert unknown.recommended == known.recommended

"""What is told, and how often: readings that were made up, in the order that a job sees them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaletrain.hardware.judging import Judge, worst
from scaletrain.hardware.readings import EccCounts, GpuReading, LinkReading, Reading, XidEvent
from scaletrain.hardware.repairs import RepairHistory
from scaletrain.hardware.rules import load_rules

RULES = load_rules()
POLL_S = 10.0


def gpu(index: int = 0, **values: object) -> GpuReading:
    return replace(GpuReading(index, uuid=f"GPU-{index}", bus_id=f"0000:{index + 1:02x}:00.0"), **values)


def reading(*gpus: GpuReading, **values: object) -> Reading:
    return replace(Reading("ok", uptime_s=1e6, gpus=gpus), **values)


def errors(uncorrected: int) -> GpuReading:
    return gpu(ecc_volatile=EccCounts(uncorrected=uncorrected))


def xid(code: int, index: int = 0) -> XidEvent:
    return XidEvent(code, f"0000:{index + 1:02x}:00.0")


def told(judge: Judge, readings: Sequence[Reading], first_s: float = 0.0) -> list[list[str]]:
    return [
        [finding.rule for finding in judge.judge(one, first_s + place * POLL_S)] for place, one in enumerate(readings)
    ]


def test_an_old_error_condemns_nobody() -> None:
    judge = Judge(RULES)
    assert told(judge, [reading(errors(1000))] * 10) == [[]] * 10


def test_a_new_error_is_told_once_and_a_further_one_again_after_recovery() -> None:
    counts = [7, 8, 8, 8, 8, 8, 8, 9, 9, 9]
    assert told(Judge(RULES), [reading(errors(count)) for count in counts]) == [
        *[[]] * 2,
        ["ecc_uncorrected"],
        *[[]] * 5,
        ["ecc_uncorrected"],
        [],
    ]


def test_a_counter_that_was_set_back_counts_from_there() -> None:
    counts = [500, 0, 0, 1, 1]
    assert told(Judge(RULES), [reading(errors(count)) for count in counts])[-2:] == [[], ["ecc_uncorrected"]]


def test_an_incident_that_comes_back_is_told_again() -> None:
    hot, cool = reading(gpu(clock_event_reasons=0x40)), reading(gpu(clock_event_reasons=0x1))
    # Two cool polls between hot ones are the same incident, three end it.
    polls = [hot] * 3 + [cool] * 2 + [hot] * 3 + [cool] * 70 + [hot] * 3
    found = told(Judge(RULES), polls)
    assert [place for place, rules in enumerate(found) if rules] == [2, len(polls) - 1]


def test_an_active_finding_is_kept_until_it_is_over() -> None:
    judge = Judge(RULES)
    pending, sound = reading(gpu(row_remap_pending=True)), reading(gpu(row_remap_pending=False))
    told(judge, [pending, pending])
    assert [finding.rule for finding in judge.active] == ["row_remap_pending"]
    assert worst(judge.active) == "drain"
    told(judge, [sound] * 3, first_s=20.0)
    assert (judge.active, worst(judge.active)) == ([], None)


def test_six_slow_polls_within_ten_minutes_are_enough() -> None:
    slow, fast = reading(gpu(clock_event_reasons=0x80)), reading(gpu(clock_event_reasons=0))
    judge = Judge(RULES)
    found = told(judge, [slow, fast] * 6)
    assert [place for place, rules in enumerate(found) if rules] == [10]
    # The same six over a longer time are not.
    rare = Judge(RULES)
    assert not any(rare.judge(one, 70.0 * place) for place, one in enumerate([slow, fast] * 6))


def test_a_bit_counts_among_others_and_others_do_not() -> None:
    assert told(Judge(RULES), [reading(gpu(clock_event_reasons=0x48))] * 3)[-1] == ["hw_thermal"]
    assert told(Judge(RULES), [reading(gpu(clock_event_reasons=0x117))] * 5) == [[]] * 5


@pytest.mark.parametrize(("code", "rule"), [(94, "xid_94"), (95, "xid_95"), (48, "xid_48")])
def test_an_xid_says_more_than_the_count_beside_it(code: int, rule: str) -> None:
    judge = Judge(RULES)
    polls = [reading(errors(0)), reading(errors(1)), reading(errors(1), xids=(xid(code),)), *[reading(errors(1))] * 5]
    assert [one for one in told(judge, polls) if one] == [[rule]]


def test_an_xid_whose_rule_is_switched_off_is_not_any_other() -> None:
    rules = {name: rule for name, rule in RULES.items() if name != "xid_43"}
    assert told(Judge(rules), [reading(gpu()), reading(gpu(), xids=(xid(43),))]) == [[], []]
    assert told(Judge(RULES), [reading(gpu()), reading(gpu(), xids=(xid(9999),))]) == [[], ["xid_other"]]


def test_an_xid_of_another_gpu_says_nothing() -> None:
    other = gpu(1, ecc_volatile=EccCounts(uncorrected=0))
    polls = [reading(errors(0), other), *[reading(errors(1), other, xids=(xid(94, 1),))] * 2]
    assert told(Judge(RULES), polls)[1:] == [["xid_94"], ["ecc_uncorrected"]]


def test_an_xid_is_told_once_by_whomever_it_is_said() -> None:
    judge = Judge(RULES)
    twice = (xid(79), replace(xid(79), origin="kernel log", text="GPU has fallen off the bus"))
    polls = [reading(gpu(), xids=twice), reading(gpu(), xids=(xid(79),)), *[reading(gpu())] * 3]
    assert told(judge, [*polls, reading(gpu(), xids=(xid(79),))]) == [["xid_79"], [], [], [], [], ["xid_79"]]


def test_an_xid_is_told_of_a_gpu_that_never_answered() -> None:
    judge = Judge(RULES)
    (found,) = judge.judge(Reading("unasked", uptime_s=1e6, xids=(xid(79),)), 0.0)
    assert (found.rule, found.gpu_uuid, found.bus_id) == ("xid_79", None, "0000:01:00.0")


def test_links_that_train_after_boot_are_no_fault() -> None:
    links = tuple(LinkReading(number, number != 2) for number in range(4))
    up = tuple(LinkReading(number, True) for number in range(4))
    whole, broken = gpu(0, links=up), gpu(1, links=links)
    booting = [reading(whole, broken, uptime_s=20.0 + POLL_S * poll, xids=(xid(74),)) for poll in range(20)]
    judge = Judge(RULES)
    assert told(judge, booting) == [[]] * 20
    after = [reading(whole, broken, uptime_s=400.0)] * 3
    assert told(judge, after, first_s=400.0)[-1] == ["nvlink_missing"]


def test_links_that_no_gpu_has_are_none() -> None:
    half = tuple(LinkReading(number, number < 2) for number in range(4))
    assert told(Judge(RULES), [reading(gpu(0, links=half), gpu(1, links=half))] * 5) == [[]] * 5


def test_a_gpu_that_is_not_listed_any_more_is_lost_under_its_own_name() -> None:
    judge = Judge(RULES)
    judge.judge(reading(gpu(0), gpu(1), gpu(2)), 0.0)
    # The driver counts anew: what was number 2 is number 1 now.
    (found,) = judge.judge(reading(gpu(0), replace(gpu(2), index=1)), POLL_S)
    assert (found.rule, found.gpu_uuid) == ("gpu_lost", "GPU-1")
    assert judge.judge(reading(gpu(0), replace(gpu(2), index=1)), 2 * POLL_S) == []


def test_a_lost_gpu_that_does_not_tell_its_name_is_known_by_its_place() -> None:
    judge = Judge(RULES)
    judge.judge(reading(gpu(0), gpu(1)), 0.0)
    (found,) = judge.judge(reading(gpu(0), GpuReading(1, "lost", "GPU is lost")), POLL_S)
    assert (found.rule, found.gpu_uuid, found.gpu_index) == ("gpu_lost", "GPU-1", 1)
    assert "GPU is lost" in found.text


def test_what_is_not_told_changes_nothing() -> None:
    hot, silent = reading(gpu(clock_event_reasons=0x40)), reading(gpu())
    assert told(Judge(RULES), [hot, silent, hot, silent, hot])[-1] == ["hw_thermal"]
    assert told(Judge(RULES), [silent] * 5) == [[]] * 5


def test_a_driver_that_is_slow_once_is_no_fault_and_three_times_is() -> None:
    silent, unasked, sound = Reading("silent", "ECC of GPU 3"), Reading("unasked"), reading(gpu())
    assert told(Judge(RULES), [silent, silent, sound, silent, silent]) == [[]] * 5
    judge = Judge(RULES)
    assert told(judge, [sound, silent, unasked, silent, unasked, silent])[-1] == ["driver_silent"]
    assert "ECC of GPU 3" in judge.active[0].text


def test_replays_are_counted_by_the_minute_also_where_polls_are_rarer() -> None:
    rising = [reading(gpu(pcie_replays=count)) for count in (0, 8, 16)]
    assert not any(Judge(RULES).judge(one, 60.0 * place) for place, one in enumerate(rising))
    judge = Judge(RULES)
    assert [bool(judge.judge(one, 90.0 * place)) for place, one in enumerate(rising)] == [False] * 3
    fast = Judge(RULES)
    assert [bool(fast.judge(one, 30.0 * place)) for place, one in enumerate(rising)] == [False, False, True]


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=30))
def test_a_counter_that_only_falls_is_never_told(counts: list[int]) -> None:
    falling = sorted(counts, reverse=True)
    assert told(Judge(RULES), [reading(errors(count)) for count in falling]) == [[]] * len(falling)


@given(st.lists(st.integers(0, 0x3FF), min_size=3, max_size=30))
def test_no_run_of_two_slow_polls_is_told_of_the_driver(reasons: list[int]) -> None:
    polls = [value & ~0x20 if place % 3 == 2 else value for place, value in enumerate(reasons)]
    found = told(Judge(RULES), [reading(gpu(clock_event_reasons=value)) for value in polls])
    assert "sw_thermal" not in {rule for rules in found for rule in rules}


def test_the_same_gpu_asking_after_two_reboots_is_to_be_inspected(tmp_path: Path) -> None:
    path, actions = tmp_path / "asks" / "n7.json", []
    for boot in ("first", "first", "second", "third"):
        judge = Judge(RULES, history=RepairHistory(path, boot))
        (found,) = judge.judge(reading(gpu(recovery_action=1), gpu(1)), 1.8e9)
        actions.append(found.action)
    assert actions == ["reset_gpu", "reset_gpu", "reset_gpu", "inspect"]
    assert "vendor" in found.text
    other = Judge(RULES, history=RepairHistory(path, "third"))
    assert other.judge(reading(gpu(1, recovery_action=1)), 1.8e9)[0].action == "reset_gpu"
    a_season_later = Judge(RULES, history=RepairHistory(path, "fourth"))
    assert a_season_later.judge(reading(gpu(recovery_action=1)), 1.8e9 + 91 * 86400)[0].action == "reset_gpu"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"GPU-0": [{"boot": 1}]}', '{"GPU-0": 3}'])
def test_a_history_that_cannot_be_read_begins_anew(tmp_path: Path, content: str) -> None:
    path = tmp_path / "asks.json"
    path.write_text(content)
    history = RepairHistory(path, "now")
    assert not history.is_repeated("GPU-0", 1.0)
    history.record("GPU-0", "xid_79", "reboot", 1.0)
    assert RepairHistory(path, "later")._asks["GPU-0"][0]["rule"] == "xid_79"


def test_a_history_that_cannot_be_written_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    RepairHistory(tmp_path / "file" / "asks.json", "now").record("GPU-0", "xid_79", "reboot", 1.0)
    assert "cannot be written" in caplog.text

"""The rules that ship, a user's changes to them, and the page that describes both."""

import re
from pathlib import Path

import pytest

from scaletrain.errors import ConfigError
from scaletrain.hardware.rules import Rule, load_rules
from scaletrain.hardware.signals import SIGNALS

PAGE = (Path(__file__).parents[2] / "docs/gpu_health.md").read_text()
WHEN = {"start": " (only before a job)", "running": " (only in a job)", "always": ""}
NEW = "severity: info, action: none, title: t, remedy: r, source: s"


def rows(heading: str) -> list[str]:
    """The rows of the table with this heading."""
    return PAGE.split(f"{heading}\n")[1].split("\n\n")[0].splitlines()[1:]


def severity(rule: Rule) -> str:
    return rule.severity + (f", of a straggler {rule.if_straggler}" if rule.if_straggler else "")


def load(folder: Path, text: str) -> dict[str, Rule]:
    (folder / "rules.yaml").write_text(text)
    return load_rules(folder / "rules.yaml")


def test_the_page_has_every_rule_as_it_ships() -> None:
    rules = load_rules().values()
    assert rows("| rule | broken when | severity | action | source |") == [
        f"| `{rule.name}` | {rule.condition()}{WHEN[rule.when]} | {severity(rule)} | {rule.action} | {rule.source} |"
        for rule in rules
        if rule.signal != "xid"
    ]
    assert rows("| XID | what | severity | action | remedy |") == [
        f"| {rule.code or 'any other'} | {rule.title} | {rule.severity} | {rule.action} | {rule.remedy} |"
        for rule in rules
        if rule.signal == "xid"
    ]


def test_the_page_has_every_signal_and_key() -> None:
    assert rows("| signal | what the number is |") == [
        f"| `{name}` | {signal.meaning} |" for name, signal in SIGNALS.items()
    ]
    named = re.findall(r"`(\w+)`", " ".join(row.split("|")[1] for row in rows("| key | meaning |")))
    assert set(named) == Rule.model_fields.keys() - {"name"}


def test_the_example_of_the_page_loads(tmp_path: Path) -> None:
    example = PAGE.split("```yaml\n")[1].split("```")[0]
    shipped, rules = load_rules(), load(tmp_path, example)
    assert rules["hw_slowdown"] == shipped["hw_slowdown"].model_copy(
        update={"polls": 10, "times": None, "severity": "drain"}
    )
    assert "pcie_replays" not in rules
    assert rules["xid_160"].code == 160
    changed = {"hw_slowdown", "pcie_replays", "xid_160"}
    assert {name: rule for name, rule in rules.items() if name not in changed} == {
        name: rule for name, rule in shipped.items() if name not in changed
    }


def test_xids_are_named_by_their_code() -> None:
    for name, rule in load_rules().items():
        assert rule.signal != "xid" or name == f"xid_{rule.code or 'other'}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hw_slowdow: {polls: 5}", ["hw_slowdow", "line 1", "no rule of this name", "did you mean hw_slowdown?"]),
        ("hw_slowdown: {poll: 5}", ["hw_slowdown.poll", "no key 'poll'", "polls"]),
        ("hw_slowdown: {polls: 0}", ["hw_slowdown.polls = 0", "line 1", "at least 1 and at most 1000"]),
        ("hw_slowdown: {polls: many}", ["hw_slowdown.polls = many", "expected a whole number"]),
        ("hw_slowdown: {severity: fatal}", ["hw_slowdown.severity = fatal", "info, warn, drain, abort"]),
        ("hw_slowdown: {signal: hw_slow}", ["hw_slowdown.signal = hw_slow", "no such signal", "hw_slowdown"]),
        ("hw_slowdown: {name: other}", ["no key 'name'"]),
        ("hw_slowdown: on", ["hw_slowdown", "switched off by 'hw_slowdown: off'"]),
        ("hw_slowdown: {yields_to: [heat]}", ["hw_slowdown.yields_to = heat", "no such rule"]),
        ("hw_slowdown: {yields_to: [hw_slowdown]}", ["hw_slowdown.yields_to = hw_slowdown", "never be told"]),
        ("hw_slowdown: off\nhw_slowdown: {polls: 3}", ["hw_slowdown", "switches this rule off and changes it"]),
        (f"mine: {{signal: host.memory.used_share, {NEW}}}", ["a signal of the host", "host_"]),
        ("hw_slowdown: {code: 3}", ["hw_slowdown.code = 3", "only the signal xid"]),
        (f"mine: {{signal: xid, code: 79, {NEW}}}", ["mine.code = 79", "xid_79 judges this code already"]),
        ("mine: {signal: lost}", ["mine", "lacks severity, action, title, remedy, source"]),
        ("hw_slowdow: off", ["hw_slowdow", "line 1", "no rule of this name ships; did you mean hw_slowdown?"]),
        ("mine: off", ["mine", "no rule of this name ships", "docs/gpu_health.md"]),
        ("hw_slowdown: {polls: 3}\nhw_slowdown: {polls: 4}", ["given twice"]),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "hw_thermal: {polls: -1}\npcie_lanes: {action: pray}\n")
    assert "hw_thermal.polls" in str(caught.value) and "pcie_lanes.action" in str(caught.value)
    assert "yields_to" not in str(caught.value)  # what others say of a rule with a mistake is none


def test_the_way_that_is_changed_is_the_one_that_counts(tmp_path: Path) -> None:
    shipped = load_rules()["hw_slowdown"]
    assert shipped.times is not None
    assert load(tmp_path, "hw_slowdown: {polls: 10}\n")["hw_slowdown"].times is None
    assert load(tmp_path, "hw_slowdown: {times: 9}\n")["hw_slowdown"].polls is None
    both = load(tmp_path, "hw_slowdown: {times: 9, polls: 10}\n")["hw_slowdown"]
    assert (both.times, both.polls) == (9, 10)


def test_a_rule_that_others_yield_to_may_be_switched_off(tmp_path: Path) -> None:
    assert "xid_94" not in load(tmp_path, "xid_94: off\n")


def test_a_new_rule_may_judge_a_signal_that_another_one_judges(tmp_path: Path) -> None:
    rules = load(tmp_path, f"very_hot: {{signal: temperature_excess_c, above: 5, {NEW}}}\n")
    assert rules["very_hot"].condition() == "temperature_excess_c more than 5"

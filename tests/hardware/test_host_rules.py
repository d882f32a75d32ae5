"""Every rule of hosts that ships: its fault is told; one that stays just below it is not."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from scaletrain.errors import ConfigError
from scaletrain.hardware.host_health import HostReader
from scaletrain.hardware.host_judging import HostJudge
from scaletrain.hardware.host_signals import HOST_SIGNALS, is_host_signal
from scaletrain.hardware.rules import Rule, load_both_rules, load_host_rules, load_rules
from tests.hardware.kernel_trees import interface, net_dev, plant
from tests.hardware.test_host_health import EXPECTED

ROOT = Path(__file__).parents[2]
RULES = load_host_rules()
POLL_S = 30.0

# Values of the signal in polls of half a minute, at whose last one, and not before, the rule is told; and others at
# which it never is.
CASES: dict[str, tuple[list[float], list[float]]] = {
    "host_oom_kill": ([7, 8], [7, 7, 7]),
    "host_oom_kill_elsewhere": ([7, 8], [7, 7, 7]),
    "host_memory_full": ([0.5, 0.98, 0.98, 0.98], [0.98, 0.98, 0.97, 0.98]),
    "host_memory_stalled": ([0.2, 0.2, 0.2], [0.2, 0.2, 0.1, 0.2]),
    "host_memory_uncorrected": ([3, 4], [3, 3]),
    "host_memory_corrected": ([100, 105, 111], [100, 105, 110]),
    "host_cpu_throttled": ([0, 16, 32, 48, 64], [0, 15, 30, 45, 60]),
    "host_cpu_hot": ([0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 5, 5]),
    "host_machine_checks": ([0, 11], [0, 10]),
    "host_folder_full": ([0.995] * 3, [0.995, 0.995, 0.99, 0.995]),
    "host_folder_inodes": ([0.995] * 3, [0.995, 0.995, 0.99]),
    "host_folder_read_only": ([0, 1, 1], [0, 1, 0, 1]),
    "host_folder_failed": ([1, 1, 1], [1, 1, 0, 1]),
    "host_folder_silent": ([0, 31, 61], [0, 30, 60, 0]),
    "host_disk_errors": ([26, 27, 28, 29], [26, 27, 28, 28, 28]),
    "host_disk_timeouts": ([0, 1, 2, 3], [0, 1, 2, 2]),
    "host_disk_given_up": ([0, 1, 1], [0, 1, 0]),
    "host_file_system_errors": ([3, 4], [3, 3]),
    "host_kernel_file_system_errors": ([0, 1], [0, 0]),
    "host_kernel_io_errors": ([0, 1, 5, 6], [0, 1, 9, 9]),
    "host_server_silent": ([0, 1], [0, 0]),
    "host_link_down": ([0, 1, 1, 1], [0, 1, 1, 0, 1]),
    "host_link_flaps": ([2, 4, 6], [2, 4, 5]),
    "host_link_slowed": ([0.5] * 3, [0.5, 0.5, 0.1]),
    "host_nic_errors": ([0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 5]),
    "host_ib_down": ([1, 1, 1], [1, 1, 0]),
    "host_ib_flaps": ([1, 2], [1, 1]),
    "host_ib_slowed": ([0.75] * 3, [0.75, 0.75, 0.1]),
    "host_ib_symbol_errors": ([5, 65, 126], [5, 65, 125]),
    "host_ib_errors": ([0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 5]),
    "host_clock_set": ([0, 11], [0, 10]),
    "host_clock_wrong": ([2, 2, 2], [2, 2, 1]),
    "host_clock_unsynchronized": ([0, 1], [1, 1, 0]),
}


def signals_of(rule: Rule) -> list[str]:
    """Signals of devices that the rule is about."""
    return [name for name in EVERY if HostJudge({rule.name: rule}).judges(name)]


EVERY = [name.replace("*", "first") for name in HOST_SIGNALS]


def told(rule: Rule, name: str, values: list[float]) -> list[int]:
    """Numbers of the polls at which the rule is told."""
    judge = HostJudge({rule.name: rule})
    return [poll for poll, value in enumerate(values) if judge.judge_signals({name: value}, poll * POLL_S)]


def test_no_rule_lacks_its_pair() -> None:
    assert CASES.keys() == RULES.keys()


def pairs() -> Iterator[tuple[str, str]]:
    for rule in RULES.values():
        yield from ((rule.name, name) for name in signals_of(rule))


@pytest.mark.parametrize(("rule", "name"), list(pairs()))
def test_a_fault_is_told_when_it_is_one(rule: str, name: str) -> None:
    fault, below = CASES[rule]
    assert told(RULES[rule], name, fault) == [len(fault) - 1]
    assert told(RULES[rule], name, below) == []


def test_every_signal_that_is_read_can_be_judged() -> None:
    assert {name for name in EXPECTED if not is_host_signal(name)} == set()
    assert not is_host_signal("host.nic.*.carrier") and is_host_signal("host.nic.eth0.carrier_lost")


def test_devices_are_told_apart_and_a_finding_says_which() -> None:
    judge = HostJudge(RULES)
    for poll in range(2):
        assert judge.judge_signals({"host.nic.a.carrier_lost": 1, "host.nic.b.carrier_lost": 0}, poll) == []
    (found,) = judge.judge_signals({"host.nic.a.carrier_lost": 1, "host.nic.b.carrier_lost": 0}, 2)
    assert (found.rule, found.severity, found.action) == ("host_link_down", "drain", "inspect")
    assert found.text.startswith("host.nic.a.carrier_lost: ") and "look at cable" in found.text
    assert judge.active == [found]
    for poll in range(3, 6):
        assert judge.judge_signals({"host.nic.a.carrier_lost": 0}, poll) == []
    assert judge.active == []


def test_a_rule_may_wait_until_the_machine_is_up_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = {"host_x": RULES["host_memory_full"].model_copy(update={"after_boot_s": 300.0, "polls": 1, "for_s": 0.0})}
    for up_s, count in ((299.0, 0), (300.0, 1)):
        monkeypatch.setattr("scaletrain.hardware.host_judging.uptime_s", lambda up_s=up_s: up_s)
        assert len(HostJudge(rules).judge_signals({"host.memory.used_share": 1.0}, 0)) == count


def test_a_kill_of_the_own_group_is_told_once_and_not_as_one_of_others() -> None:
    judge = HostJudge(RULES)
    judge.judge_signals({"host.oom_kills": 3, "host.group_oom_kills": 0}, 0)
    found = judge.judge_signals({"host.oom_kills": 4, "host.group_oom_kills": 1}, 30)
    assert [one.rule for one in found] == ["host_oom_kill"]


def test_a_host_without_a_fault_has_no_findings(tmp_path: Path) -> None:
    reader, judge = HostReader({"tmp": tmp_path}), HostJudge(RULES)
    found = [one for poll in range(4) for one in judge.judge(reader.read(), poll * POLL_S)]
    # Whatever this machine lacks, it was so when the first reading was made.
    assert [one.text for one in found if one.severity in ("drain", "abort")] == []


def test_a_cable_that_is_pulled_drains_the_node(tmp_path: Path) -> None:
    device = {"device/vendor": "0x15b3\n"}
    reader = HostReader(roots=plant(tmp_path, interface("eth0", **device) | {"proc/self/net/dev": net_dev("eth0")}))
    judge = HostJudge(RULES)
    judge.judge(reader.read(), 0)
    plant(tmp_path, interface("eth0", carrier="0\n", **device))
    found = [one for poll in range(1, 4) for one in judge.judge(reader.read(), poll * POLL_S)]
    assert [(one.rule, one.severity) for one in found] == [("host_link_down", "drain")]


def test_a_user_changes_rules_of_both_kinds_in_one_file(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text("host_link_down: {polls: 9}\nhost_cpu_hot: off\nhw_slowdown: {polls: 7}\n")
    rules = load_host_rules(file)
    assert rules["host_link_down"].polls == 9 and "host_cpu_hot" not in rules and "hw_slowdown" not in rules
    assert load_rules(file)["hw_slowdown"].polls == 7
    file.write_text("host_link_down: {signal: host.nic.*.carrier_lots}\n")
    with pytest.raises(
        ConfigError, match=r"carrier_lots: there is no such signal; did you mean: host.nic.\*.carrier_l"
    ):
        load_host_rules(file)


def test_mistakes_in_rules_of_both_kinds_are_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text("host_cpu_hot: {polls: 0}\nhw_slowdown: {polls: 0}\n")
    with pytest.raises(ConfigError) as refused:
        load_both_rules(file)
    assert "hw_slowdown.polls = 0" in str(refused.value) and "host_cpu_hot.polls = 0" in str(refused.value)
    assert load_both_rules() == (load_rules(), RULES)


def test_the_page_has_the_rules() -> None:
    page = (ROOT / "docs/host_health.md").read_text()
    rows = [
        f"| `{name}` | {rule.condition()} | {rule.severity} | {rule.action} | {rule.title}; {rule.source} |"
        for name, rule in RULES.items()
    ]
    assert [row for row in rows if row not in page] == []

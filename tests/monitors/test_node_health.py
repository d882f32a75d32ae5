"""What a node and a run tell of their health, from readings that were made up, with the rules that ship."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from scaletrain.hardware.host_health import HostReader, Roots
from scaletrain.hardware.host_judging import HostJudge
from scaletrain.hardware.judging import Judge
from scaletrain.hardware.readings import GpuReading, Reading, XidEvent
from scaletrain.hardware.rules import Severity, load_host_rules, load_rules
from scaletrain.hardware.visible import local_index
from scaletrain.monitors import names
from scaletrain.monitors.node_health import NodeHealth, NodeSampler, Told, ending_of
from scaletrain.monitors.run_health import News, metrics_of, read_nodes, write_node, write_report
from tests.hardware.kernel_trees import interface, net_dev, plant

RULES, HOST_RULES = load_rules(), load_host_rules()
HERE = Roots()


class Answers:
    """A driver that gives one reading after the other, and then the last one again."""

    def __init__(self, readings: Sequence[Reading]) -> None:
        self._left = list(readings)

    def read(self, timeout_s: float) -> Reading:
        return self._left.pop(0) if len(self._left) > 1 else self._left[0]

    def close(self) -> None:
        self._left = [Reading("absent")]


def gpu(index: int, **values: object) -> GpuReading:
    return replace(GpuReading(index, uuid=f"GPU-{index}", bus_id=f"0000:{index + 1:02x}:00.0"), **values)


def reading(*gpus: GpuReading, xid: int | None = None) -> Reading:
    events = () if xid is None else (XidEvent(xid, "0000:02:00.0"),)
    return Reading("ok", uptime_s=1e6, gpus=gpus, xids=events)


def sampler(
    readings: Sequence[Reading], first_rank: int = 0, visible: str | None = None, roots: Roots = HERE
) -> NodeSampler:
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    reader = HostReader(roots=roots)
    return NodeSampler("n1", first_rank, Judge(RULES), HostJudge(HOST_RULES), Answers(readings), reader, environ)


def told(severity: Severity = "abort", action: str = "reboot", host: str = "n1", number: int = 1) -> Told:
    return Told(number, host, 5.0, severity, action, "xid_79", "GPU 1: gone", 1, 1, "GPU-1")


def test_what_ends_a_run_stays_and_what_warns_passes() -> None:
    hot, cool = gpu(1, temperature_c=95, max_temperature_c=87), gpu(1, temperature_c=60, max_temperature_c=87)
    looked = sampler([reading(hot)] * 3 + [reading(cool, xid=48)] + [reading(cool)])
    samples = [looked.sample() for _ in range(8)]
    rules = [[one.rule for one in sample.current] for sample in samples]
    assert rules[:4] == [[], [], ["temperature"], ["xid_48", "temperature"]] and rules[-1] == ["xid_48"]
    assert [(one.number, one.rule) for one in samples[-1].told] == [(1, "temperature"), (2, "xid_48")]
    assert samples[3].signals.get("host.memory.used_share", 0) > 0


def test_slowed_clocks_weigh_more_where_the_rank_holds_the_others_up() -> None:
    looked = sampler([reading(gpu(0), gpu(1, clock_event_reasons=0x40))])
    assert [one.severity for one in [looked.sample() for _ in range(4)][-1].current] == ["warn"]
    # Another rank that is slow, and one that is slow for another reason, are none of this GPU's business.
    assert [one.severity for one in looked.sample(frozenset({0})).current] == ["warn"]
    samples = [looked.sample(frozenset({1})) for _ in range(2)]
    (drained,) = (one for one in samples[0].current if one.severity == "drain")
    assert (drained.rule, drained.rank, drained.action) == ("hw_thermal", 1, "inspect")
    assert "rank 1 holds the others up" in drained.text
    assert [one.severity for one in samples[1].told] == ["warn", "drain"]  # once
    ending = ending_of(looked.sample().current, "drain")  # also when it is no straggler any more
    assert ending is not None and ending.hosts == ("n1",)


def test_a_straggler_with_a_warning_of_another_kind_stays() -> None:
    looked = sampler([reading(gpu(0, temperature_c=95, max_temperature_c=87))])
    assert {one.severity for _ in range(5) for one in looked.sample(frozenset({0})).current} == {"warn"}


def test_a_host_is_judged_beside_its_gpus_each_device_by_itself(tmp_path: Path) -> None:
    def tree(carrier: str) -> Roots:
        files = [interface(name, carrier, **{"device/vendor": "0x15b3\n"}) for name in ("ib0", "ib1")]
        return plant(tmp_path, files[0] | files[1] | {"proc/self/net/dev": net_dev("ib0", "ib1")})

    looked = sampler([reading(gpu(0))], roots=tree("1\n"))
    assert looked.sample().current == []
    tree("0\n")
    *_, last = [looked.sample() for _ in range(3)]
    assert [(one.rule, one.action, one.rank) for one in last.current] == [("host_link_down", "inspect", None)] * 2
    ending = ending_of(last.current, "drain")
    assert ending is not None and ending.hosts == ("n1",) and ending_of(last.current, "abort") is None
    assert "host.nic.ib0.carrier_lost" in ending.reason and "host.nic.ib1.carrier_lost" in ending.reason
    tree("1\n")
    assert [looked.sample() for _ in range(3)][-1].current == last.current, "what ends a run stays"


def test_a_gpu_is_that_of_the_rank_which_cuda_gives_it_to() -> None:
    node = sampler([reading(gpu(0), gpu(1), gpu(3), xid=79)], first_rank=8, visible="3,1").sample()
    assert {rank: values["uuid"] for rank, values in node.gpus.items()} == {8: "GPU-3", 9: "GPU-1"}
    assert [(one.rank, one.gpu_index) for one in node.current] == [(9, 1)]
    assert local_index(2, "GPU-2", {"CUDA_VISIBLE_DEVICES": "0,1"}) is None
    assert local_index(2, "GPU-2", {"CUDA_VISIBLE_DEVICES": "GPU-7,GPU-2"}) == 1
    assert local_index(2, None, {}) == 2 and local_index(None, None, {}) is None


def test_a_node_is_to_blame_but_where_the_program_has_to_start_again() -> None:
    assert ending_of([told("warn")], "abort") is None and ending_of([told("drain")], "abort") is None
    ending = ending_of([told(), told("abort", "restart_app", "n2"), told(host="n3")], "abort")
    assert ending is not None and ending.verdict == "sick_node" and ending.hosts == ("n1", "n3")
    assert "n2: GPU 1: gone" in ending.reason


def node(rank: int, time_s: float = 100.0, gpus: int = 2, findings: Sequence[Told] = ()) -> NodeHealth:
    values = {rank + place: {"temp_c": 40.0 + rank + place, "uuid": "x"} for place in range(gpus)}
    signals = {"host.memory.used_share": 0.1 * (rank + 1), "host.oom_kills": 2.0}
    return NodeHealth(f"n{rank}", rank, time_s, "ok", values, signals, tuple(findings), tuple(findings))


def test_nodes_find_each_other_in_the_run_directory(tmp_path: Path) -> None:
    nodes = [node(0, findings=[told()]), node(2)]
    for one in nodes:
        write_node(tmp_path, 3, one)
    (tmp_path / "health" / "3" / "4.json").write_text('{"host": "n4", "rank"')
    (tmp_path / "health" / "3" / "5.json").write_text('{"host": "n5"}')
    assert read_nodes(tmp_path, 3) == nodes and read_nodes(tmp_path, 4) == []


def test_metrics_are_over_all_that_was_told_lately() -> None:
    found = metrics_of([node(0), node(2), node(4, time_s=9.0)], since_s=10.0)
    assert found["gpu/max_temp_c"] == found["gpu/3/temp_c"] == 43 and found["gpu/0/temp_c"] == 40
    assert found["host/oom_kills"] == 4 and abs(found["host/max_memory_used_share"] - 0.3) < 1e-9
    assert "gpu/mean_power_w" not in found and "gpu/4/temp_c" not in found
    assert set(metrics_of([node(0, gpus=17)], 0.0)) & {"gpu/max_temp_c", "gpu/0/temp_c"} == {"gpu/max_temp_c"}


def test_the_page_lists_every_metric() -> None:
    page = (Path(__file__).parents[2] / "docs" / "gpu_health.md").read_text()
    own = [value for name, value in vars(names).items() if name.startswith(("GPU_", "HOST_"))]
    assert len(own) == 11 and all(f"`{value}`" in page for value in own)


def test_the_report_begins_with_the_gravest(tmp_path: Path) -> None:
    nodes = [node(0, findings=[told("warn", "none", "n0")]), node(2, findings=[told(host="n2")])]
    write_report(tmp_path, 3, nodes)
    content = json.loads((tmp_path / "health.json").read_text())
    assert [(one["severity"], one["host"]) for one in content["findings"]] == [("abort", "n2"), ("warn", "n0")]
    assert content["findings"][0]["since"] == "1970-01-01T00:00:05+00:00"
    assert content["nodes"]["n2"]["gpus"]["rank 3"]["temp_c"] == 43 and content["attempt"] == 3


def test_news_is_news_once() -> None:
    news, first, second = News(), told(number=1), told(number=2)
    assert news.take([node(0, findings=[first]), node(2, findings=[first])]) == [first, first]
    assert news.take([node(0, findings=[first, second]), node(2, findings=[first])]) == [second]

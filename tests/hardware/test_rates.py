"""What is too slow: against the maker's figures, and against the GPUs beside it."""

from scaletrain.hardware.findings import Finding
from scaletrain.hardware.rates import judge_all_reduce, judge_rates, numbered_by_driver
from scaletrain.hardware.readings import GpuReading

H100 = "NVIDIA H100 80GB HBM3"  # 3350 GB/s by its datasheet


def gpus(count: int, name: str = H100) -> list[GpuReading]:
    return [GpuReading(index, name=name, max_pcie_generation=5, max_pcie_width=16) for index in range(count)]


def measured(*rates: float, figure: str = "memory_gb_per_s", check: str = "bandwidth") -> list[Finding]:
    return [Finding(f"gpu {index} {check}", "ok", "measured", {figure: rate}) for index, rate in enumerate(rates)]


def statuses(findings: list[Finding]) -> list[str]:
    return [one.status for one in findings]


def test_memory_is_compared_with_the_datasheet() -> None:
    judged = judge_rates(measured(0.71 * 3350, 0.69 * 3350), gpus(2), {})
    assert statuses(judged) == ["ok", "warn"]
    assert "less than 70% of the 3350 of the datasheet" in judged[1].detail


def test_a_gpu_that_no_datasheet_is_known_of_is_only_told() -> None:
    assert statuses(judge_rates(measured(1.0, 1.0), gpus(2, "NVIDIA Fake 80GB"), {})) == ["ok", "ok"]


def test_the_way_from_the_host_is_compared_with_its_lanes() -> None:
    """16 lanes of the fifth generation carry 63 GB/s, of which 60 % are 37.8."""
    judged = judge_rates(measured(38.0, 37.5, figure="to_device_gb_per_s"), gpus(2, "NVIDIA Fake 80GB"), {})
    assert statuses(judged) == ["ok", "warn"]
    assert "of the 63.02 of its PCIe lanes" in judged[1].detail


def test_a_gpu_is_compared_with_those_beside_it() -> None:
    rates = measured(100, 81, 100, 100, 79, figure="tflops", check="checksum")
    assert statuses(judge_rates(rates, gpus(5), {})) == ["ok", "ok", "ok", "ok", "warn"]


def test_two_cannot_tell_whose_rate_is_the_usual_one() -> None:
    rates = measured(100, 50, figure="tflops", check="checksum")
    assert statuses(judge_rates(rates, gpus(2), {})) == ["ok", "ok"]


def test_gpus_of_another_kind_say_nothing() -> None:
    rates = measured(100, 100, 100, 50, figure="tflops", check="checksum")
    mixed = [*gpus(3), gpus(4, "NVIDIA A100-SXM4-40GB")[3]]
    assert statuses(judge_rates(rates, mixed, {})) == ["ok"] * 4


def test_torch_numbers_gpus_as_the_environment_says() -> None:
    beside = [*gpus(3, "NVIDIA Fake 80GB"), gpus(4)[3]]
    assert statuses(judge_rates(measured(1000.0), beside, {})) == ["ok"]
    assert statuses(judge_rates(measured(1000.0), beside, {"CUDA_VISIBLE_DEVICES": "3,0"})) == ["warn"]


def test_gpus_are_named_as_the_driver_numbers_them() -> None:
    """Two of six, in an order of their own, one of which hung; the all-reduce names none."""
    told = [
        Finding("gpu 0 bandwidth", "ok", "fast"),
        Finding("arithmetic", "fail", "no answer within 9 s (multiplies on gpu 1); reboot the node"),
        Finding("all-reduce", "ok", "over 2 GPUs"),
    ]
    named = numbered_by_driver(told, gpus(6), {"CUDA_VISIBLE_DEVICES": "5,4"})
    assert [one.check for one in named] == ["gpu 5 bandwidth", "arithmetic", "all-reduce"]
    assert "multiplies on gpu 4)" in named[1].detail
    assert numbered_by_driver(told, gpus(6), {}) == numbered_by_driver(told, [], {}) == told


def test_what_failed_stays_failed() -> None:
    failed = [Finding("gpu 0 checksum", "fail", "other bits", {"memory_gb_per_s": 1.0})]
    assert judge_rates(failed, gpus(1), {}) == failed


def test_an_all_reduce_is_compared_with_what_the_user_expects() -> None:
    found = [Finding("all-reduce", "ok", "told", {"all_reduce_gb_per_s": 300.0}), Finding("host", "ok", "")]
    assert statuses(judge_all_reduce(found, 0.0)) == ["ok", "ok"]
    assert statuses(judge_all_reduce(found, 300.0)) == ["ok", "ok"]
    assert statuses(judge_all_reduce(found, 301.0)) == ["fail", "ok"]

"""Names and units as Prometheus wants them."""

import re

import pytest

from scaletrain.monitors import names, prometheus_names
from scaletrain.monitors.prometheus_names import series_of


@pytest.mark.parametrize(
    ("metric", "name", "labels", "factor", "kind"),
    [
        ("train/loss", "scaletrain_train_loss", {}, 1, "gauge"),
        ("train/loss/web/en", "scaletrain_train_loss_by_source", {"source": "web/en"}, 1, "gauge"),
        ("perf/tokens_per_s", "scaletrain_perf_tokens_per_second", {}, 1, "gauge"),
        ("perf/mfu", "scaletrain_perf_mfu_ratio", {}, 1, "gauge"),
        ("perf/data_wait_s", "scaletrain_perf_data_wait_seconds", {}, 1, "gauge"),
        ("mem/reserved_gib", "scaletrain_mem_reserved_bytes", {}, 2**30, "gauge"),
        ("optim/steps", "scaletrain_optim_steps", {}, 1, "gauge"),
        ("eval/rougeL", "scaletrain_eval_rougeL", {}, 1, "gauge"),
        ("gpu/temp_c", "scaletrain_gpu_temp_celsius", {}, 1, "gauge"),
        ("gpu/3/temp_c", "scaletrain_gpu_temp_celsius", {"rank": "3"}, 1, "gauge"),
        ("gpu/clock_mhz", "scaletrain_gpu_clock_hertz", {}, 1e6, "gauge"),
        ("gpu/utilization_percent", "scaletrain_gpu_utilization_ratio", {}, 0.01, "gauge"),
        ("host.oom_kills", "scaletrain_host_oom_kills", {}, 1, "counter"),
        ("host/cpu/throttled_s", "scaletrain_host_cpu_throttled_seconds", {}, 1, "counter"),
        ("host.memory.stalled_full", "scaletrain_host_memory_stalled_full", {}, 1, "gauge"),
        ("host.memory.stalled_full_s", "scaletrain_host_memory_stalled_full_seconds", {}, 1, "counter"),
        ("host.nic.eth0.100.rx_errors", "scaletrain_host_nic_rx_errors", {"nic": "eth0.100"}, 1, "counter"),
        ("host/nic/eth0/carrier_lost", "scaletrain_host_nic_carrier_lost", {"nic": "eth0"}, 1, "gauge"),
        ("host.nic.e0.speed_mbit_per_s", "scaletrain_host_nic_speed_bytes_per_second", {"nic": "e0"}, 125e3, "gauge"),
        ("host.ib.mlx5_0.1.link_downed", "scaletrain_host_ib_link_downed", {"port": "mlx5_0.1"}, 1, "counter"),
        ("host.folder.run_dir.free_gib", "scaletrain_host_folder_free_bytes", {"folder": "run_dir"}, 2**30, "gauge"),
        ("host.edac.mc0.corrected", "scaletrain_host_edac_corrected", {"controller": "mc0"}, 1, "counter"),
        ("my-plugin/an odd:name", "scaletrain_my_plugin_an_odd_name", {}, 1, "gauge"),
    ],
)
def test_a_name(metric: str, name: str, labels: dict[str, str], factor: float, kind: str) -> None:
    series = series_of(metric)
    assert (series.name, dict(series.labels), series.factor, series.kind) == (name, labels, factor, kind)
    assert re.fullmatch("[a-zA-Z_][a-zA-Z0-9_]*", series.name)


def test_every_metric_of_the_project_has_a_name_of_its_own() -> None:
    own = [value for key, value in vars(names).items() if key.isupper() and not value.startswith("text/")]
    assert len({series_of(name).name for name in own}) == len(own) > 30
    described = {name for name in own if name in prometheus_names._MEANINGS}
    assert {name for name in own if re.match("train|optim|perf|mem", name)} <= described

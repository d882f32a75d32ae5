"""A real run, asked over HTTP and through a file as Prometheus does."""

import json
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from scaletrain.monitors.jsonl_writer import read_metrics
from scaletrain.monitors.status_records import observe
from scaletrain.monitors.status_warnings import status_of
from tests.fake_nvml import FakeDriver
from tests.integration.runs import NewRun
from tests.processes import eventually

Samples = dict[tuple[str, str], float]


def parse(text: str) -> Samples:
    """Values by name of the sample and what else tells it apart."""
    return {
        (sample.name, sample.labels.get("event") or sample.labels.get("share") or ""): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_run_under_way_is_scraped(new_run: NewRun, tmp_path: Path) -> None:
    run, textfile = new_run("served"), tmp_path / "run.prom"
    flags = ("--log.writers", "[prometheus]", "--log.prometheus_textfile", textfile, "--train.max_steps", 1_000_000)
    (process,) = run.start_ranks(1, *flags, "--checkpoint.every_steps", 4)
    run.wait_for_step(6, attempt=1)
    eventually((run.run_dir / "prometheus.json").exists, 60, "it is served")
    (content,) = json.loads((run.run_dir / "prometheus.json").read_text())
    assert f"http://{content['targets'][0]}/metrics" in run.output_of("rank-0").read_text()

    def scraped() -> Samples:
        with urllib.request.urlopen(f"http://{content['targets'][0]}/metrics", timeout=30) as answer:
            return parse(answer.read().decode())

    waited_for = {("scaletrain_eval_loss", ""), ("scaletrain_events_total", "save")}
    found = eventually(lambda: s if waited_for <= (s := scraped()).keys() else None, 60, "an evaluation and a save")
    assert textfile.exists() and "scaletrain_attempt" in textfile.read_text()
    (run.run_dir / "stop").touch()
    assert process.wait(timeout=60) == 130, run.output_of("rank-0").read_text()
    assert not textfile.exists() and not (run.run_dir / "prometheus.json").exists()

    step = int(found["scaletrain_step", ""])
    (line,) = (line for line in read_metrics(run.run_dir / "metrics.jsonl") if line["step"] == step)
    assert found["scaletrain_train_loss", ""] == line["train/loss"]
    assert found["scaletrain_perf_tokens_per_second", ""] == line["perf/tokens_per_s"]
    assert found["scaletrain_perf_mfu_ratio", ""] == line["perf/mfu"]
    assert found["scaletrain_attempt", ""] == 1 and 0 < found["scaletrain_goodput_ratio", ""] < 1
    assert found["scaletrain_events_total", "save"] >= 1 and found["scaletrain_events_total", "start"] == 1
    assert found["scaletrain_spent_seconds", "productive steps"] > 0


@pytest.mark.thorough
def test_a_gpu_bears_its_rank_and_is_told_no_more_where_the_driver_hangs(new_run: NewRun, tmp_path: Path) -> None:
    run, driver = new_run("sick"), FakeDriver(tmp_path, gpus=2)
    driver.set("1.temperature", 98)
    flags = ("--log.writers", "[prometheus]", "--train.max_steps", 1_000_000, "--eval.every_steps", 0)
    rules = tmp_path / "rules.yaml"
    rules.write_text("driver_silent: off\n")  # it would end the run
    watched = ("--monitor.health.every_s", 0.2, "--monitor.health.rules", rules)
    environment = driver.environment | {"CUDA_VISIBLE_DEVICES": "1"}
    (process,) = run.start_ranks(1, *flags, *watched, environment=environment)
    run.wait_for_step(2, attempt=1, within_s=140)
    eventually((run.run_dir / "prometheus.json").exists, 60, "it is served")
    (content,) = json.loads((run.run_dir / "prometheus.json").read_text())

    def scraped() -> str:
        with urllib.request.urlopen(f"http://{content['targets'][0]}/metrics", timeout=30) as answer:
            return str(answer.read().decode())

    hot = '\nscaletrain_gpu_temp_celsius{rank="0",run="run"} 98.0\n'
    eventually(lambda: hot in scraped(), 60, "a look at the GPU")
    eventually(lambda: 'rule="temperature"' in scraped(), 60, "what is wrong with it")

    def told() -> bool:
        return any("1 health finding, the worst on" in one.text for one in status_of(observe(run.run_dir)).warnings)

    eventually(told, 60, "the same in the status")

    driver.set("hang", "nvmlDeviceGetCount_v2")
    driver.set("1.hang", "all")
    eventually(lambda: "scaletrain_gpu_" not in scraped(), 120, "nobody knows how the GPU is")
    assert "\nscaletrain_host_max_memory_used_ratio" in scraped()
    driver.heal()
    (run.run_dir / "stop").touch()
    assert process.wait(timeout=120) == 130, run.output_of("rank-0").read_text()

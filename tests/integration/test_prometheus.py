"""A real run, asked over HTTP and through a file as Prometheus does."""

import json
import urllib.request
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from scaletrain.monitors.jsonl_writer import read_metrics
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

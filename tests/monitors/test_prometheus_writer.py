"""What Prometheus gets to read, over HTTP and from a file, parsed by its own client."""

import json
import logging
import math
import os
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from scaletrain.launch.events import append_event
from scaletrain.monitors import prometheus_writer
from scaletrain.monitors.jsonl_writer import JsonlWriter
from scaletrain.monitors.node_health import NodeHealth, Told
from scaletrain.monitors.prometheus_writer import PrometheusWriter
from scaletrain.monitors.run_health import metrics_of, write_report
from scaletrain.monitors.status import tell_status
from scaletrain.monitors.status_records import observe
from tests.processes import eventually

WITHIN_S = 60

# All values of one sample name, by labels but for the run's.
Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]


def parse(text: str, run: str = "mine") -> Samples:
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation and family.type != "unknown", family.name
        for sample in family.samples:
            assert sample.labels["run"] == run
            labels = tuple(sorted((key, value) for key, value in sample.labels.items() if key != "run"))
            assert labels not in found.setdefault(sample.name, {}), f"{sample.name} {labels} stands there twice"
            found[sample.name][labels] = sample.value
    return found


def target_of(run_dir: Path) -> str:
    """Where a run says that it is served, once it is."""
    file = run_dir / "prometheus.json"
    eventually(file.exists, WITHIN_S, f"{file} is there")
    (content,) = json.loads(file.read_text())
    assert content["labels"] == {"run": run_dir.name}
    return str(content["targets"][0])


def scrape(target: str) -> str:
    with urllib.request.urlopen(f"http://{target}/metrics", timeout=WITHIN_S) as answer:
        assert answer.headers.get_content_type() == "text/plain"
        return str(answer.read().decode())


@contextmanager
def writer(run_dir: Path, port: int | None = 0, textfile: Path | None = None) -> Iterator[PrometheusWriter]:
    run_dir.mkdir(exist_ok=True)
    made = PrometheusWriter(run_dir, 2, "127.0.0.1", port, textfile)
    try:
        yield made
    finally:
        made.close()


def test_the_last_metrics_are_served_in_base_units(tmp_path: Path) -> None:
    run_dir = tmp_path / "mine"
    with writer(run_dir) as one:
        target = target_of(run_dir)
        assert target.startswith("127.0.0.1:")
        assert parse(scrape(target))["scaletrain_attempt"] == {(): 2}
        one.write(10, {"train/loss": 2.5, "mem/reserved_gib": 2, "eval/loss": 3.0})
        one.write_text("text/samples", 10, "x")
        one.write(20, {"train/loss": math.nan, "train/loss/a": 1.0, "train/loss/b": 2.0, "host.oom_kills": 3})
        found = parse(scrape(target))
    assert found["scaletrain_step"] == {(): 20} and found["scaletrain_eval_loss"] == {(): 3}
    assert math.isnan(found["scaletrain_train_loss"][()])
    assert found["scaletrain_train_loss_by_source"] == {(("source", "a"),): 1, (("source", "b"),): 2}
    assert found["scaletrain_mem_reserved_bytes"] == {(): 2**31}
    assert found["scaletrain_host_oom_kills_total"] == {(): 3}
    ((labels, _),) = found["scaletrain_run_info"].items()
    assert dict(labels)["run_dir"] == str(run_dir)
    assert not (run_dir / "prometheus.json").exists()
    with pytest.raises(OSError):
        scrape(target)


def test_what_the_last_look_at_the_nodes_did_not_find_is_not_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "mine"
    asked = NodeHealth("n1", 0, 10.0, "ok", {0: {"temp_c": 41.0}}, {"host.oom_kills": 1.0})
    hung = NodeHealth("n1", 0, 20.0, "unasked", {}, {"host.oom_kills": 2.0})
    with writer(run_dir) as one:
        target = target_of(run_dir)
        one.write(10, {"train/loss": 2.5, **metrics_of([asked], 0.0)})
        one.write(20, {"train/loss": 2.4})  # no look since
        found = parse(scrape(target))
        assert found["scaletrain_gpu_temp_celsius"] == {(("rank", "0"),): 41}
        assert found["scaletrain_gpu_max_temp_celsius"] == {(): 41}
        one.write(30, {"train/loss": 2.3, **metrics_of([hung], 0.0)})
        found = parse(scrape(target))
        assert [name for name in found if "_gpu_" in name] == []
        assert found["scaletrain_host_oom_kills_total"] == {(): 2} and found["scaletrain_train_loss"] == {(): 2.3}
        monkeypatch.setattr(prometheus_writer, "_OLDEST_LOOK_S", -1.0)
        one.write(40, {"eval/loss": 3.0})  # nobody looks any more
        found = parse(scrape(target))
    assert "scaletrain_host_oom_kills_total" not in found and found["scaletrain_train_loss"] == {(): 2.3}


def test_findings_that_hold_are_those_of_this_start(tmp_path: Path) -> None:
    run_dir = tmp_path / "mine"
    hot = [Told(number, "n1", 5.0, "warn", "none", "temperature", "hot", gpu_index=number) for number in (1, 2)]
    pending = Told(1, "n2", 5.0, "drain", "reset_gpu", "row_remap_pending", "a row remap waits")
    expected = {
        (("host", "n1"), ("rule", "temperature"), ("severity", "warn")): 2,
        (("host", "n2"), ("rule", "row_remap_pending"), ("severity", "drain")): 1,
    }
    sick, repaired = NodeHealth("n2", 8, 10.0, current=[pending]), NodeHealth("n2", 8, 20.0)
    with writer(run_dir) as one:  # in its second start
        target = target_of(run_dir)

        def served() -> dict[tuple[tuple[str, str], ...], float]:
            return parse(scrape(target)).get("scaletrain_health_findings", {})

        assert served() == {}
        write_report(run_dir, 1, [sick])
        assert served() == {}
        write_report(run_dir, 2, [NodeHealth("n1", 0, 10.0, current=hot), sick])
        assert served() == expected
        write_report(run_dir, 2, [NodeHealth("n1", 0, 20.0), repaired])
        assert served() == {}
        (run_dir / "health.json").write_text('{"attempt": 2, "findings": [{"host"')
        one.write(10, {"train/loss": 2.5})
        assert served() == {} and parse(scrape(target))["scaletrain_train_loss"] == {(): 2.5}


def test_events_and_goodput_are_those_of_the_whole_run(tmp_path: Path) -> None:
    run_dir = tmp_path / "mine"
    run_dir.mkdir()
    for attempt in (1, 2):
        append_event(run_dir / "events.jsonl", "start", attempt=attempt, step=5 * attempt - 5)
        records = JsonlWriter(run_dir / "metrics.jsonl", attempt)
        for step in range(5 * attempt - 4, 5 * attempt + 1):
            records.write(step, {"train/loss": 1.0, "perf/step_time_s": 1e-5, "perf/data_wait_s": 1e-6})
        records.close()
        append_event(run_dir / "events.jsonl", "save", attempt=attempt, step=5 * attempt)
    with writer(run_dir):
        target = target_of(run_dir)
        found = parse(scrape(target))
        assert found["scaletrain_events_total"] == {(("event", "save"),): 2, (("event", "start"),): 2}
        assert sum(found["scaletrain_spent_seconds"].values()) > 0
        goodput = tell_status(observe(run_dir)).goodput
        assert goodput and found["scaletrain_goodput_ratio"] == {(): pytest.approx(goodput, rel=1e-6)}
        append_event(run_dir / "events.jsonl", "save", attempt=2, step=9)
        with (run_dir / "events.jsonl").open("a") as file:
            file.write('{"event": "sav')  # is being written
        assert parse(scrape(target))["scaletrain_events_total"][(("event", "save"),)] == 3


def test_a_port_that_is_taken_is_told_and_served_once_it_is_free(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prometheus_writer, "_BIND_EVERY_S", 0.1)
    caplog.set_level(logging.INFO)
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with writer(tmp_path / "mine", port) as one:
            eventually(lambda: "not served" in caplog.text, WITHIN_S, "it is told")
            one.write(1, {"train/loss": 1.0})  # the training goes on
            holder.close()
            assert target_of(tmp_path / "mine") == f"127.0.0.1:{port}"
            assert parse(scrape(f"127.0.0.1:{port}"))["scaletrain_step"] == {(): 1}
    told = [record.message for record in caplog.records if "not served" in record.message]
    assert len(told) == 1 and str(port) in told[0] and "Address already in use" in told[0]


def test_a_worker_that_was_forked_meanwhile_does_not_keep_the_port(tmp_path: Path) -> None:
    run_dir = tmp_path / "mine"
    with writer(run_dir):
        port = int(target_of(run_dir).rpartition(":")[2])
        hold, release = os.pipe()
        worker = os.fork()
        if worker == 0:
            os.close(release)
            os.read(hold, 1)
            os._exit(0)
    try:
        with writer(run_dir, port):
            assert target_of(run_dir) == f"127.0.0.1:{port}"
    finally:
        os.close(release)
        os.waitpid(worker, 0)


def test_a_file_for_node_exporter_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus_writer, "_TEXTFILE_EVERY_S", 0.02)
    textfile = tmp_path / "mine.prom"
    with writer(tmp_path / "mine", None, textfile) as one:
        eventually(textfile.exists, WITHIN_S, "the file is there")
        for step in range(1, 200):
            one.write(step, {"train/loss": float(step)})
            found = parse(textfile.read_text())
            assert found.get("scaletrain_train_loss") == found.get("scaletrain_step")
        eventually(lambda: parse(textfile.read_text())["scaletrain_step"] == {(): 199}, WITHIN_S, "the last step")
        assert not (tmp_path / "mine" / "prometheus.json").exists()
    assert list(tmp_path.glob("*.prom*")) == []


def test_a_folder_that_is_missing_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prometheus_writer, "_TEXTFILE_EVERY_S", 0.01)
    folder = tmp_path / "later"
    with writer(tmp_path / "mine", None, folder / "mine.prom"):
        eventually(lambda: caplog.records, WITHIN_S, "it is told")
        folder.mkdir()
        eventually((folder / "mine.prom").exists, WITHIN_S, "it is tried again")
    (record,) = caplog.records
    assert f"No such file or directory; make the folder {folder}, or" in record.message
    assert "writable" not in record.message


def test_a_folder_that_cannot_be_written_is_told_with_what_to_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "file"
    file.touch()
    with writer(tmp_path / "mine", None, file / "mine.prom"):
        eventually(lambda: caplog.records, WITHIN_S, "it is told")
    assert f"Not a directory; make the folder {file}, or" in caplog.records[0].message
    (tmp_path / "taken.prom").mkdir()
    with writer(tmp_path / "mine", None, tmp_path / "taken.prom"):
        eventually(lambda: len(caplog.records) > 1, WITHIN_S, "it is told")
    assert "Is a directory; name another file" in caplog.records[1].message

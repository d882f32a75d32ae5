"""Prometheus: the last metrics of a run, at an address that is scraped, and in a file for node_exporter."""

import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

from scaletrain import __version__
from scaletrain.files import replace_text
from scaletrain.monitors.prometheus_names import Series, series_of
from scaletrain.monitors.run_progress import RunProgress

logger = logging.getLogger(__name__)

_TEXTFILE_EVERY_S = 15.0
_BIND_EVERY_S = 10.0
_CLOSE_S = 5.0
_EVERYWHERE = ("0.0.0.0", "::")
_OF_NODES = ("gpu/", "host/")
_OLDEST_LOOK_S = 1800.0
"""As long as three of the longest pauses between two looks at the nodes (``monitor.health.every_s``)."""


class LastMetrics:
    """The last value of each metric, as a collector of ``prometheus_client``.

    A write keeps numbers and does nothing else; names and text are made by the thread of whoever asks. What is told of
    GPUs and hosts comes from one look at all of them: what the last look does not tell is not known any more.

    Args:
        run_dir: The run's folder; its name is the label ``run`` of all metrics.
        attempt: Number of this start.
    """

    def __init__(self, run_dir: Path, attempt: int) -> None:
        self._info = {"run_dir": str(run_dir), "version": __version__, "host": socket.gethostname()}
        self._run = run_dir.name
        self._attempt = attempt
        self._progress = RunProgress(run_dir, attempt)
        self._values: dict[str, float] = {}
        self._of_nodes: dict[str, float] = {}
        self._looked_s = -float("inf")
        self._step = 0
        self._written_s: float | None = None
        self._lock = threading.Lock()

    def update(self, step: int, metrics: Mapping[str, int | float]) -> None:
        """Keeps metrics that hold after ``step`` global batches."""
        of_nodes = {name: value for name, value in metrics.items() if name.startswith(_OF_NODES)}
        now_s = time.monotonic()
        with self._lock:
            # Most lines come between two looks, and tell nothing of the nodes.
            if of_nodes or now_s - self._looked_s > _OLDEST_LOOK_S:
                self._of_nodes, self._looked_s = of_nodes, now_s
            self._values.update((name, value) for name, value in metrics.items() if name not in of_nodes)
            self._step = step
            self._written_s = time.time()

    def collect(self) -> Iterator[Metric]:
        """What there is to be told now."""
        with self._lock:
            values, step, written_s = self._values | self._of_nodes, self._step, self._written_s
        info = InfoMetricFamily("scaletrain_run", "The run that is told of.", labels=["run"])
        info.add_metric([self._run], self._info)
        yield info
        yield self._one("scaletrain_attempt", "How many times the run was started.", self._attempt)
        if written_s is not None:
            yield self._one("scaletrain_step", "Global batches consumed, when metrics were written last.", step)
            yield self._one(
                "scaletrain_last_write_timestamp_seconds", "When metrics were written last, as Unix time.", written_s
            )
        yield from self._collect_progress()
        yield from self._families(values)

    def _families(self, values: Mapping[str, float]) -> Iterator[Metric]:
        found: dict[str, dict[tuple[tuple[str, str], ...], tuple[Series, float]]] = {}
        for metric, value in values.items():
            series = series_of(metric)
            found.setdefault(series.name, {})[series.labels] = (series, float(value) * series.factor)
        for name, several in sorted(found.items()):
            first = next(iter(several.values()))[0]
            labels = ["run", *dict.fromkeys(label for one in several for label, _ in one)]
            kind = CounterMetricFamily if first.kind == "counter" else GaugeMetricFamily
            family = kind(name, first.meaning, labels=labels)
            for one, (_, value) in sorted(several.items()):
                own = dict(one)
                family.add_metric([self._run, *(own.get(label, "") for label in labels[1:])], value)
            yield family

    def _collect_progress(self) -> Iterator[Metric]:
        progress = self._progress.read()
        events = CounterMetricFamily(
            "scaletrain_events", "Events of the run, in all its starts, by kind.", labels=["run", "event"]
        )
        for kind, count in sorted(progress.events.items()):
            events.add_metric([self._run, kind], count)
        yield events
        findings = GaugeMetricFamily(
            "scaletrain_health_findings",
            "What is wrong with nodes now: how many findings of a rule hold.",
            labels=["run", "host", "severity", "rule"],
        )
        for labels, count in sorted(progress.findings.items()):
            findings.add_metric([self._run, *labels], count)
        yield findings
        if progress.goodput is None:
            return
        meaning = "Share of the wall time that went into training which the run still has, over all its starts."
        yield self._one("scaletrain_goodput_ratio", meaning, progress.goodput)
        spent = GaugeMetricFamily(
            "scaletrain_spent_seconds", "Wall time by what it went into, over all starts.", labels=["run", "share"]
        )
        for share, seconds in progress.spent_s.items():
            spent.add_metric([self._run, share], seconds)
        yield spent

    def _one(self, name: str, meaning: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, meaning, labels=["run"])
        family.add_metric([self._run], value)
        return family


class PrometheusWriter:
    """Serves the last metrics over HTTP, writes them to a file, or both; from threads of its own.

    A port that cannot be had ends no training. It is said, and tried again, for as long as the run goes on: the port of
    an attempt that was killed comes free a moment later. Where the metrics are served stands in ``prometheus.json`` in
    the run directory, in the form of Prometheus' service discovery by files.

    Args:
        run_dir: The run's folder.
        attempt: Number of this start.
        host: Address to listen at.
        port: Port; 0 for a free one, None to listen at none.
        textfile: File for node_exporter's textfile collector; None for none.
    """

    def __init__(self, run_dir: Path, attempt: int, host: str, port: int | None, textfile: Path | None) -> None:
        self._metrics = LastMetrics(run_dir, attempt)
        self._registry = CollectorRegistry()
        self._registry.register(self._metrics)
        self._run = run_dir.name
        self._target_file = run_dir / "prometheus.json"
        self._host, self._port, self._textfile = host, port, textfile
        self._server: WSGIServer | None = None
        self._told: set[str] = set()
        self._closing = threading.Event()
        # Looking up an address, and a file, may take long.
        self._thread = threading.Thread(target=self._serve, name="prometheus", daemon=True)
        self._thread.start()

    def write(self, step: int, metrics: Mapping[str, int | float]) -> None:
        """Keeps the metrics until they are asked for."""
        self._metrics.update(step, metrics)

    def write_text(self, name: str, step: int, text: str) -> None:
        """Prometheus has no texts."""

    def close(self) -> None:
        """Stops serving, and removes what would tell of a run that is over; a second call does nothing."""
        self._closing.set()
        self._thread.join(_CLOSE_S)

    def _serve(self) -> None:
        try:
            while True:
                if self._port is not None and self._server is None:
                    self._listen(self._port)
                if self._textfile is not None:
                    self._write_textfile(self._textfile)
                waits_for_port = self._port is not None and self._server is None
                if self._closing.wait(_BIND_EVERY_S if waits_for_port else _TEXTFILE_EVERY_S):
                    break
        finally:
            self._stop()

    def _listen(self, port: int) -> None:
        try:
            server, _ = start_http_server(port, self._host, self._registry)
        except (OSError, OverflowError) as error:
            self._tell_once(
                f"metrics are not served for Prometheus: log.prometheus_host {self._host}, log.prometheus_port {port}: "
                f"{error.strerror if isinstance(error, OSError) else error}; choose another one, or 0 for a free one. "
                f"The training goes on, and the port is tried again every {_BIND_EVERY_S:g} s"
            )
            return
        self._server = server
        host = socket.gethostname() if self._host in _EVERYWHERE else self._host
        target = f"[{host}]:{server.server_port}" if ":" in host else f"{host}:{server.server_port}"
        logger.info("metrics for Prometheus: http://%s/metrics", target)
        content: list[dict[str, Any]] = [{"targets": [target], "labels": {"run": self._run}}]
        try:
            replace_text(self._target_file, json.dumps(content) + "\n")
        except OSError as error:
            self._tell_once(f"{self._target_file} cannot be written: {error.strerror}")

    def _write_textfile(self, path: Path) -> None:
        try:
            write_to_textfile(str(path), self._registry)
        except OSError as error:
            self._tell_once(
                f"metrics are not written for node_exporter: log.prometheus_textfile {path}: {error.strerror}; "
                f"{_remedy(error, path.parent)}. The training goes on, and the file is tried again"
            )

    def _stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            with contextlib.suppress(OSError):
                # Workers that were forked meanwhile hold the socket as well, and would hold the port with it.
                self._server.socket.shutdown(socket.SHUT_RDWR)
            self._server.server_close()
            self._target_file.unlink(missing_ok=True)
        if self._textfile is not None:
            with contextlib.suppress(OSError):
                self._textfile.unlink(missing_ok=True)

    def _tell_once(self, problem: str) -> None:
        if problem not in self._told:
            self._told.add(problem)
            logger.error("%s", problem)


def _remedy(error: OSError, folder: Path) -> str:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return f"make the folder {folder}, or name one that node_exporter reads"
    if isinstance(error, PermissionError):
        return "make the folder writable for this user"
    return "name another file"

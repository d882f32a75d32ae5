"""What a metric writer is, and how writers of installed packages are found."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

from scaletrain.config.monitor_schema import LogConfig
from scaletrain.errors import ConfigError
from scaletrain.monitors.jsonl_writer import JsonlWriter
from scaletrain.monitors.rank_heat_map import Pixels
from scaletrain.monitors.tensorboard_writer import TensorBoardWriter

ENTRY_POINT_GROUP = "scaletrain.metric_writers"

Number = int | float


class MetricWriter(Protocol):
    """Takes the metrics of a run; only rank 0 has writers."""

    def write(self, step: int, metrics: Mapping[str, Number]) -> None:
        """Writes metrics that hold after ``step`` global batches."""

    def write_text(self, name: str, step: int, text: str) -> None:
        """Writes a text, such as the configuration or a generated sample."""

    def close(self) -> None:
        """Makes sure that all is written."""


@runtime_checkable
class ImageWriter(Protocol):
    """A metric writer that shows pictures too."""

    def write_image(self, name: str, step: int, pixels: Pixels) -> None:
        """Writes a picture: red, green and blue, of shape (height, width, 3)."""


@dataclass(frozen=True)
class WriterTarget:
    """Where a writer writes to.

    Attributes:
        run_dir: The run's folder.
        attempt: How many times the run was started, this start included.
        first_step: The first step that this attempt does; later ones of earlier attempts are done again.
        log: What the user wants of writers.
    """

    run_dir: Path
    attempt: int
    first_step: int
    log: LogConfig = field(default_factory=LogConfig)


WriterFactory = Callable[[WriterTarget], MetricWriter]


def open_jsonl(target: WriterTarget) -> MetricWriter:
    """Opens ``metrics.jsonl`` in the run's folder."""
    return JsonlWriter(target.run_dir / "metrics.jsonl", target.attempt)


def open_tensorboard(target: WriterTarget) -> MetricWriter:
    """Opens the folder ``tb`` in the run's folder."""
    return TensorBoardWriter(target.run_dir / "tb", target.first_step)


def open_prometheus(target: WriterTarget) -> MetricWriter:
    """Serves the last metrics to Prometheus, as ``log.prometheus_*`` say.

    Raises:
        ConfigError: Its client library is not installed.
    """
    try:
        from scaletrain.monitors.prometheus_writer import PrometheusWriter
    except ImportError as error:
        raise ConfigError(
            f"log.writers: prometheus needs a package that is not installed ({error.name}); "
            "type: pip install 'scaletrain[prometheus]'"
        ) from None
    log = target.log
    return PrometheusWriter(
        target.run_dir, target.attempt, log.prometheus_host, log.prometheus_port, log.prometheus_textfile
    )


def open_writers(names: Sequence[str], target: WriterTarget) -> list[MetricWriter]:
    """Opens metric writers by name.

    Args:
        names: "jsonl", "tensorboard", "prometheus", or a name that an installed package declares in the entry point
            group ``scaletrain.metric_writers``; what the entry point leads to takes a WriterTarget and returns a
            writer.
        target: Where to write.

    Returns:
        The writers, in the order of their names.

    Raises:
        ConfigError: No writer has one of the names, or one lacks a package.
    """
    # All names are looked up before any writer opens a file.
    return [factory(target) for factory in [_find(name) for name in names]]


def _find(name: str) -> WriterFactory:
    built_in: dict[str, WriterFactory] = {
        "jsonl": open_jsonl,
        "prometheus": open_prometheus,
        "tensorboard": open_tensorboard,
    }
    if name in built_in:
        return built_in[name]
    installed = entry_points(group=ENTRY_POINT_GROUP)
    if name not in installed.names:
        known = ", ".join(sorted({*built_in, *installed.names}))
        raise ConfigError(
            f"metric writer {name!r}: no such writer; use one of {known}, or install the package that declares it "
            f"in the entry point group {ENTRY_POINT_GROUP}"
        )
    return cast(WriterFactory, installed[name].load())

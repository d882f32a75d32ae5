"""Sections of the configuration on what is watched and written down while a run trains."""

from pathlib import Path

from pydantic import Field

from scaletrain.config.section import Section


class LogConfig(Section):
    """What is printed and drawn; metrics.jsonl gets every step whatever stands here."""

    every_steps: int = Field(10, ge=1, description="interval of progress lines and TensorBoard points")
    writers: tuple[str, ...] = Field(
        ("tensorboard",), description="metric writers beside metrics.jsonl, which is always written"
    )
    prometheus_host: str = Field(
        "127.0.0.1", min_length=1, description="address of the writer prometheus; 0.0.0.0 lets other machines ask"
    )
    prometheus_port: int | None = Field(
        0, ge=0, le=65535, description="its port; 0 for a free one, none for a textfile only"
    )
    prometheus_textfile: Path | None = Field(
        None, description="its file for node_exporter's textfile collector, whose name ends in .prom"
    )


class HangConfig(Section):
    """When a rank that does not move on is taken to hang."""

    enabled: bool = Field(True, description="a rank's keeper watches it; without, only collectives end by themselves")
    factor: float = Field(5.0, ge=2, description="a phase may last this many times the longest that it ever has")
    first_limit_s: float = Field(
        1200.0, gt=0, description="limit, in seconds, of a phase that was not seen to end yet: start, first step"
    )
    min_limit_s: float = Field(
        600.0, gt=0, description="no limit of a phase that was seen to end is shorter, in seconds; see hangs.md"
    )


class HealthConfig(Section):
    """How nodes are looked after while a run trains."""

    enabled: bool = Field(True, description="a thread on each node reads its GPUs and its host, and acts by the rules")
    every_s: float = Field(15.0, ge=0.1, le=600, description="pause between two looks, in seconds")
    rules: Path | None = Field(None, description="YAML file with changes to the rules that ship")


class StragglersConfig(Section):
    """When a rank is said to hold the others up."""

    enabled: bool = Field(True, description="ranks compare how long they compute, wait for data, and take to answer")
    every_steps: int = Field(50, ge=2, description="length of a window; a rank is named after two in a row")
    slowdown: float = Field(
        0.05, ge=0.01, le=10, description="a rank is slow from this share on: of the others' compute, or of a step"
    )


class MonitorConfig(Section):
    """What is watched while a run trains."""

    hang: HangConfig = HangConfig()
    health: HealthConfig = HealthConfig()
    stragglers: StragglersConfig = StragglersConfig()

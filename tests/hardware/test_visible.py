"""Which GPUs are a job's own."""

import pytest

from scaletrain.hardware.readings import GpuReading, Reading, XidEvent
from scaletrain.hardware.visible import only_visible

READING = Reading(
    "ok",
    gpus=tuple(GpuReading(index, uuid=f"GPU-{index}a{index}", bus_id=f"0000:0{index}:00.0") for index in range(4)),
    xids=(XidEvent(79, "0000:01:00.0"), XidEvent(13, "0000:02:00.0"), XidEvent(31, "0000:99:00.0"), XidEvent(45, None)),
)


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (None, [0, 1, 2, 3]),
        ("", [0, 1, 2, 3]),
        ("2", [2]),
        (" 3, 1", [1, 3]),
        ("2,7", [2]),  # one that is not listed: the count tells of it
        ("GPU-1a1,GPU-3", [1, 3]),
        ("MIG-1", [0, 1, 2, 3]),
        ("NoDevFiles", [0, 1, 2, 3]),
    ],
)
def test_as_cuda_takes_them(value: str | None, kept: list[int]) -> None:
    seen = only_visible(READING, {} if value is None else {"CUDA_VISIBLE_DEVICES": value})
    assert [gpu.index for gpu in seen.gpus] == kept


def test_xids_of_other_jobs_go_and_those_of_nobody_known_stay() -> None:
    seen = only_visible(READING, {"CUDA_VISIBLE_DEVICES": "2"})
    assert [event.code for event in seen.xids] == [13, 31, 45]

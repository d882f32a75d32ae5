"""Which of a node's GPUs are this job's, where the driver lists those of other jobs, too."""

from collections.abc import Mapping
from dataclasses import replace

from scaletrain.hardware.readings import GpuReading, Reading


def only_visible(reading: Reading, environ: Mapping[str, str]) -> Reading:
    """Leaves the GPUs that CUDA may use in this environment.

    Args:
        reading: All GPUs that the driver lists.
        environ: With ``CUDA_VISIBLE_DEVICES``, as numbers in the driver's order or the beginnings of UUIDs; where it is
            not there, or names none of them (as with instances of MIG), all GPUs stay.

    Returns:
        The reading without the others, and without their XIDs.
    """
    wanted = [word.strip() for word in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if word.strip()]
    kept = tuple(gpu for gpu in reading.gpus if any(_is_meant(gpu, word) for word in wanted))
    if not kept:
        return reading
    others = {gpu.bus_id for gpu in reading.gpus if gpu not in kept}
    return replace(reading, gpus=kept, xids=tuple(event for event in reading.xids if event.bus_id not in others))


def _is_meant(gpu: GpuReading, word: str) -> bool:
    if word.isdigit():
        return gpu.index == int(word)
    return word.startswith("GPU-") and gpu.uuid is not None and gpu.uuid.startswith(word)


def local_index(index: int | None, uuid: str | None, environ: Mapping[str, str]) -> int | None:
    """Which process of a node computes on a GPU, where each takes the GPU of its own number.

    Args:
        index: Number that the driver gives the GPU.
        uuid: What it is known by for ever.
        environ: With ``CUDA_VISIBLE_DEVICES``, in whose order CUDA numbers the GPUs.

    Returns:
        Number of the process on the node; None where the environment does not name the GPU, or nothing is known of it.
    """
    if index is None:
        return None
    gpu = GpuReading(index, uuid=uuid)
    wanted = [word.strip() for word in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if word.strip()]
    if not any(word.isdigit() or word.startswith("GPU-") for word in wanted):
        return index
    return next((place for place, word in enumerate(wanted) if _is_meant(gpu, word)), None)

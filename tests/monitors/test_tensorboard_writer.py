"""What TensorBoard's own reader sees of a run."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from scaletrain.monitors.tensorboard_writer import TensorBoardWriter


def test_steps_done_again_show_once(tmp_path: Path) -> None:
    for first_step, last_step, loss in ((1, 6, 1.0), (4, 8, 2.0)):
        writer = TensorBoardWriter(tmp_path, first_step)
        for step in range(first_step, last_step + 1):
            writer.write(step, {"train/loss": loss, "optim/lr": 0.5})
        writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert sorted(events.Tags()["scalars"]) == ["optim/lr", "train/loss"]
    points = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert points == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0), (6, 2.0), (7, 2.0), (8, 2.0)]


def test_a_picture_is_shown_as_it_is(tmp_path: Path) -> None:
    pixels = np.random.default_rng(7).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    writer = TensorBoardWriter(tmp_path, first_step=1)
    writer.write_image("straggler/ranks", 50, pixels)
    writer.close()
    (shown,) = EventAccumulator(str(tmp_path)).Reload().Images("straggler/ranks")
    assert shown.step == 50 and (np.asarray(Image.open(BytesIO(shown.encoded_image_string))) == pixels).all()


def test_text_is_shown_literally(tmp_path: Path) -> None:
    writer = TensorBoardWriter(tmp_path, first_step=1)
    writer.write_text("text/config", 0, "# model\nd_model: 64\n```\n*x*")
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    (tag,) = events.Tags()["tensors"]
    assert tag.startswith("text/config")
    shown = make_ndarray(events.Tensors(tag)[0].tensor_proto)[0].decode()
    assert shown == "    # model\n    d_model: 64\n    ```\n    *x*"

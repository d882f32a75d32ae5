"""The task that docs/tasks.md writes works as it is."""

import re
from pathlib import Path

import torch

from scaletrain.model.build import build_model
from scaletrain.tasks.task import Task
from tests.tasks.made_rows import rows, setting

PAGE = Path(__file__).parents[2] / "docs" / "tasks.md"


def test_the_task_of_the_page_learns_lengths() -> None:
    (snippet,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, type[Task]] = {}
    exec(snippet, names)
    made = setting({}, {"n_classes": 1, "pooling": "mean", "causal": False})
    task = names["LengthTask"](made)
    collated = task.collate(rows([[5], [9], [30]], 48), 0)
    assert collated.inputs["values"].tolist() == [[5.0], [9.0], [30.0]] and collated.targets_B.tolist() == [1, 1, 1]
    model = build_model(made.model)
    module, optimizer = task.module(model), torch.optim.Adam(model.parameters(), 0.03)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        terms = module(**collated.inputs)
        (terms.loss_sum / 3).backward()
        optimizer.step()
        losses.append(terms.loss_sum.item())
    assert losses[-1] < 0.2 * losses[0]

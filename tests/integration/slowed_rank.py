"""Stands before train.py among what is typed, and makes a rank of it slow.

``SLOWED`` is JSON: ``slow`` has by rank what slows it, ``extra_work`` how much, as a share of a step, ``nodes`` the
namespaces of each rank's node, if it has its own. ``compute``: it does more work in each step. ``data``: its workers
wait for each micro batch.
"""

import json
import os
import sys
import time
from typing import Any

import torch

from scaletrain import train
from scaletrain.data.dataset import SequenceDataset
from scaletrain.data.rows import MicroBatch
from scaletrain.tasks.causal_lm import CausalLM
from tests.integration.delayed_link import enter_node

_FORWARDS = 3
"""How many forward passes are as much work as a step."""
_FETCH_S = 1.0
"""Longer than a step, also where others use the cores: micro batches are fetched ahead."""


def slow_down(kind: str, extra_work: float) -> None:
    """Makes this process slow."""
    if kind == "compute":
        forward = CausalLM.forward

        def forward_and_more(module: CausalLM, **inputs: Any) -> Any:
            if module.training:
                share = _FORWARDS * extra_work
                some = {name: tensor[: round(share * len(tensor))] for name, tensor in inputs.items()}
                with torch.no_grad():
                    forward(module, **some)
            return forward(module, **inputs)

        CausalLM.forward = forward_and_more  # type: ignore[method-assign]  # extra work, in the real class
    if kind == "data":
        fetch = SequenceDataset.micro_batch

        def fetch_slowly(dataset: SequenceDataset, *arguments: Any) -> MicroBatch:
            time.sleep(_FETCH_S)
            return fetch(dataset, *arguments)

        SequenceDataset.micro_batch = fetch_slowly  # type: ignore[method-assign]  # a slow disk, as above


if __name__ == "__main__":
    slowed, rank = json.loads(os.environ["SLOWED"]), int(os.environ["RANK"])
    if slowed["nodes"]:
        enter_node(slowed["nodes"][rank])
    slow_down(slowed["slow"].get(str(rank), ""), slowed["extra_work"])
    sys.exit(train.main(sys.argv[2:]))

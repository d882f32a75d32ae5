"""train.py, on a machine that miscalculates once: one gradient of one rank is NaN, as a flipped bit would make it.

``CHAOS_NAN=RANK:PASS`` names the rank, and which of its backward passes, from 0.
"""

import os
import sys
from typing import Any

from torch import Tensor

from scaletrain import train
from scaletrain.tasks.causal_lm import CausalLM


def install(rank: int, number: int) -> None:
    """Puts the fault into each model that is built in this process from now on."""
    if rank != int(os.environ["RANK"]):
        return
    build, passes = CausalLM.__init__, iter(range(number + 1))

    def flip(gradient: Tensor) -> Tensor:
        return gradient * float("nan") if next(passes, None) == number else gradient

    def build_faulty(module: CausalLM, *args: Any, **kwargs: Any) -> None:
        build(module, *args, **kwargs)
        next(iter(module.model.norm.parameters())).register_hook(flip)  # type: ignore[no-untyped-call]

    CausalLM.__init__ = build_faulty  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    install(*map(int, os.environ["CHAOS_NAN"].split(":")))
    sys.exit(train.main(sys.argv[1:]))

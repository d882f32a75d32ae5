"""What holds for every test of a model."""

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def forget_what_was_compiled() -> Iterator[None]:
    """Frees torch.compile of the models of earlier tests: it refuses the ninth that runs through the same code."""
    yield
    if "torch._dynamo" in sys.modules:
        import torch

        torch.compiler.reset()

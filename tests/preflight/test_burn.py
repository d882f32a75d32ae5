import pytest
import torch

from scaletrain.preflight import burn


def test_a_sound_device_passes() -> None:
    (finding,) = burn.burn(0)
    assert finding.status == "ok"


def test_one_wrong_bit_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hardware's error is made where the hardware multiplies."""
    right = torch.Tensor.__matmul__
    calls = []

    def wrong(self: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        product = right(self, other)
        calls.append(product)
        if len(calls) == 4:
            product[700, 3] += 1
        return product

    monkeypatch.setattr(torch.Tensor, "__matmul__", wrong)
    (finding,) = burn.burn(0)
    assert finding.status == "fail"

import pytest
import torch

from scaletrain.preflight import burn


def test_a_sound_device_passes() -> None:
    (finding,) = burn.burn(0)
    assert finding.status == "ok"


@pytest.mark.parametrize("from_product", [0, 3])
def test_one_wrong_bit_is_found(monkeypatch: pytest.MonkeyPatch, from_product: int) -> None:
    """The hardware's error is made where the hardware multiplies: from the beginning, or later."""
    right = torch.Tensor.__matmul__
    calls = []

    def wrong(self: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        product = right(self, other)
        if product.dtype == torch.float32:
            product[700, 3] += len(calls) >= from_product
            calls.append(product)
        return product

    monkeypatch.setattr(torch.Tensor, "__matmul__", wrong)
    (finding,) = burn.burn(0)
    assert finding.status == "fail"
    assert f"1 of 1048576 numbers of a product are wrong, after {from_product} right" in finding.detail

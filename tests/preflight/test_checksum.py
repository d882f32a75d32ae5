import pytest
import torch

from scaletrain.preflight import checksum
from scaletrain.preflight.checksum import Products, compare_checksums, judge_products


def made(name: str, bits: int, kind: str = "H100", wrong: int = 0) -> Products:
    return Products(name, kind, bits, 11, wrong, 2.0)


def test_a_sound_device_makes_the_same_bits_each_time() -> None:
    (found,) = compare_checksums(0, 0.1)
    assert (found.check, found.status) == ("cpu checksum", "ok")
    assert found.figures["tflops"] > 0


def test_one_wrong_bit_in_one_product_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hardware's error is made where the hardware multiplies."""
    right, calls = torch.matmul, []

    def wrong(left: torch.Tensor, other: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        right(left, other, out=out)
        calls.append(out)
        if len(calls) == 5:
            out.view(torch.int16)[700, 3] ^= 1
        return out

    monkeypatch.setattr(torch, "matmul", wrong)
    monkeypatch.setattr(checksum, "_CPU_SIZE", 704)
    (found,) = compare_checksums(0, 0.0)
    assert found.status == "fail"
    assert found.detail.startswith("1 of 11 products have other bits than the first")


def test_the_gpu_that_differs_from_the_others_is_named() -> None:
    found = judge_products([made("gpu 0", 7), made("gpu 1", 9), made("gpu 2", 7)])
    assert [one.status for one in found] == ["ok", "fail", "ok"]
    assert "other bits than 2 GPUs of the same kind" in found[1].detail


def test_of_two_that_differ_none_is_trusted() -> None:
    found = judge_products([made("gpu 0", 7), made("gpu 1", 9)])
    assert [one.status for one in found] == ["fail", "fail"]


def test_gpus_of_different_kinds_may_differ() -> None:
    found = judge_products([made("gpu 0", 7), made("gpu 1", 9, kind="A100"), made("gpu 2", 7)])
    assert [one.status for one in found] == ["ok", "ok", "ok"]


def test_a_gpu_that_differs_from_itself_is_the_one_that_fails() -> None:
    found = judge_products([made("gpu 0", 7), made("gpu 1", 7, wrong=3), made("gpu 2", 7)])
    assert [one.status for one in found] == ["ok", "fail", "ok"]
    assert found[1].detail.startswith("3 of 11 products")

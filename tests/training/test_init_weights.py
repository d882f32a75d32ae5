"""What a model may lack or have beside the checkpoint that it begins with: heads and adapters, and nothing else."""

import pytest

from scaletrain.errors import CheckpointError
from scaletrain.training.init_weights import Fit, fit_weights

BODY = {"model.embedding.weight": [10, 4], "model.blocks.0.attention.q.weight": [4, 4], "model.norm.weight": [4]}


def test_heads_and_adapters_are_named_and_all_else_is_taken() -> None:
    saved = {"shapes": BODY | {"model.output_transform.dense.weight": [4, 4], "model.output.bias": [10]}, "tied": {}}
    lora = {"model.blocks.0.attention.q.lora_A.weight": [2, 4], "model.blocks.0.attention.q.lora_B.weight": [4, 2]}
    fit = fit_weights(saved, BODY | {"model.pooler.weight": [4, 4], "model.classifier.bias": [3]} | lora)
    assert fit.initial == ("model.pooler.weight", "model.classifier.bias", *lora)
    assert fit.unused == ("model.output_transform.dense.weight", "model.output.bias")
    assert fit.lines()[1] == "output_transform.dense.weight, output.bias are not used"
    several = Fit(initial=(*(f"model.blocks.{layer}.q.lora_A.weight" for layer in range(40)), *fit.initial[2:]))
    assert several.lines() == [
        "blocks.*.q.lora_A.weight (40), blocks.0.attention.q.lora_A.weight, blocks.0.attention.q.lora_B.weight "
        "begin at their initial values"
    ]


def test_a_head_for_other_classes_begins_anew() -> None:
    head = "model.classifier.weight"
    assert fit_weights({"shapes": BODY | {head: [2, 4]}, "tied": {}}, BODY | {head: [7, 4]}).initial == (head,)
    assert fit_weights({"shapes": BODY | {head: [7, 4]}, "tied": {}}, BODY | {head: [7, 4]}) == Fit()


def test_equal_models_fit_without_a_word() -> None:
    assert fit_weights({"shapes": BODY, "tied": {}}, BODY) == Fit()
    assert not Fit().lines()


def test_what_was_tied_is_read_from_the_one_tensor() -> None:
    saved = {"shapes": BODY, "tied": {"model.output.weight": "model.embedding.weight"}}
    fit = fit_weights(saved, BODY | {"model.embedding.weight": [12, 4], "model.output.weight": [12, 4]})
    assert fit.source_names == {"model.output.weight": "model.embedding.weight"}
    assert fit.grown == {"model.embedding.weight": 10, "model.output.weight": 10}


@pytest.mark.parametrize(
    ("saved", "live", "told"),
    [
        ({}, {"model.blocks.1.attention.q.weight": [4, 4]}, "blocks.1.attention.q.weight is missing"),
        ({"model.norm.bias": [4]}, {}, "norm.bias is too much"),
        ({}, {"model.norm.weight": [5]}, r"norm.weight: \[4\] there, \[5\] here"),
        ({}, {"model.embedding.weight": [9, 4]}, r"embedding.weight: \[10, 4\] there, \[9, 4\] here"),
        # A part of a block that is called like a head is none.
        ({}, {"model.blocks.0.output.weight": [4, 4]}, "blocks.0.output.weight is missing"),
        # Adapters that are left out would take what was learnt with them.
        (
            {"model.blocks.0.attention.q.lora_A.weight": [2, 4]},
            {},
            "lora_A.weight is too much; merge its adapters first",
        ),
    ],
)
def test_anything_else_is_an_error_with_its_name(
    saved: dict[str, list[int]], live: dict[str, list[int]], told: str
) -> None:
    with pytest.raises(CheckpointError, match=told):
        fit_weights({"shapes": BODY | saved, "tied": {}}, BODY | live)

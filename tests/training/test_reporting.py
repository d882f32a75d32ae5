"""What a run writes down about itself: which figures, at which steps, and that they are right."""

from typing import Any

import pytest

from tests.distributed import run_on_ranks
from tests.engine.bodies import GLOBAL_BATCH
from tests.training import reported

EVERY_STEP = {
    "train/loss",
    "train/grad_norm",
    "train/target_tokens",
    "optim/lr",
    "optim/steps",
    "perf/tokens_per_s",
    "perf/mfu",
    "perf/step_time_s",
    "perf/data_wait_s",
    "mem/reserved_gib",
    "data/epoch",
    "data/sequences",
    "data/batch_hash",
}
EVALUATION = {"eval/loss", "eval/perplexity", "eval/bits_per_byte"}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Five steps on two ranks: evaluated every two and at the end, shown every three."""
    return run_on_ranks(2, reported.train, str(tmp_path_factory.mktemp("run")), 2, 5, 3)


def steps_with(records: list[tuple[int, dict[str, float]]], name: str) -> list[int]:
    return [step for step, metrics in records if name in metrics]


def test_every_step_has_every_figure(results: list[dict[str, Any]]) -> None:
    trained = [(step, metrics) for step, metrics in results[0]["often"] if "train/loss" in metrics]
    assert [step for step, _ in trained] == [1, 2, 3, 4, 5]
    for step, metrics in trained:
        assert metrics.keys() == EVERY_STEP
        assert metrics["data/sequences"] == step * GLOBAL_BATCH and metrics["optim/steps"] == step
        assert metrics["data/epoch"] == step * GLOBAL_BATCH / reported.SEQUENCES_PER_EPOCH
        assert 0.01 < metrics["mem/reserved_gib"] < 100 and metrics["perf/tokens_per_s"] > 0


def test_curves_get_the_first_the_last_and_each_interval(results: list[dict[str, Any]]) -> None:
    assert steps_with(results[0]["seldom"], "train/loss") == [1, 3, 5]
    # Evaluations are few and cost much: all of them are shown.
    assert steps_with(results[0]["seldom"], "eval/loss") == [2, 4, 5]
    assert steps_with(results[0]["often"], "eval/loss") == [2, 4, 5]


def test_other_ranks_write_nothing_and_writers_are_closed(results: list[dict[str, Any]]) -> None:
    assert results[1]["often"] == results[1]["seldom"] == results[1]["texts"] == []
    assert all(count >= 1 for count in results[0]["closed"])


def test_the_last_evaluation_is_that_of_the_last_weights(results: list[dict[str, Any]]) -> None:
    step, metrics = results[0]["often"][-1]
    assert step == 5 and metrics.keys() == EVALUATION
    # Dropout and filling count for nothing.
    assert metrics == pytest.approx(results[0]["expected"], rel=1e-6)


def test_ranks_draw_the_same_samples_and_they_are_written(results: list[dict[str, Any]]) -> None:
    assert results[0]["samples"] == results[1]["samples"] and len(results[0]["samples"]) == 2
    texts = results[0]["texts"]
    assert texts[0] == ("text/config", 0, "a: 1")
    assert [(name, step) for name, step, _ in texts[1:]] == [("text/samples", step) for step in (2, 4, 5)]
    for prompt, continuation in results[0]["samples"]:
        assert f"{prompt}{continuation}" in texts[-1][2]

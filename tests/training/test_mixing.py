"""The weights of a mixture may change within a run, but not for what it has consumed."""

import re
from pathlib import Path

import pytest

from scaletrain.data.mixture import Phase, weight_units
from scaletrain.training.mixing import consumed_weights
from tests.training.data_runs import STEPS, DataRun, batch_hashes

THEN = "{until_tokens: 544, weights: {web: 1, books: 2}}"


def with_weight(run: DataRun, weight: int) -> None:
    run.yaml.write_text(re.sub("weight: 3", f"weight: {weight}", run.yaml.read_text()))


@pytest.mark.slow
def test_weights_change_from_what_is_consumed_on(uncut: DataRun, corpora: Path, tmp_path: Path) -> None:
    run = DataRun(tmp_path, corpora, {"checkpoint.every_steps": 4})
    run.complete(2, train__max_steps=8)
    with_weight(run, 5)
    told = run.start(3)
    # 54 sequences of 16 tokens were consumed: 27 places of each of the two lanes.
    assert len(set(told)) == 1 and "until_tokens: 864 or more" in told[0] and told[0].startswith("ConfigError")
    too_soon = f"[{THEN}, {{until_tokens: 832, weights: {{web: 3, books: 1}}}}]"
    assert run.start(1, data__phases=too_soon) == (told[0],)
    run.overrides = {**run.overrides, "data.phases": f"[{THEN}, {{until_tokens: 864, weights: {{web: 3, books: 1}}}}]"}
    run.complete(3)
    assert run.hashes[:8] == uncut.hashes[:8] and run.hashes[8:] != uncut.hashes[8:]
    assert run.hashes == batch_hashes(run.dataset(), run.ends)
    # From an earlier checkpoint, too, it does again what it did, with the weights of then.
    hashes = run.hashes
    run.forget_checkpoints_behind(4)
    run.complete(1, train__micro_batch_size=4)
    assert run.events("resume")[-1]["step"] == 4
    assert run.hashes == hashes and len(hashes) == STEPS


def test_only_phases_that_have_begun_count_as_consumed() -> None:
    phases = [Phase(10, (1.0, 0.0)), Phase(20, (1.0, 1.0)), Phase(None, (0.0, 1.0))]
    whole = [(0, weight_units((1, 0))), (10, weight_units((1, 1))), (20, weight_units((0, 1)))]
    assert [len(consumed_weights(phases, places)) for places in (0, 1, 10, 11, 20, 21)] == [0, 1, 1, 2, 2, 3]
    assert consumed_weights(phases, 21) == whole
    # The same shares in other numbers are the same weights.
    assert consumed_weights([Phase(None, (2.0, 2.0))], 5) == consumed_weights([Phase(None, (0.5, 0.5))], 5)

"""What sources, phases and batch schedules may be together."""

import pytest

from scaletrain.config.mixture_rules import batch_problems, data_problems
from scaletrain.config.schema import BatchPhaseConfig, DataConfig, PhaseConfig, SourceConfig, TrainConfig

WEB, CODE = SourceConfig(name="web", manifest="a"), SourceConfig(name="code", manifest="b", weight=0.5)


def mixed(*sources: SourceConfig, phases: tuple[tuple[int, dict[str, float]], ...] = ()) -> list[str]:
    parts = tuple(PhaseConfig(until_tokens=until, weights=weights) for until, weights in phases)
    return list(data_problems(DataConfig(sources=sources, phases=parts)))


def batched(micro_batch_size: int, global_batch_size: int, *schedule: tuple[int, int]) -> list[str]:
    parts = tuple(BatchPhaseConfig(until_tokens=until, global_batch_size=size) for until, size in schedule)
    train = {"micro_batch_size": micro_batch_size, "global_batch_size": global_batch_size, "batch_schedule": parts}
    return list(batch_problems(TrainConfig.model_validate(train)))


class TestOneThingToTrainOn:
    @pytest.mark.parametrize(
        "data",
        [DataConfig(manifest="m.json"), DataConfig(sources=(WEB, CODE)), DataConfig(corpus="python_stdlib")],
        ids=["manifest", "sources", "corpus"],
    )
    def test_each_alone_is_enough(self, data: DataConfig) -> None:
        assert list(data_problems(data)) == []

    def test_none(self) -> None:
        (told,) = data_problems(DataConfig())
        assert "data.manifest, data.sources and data.corpus are all none: there is nothing to train on" in told

    def test_several(self) -> None:
        (two,) = data_problems(DataConfig(manifest="m.json", sources=(WEB, CODE)))
        assert "data.manifest = m.json and data.sources = web, code are both given" in two
        assert "--data.sources '[]' or --data.manifest none" in two
        (three,) = data_problems(DataConfig(manifest="m.json", sources=(WEB,), corpus="python_stdlib"))
        assert "data.corpus = python_stdlib are all given" in three and "--data.corpus none or " in three


class TestMixtures:
    def test_names_are_unique(self) -> None:
        (told,) = mixed(WEB, CODE, WEB)
        assert "data.sources, item 3: name = web is the name of item 1 too" in told

    def test_phases_weigh_sources(self) -> None:
        assert mixed(WEB, CODE, phases=((5, {"web": 1}), (6, {"code": 0.1, "web": 0}))) == []
        (told,) = data_problems(DataConfig(manifest="m", phases=(PhaseConfig(until_tokens=1, weights={"web": 1}),)))
        assert "data.phases are given without data.sources" in told and "--data.phases '[]'" in told

    def test_weights_name_sources_that_exist(self) -> None:
        near, far = mixed(WEB, CODE, phases=((5, {"wbe": 1, "prose": 2}),))
        assert near == "data.phases, item 1: weights.wbe = 1: no such source; did you mean web?"
        assert far == "data.phases, item 1: weights.prose = 2: no such source; data.sources has web, code"

    def test_weights_are_not_negative_and_not_all_0(self) -> None:
        negative, nothing = mixed(WEB, phases=((5, {"web": -0.5}), (6, {"web": 0})))
        assert "data.phases, item 1: weights.web = -0.5: must be at least 0" in negative
        assert "data.phases, item 2: weights: every weight is 0" in nothing
        assert "every weight is 0" in mixed(WEB, phases=((5, {}),))[0]
        zero = SourceConfig(name="web", manifest="a", weight=0)
        (told,) = mixed(zero, phases=((5, {"web": 1}),))
        assert "data.sources: every weight is 0" in told and "after the last phase" in told

    def test_a_source_that_is_never_read_is_refused(self) -> None:
        late = SourceConfig(name="late", manifest="c", weight=0)
        (told,) = mixed(WEB, late, phases=((5, {"web": 1, "late": 0}),))
        assert "data.sources, item 2: late is never read" in told
        assert mixed(WEB, late, phases=((5, {"web": 1}), (6, {"late": 1}))) == []
        (misspelt,) = mixed(WEB, late, phases=((5, {"web": 1, "laet": 1}),))
        assert "did you mean late?" in misspelt, "a source that seems unread by a slip is not told a second time"

    @pytest.mark.parametrize("second", [4, 5])
    def test_phases_follow_each_other(self, second: int) -> None:
        (told,) = mixed(WEB, phases=((5, {"web": 1}), (second, {"web": 1}), (6, {"web": 1})))
        assert f"data.phases, item 2: until_tokens = {second} is not more than that of item 1, 5" in told


class TestBatches:
    def test_each_global_batch_holds_a_micro_batch(self) -> None:
        assert batched(4, 4, (10, 4), (20, 8)) == []
        (told,) = batched(4, 8, (10, 8), (20, 3))
        assert told.startswith(
            "train.micro_batch_size = 4 is larger than train.batch_schedule, item 2: global_batch_size = 3"
        )
        (told,) = batched(4, 3, (10, 8))
        assert "train.micro_batch_size = 4 is larger than train.global_batch_size = 3" in told

    @pytest.mark.parametrize("second", [9, 10])
    def test_parts_follow_each_other(self, second: int) -> None:
        (told,) = batched(1, 8, (10, 4), (second, 8))
        assert f"train.batch_schedule, item 2: until_tokens = {second} is not more than that of item 1, 10" in told

"""A configuration is read by the types of its fields, and what is wrong is told with value, rule and remedy."""

import math
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from scaletrain.config.fields import fields, flatten
from scaletrain.config.load import dump_yaml, load_config
from scaletrain.config.schema import RunConfig
from scaletrain.errors import ConfigError


def written(tmp_path: Path, text: str, name: str = "my.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def message(path: Path | None, overrides: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides or {})
    return str(caught.value)


def test_the_command_line_stands_above_the_file_and_the_file_above_the_defaults(tmp_path: Path) -> None:
    path = written(tmp_path, "optim:\n  lr: 1e-2\n  eps: 1e-6\n")
    config = load_config(path, {"optim.lr": "3e-4"})
    assert (config.optim.lr, config.optim.eps, config.optim.betas) == (3e-4, 1e-6, (0.9, 0.95))


def test_the_run_directory_is_named_after_the_file_unless_it_is_given(tmp_path: Path) -> None:
    path = written(tmp_path, "", "tiny.yaml")
    assert load_config(path, {}).run_dir == Path("runs/tiny")
    assert load_config(path, {"run_dir": "elsewhere"}).run_dir == Path("elsewhere")


def test_without_a_file_it_is_the_demo() -> None:
    config = load_config(None, {})
    assert config.run_dir == Path("runs/demo")
    assert config.data.corpus == "python_stdlib"


def test_a_shipped_file_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(Path("configs/demo.yaml"), {}) == load_config(Path("demo.yaml"), {}) == load_config(None, {})
    written(tmp_path, "seed: 5", "demo.yaml")
    assert load_config(Path("demo.yaml"), {}).seed == 5, "a file here goes before a shipped one"


class TestPreset:
    def test_stands_below_the_fields_given_with_it(self, tmp_path: Path) -> None:
        path = written(tmp_path, "model: {preset: gpt2, n_layers: 3}")
        model = load_config(path, {"model.dropout": "0.25"}).model
        assert (model.d_model, model.n_layers, model.dropout, model.vocab_size) == (768, 3, 0.25, 50257)

    def test_of_the_command_line_replaces_the_model_of_the_file(self, tmp_path: Path) -> None:
        resolved = written(tmp_path, dump_yaml(load_config(None, {})))
        assert load_config(resolved, {"model.preset": "gpt2"}).model.d_model == 768

    def test_dotted_names_and_files_of_the_users_own(self, tmp_path: Path) -> None:
        assert load_config(None, {"model.preset": "gpt3_1.3b"}).model.d_model == 2048
        own = written(tmp_path, "d_model: 24\nn_heads: 4\n", "own.yaml")
        assert load_config(None, {"model.preset": str(own)}).model.head_dim == 6

    def test_a_resolved_configuration_needs_the_file_no_more(self, tmp_path: Path) -> None:
        own = written(tmp_path, "d_model: 24\nn_heads: 4\n", "own.yaml")
        config = load_config(None, {"model.preset": str(own)})
        own.unlink()
        assert load_config(written(tmp_path, dump_yaml(config)), {}) == config

    def test_an_unknown_one_is_answered_with_those_there_are(self) -> None:
        assert "gpt2_xl" in message(None, {"model.preset": "gpt5"})

    def test_a_misspelt_field_in_one_is_found(self, tmp_path: Path) -> None:
        own = written(tmp_path, "d_mdel: 24\n", "own.yaml")
        told = message(None, {"model.preset": str(own)})
        assert "model.d_mdel = 24" in told and "own.yaml, line 1" in told and "model.d_model" in told


class TestTypes:
    def test_yaml_1_1_guesses_are_not_believed(self, tmp_path: Path) -> None:
        path = written(tmp_path, "run_dir: 2024_01\noptim: {lr: 3e-4}\neval: {prompts: [1.10, yes, null_value, 010]}\n")
        config = load_config(path, {})
        assert config.run_dir == Path("2024_01")
        assert config.optim.lr == 3e-4
        assert config.eval.prompts == ("1.10", "yes", "null_value", "010")

    @pytest.mark.parametrize(
        ("text", "number"),
        [("4e9", 4 * 10**9), ("1.5E+3", 1500), ("+2.e0", 2), ("9007199254740993e3", (2**53 + 1) * 1000)],
    )
    def test_a_whole_number_with_an_exponent_is_exact(self, text: str, number: int) -> None:
        assert load_config(None, {"train.max_steps": text}).train.max_steps == number

    def test_a_path_or_url(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", "/home/me")
        for text, read in [("~/m.json", "/home/me/m.json"), ("s3://a//~/b", "s3://a//~/b"), ("a~", "a~")]:
            assert load_config(None, {"data.manifest": text}).data.manifest == read
        assert "a path or a URL or none" in message(None, {"data.manifest": ""})

    @pytest.mark.parametrize("text", ["0.9,0.98", "[0.9, 0.98]", "(0.9, 0.98)", " [ .9 , 98e-2 ] "])
    def test_numbers_in_a_list(self, text: str) -> None:
        assert load_config(None, {"optim.betas": text}).optim.betas == (0.9, 0.98)

    def test_a_prompt_is_one_text_unless_in_brackets(self) -> None:
        assert load_config(None, {"eval.prompts": "print(a, b)"}).eval.prompts == ("print(a, b)",)
        assert load_config(None, {"eval.prompts": '["a, b", c]'}).eval.prompts == ("a, b", "c")
        assert load_config(None, {"eval.prompts": "[]"}).eval.prompts == ()
        assert "[unclosed" in message(None, {"eval.prompts": "[unclosed"})

    @pytest.mark.parametrize("text", ["none", "None", "null"])
    def test_none(self, text: str) -> None:
        config = load_config(None, {"optim.decay_steps": text, "data.corpus": text, "data.manifest": "m.json"})
        assert (config.optim.decay_steps, config.data.corpus, config.data.manifest) == (None, None, "m.json")

    @pytest.mark.parametrize(
        ("key", "text", "rule"),
        [
            ("train.max_steps", "1_000", "a whole number, without underscores: 1000"),
            ("train.max_steps", "10.0", "a whole number such as 1000 or 4e9"),
            ("train.max_steps", "1.25e1", "a whole number"),
            ("train.max_steps", "50e-1", "a whole number"),
            ("train.max_steps", "1e999999999", "a whole number"),
            ("train.max_steps", "none", "a whole number"),
            ("train.max_steps", "0", "at least 1"),
            ("seed", "-1", "at least 0 and less than 2**63"),
            ("optim.lr", "fast", "a number such as 0.1 or 3e-4"),
            ("optim.lr", "nan", "a number"),
            ("optim.lr", "inf", "a number"),
            ("optim.lr", "1e999", "finite"),
            ("optim.lr", "0", "more than 0"),
            ("optim.betas", "0.9", "2 numbers such as [0.9, 0.95]"),
            ("optim.betas", "0.9,1.5", "less than 1 in item 2"),
            ("train.compile", "yes", "true or false"),
            ("train.precision", "bf61", "one of fp32, bf16, fp16"),
            ("model.dropout", "1", "at least 0 and less than 1"),
            ("run_dir", "", "a path"),
            ("model", "gpt2", "a section; give its fields, such as model.preset"),
        ],
    )
    def test_what_cannot_be_is_told_with_key_value_and_rule(self, key: str, text: str, rule: str) -> None:
        told = message(None, {key: text})
        assert f"{key} = {text} (command line)" in told
        assert rule in told
        assert "pydantic" not in told


def test_all_problems_are_told_at_once_and_none_that_only_follows(tmp_path: Path) -> None:
    path = written(tmp_path, "model:\n  n_heads: 0\ntrain:\n  max_stepz: 3\n  precision: bf61\n")
    told = message(path, {"optim.lr": "x"})
    assert told.startswith("4 problems")
    assert f"model.n_heads = 0 ({path}, line 2): must be at least 1" in told
    assert f"train.max_stepz = 3 ({path}, line 4): no such key; did you mean train.max_steps?" in told
    assert "default_factory" not in told and "n_kv_heads" not in told and "head_dim" not in told


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("lr", "optim.lr"),
        ("optim.max_steps", "train.max_steps"),
        ("train.batch_size", "train.global_batch_size"),
        ("mdel.d_model", "model.d_model"),
        ("checkpointt", "checkpoint"),
    ],
)
def test_an_unknown_key_names_the_nearest(typed: str, meant: str) -> None:
    told = message(None, {typed: "1"})
    assert f"{typed} = 1 (command line): no such key" in told
    assert meant in told


class TestFiles:
    def test_missing(self) -> None:
        assert "'no/such.yaml' does not exist" in message(Path("no/such.yaml"))

    def test_a_folder(self, tmp_path: Path) -> None:
        assert "is a folder; give the path of a file in it" in message(tmp_path)

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("optim:\n  lr: [1\n", "not valid YAML"),
            ("optim:\n\tlr: 1\n", "line 2 is not valid YAML"),
            ("- a\n- b\n", "must hold a mapping"),
            ("just text", "must hold a mapping"),
            ("seed: 1\noptim: {lr: 1, lr: 2}\n", "line 2: optim.lr is given twice"),
            ("optim: {lr: 1}\noptim: {eps: 1}\noptim.lr: 3\n", "optim.lr is given twice"),
            ("optim: 3\n", "optim = 3"),
            ("optim: {lr: {value: 3}}\n", "optim.lr.value"),
            ("eval: {prompts: [[a]]}\n", "prompts = [[a]]"),
            ("eval: {prompts: [{a: b}]}\n", "a list of texts"),
            ("a: &a {b: *a}\n", "a mapping contains itself"),
            ("a: &a [*a]\n", "line 1: a list contains itself"),
            ("a: [&a {b: [*a]}]\n", "a mapping contains itself"),
            ("data: {sources: [{name: a, name: b}]}\n", "line 1: name is given twice"),
            ("? [a, b]\n: 1\n", "a key must be a name"),
            ("a: !!python/object/apply:os.getcwd []\n", "no such key"),
        ],
    )
    def test_what_is_no_mapping_of_keys(self, tmp_path: Path, text: str, told: str) -> None:
        path = written(tmp_path, text)
        assert told in message(path)
        assert str(path) in message(path)

    def test_other_bytes_than_utf_8(self, tmp_path: Path) -> None:
        path = tmp_path / "latin.yaml"
        path.write_bytes(b"run_dir: \xe9t\xe9\n")
        assert "not UTF-8" in message(path)

    def test_empty_sections_are_nothing(self, tmp_path: Path) -> None:
        assert load_config(written(tmp_path, "model:\noptim: {}\nmonitor: {hang: }\nseed: 3\n"), {}).seed == 3

    def test_sections_in_sections(self, tmp_path: Path) -> None:
        path = written(tmp_path, "monitor:\n  hang: {factor: 3, min_limit_s: 60}\n")
        config = load_config(path, {"monitor.hang.min_limit_s": "90"})
        assert (config.monitor.hang.factor, config.monitor.hang.min_limit_s) == (3.0, 90.0)
        assert yaml.safe_load(dump_yaml(config))["monitor"]["hang"]["min_limit_s"] == 90.0
        assert "did you mean monitor.hang.factor?" in message(written(tmp_path, "monitor: {hang: {fator: 3}}\n"))
        told = message(written(tmp_path, "monitor: {hang: {factor: 1.5}}\n"))
        assert "monitor.hang.factor = 1.5" in told and "line 1" in told and "must be at least 2" in told
        assert "monitor.hang = 3" in message(None, {"monitor.hang": "3"})


texts = st.text(st.characters(codec="utf-8"), max_size=20)
positive = st.floats(min_value=1e-300, max_value=1e300)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@example(
    lr=1.0,
    betas=(0.0, 0.0),
    prompts=("\x85", "\u2028a\r\n ", "\ufeff", "none", "1_0"),
    folder=Path("\x85"),
    seed=0,
    decay_steps=None,
)
@given(
    lr=positive,
    betas=st.tuples(st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True)),
    prompts=st.lists(texts.filter(bool), max_size=3).map(tuple),
    folder=st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=10)
    .filter(lambda name: name != ".")  # runs/. is runs
    .map(Path),
    seed=st.integers(0, 2**63 - 1),
    decay_steps=st.none() | st.integers(1, 10**12),
)
def test_a_resolved_configuration_loads_as_the_same(
    tmp_path: Path, lr, betas, prompts, folder, seed, decay_steps
) -> None:  # type: ignore[no-untyped-def]
    plain = load_config(None, {})
    config = plain.model_copy(
        update={
            "run_dir": "runs" / folder,
            "seed": seed,
            "optim": plain.optim.model_copy(update={"lr": lr, "betas": betas, "decay_steps": decay_steps}),
            "eval": plain.eval.model_copy(update={"prompts": prompts}),
        }
    )
    again = load_config(written(tmp_path, dump_yaml(config)), {})
    assert again == config
    assert again.run_dir.name == folder.name and again.eval.prompts == prompts
    assert math.copysign(1, again.optim.betas[0]) == math.copysign(1, betas[0])


def test_flattened_keys_are_the_fields() -> None:
    assert list(flatten(RunConfig())) == list(fields())

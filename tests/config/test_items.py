"""Lists of sections are read like everything else: by declared types, with every mistake told where it stands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from scaletrain.config.command_line import parse
from scaletrain.config.derive import check
from scaletrain.config.files import configs_dir
from scaletrain.config.load import dump_yaml, load_config
from scaletrain.config.schema import BatchPhaseConfig, PhaseConfig, RunConfig, SourceConfig
from scaletrain.errors import ConfigError

MIXTURE = """\
data:
  sources:
    - {name: web, manifest: data/web, weight: 0.8}
    - name: 2024_01
      manifest: s3://bucket//code/manifest.json
  phases:
    - {until_tokens: 4e9, weights: {web: 1e-1, 2024_01: 1}}
train:
  batch_schedule: [{until_tokens: 1000000000, global_batch_size: 64}]
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "my.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problems(path: Path | None, overrides: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides or {})
    lines = [line.strip() for line in str(caught.value).splitlines()]
    return lines[1:] if len(lines) > 1 else lines


def test_a_file_and_the_command_line_say_the_same(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, MIXTURE), {})
    assert config.data.sources == (
        SourceConfig(name="web", manifest="data/web", weight=0.8),
        SourceConfig(name="2024_01", manifest="s3://bucket//code/manifest.json", weight=1.0),
    )
    assert config.data.phases == (PhaseConfig(until_tokens=4_000_000_000, weights={"web": 0.1, "2024_01": 1.0}),)
    assert config.train.batch_schedule == (BatchPhaseConfig(until_tokens=10**9, global_batch_size=64),)
    argv = [
        "--data.sources=[{name: web, manifest: data/web, weight: 0.8}, "
        "{name: 2024_01, manifest: s3://bucket//code/manifest.json}]",
        *("--data.phases", "[{until_tokens: 4e9, weights: {web: 1e-1, 2024_01: 1}}]"),
        *("--train.batch_schedule", '[{"until_tokens": 1e9, "global_batch_size": 64}]'),
    ]
    typed = load_config(written(tmp_path, ""), parse(argv).overrides)
    assert typed == config
    assert load_config(written(tmp_path, MIXTURE), {"data.phases": "[]"}).data.phases == ()


def test_the_example_of_the_page_can_be_run(tmp_path: Path) -> None:
    page = (configs_dir().parent / "docs/configuration.md").read_text(encoding="utf-8")
    (example_of_page,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    config = load_config(written(tmp_path, example_of_page), {})
    check(config)
    assert config.data.phases[0].weights == {"web": 0.9, "code": 0.1}
    assert config.train.batch_schedule[0] == BatchPhaseConfig(until_tokens=10**9, global_batch_size=64)


def test_the_home_folder_is_expanded_in_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    text = "data: {sources: [{name: a, manifest: ~/m.json}, {name: b, manifest: s3://x//~/y}]}"
    sources = load_config(written(tmp_path, text), {}).data.sources
    assert [source.manifest for source in sources] == ["/home/me/m.json", "s3://x//~/y"]


def test_every_mistake_is_told_with_item_key_value_place_and_rule(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "data:\n"
        "  sources:\n"
        "  - {name: web, manifest: a, weightt: 0.8}\n"
        "  - {name: code x, manifest: b, weight: -1}\n"
        "  - web\n"
        "  - name: notes\n"
        "  - {name: '', manifest: '', weight: x}\n"
        "  phases:\n"
        "  - {until_tokens: 0, weights: {web: 1e999}}\n"
        "  - until_tokens: 4.5\n"
        "    weights:\n"
        "      web: lots\n"
        "      code: [1]\n"
        "  - {until_tokens: 4, weights: 3}\n",
    )
    told = "\n".join(problems(path, {"train.batch_schedule": "[{until_tokens: 1, global_batch_size: 0}]"}))
    for text in (
        f"data.sources, item 1: weightt = 0.8 ({path}, line 3): no such key; did you mean weight?",
        f"data.sources, item 2: name = code x ({path}, line 4): may hold only",
        f"data.sources, item 2: weight = -1 ({path}, line 4): must be at least 0",
        f"data.sources, item 3 = web ({path}, line 2): expected an item such as {{name: ..., manifest: ...}}",
        f"data.sources, item 4 ({path}, line 6): manifest is missing (manifest.json of the corpus",
        f"data.sources, item 5: name =  ({path}, line 7): must not be empty",
        f"data.sources, item 5: manifest =  ({path}, line 7): expected a path or a URL",
        f"data.sources, item 5: weight = x ({path}, line 7): expected a number",
        f"data.phases, item 1: until_tokens = 0 ({path}, line 9): must be at least 1",
        f"data.phases, item 1: weights.web = 1e999 ({path}, line 9): Input should be a finite number",
        f"data.phases, item 2: until_tokens = 4.5 ({path}, line 10): expected a whole number",
        f"data.phases, item 2: weights.web = lots ({path}, line 12): expected a number",
        f"data.phases, item 2: weights.code = [1] ({path}, line 13): expected a number",
        f"data.phases, item 3: weights = 3 ({path}, line 14): expected a number for each name",
        "train.batch_schedule, item 1: global_batch_size = 0 (command line): must be at least 1",
    ):
        assert text in told
    assert len(told.splitlines()) == 15, "nothing is told twice"


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("[{name: web", "not valid YAML: expected ',' or '}'"),
        ("none", "expected a list of items with name, manifest, weight, such as [{name: ..., manifest: ...}]"),
        ("data/web", "expected a list of items"),
        ("{name: web, manifest: data/web}", "expected a list of items"),
        ("", "expected a list of items"),
        ("[{name: a, manifest: b, name: c}]", "name is given twice; keep one of them"),
        ("[{[a]: b}]", "a key must be a name, not a list"),
        ("[&a {name: *a}]", "a mapping contains itself"),
        ("[[a]]", "item 1 = [a] (command line): expected an item such as"),
        ("[{}]", "name is missing"),
        ("[{namee: a, manifest: b}]", "namee = a (command line): no such key; did you mean name?"),
        ("[{name: [a], manifest: b}]", "name = [a] (command line): expected text"),
        ("[{name: null, manifest: b}]", "name = null (command line): expected text"),
    ],
)
def test_what_is_no_list_of_items(text: str, rule: str) -> None:
    told = problems(None, {"data.sources": text})
    assert rule in told[0] and told[0].startswith("data.sources")
    assert len(told) == (2 if text == "[{}]" else 1)


def test_a_mapping_in_place_of_the_list_is_told(tmp_path: Path) -> None:
    told = problems(written(tmp_path, "data: {sources: {web: {manifest: data/web}}}"))
    assert "data.sources.web.manifest = data/web" in told[0] and "data.sources is a list" in told[0]


names = st.text("abcXYZ019_.-", min_size=1, max_size=8)
texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(lambda text: text[0] != "~")
weights = st.floats(0, 1e300)
tokens = st.integers(1, 10**15)
sources = st.lists(st.builds(SourceConfig, name=names, manifest=texts, weight=weights), max_size=3).map(tuple)
phases = st.lists(
    st.builds(PhaseConfig, until_tokens=tokens, weights=st.dictionaries(names | texts, weights, max_size=3)), max_size=3
).map(tuple)
schedules = st.lists(
    st.builds(BatchPhaseConfig, until_tokens=tokens, global_batch_size=st.integers(1, 10**6)), max_size=3
).map(tuple)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@example(
    mixture=(SourceConfig(name="null", manifest="none"), SourceConfig(name="1_0", manifest="\x85: #", weight=5e-324)),
    parts=(PhaseConfig(until_tokens=1, weights={"null": 1.0, "~": 0.1, "\u2028": 0.0, "k" * 200: 2.0}),) * 2,
    schedule=(BatchPhaseConfig(until_tokens=1, global_batch_size=1),) * 2,
)
@given(mixture=sources, parts=phases, schedule=schedules)
def test_a_resolved_mixture_loads_as_the_same(tmp_path: Path, mixture, parts, schedule) -> None:  # type: ignore[no-untyped-def]
    plain = RunConfig()
    config = plain.model_copy(
        update={
            "data": plain.data.model_copy(update={"sources": mixture, "phases": parts}),
            "train": plain.train.model_copy(update={"batch_schedule": schedule}),
        }
    )
    assert load_config(written(tmp_path, dump_yaml(config)), {}) == config


def test_a_mistake_is_told_by_the_real_command(tmp_path: Path) -> None:
    command = [sys.executable, configs_dir().parent / "scaletrain/train.py", "--dry_run"]
    flags = ["--data.corpus", "none", "--data.sources", "[{name: web, manifst: x}]", "--run_dir", tmp_path / "run"]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "data.sources, item 1: manifst = x (command line): no such key; did you mean manifest?" in done.stderr
    assert "Traceback" not in done.stderr

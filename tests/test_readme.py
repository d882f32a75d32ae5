"""What README.md says is so: its commands run, its tables are the code's, its trees are what is there."""

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from scaletrain.config.load import load_config
from scaletrain.launch.verdicts import EXIT_CODES
from scaletrain.monitors.jsonl_writer import read_metrics
from scaletrain.planning.parameters import count_parameters
from tests.integration.runs import python
from tests.training.task_runs import records

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()

TINY = (
    "--model.d_model 32 --model.n_layers 1 --model.n_heads 2 --train.max_steps 2 --train.max_seq_len 32 "
    "--train.global_batch_size 4 --train.micro_batch_size 2 --train.compile false --train.precision fp32 "
    "--optim.warmup_steps 1 --eval.every_steps 2 --eval.max_sequences 4 --eval.sample_tokens 4 --data.num_workers 0"
)

TINY_PLAN = f"{TINY} --dry_run"  # of a run directory in which a tiny run was started

TRAINED = "deepspeed scaletrain/train.py --config mine.yaml"

# Commands that are run here, in this order, with what is added to make them short. DeepSpeed's launcher, which takes
# eight seconds before anything happens, is left to the integration tests: python stands in its place.
RUN_HERE = {
    "python tools/check_node.py": "--quick",
    "python tools/check_node.py --quick --nagios": "--expect gpus=0",
    "bash tools/demo.sh": "--dry_run",
    "bash tools/test.sh": "--version",
    "bash tools/setup.sh": "",
    "bash tools/test.sh tests/data -k order": "--collect-only -q",
    "HYPOTHESIS_PROFILE=thorough bash tools/test.sh tests/data/test_exact_stream.py": "--version",
    "python tools/make_shards.py build --input texts --out data/mine --train_tokenizer 8192": "--validation_share 0.2",
    (
        "python tools/make_shards.py build --input texts --out data/clean --tokenizer data/mine/tokenizer.json "
        "--config configs/corpus/clean.yaml"
    ): "--num_workers 0",
    (
        "python tools/make_shards.py index --shards 'theirs/part-*.tar' --field txt "
        "--tokenizer data/mine/tokenizer.json --out data/theirs/manifest.json"
    ): "--num_workers 0",
    "python scaletrain/train.py --config mine.yaml --dry_run": "",
    "WORLD_SIZE=64 python scaletrain/train.py --config mine.yaml --deepspeed configs/ds/zero2.json --dry_run": "",
    "deepspeed scaletrain/train.py --config mine.yaml": TINY,
    "deepspeed --num_gpus 2 scaletrain/train.py --config mine.yaml --optim.lr 3e-4": TINY_PLAN,
    "deepspeed --num_gpus 4 scaletrain/train.py --config mine.yaml --deepspeed configs/ds/zero3.json": TINY_PLAN,
    (
        "deepspeed scaletrain/finetune.py --config mine.yaml --run_dir runs/tuned --init runs/mine --optim.lr 6e-5"
    ): TINY_PLAN,
    "deepspeed scaletrain/finetune.py --config mine.yaml --run_dir runs/adapted --init runs/mine --lora.rank 8": TINY,
    "python tools/convert.py export_lora --source runs/adapted --out out/adapter": "",
    "python tools/inspect_data.py --run_dir runs/mine --step 2": "",
    "python tools/inspect_data.py --run_dir runs/mine --key 0000000012": "",
    "python tools/inspect_data.py --run_dir runs/mine --verify 1:3": "",
    "python -m scaletrain.launch.preview --gpu H100 -N 4 slurm/pretrain.sh --config mine.yaml": TINY,
    "python tools/status.py --run_dir runs/mine": "",
    "python tools/compare.py --runs 'runs/*' --out comparison.md": "",
    "python tools/report.py --run_dir runs/mine --html report.html": "",
    "python tools/inspect_checkpoint.py --run_dir runs/mine": "",
    "python tools/inspect_checkpoint.py --run_dir runs/mine --step newest --verify": "",
    'python tools/generate.py --run_dir runs/mine --prompt "Once upon a time" --temperature 0.7 --top_p 0.95': (
        "--max_new_tokens 4"
    ),
    (
        "python tools/make_shards.py build --input chats.jsonl --out data/chats --tokenizer data/mine/tokenizer.json "
        "--format chat --chat_template plain"
    ): "--num_workers 0",
    "python tools/make_shards.py pack --manifest data/chats --max_seq_len 1024": "--max_seq_len 32",
    "python tools/make_shards.py build --input pairs.jsonl --out data/pairs --train_tokenizer 8192 --format pairs": (
        "--num_workers 0"
    ),
    (
        "python tools/make_shards.py build --input topics.jsonl --out data/topics --tokenizer data/mine/tokenizer.json "
        "--format classes"
    ): "--num_workers 0",
    (
        "python tools/make_shards.py build --input sizes.jsonl --out data/sizes --tokenizer data/mine/tokenizer.json "
        "--format numbers"
    ): "--num_workers 0",
    "deepspeed scaletrain/train.py --config configs/pretrain/bert_base.yaml --data.manifest data/mine": TINY,
    "deepspeed scaletrain/train.py --config configs/pretrain/transformer_base.yaml --data.manifest data/pairs": TINY,
    (
        "deepspeed scaletrain/finetune.py --config configs/finetune/sft.yaml --init runs/mine "
        "--data.manifest data/chats"
    ): TINY,
    (
        "deepspeed scaletrain/finetune.py --config configs/finetune/sft_lora.yaml --init runs/mine "
        "--data.manifest data/chats"
    ): TINY,
    (
        "deepspeed scaletrain/finetune.py --config configs/finetune/classification.yaml --init runs/bert_base "
        "--data.manifest data/topics --model.n_classes 12"
    ): TINY,
    (
        "deepspeed scaletrain/finetune.py --config configs/finetune/regression.yaml --init runs/bert_base "
        "--data.manifest data/sizes --model.n_classes 1"
    ): TINY,
    'python tools/generate.py --run_dir runs/sft --chat "Which dogs are fast?"': "--max_new_tokens 4",
    'python tools/generate.py --run_dir runs/transformer_base --prompt "red cats"': "--max_new_tokens 4",
    (
        "python tools/predict.py --run_dir runs/classification --step best --input topics.jsonl --out predictions.jsonl"
    ): "",
    "python tools/evaluate.py --run_dir runs/classification --step best --split validation": "",
    "python tools/convert.py to_hf --source runs/mine --out out/mine": "",
    "python tools/convert.py from_hf --source out/mine --out out/start": "",
    "python tools/convert.py to_gguf --source runs/mine --out out/mine.gguf": "",
    "python tools/convert.py inspect --source out/start": "",
    "python tools/convert.py diff --a runs/mine --b out/start": "",
}

# Commands that are not run here: the file whose tests do what they do, and a word by which it is told that they do;
# or why none does.
RUN_ELSEWHERE = {
    "bash tools/test.sh -m slow": (".ci/run", "-m slow"),
    "bash tools/test.sh tests/integration tests/chaos": (".ci/run", "tests/integration tests/chaos"),
    "bash tools/test.sh tests/slurm": (".ci/run", "tests/slurm"),
    "bash tools/test.sh -m thorough": (None, "an hour of tests"),
    "sbatch -N 4 slurm/pretrain.sh --config mine.yaml": ("tests/slurm/jobs.py", "pretrain.sh"),
    "SPARE_NODES=1 sbatch -N 5 slurm/pretrain.sh --config mine.yaml": ("tests/slurm/test_nodes.py", "SPARE_NODES"),
    "sbatch -N 4 slurm/healthcheck.sh": ("tests/slurm/test_chains.py", "healthcheck.sh"),
    "sbatch --dependency=afterok:1234 slurm/finetune.sh --config mine.yaml --init runs/mine": (
        "tests/slurm/test_chains.py",
        "finetune.sh",
    ),
    "sbatch --array=0-2 slurm/sweep.sh rates.txt --config mine.yaml": ("tests/slurm/test_chains.py", "sweep.sh"),
    "python tools/convert.py consolidate --source runs/mine --out out/mine.safetensors --dtype bf16": (
        "tests/tools/test_convert.py",
        "consolidate",
    ),
    "python tools/convert.py universal --source runs/mine --out out/universal": (
        "tests/tools/test_convert.py",
        "universal",
    ),
    "python tools/convert.py average --source runs/mine@1,runs/mine@2 --out out/mean": (
        "tests/tools/test_convert.py",
        "average",
    ),
    "python tools/convert.py merge_lora --source out/mine --adapter path/to/adapter --out out/merged": (
        "tests/convert/test_lora.py",
        "merge_lora",
    ),
    "deepspeed tools/lr_find.py --config mine.yaml --out runs/lr_find": (
        "tests/integration/test_lr_find.py",
        "lr_find.py",
    ),
    "python tools/sweep.py --file rates.txt --config mine.yaml": ("tests/integration/test_sweep.py", "sweep.py"),
    "tensorboard --logdir runs": ("tests/integration/test_tensorboard.py", "--logdir"),
    "touch runs/mine/save": ("tests/integration/test_stopping.py", "save"),
    "touch runs/mine/stop": ("tests/integration/test_train_command.py", "stop"),
    "SCALETRAIN_PYTHON=/opt/env/bin/python bash tools/setup.sh": ("tests/tools/test_setup.py", "SCALETRAIN_PYTHON"),
    "SCALETRAIN_TORCH_INDEX=$MY_TORCH_INDEX bash tools/setup.sh": (
        None,
        "downloads a build of torch from another index",
    ),
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    found = [command for line in lines if (command := re.sub(r"(^|\s+)# .*", "", line).strip())]
    return found + [command for _, command, _ in rows("to learn")]


def rows(heading: str) -> list[list[str]]:
    """Cells of the table whose first line begins with a heading, without marks of code."""
    table = README[README.index(f"| {heading} |") :].split("\n\n")[0]
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def write_records(path: Path, made: Iterable[Mapping[str, object]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in made))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the checkout, with the texts and the file that the README speaks of."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("scaletrain", "tools", "configs", "slurm"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "texts").mkdir()
    for path in (ROOT / "scaletrain").rglob("*.py"):
        shutil.copy(path, folder / "texts" / path.relative_to(ROOT).as_posix().replace("/", "."))
    for name, format in {"chats": "chat", "pairs": "pairs", "topics": "classes"}.items():
        write_records(folder / f"{name}.jsonl", records(format))
    write_records(folder / "sizes.jsonl", ({"text": "word " * size, "value": size} for size in range(2, 60)))
    (folder / "theirs").mkdir()
    with tarfile.open(folder / "theirs/part-0.tar", "w") as tar:
        tar.add(ROOT / "README.md", "readme.txt")
    configuration, _ = blocks("yaml")  # the second is a fragment, which the tests of the configuration load
    (folder / "mine.yaml").write_text(configuration)
    return folder


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    words = shlex.split(command)
    variables = dict(word.split("=", 1) for word in itertools.takewhile(lambda word: "=" in word, words))
    program, *arguments = words[len(variables) :]
    if program == "python" and arguments[0] != "-m":
        return python(*arguments, environment=variables, folder=folder, timeout_s=140)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": ""}
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=140
    )


class Session:
    """Runs the commands one after the other, each when it or a later one is asked for: later ones need earlier ones."""

    def __init__(self, workspace: Path) -> None:
        self._workspace = workspace
        self._done: dict[str, subprocess.CompletedProcess[str]] = {}

    def __getitem__(self, command: str) -> subprocess.CompletedProcess[str]:
        for other in RUN_HERE:
            if command in self._done:
                break
            if other not in self._done:
                # The scripts find the checkout, and its environment, by their own place.
                folder = ROOT if "bash tools/" in other else self._workspace
                short = re.sub(r"^deepspeed( --num_gpus \d+)?", "python", other)
                self._done[other] = run(f"{short} {RUN_HERE[other]}", folder)
        return self._done[command]


@pytest.fixture(scope="module")
def results(workspace: Path) -> Session:
    return Session(workspace)


def test_every_command_is_run_by_a_test() -> None:
    known = RUN_HERE.keys() | RUN_ELSEWHERE.keys()
    assert set(commands()) - known == set(), "README.md gained commands that no test runs"
    assert known - set(commands()) == set(), "README.md lost commands that are listed here"


@pytest.mark.parametrize("command", RUN_ELSEWHERE)
def test_what_is_run_elsewhere_is_run_there(command: str) -> None:
    file, word = RUN_ELSEWHERE[command]
    if file is not None:
        assert word in (ROOT / file).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("command", RUN_HERE)
def test_a_command_works(command: str, results: Session) -> None:
    result = results[command]
    assert result.returncode == 0, result.stdout[-4000:] + (result.stderr or "")


@pytest.mark.slow
def test_a_plan_is_for_as_many_ranks_as_asked(results: Session) -> None:
    plans = {command: results[command].stdout for command in RUN_HERE if command.endswith("--dry_run")}
    one, many = plans.values()
    assert "1 ranks x 8 micro steps x 8 sequences, ZeRO 1" in one
    assert "64 ranks x 1 micro steps x 8 sequences, ZeRO 2" in many


@pytest.mark.slow
def test_the_snippet_prints_the_metrics(workspace: Path, results: Session) -> None:
    assert results[TRAINED].returncode == 0
    (snippet,) = blocks("python")
    result = subprocess.run([sys.executable, "-c", snippet], cwd=workspace, capture_output=True, text=True, timeout=60)
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["1", "2"], result.stderr


@pytest.mark.slow
def test_metrics_are_those_of_the_table(workspace: Path, results: Session) -> None:
    assert results[TRAINED].returncode == 0
    written = {name for row in read_metrics(workspace / "runs/mine/metrics.jsonl") for name in row if "/" in name}
    # What a machine tells depends on it, and one rank is compared with nobody: pages in docs/ list that.
    elsewhere = ("text/", "gpu/", "host/", "straggler/")
    assert {name for name in written if not name.startswith(elsewhere)} == {row[0] for row in rows("metric")}


@pytest.mark.slow
def test_a_run_directory_holds_what_is_said(workspace: Path, results: Session) -> None:
    (listing,) = [block for block in blocks("text") if block.startswith("config.yaml")]
    said = {line.split()[0].rstrip("/") for line in listing.splitlines()}
    assert {path.name for path in (workspace / "runs/mine").iterdir() if not path.name.startswith(".")} == said


def test_events_are_those_of_the_table() -> None:
    code = "\n".join(path.read_text() for path in (ROOT / "scaletrain").rglob("*.py"))
    written = set(re.findall(r"""(?:record_event\(|append_event\([^"]*"events.jsonl", |_EVENT = )\s*"(\w+)\"""", code))
    told = {name for cell, _ in rows("event") for name in re.findall(r"\w+", cell)}
    assert len(written) > 10 and written <= told
    assert [name for name in told if f'"{name}"' not in code] == []


def test_the_pages_are_named() -> None:
    line = README[README.index("\ndocs/ ") :].split("\ntests/")[0]
    named = {page.strip().replace(" ", "_") for page in " ".join(line.split()).removeprefix("docs/").split(",")}
    assert named == {path.stem for path in (ROOT / "docs").glob("*.md")}


def test_verdicts_have_the_codes_of_the_table() -> None:
    said = dict(re.findall(r"`(\w+)`, (\d+)", README)) | {
        name: code for code, name in re.findall(r"(\d+)\s\(`(\w+)`\)", README)
    }
    assert said == {verdict.value: str(code) for verdict, code in EXIT_CODES.items()}


def test_presets_have_the_parameters_of_the_table() -> None:
    cells = [cell for row in rows("preset") for cell in (row[:2], row[3:])]
    presets = {path.stem for path in (ROOT / "configs/model").glob("*.yaml")}
    assert {name for name, _ in cells} == presets
    for name, count in cells:
        assert f"{count_parameters(load_config(None, {'model.preset': name}).model).total:,}" == count, name


def test_the_tree_is_what_is_there() -> None:
    (tree,) = [block for block in blocks("text") if block.startswith("scaletrain/")]
    said: set[Path] = set()
    top = Path()
    for line in tree.splitlines():
        # Names come first, with two spaces between them; a note is words with single spaces, or none.
        names = [name for name in re.split(r"\s{2,}", line.strip()) if re.fullmatch(r"\w+/|\w+\.(py|sh|yaml)", name)]
        top = top if line.startswith(" ") else Path(names[0])
        said.update(top / name if line.startswith(" ") else Path(name) for name in names)
    assert [path for path in said if not (ROOT / path).exists()] == []
    for folder in ("scaletrain", "configs", "tools"):
        there = {path.relative_to(ROOT) for path in (ROOT / folder).iterdir() if not path.name.startswith("__")}
        assert {path for path in there if path.is_dir() or path.suffix in (".py", ".sh", ".yaml")} <= said


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"

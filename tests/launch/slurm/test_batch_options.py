"""Options as sbatch reads them, compared with the real one, which tells them before it looks for a controller."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaletrain.errors import ConfigError
from scaletrain.launch.slurm.batch_options import (
    Option,
    count_nodes,
    count_tasks,
    first_task,
    gpus_per_node,
    job_environment,
    merge,
    read_command_line,
    read_environment,
    read_script,
    signal_lead_s,
    time_limit_s,
)

ROOT = Path(__file__).parents[3]
# Of a cluster that is not there.
SLURM_CONF = """ClusterName=none
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=1
AuthType=auth/none
CredType=cred/none
NodeName=n1
PartitionName=p Nodes=n1
"""
# How sbatch tells of options without a value, and of nothing.
SET = {"exclusive": "exclusive", "oversubscribe": "oversubscribe", "no-kill": "set", "overcommit": "set"}


class RealSbatch:
    """sbatch itself, asked to tell its options and stopped before it looks for a controller."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.conf = folder / "slurm.conf"
        self.conf.write_text(SLURM_CONF)

    def options(self, script: str, words: Sequence[str] = (), **variables: str) -> dict[str, str] | None:
        """What it understood; None where it refused."""
        path = self.folder / "script.sh"
        path.write_text(script)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SBATCH_", "SLURM_"))}
        process = subprocess.Popen(
            ["sbatch", "-vv", *words, str(path)],
            env=kept | {"SLURM_CONF": str(self.conf)} | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        found: dict[str, str] = {}
        try:
            assert process.stderr is not None
            for line in process.stderr:
                name, colon, value = line.removeprefix("sbatch: ").partition(":")
                if "end of defined options" in line:
                    return found
                if colon and name.endswith(" "):
                    found[name.strip()] = value.strip()
        finally:
            process.kill()
            process.communicate()
        return None


@pytest.fixture(scope="module")
def sbatch(tmp_path_factory: pytest.TempPathFactory) -> RealSbatch:
    if shutil.which("sbatch") is None:
        pytest.skip("not installed: sbatch (apt-get install slurm-wlm)")
    return RealSbatch(tmp_path_factory.mktemp("sbatch"))


def values(options: dict[str, Option]) -> dict[str, str]:
    return {name: option.value for name, option in options.items()}


def compare(sbatch: RealSbatch, script: str, words: Sequence[str] = (), **variables: str) -> None:
    """Both understand the same, or both refuse."""
    real = sbatch.options(script, words, **variables)
    try:
        line = read_command_line([*words, "script.sh"])
        ours = values(merge(read_script(script), read_environment(variables), line.options))
        time_s = time_limit_s(ours.pop("time")) if "time" in ours else -1.0
    except ConfigError as error:
        assert real is None, f"{error}, but sbatch took {script!r} {words} as {real}"
        return
    assert real is not None, f"sbatch refuses {script!r} {words}, taken as {ours}"
    real.pop("verbose", None)
    if time_s != -1.0:
        minutes = None if time_s is None else -(-int(time_s) // 60)  # sbatch rounds up
        days, rest = divmod(minutes or 0, 24 * 60)
        shown = f"{f'{days}-' if days else ''}{rest // 60:02}:{rest % 60:02}:00"
        assert real.pop("time") == ("UNLIMITED" if minutes is None else shown)
    assert real == {name: value.strip() or SET[name] for name, value in ours.items()}


HEAD = "#!/bin/bash\n"


@pytest.mark.parametrize(
    "script",
    [
        HEAD + "##SBATCH -p no\n#SBATCH -N2 -t 5 # why\n #SBATCH -N 9\n\n#SBATCH -N 3\necho\n",
        HEAD + "#SBATCH --comment 'a b' --exclusive\n#SBATCH\n",
        HEAD + '#SBATCH --comment="it\'s here"\n',
        HEAD + "#SBATCH -J a#b\n",
        HEAD + "#SBATCH --comment=a\\ b\n",
        HEAD + "#SBATCH --comment=a\\b\n",
        HEAD + "#SBATCH --comment='a\\'b' -J \"a\\\\b\"\n",
        HEAD + "#SBATCH --comment=\"a b\"c'd'\\#e\n",
        HEAD + "#SBATCH--nodes=2-4\n#SBATCH\t-p gpu\n",
        HEAD + '#SBATCH --comment="open\n',
        HEAD + "#SBATCH words\n",
        "#SBATCH -N 2\n",
        HEAD + "#SBATCH -N 2\r\n",
        "",
    ],
)
def test_scripts_are_read_as_by_sbatch(sbatch: RealSbatch, script: str) -> None:
    compare(sbatch, script)


@pytest.mark.parametrize(
    "words",
    [
        "-N 4 -t 1:00:00 -p gpu",
        "-N4 -t1-12 --signal=B:USR2@180",
        "--nodes=4 --time 30 --partition=gpu",
        "--node=4",
        "--part=gpu --exc",
        "--exclu",
        "-J=x",
        "-Os -N4",
        "-sk --array=0-3%2",
        "--no-such-option",
        "-Z",
        "--overcommit=1",
        "--exclusive -k",
        "-N 4 --",
        "-t 0",
        "-t 1:30",
        "-t 1-0:30",
        "-t 2-3:04:05",
        "-t 90:00",
        "-t UNLIMITED",
        "-t infinite",
        "-t soon",
        "-t 1:2:3:4",
    ],
)
def test_command_lines_are_read_as_by_sbatch(sbatch: RealSbatch, words: str) -> None:
    compare(sbatch, HEAD + "#SBATCH -N 2\n", words.split())


def test_the_environment_stands_between_the_script_and_the_command_line(sbatch: RealSbatch) -> None:
    script = HEAD + "#SBATCH -t 5 -p mine -J here\n"
    variables = {"SBATCH_TIMELIMIT": "7", "SBATCH_PARTITION": "theirs", "SBATCH_JOB_NAME": "there", "SBATCH_NODES": "9"}
    compare(sbatch, script, ["-p", "typed"], **variables)
    compare(sbatch, script, [], SBATCH_EXCLUSIVE="", SBATCH_OVERCOMMIT="")


PIECES = st.sampled_from(
    [
        "-N 2",
        "-N3",
        "--nodes=4-8",
        "-t 5",
        "--time=1:00:00",
        "--comment='a #b'",
        '--comment "c d"',
        '-J "\\\\x"',
        "--job-name=y\\z",
        "--exclusive",
        "-Op gpu",
        "# a word",
        "#",
        "--array=1-3",
        "--comment='",
        "x",
    ]
)
LINES = st.one_of(
    st.lists(PIECES, max_size=3).map(lambda pieces: "#SBATCH " + " ".join(pieces)),
    st.sampled_from(["", "   ", "# comment", "##SBATCH -N 7", "  #SBATCH -N 7", "#!SBATCH -N 7", "#\tSBATCH"]),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(LINES, max_size=4))
def test_any_lines_are_read_as_by_sbatch(sbatch: RealSbatch, lines: list[str]) -> None:
    compare(sbatch, HEAD + "\n".join(lines) + "\necho\n")


@pytest.mark.parametrize("script", sorted((ROOT / "slurm").glob("*.sh")), ids=lambda path: path.name)
def test_the_lines_of_shipped_scripts_are_literal(script: Path) -> None:
    if script.name == "job.sh":
        return
    options = read_script(script.read_text())
    assert {"nodes", "gpus-per-node", "time", "job-name", "output", "no-kill"} <= options.keys()
    assert "partition" not in options  # a cluster's name is the user's to give


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("#SBATCH --nodes=$NODES", r"line 2: .*expands no variable"),
        ("#SBATCH --nodes=`count`", r"line 2: .*expands no variable"),
        ("\n\necho\n#SBATCH -t 5", r"line 5: .*below the first command"),
    ],
)
def test_what_sbatch_takes_without_a_word_is_refused(line: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        read_script(HEAD + line + "\n")


def test_a_dollar_in_a_comment_is_no_variable() -> None:
    assert values(read_script(HEAD + "#SBATCH -N 2 # costs $5\n")) == {"nodes": "2"}


def test_what_follows_the_script_is_its_own() -> None:
    line = read_command_line(["-H", "script.sh", "-N", "4", "--config", "a b"])
    assert (values(dict(line.options)), line.script) == ({"hold": ""}, "script.sh")
    assert line.arguments == ("-N", "4", "--config", "a b")
    for words in (["-N", "4"], ["-N"], ["--time"]):
        with pytest.raises(ConfigError, match=r"no script is given|needs a value"):
            read_command_line(words)


def test_a_later_word_on_requeues_takes_the_earlier_ones_place() -> None:
    asked, forbidden = {"requeue": Option("", "script")}, {"no-requeue": Option("", "typed")}
    assert list(merge(asked, forbidden)) == ["no-requeue"]
    assert list(merge(forbidden, asked)) == ["requeue"]


def test_an_option_of_a_later_slurm_is_passed_on_once_its_value_is_marked() -> None:
    assert values(dict(read_command_line(["--segment=4", "s.sh"]).options)) == {"segment": "4"}
    with pytest.raises(ConfigError, match="--segment=VALUE"):
        read_command_line(["--segment", "4", "s.sh"])


def given_options(**texts: str) -> dict[str, Option]:
    return {name.replace("_", "-"): Option(value, "here") for name, value in texts.items()}


@pytest.mark.parametrize(
    ("options", "gpus"),
    [
        ({"gpus_per_node": "8"}, 8),
        ({"gpus_per_node": "h100:8"}, 8),
        ({"gpus_per_node": "a100:2,h100:4"}, 6),
        ({"gres": "gpu:4,nvme:1"}, 4),
        ({"gres": "nvme:2,gpu:h100:4"}, 4),
        ({"gres": "gpu"}, 1),
        ({"gpus": "16", "nodes": "2"}, 8),
        ({"nodes": "2"}, 0),
    ],
)
def test_gpus_of_a_node(options: dict[str, str], gpus: int) -> None:
    assert gpus_per_node(given_options(**options)) == gpus


@pytest.mark.parametrize(
    ("export", "reaches"),
    [
        (None, {"A": "1", "B": "2"}),
        ("ALL", {"A": "1", "B": "2"}),
        ("NONE", {}),
        ("A", {"A": "1"}),
        ("A,C=3,D", {"A": "1", "C": "3"}),
        ("B=9,ALL", {"A": "1", "B": "9"}),
        ("ALL,B=9", {"A": "1", "B": "9"}),
    ],
)
def test_which_variables_reach_the_job(export: str | None, reaches: dict[str, str]) -> None:
    options = {} if export is None else given_options(export=export)
    assert job_environment(options, {"A": "1", "B": "2"}) == reaches


def test_sizes_that_make_no_sense_are_told() -> None:
    with pytest.raises(ConfigError, match="--gpus=7 on 2 nodes"):
        gpus_per_node(given_options(gpus="7", nodes="2"))
    for text in ("0", "many", "=4"):
        with pytest.raises(ConfigError, match="number of nodes"):
            count_nodes(given_options(nodes=text))
    assert count_nodes(given_options(nodes="2-4")) == 2


def test_tasks_of_an_array() -> None:
    assert [count_tasks(text) for text in ("0-7", "1,3,5", "0-15:4%2", "5", "1-3,2-4")] == [8, 3, 4, 1, 4]
    assert first_task("7,3-5") == 3
    for text in ("", "a", "3-1", "0-4:0"):
        with pytest.raises(ConfigError, match="no list of tasks"):
            count_tasks(text)


def test_when_the_job_is_told_of_its_end() -> None:
    assert signal_lead_s(given_options(signal="B:USR2@180")) == 180
    assert signal_lead_s(given_options(signal="USR2")) == 60
    assert signal_lead_s({}) == 60

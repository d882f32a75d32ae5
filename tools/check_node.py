"""Tells whether this node is fit for training: GPUs, host, folders, arithmetic, memory and connections.

python tools/check_node.py --expect gpus=8,driver=570.124
"""

import contextlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import fire
from fire_tool import run_tool
from typed_values import positive, truth

from scaletrain.errors import ConfigError
from scaletrain.hardware.checklist import check_whole_node
from scaletrain.hardware.expectation import Expectation
from scaletrain.hardware.node_report import NAGIOS_CODES, as_data, as_nagios, as_text, node_name, worst
from scaletrain.hardware.rules import Rule, load_both_rules

_LIMIT_S, _QUICK_LIMIT_S = 300.0, 50.0
"""The second is below the 60 s after which Slurm kills its HealthCheckProgram (slurm.conf)."""
_BROKEN = NAGIOS_CODES["unknown"]


@dataclass(frozen=True)
class Request:
    """What was typed, each value of its type."""

    expected: Expectation
    rules: dict[str, Rule]
    rules_file: Path | None
    quick: bool
    json: bool
    nagios: bool
    limit_s: float


@fire.decorators.SetParseFn(str)  # type: ignore[untyped-decorator]  # a version such as 570.10 is text
def parse(
    *,
    expect: str = "",
    quick: str = "False",
    json: str = "False",
    nagios: str = "False",
    rules: str | None = None,
    limit_s: str | None = None,
) -> Request:
    """Tells whether this node is fit for training; the exit code is 1 where it is not.

    Args:
        expect: What there should be, such as gpus=8,driver=570.124,cuda=12.8,nvlinks=18,all_reduce_gb_per_s=300,
            min_memory_gib=900,min_free_gib=50. A version is compared as far as it is given.
        quick: Only what driver and kernel tell, in seconds and without torch.
        json: Print all as one JSON object.
        nagios: Print one line with figures; exit code 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN.
        rules: A YAML file with changes to the rules, as for monitor.health.rules.
        limit_s: Longest time in seconds, whatever hangs; by default 50 with --quick, else 300.
    """
    flags = {name: truth(name, text) for name, text in {"quick": quick, "json": json, "nagios": nagios}.items()}
    if flags["json"] and flags["nagios"]:
        raise ConfigError("--json and --nagios are two ways to print; choose one")
    file = None if rules is None else Path(rules)
    of_gpus, _ = load_both_rules(file)  # those of hosts are read by the process that uses them: here for their mistakes
    usual_s = _QUICK_LIMIT_S if flags["quick"] else _LIMIT_S
    limit = usual_s if limit_s is None else positive("limit_s", limit_s)
    return Request(Expectation.from_words(expect), of_gpus, file, **flags, limit_s=limit)


def run(request: Request) -> int:
    name = node_name()
    findings = check_whole_node(request.expected, request.rules, request.rules_file, request.quick, request.limit_s)
    if request.nagios:
        print(as_nagios(findings, name))
        return NAGIOS_CODES[worst(findings)]
    if request.json:
        print(json.dumps(as_data(findings, name)))
    else:
        print("\n".join(as_text(findings, name)))
    return int(worst(findings) == "fail")


def run_for_nagios(request: Request) -> int:
    """What must not be taken for a warning: a check that broke."""
    try:
        return run(request)
    except Exception as error:  # whatever broke: Python's own code for it, 1, means a warning here
        print(f"UNKNOWN - the check itself failed: {type(error).__name__}: {error}".replace("|", "/"))
        return _BROKEN


def main() -> int:
    if not any(word.startswith(("--nagios", "-n")) for word in sys.argv):
        return run_tool("check_node.py", parse, run)
    with contextlib.redirect_stderr(sys.stdout):  # a monitoring system shows only that
        return run_tool("check_node.py", parse, run_for_nagios, _BROKEN)


if __name__ == "__main__":
    sys.exit(main())

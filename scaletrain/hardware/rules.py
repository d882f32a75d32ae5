"""The rules by which readings of GPUs and hosts are judged: their files, and a user's changes to them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from scaletrain.config.coercion import coerce
from scaletrain.config.fields import limits, nearest
from scaletrain.config.files import Given, find_file, read_yaml
from scaletrain.config.section import Section
from scaletrain.errors import ConfigError
from scaletrain.hardware.host_signals import HOST_SIGNALS, is_host_signal
from scaletrain.hardware.signals import SIGNALS

SHIPPED = Path(__file__).with_name("health_rules.yaml")
HOST_RULES = Path(__file__).with_name("host_rules.yaml")
_OF_HOST = "host_"
"""How the names of rules of hosts begin."""
_WAYS = ("polls", "times")
_OFF = ("off", "false", "no")
_RANGES = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")

# info: noted. warn: a person should look. drain: save at the next checkpoint, then do without the node. abort: end now.
Severity = Literal["info", "warn", "drain", "abort"]
Repair = Literal["none", "restart_app", "reset_gpu", "reboot", "inspect"]
SEVERITIES: tuple[Severity, ...] = ("info", "warn", "drain", "abort")


class Rule(Section):
    """When a signal becomes a finding, and what follows.

    A poll breaks the rule where the measure is more than ``above``. The rule is broken where polls do so as often as
    ``polls``, ``for_s`` and ``times`` ask.
    """

    name: str = Field(description="what a user overrides it by")
    signal: str = Field(description="what is looked at: a key of signals.SIGNALS, or one of host_signals")
    code: int | None = Field(None, ge=1, le=9999, description="of signal xid: the code")
    measure: Literal["level", "rise", "step", "rise_in_window"] = Field(
        "level", description="the value; its rise since the job began; since the poll before; within window_s"
    )
    window_s: float = Field(60.0, gt=0, le=86400, description="of measure rise_in_window")
    above: float = Field(0.0, description="a poll breaks the rule where the measure is more than this")
    polls: int | None = Field(None, ge=1, le=1000, description="so many in a row; 1 where times is not given either")
    for_s: float = Field(0.0, ge=0, le=3600, description="and the first of them at least so long ago")
    times: int | None = Field(None, ge=2, le=1000, description="or so many within within_s")
    within_s: float = Field(600.0, gt=0, le=86400, description="of times")
    when: Literal["always", "start", "running"] = Field("always", description="before a job starts, in it, or both")
    after_boot_s: float = Field(0.0, ge=0, le=86400, description="not before the machine is up so long")
    yields_to: tuple[str, ...] = Field((), description="rules whose finding of the same minute says more")
    severity: Severity
    if_straggler: Severity | None = Field(
        None, description="the severity instead, where the GPU's rank is slow to compute and holds the others up"
    )
    action: Repair
    title: str = Field(min_length=1, description="what is wrong")
    remedy: str = Field(min_length=1, description="what to do")
    source: str = Field(min_length=1, description="where the rule comes from")

    def condition(self) -> str:
        """When it is broken, in words."""
        if self.signal == "xid":
            return f"XID {self.code}" if self.code else "an XID that no other rule names"
        ways = {
            "level": f"{self.signal} more than {self.above:g}",
            "rise": f"{self.signal} more than {self.above:g} up since the job began",
            "step": f"{self.signal} more than {self.above:g} up since the poll before",
            "rise_in_window": f"{self.signal} more than {self.above:g} up within {self.window_s:g} s",
        }
        often = []
        if (self.polls or 1) > 1:
            often.append(f"in {self.polls} polls in a row")
        if self.times:
            often.append(f"in {self.times} polls within {self.within_s:g} s")
        held = f", for {self.for_s:g} s" if self.for_s else ""
        boot = f", from {self.after_boot_s:g} s after boot" if self.after_boot_s else ""
        return ways[self.measure] + (", " + " or ".join(often) if often else "") + held + boot


def load_rules(path: Path | None = None) -> dict[str, Rule]:
    """Reads the rules of GPUs that ship, with a user's changes.

    In the user's file each key is a rule's name: ``hw_slowdown: {polls: 5}`` changes what it names, ``pcie_replays:
    off`` leaves the rule out, and a new name with at least a signal, severity, action, title, remedy and source adds
    one.

    Args:
        path: A YAML file, looked up as given and then in the repository; None for no changes.

    Returns:
        The rules that are in force, by name.

    Raises:
        ConfigError: Lists all that is wrong, each with the rule, the key, the value, where it stands, and the remedy.
    """
    rules, problems = _load(path, SHIPPED, is_of_host=False)
    _refuse(problems)
    return rules


def load_host_rules(path: Path | None = None) -> dict[str, Rule]:
    """Reads the rules of hosts that ship, with a user's changes.

    They may stand in one file with those of GPUs: what their names begin with, "host_", tells them apart.

    Args:
        path: As for ``load_rules``.

    Returns:
        The rules that are in force, by name.

    Raises:
        ConfigError: As for ``load_rules``.
    """
    rules, problems = _load(path, HOST_RULES, is_of_host=True)
    _refuse(problems)
    return rules


def load_both_rules(path: Path | None = None) -> tuple[dict[str, Rule], dict[str, Rule]]:
    """Reads the rules of GPUs and those of hosts, and tells the mistakes in both at once.

    Args:
        path: As for ``load_rules``.

    Returns:
        What ``load_rules`` and ``load_host_rules`` return.

    Raises:
        ConfigError: As for ``load_rules``.
    """
    of_gpus, problems = _load(path, SHIPPED, is_of_host=False)
    of_hosts, problems_of_hosts = _load(path, HOST_RULES, is_of_host=True)
    _refuse([*problems, *problems_of_hosts])
    return of_gpus, of_hosts


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise ConfigError("The health rules cannot be used:\n" + "\n".join(f"  {line}" for line in problems))


def _load(path: Path | None, file: Path, is_of_host: bool) -> tuple[dict[str, Rule], list[str]]:
    given = read_yaml(file)
    shipped = {key.partition(".")[0] for key in given}
    problems: list[str] = []
    off: set[str] = set()
    changes: dict[str, Given] = {}
    for key, entry in (read_yaml(find_file(path, "the health rules")) if path else {}).items():
        name, _, field = key.partition(".")
        if name.startswith(_OF_HOST) != is_of_host:
            continue
        if not field and name in shipped and str(entry.value).lower() in _OFF:
            off.add(name)
        elif not field and name in shipped:
            problems.append(f"{name} ({entry.origin}): a rule is changed by its keys, or switched off by '{name}: off'")
        elif not field:
            problems.append(f"{name} ({entry.origin}): no rule of this name ships{_meant(name)}")
        elif field not in Rule.model_fields or field == "name":
            near = [one for one in nearest(field, Rule.model_fields) if one != "name"]
            known = f"did you mean: {', '.join(near)}?" if near else "docs/gpu_health.md lists them"
            problems.append(f"{key} ({entry.origin}): a rule has no key {field!r}; {known}")
        else:
            if field in _WAYS and name in shipped:
                # The one that is given is the one that is meant: the other would tell earlier than it says.
                for other in _WAYS:
                    given.pop(f"{name}.{other}", None)
            changes[key] = entry
    both = sorted(off & set(_by_rule(changes)))
    problems += [f"{name}: the file switches this rule off and changes it; leave one of the two out" for name in both]
    given |= changes
    rules: dict[str, Rule] = {}
    for name, entries in _by_rule(given).items():
        rule, wrong = _build(name, entries, known=name in shipped)
        problems += wrong
        if rule is not None and name not in off:
            rules[name] = rule
    problems += _contradictions(rules, set(_by_rule(given)))
    return rules, problems


def _by_rule(given: Mapping[str, Given]) -> dict[str, dict[str, Given]]:
    rules: dict[str, dict[str, Given]] = {}
    for key, entry in given.items():
        name, _, field = key.partition(".")
        rules.setdefault(name, {})[field] = entry
    return rules


def _build(name: str, entries: Mapping[str, Given], known: bool) -> tuple[Rule | None, list[str]]:
    values: dict[str, Any] = {"name": name}
    problems = []
    for field, entry in entries.items():
        try:
            values[field] = coerce(Rule.model_fields[field].annotation, entry.value)
        except ValueError as error:
            problems.append(f"{name}.{field} = {entry.value} ({entry.origin}): {error}")
    missing = [
        key for key, field in Rule.model_fields.items() if field.is_required() and key not in {*entries, *values}
    ]
    if missing and not known:
        place = next(iter(entries.values())).origin
        lacks = ", ".join(missing)
        problems.append(f"{name} ({place}): no rule of this name ships, and a new one lacks {lacks}{_meant(name)}")
    if problems:
        return None, problems
    try:
        return Rule.model_validate(values), []
    except ValidationError as error:
        return None, [_out_of_range(name, detail, entries) for detail in error.errors(include_url=False)]


def _meant(name: str) -> str:
    known = dict.fromkeys(key.partition(".")[0] for one in (SHIPPED, HOST_RULES) for key in read_yaml(one))
    near = nearest(name, known)
    return f"; did you mean {', '.join(near)}?" if near else "; docs/gpu_health.md and docs/host_health.md list them"


def _meant_signal(signal: str, of_host: bool) -> str:
    if is_host_signal(signal):
        return f"a signal of the host; begin the rule's name with {_OF_HOST}"
    if signal in SIGNALS:
        return f"a signal of GPUs; begin the rule's name with something else than {_OF_HOST}"
    near = nearest(signal, HOST_SIGNALS if of_host else SIGNALS)
    page = "docs/host_health.md" if of_host else "docs/gpu_health.md"
    return "there is no such signal; " + (f"did you mean: {', '.join(near)}?" if near else f"{page} lists them")


def _out_of_range(name: str, detail: Any, entries: Mapping[str, Given]) -> str:
    field = str(detail["loc"][0])
    rule = f"must be {limits(Rule.model_fields[field])}" if detail["type"] in _RANGES else detail["msg"]
    return f"{name}.{field} = {detail['input']} ({entries[field].origin}): {rule}; give another value"


def _contradictions(rules: Mapping[str, Rule], named: set[str]) -> Iterator[str]:
    for name, rule in rules.items():
        of_host = name.startswith(_OF_HOST)
        if not (is_host_signal(rule.signal) if of_host else rule.signal in SIGNALS):
            yield f"{name}.signal = {rule.signal}: {_meant_signal(rule.signal, of_host)}"
        if rule.code is not None and rule.signal != "xid":
            yield f"{name}.code = {rule.code}: only the signal xid has codes; leave it out"
        for other in rule.yields_to:
            if other not in named:
                yield f"{name}.yields_to = {other}: there is no such rule; name one that there is"
            if other == name:
                yield f"{name}.yields_to = {other}: it would never be told; leave it out"
        if of_host and rule.if_straggler is not None:
            yield f"{name}.if_straggler = {rule.if_straggler}: only rules of GPUs ask for that; leave it out"
    codes: dict[int | None, str] = {}
    for name, rule in rules.items():
        if rule.signal == "xid" and codes.setdefault(rule.code, name) != name:
            yield f"{name}.code = {rule.code}: {codes[rule.code]} judges this code already; change that rule instead"

"""What is wanted of a node, as a job's launcher and a user say it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields

from scaletrain.errors import ConfigError

_BY_JOB = ("gpus", "shared_dir", "token")
# What a user may name, and how it is read.
_BY_USER = {
    "gpus": int,
    "driver": str,
    "cuda": str,
    "nvlinks": int,
    "all_reduce_gb_per_s": float,
    "min_free_gib": float,
    "min_memory_gib": float,
}


@dataclass(frozen=True)
class Expectation:
    """What is wanted of a node.

    Attributes:
        gpus: GPUs; 0 for a training on CPUs; None where nobody counts on a number.
        shared_dir: Folder on the shared file system, with a file ``token``; empty where none is looked at.
        token: What stands in that file.
        addresses: Address of each node of the job by name.
        min_free_gib: Free space wanted in the folder for temporary files.
        min_memory_gib: Memory wanted.
        limit_s: Longest time for the process that calculates.
        rules: A YAML file with changes to the rules of GPUs; empty for none.
        driver: Version of NVIDIA's driver, or how it begins ("570.124"); empty for any.
        cuda: The same of the CUDA version that the driver supports.
        nvlinks: NVLinks that are up on each GPU; None for any number.
        all_reduce_gb_per_s: Least bus bandwidth of an all-reduce over the node's GPUs.
    """

    gpus: int | None
    shared_dir: str = ""
    token: str = ""
    addresses: Mapping[str, str] = field(default_factory=dict)
    min_free_gib: float = 1.0
    min_memory_gib: float = 1.0
    limit_s: float = 60.0
    rules: str = ""
    driver: str = ""
    cuda: str = ""
    nvlinks: int | None = None
    all_reduce_gb_per_s: float = 0.0

    @classmethod
    def from_json(cls, text: str) -> "Expectation":
        """Reads what a job wants.

        Args:
            text: A JSON object with the attributes as keys.

        Returns:
            The expectation.

        Raises:
            ConfigError: It is none; says what is wrong with it.
        """
        try:
            given = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"the expectation {text!r} is not JSON: {error}") from None
        known = {one.name for one in fields(cls)}
        if not isinstance(given, dict) or given.keys() - known or set(_BY_JOB) - given.keys():
            raise ConfigError(
                f"the expectation {text!r} must be an object with {', '.join(_BY_JOB)}, and may have "
                f"{', '.join(sorted(known - set(_BY_JOB)))}"
            )
        return cls(**given)

    @classmethod
    def from_words(cls, text: str) -> "Expectation":
        """Reads what a user wants.

        Args:
            text: Such as ``gpus=8,driver=570.124``; may be empty.

        Returns:
            The expectation.

        Raises:
            ConfigError: A word means nothing, or is of GPUs where none are expected; names it, and what there is.
        """
        given: dict[str, int | str | float] = {}
        for word in filter(None, (word.strip() for word in text.split(","))):
            name, _, value = (part.strip() for part in word.partition("="))
            if name not in _BY_USER or not value:
                known = ", ".join(f"{one}=..." for one in _BY_USER)
                raise ConfigError(f"--expect {word}: give some of {known}, with commas in between")
            try:
                given[name] = _BY_USER[name](value)
            except ValueError:
                kind = "a whole number" if _BY_USER[name] is int else "a number"
                raise ConfigError(f"--expect {word}: {name} is {kind}") from None
            if not isinstance(given[name], str) and not float(given[name]) >= 0:
                raise ConfigError(f"--expect {word}: {name} is out of range; give 0 or a number above it")
        of_gpus = [name for name in ("driver", "cuda", "nvlinks") if given.get(name)]
        if given.get("gpus") == 0 and of_gpus:
            raise ConfigError(f"--expect gpus=0: {', '.join(of_gpus)} is of GPUs; leave it out, or expect some")
        return cls(**{"gpus": None, **given})  # type: ignore[arg-type]  # each was read by its kind

    def to_json(self) -> str:
        """Writes the expectation as ``from_json`` reads it."""
        return json.dumps(asdict(self))

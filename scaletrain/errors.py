"""The errors a user can meet, and the exit code each one leads to."""


class ScaletrainError(Exception):
    """Base of all errors that are reported as a message, without a traceback.

    The message gives the value that is wrong, the rule it breaks and the remedy.
    """


class ConfigError(ScaletrainError):
    """The configuration, the command line or the run directory cannot be used."""


class DataError(ScaletrainError):
    """A corpus, a manifest, an index or a shard cannot be used."""


class UnreachableError(DataError):
    """What a corpus consists of cannot be reached now, though it may be there: another start may find it."""


class CacheError(DataError):
    """The cache of this machine cannot be used; nothing is known to be wrong with what was to be kept in it."""


class BadShardError(DataError):
    """A shard of a corpus cannot be read; the run may be allowed to go on without it.

    Attributes:
        source: Name of the source that it belongs to.
        shard: Its number in the split.
        of_index: Whether its index is what cannot be read, so that nothing is known of its documents.
        may_pass: Whether it is only out of reach, as with ``UnreachableError``.
    """

    def __init__(self, message: str, source: str, shard: int, of_index: bool = False, may_pass: bool = False) -> None:
        super().__init__(message)
        self.source = source
        self.shard = shard
        self.of_index = of_index
        self.may_pass = may_pass

    def __reduce__(self) -> tuple[type["BadShardError"], tuple[str, str, int, bool, bool]]:
        return BadShardError, (str(self), self.source, self.shard, self.of_index, self.may_pass)


class CheckpointError(ScaletrainError):
    """A checkpoint is missing, damaged, or belongs to another run."""


class StorageError(CheckpointError):
    """The run's storage cannot be used now, though nothing is wrong with the run: another start may succeed."""


class HealthError(ScaletrainError):
    """The hardware is sick; going on would waste GPU hours.

    Attributes:
        hosts: Machines that are to blame; none where it cannot be told which.
    """

    def __init__(self, message: str, hosts: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.hosts = hosts


class DivergenceError(HealthError):
    """The training itself has come to nothing, on whatever hardware: no other node would help."""

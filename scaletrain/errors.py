"""The errors a user can meet, and the exit code each one leads to."""


class ScaletrainError(Exception):
    """Base of all errors that are reported as a message, without a traceback.

    The message gives the value that is wrong, the rule it breaks and the remedy.
    """


class ConfigError(ScaletrainError):
    """The configuration, the command line or the run directory cannot be used."""


class DataError(ScaletrainError):
    """A corpus, a manifest, an index or a shard cannot be used."""


class CheckpointError(ScaletrainError):
    """A checkpoint is missing, damaged, or belongs to another run."""


class DivergenceError(ScaletrainError):
    """The training itself has come to nothing: going on would waste GPU hours."""


class HealthError(ScaletrainError):
    """The hardware is sick; going on would waste GPU hours."""

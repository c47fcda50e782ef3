"""The errors that a user can cause and fix: each names the thing, the value, the rule and the way out.

The commands print the message of a `LabError` without a traceback, and end with its exit code.
"""


class LabError(Exception):
    """Base of every error that the lab raises on purpose."""

    exit_code = 1


class ConfigError(LabError):
    """An invalid config, flag or variant. Nothing has been written."""

    exit_code = 2


class DataError(LabError):
    """A data set that is missing, cannot be fetched, or is damaged."""

    exit_code = 3


class RunError(LabError):
    """A run's folder that is missing, damaged, or belongs to another config."""

    exit_code = 4


class NonFiniteError(LabError):
    """Training met a loss or a gradient that is not a finite number."""

    exit_code = 5


class MeasureError(LabError):
    """A measure that does not apply to this model or to these inputs."""

    exit_code = 6


class Terminated(LabError):
    """The process was asked to end by a signal (SIGTERM, SIGHUP, Ctrl-C); its state is saved."""

    exit_code = 143

    def __init__(self, message: str, signal_number: int = 15):
        super().__init__(message)
        self.exit_code = 128 + signal_number


class AblationError(LabError):
    """Some cells of an ablation failed; the others are finished."""

    exit_code = 7

"""The errors a user can cause and can mend: each says what, which value, which rule, and the way out.

The entry points print the message of a `LabError` alone, without a traceback, and end with its exit code.
"""


class LabError(Exception):
    """Base of every error that the lab raises on purpose."""

    exit_code = 1


class ConfigError(LabError):
    """A config, a flag or a variant that cannot be what the user meant. Nothing has been written."""

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
    """A measure that cannot be taken of this model or of these inputs."""

    exit_code = 6


class Terminated(LabError):
    """The process was asked to end (SIGTERM); what it did so far is saved."""

    exit_code = 143


class AblationError(LabError):
    """Cells of an ablation that failed; the others are finished."""

    exit_code = 7

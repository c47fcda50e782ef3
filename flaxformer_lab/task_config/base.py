"""What all tasks' configs share."""

from typing import Annotated

from flaxformer_lab.errors import ConfigError
from flaxformer_lab.parsing import Rule

Share = Annotated[float, Rule("must be above 0 and at most 1", lambda value: 0 < value <= 1)]
ShareOrNone = Annotated[float, Rule("must be from 0 to 1", lambda value: 0 <= value <= 1)]


class TaskConfig:
    """Base of every task's config: a frozen dataclass with `name`; all of its fields have defaults."""

    causal = None


def check_patches(stem: str, patch: int) -> None:
    """Raises ConfigError where a stem cannot make one token of each patch."""
    if stem == "convolutions" and patch & (patch - 1):
        raise ConfigError(
            f"task.stem=convolutions halves rows and columns, which does not lead to task.patch_size={patch}; choose "
            "1, 2, 4, 8, ..., or task.stem=patches"
        )
    if stem == "pooling" and patch != 4:
        raise ConfigError(
            f"task.stem=pooling makes a quarter of the rows and columns, not those of task.patch_size={patch}; set "
            "task.patch_size=4, or choose task.stem=convolutions"
        )


def check_distance(distance: int, tokens: int) -> None:
    """Raises ConfigError where a token asks for one before the first."""
    if distance >= tokens:
        raise ConfigError(
            f"task.distance={distance} reaches past the first of task.tokens={tokens}; choose at most {tokens - 1}"
        )

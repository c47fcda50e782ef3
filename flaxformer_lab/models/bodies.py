"""Every model between embedding and head, by the name that `config.model.name` gives."""

from flax import nnx

from flaxformer_lab import registry
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.model_config import ModelConfig

# The lab's own, in the order in which errors offer them.
# isort: off
from flaxformer_lab.models import transformer as _transformer  # noqa: F401
from flaxformer_lab.models import mlp as _mlp  # noqa: F401
from flaxformer_lab.models import fields as _fields  # noqa: F401
from flaxformer_lab.models import convolution as _convolution  # noqa: F401
from flaxformer_lab.models import recurrent as _recurrent  # noqa: F401
from flaxformer_lab.models import mixer as _mixer  # noqa: F401
from flaxformer_lab.models import resnet as _resnet  # noqa: F401
from flaxformer_lab.models import encoder_decoder as _encoder_decoder  # noqa: F401
from flaxformer_lab.models import autoformer as _autoformer  # noqa: F401

# isort: on
from flaxformer_lab.modules.rngs import Rngs

Grid = tuple[int, ...] | dict[str, tuple[int, ...]]


def make_body(config: ModelConfig, *, grid: Grid, rngs: Rngs) -> nnx.Module:
    """The model that maps token vectors to token vectors, [batch, tokens, width] both.

    grid: how the tokens are laid out, (tokens,) or (rows, columns); an encoder-decoder takes that of both sequences, by
    name.

    Raises:
        ConfigError: the task has two sequences and the model takes one, or the other way round.
    """
    build = registry.lookup("model", config.name).build
    if isinstance(grid, dict) != getattr(build, "two_sequences", False):
        has, other = ("two", "encoder_decoder") if isinstance(grid, dict) else ("one", "transformer")
        raise ConfigError(
            f"model.name={config.name} cannot work on the {has} token sequence(s) of this task; "
            f"choose model.name={other} or another task"
        )
    return build(config, grid=grid, rngs=rngs)

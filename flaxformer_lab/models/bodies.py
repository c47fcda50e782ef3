"""Every model between embedding and head, by the name that `config.model.name` gives."""

from flax import nnx

from flaxformer_lab import registry
from flaxformer_lab.model_config import ModelConfig

# The lab's own, in the order in which errors offer them.
# isort: off
from flaxformer_lab.models import transformer as _transformer  # noqa: F401
from flaxformer_lab.models import mlp as _mlp  # noqa: F401
from flaxformer_lab.models import convolution as _convolution  # noqa: F401
from flaxformer_lab.models import recurrent as _recurrent  # noqa: F401
from flaxformer_lab.models import mixer as _mixer  # noqa: F401
from flaxformer_lab.models import encoder_decoder as _encoder_decoder  # noqa: F401

# isort: on
from flaxformer_lab.modules.rngs import Rngs

Grid = tuple[int, ...] | dict[str, tuple[int, ...]]


def make_body(config: ModelConfig, *, grid: Grid, rngs: Rngs) -> nnx.Module:
    """The model that maps token vectors to token vectors, [batch, tokens, width] both.

    grid: how the tokens are laid out, (tokens,) or (rows, columns); an encoder-decoder wants that of both sequences.
    """
    return registry.lookup("model", config.name).build(config, grid=grid, rngs=rngs)

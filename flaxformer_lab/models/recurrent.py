"""The recurrent baselines: layers of LSTM or GRU cells, from the first token to the last."""

from flax import nnx
from jaxtyping import Array, Float

from flaxformer_lab import registry
from flaxformer_lab.functional.recurrence import gru, lstm
from flaxformer_lab.model_config import RecurrentConfig
from flaxformer_lab.models import theory
from flaxformer_lab.modules.intermediates import DISABLED, Intermediates
from flaxformer_lab.modules.projection import Dense, zeros
from flaxformer_lab.modules.rngs import Rngs
from flaxformer_lab.modules.sharding import read

TokenVectors = Float[Array, "batch tokens width"]


class LSTM(nnx.Module):
    """One layer; the forget gate starts open, with a bias of 1 (Jozefowicz et al. 2015)."""

    def __init__(self, config: RecurrentConfig, *, rngs: Rngs):
        width = config.width
        self.input = Dense(width, 4 * width, axes=("width", None), bias=config.bias, rngs=rngs)
        if config.bias:
            self.input.bias[...] = self.input.bias[...].at[width : 2 * width].set(1)
        self.state = Dense(width, 4 * width, axes=("width", None), bias=False, rngs=rngs)

    def __call__(self, x: TokenVectors) -> TokenVectors:
        return lstm(self.input(x), read(self.state.kernel))


class GRU(nnx.Module):
    """One layer."""

    def __init__(self, config: RecurrentConfig, *, rngs: Rngs):
        width = config.width
        self.input = Dense(width, 3 * width, axes=("width", None), bias=config.bias, rngs=rngs)
        self.state = Dense(width, 3 * width, axes=("width", None), bias=False, rngs=rngs)
        self.candidate_bias = zeros((width,), ("width",)) if config.bias else None

    def __call__(self, x: TokenVectors) -> TokenVectors:
        return gru(self.input(x), read(self.state.kernel), read(self.candidate_bias))


_DECLARED = {
    "odd": lambda config, tokens: config.depth == 0 and not config.bias,
    "affine": lambda config, tokens: config.depth == 0,
    "mixes_features": lambda config, tokens: config.depth > 0,
    "causal": theory.config_causal,
    "reach": theory.any_distance,
    "attends": False,
    "has_token_weights": False,
    "decodes": False,
    "needs_grid": False,
    "shards_tokens": False,
}


@registry.register("model", "gru", config=RecurrentConfig, **_DECLARED)
@registry.register("model", "lstm", config=RecurrentConfig, **_DECLARED)
class RecurrentNetwork(nnx.Module):
    """A stack of layers. Padding comes last, so it reaches no other token."""

    def __init__(self, config: RecurrentConfig, *, grid: tuple[int, ...], rngs: Rngs):
        del grid
        layer = {"lstm": LSTM, "gru": GRU}[config.name]
        self.layers = nnx.List([layer(config, rngs=rngs) for _ in range(config.depth)])

    def __call__(
        self, x: TokenVectors, *, valid=None, keys=None, intermediates: Intermediates = DISABLED
    ) -> TokenVectors:
        del valid, keys
        x = intermediates.hook_point("input", x)
        for number, layer in enumerate(self.layers):
            x = intermediates.within(f"layers.{number}").hook_point("output", layer(x))
        return intermediates.hook_point("output", x)

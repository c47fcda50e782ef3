"""Baselines that look at each token alone: a multi-layer perceptron and a factorization machine."""

from flax import nnx
from jaxtyping import Array, Float

from flaxformer_lab import registry
from flaxformer_lab.functional.factorization import pairwise_products
from flaxformer_lab.functional.feedforward import ACTIVATIONS
from flaxformer_lab.model_config import FactorizationMachineConfig, MLPConfig
from flaxformer_lab.models import theory
from flaxformer_lab.modules.intermediates import DISABLED, Intermediates
from flaxformer_lab.modules.projection import Dense
from flaxformer_lab.modules.rngs import Rngs
from flaxformer_lab.modules.sharding import read

TokenVectors = Float[Array, "batch tokens width"]


@registry.register(
    "model",
    "mlp",
    config=MLPConfig,
    odd=theory.layers_are_odd,
    affine=theory.layers_are_affine,
    mixes_features=theory.layers_mix_features,
    causal=theory.config_causal,
    reach=0,
    attends=False,
    has_token_weights=False,
    decodes=False,
    needs_grid=False,
    shards_tokens=False,
)
class MLP(nnx.Module):
    """Dense layers, each with an activation: features mix, tokens never meet."""

    def __init__(self, config: MLPConfig, *, grid: tuple[int, ...], rngs: Rngs):
        del grid
        self._activation = ACTIVATIONS[config.activation]
        self.layers = nnx.List(
            [
                Dense(config.width, config.width, axes=("width", None), bias=config.bias, rngs=rngs)
                for _ in range(config.depth)
            ]
        )

    def __call__(
        self, x: TokenVectors, *, valid=None, keys=None, intermediates: Intermediates = DISABLED
    ) -> TokenVectors:
        del valid, keys  # no token sees another
        x = intermediates.hook_point("input", x)
        for number, layer in enumerate(self.layers):
            x = intermediates.within(f"layers.{number}").hook_point("output", self._activation(layer(x)))
        return intermediates.hook_point("output", x)


@registry.register(
    "model",
    "factorization_machine",
    config=FactorizationMachineConfig,
    odd=False,
    affine=False,
    mixes_features=True,
    causal=theory.config_causal,
    reach=0,
    attends=False,
    has_token_weights=False,
    decodes=False,
    needs_grid=False,
    shards_tokens=False,
)
class FactorizationMachine(nnx.Module):
    """x W + b plus `width` sums of products of every two features (Rendle 2010, eq. 1); the head adds them up."""

    def __init__(self, config: FactorizationMachineConfig, *, grid: tuple[int, ...], rngs: Rngs):
        del grid
        self.linear = Dense(config.width, config.width, axes=("width", None), bias=config.bias, rngs=rngs)
        self.factors = Dense(config.width, config.width, axes=("width", None), bias=False, rngs=rngs)

    def __call__(
        self, x: TokenVectors, *, valid=None, keys=None, intermediates: Intermediates = DISABLED
    ) -> TokenVectors:
        del valid, keys  # no token sees another
        x = intermediates.hook_point("input", x)
        x = self.linear(x) + pairwise_products(x, read(self.factors.kernel))
        return intermediates.hook_point("output", x)

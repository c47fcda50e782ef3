"""Bodies in which the fields of a record meet: the products of a factorization machine, and AutoInt's attention."""

import math

from flax import nnx
from jaxtyping import Array, Float

from flaxformer_lab import registry
from flaxformer_lab.functional.fields import interacting_layer, products_with_others
from flaxformer_lab.model_config import AutoIntConfig, FieldProductsConfig
from flaxformer_lab.modules.intermediates import DISABLED, Intermediates
from flaxformer_lab.modules.projection import normal
from flaxformer_lab.modules.rngs import Rngs
from flaxformer_lab.modules.sharding import read

Fields = Float[Array, "batch fields width"]
_ALONE = {"has_token_weights": False, "decodes": False, "needs_grid": False, "shards_tokens": False}


@registry.register(
    "model",
    "field_products",
    config=FieldProductsConfig,
    odd=False,
    affine=False,
    mixes_features=False,
    causal=False,
    reach=math.inf,
    attends=True,
    **_ALONE,
)
class FieldProducts(nnx.Module):
    """Half of each token's vector times the sum of the others, by feature: added up, the products of every two."""

    def __init__(self, config: FieldProductsConfig, *, grid: tuple[int, ...], rngs: Rngs):
        del config, grid, rngs  # it has no parameters

    def __call__(self, x: Fields, *, valid=None, keys=None, intermediates: Intermediates = DISABLED) -> Fields:
        del valid, keys
        x = intermediates.hook_point("input", x)
        return intermediates.hook_point("output", products_with_others(x))


class InteractingLayer(nnx.Module):
    """Attention over the fields, a linear map beside it, ReLU."""

    def __init__(self, config: AutoIntConfig, *, rngs: Rngs):
        width, self._heads = config.width, config.heads
        self.query, self.key, self.value, self.residual = (
            normal(rngs, (width, width), width, ("width", None), width) for _ in range(4)
        )

    def __call__(self, x: Fields) -> Fields:
        kernels = (read(each) for each in (self.query, self.key, self.value, self.residual))
        return interacting_layer(x, *kernels, self._heads)


@registry.register(
    "model",
    "autoint",
    config=AutoIntConfig,
    odd=lambda config, tokens: config.depth == 0,
    affine=lambda config, tokens: config.depth == 0,
    mixes_features=lambda config, tokens: config.depth > 0,
    causal=lambda config, tokens: config.depth == 0,
    reach=lambda config, tokens: math.inf if config.depth else 0,
    attends=lambda config, tokens: config.depth > 0,
    **_ALONE,
)
class AutoInt(nnx.Module):
    """Interacting layers, one after another (Song et al. 2019)."""

    def __init__(self, config: AutoIntConfig, *, grid: tuple[int, ...], rngs: Rngs):
        del grid
        self.layers = nnx.List([InteractingLayer(config, rngs=rngs) for _ in range(config.depth)])

    def __call__(self, x: Fields, *, valid=None, keys=None, intermediates: Intermediates = DISABLED) -> Fields:
        del valid, keys
        x = intermediates.hook_point("input", x)
        for number, layer in enumerate(self.layers):
            x = intermediates.within(f"layers.{number}").hook_point("output", layer(x))
        return intermediates.hook_point("output", x)

"""Convolutions of time series: on a circle, and with pooling, which halves the tokens (Informer)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from flaxformer_lab.functional.convolution import max_pool_halves
from flaxformer_lab.model_config import ModelConfig
from flaxformer_lab.modules.convolution import map_windows_1d
from flaxformer_lab.modules.norm import BatchNorm
from flaxformer_lab.modules.projection import Dense
from flaxformer_lab.modules.rngs import Rngs

Valid = Bool[Array, "batch tokens"]
KERNEL_SIZE = 3


class CircularConvolution(nnx.Module):
    """A dense map of each token and its two neighbours; the last token is a neighbour of the first."""

    def __init__(self, features_in: int, features_out: int, *, bias: bool, rngs: Rngs):
        self.map = Dense(KERNEL_SIZE * features_in, features_out, axes=(None, "width"), bias=bias, rngs=rngs)

    def __call__(self, x: Float[Array, "batch tokens features_in"]) -> Float[Array, "batch tokens features_out"]:
        return map_windows_1d(self.map, x, KERNEL_SIZE, causal=False, circular=True)


class Distilling(nnx.Module):
    """MaxPool(ELU(BatchNorm(conv(x)))): half as many tokens (Zhou et al. 2021, eq. 5).

    Padding counts as zeros for the convolution, and not at all for the pooling.
    """

    def __init__(self, config: ModelConfig, rngs: Rngs):
        self.convolution = CircularConvolution(config.width, config.width, bias=config.bias, rngs=rngs)
        self.norm = BatchNorm(config)

    def __call__(
        self, x: Float[Array, "batch tokens width"], valid: Valid | None = None
    ) -> tuple[Float[Array, "batch half width"], Bool[Array, "batch half"] | None]:
        """The tokens, and which of them are valid."""
        x = x if valid is None else x * valid[:, :, None].astype(x.dtype)
        x = jax.nn.elu(self.norm(self.convolution(x), valid))
        return max_pool_halves(x, valid), None if valid is None else pool_valid(valid)


def pool_valid(valid: Valid) -> Bool[Array, "batch half"]:
    """Which pooled tokens have a valid one among theirs."""
    return max_pool_halves(valid[:, :, None].astype(jnp.float32))[:, :, 0] > 0

"""The MLP-Mixer baseline (Tolstikhin et al. 2021): learned maps over tokens in place of attention."""

import math

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from flaxformer_lab import registry
from flaxformer_lab.functional.feedforward import ACTIVATIONS
from flaxformer_lab.model_config import MixerConfig
from flaxformer_lab.models import theory
from flaxformer_lab.modules.intermediates import DISABLED, Intermediates
from flaxformer_lab.modules.norm import make_norm
from flaxformer_lab.modules.projection import Dense
from flaxformer_lab.modules.rngs import Rngs

TokenVectors = Float[Array, "batch tokens width"]


class MixerBlock(nnx.Module):
    """x + (MLP over tokens of norm(x)), then x + (MLP over features of norm(x)) (eq. 1)."""

    def __init__(self, config: MixerConfig, *, tokens: int, rngs: Rngs):
        self._activation = ACTIVATIONS[config.activation]
        hidden = max(1, round(config.width * config.expansion))
        self.token_norm, self.feature_norm = make_norm(config), make_norm(config)
        self.token_up = Dense(tokens, config.token_hidden, axes=(None, None), bias=config.bias, rngs=rngs)
        self.token_down = Dense(config.token_hidden, tokens, axes=(None, None), bias=config.bias, rngs=rngs)
        self.feature_up = Dense(config.width, hidden, axes=("width", "hidden"), bias=config.bias, rngs=rngs)
        self.feature_down = Dense(hidden, config.width, axes=("hidden", "width"), bias=config.bias, rngs=rngs)

    def __call__(self, x: TokenVectors, valid: Bool[Array, "batch tokens"] | None) -> TokenVectors:
        y = self.token_norm(x, valid) if self.token_norm else x
        y = y if valid is None else y * valid[:, :, None].astype(y.dtype)
        y = self.token_down(self._activation(self.token_up(jnp.swapaxes(y, 1, 2))))
        x = x + jnp.swapaxes(y, 1, 2)
        y = self.feature_norm(x, valid) if self.feature_norm else x
        return x + self.feature_down(self._activation(self.feature_up(y)))


@registry.register(
    "model",
    "mixer",
    config=MixerConfig,
    odd=theory.layers_are_odd,
    affine=theory.layers_are_affine,
    mixes_features=theory.layers_mix_features,
    causal=theory.config_causal,
    reach=theory.any_distance,
    attends=True,
    has_token_weights=False,
    decodes=False,
    needs_grid=False,
    shards_tokens=False,
)
class Mixer(nnx.Module):
    """Blocks, and a final norm; the number of tokens is fixed."""

    def __init__(self, config: MixerConfig, *, grid: tuple[int, ...], rngs: Rngs):
        self.blocks = nnx.List([MixerBlock(config, tokens=math.prod(grid), rngs=rngs) for _ in range(config.depth)])
        self.norm = make_norm(config)

    def __call__(
        self,
        x: TokenVectors,
        *,
        valid: Bool[Array, "batch tokens"] | None = None,
        keys=None,
        intermediates: Intermediates = DISABLED,
    ) -> TokenVectors:
        del keys  # there is no dropout
        x = intermediates.hook_point("input", x)
        for number, block in enumerate(self.blocks):
            x = intermediates.within(f"blocks.{number}").hook_point("output", block(x, valid))
        x = self.norm(x, valid) if self.norm else x
        return intermediates.hook_point("output", x)

"""Maps of a series in the frequency domain, and on the levels of multiwavelets (FEDformer)."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flaxformer_lab import registry
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.functional import frequency, wavelet
from flaxformer_lab.functional.autocorrelation import fit_length
from flaxformer_lab.functional.softmax_attention import repeat_kv_heads
from flaxformer_lab.model_config import TransformerConfig
from flaxformer_lab.modules.attention.core import AnyHeads, Attention, Heads, Valid
from flaxformer_lab.modules.attention.properties import has_wide_heads
from flaxformer_lab.modules.intermediates import Intermediates
from flaxformer_lab.modules.projection import Dense, Fans
from flaxformer_lab.modules.rngs import Rngs
from flaxformer_lab.modules.sharding import Axes, read

EqualHeads = Float[Array, "batch _ heads head_dim"]  # of queries, and of keys of as many heads

# Of attention to oneself, which is a linear map; attention to another sequence is not.
_LINEAR_MAP = {
    "odd": True,
    "affine": True,
    "sees_content": False,
    "causal": False,
    "windowed": False,
    "reach": math.inf,
    "crosses": True,
    "has_token_weights": False,
    "decodes": False,
}


class Modes(nnx.Variable):
    """The numbers of Fourier modes: drawn with the parameters and kept with them, but not trained."""


class ComplexKernel(nnx.Module):
    """Real and imaginary parts, each drawn from U[0, 1) times a scale, as in the paper's code."""

    def __init__(self, shape: tuple[int, ...], scale: float, axes: Axes, rngs: Rngs):
        def draw() -> nnx.Param:
            values = scale * rngs.draw(jax.random.uniform, shape)
            return nnx.Param(values, axes=axes, fans=Fans(shape[-3], shape[-2]))

        self.real, self.imaginary = draw(), draw()

    def __call__(self) -> tuple[jax.Array, jax.Array]:
        return read(self.real), read(self.imaginary)


class _FixedLength(Attention):
    """Of the queries alone, or of queries and keys where it crosses; the values are not used, so there are none.

    Padding counts as zeros.
    """

    parts, names = 1, ("q",)

    def __init__(
        self,
        config: TransformerConfig,
        *,
        tokens: int,
        layer: int = 0,
        crosses: bool = False,
        memory_tokens: int | None = None,
        rngs: Rngs,
    ):
        if crosses:
            self.parts, self.names = 2, ("q", "k")
        super().__init__(config, tokens=tokens, layer=layer, crosses=crosses, rngs=rngs)
        self._crosses = crosses
        self._lengths = (tokens, memory_tokens or tokens)[: self.parts]

    def mix(self, *heads: AnyHeads, valid: Valid | None, intermediates: Intermediates) -> Heads:
        del intermediates
        lengths = tuple(x.shape[1] for x in heads)
        if lengths != self._lengths:
            raise ConfigError(
                f"sequences of {lengths} tokens, where this attention was made for {self._lengths}: its weights belong "
                "to Fourier modes or wavelets of that length; keep the length or choose another model.attention.kind"
            )
        *others, last = heads
        last = last if valid is None else jnp.where(valid[:, :, None, None], last, 0)
        return self.transform(*others, repeat_kv_heads(last, self._heads))


def _frequency_mixes_features(config: TransformerConfig, tokens: int | None) -> bool:
    return config.attention.mix_axes or has_wide_heads(config, tokens)


@registry.register("attention", "frequency", mixes_features=_frequency_mixes_features, **_LINEAR_MAP)
class FrequencyAttention(_FixedLength):
    """Fourier-enhanced block and Fourier-enhanced attention (Zhou et al. 2022, section 3.2)."""

    mixes_axes = True

    def __init__(self, config: TransformerConfig, *, rngs: Rngs, **options):
        super().__init__(config, rngs=rngs, **options)
        attention = config.attention
        self._mix_axes = attention.mix_axes
        select = lambda tokens: frequency.select_modes(  # noqa: E731
            rngs.params(), tokens, attention.modes, attention.mode_selection
        )
        self.modes = nnx.List([Modes(select(tokens)) for tokens in self._lengths])
        shape = (self._heads, self._head_dim, self._head_dim, len(self.modes[0]))
        width = self._heads * self._head_dim
        self.kernel = ComplexKernel(shape, width**-2, ("heads", None, None, None), rngs)

    def share(self, other: "FrequencyAttention") -> None:
        """Takes the modes and weights of another."""
        self.modes, self.kernel = other.modes, other.kernel

    def transform(self, *heads: EqualHeads) -> Heads:
        """Selected modes of the queries; with keys, of what they find there."""
        formula = frequency.fourier_cross_attention if self._crosses else frequency.fourier_block
        mixed = formula(*heads, *self.kernel(), *(modes[...] for modes in self.modes))
        # In the paper's code, features and tokens are swapped in memory only.
        return jnp.moveaxis(mixed, 1, -1).reshape(mixed.shape) if self._mix_axes else mixed


@registry.register("attention", "wavelet", mixes_features=True, **_LINEAR_MAP)
class WaveletAttention(_FixedLength):
    """Wavelet-enhanced block and wavelet-enhanced attention (Zhou et al. 2022, section 3.3), on Legendre multiwavelets.

    A dense map gives each token `wavelet_channels` channels of `wavelet_order` coefficients, another leads back.
    """

    def __init__(self, config: TransformerConfig, *, rngs: Rngs, **options):
        super().__init__(config, rngs=rngs, **options)
        attention, merged = config.attention, self._heads * self._head_dim
        self._modes, order, channels = attention.modes, attention.wavelet_order, attention.wavelet_channels
        self._shape, features = (channels, order), channels * order
        dense = {"bias": config.bias, "rngs": rngs}
        self.inward = nnx.List([Dense(merged, features, axes=("heads", None), **dense) for _ in range(self.parts)])
        self.outward = Dense(features, merged, axes=(None, "heads"), **dense)
        if not self._crosses:
            modes = max(1, min(attention.modes, self._lengths[0] // 2 + 1))
            kernel = lambda: ComplexKernel((features, features, modes), features**-2, (None, None, None), rngs)  # noqa: E731
            self.kernels = nnx.List([kernel(), kernel(), kernel()])
            self.coarsest = Dense(order, order, axes=(None, None), **dense)

    def share(self, other: "WaveletAttention") -> None:
        """Takes all that is not a projection from another."""
        for name in ("inward", "outward", *(() if self._crosses else ("kernels", "coarsest"))):
            setattr(self, name, getattr(other, name))

    def transform(self, *heads: EqualHeads) -> Heads:
        """A linear map on each level; with keys, attention on each level."""
        tokens, filters = heads[0].shape[1], wavelet.multiwavelet_filters(self._shape[1])
        series = [
            fit_length(dense(x.reshape(*x.shape[:2], -1)).reshape(*x.shape[:2], *self._shape), tokens)
            for dense, x in zip(self.inward, heads, strict=True)
        ]
        if self._crosses:
            scale = (self._heads * self._head_dim) ** -2
            mixed = wavelet.multiwavelet_cross_attention(*series, filters, modes=self._modes, scale=scale)
        else:
            kernels, coarsest = tuple(kernel() for kernel in self.kernels), self.coarsest
            coarsest = read(coarsest.kernel), read(coarsest.bias)
            mixed = wavelet.multiwavelet_transform(*series, filters, kernels, coarsest)
        return self.outward(mixed.reshape(*mixed.shape[:2], -1)).reshape(heads[0].shape)

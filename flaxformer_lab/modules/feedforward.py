"""Feature mixing inside each token, with parameters."""

from flax import nnx
from jaxtyping import Array, Float

from flaxformer_lab import registry
from flaxformer_lab.functional import feedforward as formulas
from flaxformer_lab.model_config import TransformerConfig
from flaxformer_lab.modules.intermediates import DISABLED, Intermediates
from flaxformer_lab.modules.projection import PROJECTIONS, Projection, normal, zeros
from flaxformer_lab.modules.rngs import Rngs
from flaxformer_lab.modules.sharding import Axes, read, with_logical_constraint

TokenVectors = Float[Array, "batch tokens width"]


class FeedForward(nnx.Module):
    """The lab's own parts: called as ffn(x, intermediates=...), where others are called as ffn(x)."""


def _is_odd(config: TransformerConfig, tokens: int | None) -> bool:
    del tokens
    return not config.bias and config.ffn.activation in formulas.ODD_ACTIVATIONS


def _is_affine(config: TransformerConfig, tokens: int | None) -> bool:
    del tokens
    return config.ffn.activation == "identity"


def _mixes_features(config: TransformerConfig, tokens: int | None) -> bool:
    del tokens
    return PROJECTIONS[config.ffn.projection].mixes_features(config.ffn.block_size)


def _block_size(config: TransformerConfig, tokens: int | None) -> int:
    del tokens
    return config.ffn.block_size if config.ffn.projection == "block" else config.width


def _rank(config: TransformerConfig, tokens: int | None) -> int:
    """Of the last map."""
    del tokens
    most = min(config.hidden, config.width)
    return min(config.ffn.rank, most) if config.ffn.projection == "low_rank" else most


_MAPS = {"mixes_features": _mixes_features, "block_size": _block_size, "rank": _rank, "reach": 0}


def _up(config: TransformerConfig, rngs: Rngs) -> Projection:
    return _projection(config, config.width, config.hidden, ("width", "hidden"), rngs)


def _down(config: TransformerConfig, rngs: Rngs) -> Projection:
    return _projection(config, config.hidden, config.width, ("hidden", "width"), rngs)


def _projection(config: TransformerConfig, features_in: int, features_out: int, axes: Axes, rngs: Rngs) -> Projection:
    structure = {"blocks": max(1, config.width // config.ffn.block_size), "rank": config.ffn.rank}
    kind = PROJECTIONS[config.ffn.projection]
    return kind(features_in, features_out, axes=axes, bias=config.bias, rngs=rngs, **structure)


@registry.register("ffn", "mlp", odd=_is_odd, affine=_is_affine, **_MAPS)
class MLP(FeedForward):
    """W2 activation(W1 x + b1) + b2 (Vaswani et al. 2017, eq. 2)."""

    def __init__(self, config: TransformerConfig, rngs: Rngs):
        self._activation = formulas.ACTIVATIONS[config.ffn.activation]
        self.up, self.down = _up(config, rngs), _down(config, rngs)

    def __call__(self, x: TokenVectors, *, intermediates: Intermediates = DISABLED) -> TokenVectors:
        hidden = self._activation(intermediates.hook_point("preactivation", self.up(x)))
        hidden = intermediates.hook_point("hidden", hidden)
        return self.down(with_logical_constraint(hidden, "batch", "tokens", "hidden"))


@registry.register("ffn", "gated", odd=False, affine=False, **_MAPS)
class GatedMLP(FeedForward):
    """W2 (activation(Wa x) * Wb x) (Shazeer 2020, eq. 6)."""

    def __init__(self, config: TransformerConfig, rngs: Rngs, activation: str | None = None):
        self._activation = formulas.ACTIVATIONS[activation or config.ffn.activation]
        self.gate, self.up, self.down = _up(config, rngs), _up(config, rngs), _down(config, rngs)

    def __call__(self, x: TokenVectors, *, intermediates: Intermediates = DISABLED) -> TokenVectors:
        gate = intermediates.hook_point("preactivation", self.gate(x))
        hidden = intermediates.hook_point("hidden", formulas.gate(gate, self.up(x), self._activation))
        return self.down(with_logical_constraint(hidden, "batch", "tokens", "hidden"))


@registry.register("ffn", "bilinear", odd=False, affine=False, **_MAPS)
class BilinearMLP(GatedMLP):
    """W2 (Wa x * Wb x): products of features and nothing else (Shazeer 2020, "Bilinear")."""

    def __init__(self, config: TransformerConfig, rngs: Rngs):
        super().__init__(config, rngs, activation="identity")


@registry.register(
    "ffn",
    "diagonal",
    odd=_is_odd,
    affine=_is_affine,
    mixes_features=False,
    block_size=1,
    rank=lambda config, tokens: config.width,
    reach=0,
)
class DiagonalMLP(FeedForward):
    """A small MLP of its own for each feature, with round(expansion) hidden units: no feature meets another."""

    def __init__(self, config: TransformerConfig, rngs: Rngs):
        hidden = max(1, round(config.ffn.expansion))
        self._activation = formulas.ACTIVATIONS[config.ffn.activation]
        self.up = normal(rngs, (config.width, hidden), 1, ("width", None), hidden)
        self.up_bias = zeros((config.width, hidden), ("width", None)) if config.bias else None
        self.down = normal(rngs, (config.width, hidden), hidden, ("width", None), 1)
        self.down_bias = zeros((config.width,), ("width",)) if config.bias else None

    def __call__(self, x: TokenVectors, *, intermediates: Intermediates = DISABLED) -> TokenVectors:
        def activation(x: Float[Array, "*batch features hidden"]) -> Float[Array, "*batch features hidden"]:
            hidden = self._activation(intermediates.hook_point("preactivation", x))
            return intermediates.hook_point("hidden", hidden)

        return formulas.per_feature_mlp(
            x, read(self.up), read(self.up_bias), read(self.down), read(self.down_bias), activation
        )


def make_feed_forward(config: TransformerConfig, rngs: Rngs) -> nnx.Module | None:
    """The feed-forward part that `config.ffn.kind` names; None where it is off."""
    return None if config.ffn.kind == "off" else registry.lookup("ffn", config.ffn.kind).build(config, rngs)

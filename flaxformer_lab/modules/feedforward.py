"""Feature mixing inside each token, with parameters."""

from flax import nnx
from jaxtyping import Array, Float

from flaxformer_lab.functional import feedforward as formulas
from flaxformer_lab.model_config import TransformerConfig
from flaxformer_lab.modules.projection import Dense, normal, zeros
from flaxformer_lab.modules.rngs import Rngs
from flaxformer_lab.modules.sharding import read, with_logical_constraint

TokenVectors = Float[Array, "batch tokens width"]


class MLP(nnx.Module):
    """W2 activation(W1 x + b1) + b2 (Vaswani et al. 2017, eq. 2)."""

    def __init__(self, config: TransformerConfig, rngs: Rngs):
        hidden = max(1, round(config.width * config.ffn.expansion))
        self._activation = formulas.ACTIVATIONS[config.ffn.activation]
        self.up = Dense(config.width, hidden, axes=("width", "hidden"), bias=config.bias, rngs=rngs)
        self.down = Dense(hidden, config.width, axes=("hidden", "width"), bias=config.bias, rngs=rngs)

    def __call__(self, x: TokenVectors) -> TokenVectors:
        return self.down(with_logical_constraint(self._activation(self.up(x)), "batch", "tokens", "hidden"))


class GatedMLP(nnx.Module):
    """W2 (activation(Wa x) * Wb x) (Shazeer 2020, eq. 6)."""

    def __init__(self, config: TransformerConfig, rngs: Rngs, activation: str | None = None):
        hidden = max(1, round(config.width * config.ffn.expansion))
        self._activation = formulas.ACTIVATIONS[activation or config.ffn.activation]
        self.gate = Dense(config.width, hidden, axes=("width", "hidden"), bias=config.bias, rngs=rngs)
        self.up = Dense(config.width, hidden, axes=("width", "hidden"), bias=config.bias, rngs=rngs)
        self.down = Dense(hidden, config.width, axes=("hidden", "width"), bias=config.bias, rngs=rngs)

    def __call__(self, x: TokenVectors) -> TokenVectors:
        return self.down(
            with_logical_constraint(
                formulas.gate(self.gate(x), self.up(x), self._activation), "batch", "tokens", "hidden"
            )
        )


class BilinearMLP(GatedMLP):
    """W2 (Wa x * Wb x): products of features and nothing else (Shazeer 2020, "Bilinear")."""

    def __init__(self, config: TransformerConfig, rngs: Rngs):
        super().__init__(config, rngs, activation="identity")


class DiagonalMLP(nnx.Module):
    """A small MLP of its own for each feature, with round(expansion) hidden units: no feature meets another."""

    def __init__(self, config: TransformerConfig, rngs: Rngs):
        hidden = max(1, round(config.ffn.expansion))
        self._activation = formulas.ACTIVATIONS[config.ffn.activation]
        self.up = normal(rngs, (config.width, hidden), 1, ("width", None))
        self.up_bias = zeros((config.width, hidden), ("width", None)) if config.bias else None
        self.down = normal(rngs, (config.width, hidden), hidden, ("width", None))
        self.down_bias = zeros((config.width,), ("width",)) if config.bias else None

    def __call__(self, x: TokenVectors) -> TokenVectors:
        return formulas.per_feature_mlp(
            x, read(self.up), read(self.up_bias), read(self.down), read(self.down_bias), self._activation
        )


FEED_FORWARDS = {"mlp": MLP, "gated": GatedMLP, "bilinear": BilinearMLP, "diagonal": DiagonalMLP}


def make_feed_forward(config: TransformerConfig, rngs: Rngs) -> nnx.Module | None:
    """The feed-forward part that `config.ffn.kind` names; None where it is off."""
    kind = config.ffn.kind
    return FEED_FORWARDS[kind](config, rngs) if kind in FEED_FORWARDS else None

"""The Transformer: positions, blocks, and the norm that its placement asks for."""

import math

import jax
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from flaxformer_lab.functional.dropout import fold_in
from flaxformer_lab.functional.position import sinusoidal
from flaxformer_lab.model_config import TransformerConfig
from flaxformer_lab.modules.block import Block
from flaxformer_lab.modules.norm import make_norm
from flaxformer_lab.modules.projection import normal
from flaxformer_lab.modules.taps import CLOSED, Taps

Stream = Float[Array, "batch tokens width"]


class Transformer(nnx.Module):
    """Token vectors in, token vectors out.

    A stream that is normalised before each part (pre) is normalised once more at the end; one that is normalised
    after each part (post) is normalised once at the start, as in BERT.
    """

    def __init__(self, config: TransformerConfig, *, grid: tuple[int, ...], rngs: nnx.Rngs):
        self._config = config
        tokens = math.prod(grid)
        # Small at the start, so that a token's content is not drowned by its place.
        self.position = normal(rngs, (tokens, config.width), config.width) if config.position == "learned" else None
        self.blocks = nnx.List([Block(config, tokens=tokens, rngs=rngs) for _ in range(config.depth)])
        self.norm = make_norm(config)

    def __call__(
        self,
        x: Stream,
        *,
        valid: Bool[Array, "batch tokens"] | None = None,
        keys: Key[Array, " batch"] | None = None,
        taps: Taps = CLOSED,
    ) -> Stream:
        pre = self._config.norm.placement == "pre"
        x = self.positioned(x)
        x = self.norm(x) if self.norm and not pre else x
        taps.add("input", lambda: x)
        for number, block in enumerate(self.blocks):
            block_keys = None if keys is None else fold_in(keys, number)
            run = _rematerialised if self._config.remat else Block.__call__
            x = run(block, x, valid=valid, keys=block_keys, taps=taps.within(f"blocks.{number}"))
        x = self.norm(x) if self.norm and pre else x
        taps.add("output", lambda: x)
        return x

    def positioned(self, x: Stream) -> Stream:
        """Token vectors with their learned or sinusoidal positions added."""
        tokens = x.shape[1]
        if self.position is not None:
            return x + self.position[...][None, :tokens].astype(x.dtype)
        if self._config.position == "sinusoidal":
            return x + sinusoidal(tokens, self._config.width)[None].astype(x.dtype)
        return x


def _rematerialised(
    block: Block,
    x: Stream,
    *,
    valid: Bool[Array, "batch tokens"] | None,
    keys: Key[Array, " batch"] | None,
    taps: Taps,
) -> Stream:
    """The block with its activations recomputed in the backward pass instead of kept (Chen et al. 2016)."""
    graph, parameters = nnx.split(block)

    @jax.checkpoint
    def run(parameters, x, valid, keys):
        # What is tapped must leave the rematerialised region as an output of it.
        inner = taps.fresh()
        return nnx.merge(graph, parameters)(x, valid=valid, keys=keys, taps=inner), inner.values

    x, tapped = run(parameters, x, valid, keys)
    taps.values.update(tapped)
    return x

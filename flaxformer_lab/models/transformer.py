"""The Transformer: positions, blocks, and the norm that its placement asks for."""

import functools
import math
from collections.abc import Callable

import jax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from flaxformer_lab import registry
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.functional.dropout import fold_in
from flaxformer_lab.functional.linear import broadcast_parameter, take_rows
from flaxformer_lab.functional.position import sinusoidal
from flaxformer_lab.model_config import TransformerConfig
from flaxformer_lab.models import theory
from flaxformer_lab.modules.attention import Cache
from flaxformer_lab.modules.block import Block
from flaxformer_lab.modules.intermediates import DISABLED, Intermediates
from flaxformer_lab.modules.norm import make_norm
from flaxformer_lab.modules.projection import normal, uniform
from flaxformer_lab.modules.rngs import Rngs
from flaxformer_lab.modules.sharding import (
    PRODUCT,
    read,
    save_all_but_gathered_parameters,
    sharded_over,
    with_logical_constraint,
)

TokenVectors = Float[Array, "batch tokens width"]
Valid = Bool[Array, "batch tokens"]

# What a rematerialised block keeps. A gathered parameter is no product, so none of these keeps one.
_maps = jax.checkpoint_policies.save_only_these_names(PRODUCT)
REMAT_POLICIES = {
    "nothing": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_from_both_policies(jax.checkpoint_policies.dots_saveable, _maps),
    "dots_with_no_batch_dims": _maps,
}


@registry.register(
    "model",
    "transformer",
    config=TransformerConfig,
    odd=theory.transformer_is_odd,
    affine=theory.transformer_is_affine,
    mixes_features=theory.transformer_mixes_features,
    block_size=theory.transformer_block_size,
    rank=theory.transformer_rank,
    causal=theory.config_causal,
    reach=theory.transformer_reach,
    attends=lambda config, tokens: config.attention.kind != "off",
    has_token_weights=theory.transformer_has_token_weights,
    decodes=theory.transformer_decodes,
    needs_grid=False,
    shards_tokens=True,
)
class Transformer(nnx.Module):
    """Token vectors in, token vectors out.

    With norms before each part (pre) there is one more at the end; with norms after each part (post), one more at the
    start, as in BERT; or where norm.outer says. cross_attends: its blocks attend to a second sequence, `memory` (of
    memory_tokens), as well.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        grid: tuple[int, ...],
        cross_attends: bool = False,
        memory_tokens: int | None = None,
        rngs: Rngs,
    ):
        self._config = config
        self._tokens = tokens = math.prod(grid)
        # Small at initialisation, so that positions do not dominate the content of tokens.
        if config.position == "learned":
            self.position = normal(rngs, (tokens, config.width), config.width, (None, "width"))
        elif config.position == "uniform":
            self.position = uniform(rngs, (tokens, config.width), 0.02, (None, "width"))
        else:
            self.position = None
        options = {"tokens": tokens, "cross_attends": cross_attends, "memory_tokens": memory_tokens, "rngs": rngs}
        self.blocks = nnx.List(
            [Block(config, layer=layer, **options | {"tokens": self.tokens_at(layer)}) for layer in range(config.depth)]
        )
        self.norm = make_norm(config) if config.norm.outer_place != "off" else None

    def __call__(
        self,
        x: TokenVectors,
        *,
        valid: Valid | None = None,
        memory: Float[Array, "batch memory width"] | None = None,
        memory_valid: Bool[Array, "batch memory"] | None = None,
        keys: Key[Array, " batch"] | None = None,
        intermediates: Intermediates = DISABLED,
    ) -> Float[Array, "batch _ width"]:  # fewer tokens where `between_blocks` pools them
        run, remat = Block.__call__, self._config.remat
        if (remat or sharded_over("fsdp")) and not intermediates.hooks:  # which would see tracers inside
            policy = REMAT_POLICIES[self._config.remat_policy] if remat else save_all_but_gathered_parameters
            run = functools.partial(_rematerialised, policy=policy)
        x = with_logical_constraint(self._embed_positions(x, valid), "batch", "tokens", None)
        x = intermediates.hook_point("input", x)
        masks = {"valid": valid, "memory": memory, "memory_valid": memory_valid}
        for number, block in enumerate(self.blocks):
            block_keys = None if keys is None else fold_in(keys, number)
            x = run(block, x, **masks, keys=block_keys, intermediates=intermediates.within(f"blocks.{number}"))
            if isinstance(x, tuple):
                x, masks["scores"] = x
            x, masks["valid"] = self.between_blocks(number, x, masks["valid"])
        return intermediates.hook_point("output", self._final_norm(x, masks["valid"]))

    def tokens_at(self, layer: int) -> int:
        """How many tokens a block has."""
        del layer
        return self._tokens

    def between_blocks(self, number: int, x: TokenVectors, valid: Valid | None) -> tuple[TokenVectors, Valid | None]:
        """What follows block `number`, before the next one: nothing."""
        del number
        return x, valid

    def prefill(self, x: TokenVectors, lengths: Int[Array, " batch"]) -> tuple[TokenVectors, Cache]:
        """The output of a causal sequence, and the cache after each example's first `lengths` tokens."""
        x, caches = self._embed_positions(x), []
        for block in self.blocks:
            x, cache = block.prefill(x, lengths)
            caches.append(cache)
        return self._final_norm(x), {"position": lengths, "blocks": caches}

    def decode(self, x: Float[Array, "batch 1 width"], cache: Cache) -> tuple[Float[Array, "batch 1 width"], Cache]:
        """The output of one more token, and the cache that includes it."""
        position = cache["position"]
        x, caches = self._embed_positions(x, first=position), []
        for block, of_block in zip(self.blocks, cache["blocks"], strict=True):
            x, of_block = block.decode(x, of_block, position)
            caches.append(of_block)
        return self._final_norm(x), {"position": position + 1, "blocks": caches}

    def _embed_positions(
        self, x: TokenVectors, valid: Valid | None = None, first: Int[Array, " batch"] | None = None
    ) -> TokenVectors:
        """Token vectors with their positions, normalised where the blocks do so after each part."""
        x = self.positioned(x, first)
        return self.norm(x, valid) if self.norm and self._config.norm.outer_place == "start" else x

    def _final_norm(self, x: TokenVectors, valid: Valid | None = None) -> TokenVectors:
        return self.norm(x, valid) if self.norm and self._config.norm.outer_place == "end" else x

    def positioned(self, x: TokenVectors, first: Int[Array, " batch"] | None = None) -> TokenVectors:
        """Token vectors with their learned or sinusoidal positions added; `first`: where the only token stands.

        Raises:
            ConfigError: no tokens, or more than there are learned positions.
        """
        tokens = x.shape[1]
        if not tokens:
            raise ConfigError("a sequence of 0 tokens has nothing to attend to; give at least one")
        if self.position is not None and tokens > self._tokens:
            raise ConfigError(
                f"a sequence of {tokens} tokens is longer than the {self._tokens} that model.position=learned has; "
                "shorten it, train with longer sequences, or choose position sinusoidal, rotary or off"
            )
        if self.position is not None:
            table = read(self.position)
        elif self._config.position == "sinusoidal":
            table = sinusoidal(max(tokens, self._tokens), self._config.width)
        else:
            return x
        if first is None:
            return x + broadcast_parameter(table[:tokens], x.shape, x.dtype)
        return x + take_rows(table, first, x.dtype)[:, None]


def _rematerialised(
    block: Block,
    x: TokenVectors,
    *,
    policy: Callable[..., bool],
    intermediates: Intermediates,
    **inputs: Array | None,
) -> TokenVectors:
    """The block with its activations recomputed in the backward pass instead of kept (Chen et al. 2016).

    policy: which of them are kept.
    """
    graph, parameters, state = nnx.split(block, nnx.Param, ...)

    @functools.partial(jax.checkpoint, policy=policy)
    def run(parameters, state, x, inputs):
        # Intermediates, and a state that the block updates, must leave the rematerialised region as outputs of it.
        inner, block = intermediates.fresh(), nnx.merge(graph, parameters, state)
        y = block(x, **inputs, intermediates=inner)
        return y, inner.values, nnx.state(block, nnx.Not(nnx.Param))

    x, values, state = run(parameters, state, x, inputs)
    nnx.update(block, state)
    intermediates.values.update(values)
    return x

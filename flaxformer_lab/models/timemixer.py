"""TimeMixer (Wang et al. 2024): MLPs that mix the scales of a series, seasons from fine to coarse, trends back."""

import math

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flaxformer_lab import registry
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.functional.feedforward import ACTIVATIONS
from flaxformer_lab.model_config import TimeMixerConfig
from flaxformer_lab.modules.decomposition import Decomposition
from flaxformer_lab.modules.intermediates import DISABLED, Intermediates
from flaxformer_lab.modules.projection import Dense
from flaxformer_lab.modules.rngs import Rngs

Scales = dict[str, Float[Array, "batch _ width"]]  # by the number of the scale, the finest first


class MLP(nnx.Module):
    """Two maps of the last axis with an activation between them."""

    def __init__(self, config: TimeMixerConfig, features: int, hidden: int, outputs: int, *, rngs: Rngs):
        self._activation, options = ACTIVATIONS[config.activation], {"bias": config.bias, "rngs": rngs}
        self.up = Dense(features, hidden, axes=(None, None), **options)
        self.down = Dense(hidden, outputs, axes=(None, None), **options)

    def __call__(self, x: Float[Array, "batch rows features"]) -> Float[Array, "batch rows outputs"]:
        return self.down(self._activation(self.up(x)))


class MixingBlock(nnx.Module):
    """Past decomposable mixing (section 3.2): x + MLP(season + trend) at each scale, after both were mixed over scales.

    A season reaches the next coarser scale and a trend the next finer one, by an MLP over time.
    """

    def __init__(self, config: TimeMixerConfig, *, steps: list[int], rngs: Rngs):
        finer, coarser = steps[:-1], steps[1:]
        hidden = max(1, round(config.width * config.expansion))
        self.decomposition = Decomposition(config.moving_average, rngs)
        over_time = lambda ins, outs: nnx.List(  # noqa: E731
            [MLP(config, before, after, after, rngs=rngs) for before, after in zip(ins, outs, strict=True)]
        )
        self.seasons, self.trends = over_time(finer, coarser), over_time(coarser, finer)
        self.features = MLP(config, config.width, hidden, config.width, rngs=rngs)

    def __call__(self, scales: list[Array]) -> list[Array]:
        over_time = lambda mlp, x: jnp.swapaxes(mlp(jnp.swapaxes(x, 1, 2)), 1, 2)  # noqa: E731
        seasons, trends = map(list, zip(*map(self.decomposition, scales), strict=True))
        for number, mlp in enumerate(self.seasons):
            seasons[number + 1] += over_time(mlp, seasons[number])
        for number, mlp in reversed(list(enumerate(self.trends))):
            trends[number] += over_time(mlp, trends[number + 1])
        return [x + self.features(s + t) for x, s, t in zip(scales, seasons, trends, strict=True)]


@registry.register("model", "timemixer", config=TimeMixerConfig, causal=False, decodes=False)
class TimeMixer(nnx.Module):
    """Blocks without norms. grid: the tokens of each scale, by its number; `tasks.forecasting` makes them."""

    two_sequences = True

    def __init__(self, config: TimeMixerConfig, *, grid: dict[str, tuple[int, ...]], rngs: Rngs):
        if len(grid) != config.scales + 1:
            raise ConfigError(
                f"model.name=timemixer mixes {config.scales + 1} scales of a series, so it is for task.name="
                "forecasting alone; choose another model.name"
            )
        steps = [math.prod(each) for each in grid.values()]
        self.blocks = nnx.List([MixingBlock(config, steps=steps, rngs=rngs) for _ in range(config.depth)])

    def __call__(self, x: Scales, *, valid=None, keys=None, intermediates: Intermediates = DISABLED) -> Scales:
        del valid, keys  # there is no padding and no dropout
        scales = list(x.values())
        for number, block in enumerate(self.blocks):
            inner = intermediates.within(f"blocks.{number}")
            scales = [inner.hook_point(f"output.{scale}", each) for scale, each in enumerate(block(scales))]
        return dict(zip(x, scales, strict=True))

"""Update rules and learning-rate schedules, from optax, selected by name."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import optax
from jaxtyping import Array, Float
from optax.contrib import MuonDimensionNumbers, muon

from flaxformer_lab.config import OptimizerConfig
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.functional.trees import leaf_paths, replace_leaves
from flaxformer_lab.models.network import PureNetwork
from flaxformer_lab.modules.projection import Fans
from flaxformer_lab.training.naming import is_named
from flaxformer_lab.training.scaling import scale_by_fan_in

Tree = Any  # a pytree of arrays
# Names of the parameters that weight decay acts on: dense maps and tables (`crossed` is one of pairs of fields), heads
# of several members, AutoInt's maps, the parts of complex ones, and LoRA's two. The vectors of a table's columns have
# none, as in FT-Transformer (Gorishniy et al. 2021).
MATRICES = frozenset("kernel table crossed kernels query key value residual real imaginary a b".split())


Peak = float | Float[Array, ""]


def make_schedule(config: OptimizerConfig, steps: int, peak: Peak | None = None) -> optax.Schedule:
    """The learning rate at each step: a linear warm-up to its peak, then constant, or down to 0 at `steps`.

    peak: instead of the config's.
    """
    peak, remaining = config.learning_rate if peak is None else peak, max(1, steps - config.warmup_steps)
    decay = {
        "constant": optax.constant_schedule(peak),
        "cosine": optax.cosine_decay_schedule(peak, remaining),
        "linear": optax.linear_schedule(peak, 0.0, remaining),
    }[config.schedule]
    if not config.warmup_steps:
        return decay
    # The first update is not at 0: it has 1 / warmup_steps of the peak.
    warmup = optax.linear_schedule(peak / config.warmup_steps, peak, max(1, config.warmup_steps - 1))
    return optax.join_schedules([warmup, decay], [config.warmup_steps])


def make_optimizer(
    config: OptimizerConfig,
    steps: int,
    peak: Peak | None = None,
    *,
    fans: Mapping[str, Fans] | None = None,
    train_only: Sequence[str] = (),
) -> optax.GradientTransformation:
    """The update rule that `config.name` names, after clipping by the global norm where the config asks for it.

    fans: of the network's maps, which Muon trains, and by which `config.scaling` scales their rates; without them Muon
        takes every kernel inside blocks for one. train_only: as `training.train_only`.
    """
    schedule = make_schedule(config, steps, peak)
    muon_of_these = functools.partial(_muon, fans=fans)
    rule = {"adamw": _adamw, "muon": muon_of_these, "sgd": _sgd, "ridge": _ridge}[config.name](config, schedule)
    if config.scaling == "mup":
        rule = optax.chain(rule, scale_by_fan_in(fans or {}, config.base_fan_in))
    rule = rule if config.clip_norm is None else optax.chain(optax.clip_by_global_norm(config.clip_norm), rule)
    if not train_only:
        return rule
    rules = {"trained": rule, "kept": optax.set_to_zero()}
    return optax.partition(rules, functools.partial(_trained_or_kept, train_only=tuple(train_only)))


def _trained_or_kept(params: Tree, train_only: tuple[str, ...]) -> Tree:
    """Raises ConfigError where nothing is trained."""
    labels = {name: "trained" if is_named(name, train_only) else "kept" for name in leaf_paths(params)}
    if "trained" not in labels.values():
        raise ConfigError(
            f"training.train_only={','.join(train_only)} names no array of this model, so nothing would be trained; it "
            f"has {', '.join(list(labels)[:4])} and more"
        )
    return replace_leaves(params, labels)


def make_population_optimizer(
    config: OptimizerConfig, steps: int, fans: Mapping[str, Fans], train_only: Sequence[str] = ()
) -> optax.GradientTransformation:
    """The same rule with its peak learning rate in the state, where each replica has its own.

    The state is `optax.inject_hyperparams`'s; its `inner_state` is that of `make_optimizer`.
    """

    def rule(learning_rate: Peak) -> optax.GradientTransformation:
        return make_optimizer(config, steps, learning_rate, fans=fans, train_only=train_only)

    return optax.inject_hyperparams(rule)(learning_rate=config.learning_rate)


def _adamw(
    config: OptimizerConfig, schedule: optax.Schedule, *, nesterov: bool = False
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""
    options = {"b1": config.beta1, "b2": config.beta2, "nesterov": nesterov}
    return optax.adamw(schedule, **options, weight_decay=config.weight_decay, mask=decayed)


def _muon(
    config: OptimizerConfig, schedule: optax.Schedule, *, fans: Mapping[str, Fans] | None
) -> optax.GradientTransformation:
    """Orthogonalised momentum for the matrices of blocks and layers (Jordan et al. 2024), AdamW for the rest.

    Of a structured map [blocks, in, out] each block is a matrix. A diagonal map is none, nor is a convolution of each
    feature by itself, so AdamW trains them: compare them with a dense one under `name=adamw` (`maps_by_rule` tells
    which rule trains what).

    Both look ahead as Nesterov does. Updates have the root mean square of Adam's (Liu et al. 2025), so one learning
    rate serves both.
    """
    rules = {
        "muon": muon(
            schedule,
            beta=0.95,
            weight_decay=config.weight_decay,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=_matrix_axes,
        ),
        "adamw": _adamw(config, schedule, nesterov=True),  # muon's own would decay biases and scales as well
    }
    return optax.partition(rules, functools.partial(_muon_or_adamw, fans=fans))


def _matrix_axes(params: Tree) -> Tree:
    return jax.tree.map(lambda leaf: MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1), params)


def _sgd(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Gradient descent with momentum beta1 and decoupled weight decay."""
    return optax.chain(
        optax.trace(config.beta1),
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
        optax.scale_by_learning_rate(schedule),
    )


def _ridge(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """No update: the weights are the solution from the start (`initialization.starting_weights`)."""
    del config, schedule
    return optax.set_to_zero()


def decayed(params: Tree) -> Tree:
    """True where weight decay acts: matrices and embedding tables; not biases, norm scales, positions, diagonals."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in MATRICES, params)


def maps_by_rule(config: OptimizerConfig, network: PureNetwork) -> dict[str, str]:
    """The rule that trains each map of the network's body, by its dotted name."""
    params, _ = network.shapes
    rules = leaf_paths(_muon_or_adamw(params, network.fans))
    maps = (name for name in network.fans if name.startswith("body."))
    return {name: rules[name] if config.name == "muon" else config.name for name in maps}


def _muon_or_adamw(params: Tree, fans: Mapping[str, Fans] | None) -> Tree:
    """The rule of each leaf: Muon for the kernels inside blocks or layers that are maps over features."""

    def rule(name: str) -> str:
        names = name.split(".")
        is_map = names[-1] == "kernel" and (fans is None or name in fans)
        return "muon" if is_map and {"blocks", "layers"} & set(names) else "adamw"

    return replace_leaves(params, {name: rule(name) for name in leaf_paths(params)})

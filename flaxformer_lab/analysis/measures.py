"""Every measure by name: what it needs of a model, and what it gives."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flaxformer_lab import registry
from flaxformer_lab.analysis import attention_maps, rank, symmetry
from flaxformer_lab.analysis.anova import functional_anova
from flaxformer_lab.analysis.concentration import (
    attention_received,
    concentration,
    covered_tokens,
    layer_saliency,
    saliency,
)
from flaxformer_lab.analysis.estimate import Estimate, ratio
from flaxformer_lab.analysis.hessian import hessian_interaction
from flaxformer_lab.analysis.importance import head_importance
from flaxformer_lab.analysis.jacobian import mixing_energy
from flaxformer_lab.analysis.sight import (
    attention_distance,
    field_radius,
    field_share,
    receptive_field,
    token_places,
)
from flaxformer_lab.analysis.subject import Subject
from flaxformer_lab.errors import MeasureError
from flaxformer_lab.functional.trees import leaf_paths
from flaxformer_lab.model_config import TransformerConfig
from flaxformer_lab.models.cost import compiled_bytes, forward_flops, parameters
from flaxformer_lab.models.lora import merged
from flaxformer_lab.parsing import nearest
from flaxformer_lab.tasks.forecasting import Forecasting

Values = dict[str, Any]  # floats, Estimates, and arrays for the figures
EXACT_ROWS = 1024  # up to this many Jacobian rows or Hessian columns all are computed, beyond that they are sampled
MAX_INPUTS = 1024  # of the functional ANOVA, which takes a few calls for each
MAX_INDEXED_INPUTS = 64  # with more, the indices of single inputs are left out: each is smaller than its error


@dataclass(frozen=True)
class Measure:
    """compute(subject, num_random_vectors) -> values by name; misfit(subject): why it does not apply, or None."""

    compute: Callable[[Subject, int], Values]
    misfit: Callable[[Subject], str | None] = lambda subject: None


def measure(subject: Subject, names: Sequence[str] = (), *, num_random_vectors: int = 128) -> Values:
    """The named measures of a subject; without names, all that apply to it (`left_out` says why the others do not).

    num_random_vectors: random rows or columns, where there are more than EXACT_ROWS.

    Raises:
        MeasureError: an unknown measure, or one that does not apply to this model.
    """
    for name in names:
        if name not in MEASURES:
            raise MeasureError(f"{name} is not a measure: {nearest(name, MEASURES)}choose from {', '.join(MEASURES)}")
        misfit = MEASURES[name].misfit(subject)
        if misfit:
            fitting = [other for other in MEASURES if other not in left_out(subject)]
            raise MeasureError(f"{name} does not apply to this model: {misfit}; these do: {', '.join(fitting)}")
    chosen = names or [name for name in MEASURES if name not in left_out(subject)]
    values: Values = {}
    for name in chosen:
        values |= MEASURES[name].compute(subject, num_random_vectors)
    return values


def left_out(subject: Subject) -> dict[str, str]:
    """The measures that do not apply to the subject, each with the reason."""
    misfits = {name: each.misfit(subject) for name, each in MEASURES.items()}
    return {name: misfit for name, misfit in misfits.items() if misfit}


# ------------------------------------------------------------------------------------------------ the measures


def _mixing(subject: Subject, num_random_vectors: int) -> Values:
    x = subject.vectors
    exact = x.shape[1] * x.shape[2] <= EXACT_ROWS
    features, tokens = mixing_energy(subject.body, x, num_random_vectors=None if exact else num_random_vectors)
    return {
        "cross_feature_energy": features.cross,
        "cross_token_energy": tokens.cross,
        "feature_energy": features.matrix,
        "token_energy": tokens.matrix,
    }


def _channels(subject: Subject, num_random_vectors: int) -> Values:
    """Of a forecast's Jacobian by the window: what comes from other channels, and from steps before the last one.

    Row by row up to EXACT_ROWS rows. Beyond that with random signs over the horizon, each example with its own, so that
    the error over examples has theirs in it: a squared gradient has the energy of all steps as its mean (Hutchinson
    1990).
    """
    inputs, targets = subject.batch["inputs"], subject.task.layout.targets
    horizon, number = subject.task.horizon, max(1, num_random_vectors // 8)
    if horizon * len(targets) <= EXACT_ROWS:
        steps = np.eye(horizon)[:, None]
    else:
        drawn = (number, len(inputs["series"]), horizon)
        steps = np.random.default_rng(0).choice([-1.0, 1.0], drawn) / math.sqrt(number)

    def forecasts(series: Array) -> Array:
        y = subject.network.apply(subject.params, subject.model_state, inputs | {"series": series})[0]
        return y if y.ndim == 3 else y[..., y.shape[3] // 2]

    @jax.jit
    def energies(series: Array, steps: Array) -> Array:
        """[targets, batch, lookback, channels]."""
        y, pull = jax.vjp(forecasts, series)

        def add(total: Array, number: Array) -> tuple[Array, None]:
            step, target = steps[number // len(targets)], number % len(targets)
            row = jnp.zeros_like(y).at[:, :, target].set(jnp.broadcast_to(step, y.shape[:2]))
            return total.at[target].add(jnp.square(pull(row)[0])), None

        empty = jnp.zeros((len(targets), *series.shape))
        return jax.lax.scan(add, empty, jnp.arange(len(steps) * len(targets)))[0]

    energy = np.asarray(energies(inputs["series"], jnp.asarray(steps, jnp.float32)), np.float64)
    own = np.arange(energy.shape[3]) == np.array(targets)[:, None]
    of_example = energy.sum(axis=(0, 2, 3))
    return {
        "cross_channel_energy": ratio(np.einsum("tblc,tc->b", energy, ~own), of_example),
        "cross_time_energy": ratio(energy[:, :, :-1].sum(axis=(0, 2, 3)), of_example),
        "channel_energy": energy.sum(axis=2).mean(axis=1),
        "time_energy": energy.sum(axis=3).mean(axis=1),
    }


def _initial_mixing(subject: Subject, num_random_vectors: int) -> Values:
    values = _mixing(subject.at_initialization(), num_random_vectors)
    return {f"{name}_at_initialization": values[name] for name in ("cross_feature_energy", "cross_token_energy")}


def _interaction(subject: Subject, num_random_vectors: int) -> Values:
    del num_random_vectors
    function, x = subject.scalar
    found = functional_anova(function, x, backgrounds=max(2, min(16, MAX_INPUTS // x.shape[1])))
    values: Values = {"interaction_share": found.interaction}
    if x.shape[1] <= MAX_INDEXED_INPUTS:
        values |= {"first_order_indices": found.first_order, "total_indices": found.total}
    return values if found.pairs is None else values | {"pair_indices": found.pairs}


def _hessian(subject: Subject, num_random_vectors: int) -> Values:
    function, x = subject.scalar
    sampled = None if x.shape[1] <= EXACT_ROWS else num_random_vectors
    return {"hessian_interaction": hessian_interaction(function, x, num_random_vectors=sampled)}


def _symmetry(subject: Subject, num_random_vectors: int) -> Values:
    del num_random_vectors
    x, body = subject.vectors, subject.body
    generator = np.random.default_rng(0)
    tokens, features = (generator.permutation(size) for size in x.shape[1:])
    return {
        "oddness": float(symmetry.oddness(body, x)),
        "linearity_error": float(symmetry.linearity_error(body, x, jnp.roll(x, 1, axis=0))),
        "token_equivariance_error": float(symmetry.token_equivariance_error(body, x, tokens)),
        "feature_equivariance_error": float(symmetry.feature_equivariance_error(body, x, features)),
    }


def _attention(subject: Subject, num_random_vectors: int) -> Values:
    del num_random_vectors
    values: Values = {}
    found = subject.intermediates_named("attention.weights")
    if not found:
        raise MeasureError(
            f"model.name={subject.config.name} declares has_token_weights, but offers no intermediate "
            "blocks.N.attention.weights or layers.N.attention.weights; offer it, or declare False"
        )
    attention = getattr(subject.config, "attention", None)
    mask = {"causal": getattr(subject.config, "causal", False), "window": getattr(attention, "window", None)}
    for layer, weights in found.items():
        weights = jnp.broadcast_to(weights, (len(subject.vectors), *weights.shape[1:]))
        values |= {
            f"{layer}.attention_entropy": np.asarray(attention_maps.entropy(weights, **mask)),
            f"{layer}.attention_distance": np.asarray(attention_maps.mean_distance(weights)),
            f"{layer}.head_diversity": float(attention_maps.head_diversity(weights)),
            f"{layer}.effective_rank": float(attention_maps.effective_rank(weights)),
            f"{layer}.attention_map": np.asarray(weights[0]),
        }
    return values


def _sight(subject: Subject, num_random_vectors: int) -> Values:
    """By layer: how far attention looks, and from how far pixels reach the token in the middle, in pixels."""
    del num_random_vectors
    rows, columns = subject.batch["inputs"].shape[1:3]
    values: Values = {}
    for layer, weights in subject.intermediates_named("attention.weights").items():
        if weights.shape[-1] == subject.vectors.shape[1]:
            places = jnp.asarray(token_places(weights.shape[-1], rows, columns))
            values[f"{layer}.attention_distance_in_pixels"] = np.asarray(attention_distance(weights, places))
    for name, one in (("", subject), ("_at_initialization", subject.at_initialization())):
        fields = _receptive_fields(one, rows, columns)
        values[f"receptive_radius{name}"] = np.array([float(radius) for radius, _ in fields])
        values[f"receptive_share{name}"] = np.array([float(field_share(field)) for _, field in fields])
        values[f"receptive_field{name}"] = np.asarray(fields[-1][1])
    return values


def _receptive_fields(subject: Subject, rows: int, columns: int) -> list[tuple[Array, Array]]:
    """Of each layer's token in the middle, the radius and the field."""
    found = []
    for layer, value in subject.intermediates_named("output").items():
        places = token_places(value.shape[1], rows, columns)
        token = int(np.argmin(np.linalg.norm(places - [(rows - 1) / 2, (columns - 1) / 2], axis=1)))

        def output(images: Array, name: str = f"{layer}.output") -> Array:
            run = subject.network.run_with_cache(subject.params, subject.model_state, images, names=(name,))
            return run[1][name]

        field = jax.jit(functools.partial(receptive_field, output, token=token))(subject.batch["inputs"])
        found.append((field_radius(field, jnp.asarray(places[token])), field))
    return found


def _objects(subject: Subject, num_random_vectors: int) -> Values:
    """By layer: how much more of attention and of gradients lies in objects than by their area."""
    del num_random_vectors
    inside, values = subject.batch["object_pixels"], {}
    names = [f"{layer}.output" for layer in subject.intermediates_named("output")]

    def of(one: Subject) -> dict[str, list[Array]]:
        run = one.network, one.params, one.model_state, one.batch["inputs"]
        attention = [attention_received(w) for w in one.intermediates_named("attention.weights").values()]
        whole = saliency(lambda x: one.network.apply(one.params, one.model_state, x)[0], one.batch["inputs"])
        by_layer = layer_saliency(*run, names)
        return {"object_attention": attention, "object_saliency": [whole, *(by_layer[name] for name in names)]}

    for name, one in (("", subject), ("_at_initialization", subject.at_initialization())):
        for measured, shown in of(one).items():
            pairs = [(each, inside if each.ndim == 3 else covered_tokens(inside, each.shape[1])) for each in shown]
            if pairs:
                values[f"{measured}{name}"] = np.array([float(concentration(*pair)) for pair in pairs])
    return values


def _depth(subject: Subject, num_random_vectors: int) -> Values:
    del num_random_vectors
    layers = [subject.vectors, *subject.intermediates_named("output").values()]
    return {
        "rank_residual": np.array([float(jnp.mean(rank.rank_residual(x))) for x in layers]),
        "stable_rank": np.array([float(jnp.mean(rank.stable_rank(x))) for x in layers]),
        "scale_heterogeneity": np.array([float(rank.scale_heterogeneity(x)) for x in layers]),
    }


def _importance(subject: Subject, num_random_vectors: int) -> Values:
    del num_random_vectors
    whole = merged(subject.params)
    paths = leaf_paths(whole)
    outputs = {path: leaf for path, leaf in paths.items() if path.endswith(OUTPUT_MAPS)}

    def loss(outputs, example):
        leaves = [outputs.get(path, leaf) for path, leaf in paths.items()]
        params = jax.tree.unflatten(jax.tree.structure(whole), leaves)
        one = jax.tree.map(lambda leaf: leaf[None], example)
        outputs, _ = subject.network.apply(params, subject.model_state, one["inputs"], valid=one.get("valid"))
        total, weight = subject.task.loss_and_metrics(outputs, one)["loss"]
        return total / jnp.maximum(weight, 1e-30)

    heads = subject.config.attention.num_heads
    found = jax.jit(lambda: head_importance(loss, outputs, heads, subject.batch))()
    return {f"{_block_of(path)}.head_importance": np.asarray(gates) for path, gates in found.items()}


def _block_of(path: str) -> str:
    return path.split(".attention.")[0].removeprefix("body.")


def _cost(subject: Subject, num_random_vectors: int) -> Values:
    del num_random_vectors
    arguments = (subject.network, subject.params, subject.model_state)
    return {
        "parameters": parameters(subject.params),
        "forward_flops": forward_flops(*arguments, subject.task.input_spec(1)),
        "peak_bytes": compiled_bytes(*arguments, subject.task.input_spec(len(subject.vectors))),
    }


# -------------------------------------------------------------------------------------------- what each one needs

OUTPUT_MAPS = ("attention.output.kernel", "attention.output.scale")


def _needs_channels(subject: Subject) -> str | None:
    return None if isinstance(subject.task, Forecasting) else "it does not forecast a series"


def _needs_weights(subject: Subject) -> str | None:
    config = subject.config
    weighs = registry.ask("model", config.name, "has_token_weights", config, subject.vectors.shape[1])
    if weighs:
        return None
    kind = config.attention.kind if isinstance(config, TransformerConfig) and config.depth else None
    if weighs is None:
        part = f"attention.kind={kind}" if config.name == "transformer" else f"model.name={config.name}"
        return f"{part} does not declare whether it has_token_weights"
    if kind:
        return f"attention.kind={kind} has no weights over tokens"
    return f"model.name={config.name} of depth {getattr(config, 'depth', 0)} has no attention"


def _needs_heads(subject: Subject) -> str | None:
    config = subject.config
    if not isinstance(config, TransformerConfig) or config.depth == 0 or config.attention.kind == "off":
        return f"model.name={config.name} has no attention heads here"
    output = config.attention.output
    return None if output in ("dense", "diagonal") else f"attention.output={output} has no map whose rows are a head's"


def _needs_few_inputs(subject: Subject) -> str | None:
    inputs = subject.scalar[1].shape[1]
    if inputs <= MAX_INPUTS:
        return None
    return f"its {inputs} inputs are more than {MAX_INPUTS}, and each takes several calls for each example"


def _needs_layers(subject: Subject) -> str | None:
    return None if getattr(subject.config, "depth", 0) else f"model.name={subject.config.name} has no depth here"


def _needs_patches(subject: Subject) -> str | None:
    inputs = subject.batch["inputs"]
    if not isinstance(inputs, jax.Array | np.ndarray) or inputs.ndim != 4:
        return "its inputs are no images"
    try:
        token_places(subject.vectors.shape[1], *inputs.shape[1:3])
    except ValueError as error:
        return str(error)
    return _needs_layers(subject)


def _needs_objects(subject: Subject) -> str | None:
    return _needs_patches(subject) if "object_pixels" in subject.batch else "its examples do not say where objects are"


def _needs_equal_tokens(subject: Subject) -> str | None:
    found = jax.eval_shape(subject.body, subject.vectors).shape
    if found == subject.vectors.shape:
        return None
    return f"its body turns {subject.vectors.shape[1:]} tokens and features into {found[1:]}"


def _needs_two_examples(subject: Subject) -> str | None:
    return None if len(subject.vectors) > 1 else "one example alone has no average over examples; take more"


MEASURES: dict[str, Measure] = {
    "mixing": Measure(_mixing, _needs_equal_tokens),
    "mixing_at_initialization": Measure(_initial_mixing, _needs_equal_tokens),
    "channels": Measure(_channels, _needs_channels),
    "interaction": Measure(_interaction, lambda subject: _needs_two_examples(subject) or _needs_few_inputs(subject)),
    "hessian": Measure(_hessian, _needs_two_examples),
    "symmetry": Measure(_symmetry, _needs_equal_tokens),
    "attention": Measure(_attention, _needs_weights),
    "sight": Measure(_sight, _needs_patches),
    "objects": Measure(_objects, _needs_objects),
    "depth": Measure(_depth, _needs_layers),
    "head_importance": Measure(_importance, _needs_heads),
    "cost": Measure(_cost),
}


def as_json(values: Values) -> dict[str, Any]:
    """Values as plain JSON: an Estimate as {value, standard_error}, an array as nested lists, NaN as null."""

    def plain(value: Any) -> Any:
        if isinstance(value, Estimate):
            return {"value": plain(value.value), "standard_error": plain(value.standard_error)}
        if isinstance(value, np.ndarray):
            return [plain(each) for each in value]
        if isinstance(value, float | np.floating):
            return float(value) if np.isfinite(value) else None
        return int(value)

    return {name: plain(value) for name, value in values.items()}

"""Modules and baselines compared with float64; conversions compared with their golden logits."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flaxformer_lab.config import parse_config
from flaxformer_lab.functional.trees import leaf_paths
from flaxformer_lab.model_config import ModelConfig
from flaxformer_lab.models.bodies import make_body
from flaxformer_lab.modules import embedding, feedforward, norm, projection
from flaxformer_lab.modules.attention import make_attention
from flaxformer_lab.modules.rngs import Rngs
from tools.device import references
from tools.device.comparison import TOLERANCES, Case, compare, drawn
from tools.device.outcome import Measured, required

GOLDENS = Path(__file__).parents[2] / "tests" / "goldens"
BATCH, TOKENS, WIDTH = 3, 6, 6
STREAM = {"x": drawn(0, BATCH, TOKENS, WIDTH)}


def precision() -> Measured:
    """Products of float32 are float32, unless JAX is asked for less."""
    module = projection.Dense(257, 257, axes=(None, None), bias=False, rngs=Rngs(0))
    graph, params = nnx.split(module)
    x = np.random.default_rng(0).normal(size=(257, 257)).astype(np.float32)
    exact = x.astype(np.float64) @ np.asarray(module.kernel[...], np.float64)

    def error() -> float:
        found = jax.device_get(jax.jit(lambda params, x: nnx.merge(graph, params)(x))(params, x))
        return float(np.max(np.abs(found - exact)) / np.max(np.abs(exact)))

    measured = {"float32": error()}
    for asked in ("high", "default"):
        with jax.default_matmul_precision(asked):
            measured[asked] = error()
    return required(measured["float32"] <= 1e-6, "products of float32 are not float32", measured)


def projections_and_norms() -> Measured:
    """Every projection and every norm."""

    def make(kind: str, features: int) -> nnx.Module:
        return projection.PROJECTIONS[kind](WIDTH, features, axes=(None, None), groups=2, bias=True, rngs=Rngs(0))

    def twice(x: np.ndarray) -> np.ndarray:
        halves = np.split(x, 2, axis=-1)
        return np.concatenate([halves[0], halves[0], halves[1], halves[1]], axis=-1)

    norms = {"layernorm": references.layer_norm, "rmsnorm": references.rms_norm, "srmsnorm": references.rms_norm}
    return compare(
        [
            _case("dense", make("dense", 11), references.dense),
            _case("diagonal", make("diagonal", 2 * WIDTH), lambda x, p: twice(x) * p["scale"] + p["bias"]),
            _case("identity", make("identity", 2 * WIDTH), lambda x, p: twice(x)),
            *(_case(kind, norm.make_norm(_model(), kind=kind), exact) for kind, exact in norms.items()),
        ]
    )


def feed_forwards() -> Measured:
    """Every kind of feed-forward part, and every activation."""
    exact = {
        "mlp": references.mlp,
        "gated": references.gated,
        "bilinear": references.gated,
        "diagonal": references.diagonal_mlp,
    }
    kinds = [("mlp", activation) for activation in references.ACTIVATIONS]
    kinds += [("gated", "silu"), ("bilinear", "identity"), ("diagonal", "gelu")]

    def case(kind: str, activation: str) -> Case:
        module = feedforward.make_feed_forward(_model(ffn={"kind": kind, "activation": activation}), Rngs(0))
        return _case(f"{kind} {activation}", module, lambda x, p: exact[kind](x, p, references.ACTIVATIONS[activation]))

    return compare([case(*kind) for kind in kinds])


def embeddings_and_positions() -> Measured:
    """Every embedding, and learned and sinusoidal positions."""
    symbols = np.random.default_rng(1).integers(0, 7, (BATCH, TOKENS))
    columns, images = {"x": drawn(2, BATCH, 4)}, {"x": drawn(3, BATCH, 4, 6, 2)}

    def class_token_and_patches(x: np.ndarray, p: dict[str, np.ndarray]) -> np.ndarray:
        first = np.broadcast_to(p["class_token"], (BATCH, 1, WIDTH))
        return np.concatenate([first, references.dense(references.patches(x, 2), p, "projection.")], axis=1)

    def positions(kind: str) -> nnx.Module:
        return make_body(_model(depth=0, position=kind, norm={"kind": "off"}), grid=(TOKENS,), rngs=Rngs(0))

    def cases(dtype: str) -> list[Case]:
        options = {"dtype": dtype, "rngs": Rngs(0)}
        patches = embedding.PatchEmbedding(2, 2, WIDTH, bias=True, class_token=True, **options)
        by_column = lambda x, p: x[:, :, None] * p["directions"] + p["offsets"]  # noqa: E731
        by_symbol = lambda p, symbols: p["table"][symbols]  # noqa: E731
        return [
            _case("patches", patches, class_token_and_patches, images),
            _case("columns", embedding.ColumnEmbedding(4, WIDTH, **options), by_column, columns),
            _case("symbols", embedding.TokenEmbedding(7, WIDTH, **options), by_symbol, {}, symbols=symbols),
            _case("learned positions", positions("learned"), lambda x, p: x + p["position"]),
            _case(
                "sinusoidal positions", positions("sinusoidal"), lambda x, p: x + references.sinusoidal(TOKENS, WIDTH)
            ),
        ]

    return {name: value for dtype in TOLERANCES for name, value in compare(cases(dtype), (dtype,)).items()}


def embedding_gradient() -> Measured:
    """The gradient of a table of symbols under bfloat16 computation, where a symbol occurs thousands of times."""
    occurrences = {0: 8192, 1: 4099, 2: 1}
    symbols = jnp.repeat(jnp.arange(3), np.array(list(occurrences.values())))[None]
    module = embedding.TokenEmbedding(4, WIDTH, dtype="bfloat16", rngs=Rngs(0))
    graph, params = nnx.split(module)
    total = lambda params, symbols: jnp.sum(nnx.merge(graph, params)(symbols).astype(jnp.float32))  # noqa: E731
    gradient = np.asarray(jax.device_get(jax.jit(jax.grad(total))(params, symbols)["table"][...]))
    counted = np.array([*occurrences.values(), 0])[:, None]
    measured = {f"{count} occurrences": float(gradient[symbol, 0]) for symbol, count in occurrences.items()}
    right = gradient.dtype == np.float32 and np.all(np.abs(gradient - counted) <= 1e-5 * counted)
    return required(bool(right), "the gradient of a symbol's vector is not how often it occurs", measured)


def attention_module() -> Measured:
    """Fused projections of grouped heads around softmax attention, with a norm and a gate before the output."""
    knobs = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 4, "norm": "rmsnorm", "gate": True}
    module = make_attention(_model(attention=knobs, causal=True), tokens=TOKENS, rngs=Rngs(0))
    return compare([_case("attention", module, lambda x, p: references.attention_module(x, p, 4, 2))], roundings=3)


def baselines() -> Measured:
    """Every model beside the Transformer, with one layer or block."""
    line, square = ((TOKENS,), [(-1,), (0,), (1,)]), ((2, 3), list(itertools.product((-1, 0, 1), repeat=2)))
    exact: dict[str, Callable[..., np.ndarray]] = {
        "mlp": lambda x, p: references.ACTIVATIONS["gelu"](references.dense(x, p, "layers.0.")),
        "factorization_machine": references.factorization_machine,
        "lstm": references.lstm,
        "gru": references.gru,
        "mixer": references.mixer,
        "cnn_1d": lambda x, p: references.convolutional(x, p, *line),
        "cnn_2d": lambda x, p: references.convolutional(x, p, *square),
    }
    shallow: dict[str, dict[str, Any]] = {name: {"depth": 1} for name in exact} | {"factorization_machine": {}}
    # A norm that subtracts the mean would leave the bias over tokens without a gradient.
    shallow["mixer"]["norm"] = {"kind": "rmsnorm"}

    def body(name: str) -> nnx.Module:
        grid = square[0] if name == "cnn_2d" else line[0]
        return make_body(_model(name=name, **shallow[name]), grid=grid, rngs=Rngs(0))

    return compare([_case(name, body(name), formula) for name, formula in exact.items()], roundings=3)


def conversion(name: str) -> Measured:
    """A model of transformers with its weights and logits: tests/goldens/parity_NAME.safetensors."""
    from safetensors import safe_open

    from flaxformer_lab.models.conversion import from_huggingface

    with safe_open(GOLDENS / f"parity_{name}.safetensors", "numpy") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        settings = json.loads(file.metadata()["config"])
    weights = {key.removeprefix("weights/"): w for key, w in tensors.items() if key.startswith("weights/")}
    model = from_huggingface(weights, settings)
    valid = {"valid": jnp.asarray(tensors["valid"])} if "valid" in tensors else {}
    logits, _ = jax.jit(model.network.apply)(model.params, {}, jnp.asarray(tensors["inputs"]), **valid)
    error = float(np.max(np.abs(jax.device_get(logits) - tensors["logits"]) / (1 + np.abs(tensors["logits"]))))
    return required(error <= 1e-4, "logits differ from those of transformers", {"float32": error})


def _model(**knobs: Any) -> ModelConfig:
    heads = {} if "name" in knobs else {"attention": {"num_heads": 2}}
    return parse_config({"model": {"width": WIDTH} | heads | knobs}).model


def _case(
    name: str,
    module: nnx.Module,
    exact: Callable[..., np.ndarray],
    inputs: dict[str, np.ndarray] = STREAM,
    **others: np.ndarray,
) -> Case:
    """module(inputs, others) and exact(inputs, parameters, others), with random values for all parameters."""
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    leaves, structure = jax.tree.flatten(params)
    names = list(leaf_paths(nnx.to_pure_dict(params)))
    # A matrix's columns have a length of about 1, so that nothing saturates; powers of two keep numbers short.
    scale = lambda shape: 2.0 ** -round(np.log2(shape[0]) / 2) if len(shape) > 1 else 1.0  # noqa: E731
    drawn_leaves = {n: drawn(i, *x.shape) * scale(x.shape) for i, (n, x) in enumerate(zip(names, leaves, strict=True))}

    def compute(**given: jax.Array) -> jax.Array:
        parameters = jax.tree.unflatten(structure, [given.pop(name) for name in names])
        return nnx.merge(graph, parameters, rest)(*given.values())

    def formula(**given: np.ndarray) -> np.ndarray:
        p = {name: given.pop(name) for name in names}
        return exact(*(given.pop(name) for name in inputs), p, **given)

    return Case(name, compute, formula, {**inputs, **drawn_leaves}, frozenset(names), others)

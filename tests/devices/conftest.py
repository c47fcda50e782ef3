"""What the tests of absent devices share: small models, the ways to run them, and golden counts of what they send.

`UPDATE_GOLDENS=1 make test-tpu` (or test-cuda) writes the counts of the installed versions again.
"""

import functools
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import pytest

from flaxformer_lab.ablation.variants import apply_variants
from flaxformer_lab.config import Config, MeshConfig, parse_config
from flaxformer_lab.functional.trees import leaf_paths
from flaxformer_lab.parsing import override
from flaxformer_lab.training.absent_devices import Program, abstract_batch, compile_for, compile_train_step
from flaxformer_lab.training.experiment import Experiment, make_experiment
from flaxformer_lab.training.mesh import Mesh
from flaxformer_lab.training.single import Single
from flaxformer_lab.training.step import make_evaluation_step, make_train_step

GOLDENS = Path(__file__).parents[1] / "goldens" / "collectives"

TREE = {
    "task": {"name": "language_modelling", "tokenizer": "bytes", "sequence_length": 128},
    "model": {"width": 64, "depth": 1, "attention": {"num_heads": 2}, "causal": True},
    "training": {"batch_size": 2, "evaluate_batch_size": 2},
    "parallelism": {"strategy": "single"},
}
FACTS = {"num_symbols": 256, "image_shape": [16, 16, 1], "num_classes": 10}
IMAGES = {"name": "image_classification"}

# Every kind of attention, with each kind of other parts beside one of them.
PARTS: dict[str, dict[str, Any]] = {
    "softmax": {},
    "linear": {
        "model.attention.kind": "linear",
        "model.ffn.kind": "gated",
        "model.norm.kind": "rmsnorm",
        "model.position": "rotary",
        "model.precision": "high",
        "optimizer.name": "muon",
    },
    "lightning": {
        "model.attention.kind": "lightning",
        "model.attention.gate": True,
        "model.attention.norm": "srmsnorm",
        "model.ffn.kind": "bilinear",
        "model.norm.kind": "srmsnorm",
        "model.dtype": "bfloat16",
    },
    "channel": {
        "task.objective": "masked",
        "model.causal": False,
        "model.attention.kind": "channel",
        "model.attention.projection": "diagonal",
        "model.attention.output": "identity",
        "model.norm.placement": "post",
    },
    "mean": {
        "model.attention.kind": "mean",
        "model.attention.window": 16,
        "model.ffn.kind": "diagonal",
        "model.position": "sinusoidal",
        "model.precision": "default",
        "optimizer.name": "sgd",
    },
    "static": {
        "model.attention.kind": "static",
        "model.attention.num_kv_heads": 1,
        "model.dropout": 0.1,
        "training.accumulate": 2,
    },
    "off": {"model.attention.kind": "off", "model.norm.kind": "off", "model.position": "off"},
    "mlp": {"model": {"name": "mlp", "width": 64}},
    "factorization_machine": {"model": {"name": "factorization_machine", "width": 64}},
    "cnn_1d": {"model": {"name": "cnn_1d", "width": 64, "causal": True}},
    "cnn_2d": {"model": {"name": "cnn_2d", "width": 64}, "task": IMAGES},
    "lstm": {"model": {"name": "lstm", "width": 64}},
    "gru": {"model": {"name": "gru", "width": 64}},
    "mixer": {"model": {"name": "mixer", "width": 64}, "task": IMAGES},
}

# Heads that the fused kernels serve, and parameters that are gathered again for the backward pass.
FUSED = {
    "training.batch_size": 8,
    "training.evaluate_batch_size": 8,
    "model.width": 256,
    "model.position": "rotary",
    "model.bias": False,
    "model.dtype": "bfloat16",
    "model.remat": True,
}
MESHES = ({"data": 8}, {"fsdp": 8}, {"fsdp": 4, "tensor": 2}, {"sequence": 4}, {"fsdp": 2, "sequence": 2, "tensor": 2})


@functools.cache
def _experiment(devices: tuple[jax.Device, ...], changes: str, sizes: str, variants: str) -> Experiment:
    tree: dict[str, Any] = TREE
    for key, value in json.loads(changes).items():
        tree = override(tree, key, value)
    config: Config = apply_variants(parse_config(tree), variants.split())
    strategy = Mesh(MeshConfig(**json.loads(sizes)), devices) if len(devices) > 1 else Single()
    return make_experiment(config, FACTS, strategy)


@pytest.fixture(scope="session")
def experiment() -> Callable[..., Experiment]:
    """The function that makes a small experiment for devices: `experiment(devices, {"model.dtype": "bfloat16"})`.

    Several devices make a mesh, whose sizes follow: `experiment(devices, {}, fsdp=8)`.
    """

    def make(devices: tuple, changes: dict[str, Any], variants: str = "", **sizes: int) -> Experiment:
        return _experiment(devices, json.dumps(changes), json.dumps(sizes), variants)

    return make


@functools.cache
def _train_step(devices: tuple[jax.Device, ...], changes: str, sizes: str, variants: str) -> Program:
    experiment = _experiment(devices, changes, sizes, variants)
    return compile_train_step(experiment, devices, abstract_batch(experiment, jnp.uint8))


@pytest.fixture(scope="session")
def train_step() -> Callable[..., Program]:
    """The function that compiles one update of what `experiment` makes of the same arguments."""

    def compile_it(devices: tuple, changes: dict[str, Any], variants: str = "", **sizes: int) -> Program:
        return _train_step(devices, json.dumps(changes), json.dumps(sizes), variants)

    return compile_it


@pytest.fixture(scope="session")
def fused() -> dict[str, Any]:
    """Changes of a config that let a fused kernel serve; for one device or eight."""
    return FUSED


@pytest.fixture(scope="session")
def compile_on() -> Callable[..., Program]:
    """The function that compiles any function of shapes for one device."""

    def compile_it(device: tuple, function: Callable[..., Any], *arguments: Any) -> Program:
        mesh = jax.sharding.Mesh(device, ("single",))
        whole = jax.sharding.NamedSharding(mesh, jax.P())
        place = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole)  # noqa: E731
        return compile_for(mesh, function, *jax.tree.map(place, arguments))

    return compile_it


@pytest.fixture(scope="session")
def compile_attention(compile_on) -> Callable[..., Program]:
    """The function that compiles `attend(query, key, value, slopes)` and its gradients, two heads of 128 features."""

    def compile_it(device: tuple, attend: Callable[..., Any], tokens: int, dtype: Any) -> Program:
        heads, slopes = jax.ShapeDtypeStruct((1, tokens, 2, 128), dtype), jax.ShapeDtypeStruct((2,), jnp.float32)

        def both_passes(query, key, value, slopes, towards):
            mixed, pull = jax.vjp(lambda *heads: attend(*heads, slopes), query, key, value)
            return mixed, pull(towards)

        return compile_on(device, both_passes, heads, heads, heads, slopes, heads)

    return compile_it


@pytest.fixture(scope="session")
def compile_pmap() -> Callable[..., Program]:
    """The function that compiles an experiment's update as `jax.pmap` replicates it over devices."""

    def compile_it(devices: tuple, experiment: Experiment) -> Program:
        parts = experiment.task, experiment.network, experiment.optimizer
        replicated = jax.pmap(make_train_step(*parts, seed=0, axis_name="devices"), "devices", devices=devices)
        arguments = experiment.abstract_state, abstract_batch(experiment, jnp.uint8)
        each = lambda leaf: jax.ShapeDtypeStruct((len(devices), *leaf.shape), leaf.dtype)  # noqa: E731
        return Program(replicated.lower(*jax.tree.map(each, arguments)).compile(), len(devices))

    return compile_it


@pytest.fixture(scope="session")
def other_programs() -> Callable[[Experiment], dict[str, tuple]]:
    """The function that gives what other commands compile, each with the shapes of its arguments."""

    def programs(experiment: Experiment) -> dict[str, tuple]:
        network, state = experiment.network, experiment.abstract_state
        params, batch = (state.params, state.model_state), abstract_batch(experiment, jnp.uint8)
        step = make_train_step(experiment.task, network, experiment.optimizer, seed=0)
        two = lambda tree: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((2, *leaf.shape), leaf.dtype), tree)  # noqa: E731
        symbols, lengths = experiment.task.input_spec(2), jax.ShapeDtypeStruct((2,), jnp.int32)
        _, cache = jax.eval_shape(network.prefill, *params, symbols, lengths)
        return {
            "evaluate": (make_evaluation_step(experiment.task, network, seed=0), *params, batch),
            "a population": (jax.vmap(step), two(state), two(batch)),
            "generate: the prompt": (network.prefill, *params, symbols, lengths),
            "generate: a token": (network.decode, *params, lengths, cache),
        }

    return programs


@pytest.fixture(autouse=True)
def programs_are_not_cached(request) -> Iterator[None]:
    """JAX would write programs for absent devices into its cache, but cannot read them."""
    if not any(request.node.get_closest_marker(name) for name in ("tpu", "cuda")):
        yield
        return
    usual = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", math.inf)
    yield
    jax.config.update("jax_persistent_cache_min_compile_time_secs", usual)


@pytest.fixture(params=PARTS.values(), ids=PARTS)
def parts(request) -> dict[str, Any]:
    """What a model is made of: changes of a config."""
    return request.param


@pytest.fixture(params=MESHES, ids=lambda sizes: " ".join(f"{axis}={size}" for axis, size in sizes.items()))
def sizes(request) -> dict[str, int]:
    """How a mesh divides eight devices."""
    return request.param


@pytest.fixture(scope="session")
def assert_fsdp() -> Callable[[Experiment, Program], None]:
    """The function that finds a program of bfloat16 over eight devices to send what theory says, to the byte.

    Matrices are gathered in bfloat16, those of a block for both passes, and their gradients scattered in float32
    (Rajbhandari et al. 2020, stage 3); gradients of vectors, and the metrics, are summed everywhere.
    """

    def check(experiment: Experiment, program: Program) -> None:
        leaves = leaf_paths(experiment.abstract_state.params)
        matrices = {name: leaf.size for name, leaf in leaves.items() if leaf.ndim == 2}
        whole, of_blocks = sum(matrices.values()), sum(size for name, size in matrices.items() if "blocks" in name)
        received = lambda kind: sum(each.received for each in program.collectives if each.kind == kind)  # noqa: E731
        assert received("all-gather") == 2 * (whole + of_blocks) * 7 / 8
        assert received("reduce-scatter") == 4 * whole * 7 / 8
        vectors = sum(leaf.size for leaf in leaves.values()) - whole
        assert received("all-reduce") <= 2 * 4 * (vectors + 20) * 7 / 8
        assert set(program.counts) == {"all-gather bf16", "all-reduce f32", "reduce-scatter f32"}

    return check


@pytest.fixture
def assert_golden() -> Callable[[str, Program], None]:
    """The function that finds a program's counts of collectives to be those in the golden file of this name.

    A file has counts for each version of jaxlib that constraints.txt names.
    """

    def check(name: str, program: Program) -> None:
        path, version = GOLDENS / f"{name}.json", jaxlib.__version__
        golden = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if os.environ.get("UPDATE_GOLDENS"):
            golden[version] = program.counts
            path.write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        if version not in golden:
            pytest.skip(f"{path.name} has no counts for jaxlib {version}, whose compiler may send otherwise")
        assert program.counts == golden[version], f"UPDATE_GOLDENS=1 writes {path.name} again"

    return check

"""Models of fields: deepctr-torch's logits and gradients at its own weights, hashing, crosses, and tables in parts.

The golden files come from tools/make_field_goldens.py.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flaxformer_lab.config import parse_config
from flaxformer_lab.functional.trees import leaf_paths
from flaxformer_lab.models.field_network import field_network
from flaxformer_lab.modules.fields import FieldEmbedding, bucket_of
from flaxformer_lab.modules.rngs import Rngs
from flaxformer_lab.modules.sharding import MESH_AXES

GOLDENS = Path(__file__).parent.parent / "goldens"
LEVELS, WIDTH, DEEP = (5, 3, 7), 4, (6, 5)
AUTOINT = {"name": "autoint", "width": WIDTH, "depth": 2, "heads": 2}
PRODUCTS = {"name": "field_products", "width": WIDTH}
CASES = {
    "fm": (PRODUCTS, {"readout": "sum"}),
    "deepfm": (PRODUCTS, {"readout": "sum", "deep": DEEP}),
    "autoint": (AUTOINT, {"readout": "flat"}),
    "autoint_plus": (AUTOINT, {"readout": "flat", "deep": DEEP}),
}


def build(model, task, levels=LEVELS):
    config = parse_config({"task": {"name": "click"} | task, "model": model})
    return field_network(config.task, config.model, 0, levels)


def lab_parameters(theirs, rows):
    """Weights, or gradients, by PyTorch's names as this lab's tree; rows: of the tables, some of which nothing uses."""

    def table(prefix):
        fields = [theirs[f"{prefix}.f{number}.weight"] for number in range(len(LEVELS))]
        joined = np.concatenate(fields)
        return np.pad(joined, ((0, rows - len(joined)), (0, 0)))

    head = {"bias": theirs["out.bias"], "own": {"table": table("linear_model.embedding_dict")}}
    layers = [name.split(".")[2] for name in theirs if name.startswith("dnn.linears") and name.endswith("weight")]
    if layers:
        dense = ((theirs[f"dnn.linears.{n}.weight"].T, theirs[f"dnn.linears.{n}.bias"]) for n in layers)
        head["layers"] = {number: {"kernel": kernel, "bias": bias} for number, (kernel, bias) in enumerate(dense)}
    kernel = theirs.get("dnn_linear.weight", np.zeros((1, 0))).T
    last = len(kernel) - (DEEP[-1] if layers else 0)
    read, deep = kernel[:last], kernel[last:]
    head |= {"weights": {"kernel": read}} if len(read) else {}
    head |= {"deep": {"kernel": deep}} if len(deep) else {}
    tree = {"embedding": {"table": table("embedding_dict")}, "head": head}
    names = {"query": "W_Query", "key": "W_key", "value": "W_Value", "residual": "W_Res"}
    if "int_layers.0.W_key" in theirs:
        own = lambda number: {ours: theirs[f"int_layers.{number}.{their}"] for ours, their in names.items()}  # noqa: E731
        tree["body"] = {"layers": {number: own(number) for number in range(2)}}
    return tree


@pytest.mark.parametrize("name", CASES)
def test_logits_and_gradients_are_those_of_deepctr(name):
    golden = np.load(GOLDENS / f"fields_{name}.npz")
    network = build(*CASES[name])
    group = lambda kind: {key.partition("/")[2]: golden[key] for key in golden.files if key.startswith(kind)}  # noqa: E731
    rows = network.shapes[0]["embedding"]["table"].shape[0]
    params = lab_parameters(group("weights"), rows)
    shapes = jax.tree.map(lambda leaf: leaf.shape, network.shapes[0])
    assert jax.tree.map(np.shape, params) == shapes

    def weighted(params):
        logits = network.apply(params, {}, {"categories": jnp.asarray(golden["levels"])})[0][:, 0]
        return jnp.sum(logits * golden["cotangent"]), logits

    (_, logits), gradients = jax.jit(jax.value_and_grad(weighted, has_aux=True))(params)
    np.testing.assert_allclose(logits, golden["logits"], rtol=2e-4, atol=2e-5)
    wanted = lab_parameters(group("gradients"), rows)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-3, atol=2e-4), gradients, wanted)


def test_a_number_is_a_multiple_of_its_fields_vector_and_level_0_has_one_too():
    embedding = FieldEmbedding(2, LEVELS, WIDTH, scale=1.0, dtype="float32", rngs=Rngs(0))
    numbers, levels = jnp.array([[2.0, -1.0]]), jnp.array([[0, 2, 6]])
    vectors = embedding({"columns": numbers, "categories": levels})
    wanted = [2 * embedding.numbers[0], -embedding.numbers[1], *(embedding.table[row] for row in (0, 7, 14))]
    np.testing.assert_allclose(vectors[0], np.stack(wanted))


def test_hashed_levels_and_crosses_are_rows_that_level_and_field_alone_decide():
    options = {"scale": 1.0, "dtype": "float32", "rngs": Rngs(0)}
    hashed = FieldEmbedding(0, (1000, 1000), WIDTH, buckets=64, crosses=128, **options)
    assert hashed.table.shape == (64, WIDTH) and hashed.fields == 3
    same, swapped, other = np.asarray(jax.jit(hashed)({"categories": np.array([[3, 5], [5, 3], [3, 6]])}))
    assert np.any(same[2] != swapped[2])  # a cross knows which field has which level
    assert np.all(same[0] == other[0]) and np.any(same[1] != other[1]) and np.any(same[2] != other[2])
    level, field = np.meshgrid(np.arange(4000, dtype=np.uint32), np.arange(4, dtype=np.uint32))
    buckets = np.asarray(jax.jit(bucket_of, static_argnums=2)(level, field, 100))
    counts = np.bincount(buckets.ravel(), minlength=100)
    assert counts.min() > 100 and counts.max() < 220  # 160 each


def test_fields_that_are_added_up_see_no_cross_however_wide():
    logistic = build({**AUTOINT, "depth": 0}, {"readout": "flat"})
    for network, zero in ((logistic, True), (build(*CASES["fm"]), False)):
        params, _ = jax.jit(network.init)(jax.random.key(0))
        levels = np.array([[1, 1, 0], [1, 2, 0], [2, 1, 0], [2, 2, 0]])
        logits = np.asarray(jax.jit(network.apply)(params, {}, {"categories": levels})[0])[:, 0]
        cross = logits @ [1, -1, -1, 1]
        assert (abs(float(cross)) < 1e-7) is zero


@pytest.mark.parametrize("model", [PRODUCTS, AUTOINT, {"width": WIDTH, "depth": 0}])
def test_a_model_without_biases_has_none(model):
    for bias in (True, False):
        network = build(model | {"bias": bias}, {"readout": "sum", "deep": DEEP})
        assert any(name.endswith("bias") for name in leaf_paths(network.shapes[0])) is bias


@pytest.mark.parametrize("devices", [2, 4])
def test_a_table_in_parts_gives_the_rows_and_gradients_of_a_whole_one(devices):
    if jax.device_count() < devices:
        pytest.skip("needs several devices")
    embedding = FieldEmbedding(0, LEVELS, WIDTH, scale=1.0, dtype="float32", rngs=Rngs(0))
    graph, params = nnx.split(embedding)
    levels = jnp.asarray(np.random.default_rng(0).integers(0, 3, (8, 3)))
    total = lambda params, levels: jnp.sum(jnp.sin(nnx.merge(graph, params)({"categories": levels})))  # noqa: E731
    wanted = jax.grad(total)(params, levels)
    mesh = jax.make_mesh((1, 1, 1, devices), MESH_AXES, axis_types=(jax.sharding.AxisType.Auto,) * 4)
    with jax.set_mesh(mesh):
        found = jax.jit(jax.grad(total))(params, levels)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), found, wanted)

"""A network with low-rank maps beside its kernels, and what reads its parameters, against the merged network."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.analysis.measures import measure
from flaxformer_lab.analysis.subject import Subject
from flaxformer_lab.config import parse_config
from flaxformer_lab.functional.trees import leaf_paths
from flaxformer_lab.models.lora import merged, with_lora
from flaxformer_lab.models.quantization import quantized
from flaxformer_lab.tasks import make_task
from flaxformer_lab.training.optimizer import decayed

MODEL = {"width": 8, "depth": 2, "attention": {"num_heads": 2}, "ffn": {"activation": "tanh"}}


@pytest.fixture(scope="module")
def tuned(draw):
    """The subject with LoRA, and the network without."""
    config = parse_config({"task": {"name": "product", "features": 4, "tokens": 4}, "model": MODEL})
    task = make_task(config.task)
    plain = task.network(config.model)
    network, stored = with_lora(plain, 2), {"index": jnp.arange(8, dtype=jnp.int32), "example_weight": jnp.ones(8)}
    batch = task.prepare(stored, jax.random.split(jax.random.key(1), 8), training=False)
    return Subject(config.model, task, network, draw(network.shapes)[0], {}, batch), plain


def outputs_of(network, params, subject):
    return np.asarray(jax.jit(lambda params: network.apply(params, {}, subject.batch["inputs"])[0])(params))


def test_it_is_the_network_with_the_sums(tuned):
    subject, plain = tuned
    own, small = leaf_paths({k: v for k, v in subject.params.items() if k != "lora"}), subject.params["lora"]
    sums = leaf_paths(merged(subject.params))
    changed = {name for name in own if not np.array_equal(own[name], sums[name])}
    assert len(changed) == len(small) == 2 * 4
    for name in changed:
        a, b = (np.float64(small[name.replace(".", "_")][part]) for part in "ab")
        np.testing.assert_allclose(sums[name], own[name] + a @ b, rtol=1e-5, atol=1e-6)
    found = outputs_of(subject.network, subject.params, subject)
    np.testing.assert_allclose(found, outputs_of(plain, merged(subject.params), subject), rtol=1e-4, atol=1e-5)


def test_its_sums_are_of_float32_on_every_device(tuned):
    products = [each for each in jax.make_jaxpr(merged)(tuned[0].params).eqns if each.primitive.name == "dot_general"]
    assert len(products) == 8
    assert {each.params["precision"] for each in products} == {(jax.lax.Precision.HIGHEST,) * 2}


def test_its_matrices_in_8_bits_have_the_sums(tuned):
    subject, plain = tuned
    params = subject.params
    found = outputs_of(subject.network, quantized(subject.network, params), subject)
    np.testing.assert_array_equal(found, outputs_of(plain, quantized(plain, merged(params)), subject))
    whole = outputs_of(plain, merged(params), subject)
    without = outputs_of(plain, {k: v for k, v in params.items() if k != "lora"}, subject)
    assert np.abs(found - whole).max() < 0.2 * np.abs(without - whole).max()
    with pytest.raises(ValueError, match="of 8 adapted kernels 0 are there"):
        merged({"lora": params["lora"]})


def test_its_heads_matter_as_those_of_the_merged_network(tuned):
    subject, plain = tuned
    found = measure(subject, ["head_importance"])
    same = measure(dataclasses.replace(subject, network=plain, params=merged(subject.params)), ["head_importance"])
    assert len(found) == 2
    for name, values in same.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4)


def test_its_small_matrices_decay_as_matrices_do(tuned):
    chosen = leaf_paths(decayed(tuned[0].params))
    assert all(chosen[name] for name in chosen if name.startswith("lora."))
    assert not any(chosen[name] for name in chosen if name.endswith((".bias", ".scale")))

"""Items of baskets."""

import jax
import jax.numpy as jnp
import numpy as np

from flaxformer_lab.modules.items import mean_of_groups

VECTORS = np.random.default_rng(0).normal(size=(1, 4, 3)).astype(np.float32)
GROUPS = np.array([[0, 2, 2, 5]])


def test_a_group_is_the_mean_of_its_events():
    found = mean_of_groups(jnp.asarray(VECTORS), jnp.asarray(GROUPS), 3)
    wanted = np.stack([VECTORS[0, 0], np.zeros(3), VECTORS[0, 1:3].mean(axis=0)])
    np.testing.assert_allclose(found[0], wanted, rtol=1e-6)


def test_means_of_float32_are_products_of_float32():
    program = jax.make_jaxpr(lambda x, groups: mean_of_groups(x, groups, 3))(VECTORS, GROUPS)
    products = [each for each in program.eqns if each.primitive.name == "dot_general"]
    assert [each.params["precision"] for each in products] == [(jax.lax.Precision.HIGHEST,) * 2]

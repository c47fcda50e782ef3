import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.analysis.hessian import hessian_interaction
from flaxformer_lab.task_config import PlantedInteractionsConfig
from flaxformer_lab.tasks.probes import PlantedInteractions


def normals(number, inputs=8, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(number, inputs)), jnp.float32)


@pytest.fixture(params=[0.1, 0.5, 0.909])
def planted(request):
    """A function with a known share of interaction, and that share."""
    truth = PlantedInteractions(PlantedInteractionsConfig(interaction_share=request.param)).truth
    return lambda x: truth(x)[:, 0], request.param


def additive(x):
    return jnp.sum(jnp.sin(x) + x**2 + 0.3 * x, axis=1)


def product(x):
    return x[:, 0] * x[:, 1]


def squares_and_one_product(x):
    """Only the product of the first two is interaction: 4 of 4 + 1."""
    return x[:, 0] + 3 * x[:, 2] ** 2 + 2 * x[:, 0] * x[:, 1]


def test_the_hessian_finds_the_planted_share(planted):
    function, truth = planted
    share, error = hessian_interaction(function, normals(4096))
    assert share == pytest.approx(truth, abs=0.02) and abs(share - truth) < 4 * error < 0.06


def test_random_directions_agree_with_all_columns(planted):
    function, truth = planted
    x = normals(1024)
    exact = hessian_interaction(function, x)
    found = [hessian_interaction(function, x, num_random_vectors=8, seed=seed) for seed in range(4)]
    for each in found:
        assert each.value == pytest.approx(exact.value, abs=4 * each.standard_error)
    assert len({each.value for each in found}) == 4


@pytest.mark.parametrize("num_random_vectors", [None, 16])
def test_a_sum_of_functions_of_one_input_has_none(num_random_vectors):
    share = hessian_interaction(additive, normals(64), num_random_vectors=num_random_vectors).value
    assert share == 0 if num_random_vectors is None else abs(share) < 1e-5


@pytest.mark.parametrize("num_random_vectors", [None, 16])
def test_a_product_is_all_interaction(num_random_vectors):
    assert hessian_interaction(product, normals(1024), num_random_vectors=num_random_vectors).value == pytest.approx(
        1, abs=0.01
    )


def test_squares_of_a_feature_do_not_count():
    assert hessian_interaction(squares_and_one_product, normals(4096)).value == pytest.approx(0.8, abs=0.02)


def test_the_share_is_that_of_the_whole_hessian():
    def function(x):
        return jnp.sum(jnp.tanh(x @ jnp.asarray(np.random.default_rng(1).normal(size=(5, 3)), x.dtype)), axis=1)

    x = normals(50, 5)
    one = lambda x: function(x[None])[0]  # noqa: E731
    both = jax.jit(lambda x: (jax.vmap(jax.hessian(one))(x), jax.vmap(jax.grad(one))(x)))
    hessians, gradients = (np.asarray(each, np.float64) for each in both(x))
    pairs = sum((hessians[:, i, j] ** 2).mean() for i in range(5) for j in range(i))
    main = np.sum(gradients.mean(axis=0) ** 2 - gradients.var(axis=0, ddof=1) / 50)
    assert hessian_interaction(function, x).value == pytest.approx(pairs / (pairs + main), rel=1e-4)


def test_the_square_of_a_mean_is_not_taken_for_a_main_effect():
    """Without its correction, the mean gradient of few examples would pass for one: the share would be near 0.9."""
    shares = [hessian_interaction(product, normals(16, seed=seed)).value for seed in range(50)]
    assert np.mean(shares) > 0.95


def test_one_example_is_too_few():
    with pytest.raises(ValueError, match="2 examples"):
        hessian_interaction(product, normals(1))

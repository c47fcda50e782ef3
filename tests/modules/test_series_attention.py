"""The kinds of attention that were made for time series: what they draw, what they keep, what they share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.config import parse_config
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.functional import frequency
from flaxformer_lab.models.network import Network, functionalize
from flaxformer_lab.modules.attention import make_attention
from flaxformer_lab.modules.embedding import FeatureEmbedding
from flaxformer_lab.modules.intermediates import Intermediates
from flaxformer_lab.modules.rngs import AbstractRngs, Rngs

TOKENS, WIDTH = 9, 8
X = jnp.asarray(np.random.default_rng(0).normal(size=(4, TOKENS, WIDTH)), jnp.float32)
KEYS = jax.random.split(jax.random.key(1), 4)


def model_of(attention):
    return parse_config({"model": {"width": WIDTH, "attention": {"num_heads": 2, "factor": 1.0} | attention}}).model


@pytest.fixture
def make(draw_module):
    """Makes a module with drawn parameters."""
    return lambda attention, **options: (
        draw_module(lambda: make_attention(model_of(attention), tokens=TOKENS, rngs=AbstractRngs(), **options)).module
    )


def whole_and_halves(module):
    """Outputs of a whole batch, and of its halves on two devices of a mapped axis."""

    def run(x, keys):
        return module(x, **({"keys": keys} if module.draws else {}))

    whole = jax.jit(run)(X, KEYS)
    module.axis_name = "devices"
    halves = jax.jit(jax.vmap(run, axis_name="devices"))(X.reshape(2, 2, TOKENS, WIDTH), KEYS.reshape(2, 2))
    return whole, halves.reshape(whole.shape)


def test_probsparse_draws_from_the_keys_of_a_step_and_from_a_fixed_one_elsewhere(make):
    module = make({"kind": "probsparse"})
    assert module.sample(KEYS, TOKENS, TOKENS).shape == (TOKENS, 3)  # ceil(ln 9)
    first, other, fixed = (np.asarray(module.sample(keys, TOKENS, TOKENS)) for keys in (KEYS, KEYS[1:], None))
    assert (first != other).any() and (first != fixed).any()
    np.testing.assert_array_equal(fixed, module.sample(None, TOKENS, TOKENS))
    layers = (make({"kind": "probsparse"}, layer=layer).sample(None, TOKENS, TOKENS) for layer in (0, 1))
    assert (np.asarray(next(layers)) != next(layers)).any()


@pytest.mark.parametrize("kind", ["probsparse", "autocorrelation"])
def test_what_a_batch_shares_is_the_same_on_many_devices(make, kind):
    module = make({"kind": kind})
    alone = jax.jit(module)(X)
    module.training = True
    whole, halves = whole_and_halves(module)
    np.testing.assert_allclose(halves, whole, atol=1e-5)
    assert np.abs(whole - alone).max() > 1e-3


def test_autocorrelation_trains_with_one_set_of_delays(make):
    module, collected = make({"kind": "autocorrelation"}), [Intermediates(), Intermediates()]
    for training in (False, True):
        module.training = training
        module(X, intermediates=collected[training])
    own, shared = (np.asarray(each.values["delay_weights"]) > 0 for each in collected)
    assert own.sum(axis=1).tolist() == shared.sum(axis=1).tolist() == [2] * 4  # int(ln 9)
    assert (shared == shared[:1]).all() and (own != own[:1]).any()


@pytest.mark.parametrize(("kind", "axes"), [("probsparse", (0, 2, 1, 3)), ("frequency", (0, 2, 3, 1))])
def test_mixed_axes_merge_heads_in_the_order_of_memory(make, kind, axes):
    plain, mixed = (make({"kind": kind, "mix_axes": mix_axes}) for mix_axes in (False, True))

    @jax.jit
    def run(x):
        plain(x, intermediates=(collected := Intermediates()))
        heads = collected.values["z"].transpose(axes).reshape(x.shape)
        return mixed(x), mixed.output(heads)

    np.testing.assert_allclose(*run(X), atol=1e-5)


@pytest.mark.parametrize("kind", ["probsparse", "autocorrelation", "frequency", "wavelet"])
def test_padding_of_another_sequence_is_not_seen(make, kind):
    memory, valid = X[:, :6], jnp.asarray(np.arange(6)[None] < np.array([[6], [4], [2], [1]]))
    module = make({"kind": kind, "wavelet_order": 2, "wavelet_channels": 2}, crosses=True, memory_tokens=6)
    other = jnp.where(valid[:, :, None], memory, 100.0)
    run = jax.jit(lambda memory: module(X, memory=memory, valid=valid))
    np.testing.assert_allclose(run(memory), run(other), atol=1e-6)


@pytest.mark.slow
def test_modes_are_kept_beside_the_parameters_and_do_not_train():
    config = model_of({"kind": "frequency", "modes": 3})

    def build(rngs):
        embedding = FeatureEmbedding("identity", WIDTH, WIDTH, bias=False, dtype="float32", rngs=rngs)
        return Network(config, embedding=embedding, grid=(TOKENS,), outputs=1, rngs=rngs)

    network = functionalize(build)
    init = jax.jit(network.init)
    (_, kept), (_, other) = init(jax.random.key(0)), init(jax.random.key(5))
    modes = np.asarray(kept["body"]["blocks"][0]["attention"]["modes"][0])
    assert modes.shape == (3,) and (np.diff(modes) > 0).all() and modes.max() < TOKENS // 2
    assert any((np.asarray(a) != b).any() for a, b in zip(*map(jax.tree.leaves, (kept, other)), strict=True))
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), network.shapes[0])
    train = jax.jit(lambda state: network.apply(params, state, X, training=True))
    outputs, after = train(kept)
    jax.tree.map(np.testing.assert_array_equal, after, kept)
    assert (np.asarray(train(other)[0]) != outputs).any()


@pytest.mark.parametrize("crosses", [False, True])
def test_frequency_weights_start_as_in_the_papers_code(crosses):
    module = make_attention(model_of({"kind": "frequency"}), tokens=40, crosses=crosses, memory_tokens=30, rngs=Rngs(0))
    for parameter in (module.kernel.real, module.kernel.imaginary):
        values = np.asarray(parameter[...]) * WIDTH**2
        assert values.shape == (2, 4, 4, 20) and 0 <= values.min() < 0.05 and 0.95 < values.max() < 1
    assert [len(modes) for modes in module.modes] == [20, 15][: 1 + crosses]


def test_cross_attention_of_frequencies_is_the_formula(make):
    module = make({"kind": "frequency", "modes": 2}, crosses=True, memory_tokens=6)

    @jax.jit
    def run(x, memory):
        query, key = module.project_qkv(x, memory)
        modes = [each[...] for each in module.modes]
        mixed = frequency.fourier_cross_attention(query, key, *module.kernel(), *modes)
        return module(x, memory=memory), module.output(mixed.reshape(x.shape))

    np.testing.assert_allclose(*run(X, X[:, :6]), atol=1e-6)


def test_a_sequence_of_another_length_is_refused(make):
    with pytest.raises(ConfigError, match=r"sequences of \(5,\) tokens, where this attention was made for \(9,\)"):
        make({"kind": "frequency"})(X[:, :5])


def test_axes_that_are_merged_in_one_way_only():
    with pytest.raises(ConfigError, match=r"mix_axes=true with model.attention.kind=softmax.*choose probsparse"):
        model_of({"kind": "softmax", "mix_axes": True})

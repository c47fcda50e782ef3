"""Cuts against networks that lack the part, and against formulas with the part written out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.analysis import learned, surgery
from flaxformer_lab.functional.trees import leaf_paths, replace_leaves
from flaxformer_lab.models.conversion import from_huggingface
from tests.pretrained_folders import read_golden

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def model():
    """A post-norm encoder of two layers, its inputs and padding, and its network as a static argument."""
    weights, results, settings = read_golden("bert_body")
    converted = from_huggingface(weights, settings)
    return converted, *(jnp.asarray(results[name]) for name in ("inputs", "valid")), surgery.Frozen(converted.network)


def cut(model, *changes, params=None, base=None):
    converted, inputs, valid, frozen = model
    layers = [base or surgery.intact(converted.config)] * 2
    layers = surgery.replace_layers(layers, dict(enumerate(changes)))
    params = converted.params if params is None else params
    found = surgery.apply_cut(frozen, converted.config, params, layers, inputs, valid)
    return np.asarray(found)[np.asarray(valid)]


def outputs(model, **hooks):
    converted, inputs, valid, _ = model
    hooked = converted.network.with_hooks({name.replace("__", "."): hook for name, hook in hooks.items()})
    apply = jax.jit(lambda params: hooked.apply(params, {}, inputs, valid=valid)[0])
    return np.asarray(apply(converted.params))[np.asarray(valid)]


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_nothing_cut_is_the_network(model):
    close(cut(model), outputs(model, input=lambda x: x))


@pytest.mark.parametrize("layer", [0, 1])
def test_a_block_removed_is_a_network_of_one_block(model, layer):
    converted, inputs, valid, _ = model
    kept = {0: converted.params["body"]["blocks"][1 - layer]}
    params = converted.params | {"body": converted.params["body"] | {"blocks": kept}}
    _, _, settings = read_golden("bert_body")
    weights = {
        name.replace(f"encoder.layer.{1 - layer}.", "encoder.layer.0."): w
        for name, w in read_golden("bert_body")[0].items()
        if f"encoder.layer.{layer}." not in name
    }
    short = from_huggingface(weights, settings | {"num_hidden_layers": 1})
    assert jax.tree.structure(short.params) == jax.tree.structure(params)
    expected = np.asarray(short.network.apply(short.params, {}, inputs, valid=valid)[0])[np.asarray(valid)]
    changes = [{}, {}]
    changes[layer] = {"block": dataclasses.replace(surgery.intact(converted.config).block, keep=jnp.float32(0))}
    close(cut(model, *changes), expected)


def test_parts_become_zero_another_text_or_a_linear_map(model):
    width = model[0].config.width
    part = surgery.intact(model[0].config).ffn
    zero = dataclasses.replace(part, keep=jnp.float32(0), offset=jnp.full(width, 0.5))
    close(cut(model, {"ffn": zero}), outputs(model, blocks__0__ffn__output=lambda y: 0 * y + 0.5))
    other = dataclasses.replace(part, keep=jnp.float32(0), other=jnp.float32(1))
    rolled = outputs(model, blocks__1__attention__output=lambda y: jnp.roll(y, 1, axis=0))
    close(cut(model, {}, {"attention": other}), rolled)
    matrix = jnp.asarray(RNG.standard_normal((width, width)), jnp.float32)
    linear = dataclasses.replace(part, keep=jnp.float32(0), matrix=matrix)
    seen = []
    expected = outputs(model, blocks__0__ffn__input=seen.append, blocks__0__ffn__output=lambda y: seen[-1] @ matrix)
    close(cut(model, {"ffn": linear}), expected)


def test_attention_becomes_uniform_or_static_over_what_is_no_padding(model):
    valid = model[2].astype(jnp.float32)
    uniform = (valid / valid.sum(1, keepdims=True))[:, None, None]
    expected = outputs(model, blocks__0__attention__weights=lambda w: jnp.broadcast_to(uniform, w.shape))
    close(cut(model, {"weights": jnp.array([0.0, 1.0, 0.0])}), expected)
    tokens, heads = model[1].shape[1], model[0].config.attention.num_heads
    static = jnp.asarray(RNG.uniform(0.1, 1, (heads, tokens, tokens)), jnp.float32)
    shares = static[None] * valid[:, None, None]
    shares = shares / shares.sum(-1, keepdims=True)
    expected = outputs(model, blocks__0__attention__weights=lambda w: shares)
    base = surgery.intact(model[0].config, tokens=tokens)
    close(cut(model, {"static": static, "weights": jnp.array([0.0, 0.0, 1.0])}, base=base), expected)


def test_parts_removed_leave_no_norm(model):
    seen = []
    expected = outputs(model, blocks__0__input=seen.append, blocks__0__after_attention=lambda x: seen[-1])
    close(cut(model, {"attention_there": jnp.float32(0)}), expected)
    seen = []
    expected = outputs(model, blocks__1__after_attention=seen.append, blocks__1__output=lambda x: seen[-1])
    close(cut(model, {}, {"ffn_there": jnp.float32(0)}), expected)


# ------------------------------------------------------------------------------------ norms first, causal


@pytest.fixture(scope="module", params=["gpt2", "gpt_neox", "llama"])
def causal(request):
    """A language model, its inputs, and a function from parameters to logits: the network without any hook."""
    weights, results, settings = read_golden(request.param)
    converted, inputs = from_huggingface(weights, settings), jnp.asarray(results["inputs"])
    logits = jax.jit(lambda params: converted.network.apply(params, {}, inputs)[0].reshape(-1, settings["vocab_size"]))
    return (converted, inputs, jnp.ones(inputs.shape, bool), surgery.Frozen(converted.network)), logits


def with_zeros(params, layer, *parts):
    """Parameters with 0 in the kernels and biases of a layer's maps: `attention.output`, `ffn.down`."""
    leaves = leaf_paths(params)
    names = [name for name in leaves for part in parts if name.startswith(f"body.blocks.{layer}.{part}.")]
    assert len(names) >= len(parts)
    return replace_leaves(params, {name: jnp.zeros_like(leaves[name]) for name in names})


def cut_causal(causal, *changes, inputs=None):
    """Logits of a model with cuts; all of them are data of one program."""
    converted, own, valid, frozen = causal[0]
    base = surgery.intact(converted.config, tokens=own.shape[1])
    return cut((converted, own if inputs is None else inputs, valid, frozen), *changes, base=base)


def test_parts_of_causal_models_are_gone_as_if_their_last_map_were_zero(causal):
    model, logits = causal
    params, zero = model[0].params, jnp.float32(0)
    close(cut_causal(causal), logits(params))
    gone = dataclasses.replace(surgery.intact(model[0].config).block, keep=zero)
    for layer in (0, 1):
        for change, parts in (
            ({"attention_there": zero}, ["attention.output"]),
            ({"ffn_there": zero}, ["ffn.down"]),
            ({"block": gone}, ["attention.output", "ffn.down"]),
        ):
            changes = [{}, {}]
            changes[layer] = change
            close(cut_causal(causal, *changes), logits(with_zeros(params, layer, *parts)))
    offset = jnp.asarray(RNG.standard_normal(model[0].config.width), jnp.float32)
    if "bias" in params["body"]["blocks"][0]["ffn"]["down"]:
        moved = replace_leaves(
            with_zeros(params, 0, "attention.output", "ffn.down"), {"body.blocks.0.ffn.down.bias": offset}
        )
        close(cut_causal(causal, {"block": dataclasses.replace(gone, offset=offset)}), logits(moved))


def test_uniform_attention_of_causal_models_is_that_of_queries_that_are_zero(causal):
    model, logits = causal
    config, name = model[0].config, "body.blocks.1.attention.projection"
    leaves, zeros = leaf_paths(model[0].params), {}
    for each in ("kernel", "bias"):
        if f"{name}.{each}" in leaves:
            leaf = np.array(leaves[f"{name}.{each}"])
            grid = leaf.reshape(
                -1, config.num_kv_heads, config.attention.num_heads // config.num_kv_heads + 2, config.head_dim
            )
            grid[:, :, :-2] = 0
            zeros[f"{name}.{each}"] = jnp.asarray(leaf)
    expected = logits(replace_leaves(model[0].params, zeros))
    close(cut_causal(causal, {}, {"weights": jnp.array([0.0, 1.0, 0.0])}), expected)


def test_no_cut_lets_a_causal_model_see_later_tokens(causal):
    (converted, inputs, *_), _ = causal
    later, config = inputs.at[:, -1].set((inputs[:, -1] + 1) % 60), converted.config
    tokens, heads, one = inputs.shape[1], config.attention.num_heads, jnp.float32(1)
    static = jnp.asarray(RNG.uniform(0.1, 1, (heads, tokens, tokens)), jnp.float32)
    other = dataclasses.replace(surgery.intact(config).ffn, other=one)
    for change in (
        {"static": static, "weights": jnp.array([0.0, 0.0, 1.0])},
        {"weights": jnp.array([0.0, 1.0, 0.0]), "ffn": other, "attention": other},
    ):
        before, after = (cut_causal(causal, change, change, inputs=each) for each in (inputs, later))
        before, after = (each.reshape(*inputs.shape, -1) for each in (before, after))
        np.testing.assert_array_equal(before[:, :-1], after[:, :-1])
        assert not np.allclose(before[:, -1], after[:, -1], atol=1e-3)


@pytest.mark.parametrize("causal", ["gpt2", "gpt_neox"], indirect=True)
def test_norms_before_the_parts_are_off(causal):
    """Each part reads the residual stream itself: its own values, put there by hooks of the plain network."""
    model, _ = causal
    seen, config = {}, model[0].config
    read_by_ffn = "input" if config.parallel else "after_attention"
    hooks = {
        "blocks__0__input": lambda x: seen.update(input=x),
        "blocks__0__attention__input": lambda _: seen["input"],
        "blocks__0__after_attention": lambda x: seen.update(after_attention=x),
        "blocks__0__ffn__input": lambda _: seen[read_by_ffn],
    }
    close(cut_causal(causal, {"norms": jnp.float32(0)}), outputs(model, **hooks))


# ----------------------------------------------------------------------------------- products of weights


def diagonal_base(config):
    zeros = jnp.zeros((config.attention.num_heads, config.width))
    return dataclasses.replace(
        surgery.intact(config),
        diagonal=zeros,
        bias=zeros,
        own_scores=jnp.float32(1),
        values=zeros,
        value_offset=jnp.zeros(config.width),
        own_values=jnp.float32(1),
    )


def test_per_dimension_maps_are_what_the_diagonals_say(model):
    """Weights whose products are diagonal already stay as they are; others change."""
    converted, config = model[0], model[0].config
    heads, head_dim, width = config.attention.num_heads, config.head_dim, config.width
    maps = surgery.head_maps(converted.params, config, 0)
    x = RNG.standard_normal((4, width)).astype(np.float32)
    q, k = (x @ w[1] + b[1] for w, b in ((maps.query, maps.query_bias), (maps.key, maps.key_bias)))
    projected = np.asarray(x @ converted.params["body"]["blocks"][0]["attention"]["projection"]["kernel"])
    bias = np.asarray(converted.params["body"]["blocks"][0]["attention"]["projection"]["bias"])
    ours = (projected + bias).reshape(4, heads, 3, head_dim)
    close(q, ours[:, 1, 0])
    close(k, ours[:, 1, 1])
    assert np.max(np.abs(cut(model, scores_of(maps), base=diagonal_base(config)) - cut(model))) > 1e-2
    eye = np.zeros((heads, width, head_dim), np.float32)
    for head in range(heads):
        eye[head, head * head_dim : (head + 1) * head_dim] = np.diag(RNG.uniform(0.5, 1, head_dim))
    kernel, offset = np.zeros((width, heads, 3, head_dim), np.float32), RNG.standard_normal((heads, 3, head_dim))
    for part in range(3):
        kernel[:, :, part] = eye.transpose(1, 0, 2)
    attention = dict(converted.params["body"]["blocks"][0]["attention"])
    attention["projection"] = {
        "kernel": jnp.asarray(kernel.reshape(width, -1)),
        "bias": jnp.asarray(offset.reshape(-1), jnp.float32),
    }
    attention["output"] = attention["output"] | {"kernel": jnp.asarray(np.concatenate(eye.transpose(0, 2, 1)))}
    blocks = converted.params["body"]["blocks"]
    blocks = {**blocks, 0: blocks[0] | {"attention": attention}}
    params = converted.params | {"body": converted.params["body"] | {"blocks": blocks}}
    diagonal = surgery.head_maps(params, config, 0)
    change = scores_of(diagonal) | values_of(diagonal)
    close(cut(model, change, params=params, base=diagonal_base(config)), cut(model, params=params))


def scores_of(maps):
    diagonal, bias = surgery.per_dimension_scores(maps)
    return {"diagonal": jnp.asarray(diagonal), "bias": jnp.asarray(bias), "own_scores": jnp.float32(0)}


def values_of(maps):
    values, offset = surgery.per_dimension_values(maps)
    return {"values": jnp.asarray(values), "value_offset": jnp.asarray(offset), "own_values": jnp.float32(0)}


def test_products_of_full_rank_are_the_same_and_of_rank_1_have_one_singular_value(model):
    config, params = model[0].config, model[0].params
    full = surgery.with_rank(params, config, [0, 1], config.head_dim)
    close(cut(model, params=full), cut(model))
    one = surgery.head_maps(surgery.with_rank(params, config, [1], 1), config, 1)
    before = surgery.head_maps(params, config, 1)
    query, key = (np.vstack([w[0], b[0]]) for w, b in ((one.query, one.query_bias), (one.key, one.key_bias)))
    left, values, right = np.linalg.svd(
        np.vstack([before.query[0], before.query_bias[0]]) @ np.vstack([before.key[0], before.key_bias[0]]).T
    )
    close(query @ key.T, values[0] * np.outer(left[:, 0], right[0]))


def test_affine_maps_are_found_and_what_they_explain():
    x = RNG.standard_normal((400, 6))
    matrix, offset = RNG.standard_normal((6, 3)), RNG.standard_normal(3)
    fit = surgery.fit_affine(x, x @ matrix + offset, ridge=1e-9)
    close(fit.matrix, matrix)
    close(fit.offset, offset)
    assert fit.r2 == pytest.approx(1, abs=1e-6)
    noisy = surgery.fit_affine(x[:, :1], x[:, :1] + RNG.standard_normal((400, 1)))
    assert 0.35 < noisy.r2 < 0.65  # half of the variance is noise
    assert surgery.fit_affine(x, RNG.standard_normal((400, 2))).r2 < 0.05
    slope, constant = surgery.fit_by_feature(x, 2 * x + 1 + 0.5 * np.roll(x, 1, axis=1))
    np.testing.assert_allclose(slope, 2, atol=0.15)
    np.testing.assert_allclose(constant, 1, atol=0.15)


def test_measures_of_known_values():
    assert learned.effective_rank(np.ones(7)) == pytest.approx(7)
    assert learned.effective_rank(np.array([3.0, 0, 0])) == pytest.approx(1)
    a, b = RNG.standard_normal((9, 3)), RNG.standard_normal((3, 8))
    expected = np.linalg.svd(a @ b, compute_uv=False)[:3]
    np.testing.assert_allclose(learned.product_singular_values(a, b), expected, rtol=1e-8, atol=1e-8)
    ball = RNG.standard_normal((4000, 5))
    assert learned.participation(ball) == pytest.approx(1, abs=0.02)
    assert learned.mean_correlation(ball) == pytest.approx(4000**-0.5, rel=0.6)
    assert learned.mean_correlation(np.repeat(ball[:, :1], 2, axis=1)) == pytest.approx(1)
    assert learned.scale_ratio(ball * [1, 1, 1, 1, 9]) == pytest.approx(9, rel=0.1)
    found = learned.outliers(ball + np.array([0, 0, 0, 0, 100]))
    assert (
        found["outlier_feature"] == 4 and found["outlier_share"] > 0.99 and found["massive_share"] == pytest.approx(0.2)
    )
    weights = np.zeros((1, 1, 3, 3))
    weights[0, 0, :, 0], weights[0, 0, :, 1] = 0.7, 0.3
    valid, ends = np.array([[True, True, False]]), np.array([[True, False, False]])
    assert learned.sinks(weights, valid, ends) == pytest.approx((0.7, 0.5))

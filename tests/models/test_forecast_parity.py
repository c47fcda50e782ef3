"""Forecasters and their parts against PyTorch's: the same weights give the same outputs and gradients.

The golden files come from tools/make_forecast_goldens.py, which names what the peers do differently.
"""

import functools
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flaxformer_lab.config import parse_config
from flaxformer_lab.functional import autocorrelation, decomposition, frequency, probsparse
from flaxformer_lab.functional.heads import HeadLayout
from flaxformer_lab.functional.trees import leaf_paths
from flaxformer_lab.models.network import Network, functionalize
from flaxformer_lab.models.transformer import Transformer
from flaxformer_lab.modules.attention import make_attention
from flaxformer_lab.modules.distilling import Distilling
from flaxformer_lab.modules.rngs import Rngs
from flaxformer_lab.modules.series import InstanceNorm
from flaxformer_lab.modules.series_decoder import DecoderHead, SourceTargetEmbedding, TrendHead
from flaxformer_lab.tasks.forecasting import Forecasting

GOLDENS = Path(__file__).parent.parent / "goldens"
LOOKBACK, LABEL = 12, 6


class Golden(NamedTuple):
    inputs: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]
    gradients: dict[str, np.ndarray]
    rest: dict[str, np.ndarray]


def golden(name):
    groups = {"inputs": {}, "weights": {}, "gradients": {}, "rest": {}}
    with np.load(GOLDENS / f"forecast_{name}.npz") as file:
        for key in file.files:
            kind, _, rest = key.partition("/")
            groups[kind if rest else "rest"][rest or kind] = file[key]
    return Golden(**groups)


def assert_parity(
    reference, run, *arguments, convert=lambda named: [named[name] for name in ("query", "key", "value")]
):
    """run(*arguments) and its gradients; `convert` makes arguments of a peer's arrays, and so of their gradients."""

    @jax.jit
    def value_and_gradients(*arguments):
        output, pull = jax.vjp(run, *arguments)
        return output, pull(jnp.asarray(reference.rest["cotangent"]))

    output, gradients = value_and_gradients(*arguments)
    np.testing.assert_allclose(output, reference.rest["output"], rtol=1e-4, atol=1e-4)
    ours, theirs = leaf_paths(list(gradients)), leaf_paths(list(convert(reference.gradients)))
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        np.testing.assert_allclose(ours[name], gradient, rtol=1e-3, atol=1e-3, err_msg=name)


# ------------------------------------------------------------------------------------------------- formulas


@pytest.mark.parametrize("name", ["probsparse", "probsparse_masked", "probsparse_cross"])
def test_probsparse_with_given_keys(name):
    reference = golden(name)
    masked = name == "probsparse_masked"

    def run(query, key, value):
        options = {"factor": 1.0, "causal": masked}
        mixed = probsparse.probsparse_attention(query, key, value, jnp.asarray(reference.rest["sampled"]), **options)
        return jnp.swapaxes(mixed, 1, 2)  # as neuralforecast leaves it

    assert_parity(reference, run, *(jnp.asarray(each) for each in reference.inputs.values()))


@pytest.mark.parametrize("name", ["", "_training", "_longer", "_shorter"])
def test_autocorrelation(name):
    reference = golden(f"autocorrelation{name}")

    def run(query, key, value):
        key, value = (autocorrelation.fit_length(x, query.shape[1]) for x in (key, value))
        shared = name in ("_training", "_shorter")
        return autocorrelation.autocorrelation_attention(query, key, value, factor=2.0, shared=shared)

    assert_parity(reference, run, *(jnp.asarray(each) for each in reference.inputs.values()))


def complex_parts(array):
    return [array.real, array.imag]


@pytest.mark.parametrize("name", ["fourier_block", "fourier_block_odd"])
def test_fourier_block(name):
    reference, weights = golden(name), "weights1"

    def run(query, real, imaginary):
        mixed = frequency.fourier_block(query, real, imaginary, jnp.asarray(reference.rest["modes"]))
        return jnp.moveaxis(mixed, 1, -1)

    arguments = [reference.inputs["query"], *complex_parts(reference.weights[weights])]
    convert = lambda named: [named["query"], *complex_parts(named[weights])]  # noqa: E731
    assert_parity(reference, run, *map(jnp.asarray, arguments), convert=convert)


def test_fourier_cross_attention():
    reference = golden("fourier_cross_attention")
    modes = [jnp.asarray(reference.rest[name]) for name in ("query_modes", "key_modes")]

    def run(query, key, real, imaginary):
        return jnp.moveaxis(frequency.fourier_cross_attention(0.3 * query, 0.3 * key, real, imaginary, *modes), 1, -1)

    convert = lambda named: [named["query"], named["key"], *complex_parts(named["weights1"])]  # noqa: E731
    assert_parity(reference, run, *map(jnp.asarray, convert(reference.inputs | reference.weights)), convert=convert)


def test_decomposition():
    reference = golden("decomposition")
    run = lambda x: jnp.stack(decomposition.decompose_series(x, (5,)))  # noqa: E731
    assert_parity(reference, run, jnp.asarray(reference.inputs["x"]), convert=lambda named: [named["x"]])


# ---------------------------------------------------------------------------- weights as PyTorch names them


def dense(w, theirs, ours, bias=True):
    """A linear map, or a convolution, whose steps become features side by side."""
    kernel = w[f"{theirs}.weight"]
    kernel = kernel.T if kernel.ndim == 2 else kernel.transpose(2, 1, 0).reshape(-1, len(kernel))
    return {f"{ours}.kernel": kernel} | ({f"{ours}.bias": w[f"{theirs}.bias"]} if bias else {})


def norm(w, theirs, ours):
    return {f"{ours}.scale": w[f"{theirs}.weight"], f"{ours}.bias": w[f"{theirs}.bias"]}


def attention(w, theirs, ours, heads, names, *, parts="qkv", crosses=False):
    """names: their query, key, value and output."""
    maps = {part: dense(w, f"{theirs}{name}", "") for part, name in zip("qkvo", names, strict=True) if part in parts}
    head_dim = maps["q"][".kernel"].shape[1] // heads

    def fused(parts):
        layout = HeadLayout(heads, (1,) * len(parts), head_dim)
        return {
            key: np.asarray(layout.fuse(jnp.concatenate([jnp.asarray(maps[part][key]) for part in parts], axis=-1)))
            for key in (".kernel", ".bias")
        }

    projections = {"query_projection": parts[0], "projection": parts[1:]} if crosses else {"projection": parts}
    found = {f"{ours}.{name}{key}": each for name, of in projections.items() for key, each in fused(of).items()}
    return found | dense(w, f"{theirs}{names[3]}", f"{ours}.output")


NF = ("query_projection", "key_projection", "value_projection", "out_projection")
HF = ("q_proj", "k_proj", "v_proj", "out_proj")


def nested(flat, like):
    """Values by dotted name in the shape of a tree; the tree and they have the same names."""
    assert leaf_paths(like).keys() == flat.keys()
    leaves = iter(jnp.asarray(flat[name], jnp.float32) for name in leaf_paths(like))
    return jax.tree.map(lambda _: next(leaves), like)


def pure(module):
    """(apply, params, state): the module as a function of plain trees."""
    graph, params, state = nnx.split(module, nnx.Param, ...)
    return (
        lambda params, state, *x, **options: nnx.merge(graph, params, state)(*x, **options),
        nnx.to_pure_dict(params),
        nnx.to_pure_dict(state),
    )


def model_config(**knobs):
    return parse_config({"model": {"width": 8, "norm": {"epsilon": 1e-5}} | knobs}).model


# ------------------------------------------------------------------------------------------------- layers


def test_transformers_probsparse_layer(monkeypatch):
    reference = golden("probsparse_layer")
    config = model_config(attention={"kind": "probsparse", "num_heads": 2, "factor": 1.0})
    module = make_attention(config, tokens=11, rngs=Rngs(0))
    apply, params, state = pure(module)
    # All queries meet the same keys there.
    sampled = jnp.broadcast_to(jnp.asarray(reference.rest["sampled"]), (11, 9))
    monkeypatch.setattr(type(module), "sample", lambda *_: sampled)

    def convert(named):
        flat = attention(named, "", "", 2, HF)
        return [nested({name[1:]: each for name, each in flat.items()}, params), named["x"]]

    run = lambda params, x: apply(params, state, x)  # noqa: E731
    assert_parity(reference, run, *map_tree(convert(reference.weights | reference.inputs)), convert=convert)


def test_transformers_autocorrelation_layer():
    reference = golden("autocorrelation_layer")
    config = model_config(attention={"kind": "autocorrelation", "num_heads": 2, "factor": 2.0})
    apply, params, state = pure(make_attention(config, tokens=11, crosses=True, rngs=Rngs(0)))

    def convert(named):
        flat = attention(named, "", "", 2, HF, crosses=True)
        return [nested({name[1:]: each for name, each in flat.items()}, params), named["x"], named["memory"]]

    run = lambda params, x, memory: apply(params, state, x, memory=memory)  # noqa: E731
    assert_parity(reference, run, *map_tree(convert(reference.weights | reference.inputs)), convert=convert)


def test_transformers_distilling_layer():
    reference = golden("distilling")
    module = Distilling(model_config(), Rngs(0))
    module.set_attributes(use_running_average=False)
    apply, params, state = pure(module)

    def convert(named):
        return [
            nested(dense(named, "downConv", "convolution.map") | norm(named, "norm", "norm"), params),
            named["x"],
        ]

    run = lambda params, x: apply(params, state, x)[0]  # noqa: E731
    assert_parity(reference, run, *map_tree(convert(reference.weights | reference.inputs)), convert=convert)


PATCHTST = {"kind": "batchnorm", "epsilon": 1e-5, "outer": "off"}
PATCHTST_NAMES = ("W_Q", "W_K", "W_V", "to_out.0")


def test_patchtst_adds_scores_and_normalises_over_the_batch():
    reference = golden("patchtst_encoder")
    knobs = {"attention": {"num_heads": 2, "residual_scores": True}, "ffn": {"expansion": 1.5}, "position": "off"}
    config = model_config(depth=2, norm=PATCHTST | {"placement": "post"}, **knobs)
    module = Transformer(config, grid=(5,), rngs=Rngs(0))
    module.set_attributes(use_running_average=False)
    apply, params, state = pure(module)

    def convert(named):
        flat = {}
        for i in range(2):
            theirs, ours = f"layers.{i}", f"blocks.{i}"
            flat |= attention(named, f"{theirs}.self_attn.", f"{ours}.attention", 2, PATCHTST_NAMES)
            flat |= norm(named, f"{theirs}.norm_attn.1", f"{ours}.attention_norm")
            flat |= norm(named, f"{theirs}.norm_ffn.1", f"{ours}.ffn_norm")
            flat |= dense(named, f"{theirs}.ff.0", f"{ours}.ffn.up") | dense(
                named, f"{theirs}.ff.3", f"{ours}.ffn.down"
            )
        return [nested(flat, params), named["x"]]

    run = lambda params, x: apply(params, state, x)  # noqa: E731
    assert_parity(reference, run, *map_tree(convert(reference.weights | reference.inputs)), convert=convert)


def test_transformers_patchtst_layer():
    reference = golden("patchtst_layer")
    knobs = {"attention": {"num_heads": 2}, "ffn": {"expansion": 1.5}, "position": "off"}
    apply, params, state = pure(Transformer(model_config(depth=1, norm=PATCHTST, **knobs), grid=(5,), rngs=Rngs(0)))
    parts = {"attention_norm": "norm_sublayer1.batchnorm", "ffn_norm": "norm_sublayer3.batchnorm"}
    averages = {
        f"blocks.0.{ours}.{name}": reference.weights[f"{theirs}.running_{short}"]
        for ours, theirs in parts.items()
        for name, short in (("mean", "mean"), ("variance", "var"))
    }
    state = nested(averages, state)

    def convert(named):
        flat = attention(named, "self_attn.", "blocks.0.attention", 2, HF)
        for ours, theirs in parts.items():
            flat |= norm(named, theirs, f"blocks.0.{ours}")
        flat |= dense(named, "ff.0", "blocks.0.ffn.up") | dense(named, "ff.3", "blocks.0.ffn.down")
        return [nested(flat, params), named["x"]]

    run = lambda params, x: apply(params, state, x)  # noqa: E731
    assert_parity(reference, run, *map_tree(convert(reference.weights | reference.inputs)), convert=convert)


# ------------------------------------------------------------------------------------------------- models


def map_tree(arguments):
    return [jax.tree.map(jnp.asarray, each) for each in arguments]


def sinusoids(tokens, width):
    """Sines and cosines in turn, as neuralforecast has them."""
    angles = np.arange(tokens)[:, None] * np.exp(np.arange(0, width, 2) * -(np.log(10000.0) / width))
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(tokens, width).astype(np.float32)


class Positioned(SourceTargetEmbedding):
    def __call__(self, inputs):
        tokens = super().__call__(inputs)
        return {name: x + sinusoids(*x.shape[1:])[None] for name, x in tokens.items()}


def embeddings(w):
    names = {"enc_embedding": "source", "dec_embedding": "target"}
    pairs = [(f"{a}.value_embedding.tokenConv", f"embedding.{b}.values.map") for a, b in names.items()]
    return functools.reduce(lambda a, b: a | b, (dense(w, *pair, bias=False) for pair in pairs))


def forecaster(config, horizon, head, embedding=SourceTargetEmbedding, moving_average=()):
    """A network of one series without a calendar."""

    def build(rngs):
        lengths = {"label_length": LABEL, "horizon": horizon, "norm": InstanceNorm("off", 1)}
        inward = embedding(1, 0, config.width, moving_average=moving_average, **lengths, rngs=rngs)
        grid = {"source": (LOOKBACK,), "target": (LABEL + horizon,)}
        return Network(config, embedding=inward, grid=grid, outputs=1, head=head(rngs), rngs=rngs)

    return functionalize(build)


def assert_model_parity(reference, network, flat, state, training=False):
    def convert(named):
        return [nested(flat(named), network.shapes[0]), named["series"]]

    def run(params, series):
        marks = jnp.zeros((len(series), LOOKBACK + 6, 0))
        return network.apply(params, state, {"series": series, "marks": marks}, training=training)[0]

    assert_parity(reference, run, *map_tree(convert(reference.weights | reference.inputs)), convert=convert)


def test_the_encoder_and_decoder_of_informer_around_full_attention():
    reference = golden("transformer")
    config = model_config(
        name="encoder_decoder", depth=1, encoder_depth=2, masked=True, position="off", attention={"num_heads": 2},
        ffn={"expansion": 1.5}, norm={"placement": "post", "outer": "end", "epsilon": 1e-5},
    )  # fmt: skip

    def flat(w):
        found = embeddings(w) | dense(w, "decoder.projection", "head.map")
        for i in range(2):
            theirs, ours = f"encoder.attn_layers.{i}", f"body.encoder.blocks.{i}"
            found |= attention(w, f"{theirs}.attention.", f"{ours}.attention", 2, NF)
            found |= dense(w, f"{theirs}.conv1", f"{ours}.ffn.up") | dense(w, f"{theirs}.conv2", f"{ours}.ffn.down")
            found |= norm(w, f"{theirs}.norm1", f"{ours}.attention_norm") | norm(
                w, f"{theirs}.norm2", f"{ours}.ffn_norm"
            )
        theirs, ours = "decoder.layers.0", "body.decoder.blocks.0"
        found |= attention(w, f"{theirs}.self_attention.", f"{ours}.attention", 2, NF)
        found |= attention(w, f"{theirs}.cross_attention.", f"{ours}.cross_attention", 2, NF, crosses=True)
        found |= dense(w, f"{theirs}.conv1", f"{ours}.ffn.up") | dense(w, f"{theirs}.conv2", f"{ours}.ffn.down")
        for number, name in enumerate(("attention", "cross_attention", "ffn"), start=1):
            found |= norm(w, f"{theirs}.norm{number}", f"{ours}.{name}_norm")
        return found | norm(w, "encoder.norm", "body.encoder.norm") | norm(w, "decoder.norm", "body.decoder.norm")

    network = forecaster(
        config, 5, lambda rngs: DecoderHead(8, (0,), horizon=5, norm=InstanceNorm("off", 1), rngs=rngs), Positioned
    )
    assert_model_parity(reference, network, flat, {})


def decomposing(w, heads, depth, **options):
    """Autoformer's weights."""
    found = embeddings(w) | dense(w, "decoder.projection", "head.map")
    for name in ("encoder", "decoder"):
        found |= norm(w, f"{name}.norm.layernorm", f"body.{name}_norm")
    self_parts, cross_parts = options.get("parts", ("qkv", "qkv"))
    for i in range(2):
        theirs, ours = f"encoder.attn_layers.{i}", f"body.encoder.{i}"
        found |= attention(w, f"{theirs}.attention.", f"{ours}.attention", heads, NF, parts=self_parts)
        for conv, map_ in (("conv1", "up"), ("conv2", "down")):
            found |= dense(w, f"{theirs}.{conv}", f"{ours}.ffn.{map_}", bias=False)
    for i in range(depth):
        theirs, ours = f"decoder.layers.{i}", f"body.decoder.{i}"
        found |= attention(w, f"{theirs}.self_attention.", f"{ours}.attention", heads, NF, parts=self_parts)
        crosses = {"parts": cross_parts, "crosses": True}
        found |= attention(w, f"{theirs}.cross_attention.", f"{ours}.cross_attention", heads, NF, **crosses)
        for conv, map_ in (("conv1", "up"), ("conv2", "down")):
            found |= dense(w, f"{theirs}.{conv}", f"{ours}.ffn.{map_}", bias=False)
        found |= dense(w, f"{theirs}.projection", f"head.trends.{i}.map", bias=False)
    return found


@pytest.mark.slow
def test_autoformer_in_training():
    config = model_config(
        name="autoformer", depth=2, encoder_depth=2, moving_average=[5], ffn={"expansion": 1.5},
        attention={"kind": "autocorrelation", "num_heads": 2, "factor": 2.0},
    )  # fmt: skip
    head = lambda rngs: TrendHead(8, (0,), blocks=2, horizon=6, norm=InstanceNorm("off", 1), rngs=rngs)  # noqa: E731
    network = forecaster(config, 6, head, moving_average=(5,))
    flat = functools.partial(decomposing, heads=2, depth=2)
    assert_model_parity(golden("autoformer"), network, flat, {}, training=True)


def test_fedformer():
    reference = golden("fedformer")
    config = model_config(
        name="autoformer", width=16, depth=1, encoder_depth=2, moving_average=[5], ffn={"expansion": 0.75},
        attention={"kind": "frequency", "num_heads": 8, "modes": 3, "mix_axes": True},
    )  # fmt: skip
    head = lambda rngs: TrendHead(16, (0,), blocks=1, horizon=5, norm=InstanceNorm("off", 1), rngs=rngs)  # noqa: E731
    network = forecaster(config, 5, head, moving_average=(5,))
    kernels = {
        "body.encoder.0.attention": "encoder.attn_layers.0.attention",
        "body.decoder.0.attention": "decoder.layers.0.self_attention",
        "body.decoder.0.cross_attention": "decoder.layers.0.cross_attention",
    }

    def flat(w):
        found = decomposing(w, 8, 1, parts=("q", "qk"))
        for ours, theirs in kernels.items():
            parts = complex_parts(w[f"{theirs}.inner_correlation.weights1"])
            found |= {f"{ours}.kernel.{name}": part for name, part in zip(("real", "imaginary"), parts, strict=True)}
        return found

    modes = [("body.encoder.0.attention", 0, "encoder"), ("body.decoder.0.attention", 0, "decoder")]
    modes += [("body.decoder.0.cross_attention", 0, "cross"), ("body.decoder.0.cross_attention", 1, "memory")]
    named = {f"{place}.modes.{number}": reference.rest[f"{name}_modes"] for place, number, name in modes}
    state = jax.tree.map(lambda x: x.astype(jnp.int32), nested(named, network.shapes[1]))
    assert_model_parity(reference, network, flat, state)


# ------------------------------------------------------------------------------------- whole tasks, one shot


def encoder_weights(w, theirs, ours, names, up, down, norms):
    """Two blocks of a Transformer."""
    found = {}
    for i in range(2):
        peer, block = f"{theirs}.{i}", f"{ours}.{i}"
        found |= attention(w, f"{peer}.{names[0]}.", f"{block}.attention", 2, names[1:])
        found |= dense(w, f"{peer}.{up}", f"{block}.ffn.up") | dense(w, f"{peer}.{down}", f"{block}.ffn.down")
        for part, name in zip(("attention", "ffn"), norms, strict=True):
            found |= norm(w, f"{peer}.{name}", f"{block}.{part}_norm")
    return found


def dlinear(w):
    season, trend = (w[f"linear_{name}.weight"].T for name in ("season", "trend"))
    bias = w["linear_season.bias"] + w["linear_trend.bias"]
    return {"head.map.kernel": np.concatenate([season, trend]), "head.map.bias": bias}


def patchtst(w):
    w = {name.removeprefix("model.").removeprefix("backbone."): each for name, each in w.items()}
    names = ("self_attn", *PATCHTST_NAMES)
    found = encoder_weights(w, "encoder.layers", "body.blocks", names, "ff.0", "ff.3", ("norm_attn.1", "norm_ffn.1"))
    found |= dense(w, "W_P", "embedding.projection") | {"body.position": w["W_pos"]}
    # There a feature's patches lie side by side, and here a patch's features.
    kernel = w["head.linear.weight"].T
    kernel = kernel.reshape(8, 5, 5).transpose(1, 0, 2).reshape(40, 5)
    return found | {"head.map.kernel": kernel, "head.map.bias": w["head.linear.bias"]}


def itransformer(w):
    names = ("attention", *NF)
    found = encoder_weights(w, "encoder.attn_layers", "body.blocks", names, "conv1", "conv2", ("norm1", "norm2"))
    found |= norm(w, "encoder.norm", "body.norm") | dense(w, "projector", "head.map")
    return found | dense(w, "enc_embedding.value_embedding", "embedding.projection")


def timemixer(w):
    found = dense(w, "enc_embedding.value_embedding.tokenConv", "embedding.steps.values.map", bias=False)
    found |= dense(w, "projection_layer", "head.map")
    for scale in range(3):
        theirs = f"normalize_layers.{scale}.affine"
        found |= {f"embedding.norms.{scale}.scale": w[f"{theirs}_weight"]}
        found |= {f"embedding.norms.{scale}.shift": w[f"{theirs}_bias"]}
        found |= dense(w, f"predict_layers.{scale}", f"head.times.{scale}")
    for block in range(2):
        theirs, ours = f"pdm_blocks.{block}", f"body.blocks.{block}"
        pairs = [("out_cross_layer", "features")]
        for i in range(2):  # their trends begin at the coarsest scale
            pairs.append((f"mixing_multi_scale_season.down_sampling_layers.{i}", f"seasons.{i}"))
            pairs.append((f"mixing_multi_scale_trend.up_sampling_layers.{i}", f"trends.{1 - i}"))
        for peer, mine in pairs:
            found |= dense(w, f"{theirs}.{peer}.0", f"{ours}.{mine}.up")
            found |= dense(w, f"{theirs}.{peer}.2", f"{ours}.{mine}.down")
    return found


LINEAR = {"depth": 0, "norm": {"kind": "off"}, "position": "off"}
TWO_BLOCKS = {"width": 8, "depth": 2, "ffn": {"expansion": 1.5}}
VARIATES = {"tokens": "variate", "embedding": "identity"}
WHOLE = {  # their weights as ours, the task and the model
    "dlinear": (dlinear, VARIATES | {"decomposition": [5]}, LINEAR | {"width": 24}),
    "nlinear": (lambda w: dense(w, "linear", "head.map"), VARIATES | {"instance_norm": "last"}, LINEAR | {"width": 12}),
    "patchtst": (
        patchtst,
        {"tokens": "patch", "patch_length": 4, "patch_stride": 3, "channels": "independent", "instance_norm": "revin"},
        TWO_BLOCKS
        | {"attention": {"num_heads": 2, "residual_scores": True}, "norm": PATCHTST | {"placement": "post"}}
        | {"position": "uniform"},
    ),
    "itransformer": (
        itransformer,
        {"tokens": "variate"},
        TWO_BLOCKS
        | {"attention": {"num_heads": 2}, "position": "off"}
        | {"norm": {"placement": "post", "outer": "end", "epsilon": 1e-5}},
    ),
    "timemixer": (
        timemixer,
        {"tokens": "step", "channels": "independent", "instance_norm": "affine"},
        {"name": "timemixer", "width": 8, "depth": 2, "scales": 2, "expansion": 1.5, "moving_average": [3]},
    ),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "timemixer" else ()) for name in WHOLE]
)
def test_a_whole_forecaster(name):
    """Gradients by the weights alone: neuralforecast takes a window's mean and deviation as constants."""
    flat, task, model = WHOLE[name]
    reference = golden(name)
    series = jnp.asarray(reference.inputs["series"])
    channels = series.shape[2]
    shared = {"name": "forecasting", "lookback": series.shape[1], "horizon": 5, "marks": False}
    config = parse_config({"task": shared | task, "model": model})
    places = list(range(channels))
    metadata = {"channels": [*map(str, places)], "targets": places, "step": 3600, "season": 24}
    metadata |= dict.fromkeys(("mean", "spread", "seasonal_error"), [1.0] * channels)
    forecasting = Forecasting(config.task, metadata)
    network = forecasting.network(config.model)
    inputs = {"series": series, "observed": jnp.ones(series.shape, bool)}
    inputs["marks"] = jnp.zeros((*forecasting.input_spec(len(series))["marks"].shape,))
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), network.shapes[1])
    training = name == "patchtst"  # BatchNorm as in training

    def run(params):
        return network.apply(params, state, inputs, training=training)[0]

    convert = lambda named: [nested(flat(named), network.shapes[0])]  # noqa: E731
    if name == "dlinear":  # one bias of ours is two of theirs, with the same gradient
        reference.gradients["linear_trend.bias"][:] = 0
    assert_parity(reference, run, *map_tree(convert(reference.weights)), convert=convert)

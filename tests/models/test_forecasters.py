"""What the bodies of forecasters are made of, where no peer shows it: distilling with padding, outer norms, trends."""

import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.config import parse_config
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.models.bodies import make_body
from flaxformer_lab.models.encoder_decoder import DistillingTransformer
from flaxformer_lab.modules.decomposition import Decomposition
from flaxformer_lab.modules.distilling import CircularConvolution
from flaxformer_lab.modules.rngs import AbstractRngs, Rngs
from flaxformer_lab.modules.series import InstanceNorm, Layout
from flaxformer_lab.modules.series_decoder import SourceTargetEmbedding, TrendHead
from flaxformer_lab.modules.series_scales import ScaleEmbedding
from flaxformer_lab.parsing import override
from flaxformer_lab.tasks.forecasting import Forecasting

WIDTH = 8
GENERATOR = np.random.default_rng(0)


def model_config(**knobs):
    attention = {"num_heads": 2} | knobs.pop("attention", {})
    return parse_config({"model": {"width": WIDTH, "attention": attention} | knobs}).model


def series(*shape):
    return jnp.asarray(GENERATOR.normal(size=shape), jnp.float32)


def test_a_circular_convolution_joins_the_ends():
    module, x = CircularConvolution(2, 3, bias=False, rngs=Rngs(0)), series(1, 5, 2)
    kernel = np.asarray(module.map.kernel[...]).reshape(3, 2, 3)
    expected = sum(np.roll(x, 1 - step, axis=1) @ kernel[step] for step in range(3))
    np.testing.assert_allclose(module(x), expected, atol=1e-5)


@pytest.mark.parametrize("tokens", [7, 8])
def test_distilling_halves_the_tokens_and_leaves_padding_out(draw_module, tokens):
    config = model_config(depth=3, position="off")
    module = draw_module(lambda: DistillingTransformer(config, grid=(tokens,), rngs=AbstractRngs())).module
    assert [module.tokens_at(layer) for layer in range(4)] == [tokens, 4, 2, 2]
    x, valid = series(2, tokens, WIDTH), jnp.asarray(np.arange(tokens)[None] < np.array([[tokens], [4]]))
    run = jax.jit(lambda x, valid: (module(x, valid=valid), module.valid_of_output(valid)))
    outputs, seen = run(x, valid)
    assert outputs.shape == (2, 2, WIDTH) and np.asarray(seen).tolist() == [[True, True], [True, True]]
    other = jnp.where(valid[:, :, None], x, 9.0)
    np.testing.assert_allclose(run(other, valid)[0], outputs, atol=1e-5)
    assert np.asarray(run(x, jnp.asarray(np.arange(tokens)[None] < [[tokens], [1]]))[1]).tolist()[1] == [True, False]


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_the_outer_norm_stands_where_the_knob_says(draw_module, placement):
    """Without blocks, before the first one and after the last one is the same place."""
    x = np.asarray(series(2, 5, WIDTH))
    for outer in ("start", "end", "off"):
        config = model_config(depth=0, position="uniform", norm={"placement": placement, "outer": outer}, bias=False)
        drawn = draw_module(lambda config=config: make_body(config, grid=(5,), rngs=AbstractRngs()))
        y = x + drawn.exact["position"]
        standardised = (y - y.mean(axis=-1, keepdims=True)) / y.std(axis=-1, keepdims=True)
        expected = y if outer == "off" else standardised * drawn.exact["norm.scale"]
        np.testing.assert_allclose(drawn(x), expected, atol=1e-4)


def test_uniform_positions_start_small():
    table = make_body(model_config(depth=0, position="uniform"), grid=(50,), rngs=Rngs(0)).position[...]
    assert 0.019 < np.max(table) < 0.02 and -0.02 < np.min(table) < -0.019


def test_what_blocks_take_away_and_leave_is_the_whole(draw_module):
    """Without skips and attention a block's input is split, and nothing is lost."""
    module, x = draw_module(lambda: Decomposition((3, 5), AbstractRngs())).module, series(2, 9, 3)
    seasonal, trend = module(x)
    np.testing.assert_allclose(seasonal + trend, x, atol=1e-5)
    assert np.abs(np.diff(trend, axis=1)).mean() < np.abs(np.diff(x, axis=1)).mean()


def test_the_decoder_sees_the_seasonal_part_and_zeros_for_the_horizon():
    options = {"label_length": 4, "horizon": 3, "norm": InstanceNorm("off", 3), "rngs": Rngs(0)}
    inputs = {"series": series(2, 9, 3), "marks": series(2, 12, 2)}
    plain, seasonal = (SourceTargetEmbedding(3, 2, WIDTH, moving_average=m, **options) for m in ((), (3,)))
    window, marks = np.asarray(inputs["series"]), inputs["marks"]
    for module, known in ((plain, window), (seasonal, np.asarray(Decomposition((3,), Rngs(0))(inputs["series"])[0]))):
        target = np.concatenate([known[:, 5:], np.zeros((2, 3, 3), np.float32)], axis=1)
        expected = module.target(jnp.asarray(target), marks[:, 5:])
        np.testing.assert_allclose(module(inputs)["target"], expected, atol=1e-6)
        np.testing.assert_allclose(module(inputs)["source"], module.source(inputs["series"], marks[:, :9]), atol=1e-6)


def test_the_trend_of_the_horizon_starts_at_the_mean_of_the_window():
    head = TrendHead(WIDTH, (0, 2), blocks=2, horizon=3, norm=InstanceNorm("off", 3), rngs=Rngs(0))
    inputs, x = (
        {"series": series(2, 9, 3)},
        {"seasonal": jnp.zeros((2, 7, WIDTH)), "trends": jnp.zeros((2, 7, 2, WIDTH))},
    )
    mean = np.asarray(inputs["series"]).mean(axis=1, keepdims=True)[..., [0, 2]]
    np.testing.assert_allclose(head(x, inputs), np.repeat(mean, 3, axis=1), atol=1e-6)
    moved = head(x | {"trends": series(2, 7, 2, WIDTH)}, inputs)
    assert np.abs(moved - head(x, inputs)).max() > 0.1


def test_without_a_block_no_trend_moves():
    """As with other models, depth 0 leaves embedding and head."""
    head = TrendHead(WIDTH, (0, 2), blocks=0, horizon=3, norm=InstanceNorm("off", 3), rngs=Rngs(0))
    body = make_body(model_config(name="autoformer", depth=0), grid={"source": (9,), "target": (7,)}, rngs=Rngs(0))
    inputs = {"series": series(2, 9, 3)}
    x = body({"source": series(2, 9, WIDTH), "target": series(2, 7, WIDTH)})
    mean = np.asarray(inputs["series"]).mean(axis=1, keepdims=True)[..., [0, 2]]
    np.testing.assert_allclose(head(x, inputs) - head.map(x["seasonal"][:, 4:]), np.repeat(mean, 3, axis=1), atol=1e-5)


def test_autoformer_takes_no_padding_and_no_positions():
    config = model_config(name="autoformer")
    body = make_body(config, grid={"source": (6,), "target": (5,)}, rngs=Rngs(0))
    x = {"source": series(1, 6, WIDTH), "target": series(1, 5, WIDTH)}
    with pytest.raises(ConfigError, match="takes no padding"):
        body(x, valid={"source": jnp.ones((1, 6), bool), "target": None})
    for knobs, text in (({"position": "learned"}, "choose from off"), ({"distil": True}, "distil=true"),
                        ({"remat": True}, "remat=true with"), ({"norm": {"kind": "off"}}, "norm.kind=off with"),
                        ({"moving_average": []}, "moving_average is empty")):  # fmt: skip
        with pytest.raises(ConfigError, match=text):
            model_config(name="autoformer", **knobs)


def test_scores_are_added_for_softmax_alone():
    for knobs in ({"attention": {"kind": "linear", "residual_scores": True}},
                  {"attention": {"residual_scores": True}, "causal": True}):  # fmt: skip
        with pytest.raises(ConfigError, match="residual_scores=true"):
            model_config(**knobs)


RECIPES = sorted(Path(__file__).parents[2].glob("configs/forecasters/*.py"))
METADATA = {"channels": ["a", "b", "c"], "targets": [0, 2], "mean": [0.0] * 3, "spread": [1.0] * 3}
METADATA |= {"seasonal_error": [1.0] * 3, "step": 3600, "season": 24}


@pytest.mark.parametrize(
    ("name", "knobs"),
    [("informer", {}), ("fedformer", {}), ("patchtst", {}),
     ("autoformer", {"task.quantiles": (0.1, 0.5, 0.9)}), ("timemixer", {"task.quantiles": (0.1, 0.5, 0.9)}),
     pytest.param("fedformer", {"model.attention.kind": "wavelet", "model.attention.mix_axes": False},
                  marks=pytest.mark.slow)],
)  # fmt: skip
def test_a_recipe_makes_a_network_that_forecasts_its_targets(name, knobs):
    (path,) = (path for path in RECIPES if path.stem == name)
    tree = runpy.run_path(str(path))["get_config"]().to_dict()
    for key, value in knobs.items():
        tree = override(tree, key, value)
    config = parse_config(tree)
    task = Forecasting(config.task, METADATA)
    network = task.network(config.model)

    def loss(params, state, inputs):
        keys = jax.random.split(jax.random.key(0), 2)
        outputs, _ = network.apply(params, state, inputs, keys=keys, training=True)
        return outputs.sum(), outputs

    spec = task.input_spec(2)
    gradients, outputs = jax.eval_shape(jax.grad(loss, has_aux=True), *network.shapes, spec)
    assert outputs.shape == (2, 96, 2) + ((3,) if "task.quantiles" in knobs else ())
    assert jax.tree.structure(gradients) == jax.tree.structure(network.shapes[0])


def test_timemixer_reads_steps_of_each_channel_by_itself():
    config = parse_config({"task": {"name": "forecasting", "tokens": "step"}, "model": {"name": "timemixer"}})
    with pytest.raises(
        ConfigError, match=r"set task.tokens=step \(not step\), task.channels=independent \(not mixed\)"
    ):
        Forecasting(config.task, METADATA).network(config.model)


UNREAD = {"decomposition": (25,), "embedding": "circular", "head": "last"}


@pytest.mark.parametrize(
    ("name", "channels", "unread"),
    [("encoder_decoder", "mixed", UNREAD), ("autoformer", "mixed", UNREAD),
     ("timemixer", "independent", UNREAD | {"individual": True})],
)  # fmt: skip
def test_knobs_that_a_network_of_its_own_would_not_read_are_refused(name, channels, unread):
    for knob, value in unread.items():
        tree = {"task": {"name": "forecasting", "channels": channels, knob: value}, "model": {"name": name}}
        config = parse_config(tree)
        with pytest.raises(ConfigError, match=rf"task\.{knob}=.* with model\.name={name}, which has an embedding"):
            Forecasting(config.task, METADATA).network(config.model)


def test_a_model_without_biases_has_none_in_a_decoders_head():
    for bias in (True, False):
        config = parse_config({"task": {"name": "forecasting"}, "model": {"name": "encoder_decoder", "bias": bias}})
        assert ("bias" in Forecasting(config.task, METADATA).network(config.model).shapes[0]["head"]["map"]) is bias


def test_a_coarser_scale_has_means_of_two_steps():
    """Each scale is standardised by itself, and an odd last step is left out."""
    layout = Layout("patch", independent=True, lookback=5, channels=2, targets=(1,), marks=1)
    norms = [InstanceNorm("revin", 2) for _ in range(2)]
    embedding = ScaleEmbedding(layout, WIDTH, norms=norms, dtype="float32", rngs=Rngs(0))
    x = series(3, 5, 2)
    inputs = {"series": x, "observed": np.ones(x.shape, bool), "marks": series(3, 9, 1)}
    found = jax.device_get(jax.jit(embedding)(inputs))
    calendar = np.asarray(embedding.steps.calendar.kernel[...])
    pooled = np.stack([x[:, 0:2].mean(axis=1), x[:, 2:4].mean(axis=1)], axis=1)
    first = inputs["marks"][:, [0, 2]]
    for rows, marks, tokens in ((x, inputs["marks"][:, :5], found["0"]), (pooled, first, found["1"])):
        level, spread = rows.mean(axis=1, keepdims=True), np.sqrt(rows.var(axis=1, keepdims=True) + 1e-5)
        rows = ((rows - level) / spread)[:, :, 1:]
        expected = np.asarray(embedding.steps.values(jnp.asarray(rows))) + marks @ calendar
        np.testing.assert_allclose(tokens, expected, atol=1e-5)


def test_a_decoder_reads_steps_of_all_channels():
    config = parse_config({"task": {"name": "forecasting", "tokens": "patch"}, "model": {"name": "autoformer"}})
    with pytest.raises(ConfigError, match=r"set task.tokens=step \(not patch\)"):
        Forecasting(config.task, METADATA).network(config.model)

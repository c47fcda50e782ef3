"""Every registered attention kind, FFN kind and model: what it declares of itself, against what a built one does.

A declaration that theory builds on must hold for every config that is tried; its opposite must show for one of them at
least. Each declaration is also turned round, and must then be found false: so no check is empty.
"""

import dataclasses
import functools
import itertools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flaxformer_lab import registry
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.model_config import (
    AttentionConfig,
    ConvolutionConfig,
    FeedForwardConfig,
    MixerConfig,
    NormConfig,
    TransformerConfig,
)
from flaxformer_lab.models import theory
from flaxformer_lab.models.bodies import make_body
from flaxformer_lab.modules.attention import SoftmaxAttention, make_attention
from flaxformer_lab.modules.feedforward import make_feed_forward
from flaxformer_lab.modules.intermediates import Intermediates
from flaxformer_lab.modules.rngs import AbstractRngs

TOKENS, WIDTH = 8, 4
GRID = (2, 4)
X, Y = np.random.default_rng(0).normal(size=(2, 1, TOKENS, WIDTH)).astype(np.float32)
BARE = TransformerConfig(width=WIDTH, depth=1, position="off", bias=False, norm=NormConfig(kind="off"))
PARTS = [(kind, name) for kind in ("attention", "ffn", "model") for name in registry.names(kind)]
# The answer that theory, rules and measures build on, where it is not True.
CLAIMS = {"mixes_features": False, "sees_content": False, "attends": False, "needs_grid": False}
ELSEWHERE = {"shards_tokens", "block_size", "rank"}  # tests/training/test_mesh.py, tests/models/test_theory.py


@dataclasses.dataclass(frozen=True)
class Case:
    """One config, and what a model of it did: the properties by name, as they were found."""

    config: object
    tokens: int
    span: int  # the largest distance between tokens
    found: dict


def faults(kind, name, cases, turned=""):
    """The declared properties that the cases contradict; `turned` is one to be taken for its opposite."""
    wrong = set()
    for key in registry.lookup(kind, name).properties.keys() - ELSEWHERE:
        pairs = [(registry.ask(kind, name, key, c.config, c.tokens), c) for c in cases if key in c.found]
        assert pairs, f"nothing shows {key} of {name}"
        if key == turned:
            pairs = [(opposite(key, declared), case) for declared, case in pairs]
        if key == "reach":
            far = [(min(declared, case.span), case.found[key]) for declared, case in pairs if declared is not None]
            holds = all(seen <= declared for declared, seen in far)
            shows = any(seen == declared for declared, seen in far if declared) or not any(far_ for far_, _ in far)
        else:
            claim = CLAIMS.get(key, True)
            holds = all(case.found[key] is claim for declared, case in pairs if declared is claim)
            against = [case.found[key] for declared, case in pairs if declared is (not claim)]
            shows = claim not in against or (not claim) in against
        wrong |= set() if holds and shows else {key}
    return wrong


def opposite(key, declared):
    return declared if declared is None else (0 if declared else math.inf) if key == "reach" else not declared


@pytest.fixture(scope="module")
def cases(draw_module):
    """The cases of a part, each built and run once."""
    makers = {"attention": attention_cases, "ffn": ffn_cases, "model": model_cases}

    def build(make):
        """With parameters that are all drawn; a variance is not negative."""
        module = draw_module(make).module
        nnx.update(module, jax.tree.map(jnp.abs, nnx.state(module, nnx.BatchStat)))
        return module

    return functools.cache(lambda kind, name: list(makers[kind](name, build)))


@pytest.mark.integration
@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_a_part_is_what_it_declares_and_not_the_opposite(cases, kind, name):
    built = cases(kind, name)  # once for both
    assert not faults(kind, name, built)
    declared = registry.lookup(kind, name).properties.keys() - ELSEWHERE
    if not takes_two_sequences(name):  # of which nothing here asks
        assert declared == registry.PROPERTIES[kind].keys() - ELSEWHERE, "the lab's own parts leave nothing unknown"
    for key in declared:
        assert faults(kind, name, built, turned=key) == {key}


def test_a_part_that_declares_falsely_is_found_out(cases, own_parts):
    """Softmax attention that forgets its masks, and says that it is affine."""

    @registry.register("attention", "liar", odd=True, affine=True, causal=True, windowed=True, has_token_weights=True)
    class Liar(SoftmaxAttention):
        def __init__(self, config, **options):
            super().__init__(dataclasses.replace(config, causal=False), **options)
            self._window = None

    assert faults("attention", "liar", cases("attention", "liar")) == {"affine", "causal", "windowed"}


def test_the_attention_kind_of_the_docs_is_what_it_declares(cases, own_parts):
    text = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
    registry.import_text("/docs/my_parts.py", text.split("```python\n")[1].split("```")[0])
    assert not faults("attention", "sigmoid", cases("attention", "sigmoid"))
    assert faults("attention", "sigmoid", cases("attention", "sigmoid"), turned="decodes") == {"decodes"}


def test_nothing_is_concluded_from_what_a_model_leaves_out():
    config = registry.configs("model")["encoder_decoder"](width=WIDTH, bias=False, norm=NormConfig(kind="off"))
    assert not theory.is_odd(config, TOKENS) and not theory.is_affine(config, TOKENS)
    assert theory.mixes_features(config, TOKENS) and theory.reach(config, TOKENS) == math.inf


@pytest.mark.parametrize("kind", [TransformerConfig, ConvolutionConfig, MixerConfig])
def test_nothing_is_concluded_where_the_batch_is_the_measure(kind):
    config = kind(width=WIDTH, bias=False, norm=NormConfig(kind="batchnorm"))
    if kind is TransformerConfig:
        config = dataclasses.replace(config, position="off", ffn=FeedForwardConfig(kind="off"))
    assert not theory.is_odd(config, TOKENS) and not theory.is_affine(config, TOKENS)
    assert theory.mixes_features(config, TOKENS)


def test_what_is_unknown_is_not_judged(cases, own_parts):
    registry.register("attention", "silent")(type("Silent", (SoftmaxAttention,), {}))
    assert not faults("attention", "silent", cases("attention", "silent"))


# ---------------------------------------------------------------------------------- what one built model does


def close(a, b):
    return bool(np.max(np.abs(np.asarray(a) - np.asarray(b))) < 1e-5 * max(1.0, float(np.max(np.abs(b)))))


def numbers(function, grid=(TOKENS,), observe=dict):
    """Symmetry by numbers, and by the Jacobian which tokens and features reach which, in one program.

    Returns the properties; [t, s], whether token s reaches t; the outputs of X; and what `observe` gives.
    """
    tokens = math.prod(grid)

    @jax.jit
    def run(x, y):
        jacobian = jax.jacrev(lambda one: function(one[None])[0])(x[0])
        intermediates = Intermediates()
        outputs = function(jnp.concatenate([x, -x, y, 2.5 * x - 1.5 * y]), intermediates=intermediates)
        return jacobian, outputs, intermediates.values, observe()

    # [t, c, s, d]: output feature c of token t, input feature d of token s.
    jacobian, outputs, offered, observed = jax.device_get(run(X[:, :tokens], Y[:, :tokens]))
    of_x, of_minus_x, of_y, of_sum = outputs
    moved = np.abs(jacobian) > 1e-7
    seen = moved.any(axis=(1, 3))
    places = np.stack(np.unravel_index(np.arange(tokens), grid))
    back = np.max(places[:, :, None] - places[:, None], axis=0)
    weights = [value for path, value in offered.items() if path.split(".")[-1] == "weights"]
    properties = {
        "odd": close(of_minus_x, -of_x),
        "affine": close(of_sum, 2.5 * of_x - 1.5 * of_y),
        "mixes_features": bool(moved.any(axis=(0, 2))[~np.eye(WIDTH, dtype=bool)].any()),
        "reach": int(np.max(back, where=seen, initial=0)),
        # Weights are offered, and their rows sum to 1.
        "has_token_weights": bool(weights) and all(close(w.sum(axis=-1), np.ones(w.shape[:-1])) for w in weights),
    }
    return properties, seen, of_x, observed


def without_intermediates(function):
    return lambda x, intermediates=None: function(x)


def decodes(module, step, whole):
    """Whether two tokens read at once and the others one by one have the outputs of the whole."""
    try:
        first, cache = jax.jit(module.prefill)(X[:, :2], np.array([2], np.int32))
        outputs, step = [first], jax.jit(step)
        for position in range(2, TOKENS):
            output, cache = step(X[:, position : position + 1], cache, np.array([position], np.int32))
            outputs.append(output)
    except (AttributeError, ConfigError):  # there is no such method, or it refuses fewer tokens
        return False
    return close(np.concatenate(outputs, axis=1), whole)


def weights_or_outputs(module, tokens):
    """The weights of X and of Y, where they are offered; or else what the queries and keys of each do to X's values."""
    ours, theirs = (module.project_qkv(jnp.asarray(each[:, :tokens])) for each in (X, Y))
    one, other = Intermediates(), Intermediates()
    outputs = [module.mix(*ours, valid=None, intermediates=one)]
    if module.parts == 3:
        outputs.append(module.mix(*theirs[:2], ours[2], valid=None, intermediates=other))
    else:  # weights that do not depend on their only input make a linear map of it
        outputs.append(2 * outputs[0] - module.mix(*theirs, valid=None, intermediates=other))
        outputs[0] = module.mix(2 * ours[0] - theirs[0], valid=None, intermediates=Intermediates())
    return [each.values["weights"] for each in (one, other) if "weights" in each.values] or outputs


def attention_cases(name, build):
    """Projections that keep features apart, so that it is the kind that mixes them; and masks, asked for or not.

    With rotary positions too, where there are queries and keys that they turn.
    """
    masks = {key: registry.ask("attention", name, key, BARE, TOKENS) is True for key in ("causal", "windowed")}
    trials = [(2, TOKENS, False, window, "off") for window in (None, 1, 2)] + [(2, TOKENS, True, None, "off")]
    trials += [(WIDTH, TOKENS, False, None, "off"), (2, 1, False, None, "off")]
    trials += [(2, TOKENS, False, None, "rotary")] if registry.lookup("attention", name).build.parts > 1 else []
    for heads, tokens, causal, window, position in trials:
        allowed = (masks["causal"] or not causal) and (masks["windowed"] or window is None)
        if window == 1 and not allowed:  # shows nothing
            continue
        knobs = {
            "projection": "diagonal",
            "output": "diagonal",
            "factor": 1.5,
            "wavelet_order": 2,
            "wavelet_channels": 2,
        }
        attention = AttentionConfig(kind=name, num_heads=heads, window=window, **knobs)
        config = dataclasses.replace(BARE, attention=attention, causal=causal, position=position)
        module = build(lambda config=config, tokens=tokens: make_attention(config, tokens=tokens, rngs=AbstractRngs()))
        observe = functools.partial(weights_or_outputs, module, tokens) if allowed else list
        found, seen, whole, observed = numbers(module, (tokens,), observe)
        found = found | {"sees_content": not close(*observed)} if allowed else {}
        distance = np.subtract.outer(np.arange(tokens), np.arange(tokens))
        if causal:
            found["causal"] = not seen[distance < 0].any() and keeps_its_past(module, whole)
            found["decodes"] = decodes(module, module.decode, whole)
        if (heads, tokens, causal, window, position) == trials[0]:
            found["crosses"] = crosses(config, build)
        if window == 2:
            found["windowed"] = not seen[np.abs(distance) >= 2].any()
        yield Case(config, tokens, tokens - 1, found)


def keeps_its_past(module, whole):
    """Whether the first outputs stay where later tokens become others: a choice has no gradient."""
    half = TOKENS // 2
    changed = jax.jit(module)(jnp.concatenate([X[:, :half], 9 * Y[:, half:]], axis=1))
    return close(changed[0, :half], whole[:half])


def crosses(config, build):
    """Whether queries attend to a sequence of another length: some output is moved by each of its tokens."""
    kind, other = registry.lookup("attention", config.attention.kind).build, jnp.asarray(Y[:, :3])
    try:
        module = build(lambda: kind(config, tokens=TOKENS, crosses=True, memory_tokens=3, rngs=AbstractRngs()))
        moved = jax.jit(jax.jacrev(lambda memory: module(jnp.asarray(X), memory=memory)[0]))(other)
    except (TypeError, ValueError):
        return False
    return moved.shape == (TOKENS, WIDTH, 1, 3, WIDTH) and bool(np.any(np.asarray(moved), axis=(0, 1, 2, 4)).all())


def ffn_cases(name, build):
    for activation, bias in itertools.product(("identity", "tanh", "gelu"), (False, True)):
        ffn = FeedForwardConfig(kind=name, activation=activation, expansion=2.0)
        config = dataclasses.replace(BARE, ffn=ffn, bias=bias)
        module = build(lambda config=config: make_feed_forward(config, AbstractRngs()))
        found, seen, *_ = numbers(without_intermediates(module))
        found["reach"] = max(found["reach"], int(seen[~np.eye(TOKENS, dtype=bool)].any()))  # nor a later token
        yield Case(config, TOKENS, TOKENS - 1, found)


def takes_two_sequences(name):
    return name in registry.names("model") and getattr(registry.lookup("model", name).build, "two_sequences", False)


def encoder_decoder_cases(name, build):
    """The tokens of the target, where the source is given."""
    for causal in (False, True):
        config = registry.configs("model")[name](width=WIDTH, depth=1, encoder_depth=1, causal=causal)
        grid = {"source": (3,), "target": (TOKENS,)}
        model = build(lambda config=config, grid=grid: make_body(config, grid=grid, rngs=AbstractRngs()))

        def function(x, model=model):
            outputs = model({"source": jnp.broadcast_to(Y[:, :3], (len(x), 3, WIDTH)), "target": x})
            return outputs["seasonal"] if isinstance(outputs, dict) else outputs

        _, seen, *_ = numbers(without_intermediates(function))
        found = {"causal": not np.triu(seen, 1).any(), "decodes": hasattr(model, "decode")}
        yield Case(config, TOKENS, TOKENS - 1, found)


def timemixer_cases(build):
    """The tokens of the finest scale, where the coarser one is given; they reach each other through it and back."""
    config = registry.configs("model")["timemixer"](width=WIDTH, depth=2, scales=1, moving_average=(3,))
    half = TOKENS // 2
    model = build(lambda: make_body(config, grid={"0": (TOKENS,), "1": (half,)}, rngs=AbstractRngs()))

    def function(x):
        return model({"0": x, "1": jnp.broadcast_to(Y[:, :half], (len(x), half, WIDTH))})["0"]

    _, seen, *_ = numbers(without_intermediates(function))
    found = {"causal": not np.triu(seen, 1).any(), "decodes": hasattr(model, "decode")}
    yield Case(config, TOKENS, TOKENS - 1, found)


def model_cases(name, build):
    """Each knob that a property may depend on, one after another, where the model has it."""
    if name == "timemixer":
        yield from timemixer_cases(build)
        return
    if takes_two_sequences(name):
        yield from encoder_decoder_cases(name, build)
        return
    kind = registry.lookup("model", name).config
    knobs = {knob.name for knob in dataclasses.fields(kind)}
    bare = {"width": WIDTH, "bias": False, "depth": 1, "norm": NormConfig(kind="off"), "position": "off"}
    bare |= {"depths": (1,), "kernel_size": 3}
    trials = [{}, {"depth": 0}, {"depth": 2}, {"bias": True}, {"norm": NormConfig()}, {"kernel_size": 1}]
    trials += [{"depths": (2,)}, {"position": "learned"}]
    trials += [{"norm": NormConfig(kind="batchnorm"), "activation": "tanh"}]
    trials += [{"activation": kind, "causal": causal} for kind in ("identity", "tanh") for causal in (False, True)]
    if kind is TransformerConfig:
        trials += list(trials_of_parts())
    grid = GRID if registry.ask("model", name, "needs_grid") else (TOKENS,)
    own = ({key: value for key, value in (bare | trial).items() if key in knobs} for trial in trials)
    for config in dict.fromkeys(kind(name=name, **each) for each in own):  # each once
        if name == "cnn_2d" and config.causal:
            continue
        make = lambda grid, config=config: build(lambda: make_body(config, grid=grid, rngs=AbstractRngs()))  # noqa: E731
        module = make(grid)
        found, seen, whole, _ = numbers(module, grid)
        found["causal"] = not np.triu(seen, 1).any()
        if getattr(config, "depth", 1) == 1 and getattr(config, "kernel_size", 3) == 3:
            found["attends"] = bool(seen.all())
            found["needs_grid"] = not runs(make((TOKENS,)))
        if config.causal or not hasattr(module, "decode"):
            step = lambda x, cache, position, module=module: module.decode(x, cache)  # noqa: E731
            found["decodes"] = decodes(module, step, whole)
        yield Case(config, TOKENS, max(grid) - 1, found)


def runs(module):
    try:
        jax.eval_shape(module, X)
    except (TypeError, ValueError):
        return False
    return True


def trials_of_parts():
    """Transformers of kinds of attention and of FFN that differ in properties; projections keep features apart."""
    off = FeedForwardConfig(kind="off")
    yield {"norm": NormConfig(kind="batchnorm"), "ffn": FeedForwardConfig(activation="tanh")}
    for name in ("softmax", "lightning", "channel", "static", "off"):  # the others are tried by themselves
        attention = AttentionConfig(kind=name, num_heads=WIDTH, projection="diagonal", output="diagonal")
        yield {"attention": attention, "ffn": FeedForwardConfig(kind="diagonal", activation="tanh")}
        if name != "off":
            yield {"attention": dataclasses.replace(attention, num_heads=2), "ffn": off}
        if name == "softmax":
            yield {"attention": attention, "ffn": off, "causal": True}
    for name in registry.names("ffn"):
        yield {"attention": AttentionConfig(kind="off"), "ffn": FeedForwardConfig(kind=name, activation="identity")}

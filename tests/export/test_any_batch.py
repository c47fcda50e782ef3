"""Every model, and every kind of each part, as a program of all platforms whose batch may have any size.

Nothing is compiled here: the programs are traced and lowered.
"""

import re
import typing

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab import registry
from flaxformer_lab.config import parse_config
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.export import stablehlo
from flaxformer_lab.export.forward import Forward
from flaxformer_lab.functional import lightning, softmax_attention
from flaxformer_lab.functional.platform import portable_forms, target_platform
from flaxformer_lab.model_config import AttentionConfig, FeedForwardConfig, NormConfig, TransformerConfig
from flaxformer_lab.task_config import ForecastingConfig
from flaxformer_lab.training.experiment import make_experiment

TOKENS = 6
TPU = jax.sharding.AbstractMesh((), (), abstract_device=jax.sharding.AbstractDevice("TPU v5 lite", 1, "tpu"))
TABLE = {"name": "tabular_classification"}
IMAGES = {"name": "image_classification", "patch_size": 2}
FACTS = {"num_symbols": 5, "image_shape": [4, 4, 1], "num_classes": 3, "target_mean": 0.0, "target_spread": 1.0}
FACTS |= {"definition": 2}
SERIES = {"channels": list("abcdef"), "seasonal_error": [1.0] * 6, "targets": [0], "step": 3600, "season": 24}
# Of two sequences: tests/training/test_contract.py.
OWN_INPUTS = [n for n in registry.names("model") if getattr(registry.lookup("model", n).build, "two_sequences", False)]


def choices(config, knob):
    """What a knob may be."""
    return typing.get_args(typing.get_type_hints(config)[knob])


def attention_cases():
    """Each kind, causal and with a window where it can be; and each knob of its heads."""
    for kind in registry.names("attention"):
        yield {"kind": kind}
        for key, knobs in (("causal", {}), ("windowed", {"window": 3})):
            config = TransformerConfig(attention=AttentionConfig(kind=kind), causal=True)
            if registry.ask("attention", kind, key, config):
                yield {"kind": kind, "causal": True, **knobs}
        if getattr(registry.lookup("attention", kind).build, "mixes_axes", False):
            yield {"kind": kind, "mix_axes": True}
    yield {"kind": "softmax", "num_heads": 8}  # of one feature
    yield {"kind": "softmax", "num_kv_heads": 1}
    yield {"kind": "softmax", "gate": True, "norm": "rmsnorm"}


def other_cases():
    """Each kind of the other parts, several at once."""
    maps = {"block_size": 4, "rank": 2}
    kinds = [
        [{"ffn": {"kind": kind}} for kind in registry.names("ffn")],
        [{"ffn": {"projection": each, "expansion": 1, **maps}} for each in choices(FeedForwardConfig, "projection")],
        [
            {"norm": {"kind": kind, "placement": placement}}
            for kind in choices(NormConfig, "kind")
            for placement in choices(NormConfig, "placement")
        ],
        [{"position": position} for position in choices(TransformerConfig, "position")],
        [
            {"attention": {"num_heads": 2, "projection": each, "output": each, **maps}}
            for each in choices(AttentionConfig, "projection")
        ],
        [{"dtype": "bfloat16"}, {"precision": "default"}, {"remat": True}, {"skip": {"attention": False}}],
    ]
    for number in range(max(map(len, kinds))):
        case = {}
        for part in kinds:
            for key, value in part[number % len(part)].items():
                case[key] = case.get(key, {}) | value if isinstance(value, dict) else value
        yield case


def cases():
    """The config of each model to be lowered; of Transformers every second one is left to the slow tests."""
    attentions = [{"num_heads": 2} | knobs for knobs in attention_cases()]
    models = [{"attention": knobs, "causal": knobs.pop("causal", False)} for knobs in attentions]
    for number, model in enumerate([*models, *other_cases()]):
        yield pytest.param(model, marks=[pytest.mark.slow] if number % 2 else [])
    for name in registry.names("model"):
        if name not in ("transformer", *OWN_INPUTS):
            yield {"name": name}


def name_of(model):
    return re.sub(r"[{}' ]", "", str(model))


def is_transformer(model):
    return model.get("name", "transformer") == "transformer"


def forward_of(model=None, task=None, *, masked=False, tokens=TOKENS, **more):
    """A model whose weights are never looked at."""
    model = {"width": 8} | (model or {})
    if is_transformer(model):
        model = {"depth": 1, "attention": {"num_heads": 2}} | model
    facts = FACTS | SERIES | {"items": ["tea", "pot", "cup"], "mean": [0.0] * tokens, "spread": [1.0] * tokens} | more
    experiment = make_experiment(parse_config({"task": task or TABLE, "model": model}), facts)
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), experiment.network.shapes)
    mask = jax.ShapeDtypeStruct((1, TOKENS), bool) if masked else None
    return Forward(experiment, *variables, mask)


def program_of(forward):
    return jax.export.deserialize(bytearray(stablehlo.encode(forward)))


@pytest.mark.integration
@pytest.mark.parametrize("model", list(cases()), ids=name_of)
def test_each_part(model):
    """Masked where it is a Transformer: the forms with a mask are those with most arithmetic on shapes."""
    needs_grid = registry.ask("model", model.get("name", "transformer"), "needs_grid") is True
    masked = is_transformer(model)
    program = program_of(forward_of(model, IMAGES if needs_grid else TABLE, masked=masked))
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert set(re.findall(r"custom_call @(\w+)", program.mlir_module())) <= {"shape_assertion"}
    assert [str(each.shape[0]) for each in (*program.in_avals, *program.out_avals)] == ["batch"] * (2 + masked)


def any_number_of(tree):
    """Arrays with a batch of any size."""
    (batch,) = jax.export.symbolic_shape("batch")
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((batch, *leaf.shape[1:]), leaf.dtype), tree)


ROOM = {"image_classification": {"patch_size": 2, "pooling": "class_token"}, "next_basket": {"repeats": True}}
RAW = {"image_classification": ["image"], "tabular_classification": ["columns"], "tabular_regression": ["columns"]}


FORECASTS = [
    {"name": "forecasting", "tokens": tokens, "channels": channels, "instance_norm": "affine", "decomposition": [3]}
    for tokens in choices(ForecastingConfig, "tokens")
    for channels in choices(ForecastingConfig, "channels")
    if (tokens, channels) != ("variate", "independent")
]


@pytest.mark.parametrize(
    "task", [*({"name": name} for name in registry.names("task") if name != "pretrained"), *FORECASTS], ids=name_of
)
def test_each_task(task):
    """What it takes: raw features where there are some, else the network's inputs."""
    name = task["name"]
    config = registry.lookup("task", name).config()
    detects = name in ("detection", "scenes")
    model = {"name": "encoder_decoder"} if detects else {"depth": 0, "causal": config.causal is True}
    facts = {"image_shape": [16, 8, 1]} if detects else {}
    forward = forward_of(model, task | ROOM.get(name, {}), **facts)
    if name in RAW:
        assert list(forward.spec) == RAW[name]
    else:
        assert jax.tree.leaves(forward.spec) == jax.tree.leaves(forward.experiment.task.input_spec(1))
    outputs = jax.eval_shape(lambda arrays: forward(**arrays), any_number_of(forward.spec))
    assert {str(leaf.shape[0]) for leaf in jax.tree.leaves(outputs)} == {"batch"}


def test_outputs_of_two_stages():
    """The proposals of Faster R-CNN are outputs too."""
    scene = {"canvas": 16, "item_size": 8.0, "scale": (0.8, 1.2), "items": (1, 2)}
    task = {"name": "scenes", "detector": "faster_rcnn", "proposals": 3, "detections": 4, **scene}
    program = program_of(forward_of({"name": "cnn_2d", "depth": 0}, task, image_shape=[16, 16, 1]))
    outputs = jax.tree.unflatten(program.out_tree, program.out_avals)
    assert {str(leaf.shape[1:]) for leaf in outputs["outputs"]["proposals"].values()} == {"(3,)", "(3, 4)"}


DECODING = [knobs for knobs in attention_cases() if knobs.get("causal") or "num_kv_heads" in knobs]


@pytest.mark.parametrize("knobs", [*DECODING, {"name": "cnn_1d"}], ids=name_of)
def test_prefill_and_decode(knobs):
    """With caches of each kind; the convolution keeps its inputs."""
    knobs = {key: value for key, value in knobs.items() if key != "causal"}
    model = knobs if "name" in knobs else {"attention": {"num_heads": 2} | knobs, "position": "rotary"}
    text = {"name": "language_modelling", "tokenizer": "bytes", "sequence_length": TOKENS}
    network = forward_of(model | {"causal": True}, text).experiment.network
    symbols, one = any_number_of([jax.ShapeDtypeStruct((1, *size), jnp.int32) for size in ((4,), ())])
    logits, cache = jax.eval_shape(network.prefill, *network.shapes, symbols, one)
    after = jax.eval_shape(network.decode, *network.shapes, one, cache)
    assert str(logits.shape) == "(batch, 5)"
    assert jax.tree.map(lambda leaf: leaf.shape, after) == jax.tree.map(lambda leaf: leaf.shape, (logits, cache))


@pytest.mark.parametrize("kind", ["softmax", "lightning"])
def test_long_sequences_take_the_forms_by_blocks(kind):
    model = {"attention": {"kind": kind, "num_heads": 2}, "position": "off"}
    text = program_of(forward_of(model, tokens=2048)).mlir_module()
    assert "stablehlo.while" in text and "2048x2048" not in text


def test_no_kernel_of_the_exporting_device_is_in_the_program(monkeypatch):
    """Shapes that a TPU's fused kernel and the measured Lightning kernel would take."""
    model = {"width": 256, "attention": {"num_heads": 2}, "dtype": "bfloat16"}
    problem = softmax_attention.Problem(1, 128, 2, 128, 128, True, False, False, None)
    with jax.sharding.use_abstract_mesh(TPU):
        assert softmax_attention.choose(problem, target_platform()).name == "splash"
        text = program_of(forward_of(model, tokens=128)).mlir_module()
        monkeypatch.setitem(lightning.lightning_kernel.FASTER_FROM, "TPU v5 lite", 1)
        monkeypatch.setattr(lightning.lightning_kernel, "MIN_PROGRAMS", 1)
        assert lightning.choose((1, 128, 2, 128), jnp.bfloat16).name == "kernel"
        with portable_forms():
            assert lightning.choose((1, 128, 2, 128), jnp.bfloat16).name == "blockwise"
    assert set(re.findall(r"custom_call @(\w+)", text)) == {"shape_assertion"}


def test_portable_forms_are_kept_apart_from_what_is_traced_for_a_device():
    traced = jax.jit(lambda: 1 if target_platform() == "cpu" else 2)
    with jax.sharding.use_abstract_mesh(TPU):
        assert (target_platform(), int(traced())) == ("tpu", 2)
        with portable_forms():
            assert (target_platform(), int(traced())) == ("cpu", 1)
        assert (target_platform(), int(traced())) == ("tpu", 2)


def test_a_network_can_be_exported_by_hand():
    """Where it was formatted, the size of the batch was taken for a number."""
    network = forward_of().experiment.network
    (batch,) = jax.export.symbolic_shape("batch")
    inputs = jax.ShapeDtypeStruct((batch, TOKENS), jnp.float32)
    exported = jax.export.export(jax.jit(network.apply))(*network.shapes, inputs)
    assert str(exported.out_avals[0].shape[0]) == "batch"


@pytest.mark.parametrize(
    ("hook", "name"),
    [
        (lambda z: jax.debug.print("{}", z[0, 0, 0, 0]), r"debug_(print|callback)"),
        (lambda z: jax.pure_callback(lambda x: x, jax.ShapeDtypeStruct(z.shape, z.dtype), z), "pure_callback"),
    ],
)
def test_a_model_that_calls_python_is_refused(hook, name):
    forward = forward_of()
    hooked = forward.experiment.network.with_hooks({"blocks.0.attention.z": hook})
    experiment = type(forward.experiment)(**(vars(forward.experiment) | {"network": hooked}))
    with pytest.raises(ConfigError, match=rf"this model calls Python \({name}\), which a file cannot do"):
        stablehlo.encode(Forward(experiment, forward.params, forward.model_state))


def test_a_part_that_needs_the_size_of_the_batch_is_refused():
    forward = forward_of()
    hooked = forward.experiment.network.with_hooks({"blocks.0.output": lambda y: y * len(y)})
    experiment = type(forward.experiment)(**(vars(forward.experiment) | {"network": hooked}))
    with pytest.raises(ConfigError, match=r"cannot become a program for cpu, cuda, tpu with a batch of any size: \w+"):
        stablehlo.encode(Forward(experiment, forward.params, forward.model_state))


def test_parameters_that_no_file_holds_are_refused(monkeypatch):
    monkeypatch.setattr(stablehlo, "MOST_BYTES", 1000)
    with pytest.raises(ConfigError, match=r"holds at most 1,000 bytes of parameters, not \d,\d+; choose safetensors"):
        stablehlo.encode(forward_of())

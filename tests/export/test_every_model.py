"""Every recipe, part and pretrained family as files of ONNX and StableHLO, and what docs/export.md says of them.

`make test-slow` exports and runs each; here a fast test holds the table against what there is.
"""

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab import load_pretrained, registry
from flaxformer_lab.command_line import load_config
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.export.formats import FORMATS
from flaxformer_lab.export.forward import Forward, by_name
from flaxformer_lab.export.onnx_int8 import quantise
from flaxformer_lab.training.evaluation import first_examples
from flaxformer_lab.training.experiment import make_experiment
from tests.export.test_any_batch import IMAGES, TABLE, cases, forward_of, is_transformer, name_of
from tests.pretrained_folders import GOLDENS, read_golden, write_golden

pytest.importorskip("onnxruntime")
ROOT = Path(__file__).parents[2]
RECIPES = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "configs").rglob("*.py")
    if "ablations" not in path.parts and path.stem != "fine_tuning"  # whose models are those of PRETRAINED
)
PRETRAINED = sorted(
    path.stem.removeprefix("parity_")
    for path in GOLDENS.glob("parity_*.safetensors")
    if "resnet" not in path.stem  # which the task `pretrained` does not take
)
# Data that no package has.
FACTS = {"configs/fashion_mnist.py": {"image_shape": [28, 28, 1], "num_classes": 10}}
EXAMPLES = 4
# Parts that no recipe has.
VARIANTS = [
    ("configs/tables.py", ["task.numbers=piecewise"]),
    ("configs/tables.py", ["task.numbers=periodic", "task.members=4", "task.missing=indicator"]),
    ("configs/digits.py", ["task.stem=convolutions"]),
    ("configs/digits.py", ["task.stem=pooling", "task.patch_size=4"]),
    ("configs/digits.py", ["task.pooling=class_token", "model.position=sinusoidal"]),
    ("configs/speeches.py", ["model.position=rotary"]),
    ("configs/forecasters/fedformer.py", ["model.attention.kind=wavelet", "model.attention.mix_axes=false"]),
    ("configs/forecasters/informer.py", ["model.attention.kind=softmax", "model.attention.mix_axes=false"]),
]


def table_of_the_page():
    """By each `name` in the first column of the table in docs/export.md: what the other columns say."""
    page = (ROOT / "docs" / "export.md").read_text()
    rows = re.search(r"## What can be exported\n.*?\n\|[- |]+\|\n(.*?)\n\n", page, re.DOTALL)[1].splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {
        name: dict(zip(("stablehlo", "onnx", "int8"), rest, strict=True))
        for names, *rest in cells
        for name in re.findall("`(.*?)`", names)
    }


def test_the_table_has_every_recipe_attention_kind_and_model():
    named = {*RECIPES, *registry.names("attention"), *registry.names("model"), *map(architecture_of, PRETRAINED)}
    assert sorted(table_of_the_page()) == sorted(named)


def architecture_of(golden):
    return read_golden(golden)[2]["architectures"][0]


def drawn(forward):
    """Weights of which none is 0 or 1, near those that a network starts with."""
    rng = np.random.default_rng(0)
    experiment = forward.experiment
    params, state = jax.device_get(jax.jit(experiment.network.init)(jax.random.key(0)))

    def moved(leaf):
        return (leaf + 0.1 * rng.normal(size=leaf.shape)).astype(leaf.dtype) if leaf.dtype.kind == "f" else leaf

    state = jax.tree.map(lambda leaf: np.abs(moved(leaf)) + 0.1 if leaf.dtype.kind == "f" else leaf, state)
    return dataclasses.replace(forward, params=jax.tree.map(moved, params), model_state=state)


def arrays_for(spec):
    """Random inputs."""
    rng = np.random.default_rng(1)

    def array(like):
        shape = (EXAMPLES, *like.shape[1:])
        if like.dtype == bool:
            return np.arange(shape[1]) < rng.integers(1, shape[1] + 1, (EXAMPLES, *(1,) * (len(shape) - 1)))
        floats = jnp.issubdtype(like.dtype, jnp.floating)
        return (rng.normal(size=shape) if floats else rng.integers(0, 3, shape)).astype(like.dtype)

    return {name: array(like) for name, like in spec.items()}


def check_exports(forward, arrays, folder, *, ranked=False):
    """Files of both formats compute what the run does, for one example and for three; one of weights is read back.

    ranked: outputs come in the order of scores, of which two may be equal up to rounding: compared as sets.
    Returns "yes", or why a file is refused, by format.
    """
    found, computed, weights = {}, {}, folder / "model.safetensors"
    weights.write_bytes(FORMATS["safetensors"].encode(forward))
    assert FORMATS["safetensors"].read(weights)[0] == forward.spec
    parts = [{name: array[rows] for name, array in arrays.items()} for rows in (slice(0, 1), slice(1, EXAMPLES))]
    for format in ("stablehlo", "onnx"):
        chosen = FORMATS[format]
        path = folder / f"model{chosen.suffix}"
        try:
            path.write_bytes(chosen.encode(forward))
        except ConfigError as error:
            found[format] = str(error)
            continue
        found[format] = "yes"
        _, function = chosen.read(path)
        # An ONNX file computes in float32; as StableHLO a model of bfloat16 rounds as the run does.
        reference = forward.in_float32 if chosen.float32 else forward
        if id(reference) not in computed:
            run = jax.jit(lambda variables, arrays, run=reference: dataclasses.replace(run, **variables)(**arrays))
            variables = {"params": forward.params, "model_state": forward.model_state}
            computed[id(reference)] = [jax.device_get(run(variables, some)) for some in parts]
        scale = 1e-4 if reference.in_float32 is reference else 2e-2
        for some, expected in zip(parts, computed[id(reference)], strict=True):
            outputs, expected = (by_name(jax.device_get(each), "outputs") for each in (function(**some), expected))
            assert outputs.keys() == expected.keys()
            for name, array in expected.items():
                largest = np.max(np.abs(array), initial=1, where=np.isfinite(array))
                both = [np.sort(each, axis=1) if ranked else each for each in (outputs[name], array)]
                np.testing.assert_allclose(*both, rtol=0, atol=scale * largest, err_msg=name)
    if found["onnx"] == "yes":
        try:
            quantise((folder / "model.onnx").read_bytes(), None)
            found["int8"] = "yes"
        except ConfigError as error:
            found["int8"] = str(error)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "knobs"), [*((recipe, []) for recipe in RECIPES), *VARIANTS], ids=str)
def test_each_recipe(recipe, knobs, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load_config(recipe, [f"--config.{knob}" for knob in knobs])
    experiment = make_experiment(config, FACTS.get(recipe))
    forward = drawn(Forward(experiment, None, None))
    if recipe in FACTS:
        arrays = arrays_for(forward.spec)
    else:
        stored, prepared = first_examples(experiment, "validation", EXAMPLES)
        masks = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, bool), prepared.get("valid"))
        forward = dataclasses.replace(forward, valid=masks)
        arrays = {name: np.asarray(array) for name, array in forward.arrays_of(stored, prepared).items()}
    found = check_exports(forward, arrays, tmp_path, ranked=config.task.name == "scenes")
    says = table_of_the_page()[recipe]
    assert {format: "yes" if answer == "yes" else "no" for format, answer in found.items()} == says, found


@pytest.mark.slow
@pytest.mark.parametrize("model", list(cases()), ids=name_of)
def test_each_part(model, tmp_path):
    """Tiny, and masked where it is a Transformer."""
    needs_grid = registry.ask("model", model.get("name", "transformer"), "needs_grid") is True
    forward = drawn(forward_of(model, IMAGES if needs_grid else TABLE, masked=is_transformer(model)))
    found = check_exports(forward, arrays_for(forward.spec), tmp_path)
    name = model["attention"]["kind"] if "kind" in model.get("attention", {}) else model.get("name", "transformer")
    says = table_of_the_page()[name]
    assert (found["stablehlo"], found["onnx"]) == (says["stablehlo"], says["onnx"]) == ("yes", "yes")


@pytest.mark.slow
@pytest.mark.parametrize("name", PRETRAINED)
def test_each_pretrained_family(name, tmp_path):
    run = load_pretrained(write_golden(tmp_path / name, name, tokenizer=False))
    forward = Forward(run.experiment, *jax.device_get((run.params, run.state.model_state)))
    found = check_exports(forward, arrays_for(forward.spec), tmp_path)
    says = table_of_the_page()[architecture_of(name)]
    assert (found["stablehlo"], found["onnx"]) == (says["stablehlo"], says["onnx"]) == ("yes", "yes")

"""What the tests of training share: tiny configs, and tasks with networks small enough to compile in no time."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxformer_lab.config import parse_config
from flaxformer_lab.functional.dropout import dropout
from flaxformer_lab.models.network import PureNetwork
from flaxformer_lab.parsing import override
from flaxformer_lab.task_config import ImageClassificationConfig, LanguageModellingConfig
from flaxformer_lab.tasks import Task, make_task
from flaxformer_lab.training import loop, optimizer, programs
from flaxformer_lab.training.experiment import Experiment
from flaxformer_lab.training.state import State, initial_state
from flaxformer_lab.training.step import make_evaluation_step, make_train_step

SYMBOLS = "abcdefghijk"

# Embedding and head alone, on real digits.
PLAIN = {
    "seed": 3,
    "task": {"name": "image_classification", "dataset": "lab_digits", "patch_size": 4},
    "model": {"width": 8, "depth": 0},
    "optimizer": {"name": "sgd", "learning_rate": 0.1, "schedule": "constant"},
    "training": {
        "steps": 12,
        "batch_size": 16,
        "evaluate_every": 4,
        "evaluate_batch_size": 64,
        "checkpoint_every": 4,
        "steps_per_call": 2,
        "keep_last": 10,
    },
    "parallelism": {"strategy": "single"},
}

# Everything that draws random numbers or keeps a state of its own.
RICH = {
    "seed": 5,
    "task": {"name": "image_classification", "dataset": "lab_digits", "patch_size": 4, "shift": 1},
    # Without biases: that of a key has no gradient but rounding, which Adam magnifies to a whole update.
    "model": {
        "width": 8,
        "depth": 1,
        "attention": {"num_heads": 2},
        "ffn": {"expansion": 2.0},
        "bias": False,
        "dropout": 0.2,
    },
    "optimizer": {
        "name": "muon",
        "learning_rate": 0.01,
        "schedule": "cosine",
        "warmup_steps": 5,
        "weight_decay": 0.1,
        "clip_norm": 1.0,
    },
    "training": {
        "steps": 40,
        "batch_size": 16,
        "accumulate": 2,
        "evaluate_every": 10,
        "evaluate_batch_size": 64,
        "checkpoint_every": 10,
        "steps_per_call": 5,
        "keep_last": 10,
    },
    "parallelism": {"strategy": "single"},
}


@pytest.fixture(scope="module", autouse=True)
def data(decoded_once):
    """Most tests here train on the same digits."""


@pytest.fixture(scope="module")
def compiled_once() -> Iterator[None]:
    """Runs that compile the same share it: updates, evaluation and first state do not depend on all of a config."""
    made: dict[tuple, Any] = {}
    originals = {name: getattr(loop, name) for name in ("make_run_steps", "make_evaluate", "first_state")}

    def once(name: str, experiment: Experiment, make: Callable) -> Any:
        config = experiment.config
        free = {"evaluate_every": 1, "checkpoint_every": 1, "keep_last": 1, "keep_best": 1}
        free |= {"steps": 1} if config.optimizer.schedule == "constant" else {}
        config = dataclasses.replace(config, training=dataclasses.replace(config.training, **free))
        key = name, repr(config), optimizer.make_schedule, programs.make_train_step  # which some tests replace
        if key not in made:
            made[key] = make()
        return made[key]

    def make_run_steps(experiment: Experiment, examples: Any) -> Any:
        return once("updates", experiment, lambda: originals["make_run_steps"](experiment, examples))

    def make_evaluate(experiment: Experiment) -> Any:
        return once("evaluation", experiment, lambda: originals["make_evaluate"](experiment))

    def first_state(experiment: Experiment, checkpoints: Any, initial: Any = None) -> Any:
        begin = lambda: originals["first_state"](experiment, checkpoints, initial)  # noqa: E731
        if checkpoints.steps or initial is not None:
            return begin()
        state = once("first state", experiment, lambda: jax.device_get(begin()[0]))
        return jax.device_put(jax.tree.map(np.copy, state), experiment.layout), []  # a copy, which will be donated

    with pytest.MonkeyPatch.context() as patch:
        for replacement in (make_run_steps, make_evaluate, first_state):
            patch.setattr(loop, replacement.__name__, replacement)
        yield


def changed(tree: dict, changes: dict):
    """The config of a mapping with some of its dotted keys set."""
    for key, value in changes.items():
        tree = override(tree, key, value)
    return parse_config(tree)


@pytest.fixture(scope="session")
def plain() -> Callable:
    """The function that makes the smallest config, with changes."""
    return lambda changes={}: changed(PLAIN, changes)


@pytest.fixture(scope="session")
def rich() -> Callable:
    """The function that makes a config with dropout, moved images, Muon, warm-up and accumulation, with changes."""
    return lambda changes={}: changed(RICH, changes)


def linear_network(features: int, outputs: int, rate: float = 0.0) -> PureNetwork:
    """flatten, dropout, x W + b: small enough to be worked out by hand."""

    def init(key):
        kernel = jax.random.normal(key, (features, outputs)) / features**0.5
        return {"head": {"kernel": kernel, "bias": jnp.zeros(outputs)}}, {}

    def apply(params, model_state, inputs, *, keys=None, **_):
        x = inputs.reshape(len(inputs), -1)
        x = dropout(x, keys, rate) if keys is not None and rate else x
        return x @ params["head"]["kernel"] + params["head"]["bias"][None], model_state

    def embed(params, model_state, inputs):
        return inputs.reshape(len(inputs), 1, -1)

    return PureNetwork(init, jax.eval_shape(init, jax.random.key(0)), apply, embed, unchanged)


def table_network(symbols: int, width: int, outputs: int, rate: float = 0.0) -> PureNetwork:
    """A symbol's vector, dropout, head: logits for every token."""

    def init(key):
        first, second = jax.random.split(key)
        table = jax.random.normal(first, (symbols, width))
        return {"table": table, "head": {"kernel": jax.random.normal(second, (width, outputs)) / width**0.5}}, {}

    def apply(params, model_state, inputs, *, keys=None, **_):
        x = params["table"][inputs]
        x = dropout(x, keys, rate) if keys is not None and rate else x
        return x @ params["head"]["kernel"], model_state

    def embed(params, model_state, inputs):
        return params["table"][inputs]

    return PureNetwork(init, jax.eval_shape(init, jax.random.key(0)), apply, embed, unchanged)


def unchanged(params, model_state, vectors):
    """A body without any layer."""
    return vectors


@dataclass(frozen=True, eq=False)
class Case:
    """A task, a network for it, and a function that draws batches: `draw(rng, size, weight)`."""

    task: Task
    network: PureNetwork
    draw: Callable[..., dict[str, np.ndarray]]
    optimizer: optax.GradientTransformation

    def start(self) -> State:
        """A fresh state."""
        return jax.jit(lambda: initial_state(self.network, self.optimizer, 0))()

    @functools.cached_property
    def params(self) -> Any:
        return self.start().params

    @functools.cache  # noqa: B019 a case lives as long as the tests
    def update(self, seed: int = 0, accumulate: int = 1) -> Callable:
        """The compiled train step."""
        options = {"seed": seed, "accumulate": accumulate}
        return jax.jit(make_train_step(self.task, self.network, self.optimizer, **options))

    @functools.cache  # noqa: B019
    def evaluate(self, seed: int = 0) -> Callable:
        """The compiled evaluation step."""
        return jax.jit(make_evaluation_step(self.task, self.network, seed=seed))


def image_case(shift: int = 0, rate: float = 0.0) -> Case:
    """4 x 4 images of 5 classes."""
    task = make_task(ImageClassificationConfig(shift=shift), {"image_shape": [4, 4, 1], "num_classes": 5})

    def draw(rng: np.random.Generator, size: int, weight: np.ndarray | None = None):
        return {
            "image": rng.integers(0, 256, (size, 4, 4, 1), np.uint8),
            "label": rng.integers(0, 5, size, np.int32),
            "row": np.arange(size, dtype=np.int32),
            "example_weight": np.ones(size, np.float32) if weight is None else weight,
        }

    return Case(task, linear_network(16, 5, rate), draw, optax.sgd(0.2, momentum=0.5))


def text_case(objective: str, rate: float = 0.0) -> Case:
    """12 symbols in windows of 6."""
    config = LanguageModellingConfig(sequence_length=6, objective=objective, mask_rate=0.4)
    task = make_task(config, {"num_symbols": 12, "symbols": "\N{REPLACEMENT CHARACTER}" + SYMBOLS})

    def draw(rng: np.random.Generator, size: int, weight: np.ndarray | None = None):
        symbols = rng.geometric(0.5, (size, 6 + (objective == "next_token"))) - 1  # some more frequent than others
        return {
            "symbols": np.minimum(symbols, 11).astype(np.uint8),
            "loss_weights": (rng.random((size, 6)) < 0.8).astype(np.float32),
            "row": np.arange(size, dtype=np.int32),
            "example_weight": np.ones(size, np.float32) if weight is None else weight,
        }

    return Case(task, table_network(13, 7, 12, rate), draw, optax.sgd(0.5, momentum=0.5))


@functools.cache
def make_case(name: str) -> Case:
    """A small case by name, the same one each time, so that it is compiled once."""
    return {
        "images": lambda: image_case(),
        "moved images with dropout": lambda: image_case(shift=1, rate=0.3),
        "next token": lambda: text_case("next_token"),
        "masked with dropout": lambda: text_case("masked", rate=0.3),
    }[name]()


@pytest.fixture(params=["images", "moved images with dropout", "next token", "masked with dropout"])
def case(request) -> Case:
    """Each small case in turn."""
    return make_case(request.param)


@pytest.fixture(scope="session", name="make_case")
def make_case_fixture() -> Callable[[str], Case]:
    """The function that gives one small case by name."""
    return make_case


def leaves(tree) -> dict[str, np.ndarray]:
    """{path: array on the host} of every leaf."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.array(jax.device_get(leaf)) for path, leaf in found}


@pytest.fixture(scope="session")
def assert_same():
    """The function that finds two pytrees equal, bit for bit."""

    def check(one, other):
        one, other = leaves(one), leaves(other)
        assert one.keys() == other.keys()
        for path, leaf in one.items():
            assert leaf.dtype == other[path].dtype and leaf.shape == other[path].shape, path
            assert leaf.tobytes() == other[path].tobytes(), f"{path} differs"

    return check


@pytest.fixture(scope="session")
def assert_close():
    """The function that finds two pytrees equal up to an absolute error."""

    def check(one, other, atol):
        one, other = leaves(one), leaves(other)
        assert one.keys() == other.keys()
        for path, leaf in one.items():
            np.testing.assert_allclose(leaf, other[path], atol=atol, rtol=0, err_msg=path)

    return check

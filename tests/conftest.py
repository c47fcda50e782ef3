"""What all tests share: four CPU devices, strict broadcasting, a cache of compiled programs, and small models."""

import functools
import gc
import json
import math
import os
import runpy
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from absl import flags
from flax import nnx

from flaxformer_lab import registry
from flaxformer_lab.cache import cache_folder
from flaxformer_lab.compilation import compile_small_programs_briefly
from flaxformer_lab.config import parse_config
from flaxformer_lab.functional.trees import leaf_paths
from flaxformer_lab.models.bodies import make_body
from flaxformer_lab.models.transformer import Transformer
from flaxformer_lab.modules.intermediates import Intermediates
from flaxformer_lab.modules.rngs import AbstractRngs
from flaxformer_lab.parsing import override

# In the environment too, for the commands that tests start; JAX has read it already here.
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # also where a plugin for another device is installed
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_folder("test-compiled")))
jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Here and in the commands that tests start: all of it is small.
compile_small_programs_briefly()
os.environ.setdefault("FLAXFORMER_LAB_COMPILE_LEVEL", "0")

# Tracing leaves many objects that live on; looking through them all again and again would take a good part of the time.
gc.freeze()
gc.set_threshold(100_000, 50, 50)

TOKENS, WIDTH = 4, 8
DECODED: dict[tuple[str, str], dict[str, np.ndarray]] = {}  # what `decoded_once` remembers


# A file beside this one, which is no package.
reads_are_transfers = runpy.run_path(str(Path(__file__).with_name("accelerator.py")))["reads_are_transfers"]


@pytest.fixture(scope="module", autouse=True)
def collect_only_what_is_new() -> Iterator[None]:
    """A collection that a test, the lab or pytest asks for looks at one module's objects, not at all that exist."""
    yield
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def accelerator() -> Iterator[None]:
    """A hidden read of an array fails in guarded regions, as it does on accelerators."""
    assert jax.local_device_count() == 4  # asked now, before a command that a test runs here sets another number
    with reads_are_transfers():
        yield


@dataclass(frozen=True)
class Drawn:
    """A module as a pure function, with parameters that are all drawn: no zero or one hides a part."""

    graph: nnx.GraphDef
    params: Any

    def __call__(self, x: np.ndarray, **options: Any) -> np.ndarray:
        """The output for NumPy's arrays as one of NumPy's, so that a test's own arithmetic is not compiled."""
        return np.asarray(self.apply(self.params, jnp.asarray(x), **options))

    def apply(self, params: Any, x: jax.Array, **options: Any) -> jax.Array:
        return nnx.merge(self.graph, params)(x, **options)

    @property
    def module(self) -> nnx.Module:
        return nnx.merge(self.graph, self.params)

    @property
    def exact(self) -> dict[str, np.ndarray]:
        """The parameters by dotted name, in float64."""
        return {name: np.asarray(leaf, np.float64) for name, leaf in leaf_paths(self.params).items()}

    def intermediates(self, x: np.ndarray) -> dict[str, np.ndarray]:
        intermediates = Intermediates()
        self(x, intermediates=intermediates)
        return {name: np.asarray(value) for name, value in intermediates.values.items()}

    def jacobian(self, x: np.ndarray, **options: Any) -> np.ndarray:
        """d output[t, c] / d input[s, d] of the first example: [t, c, s, d]."""
        return np.asarray(jax.jit(jax.jacrev(lambda one: self.apply(self.params, one[None], **options)[0]))(x[0]))


def draw(abstract: Any, scale: float = 0.5) -> Any:
    """Values for a tree of shapes; leaves of one path and shape are the same in every tree."""

    def leaf(path: tuple, shape: jax.ShapeDtypeStruct) -> jax.Array:
        if jnp.issubdtype(shape.dtype, jnp.integer):  # numbers of modes
            return jnp.arange(math.prod(shape.shape), dtype=shape.dtype).reshape(shape.shape)
        generator = np.random.default_rng(zlib.crc32(jax.tree_util.keystr(path).encode()))
        return jnp.asarray(scale * generator.normal(size=shape.shape), shape.dtype)

    return jax.tree_util.tree_map_with_path(leaf, abstract)


def draw_module(build: Callable[[], nnx.Module]) -> Drawn:
    """The module that `build` makes, with drawn parameters."""
    graph, abstract = nnx.split(nnx.eval_shape(build))
    return Drawn(graph, draw(nnx.to_pure_dict(abstract)))


@functools.cache
def _transformer(knobs: str) -> Drawn:
    tree: dict[str, Any] = {"width": WIDTH, "depth": 1, "attention": {"num_heads": 2}, "ffn": {"expansion": 2.0}}
    for key, value in json.loads(knobs).items():
        tree = override(tree, key, value)
    config = parse_config({"model": tree}).model
    return draw_module(lambda: Transformer(config, grid=(TOKENS,), rngs=AbstractRngs()))


@functools.cache
def _body(knobs: str, grid: tuple[int, ...]) -> Drawn:
    tree: dict[str, Any] = {"width": WIDTH}
    for key, value in json.loads(knobs).items():
        tree = override(tree, key, value)
    config = parse_config({"model": tree}).model
    return draw_module(lambda: make_body(config, grid=grid, rngs=AbstractRngs()))


@pytest.fixture(scope="session", name="draw")
def draw_fixture() -> Callable[..., Any]:
    """The function that draws values for a tree of shapes."""
    return draw


@pytest.fixture(scope="session", name="draw_module")
def draw_module_fixture() -> Callable[..., Drawn]:
    """The function that makes a module with drawn parameters."""
    return draw_module


@pytest.fixture(scope="session")
def transformer() -> Callable[..., Drawn]:
    """The function that makes a small Transformer from knobs: `transformer({"ffn.kind": "off"})`."""

    def make(knobs: Mapping[str, Any] | None = None) -> Drawn:
        return _transformer(json.dumps(knobs or {}))

    return make


@pytest.fixture(scope="session")
def body() -> Callable[..., Drawn]:
    """The function that makes any model between embedding and head: `body({"name": "lstm", "depth": 1}, grid=(4,))`."""

    def make(knobs: Mapping[str, Any], grid: tuple[int, ...] = (TOKENS,)) -> Drawn:
        return _body(json.dumps(knobs), grid)

    return make


@pytest.fixture(scope="session")
def stream() -> np.ndarray:
    """Token vectors [2, 4, 8]."""
    return np.random.default_rng(0).normal(size=(2, TOKENS, WIDTH)).astype(np.float32)


@pytest.fixture
def unchecked(monkeypatch) -> None:
    """Annotations are not checked: for a test of what the lab says of arguments that contradict them."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="module")
def decoded_once() -> Iterator[None]:
    """Each split is decoded once in this process; who loads it gets a copy."""
    from flaxformer_lab.data.source import Source

    whole = Source.load

    def load(self: Source) -> dict[str, np.ndarray]:
        place = (str(self.info.data_dir), self.name)
        if place not in DECODED:
            DECODED[place] = whole(self)
        return {name: array.copy() for name, array in DECODED[place].items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Source, "load", load)
        yield


@pytest.fixture
def own_parts(monkeypatch) -> Iterator[Callable[[], None]]:
    """What a test registers and imports is gone after it, and when it calls this."""
    parts, imported, modules = registry._PARTS, registry._IMPORTED, set(sys.modules)

    def forget() -> None:
        monkeypatch.setattr(registry, "_PARTS", {kind: dict(named) for kind, named in parts.items()})
        monkeypatch.setattr(registry, "_IMPORTED", dict(imported))
        for name in set(sys.modules) - modules:
            if name.startswith("imported_parts_"):
                del sys.modules[name]

    forget()
    yield forget
    forget()


@pytest.fixture
def command_texts(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """The function that runs `python -m MODULE ARGUMENTS` in this process: exit code, what it wrote, its errors."""

    def call(module: str, *arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [module.rpartition(".")[2], *map(str, arguments)])
        monkeypatch.delitem(sys.modules, module, raising=False)
        before = set(flags.FLAGS)
        code = 0
        try:
            runpy.run_module(module, run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
        finally:
            for name in set(flags.FLAGS) - before:
                # Those of a library stay, as it stays imported.
                if flags.FLAGS.find_module_defining_flag(name) == sys.argv[0]:
                    delattr(flags.FLAGS, name)
            flags.FLAGS.unparse_flags()
            flags.FLAGS["import"].unparse()
            flags.FLAGS["print_config"].unparse()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def run_command(command_texts) -> Callable[..., tuple[int, list[str], list[str]]]:
    """As `command_texts`, in lines."""

    def call(module: str, *arguments: Any) -> tuple[int, list[str], list[str]]:
        code, out, err = command_texts(module, *arguments)
        return code, out.splitlines(), err.splitlines()

    return call

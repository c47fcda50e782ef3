"""The package as a whole: cheap to import, and built in layers."""

import ast
import graphlib
import importlib
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import flaxformer_lab

PACKAGE = Path(flaxformer_lab.__file__).parent

# A file imports only from its own layer or from below. Files beside these folders are entry points, on the
# highest layer, as is the `__main__` of a folder.
LAYERS = {
    "parsing": 0,
    "registry": 0,
    "model_config": 0,
    "task_config": 0,
    "errors": 0,
    "cache": 0,
    "locking": 0,
    "literal_paths": 0,
    "knobs": 0,
    "version": 0,
    "compilation": 0,
    "functional": 0,
    "modules": 1,
    "models": 2,
    "data": 3,
    "tasks": 3,
    "config": 3,
    "training": 4,
    "analysis": 5,
    "ablation": 5,
    "export": 5,
    "report": 6,
}
TOP = 7


def dotted(path):
    """The module's name inside the package: `models.network`, `tasks`, and an empty one for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {dotted(path): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def layer(name):
    return TOP if name.endswith("__main__") else LAYERS.get(name.partition(".")[0], TOP)


def imports(tree, *, lazy):
    """The absolute names that a file imports; `lazy` counts those inside functions and for type checkers too."""
    for node in ast.walk(tree) if lazy else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(tree, *, lazy):
    """The modules of the package that a file imports."""
    for name in imports(tree, lazy=lazy):
        head, _, rest = name.partition(".")
        if head != "flaxformer_lab":
            continue
        while rest and rest not in FILES:
            rest = rest.rpartition(".")[0]
        yield rest


def run(script):
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    options = {"env": environment, "capture_output": True, "text": True, "timeout": 300, "check": True}
    return json.loads(subprocess.run([sys.executable, "-c", script], **options).stdout)


def test_each_folder_has_a_layer():
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert folders <= set(LAYERS)
    assert {"functional", "modules", "models", "data", "tasks", "training", "ablation", "report"} <= folders


@pytest.mark.parametrize("name", FILES)
def test_a_file_imports_from_its_own_layer_or_below(name):
    higher = {other for other in own_imports(FILES[name], lazy=True) if layer(other) > layer(name)}
    assert not higher


def test_contributing_names_every_file_and_folder_in_its_layer():
    rows = dict(re.findall(r"^\| (\d) \| (.*?) \|", (PACKAGE.parent / "CONTRIBUTING.md").read_text(), re.MULTILINE))
    for path in PACKAGE.iterdir():
        if path.suffix == ".py" and path.stem != "__init__":
            assert f"`{path.name}`" in rows[str(layer(path.stem))], path.name
        elif (path / "__init__.py").exists():
            assert f"`{path.name}/`" in rows[str(layer(path.name))], path.name


def test_nothing_is_imported_in_a_circle():
    graph = {name: set(own_imports(tree, lazy=False)) for name, tree in FILES.items()}
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert set(order) == set(FILES)


@pytest.mark.parametrize("name", [name for name in FILES if name.partition(".")[0] == "functional"])
def test_the_functional_core_knows_neither_config_nor_flax(name):
    assert all(other.partition(".")[0] == "functional" for other in own_imports(FILES[name], lazy=True))
    outside = {other.partition(".")[0] for other in imports(FILES[name], lazy=True)} - {"flaxformer_lab"}
    allowed = {"jax", "jaxtyping", "collections", "dataclasses", "functools", "itertools", "math", "typing"}
    # tokamax is an extra, imported by the one function that uses it; metrics, quantiles of training rows, and matrices
    # that depend on shapes alone, are computed on the host.
    extra = {"functional.softmax_attention": {"tokamax"}}
    on_the_host = ("average_precision", "decomposition", "metrics", "quantiles", "structured", "wavelet")
    extra |= {f"functional.{name}": {"numpy"} for name in on_the_host}
    assert outside <= allowed | extra.get(name, set())


def test_flax_stays_where_networks_are_built():
    users = {
        name.partition(".")[0]
        for name, tree in FILES.items()
        if any(other.partition(".")[0] == "flax" for other in imports(tree, lazy=True))
    }
    assert users == {"modules", "models", "tasks"}


def test_the_checks_above_can_fail():
    """Reads the imports of files whose answer is known."""
    tree = ast.parse(
        "import flax\nfrom flaxformer_lab.config import Config\ndef f():\n    from flaxformer_lab import tasks"
    )
    assert list(imports(tree, lazy=False)) == ["flax", "flaxformer_lab.config.Config"]
    assert list(own_imports(tree, lazy=False)) == ["config"]
    assert list(own_imports(tree, lazy=True)) == ["config", "tasks"]
    assert layer("functional.linear") < layer("modules.block") < layer("models.network") < layer("tasks.task")
    assert layer("tasks") < layer("training.loop") < layer("ablation.variants") < layer("report.page")
    assert layer("report.page") < layer("evaluate") == layer("report.__main__") == layer("")


def test_importing_the_package_is_light():
    heavy = ("jax", "flax", "optax", "orbax", "tensorflow_datasets", "numpy")
    script = "import flaxformer_lab, sys, json; print(json.dumps([name for name in %r if name in sys.modules]))"
    assert run(script % (heavy,)) == []


def test_reading_a_config_asks_for_no_device():
    """Until then processes may join (`jax.distributed.initialize`), and a CPU may be shown as several devices."""
    script = (
        "import json; from jax._src import xla_bridge; from flaxformer_lab.command_line import load_config; "
        "load_config(%r, ['--config.seed=1'], ['ffn_off']); print(json.dumps(xla_bridge.backends_are_initialized()))"
    )
    assert run(script % str(PACKAGE.parent / "configs" / "digits.py")) is False


def test_what_the_package_exports():
    from flaxformer_lab.run import load_run

    assert flaxformer_lab.load_run is load_run
    exported = {name: getattr(flaxformer_lab, name) for name in flaxformer_lab.__all__}
    assert all(callable(value) for name, value in exported.items() if name not in ("VARIANTS", "__version__"))
    assert set(exported) <= set(dir(flaxformer_lab))
    lazily = {name for names in flaxformer_lab._MODULES.values() for name in names}
    assert lazily | {"__version__"} == set(exported)
    with pytest.raises(AttributeError, match="no attribute 'load_runs'"):
        _ = flaxformer_lab.load_runs
    assert (PACKAGE / "py.typed").exists()


@pytest.mark.parametrize("name", ["ablate", "evaluate", "measure", "train"])
def test_a_command_does_not_hide_the_function_of_its_name(name):
    """Importing a submodule would set it as the package's attribute, in whatever order names are imported."""
    assert name in FILES and name in flaxformer_lab.__all__
    function = getattr(flaxformer_lab, name)
    with pytest.raises(ImportError, match=f"python -m flaxformer_lab.{name}; in Python: from flaxformer_lab import"):
        importlib.import_module(f"flaxformer_lab.{name}")
    with pytest.raises(ImportError, match="is a command"):
        runpy.run_module(f"flaxformer_lab.{name}", run_name=f"flaxformer_lab.{name}")
    assert getattr(flaxformer_lab, name) is function and callable(function)
    assert not {other for tree in FILES.values() for other in own_imports(tree, lazy=True)} & {name}


def test_every_exported_name_that_is_a_file_too_is_such_a_command():
    assert {name for name in flaxformer_lab.__all__ if name in FILES} == {"ablate", "evaluate", "measure", "train"}


def test_no_file_imports_another_framework():
    for name, tree in FILES.items():
        outside = {other.partition(".")[0] for other in imports(tree, lazy=True)}
        assert not outside & {"tensorflow", "torch", "transformers"}, name
        # tensorboardX imports PyTorch where that is installed.
        assert not any(other.startswith("tensorboardX") for other in imports(tree, lazy=False)), name


def test_only_files_that_draw_import_matplotlib():
    drawing = {
        name
        for name, tree in FILES.items()
        if any(other.partition(".")[0] == "matplotlib" for other in imports(tree, lazy=False))
    }
    assert "analysis.figures" in drawing
    reached, waiting = set(), {"training.loop", "evaluate", "generate"}
    while waiting:
        reached |= waiting
        waiting = {other for name in waiting for other in own_imports(FILES[name], lazy=False)} - reached
    assert "training.step" in reached and not reached & drawing
    # Which would look for a screen.
    for name, tree in FILES.items():
        assert "matplotlib.pyplot" not in {other[:17] for other in imports(tree, lazy=True)}, name


def test_the_report_asks_the_task_what_it_is_judged_by():
    """No metric's name stands in the engine or in the report."""
    for name, tree in FILES.items():
        if name.partition(".")[0] in ("ablation", "report"):
            texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
            assert not texts & {"r2", "R2", "R²", "accuracy", "loss"}, name

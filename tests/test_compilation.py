"""Flags and options of XLA: only where they are known, and none in the environment of a process that may find a GPU."""

import importlib.metadata
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from flaxformer_lab import compilation

LEVEL, EMITTERS, SPLIT = (
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)


@pytest.fixture
def platforms():
    """The function that sets what JAX is told to look for, until the test ends."""
    before = jax.config.jax_platforms
    yield lambda names: jax.config.update("jax_platforms", names)
    jax.config.update("jax_platforms", before)


@pytest.fixture
def site(monkeypatch, platforms, tmp_path):
    """The only folder in which modules and packages are found; JAX is told of no platform."""
    platforms(None)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name in ("jax_plugins", "libtpu"):  # found once, and known by these names since
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name in ("TPU_LIBRARY_PATH", "PJRT_NAMES_AND_LIBRARY_PATHS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def briefly(monkeypatch):
    """The function that asks for brief compiling and returns all flags, given those before and jaxlib's version."""

    def flags(before="", version="0.12.0.1"):
        monkeypatch.setenv("XLA_FLAGS", before)
        monkeypatch.setattr(importlib.metadata, "version", {"jaxlib": version}.__getitem__)
        compilation.compile_small_programs_briefly()
        return os.environ["XLA_FLAGS"].split()

    return flags


@pytest.fixture
def target(monkeypatch):
    """The function that makes programs be meant for another platform."""

    def choose(name):
        monkeypatch.setattr("flaxformer_lab.functional.platform.target_platform", lambda: name)

    return choose


class Lowered:
    """Says with what options it was compiled."""

    def compile(self, compiler_options=None):
        return compiler_options


def start_jax(flags):
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    script = "import jax; print(jax.jit(lambda x: x + 1)(1))"
    return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300)


def test_the_tests_run_on_the_cpu_alone_under_all_flags_that_this_jaxlib_knows():
    old = importlib.metadata.version("jaxlib").startswith(("0.10.", "0.11.0"))
    expected = {LEVEL, SPLIT} | ({EMITTERS} if old else set())
    assert expected == set(os.environ["XLA_FLAGS"].split()) & set(compilation.BRIEFLY)
    assert {device.platform for device in jax.devices()} == {"cpu"}  # so JAX has started under them


@pytest.mark.parametrize("flag", [flag for flag in compilation.BRIEFLY if flag not in compilation._known_flags()])
def test_a_flag_that_is_left_out_would_end_the_process(flag):
    ended = start_jax(flag)
    assert ended.returncode and "Unknown flag" in ended.stderr


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("0.10.2", [LEVEL, EMITTERS, SPLIT]),
        ("0.11.0", [LEVEL, EMITTERS, SPLIT]),
        ("0.11.1", [LEVEL, SPLIT]),
        ("0.12.0.1", [LEVEL, SPLIT]),
        ("0.13.0.dev20270101", []),  # not tested yet
        ("1.0rc1", []),
    ],
)
def test_each_version_of_jaxlib_gets_the_flags_that_it_knows(version, expected, briefly):
    assert briefly(version=version) == expected


def test_flags_that_are_given_already_stay_as_they_are(briefly):
    given = "--xla_backend_optimization_level=2 --xla_dump_to=here"
    assert briefly(given) == [*given.split(), SPLIT]
    assert briefly(" ".join(briefly())) == [LEVEL, SPLIT]


@pytest.mark.parametrize("names", ["tpu,cpu", "cuda", "cpu,rocm"])
def test_no_flags_where_jax_is_told_of_another_platform(names, platforms, briefly):
    platforms(names)
    assert briefly("--xla_dump_to=here") == ["--xla_dump_to=here"]


def test_flags_where_no_plugin_is_installed(site, briefly):
    assert briefly() == [LEVEL, SPLIT]


@pytest.mark.parametrize("plugin", ["jax_plugins/xla_cuda13", "jax_plugins/other", "libtpu"])
def test_no_flags_where_a_plugin_may_have_a_device_unless_the_cpu_is_named(
    plugin, site, platforms, briefly, monkeypatch
):
    (site / plugin).mkdir(parents=True)
    (site / plugin / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.setattr(compilation, "DEVICE_FILES", dict.fromkeys(compilation.DEVICE_FILES, (str(site / "device*"),)))
    assert briefly() == ([] if plugin == "jax_plugins/other" else [LEVEL, SPLIT])
    (site / "device0").touch()
    assert briefly() == []
    platforms("cpu")
    assert briefly() == [LEVEL, SPLIT]


@pytest.mark.parametrize(("module", "expected"), [("jax_metal", []), ("jax_plugins.xla_cuda12", [LEVEL, SPLIT])])
def test_a_plugin_that_a_package_advertises_counts_too(module, expected, site, briefly, monkeypatch):
    monkeypatch.setattr(compilation, "DEVICE_FILES", {"xla_cuda": (str(site / "device*"),)})
    (site / "plugin-1.0.dist-info").mkdir()
    (site / "plugin-1.0.dist-info" / "entry_points.txt").write_text(f"[jax_plugins]\nplugin = {module}\n")
    assert briefly() == expected
    (site / "device0").touch()
    assert briefly() == []


@pytest.mark.parametrize("name", ["TPU_LIBRARY_PATH", "PJRT_NAMES_AND_LIBRARY_PATHS"])
def test_no_flags_where_the_environment_names_a_plugin(name, site, briefly, monkeypatch):
    monkeypatch.setenv(name, "/lib/one.so")
    assert briefly() == []


def test_options_that_xla_does_not_know_are_left_out():
    options = {"xla_backend_optimization_level": 1, "xla_no_such_option": True}
    assert compilation.known_options(options) == {"xla_backend_optimization_level": 1}


@pytest.mark.parametrize(("level", "highest", "expected"), [(1, None, 1), (0, "3", 0), (3, "2", 2)])
def test_a_program_for_the_cpu_is_compiled_at_its_level(level, highest, expected, monkeypatch):
    monkeypatch.delenv("FLAXFORMER_LAB_COMPILE_LEVEL")
    if highest:
        monkeypatch.setenv("FLAXFORMER_LAB_COMPILE_LEVEL", highest)
    options = compilation.compile_at(level, Lowered())
    assert options.pop("xla_backend_optimization_level") == expected
    known = EMITTERS in os.environ["XLA_FLAGS"]
    assert options == ({"xla_cpu_use_fusion_emitters": expected > 0} if known else {})
    double = compilation.compile_at(level, jax.jit(lambda x: 2 * x).lower(np.float32(0)))
    assert double(np.float32(3)) == 6


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_a_program_for_an_accelerator_is_compiled_with_all_optimisation(platform, target):
    target(platform)
    assert compilation.compile_at(0, Lowered()) is None


def test_few_rows_have_an_option_of_the_cpu_where_it_is_known(target, monkeypatch):
    assert compilation.for_few_rows() in (compilation.FEW_ROWS, None)
    monkeypatch.setattr(compilation, "FEW_ROWS", {"xla_backend_optimization_level": 3})
    assert compilation.for_few_rows() == {"xla_backend_optimization_level": 3}
    target("gpu")
    assert compilation.for_few_rows() is None
    target("cpu")
    monkeypatch.setattr(compilation, "FEW_ROWS", {"xla_no_such_option": ""})
    assert compilation.for_few_rows() is None


def test_a_system_that_restricts_no_process_gives_all_its_cores(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    monkeypatch.delattr(os, "sched_getaffinity")
    assert compilation.available_cores() == 7

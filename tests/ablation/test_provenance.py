"""Where a result comes from, in words that repeat."""

import subprocess
import sys
from importlib import metadata

import jax
import pytest

import flaxformer_lab
from flaxformer_lab.ablation import provenance
from flaxformer_lab.ablation.provenance import commit, describe_devices


def test_command_versions_and_device_are_named(monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["/some/where/ablate.py", "--config=a b.py", "--config.seeds=0,1", "--only=a", "--workdir=runs/x"]
    )
    monkeypatch.setattr(provenance, "commit", lambda: "")
    found = provenance.provenance("2 x cpu")
    assert found["command"] == "python -m flaxformer_lab.ablate '--config=a b.py' --config.seeds=0,1 --only=a"
    assert f"jax {jax.__version__}" in found["versions"] and found["device"] == "2 x cpu" and "commit" not in found
    assert describe_devices() == f"{len(jax.devices())} x cpu"


def test_a_package_that_is_on_the_path_uninstalled_has_a_version_too(monkeypatch):
    installed = metadata.version

    def version(name):
        if name == "flaxformer_lab":
            raise metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(metadata, "version", version)
    assert f", flaxformer_lab {flaxformer_lab.__version__}, jax " in provenance.provenance("2 x cpu")["versions"]


@pytest.fixture(autouse=True)
def without_a_named_commit(monkeypatch):
    monkeypatch.delenv("FLAXFORMER_LAB_COMMIT", raising=False)


def test_files_without_their_history_are_told_the_commit(monkeypatch):
    monkeypatch.setenv("FLAXFORMER_LAB_COMMIT", "0123456789ab")
    assert commit.__wrapped__() == "0123456789ab"


def test_the_commit_is_that_of_the_packages_own_checkout(monkeypatch, tmp_path):
    def git(*arguments):
        options = {"cwd": tmp_path, "check": True, "capture_output": True, "text": True}
        return subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], **options
        ).stdout.strip()

    package = tmp_path / "flaxformer_lab"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.setattr(provenance, "PACKAGE", package)
    git("init", "-q")
    assert commit.__wrapped__() == ""  # a folder of packages that stands inside another checkout
    git("add", "-A")
    git("commit", "-qm", "one")
    assert commit.__wrapped__() == git("rev-parse", "--short=12", "HEAD")
    (package / "__init__.py").write_text("# more")
    assert commit.__wrapped__().endswith("-dirty")

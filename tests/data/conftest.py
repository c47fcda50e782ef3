"""What the tests of the data share: prepared caches, empty ones, and a small data set of their own."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from flaxformer_lab import registry
from flaxformer_lab.cache import cache_folder
from flaxformer_lab.data.prepare import prepare

REPOSITORY = Path(__file__).parents[2]


class TinyShapes(tfds.core.GeneratorBasedBuilder):
    """A data set like many of TFDS: png images, labels, words and a list without fixed length; 40 examples a split."""

    VERSION = tfds.core.Version("1.2.0")
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name=name, description=name)
        for name in ("train-validation-test", "train-test", "train-validation", "train", "test")
    ]

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(4, 5, 3)),
                    "label": tfds.features.ClassLabel(num_classes=7),
                    "name": tfds.features.Text(),
                    "weights": tfds.features.Tensor(shape=(2,), dtype=np.float32),
                    "corners": tfds.features.Sequence(np.int64),
                    "objects": tfds.features.Sequence(
                        {"box": tfds.features.Tensor(shape=(2,), dtype=np.float32), "kind": np.int64}
                    ),
                    "scan": tfds.features.Image(shape=(None, None, 1)),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        names = self.builder_config.name.split("-")
        return {name: self._generate_examples(100 * place) for place, name in enumerate(names)}

    def _generate_examples(self, first):
        for index in range(first, first + 40):
            yield index, tiny_example(index)


def tiny_example(index: int) -> dict:
    """The example `index` of TinyShapes, made of nothing but its index."""
    return {
        "image": np.random.default_rng(index).integers(0, 256, (4, 5, 3), np.uint8),
        "label": index % 7,
        "name": f"shape {index} ±",
        "weights": np.array([index, -0.5], np.float32),
        "corners": np.arange(index % 3),
        "objects": [{"box": np.float32([number, index]), "kind": number} for number in range(index % 4)],
        "scan": np.full((1 + index % 2, 1 + index % 5, 1), 1 + index % 251, np.uint8),
    }


@pytest.fixture(scope="session", autouse=True)
def temporary_folder(tmp_path_factory):
    """TFDS leaves an empty folder for each builder whose data is not prepared yet: not in the system's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))
        yield


@pytest.fixture(scope="session", name="tiny_example")
def tiny_example_fixture():
    """The function that makes an example of TinyShapes."""
    return tiny_example


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Path:
    """A cache in which the data sets that ship with the lab are prepared; not to be written."""
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLAXFORMER_LAB_CACHE", str(folder))
        for name in registry.names("dataset"):
            prepare(name)
    return folder


@pytest.fixture
def prepared_cache(prepared, monkeypatch) -> Path:
    """The prepared cache, in use."""
    monkeypatch.setenv("FLAXFORMER_LAB_CACHE", str(prepared))
    return prepared


@pytest.fixture
def empty_cache(tmp_path, monkeypatch) -> Path:
    """A cache and a folder of TFDS in which nothing is."""
    monkeypatch.setenv("FLAXFORMER_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    return tmp_path / "cache"


@pytest.fixture
def no_network(monkeypatch) -> None:
    """A proxy at which nobody listens."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


def start_python(script: str, *prefix: str) -> subprocess.Popen:
    """Starts a Python process that can import the lab."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "TMPDIR": tempfile.gettempdir()}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*prefix, sys.executable, "-c", script], env=environment, **pipes)


@pytest.fixture(scope="session")
def start():
    """The function that starts another Python process."""
    return start_python


@pytest.fixture(scope="session")
def fashion_mnist_files() -> Path:
    """The four files of Fashion-MNIST as Debian ships them; kept from one test run to the next."""
    inside = "usr/share/datasets/fashion-mnist"
    kept = cache_folder("test") / "debian"
    for root in (Path("/"), kept):
        if (root / inside / "train-images-idx3-ubyte.gz").exists():
            return root / inside
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        pytest.skip("Debian's package dataset-fashion-mnist is not installed, and there is no apt-get to fetch it")
    kept.mkdir(parents=True, exist_ok=True)

    def call(*command: str) -> str:
        return subprocess.run(command, cwd=kept, check=True, capture_output=True, text=True, timeout=300).stdout

    try:
        if "Candidate: (none)" in (call("apt-cache", "policy", "dataset-fashion-mnist") or "Candidate: (none)"):
            call("apt-get", "update")
        call("apt-get", "-o", "Acquire::Retries=1", "download", "dataset-fashion-mnist")
        (package,) = kept.glob("dataset-fashion-mnist_*.deb")
        call("dpkg-deb", "-x", package.name, ".")
        package.unlink()
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        pytest.skip(f"Debian's package dataset-fashion-mnist cannot be fetched: {error}")
    return kept / inside


@pytest.fixture(scope="session")
def fashion_mnist_folder(fashion_mnist_files) -> Path:
    """A folder of TFDS whose download folder has those files under the names TFDS gives to what it downloads."""
    from tensorflow_datasets.core.download import resource

    folder = cache_folder("test") / "tfds"
    downloads = folder / "downloads" / "fashion_mnist"
    downloads.mkdir(parents=True, exist_ok=True)
    for url, info in tfds.builder_cls("fashion_mnist").url_infos.items():
        path = downloads / resource.get_dl_fname(url, info.checksum)
        if not path.exists():
            path.symlink_to(fashion_mnist_files / info.filename)
            about = {"path": path, "original_fname": info.filename, "url_info": info}
            resource.write_info_file(url=url, dataset_name="fashion_mnist", **about)
    return folder

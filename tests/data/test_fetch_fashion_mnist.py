"""tools/fetch_fashion_mnist.py: TFDS finds the placed files without a network; other files are refused."""

import gzip
import hashlib

import pytest
from tensorflow_datasets.core.download.download_manager import DownloadManager

from flaxformer_lab.errors import DataError
from tools import fetch_fashion_mnist as tool

CONTENT = {name: f"the content of {name}".encode() for name in tool.DIGESTS}
DIGESTS = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}


@pytest.fixture
def folder(tmp_path):
    for name, content in CONTENT.items():
        (tmp_path / name).write_bytes(gzip.compress(content))
    return tmp_path


def test_tfds_takes_the_placed_files_for_its_downloads(folder, tmp_path, monkeypatch):
    downloads = tmp_path / "downloads"
    placed = tool.place(folder, downloads, DIGESTS)
    manager = DownloadManager(
        download_dir=downloads, dataset_name=tool.FashionMNIST.name, url_infos=tool.FashionMNIST.url_infos
    )
    monkeypatch.setattr(manager._downloader, "download", lambda *_, **__: pytest.fail("it downloads"))
    for name, path in zip(CONTENT, placed, strict=True):
        assert str(manager.download(tool.FashionMNIST.URL + name)) == str(path)
        assert gzip.decompress(path.read_bytes()) == CONTENT[name]


def test_what_is_missing_or_something_else_is_refused_and_nothing_is_placed(folder, tmp_path):
    name = next(iter(CONTENT))
    (folder / name).write_bytes(gzip.compress(b"something else"))
    with pytest.raises(DataError, match=rf"{name} unpacks to sha256 .* install dataset-fashion-mnist again"):
        tool.place(folder, tmp_path / "downloads", DIGESTS)
    (folder / name).write_bytes(b"no archive")
    with pytest.raises(DataError, match=rf"{name} cannot be read .*--folder=DIR"):
        tool.place(folder, tmp_path / "downloads", DIGESTS)
    (folder / name).unlink()
    with pytest.raises(DataError, match="install Debian's package dataset-fashion-mnist"):
        tool.place(folder, tmp_path / "downloads", DIGESTS)
    assert not (tmp_path / "downloads").exists()

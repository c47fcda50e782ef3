"""Puts the installed files of Debian's package `dataset-fashion-mnist` where TFDS looks for its downloads.

    apt-get install dataset-fashion-mnist
    python tools/fetch_fashion_mnist.py [--folder=DIR]
    python train.py --config=configs/fashion_mnist.py     # prepares the data set from them, without a network

The package compresses the four files again, so that their checksums are not those that TFDS has recorded. This tool
compares what is inside of them instead, and says nothing about the packed files.
"""

import argparse
import gzip
import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path

from flaxformer_lab.data.prepare import tfds_folder
from flaxformer_lab.data.tensorflow_stand_in import tensorflow_stand_in
from flaxformer_lab.errors import DataError

with tensorflow_stand_in():
    from tensorflow_datasets.core.download import checksums, resource
    from tensorflow_datasets.image_classification.mnist import FashionMNIST

FOLDER = Path("/usr/share/datasets/fashion-mnist")
DIGESTS = {  # sha256 of the unpacked files
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def place(folder: Path, downloads: Path, digests: Mapping[str, str] = DIGESTS) -> list[Path]:
    """Copies the files of a folder into TFDS's folder of downloads, under the names that it expects; returns them.

    Raises:
        DataError: a file is missing, cannot be unpacked, or holds something else.
    """
    content = {name: _checked(folder / name, digest) for name, digest in digests.items()}
    placed = []
    for name, packed in content.items():
        url = FashionMNIST.URL + name
        recorded = FashionMNIST.url_infos[url]
        path = downloads / FashionMNIST.name / resource.get_dl_fname(url, recorded.checksum)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(packed)
        known = checksums.UrlInfo(size=recorded.size, checksum=recorded.checksum, filename=name)
        resource.write_info_file(url, path, FashionMNIST.name, name, known)
        placed.append(path)
    return placed


def _checked(path: Path, digest: str) -> bytes:
    try:
        packed = path.read_bytes()
        found = hashlib.sha256(gzip.decompress(packed)).hexdigest()
    except (OSError, EOFError) as error:
        raise DataError(
            f"{path} cannot be read ({error}); install Debian's package dataset-fashion-mnist, or name the "
            "folder of the four files with --folder=DIR"
        ) from error
    if found != digest:
        raise DataError(f"{path} unpacks to sha256 {found}, not {digest}; install dataset-fashion-mnist again")
    return packed


def main() -> int:
    """Places the files; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"folder of the four files; default: {FOLDER}")
    try:
        placed = place(parser.parse_args().folder, tfds_folder() / "downloads")
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"written: {len(placed)} files in {placed[0].parent}; task.dataset=fashion_mnist needs no network now")
    return 0


if __name__ == "__main__":
    sys.exit(main())

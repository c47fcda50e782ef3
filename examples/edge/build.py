"""Bundles a page that classifies drawn digits in the browser: onnxruntime-web, a trained model, a few test digits.

Command: python examples/edge/build.py --workdir=runs/digits
Then:    python -m http.server --directory=runs/edge-page        and open http://localhost:8000

The run's images must be 8 x 8 and grey, as those of configs/digits.py are. npm brings onnxruntime-web, which is kept in
the lab's cache. Nothing else is taken from a network, and the page itself needs none.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flaxformer_lab.cache import cache_folder
from flaxformer_lab.errors import ConfigError, LabError, RunError
from flaxformer_lab.run import Run, load_run

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
RUNTIME = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")  # for one thread, on the processor
PAGE = Path(__file__).with_name("index.html")
SAMPLES = 12


def fetch_runtime(folder: Path) -> Path:
    """The folder with the files of RUNTIME, which npm downloads once.

    Raises:
        RunError: there is no npm, or it cannot download the package.
    """
    if all((folder / name).is_file() for name in RUNTIME):
        return folder
    npm = shutil.which("npm")
    if npm is None:
        raise RunError("npm is not installed, and downloads onnxruntime-web: apt-get install npm")
    with tempfile.TemporaryDirectory() as place:
        packed = subprocess.run(
            [npm, "pack", f"{PACKAGE}@{VERSION}", "--silent"], cwd=place, capture_output=True, text=True, check=False
        )
        archives = list(Path(place).glob("*.tgz"))
        if packed.returncode or not archives:
            raise RunError(f"npm cannot download {PACKAGE}@{VERSION}: {packed.stderr.strip().splitlines()[-1:]}")
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archives[0]) as archive:
            for name in RUNTIME:
                content = archive.extractfile(f"package/dist/{name}")
                (folder / name).write_bytes(content.read())
    return folder


def describe(run: Run, exported: Any) -> dict[str, Any]:
    """What the page needs to know of the model, and digits of the test split with their labels.

    Raises:
        ConfigError: the run does not classify grey images of 8 x 8.
    """
    inputs, outputs = exported.description["inputs"], exported.description["outputs"]
    if len(inputs) != 1 or inputs[0]["shape"] != ["batch", 8, 8, 1] or inputs[0]["dtype"] != "uint8":
        raise ConfigError(f"--workdir={run.workdir} takes {inputs}, and the page has grey images of 8 x 8; use digits")
    test = run.task.examples("test")
    stored = test.read(test.evaluation_indices(np.arange(SAMPLES)))
    images = np.asarray(stored[inputs[0]["name"]]).reshape(SAMPLES, -1)
    labels = np.asarray(stored[run.task.metadata["label"]])
    classes = list(run.task.class_names() or map(str, range(outputs[0]["shape"][1])))
    samples = [
        {"pixels": pixels.tolist(), "label": classes[label]} for pixels, label in zip(images, labels, strict=True)
    ]
    return {
        "title": f"{run.config.model.name} of {run.config.task.dataset}",
        "parameters": exported.description["parameters"],
        "bytes": exported.description["bytes"],
        "input": inputs[0]["name"],
        "output": outputs[0]["name"],
        "classes": classes,
        "samples": samples,
    }


def build(run: Run, folder: Path, runtime: Path) -> Path:
    """Writes the page into a folder; returns its file."""
    folder.mkdir(parents=True, exist_ok=True)
    exported = run.export(folder / "model.onnx", "onnx", overwrite=True)
    (folder / "model.json").write_text(json.dumps(describe(run, exported)), encoding="utf-8")
    for name in RUNTIME:
        shutil.copyfile(runtime / name, folder / name)
    return Path(shutil.copyfile(PAGE, folder / PAGE.name))


def main(given: Sequence[str] | None = None) -> int:
    """Does what the arguments say; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/digits"), help="folder of the run")
    parser.add_argument("--out", type=Path, default=Path("runs/edge-page"), help="folder for the page")
    arguments = parser.parse_args(given)
    try:
        runtime = fetch_runtime(cache_folder("npm") / f"{PACKAGE}-{VERSION}")
        page = build(load_run(arguments.workdir), arguments.out, runtime)
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"written: {page}; python -m http.server --directory={arguments.out}, then open http://localhost:8000")
    return 0


if __name__ == "__main__":
    sys.exit(main())

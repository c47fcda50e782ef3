"""Microseconds of one example in onnxruntime: the lab's ONNX file beside PyTorch's export of the same weights.

    pip install -e '.[onnx,parity]' && python benchmarks/onnx_files.py

Models of transformers with random weights, as `torch.onnx.export` writes them and as the lab does after reading the
weights. Both files are read by one onnxruntime with one thread, their outputs are compared, and they are timed in
turns, by the CPU time of the calling thread.
"""

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
from contest import versions, write_result
from train_step import machine

from flaxformer_lab.ablation.exports import latencies_of
from flaxformer_lab.export import onnx
from flaxformer_lab.functional.platform import portable_forms
from flaxformer_lab.models.conversion import from_huggingface

TOLERANCE = 1e-4


def models() -> dict[str, tuple[Any, np.ndarray]]:
    """By name: a model, and one example as the lab takes it."""
    import transformers as peer

    small = {"hidden_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 80}
    tiny = {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768}
    mini = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    digits, photo = {"image_size": 8, "patch_size": 2, "num_channels": 1}, {"image_size": 224, "patch_size": 16}
    residual = {"embedding_size": 16, "hidden_sizes": [16, 32, 64], "depths": [2, 2, 2], "layer_type": "basic"}
    rng = np.random.default_rng(0)

    def image(side: int, channels: int) -> np.ndarray:
        return rng.standard_normal((1, side, side, channels), np.float32)

    symbols = rng.integers(0, 1000, (1, 64), dtype=np.int32)
    return {
        "ViT, 40 wide, 2 blocks, 16 patches": (
            peer.ViTForImageClassification(peer.ViTConfig(**small, **digits)),
            image(8, 1),
        ),
        "ViT tiny (DeiT), 196 patches": (
            peer.ViTForImageClassification(peer.ViTConfig(**tiny, **photo)),
            image(224, 3),
        ),
        "BERT of MiniLM's size, 64 symbols": (
            peer.BertModel(peer.BertConfig(**mini, vocab_size=1000), add_pooling_layer=False),
            symbols,
        ),
        "GPT-2, 256 wide, 4 blocks, 64 symbols": (
            peer.GPT2LMHeadModel(peer.GPT2Config(n_embd=256, n_layer=4, n_head=4, vocab_size=1000, n_positions=64)),
            symbols,
        ),
        "ResNet, 6 blocks, 32 x 32 pixels": (
            peer.ResNetForImageClassification(peer.ResNetConfig(**residual, num_channels=3)),
            image(32, 3),
        ),
    }


def theirs(model: Any, example: np.ndarray, path: Path) -> np.ndarray:
    """Writes PyTorch's file, whose input is `x`; returns the example as it takes it."""
    import torch

    class Outputs(torch.nn.Module):
        """The model with its first output alone, which is all that the lab's has."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            name = "pixel_values" if x.ndim == 4 else "input_ids"
            return self.model(**{name: x}, return_dict=False)[0]

    given = np.moveaxis(example, 3, 1) if example.ndim == 4 else example.astype(np.int64)
    options = {"input_names": ["x"], "output_names": ["y"], "dynamic_axes": {"x": {0: "batch"}}, "dynamo": False}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(Outputs().eval(), (torch.tensor(given),), str(path), **options)
    return np.ascontiguousarray(given)


def ours(model: Any, example: np.ndarray) -> bytes:
    """The lab's file of the same weights."""
    from safetensors.numpy import load_file

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        weights = load_file(Path(folder) / "model.safetensors")
        settings = json.loads((Path(folder) / "config.json").read_text())
    if settings["model_type"] == "resnet":
        settings["image_size"] = example.shape[1]
    made = from_huggingface(weights, settings)
    (batch,) = jax.export.symbolic_shape("batch")
    spec = {"x": jax.ShapeDtypeStruct((batch, *example.shape[1:]), example.dtype)}
    variables = jax.device_get({"params": made.params, "model_state": made.model_state})

    def program(variables: Any, arrays: dict[str, jax.Array]) -> jax.Array:
        return made.network.apply(variables["params"], variables["model_state"], arrays["x"])[0]

    with portable_forms():
        return onnx.write_graph(program, variables, spec, batch)


def compare(model: Any, example: np.ndarray, rounds: int) -> dict[str, Any]:
    """Both files of one model: nodes, bytes, microseconds, and how far their outputs are apart."""
    import onnx as format

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "theirs.onnx"
        given = theirs(model, example, path)
        contents = {"lab": ours(model, example), "torch": path.read_bytes()}
    arrays = {"lab": {"x": example}, "torch": {"x": given}}
    sessions = {key: onnx.open_session(content, threads=1) for key, content in contents.items()}
    outputs = {key: session.run(None, arrays[key])[0] for key, session in sessions.items()}
    difference = float(np.max(np.abs(outputs["lab"].reshape(-1) - outputs["torch"].reshape(-1))))
    if not difference <= TOLERANCE * max(1.0, float(np.max(np.abs(outputs["torch"])))):
        raise SystemExit(f"the outputs differ by {difference:.3g}")
    calls = [lambda s=sessions[key], a=arrays[key]: s.run(None, a) for key in contents]
    found = 1e6 * np.array([latencies_of(calls) for _ in range(rounds)])
    ratios = found[:, 1] / found[:, 0]
    return {
        "microseconds": {key: round(statistics.median(found[:, k]), 1) for k, key in enumerate(contents)},
        "ratio": round(statistics.median(ratios), 2),
        "range": [round(float(edge), 2) for edge in (ratios.min(), ratios.max())],
        "nodes": {key: len(format.load_model_from_string(each).graph.node) for key, each in contents.items()},
        "bytes": {key: len(each) for key, each in contents.items()},
        "difference": difference,
    }


def main() -> None:
    """Prints a table and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    import torch

    torch.manual_seed(0)
    rows = {}
    print("| model | lab, us | PyTorch's export, us | ratio (range) | nodes |\n|---|---|---|---|---|")
    for name, (model, example) in models().items():
        row = rows[name] = compare(model.eval(), example, arguments.rounds)
        times, (low, high) = row["microseconds"], row["range"]
        nodes = f"{row['nodes']['lab']} and {row['nodes']['torch']}"
        print(
            f"| {name} | {times['lab']} | {times['torch']} | {row['ratio']} ({low} to {high}) | {nodes} |", flush=True
        )
    if arguments.rounds >= 5:
        packages = ("jax", "onnx", "onnxruntime", "torch", "transformers")
        head = {"machine": machine("cpu"), "versions": versions(packages), "threads": 1}
        write_result("onnx_files_cpu", head | {"files": rows})


if __name__ == "__main__":
    main()

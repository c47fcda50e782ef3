"""Writes small transformers models with random weights, fixed inputs, and the logits that PyTorch computes for them.

    python tools/make_parity_goldens.py

Needs the `parity` extra. Each model is one file, `tests/goldens/parity_NAME.safetensors`. It holds the tensors as
save_pretrained names them, under `weights/`; `inputs`, `logits`, and for BERT `valid`; and config.json as metadata.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)

FOLDER = Path(__file__).parent.parent / "tests" / "goldens"

TOKENS = {"vocab_size": 60, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 0}
IMAGES = {"image_size": 16, "patch_size": 4, "num_channels": 3}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
# Epsilons so large that they change the logits, and hidden layers small enough for small files.
GPT2 = {**SIZES, **TOKENS, "layer_norm_epsilon": 0.02}
BERT = {**SIZES, **TOKENS, "layer_norm_eps": 0.01, "intermediate_size": 48}
VIT = {**SIZES, **IMAGES, "layer_norm_eps": 0.03, "intermediate_size": 48}
MODELS = {
    "gpt2": GPT2LMHeadModel(GPT2Config(**GPT2)),
    "bert_tokens": BertForTokenClassification(BertConfig(**BERT, num_labels=5)),
    "bert_masked": BertForMaskedLM(BertConfig(**BERT, hidden_act="relu")),
    "vit": ViTForImageClassification(ViTConfig(**VIT, num_labels=7)),
    "bert_sequence": BertForSequenceClassification(BertConfig(**BERT, num_labels=3)),
}


class Golden(NamedTuple):
    """A model as its files hold it, inputs as our network takes them, and the logits of transformers.

    inputs: symbols int32 [batch, tokens], or images float32 [batch, rows, columns, channels].
    valid: which tokens are not padding [batch, tokens]; only BERT.
    """

    weights: dict[str, np.ndarray]
    settings: dict[str, Any]
    inputs: np.ndarray
    valid: np.ndarray | None
    logits: np.ndarray


def make(model: PreTrainedModel, seed: int) -> Golden:
    """Returns `model` with weights and inputs drawn from `seed`; a text model must have `TOKENS`."""
    rng = np.random.default_rng(seed)
    randomize(model, rng)
    batch, kind, valid = 3, model.config.model_type, None
    if kind == "vit":
        inputs = rng.standard_normal((batch, 16, 16, model.config.num_channels), np.float32)
        options = {"pixel_values": torch.from_numpy(inputs).permute(0, 3, 1, 2)}
    else:
        inputs = rng.integers(TOKENS["vocab_size"], size=(batch, TOKENS["max_position_embeddings"]), dtype=np.int32)
        options = {"input_ids": torch.from_numpy(inputs).long()}
    if kind == "bert":
        valid = np.arange(inputs.shape[1])[None, :] < np.array([[16], [9], [4]])
        options["attention_mask"] = torch.from_numpy(valid).long()
    with torch.inference_mode():
        logits = model.float().eval()(**options).logits.numpy()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        weights = load_file(Path(folder) / "model.safetensors")
        settings = json.loads((Path(folder) / "config.json").read_text())
    return Golden(weights, settings, inputs, valid, logits)


@torch.no_grad()
def randomize(model: torch.nn.Module, rng: np.random.Generator) -> None:
    """Draws every parameter again, with a variance that makes each one visible in the logits."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            center = 1 if isinstance(module, torch.nn.LayerNorm) and name == "weight" else 0
            draw = center + 0.3 * rng.standard_normal(parameter.shape, np.float32)
            parameter.copy_(torch.from_numpy(draw))


def save(golden: Golden, path: Path) -> None:
    """Writes `golden` to one file."""
    tensors = {f"weights/{name}": tensor for name, tensor in golden.weights.items()}
    results = {"inputs": golden.inputs, "valid": golden.valid, "logits": golden.logits}
    tensors |= {name: np.ascontiguousarray(array) for name, array in results.items() if array is not None}
    save_file(tensors, path, metadata={"config": json.dumps(golden.settings, sort_keys=True)})


def main() -> None:
    """Writes every model's file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="folder of the files")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (name, model) in enumerate(MODELS.items()):
        path = folder / f"parity_{name}.safetensors"
        save(make(model, seed), path)
        print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()

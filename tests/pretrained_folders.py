"""Folders of small pretrained models, from the golden files of tests/models/test_conversion.py."""

import json
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

GOLDENS = Path(__file__).parent / "goldens"


def read_golden(name: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict]:
    """The tensors of a golden file by name, its inputs and logits, and its config.json."""
    with safe_open(GOLDENS / f"parity_{name}.safetensors", "numpy") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        settings = json.loads(file.metadata()["config"])
    weights = {key.removeprefix("weights/"): w for key, w in tensors.items() if key.startswith("weights/")}
    return weights, {key: w for key, w in tensors.items() if not key.startswith("weights/")}, settings


def write_golden(folder: Path, name: str, *, tokenizer: bool = True, dtype: type = np.float32, **settings) -> Path:
    """Writes a golden model as save_pretrained does, with a tokenizer of characters; returns the folder."""
    weights, _, found = read_golden(name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(found | settings))
    save_file({key: w.astype(dtype) for key, w in weights.items()}, folder / "model.safetensors")
    if tokenizer:
        ends = (None, None) if name.startswith(("gpt", "llama")) else ("[CLS]", "[SEP]")
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer_of_characters(found["vocab_size"], *ends)))
    return folder


def write_sentence_transformer(folder: Path, *, mode: str = "pooling_mode_mean_tokens") -> Path:
    """A body with the files of sentence-transformers around it."""
    write_golden(folder, "bert_body")
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({mode: True, "word_embedding_dimension": 30}))
    return folder


def tokenizer_of_characters(symbols: int, first: str | None, last: str | None) -> dict:
    """A tokenizer.json: a symbol for each letter, special ones first."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(code) for code in range(32, 127)]
    vocabulary = {token: number for number, token in enumerate((special + letters)[:symbols])}
    ends = [{"SpecialToken": {"id": each, "type_id": 0}} for each in (first, last) if each]
    single = [*ends[:1], {"Sequence": {"id": "A", "type_id": 0}}, *ends[1:]]
    added = [
        {"id": vocabulary[token], "content": token, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for token in special
    ]
    pieces = {token: {"id": token, "ids": [vocabulary[token]], "tokens": [token]} for token in (first, last) if token}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": ""}, "behavior": "Isolated", "invert": False},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": pieces,
        }
        if ends
        else None,
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    }

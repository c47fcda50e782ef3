"""A pretrained model's folder as the Hugging Face hub has it, or one of sentence-transformers.

Files are read, never executed or unpickled: config.json, *.safetensors, tokenizer.json, and for sentence embeddings
modules.json. What a folder names it must hold: names with a path are refused.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from flaxformer_lab.errors import ConfigError, RunError
from flaxformer_lab.models.conversion import Converted, architecture_of, from_huggingface, planned, to_huggingface
from flaxformer_lab.models.pretrained.plan import Settings, Tensors
from flaxformer_lab.models.tensors import load_tensors

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
LARGEST_JSON = 2**26  # bytes; the largest tokenizers have a quarter of it
POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "class_token"}
CODE = ("auto_map", "custom_pipelines")  # settings that name Python code of the folder's
# What models for pretraining save besides the head that their architecture names.
UNUSED = ("bert.pooler.", "cls.seq_relationship.", "roberta.pooler.")


@dataclass(frozen=True)
class PretrainedFolder:
    """What a folder says: all of it but the weights.

    settings: config.json, with `pooling` where the folder is one of sentence-transformers.
    tokenizer: the text of tokenizer.json, or None. lowercase: what sentence-transformers does to a text before.
    max_length: tokens that the model was made for.
    preprocessing: preprocessor_config.json, of images. path: where the weights are, root or a folder in it.
    """

    path: Path
    settings: Settings
    tokenizer: str | None
    lowercase: bool
    max_length: int | None
    preprocessing: dict[str, Any]
    root: Path

    def tensors(self) -> Tensors:
        """Every tensor of the files.

        Raises:
            ConfigError: no safetensors, or shards with a path or without a tensor that they should have.
            RunError: a file that cannot be read.
        """
        if (self.path / WEIGHTS).exists():
            return load_tensors(self.path / WEIGHTS, "weights")
        return _shards(self.path)

    def convert(self) -> Converted:
        """The network and its parameters.

        Raises:
            ConfigError, RunError: as in `from_huggingface` and `tensors`.
        """
        tensors = self.tensors()
        masked = architecture_of(self.settings, tensors).endswith("ForMaskedLM")
        return from_huggingface(tensors, self.settings, drop=UNUSED if masked else ())

    def stand_ins(self) -> Tensors:
        """Tensors of the right shapes that hold nothing, from the files' headers."""
        files = [self.path / WEIGHTS] if (self.path / WEIGHTS).exists() else sorted(set(_index(self.path).values()))
        shapes = {}
        for file in files:
            try:
                with safe_open(file, "numpy") as opened:
                    shapes |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}
            except (OSError, SafetensorError, TypeError) as error:
                raise RunError(f"weights={file} cannot be read: {error}") from error
        return stand_ins(shapes)


def stand_ins(shapes: Mapping[str, Any]) -> Tensors:
    """Tensors of these shapes that take no memory."""
    return {name: np.broadcast_to(np.float32(0), tuple(shape)) for name, shape in shapes.items()}


def is_pretrained(path: Path) -> bool:
    """Whether a folder looks like a pretrained model's: its config.json, or its modules.json, says so."""
    if (path / "modules.json").is_file():
        return True
    config = path / "config.json"
    try:
        return config.is_file() and "model_type" in _read_json(config)
    except (ConfigError, RunError):
        return False


def read_folder(path: str | Path) -> PretrainedFolder:
    """Reads all but the weights.

    Raises:
        ConfigError: no such folder, none of a pretrained model, code or paths in it, or a part that we have not.
        RunError: a file that is damaged.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        raise ConfigError(
            f"pretrained={path} is no folder here, and nothing is downloaded; get one with `hf download NAME "
            "--local-dir FOLDER` and name that folder"
        )
    root = path
    path, pooling = _sentence_transformers(path) if (path / "modules.json").is_file() else (path, None)
    if not (path / "config.json").is_file():
        raise ConfigError(f"pretrained={path} has no config.json; name a folder as save_pretrained writes it")
    settings = _settings(path / "config.json")
    about_sentences = path / "sentence_bert_config.json"
    sentences = _read_json(about_sentences) if about_sentences.is_file() else {}
    positions = settings.get("max_position_embeddings")
    if settings.get("model_type") == "roberta" and isinstance(positions, int):
        positions -= 2  # rows of its table that are of padding
    lengths = [positions, settings.get("n_positions"), sentences.get("max_seq_length")]
    lengths = [length for length in lengths if isinstance(length, int) and length > 0]
    tokenizer, images = path / "tokenizer.json", path / "preprocessor_config.json"
    return PretrainedFolder(
        path,
        settings if pooling is None else {**settings, "pooling": pooling},
        _read_text(tokenizer) if tokenizer.is_file() else None,
        sentences.get("do_lower_case") is True,
        min(lengths) if lengths else None,
        _read_json(images) if images.is_file() else {},
        root,
    )


def with_classes(tensors: Tensors, table: Mapping[str, Any], classes: int) -> Tensors:
    """Stand-ins of a model whose head has another number of classes."""
    last = [path for path in table if path.split(".")[0] == "head" and path.split(".")[-2] in _LAST]
    names = {name for path in last for name in table[path].names}
    return tensors | stand_ins({name: (classes, *tensors[name].shape[1:]) for name in names})


_LAST = ("head", "output", "classes", "distilled")  # the maps of our heads that give logits


def _settings(file: Path) -> dict[str, Any]:
    settings = _read_json(file)
    for key in CODE:
        if settings.get(key):
            raise ConfigError(
                f"{file}: {key}={settings[key]!r} names code in the folder, which is never run; choose a model whose "
                "architecture transformers itself has"
            )
    if settings.get("quantization_config"):
        raise ConfigError(f"{file}: quantization_config: the weights are quantised; choose the ones in floating point")
    settings.pop("pooling", None)  # ours alone, from modules.json
    return settings


def _sentence_transformers(path: Path) -> tuple[Path, dict[str, Any]]:
    """The folder of the Transformer, and how its tokens become one vector."""
    modules = _read_json(path / "modules.json", list)
    found: dict[str, Path] = {}
    for module in modules:
        kind = str(module.get("type", "")) if isinstance(module, dict) else ""
        name = kind.rpartition(".")[2]
        if not kind.startswith("sentence_transformers.") or name not in ("Transformer", "Pooling", "Normalize"):
            raise ConfigError(
                f"{path / 'modules.json'}: a module of type {kind!r} is none of ours; choose a model of "
                "sentence_transformers' Transformer, Pooling and Normalize"
            )
        if name in found or (name == "Normalize" and "Pooling" not in found):
            raise ConfigError(
                f"{path / 'modules.json'}: {name} is in another order than Transformer, Pooling, Normalize"
            )
        found[name] = path / _plain(module.get("path", ""), path / "modules.json")
    if list(found)[:2] != ["Transformer", "Pooling"]:
        raise ConfigError(f"{path / 'modules.json'}: it must begin with a Transformer and a Pooling")
    pooling = _read_json(found["Pooling"] / "config.json")
    chosen = [key for key, on in pooling.items() if key.startswith("pooling_mode_") and on is True]
    if len(chosen) != 1 or chosen[0] not in POOLINGS:
        raise ConfigError(
            f"{found['Pooling'] / 'config.json'}: pooling by {', '.join(chosen) or 'nothing'}; choose a model with one "
            f"of {', '.join(POOLINGS)}"
        )
    return found["Transformer"], {"mode": POOLINGS[chosen[0]], "normalised": "Normalize" in found}


def _plain(name: Any, where: Path) -> str:
    """A name of something inside the folder.

    Raises:
        ConfigError: it has a path.
    """
    if not isinstance(name, str) or Path(name).name != name or name in (".", "..") or "\\" in name:
        if name != "":
            raise ConfigError(f"{where}: {name!r} must be a plain name of something in this folder, without a path")
    return name


def _index(path: Path) -> dict[str, Path]:
    """The shard of each tensor."""
    if not (path / INDEX).is_file():
        pickled = sorted(
            each.name for each in path.glob("*") if each.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")
        )
        raise ConfigError(
            f"pretrained={path} has no {WEIGHTS}"
            + (f", only {', '.join(pickled[:3])}: pickled weights can run code when they are read" if pickled else "")
            + "; save it with save_pretrained(..., safe_serialization=True)"
        )
    shards = _read_json(path / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ConfigError(f"{path / INDEX}: weight_map must say which file has each tensor")
    found = {}
    for tensor, shard in shards.items():
        name = _plain(shard, path / INDEX)
        if Path(name).suffix != ".safetensors":
            raise ConfigError(f"{path / INDEX}: {name!r} is no .safetensors file; pickled weights are never read")
        found[tensor] = path / name
    return found


def _shards(path: Path) -> Tensors:
    index, tensors = _index(path), {}
    for shard in sorted(set(index.values())):
        found = load_tensors(shard, "weights")
        wanted = {tensor for tensor, file in index.items() if file == shard}
        if found.keys() != wanted:
            raise ConfigError(
                f"{shard} and {INDEX} differ in {min(found.keys() ^ wanted)}; keep the shards of one model together"
            )
        tensors |= found
    return tensors


def _read_text(file: Path) -> str:
    try:
        if file.stat().st_size > LARGEST_JSON:
            raise ConfigError(f"{file} has more than {LARGEST_JSON} bytes, too many for a file of a pretrained model")
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{file} cannot be read: {error}") from error


def _read_json(file: Path, kind: type = dict) -> Any:
    try:
        value = json.loads(_read_text(file))
    except (ValueError, RecursionError) as error:
        raise RunError(f"{file} is damaged: {type(error).__name__}: {error}") from error
    if not isinstance(value, kind):
        raise RunError(f"{file} is damaged: it holds {type(value).__name__}, not {kind.__name__}")
    return value


def write_folder(source: PretrainedFolder, params: Any, path: Path, classes: int | None = None) -> Path:
    """Writes `source` again, with these parameters; classes: of a new head.

    The folder is there as a whole or not at all.

    Raises:
        ConfigError: the folder exists and is not empty, or as in `to_huggingface`.
        RunError: it cannot be written.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path} exists and is not empty; choose another folder")
    tensors, settings = source.tensors(), dict(source.settings)
    if classes is not None:
        plan, _ = planned(tensors, settings, allow_extra=True)
        tensors = dict(with_classes(tensors, plan.table, classes))
        settings["id2label"] = {str(number): f"LABEL_{number}" for number in range(classes)}
        settings["label2id"] = {name: int(number) for number, name in settings["id2label"].items()}
        for key in ("num_labels", "problem_type"):
            settings.pop(key, None)
    written, settings = to_huggingface(params, tensors, settings)
    settings.pop("pooling", None)
    whole = path.resolve()  # a link to an empty folder stays one
    partial = whole.with_name(f"{whole.name}.{os.getpid()}.partial")
    try:
        _copy_small_files(source.root, partial)
        target = partial / source.path.relative_to(source.root)
        target.mkdir(parents=True, exist_ok=True)
        (target / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        arrays = {name: np.ascontiguousarray(each) for name, each in written.items()}
        save_file(arrays, target / WEIGHTS, {"format": "pt"})
        partial.replace(whole)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} cannot be written: {error}; make room for it, or choose another folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return path


def _copy_small_files(source: Path, target: Path) -> None:
    """Copies settings and vocabularies, but no weights and nothing hidden."""
    for file in sorted(source.rglob("*")):
        small = file.suffix in (".json", ".txt", ".model") and not file.name.endswith(".index.json")
        inside = file.relative_to(source)
        if file.is_file() and small and not any(part.startswith(".") for part in inside.parts):
            (target / inside).parent.mkdir(parents=True, exist_ok=True)
            (target / inside).write_bytes(file.read_bytes())

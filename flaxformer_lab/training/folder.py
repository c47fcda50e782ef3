"""A run's folder, which describes itself: config.json, metadata.json, metrics.jsonl, checkpoints/, tensorboard/."""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flaxformer_lab.config import Config, as_dict, parse_config
from flaxformer_lab.data.own.address import CONTENT
from flaxformer_lab.errors import ConfigError, RunError
from flaxformer_lab.literal_paths import local_folder
from flaxformer_lab.locking import file_lock
from flaxformer_lab.parsing import flatten, override

# Keys that change nothing of what is learnt, so that a run may go on, and may be opened, with other values.
FREE_KEYS = (
    "training.evaluate_batch_size",
    "training.checkpoint_every",
    "training.keep_last",
    "training.keep_best",
    "training.steps_per_call",
    "training.loss_chunk",
    "training.input",
    "model.remat",
    "parallelism.",
)


def require_free(changes: Mapping[str, Any]) -> None:
    """Raises ConfigError where a change is of a key that decides something."""
    for key, value in changes.items():
        if not key.startswith(FREE_KEYS):
            raise ConfigError(
                f"--config.{key}={value}: a checkpoint keeps the config that it was trained with; drop this flag; only "
                f"what does not affect results can be changed: {', '.join(FREE_KEYS)}"
            )


def changed(config: Config, changes: Mapping[str, Any]) -> Config:
    """A run's config with other values of some keys. Raises ConfigError where one cannot be."""
    tree = as_dict(config)
    for key, value in changes.items():
        tree = override(tree, key, value)
    return parse_config(tree) if changes else config


class RunFolder:
    """The files of one run. Reading never executes and never unpickles what it finds."""

    def __init__(self, path: str | Path):
        self.path = local_folder(path)
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self._config, self._metadata = self.path / "config.json", self.path / "metadata.json"

    def saved_steps(self) -> set[int]:
        """The steps after which a run has saved its state here."""
        if not self.checkpoints.is_dir():
            return set()
        return {int(path.name) for path in self.checkpoints.iterdir() if path.name.isdecimal()}

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the folder against other runs; makes it where there is none.

        Raises:
            RunError: another run uses it, or it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = contextlib.ExitStack()
            is_held = lock.enter_context(file_lock(self.path))  # the folder itself, so that no file is left behind
        except OSError as error:
            raise self._unwritable(error) from error
        with lock:
            if not is_held:
                raise RunError(f"another run is at work in {self.path}; wait for its end, or choose another --workdir")
            yield

    def claim(self, config: Config, metadata: dict[str, Any]) -> None:
        """Claims the folder for this config, or checks that it has it; removes what a killed process left half written.

        Raises:
            ConfigError: it belongs to another config, the message shows the difference; or to other data.
            RunError: it holds something else, or cannot be written.
        """
        try:
            half_written = [path for one in (self._config, self._metadata, self.metrics) for path in _half_written(one)]
            if self._config.exists():
                self._refuse_other_data(metadata)
                if self._refuse_another(config):
                    write_atomic(self._config, json.dumps(as_dict(config), indent=2) + "\n")
            elif self.path.exists() and any(map(self._is_foreign, self.path.iterdir())):
                raise RunError(f"{self.path} holds files but no config.json, so it is no run; choose another --workdir")
            for path in half_written:
                path.unlink()
            if not self._config.exists():
                self.path.mkdir(parents=True, exist_ok=True)
                write_atomic(self._metadata, json.dumps(metadata, indent=2) + "\n")
                write_atomic(self._config, json.dumps(as_dict(config), indent=2) + "\n")
        except OSError as error:
            raise self._unwritable(error) from error

    def _is_foreign(self, path: Path) -> bool:
        """Whether another one than us wrote a file of a folder without config.json."""
        own = (self._config.name, self._metadata.name, self.metrics.name)
        return path != self._metadata and is_foreign(path, *own)

    def _unwritable(self, error: OSError) -> RunError:
        return RunError(f"{self.path} cannot be written: {error.strerror}; choose another --workdir")

    def read(self) -> tuple[Config, dict[str, Any]]:
        """The config and the task's metadata.

        Raises:
            RunError: the folder is missing, or its files are damaged.
        """
        if not self.path.is_dir():
            raise RunError(f"{self.path} does not exist; give --workdir the folder of a training run")
        if not self._config.exists():
            raise RunError(f"{self.path} has no config.json, so it is no run; give --workdir a training run's folder")
        try:
            config = parse_config(read_json(self._config))
        except ConfigError as error:
            raise RunError(f"{self._config} is damaged or of another version: {error}") from error
        # Runs of version 0.1 keep it under another name.
        old = self.path / "task.json"
        return config, read_json(old if old.exists() and not self._metadata.exists() else self._metadata)

    def _refuse_other_data(self, metadata: dict[str, Any]) -> None:
        """Raises ConfigError where own files changed since the run began; metadata: of the task, with their digest."""
        config, stored = self.read()
        if stored.get(CONTENT, metadata.get(CONTENT)) != metadata.get(CONTENT):
            raise ConfigError(
                f"{self.path} was started with other data: {config.task.dataset} has changed since; restore the files, "
                "or choose another --workdir"
            )

    def _refuse_another(self, config: Config) -> bool:
        """Whether the folder's config differs, in keys that decide nothing. Raises ConfigError for all others."""
        stored = self.read()[0]
        ours, theirs = flatten(as_dict(config)), flatten(as_dict(stored))
        differing = [key for key in ours | theirs if ours.get(key, "-") != theirs.get(key, "-")]
        decisive = [key for key in differing if not key.startswith(FREE_KEYS)]
        schedule, hint = config.optimizer.schedule, ""
        if decisive == ["training.steps"]:
            if schedule == "constant" and config.training.steps > stored.training.steps:
                return True  # every update is the one that it would have been
            hint = (
                f"\nWith optimizer.schedule={schedule} another number of steps changes each learning rate; "
                "a new run can start from this one's weights (training.init_from)"
            )
        if decisive:
            shown = "\n".join(f"  {key}: {theirs.get(key, '-')} there, {ours.get(key, '-')} now" for key in decisive)
            raise ConfigError(
                f"{self.path} belongs to a run of another config; choose another --workdir, or give the same values:\n"
                f"{shown}{hint}"
            )
        return bool(differing)


def write_atomic(path: Path, contents: str) -> Path:
    """Writes the whole file or, also where the machine crashes, leaves the old one; returns its path.

    Raises:
        OSError: it cannot be written.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        return partial.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def dump_json(value: Any, indent: int | None = None) -> str:
    """A value as JSON's text, with null for each number that is not finite: JSON has no NaN."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: plain(each) for name, each in value.items()}
        if isinstance(value, list | tuple):
            return [plain(each) for each in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(value), indent=indent, allow_nan=False)


def _half_written(path: Path) -> Iterator[Path]:
    """The files that a process killed in `write_atomic` left beside the path."""
    return path.parent.glob(f"{path.name}.*.partial")


def is_foreign(path: Path, *own: str) -> bool:
    """Whether a file is neither hidden, like .DS_Store, nor left half written by `write_atomic` of one of these."""
    return not path.name.startswith(".") and not any(path.match(f"{name}.*.partial") for name in own)


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        RunError: the file is missing, is no JSON, or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} is missing or damaged: {error}") from error
    if not isinstance(value, dict):
        raise RunError(f"{path} is damaged: it holds {type(value).__name__}, not an object")
    return value

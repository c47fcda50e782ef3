"""Checkpoints, by Orbax: asynchronous, atomic, the last few and the best few. No other file imports Orbax."""

import contextlib
import gc
import logging
import math
import os
import sys
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from flaxformer_lab.errors import RunError
from flaxformer_lab.literal_paths import take_folders_literally
from flaxformer_lab.training import hosts
from flaxformer_lab.training.state import State

Tree = Any  # a pytree of arrays
_policies = ocp.training.preservation_policies
take_folders_literally()
# What goes wrong is said in one error; Orbax would log its tracebacks too.
logging.getLogger("absl").addFilter(lambda record: f"{os.sep}orbax{os.sep}" not in record.pathname)


class Checkpoints:
    """The checkpoints of one run, each named by its step. Use it as a context: leaving it finishes every save.

    writable=False reads the checkpoints of a run that may still be training; it creates and deletes nothing.
    """

    def __init__(self, folder: Path, *, keep_last: int = 2, keep_best: int = 1, writable: bool = True):
        self._folder = folder
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder} is a file, not a folder of checkpoints; move it away or choose another --workdir")
        if not writable and not folder.exists():
            raise self._empty()
        # One without metrics was saved when the run was asked to end; of those only the latest are kept.
        of_loss = {"get_metric_fn": lambda metrics: metrics["loss"], "reverse": True}
        best = _policies.BestN(**of_loss, n=keep_best, keep_checkpoints_without_metrics=False)
        keep = _policies.AnyPreservationPolicy([_policies.LatestN(keep_last)] + ([best] if keep_best else []))
        options = {"preservation_policy": keep, "cleanup_tmp_directories": writable}
        self.quarantined: list[str] = []
        self._readable = False  # whether a save of this process has been found to be readable
        try:
            self._orbax = ocp.training.Checkpointer(folder, **options)
        except Exception as error:
            for step in [path for path in folder.iterdir() if path.name.isdecimal()] if writable else ():
                if not _readable(step):
                    self._quarantine(step.name, "it cannot be read")
            if not self.quarantined:
                raise RunError(
                    f"the checkpoints in {folder} cannot be read: {_first_line(error)}; move the damaged one away"
                ) from error
            self._orbax = ocp.training.Checkpointer(folder, **options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        try:
            self._orbax.close()
        except Exception as error:
            if kind is None:  # else the first error is the one to report
                raise self._unsaved("in progress", error) from error

    @property
    def steps(self) -> list[int]:
        """The steps that can be restored, in order."""
        return [checkpoint.step for checkpoint in self._orbax.checkpoints]

    def best(self) -> int:
        """The step with the lowest validation loss."""
        scored = [(c.metrics["loss"], c.step) for c in self._orbax.checkpoints if "loss" in (c.metrics or {})]
        if not scored:
            raise RunError(f"{self._folder} holds no checkpoint with a validation loss, so none is the best")
        return min(scored)[1]

    def save(self, state: State, metrics: dict[str, float] | None) -> None:
        """Starts to save `state` under its step and returns once the state may be changed; metrics, if any, rank it.

        The first save is waited for, and must be one that could be restored.

        Raises:
            RunError: it could not be saved, or could not be read back.
        """
        step, tree = int(state.step), vars(state)
        digest = {"digest": _digest(tree)}
        try:
            self._orbax.save_async(step, tree, force=True, metrics=metrics, custom_metadata=digest)
        except Exception as error:
            raise self._unsaved(step, error) from error
        if not self._readable:
            self.wait()
            self._require_readable(step, tree, digest["digest"])
            self._readable = True

    def _require_readable(self, step: int, tree: Tree, digest: str) -> None:
        """Raises RunError where the checkpoint is not listed, or its metadata are not those of the tree."""
        try:
            found = self._orbax.metadata(step)
            is_whole = found.custom_metadata["digest"] == digest and _shapes(found.metadata) == _shapes(tree)
            why = "its metadata are not what was saved"
        except Exception as error:
            is_whole, why = False, _first_line(error)
        if not is_whole:
            raise RunError(
                f"the checkpoint of step {step} in {self._folder} cannot be read back ({why}), so training stops "
                "here; choose another --workdir, on another disk or of a plainer name"
            )

    def wait(self) -> None:
        """Returns when every save is on disk."""
        try:
            self._orbax.wait()
        except Exception as error:
            raise self._unsaved("in progress", error) from error

    def restore(self, abstract: State, step: int | None = None, layout: State | None = None) -> State:
        """The state after update `step` (default: the last one), with the shapes and types of `abstract`.

        layout: the shardings of its leaves, whatever devices they were saved from; None is the first local device.

        Raises:
            RunError: there is no such checkpoint, it is damaged, or it belongs to another model.
        """
        step = self._existing(step)
        try:
            return self._whole(step, abstract, layout)
        except ValueError as error:
            raise self._damaged(step, str(error)) from error

    def restore_newest(self, abstract: State, layout: State | None = None) -> State | None:
        """The newest intact state; None where there are no checkpoints. `quarantined` names each damaged one.

        A damaged checkpoint is moved to the folder `damaged` beside this one, so that the run can save its step again.

        Raises:
            RunError: every checkpoint is damaged.
        """
        while self.steps:
            step = self.steps[-1]
            try:
                return self._whole(step, abstract, layout)
            except ValueError as error:  # in every process, or in none
                self._quarantine(str(step), str(error))
                self._orbax.reload()
        if self.quarantined:
            raise RunError(
                f"no checkpoint in {self._folder} is intact: {'; '.join(self.quarantined)}; "
                "the same command starts from the beginning"
            )
        return None

    def _whole(self, step: int, abstract: State, layout: State | None) -> State:
        """Raises a ValueError that says why the checkpoint is not the one that was saved."""
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        places = vars(layout) if layout else jax.tree.map(lambda leaf: here, vars(abstract))
        placed = lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)  # noqa: E731
        target = jax.tree.map(placed, vars(abstract), places)
        with _quiet_failure() as failure:
            tree = self._orbax.load(step, target)
            digest = (self._orbax.metadata(step).custom_metadata or {}).get("digest")
        # All processes agree before the digest, which all of them sum.
        if hosts.all_reduce_any(bool(failure)):
            raise ValueError(failure[0] if failure else "another process could not read its part")
        if digest is None:
            raise ValueError("it has no digest")
        if digest != _digest(tree):
            raise ValueError("its values are not the ones that were saved")
        if int(tree["step"]) != step:
            raise ValueError(f"it holds step {int(tree['step'])}")
        return State(**tree)

    def _quarantine(self, step: str, why: str) -> None:
        place = self._folder.parent / "damaged"
        place.mkdir(exist_ok=True)
        target = next(path for number in range(10**6) if not (path := place / f"{step}-{number}").exists())
        hosts.wait_for_all("the place of a damaged checkpoint is chosen")
        if hosts.is_primary():
            (self._folder / step).rename(target)
        hosts.wait_for_all("a damaged checkpoint is moved")
        self.quarantined.append(f"the checkpoint of step {step} is damaged ({why}) and was moved to {target}")

    def _existing(self, step: int | None) -> int:
        if not self.steps:
            raise self._empty()
        if step is not None and step not in self.steps:
            raise RunError(
                f"{self._folder} holds no checkpoint of step {step}; choose one of {', '.join(map(str, self.steps))}"
            )
        return self.steps[-1] if step is None else step

    def _empty(self) -> RunError:
        return RunError(f"{self._folder} holds no checkpoint; train first, with the same --workdir")

    def _damaged(self, step: int, why: str) -> RunError:
        others = [str(other) for other in self.steps if other != step]
        way_out = f"choose another: --step={' or --step='.join(others)}" if others else "there is no other"
        return RunError(f"the checkpoint {self._folder / str(step)} is damaged or of another model: {why}; {way_out}")

    def _unsaved(self, step: int | str, error: Exception) -> RunError:
        return RunError(
            f"the checkpoint of step {step} could not be saved in {self._folder}: {_first_line(error)}; "
            "earlier checkpoints are untouched; free some disk and run the same command to resume"
        )


def _shapes(tree: Tree) -> list[tuple[int, ...]]:
    """The shapes of a tree's leaves, in an order of their own: Orbax turns tuples into mappings."""
    return sorted(tuple(leaf.shape) for leaf in jax.tree.leaves(tree))


def _readable(step: Path) -> bool:
    """Whether Orbax can open a folder in which this checkpoint is the only one."""
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Exception):
        (Path(folder) / step.name).symlink_to(step)
        ocp.training.Checkpointer(folder, cleanup_tmp_directories=False).close()
        return True
    return False


def _digest(tree: Tree) -> str:
    """A checksum of every leaf's path, type, shape and values, the same however they are sharded over devices."""
    names, total = 0, 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        names = zlib.crc32(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode(), names)
        for shard in leaf.addressable_shards:
            if shard.replica_id == 0:
                total += _mixed_sum(np.asarray(shard.data), shard.index, leaf.shape, names)
    return f"{names:08x}{hosts.all_reduce_sum(total):016x}"


def _mixed_sum(values: np.ndarray, index: tuple[slice, ...], shape: tuple[int, ...], salt: int) -> int:
    """The sum modulo 2^64 of each value's bits, mixed with the value's place in the whole array.

    The mixing is that of SplitMix64 (Steele et al. 2014): one to one, so one changed value always changes the sum, and
    several leave it as it was with a probability of 2^-64.
    """
    place = np.array(salt, np.uint64)
    for axis, (part, size) in enumerate(zip(index, shape, strict=True)):
        along = np.arange(*part.indices(size), dtype=np.uint64) * np.uint64(math.prod(shape[axis + 1 :]))
        place = place[..., None] + along
    bits = np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}").astype(np.uint64)
    with np.errstate(over="ignore"):  # modulo 2^64 is meant
        mixed = bits + np.uint64(0x9E3779B97F4A7C15) * (place + np.uint64(1))
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return int((mixed ^ (mixed >> np.uint64(31))).sum(dtype=np.uint64))


@contextlib.contextmanager
def _quiet_failure() -> Iterator[list[str]]:
    """Yields a list, to which it adds why its body failed; what Orbax leaves unfinished then prints nothing."""
    failure: list[str] = []
    hook, tasks = sys.unraisablehook, logging.getLogger("asyncio")
    before, tasks.disabled, sys.unraisablehook = tasks.disabled, True, lambda _: None
    try:
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # coroutines that were never awaited
            try:
                yield failure
            except Exception as error:
                failure.append(_first_line(_root(error)))
            if failure:
                gc.collect()
    finally:
        tasks.disabled, sys.unraisablehook = before, hook


def _root(error: BaseException) -> BaseException:
    """What an error was raised from in the first place."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]

"""Checkpoints, by Orbax: asynchronous, atomic, the last few and the best few. Nothing else in the lab knows Orbax."""

import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from flaxformer_lab.errors import RunError
from flaxformer_lab.training.state import State

Tree = Any  # a pytree of arrays
_policies = ocp.training.preservation_policies


class Checkpoints:
    """The checkpoints of one run, each named by its step. Use it as a context: leaving it finishes every save.

    writable=False is for a look beside a run that may still be training: nothing is made, and nothing is cleared away.
    """

    def __init__(self, folder: Path, *, keep_last: int = 2, keep_best: int = 1, writable: bool = True):
        self._folder = folder
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder} is a file, not a folder of checkpoints; move it away or choose another --workdir")
        if not writable and not folder.exists():
            raise self._empty()
        best = _policies.BestN(get_metric_fn=lambda metrics: metrics["loss"], reverse=True, n=keep_best)
        keep = [_policies.LatestN(keep_last)] + ([best] if keep_best else [])
        try:
            self._orbax = ocp.training.Checkpointer(
                folder,
                preservation_policy=_policies.AnyPreservationPolicy(keep),
                cleanup_tmp_directories=writable,
            )
        except Exception as error:
            raise RunError(
                f"the checkpoints in {folder} cannot be read: {_first_line(error)}; move the damaged one away"
            ) from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        try:
            self._orbax.close()
        except Exception as error:
            if kind is None:  # else what went wrong first is told
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

    def save(self, state: State, metrics: dict[str, float]) -> None:
        """Starts to save `state` under its step and returns once the state may be changed; metrics rank it."""
        step, tree = int(state.step), vars(state)
        digest = {"digest": _digest(tree)}
        try:
            self._orbax.save_async(step, tree, force=True, metrics=metrics, custom_metadata=digest)
        except Exception as error:
            raise self._unsaved(step, error) from error

    def wait(self) -> None:
        """Returns when every save is on disk."""
        try:
            self._orbax.wait()
        except Exception as error:
            raise self._unsaved("in progress", error) from error

    def restore(self, abstract: State, step: int | None = None, layout: State | None = None) -> State:
        """The state after update `step` (default: the last one), with the shapes and types of `abstract`.

        layout: where its leaves shall lie, whatever devices they were saved from; None is the first local device.

        Raises:
            RunError: there is no such checkpoint, it is damaged, or it belongs to another model.
        """
        step = self._existing(step)
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        layout = vars(layout) if layout else jax.tree.map(lambda leaf: here, vars(abstract))
        placed = lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)  # noqa: E731
        target = jax.tree.map(placed, vars(abstract), layout)
        try:
            tree = self._orbax.load(step, target)
            digest = self._orbax.metadata(step).custom_metadata["digest"]
        except Exception as error:
            raise self._damaged(step, _first_line(error)) from error
        if digest != _digest(tree):
            raise self._damaged(step, "its values are not the ones that were saved")
        if int(tree["step"]) != step:
            raise self._damaged(step, f"it holds step {int(tree['step'])}")
        return State(**tree)

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


def _digest(tree: Tree) -> str:
    """A checksum of every leaf's path, type, shape and bytes."""
    digest = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(jax.device_get(leaf))
        digest = zlib.crc32(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode(), digest)
        digest = zlib.crc32(array.tobytes(), digest)
    return f"{digest:08x}"


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]

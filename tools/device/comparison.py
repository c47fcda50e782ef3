"""Compares what a device computes with the same formula in float64 NumPy: values, and gradients of all arguments.

Arguments are exact in bfloat16, so one float64 result serves every dtype.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tools.device.outcome import Deviation, Measured

TOLERANCES = {"float32": 1e-5, "bfloat16": 1e-2}
DIRECTIONS = 4  # along which each gradient is compared
STEP = 1e-5  # of the difference quotient in float64


@dataclass(frozen=True)
class Case:
    """One formula twice: `compute` in JAX, `exact` in NumPy, both called with all arguments by name.

    arguments: differentiated. in_float32: those that stay float32 when the others are bfloat16 (parameters).
    others: neither differentiated nor cast.
    """

    name: str
    compute: Callable[..., jax.Array]
    exact: Callable[..., np.ndarray]
    arguments: Mapping[str, np.ndarray]
    in_float32: frozenset[str] = frozenset()
    others: Mapping[str, Any] = field(default_factory=dict)


def drawn(seed: int, *shape: int) -> np.ndarray:
    """Normal numbers that are exact in bfloat16, as float64."""
    numbers = np.random.default_rng(seed).normal(size=shape)
    return np.asarray(numbers, jnp.bfloat16).astype(np.float64)


def compare(cases: Sequence[Case], types: Sequence[str] = tuple(TOLERANCES), roundings: int = 1) -> Measured:
    """The largest relative error for each dtype.

    roundings: the number of consecutive parts, each with an error of at most TOLERANCES.

    Raises:
        Deviation: an error is larger; all such cases are named.
    """
    jobs = [(case, dtype) for case in cases for dtype in types]
    lowered = [_program(case, dtype) for case, dtype in jobs]
    with futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        compiled = list(threads.map(lambda each: each.compile(), lowered))
    truths = {case.name: _Truth(case) for case in cases}
    errors = {}
    for (case, dtype), program in zip(jobs, compiled, strict=True):
        output, gradients = jax.device_get(program(_cast(case, dtype), jnp.asarray(truths[case.name].towards)))
        for part, error in truths[case.name].errors(output, gradients).items():
            errors[f"{case.name} {dtype} {part}"] = (dtype, error)
    measured = {dtype: max(error for of, error in errors.values() if of == dtype) for dtype in types}
    measured["comparisons"] = len(errors)
    # Written so that NaN is too large.
    large = {name: error for name, (dtype, error) in errors.items() if not error <= roundings * TOLERANCES[dtype]}
    if large:
        worst = sorted(large.items(), key=lambda item: -np.nan_to_num(item[1], nan=np.inf))[:4]
        shown = ", ".join(f"{name} {error:.1e}" for name, error in worst)
        raise Deviation(f"{len(large)} of {len(errors)} comparisons are too far from float64: {shown}", measured)
    return measured


def _program(case: Case, dtype: str) -> jax.stages.Lowered:
    """The lowered program that gives the output and the gradients of sum(output * towards)."""

    def run(arguments: dict[str, jax.Array], towards: jax.Array):
        output, pull = jax.vjp(compute, arguments)
        return output, pull(towards.astype(output.dtype))[0]

    def compute(arguments: dict[str, jax.Array]) -> jax.Array:
        others = {name: jnp.asarray(x) if isinstance(x, np.ndarray) else x for name, x in case.others.items()}
        return case.compute(**arguments, **others)

    cast = _cast(case, dtype)
    shape = jax.eval_shape(compute, cast).shape
    return jax.jit(run).lower(cast, jax.ShapeDtypeStruct(shape, jnp.float32))


def _cast(case: Case, dtype: str) -> dict[str, jax.Array]:
    kept = case.in_float32
    return {name: jnp.asarray(x, "float32" if name in kept else dtype) for name, x in case.arguments.items()}


class _Truth:
    """A case in float64, with slopes along random directions by difference quotients."""

    def __init__(self, case: Case):
        self._case = case
        self.output = case.exact(**case.arguments, **case.others)
        self.towards = drawn(99, *self.output.shape)
        generator = np.random.default_rng(98)
        self._slopes: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for name, x in case.arguments.items():
            directions = generator.normal(size=(DIRECTIONS, *x.shape))
            directions /= np.linalg.norm(directions.reshape(DIRECTIONS, -1), axis=1).reshape(-1, *(1,) * x.ndim)
            self._slopes[name] = directions, np.array([self._slope(name, each) for each in directions])

    def errors(self, output: np.ndarray, gradients: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Of the output, relative to its largest value; of each gradient, relative to its length."""
        output = np.asarray(output, np.float64)
        errors = {"output": np.max(np.abs(output - self.output)) / np.max(np.abs(self.output))}
        for name, gradient in gradients.items():
            gradient, (directions, slopes) = np.asarray(gradient, np.float64), self._slopes[name]
            # A random direction of length 1 shows 1/sqrt(size) of the length of an error.
            wrong = directions.reshape(DIRECTIONS, -1) @ gradient.reshape(-1) - slopes
            length = max(np.linalg.norm(gradient), np.sqrt(gradient.size * np.mean(slopes**2)))
            errors[f"gradient of {name}"] = np.sqrt(gradient.size * np.mean(wrong**2)) / length
        return {name: float(error) for name, error in errors.items()}

    def _slope(self, name: str, direction: np.ndarray) -> float:
        def total(step: float) -> float:
            moved = {**self._case.arguments, name: self._case.arguments[name] + step * direction}
            return np.sum(self._case.exact(**moved, **self._case.others) * self.towards)

        return (total(STEP) - total(-STEP)) / (2 * STEP)

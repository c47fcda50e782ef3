"""Finds how the kernel of lightning attention runs best on this GPU, and writes it into the table that the lab reads.

    python benchmarks/tune_lightning.py             # within two minutes on a GPU
    python benchmarks/tune_lightning.py --quick     # does it run at all? interpreted, on any device

All candidates compile at the same time, in threads. One whose result differs from float64 by more than a hundredth of
the largest number is dropped. The others take turns, forward and in reverse (of which the gradients consist); the
least median wins. It writes flaxformer_lab/functional/lightning_launches.py, and all times with their errors into
benchmarks/results/tune_lightning_gpu.json.
"""

import argparse
import dataclasses
import itertools
import json
import statistics
import time
from concurrent import futures
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from contest import versions, write_result

from flaxformer_lab.compilation import available_cores
from flaxformer_lab.functional import lightning, lightning_kernel, lightning_launches
from flaxformer_lab.functional.lightning_kernel import Launch
from flaxformer_lab.functional.lightning_launches import LAUNCHES

TABLE = Path(lightning_kernel.__file__).with_name("lightning_launches.py")
TOLERANCE = 1e-2  # of the largest number, in bfloat16


class Size(NamedTuple):
    """Of queries, keys and values."""

    batch: int
    tokens: int
    heads: int
    head_dim: int


SIZE, QUICK = Size(4, 32768, 32, 128), Size(1, 40, 2, 16)
CANDIDATES = [
    Launch(block, columns, warps, stages, programs)
    for block, columns, warps in ((64, 64, 4), (64, 128, 8), (64, 128, 4), (128, 64, 8), (128, 128, 8), (64, 64, 8))
    for stages, programs in itertools.product((1, 2, 3), (512, 1024, 2048))
]
QUICK_CANDIDATES = [Launch(16, 16), Launch(16, 16, programs=1)]


@dataclasses.dataclass
class Candidate:
    """A launch, its compiled forward and reverse passes, and what was found."""

    launch: Launch
    passes: list = dataclasses.field(default_factory=list)
    error: float = float("nan")
    seconds: list[float] = dataclasses.field(default_factory=list)
    failure: str = ""

    def compile(self, arrays: list[jax.Array], slopes: jax.Array, interpret: bool) -> None:
        options = {"platform": "gpu", "launch": self.launch, "interpret": interpret}
        try:
            for reverse in (False, True):
                decays = lightning.block_decays(slopes, self.launch.block, reverse)
                attend = lambda *heads, decays, reverse=reverse: lightning_kernel.attend(  # noqa: E731
                    *heads, decays, reverse=reverse, **options
                )
                compiled = jax.jit(attend).lower(*arrays, decays=decays).compile()
                self.passes.append(lambda compiled=compiled, decays=decays: compiled(*arrays, decays=decays))
        except Exception as error:  # a launch that does not fit the device is no candidate
            self.failure = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]

    def time(self) -> None:
        begin = time.perf_counter()
        jax.block_until_ready([each() for each in self.passes])
        self.seconds.append(time.perf_counter() - begin)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds) if self.seconds else float("inf")


def exact(query: np.ndarray, key: np.ndarray, value: np.ndarray, slope: float, block: int = 64) -> np.ndarray:
    """One head in float64, [tokens, features] each, block by block."""
    state, outputs = np.zeros((key.shape[1], value.shape[1])), []
    for begin in range(0, len(query), block):
        q, k, v = (x[begin : begin + block].astype(np.float64) for x in (query, key, value))
        place = np.arange(len(q))
        distance = place[:, None] - place
        mask = np.where(distance >= 0, np.exp(-slope * np.maximum(distance, 0)), 0)
        outputs.append(((q @ k.T) * mask) @ v + np.exp(-slope * (place + 1))[:, None] * (q @ state))
        state = np.exp(-slope * len(q)) * state + (k * np.exp(-slope * (len(q) - 1 - place))[:, None]).T @ v
    return np.concatenate(outputs)


def largest_error(candidate: Candidate, references: list[np.ndarray]) -> float:
    """Of the first and the last head of the first example, forward and in reverse."""
    found = []
    for attend, pair in zip(candidate.passes, references, strict=True):
        output = attend()
        for head, expected in zip((0, -1), pair, strict=True):
            ours = np.asarray(jax.device_get(output[0, :, head]), np.float64)
            found.append(np.abs(ours - expected).max() / np.abs(expected).max())
    return float(max(found))


def main() -> None:
    """Compiles, checks and times the candidates; prints a table and writes the best."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--limit_s", type=float, default=80, help="no candidate compiles or takes a turn later")
    parser.add_argument("--quick", action="store_true", help="two candidates, interpreted; nothing is written")
    arguments = parser.parse_args()
    begin, size = time.perf_counter(), QUICK if arguments.quick else SIZE
    arrays = [jax.random.normal(key, size, jnp.bfloat16) for key in jax.random.split(jax.random.key(0), 3)]
    slopes = lightning.make_slopes("transnormer", size.heads, 0, 2)
    candidates = list(map(Candidate, QUICK_CANDIDATES if arguments.quick else CANDIDATES))

    def prepare(candidate: Candidate) -> None:
        if time.perf_counter() - begin < arguments.limit_s / 2:
            candidate.compile(arrays, slopes, arguments.quick)
        else:
            candidate.failure = "not compiled in time"

    with futures.ThreadPoolExecutor(available_cores()) as threads:
        done = [threads.submit(prepare, candidate) for candidate in candidates]
        heads = [[np.asarray(jax.device_get(x[0, :, head]), np.float32) for x in arrays] for head in (0, -1)]
        by_head = zip(heads, np.asarray(jax.device_get(slopes))[[0, -1]], strict=True)
        forward, reverse = [], []
        for head, slope in by_head:
            forward.append(exact(*head, slope))
            reverse.append(exact(*(x[::-1] for x in head), slope)[::-1])
        futures.wait(done)
    print(f"compiled after {time.perf_counter() - begin:.0f} s")
    for candidate in candidates:
        if not candidate.failure:
            try:
                candidate.error = largest_error(candidate, [forward, reverse])
            except jax.errors.JaxRuntimeError as error:  # too much shared memory is found out when it runs
                candidate.failure = str(error).splitlines()[0][:200]
            else:
                if not candidate.error <= TOLERANCE:
                    candidate.failure = f"error {candidate.error:.1e}"
    sound = [candidate for candidate in candidates if not candidate.failure]
    for _ in range(arguments.rounds):
        for candidate in sound:
            if time.perf_counter() - begin < arguments.limit_s or not candidate.seconds:
                candidate.time()
    ranked = sorted(sound, key=lambda candidate: candidate.median)
    print("| block | columns | warps | stages | programs | ms, forward and reverse | error |")
    print("|---|---|---|---|---|---|---|")
    for each in ranked:
        row = " | ".join(map(str, each.launch))
        print(f"| {row} | {1e3 * each.median:.3f} | {each.error:.1e} |")
    for each in candidates:
        if each.failure:
            print(f"{tuple(each.launch)}: {each.failure}")
    if arguments.quick:
        return
    device, best = jax.devices()[0].device_kind, ranked[0].launch
    table = LAUNCHES | {device: best._asdict()}
    rows = "".join(f"    {json.dumps(name)}: {json.dumps(launch)},\n" for name, launch in table.items())
    TABLE.write_text(f'"""{lightning_launches.__doc__}"""\n\nLAUNCHES = {{\n{rows}}}\n')
    print(f"the best is written to {TABLE}")
    rows = [
        {**each.launch._asdict(), "ms": round(1e3 * each.median, 4), "error": float(f"{each.error:.2e}")}
        for each in ranked
    ]
    result = {"machine": device, "versions": versions(("jax", "jaxlib")), "rounds": arguments.rounds}
    write_result("tune_lightning_gpu", result | {"size": size._asdict(), "candidates": rows})


if __name__ == "__main__":
    main()

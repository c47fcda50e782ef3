"""Time and memory of every kind of attention against length, and of PyTorch and other libraries, in one run.

    python benchmarks/attention_length.py                  # CPU, float32: to 16k tokens, linear kinds to 64k
    python benchmarks/attention_length.py --device=gpu     # bfloat16, 4 x 32 heads of 128, within two minutes
    python benchmarks/attention_length.py --device=gpu --whole    # all kinds from 1k to 64k, and the claims
    python benchmarks/attention_length.py --lengths 64 128 --rounds=2 --heads=2 --head-dim=8   # does it run at all?

Causal attention, forward alone and forward with the gradients of query, key and value. Contestants alternate, each in
its own process; times are medians over rounds, ratios are taken round by round. Memory is what a call needs beside its
arguments: for JAX the compiler's plan (temporaries and outputs), for PyTorch the allocator's peak on a GPU and the
growth of the process on a CPU, as for ejkernel. The exponent is that of memory against length, by least squares on the
logarithms. A peer that is not installed is named.

Then single kinds with their lengths alternating, so that a drift of the machine's speed does not look like growth.
Flatness is the largest time per token over the smallest, from 1k tokens on. And attention over tokens and over features
as the width grows. These two decide two claims of docs/science.md on cost, C9 and C15; they are drawn in
docs/results/attention_cost_cpu.svg (or _gpu).
"""

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from attention_cost import decide_claims, draw_cost
from contest import Contestant, Work, exponent, take_turns, versions, write_result
from train_step import machine

QUADRATIC = ("softmax", "torch_sdpa", "static")
LINEAR = ("lightning", "linear", "channel", "mean", "lightning_kernel", "fla_naive", "ejkernel_lightning")
CPU_LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
GPU_LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768, 65536)
# The cases on a GPU that fit into two minutes, mostly of compiling.
BRIEF_KINDS, BRIEF_LENGTHS = ("softmax", "torch_sdpa", "lightning", "lightning_kernel", "linear"), (1024, 32768)
WIDE, FEW, WIDTHS = ("softmax", "channel"), 256, (32, 64, 128, 256, 512, 1024, 2048)  # one head of all features
GROWING = (("lightning", False), ("lightning", True), ("channel", True), ("softmax", True))  # kind, backward
FIGURES = Path(__file__).parents[1] / "docs" / "results"
LIBRARIES = ("jax", "jaxlib", "torch", "flash-linear-attention", "ejkernel")


def jax_contestant(kind: str, device: str, length: int, backward: bool, batch: int, heads: int, head_dim: int) -> Work:
    """One call of a kind of ours, or of ejkernel's lightning attention."""
    import jax
    import jax.numpy as jnp

    dtype = jnp.float32 if device == "cpu" else jnp.bfloat16
    shape = (batch, length, heads, head_dim)
    query, key, value, towards = (
        jax.random.normal(each, shape, dtype) for each in jax.random.split(jax.random.key(0), 4)
    )
    attend = _ours(kind, heads, head_dim, length)

    def with_gradients(query, key, value, towards):
        output, pull = jax.vjp(attend, query, key, value)
        return output, *pull(towards)

    run = with_gradients if backward else attend
    arguments = (query, key, value, towards) if backward else (query, key, value)

    def work() -> None:
        jax.block_until_ready(run(*arguments))

    if kind != "ejkernel_lightning":  # not traceable: it treats an array as a constant
        run = jax.jit(run)
        plan = run.lower(*arguments).compile().memory_analysis()
        work.peak_bytes = lambda: plan.temp_size_in_bytes + plan.output_size_in_bytes
    return work


def _ours(kind: str, heads: int, head_dim: int, length: int) -> Callable[..., Any]:
    import jax.numpy as jnp

    from flaxformer_lab.functional import attention, lightning
    from flaxformer_lab.functional.linear_attention import linear_attention
    from flaxformer_lab.functional.softmax_attention import softmax_attention

    slopes = lightning.make_slopes("transnormer", heads, 0, 2)
    if kind == "ejkernel_lightning":
        from ejkernel.kernels._xla.lightning_attn import lightning_attn

        return lambda q, k, v: lightning_attn(q, k, v, layer_idx=0, num_layers=2)[0]
    if kind == "static":
        scores = jnp.zeros((heads, length, length))
        return lambda q, k, v: attention.apply_weights(attention.static_weights(scores, length, causal=True), v)
    return {
        "softmax": lambda q, k, v: softmax_attention(q, k, v, causal=True),
        "lightning": lambda q, k, v: lightning.lightning_attention(q, k, v, slopes, implementation="blockwise"),
        "lightning_kernel": lambda q, k, v: lightning.lightning_attention(q, k, v, slopes, implementation="kernel"),
        "linear": lambda q, k, v: linear_attention(q, k, v, causal=True),
        "channel": lambda q, k, v: attention.channel_attention(q, k, v, jnp.ones(heads)),
        "mean": lambda q, k, v: attention.mean_attention(v, causal=True),
    }[kind]


def torch_contestant(
    kind: str, device: str, length: int, backward: bool, batch: int, heads: int, head_dim: int
) -> Work:
    """One call of PyTorch's fused attention, or of flash-linear-attention's form without a kernel."""
    import torch

    torch.manual_seed(0)
    where, dtype = ("cpu", torch.float32) if device == "cpu" else ("cuda", torch.bfloat16)
    if where == "cpu":
        torch.set_num_threads(os.cpu_count() or 1)
    # Each library's layout: heads before tokens for sdpa, after them for flash-linear-attention.
    shape = (batch, heads, length, head_dim) if kind == "torch_sdpa" else (batch, length, heads, head_dim)
    draw = partial(torch.randn, shape, device=where, dtype=dtype)
    query, key, value = (draw(requires_grad=backward) for _ in range(3))
    towards = draw()
    if kind == "torch_sdpa":
        attend = lambda: torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)  # noqa: E731
    else:
        from fla.ops.simple_gla.naive import naive_chunk_simple_gla

        rates = 2.0 ** (-8 * torch.arange(1, heads + 1, device=where) / heads)
        decay = (-rates).expand(batch, length, heads).contiguous()
        attend = lambda: naive_chunk_simple_gla(query, key, value, decay)[0]  # noqa: E731

    def work() -> None:
        output = attend()
        if backward:
            torch.autograd.grad(output, (query, key, value), towards)
        if where == "cuda":
            torch.cuda.synchronize()

    def peak() -> int:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before

    if where == "cuda":
        work.peak_bytes = peak
    return work


def contestant(kind: str, **case: Any) -> Work:
    """The work of a kind, ours or a peer's."""
    build = torch_contestant if kind in ("torch_sdpa", "fla_naive") else jax_contestant
    if build is jax_contestant and case["device"] == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
    # Processes share one GPU, so none may take all of it in advance.
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    return build(kind, **case)


def compare(
    players: dict[str, Contestant], kinds: list[str], case: dict[str, Any], rounds: int
) -> tuple[list[dict], list[dict]]:
    """Rows of one case, one for each kind, and the kinds that are absent or failed; prints both."""
    there, missing, peaks = [], [], {}
    for kind in kinds:
        players[kind].send("prepare", case)
    for kind in kinds:
        try:
            players[kind].answer()
            peaks[kind] = players[kind].ask("peak")
            there.append(players[kind])
        except (ModuleNotFoundError, RuntimeError) as error:
            missing.append({"kind": kind, **case, "reason": str(error).splitlines()[0]})
    rows = [_row(kind, case, times) | {"peak_bytes": peaks[kind]} for kind, times in take_turns(there, rounds).items()]
    start = f"| {case['length']} | {case['heads'] * case['head_dim']} "
    start += f"| {_direction(case['backward'])} "
    for row in rows:
        peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.1f}"
        times = f"{row['milliseconds']:.3f} | {row['microseconds_a_token']:.3f}"
        print(f"{start}| {row['kind']} | {times} | {peak} |", flush=True)
    for each in missing:
        print(f"{start}| {each['kind']} | {each['reason']} | | |", flush=True)
    return rows, missing


def compare_lengths(kind: str, device: str, cases: list[dict[str, Any]], rounds: int) -> list[dict]:
    """Rows of one kind at several lengths, each in its own process, alternating."""
    players = [Contestant(str(case["length"]), contestant, {"kind": kind, "device": device}) for case in cases]
    for player, case in zip(players, cases, strict=True):
        player.ask("prepare", case)
    # A short `least` would let the first call of a turn affect only short lengths.
    seconds = take_turns(players, 2 * rounds, least=0.4)
    for each in players:
        each.end()
    return [_row(kind, case, seconds[str(case["length"])]) for case in cases]


def _row(kind: str, case: dict[str, Any], times: list[float]) -> dict[str, Any]:
    median, tokens = statistics.median(times), case["batch"] * case["length"]
    return {
        "kind": kind,
        **case,
        "milliseconds": round(1e3 * median, 4),
        "microseconds_a_token": round(1e6 * median / tokens, 4),
        "rounds_in_milliseconds": [round(1e3 * each, 4) for each in times],
    }


def summarise(rows: list[dict], grown: list[dict]) -> dict[str, Any]:
    """For each kind and direction: growth of time and memory, ratios between kinds at each length, flatness."""
    summary: dict[str, Any] = {}
    for kind in dict.fromkeys(row["kind"] for row in rows):
        for backward in (False, True):
            own = _of(rows, kind, backward)
            if not own:
                continue
            known = [row for row in own if row["peak_bytes"]]
            of_memory = exponent([row["length"] for row in known], [row["peak_bytes"] for row in known])
            summary[f"{kind}, {_direction(backward)}"] = {
                "time_exponent": _rounded(exponent([r["length"] for r in own], [r["milliseconds"] for r in own])),
                "memory_exponent": _rounded(of_memory),
            }
    pairs = (("torch_sdpa", "softmax"), ("softmax", "lightning"), ("torch_sdpa", "lightning"))
    for slow, fast in (*pairs, ("lightning", "lightning_kernel")):
        ratios = _ratios(rows, slow, fast)
        if ratios:
            summary[f"time of {slow} over that of {fast}"] = ratios
    for kind, backward in GROWING if grown else ():
        own = [row["microseconds_a_token"] for row in _of(grown, kind, backward)]
        summary[f"flatness of {kind}, {_direction(backward)}"] = _rounded(max(own) / min(own))
    return summary


def _of(rows: list[dict], kind: str, backward: bool) -> list[dict]:
    return [row for row in rows if (row["kind"], row["backward"]) == (kind, backward)]


def _direction(backward: bool) -> str:
    return "forward and backward" if backward else "forward"


def _ratios(rows: list[dict], slow: str, fast: str) -> dict[str, float]:
    """By length, the median of the ratios of one round."""
    found = {}
    of = {(row["kind"], row["length"], row["backward"]): row["rounds_in_milliseconds"] for row in rows}
    for kind, length, backward in of:
        if kind == slow and (fast, length, backward) in of:
            pairs = zip(of[slow, length, backward], of[fast, length, backward], strict=True)
            found[f"{length}, {_direction(backward)}"] = round(statistics.median(a / b for a, b in pairs), 3)
    return found


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def main() -> None:
    """Runs the comparison, prints a table and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--lengths", type=int, nargs="*")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--heads", type=int)
    parser.add_argument("--head-dim", type=int)
    parser.add_argument("--kinds", nargs="*", choices=(*QUADRATIC, *LINEAR))
    parser.add_argument("--quadratic-most", type=int, help="longest sequence of the kinds that are quadratic in time")
    parser.add_argument("--forward-only", action="store_true")
    parser.add_argument("--whole", action="store_true", help="all cases on a GPU, which has fewer by default")
    parser.add_argument("--limit_s", type=float, help="no case starts later; default: 80 where a GPU has fewer cases")
    parser.add_argument("--write", action="store_true", help="write the result although some cases were left out")
    arguments = parser.parse_args()
    whole = not (arguments.lengths or arguments.kinds or arguments.forward_only)
    cpu = arguments.device == "cpu"
    brief = not cpu and not arguments.whole
    arguments.batch = arguments.batch or (1 if cpu else 4)
    arguments.heads = arguments.heads or (4 if cpu else 32)
    arguments.head_dim = arguments.head_dim or (64 if cpu else 128)
    most = arguments.quadratic_most or (16384 if cpu else 65536)
    kinds = [kind for kind in (*QUADRATIC, *LINEAR) if not (cpu and kind == "lightning_kernel")]
    kinds = arguments.kinds or (list(BRIEF_KINDS) if brief else kinds)
    lengths = CPU_LENGTHS if cpu else BRIEF_LENGTHS if brief else GPU_LENGTHS
    sizes = {name: getattr(arguments, name) for name in ("batch", "heads", "head_dim")}
    players = {kind: Contestant(kind, contestant, {"kind": kind, "device": arguments.device}) for kind in kinds}
    rows: list[dict] = []
    missing: list[dict] = []
    end = time.perf_counter() + (arguments.limit_s or (80 if brief else math.inf))
    print("| length | width | direction | kind | ms | µs a token | peak MiB |\n|---|---|---|---|---|---|---|")
    for length in arguments.lengths or lengths:
        for backward in (False,) if arguments.forward_only else (False, True):
            # Static attention's parameters are quadratic in tokens, too many for tens of thousands of them. The
            # backward pass of flash-linear-attention's form without a kernel is quadratic in time, and ejkernel, which
            # is not compiled as a whole, needs 200 KiB a token.
            limits = {"static": min(most, 4096), "softmax": most, "torch_sdpa": most}
            limits |= {"fla_naive": 8192, "ejkernel_lightning": 8192}
            gone = {each["kind"] for each in missing if "No module" in each["reason"]}
            now = [kind for kind in kinds if length <= limits.get(kind, length) and kind not in gone]
            case = {"length": length, "backward": backward} | sizes
            if time.perf_counter() > end:
                missing += [{"kind": kind, **case, "reason": "out of time"} for kind in now]
                print(f"| {length} | | {_direction(backward)} | out of time: give a larger --limit_s | | | |")
                continue
            found, absent = compare(players, now, case, arguments.rounds)
            rows, missing = rows + found, missing + absent
    wide: list[dict] = []
    for width in WIDTHS if set(WIDE) <= set(kinds) and not arguments.lengths else ():
        case = {"length": FEW, "backward": True, "batch": 1, "heads": 1, "head_dim": width}
        wide += compare(players, list(WIDE), case, arguments.rounds)[0]
    for each in players.values():
        each.end()
    grown: list[dict] = []
    for kind, backward in GROWING if {kind for kind, _ in GROWING} <= set(kinds) and not arguments.lengths else ():
        long = [length for length in lengths if length >= 1024 and (kind != "softmax" or length <= most)]
        cases = [{"length": length, "backward": backward} | sizes for length in long]
        grown += compare_lengths(kind, arguments.device, cases, arguments.rounds)
    summary = summarise(rows, grown)
    for name, values in summary.items():
        print(f"{name}: {values}")
    if whole or arguments.write:
        result = {"machine": machine(arguments.device), "versions": versions(LIBRARIES), "rounds": arguments.rounds}
        result |= sizes | {"summary": summary}
        if grown:
            result["claims"] = decide_claims(grown, wide)
            draw_cost(rows, wide, FIGURES / f"attention_cost_{arguments.device}.svg", result["machine"])
        write_result(
            f"attention_length_{arguments.device}",
            result | {"rows": rows, "grown": grown, "wide": wide, "missing": missing},
        )


if __name__ == "__main__":
    main()

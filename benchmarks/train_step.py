"""Training speed compared with a Hugging Face GPT-2 on PyTorch: the same shapes, the same batch, one run.

    python benchmarks/train_step.py                # 3 sizes on the CPU, about 5 minutes on 2 cores
    python benchmarks/train_step.py --device=gpu   # GPT-2 124M in bfloat16 and torch.compile, within two minutes

Each contestant has its own process and works only on request, so the two alternate on an otherwise idle machine. A
round is a block of updates by each; rates are medians over rounds, the ratio is taken round by round. An update is
complete: forward, backward, clipping by the global norm, AdamW. The share of peak is the FLOP/s of the matrix products
over those of the fastest large product in the same run. The share of the roofline is the least time of an update, by
the bytes of the program that runs and the device's own rates (`flaxformer_lab/analysis/roofline.py`), over the measured
one. The last column times the FFN's matrix products alone.
"""

import argparse
import os
import platform
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from contest import Contestant, Work, take_turns, timed, versions, write_result


@dataclass(frozen=True)
class Size:
    """A GPT-2 and its batch; steps: updates in one round."""

    name: str
    width: int
    depth: int
    heads: int
    vocabulary: int
    tokens: int
    batch: int
    steps: int

    @property
    def tokens_per_step(self) -> int:
        return self.batch * self.tokens

    @property
    def flops_per_step(self) -> int:
        """FLOPs of the matrix products, forward and backward, with full attention scores, as in GPT-2 papers."""
        kernels = self.depth * 12 * self.width**2 + self.vocabulary * self.width
        return 6 * self.tokens_per_step * (kernels + 2 * self.depth * self.tokens * self.width)


CPU_SIZES = (
    Size("0.1M", width=64, depth=2, heads=4, vocabulary=128, tokens=128, batch=16, steps=20),
    Size("3M", width=256, depth=4, heads=4, vocabulary=128, tokens=128, batch=16, steps=4),
    Size("30M", width=512, depth=9, heads=8, vocabulary=512, tokens=256, batch=4, steps=2),
)
GPU_SIZES = (Size("124M", width=768, depth=12, heads=12, vocabulary=50304, tokens=1024, batch=16, steps=10),)


PROGRAMS: list[Any] = []  # that `ours` has compiled in this process


def ours(size: Size, device: str, **changes: Any) -> Work:
    """One block of updates by the lab's program, which `train.py` runs.

    changes: more of the config, like `**{"model.precision": "high"}`.
    """
    import jax
    import numpy as np

    from flaxformer_lab.config import parse_config
    from flaxformer_lab.parsing import override
    from flaxformer_lab.tasks.examples import token_windows
    from flaxformer_lab.training.experiment import make_experiment
    from flaxformer_lab.training.feeds import make_feeds
    from flaxformer_lab.training.programs import make_run_steps
    from flaxformer_lab.training.state import initial_state

    tree = {
        "task": {"name": "language_modelling", "tokenizer": "bytes", "sequence_length": size.tokens},
        "model": {
            "width": size.width,
            "depth": size.depth,
            "attention": {"num_heads": size.heads},
            "ffn": {"activation": "gelu_tanh"},
            "norm": {"epsilon": 1e-5},
            "causal": True,
            "dtype": "float32" if device == "cpu" else "bfloat16",
        },
        "optimizer": {"learning_rate": 3e-4, "schedule": "constant", "clip_norm": 1.0},
        "training": {"steps": size.steps, "batch_size": size.batch, "steps_per_call": size.steps},
        "parallelism": {"strategy": "single"},
    }
    for key, value in changes.items():
        tree = override(tree, key, value)
    experiment = make_experiment(parse_config(tree), metadata={"num_symbols": size.vocabulary})
    symbols = np.random.default_rng(0).integers(0, 256, 100_000).astype(np.uint8)
    examples = token_windows(symbols, size.tokens, lookahead=1)
    run_steps, data = make_run_steps(experiment, examples)
    state = jax.jit(lambda: initial_state(experiment.network, experiment.optimizer, 0))()
    data = experiment.strategy.place(data)
    feed = next(make_feeds(experiment, examples, [(0, size.steps)]))
    count = experiment.strategy.place(np.int32(size.steps))
    program = run_steps.lower(state, data, feed, count).compile()
    PROGRAMS.append(program)

    def block() -> None:
        nonlocal state
        state, metrics = program(state, data, feed, count)
        jax.block_until_ready((state, metrics))

    return block


def floor(size: Size) -> dict[str, Any]:
    """The least seconds of an update by the last program of `ours`; empty for a device that is not in the table."""
    import jax

    from flaxformer_lab.analysis.hlo import parse_hlo
    from flaxformer_lab.analysis.roofline import Cost, device_of, find_device, roofline

    name = device_of(jax.devices()[0].device_kind)
    if name is None:
        return {}
    # The loop over updates counts once: the compiler does not know its length.
    module = parse_hlo(PROGRAMS[-1].as_text())
    kind = "highest" if name == "cpu" else "bfloat16"
    least = roofline(Cost({kind: size.flops_per_step}, module.num_bytes, "", {}), find_device(name))
    return {"bytes_per_step": module.num_bytes, "roofline_seconds": least.seconds, "bound": least.bound}


def peer(size: Size, device: str) -> Work:
    """One block of updates by GPT2LMHeadModel with fused AdamW; compiled by torch.compile on a GPU."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    torch.manual_seed(0)
    where = "cuda" if device == "gpu" else "cpu"
    if where == "cpu":
        torch.set_num_threads(os.cpu_count())
    config = GPT2Config(
        vocab_size=size.vocabulary,
        n_positions=size.tokens,
        n_embd=size.width,
        n_layer=size.depth,
        n_head=size.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config).to(where).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.0, fused=True)
    symbols = torch.randint(0, min(256, size.vocabulary), (size.steps, size.batch, size.tokens), device=where)
    forward = torch.compile(model) if device == "gpu" else model

    def block() -> None:
        for inputs in symbols:
            with torch.autocast(where, torch.bfloat16, enabled=device == "gpu"):
                loss = forward(inputs, labels=inputs).loss
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        if device == "gpu":
            torch.cuda.synchronize()

    return block


def product_speeds(size: Size, device: str, library: str) -> tuple[float, float]:
    """FLOP/s of single matrix products: the best of a large square one, and the median of the FFN's three.

    The three are x W, its gradient for x and its gradient for W, at the size's shapes and in the dtype of training.
    """
    n = 2048 if device == "cpu" else 8192
    tokens, width = size.tokens_per_step, size.width
    if library == "jax":
        import jax
        import jax.numpy as jnp

        dtype = jnp.float32 if device == "cpu" else jnp.bfloat16
        draw = lambda *shape: jax.random.normal(jax.random.key(0), shape, dtype)  # noqa: E731
        compile_, wait = jax.jit, jax.block_until_ready
    else:
        import torch

        where, dtype = ("cpu", torch.float32) if device == "cpu" else ("cuda", torch.bfloat16)
        draw = lambda *shape: torch.randn(*shape, device=where, dtype=dtype)  # noqa: E731
        compile_ = lambda function: function  # noqa: E731
        wait = lambda result: torch.cuda.synchronize() if device == "gpu" else None  # noqa: E731

    def flops(product: Callable, left, right, operations: int) -> list[float]:
        product = compile_(product)
        wait(product(left, right))
        return [operations / timed(lambda: wait(product(left, right))) for _ in range(20)]

    square = draw(n, n)
    peak = max(flops(lambda a, b: a @ b, square, square, 2 * n**3))
    x, weight, gradient = draw(tokens, width), draw(width, 4 * width), draw(tokens, 4 * width)
    operations = 2 * tokens * width * 4 * width
    three = (
        flops(lambda a, b: a @ b, x, weight, operations),
        flops(lambda a, b: a @ b.T, gradient, weight, operations),
        flops(lambda a, b: a.T @ b, x, gradient, operations),
    )
    return peak, 3 / sum(1 / statistics.median(each) for each in three)


def contestant(library: str, device: str, size: Size) -> Work:
    """The block of updates of one library."""
    if library == "jax" and device == "gpu":
        os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = "0.45"
    return {"jax": ours, "torch": peer}[library](size, device)


def compare(size: Size, device: str, rounds: int) -> dict:
    """Alternates the two contestants; returns speeds, their ratio, and shares of the matmul peak."""
    players = [Contestant(name, contestant, {"library": name, "device": device}) for name in ("jax", "torch")]
    for each in players:  # both compile at the same time
        each.send("prepare", {"size": size})
    for each in players:
        each.answer()
    found = {each.name: each.ask("call", product_speeds, size, device, each.name) for each in players}
    least = players[0].ask("call", floor, size)
    peaks, products = ({name: pair[place] for name, pair in found.items()} for place in (0, 1))
    # OpenMP's threads spin for a while after their work, on the cores that the other contestant needs.
    seconds = take_turns(players, rounds, pause=1 if device == "cpu" else 0.1, least=0)
    for each in players:
        each.end()
    peak = max(peaks.values())
    flops = size.flops_per_step * size.steps
    ratios = sorted(torch / jax for jax, torch in zip(seconds["jax"], seconds["torch"], strict=True))
    seconds_per_step = statistics.median(seconds["jax"]) / size.steps
    reached = {"jax_share_of_roofline": round(least["roofline_seconds"] / seconds_per_step, 3)} if least else {}
    speeds = {library: size.steps * size.tokens_per_step / statistics.median(t) for library, t in seconds.items()}
    return {
        **asdict(size),
        "rounds": rounds,
        "jax_tokens_per_second": round(speeds["jax"]),
        "torch_tokens_per_second": round(speeds["torch"]),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_range": [round(ratios[0], 2), round(ratios[-1], 2)],
        "matmul_peak_gflops": round(peak / 1e9),
        "jax_ffn_products_gflops": round(products["jax"] / 1e9),
        "torch_ffn_products_gflops": round(products["torch"] / 1e9),
        "jax_share_of_peak": round(flops / statistics.median(seconds["jax"]) / peak, 3),
        "torch_share_of_peak": round(flops / statistics.median(seconds["torch"]) / peak, 3),
        **least,
        **reached,
    }


def machine(device: str) -> str:
    """A description of the machine."""
    if device == "gpu":
        import torch

        return torch.cuda.get_device_name()
    facts = Path("/proc/cpuinfo")  # of Linux alone
    lines = facts.read_text().splitlines() if facts.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores of {names[0] if names else platform.processor()}, {platform.system()}, float32"


def main() -> None:
    """Runs the comparison, prints a table and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--sizes", nargs="*", help="names of sizes; default: all")
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
    sizes = CPU_SIZES if arguments.device == "cpu" else GPU_SIZES
    rows = []
    columns = ("size", "flaxformer_lab tokens/s", "transformers tokens/s", "ratio (range)")
    columns += ("share of matmul peak", "share of roofline", "FFN products alone")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for size in sizes:
        if arguments.sizes and size.name not in arguments.sizes:
            continue
        row = compare(size, arguments.device, arguments.rounds)
        rows.append(row)
        low, high = row["ratio_range"]
        print(
            f"| {size.name} | {row['jax_tokens_per_second']:,} | {row['torch_tokens_per_second']:,} "
            f"| {row['ratio']:.2f} ({low:.2f} to {high:.2f}) "
            f"| {row['jax_share_of_peak']:.0%} beside {row['torch_share_of_peak']:.0%} "
            f"| {f'{share:.0%}' if (share := row.get('jax_share_of_roofline')) else 'device not in the table'} "
            f"| {row['jax_ffn_products_gflops']} beside {row['torch_ffn_products_gflops']} GFLOP/s |",
            flush=True,
        )
    if not arguments.sizes:
        found = versions(("jax", "flax", "optax", "torch", "transformers"))
        result = {"machine": machine(arguments.device), "versions": found, "sizes": rows}
        write_result(f"train_step_{arguments.device}", result)


if __name__ == "__main__":
    main()

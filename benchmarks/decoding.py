"""Tokens per second of decoding: our cache and that of a GPT-2 of transformers of the same size, in one run.

    python benchmarks/decoding.py                  # CPU, float32
    python benchmarks/decoding.py --device=gpu     # bfloat16, within two minutes
    python benchmarks/decoding.py --before=../before   # and the code of another checkout, in the same rounds
    python benchmarks/decoding.py --sizes tiny --rounds=2    # does it run at all?

Greedy, with the same prompt lengths and numbers of new tokens on both sides, and random weights. Contestants alternate,
each in its own process; rates are medians over rounds, ratios are taken round by round. The time includes reading the
prompt. Others: a lightning model of the same width, whose state does not grow, and weights in 8 bits. The share of the
roofline is the time in which the device could read the weights and the filled part of the cache once a step, over the
time that a step took; where the bandwidth of the device is not known there is none.
"""

import argparse
import functools
import math
import os
import statistics
import sys
from dataclasses import asdict, dataclass
from typing import Any

from contest import Contestant, Work, take_turns, versions, write_result
from train_step import machine


@dataclass(frozen=True)
class Size:
    """A GPT-2, its prompt length, and how many symbols it writes."""

    name: str
    width: int
    depth: int
    heads: int
    vocabulary: int
    batch: int
    prompt: int
    new: int
    uneven: bool = False  # prompts of 1 to `prompt` symbols, in half the context: texts are read again one by one

    @property
    def context(self) -> int:
        return (self.prompt + self.new) // (2 if self.uneven else 1)


SIZES = {
    "cpu": (
        Size("0.1M", width=64, depth=2, heads=4, vocabulary=128, batch=1, prompt=32, new=224),
        Size("3M", width=256, depth=4, heads=4, vocabulary=128, batch=1, prompt=32, new=224),
        Size("3M, 8 texts", width=256, depth=4, heads=4, vocabulary=128, batch=8, prompt=32, new=224),
        Size("3M, 32 uneven texts", 256, 4, 4, vocabulary=128, batch=32, prompt=64, new=192, uneven=True),
        Size("30M", width=512, depth=9, heads=8, vocabulary=512, batch=1, prompt=64, new=192),
    ),
    "gpu": (
        Size("124M", width=768, depth=12, heads=12, vocabulary=50304, batch=1, prompt=64, new=192),
        Size("124M, 32 texts", width=768, depth=12, heads=12, vocabulary=50304, batch=32, prompt=64, new=192),
    ),
}
GPU_SECONDS = 30  # of all rounds: with preparation the benchmark ends within two minutes
TINY = Size("tiny", width=16, depth=1, heads=2, vocabulary=16, batch=2, prompt=3, new=9)


def ours(size: Size, device: str, kind: str, before: str | None = None) -> Work:
    """One batch of texts by the lab's decoder, which `generate` uses; before: by that of another checkout."""
    if before:
        sys.path.insert(0, before)
    import jax
    import numpy as np

    from flaxformer_lab.compilation import use_compilation_cache
    from flaxformer_lab.config import parse_config
    from flaxformer_lab.models.decoding import Decoder
    from flaxformer_lab.tasks import make_task

    use_compilation_cache()  # of autotuned products too, which take XLA most of its time on a GPU
    tree: dict[str, Any] = {
        "task": {"name": "language_modelling", "tokenizer": "bytes", "sequence_length": size.context},
        "model": {
            "width": size.width,
            "depth": size.depth,
            "attention": {"num_heads": size.heads, "kind": "softmax" if kind == "int8" else kind},
            "ffn": {"activation": "gelu_tanh"},
            "norm": {"epsilon": 1e-5},
            "causal": True,
            "dtype": "float32" if device == "cpu" else "bfloat16",
        },
    }
    if kind == "lightning":
        tree["model"]["attention"] |= {"activation": "silu", "norm": "srmsnorm"}
    config = parse_config(tree)
    network = make_task(config.task, {"num_symbols": size.vocabulary}).network(config.model)
    params, model_state = network.init(jax.random.key(0))
    if kind == "int8":
        from flaxformer_lab.models.quantization import quantized

        params = quantized(network, params)
    decoder = Decoder(network, params, model_state, context=size.context, temperature=0.0)
    prompts = list(np.random.default_rng(0).integers(0, size.vocabulary, (size.batch, size.prompt)))
    if size.uneven:
        prompts = [prompt[: 1 + number * size.prompt // size.batch] for number, prompt in enumerate(prompts)]

    def work() -> None:
        written = sum(len(row) for pieces in decoder.write(prompts, size.new) for row in pieces)
        assert written == size.batch * size.new

    work.step_bytes = None if before else step_bytes(size, network, decoder)
    return work


def step_bytes(size: Size, network: Any, decoder: Any) -> int:
    """What a step must read: the weights as the decoder keeps them, without tables, and half-way's cache."""
    import jax
    import jax.numpy as jnp

    from flaxformer_lab.functional.trees import leaf_paths

    params, model_state = decoder._variables
    weights = {name: leaf.nbytes for name, leaf in leaf_paths(params).items()}
    tables = ("embedding.", "body.position")  # of which a step reads a row
    read = sum(number for name, number in weights.items() if not name.startswith(tables))
    symbols, lengths = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((size.batch, 1), (size.batch,)))
    prefill = functools.partial(network.prefill, room=min(size.context, size.prompt + size.new // 2))
    _, cache = jax.eval_shape(prefill, params, model_state, symbols, lengths)
    return read + sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))


def peer(size: Size, device: str) -> Work:
    """One batch of texts by GPT2LMHeadModel.generate with its cache."""
    if size.uneven:
        raise RuntimeError("GPT2LMHeadModel does not go on beyond its context")
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    torch.manual_seed(0)
    where = "cuda" if device == "gpu" else "cpu"
    if where == "cpu":
        torch.set_num_threads(os.cpu_count() or 1)
    config = GPT2Config(
        vocab_size=size.vocabulary,
        n_positions=size.context,
        n_embd=size.width,
        n_layer=size.depth,
        n_head=size.heads,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = GPT2LMHeadModel(config).to(where, torch.float32 if device == "cpu" else torch.bfloat16).eval()
    prompts = torch.randint(0, size.vocabulary, (size.batch, size.prompt), device=where)
    attended = torch.ones_like(prompts)
    options = {"do_sample": False, "use_cache": True, "min_new_tokens": size.new, "max_new_tokens": size.new}

    def work() -> None:
        with torch.inference_mode():
            written = model.generate(prompts, attention_mask=attended, **options)
        assert written.shape[1] == size.context

    return work


def bytes_of(work: Work) -> int | None:
    """What a step of a contestant's work must read."""
    return getattr(work, "step_bytes", None)


def contestant(name: str, device: str, size: Size, before: str | None) -> Work:
    """The work of one contestant."""
    if device == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
    # Processes share one GPU, so none may take all of it in advance.
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    if name == "transformers":
        return peer(size, device)
    return ours(size, device, "softmax", before) if name == "before" else ours(size, device, name)


def compare(size: Size, device: str, rounds: int, before: str | None) -> dict[str, Any]:
    """Tokens per second of each contestant, our ratio to the peer round by round, and why contestants are absent."""
    names = [
        "softmax",
        *(["before"] if before else []),
        "lightning",
        *(["int8"] if device == "gpu" else []),
        "transformers",
    ]
    options = {"device": device, "before": before}
    players = [Contestant(name, contestant, {"name": name} | options) for name in names]
    there, missing = [], {}
    for each in players:
        each.send("prepare", {"size": size})
    for each in players:
        try:
            each.answer()
            there.append(each)
        except (ModuleNotFoundError, RuntimeError) as error:
            missing[each.name] = str(error).splitlines()[0]
            each.end()
    limit_s = GPU_SECONDS / len(SIZES["gpu"]) if device == "gpu" else math.inf
    seconds = take_turns(there, rounds, pause=1.0 if device == "cpu" else 0.1, limit_s=limit_s)
    must_read = {each.name: each.ask("work", bytes_of) for each in there}
    for each in there:
        each.end()
    tokens = size.batch * size.new
    row = asdict(size) | {"rounds": min(map(len, seconds.values()), default=0), "missing": missing}
    row |= {f"{name}_tokens_per_second": round(tokens / statistics.median(t)) for name, t in seconds.items()}
    from flaxformer_lab.analysis.roofline import DEVICES, device_of

    name = device_of(machine(device)) if device == "gpu" else None
    peak = DEVICES[name].bandwidth if name else None
    for name, number in must_read.items():
        if number:
            row[f"{name}_bytes_per_step"] = number
            step = statistics.median(seconds[name]) / size.new
            row |= {f"{name}_share_of_roofline": round(number / peak / step, 3)} if peak else {}
    for name, other in (("softmax", "transformers"), ("lightning", "transformers"), ("softmax", "before")):
        if name in seconds and other in seconds:
            pairs = zip(seconds[other], seconds[name], strict=True)
            ratios = sorted(theirs / own for theirs, own in pairs)
            key = f"{name}_ratio" if other == "transformers" else f"{name}_ratio_to_before"
            row |= {key: round(statistics.median(ratios), 2)}
            row |= {f"{key}_range": [round(ratios[0], 2), round(ratios[-1], 2)]}
    return row


def main() -> None:
    """Runs the comparison, prints a table and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--before", help="another checkout of this repository, whose decoder takes part")
    parser.add_argument("--sizes", nargs="*", help="names of sizes, or tiny; default: all but tiny")
    arguments = parser.parse_args()
    rows = []
    columns = ("size", "softmax tokens/s", "transformers tokens/s", "ratio (range)", "lightning tokens/s")
    columns += ("int8 tokens/s", "share of the roofline", "times the code before (range)")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for size in (*SIZES[arguments.device], TINY):
        if size.name not in (arguments.sizes or [size.name for size in SIZES[arguments.device]]):
            continue
        row = compare(size, arguments.device, arguments.rounds, arguments.before)
        rows.append(row)
        theirs = row.get("transformers_tokens_per_second", row["missing"].get("transformers"))
        low, high = row.get("softmax_ratio_range", ("", ""))
        print(
            f"| {size.name} | {row.get('softmax_tokens_per_second')} | {theirs} "
            f"| {row.get('softmax_ratio', '')} ({low} to {high}) | {row.get('lightning_tokens_per_second')} "
            f"| {row.get('int8_tokens_per_second', '')} | {row.get('softmax_share_of_roofline', '')} "
            f"| {row.get('softmax_ratio_to_before', '')} {row.get('softmax_ratio_to_before_range', '')} |",
            flush=True,
        )
    if not arguments.sizes:
        result = {
            "machine": machine(arguments.device),
            "versions": versions(("jax", "jaxlib", "torch", "transformers")),
        }
        write_result(f"decoding_{arguments.device}", result | {"sizes": rows})


if __name__ == "__main__":
    main()

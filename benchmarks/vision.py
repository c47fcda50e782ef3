"""Fashion-MNIST in five minutes on two cores: a ViT and a CNN of 0.2M parameters, beside the same models in PyTorch.

    python benchmarks/vision.py                       # 600 CPU seconds (5 minutes of 2 cores) each, 5 seeds: 3.5 hours
    python benchmarks/vision.py --cpu_seconds=60 --seeds=0

Every contestant trains in a process of its own. It times a few updates first, and then trains for as many as fit into
the budget of CPU seconds, with AdamW and a rate that falls to 0 over them; compiling and evaluation do not count. All
have batches of 128 images, moved by up to a pixel and mirrored half of the time. CPU seconds stand beside wall time,
since a busy machine changes the one less than the other. Needs the `parity` extra, and the data
(tools/fetch_fashion_mnist.py).
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from typing import Any

import numpy as np
from contest import versions, write_result

MODELS = ("vit", "cnn_2d")
BATCH, RATE, DECAY, WARMUP = 128, 3e-3, 0.05, 100
WIDTHS, DEPTH, HEADS, HIDDEN, PATCH = {"vit": 80, "cnn_2d": 61}, 3, 4, 240, 4
TIMED = 40  # updates

Images = np.ndarray


def data() -> dict[str, tuple[Images, np.ndarray]]:
    """Images [number, 28, 28, 1] and labels of both splits that are used."""
    from flaxformer_lab.data.source import open_split

    loaded = {split: open_split("fashion_mnist", split).load() for split in ("train", "test")}
    return {split: (arrays["image"], arrays["label"]) for split, arrays in loaded.items()}


def ours(model: str, seed: int, seconds: float) -> dict[str, Any]:
    """The lab's train step, as `train.py` compiles it."""
    import jax

    from flaxformer_lab.config import parse_config
    from flaxformer_lab.models.cost import parameters
    from flaxformer_lab.training.evaluation import make_evaluate
    from flaxformer_lab.training.experiment import make_experiment
    from flaxformer_lab.training.feeds import call_schedule, make_feeds
    from flaxformer_lab.training.programs import make_run_steps
    from flaxformer_lab.training.state import initial_state

    body = {"name": "transformer", "attention": {"num_heads": HEADS}, "ffn": {"expansion": HIDDEN / WIDTHS["vit"]}}
    body = body if model == "vit" else {"name": model}

    def train(steps: int) -> tuple[float, float, Any, Any]:
        tree = {
            "seed": seed,
            "task": {"dataset": "fashion_mnist", "patch_size": PATCH, "shift": 1, "flip": True},
            "model": body | {"width": WIDTHS[model], "depth": DEPTH},
            "optimizer": {
                "name": "adamw",
                "learning_rate": RATE,
                "schedule": "linear",
                "warmup_steps": min(WARMUP, steps // 4),
                "weight_decay": DECAY,
            },
            "training": {"steps": steps, "batch_size": BATCH, "steps_per_call": TIMED, "evaluate_batch_size": 1000},
            "parallelism": {"strategy": "single"},
        }
        experiment = make_experiment(parse_config(tree))
        examples = experiment.task.examples("train")
        schedule = call_schedule(experiment.config, 0, steps)
        run_steps, arrays = make_run_steps(experiment, examples)
        arrays = experiment.strategy.place(arrays)
        first = jax.jit(lambda: initial_state(experiment.network, experiment.optimizer, seed))
        warm = experiment.strategy.place(np.int32(1))
        state, _ = run_steps(first(), arrays, next(make_feeds(experiment, examples, schedule[:1])), warm)
        jax.block_until_ready(state)
        state = first()
        begin = time.process_time(), time.perf_counter()
        for (_, count), feed in zip(schedule, make_feeds(experiment, examples, schedule), strict=True):
            state, _ = run_steps(state, arrays, feed, experiment.strategy.place(np.int32(count)))
        jax.block_until_ready(state)
        return time.process_time() - begin[0], time.perf_counter() - begin[1], experiment, state

    steps = max(TIMED, int(seconds / train(TIMED)[0] * TIMED) // TIMED * TIMED)
    cpu, wall, experiment, state = train(steps)
    found = make_evaluate(experiment)(state.params, state.model_state, experiment.task.examples("test"))
    return _result(steps, cpu, wall, float(found["accuracy"]), parameters(state.params))


def peer(model: str, seed: int, seconds: float) -> dict[str, Any]:
    """The same in PyTorch, with its own attention and convolutions."""
    import torch
    from torch import nn
    from torch.nn import functional

    torch.manual_seed(seed)
    torch.set_num_threads(os.cpu_count())
    width, tokens = WIDTHS[model], (28 // PATCH) ** 2

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            parts = self.qkv(self.norm(x)).reshape(len(x), tokens, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
            y = functional.scaled_dot_product_attention(*parts)
            return x + self.out(y.transpose(1, 2).reshape(len(x), tokens, width))

    class FeedForward(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, HIDDEN), nn.Linear(HIDDEN, width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.down(functional.gelu(self.up(self.norm(x))))

    class Convolutions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(width)
            self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.norm(x).transpose(1, 2).reshape(len(x), width, 28 // PATCH, -1)
            y = self.second(functional.gelu(self.first(y)))
            return x + y.flatten(2).transpose(1, 2)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(1, width, PATCH, stride=PATCH)
            positions = torch.randn(tokens, width) / width**0.5
            self.position = nn.Parameter(positions) if model == "vit" else None
            parts = [
                part()
                for _ in range(DEPTH)
                for part in ((Attention, FeedForward) if self.position is not None else (Convolutions,))
            ]
            self.body, self.norm, self.head = nn.Sequential(*parts), nn.LayerNorm(width), nn.Linear(width, 10)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            x = self.patches(images).flatten(2).transpose(1, 2)
            x = x if self.position is None else x + self.position
            return self.head(self.norm(self.body(x)).mean(dim=1))

    arrays = {
        split: (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1, torch.from_numpy(labels))
        for split, (images, labels) in data().items()
    }
    images, labels = arrays["train"]

    def changed(batch: torch.Tensor) -> torch.Tensor:
        """Moved by up to a pixel each way, and mirrored half of the time."""
        padded, places = functional.pad(batch, (1, 1, 1, 1), mode="replicate"), torch.arange(28)
        rows, columns = (torch.randint(3, (len(batch), 1)) + places[None] for _ in range(2))
        columns = torch.where(torch.rand(len(batch), 1) < 0.5, columns.flip(1), columns)
        return padded[torch.arange(len(batch))[:, None, None], 0, rows[:, :, None], columns[:, None]][:, None]

    def train(steps: int) -> tuple[float, float, nn.Module]:
        network = Network()
        optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY, fused=True)
        warmup = min(WARMUP, steps // 4)

        def rate(step: int) -> float:
            return min((step + 1) / warmup, (steps - step) / (steps - warmup))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        begin, order = (time.process_time(), time.perf_counter()), torch.randperm(len(images))
        for step in range(steps):
            start = step * BATCH % (len(images) - BATCH)
            rows = order[start : start + BATCH]
            loss = functional.cross_entropy(network(changed(images[rows])), labels[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        return time.process_time() - begin[0], time.perf_counter() - begin[1], network

    train(TIMED)  # warms up
    steps = max(TIMED, int(seconds / train(TIMED)[0] * TIMED))
    cpu, wall, network = train(steps)
    with torch.inference_mode():
        parts = zip(arrays["test"][0].split(1000), arrays["test"][1].split(1000), strict=True)
        right = sum(int((network(x).argmax(dim=1) == y).sum()) for x, y in parts)
    size = sum(each.numel() for each in network.parameters())
    return _result(steps, cpu, wall, right / len(arrays["test"][1]), size)


def _result(steps: int, cpu: float, wall: float, accuracy: float, size: int) -> dict[str, Any]:
    speed = steps * BATCH / cpu
    return {
        "updates": steps,
        "cpu_seconds": round(cpu, 2),
        "wall_seconds": round(wall, 2),
        "images_per_cpu_second": round(speed, 1),
        "accuracy": round(accuracy, 4),
        "parameters": size,
    }


CONTESTANTS = {"ours": ours, "pytorch": peer}


def main() -> None:
    """Trains every contestant in turn and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu_seconds", type=float, default=600)
    parser.add_argument("--seeds", type=lambda text: [*map(int, text.split(","))], default=[*range(5)])
    parser.add_argument("--only", nargs=3, metavar=("WHO", "MODEL", "SEED"), help="one of them, in this process")
    arguments = parser.parse_args()
    if arguments.only:
        who, model, seed = arguments.only
        print(json.dumps(CONTESTANTS[who](model, int(seed), arguments.cpu_seconds)))
        return
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in arguments.seeds:
        for model in MODELS:
            for who in CONTESTANTS:
                command = [
                    sys.executable,
                    __file__,
                    f"--cpu_seconds={arguments.cpu_seconds}",
                    "--only",
                    who,
                    model,
                    str(seed),
                ]
                ran = subprocess.run(command, check=True, capture_output=True, text=True)
                found.setdefault(f"{model}, {who}", []).append(json.loads(ran.stdout.splitlines()[-1]))
                print(f"{model}, {who}, seed {seed}: {found[f'{model}, {who}'][-1]}", flush=True)
    names = ("flaxformer_lab", "jax", "jaxlib", "torch", "numpy")
    machine = f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}"
    budget = {"cpu_seconds": arguments.cpu_seconds, "machine": machine, "versions": versions(names)}
    write_result("vision_cpu", budget | {"runs": found})


if __name__ == "__main__":
    main()

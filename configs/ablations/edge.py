"""Do CNNs still beat Transformers at the edge? Claim C21: scores against bytes, FLOPs and latency, float32 and int8.

A CNN, a ViT, Transformers with linear and with lightning attention, and a Mixer, each at several sizes, and every one
written as ONNX files, in float32 and int8, and timed on one thread of onnxruntime. CNNs are compared with Transformers
of all three kinds together, along their Pareto fronts.

Forms: the default has digits; `edge.py:short` fewer sizes and updates; `edge.py:full` larger models, and
Fashion-MNIST (tools/fetch_fashion_mnist.py places its files).

Command: python -m flaxformer_lab.ablate --config=configs/ablations/edge.py --workdir=runs/edge
On a machine where nothing else runs, --measure_again then measures the files again.
Hardware: 2 cores of an AMD EPYC, shared with other work: 46 minutes. Result: docs/results/edge.md.
"""

from itertools import product
from typing import Any, Literal

# Width and depth of each family's members, about 850, 2,600, 10,000, 28,000, 160,000 and 300,000 parameters.
TRANSFORMER = ((8, 1), (16, 1), (24, 2), (40, 2), (80, 3), (96, 4))
SIZES = {
    "CNN": ((6, 1), (12, 1), (16, 2), (28, 2), (56, 3), (64, 4)),
    "ViT": TRANSFORMER,
    "linear attention": TRANSFORMER,
    "lightning attention": TRANSFORMER,
    "Mixer": ((8, 1), (16, 1), (28, 2), (52, 2), (112, 3), (136, 4)),
}
ABLATIONS = {
    "CNN": "cnn_2d",
    "linear attention": "linear_attention",
    "lightning attention": "lightning_attention",
    "Mixer": "mixer",
}
TRANSFORMERS = ("ViT", "linear attention", "lightning attention")
COSTS = ("bytes", "flops", "latency")
# The seeds of a cell share their graph; on a busy machine their latencies differed by 1.08 in the median cell.
LATENCY_RATIO = 1.25


def _series(sizes: int) -> dict[str, tuple[str, ...]]:
    """The names of each family's members; the recipe's own model is a ViT's third."""
    names = {family: [f"{family} {w} x {d}" for w, d in members[:sizes]] for family, members in SIZES.items()}
    names["ViT"][2] = "baseline"
    return {family: tuple(members) for family, members in names.items()}


def _variants(sizes: int) -> dict[str, dict[str, Any]]:
    variants = {}
    for family, names in _series(sizes).items():
        for name, (width, depth) in zip(names, SIZES[family], strict=False):
            model: dict[str, Any] = {"width": width, "depth": depth}
            if family == "Mixer":
                model |= {"token_hidden": max(8, width // 2), "expansion": 2.0}
            elif family != "CNN":
                model["attention"] = {"num_heads": 2 if width < 24 else 4}
            change = {"model": model}
            variants[name] = change | ({"ablation": ABLATIONS[family]} if family in ABLATIONS else {})
    del variants["baseline"]
    return variants


def _task(recipe: str, steps: int, batch_size: int, **task: Any) -> dict[str, Any]:
    training = {"steps": steps, "evaluate_every": steps // 10, "checkpoint_every": steps, "steps_per_call": steps // 10}
    model = {"width": 24, "depth": 2, "attention": {"num_heads": 4}, "ffn": {"expansion": 2.0, "activation": "gelu"}}
    return {
        "recipe": f"../{recipe}.py",
        "overrides": {
            "task": {"shift": 0} | task,
            "model": model,
            "optimizer": {"name": "adamw", "warmup_steps": 20, "schedule": "cosine"},
            "training": training | {"batch_size": batch_size, "evaluate_batch_size": 512},
        },
    }


def _comparison(task: str, precision: str, cost: str, series: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    transformers = tuple(name for family in TRANSFORMERS for name in series[family])
    quantity = {"task": task} | ({"measure": "int8_score"} if precision == "int8" else {})
    words = {"bytes": "bytes", "flops": "FLOPs", "latency": "latency"}[cost]
    return {
        "name": f"{task} {precision} {cost}",
        "question": f"{task}, {precision}: do CNNs beat Transformers at equal {words}?",
        "more": quantity | {"front": series["CNN"]},
        "less": quantity | {"front": transformers},
        "at_equal": "forward_flops" if cost == "flops" else f"{precision}_{cost}",
        "cost_ratio": LATENCY_RATIO if cost == "latency" else 1.0,
        "threshold": 0.0,
        "because": "the sign alone is asked for",
    }


def _claim(tasks: tuple[str, ...], series: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    precisions = ("float32", "int8")

    def when(**answers: str) -> dict[str, str]:
        """The same answer by kind of cost, on all tasks and in both precisions."""
        pairs = product(tasks, precisions, answers.items())
        return {f"{task} {precision} {cost}": answer for task, precision, (cost, answer) in pairs}

    conclusions = (
        (
            "supported",
            "CNNs score more at equal bytes, FLOPs and latency",
            when(bytes="yes", flops="yes", latency="yes"),
        ),
        (
            "refuted",
            "Transformers score more at equal bytes, FLOPs and latency",
            when(bytes="no", flops="no", latency="no"),
        ),
        (
            "supported only when",
            "bytes or FLOPs are scarce: at equal latency CNNs do not win everywhere",
            when(bytes="yes", flops="yes"),
        ),
        (
            "supported only when",
            "bytes or time are scarce: at equal FLOPs CNNs do not win everywhere",
            when(bytes="yes", latency="yes"),
        ),
        (
            "supported only when",
            "FLOPs or time are scarce: at equal bytes CNNs do not win everywhere",
            when(flops="yes", latency="yes"),
        ),
        ("supported only when", "bytes are scarce", when(bytes="yes")),
        ("supported only when", "FLOPs are scarce", when(flops="yes")),
        ("supported only when", "time is scarce", when(latency="yes")),
        ("refuted", "at no kind of cost CNNs win on all data in both precisions", {}),
    )
    return {
        "name": "C21",
        "statement": "At the edge CNNs still beat Transformers.",
        "source": "the debate that founded the lab: docs/science.md",
        "comparisons": tuple(_comparison(*each, series) for each in product(tasks, precisions, COSTS)),
        "conclusions": tuple({"verdict": v, "reason": r, "when": answers} for v, r, answers in conclusions),
    }


def get_config(form: Literal["digits", "short", "full"] = "digits") -> dict[str, Any]:
    """The ablation: `digits`, `short` or `full`."""
    sizes = {"digits": 4, "short": 3, "full": 6}[form]
    tasks = {"digits": _task("digits", 200 if form == "short" else 800, 64)}
    if form == "full":
        tasks["fashion"] = _task("fashion_mnist", 2000, 128, flip=False)
    return {
        "question": "Do CNNs still beat Transformers at the edge?",
        "tasks": tasks,
        "variants": _variants(sizes),
        "series": _series(sizes),
        "learning_rates": (0.01, 0.03, 0.1),
        "score_tolerance": 0.005,  # of accuracy: less than two of 300 images
        "seeds": tuple(range(5 if form == "short" else 10)),
        "keep": "chosen",
        "exports": True,
        "claims": (_claim(tuple(tasks), _series(sizes)),),
    }

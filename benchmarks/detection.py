"""Images a second of a detector's train step, beside transformers' DETR and torchvision's Faster R-CNN, in one run.

    python benchmarks/detection.py                 # CPU, float32
    python benchmarks/detection.py --rounds=2 --batch=2    # does it run at all?

Forward pass, loss with its assignment, backward pass and AdamW, on the same images of 64 x 64 pixels with two objects,
random weights, and a backbone of four convolutions of stride 8. Contestants alternate, each in its own process; rates
are medians over rounds, ratios are taken round by round. The peers' backbones, widths and numbers of blocks, queries,
anchors and proposals are ours; their parts differ where they have no knob: DETR's norms and its places in every block,
torchvision's sampling and its heads.
"""

import argparse
import os
import statistics
from typing import Any

from contest import Contestant, Work, take_turns, versions, write_result
from train_step import machine

SIDE, CLASSES, WIDTH, QUERIES = 64, 10, 64, 16
PAIRS = {"detr": "transformers", "faster_rcnn": "torchvision"}


def examples(batch: int) -> tuple[Any, Any, Any]:
    """Images [batch, rows, columns], boxes in pixels [batch, 2, 4] and labels [batch, 2], as NumPy's arrays."""
    import numpy as np

    generator = np.random.default_rng(0)
    corner = generator.uniform(0, 40, (batch, 2, 2))
    boxes = np.concatenate([corner, corner + generator.uniform(8, 24, (batch, 2, 2))], axis=2)
    images = generator.normal(size=(batch, SIDE, SIDE))
    return images.astype("float32"), boxes.astype("float32"), generator.integers(0, CLASSES, (batch, 2))


def ours(detector: str, batch: int) -> Work:
    """One update by the lab's own train step, on examples that are there already."""
    import jax
    import jax.numpy as jnp

    from flaxformer_lab.config import parse_config
    from flaxformer_lab.functional.detection import Objects
    from flaxformer_lab.tasks import make_task
    from flaxformer_lab.training.optimizer import make_optimizer
    from flaxformer_lab.training.state import initial_state
    from flaxformer_lab.training.step import make_train_step

    body = {
        "detr": {"name": "encoder_decoder", "encoder_depth": 2, "depth": 2, "attention": {"num_heads": 4}},
        "faster_rcnn": {"name": "cnn_2d", "depth": 0},
    }
    task = {"name": "scenes", "detector": detector, "queries": QUERIES, "items": (2, 2), "detections": 16}
    config = parse_config({"task": task, "model": {"width": WIDTH} | body[detector]})
    made = make_task(config.task, {"image_shape": [SIDE, SIDE, 1], "num_classes": CLASSES})
    images, boxes, labels = examples(batch)
    objects = Objects(jnp.asarray(boxes / SIDE), jnp.asarray(labels, jnp.int32), jnp.ones((batch, 2), bool))
    prepared = {
        "inputs": jnp.asarray(images)[..., None],
        "objects": objects,
        "kind": jnp.ones((batch, 2), jnp.int32),
        "loss_weights": jnp.ones(batch),
    }
    made.prepare = lambda *_, **__: prepared
    network = made.network(config.model)
    optimizer = make_optimizer(config.optimizer, 1000, fans=network.fans)
    step = jax.jit(make_train_step(made, network, optimizer, seed=0), donate_argnums=0)
    state = initial_state(network, optimizer, 0)
    rows = {"row": jnp.arange(batch, dtype=jnp.int32)}

    def work() -> None:
        nonlocal state
        state, _ = step(state, rows)
        jax.block_until_ready(state)

    return work


def _backbone() -> Any:
    """The four convolutions, in PyTorch."""
    from torch import nn

    sizes, strides = (1, WIDTH // 4, WIDTH // 2, WIDTH, WIDTH), (2, 2, 2, 1)
    layers = []
    for before, after, stride in zip(sizes, sizes[1:], strides, strict=False):
        layers += [nn.Conv2d(before, after, 3, stride, 1), nn.GELU(), nn.GroupNorm(1, after)]
    return nn.Sequential(*layers)


def transformers(batch: int) -> Work:
    """One update of `DetrForObjectDetection`'s transformer, losses and matcher, on the tokens of the same backbone."""
    import torch
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    torch.manual_seed(0)
    torch.set_num_threads(os.cpu_count() or 1)
    stages = {"hidden_sizes": [WIDTH // 2, WIDTH], "depths": [1, 1], "layer_type": "basic", "num_channels": 1}
    backbone = ResNetConfig(
        embedding_size=WIDTH // 4, **stages, downsample_in_first_stage=False, out_features=["stage2"]
    )
    config = DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        num_channels=1,
        num_queries=QUERIES,
        d_model=WIDTH,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=4 * WIDTH,
        decoder_ffn_dim=4 * WIDTH,
        num_labels=CLASSES,
        auxiliary_loss=False,
        dropout=0.0,
    )
    model = DetrForObjectDetection(config).train()
    images, boxes, labels = examples(batch)
    centres = (boxes[..., :2] + boxes[..., 2:]) / 2 / SIDE, (boxes[..., 2:] - boxes[..., :2]) / SIDE
    targets = [
        {
            "class_labels": torch.tensor(labels[row]),
            "boxes": torch.tensor([[*c, *s] for c, s in zip(*each, strict=True)]),
        }
        for row, each in enumerate(zip(*centres, strict=True))
    ]
    pixels = torch.tensor(images)[:, None]
    mask = torch.ones((batch, SIDE, SIDE), dtype=torch.long)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def work() -> None:
        optimizer.zero_grad()
        model(pixel_values=pixels, pixel_mask=mask, labels=targets).loss.backward()
        optimizer.step()

    return work


def torchvision(batch: int) -> Work:
    """One update of torchvision's `FasterRCNN` on the same backbone."""
    import torch
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.ops import MultiScaleRoIAlign

    torch.manual_seed(0)
    torch.set_num_threads(os.cpu_count() or 1)
    backbone = _backbone()
    backbone.out_channels = WIDTH
    model = FasterRCNN(
        backbone,
        num_classes=CLASSES + 1,
        min_size=SIDE,
        max_size=SIDE,
        image_mean=[0.0],
        image_std=[1.0],
        rpn_anchor_generator=AnchorGenerator(((8, 13, 20),), ((1.0, 2.0),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 4, 2),
        rpn_pre_nms_top_n_train=128,
        rpn_post_nms_top_n_train=32,
        box_batch_size_per_image=32,
    ).train()
    images, boxes, labels = examples(batch)
    pixels = list(torch.tensor(images)[:, None])
    pairs = zip(boxes, labels + 1, strict=True)
    targets = [{"boxes": torch.tensor(each), "labels": torch.tensor(classes)} for each, classes in pairs]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def work() -> None:
        optimizer.zero_grad()
        sum(model(pixels, targets).values()).backward()
        optimizer.step()

    return work


def contestant(name: str, batch: int) -> Work:
    """The work of one contestant."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    peers = {"transformers": transformers, "torchvision": torchvision}
    return peers[name](batch) if name in peers else ours(name, batch)


def main() -> None:
    """Runs the comparison, prints a table and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=16)
    arguments = parser.parse_args()
    rows = []
    print("| detector | ours images/s | peer | its images/s | ratio (range) |\n|---|---|---|---|---|")
    for detector, peer in PAIRS.items():
        players = [Contestant(name, contestant, {"name": name}) for name in (detector, peer)]
        there, missing = [], {}
        for each in players:
            try:
                each.ask("prepare", {"batch": arguments.batch})
                there.append(each)
            except (ModuleNotFoundError, RuntimeError) as error:
                missing[each.name] = str(error).splitlines()[0]
        seconds = take_turns(there, arguments.rounds, pause=1.0, least=0.5)
        for each in players:
            each.end()
        rates = {name: round(arguments.batch / statistics.median(t), 1) for name, t in seconds.items()}
        row = {"detector": detector, "peer": peer, "images_per_second": rates, "missing": missing}
        if len(there) == 2:
            ratios = sorted(b / a for a, b in zip(seconds[detector], seconds[peer], strict=True))
            row |= {"ratio": round(statistics.median(ratios), 2), "range": [round(ratios[0], 2), round(ratios[-1], 2)]}
        rows.append(row)
        low, high = row.get("range", ("", ""))
        shown = rates.get(peer, missing.get(peer))
        own, ratio = rates.get(detector, missing.get(detector)), f"{row.get('ratio', '')} ({low} to {high})"
        print(f"| {detector} | {own} | {peer} | {shown} | {ratio} |", flush=True)
    if arguments.rounds >= 5:
        packages = ("jax", "jaxlib", "torch", "torchvision", "transformers")
        head = {"machine": machine("cpu"), "versions": versions(packages), "batch": arguments.batch}
        write_result("detection_cpu", head | {"detectors": rows})


if __name__ == "__main__":
    main()

"""The least time of an update, against counts by hand."""

import json

import jax
import jax.numpy as jnp
import pytest

from flaxformer_lab.analysis.roofline import DEVICES, Cost, count_products, device_of, roofline
from flaxformer_lab.config import parse_config
from flaxformer_lab.training.loggers import _summary_writer, seconds_per_update
from flaxformer_lab.training.loop import train

X = jax.ShapeDtypeStruct((8, 16), jnp.float32)
W = jax.ShapeDtypeStruct((16, 32), jnp.float32)
ONE = 2 * 8 * 16 * 32


def test_products_and_bytes_of_a_gradient():
    loss = lambda w, x: jnp.sum(jnp.square(jnp.matmul(x, w, precision="highest")))  # noqa: E731
    flops, num_bytes = count_products(jax.grad(loss), W, X)
    assert flops == {"highest": 2 * ONE}  # x w, and x^T dy
    factors = 8 * 16 + 16 * 32 + 8 * 32
    assert num_bytes == 4 * (2 * factors + 8 * 16 + 2 * 16 * 32)  # products, arguments, the gradient


@pytest.mark.parametrize(
    ("dtype", "precision", "kind"),
    [("float32", "high", "high"), ("float32", "default", "default"), ("bfloat16", "highest", "bfloat16")],
)
def test_kinds_of_products_in_loops_and_branches(dtype, precision, kind):
    def run(x, w):
        product = lambda x: jnp.matmul(x, w, precision=precision)  # noqa: E731
        x = jax.lax.scan(lambda x, _: (product(x), None), x, length=3)[0]
        return jax.lax.cond(x[0, 0] > 0, lambda x: product(product(x)), product, x)

    arrays = (jax.ShapeDtypeStruct((size, 16), dtype) for size in (8, 16))
    assert count_products(run, *arrays)[0] == {kind: 5 * 2 * 8 * 16 * 16}


def test_the_slower_of_products_and_memory_bounds_an_update():
    h100 = DEVICES["h100"]
    by_products = roofline(Cost({"bfloat16": int(989.4e12), "highest": int(66.9e12)}, int(3.35e12), "", {}), h100)
    assert by_products.seconds == pytest.approx(2) and by_products.bound == "products"
    by_memory = roofline(Cost({"bfloat16": int(989.4e12)}, int(6.7e12), "", {}), h100)
    assert by_memory.seconds == pytest.approx(2) and by_memory.bound == "memory"


def test_devices_by_the_names_that_jax_gives_them():
    names = {
        "NVIDIA H100 80GB HBM3": "h100",
        "NVIDIA H200": "h200",
        "NVIDIA A100-SXM4-80GB": "a100",
        "TPU v5 lite": "v5e",
        "TPU v5e": "v5e",
        "TPU v5": "v5p",
        "TPU v5p": "v5p",
        "cpu": "cpu",
    }
    assert {kind: device_of(kind) for kind in names} == names
    others = ("NVIDIA T4", "NVIDIA GH200 480GB", "NVIDIA H100 PCIe", "NVIDIA H100 NVL", "NVIDIA A100-SXM4-40GB")
    assert [device_of(kind) for kind in others] == [None] * len(others)


def test_the_time_of_updates_is_read_from_tensorboard(tmp_path):
    SummaryWriter = _summary_writer()
    assert seconds_per_update(tmp_path) is None
    with SummaryWriter(str(tmp_path)) as writer:
        # The first call is compiled; an evaluation takes 9 seconds before step 50.
        for step, at in ((10, 100.0), (20, 101.0), (30, 102.0), (40, 103.0), (50, 113.0), (60, 114.0)):
            writer.add_scalar("train/loss", 1.0, step, walltime=at)
            writer.add_scalar("validation/loss", 1.0, step, walltime=at + 0.5)
    path = next(tmp_path.iterdir())
    path.write_bytes(path.read_bytes() + b"\x20\0\0")  # half a record
    assert seconds_per_update(tmp_path) == pytest.approx(0.1)


@pytest.fixture
def roofline_command(run_command):
    """The function that runs the command without a compiler: exit code, its last line, errors."""

    def call(*arguments):
        code, out, err = run_command("flaxformer_lab.roofline", *arguments, "--nocompile")
        return code, json.loads(out[-1]) if out else None, err

    return call


@pytest.mark.integration
def test_the_command_says_what_bounds_a_run_and_what_it_reached(roofline_command, tmp_path):
    tree = {
        "task": {"name": "delay", "tokens": 4, "features": 4, "evaluation_examples": 16},
        "model": {"width": 8, "depth": 1, "attention": {"num_heads": 2}, "causal": True},
        "training": {"steps": 5, "batch_size": 8, "steps_per_call": 1, "evaluate_every": 5},
        "parallelism": {"strategy": "single"},
    }
    train(parse_config(tree), tmp_path / "run", quiet=True)
    code, found, err = roofline_command(f"--workdir={tmp_path / 'run'}", "--device=v5e")
    assert (code, err) == (0, [])
    seconds = seconds_per_update(tmp_path / "run" / "tensorboard")
    assert found["seconds_per_update"] == seconds > 0
    assert found["share_of_roofline"] == pytest.approx(max(found["product_seconds"], found["memory_seconds"]) / seconds)
    assert found["product_seconds"] == pytest.approx(found["flops"] / (197e12 / 6))
    assert found["memory_seconds"] == pytest.approx(found["bytes"] / 819e9) and found["bound"] == "memory"


def test_the_command_wants_one_of_recipe_and_folder(roofline_command):
    code, _, err = roofline_command("--device=h100")
    assert code == 2 and "give --config=FILE" in err[0]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.model.width=512", "--config.model.width=512: a checkpoint keeps the config"),
        ("--ablation=ffn_off", "--ablation=ffn_off: the run in --workdir=run keeps the config"),
    ],
)
def test_the_time_of_a_run_is_not_divided_by_that_of_another_model(roofline_command, argument, message):
    code, out, err = roofline_command("--workdir=run", argument)
    assert (code, out) == (2, None) and message in err[0]

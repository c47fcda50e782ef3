"""One program over a mesh of four devices: the figures of one device, in less memory."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest

from flaxformer_lab.config import MeshConfig, ParallelismConfig, parse_config
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.training.evaluation import make_evaluate
from flaxformer_lab.training.experiment import make_experiment
from flaxformer_lab.training.feeds import host_feed, make_feeds, stack_trees
from flaxformer_lab.training.loop import train
from flaxformer_lab.training.mesh import Mesh
from flaxformer_lab.training.parallelism import make_strategy
from flaxformer_lab.training.programs import make_run_steps, run_steps_of
from flaxformer_lab.training.state import initial_state
from flaxformer_lab.training.step import make_train_step

SLOW = pytest.mark.slow
MESHES = {
    "data=4": {"data": 4},
    "fsdp=4": {"fsdp": 4},
    "tensor=2 data=2": {"tensor": 2},
    "tensor=2 fsdp=2": {"tensor": 2, "fsdp": 2},
    "sequence=4": {"sequence": 4},
    "sequence=2 tensor=2": {"sequence": 2, "tensor": 2},
}

TEXT = {
    "task": {
        "name": "language_modelling",
        "dataset": "lab_speeches",
        "tokenizer": "bytes",
        "objective": "next_token",
        "sequence_length": 16,
    },
    "model": {
        "width": 16,
        "depth": 2,
        "attention": {"num_heads": 4},
        "position": "rotary",
        "bias": False,
        "causal": True,
    },
    "optimizer": {"clip_norm": 1.0},
    "training": {"batch_size": 8},
}
ONE_BLOCK = TEXT | {"model": TEXT["model"] | {"depth": 1}, "parallelism": {"strategy": "single"}}


@pytest.fixture(scope="module")
def whole(rich):
    """Dropout, moved images, Muon, warm-up and accumulation, on one device."""
    return rich({"training.steps": 20, "training.batch_size": 32, "model.width": 16})


def on_mesh(config, **sizes):
    return dataclasses.replace(config, parallelism=ParallelismConfig("mesh", MeshConfig(**sizes)))


def start_of(experiment):
    """The first state, on the host."""
    start = jax.jit(lambda: initial_state(experiment.network, experiment.optimizer, experiment.config.seed))()
    return jax.device_get(start)


def trained(experiment, start, steps=20, call=5):
    """The state after some updates, and each one's loss."""
    strategy, examples = experiment.strategy, experiment.task.examples("train")
    state, losses = strategy.place_state(start, experiment.layout), []
    run_steps, data = make_run_steps(experiment, examples)
    data, plan = strategy.place(data), [(begin, call) for begin in range(0, steps, call)]
    for feed in make_feeds(experiment, examples, plan):
        state, history = run_steps(state, data, feed, strategy.place(np.int32(call)))
        total, weight = strategy.fetch(history)["loss"]
        losses.extend(total / weight)
    return state, losses


def judged(experiment, state):
    """The figures of validation."""
    return make_evaluate(experiment)(state.params, state.model_state, experiment.task.examples("validation"))


@pytest.fixture(scope="module")
def start(whole):
    """The state that all begin with."""
    return start_of(make_experiment(whole))


@pytest.fixture(scope="module")
def alone(whole, start):
    """What one device makes of it."""
    experiment = make_experiment(whole)
    state, losses = trained(experiment, start)
    return state, losses, judged(experiment, state)


@pytest.mark.integration
# One mesh has both axes that parameters are shared along; make test-slow has the others.
@pytest.mark.parametrize(
    "sizes",
    [pytest.param(sizes, id=name, marks=() if name == "tensor=2 fsdp=2" else SLOW) for name, sizes in MESHES.items()],
)
def test_a_mesh_trains_like_one_device(whole, start, alone, sizes, assert_close):
    experiment = make_experiment(on_mesh(whole, **sizes))
    state, losses = trained(experiment, start)
    np.testing.assert_allclose(losses, alone[1], atol=1e-5)
    assert_close(state, alone[0], 1e-5)
    if len(sizes) > 1:  # which evaluates as each of its axes alone does
        figures = judged(experiment, state)
        for name, value in alone[2].items():
            assert figures[name] == pytest.approx(value, abs=1e-5)


def replica_config():
    training = {"batch_size": 8, "steps": 20, "steps_per_call": 20}
    return parse_config(ONE_BLOCK | {"training": training})


@functools.cache
def replicas_alone(seeds):
    """For each seed the state of a replica that one device trains by itself, and each update's loss."""
    config = replica_config()
    experiment = make_experiment(config)
    examples = experiment.task.examples("train")
    first = jax.jit(lambda seed: initial_state(experiment.network, experiment.optimizer, seed))
    run_steps, data = jax.jit(run_steps_of(experiment, examples)), examples.load()
    found = []
    for seed in map(np.uint32, seeds):
        feed = host_feed(config, examples, int(seed), 0, 20)
        state, history = run_steps(seed, first(seed), data, feed, np.int32(20))
        total, weight = jax.device_get(history)["loss"]
        found.append((state, total / weight))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [pytest.param({"data": 4}, marks=SLOW), {"fsdp": 2, "sequence": 2}], ids=str)
def test_a_population_on_a_mesh_trains_like_each_replica_alone(sizes, assert_close):
    """Two seeds under vmap, every parameter of each of them where the table says."""
    config = replica_config()
    seeds = np.arange(2, dtype=np.uint32)
    experiment = make_experiment(on_mesh(config, **sizes))
    strategy, examples = experiment.strategy, experiment.task.examples("train")
    beside = lambda place: jax.sharding.NamedSharding(place.mesh, jax.P(None, *place.spec))  # noqa: E731
    layout = jax.tree.map(beside, experiment.layout)
    start = jax.vmap(lambda seed: initial_state(experiment.network, experiment.optimizer, seed))
    run_steps = jax.vmap(run_steps_of(experiment, examples), in_axes=(0, 0, None, 0, None))
    feeds = [host_feed(config, examples, seed, 0, 20) for seed in seeds.tolist()]
    feed = strategy.split(stack_trees(feeds), batch_axis=2)
    data, count = strategy.place((examples.load(), np.int32(20)))
    states, history = strategy.compile(run_steps, layout=layout)(
        strategy.place(seeds), strategy.place_state(jax.jit(start)(seeds), layout), data, feed, count
    )
    for number, (state, losses) in enumerate(replicas_alone((0, 1))):
        # In twenty updates Adam, which divides by small second moments, magnifies what is rounded otherwise.
        assert_close(jax.tree.map(lambda leaf, number=number: leaf[number], states), state, 2e-5)
        total, weight = strategy.fetch(history)["loss"]
        np.testing.assert_allclose(total[number] / weight[number], losses, atol=1e-5)


def one_update(config, weight):
    """The figures of a first update, of as many examples as there are weights."""
    experiment = make_experiment(config)
    strategy, layout = experiment.strategy, experiment.layout
    rows = np.arange(len(weight), dtype=np.int32)
    batch = experiment.task.examples("train").read(rows) | {"row": rows, "example_weight": np.float32(weight)}
    step = make_train_step(experiment.task, experiment.network, experiment.optimizer, seed=config.seed)
    step = strategy.compile(step, layout=layout)
    return strategy.fetch(step(strategy.place_state(start_of(experiment), layout), strategy.split(batch, 0))[1])


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{"data": 4}, {"fsdp": 2, "sequence": 2}], ids=str)
def test_padding_may_lie_anywhere(sizes):
    """Four devices with 2, 1, 0 and 1 examples that count."""
    weight = [1, 1, 0, 1, 0, 0, 1, 0]
    config = parse_config(ONE_BLOCK)
    expected = one_update(config, weight)
    assert expected["loss"][1] == 4 * TEXT["task"]["sequence_length"]
    for name, pair in one_update(on_mesh(config, **sizes), weight).items():
        np.testing.assert_allclose(pair, expected[name], rtol=1e-5, err_msg=name)


KINDS = (
    pytest.param({"kind": "softmax", "window": 5}, marks=SLOW),
    pytest.param({"kind": "linear"}, marks=SLOW),
    {"kind": "lightning"},
    pytest.param({"kind": "mean"}, marks=SLOW),
)


@pytest.mark.integration
@pytest.mark.parametrize("attention", KINDS, ids=str)
def test_every_kind_of_attention_works_on_tokens_in_shares(attention):
    config = parse_config(ONE_BLOCK | {"model": ONE_BLOCK["model"] | {"attention": {"num_heads": 4} | attention}})
    figures = [one_update(each, np.ones(8)) for each in (config, on_mesh(config, sequence=4))]
    for name in ("loss", "gradient_norm"):
        np.testing.assert_allclose(figures[1][name], figures[0][name], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["block", "low_rank", "hadamard", "monarch"])
def test_every_structured_map_works_on_a_mesh(kind):
    """Its blocks sharded, where the width is."""
    knobs = {"projection": kind, "block_size": 4, "rank": 4}
    parts = {"attention": {"num_heads": 4, "output": kind} | knobs, "ffn": {"expansion": 1.0} | knobs}
    config = parse_config(ONE_BLOCK | {"model": ONE_BLOCK["model"] | parts})
    figures = [one_update(each, np.ones(8)) for each in (config, on_mesh(config, fsdp=2, tensor=2))]
    for name in ("loss", "gradient_norm"):
        np.testing.assert_allclose(figures[1][name], figures[0][name], rtol=1e-5)


def shares(state, name):
    """The shape of what one device holds of a parameter."""
    leaf = state.params["body"]["blocks"][0]
    for key in name.split("."):
        leaf = leaf[key]
    return leaf.addressable_shards[0].data.shape


def test_parameters_lie_where_the_table_says(whole, start):
    experiment = make_experiment(on_mesh(whole, tensor=2, fsdp=2))
    state = experiment.strategy.place_state(start, experiment.layout)
    assert shares(state, "attention.projection.kernel") == (8, 24)  # of [16, 48]
    assert shares(state, "attention.output.kernel") == (8, 8)  # of [16, 16]
    assert shares(state, "ffn.up.kernel") == (8, 16)  # of [16, 32]
    assert shares(state, "attention_norm.scale") == (16,)  # vectors of the width stay whole


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"fsdp": 3}, "parallelism.mesh: fsdp=3 cannot use 4 devices"),
        ({"data": 2, "fsdp": 4}, "data=2 x fsdp=4 cannot use 4 devices"),
        ({"data": 2}, "data=2 cannot use 4 devices"),
        ({"sequence": 8}, "sequence=8 cannot use 4 devices"),
    ],
)
def test_sizes_that_do_not_make_the_devices_are_refused(whole, sizes, message):
    with pytest.raises(ConfigError, match=message):
        make_strategy(on_mesh(whole, **sizes))


def test_what_cannot_be_shared_equally_is_named(rich, tmp_path):
    config = rich({"model.width": 6, "model.attention.num_heads": 1})
    with pytest.raises(
        ConfigError, match=r"mesh.fsdp=4 does not divide the axis width=6 of .*; choose one of 1, 2, 3, 6"
    ):
        train(on_mesh(config, fsdp=4), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"mesh.sequence=2 does not divide the axis tokens=5 of a sequence"):
        train(on_mesh(rich({"task.pooling": "class_token"}), sequence=2), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_mesh_is_chosen_where_one_is_asked_for(rich):
    assert type(make_strategy(rich({"parallelism.strategy": "auto", "parallelism.mesh.fsdp": 2}))) is Mesh
    with pytest.raises(ConfigError, match=r"mesh\.fsdp=2 needs parallelism\.strategy=mesh or auto, not pmap"):
        rich({"parallelism.strategy": "pmap", "parallelism.mesh.fsdp": 2})
    with pytest.raises(ConfigError, match=r"mesh\.sequence=2 with model\.name=mlp: only model\.name=transformer"):
        rich({"model": {"name": "mlp"}, "parallelism.strategy": "auto", "parallelism.mesh.sequence": 2})


# ------------------------------------------------------------------------------------------------- what is sent

MATRICES = 2 + 2 * 4  # the symbols' table and the head; query, key and value, output, up, down of two blocks


@functools.cache
def compiled_update(**sizes):
    """One update of a small language model as a compiled program of four devices; without sizes of pmap."""
    replicated = parse_config(TEXT | {"parallelism": {"strategy": "pmap"}})
    experiment = make_experiment(on_mesh(replicated, **sizes) if sizes else replicated)
    strategy, layout = experiment.strategy, experiment.layout
    options = {"seed": 0, "axis_name": strategy.axis_name}
    step = make_train_step(experiment.task, experiment.network, experiment.optimizer, **options)
    abstract = lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)  # noqa: E731
    state = experiment.abstract_state if layout is None else jax.tree.map(abstract, experiment.abstract_state, layout)
    rows = np.arange(8, dtype=np.int32)
    batch = experiment.task.examples("train").read(rows) | {"row": rows, "example_weight": np.ones(8, np.float32)}
    if not sizes:
        replicas = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((4, *leaf.shape), leaf.dtype), state)
        return strategy.compile(step).lower(replicas, strategy.split(batch, 0)).compile()
    with jax.set_mesh(strategy.mesh):
        results = (layout, jax.sharding.NamedSharding(strategy.mesh, jax.P()))
        lowered = jax.jit(step, out_shardings=results).lower(state, strategy.split(batch, 0))
    # Without the pass by which the CPU's compiler joins gathers of the forward and of the backward pass again.
    return lowered.compile({"xla_disable_hlo_passes": "cse_barrier_expander"})


@pytest.mark.integration
@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        # Gradients and metrics are summed at once.
        ({}, {"all-reduce": 1}),
        ({"data": 4}, {"all-reduce": 1}),
        # Each matrix is gathered, those of blocks once more for the backward pass; its gradient is reduce-scattered.
        # The loss' weight, which the gradient waits for, and the metrics with the vectors' gradients are summed.
        ({"fsdp": 4}, {"all-gather": MATRICES + 2 * 4, "reduce-scatter": MATRICES, "all-reduce": 2}),
        # After attention and after the FFN, forward and backward, in two blocks.
        ({"tensor": 4}, {"all-reduce": 8}),
        # As data and as tensor: gradients of what is shared out and of what is not are summed apart.
        pytest.param({"tensor": 2}, {"all-reduce": 8 + 2}, marks=SLOW),
        # Keys and values of two blocks, and their gradients. Inputs and targets are cut from one text, a symbol apart:
        # each device receives its neighbour's.
        ({"sequence": 4}, {"all-gather": 2 * 2, "reduce-scatter": 2 * 2, "all-reduce": 1, "collective-permute": 2}),
    ],
    ids=str,
)
def test_nothing_is_sent_that_theory_does_not_ask_for(sizes, expected):
    text = compiled_update(**sizes).as_text()
    kinds = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
    sent = {kind: len(re.findall(rf" {kind}(?:-start)?\(", text)) for kind in kinds}
    assert {kind: number for kind, number in sent.items() if number} == expected


@pytest.mark.integration
def test_the_state_takes_a_quarter_of_the_memory_on_four_devices():
    whole, shared = (compiled_update(**{axis: 4}).memory_analysis().argument_size_in_bytes for axis in ("data", "fsdp"))
    assert shared < 0.3 * whole

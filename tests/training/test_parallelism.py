import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab import compilation
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.training import parallelism
from flaxformer_lab.training.parallelism import Pmap, Single, WithOptions, make_strategy
from flaxformer_lab.training.step import make_evaluation_step, make_train_step

STRATEGIES = [Single, Pmap]

# What 16 examples weigh: each of the 4 devices has another sum, and one has none at all.
UNEQUAL = np.array([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0], [0.5, 2, 0, 0.25]], np.float32).ravel()


# ------------------------------------------------------------------------------------------------- choice


@pytest.mark.parametrize(("name", "kind", "devices"), [("auto", Pmap, 4), ("pmap", Pmap, 4), ("single", Single, 1)])
def test_a_strategy_is_chosen_by_name(plain, name, kind, devices):
    strategy = make_strategy(plain({"parallelism.strategy": name}))
    assert type(strategy) is kind and strategy.num_devices == devices


def test_auto_takes_one_device_where_there_is_one(plain, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert type(make_strategy(plain({"parallelism.strategy": "auto"}))) is Single


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 6}, r"training\.batch_size=6 .* by 4 devices x training\.accumulate=1; choose a multiple of 4"),
        ({"batch_size": 20, "accumulate": 2}, r"training\.batch_size=20 .*accumulate=2; choose a multiple of 8"),
        ({"evaluate_batch_size": 10}, r"training\.evaluate_batch_size=10 .* by 4 devices; choose a multiple of 4"),
    ],
)
def test_a_batch_that_the_devices_cannot_share_is_refused(plain, changes, message):
    changes = {f"training.{key}": value for key, value in changes.items()}
    with pytest.raises(ConfigError, match=message):
        make_strategy(plain(changes | {"parallelism.strategy": "pmap"}))
    assert type(make_strategy(plain(changes))) is Single  # one device shares with nobody


# ------------------------------------------------------------------------------------------- the same bytes


def test_one_device_is_refused_where_several_processes_joined(plain, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ConfigError, match="strategy=single is training on one device, but 2 processes have joined"):
        make_strategy(plain({"parallelism.strategy": "single"}))


@pytest.fixture
def on_a_gpu(monkeypatch):
    """What asks for the target platform hears of a GPU; `jax.jit` records the options that it is given."""
    given = []
    monkeypatch.setattr("flaxformer_lab.functional.platform.target_platform", lambda: "gpu")
    monkeypatch.setattr(parallelism, "target_platform", lambda: "gpu")

    def jit(function, **options):
        given.append(options["compiler_options"])
        return function

    monkeypatch.setattr(jax, "jit", jit)
    return given


@pytest.mark.parametrize(
    ("changes", "deterministic"),
    [
        ({}, True),
        ({"training.deterministic": False}, False),
        ({"model.dtype": "bfloat16"}, False),
        ({"model.dtype": "bfloat16", "model.attention.kind": "linear", "training.deterministic": True}, True),
    ],
)
def test_programs_for_gpus_are_deterministic_by_default_in_float32(plain, on_a_gpu, changes, deterministic):
    make_strategy(plain(changes)).compile(lambda: 0)
    assert on_a_gpu == [compilation.DETERMINISTIC if deterministic else None]


def test_a_cpu_is_asked_for_nothing():
    assert compilation.deterministic_options() is None


def test_the_same_bytes_are_refused_where_cudnn_cannot_give_them(plain, on_a_gpu):
    with pytest.raises(ConfigError, match=r"training\.deterministic=true .* set training\.deterministic to none"):
        make_strategy(plain({"model.dtype": "bfloat16", "training.deterministic": True}))


def test_pmap_compiles_with_options_once_for_each_shape():
    programs = WithOptions(jax.pmap(lambda x: 2 * x), {"xla_backend_optimization_level": 1})
    for size in (3, 3, 5):
        x = np.arange(4 * size, dtype=np.float32).reshape(4, size)
        np.testing.assert_array_equal(programs(x), 2 * x)
    assert len(programs._programs) == 2
    with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_option"):
        programs.lower(x).compile(compiler_options={"no_such_option": True})


# ------------------------------------------------------------------------------------------------ placing


@pytest.fixture(params=STRATEGIES)
def strategy(request):
    return request.param()


def test_what_is_placed_comes_back(strategy, assert_same):
    tree = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": {"c": jnp.int32(7)}, "empty": {}}
    placed = strategy.place(tree)
    assert_same(strategy.fetch(placed), tree)
    assert_same(strategy.unreplicate(placed), tree)
    for leaf in jax.tree.leaves(placed):
        assert len(leaf.sharding.device_set) == strategy.num_devices


def test_every_device_holds_the_whole_of_what_is_placed():
    placed = Pmap().place(np.arange(3))
    assert placed.shape == (4, 3)
    shards = {shard.device: np.asarray(shard.data).tolist() for shard in placed.addressable_shards}
    assert shards == {device: [[0, 1, 2]] for device in jax.local_devices()}


@pytest.mark.parametrize("batch_axis", [0, 1])
def test_devices_share_the_batch_in_order(batch_axis):
    batch = np.arange(24).reshape(8, 3) if batch_axis == 0 else np.arange(24).reshape(3, 8)
    split = Pmap().split({"x": batch}, batch_axis)["x"]
    assert split.shape == ((4, 2, 3) if batch_axis == 0 else (4, 3, 2))
    for number, shard in enumerate(split.addressable_shards):
        assert shard.device == jax.local_devices()[number]
        expected = np.take(batch, [2 * number, 2 * number + 1], axis=batch_axis)
        np.testing.assert_array_equal(shard.data[0], expected)


def test_one_device_keeps_the_batch_whole():
    np.testing.assert_array_equal(Single().split({"x": np.arange(8)}, 0)["x"], np.arange(8))


# ----------------------------------------------------------------------------------------------- programs


def updates(case, strategy, accumulate=1, weight=UNEQUAL, steps=8):
    """The state after some updates, and the metrics of each."""
    options = {"seed": 0, "accumulate": accumulate, "axis_name": strategy.axis_name}
    step = make_train_step(case.task, case.network, case.optimizer, **options)
    run = strategy.compile(step, donate=(0,))
    state, rng, history = strategy.place(case.start()), np.random.default_rng(0), []
    for number in range(steps):
        batch = case.draw(rng, 16, np.roll(weight, number))
        state, metrics = run(state, strategy.split(batch, 0))
        history.append(strategy.fetch(metrics))
    return state, history


def averages(metrics):
    return {name: total / weight for name, (total, weight) in metrics.items()}


@pytest.mark.integration
@pytest.mark.parametrize("name", ["images", "next token", "masked with dropout"])
def test_four_devices_train_like_one(make_case, name, assert_close):
    compare(make_case(name), 1, assert_close)


def test_four_devices_that_accumulate_train_like_one(make_case, assert_close):
    compare(make_case("masked with dropout"), 2, assert_close)


def compare(case, accumulate, assert_close):
    """Trains on one device without accumulation and on four with it."""
    one, one_history = updates(case, Single())
    four, four_history = updates(case, Pmap(), accumulate)
    assert_close(Pmap().fetch(four), Single().fetch(one), 1e-5)
    for single, several in zip(one_history, four_history, strict=True):
        for name in ("loss", "accuracy"):
            np.testing.assert_allclose(
                several[name][0] / several[name][1], single[name][0] / single[name][1], atol=1e-5
            )
        assert several["loss"][1] == single["loss"][1]
    start = Single().fetch(case.start().params)
    moved = jax.tree.map(lambda now, then: np.abs(now - then).max(), Single().fetch(one.params), start)
    assert min(jax.tree.leaves(moved)) > 0.01  # the comparison is of parameters that have been trained


def test_the_devices_hold_the_same_state_bit_for_bit(make_case):
    state, _ = updates(make_case("masked with dropout"), Pmap())
    for leaf in jax.tree.leaves(state):
        copies = {np.asarray(shard.data).tobytes() for shard in leaf.addressable_shards}
        assert len(leaf.addressable_shards) == 4 and len(copies) == 1


def test_devices_that_average_their_own_means_would_be_found_out(make_case):
    """The unequal weights are unequal enough: the mistake to avoid is far outside the tolerance."""
    case = make_case("images")
    batch = case.draw(np.random.default_rng(0), 16, UNEQUAL)
    step = case.update()
    parts = [jax.tree.map(lambda leaf, at=at: leaf[at : at + 4], batch) for at in (0, 4, 12)]
    averaged = np.mean([step(case.start(), part)[0].params["head"]["kernel"] for part in parts], axis=0)
    right = step(case.start(), batch)[0].params["head"]["kernel"]
    assert np.abs(averaged - right).max() > 1e-3


@pytest.mark.parametrize("name", ["images", "masked with dropout"])
def test_four_devices_evaluate_like_one(make_case, name, assert_close):
    case = make_case(name)
    batch = case.draw(np.random.default_rng(0), 16, UNEQUAL)
    found = []
    for strategy in (Single(), Pmap()):
        step = make_evaluation_step(case.task, case.network, seed=0, axis_name=strategy.axis_name)
        placed = strategy.place((case.params, {}))
        found.append(strategy.fetch(strategy.compile(step)(*placed, strategy.split(batch, 0))))
    assert found[0]["loss"][1] == found[1]["loss"][1] > 0
    assert_close(*map(averages, found), 1e-5)

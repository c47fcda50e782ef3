import functools
import gc
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from flaxformer_lab.config import OptimizerConfig
from flaxformer_lab.errors import RunError
from flaxformer_lab.training import hosts
from flaxformer_lab.training.checkpoints import Checkpoints, _digest
from flaxformer_lab.training.optimizer import make_optimizer
from flaxformer_lab.training.state import State


@functools.cache
def make_state(step=1, width=6, name="muon"):
    """A state with all that states have: nested names, numbered blocks, an optimizer's tuples, empty parts."""
    rng = np.random.default_rng(step)
    params = {
        "table": rng.normal(size=(300, width)),
        "blocks": {0: {"kernel": rng.normal(size=(width, width)), "bias": rng.normal(size=width)}, 1: {}},
        "temperature": rng.normal(size=()),
    }
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    params["blocks"][1] = {"kernel": params["blocks"][0]["kernel"] * np.nan}  # not a number is a value too
    opt_state = jax.eval_shape(make_optimizer(OptimizerConfig(name=name), 10).init, params)
    opt_state = jax.tree.map(lambda leaf: jnp.asarray(np.full(leaf.shape, step, leaf.dtype)), opt_state)
    return State(jnp.int32(step), params, {"mean": jnp.arange(3, dtype=jnp.bfloat16)}, opt_state)


def shapes(state):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)


def copied(state):
    return jax.tree.map(lambda leaf: np.array(leaf, copy=True), state)


def saved(folder, *steps, losses=None, **keep):
    """Checkpoints of some steps in a folder, all on disk."""
    with Checkpoints(folder, **keep) as checkpoints:
        for number, step in enumerate(steps):
            checkpoints.save(make_state(step), {"loss": losses[number] if losses else 1.0})
        checkpoints.wait()
        return checkpoints.steps


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A folder with checkpoints of steps 3 and 7; not to be written."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    saved(folder, 3, 7)
    return folder


# ----------------------------------------------------------------------------------------- round trip


def test_what_is_restored_is_what_was_saved(two, assert_same):
    with Checkpoints(two) as checkpoints:
        assert checkpoints.steps == [3, 7]
        assert_same(checkpoints.restore(shapes(make_state())), make_state(7))
        assert_same(checkpoints.restore(shapes(make_state()), 3), make_state(3))


def test_a_restored_state_lies_on_the_first_device(two):
    with Checkpoints(two) as checkpoints:
        restored = checkpoints.restore(shapes(make_state()))
    devices = {device for leaf in jax.tree.leaves(restored) for device in leaf.devices()}
    assert devices == {jax.local_devices()[0]}


def test_training_may_go_on_while_a_checkpoint_is_written(tmp_path, assert_same):
    # The buffers of a saved state are donated: the next updates write over them.
    @jax.jit
    def change(state):
        return jax.tree.map(lambda leaf: leaf * 3 + 1, state)

    donating = jax.jit(change, donate_argnums=0)
    state = jax.tree.map(jnp.copy, make_state(1))
    state = State(state.step, state.params | {"large": jnp.arange(200_000.0)}, state.model_state, state.opt_state)
    expected = []
    with Checkpoints(tmp_path, keep_last=5) as checkpoints:
        for _ in range(4):
            expected.append(copied(state))
            checkpoints.save(state, {"loss": 1.0})
            for _ in range(3):
                state = donating(state)
        jax.block_until_ready(state)
        checkpoints.wait()
        assert checkpoints.steps == [int(each.step) for each in expected]
        for each in expected:
            assert_same(checkpoints.restore(shapes(each), int(each.step)), each)


def test_leaving_the_context_finishes_every_save(tmp_path, assert_same):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(2), {"loss": 1.0})
    with Checkpoints(tmp_path) as checkpoints:
        assert_same(checkpoints.restore(shapes(make_state())), make_state(2))


# ------------------------------------------------------------------------------------------- policies


def test_the_last_and_the_best_are_kept(tmp_path):
    losses = [0.5, 0.1, 0.9, 0.3, 0.4, 0.6]
    assert saved(tmp_path / "last", *range(1, 7), losses=losses, keep_last=2, keep_best=0) == [5, 6]
    assert saved(tmp_path / "best", *range(1, 7), losses=losses, keep_last=1, keep_best=2) == [2, 4, 6]
    on_disk = sorted(int(path.name) for path in (tmp_path / "best").iterdir())
    assert on_disk == [2, 4, 6]


def test_the_best_has_the_lowest_loss(tmp_path):
    saved(tmp_path, 1, 2, 3, 4, losses=[0.5, 0.1, 0.9, 0.1], keep_last=9)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.best() == 2  # the earlier one of two that are equal
        assert checkpoints.steps == [1, 2, 3, 4]  # and opening a folder throws nothing away


def test_a_checkpoint_that_is_being_written_by_another_process_is_left_alone(two, monkeypatch):
    # Orbax clears what is half written in a thread of its own, so that a look at the folder might come too early.
    asked, original = [], ocp.training.Checkpointer

    def checkpointer(folder, **options):
        asked.append(options["cleanup_tmp_directories"])
        return original(folder, **options)

    monkeypatch.setattr(ocp.training, "Checkpointer", checkpointer)
    for writable in (False, True):
        with Checkpoints(two, writable=writable) as checkpoints:
            assert checkpoints.steps == [3, 7]
    assert asked == [False, True]


def test_what_a_stopped_run_left_half_written_is_cleared_and_written_again(two, tmp_path, assert_same):
    folder = tmp_path / "checkpoints"
    shutil.copytree(two, folder)
    (folder / "9.orbax-checkpoint-tmp").mkdir()
    (folder / "9.orbax-checkpoint-tmp" / "state").write_text("half")
    with Checkpoints(folder, keep_last=5) as checkpoints:
        assert checkpoints.steps == [3, 7]
        checkpoints.save(make_state(9), {"loss": 1.0})
    assert sorted(path.name for path in folder.iterdir()) == ["3", "7", "9"]
    with Checkpoints(folder) as checkpoints:
        assert_same(checkpoints.restore(shapes(make_state())), make_state(9))


def test_reading_makes_no_folder(tmp_path):
    with pytest.raises(RunError, match="holds no checkpoint; train first"):
        with Checkpoints(tmp_path / "checkpoints", writable=False) as checkpoints:
            checkpoints.restore(shapes(make_state()))
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------- refusals


def test_a_missing_step_is_refused_with_the_ones_there_are(two):
    with Checkpoints(two) as checkpoints:
        with pytest.raises(RunError, match=r"holds no checkpoint of step 5; choose one of 3, 7$"):
            checkpoints.restore(shapes(make_state()), 5)


def test_a_folder_without_checkpoints_is_refused(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps == []
        with pytest.raises(RunError, match="holds no checkpoint; train first"):
            checkpoints.restore(shapes(make_state()))
        with pytest.raises(RunError, match="none is the best"):
            checkpoints.best()


@pytest.mark.parametrize(
    "other", [{"width": 5}, {"name": "adamw"}, pytest.param({"name": "sgd"}, marks=pytest.mark.slow)], ids=str
)
def test_a_checkpoint_of_another_model_is_refused(two, other):
    abstract = jax.eval_shape(lambda: make_state.__wrapped__(**other))
    with Checkpoints(two) as checkpoints:
        with pytest.raises(RunError, match=r"damaged or of another model: .*choose another: --step=3$"):
            checkpoints.restore(abstract)


def test_a_checkpoint_with_less_or_more_in_it_is_refused(two_small):
    state = few(7)
    more = State(state.step, state.params | {"extra": jnp.zeros(2)}, {}, {})
    less = State(state.step, {"bias": state.params["bias"]}, {}, {})
    with Checkpoints(two_small) as checkpoints:
        for other in (more, less):
            with pytest.raises(RunError, match="damaged or of another model"):
                checkpoints.restore(shapes(other))


def test_another_type_of_number_is_refused(two):
    halved = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), make_state())
    with Checkpoints(two) as checkpoints, pytest.raises(RunError, match="damaged or of another model"):
        checkpoints.restore(halved)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "checkpoints").write_text("not a folder")
    with pytest.raises(RunError, match="is a file, not a folder"):
        Checkpoints(tmp_path / "checkpoints")


# ---------------------------------------------------------------------------------------------- damage


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def zeroed(content: bytes) -> bytes:
    return bytes(len(content))


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0x10]) + content[middle + 1 :] if content else b""


def few(step):
    """A state of few parts, which is restored quickly."""
    rng = np.random.default_rng(step)
    params = {"table": jnp.asarray(rng.normal(size=(300, 6)), jnp.float32), "bias": jnp.float32(rng.normal())}
    return State(jnp.int32(step), params, {}, {})


@pytest.fixture(scope="module")
def two_small(tmp_path_factory):
    """A folder with checkpoints of few parts of steps 3 and 7; not to be written."""
    folder = tmp_path_factory.mktemp("small") / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        for step in (3, 7):
            checkpoints.save(few(step), {"loss": 1.0})
    return folder


@pytest.mark.parametrize(
    ("damage", "every_file"),
    [
        (truncated, False),
        pytest.param(truncated, True, marks=pytest.mark.slow),
        pytest.param(zeroed, True, marks=pytest.mark.slow),
        (flipped, False),
        pytest.param(flipped, True, marks=pytest.mark.slow),
        pytest.param(None, True, id="missing", marks=pytest.mark.slow),
    ],
)
def test_a_damaged_checkpoint_is_refused_or_gives_the_right_values(
    two_small, tmp_path, damage, every_file, assert_same
):
    two = two_small
    files = sorted(path.relative_to(two) for path in (two / "7").rglob("*") if path.is_file())
    assert len(files) >= 8
    files = files if every_file else [file for file in files if {"metrics", "d"} & {*file.parts}][::2]
    refused = []
    for file in files:
        folder = tmp_path / "checkpoints"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(two, folder)
        target = folder / file
        if damage is None:
            target.unlink()
        elif damage(target.read_bytes()) == target.read_bytes():
            continue
        else:
            target.write_bytes(damage(target.read_bytes()))
        try:
            with Checkpoints(folder, writable=False) as checkpoints:
                restored = checkpoints.restore(shapes(few(7)), 7)
        except RunError as error:
            assert "\n" not in str(error)
            refused.append(str(file))
        else:
            assert_same(restored, few(7))
        # Each file of the metrics, and those of values for the rest.
        if damage is not truncated or not {"metrics", "d"} & {*file.parts}:
            continue
        # What is wrong with one checkpoint does not stand in the way of another, or the user is told to move it away.
        try:
            with Checkpoints(folder, writable=False) as checkpoints:
                assert_same(checkpoints.restore(shapes(few(3)), 3), few(3))
        except RunError as error:
            assert file.parts[1] == "metrics" and "move the damaged one away" in str(error)
    # The files that hold the values, at least, cannot all be done without.
    assert any("/d/" in file for file in refused), refused


def test_values_that_are_not_the_saved_ones_are_refused(two, tmp_path, monkeypatch):
    """Even where the storage itself notices nothing."""
    with Checkpoints(two) as checkpoints:
        load = checkpoints._orbax.load

        def wrong(step, target):
            tree = load(step, target)
            table = np.array(tree["params"]["table"])
            table[0, 0] += 1
            return tree | {"params": tree["params"] | {"table": jnp.asarray(table)}}

        monkeypatch.setattr(checkpoints._orbax, "load", wrong, raising=False)
        with pytest.raises(RunError, match="its values are not the ones that were saved"):
            checkpoints.restore(shapes(make_state()))


def test_the_digest_sees_every_bit_and_its_place_and_not_where_it_lies():
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    values = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    values[0, 0] = 0.0

    def digest(values, spec=None):
        return _digest({"x": jax.device_put(values, jax.NamedSharding(mesh, spec or jax.P()))})

    whole = digest(values)
    assert all(
        digest(values, spec) == whole for spec in (jax.P("a"), jax.P(None, "b"), jax.P("b", "a"), jax.P(("a", "b")))
    )
    changed = []
    for place in np.ndindex(values.shape):
        other = values.copy()
        other.view(np.uint32)[place] ^= 1
        changed.append(digest(other))
    negative = values.copy()
    negative[0, 0] = -0.0
    others = (values[::-1], values[:, ::-1], values.reshape(6, 4), values.astype(np.float16), negative)
    assert len({whole, *changed, *map(digest, others)}) == 1 + values.size + len(others)


def test_what_makes_the_folder_unreadable_is_set_aside(two_small, tmp_path, assert_same):
    folder = tmp_path / "checkpoints"
    shutil.copytree(two_small, folder)
    for path in (folder / "7" / "metrics").rglob("*"):
        if path.is_file():
            path.write_bytes(b"{")
    with Checkpoints(folder) as checkpoints:
        assert_same(checkpoints.restore_newest(shapes(few(7))), few(3))
        assert [text.partition(" (")[0] for text in checkpoints.quarantined] == ["the checkpoint of step 7 is damaged"]
    assert (tmp_path / "damaged" / "7-0").is_dir()


def test_a_checkpoint_that_another_process_cannot_read_is_damaged_for_all(two_small, tmp_path, monkeypatch):
    folder = tmp_path / "checkpoints"
    shutil.copytree(two_small, folder)
    answers = iter([True, False])
    monkeypatch.setattr(hosts, "all_reduce_any", lambda failed: next(answers))
    with Checkpoints(folder) as checkpoints:
        assert int(checkpoints.restore_newest(shapes(few(7))).step) == 3
        assert "another process could not read its part" in checkpoints.quarantined[0]


def test_without_checkpoints_there_is_no_newest_one(tmp_path):
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.restore_newest(shapes(few(7))) is None and checkpoints.quarantined == []


def test_a_checkpoint_under_the_number_of_another_is_refused(two, tmp_path):
    shutil.copytree(two, tmp_path / "checkpoints")
    (tmp_path / "checkpoints" / "7").rename(tmp_path / "checkpoints" / "8")
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        with pytest.raises(RunError, match="it holds step 7"):
            checkpoints.restore(shapes(make_state()), 8)


def test_a_save_that_fails_says_so_and_leaves_the_earlier_ones(tmp_path, assert_same):
    folder = tmp_path / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(make_state(1), {"loss": 1.0})
        checkpoints.wait()
        with pytest.raises(RunError, match=r"checkpoint of step 1 could not be saved .* earlier checkpoints"):
            checkpoints.save(make_state(1), {"loss": 1.0})
        assert_same(checkpoints.restore(shapes(make_state())), make_state(1))


@pytest.mark.parametrize("when", ["wait", "close"])
def test_a_save_that_fails_in_the_background_says_so(tmp_path, monkeypatch, when):
    def fail():
        raise OSError("No space left on device")

    checkpoints = Checkpoints(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(RunError, match=r"could not be saved in .*No space left"):
        patch.setattr(type(checkpoints._orbax), when, lambda self: fail())
        with checkpoints:
            checkpoints.save(make_state(1), {"loss": 1.0})
            checkpoints.wait()
    checkpoints._orbax.close()


def test_an_error_inside_the_context_is_not_hidden_by_a_failing_save(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyError, match="what went wrong first"):
        patch.setattr(type(checkpoints._orbax), "close", lambda self: 1 / 0)
        with checkpoints:
            raise KeyError("what went wrong first")
    checkpoints._orbax.close()


# --------------------------------------------------------------------------------- folders of any name


@pytest.mark.parametrize(
    "name",
    ["seed[1]", "a*", "a{1,2}", "50%20#1", "ä 日本"]
    + [pytest.param(name, marks=pytest.mark.slow) for name in ("a?", "~a", "-a", ".a")],
)
def test_a_folder_of_any_name_gives_back_what_was_saved(tmp_path, assert_same, name):
    saved(tmp_path / "ab" / "checkpoints", 1)  # a neighbour that `a*` and `a?` would fit
    saved(tmp_path / name / "checkpoints", 2)
    with Checkpoints(tmp_path / name / "checkpoints", writable=False) as checkpoints:
        assert_same(checkpoints.restore(shapes(make_state())), make_state(2))


def test_a_first_save_that_cannot_be_read_back_is_an_error_at_once(tmp_path):
    # TensorStore writes into the folder a/b.
    with Checkpoints(tmp_path / "a\\b" / "checkpoints") as checkpoints:
        with pytest.raises(RunError, match=r"checkpoint of step 1 .* cannot be read back .* choose another --workdir"):
            checkpoints.save(make_state(1), {"loss": 1.0})


def test_a_first_save_whose_metadata_cannot_be_had_is_an_error_at_once(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    monkeypatch.setattr(type(checkpoints._orbax), "metadata", lambda self, step: 1 / 0)
    with checkpoints, pytest.raises(RunError, match=r"cannot be read back \(division by zero\)"):
        checkpoints.save(make_state(1), {"loss": 1.0})


@pytest.mark.parametrize(
    "name",
    ["_METADATA", *(pytest.param(n, marks=pytest.mark.slow) for n in ("manifest.ocdbt", "_CHECKPOINT_METADATA"))],
)
def test_a_damaged_checkpoint_is_one_error_and_nothing_is_printed(two, tmp_path, capfd, name):
    shutil.copytree(two, tmp_path / "checkpoints")
    for file in (tmp_path / "checkpoints" / "7").rglob(name):
        file.write_bytes(bytes(file.stat().st_size))
    with Checkpoints(tmp_path / "checkpoints", writable=False) as checkpoints:
        with pytest.raises(RunError, match="is damaged or of another model") as caught:
            checkpoints.restore(shapes(make_state()), 7)
    gc.collect()
    assert "orbax" not in str(caught.value) and capfd.readouterr().err == ""

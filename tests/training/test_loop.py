import contextlib
import dataclasses
import json
import os
import signal
import stat

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.errors import ConfigError, NonFiniteError, RunError, Terminated
from flaxformer_lab.functional.metrics import Average
from flaxformer_lab.run import load_run
from flaxformer_lab.tasks.examples import Examples
from flaxformer_lab.training import optimizer, programs
from flaxformer_lab.training.checkpoints import Checkpoints
from flaxformer_lab.training.experiment import make_experiment
from flaxformer_lab.training.folder import RunFolder
from flaxformer_lab.training.logging import MetricsLog
from flaxformer_lab.training.loop import train
from flaxformer_lab.training.termination import Termination

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("compiled_once")]


def lines(folder, split=None):
    """The entries of metrics.jsonl; strictly JSON, so no NaN."""
    refuse = {"parse_constant": lambda text: pytest.fail(f"metrics.jsonl holds {text}")}
    entries = [json.loads(line, **refuse) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [entry for entry in entries if split in (None, entry["split"])]


def values(folder, split, step):
    return {entry["name"]: entry["value"] for entry in lines(folder, split) if entry["step"] == step}


def content(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def recorded(patch):
    """The steps whose batches are asked for from now on."""
    steps, original = [], Examples.training_indices

    def training_indices(self, seed, step, batch_size):
        steps.append(step)
        return original(self, seed, step, batch_size)

    patch.setattr(Examples, "training_indices", training_indices)
    return steps


@pytest.fixture(scope="module")
def straight(rich, tmp_path_factory):
    """A run of 40 steps with dropout, moved images, Muon, warm-up, clipping and accumulation; and what it returned."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    return folder, train(rich(), folder, quiet=True)


@pytest.fixture(scope="module")
def finished(plain, tmp_path_factory):
    """A run of 12 steps without blocks; and what it returned. Not to be written."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, train(plain(), folder, quiet=True)


# ------------------------------------------------------------------------------------------------- the run


def test_a_run_describes_itself(straight, rich):
    folder, _ = straight
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "metadata.json",
        "metrics.jsonl",
        "checkpoints",
        "tensorboard",
    }
    assert load_run(folder).config == rich()


def test_checkpoints_and_evaluations_come_when_they_are_due(straight):
    folder, _ = straight
    with Checkpoints(folder / "checkpoints", writable=False) as checkpoints:
        assert checkpoints.steps == [10, 20, 30, 40]
    expected = {"train": set(range(5, 41, 5)), "validation": {10, 20, 30, 40}, "test": {40}}
    found = {split: {entry["step"] for entry in lines(folder, split)} for split in expected}
    assert found == expected and len(lines(folder)) == 8 * 4 + 4 * 2 + 2
    for step in expected["train"]:
        assert values(folder, "train", step).keys() == {"loss", "accuracy", "gradient_norm", "learning_rate"}


def test_a_run_returns_the_test_metrics_of_its_last_step(straight):
    folder, returned = straight
    assert returned == values(folder, "test", 40) and returned.keys() == {"loss", "accuracy"}


def test_the_learning_rate_is_the_one_of_the_last_update(straight):
    folder, _ = straight
    rates = {step: values(folder, "train", step)["learning_rate"] for step in (5, 10, 40)}
    assert rates[5] == pytest.approx(0.01)  # warm-up ends with the 5th update
    assert rates[10] == pytest.approx(0.01 * 0.5 * (1 + np.cos(np.pi * 4 / 35)), rel=1e-5)
    assert 0 < rates[40] < 0.0001


def test_training_learns(finished):
    folder, _ = finished
    losses = [values(folder, "train", step)["loss"] for step in (2, 12)]
    assert losses[1] < 0.9 * losses[0]


def test_the_train_loss_is_the_mean_over_the_updates_since_the_last_line(plain, finished, tmp_path):
    single = plain({"training.steps_per_call": 1})
    train(single, tmp_path, quiet=True)
    folder, _ = finished
    for step in (2, 4, 12):
        pair = [values(tmp_path, "train", each)["loss"] for each in (step - 1, step)]
        assert values(folder, "train", step)["loss"] == pytest.approx(np.mean(pair), rel=1e-6)
    # And how many updates one call does is not seen in the result.
    assert values(tmp_path, "test", 12) == values(folder, "test", 12)


def test_the_same_config_gives_the_same_bytes_and_another_seed_does_not(plain, finished, tmp_path):
    folder, returned = finished
    assert train(plain(), tmp_path / "again", quiet=True) == returned
    for name in ("config.json", "metadata.json", "metrics.jsonl"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes(), name
    assert train(plain({"seed": 4}), tmp_path / "other", quiet=True) != returned
    losses = [values(each, "train", 2)["loss"] for each in (folder, tmp_path / "other")]
    assert losses[0] != losses[1]


def test_no_hidden_copies_between_host_and_device(plain, tmp_path, monkeypatch):
    """The guard is on where updates run, and off where the run reads their metrics, evaluates and saves."""
    from flaxformer_lab.training import evaluation, loop

    seen, x = {"updates": [], "read": [], "validation": [], "save": []}, jnp.ones(3)

    def watched(place, original):
        def call(*arguments):
            seen[place].append(jax.config.jax_transfer_guard_host_to_device)
            return original(*arguments)

        return call

    def refused():
        for direction, copy in (("host-to-device", lambda: x + np.ones(3, np.float32)), ("device-to-host", x.tolist)):
            with pytest.raises(Exception, match=f"Disallowed {direction} transfer"):
                copy()

    def make_run_steps(*arguments):
        run_steps, data = programs.make_run_steps(*arguments)
        return watched("updates", lambda *call: (refused(), run_steps(*call))[1]), data

    monkeypatch.setattr(loop, "make_run_steps", make_run_steps)
    monkeypatch.setattr(loop.Display, "step", watched("read", lambda self, *rest: None))
    monkeypatch.setattr(loop, "make_evaluate", lambda made: watched("validation", evaluation.make_evaluate(made)))
    monkeypatch.setattr(Checkpoints, "save", watched("save", Checkpoints.save))
    train(plain({"training.steps": 4}), tmp_path, quiet=True)
    assert {place: set(levels) for place, levels in seen.items()} == {
        "updates": {"disallow"},
        "read": {None},
        "validation": {None},
        "save": {None},
    }


@pytest.mark.parametrize(
    "parallelism",
    [
        {"strategy": "pmap"},
        {"strategy": "mesh"},
        pytest.param({"strategy": "auto", "mesh.fsdp": 2, "mesh.tensor": 2}, marks=pytest.mark.slow),
    ],
)
def test_every_strategy_is_a_run(plain, finished, tmp_path, parallelism):
    folder, returned = finished
    train(plain({f"parallelism.{key}": value for key, value in parallelism.items()}), tmp_path, quiet=True)
    for split, step in (("train", 2), ("train", 12), ("validation", 8), ("test", 12)):
        for name, value in values(tmp_path, split, step).items():
            assert value == pytest.approx(values(folder, split, step)[name], abs=1e-5), (split, step, name)
    assert load_run(tmp_path).step == 12


# ----------------------------------------------------------------------------------------------- resuming


@pytest.mark.slow
def test_a_checkpoint_goes_on_on_any_devices(rich, straight, tmp_path, assert_same, assert_close):
    """Stopped twice, and each time resumed in another way; what is restored is what was saved, bit for bit."""
    folder, _ = straight
    ways = ({"strategy": "single"}, {"strategy": "mesh", "mesh.fsdp": 2, "mesh.tensor": 2}, {"strategy": "pmap"})
    for number, way in enumerate(ways, start=1):
        config = rich({f"parallelism.{key}": value for key, value in ({"strategy": "auto"} | way).items()})
        if number > 1:
            experiment, saved = make_experiment(config), load_run(tmp_path).state
            with Checkpoints(tmp_path / "checkpoints", writable=False) as checkpoints:
                assert_same(checkpoints.restore(experiment.abstract_state, layout=experiment.layout), saved)
        train(config, tmp_path, stop_at=10 * number, quiet=True)
    assert_close(load_run(tmp_path).state, load_run(folder, step=30).state, 1e-4)


def test_a_run_that_was_stopped_twice_goes_on_to_the_same_bits(straight, rich, tmp_path, assert_same):
    folder, returned = straight
    # At 20 a call would have ended anyway; at 23 it is cut short.
    for start, stop_at in ((0, 20), (20, 23), (23, 40)):
        with pytest.MonkeyPatch.context() as patch:
            steps = recorded(patch)
            stopped = train(rich(), tmp_path, stop_at=stop_at, quiet=True)
        assert sorted(set(steps)) == list(range(start, stop_at))  # the next batch is the one that was next
        assert stopped == values(tmp_path, "test" if stop_at == 40 else "validation", stop_at)
        if stop_at == 20:
            assert lines(tmp_path) == [line for line in lines(folder) if line["step"] <= 20]
    assert stopped == returned
    abstract = load_run(folder).experiment.abstract_state
    with contextlib.ExitStack() as stack:
        ours, theirs = (stack.enter_context(Checkpoints(each / "checkpoints")) for each in (tmp_path, folder))
        for step in (30, 40):
            assert_same(ours.restore(abstract, step), theirs.restore(abstract, step))
    assert values(tmp_path, "test", 40) == values(folder, "test", 40)
    # But for the call that was cut in two and the evaluation there, all lines are the same.
    ours, theirs = ([line for line in lines(each) if not 20 < line["step"] <= 30] for each in (tmp_path, folder))
    assert ours == theirs
    assert values(tmp_path, "validation", 30) == values(folder, "validation", 30)


def test_a_run_that_was_killed_between_checkpoints_goes_on_from_the_last_one(plain, finished, tmp_path, assert_same):
    folder, returned = finished
    train(plain(), tmp_path, stop_at=8, quiet=True)
    # Two updates and half a line were written before the process died; the checkpoint was not.
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(
            json.dumps({"step": 10, "split": "train", "name": "loss", "value": 99.0}) + "\n" + '{"step": 12, "sp'
        )
    (tmp_path / "checkpoints" / "12.orbax-checkpoint-tmp").mkdir()
    assert train(plain(), tmp_path, quiet=True) == returned
    assert (tmp_path / "metrics.jsonl").read_bytes() == (folder / "metrics.jsonl").read_bytes()
    assert_same(load_run(tmp_path).state, load_run(folder).state)


def test_a_finished_run_is_not_trained_again(plain, tmp_path, assert_same):
    returned = train(plain(), tmp_path, quiet=True)
    before = content(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        steps = recorded(patch)
        assert train(plain(), tmp_path, quiet=True) == returned
        assert train(plain(), tmp_path, stop_at=5, quiet=True) == values(tmp_path, "validation", 12)
    assert steps == []
    after = {name: data for name, data in content(tmp_path).items() if not name.startswith("tensorboard")}
    assert after == {name: data for name, data in before.items() if not name.startswith("tensorboard")}


def test_stopping_where_the_run_has_stopped_already_changes_nothing(plain, tmp_path):
    first = train(plain(), tmp_path, stop_at=8, quiet=True)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    assert train(plain(), tmp_path, stop_at=8, quiet=True) == first
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_stop_at_beyond_the_end_is_the_end(plain, finished, tmp_path):
    assert train(plain(), tmp_path, stop_at=1000, quiet=True) == finished[1]


# ----------------------------------------------------------------------------------------------- refusals


def test_another_config_is_refused_and_the_folder_is_untouched(finished, plain):
    folder, _ = finished
    before = content(folder)
    with pytest.raises(ConfigError, match=r"optimizer\.learning_rate: 0\.1 there, 0\.2 now"):
        train(plain({"optimizer.learning_rate": 0.2}), folder, quiet=True)
    assert content(folder) == before


def test_a_folder_of_something_else_is_refused_and_untouched(plain, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="holds files but no config"):
        train(plain(), tmp_path, quiet=True)
    assert content(tmp_path) == {"notes.txt": b"mine"}


@pytest.mark.parametrize(
    "changes",
    [
        {"parallelism.strategy": "pmap", "training.batch_size": 6},
        {"parallelism.strategy": "pmap", "training.evaluate_batch_size": 30},
        {"task.patch_size": 3},
        {"task.dataset": "lab_speeches"},
        {
            "task": {"name": "language_modelling", "dataset": "lab_speeches", "sequence_length": 10_000_000},
            "model.causal": True,
        },
        # Long enough for train and validation, but not for test: told before the training and not after it.
        {
            "task": {"name": "language_modelling", "dataset": "lab_speeches", "sequence_length": 380_000},
            "model.causal": True,
        },
    ],
)
def test_what_cannot_be_run_writes_nothing(plain, tmp_path, changes):
    with pytest.raises(ConfigError):
        train(plain(changes), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_made_is_one_clear_error(plain, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        train(plain(), tmp_path / "file" / "run", quiet=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing stops root from writing")
def test_a_folder_that_is_read_only_is_one_clear_error(plain, tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(RunError, match="cannot be written"):
        train(plain(), tmp_path / "run", quiet=True)


def zero(folder):
    """Overwrites what a checkpoint's files of values hold."""
    for path in (folder / "state").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(bytes(path.stat().st_size))


def test_a_run_goes_back_to_the_newest_checkpoint_that_is_whole(plain, finished, tmp_path, capsys, assert_same):
    train(plain(), tmp_path, quiet=True, stop_at=8)
    zero(tmp_path / "checkpoints" / "8")
    assert train(plain(), tmp_path) == finished[1]
    out = capsys.readouterr().out
    moved = tmp_path / "damaged" / "8-0"
    assert "warning: the checkpoint of step 8 is damaged (" in out and f"was moved to {moved}" in out
    assert "resumed from the checkpoint of step 4" in out and moved.is_dir()
    assert_same(load_run(tmp_path).state, load_run(finished[0]).state)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (finished[0] / "metrics.jsonl").read_bytes()


def test_where_every_checkpoint_is_damaged_nothing_is_trained(plain, tmp_path):
    train(plain({"training.steps": 4}), tmp_path, quiet=True)
    zero(tmp_path / "checkpoints" / "4")
    with pytest.raises(RunError, match=r"no checkpoint in .* is intact: the checkpoint of step 4 is damaged"):
        train(plain({"training.steps": 4}), tmp_path, quiet=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow), signal.SIGINT])
def test_a_run_that_is_asked_to_end_saves_first_and_goes_on_from_there(
    plain, finished, tmp_path, monkeypatch, assert_same, number
):
    write = MetricsLog.write

    def write_and_ask(self, step, split, values):
        write(self, step, split, values)
        if step == 6:  # between two checkpoints
            os.kill(os.getpid(), number)

    original = signal.signal(number, signal.SIG_DFL)  # this process may ignore some
    signal.signal(number, original if original not in (None, signal.SIG_IGN) else signal.SIG_DFL)
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "write", write_and_ask)
        with pytest.raises(Terminated, match="step 8 is saved") as caught:
            train(plain({"training.evaluate_every": 12, "training.checkpoint_every": 12}), tmp_path, quiet=True)
    assert caught.value.exit_code == 128 + number and signal.getsignal(number) is before
    signal.signal(number, original)
    assert number.name in str(caught.value)
    assert load_run(tmp_path).step in (6, 8)
    train(plain({"training.evaluate_every": 12, "training.checkpoint_every": 12}), tmp_path, quiet=True)
    assert_same(load_run(tmp_path).state, load_run(finished[0]).state)


def test_a_second_ctrl_c_ends_at_once(plain, tmp_path, monkeypatch):
    write = MetricsLog.write

    def write_and_interrupt_twice(self, step, split, values):
        write(self, step, split, values)
        if step == 6:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        monkeypatch.setattr(MetricsLog, "write", write_and_interrupt_twice)
        with pytest.raises(KeyboardInterrupt):
            train(plain({"training.evaluate_every": 12, "training.checkpoint_every": 12}), tmp_path, quiet=True)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    with pytest.raises(RunError, match="holds no checkpoint"):
        load_run(tmp_path)


def test_a_signal_that_the_process_ignores_stays_ignored(monkeypatch):
    """As SIGHUP under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Termination() as termination:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not termination.agreed()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_that_comes_while_the_others_are_asked_is_answered_the_next_time(monkeypatch):
    with Termination() as termination:

        def ask_all(flag):
            os.kill(os.getpid(), signal.SIGTERM)
            return flag

        monkeypatch.setattr("flaxformer_lab.training.termination.all_reduce_any", ask_all)
        assert not termination.agreed()
        assert termination.agreed()


def test_a_config_that_was_made_by_hand_is_held_against_the_rules(plain, tmp_path):
    config = plain()
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, width=65))
    with pytest.raises(ConfigError, match=r"num_heads=4 does not divide model\.width=65"):
        train(config, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_batch_of_more_examples_than_there_are_is_refused(plain, tmp_path):
    with pytest.raises(ConfigError, match=r"batch_size=1198 is more than the 1,197 training examples .* at most 1197"):
        train(plain({"training.batch_size": 1198}), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_run_may_go_on_with_other_values_of_what_decides_nothing(plain, finished, tmp_path, assert_same):
    train(plain(), tmp_path, quiet=True, stop_at=6)
    changes = {"training.checkpoint_every": 3, "training.evaluate_batch_size": 7, "training.steps_per_call": 5}
    changes |= {"training.keep_last": 1, "training.input": "stream", "model.remat": True}
    train(plain(changes), tmp_path, quiet=True)
    assert load_run(tmp_path).config == plain(changes)
    assert_same(load_run(tmp_path).state, load_run(finished[0]).state)


def test_a_finished_run_takes_more_steps_where_the_learning_rate_is_constant(plain, tmp_path, assert_same):
    constant = {"optimizer.schedule": "constant"}
    train(plain(constant | {"training.steps": 6}), tmp_path / "run", quiet=True)
    returned = train(plain(constant), tmp_path / "run", quiet=True)
    assert returned == train(plain(constant), tmp_path / "whole", quiet=True)
    assert_same(load_run(tmp_path / "run").state, load_run(tmp_path / "whole").state)
    for changes in (constant | {"training.steps": 6}, {"optimizer.schedule": "cosine"}):  # fewer; another schedule
        with pytest.raises(ConfigError, match="another config"):
            train(plain(changes), tmp_path / "run", quiet=True)
    train(plain({"optimizer.schedule": "cosine", "training.steps": 6}), tmp_path / "cosine", quiet=True)
    with pytest.raises(ConfigError, match=r"With optimizer\.schedule=cosine another number of steps changes each"):
        train(plain({"optimizer.schedule": "cosine"}), tmp_path / "cosine", quiet=True)


def test_a_second_run_in_a_folder_is_refused_while_the_first_is_at_work(plain, finished, tmp_path):
    train(plain(), tmp_path, quiet=True, stop_at=4)
    before = content(tmp_path)
    with RunFolder(tmp_path).locked(), pytest.raises(RunError, match=r"another run is at work in .*--workdir"):
        train(plain(), tmp_path, quiet=True)
    assert content(tmp_path) == before
    assert train(plain(), tmp_path, quiet=True) == finished[1]


def test_files_that_cannot_be_written_are_one_clear_error(plain, finished, tmp_path):
    train(plain(), tmp_path, quiet=True, stop_at=4)
    (tmp_path / "metrics.jsonl").rename(tmp_path / "kept")
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(RunError, match=r"metrics\.jsonl cannot be written: Is a directory"):
        train(plain(), tmp_path, quiet=True)
    (tmp_path / "metrics.jsonl").rmdir()
    (tmp_path / "kept").rename(tmp_path / "metrics.jsonl")
    assert train(plain(), tmp_path, quiet=True) == finished[1]


# ----------------------------------------------------------------------------------- numbers that are none


def explode(monkeypatch, at, rate):
    """From update number `at` on, the learning rate is absurd."""
    original = optimizer.make_schedule

    def make_schedule(config, steps, peak=None):
        schedule = original(config, steps)
        return lambda step: jnp.where(step >= at - 1, rate, schedule(step))

    monkeypatch.setattr(optimizer, "make_schedule", make_schedule)


def check_last_good(folder):
    """The checkpoint of step 4 is there and can be used."""
    assert load_run(folder).step == 4
    with Checkpoints(folder / "checkpoints", writable=False) as checkpoints:
        assert checkpoints.steps == [4]
    assert all(np.isfinite(entry["value"]) for entry in lines(folder))


def test_a_loss_that_is_no_number_ends_the_run(plain, finished, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        explode(patch, 6, 1e30)
        with pytest.raises(NonFiniteError, match=r"(loss|gradient_norm)=(nan|inf) in update [78]; .*learning_rate"):
            train(plain(), tmp_path, quiet=True)
    check_last_good(tmp_path)
    assert train(plain(), tmp_path, quiet=True) == finished[1]  # once the cause is gone, the same command goes on


def test_a_gradient_that_is_no_number_ends_the_run(plain, tmp_path, monkeypatch):
    original = programs.make_train_step

    def make_train_step(*arguments, **options):
        step = original(*arguments, **options)

        def poisoned(state, batch):
            after, metrics = step(state, batch)
            norm, one = metrics["gradient_norm"]
            return after, metrics | {"gradient_norm": Average(jnp.where(state.step == 6, jnp.inf, norm), one)}

        return poisoned

    with monkeypatch.context() as patch:
        patch.setattr(programs, "make_train_step", make_train_step)
        with pytest.raises(NonFiniteError, match="gradient_norm=inf in update 7;"):
            train(plain(), tmp_path, quiet=True)
    check_last_good(tmp_path)


def test_parameters_that_are_spoilt_by_the_update_before_a_checkpoint_are_not_saved(plain, tmp_path, monkeypatch):
    # All losses up to update 8 are finite; what the 8th makes of the parameters is not.
    with monkeypatch.context() as patch:
        explode(patch, 8, np.inf)
        with pytest.raises(NonFiniteError, match=r"validation loss=(nan|inf) in update 8;") as caught:
            train(plain(), tmp_path, quiet=True)
    # The guard against hidden copies is off again, though the error still holds on to the frames of the loop.
    assert caught.traceback
    jnp.add(jnp.ones(3), np.ones(3, np.float32))
    check_last_good(tmp_path)


def test_a_learning_rate_that_is_absurd_from_the_start_saves_nothing(plain, tmp_path):
    with pytest.raises(NonFiniteError, match=r"in update [1-4];"):
        train(plain({"optimizer.learning_rate": 1e30}), tmp_path, quiet=True)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.steps == []
    lines(tmp_path)


# ------------------------------------------------------------------------------------------------- display


def test_what_is_printed(plain, tmp_path, capsys):
    train(plain({"training.steps": 4}), tmp_path / "run")
    printed = capsys.readouterr().out
    # Kernel 16 x 8 + bias 8; position 4 x 8; last norm 2 x 8; head 8 x 10 + 10.
    rows = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in printed.splitlines() if "│" in line}
    assert {name: rows[name] for name in ("embedding", "position", "norm", "head", "all")} == {
        "embedding": "136",
        "position": "32",
        "norm": "16",
        "head": "90",
        "all": "274",
    }
    assert "operations (single, 1 x cpu)" in printed and "update on a batch of 16" in printed
    assert "step 4/4 | loss " in printed
    for split in ("validation", "test"):
        found = values(tmp_path / "run", split, 4)
        assert f"step 4 | {split} accuracy {found['accuracy']:.4f}, loss {found['loss']:.4f}" in printed
    assert str(tmp_path / "run") in printed.splitlines()[-1]
    train(plain({"training.steps": 4}), tmp_path / "run")
    assert "resumed from the checkpoint of step 4" in capsys.readouterr().out


def test_quiet_is_quiet(plain, tmp_path, capsys):
    train(plain({"training.steps": 4}), tmp_path, quiet=True)
    assert capsys.readouterr().out == ""

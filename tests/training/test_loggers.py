"""Loggers by name, those of a user, and what becomes of one that fails."""

import csv
import importlib
import re
import sys
import threading
import types

import pytest

from flaxformer_lab.errors import ConfigError
from flaxformer_lab.training import loggers as loggers_of_the_lab
from flaxformer_lab.training.loggers import Destination, Loggers, ReplicaSplit, add_figures, check_loggers

ENTRIES = [
    (2, "train", {"loss": 1.5}),
    (2, "validation", {"loss": 0.1 + 0.2, "accuracy": 0.5}),
    (4, "test", {"loss": 2.0}),
]
REPLICAS = [
    (step, ReplicaSplit("near", variant, 0.01, seed, "validation"), {"r2": step / 8 + seed})
    for variant in ("ffn_off", "one/head")
    for seed in (0, 1)
    for step in (2, 4)
]


@pytest.fixture
def write(tmp_path):
    """The function that writes entries to loggers whose folder is `tmp_path`."""

    def run(loggers, new=ENTRIES, callbacks=(), **options):
        options = {"folder": tmp_path, "config": {"model": {"width": 8}}, "quiet": True} | options
        with Loggers(loggers, callbacks, Destination(**options)) as opened:
            for entry in new:
                opened.write(*entry)

    return run


def rows(folder):
    return list(csv.reader((folder / "metrics.csv").open()))


def scalars(folder):
    """(step, name, value) of every scalar in the TensorBoard files, oldest file first."""
    from tensorboardX.proto.event_pb2 import Event  # which the logger has imported, without PyTorch

    found = []
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        content, place = path.read_bytes(), 0
        while place < len(content):
            length = int.from_bytes(content[place : place + 8], "little")
            event = Event.FromString(content[place + 12 : place + 12 + length])
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            place += 12 + length + 4
    return found


# ------------------------------------------------------------------------------------------- in the folder


def test_tensorboard_gets_all_values(write, tmp_path):
    write(["tensorboard"], [(2, "train", {"loss": 1.5}), (4, "test", {"loss": 0.25})])
    assert scalars(tmp_path / "tensorboard") == [(2, "train/loss", 1.5), (4, "test/loss", 0.25)]


def test_tensorboard_does_without_pytorch(write, tmp_path, monkeypatch):
    """Importing it takes seconds."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tensorboardX", "torch")]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "torch.py").write_text("raise SystemError('imported')")
    monkeypatch.syspath_prepend(tmp_path / "modules")
    write(["tensorboard"])
    assert len(scalars(tmp_path / "tensorboard")) == 4
    with pytest.raises(SystemError, match="imported"):  # and who wants it finds it
        importlib.import_module("torch")


def test_tensorboard_gets_figures(write, tmp_path):
    from matplotlib.figure import Figure

    write(["tensorboard"], [(2, "train", {"loss": 1.5})])
    figure = Figure((1, 1), dpi=20)
    figure.subplots().imshow([[0, 1]])
    add_figures(tmp_path, 3, {"boxes": figure})
    assert [(step, tag) for step, tag, _ in scalars(tmp_path / "tensorboard")] == [(2, "train/loss"), (3, "boxes")]


def test_tensorboard_has_a_run_for_each_replica(write, tmp_path):
    write(["tensorboard"], REPLICAS, is_ablation=True)
    folders = {path.name: scalars(path) for path in (tmp_path / "tensorboard").iterdir()}
    assert len(folders) == 4
    assert folders["task near, variant one%2Fhead, learning_rate 0.01, seed 1"] == [
        (2, "validation/r2", 1.25),
        (4, "validation/r2", 1.5),
    ]


def test_a_row_of_csv_is_a_value(write, tmp_path):
    write(["csv"])
    assert rows(tmp_path) == [
        ["step", "split", "name", "value"],
        ["2", "train", "loss", "1.5"],
        ["2", "validation", "loss", "0.30000000000000004"],
        ["2", "validation", "accuracy", "0.5"],
        ["4", "test", "loss", "2.0"],
    ]


def test_csv_begins_with_what_the_run_has_logged_and_no_more(write, tmp_path):
    """Rows of a run that was killed after its last checkpoint, one cut short among them, are gone."""
    write(["csv"])
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("5,train,lo")
    write(["csv"], [(4, "train", {"loss": 1.0})], entries=lambda: ENTRIES[:1], resumed_step=2)
    assert rows(tmp_path)[1:] == [["2", "train", "loss", "1.5"], ["4", "train", "loss", "1.0"]]


def test_csv_names_the_replica_and_ends_with_all_that_is_stored(write, tmp_path):
    write(["csv"], REPLICAS[:1], entries=lambda: REPLICAS, is_ablation=True)
    found = rows(tmp_path)
    assert found[0] == ["task", "variant", "learning_rate", "seed", "step", "split", "name", "value"]
    assert found[-1] == ["near", "one/head", "0.01", "1", "4", "validation", "r2", "1.5"] and len(found) == 9


def test_a_split_of_a_replica_is_a_text_with_its_parts():
    split = REPLICAS[0][1]
    assert split == "near/ffn_off/learning_rate-0.01/seed-0/validation" and split.split("/")[1] == "ffn_off"
    assert (split.task, split.variant, split.learning_rate, split.seed) == ("near", "ffn_off", 0.01, 0)
    assert split.name == "validation"


# ---------------------------------------------------------------------------------------------- of a user


class Remembers:
    def __init__(self):
        self.entries = []

    def write(self, step, split, metrics):
        self.entries.append((step, split, dict(metrics)))

    def close(self):
        raise AssertionError("it is the user's to close")


@pytest.mark.parametrize("place", ["loggers", "callbacks"])
def test_an_object_or_a_function_gets_every_entry(write, place):
    logger, entries = Remembers(), []
    given = [logger, lambda *entry: entries.append(entry)]
    write(**{"loggers": [], "callbacks": []} | {place: given})
    assert logger.entries == entries == ENTRIES


def test_a_logger_that_fails_is_one_warning_and_the_others_go_on(write, tmp_path, capsys):
    calls = []

    def no_network(*entry):
        calls.append(entry)
        raise ConnectionError("no route to host\nand more")

    write([no_network, "csv"])
    assert len(calls) == 1 and len(rows(tmp_path)) == 5
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("warning: logger ")
    assert said[0].endswith(
        "no_network failed and gets nothing more; the run goes on: ConnectionError: no route to host"
    )


def test_a_logger_that_cannot_be_opened_is_a_warning(write, tmp_path, capsys):
    (tmp_path / "metrics.csv").mkdir()
    write(["csv"])
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("warning: logger csv failed") and "Is a directory" in said[0]


def test_an_error_of_a_callback_ends_the_run(write):
    def stop(step, split, metrics):
        raise StopIteration("enough")

    with pytest.raises(StopIteration, match="enough"):
        write([], callbacks=[stop])


@pytest.mark.parametrize(
    ("loggers", "message"),
    [
        (["tensorbord"], "--loggers=tensorbord is no logger: did you mean tensorboard.* choose from tensorboard, csv,"),
        (["wandb"], r"--loggers=wandb needs the package wandb: pip install -e '\.\[wandb\]' in the lab's folder"),
        (["mlflow"], r"--loggers=mlflow needs the package mlflow: pip install -e '\.\[mlflow\]'"),
        ([3], r"3 is no logger: it must have write\(step, split, metrics\)"),
    ],
)
def test_what_is_no_logger_or_not_installed_is_refused(monkeypatch, loggers, message):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "mlflow", types.ModuleType("mlflow"))  # a folder of that name
    with pytest.raises(ConfigError, match=message):
        check_loggers(loggers)
    check_loggers(["csv", print], [print])


# -------------------------------------------------------------------------------------- over a network


@pytest.fixture
def slow(monkeypatch):
    """A logger that waits for a network until `slow.network` is set."""

    class Slow(Remembers):
        network, made = threading.Event(), []

        def __init__(self, destination):
            super().__init__()
            self.made.append(self)

        def write(self, *entry):
            assert self.network.wait(60)
            super().write(*entry)

        def close(self):
            self.entries.append("closed")

    monkeypatch.setitem(loggers_of_the_lab.LOGGERS, "wandb", Slow)
    yield Slow
    Slow.network.set()


def test_a_slow_network_does_not_hold_up_the_run(write, slow):
    write(["wandb"], callbacks=[lambda step, *_: slow.network.set() if step == 4 else None])
    assert slow.made[0].entries == [*ENTRIES, "closed"]  # the run's last entry came before the first was sent


def test_a_network_that_hangs_does_not_hold_up_the_end(write, slow, monkeypatch, capsys):
    monkeypatch.setattr(loggers_of_the_lab, "CLOSE_S", 0.01)
    write(["wandb"])
    assert "logger wandb has not sent everything" in capsys.readouterr().err and not slow.made[0].entries


def test_a_second_ctrl_c_waits_for_no_network(write, slow, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(["wandb"], callbacks=[interrupt])
    assert not slow.made[0].entries and not capsys.readouterr().err


class FakeWandb(types.ModuleType):
    """The part of wandb that the lab calls, with wandb's rule about steps: a run takes none below its last one."""

    __file__ = "wandb"

    def __init__(self):
        super().__init__("wandb")
        self.runs = {}

    def init(self, *, id, **options):
        run = self.runs.setdefault(id, types.SimpleNamespace(history=[], last=-1, options=options, finished=0, axes=[]))

        def log(values, step=None):
            step = run.last + 1 if step is None else step
            if step >= run.last:
                run.last = step
                run.history.append((step, values))

        def finish():
            run.finished += 1

        axis = lambda name, step_metric: run.axes.append((name, step_metric))  # noqa: E731
        return types.SimpleNamespace(log=log, finish=finish, define_metric=axis)

    Settings = types.SimpleNamespace


def test_wandb_has_one_run_for_a_folder_and_no_step_twice(write, tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    check_loggers(["wandb"])
    write(["wandb"])
    write(["wandb"], [(2, "train", {"loss": 1.5}), (6, "train", {"loss": 1.0})], resumed_step=2)
    (run,) = fake.runs.values()
    assert run.history == [
        (2, {"train/loss": 1.5}),
        (2, {"validation/loss": 0.1 + 0.2, "validation/accuracy": 0.5}),
        (4, {"test/loss": 2.0}),
        (6, {"train/loss": 1.0}),
    ]
    assert run.options["config"] == {"model": {"width": 8}} and run.options["dir"] == tmp_path and run.finished == 2
    assert run.options["project"] == "flaxformer_lab" and run.options["resume"] == "allow"


def test_wandb_draws_the_curves_of_an_ablation_against_their_own_steps(write, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    write(["wandb"], REPLICAS, is_ablation=True)
    (run,) = fake.runs.values()
    assert run.axes == [("*", "step")]
    assert [values for _, values in run.history] == [
        {f"{split}/r2": metrics["r2"], "step": step} for step, split, metrics in REPLICAS
    ]


class FakeMlflow(types.ModuleType):
    """The part of MLflow that the lab calls, with MLflow's rules about names and the size of a request."""

    __file__ = "mlflow"

    def __init__(self):
        super().__init__("mlflow")
        self.experiments, self.runs, self.requests = {}, {}, 0
        self.entities = types.SimpleNamespace(Metric=self._metric, Param=lambda key, value: (key, value))
        self.MlflowClient = lambda tracking_uri: setattr(self, "uri", tracking_uri) or self

    @staticmethod
    def _metric(key, value, timestamp, step):
        assert re.fullmatch(r"[\w.:/ -]+", key) and timestamp > 10**12
        return types.SimpleNamespace(key=key, value=value, step=step)

    def get_experiment_by_name(self, name):
        return types.SimpleNamespace(experiment_id=name) if name in self.experiments else None

    def create_experiment(self, name):
        self.experiments[name] = []
        return name

    def create_run(self, experiment, run_name):
        run = f"run{len(self.runs)}"
        self.experiments[experiment].append(run)
        self.runs[run] = types.SimpleNamespace(name=run_name, metrics=[], params={}, status="RUNNING")
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run))

    def log_batch(self, run, metrics=(), params=()):
        assert len(metrics) <= 1000 and len(params) <= 100
        self.requests += 1
        self.runs[run].metrics += metrics
        self.runs[run].params |= dict(params)

    def get_metric_history(self, run, key):
        return [each for each in self.runs[run].metrics if each.key == key]

    def set_terminated(self, run):
        self.runs[run].status = "FINISHED"

    def update_run(self, run, status):
        self.runs[run].status = status


@pytest.fixture
def mlflow(monkeypatch):
    fake = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return fake


def test_mlflow_has_one_run_for_a_folder_and_no_step_twice(write, tmp_path, mlflow):
    check_loggers(["mlflow"])
    config = {"seed": 0, "model": {str(number): number for number in range(150)}}
    write(["mlflow"], config=config)
    write(["mlflow"], [(4, "test", {"loss": 2.0}), (6, "train", {"loss": 1.0})], config=config, resumed_step=2)
    (run,) = mlflow.runs.values()
    assert mlflow.uri == f"sqlite:///{tmp_path}/mlflow.db" and run.status == "FINISHED" and run.name == tmp_path.name
    assert [(each.step, each.key, each.value) for each in run.metrics] == [
        (2, "train/loss", 1.5),
        (2, "validation/loss", 0.1 + 0.2),
        (2, "validation/accuracy", 0.5),
        (4, "test/loss", 2.0),
        (6, "train/loss", 1.0),
    ]
    assert (
        len(run.params) == 151
        and run.params["model.149"] == "149"
        and mlflow.experiments == {"flaxformer_lab": ["run0"]}
    )


def test_mlflow_has_a_run_for_each_replica_of_an_ablation(write, mlflow):
    odd = ReplicaSplit("near", "x₁ = 0?", 0.5, 7, "test")
    many = {f"m{number}": 0.5 for number in range(1500)} | {"Δ=%": 1.0}
    write(["mlflow"], [*REPLICAS, (4, odd, many)], is_ablation=True)
    runs = list(mlflow.runs.values())
    assert [run.name for run in runs] == ["near / ffn_off"] * 2 + ["near / one/head"] * 2 + ["near / x₁ = 0?"]
    assert runs[1].params == {"task": "near", "variant": "ffn_off", "learning_rate": "0.01", "seed": "1"}
    assert [(each.step, each.key, each.value) for each in runs[1].metrics] == [
        (2, "validation/r2", 1.25),
        (4, "validation/r2", 1.5),
    ]
    assert len(runs[4].metrics) == 1501 and runs[4].metrics[-1].key == "test/Δ__"
    assert {run.status for run in runs} == {"FINISHED"}


# -------------------------------------------------------------------------------- the real ones, without a network


def test_wandb_offline(write, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_loggers(["wandb"])
    write(["wandb"])
    (file,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert file.stem == f"run-{(tmp_path / 'wandb' / 'run_id').read_text()}"
    content = file.read_bytes()
    for each in (b"train/loss", b"validation/accuracy", b"0.30000000000000004", b"test/loss"):
        assert each in content


def test_mlflow_in_a_file(write, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    check_loggers(["mlflow"])
    write(["mlflow"])
    write(["mlflow"], [(4, "test", {"loss": 2.0}), (6, "train", {"loss": 1.0})], resumed_step=2)
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("flaxformer_lab").experiment_id])
    assert run.data.params == {"model.width": "8"} and run.info.status == "FINISHED"
    history = lambda key: [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, key)]  # noqa: E731
    assert history("train/loss") == [(2, 1.5), (6, 1.0)] and history("test/loss") == [(4, 2.0)]
    assert history("validation/loss") == [(2, 0.1 + 0.2)]

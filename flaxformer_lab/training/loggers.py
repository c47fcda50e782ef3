"""Where the values of a run go beside metrics.jsonl: loggers by name, and those of the user.

A logger is any object with `write(step, split, metrics)`, or a function of these three. The lab's own are closed at the
end too. The first error of a logger is a warning and the end of that logger; it never stops a run. Those that may wait
for a network write in a thread of their own.
"""

import csv
import importlib
import io
import itertools
import os
import queue
import re
import secrets
import statistics
import sys
import threading
import time
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from flaxformer_lab.errors import ConfigError
from flaxformer_lab.parsing import flatten, nearest
from flaxformer_lab.training.folder import write_atomic

CLOSE_S = 60.0  # a logger that has not sent everything so long after the end of the run is left behind
MLFLOW_METRICS, MLFLOW_PARAMS = 1000, 100  # that one request may have

Metrics = Mapping[str, float]
Entry = tuple[int, str, Metrics]  # step, split, metrics


@runtime_checkable
class Logger(Protocol):
    """Gets the values of a run as they are computed."""

    def write(self, step: int, split: str, metrics: Metrics) -> None:
        """Takes the values of a split after update `step`; in an ablation `split` is a `ReplicaSplit`."""


Callback = Callable[[int, str, Metrics], Any]


class ReplicaSplit(str):
    """A split of a replica of an ablation: near/ffn_off/learning_rate-0.01/seed-0/test, with its parts as attributes.

    name: of the split alone.
    """

    def __new__(cls, task: str, variant: str, learning_rate: float, seed: int, name: str) -> "ReplicaSplit":
        self = super().__new__(cls, f"{task}/{variant}/learning_rate-{learning_rate:g}/seed-{seed}/{name}")
        self.task, self.variant, self.learning_rate, self.seed, self.name = task, variant, learning_rate, seed, name
        return self

    @property
    def replica(self) -> dict[str, Any]:
        """What names the replica."""
        return {name: getattr(self, name) for name in REPLICA}


REPLICA = ("task", "variant", "learning_rate", "seed")


@dataclass(frozen=True)
class Destination:
    """What a logger is told when it opens.

    folder: of the run, or of the ablation. config: nested plain values. entries: reads what has been written before.
    resumed_step: the run goes on from this step. is_ablation: every split is a `ReplicaSplit`.
    """

    folder: Path
    config: Mapping[str, Any]
    entries: Callable[[], Iterable[Entry]] = tuple
    resumed_step: int = 0
    is_ablation: bool = False
    quiet: bool = False


class TensorBoard:
    """WORKDIR/tensorboard; in an ablation a folder in it for each replica, which TensorBoard shows as a run."""

    def __init__(self, destination: Destination):
        self._folder, step = destination.folder / "tensorboard", destination.resumed_step
        self._options = {"purge_step": step + 1} if step else {}
        self._writer: Any = None
        self._replica = ""

    def write(self, step: int, split: str, metrics: Metrics) -> None:
        name = split
        if isinstance(split, ReplicaSplit):
            name = split.name
            self._begin(", ".join(f"{key} {value}" for key, value in split.replica.items()))
        elif self._writer is None:
            self._begin("")
        for metric, value in metrics.items():
            self._writer.add_scalar(f"{name}/{metric}", value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _begin(self, replica: str) -> None:
        if self._writer is None or replica != self._replica:
            self.close()
            folder = self._folder / replica.replace("%", "%25").replace(os.sep, "%2F")
            self._writer, self._replica = _summary_writer()(str(folder), **self._options), replica


def add_figures(folder: Path, step: int, figures: Mapping[str, Any]) -> None:
    """Adds Matplotlib's figures to the TensorBoard of a run's folder, by name; they stay open."""
    # Files of one second have one name but for the suffix.
    with _summary_writer()(str(folder / "tensorboard"), filename_suffix=".figures") as writer:
        for name, figure in figures.items():
            writer.add_figure(name, figure, step, close=False)


def _summary_writer() -> Any:
    """tensorboardX's SummaryWriter."""
    return _tensorboardx().SummaryWriter


def _tensorboardx() -> Any:
    """tensorboardX without PyTorch: importing that takes seconds, and nothing here needs it."""
    sys.modules.setdefault("torch", None)
    try:
        import tensorboardX.proto.event_pb2
    finally:
        if sys.modules["torch"] is None:
            del sys.modules["torch"]
    return tensorboardX


def seconds_per_update(folder: Path) -> float | None:
    """Seconds of an update, by when the values of each compiled call were written to TensorBoard's files in `folder`.

    The median over calls, so that evaluations between them do not count; None where there are no three calls.
    """
    parse, seconds = _tensorboardx().proto.event_pb2.Event.FromString, []
    for path in sorted(folder.glob("events.*")):
        events = [parse(record) for record in _records(path.read_bytes())]
        times = [(e.step, e.wall_time) for e in events if any(v.tag == "train/loss" for v in e.summary.value)]
        # The first call is compiled.
        pairs = itertools.pairwise(times[1:])
        seconds += [(late - early) / (end - begin) for (begin, early), (end, late) in pairs if end > begin]
    return statistics.median(seconds) if seconds else None


def _records(contents: bytes) -> Iterator[bytes]:
    """The records of a TFRecord file, without what a crash left half written: length, checksum, data, checksum."""
    start = 0
    while start + 12 <= len(contents):
        end = start + 12 + int.from_bytes(contents[start : start + 8], "little")
        if end > len(contents):
            return
        yield contents[start + 12 : end]
        start = end + 4


class Csv:
    """WORKDIR/metrics.csv: one row for each value. It is written again from what the folder holds when it opens."""

    def __init__(self, destination: Destination):
        self._destination, self._path = destination, destination.folder / "metrics.csv"
        self._replica = REPLICA if destination.is_ablation else ()
        self._write_all()

    def write(self, step: int, split: str, metrics: Metrics) -> None:
        with self._path.open("a", encoding="utf-8", newline="") as file:
            file.write(self._as_text([(step, split, metrics)]))

    def close(self) -> None:
        if self._destination.is_ablation:  # another process may have written to it, of cells that both had not seen
            self._write_all()

    def _write_all(self) -> None:
        columns = (*self._replica, "step", "split", "name", "value")
        write_atomic(self._path, ",".join(columns) + "\n" + self._as_text(self._destination.entries()))

    def _as_text(self, entries: Iterable[Entry]) -> str:
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        for step, split, metrics in entries:
            replica = [getattr(split, each) for each in self._replica]
            place = [*replica, step, getattr(split, "name", split)]
            rows.writerows([*place, name, value] for name, value in metrics.items())
        return text.getvalue()


class Wandb:
    """Weights & Biases: one run, whose files and id are in WORKDIR/wandb; WANDB_MODE=offline writes nothing else.

    WANDB_PROJECT and WANDB_NAME name it; by default flaxformer_lab and the folder's name. An ablation is one run too:
    its curves are drawn against the metric `step`.
    """

    def __init__(self, destination: Destination):
        import wandb

        folder = destination.folder
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "flaxformer_lab"),
            name=os.environ.get("WANDB_NAME", folder.name),
            dir=folder,
            id=_remembered(folder / "wandb" / "run_id", lambda: secrets.token_hex(4)),
            resume="allow",
            config=dict(destination.config),
            settings=wandb.Settings(console="off", silent=destination.quiet),
        )
        if destination.is_ablation:
            self._run.define_metric("*", step_metric="step")

    def write(self, step: int, split: str, metrics: Metrics) -> None:
        values = {f"{split}/{name}": value for name, value in metrics.items()}
        if isinstance(split, ReplicaSplit):
            self._run.log(values | {"step": step})
        else:
            self._run.log(values, step=step)  # of a step below the run's last one, which it has already, it takes none

    def close(self) -> None:
        self._run.finish()


class Mlflow:
    """MLflow: a run, in an ablation one for each replica, at MLFLOW_TRACKING_URI, or in WORKDIR/mlflow.db.

    MLFLOW_EXPERIMENT_NAME names the experiment; by default flaxformer_lab. WORKDIR/mlflow_run_id has the run's id.
    """

    def __init__(self, destination: Destination):
        from mlflow import MlflowClient, entities

        self._entities, self._destination = entities, destination
        uri = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{destination.folder / 'mlflow.db'}")
        self._client = MlflowClient(tracking_uri=uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "flaxformer_lab")
        found = self._client.get_experiment_by_name(name)
        self._experiment = found.experiment_id if found else self._client.create_experiment(name)
        self._runs: dict[str, str] = {}  # ids by replica
        self._collected: dict[str, list[Any]] = {}  # metrics that are not sent, by run
        self._steps: dict[tuple[str, str], set[int]] = {}  # that a run had before, by run and metric

    def write(self, step: int, split: str, metrics: Metrics) -> None:
        run, name = self._run_of(split), getattr(split, "name", split)
        for metric, value in metrics.items():
            key = re.sub(r"[^\w.:/ -]", "_", f"{name}/{metric}")
            if step not in self._steps_before(run, key):
                entry = self._entities.Metric(key, value, timestamp=int(time.time() * 1000), step=step)
                self._collected.setdefault(run, []).append(entry)

    def flush(self) -> None:
        for run, entries in self._collected.items():
            for start in range(0, len(entries), MLFLOW_METRICS):
                self._client.log_batch(run, metrics=entries[start : start + MLFLOW_METRICS])
        self._collected = {}

    def close(self) -> None:
        self.flush()
        for run in self._runs.values():
            self._client.set_terminated(run)

    def _run_of(self, split: str) -> str:
        if isinstance(split, ReplicaSplit):
            replica = split.rpartition("/")[0]
            if replica not in self._runs:
                self._runs[replica] = self._create(f"{split.task} / {split.variant}", split.replica)
            return self._runs[replica]
        if not self._runs:
            folder = self._destination.folder
            make = lambda: self._create(folder.name, flatten(self._destination.config))  # noqa: E731
            self._runs[""] = _remembered(folder / "mlflow_run_id", make)
            self._client.update_run(self._runs[""], status="RUNNING")
        return self._runs[""]

    def _create(self, name: str, params: Mapping[str, Any]) -> str:
        run = self._client.create_run(self._experiment, run_name=name).info.run_id
        given = [self._entities.Param(key, str(value)) for key, value in params.items()]
        for start in range(0, len(given), MLFLOW_PARAMS):
            self._client.log_batch(run, params=given[start : start + MLFLOW_PARAMS])
        return run

    def _steps_before(self, run: str, key: str) -> set[int]:
        if not self._destination.resumed_step:
            return set()
        if (run, key) not in self._steps:
            self._steps[run, key] = {each.step for each in self._client.get_metric_history(run, key)}
        return self._steps[run, key]


LOGGERS: dict[str, type] = {"tensorboard": TensorBoard, "csv": Csv, "wandb": Wandb, "mlflow": Mlflow}
EXTRAS = ("wandb", "mlflow")  # which need a package of their name, and may wait for a network
DEFAULT_LOGGERS = ("tensorboard",)


def check_loggers(loggers: Sequence[Any], callbacks: Sequence[Any] = ()) -> None:
    """Raises ConfigError for an unknown name, a package that is not installed, and what cannot be written to."""
    for each in loggers:
        if isinstance(each, str):
            _check_name(each)
    for each in (*loggers, *callbacks):
        if not isinstance(each, str) and not callable(getattr(each, "write", each)):
            raise ConfigError(
                f"{each!r} is no logger: it must have write(step, split, metrics), or be a function of these three"
            )


def _check_name(name: str) -> None:
    if name not in LOGGERS:
        raise ConfigError(f"--loggers={name} is no logger: {nearest(name, LOGGERS)}choose from {', '.join(LOGGERS)}")
    if name in EXTRAS:
        try:
            module = importlib.import_module(name)
        except ImportError:
            module = None
        if getattr(module, "__file__", None) is None:  # None for a folder of that name, which they leave behind
            raise ConfigError(
                f"--loggers={name} needs the package {name}: pip install -e '.[{name}]' in the lab's folder"
            )


class Loggers:
    """All loggers and callbacks as one, while the context lasts.

    callbacks: as loggers, but the user's own code, whose errors end the run.
    """

    def __init__(
        self,
        loggers: Sequence[str | Logger | Callback],
        callbacks: Sequence[Logger | Callback],
        destination: Destination,
    ):
        self._given, self._callbacks, self._destination = loggers, callbacks, destination
        self._open: list[Any] = []

    def __enter__(self) -> "Loggers":
        for each in self._given:
            name = each if isinstance(each, str) else _write_of(each).__qualname__
            kind = _InThread if each in EXTRAS else _Tolerated
            self._open.append(kind(name, self._opener(each)))
        return self

    def _opener(self, given: str | Logger | Callback) -> Callable[[], Any]:
        if isinstance(given, str):
            return lambda: LOGGERS[given](self._destination)
        return lambda: types.SimpleNamespace(write=_write_of(given))  # whatever else it has is the user's affair

    def write(self, step: int, split: str, metrics: Metrics) -> None:
        """Passes the values on to every logger."""
        for each in self._open:
            each.write(step, split, metrics)
        for callback in self._callbacks:
            _write_of(callback)(step, split, metrics)

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        # A second Ctrl-C ends a run at once. An ablation has not had a first one, and a next one ends the waiting.
        at_once = kind is KeyboardInterrupt and not self._destination.is_ablation
        for each in self._open:
            each.close(0.0 if at_once else CLOSE_S)


def _write_of(given: Logger | Callback) -> Callback:
    return getattr(given, "write", given)


class _Tolerated:
    """A logger whose first error is a warning, and its end."""

    def __init__(self, name: str, open_logger: Callable[[], Any]):
        self._name, self._logger = name, None
        self._logger = self._try(open_logger)

    def write(self, step: int, split: str, metrics: Metrics) -> None:
        self._call("write", step, split, metrics)

    def flush(self) -> None:
        self._call("flush")

    def close(self, patience: float = CLOSE_S) -> None:
        del patience
        self._call("close")

    def _call(self, method: str, *arguments: Any) -> None:
        function = getattr(self._logger, method, None)
        if function is not None:
            self._try(lambda: function(*arguments))

    def _try(self, function: Callable[[], Any]) -> Any:
        try:
            return function()
        except Exception as error:
            self._logger = None
            reason = (str(error).strip().splitlines() or [""])[0]
            _warn(
                f"logger {self._name} failed and gets nothing more; the run goes on: {type(error).__name__}: {reason}"
            )


class _InThread:
    """A tolerated logger in a thread of its own."""

    def __init__(self, name: str, open_logger: Callable[[], Any]):
        self._name, self._entries = name, queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, args=(name, open_logger), name=f"logger-{name}", daemon=True)
        self._thread.start()

    def write(self, *entry: Any) -> None:
        self._entries.put(entry)

    def close(self, patience: float) -> None:
        self._entries.put(None)
        self._thread.join(patience)
        if self._thread.is_alive() and patience:
            _warn(f"logger {self._name} has not sent everything {patience:.0f} s after the end; the rest is dropped")

    def _work(self, name: str, open_logger: Callable[[], Any]) -> None:
        logger = _Tolerated(name, open_logger)
        while (entry := self._entries.get()) is not None:
            logger.write(*entry)
            if self._entries.empty():
                logger.flush()
        logger.close()


def _remembered(path: Path, make: Callable[[], str]) -> str:
    """The text of a file; where there is none, what `make` returns, which is written there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, make())
    return path.read_text(encoding="utf-8")


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)

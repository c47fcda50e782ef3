"""Checks the lab on the devices of this machine, without a network: `make check-device`.

    PYTHONPATH=. python tools/check_device.py --out=runs/check_device      # where the lab is not installed

Compares every formula and module with float64, and runs every command on a small recipe; the checks are listed below.
Prints one line per check, and writes the table to OUT/check_device.json and OUT/check_device.md. A check whose package
is not installed is skipped and names it. Exit code 1: a check failed.

    --only=attention,commands.train   only these checks, or those with these prefixes
    --limit_s=300                     stops after this many seconds; the remaining checks are reported as not run
"""

import argparse
import dataclasses
import datetime
import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import platform
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.device.outcome import Measured, Skip  # noqa: E402 found by the line above


class Check(NamedTuple):
    """A name, the function MODULE.FUNCTION of tools/device that does it, and its arguments."""

    name: str
    function: str
    arguments: dict[str, Any] = {}


# In one process that holds the devices: functions, then modules, then whole runs.
HERE = (
    Check("precision", "modules.precision"),
    *(
        Check(f"attention.softmax.{name}", "formulas.softmax", {"implementation": name})
        for name in ("row_blocks", "blockwise", "xla", "cudnn", "splash", "tokamax")
    ),
    Check("attention.softmax.chosen", "formulas.softmax"),
    Check("attention.linear", "formulas.linear"),
    *(
        Check(f"attention.lightning.{name}", "formulas.lightning_by", {"implementation": name})
        for name in ("blockwise", "recurrent", "kernel")
    ),
    Check("attention.others", "formulas.other_mixing"),
    Check("losses", "formulas.losses"),
    Check("modules.projections_and_norms", "modules.projections_and_norms"),
    Check("modules.feed_forwards", "modules.feed_forwards"),
    Check("modules.embeddings_and_positions", "modules.embeddings_and_positions"),
    Check("modules.embedding_gradient", "modules.embedding_gradient"),
    Check("modules.attention", "modules.attention_module"),
    Check("modules.baselines", "modules.baselines"),
    *(
        Check(f"conversion.{name}", "modules.conversion", {"name": name})
        for name in ("gpt2", "bert_tokens", "bert_masked", "vit")
    ),
    Check("training.transfer_guard", "training.transfer_guard"),
    Check("training.single", "training.single"),
    Check("training.resumed", "training.resumed"),
    Check("training.again", "training.again"),
    *(
        Check(f"training.{name}", "training.strategy", {"name": name.rpartition("_")[2]})
        for name in ("pmap", "mesh_data", "mesh_fsdp")
    ),
    Check("training.bfloat16", "training.bfloat16"),
    Check("training.evaluated", "training.evaluated"),
    Check("training.generated", "training.generated"),
    Check("training.population", "training.population"),
)
# In their own processes, which need the devices where only one process can use them.
COMMANDS = (
    Check("commands.train", "commands.trains"),
    Check("commands.repeated", "commands.repeats"),
    Check("commands.as_on_a_cpu", "commands.as_on_a_cpu"),
    Check("commands.evaluate", "commands.evaluate"),
    Check("commands.generate", "commands.generate"),
    Check("commands.measure", "commands.measure"),
    Check("commands.ablate", "commands.ablate", {"engine": "local"}),
    Check("commands.ablate_ray", "commands.ablate", {"engine": "ray"}),
)
CHECKS = HERE + COMMANDS
LONGEST = 180  # time limit of one check, in seconds
CHILD = (sys.executable, __file__)
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "optax", "orbax-checkpoint")


@dataclass(frozen=True)
class Result:
    """The outcome of a check: pass, fail, skip or not run."""

    name: str
    outcome: str
    seconds: float = 0.0
    measured: Measured = field(default_factory=dict)
    detail: str = ""

    @property
    def found(self) -> str:
        """Measured values and detail in one line."""
        shown = (
            f"{name} {value:.2g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in self.measured.items()
        )
        return " ".join("; ".join(filter(None, (self.detail, ", ".join(shown)))).split())


def main(arguments: Sequence[str]) -> int:
    """Runs the checks that the arguments select; returns the exit code."""
    options = _parse(arguments)
    if options.child:
        return _child(options)
    missing = [name for name in ("jax", "numpy") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"error: {' and '.join(missing)} not installed, so there is nothing to check", file=sys.stderr)
        return 1
    checks = [check for check in CHECKS if any(f"{check.name}.".startswith(f"{name}.") for name in options.only)]
    report = Report(options.out, checks)
    with tempfile.TemporaryDirectory(prefix="check_device-") as folder:
        if options.in_process:
            report.begins(metadata())
            for check in checks:
                report.add(run_check(check, Path(folder)))
        else:
            Supervisor(Path(folder), report, time.monotonic() + options.limit_s).run(checks)
    return report.end()


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "check_device", help="folder of the table")
    parser.add_argument("--only", default="", help="names or prefixes of checks, separated by commas")
    parser.add_argument("--limit_s", type=float, default=900.0, help="seconds after which no check starts")
    parser.add_argument("--in_process", action="store_true", help="run all checks in this process, which a crash ends")
    parser.add_argument("--child", choices=("here", "commands"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--pipe", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.only = options.only.split(",") if options.only else [check.name for check in CHECKS]
    for name in options.only:
        if not any(f"{check.name}.".startswith(f"{name}.") for check in CHECKS):
            parser.error(f"--only={name} is no check; choose from {', '.join(check.name for check in CHECKS)}")
    return options


# ------------------------------------------------------------------------------------------------ one check


def run_check(check: Check, folder: Path) -> Result:
    """Runs a check in this process, which may write into `folder`."""
    begin, measured, detail = time.perf_counter(), {}, ""
    try:
        module, _, name = check.function.partition(".")
        function = getattr(importlib.import_module(f"tools.device.{module}"), name)
        place = {"folder": folder} if "folder" in inspect.signature(function).parameters else {}
        measured, outcome = function(**place, **check.arguments), "pass"
    except Exception as error:
        measured, reason = getattr(error, "measured", {}), _reason_to_skip(error)
        outcome, detail = ("skip", reason) if reason else ("fail", _described(error))
        if not reason:
            traceback.print_exc()
    return Result(check.name, outcome, time.perf_counter() - begin, measured, detail)


def _reason_to_skip(error: BaseException | None) -> str:
    """Why a check that raised this error does not apply here; empty where it applies and failed."""
    while error is not None:
        if isinstance(error, Skip):
            return str(error)
        if isinstance(error, ModuleNotFoundError) and error.name:
            package = error.name.partition(".")[0]
            # A missing module of an installed package is a bug.
            if importlib.util.find_spec(package) is None:
                return f"{package} is not installed"
        error = error.__cause__ or error.__context__
    return ""


def _described(error: Exception) -> str:
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {' / '.join(lines)}"[:600]


# ----------------------------------------------------------------------------------------------- the report


class Report:
    """The table: printed line by line, and written again after each check."""

    def __init__(self, out: Path, checks: Sequence[Check]):
        self._out, self._order = out, [check.name for check in checks]
        self._results: dict[str, Result] = {}
        self._metadata: dict[str, Any] = {}
        self._begin, self._lock = time.monotonic(), threading.Lock()
        out.mkdir(parents=True, exist_ok=True)

    def begins(self, metadata: dict[str, Any]) -> None:
        """Records the devices and the versions."""
        if not self._metadata:
            self._metadata = metadata
            print(", ".join(f"{name} {value}" for name, value in metadata.items()), flush=True)

    def add(self, result: Result) -> None:
        """Adds a result, once for each check."""
        with self._lock:
            self._results[result.name] = result
            place = f"[{len(self._results)}/{len(self._order)}]"
            print(f"{place} {result.outcome:7} {result.name} ({result.seconds:.1f} s) {result.found}", flush=True)
            self._write()

    def end(self) -> int:
        """Prints the counts; returns the exit code."""
        with self._lock:
            for name in self._order:
                self._results.setdefault(name, Result(name, "not run"))
            self._write()
        counts = self._counts()
        print(f"{', '.join(f'{number} {what}' for what, number in counts.items())}; {self._out / 'check_device.md'}")
        return 1 if "fail" in counts or "pass" not in counts else 0

    def _counts(self) -> dict[str, int]:
        outcomes = [result.outcome for result in self._results.values()]
        return {what: outcomes.count(what) for what in ("pass", "fail", "skip", "not run") if what in outcomes}

    def _write(self) -> None:
        results = [self._results[name] for name in self._order if name in self._results]
        seconds = round(time.monotonic() - self._begin, 1)
        head = {**self._metadata, "seconds": seconds, **self._counts()}
        tree = head | {"checks": [dataclasses.asdict(result) for result in results]}
        cell = lambda text: text.replace("|", "\\|")  # noqa: E731
        rows = [f"| {r.name} | {r.outcome} | {r.seconds:.1f} | {cell(r.found)} |" for r in results]
        title = f"# The lab on {self._metadata.get('devices', 'unknown devices')}"
        metadata = ", ".join(f"{name} {value}" for name, value in head.items() if name != "devices")
        text = "\n".join(
            [title, "", metadata, "", "| check | outcome | seconds | found |", "|---|---|---|---|", *rows, ""]
        )
        for name, content in (("check_device.json", json.dumps(tree, indent=1) + "\n"), ("check_device.md", text)):
            partial = self._out / f"{name}.partial"
            partial.write_text(content, encoding="utf-8")
            partial.replace(self._out / name)


def metadata() -> dict[str, Any]:
    """The devices of this process, and versions."""
    import jax

    device = jax.devices()[0]
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "devices": f"{jax.device_count()} x {device.device_kind}",
        "platform": device.platform,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "python": platform.python_version(),
        **versions,
    }


# ---------------------------------------------------------------------------------------------- processes


class Supervisor:
    """Runs checks in other processes, so that neither a crash nor an endless check stops the others."""

    def __init__(self, folder: Path, report: Report, deadline: float):
        self._folder, self._report, self._deadline = folder, report, deadline
        self._known, self._alone = threading.Event(), False  # whether one process alone may have the devices
        self._running: set[subprocess.Popen] = set()

    def run(self, checks: Sequence[Check]) -> None:
        """Runs both kinds concurrently where several processes can use the devices, else one after the other."""
        kinds = {"here": HERE, "commands": COMMANDS}
        waiting = {kind: [check for check in those if check in checks] for kind, those in kinds.items()}
        with futures.ThreadPoolExecutor() as threads:
            try:
                here = threads.submit(self._work, "here", waiting["here"])
                while not self._known.wait(0.5) and not here.done():
                    pass
                if self._alone:
                    here.result()
                threads.submit(self._work, "commands", waiting["commands"]).result()
                here.result()
            finally:  # children end when this process is asked to end
                self._deadline = 0.0
                for process in list(self._running):
                    _kill(process)

    def _work(self, kind: str, waiting: list[Check]) -> None:
        """Starts a process for the waiting checks, and another for the rest if it dies."""
        begin, how = self._until_it_ends(kind, waiting) if waiting or kind == "here" else (0.0, "")
        while waiting and time.monotonic() < self._deadline:
            self._report.add(Result(waiting.pop(0).name, "fail", time.monotonic() - begin, {}, how))
            begin, how = self._until_it_ends(kind, waiting) if waiting else (begin, how)

    def _until_it_ends(self, kind: str, waiting: list[Check]) -> tuple[float, str]:
        """Removes finished checks from `waiting`; returns when the process began its last check, and how it ended."""
        log = self._folder / f"{kind}.log"
        read, write = os.pipe()
        names = ",".join(check.name for check in waiting)
        line = [*CHILD, f"--child={kind}", f"--folder={self._folder}", f"--pipe={write}", f"--only={names}"]
        with log.open("a") as output:
            options = {"stdout": output, "stderr": output, "pass_fds": [write], "start_new_session": True}
            process = subprocess.Popen(line, env=_environment(self._folder), **options)
        os.close(write)
        self._running.add(process)
        begin = time.monotonic()
        try:
            for message in _messages(read, self._deadline):
                if "metadata" in message:
                    self._report.begins(message["metadata"])
                    self._alone = message["metadata"]["platform"] == "tpu"
                    self._known.set()
                else:
                    self._report.add(Result(**message))
                    waiting[:] = [check for check in waiting if check.name != message["name"]]
                begin = time.monotonic()
            return begin, _ended(process.wait(timeout=10), log)
        except (TimeoutError, subprocess.TimeoutExpired):
            return begin, f"it did not end within {LONGEST} s"
        finally:
            _kill(process)
            self._running.discard(process)


def _environment(folder: Path) -> dict[str, str]:
    """Environment: caches in the folder, GPU memory on demand, and commands that compile their own programs."""
    kept = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    own = {"FLAXFORMER_LAB_CACHE": str(folder / "cache"), "FLAXFORMER_LAB_COMPILE_LEVEL": "0"}
    return kept | own | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "PYTHONUNBUFFERED": "1"}


def _messages(pipe: int, deadline: float) -> Iterator[dict[str, Any]]:
    """The lines of a pipe as JSON, until it is closed.

    Raises:
        TimeoutError: the next one takes longer than LONGEST, or than until the deadline.
    """
    news: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        with open(pipe, encoding="utf-8") as lines:
            for line in lines:
                news.put(line)
        news.put(None)

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            line = news.get(timeout=min(LONGEST, max(0.0, deadline - time.monotonic())))
        except queue.Empty as error:
            raise TimeoutError from error
        if line is None:
            return
        yield json.loads(line)


def _ended(code: int, log: Path) -> str:
    name = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    tail = " / ".join(log.read_text(errors="replace").strip().splitlines()[-3:])
    return f"the process ended with {name}: {tail[-500:]}"


def _kill(process: subprocess.Popen) -> None:
    """Ends a process and all that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def _child(options: argparse.Namespace) -> int:
    """Does checks and reports each through the pipe."""
    import jax

    from flaxformer_lab.compilation import compile_small_programs_briefly

    compile_small_programs_briefly()  # where there is nothing but a CPU
    if "device_count" not in os.environ.get("XLA_FLAGS", ""):
        # A CPU is shown as several devices, so that they have something to share.
        jax.config.update("jax_num_cpu_devices", min(max(2, os.cpu_count() or 1), 4))
    if options.child == "commands":
        jax.config.update("jax_platforms", "cpu")  # the devices are for the processes that it starts
    with open(options.pipe, "w", encoding="utf-8") as pipe:
        tell = lambda message: print(json.dumps(message), file=pipe, flush=True)  # noqa: E731
        if options.child == "here":
            tell({"metadata": metadata()})
        for check in CHECKS:
            if check.name in options.only:
                tell(dataclasses.asdict(run_check(check, options.folder)))
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit("interrupted; the table holds what was done")

"""Contestants that alternate: each in its own process, which works only on request.

Shared by the benchmarks of training, attention and decoding. A contestant is a function of a case that returns the
work to time. It is reported as absent where its library is not installed.
"""

import ctypes
import gc
import importlib.metadata
import json
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
Work = Callable[[], None]


class Contestant:
    """A process that builds cases and times them on request."""

    def __init__(self, name: str, build: Callable[..., Work], settings: Mapping[str, Any]):
        context = multiprocessing.get_context("spawn")
        self.name = name
        self._end, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, build, dict(settings)), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, request: str, *arguments: Any) -> Any:
        """Sends a request and returns the answer.

        request: `prepare` with a case, `time` with the least seconds, `peak`, `work` with a function of the work, or
            `call` with a function and arguments.

        Raises:
            ModuleNotFoundError: what the contestant needs is not installed.
            RuntimeError: it failed in another way; the message is that of its error.
        """
        self.send(request, *arguments)
        return self.answer()

    def send(self, request: str, *arguments: Any) -> None:
        """Sends a request, to be read with `answer`, so that several contestants can prepare concurrently."""
        self._end.send((request, arguments))

    def answer(self) -> Any:
        """The answer to the request that was sent; raises like `ask`."""
        kind, answer = self._end.recv()
        if kind == "absent":
            raise ModuleNotFoundError(answer)
        if kind == "failed":
            raise RuntimeError(answer)
        return answer

    def end(self) -> None:
        self._end.send((None, ()))
        self._process.join()


def _serve(connection, build: Callable[..., Work], settings: dict[str, Any]) -> None:
    work: Work = lambda: None  # noqa: E731
    while True:
        request, arguments = connection.recv()
        if request is None:
            return
        try:
            if request == "prepare":
                del work
                gc.collect()
                work = build(**settings, **arguments[0])
                for _ in range(2):
                    work()
                answer = None
            elif request == "work":
                answer = arguments[0](work)
            elif request == "call":
                function, *rest = arguments
                answer = function(*rest)
            else:
                answer = timed(work, *arguments) if request == "time" else peak_bytes(work)
            connection.send(("answer", answer))
        except ModuleNotFoundError as error:
            work = lambda: None  # noqa: E731
            connection.send(("absent", str(error)))
        except Exception as error:
            work = lambda: None  # noqa: E731
            connection.send(("failed", f"{type(error).__name__}: {error}"))


def timed(work: Work, least: float = 0.0) -> float:
    """Seconds of one call, the mean of as many calls as take `least` seconds together, at least one."""
    calls, start = 0, time.perf_counter()
    while not calls or time.perf_counter() - start < least:
        work()
        calls += 1
    return (time.perf_counter() - start) / calls


def peak_bytes(work: Work) -> int | None:
    """The work's `peak_bytes` if it has them; else the growth of the process in one call (Linux only)."""
    if hasattr(work, "peak_bytes"):
        return work.peak_bytes()
    try:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # free memory goes back to the system, so that new allocations are visible
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        before = _status("VmRSS")
        work()
        return max(0, _status("VmHWM") - before)
    except (OSError, KeyError, AttributeError):
        return None


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = {line.partition(":")[0]: line.partition(":")[2] for line in lines}
    return 1024 * int(sizes[name].split()[0])


def take_turns(
    contestants: list[Contestant], rounds: int, pause: float = 0.2, least: float = 0.05, limit_s: float = math.inf
) -> dict[str, list[float]]:
    """Seconds of each contestant's prepared work, round by round; a turn lasts `least` seconds or longer.

    limit_s: no round except the first starts after this many seconds.
    """
    seconds: dict[str, list[float]] = {each.name: [] for each in contestants}
    start = time.perf_counter()
    for number in range(rounds):
        if number and time.perf_counter() - start > limit_s:
            break
        for each in contestants:
            time.sleep(pause)  # threads of the previous contestant spin for a while on the cores that this one needs
            seconds[each.name].append(each.ask("time", least))
    return seconds


def exponent(sizes: list[float], values: list[float]) -> float | None:
    """The slope of log(value) against log(size) by least squares; None with fewer than two positive values."""
    points = [(math.log(x), math.log(y)) for x, y in zip(sizes, values, strict=True) if y and y > 0]
    if len(points) < 2:
        return None
    middle_x, middle_y = (statistics.fmean(axis) for axis in zip(*points, strict=True))
    spread = sum((x - middle_x) ** 2 for x, _ in points)
    return sum((x - middle_x) * (y - middle_y) for x, y in points) / spread


def versions(names: tuple[str, ...]) -> dict[str, str]:
    """Versions of those of `names` that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def write_result(name: str, result: Mapping[str, Any]) -> None:
    """Writes `result` to benchmarks/results/NAME.json and prints the path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {path}")

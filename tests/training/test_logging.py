import io
import json
import types

import pytest
from rich.console import Console

from flaxformer_lab.training.logging import Display, MetricsLog, Waiting, duration, shown_while


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def file(tmp_path):
    """The path of metrics.jsonl."""
    return tmp_path / "metrics.jsonl"


class Entered(list):
    """A logger that remembers; as a context."""

    def write(self, *entry):
        self.append(entry)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.append("closed")


def written(file, *entries, **options):
    with MetricsLog(file, **{"resumed_step": 0} | options) as log:
        for step, split, values in entries:
            log.write(step, split, values)


# ------------------------------------------------------------------------------------------------ metrics


def test_every_value_is_a_line(file):
    written(file, (2, "train", {"loss": 1.5, "accuracy": 0.1}), (4, "test", {"loss": 0.1 + 0.2}))
    assert lines(file) == [
        {"step": 2, "split": "train", "name": "loss", "value": 1.5},
        {"step": 2, "split": "train", "name": "accuracy", "value": 0.1},
        {"step": 4, "split": "test", "name": "loss", "value": 0.30000000000000004},
    ]


def test_a_line_is_on_disk_as_soon_as_it_is_written(file):
    with MetricsLog(file, resumed_step=0) as log:
        log.write(1, "train", {"loss": 2.0})
        assert lines(file) == [{"step": 1, "split": "train", "name": "loss", "value": 2.0}]


def test_loggers_get_what_is_new(file):
    loggers = Entered()
    written(file, (2, "train", {"loss": 1.5}), (4, "test", {"loss": 0.25}), loggers=loggers)
    assert loggers == [(2, "train", {"loss": 1.5}), (4, "test", {"loss": 0.25}), "closed"]
    loggers = Entered()
    resumed = ((4, "test", {"loss": 0.25}), (4, "test", {"loss": 0.25, "accuracy": 0.5}), (6, "train", {"loss": 1.0}))
    written(file, *resumed, resumed_step=4, loggers=loggers)
    assert loggers == [(4, "test", {"accuracy": 0.5}), (6, "train", {"loss": 1.0}), "closed"]


def test_only_one_of_several_processes_writes(file):
    loggers = Entered()
    written(file, (2, "train", {"loss": 1.5}), loggers=loggers, writes=False)
    assert loggers == [] and not file.exists()


def test_a_resumed_run_drops_what_came_after_its_checkpoint(file):
    written(file, *((step, "train", {"loss": float(step)}) for step in (5, 10, 15, 20)))
    written(file, (15, "train", {"loss": -1.0}), resumed_step=10)
    assert [(line["step"], line["value"]) for line in lines(file)] == [(5, 5.0), (10, 10.0), (15, -1.0)]


def test_what_is_there_already_is_not_written_again(file):
    written(file, (5, "train", {"loss": 5.0}), (10, "test", {"loss": 0.5}))
    before = file.read_bytes()
    written(file, (10, "test", {"loss": 0.5}), resumed_step=10)
    assert file.read_bytes() == before
    written(file, (10, "test", {"loss": 0.5, "accuracy": 1.0}), (12, "train", {"loss": 1.0}), resumed_step=10)
    assert [(line["step"], line["name"]) for line in lines(file)][2:] == [(10, "accuracy"), (12, "loss")]


@pytest.mark.parametrize("cut", ['{"step": 5, "spl', "{", "nonsense", '{"split": "train"}', "[3]", "\0\0\0", "7"])
def test_a_line_cut_short_is_dropped(file, cut):
    written(file, (5, "train", {"loss": 5.0}))
    with file.open("a") as opened:
        opened.write(cut)
    written(file, (15, "train", {"loss": 15.0}), resumed_step=10)
    assert [line["step"] for line in lines(file)] == [5, 15]


def test_a_fresh_run_begins_with_no_lines(file):
    written(file, (5, "train", {"loss": 5.0}))
    written(file, (1, "train", {"loss": 1.0}), resumed_step=0)
    assert [line["step"] for line in lines(file)] == [1]


# ------------------------------------------------------------------------------------------------ display


def make(terminal, monkeypatch, **options):
    """A display and the text that it writes to."""
    text = io.StringIO()

    def console(**given):
        return Console(**given | {"file": text, "force_terminal": terminal, "width": 160})

    monkeypatch.setattr("flaxformer_lab.training.logging.Console", console)
    return Display(**{"steps": 20, "units": ("tokens", 32), "batch_size": 4} | options), text


def test_plain_lines_where_there_is_no_terminal(monkeypatch):
    display, text = make(False, monkeypatch)
    with display.training(0):
        display.step(10, {"loss": 1.25})
        display.step(20, {"loss": 0.75})
    display.print("step 20 | [test] loss 0.7")
    printed = text.getvalue().splitlines()
    assert "\x1b" not in text.getvalue()
    assert printed[0] == "step 10/20 | loss 1.2500"
    assert printed[1].startswith("step 20/20 | loss 0.7500 | ") and printed[1].endswith(" tokens/s")
    assert " steps/s, " in printed[1] and "left" not in printed[1]
    assert printed[2] == "step 20 | [test] loss 0.7"  # brackets are text, not markup


def test_lines_come_now_and_then_and_at_the_end(monkeypatch):
    clock = iter([99.0, 100.0, 101.0, 102.0, 107.0, 107.5, 108.0])
    display, text = make(False, monkeypatch, steps=12)
    monkeypatch.setattr("flaxformer_lab.training.logging.time.monotonic", lambda: next(clock))
    with display.training(0):
        for step in (2, 4, 6, 8, 10, 12):
            display.step(step, {"loss": 1.0})
    printed = text.getvalue().splitlines()
    assert [line.split(" ")[1] for line in printed] == ["2/12", "8/12", "12/12"]
    # The first call compiles, so the clock starts at its end: 6 steps in 7 seconds, 4 examples of 32 tokens a step.
    assert "0.9 steps/s, 110 tokens/s, 0:05 left" in printed[1]


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets: `clock.now`."""
    clock = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr("flaxformer_lab.training.logging.time.monotonic", lambda: clock.now)
    return clock


def test_a_terminal_shows_for_how_long_the_first_call_compiles(monkeypatch, clock):
    display, text = make(True, monkeypatch)
    with display.training(0):
        for seconds, shown in ((12.4, "compiling 0:12"), (60, "compiling 1:12")):
            clock.now += seconds
            display._bar.refresh()  # as it does ten times a second
            assert shown in text.getvalue()
        display.step(2, {"loss": 1.25})
        drawn = len(text.getvalue())
        display._bar.refresh()
        assert "loss 1.2500" in text.getvalue()[drawn:] and "compiling" not in text.getvalue()[drawn:]


@pytest.fixture
def timers(monkeypatch):
    """Timers that a test fires."""
    made = []

    class Timer:
        def __init__(self, seconds, function, args, kwargs):
            self.seconds, self.fire, self.is_on = seconds, lambda: self.is_on and function(*args, **kwargs), False
            made.append(self)

        def start(self):
            self.is_on = True

        def cancel(self):
            self.is_on = False

    monkeypatch.setattr("flaxformer_lab.training.logging.threading.Timer", Timer)
    return made


def test_elsewhere_compiling_is_one_line_once_it_has_taken_two_seconds(monkeypatch, timers):
    display, text = make(False, monkeypatch)
    with display.training(0):
        (timer,) = timers
        assert timer.seconds == 2 and text.getvalue() == ""
        timer.fire()
        assert text.getvalue() == "compiling\n"
        display.step(2, {"loss": 1.25})
        timer.fire()
    assert text.getvalue().splitlines()[1:] == ["step 2/20 | loss 1.2500"]


def test_a_run_that_ends_in_its_first_call_says_nothing_of_it_later(monkeypatch, timers):
    display, text = make(False, monkeypatch)
    with pytest.raises(MemoryError), display.training(0):
        raise MemoryError
    timers[0].fire()
    assert text.getvalue() == ""


@pytest.mark.parametrize("terminal", [True, False])
def test_only_a_terminal_shows_for_how_long_a_command_works(monkeypatch, clock, capsys, terminal):
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=80, highlight=False)
    monkeypatch.setattr("flaxformer_lab.training.logging.Console", lambda **_: console)
    with shown_while("evaluating"):
        pass
    assert ("evaluating 0:00" in text.getvalue()) == terminal and capsys.readouterr().out == ""
    waiting = Waiting("evaluating", Console(file=io.StringIO(), force_terminal=True))
    clock.now += 65
    console.print(waiting)
    assert "evaluating 1:05" in text.getvalue()


def test_a_live_bar_on_a_terminal(monkeypatch):
    display, text = make(True, monkeypatch)
    with display.training(5):
        display.step(10, {"loss": 1.25})
        display.print("step 10 | validation loss 1.3")
        display.step(20, {"loss": 0.75})
    printed = text.getvalue()
    assert "\x1b[" in printed and "step 10 | validation loss 1.3" in printed
    assert "20/20" in printed and "loss 0.7500" in printed and "tokens/s" in printed


def test_a_quiet_display_says_nothing(monkeypatch, capsys):
    display = Display(steps=20, units=("tokens", 32), batch_size=4, quiet=True)
    with display.training(0):
        display.step(20, {"loss": 1.0})
    display.print("nothing")
    display.table("nothing", ["a"], [["b"]])
    assert capsys.readouterr().out == ""


def test_a_table_has_every_cell(monkeypatch):
    display, text = make(False, monkeypatch)
    display.table("[bold] parameters", ["part", "number"], [["embedding", 1234567], ["all", 0.5], ["note", "[x]"]])
    printed = text.getvalue()
    for part in ("[bold] parameters", "part", "number", "embedding", "1,234,567", "0.5", "[x]"):
        assert part in printed


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3600, "1:00:00"), (3725, "1:02:05")]
)
def test_a_duration_in_words(seconds, said):
    assert duration(seconds) == said

"""The tool that checks a device, on this CPU: what it finds, what it skips, and what it survives."""

import json
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.training.state import State
from tools import check_device
from tools.check_device import Check
from tools.device import commands, comparison, formulas, references, training
from tools.device.outcome import Deviation, Skip

pytestmark = pytest.mark.integration


@pytest.fixture
def run(tmp_path):
    """Runs the tool with arguments: its exit code, and outcomes by name."""

    def run(*arguments):
        code = check_device.main([f"--out={tmp_path}", *arguments])
        table = json.loads((tmp_path / "check_device.json").read_text())
        return code, {check["name"]: check for check in table["checks"]}

    return run


def outcomes(checks):
    return {name: check["outcome"] for name, check in checks.items()}


@pytest.mark.parametrize("commands_too", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_one_check_of_each_kind(run, tmp_path, monkeypatch, commands_too):
    monkeypatch.setattr(commands, "trained", lambda folder, name: training.trained(folder, "images"))
    names = ["precision", "attention.linear", "modules.embeddings_and_positions", "conversion.bert_tokens"]
    names += ["training.single", "commands.evaluate"] if commands_too else ["training.single"]
    code, checks = run("--in_process", f"--only={','.join(names)}")
    assert (code, outcomes(checks)) == (0, dict.fromkeys(names, "pass"))
    assert (
        0
        < checks["attention.linear"]["measured"]["float32"]
        < 1e-5
        < checks["attention.linear"]["measured"]["bfloat16"]
    )
    page = (tmp_path / "check_device.md").read_text()
    assert page.startswith(f"# The lab on {jax.device_count()} x cpu\n")
    assert f"jax {jax.__version__}" in page and all(f"| {name} | pass |" in page for name in names)


def test_what_is_wrong_fails_and_the_rest_goes_on(run, monkeypatch):
    wrong = lambda *heads, **masks: 1.00003 * references.softmax_attention(*heads, **masks)  # noqa: E731
    monkeypatch.setattr(references, "linear_attention", wrong)
    code, checks = run("--in_process", "--only=attention.linear,conversion.bert_tokens")
    assert (code, outcomes(checks)) == (1, {"attention.linear": "fail", "conversion.bert_tokens": "pass"})
    assert "comparisons are too far from float64" in checks["attention.linear"]["detail"]


def test_what_is_not_installed_skips_what_needs_it_alone(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    code, checks = run("--in_process", "--only=conversion.vit,modules.embedding_gradient,attention.softmax.splash")
    assert code == 0
    assert checks["conversion.vit"]["detail"] == "safetensors is not installed"
    assert checks["attention.softmax.splash"]["detail"] == "the splash kernel is for TPUs"
    assert list(outcomes(checks).values()) == ["skip", "pass", "skip"]


@pytest.mark.parametrize(
    ("error", "outcome", "detail"),
    [
        (ModuleNotFoundError("No module named 'jax.gone'", name="jax.gone"), "fail", "ModuleNotFoundError: No module"),
        (ModuleNotFoundError("No module named 'gone_'", name="gone_.part"), "skip", "gone_ is not installed"),
        (Skip("not here"), "skip", "not here"),
        (Deviation("off", {"by": 2.0}), "fail", "Deviation: off"),
        (ValueError("two\nlines"), "fail", "ValueError: two / lines"),
    ],
)
def test_what_an_exception_means(monkeypatch, tmp_path, error, outcome, detail):
    def raises():
        raise error

    monkeypatch.setattr(formulas, "linear", raises)
    result = check_device.run_check(Check("name", "formulas.linear"), tmp_path)
    assert result.outcome == outcome and result.detail.startswith(detail)
    assert result.measured == getattr(error, "measured", {})


def test_a_folder_without_a_pass_is_no_success(run):
    code, checks = run("--in_process", "--only=attention.softmax.cudnn")
    assert (code, outcomes(checks)) == (1, {"attention.softmax.cudnn": "skip"})


def test_an_unknown_name_is_refused(run, capsys):
    with pytest.raises(SystemExit) as end:
        run("--only=attention.magic")
    assert end.value.code == 2 and "attention.magic is no check" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------- processes

# A child that does what the names of its checks say instead of the checks.
CHILD = """
import json, os, signal, sys
options = dict(argument[2:].split("=", 1) for argument in sys.argv[1:])
with open(int(options["pipe"]), "w") as pipe:
    tell = lambda message: print(json.dumps(message), file=pipe, flush=True)
    if options["child"] == "here":
        tell({"metadata": {"devices": "2 x made up", "platform": PLATFORM}})
    for name in options["only"].split(","):
        if DEEDS.get(name) == "dies":
            print("last words", flush=True)
            os.abort()
        if DEEDS.get(name) == "hangs":
            signal.pause()
        tell({"name": name, "outcome": "pass", "seconds": 1.0, "measured": {"child": options["child"]}, "detail": ""})
"""


@pytest.fixture
def children(monkeypatch):
    """Replaces the tool's processes by small ones that pass every check, but for what `deeds` says of some."""

    def replace(deeds, platform="gpu"):
        script = f"DEEDS, PLATFORM = {deeds!r}, {platform!r}\n{CHILD}"
        monkeypatch.setattr(check_device, "CHILD", (sys.executable, "-I", "-S", "-c", script))

    return replace


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_a_process_that_dies_takes_one_check_along(run, children, tmp_path, platform):
    children({"precision": "dies", "modules.attention": "dies", "commands.train": "dies"}, platform)
    code, checks = run()
    found = outcomes(checks)
    failed = [name for name, outcome in found.items() if outcome == "fail"]
    assert (code, failed) == (1, ["precision", "modules.attention", "commands.train"])
    assert list(found) == [check.name for check in check_device.CHECKS] and set(found.values()) == {"pass", "fail"}
    assert (
        "ended with signal SIGABRT" in checks["precision"]["detail"] and "last words" in checks["precision"]["detail"]
    )
    assert checks["training.single"]["measured"] == {"child": "here"}
    assert checks["commands.ablate"]["measured"] == {"child": "commands"}
    assert "2 x made up" in (tmp_path / "check_device.md").read_text()


def test_a_check_without_an_end_is_ended(run, children, monkeypatch):
    monkeypatch.setattr(check_device, "LONGEST", 1)
    children({"attention.linear": "hangs"})
    code, checks = run("--only=precision,attention.linear,attention.others")
    assert (code, list(outcomes(checks).values())) == (1, ["pass", "fail", "pass"])
    assert checks["attention.linear"]["detail"] == "it did not end within 1 s"


def test_what_the_limit_leaves_out_is_not_run(run, children):
    children({"attention.linear": "hangs"})
    code, checks = run("--limit_s=2", "--only=precision,attention.linear,attention.others")
    assert (code, list(outcomes(checks).values())) == (0, ["pass", "not run", "not run"])


def test_the_real_child(run):
    code, checks = run("--only=attention.lightning.recurrent")
    assert (code, outcomes(checks)) == (0, {"attention.lightning.recurrent": "pass"})


# ----------------------------------------------------------------------------------------------- comparisons


@jax.custom_vjp
def square(x):
    return x**2


square.defvjp(lambda x: (x**2, x), lambda x, gradient: (2.0001 * x * gradient,))
NUMBERS = {"x": comparison.drawn(0, 3, 4)}


@pytest.mark.parametrize(
    ("compute", "wrong"),
    [
        (lambda x: x**2, None),
        (square, "gradient of x"),
        (lambda x: x**2 * (1 + 2e-5), "output"),
        (lambda x: jnp.where(x == x[1, 1], jnp.nan, x) ** 2, "output"),
    ],
)
def test_values_and_gradients_are_compared(compute, wrong):
    case = comparison.Case("square", compute, lambda x: x**2, NUMBERS)
    if wrong is None:
        measured = comparison.compare([case])
        assert measured["float32"] < 1e-6 < measured["bfloat16"] < 1e-2 and measured["comparisons"] == 4
        return
    with pytest.raises(Deviation, match=f"square float32 {wrong}"):
        comparison.compare([case], ["float32"])


def test_runs_that_differ_are_told_apart(tmp_path, monkeypatch):
    vector = np.linspace(0, 1, 5, dtype=np.float32)
    params = {"one": vector, "same": vector.copy(), "other": np.nextafter(vector, 2), "named": vector}
    for name in params:
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("other" if name == "named" else "all")
    run = lambda path: SimpleNamespace(state=State(0, {"w": params[path.name]}, {}, {}), params=params[path.name])  # noqa: E731
    monkeypatch.setattr(training, "load_run", run)
    compare = lambda other: training.same(tmp_path / "one", tmp_path / other)  # noqa: E731
    assert compare("same") == {"leaves": 2, "unequal": 0}
    with pytest.raises(Deviation, match=r"params\.w differ"):
        compare("other")
    with pytest.raises(Deviation, match=r"metrics\.jsonl differs"):
        compare("named")
    assert 0 < training.difference(tmp_path / "one", tmp_path / "other")["largest difference"] < 1e-6

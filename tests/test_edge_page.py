"""The page of examples/edge in headless Chromium, with a model of random weights."""

import functools
import http.server
import json
import runpy
import threading
from pathlib import Path

import numpy as np
import pytest

from flaxformer_lab.cache import cache_folder
from flaxformer_lab.config import parse_config
from flaxformer_lab.errors import RunError
from flaxformer_lab.run import Run
from flaxformer_lab.training.experiment import make_experiment
from flaxformer_lab.training.single import Single
from flaxformer_lab.training.state import initial_state
from tests.chromium import headless_chromium

pytestmark = pytest.mark.integration

page = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "edge" / "build.py"))
WIDTH = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
# Set by the page when an answer is there; a later answer replaces it.
ANSWER = "document.getElementById('probabilities').dataset.values"


def run_of(task):
    """A run as training would leave it before its first update."""
    model = {"width": 8, "depth": 1, "attention": {"num_heads": 2}}
    experiment = make_experiment(parse_config({"task": task, "model": model}), strategy=Single())
    return Run(experiment, initial_state(experiment.network, experiment.optimizer, 0), Path("nowhere"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the page, and its address."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install -e '.[onnx]'")
    try:
        runtime = page["fetch_runtime"](cache_folder("npm") / f"{page['PACKAGE']}-{page['VERSION']}")
    except RunError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("page")
    run = run_of({"name": "image_classification", "dataset": "lab_digits", "patch_size": 2})
    page["build"](run, folder, runtime)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            del arguments

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def view(site):
    """The page, once its model is loaded, and what the browser complained of."""
    with headless_chromium() as browser:
        complaints = []
        opened = browser.new_page(viewport={"width": 1280, "height": 900})
        opened.on("console", lambda message: complaints.append(message.text))
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        opened.goto(site[1])
        opened.wait_for_selector("html[data-ready]", state="attached", timeout=60_000)
        yield opened, complaints


def softmax(logits):
    terms = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return terms / terms.sum(axis=-1, keepdims=True)


@pytest.mark.slow
def test_the_page_computes_what_onnxruntime_computes(site, view):
    import onnxruntime

    (folder, _), (opened, complaints) = site, view
    facts = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    for number in (1, 7, 12):
        pixels = facts["samples"][number - 1]["pixels"]
        image = np.array(pixels, np.uint8).reshape(1, 8, 8, 1)
        wanted = softmax(session.run(None, {facts["input"]: image})[0])[0]
        opened.evaluate(f"delete {ANSWER}")
        opened.get_by_role("button", name=f"Test digit {number},").click()
        opened.wait_for_function(f"() => {ANSWER} !== undefined")
        found = json.loads(opened.evaluate(ANSWER))
        np.testing.assert_allclose(found, wanted, atol=1e-4)
        shown = opened.locator("#probabilities .value").all_text_contents()
        assert shown == [f"{100 * each:.1f} %" for each in found]
        assert f"a {facts['classes'][int(np.argmax(wanted))]}," in opened.get_by_role("status").text_content()
        assert float(opened.locator("#time").text_content().removesuffix(" ms")) > 0
    assert complaints == []


@pytest.mark.slow
def test_a_drawing_is_read_as_the_data_were_made(view):
    """A vertical stroke fills the height of the image, in its middle, wherever it was drawn, and however."""
    opened, complaints = view
    opened.evaluate(f"delete {ANSWER}")
    box = opened.locator("#drawing").bounding_box()
    opened.mouse.move(box["x"] + 40, box["y"] + 60)
    opened.mouse.down()
    opened.mouse.move(box["x"] + 40, box["y"] + 160, steps=4)
    opened.mouse.up()
    opened.wait_for_function(f"() => {ANSWER} !== undefined")
    seen = lambda: np.reshape(json.loads(opened.locator("#seen").get_attribute("data-pixels")), (8, 8))  # noqa: E731
    drawn = [seen()]
    opened.get_by_role("button", name="Clear").click()
    opened.evaluate(f"delete {ANSWER}")
    opened.locator("#drawing").focus()
    for key in (" ", *["ArrowDown"] * 4, " "):
        opened.keyboard.press(key)
    opened.wait_for_function(f"() => {ANSWER} !== undefined")
    drawn.append(seen())
    for image in drawn:
        assert image[1:-1, 3:5].min() > 60 and image[:, :3].max() == image[:, 5:].max() == 0
    assert complaints == []


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_and_every_control_has_a_name(view, width):
    opened, _ = view
    opened.set_viewport_size({"width": width, "height": 900})
    scrolled, seen = opened.evaluate(WIDTH)
    assert scrolled <= seen == width
    buttons = opened.get_by_role("button")
    names = [each.get_attribute("aria-label") or each.text_content() for each in buttons.all()]
    assert len(names) == page["SAMPLES"] + 1 and len(set(names)) == len(names) and all(names)
    assert opened.locator("#drawing").get_attribute("aria-label") and opened.get_by_role("status").count() == 1
    assert opened.locator("#probabilities li").count() == 10


def test_npm_that_is_not_there_or_cannot_download_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunError, match="npm is not installed"):
        page["fetch_runtime"](tmp_path / "runtime")
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho no network >&2\nexit 1\n")
    npm.chmod(0o755)
    with pytest.raises(RunError, match=r"cannot download onnxruntime-web.*no network"):
        page["fetch_runtime"](tmp_path / "runtime")

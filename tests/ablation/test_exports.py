"""What the chosen replicas of an ablation cost as exported files, and where it is kept."""

import dataclasses

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install -e '.[onnx]'")

import flaxformer_lab  # noqa: E402
from flaxformer_lab.ablation import exports  # noqa: E402
from flaxformer_lab.ablation.exports import MEASURED, chosen_of, latencies_of, measure_exports  # noqa: E402
from flaxformer_lab.ablation.rates import progress  # noqa: E402
from flaxformer_lab.errors import ConfigError  # noqa: E402
from flaxformer_lab.report.summary import summarise  # noqa: E402


def a_file(constant):
    """A graph that adds so many numbers."""
    made = onnx.helper.make_node("Add", ["x", "c"], ["y"])
    shape = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, constant]) for name in "xy"]
    value = onnx.numpy_helper.from_array(np.zeros((1, constant), np.float32), "c")
    graph = onnx.helper.make_graph([made], "g", shape[:1], shape[1:], [value])
    opset = [onnx.helper.make_opsetid("", 18)]
    return onnx.helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()


@pytest.fixture
def measured(grid, store, result, monkeypatch):
    """A grid whose cells all are trained, the store, and which replicas were exported."""
    made = grid({"learning_rates": (0.01, 0.03, 0.1), "keep": "chosen", "exports": True})
    store.claim(made)
    for cell in made.cells:  # the middle rate is the best
        scores = [0.5 if each.learning_rate == 0.03 else 0.1 for each in cell.replicas]
        store.finish(cell, result(cell, scores, {"head_diversity": 0.5}))
    exported = []

    def export(chosen, number, store):
        exported.append((chosen.part.key, number))
        return {"float32": a_file(4000), "int8": a_file(40)}, 0.25 + number, {"x": np.zeros((1, 4000), np.float32)}

    monkeypatch.setattr(exports, "_export", export)
    monkeypatch.setattr(exports, "ROUNDS", 1)
    monkeypatch.setattr(exports, "ROUND_S", 1e-5)
    calls = []
    monkeypatch.setattr(exports, "latencies_of", lambda given: calls.extend(given) or np.arange(len(given)) / 1e6)
    return made, store, exported


def test_the_replicas_of_the_chosen_rate_are_measured_and_no_others(measured):
    made, store, exported = measured
    measure_exports(made, store)
    assert len(exported) == 2 * len(made.cells)
    for cell in made.cells:
        whole, following = progress(cell, store, made.config)
        assert following is None
        for number, each in enumerate(whole["replicas"]):
            is_chosen = each["learning_rate"] == 0.03
            assert ((cell.key, number) in exported) == is_chosen
            assert each["measures"]["head_diversity"] == 0.5
            assert all((each["measures"][name] is not None) == is_chosen for name in MEASURED)
    score = summarise(made, store).score("near", "baseline")
    places = [number for key, number in exported if key == made.cells[0].key]
    np.testing.assert_array_equal(score.measures["int8_score"], [0.25 + number for number in places])
    assert set(score.measures["float32_bytes"]) == {len(a_file(4000))}
    cells, seeds = len(made.cells), 2
    np.testing.assert_allclose(score.measures["float32_latency"], [0, 1])  # files in the order of cells and seeds
    np.testing.assert_allclose(score.measures["int8_latency"], [cells * seeds, cells * seeds + 1])


def test_what_is_measured_stays_until_it_is_asked_for_again(measured):
    made, store, exported = measured
    measure_exports(made, store)
    first = len(exported)
    measure_exports(made, store)
    assert len(exported) == first
    measure_exports(made, store, again=True)
    assert len(exported) == 2 * first


def test_a_search_that_goes_on_and_a_seed_that_diverged_are_not_measured(grid, store, result):
    made = grid({"learning_rates": (0.01, 0.03, 0.1), "max_extensions": 1, "keep": "chosen", "exports": True})
    store.claim(made)
    searching, diverged, waiting = made.cells[:3]
    store.finish(searching, result(searching, [each.learning_rate for each in searching.replicas]))
    store.finish(diverged, result(diverged, np.nan))
    assert [chosen_of(cell, made, store) for cell in (searching, diverged, waiting)] == [None, None, None]


def test_files_are_timed_in_turns():
    order = []
    found = latencies_of([lambda name=name: order.append(name) for name in "ab"])
    assert found.shape == (2,) and np.all(found >= 0)
    turns = "".join(name for name, before in zip(order, [None, *order], strict=False) if name != before)
    assert turns == "ab" * (exports.ROUNDS + 1)


def test_what_is_measured_must_be_kept(grid):
    with pytest.raises(ConfigError, match="keep=chosen"):
        grid({"exports": True})
    with pytest.raises(ConfigError, match="search_seeds=0"):
        grid({"exports": True, "keep": "chosen", "search_seeds": 2})


@pytest.mark.slow
def test_an_ablation_measures_its_own_runs(tmp_path):
    """From a config to the report: files of real models, which score what their runs scored."""
    recipe = {
        "task": {"name": "image_classification", "dataset": "lab_digits", "patch_size": 4},
        "model": {"width": 8, "depth": 1, "attention": {"num_heads": 2}},
        "training": {"steps": 2, "batch_size": 8, "evaluate_every": 1, "checkpoint_every": 2, "steps_per_call": 1},
    }
    (tmp_path / "digits.py").write_text(f"def get_config():\n    return {recipe!r}\n")
    config = {
        "tasks": {"digits": {"recipe": str(tmp_path / "digits.py")}},
        "variants": {"wide": {"model": {"width": 32}}},
        "series": {"all": ("baseline", "wide")},
        "learning_rates": (0.01,),
        "seeds": (0, 1),
        "keep": "chosen",
        "exports": True,
    }
    report = flaxformer_lab.ablate(config, tmp_path / "work", quiet=True)
    narrow, wide = (report.summary.score("digits", variant) for variant in ("baseline", "wide"))
    run = flaxformer_lab.load_run(next((tmp_path / "work" / "runs").glob("*/seed-0-*")))
    for score in (narrow, wide):
        smaller = score.measures["int8_bytes"] < score.measures["float32_bytes"]
        assert np.all(score.measures["float32_bytes"] > 4 * score.parameters) and np.all(smaller == (score is wide))
        assert np.all(score.measures["float32_latency"] > 0) and np.all(score.measures["int8_latency"] > 0)
        assert np.all(np.abs(score.measures["int8_score"] - score.values) < 0.05)
    sizes = {run.export(tmp_path / "model.onnx", "onnx").description["bytes"]}
    assert sizes <= {int(size) for score in (narrow, wide) for size in score.measures["float32_bytes"]}
    assert "Cost of use" in report.files[1].read_text() and "int8_score" in report.files[0].read_text()


def test_a_rate_that_was_not_the_chosen_one_is_still_to_be_measured(measured):
    """Its replicas have null where those of the chosen rate have what was measured."""
    made, store, exported = measured
    measure_exports(made, store)
    first, cell = len(exported), made.cells[0]
    scores = [0.9 if each.learning_rate == 0.1 else 0.1 for each in cell.replicas]
    stored = store.result(cell)
    for each, score in zip(stored["replicas"], scores, strict=True):
        each["validation"] = {name: [score] * len(curve) for name, curve in each["validation"].items()}
    store.finish(cell, stored)
    measure_exports(dataclasses.replace(made, config=dataclasses.replace(made.config, max_extensions=0)), store)
    assert len(exported) == first + 2


def test_runs_that_were_not_kept_are_missed_before_anything_is_trained(measured):
    made, store, _ = measured
    cell = made.cells[0]
    with pytest.raises(ConfigError, match=f"{cell.task} / {cell.variant} in .* was trained without keeping its runs"):
        exports.require_runs(made, store)
    measure_exports(made, store)
    exports.require_runs(made, store)

"""Clicks: the flights by their fields, known crosses, new rows of a table, and splits of one class."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score

import flaxformer_lab
from flaxformer_lab.config import parse_config
from flaxformer_lab.data.field_builders import GROUP
from flaxformer_lab.data.source import open_split
from flaxformer_lab.errors import ConfigError, LabError
from flaxformer_lab.functional import metrics
from flaxformer_lab.predict import predict
from flaxformer_lab.tasks import controls, make_task

LOGISTIC = {"name": "autoint", "width": 1, "depth": 0, "heads": 1}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Whether two of three categories agree, and a number that says nothing; z is seen too rarely."""
    generator = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("clicks") / "clicks.csv"
    rows = ["a,b,c,n,click"]
    for number in range(600):
        a, b, c = ("xyz"[place] if number % 100 else "w" for place in generator.integers(3, size=3))
        rows.append(f"{a},{b},{c},{generator.normal():.3f},{'yes' if a == b else 'no'}")
    path.write_text("\n".join(rows) + "\n")
    return path


def config_of(table, model, steps=60, **task):
    return parse_config(
        {
            "task": {"name": "click", "dataset": f"csv:{table}?target=click"} | task,
            "model": model,
            "optimizer": {"learning_rate": 0.05, "warmup_steps": 5},
            "training": {"steps": steps, "batch_size": 60, "evaluate_every": steps, "checkpoint_every": steps},
        }
    )


@pytest.fixture(scope="module")
def trained(table, tmp_path_factory):
    config = config_of(table, {"name": "field_products", "width": 4}, readout="sum", embedding_scale=0.3)
    return flaxformer_lab.train(config, tmp_path_factory.mktemp("runs") / "fm", quiet=True)


@pytest.mark.slow
def test_the_flights_are_the_sample_and_no_day_is_in_two_splits():
    sources = [open_split("lab_flight_fields", split) for split in ("train", "validation", "test")]
    assert sum(map(len, sources)) == 114_573
    days = [set(source.load()["group"].tolist()) for source in sources]
    assert [len(each) for each in days] == [219, 73, 73] and not (
        days[0] & days[1] | days[0] & days[2] | days[1] & days[2]
    )
    names = [each["name"] for each in sources[0].info.metadata["table"]["categories"]]
    assert names == ["carrier", "flight", "tailnum", "origin", "dest", "month", "day", "weekday", "hour", "departure"]
    counts = [each["counts"][1:] for each in sources[0].info.metadata["table"]["categories"]]
    assert min(min(each) for each in counts) == 5  # rarer levels are unknown


def test_a_factorization_machine_finds_the_cross_and_its_figures_are_scikit_learns(trained):
    found = trained.evaluate("test")
    assert found["auc"] > 0.95
    source = open_split(trained.config.task.dataset, "test").load()
    inputs = jax.jit(trained.task.preprocess)({name: source[name] for name in ("columns", "categories")})
    outputs = trained.predict_preprocessed(inputs)
    shares = np.asarray(jax.jit(trained.task.predictions_of)(outputs))
    assert found["auc"] == pytest.approx(roc_auc_score(source["label"], shares), abs=1e-6)
    assert found["loss"] == pytest.approx(log_loss(source["label"], shares.astype(np.float64)), rel=1e-4)
    np.testing.assert_allclose(trained.task.outputs_of(jnp.asarray(shares)), outputs, rtol=1e-2, atol=1e-2)


def test_new_rows_get_probabilities_and_levels_that_training_has_not_seen_do_too(trained):
    rows = {"a": ["x", "x", "new"], "b": ["x", "y", "x"], "c": ["z", "z", None], "n": [0.1, 0.2, 0.3]}
    same, other, unknown = np.asarray(trained.predict(rows))
    assert same > 0.7 > 0.3 > other and 0 < unknown < 1


def test_a_table_of_three_classes_and_one_of_one_class_are_refused(table, tmp_path):
    with pytest.raises(ConfigError, match=r"task\.name=click takes two"):
        make_task(parse_config({"task": {"name": "click", "dataset": "lab_wine"}}).task)
    path = tmp_path / "one.csv"
    path.write_text("a,click\n" + "".join(f"{'xy'[row % 2]},yes\n" for row in range(60)))
    with pytest.raises(LabError):
        make_task(parse_config({"task": {"name": "click", "dataset": f"csv:{path}?target=click"}}).task)


def test_an_evaluation_of_one_class_alone_has_no_auc(table):
    task = make_task(config_of(table, LOGISTIC).task)
    batch = {"targets": jnp.ones(4, int), "loss_weights": jnp.ones(4), "group": jnp.arange(4)}
    values = metrics.compute([jax.device_get(task.loss_and_metrics(jnp.zeros((4, 1)), batch))])
    assert np.isnan(values["auc"]) and np.isnan(values["auc_error"]) and values["loss"] == pytest.approx(np.log(2))


def test_a_linear_model_of_fields_is_scikit_learns_logistic_regression(table):
    """After many updates the logits of both are the same maximum of the likelihood, up to a little shrinkage."""
    config = config_of(table, LOGISTIC, readout="sum", own_weights=False)
    task = make_task(config.task)
    network = task.network(config.model)
    params, _ = jax.jit(network.init)(jax.random.key(0))
    assert params.keys() == {"embedding", "head"} and params["head"].keys() == {"bias"}
    stored = task.examples("train").load()
    inputs = jax.jit(task.preprocess)({name: stored[name] for name in ("columns", "categories")})
    columns, levels = np.asarray(inputs["columns"]), np.asarray(inputs["categories"])
    design = np.concatenate([columns, *(np.eye(5)[levels[:, place]] for place in range(3))], axis=1)
    peer = LogisticRegression(C=1e4, max_iter=2000).fit(design, stored["label"])

    @jax.jit
    def loss(params):
        logits = network.apply(params, {}, inputs)[0][:, 0]
        return jnp.mean(jax.nn.softplus(jnp.where(stored["label"] == 1, -logits, logits)))

    def step(_, params):
        return jax.tree.map(lambda leaf, slope: leaf - 2.0 * slope, params, jax.grad(loss)(params))

    params = jax.jit(lambda params: jax.lax.fori_loop(0, 800, step, params))(params)
    assert float(loss(params)) == pytest.approx(log_loss(stored["label"], peer.predict_proba(design)), abs=1e-3)


def test_a_control_is_measured_with_each_record_as_a_group_whatever_the_batches(table):
    task = make_task(config_of(table, LOGISTIC, readout="sum").task)
    groups = np.concatenate([batch[GROUP] for batch in controls.batches(task, "test", size=7)])
    np.testing.assert_array_equal(groups, np.arange(task.examples("test").number))


def test_planted_crosses_have_the_share_that_adding_up_cannot_see():
    task = make_task(parse_config({"task": {"name": "planted_crosses", "number": 3, "levels": 4}}).task)
    levels = np.stack(np.meshgrid(*[np.arange(4)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    values = np.asarray(jax.jit(jax.vmap(task.truth))(levels))[:, 0, 0]
    assert values.mean() == pytest.approx(0, abs=1e-6) and values.var() == pytest.approx(1, abs=1e-5)
    own = [np.eye(4)[levels[:, place]] for place in range(3)]
    pairs = [np.einsum("ri,rj->rij", own[i], own[j]).reshape(64, 16) for i, j in ((0, 1), (0, 2), (1, 2))]
    for fields, share in ((own, 0.5), (pairs, 1.0)):
        design = np.concatenate(fields, axis=1)
        assert LinearRegression().fit(design, values).score(design, values) == pytest.approx(share, abs=1e-4)
    for task_knobs, bounded in (({}, True), ({"crosses": 64}, False), ({"deep": (8,)}, False)):
        config = parse_config({"task": {"name": "planted_crosses", **task_knobs}, "model": LOGISTIC})
        assert (make_task(config.task).bound(config.model) is not None) is bounded


def test_new_rows_of_a_file_get_scores_and_a_control_gives_what_the_task_measures(trained, table, tmp_path):
    path = tmp_path / "new.csv"
    path.write_text("a,b,c,n,click\nx,x,z,0.1,yes\nx,y,z,0.2,no\nnew,y,z,0.2,no\n")
    found = predict(trained, path)
    assert found.columns["predicted click"][:2] == ["yes", "no"] and found.metrics["auc"] == 1
    assert found.as_csv().splitlines()[0] == "line,predicted click,probability of yes"
    task = trained.task
    fit = controls.lookup("linear", "click")(task, 0, 1.0)
    assert controls.evaluate(task, fit, "test")["auc"] < 0.75  # it sees no cross

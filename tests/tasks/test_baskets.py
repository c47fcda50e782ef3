"""The next basket: the retail data's known counts and controls, and the task on a small shop, against plain loops."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxformer_lab
from flaxformer_lab.config import parse_config
from flaxformer_lab.data.baskets import (
    Baskets,
    first_purchases,
    frequent,
    quantile_of_time,
    queries_after,
    read_baskets,
)
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.functional import metrics
from flaxformer_lab.predict import predict
from flaxformer_lab.task_config import NextBasketConfig
from flaxformer_lab.tasks import basket_controls, baskets, controls, make_task

USERS, ITEMS = 24, 9


@pytest.fixture(scope="module")
def retail():
    return read_baskets("lab_retail")


def shop():
    """Users with one to nine baskets; item 8 is rare, and user 0 buys once."""
    generator = np.random.default_rng(0)
    sizes, users, times, items = [], [], [], []
    for time in range(120):
        user = time if time < USERS else int(generator.integers(1, USERS))
        own = generator.choice(ITEMS - 1, size=generator.integers(1, 5), replace=False)
        own = np.append(own, 8) if time % 40 == 0 else own
        sizes.append(len(own)), users.append(user), times.append(time), items.append(own)
    names = tuple(map(str, range(ITEMS))), tuple(map(str, range(USERS)))
    first = np.concatenate([[0], np.cumsum(sizes)])
    item = np.concatenate(items).astype(np.int32)
    return Baskets(np.array(users), np.array(times) * 1440, first, item, np.bincount(item), *names)


@pytest.fixture(autouse=True, scope="module")
def small_shop():
    patch = pytest.MonkeyPatch()
    patch.setattr(
        baskets, "read_baskets", lambda name: {"shop": shop, "turns": turns}.get(name, lambda: read_baskets(name))()
    )
    yield
    patch.undo()


def config_of(**knobs):
    return NextBasketConfig(**{"dataset": "shop", "least_rows": 5, "core": 2, "events": 12, "baskets": 4} | knobs)


def network_of(task, **model):
    causal = task._config.objective == "next"
    model = {"width": 8, "depth": 1, "causal": causal, "attention": {"num_heads": 2}} | model
    return task.network(parse_config({"task": dataclasses.asdict(task._config), "model": model}).model)


def prepared(task, split, rows=slice(None), training=False):
    stored = {name: array[rows] for name, array in task.examples(split).load().items()}
    stored["example_weight"] = np.ones(len(stored["items"]), np.float32)
    keys = jax.random.split(jax.random.key(0), len(stored["items"]))
    return jax.device_get(jax.jit(functools.partial(task.prepare, training=training))(stored, keys))


def scores_of(network, params, batch):
    apply = jax.jit(lambda *given: network.apply(params, {}, given[0], valid=given[1])[0])
    return np.asarray(apply(batch["inputs"], batch["valid"]))


def test_the_retail_data_has_the_counts_of_its_recipe(retail):
    assert (len(retail.item), len(retail.user)) == (768_865, 36_969)
    kept = frequent(retail, 20)
    counts = len(kept.item), len(kept.user), len(kept.user_names), len(kept.item_names)
    assert counts == (759_345, 36_866, 5_875, 3_452)
    cut = quantile_of_time(kept, 0.9)
    assert cut == (np.datetime64("2011-11-02T11:49") - np.datetime64("2009-12-01T00:00")).astype(int)
    asked = queries_after(kept, cut, least=3)
    history = lambda query: np.concatenate([kept.items_of(each) for each in query.history])  # noqa: E731
    new = [len(np.setdiff1d(kept.items_of(query.target), history(query))) > 0 for query in asked]
    assert (len(asked), sum(new)) == (1_259, 1_105)
    last = first_purchases(retail, 5)
    assert (len(last.item), len(last.user_names), len(last.item_names)) == (480_217, 5_544, 4_206)
    same = np.mean([last.sizes[own[-1]] > 1 for own in last.of_users()])
    assert same == pytest.approx(0.917, abs=0.001)  # what comes last on an invoice has others before it there


@pytest.mark.slow
def test_controls_reach_what_was_measured_elsewhere():
    task = make_task(NextBasketConfig())
    for name, measured in (("recent_popularity", (0.100, 0.104)), ("personal", (0.296, 0.304))):
        found = basket_controls.evaluate(task, basket_controls.fit(task, name))
        assert (found["recall"], found["ndcg"]) == pytest.approx(measured, abs=0.0006)


@pytest.mark.slow
def test_ease_reaches_what_was_measured_elsewhere_and_an_artefact_shows_by_leaving_one_out():
    task = make_task(NextBasketConfig())
    popular = basket_controls.evaluate(task, basket_controls.fit(task, "popularity"))
    assert (popular["recall"], popular["ndcg"]) == pytest.approx((0.066, 0.073), abs=0.0006)
    found = basket_controls.evaluate(task, basket_controls.fit(task, "ease"))
    values = [found[name] for name in ("recall", "ndcg", "recall_new", "ndcg_new")]
    assert values == pytest.approx([0.191, 0.193, 0.065, 0.058], abs=0.0006)
    chains = [make_task(NextBasketConfig(split=split, tokens="item")) for split in ("last", "time")]
    last, time = (basket_controls.evaluate(task, basket_controls.fit(task, "markov")) for task in chains)
    assert last["recall_new"] == pytest.approx(0.2505, abs=0.001)
    assert time["recall_new"] == pytest.approx(0.029, abs=0.001)


def test_no_event_after_the_cut_trains_and_held_out_baskets_do_not_either():
    task = make_task(config_of())
    kept, sequences = task.divided
    trained = {
        int(basket)
        for user, until in enumerate(sequences.until)
        for basket in sequences.basket[sequences.history(user, until)]
    }
    held_out = {
        int(sequences.basket[sequences.first[user] + begin]) for user, begin, _ in sequences.asked["validation"]
    }
    tested = {int(sequences.basket[sequences.first[user] + begin]) for user, begin, _ in sequences.asked["test"]}
    assert held_out and tested and not trained & (held_out | tested)
    assert trained | held_out == set(np.flatnonzero(kept.time <= sequences.cut))
    assert kept.time[list(tested)].min() > sequences.cut
    assert "8" not in task.metadata["items"]  # it has too few rows


@pytest.mark.parametrize("tokens", ["basket", "item"])
def test_training_asks_at_each_token_for_what_follows(tokens):
    """The loss is that of a plain loop over baskets, each of which counts once, or over items."""
    task = make_task(config_of(tokens=tokens, half_life=10.0))
    network, batch = network_of(task), prepared(task, "train", slice(8), training=True)
    params, _ = jax.jit(network.init)(jax.random.key(1))
    scores = scores_of(network, params, batch)
    found = jax.jit(task.loss_and_metrics)(scores, batch)["loss"]
    stored, total, weight = task.examples("train").load(), 0.0, 0.0
    log_shares = np.asarray(jax.nn.log_softmax(scores))
    for row in range(8):
        items, numbers, weights = (stored[name][row] for name in ("items", "baskets", "event_weights"))
        for event in range(1, np.sum(items > 0)):
            place = numbers[event] - 1 if tokens == "basket" else event - 1
            if place < 0:
                continue
            own = weights[event] / (np.sum(numbers == numbers[event]) if tokens == "basket" else 1)
            total, weight = total - own * log_shares[row, place, items[event] - 1], weight + own
    assert float(found.total) == pytest.approx(total, rel=1e-4) and float(found.weight) == pytest.approx(
        weight, rel=1e-4
    )


@pytest.mark.parametrize(
    "knobs",
    [{"baskets": 3}, {"tokens": "item", "events": 6}, {"tokens": "item", "events": 6, "objective": "masked"}],
    ids=["baskets", "items", "masked"],
)
def test_every_place_that_an_evaluation_asks_is_trained(knobs):
    task = make_task(config_of(**knobs))
    network, batch = network_of(task), prepared(task, "train", training=True)
    params, _ = jax.jit(network.init)(jax.random.key(1))

    batch = jax.tree.map(jnp.asarray, batch)

    def loss(params):
        scores, _ = network.apply(params, {}, batch["inputs"], valid=batch["valid"])
        found = task.loss_and_metrics(scores, batch)["loss"]
        return found.total / found.weight

    gradient = np.asarray(jax.jit(jax.grad(loss))(params)["body"]["position"])
    asked = np.unique(prepared(task, "test")["inputs"]["places"])
    assert len(gradient) == asked.max() + 1  # a history that fills the window is asked about at the last place
    assert np.all(np.abs(gradient).max(axis=-1) > 1e-6)


@pytest.mark.parametrize("tokens", ["basket", "item"])
def test_every_event_but_those_of_the_first_basket_or_item_trains_once(tokens):
    task = make_task(config_of(tokens=tokens, events=6, baskets=3))
    _, sequences = task.divided
    wanted = []
    for user, until in enumerate(sequences.until):
        own = sequences.history(user, until)
        items, numbers = sequences.item[own], sequences.basket[own]
        wanted += list(items[numbers != numbers[0]] if tokens == "basket" else items[1:])
    batch = prepared(task, "train", training=True)
    assert sorted(batch["targets"][batch["loss_weights"] > 0] - 1) == sorted(wanted)


def test_a_half_life_halves_the_weight_of_a_basket_that_many_days_before_the_cut():
    task, cut = make_task(config_of(half_life=10.0)), 20_000
    assert task._weights(np.array([cut, cut - 10 * 1440]), float(cut)) == pytest.approx([1, 0.5])


def test_masks_hide_a_share_of_the_items_and_an_evaluation_appends_one():
    task = make_task(config_of(tokens="item", objective="masked", mask_rate=0.3))
    batch, stored = prepared(task, "train", training=True), task.examples("train").load()
    mask = task.num_items + 1
    lengths = np.sum(stored["items"] > 0, axis=1)
    hidden = np.sum(np.asarray(batch["inputs"]["items"]) == mask, axis=1)
    assert hidden.tolist() == [max(1, int(np.round(0.3 * length))) for length in lengths]
    asked = np.asarray(batch["loss_weights"]) > 0
    assert asked.sum(axis=1).tolist() == hidden.tolist()
    at = np.take_along_axis(np.asarray(batch["inputs"]["items"]), np.asarray(batch["inputs"]["places"]), axis=1)
    assert np.all(at[asked] == mask) and np.all(np.asarray(batch["targets"])[asked] > 0)
    query = prepared(task, "test")["inputs"]
    last = np.asarray(query["places"])[:, 0]
    assert np.all(np.asarray(query["items"])[np.arange(len(last)), last] == mask)


def test_scores_do_not_depend_on_later_baskets_nor_on_what_fills_up():
    task = make_task(config_of(repeats=True))
    network, inputs = network_of(task), prepared(task, "train", slice(6), training=True)
    params, _ = jax.jit(network.init)(jax.random.key(1))
    scores = jax.jit(lambda given: network.apply(params, {}, given)[0])
    whole = np.asarray(scores(inputs["inputs"]))
    numbers = np.asarray(inputs["inputs"]["baskets"])
    later = np.where(numbers >= 2, 1 + (inputs["inputs"]["items"] + 2) % task.num_items, inputs["inputs"]["items"])
    changed = np.asarray(scores(inputs["inputs"] | {"items": later}))
    np.testing.assert_allclose(changed[:, :2], whole[:, :2], atol=1e-5)
    assert np.abs(changed - whole)[numbers.max(axis=1) >= 2].max() > 1e-3


def test_repeats_are_purchases_weighed_by_how_many_baskets_ago_they_were():
    task = make_task(config_of(repeats=True))
    network = network_of(task, depth=0, bias=False)
    params, _ = jax.jit(network.init)(jax.random.key(1))
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf if path[-1].key == "recency" else 0 * leaf, params
    )
    batch = prepared(task, "test")
    scores = np.asarray(scores_of(network, params, batch))[:, 0]
    for row, (items, numbers) in enumerate(
        zip(*(np.asarray(batch["inputs"][n]) for n in ("items", "baskets")), strict=True)
    ):
        wanted = np.zeros(task.num_items)
        for item, number in zip(items, numbers, strict=True):
            if item:
                wanted[item - 1] += 3 * 0.8 ** (numbers.max() - number)
        np.testing.assert_allclose(scores[row], wanted, rtol=1e-5)


def test_metrics_are_those_of_all_queries_whatever_the_batches():
    task = make_task(config_of())
    batch = prepared(task, "test")
    number = len(batch["target"])
    scores = np.random.default_rng(0).normal(size=(number, 1, task.num_items)).astype(np.float32)
    parts = [slice(0, 3), slice(3, number)]
    measure = jax.jit(task.loss_and_metrics)
    states = [measure(scores[part], jax.tree.map(lambda leaf, p=part: leaf[p], batch)) for part in parts]
    whole = metrics.compute([measure(scores, batch)])
    assert metrics.compute(states) == pytest.approx(whole, rel=1e-5)
    control = {(user, begin): row for row, (user, begin, _) in enumerate(task.divided[1].asked["test"])}
    ranked = iter(scores[:, 0])
    assert len(control) == number
    found = basket_controls.evaluate(task, lambda own, when: next(ranked))
    assert {name: whole[name] for name in found} == pytest.approx(found, rel=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_a_user_without_a_history_is_ranked_all_the_same(bias):
    for knobs in ({"repeats": True}, {"tokens": "item", "objective": "masked"}):
        task = make_task(config_of(**knobs))
        network = network_of(task, bias=bias)
        empty = jax.tree.map(lambda spec: np.zeros(spec.shape, spec.dtype), task.input_spec(2))
        empty["baskets"] = empty["baskets"] - 1
        params, _ = jax.jit(network.init)(jax.random.key(0))
        scores = scores_of(network, params, {"inputs": empty, "valid": np.zeros((2, task._tokens), bool)})
        assert scores.shape == (2, 1, task.num_items) and np.isfinite(scores).all()


@pytest.mark.parametrize(
    ("knobs", "problem"),
    [({"objective": "masked"}, "items are masked"), ({"repeats": True, "tokens": "item"}, "no repetition")],
)
def test_knobs_that_contradict_one_another_are_refused(knobs, problem):
    with pytest.raises(ConfigError, match=problem):
        NextBasketConfig(**knobs).rules()


def test_an_unknown_control_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean popularity"):
        basket_controls.fit(make_task(config_of()), "popularitty")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A shop whose users buy item 0 after item 1, and item 1 after item 0."""
    task = {"name": "next_basket", "dataset": "turns", "least_rows": 1, "events": 12, "baskets": 6}
    config = parse_config(
        {
            "task": task,
            "model": {"width": 16, "depth": 1, "causal": True, "attention": {"num_heads": 2}},
            "optimizer": {"learning_rate": 0.02, "warmup_steps": 5},
            "training": {"steps": 40, "batch_size": 16, "evaluate_every": 40, "checkpoint_every": 40},
        }
    )
    return flaxformer_lab.train(config, tmp_path_factory.mktemp("runs") / "turns", quiet=True)


def turns():
    """30 users with 6 baskets of one item, in turns; who begins with which is drawn."""
    users = np.tile(np.arange(30), 6)
    item = ((np.arange(180) // 30 + np.random.default_rng(0).integers(2, size=30)[users]) % 2).astype(np.int32)
    names = ("tea", "milk"), tuple(map(str, range(30)))
    return Baskets(users, np.arange(180) * 1440, np.arange(181), item, np.bincount(item), *names)


@pytest.mark.integration
def test_a_transformer_learns_who_takes_turns_and_ranks_new_users(trained, tmp_path):
    found = trained.evaluate("test")
    assert found["ndcg"] > 0.9 and found["ndcg_new"] == 0  # nobody buys anything new
    path = tmp_path / "new.csv"
    path.write_text("user,basket,item\nann,1,tea\nbob,7,milk\nann,2,milk\neve,1,soap\n")
    found = predict(trained, path)
    best = [item for item, rank in zip(found.columns["item"], found.columns["rank"], strict=True) if rank == 1]
    assert best[:2] == ["tea", "tea"] and found.columns["user"] == ["ann", "ann", "bob", "bob", "eve", "eve"]
    assert found.lines.tolist() == [4, 4, 3, 3, 5, 5]  # eve bought what nobody knows, and is ranked all the same
    with pytest.raises(ConfigError, match="lacks user, basket and a time; new purchases need the columns user, it"):
        trained.predict({"item": ["tea"]})


@pytest.mark.parametrize("knobs", [{}, {"tokens": "item", "objective": "masked"}], ids=["next", "masked"])
def test_a_control_is_a_row_of_an_ablation_with_the_figures_of_its_own_evaluation(knobs):
    task = make_task(config_of(events=64, baskets=64, **knobs))
    for name in ("personal", "markov", "ease"):
        fit = controls.lookup(name, "next_basket")(task, 0, 1.0)
        for split in ("validation", "test"):
            row = controls.evaluate(task, fit, split)
            found = basket_controls.evaluate(task, basket_controls.fit(task, name, split), split)
            assert {key: row[key] for key in found} == pytest.approx(found, rel=1e-5)


def test_a_control_has_not_seen_what_validation_asks_for():
    task = make_task(config_of())
    fit = controls.lookup("popularity", "next_basket")(task, 0, 1.0)
    inputs = controls.whole(task, "validation")["inputs"]
    by_split = {split: basket_controls.fit(task, "popularity", split)(None, None) for split in ("validation", "test")}
    for ranks, split in ((fit.on_validation, "validation"), (fit.predict, "test")):
        order = np.argsort(-by_split[split], kind="stable")
        np.testing.assert_array_equal(np.argsort(-ranks(inputs)[0, 0], kind="stable"), order)
    assert not np.array_equal(by_split["validation"], by_split["test"])

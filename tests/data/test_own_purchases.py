"""Purchases in a file of one's own: as baskets, through training and ranking, and what a file may lack."""

import jax
import numpy as np
import pytest

import flaxformer_lab
from flaxformer_lab.config import parse_config
from flaxformer_lab.data.baskets import read_baskets
from flaxformer_lab.data.own import columns
from flaxformer_lab.data.own.address import parse_address
from flaxformer_lab.data.own.purchases import new_purchases
from flaxformer_lab.data.own.schema import table_of
from flaxformer_lab.errors import ConfigError, DataError
from flaxformer_lab.predict import predict
from flaxformer_lab.task_config import NextBasketConfig
from flaxformer_lab.tasks import make_task

ROWS = """user,basket,item,when
ann,2,tea,2024-03-02 10:00
bob,1,milk,2024-03-01 09:30
ann,2,milk,2024-03-02 10:00
bob,1,tea,2024-03-01 09:30
ann,2,tea,2024-03-02 10:01
ann,1,jam,2024-03-01 09:30
"""


@pytest.fixture
def write(tmp_path):
    def to_file(text, options=""):
        path = tmp_path / "own.csv"
        path.write_text(text)
        return f"csv:{path}{options}"

    return to_file


def shown(baskets):
    """(user, minutes, items) of each basket, by name."""
    return [
        (baskets.user_names[user], time, [baskets.item_names[each] for each in baskets.items_of(number)])
        for number, (user, time) in enumerate(zip(baskets.user, baskets.time, strict=True))
    ]


def test_rows_of_a_basket_are_in_the_order_of_time(write):
    late = ROWS + "bob,1,bread,2024-03-01 09:29\n"
    assert shown(read_baskets(write(late)))[0] == ("bob", 0, ["bread", "milk", "tea"])


@pytest.mark.parametrize("first", ["12:00:00", "12:00:30"])
def test_a_minute_is_one_of_the_clock_whenever_the_file_begins(write, first):
    rows = [f"zoe,jam,2024-01-01 {first}", "ann,tea,2024-01-01 13:01:10", "ann,milk,2024-01-01 13:01:40"]
    rows += ["ann,jam,2024-01-01 13:02:00"]
    found = shown(read_baskets(write("\n".join(["user,item,when", *rows]))))
    assert found == [("zoe", 0, ["jam"]), ("ann", 61, ["tea", "milk"]), ("ann", 62, ["jam"])]


def test_rows_become_baskets_in_the_order_of_time_with_each_item_once(write):
    baskets = read_baskets(write(ROWS))
    assert shown(baskets) == [("bob", 0, ["milk", "tea"]), ("ann", 0, ["jam"]), ("ann", 1470, ["tea", "milk"])]
    counts = dict(zip(baskets.item_names, baskets.item_rows, strict=True))
    assert counts == {"jam": 1, "milk": 2, "tea": 3}  # before repetitions are gone


def test_a_price_that_can_be_read_in_two_ways_is_left_out_as_others_are(write):
    priced = [f"{line};{price}" for line, price in zip(ROWS.splitlines(), ["price", *["1,234"] * 6], strict=True)]
    priced = "\n".join(priced).replace(",", ";").replace("1;234", "1,234")
    assert shown(read_baskets(write(priced))) == shown(read_baskets(write(ROWS)))


def test_without_baskets_a_minute_is_one(write):
    lines = [",".join(part for place, part in enumerate(line.split(",")) if place != 1) for line in ROWS.splitlines()]
    baskets = read_baskets(write("\n".join(lines)))
    assert [items for *_, items in shown(baskets)] == [["milk", "tea"], ["jam"], ["tea", "milk"], ["tea"]]


@pytest.mark.parametrize(
    ("text", "options", "error", "message"),
    [
        (
            ROWS.replace("item,", "thing,"),
            "",
            DataError,
            r"own.csv has no column item: purchases have the columns user",
        ),
        (
            ROWS.replace("when", "note").replace("2024-", "x"),
            "",
            DataError,
            r"no column of dates, which purchases must",
        ),
        (ROWS.replace("ann,2,milk", ",2,milk"), "", DataError, r"line 4, column user: it has no value, but each purch"),
        (
            ROWS.replace("jam,2024-03-01 09:30", "jam,"),
            "",
            DataError,
            r"line 7, column when: it has no value, but each",
        ),
        (
            ROWS,
            "?split=share:60,20,20",
            ConfigError,
            r"purchases have no use for split=, only for dates, day_first, de",
        ),
    ],
)
def test_what_a_file_lacks_is_named(write, text, options, error, message):
    with pytest.raises(error, match=message):
        read_baskets(write(text, options))


def test_a_list_in_parquet_is_no_item_and_no_time(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    stored = {"user": ["ann", "bob"], "item": ["tea", "jam"], "tags": [["a"], ["b"]]}
    stored["when"] = ["2024-03-01 09:30", "2024-03-01 09:31"]
    parquet.write_table(pyarrow.table(stored), tmp_path / "own.parquet")
    assert shown(read_baskets(f"parquet:{tmp_path}/own.parquet")) == [("ann", 0, ["tea"]), ("bob", 1, ["jam"])]
    parquet.write_table(pyarrow.table(stored | {"item": [["tea", "milk"], ["jam"]]}), tmp_path / "own.parquet")
    with pytest.raises(DataError, match=r"own\.parquet, row 1, column item: it holds a list, not one value"):
        read_baskets(f"parquet:{tmp_path}/own.parquet")


def test_the_time_of_new_purchases_is_found_in_a_pass_over_the_columns(monkeypatch):
    """Not in one for each of them: twice the columns are twice the values to read."""
    read, counts = columns.parse_number, []
    monkeypatch.setattr(columns, "parse_number", lambda *arguments: counts.append(None) or read(*arguments))
    found = []
    for others in (10, 20):
        table = {"user": ["a", "b"], "item": ["x", "y"], "when": ["2024-02-01", "2024-02-02"]}
        counts.clear()
        new_purchases(table_of(table | {f"c{number}": [number, 7] for number in range(others)}), None)
        found.append(len(counts))
    assert found[1] < 2.5 * found[0]


def shop(days=40):
    """Six users who buy every few days; items 0 and 1 follow one another."""
    generator = np.random.default_rng(0)
    lines = ["when,user,item,basket"]
    for day in range(days):
        for user in range(6):
            for item in {day % 2, int(generator.integers(2, 5))}:
                lines.append(
                    f"2024-{1 + day // 28:02}-{1 + day % 28:02} 1{user}:00,user {user},item {item},{day}-{user}"
                )
    return "\n".join(lines) + "\n"


def task_of(dataset, **knobs):
    return make_task(NextBasketConfig(dataset=dataset, **knobs))


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"least_rows": 1000}, r"no item has task.least_rows=1000 rows; the most frequent one has 120; set a smaller"),
        (
            {"least_baskets": 39},
            r"has no queries for validation: nobody has task.least_baskets=39 baskets before the cut",
        ),
        ({"split": "last", "core": 50}, r"no users and items are left with task.core=50 first purchases each"),
    ],
)
def test_a_division_that_leaves_nothing_is_refused(write, knobs, message):
    with pytest.raises(DataError, match=message):
        task_of(write(shop()), **knobs)


def bought(rows=300):
    """(user, basket, item, minute) of rows at moments of their own, with repeats within baskets and between them."""
    generator = np.random.default_rng(0)
    for minute in np.sort(generator.choice(60 * 1440, rows, replace=False)):
        user, item = int(generator.integers(12)), int(generator.integers(9))
        yield f"u{user}", f"{user}-{minute // 2880}", f"i{item}", int(minute)


def as_columns(rows, *names):
    when = [str(np.datetime64("2024-01-01T00:00") + minute) for *_, minute in rows]
    users, baskets, items, _ = zip(*rows, strict=True)
    columns = {"user": list(users), "basket": list(baskets), "item": list(items), "when": when}
    return {name: columns[name] for name in names}


@pytest.mark.parametrize(
    "knobs",
    [
        {"least_rows": 30, "least_baskets": 1, "repeats": True},
        {"least_rows": 30, "least_baskets": 1, "tokens": "item", "events": 8},
        {"split": "last", "core": 2, "tokens": "item"},
    ],
)
def test_new_rows_of_a_user_are_scored_as_an_evaluation_scores_the_same_history(write, knobs):
    rows = list(bought())
    columns = as_columns(rows, "user", "basket", "item", "when")
    task = task_of(write("\n".join([",".join(columns), *map(",".join, zip(*columns.values(), strict=True))])), **knobs)
    config = {"task": {"name": "next_basket"} | knobs, "model": {"width": 8, "depth": 1, "causal": True}}
    network = task.network(parse_config(config).model)
    params, _ = jax.jit(network.init)(jax.random.key(0))
    scores = jax.jit(lambda inputs: task.predictions_of(network.apply(params, {}, inputs)[0]))

    baskets, sequences = task.divided
    users = [baskets.user_names[user] for user, *_ in sequences.asked["test"]]
    stored = task.examples("test").load() | {"example_weight": np.ones(len(users))}
    expected = np.asarray(scores(task.prepare(stored, None, training=False)["inputs"]))

    begins = {basket: minute - rows[0][3] for _, basket, _, minute in reversed(rows)}
    known = []
    for user, (number, begin, _) in zip(users, sequences.asked["test"], strict=True):
        own = [row for row in rows if row[0] == user]
        if task._config.split == "last":
            target = baskets.item_names[sequences.item[sequences.first[number] + begin]]
            known += own[: next(place for place, row in enumerate(own) if row[2] == target)]
        else:
            known += [row for row in own if begins[row[1]] <= sequences.cut]
    shuffled = [known[place] for place in np.random.default_rng(1).permutation(len(known))]
    for new, names in ((known, "user basket item"), (shuffled, "when item basket user")):
        found = task.histories_in(table_of(as_columns(new, *names.split())))
        place = [found.users.index(user) for user in users]
        np.testing.assert_allclose(np.asarray(scores(found.inputs))[place], expected, atol=1e-5)
        last = [max((row[3], line) for line, row in enumerate(new) if row[0] == user)[1] for user in found.users]
        assert found.lines.tolist() == last


def test_new_purchases_in_a_file_have_the_delimiter_of_the_run(write, tmp_path):
    """A name with as many commas as the header has semicolons would be cut there."""
    text = shop().replace(",", ";").replace("when;user;item;basket", "when;user;item;basket;a, b, c, d, e")
    text = "\n".join(line if "when" in line else f"{line};1" for line in text.splitlines())
    task = task_of(write(text, "?delimiter=;"), least_rows=30)
    new = tmp_path / "new.csv"
    new.write_text("\n".join(text.splitlines()[:5]))
    expected = task.histories_in(table_of(new, parse_address("csv:a.csv?delimiter=;"))).inputs
    for ours, theirs in zip(jax.tree.leaves(task.inputs_of(str(new))), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_new_rows_make_baskets_of_times_or_lack_them(write):
    task = task_of(write(shop()))
    new = {"user": ["a"] * 3, "item": ["item 0", "item 1", "item 2"]}
    times = ["2024-02-01 10:00:10", "2024-02-01 10:00:50", "2024-02-01 10:01:00"]
    found = task.histories_in(table_of(new | {"at": times})).inputs
    assert found["baskets"][0, :4].tolist() == [0, 0, 1, -1] and found["items"][0, :4].tolist() == [1, 2, 3, 0]
    for name in ("user", "basket", "item"):
        with pytest.raises(DataError, match=f"predict, row 1, column {name}: it has no value, but each purchase needs"):
            task.histories_in(table_of(new | {"basket": ["1"] * 3} | {name: ["x", None, "y"]}))
    with pytest.raises(ConfigError, match="lacks basket and a time; new purchases need the columns user, item, and"):
        task.histories_in(table_of(new))
    with pytest.raises(DataError, match="predict has several columns of dates, at, sent; keep the time alone"):
        task.histories_in(table_of(new | {"at": times, "sent": times}))
    named = task_of(write(shop(), "?dates=when"))
    inputs = named.histories_in(table_of(new | {"sent": times[::-1], "when": times})).inputs
    assert inputs["items"][0, :3].tolist() == [1, 2, 3]
    with pytest.raises(DataError, match="predict has no rows"):
        task.histories_in(table_of({"user": [], "basket": [], "item": []}))


@pytest.mark.integration
def test_a_run_on_ones_own_purchases_ranks_new_ones_and_refuses_other_items(write, tmp_path, capsys, run_command):
    dataset = write(shop())
    config = parse_config(
        {
            "task": {"name": "next_basket", "dataset": dataset, "events": 16, "baskets": 8, "repeats": True},
            "model": {"width": 8, "depth": 1, "causal": True, "attention": {"num_heads": 2}},
            "optimizer": {"learning_rate": 0.01, "warmup_steps": 0},
            "training": {"steps": 2, "batch_size": 4, "evaluate_every": 2, "checkpoint_every": 2, "steps_per_call": 2},
            "parallelism": {"strategy": "single"},
        }
    )
    run = flaxformer_lab.train(config, tmp_path / "run", quiet=True)
    assert run.task.metadata["items"] == [f"item {number}" for number in range(5)]
    assert 0 <= run.evaluate("test")["ndcg"] <= 1
    new = tmp_path / "new.csv"
    new.write_text("user,basket,item\nme,1,item 0\nme,1,item 3\n")
    found = predict(run, new).columns
    assert {*found["user"]} == {"me"} and {*found["item"]} == {f"item {number}" for number in range(5)}
    code, _, err = run_command("flaxformer_lab.evaluate", f"--workdir={tmp_path / 'run'}", f"--csv={new}")
    assert code == 2 and "have no metrics on a file; rank its users with python -m flaxformer_lab.predict" in err[-1]
    assert not (tmp_path / "run" / "predictions").exists()
    capsys.readouterr()
    write(shop(41))
    flaxformer_lab.load_run(tmp_path / "run").evaluate("test")
    assert "the files changed since this run began" in capsys.readouterr().err
    write(shop().replace("item 4", "item 7"))
    with pytest.raises(
        DataError, match=r"has other items than this run was trained with, like item 4; restore the files"
    ):
        flaxformer_lab.load_run(tmp_path / "run").evaluate("test")
    with pytest.raises(ConfigError, match=r"was started with other data: .* has changed since; restore the files"):
        flaxformer_lab.train(config, tmp_path / "run", quiet=True)

"""Purchases in a file of one's own: as baskets, through training and ranking, and what a file may lack."""

import numpy as np
import pytest

import flaxformer_lab
from flaxformer_lab.config import parse_config
from flaxformer_lab.data.baskets import read_baskets
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


def test_rows_become_baskets_in_the_order_of_time_with_each_item_once(write):
    baskets = read_baskets(write(ROWS))
    assert shown(baskets) == [("bob", 0, ["milk", "tea"]), ("ann", 0, ["jam"]), ("ann", 1470, ["tea", "milk"])]
    counts = dict(zip(baskets.item_names, baskets.item_rows, strict=True))
    assert counts == {"jam": 1, "milk": 2, "tea": 3}  # before repetitions are gone


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


@pytest.mark.integration
def test_a_run_on_ones_own_purchases_ranks_new_ones_and_refuses_other_items(write, tmp_path, capsys):
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

"""`csv:` and `parquet:`: splits, levels fitted to the training rows, targets, leaks, and new rows."""

import collections
import datetime
import sys

import numpy as np
import pytest

from flaxformer_lab.data.own import tables
from flaxformer_lab.data.own.address import parse_address
from flaxformer_lab.data.own.schema import Schema, table_of
from flaxformer_lab.data.source import SPLITS, open_split
from flaxformer_lab.errors import ConfigError, DataError
from flaxformer_lab.task_config import TabularClassificationConfig
from flaxformer_lab.tasks import make_task

ROWS = 100


def write(tmp_path, **columns):
    """A table whose column `row` numbers its rows; `y` is its target unless the columns say otherwise."""
    row = range(ROWS)
    columns = {"row": [each + 0.5 for each in row], "y": [each % 2 for each in row]} | columns
    lines = [columns, *zip(*columns.values(), strict=True)]
    path = tmp_path / "own.csv"
    path.write_text("\n".join(",".join(map(str, line)) for line in lines))
    return f"csv:{path}?target=y"


def read(dataset):
    return tables.read(parse_address(dataset))


def rows_of(contents):
    """Which rows each split has."""
    place = [column["name"] for column in contents.metadata["table"]["columns"] if column["kind"] != "category"].index(
        "row"
    )
    return {split: [int(each["columns"][place]) for each in examples()] for split, examples in contents.splits.items()}


def every(rows):
    return [row for part in rows.values() for row in part]


def schema_of(contents):
    return Schema.from_json(contents.metadata["table"])


# -------------------------------------------------------------------------------------------------- splits


def test_rows_are_split_by_share_always_in_the_same_way(tmp_path):
    rows = rows_of(read(write(tmp_path)))
    assert [len(rows[split]) for split in SPLITS] == [60, 20, 20]
    assert sorted(every(rows)) == list(range(ROWS)) and rows["train"] != list(range(60))
    assert rows_of(read(write(tmp_path))) == rows
    assert [len(part) for part in rows_of(read(write(tmp_path) + "&split=share:80,10,10")).values()] == [80, 10, 10]


def test_rows_are_split_by_a_column(tmp_path):
    names = ["Train", "val", "TEST"]
    contents = read(write(tmp_path, part=[names[row % 3] for row in range(ROWS)]) + "&split=column:part")
    assert rows_of(contents) == {split: list(range(number, ROWS, 3)) for number, split in enumerate(SPLITS)}
    assert "part" not in [column.name for column in schema_of(contents).columns]
    rows = rows_of(
        read(write(tmp_path, part=["train" if row < 80 else "test" for row in range(ROWS)]) + "&split=column:part")
    )
    assert rows["test"] == list(range(80, 100)) and len(rows["validation"]) == 16  # a fifth of train
    assert sorted(rows["train"] + rows["validation"]) == list(range(80))
    with pytest.raises(DataError, match="line 9, column part: 'x' is no split; write train, validation, test"):
        read(write(tmp_path, part=["x" if row == 7 else "train" for row in range(ROWS)]) + "&split=column:part")


def test_rows_are_split_in_the_order_of_time(tmp_path):
    """Rows of the same day are never in two splits."""
    order = np.random.default_rng(0).permutation(ROWS)
    days = [str(datetime.date(2024, 1, 1) + datetime.timedelta(int(each) // 7)) for each in order]
    contents = read(write(tmp_path, day=days) + "&split=time:day")
    rows = rows_of(contents)
    assert sorted(every(rows)) == list(range(ROWS))
    times = {split: {days[row] for row in part} for split, part in rows.items()}
    assert max(times["train"]) < min(times["validation"]) and max(times["validation"]) < min(times["test"])
    assert [len(rows[split]) for split in SPLITS] == [63, 14, 23]  # the changes of the day next to 60 and 80
    assert "day" in [column.name for column in schema_of(contents).columns]


def test_no_group_is_in_two_splits(tmp_path):
    groups = [f"g{row % 13}" for row in range(ROWS)]
    contents = read(write(tmp_path, group=groups) + "&split=group:group")
    rows = rows_of(contents)
    parts = [{groups[row] for row in part} for part in rows.values()]
    assert sum(map(len, parts)) == 13 == len(set.union(*parts)) and 50 <= len(rows["train"]) <= 70
    assert "group" not in [column.name for column in schema_of(contents).columns]


@pytest.mark.parametrize(
    ("options", "columns", "error", "message"),
    [
        ("&split=year:y", {}, ConfigError, "split=year:y is no way to divide rows; choose from share, .* group:NAME"),
        ("&split=group", {}, ConfigError, "split=group is no way to divide rows"),
        ("&split=group:g", {}, DataError, r"has no column g \(split=group\): .*it has row, y"),
        ("&split=group:g", {"g": ["a", "b"] * 50}, DataError, "leaves no rows for .*; g has too few distinct values"),
        ("&split=time:g", {"g": ["a", "b"] * 50}, DataError, "needs a column of dates or numbers, but g is a category"),
        (
            "&split=time:g",
            {"g": ["", *range(99)]},
            DataError,
            "line 2, column g: it has no value, but split=time:g needs",
        ),
        ("&split=share:1,2", {}, ConfigError, "split=share:1,2 must be share:TRAIN,VALIDATION,TEST"),
        ("&delimiter=x", {}, ConfigError, "delimiter=x is no delimiter; choose from , ; tab"),
        ("&decimal=,", {}, ConfigError, "decimal=, is unknown; choose from point, comma"),
        ("&rare=0", {}, ConfigError, "rare=0 must be a whole number of rows, at least 1"),
        ("&categories=z", {}, DataError, r"has no column z \(categories\)"),
        ("&drop=row", {}, DataError, "has no column to learn from"),
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path, options, columns, error, message):
    with pytest.raises(error, match=message):
        read(write(tmp_path, **columns) + options)


# ------------------------------------------------------------------------------------------------- targets


def targets_of(contents, split="train"):
    return [{name: each[name] for name in ("label", "target") if name in each} for each in contents.splits[split]()]


def test_a_number_of_few_whole_values_is_a_class_and_a_number(tmp_path):
    contents = read(write(tmp_path, y=[(10, 2, 30)[row % 3] for row in range(ROWS)]))
    assert contents.features["label"].names == ["2", "10", "30"]
    for row, found in zip(rows_of(contents)["train"], targets_of(contents), strict=True):
        assert found == {"label": (1, 0, 2)[row % 3], "target": (10, 2, 30)[row % 3]}
    assert set(read(write(tmp_path) + "&numbers=y").features) == {"columns", "target", "source_row"}
    assert set(read(write(tmp_path) + "&categories=y").features) == {"columns", "label", "source_row"}


@pytest.mark.parametrize(
    ("y", "names"),
    [
        (["b", "A"] * 50, ["A", "b"]),
        (["Yes", "no"] * 50, ["no", "yes"]),
        ([f"{row}.5" for row in range(ROWS)], None),
        (range(ROWS), None),  # too many to be classes
    ],
)
def test_other_targets_are_a_class_or_a_number(tmp_path, y, names):
    contents = read(write(tmp_path, y=y))
    assert ("target" in contents.features) == (names is None)
    assert names is None or contents.features["label"].names == names


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([f"text {row}" for row in range(ROWS)], "y, the target, has 100 distinct texts in 100 rows, so it is neither"),
        (["a"] * ROWS, "y, the target, is always a; there is nothing to learn"),
        (["NA"] * ROWS, "y, the target, has no values"),
        ([f"1{row}e40" for row in range(ROWS)], r"line 2, column y: 1e\+41 is beyond float32"),
    ],
)
def test_a_target_that_cannot_be_learned_is_refused(tmp_path, y, message):
    with pytest.raises(DataError, match=message):
        read(write(tmp_path, y=y))


def test_the_target_must_be_named(tmp_path):
    dataset = write(tmp_path).partition("?")[0]
    with pytest.raises(ConfigError, match=r"lacks \?target=NAME, the column to predict: row, y"):
        read(dataset)
    with pytest.raises(DataError, match=r"has no column yy \(target\): did you mean y"):
        read(dataset + "?target=yy")


def test_rows_without_a_target_are_left_out_and_counted(tmp_path):
    contents = read(write(tmp_path, y=["" if row % 10 == 3 else row % 2 for row in range(ROWS)]))
    assert "10 rows without a value of y are left out" in contents.metadata["notes"]
    rows = every(rows_of(contents))
    assert sorted(rows) == [row for row in range(ROWS) if row % 10 != 3]
    # A row keeps the number of its line.
    assert all(each["source_row"] == int(each["columns"][0]) + 2 for each in contents.splits["train"]())


# -------------------------------------------------------------------------------------------------- levels


def test_levels_are_those_of_the_training_rows(tmp_path):
    """Rare and unseen ones are unknown, the level 0; a missing value that is not rare has a level."""
    names = ["common"] * 50 + ["often"] * 20 + [""] * 20 + [f"rare {row // 3}" for row in range(10)]
    names = [names[place] for place in np.random.default_rng(1).permutation(ROWS)]
    dataset = write(tmp_path, kind=names)
    contents = read(dataset)
    train = collections.Counter(names[row] or None for row in rows_of(contents)["train"])
    (category,) = schema_of(contents).categories
    assert category.levels == ("unknown", "common", *sorted(("often", None), key=lambda level: -train[level]))
    assert category.counts == (
        sum(train.values()) - sum(train[level] for level in category.levels),
        *map(train.get, category.levels[1:]),
    )
    for split, examples in contents.splits.items():
        for row, example in zip(rows_of(contents)[split], examples(), strict=True):
            level = names[row] or None
            assert example["categories"] == [category.levels.index(level) if level in category.levels else 0]
    assert "unknown" == schema_of(read(dataset + "&rare=1")).categories[0].levels[0]
    assert len(schema_of(read(dataset + "&rare=1")).categories[0].levels) > len(category.levels)


def test_a_category_without_a_frequent_level_is_left_out_and_said(tmp_path):
    contents = read(write(tmp_path, city=[f"town {row // 2}" for row in range(ROWS)]))
    assert "city is left out: no level has 5 training rows" in contents.metadata["notes"]
    schema = schema_of(contents)
    assert [column.name for column in schema.columns] == ["row"] and not schema.categories
    for new in ({"row": [3.5]}, {"row": [3.5], "city": ["town 1"]}):
        assert schema.encode(table_of(new))[0] == [[3.5]]


@pytest.mark.parametrize(
    ("code", "levels"),
    [(["1.0", "2", "3.0", ""] * 25, ["1", "2", "3"]), (["1.0", "1.5", "x", ""] * 25, ["1.0", "1.5", "x"])],
)
def test_a_whole_number_is_the_same_level_however_it_is_written(tmp_path, code, levels):
    """pandas writes 1.0 where a value of the column is missing, 1 where none is."""
    schema = schema_of(read(write(tmp_path, code=code) + "&categories=code"))
    (category,) = schema.categories
    assert sorted(filter(None, category.levels)) == sorted(["unknown", *levels]) and None in category.levels
    codes = lambda *values: schema.encode(table_of({"row": [0.5] * len(values), "code": values}))[1][:, 0].tolist()  # noqa: E731
    place = category.levels.index(levels[0])
    assert codes("1", "1.0", 1, 1.0, "1.00", "01") == [place] * 4 + [0, 0]
    assert codes(levels[1], levels[2]) == [category.levels.index(level) for level in levels[1:]]


def test_ten_thousand_categories(tmp_path):
    path = tmp_path / "many.csv"
    lines = [f"c{row % 10_000},{row % 7 + 0.5},{row % 3}\n" for row in range(20_000)]
    path.write_text("name,x,y\n" + "".join(lines))
    (category,) = schema_of(read(f"csv:{path}?target=y&rare=1&split=share:90,5,5")).categories
    assert 9_850 <= len(category.levels) <= 10_001 and len(set(category.levels)) == len(category.levels)


# --------------------------------------------------------------------------------------------------- leaks


def test_a_copy_of_the_target_is_named(tmp_path):
    random = np.random.default_rng(0)
    y = random.integers(0, 3, ROWS)
    named = lambda contents: [note.partition(" ")[0] for note in contents.metadata["notes"] if "likely leak" in note]  # noqa: E731
    columns = {
        "twice": 2.0 * y - 1,
        "word": np.array(["x", "y", "z"])[y],
        "half": y // 2,
        "noisy": y + 0.1 * random.normal(size=ROWS),
    }
    assert named(read(write(tmp_path, y=y, **columns))) == ["twice", "word"]
    price = random.lognormal(size=ROWS)
    columns = {"cents": np.round(100 * price, 9), "logarithm": np.log(price)}
    assert named(read(write(tmp_path, y=price, **columns))) == ["cents"]


def test_numbers_that_float32_would_blur_are_named(tmp_path):
    contents = read(write(tmp_path, stamp=[1_700_000_000 + 3 * row * row for row in range(ROWS)]))
    assert "stamp is rounded: float32 keeps 7 digits; subtract its smallest value" in contents.metadata["notes"]
    contents = read(write(tmp_path, y=[1_700_000_000.5 + 30 * row for row in range(ROWS)]))
    assert "y is rounded: float32 keeps 7 digits; subtract its smallest value" in contents.metadata["notes"]
    assert not contents.metadata["table"]["target"]["day_first"] and "row is rounded" not in str(contents.metadata)


def test_a_name_with_a_comma_can_be_named(tmp_path):
    path = tmp_path / "names.csv"
    path.write_text('"size, cm",b,y\n' + "".join(f"{row % 7},{row % 5}.5,{row % 2}\n" for row in range(ROWS)))
    for name in ("size%2C cm", '"size, cm"'):
        columns = schema_of(read(f"csv:{path}?target=y&drop={name}")).columns
        assert [column.name for column in columns] == ["b"]
        columns = schema_of(read(f"csv:{path}?target=y&categories=b,{name}")).columns
        assert [(column.name, column.kind) for column in columns] == [("size, cm", "category"), ("b", "category")]


# ------------------------------------------------------------------------------------- other files, new rows


def test_a_table_is_prepared_and_read_by_its_address(tmp_path, empty_cache):
    dataset = write(tmp_path, kind=["u", "v", "w", "v"] * 25, day=["2024-01-01", "2024-02-03"] * 50)
    source = open_split(dataset, "test")
    assert source.info.metadata["table"] == read(dataset).metadata["table"]
    arrays, examples = source.load(), list(read(dataset).splits["test"]())
    for name in ("columns", "categories", "label", "target", "source_row"):
        np.testing.assert_array_equal(arrays[name], [each[name] for each in examples])


def test_a_run_refuses_a_file_whose_target_has_other_classes(tmp_path, empty_cache):
    config = TabularClassificationConfig(dataset=write(tmp_path, y=["b", "c"] * 50))
    metadata = make_task(config).metadata
    write(tmp_path, y=["a", "b", "c", "c"] * 25)
    with pytest.raises(DataError, match="its classes are others now, like a; restore them, or begin a new run"):
        make_task(config, metadata).examples("test")


def test_parquet_gives_the_same_table(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    day = [datetime.date(2024, 1, 1 + row % 9) for row in range(ROWS)]
    number = [None if row % 11 == 5 else row / 3 for row in range(ROWS)]
    typed = {
        "day": day,
        "number": number,
        "flag": [row % 3 == 0 for row in range(ROWS)],
        "kind": ["u", None, "w", "v"] * 25,
    }
    as_text = {name: ["" if each is None else each for each in values] for name, values in typed.items()}
    rows = {"row": [row + 0.5 for row in range(ROWS)], "y": [row % 2 for row in range(ROWS)]}
    expected = read(write(tmp_path, **as_text))
    parquet.write_table(pyarrow.table(rows | typed), tmp_path / "own.parquet")
    found = read(f"parquet:{tmp_path}/own.parquet?target=y")
    assert found.metadata == expected.metadata
    for one, other in zip(found.splits["test"](), expected.splits["test"](), strict=True):
        for name in ("columns", "categories", "label"):
            np.testing.assert_array_equal(one[name], other[name])
        assert one["source_row"] == other["source_row"] - 1  # rows have no line of names before them
    (tmp_path / "own.parquet").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"own\.parquet cannot be read as parquet"):
        read(f"parquet:{tmp_path}/own.parquet?target=y")


def test_the_index_of_a_data_frame_is_left_out(tmp_path):
    """Which pandas writes where rows were taken out."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = {"row": [row + 0.5 for row in range(ROWS)], "y": [row % 2 for row in range(ROWS)]}
    index = {"__index_level_0__": [3 * row for row in range(ROWS)]}
    parquet.write_table(pyarrow.table(rows | index), tmp_path / "own.parquet")
    contents = read(f"parquet:{tmp_path}/own.parquet?target=y")
    assert [column.name for column in schema_of(contents).columns] == ["row"]
    assert "__index_level_0__ is left out: it is the index of a DataFrame" in contents.metadata["notes"]
    assert schema_of(contents).encode(table_of(tmp_path / "own.parquet"))[0][:, 0].tolist() == rows["row"]
    named = read(f"parquet:{tmp_path}/own.parquet?target=y&numbers=__index_level_0__")
    assert len(schema_of(named).columns) == 2


def test_times_in_nanoseconds_are_read_in_microseconds(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    times = np.array(["2024-01-01T12:00:00.123456789", "NaT"], "datetime64[ns]")
    columns = {"when": times, "in zone": pyarrow.array(times, pyarrow.timestamp("ns", "Europe/Berlin"))}
    parquet.write_table(pyarrow.table(columns), tmp_path / "own.parquet")
    table = tables.read_table(parse_address(f"parquet:{tmp_path}/own.parquet"))
    noon = datetime.datetime(2024, 1, 1, 12, 0, 0, 123456)
    assert table.columns["when"] == [noon, None]
    assert table.columns["in zone"] == [noon.replace(tzinfo=datetime.UTC), None]


def test_a_list_or_a_struct_in_parquet_is_left_out_and_no_target(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = {"row": [row + 0.5 for row in range(ROWS)], "y": [row % 2 for row in range(ROWS)]}
    nested = {"tags": [["a"], None, []] * 33 + [["b"]], "place": [{"x": row} for row in range(ROWS)]}
    parquet.write_table(pyarrow.table(rows | nested), tmp_path / "own.parquet")
    contents = read(f"parquet:{tmp_path}/own.parquet?target=y")
    assert [column.name for column in schema_of(contents).columns] == ["row"]
    assert contents.metadata["notes"] == [
        "tags is left out: its values are list",
        "place is left out: its values are dict",
    ]
    with pytest.raises(DataError, match=r"own\.parquet, row 1, column tags: it holds a list, not one value"):
        read(f"parquet:{tmp_path}/own.parquet?target=tags")


def test_parquet_without_pyarrow_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"needs the package pyarrow; install it .* or write the table as CSV"):
        read(f"parquet:{tmp_path}/own.parquet?target=y")


RAW = {"row": [1.5, None], "kind": ["v", "never seen"], "day": ["2024-02-03", None]}


@pytest.fixture
def schema(tmp_path):
    dataset = write(tmp_path, kind=["u", "v", "w", "v"] * 25, day=["2024-01-01", "2024-02-03"] * 50)
    return schema_of(read(dataset))


def test_new_rows_in_every_form_give_the_same_numbers(schema, tmp_path):
    (tmp_path / "new.csv").write_text(
        "day,kind,row,y\n2024-02-03,v,1.5,0\n,never seen,NA,1\n"
    )  # the target may be there
    columns = {name: np.array(values, object) for name, values in RAW.items()}
    dated = RAW | {
        "day": [datetime.datetime(2024, 2, 3), np.datetime64("NaT")],
        "row": np.array([1.5, np.nan], np.float32),
    }
    rows = [{name: values[row] for name, values in RAW.items()} for row in range(2)]
    levels = [category.levels for category in schema.categories]
    assert levels[0] == ("unknown", "v", "u", "w") or levels[0] == ("unknown", "v", "w", "u")
    for raw in (RAW, columns, dated, rows, str(tmp_path / "new.csv"), tmp_path / "new.csv"):
        numbers, codes = schema.encode(table_of(raw))
        np.testing.assert_array_equal(numbers, [[1.5, 19756], [np.nan, np.nan]])
        assert codes[0].tolist() == [1, levels[1].index("5"), levels[2].index("2")] and codes[1].tolist() == [0, 0, 0]


class Frame:
    """What a DataFrame offers."""

    columns = list(RAW)

    def to_dict(self, orient):
        assert orient == "list"
        return RAW


def test_a_data_frame_is_a_table(schema):
    np.testing.assert_array_equal(schema.encode(table_of(Frame()))[1], schema.encode(table_of(RAW))[1])


@pytest.mark.parametrize(
    ("raw", "error", "message"),
    [
        ({"row": [1], "Kind": ["u"], "day": [None]}, ConfigError, "predict lacks column kind; did you mean Kind"),
        (RAW | {"other": [1, 2]}, ConfigError, "predict has column other, which the training table had not"),
        (RAW | {"row": [1]}, ConfigError, r"the columns have row \(1\), kind \(2\), day \(2\) rows"),
        (RAW | {"row": 1}, ConfigError, "column row is int; give a list"),
        (RAW | {"row": [1, "x"]}, DataError, "predict, row 1, column row: 'x' is no number"),
        (RAW | {"day": ["x", None]}, DataError, "predict, row 0, column day: 'x' is no date"),
        ([[1, 2]], ConfigError, "list is no table with named columns"),
        (np.ones((2, 3)), ConfigError, "ndarray is no table with named columns"),
    ],
)
def test_new_rows_that_do_not_fit_are_refused(schema, raw, error, message):
    with pytest.raises(error, match=message):
        schema.encode(table_of(raw))

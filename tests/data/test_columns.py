"""Columns of a CSV file: how it is cut, the kinds that are inferred, numbers and dates; what is wrong, by its place."""

import dataclasses
import datetime
import math
import re

import numpy as np
import pytest

from flaxformer_lab.data.own.columns import (
    Choices,
    column_of,
    decimal_marks,
    infer,
    levels_of,
    numbers_of,
    parse_number,
    read_csv,
)
from flaxformer_lab.errors import DataError


def table_of(tmp_path, text, delimiter=None):
    path = tmp_path / "own.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_csv(path, delimiter)


def kinds(table, **choices):
    columns, left_out = infer(table, Choices(**choices))
    return {column.name: column.kind for column in columns} | dict.fromkeys(left_out, "left out")


def values(table, name, **choices):
    (column,) = [each for each in infer(table, Choices(**choices))[0] if each.name == name]
    return numbers_of(table, column)


# ------------------------------------------------------------------------------------------------- the file


@pytest.mark.parametrize(
    "text",
    [
        'a,b c,d\n1,"x, y",\n\n2,"say ""hi""",NA\n',
        '\ufeffa;b c;d\r\n1;x, y;null\r\n2;say ""hi"";\r\n'.replace(';say ""hi""', ';"say ""hi"""'),
        'a\tb c\td\n1\tx, y\tNaN\n2\t"say ""hi"""\t?',
        'a, b c , d\n1, "x, y", \n2, "say ""hi""", NA\n',
    ],
    ids=["commas", "semicolons, BOM, CRLF", "tabs", "spaces"],
)
def test_the_same_table_however_it_is_written(tmp_path, text):
    table = table_of(tmp_path, text)
    assert table.columns == {"a": ["1", "2"], "b c": ["x, y", 'say "hi"'], "d": [None, None]}


def test_a_row_has_the_line_in_which_it_begins(tmp_path):
    table = table_of(tmp_path, 'a,b\n1,"two\nlines"\n\n3,x\n')
    assert table.lines.tolist() == [2, 5] and table.columns["b"] == ["two\nlines", "x"]
    for delimiter in ("|", None):
        assert table_of(tmp_path, "a|b\n1|2\n", delimiter).columns == {"a": ["1"], "b": ["2"]}


def test_a_value_and_a_line_of_names_may_be_long(tmp_path):
    names = ",".join(f"column number {number}" for number in range(10_000))
    table = table_of(tmp_path, f'{names}\n"{"a" * 200_000}"{",1" * 9_999}\n')
    assert len(table.columns) == 10_000 and len(table.columns["column number 0"][0]) == 200_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "own.csv is empty"),
        (" \n\n", "own.csv is empty"),
        ("a,b\n", "has names but no rows"),
        ("a,b\n1,2\n3\n", "line 3: 1 values for 2 columns .column b is lacking"),
        ("a,b\n1,2\n3,4,5\n", "line 3: 3 values for 2 columns .after column b"),
        ("a,b,a\n1,2,3\n", "line 1: 2 columns are called a;"),
        ("a,,c\n1,2,3\n", "line 1: column 2 has no name"),
        ("1,2.5\n3,4\n", "line 1: numbers where the names"),
        ('a,b\n1,"x"y\n', "line 2: .*double quote"),
        ('a,b\n1,2\n3,"x\n', "line 3: unexpected end of data"),
        ("a,b\n1,caf\xe9\n".encode("latin-1"), "line 2, column b: 'caf\xe9' is not UTF-8"),
        ("caf\xe9,b\n1,2\n".encode("latin-1"), "line 1, column 1: 'caf\xe9' is not UTF-8"),
        ("a,b\n1,2\n".encode("utf-16"), "is UTF-16; save it as UTF-8"),
    ],
)
def test_a_file_that_is_no_table_is_one_clear_error(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        table_of(tmp_path, text)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"none\.csv cannot be read: No such file"):
        read_csv(tmp_path / "none.csv")


# ------------------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize(
    ("text", "decimal", "number"),
    [
        ("1.5", ".", 1.5),
        ("-.5e3", ".", -500),
        ("1,234,567.5", ".", 1234567.5),
        ("1,234", ".", 1234),
        ("1,234", ",", 1.234),
        ("1.234.567,5", ",", 1234567.5),
        ("1 234,5", ",", 1234.5),
        ("1\u202f234", ".", 1234),
        ("1'234.5", ".", 1234.5),
        ("12,34", ".", None),
        ("1,234 567", ".", None),
        ("1.5", ",", None),
        ("1_000", ".", None),
        ("0x10", ".", None),
        ("5%", ".", None),
        (7, ",", 7),
        (True, ".", None),
        (np.float32(0.5), ".", 0.5),
    ],
)
def test_numbers(text, decimal, number):
    assert parse_number(text, decimal) == number


def column(*texts):
    return "a;b\n" + "".join(f"{text};x\n" for text in texts)


def test_the_mark_of_the_fraction_is_what_fits_all_values(tmp_path):
    assert values(table_of(tmp_path, column("1.234,5", "2,25", "NA")), "a") == pytest.approx(
        [1234.5, 2.25, math.nan], nan_ok=True
    )
    assert values(table_of(tmp_path, column("1,234.5", "2.25")), "a").tolist() == [1234.5, 2.25]
    assert values(table_of(tmp_path, column("1.234", "2.5")), "a").tolist() == [1.234, 2.5]
    assert values(table_of(tmp_path, "a,b\n1.234,x\n2.345,y\n"), "a").tolist() == [1.234, 2.345]
    assert values(table_of(tmp_path, column("0,125", "-0,375")), "a").tolist() == [0.125, -0.375]  # no thousands


def test_a_number_that_can_be_read_in_two_ways_is_decided_by_other_columns_or_refused(tmp_path):
    with pytest.raises(
        DataError, match=r"line 2, column a: 1,234 can be 1\.234 or 1234; add decimal=point or decimal=c"
    ):
        infer(table_of(tmp_path, column("1,234", "2,345")), Choices())
    for decimal, expected in (("comma", [1.234, 2.345]), ("point", [1234, 2345])):
        assert values(table_of(tmp_path, column("1,234", "2,345")), "a", decimal=decimal).tolist() == expected
    assert values(table_of(tmp_path, "a;b\n1,234;0,5\n2,345;0,7\n"), "a").tolist() == [1.234, 2.345]
    assert values(table_of(tmp_path, "a;b\n1.234;0,5\n2.345;0,7\n"), "a").tolist() == [1234, 2345]
    assert values(table_of(tmp_path, "a;b\n1,234;0.5\n2,345;0.7\n"), "a").tolist() == [1234, 2345]
    assert kinds(table_of(tmp_path, column("1,234", "2,345")), categories=("a",))["a"] == "category"


def test_thousands_alone_are_refused_where_semicolons_separate_values(tmp_path):
    """As files with decimal commas have them."""
    text = "a;b\n999;x\n1.234;y\n12.345;z\n"
    with pytest.raises(
        DataError, match=r"line 3, column a: 1\.234 can be 1\.234 or 1234; add decimal=point or decimal=c"
    ):
        infer(table_of(tmp_path, text), Choices())
    assert values(table_of(tmp_path, text), "a", decimal="comma").tolist() == [999, 1234, 12345]
    assert values(table_of(tmp_path, text.replace(";", "|")), "a").tolist() == [999, 1.234, 12.345]
    assert kinds(table_of(tmp_path, text), drop=("a",)) == {"a": "left out", "b": "category"}
    assert column_of(table_of(tmp_path, text), "a", Choices()).kind == "number"  # whichever it is
    with pytest.raises(DataError, match="line 3, column a"):
        decimal_marks(table_of(tmp_path, text), Choices(), ["a"])
    assert "b" not in decimal_marks(table_of(tmp_path, text), Choices(), ["b"])  # `a` matters to nobody


def test_whole_numbers_have_the_mark_of_the_fractions_beside_them(tmp_path):
    """New rows may have a fraction, or thousands."""
    table = table_of(tmp_path, "a;b;c\n500;0,5;x\n599;0,7;y\n")
    (column, *_), _ = infer(table, Choices())
    assert numbers_of(table_of(tmp_path, "a;b\n1.500;1\n2,5;2\n"), column).tolist() == [1500, 2.5]
    assert column_of(table, "a", Choices()) == infer(table, Choices(), used=["b"])[0][0] == column
    point, both = (infer(table_of(tmp_path, f"a;b;c\n5;0.5;{c}\n6;0.7;{c}\n"), Choices())[0][0] for c in ("x", "0,5"))
    assert point.decimal == both.decimal == "."


# -------------------------------------------------------------------------------------------------- kinds


def test_kinds_are_inferred_from_the_values(tmp_path):
    rows = range(40)
    texts = {
        "id": [str(row + 100) for row in rows],
        "name": [f"person {row}" for row in rows],
        "number": [f"{row / 7:.3f}" if row % 9 else "n/a" for row in rows],
        "grade": [str(row % 4) for row in rows],
        "city": [("Ulm", "Bonn", "NULL")[row % 3] for row in rows],
        "mixed": ["12" if row else "x" for row in rows],
        "flag": [("yes", "No", "")[row % 3] for row in rows],
        "day": [f"2024-01-{row % 28 + 1:02d}" for row in rows],
        "same": ["7"] * 40,
        "none": [""] * 40,
        "once": ["x" if row == 3 else "" for row in rows],
    }
    lines = [",".join(texts), *(",".join(each) for each in zip(*texts.values(), strict=True))]
    table = table_of(tmp_path, "\n".join(lines))
    found = kinds(table)
    assert found == {
        "id": "left out",
        "name": "left out",
        "number": "number",
        "grade": "number",
        "city": "category",
        "mixed": "category",
        "flag": "boolean",
        "day": "date",
        "same": "left out",
        "none": "left out",
        "once": "category",  # a mark that only some rows have says something
    }
    reasons = infer(table, Choices())[1]
    assert reasons["id"] == "it counts the rows, like an identifier"
    assert reasons["name"] == "40 of 40 texts are distinct, like an identifier's"
    assert (reasons["same"], reasons["none"]) == ("it is always 7", "it has no values")
    chosen = kinds(table, numbers=("id", "same"), categories=("grade", "name"), drop=("city",))
    assert chosen | {"id": "number", "grade": "category", "name": "category", "city": "left out"} == chosen
    assert chosen["same"] == "left out"  # nothing can be learned from it, whatever it is


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("true false True", "boolean"),
        ("T f TRUE", "boolean"),
        ("y No YES", "boolean"),
        ("F N T", "category"),
        ("yes true no", "category"),
        ("t y", "category"),
    ],
)
def test_booleans_are_words_of_one_pair(tmp_path, words, kind):
    assert kinds(table_of(tmp_path, column(*words.split())))["a"] == kind


@pytest.mark.parametrize(
    ("text", "stray", "kind"),
    [
        ("{}.53", "n.k.", "number"),
        ("{},5", "5 EUR", "number"),
        ("{}", "1O", "number"),
        ("{}.3.2024", "31.2.2024", "date"),
    ],
)
def test_one_cell_of_another_kind_is_named_and_makes_no_category(tmp_path, text, stray, kind):
    values = [text.format(1 + row % 30) for row in range(60)]
    values[40] = stray
    table = table_of(tmp_path, "a;b\n" + "\n".join(f"{value};{row % 2}" for row, value in enumerate(values)))
    with pytest.raises(
        DataError, match=rf"line 42, column a: {re.escape(stray)} is no {kind}, but 59 of 60 values are"
    ):
        infer(table, Choices())
    assert kinds(table, categories=("a",))["a"] == "category"
    assert kinds(table, drop=("a",))["a"] == "left out"


def test_dates_without_dashes_are_dates_beside_one_with_them(tmp_path):
    """They are numbers as well."""
    days = [f"202401{1 + row % 28:02d}" for row in range(60)]
    days[40] = "2024-01-30"
    table = table_of(tmp_path, "a;b\n" + "\n".join(f"{day};{row % 2}" for row, day in enumerate(days)))
    assert kinds(table)["a"] == kinds(table, dates=("a",))["a"] == "date"


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"numbers": ("c",)}, r"own\.csv has no column c \(numbers\): .*it has a, b"),
        ({"numbers": ("a",), "drop": ("a",)}, "column a is named by numbers and by drop"),
        (
            {"numbers": ("b",)},
            "line 3, column b: 'x' is no number; correct it, or name the column in categories= or drop=",
        ),
        ({"dates": ("a",)}, "line 2, column a: '1.5' is no date like 2024-04-03"),
    ],
)
def test_what_the_user_says_is_held_against_the_values(tmp_path, choices, message):
    with pytest.raises(DataError, match=message):
        infer(table_of(tmp_path, "a,b\n1.5,2\n2,x\n"), Choices(**choices))


@pytest.mark.parametrize("rows", [1, 30])
def test_an_infinite_number_is_refused(tmp_path, rows):
    with pytest.raises(DataError, match="column a: 'inf' is infinite; correct it"):
        infer(table_of(tmp_path, "a,b\n" + "".join(f"{row},2\n" for row in range(rows)) + "inf,3\n"), Choices())


# -------------------------------------------------------------------------------------------------- dates


@pytest.mark.parametrize(
    "text",
    [
        "2024-02-29",
        "2024-02-29 18:00",
        "2024-02-29T18:00:00",
        "2024/02/29",
        "29.2.2024",
        "29/02/2024",
        "2024-02-29T18:00Z",
    ],
)
def test_dates_are_days_and_their_parts(tmp_path, text):
    table = table_of(tmp_path, f"a,b\n{text},x\n1999-12-31{'T00:00Z' if text.endswith('Z') else ''},y\n,z\n")
    (date, _), _ = infer(table, Choices())
    numbers = numbers_of(table, date)
    hour = 18 if "18" in text else 0
    assert numbers[0] == (datetime.date(2024, 2, 29) - datetime.date(1970, 1, 1)).days + hour / 24
    assert numbers[1] == 10956 and math.isnan(numbers[2])
    parts = {"a weekday": ["3", "4", None], "a month": ["2", "12", None]} | (
        {"a hour": ["18", "0", None]} if hour else {}
    )
    assert levels_of(table, date) == parts


@pytest.mark.parametrize(
    ("text", "hour", "minute"),
    [
        ("2024-01-13 9:05", 9, 5),
        ("2024-01-13T9:05:00+00:00", 9, 5),
        ("13.1.2024 9:05", 9, 5),
        ("1/13/2024 9:05", 9, 5),
        ("1/13/2024 9:05 AM", 9, 5),
        ("1/13/2024 9:05:00 pm", 21, 5),
        ("1/13/2024 12:05\u202fAM", 0, 5),
        ("2024-01-13 12:05 p.m.", 12, 5),
    ],
)
def test_hours_of_one_digit_and_halves_of_a_day_are_times(tmp_path, text, hour, minute):
    table = table_of(tmp_path, f"a,b\n{text},x\n,y\n")
    ((date, _), _) = infer(table, Choices())
    expected = datetime.datetime(2024, 1, 13, hour, minute) - datetime.datetime(1970, 1, 1)
    assert date.kind == "date" and numbers_of(table, date)[0] == expected / datetime.timedelta(1)


@pytest.mark.parametrize("time", ["13:05 PM", "0:05 AM", "24:05", "9:5", "9:05 XM", "9:05+9:00 AM"])
def test_what_is_no_time_makes_a_category(tmp_path, time):
    assert kinds(table_of(tmp_path, f"a,b\n2024-01-13 {time},x\n,y\n"))["a"] == "category"


@pytest.mark.parametrize("text", ["9999-12-31T23:59:59-05:00", "0001-01-01T00:00:00+05:00"])
def test_a_moment_beyond_the_years_of_utc_is_named(tmp_path, text):
    message = rf"own\.csv, line 3, column a: '{re.escape(text)}' is not in the years 1 to 9999 of UTC; correct it"
    with pytest.raises(DataError, match=message):
        infer(table_of(tmp_path, f"a,b\n2024-01-01T00:00Z,x\n{text},y\n"), Choices())


def test_the_order_of_day_and_month_is_what_fits_all_values(tmp_path):
    of = lambda *texts, **choices: values(table_of(tmp_path, column(*texts)), "a", **choices) - 19358  # noqa: E731
    assert of("3/4/2023", "25/4/2023").tolist() == [92, 114]  # days after 2023-01-01
    assert of("3/4/2023", "4/25/2023").tolist() == [62, 114]
    with pytest.raises(
        DataError, match="line 2, column a: 3/4/2023 can be 03 April 2023 or 04 March 2023; add day_first"
    ):
        of("3/4/2023", "5/6/2023")
    assert of("3/4/2023", "5/6/2023", day_first=False).tolist() == [62, 125]


def test_times_with_and_without_a_zone_are_not_mixed(tmp_path):
    with pytest.raises(DataError, match="line 3, column a: '2024-01-02' has no time zone, unlike those before"):
        infer(table_of(tmp_path, column("2024-01-01T00:00+02:00", "2024-01-02")), Choices())
    table = table_of(tmp_path, column("2024-01-01T01:00+02:00", "2024-01-02T00:00Z"))
    assert values(table, "a").tolist() == [19722 + 23 / 24, 19724]


def test_new_times_have_a_zone_where_those_of_training_have_one(tmp_path):
    """Otherwise their hours would be others without a word."""
    zoned, plain = "2024-01-01T01:00+02:00", "2024-01-01T01:00"
    for old, new, problem in (
        (zoned, plain, "no time zone, and .* add it"),
        (plain, zoned, "a time zone, and .* without"),
    ):
        date = column_of(table_of(tmp_path, column(old, old.replace("01", "02"))), "a", Choices())
        assert not np.isnan(numbers_of(table_of(tmp_path, column(old)), date)).any()
        with pytest.raises(DataError, match=rf"line 3, column a: '{re.escape(new)}' has {problem}"):
            numbers_of(table_of(tmp_path, column("NA", new)), date)
        assert np.isnan(numbers_of(table_of(tmp_path, column("NA")), date)).all()
        unknown = dataclasses.replace(date, has_zone=None)  # of a run of an earlier version
        assert len(numbers_of(table_of(tmp_path, column(new)), unknown)) == 1

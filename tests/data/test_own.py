"""Addresses of own files, how they are prepared and kept, and `npz:`."""

import itertools
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from flaxformer_lab.config import as_dict, parse_config
from flaxformer_lab.data.own import builder
from flaxformer_lab.data.own.address import Address, parse_address
from flaxformer_lab.data.own.contents import files_below
from flaxformer_lab.data.prepare import prepare
from flaxformer_lab.data.source import SPLITS, open_split, some_examples
from flaxformer_lab.errors import ConfigError, DataError
from flaxformer_lab.tasks import make_task


def save(path, number=20, **changes):
    """Rows whose first column is their number, and a label of two classes."""
    rows = np.stack([np.arange(number), np.full(number, 0.5)], axis=1)
    np.savez(path, **({"x": rows, "y": np.arange(number) % 2} | changes))
    return f"npz:{path}"


def first_column(dataset):
    return {split: open_split(dataset, split).load()["columns"][:, 0].tolist() for split in SPLITS}


# ------------------------------------------------------------------------------------------------ addresses


@pytest.mark.parametrize(
    ("dataset", "path", "options"),
    [
        ("npz:/data/a.npz", "/data/a.npz", {}),
        ("npz:/data/a b[1]#2%20&=?.npz", "/data/a b[1]#2%20&=?.npz", {}),
        ("npz:a.npz?split=share:80,10,10", "a.npz", {"split": "share:80,10,10"}),
        ("npz:C:/what?.npz?split=a%26b%25", "C:/what?.npz", {"split": "a&b%"}),
        ("csv:a.csv?drop=a%2C b,c%25&target=d%2Ce", "a.csv", {"drop": '"a, b",c%', "target": "d,e"}),
        ("csv:a.csv?drop=%22a, b%22,c", "a.csv", {"drop": '"a, b",c'}),
        ("npz:~/a.npz", str(Path("~/a.npz").expanduser()), {}),
        ("text:a.txt?split=it's 5?", "a.txt", {"split": "it's 5?"}),
    ],
)
def test_an_address_is_a_kind_a_path_and_options(dataset, path, options):
    address = parse_address(dataset)
    assert address == Address(dataset.partition(":")[0], Path.cwd() / path, options)
    assert parse_address(str(address)) == address


@pytest.mark.parametrize("name", ["lab_digits", "mnist:3.0.1", "mnist:3.*.*", "glue/cola:1.0.0", "huggingface:mnist"])
def test_a_name_of_tfds_is_no_address(name):
    assert parse_address(name) is None


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("npy:a.npz", "'npy' is no kind: did you mean npz.*own files are .*npz:PATH"),
        ("nonsense:/data/a", "'nonsense' is no kind: own files are"),
        ("data/a.npz", "did you mean npz:data/a.npz"),
        ("npz:", "has no path; write npz:PATH"),
        ("npz:https://example.org/a.npz", "is a URL; download it"),
        ("npz:a.npz?splits=1", "'splits' is no option of npz: did you mean split"),
        ("npz:a.npz?split=1&split=2", "split is given twice"),
        ("npz:a.npz?split=", "split is empty"),
    ],
)
def test_an_address_that_cannot_be_read_is_one_clear_error(dataset, message):
    with pytest.raises(ConfigError, match=f"task.dataset=.*{message}"):
        parse_address(dataset)


def test_a_config_has_the_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = parse_config({"task": {"name": "tabular_classification", "dataset": "npz:own/a.npz?split=share:8,1,1"}})
    assert config.task.dataset == f"npz:{tmp_path}/own/a.npz?split=share:8,1,1"
    monkeypatch.chdir("/")
    assert parse_config(as_dict(config)) == config


@pytest.mark.parametrize(
    "task", [{"name": "forecasting", "dataset": "ett:own/a.csv"}, {"name": "pretrained", "dataset": "tsv:own"}]
)
def test_a_config_has_the_absolute_path_of_files_that_one_task_reads(tmp_path, monkeypatch, task):
    monkeypatch.chdir(tmp_path)
    kind, _, path = task["dataset"].partition(":")
    config = parse_config({"task": task | ({"folder": "model"} if kind == "tsv" else {})})
    assert config.task.dataset == f"{kind}:{tmp_path}/{path}"
    monkeypatch.chdir("/")
    assert parse_config(as_dict(config)) == config


# ------------------------------------------------------------------------------------ prepared, once and again


def test_each_row_is_in_one_split_and_says_where_it_stands(empty_cache, tmp_path, capsys):
    dataset = save(tmp_path / "a [1] #?.npz")
    found = first_column(dataset)
    assert [len(rows) for rows in found.values()] == [12, 4, 4]
    assert sorted(itertools.chain(*found.values())) == list(range(20))
    arrays = open_split(dataset, "test").load()
    np.testing.assert_array_equal(arrays["source_row"], arrays["columns"][:, 0])
    np.testing.assert_array_equal(arrays["label"], arrays["source_row"] % 2)
    assert open_split(dataset, "test").name == f"{dataset} test"
    shares = first_column(f"{dataset}?split=share:0.5,0.25,0.25")
    assert [len(rows) for rows in shares.values()] == [10, 5, 5]
    assert capsys.readouterr().err.count("preparing npz:") == 2  # another option, another data set


def test_an_edited_source_is_prepared_again_and_a_touched_one_is_not(empty_cache, tmp_path, capsys, monkeypatch):
    path = tmp_path / "a.npz"
    dataset = save(path)
    before = first_column(dataset)
    capsys.readouterr()
    os.utime(path, ns=(1, 1))
    assert first_column(dataset) == before and capsys.readouterr().err == ""
    with monkeypatch.context() as patch:  # its content was read once, and its new time noted
        patch.setattr(builder, "_digest", None)
        assert first_column(dataset) == before
    save(path, x=np.stack([100 + np.arange(20), np.zeros(20)], axis=1))
    assert sorted(itertools.chain(*first_column(dataset).values())) == list(range(100, 120))
    assert "changed since it was prepared\npreparing npz:" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["own/columns.py", "own/contents.py", "image_files.py"])
def test_other_code_that_reads_prepares_again(tmp_path, monkeypatch, name):
    shutil.copytree(Path(builder.__file__).parents[1], copy := tmp_path / "data")
    monkeypatch.setattr(builder, "__file__", str(copy / "own" / "builder.py"))
    before = builder._readers.__wrapped__()
    (copy / name).write_text((copy / name).read_text() + "# of a later version")
    assert builder._readers.__wrapped__() != before


def test_some_examples_of_a_sorted_source_have_all_classes(empty_cache, tmp_path):
    source = open_split(save(tmp_path / "sorted.npz", 60, y=np.arange(60) // 20), "train")
    few, more = (some_examples(source, number).load() for number in (9, 18))
    assert set(few["label"]) == {0, 1, 2} and set(few["source_row"]) < set(more["source_row"])
    assert len(some_examples(source, len(source))) == len(source)


def test_where_the_source_is_gone_its_copy_serves(empty_cache, tmp_path, capsys):
    dataset = save(tmp_path / "gone.npz")
    before = first_column(dataset)
    (tmp_path / "gone.npz").unlink()
    assert first_column(dataset) == before
    assert capsys.readouterr().err.count("gone.npz is gone; its prepared copy is used") == 1
    with pytest.raises(DataError, match=r"task.dataset=npz:.*other\.npz: .*other\.npz does not exist; give the path"):
        prepare(f"npz:{tmp_path}/other.npz")


def test_a_damaged_copy_is_told(empty_cache, tmp_path):
    dataset = save(tmp_path / "a.npz")
    folder = Path(prepare(dataset).data_dir)
    (folder / "features.json").write_text("{}")
    with pytest.raises(DataError, match=r"is damaged .*features\.json.*delete that folder"):
        prepare(dataset)


def test_a_folder_is_read_with_its_links_but_not_in_a_circle(tmp_path):
    for name in ("b/2", "b/.hidden/3", "a/1", ".4", "elsewhere/5"):
        path = tmp_path / ("f" if name != "elsewhere/5" else "") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / "f" / "b" / "up").symlink_to(tmp_path / "f")
    (tmp_path / "f" / "link").symlink_to(tmp_path / "elsewhere")
    assert [str(file.relative_to(tmp_path / "f")) for file in files_below(tmp_path / "f")] == ["a/1", "b/2", "link/5"]
    assert files_below(tmp_path / "f" / "a" / "1") == [tmp_path / "f" / "a" / "1"]


# ---------------------------------------------------------------------------------------------------- npz


@pytest.mark.parametrize(
    ("rows", "labels", "message"),
    [
        (np.ones((20, 2)), np.where(np.arange(20) == 17, -1, np.arange(20) % 2), "label of row 17 is -1"),
        (np.where(np.arange(40).reshape(20, 2) == 27, np.nan, 1), np.arange(20) % 2, r"columns\[1\] of row 13 is nan"),
        (np.ones((20, 2)), np.linspace(0, 1, 20), "has no label of fixed shape.* label is float32"),
    ],
)
def test_values_that_cannot_be_used_are_named_by_their_row_in_the_file(empty_cache, tmp_path, rows, labels, message):
    np.savez(tmp_path / "a.npz", x=rows, y=labels)
    config = parse_config({"task": {"name": "tabular_classification", "dataset": f"npz:{tmp_path}/a.npz"}})
    with pytest.raises((DataError, ConfigError), match=rf"npz:{tmp_path}/a\.npz.*{message}"):
        task = make_task(config.task)
        for split in SPLITS:
            task.examples(split)


def test_arrays_of_splits_keep_them(empty_cache, tmp_path):
    rows = np.arange(40, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3, 1), np.uint8)
    labels = np.array([[b"no"], [b"yes"]])[np.arange(40) % 2]
    path = tmp_path / "a.npz"
    parts = {"x_train": rows[:25], "x_test": rows[25:], "train_labels": labels[:25], "y_test": labels[25:]}
    np.savez(path, **parts, note=np.zeros(3))
    arrays = {split: open_split(f"npz:{path}", split).load() for split in SPLITS}
    numbers = {split: each["image"][:, 0, 0, 0].tolist() for split, each in arrays.items()}
    assert numbers["test"] == list(range(25, 40))
    assert len(numbers["validation"]) == 5 and sorted(numbers["train"] + numbers["validation"]) == list(range(25))
    assert arrays["test"]["source_row"].tolist() == list(range(15))
    assert arrays["test"]["image"].shape == (15, 2, 3, 1) and arrays["test"]["image"].dtype == np.uint8
    source = open_split(f"npz:{path}", "test")
    assert source.info.features["label"].names == ["no", "yes"]
    np.testing.assert_array_equal(arrays["test"]["label"], np.arange(25, 40) % 2)
    assert source.info.metadata["unused"] == ["note"]


ROWS = np.zeros((20, 2))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": ROWS}, "has the arrays a, no inputs; write np.savez"),
        ({"x": ROWS}, "labels are missing beside x"),
        ({"x": ROWS, "y": np.zeros(19)}, "x has 20 rows, but y 19"),
        ({"x": ROWS, "images": ROWS, "y": np.zeros(20)}, "x and images are both x; keep one"),
        ({"x": np.zeros(20), "y": np.zeros(20)}, r"array x has shape \(20,\) \(float64\); inputs are numbers"),
        ({"x": ROWS.astype(str), "y": np.zeros(20)}, "array x has shape .*; inputs are numbers"),
        ({"x": ROWS, "y": ROWS}, r"array y has shape \(20, 2\) .*labels are one number or text"),
        ({"x": np.array([{}] * 20), "y": np.zeros(20)}, "array x cannot be read .*allow_pickle"),
        ({"x": ROWS, "y": np.zeros(20), "x_test": ROWS, "y_test": np.zeros(20)}, "x belongs to no split, beside test"),
        ({"x_train": ROWS, "y_train": np.zeros(20), "x_test": ROWS[:, :1], "y_test": np.zeros(20)}, "must be alike"),
        ({"x_test": ROWS, "y_test": np.zeros(20)}, "has no train, but test; add it"),
        ({"x": ROWS[:2], "y": np.zeros(2)}, "too few examples, 2, to divide"),
        ({"x": ROWS, "y": np.array(["a", " b"] * 10)}, "class ' b' .*name it another way"),
        ({"x": np.full((20, 2), 2**40), "y": np.zeros(20)}, "values beyond 32 bits"),
    ],
)
def test_arrays_that_cannot_be_used_are_one_clear_error(empty_cache, tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=rf"npz:{tmp_path}/a\.npz.*{message}"):
        prepare(f"npz:{tmp_path}/a.npz")


def test_other_files_are_no_npz(empty_cache, tmp_path):
    (tmp_path / "a.npz").write_text("a,b\n")
    np.save(tmp_path / "b.npy", ROWS)
    save(tmp_path / "c.npz")
    content = (tmp_path / "c.npz").read_bytes()
    (tmp_path / "c.npz").write_bytes(content[:200] + bytes(20) + content[220:])
    for name, message in (("a.npz", "is no npz file"), ("b.npy", "is no npz file"), ("c.npz", "is damaged .*CRC")):
        with pytest.raises(DataError, match=f"{name} {message}"):
            prepare(f"npz:{tmp_path}/{name}")


@pytest.mark.parametrize("split", ["share:1,2", "share:0,1,1", "share:a,b,c", "column:0"])
def test_shares_are_three_positive_numbers(empty_cache, tmp_path, split):
    with pytest.raises(ConfigError, match=f"split={split} must be share:TRAIN,VALIDATION,TEST"):
        prepare(f"{save(tmp_path / 'a.npz')}?split={split}")

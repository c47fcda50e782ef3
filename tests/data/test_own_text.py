"""`text:PATH`: files and folders of text, in splits that share no text."""

import pytest

from flaxformer_lab.data.prepare import prepare
from flaxformer_lab.data.source import SPLITS, open_split
from flaxformer_lab.errors import DataError


def texts(dataset):
    return {split: {each["file"]: each["text"] for each in open_split(dataset, split).records()} for split in SPLITS}


def test_a_file_is_cut_at_ends_of_lines(empty_cache, tmp_path):
    lines = [f"line {number:04d} of many: it is ä €\n" for number in range(1000)]
    (tmp_path / "a b.md").write_bytes(b"\xef\xbb\xbf" + "".join(lines).replace("\n", "\r\n").encode())
    found = texts(f"text:{tmp_path}/a b.md")
    parts = [found[split]["a b.md"] for split in SPLITS]
    assert "".join(parts) == "".join(lines)
    assert all(part.endswith("\n") for part in parts)
    assert [part.count("\n") for part in parts] == pytest.approx([600, 200, 200], abs=1)
    shares = texts(f"text:{tmp_path}/a b.md?split=share:90,5,5")
    assert shares["test"]["a b.md"].count("\n") == pytest.approx(50, abs=1)


def test_few_files_are_each_cut_and_many_are_whole(empty_cache, tmp_path):
    few, many = tmp_path / "few", tmp_path / "many"
    for folder, number in ((few, 3), (many, 20)):
        (folder / "deep").mkdir(parents=True)
        for each in range(number):
            (folder / "deep" / f"{each}.txt").write_text(f"{each:02d}" * 100)
    (many / "copy of 3.txt").write_text("03" * 100)
    (many / "empty.txt").write_text(" \n")
    found = texts(f"text:{few}")
    for split, length in zip(SPLITS, (120, 40, 40), strict=True):
        assert {file: len(text) for file, text in found[split].items()} == {f"deep/{n}.txt": length for n in range(3)}
    found = texts(f"text:{many}")
    files = [file for split in SPLITS for file in found[split]]
    assert sorted(files) == sorted(["copy of 3.txt", *(f"deep/{n}.txt" for n in range(20))])
    assert sum("03" * 100 in each.values() for each in found.values()) == 1  # both copies in one split
    assert [len(set(found[split].values())) for split in SPLITS] == [12, 4, 4]


def test_subfolders_of_splits_keep_them_and_share_no_text(empty_cache, tmp_path):
    root = tmp_path / "f"
    for name in ("train/a.txt", "train/b.txt", "test/c.txt"):
        (root / name).parent.mkdir(exist_ok=True, parents=True)
        (root / name).write_text(name * 50)
    (root / "readme.md").write_text("About these texts.")
    found = texts(f"text:{root}")
    assert found["test"] == {"c.txt": "test/c.txt" * 50}
    assert {file: len(text) for file, text in found["validation"].items()} == {"a.txt": 110, "b.txt": 110}
    assert found["train"]["a.txt"] + found["validation"]["a.txt"] == "train/a.txt" * 50
    for other, text, message in [
        ("test/d.txt", "train/b.txt" * 50, r"test/d\.txt and train/b\.txt are the same text; take one of them away"),
        ("e.txt", "e", "e.txt is beside test, train, so in no split; move it"),
        ("val/f.txt", "f", None),
        ("dev/g.txt", "g", "dev is beside test, train, val, so in no split"),
    ]:
        (root / other).parent.mkdir(exist_ok=True)
        (root / other).write_text(text)
        if message is None:
            assert texts(f"text:{root}")["validation"] == {"f.txt": "f"}
            continue
        with pytest.raises(DataError, match=message):
            prepare(f"text:{root}")
        (root / other).unlink()


def test_texts_that_cannot_be_used_are_one_clear_error(empty_cache, tmp_path, capsys):
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "readme.md").write_text("text")
    (tmp_path / "latin.txt").write_bytes("one\ntwo\nthré\n".encode("latin-1"))
    (tmp_path / "short.txt").write_text("ab")
    (tmp_path / "blank.txt").write_text(" \n ")
    for name, message in [
        ("f", r"f has no \.txt file with text"),
        ("latin.txt", r"latin\.txt is not UTF-8: byte 0xe9 at position 11, line 3; convert it"),
        ("short.txt", r"too few characters, 2: test has no text"),
        ("blank.txt", r"blank\.txt has no text"),
    ]:
        with pytest.raises(DataError, match=message):
            prepare(f"text:{tmp_path}/{name}")
    assert "1 files are no .txt and left out, like" in capsys.readouterr().err

import errno
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import registered

from flaxformer_lab import registry
from flaxformer_lab.data import prepare as prepare_module
from flaxformer_lab.data.builders import CHECKSUMS
from flaxformer_lab.data.prepare import prepare
from flaxformer_lab.data.source import SPLITS, open_split
from flaxformer_lab.errors import DataError

PREPARE = "from flaxformer_lab.data.prepare import prepare; "
PREPARE_AND_TELL = """
import resource, signal, sys
from flaxformer_lab.data.prepare import prepare
from flaxformer_lab.errors import DataError
{before}
try:
    prepare("lab_digits")
except DataError as error:
    print(error)
"""


def digits():
    return [open_split("lab_digits", split).load() for split in SPLITS]


def assert_same(left, right):
    for a, b in zip(left, right, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_the_first_use_builds_and_says_so_in_one_line(empty_cache, capfd):
    builder = prepare("lab_digits")
    out, err = capfd.readouterr()
    assert out == ""
    assert err == f"preparing lab_digits/1.0.0 in {empty_cache}/datasets/lab_digits/1.0.0 ...\n"
    assert Path(builder.data_dir).parents[2] == empty_cache
    assert prepare("lab_digits:1.0.0").data_dir == builder.data_dir
    assert capfd.readouterr() == ("", "")


def test_what_is_built_twice_is_the_same(empty_cache, prepared):
    folder = Path(prepare("lab_digits").data_dir)
    first = prepared / "datasets" / "lab_digits" / "1.0.0"
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in first.iterdir())
    for path in folder.iterdir():
        assert path.read_bytes() == (first / path.name).read_bytes()


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("nonesuch", f"task.dataset='nonesuch' is not a data set of TFDS; {', '.join(registry.names('dataset'))} ship"),
        ("lab_digit", "nearest: lab_digits"),
        ("minst/3d:1.0.0", "nearest: .*mnist"),
        ("lab_speeches:7.0.0", "cannot be loaded at version 7.0.0, only: 1.0.0"),
        ("mnist/handwritten", "BuilderConfig handwritten not found"),
        ("", "is not a TFDS name; write name, name/config"),
        ("../../etc", "is not a TFDS name"),
        ("/etc/passwd", "is not a TFDS name"),
        ("mnist/data_dir=/tmp", "is not a TFDS name"),
        ("huggingface:mnist", "is not a TFDS name"),
        ("lab digits", "is not a TFDS name"),
        ("LabDigits", "is not a TFDS name"),
        ("imagenet2012", "Manual directory .* does not exist"),
        ("coco/2017", "without the package tensorflow .*file_format=array_record, and copy it"),
    ],
)
def test_a_name_that_cannot_be_opened_is_one_clear_error(empty_cache, no_network, dataset, message):
    with pytest.raises(DataError, match=message) as caught:
        prepare(dataset)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


@pytest.mark.parametrize("dataset", ["mnist", "cifar10", "imdb_reviews"])
def test_without_a_network_the_error_names_the_sets_that_need_none(empty_cache, no_network, dataset, capfd):
    shipped = ", ".join(registry.names("dataset"))
    with pytest.raises(DataError, match=f"{dataset} cannot be downloaded .*{shipped} need no network"):
        prepare(dataset)
    out, err = capfd.readouterr()
    assert out == "" and re.fullmatch(rf"preparing {dataset}/\S+ in \S+ ...\n", err)


def test_a_download_that_is_not_the_expected_one_is_told(empty_cache, no_network):
    manual = empty_cache.parent / "tfds" / "downloads" / "manual"
    manual.mkdir(parents=True)
    for info in tfds.builder_cls("mnist").url_infos.values():
        (manual / info.filename).write_bytes(b"<html>Please log in</html>")
    with pytest.raises(DataError, match=r"the download of mnist is not what TFDS expects .*wrong checksum"):
        prepare("mnist")


def test_two_processes_at_once_build_once(empty_cache, start, prepared):
    script = PREPARE + "import sys; print(prepare('lab_digits').data_dir, 'tensorflow' in sys.modules)"
    processes = [start(script), start(script)]
    results = [(*process.communicate(timeout=120), process.returncode) for process in processes]
    folder = empty_cache / "datasets" / "lab_digits" / "1.0.0"
    assert [out for out, _, _ in results] == [f"{folder} False\n"] * 2
    assert [code for _, _, code in results] == [0, 0]
    assert sorted(err.count("preparing") for _, err, _ in results) == [0, 1]
    assert [path.name for path in folder.parent.iterdir()] == ["1.0.0"]


def in_tmpfs(folder):
    """A command that runs another with a disk of 200 kB at `folder`, where the system lets us mount one."""
    prefix = ["unshare", "-rm", "sh", "-c", f'mount -t tmpfs -o size=200k none {folder} && exec "$@"', "sh"]
    if not shutil.which("unshare") or subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("a file system cannot be mounted here")
    return prefix


@pytest.mark.parametrize("how", ["disk", "file size"])
def test_a_full_disk_is_told_and_leaves_nothing_that_looks_whole(empty_cache, start, how):
    empty_cache.mkdir()
    if how == "disk":
        prefix, before, reason = in_tmpfs(empty_cache), "", "No space left on device"
    else:
        prefix, reason = [], "File too large"
        before = (
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (10**5,) * 2)"
        )
    process = start(PREPARE_AND_TELL.format(before=before), *prefix)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert re.fullmatch(rf"no space to prepare lab_digits in {empty_cache}\S* \(.*{reason}.*\); free some.*\n", out)
    if how == "file size":
        assert not any((empty_cache / "datasets" / "lab_digits").iterdir())
    assert [len(split["label"]) for split in digits()] == [1197, 300, 300]


def test_a_build_that_is_killed_is_begun_again(empty_cache, start):
    before = "import os; from tensorflow_datasets.core.dataset_info import DatasetInfo\n"
    before += "DatasetInfo.write_to_directory = lambda *_: os._exit(9)"
    process = start(PREPARE_AND_TELL.format(before=before))
    process.communicate(timeout=120)
    assert process.returncode == 9
    folder = empty_cache / "datasets" / "lab_digits"
    (left,) = folder.iterdir()
    assert left.name.startswith("incomplete.") and any(left.iterdir())
    assert [len(split["label"]) for split in digits()] == [1197, 300, 300]
    assert [path.name for path in folder.iterdir()] == ["1.0.0"]


def test_a_build_that_ended_before_its_digests_is_begun_again(empty_cache, capfd):
    folder = Path(prepare("lab_digits").data_dir)
    (folder / CHECKSUMS).unlink()
    (path,) = folder.glob("*-test.array_record*")
    path.write_bytes(b"")
    assert [len(split["label"]) for split in digits()] == [1197, 300, 300]
    assert capfd.readouterr().err.count("preparing") == 2


def flip(place):
    def change(path):
        content = bytearray(path.read_bytes())
        content[int(place * (len(content) - 1))] ^= 1
        path.write_bytes(content)

    return change


DAMAGES = {
    "emptied": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "deleted": Path.unlink,
    "flipped at the start": flip(0),
    "flipped inside": flip(0.37),
    "flipped at the end": flip(1),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_any_file_is_told_or_mended(prepared, tmp_path, monkeypatch, damage):
    monkeypatch.setenv("FLAXFORMER_LAB_CACHE", str(prepared))
    original = digits()
    names = [path.name for path in (prepared / "datasets" / "lab_digits" / "1.0.0").iterdir()]
    assert len(names) == 8
    for number, name in enumerate(names):
        cache = tmp_path / str(number)
        shutil.copytree(prepared / "datasets" / "lab_digits", cache / "datasets" / "lab_digits")
        monkeypatch.setenv("FLAXFORMER_LAB_CACHE", str(cache))
        folder = cache / "datasets" / "lab_digits" / "1.0.0"
        DAMAGES[damage](folder / name)
        try:
            assert_same(digits(), original)
        except DataError as error:
            assert re.match(rf"lab_digits in {folder} is damaged .*delete that folder", str(error))
        else:  # Without digests the set is built again; after the last of them, a line may end in another way. So it is
            # where it seems to be of another source.
            assert name == ".source" or (damage, name) in {("deleted", CHECKSUMS), ("flipped at the end", CHECKSUMS)}


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("damage", ["emptied", "deleted", "cut"])
def test_damage_to_what_tfds_says_of_other_sets_is_told(empty_cache, name, damage):
    folder = Path(prepare("tiny_shapes/train").data_dir)
    DAMAGES[damage](folder / name)
    try:
        assert len(open_split("tiny_shapes/train", "test")) == 4
    except DataError as error:
        assert re.search(r"damaged.*delete", str(error)) and str(folder.parents[1]) in str(error)
    else:
        assert name == "features.json"  # The builder knows its features without it.


def test_a_cache_that_is_no_folder_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FLAXFORMER_LAB_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"has no access to .*Not a directory.*set FLAXFORMER_LAB_CACHE to a folder"):
        prepare("lab_digits")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_cache_that_cannot_be_written_is_told(empty_cache, monkeypatch, code):
    def refuse(*arguments, **keywords):
        raise OSError(code, "refused")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(DataError, match=r"has no access to .*set FLAXFORMER_LAB_CACHE to a folder that can be written"):
        prepare("lab_digits")
    with pytest.raises(DataError, match=r"has no access to .*set TFDS_DATA_DIR to a folder that can be written"):
        prepare("tiny_shapes")


def test_a_copy_that_only_tensorflow_can_read_is_built_again_beside_it(empty_cache):
    theirs = Path(prepare("tiny_shapes").data_dir)
    for path in theirs.glob("*array_record*"):
        path.rename(path.with_name(path.name.replace("array_record", "tfrecord")))
    info = theirs / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    kept = {path: path.read_bytes() for path in theirs.iterdir()}
    ours = Path(prepare("tiny_shapes").data_dir)
    assert ours.is_relative_to(empty_cache) and not theirs.is_relative_to(empty_cache)
    assert len(open_split("tiny_shapes", "train")) == 40
    assert {path: path.read_bytes() for path in theirs.iterdir()} == kept


def test_downloads_do_not_wait_forever(empty_cache, monkeypatch):
    seen = {}

    def open_url(url, **keywords):
        seen.update(keywords, retries=prepare_module.downloader.MAX_RETRIES)
        raise ConnectionError("no network")

    before = prepare_module.downloader.MAX_RETRIES
    monkeypatch.setattr(prepare_module.downloader, "_open_url", open_url)
    with pytest.raises(DataError, match="cannot be downloaded"):
        prepare("mnist")
    assert seen["timeout"] <= 30 and seen["retries"] <= 3
    assert prepare_module.downloader.MAX_RETRIES == before and prepare_module.downloader._open_url is open_url


@pytest.mark.parametrize("name", ["seed[1]", "a*", "ä {x} 100%"])
def test_data_folders_of_any_name(tmp_path, monkeypatch, name):
    monkeypatch.setenv("FLAXFORMER_LAB_CACHE", str(tmp_path / name / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / name / "tfds"))
    for _ in range(2):  # prepared, then found again
        assert len(open_split("tiny_shapes/train:1.2.0", "train")) == 32
        assert len(open_split("tiny_shapes/train", "train")) == 32
        assert len(open_split("lab_wine", "train")) == 108


OWN_BUILDER = """
from pathlib import Path
import numpy as np
import tensorflow_datasets as tfds
from flaxformer_lab.registry import register

FACTOR = {factor}

@register("dataset", "own_{name}")
class Own{Name}(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    SOURCES = ({path!r},)

    def _info(self):
        features = {{"columns": tfds.features.Tensor(shape=(1,), dtype=np.float32), "label": np.int64}}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {{"train": self._generate_examples()}}

    def _generate_examples(self):
        for n, text in enumerate(Path(self.SOURCES[0]).read_text().split()):
            yield n, {{"columns": np.full(1, FACTOR * float(text), np.float32), "label": n % 2}}
"""


def test_a_source_that_was_edited_under_the_same_version_is_prepared_again(empty_cache, tmp_path, own_parts, capsys):
    numbers, builder = tmp_path / "numbers.txt", tmp_path / "own.py"
    numbers.write_text("1 " * 20)

    def total(factor):
        own_parts()
        registered._DATASET_REGISTRY.pop("own_edited", None)
        builder.write_text(OWN_BUILDER.format(name="edited", Name="Edited", factor=factor, path=str(numbers)))
        registry.import_parts(str(builder))
        found = open_split("own_edited", "train").load()["columns"]
        return float(found.sum()), "changed since it was prepared" in capsys.readouterr().err

    assert total(1) == (16, False)
    assert total(1) == (16, False)
    numbers.write_text("2 " * 20)
    assert total(1) == (32, True)
    assert total(3) == (96, True)
    assert total(3) == (96, False)
    numbers.unlink()
    with pytest.raises(DataError, match=r"own_edited is built from .*numbers\.txt, which cannot be read"):
        total(3)


def test_a_copy_that_does_not_say_what_it_was_built_from_is_taken_as_it_is(empty_cache, capsys):
    folder = Path(prepare("lab_wine").data_dir)
    (folder / ".source").unlink()
    capsys.readouterr()
    assert prepare("lab_wine").data_dir == str(folder) and capsys.readouterr().err == ""
    assert (folder / ".source").exists()


def test_what_other_threads_print_while_data_are_opened_is_seen_then_and_afterwards(capsys):
    """An ablation opens the next cell's data while it reports the last one's result."""
    first_is_in, may_leave, before = threading.Event(), threading.Event(), sys.stdout

    def first():
        with prepare_module.quiet():
            print("of TFDS")
            first_is_in.set()
            may_leave.wait(10)

    def second():
        with prepare_module.quiet():
            print("of TFDS")

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert first_is_in.wait(10)
    threads[1].start()
    print("one result")
    may_leave.set()
    for thread in threads:
        thread.join(10)
    print("another")
    assert sys.stdout is before and capsys.readouterr().out == "one result\nanother\n"

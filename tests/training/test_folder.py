import dataclasses
import json
import os
from pathlib import Path

import pytest

from flaxformer_lab.ablation.store import Store
from flaxformer_lab.config import as_dict
from flaxformer_lab.errors import ConfigError, RunError
from flaxformer_lab.training.folder import RunFolder, write_atomic

FACTS = {"image_shape": [8, 8, 1], "num_classes": 10}


def content(path):
    return {file.relative_to(path): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture
def claimed(plain, tmp_path):
    """A folder that belongs to a run."""
    folder = RunFolder(tmp_path / "run")
    folder.claim(plain(), FACTS)
    return folder


# ---------------------------------------------------------------------------------------------- claiming


def test_a_claimed_folder_gives_back_config_and_facts(claimed, rich, plain):
    assert claimed.read() == (plain(), FACTS)
    assert json.loads((claimed.path / "config.json").read_text()) == as_dict(plain())


def test_missing_parents_are_made(plain, tmp_path):
    RunFolder(tmp_path / "a" / "b" / "run").claim(plain(), FACTS)
    assert (tmp_path / "a" / "b" / "run" / "config.json").is_file()


def test_the_config_may_claim_its_folder_again(claimed, plain):
    before = content(claimed.path)
    claimed.claim(plain(), FACTS)
    assert content(claimed.path) == before


def test_another_config_is_refused_with_the_difference(claimed, plain):
    before = content(claimed.path)
    other = plain({"optimizer.learning_rate": 0.25, "model.attention.num_heads": 1})
    with pytest.raises(ConfigError) as caught:
        claimed.claim(other, FACTS)
    message, *differences = str(caught.value).splitlines()
    assert str(claimed.path) in message and "another config" in message and "--workdir" in message
    assert sorted(line.strip() for line in differences) == [
        "model.attention.num_heads: 4 there, 1 now",
        "optimizer.learning_rate: 0.1 there, 0.25 now",
    ]
    assert content(claimed.path) == before


def test_another_task_is_refused_with_the_difference(claimed, plain):
    text = {"name": "language_modelling", "dataset": "lab_speeches"}
    other = plain({"task": text, "model.causal": True})
    with pytest.raises(ConfigError, match=r"task\.patch_size: 4 there, - now"):
        claimed.claim(other, FACTS)


def test_a_folder_with_other_files_is_refused_and_left_alone(plain, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match=r"holds files but no config\.json.*choose another --workdir"):
        RunFolder(tmp_path).claim(plain(), FACTS)
    assert content(tmp_path) == {(tmp_path / "thesis.tex").relative_to(tmp_path): b"years of work"}


def test_what_an_interrupted_claim_left_is_claimed(plain, tmp_path):
    (tmp_path / "metadata.json").write_text("{}")
    (tmp_path / "config.json.4711.partial").write_text('{"model":')
    RunFolder(tmp_path).claim(plain(), FACTS)
    assert RunFolder(tmp_path).read() == (plain(), FACTS)
    assert set(content(tmp_path)) == {Path("config.json"), Path("metadata.json")}


def test_what_a_killed_run_left_half_written_is_cleared_away_when_it_goes_on(claimed, plain):
    (claimed.path / "metrics.jsonl.4711.partial").write_text('{"step":')
    claimed.claim(plain(), FACTS)
    assert set(content(claimed.path)) == {Path("config.json"), Path("metadata.json")}


def test_an_unfinished_file_of_somebody_else_is_refused_and_left_alone(plain, tmp_path):
    (tmp_path / "thesis.partial").write_text("years of work")
    with pytest.raises(RunError, match=r"holds files but no config\.json.*choose another --workdir"):
        RunFolder(tmp_path).claim(plain(), FACTS)
    assert content(tmp_path) == {Path("thesis.partial"): b"years of work"}


def test_an_empty_folder_may_be_claimed(plain, tmp_path):
    RunFolder(tmp_path).claim(plain(), FACTS)
    assert RunFolder(tmp_path).read()[0] == plain()


def test_a_folder_of_hidden_files_may_be_claimed(plain, tmp_path):
    (tmp_path / ".DS_Store").write_bytes(b"a Mac's")
    RunFolder(tmp_path).claim(plain(), FACTS)
    assert RunFolder(tmp_path).read()[0] == plain()
    assert (tmp_path / ".DS_Store").read_bytes() == b"a Mac's"


@pytest.mark.parametrize("inside", ["", "run"])
def test_a_file_in_the_way_is_one_clear_error(plain, tmp_path, inside):
    (tmp_path / "file").write_text("here")
    with pytest.raises(RunError, match="cannot be written"):
        RunFolder(tmp_path / "file" / inside).claim(plain(), FACTS)
    assert (tmp_path / "file").read_text() == "here"


def test_a_home_folder_is_understood(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert RunFolder("~/run").path == tmp_path / "run"


def test_a_file_is_written_whole_or_stays_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    assert write_atomic(path, "before") == path

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, "after")
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]
    assert path.read_text() == "before"


# ----------------------------------------------------------------------------------------------- reading


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(RunError, match="nowhere does not exist"):
        RunFolder(tmp_path / "nowhere").read()


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"has no config\.json"):
        RunFolder(tmp_path).read()


DAMAGE = {
    "truncated": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "no JSON": lambda text: "import os\n",
    "a list": lambda text: "[1, 2]",
    "zeros": lambda text: "\0" * len(text),
    "an unknown key": lambda text: json.dumps(json.loads(text) | {"extra": 1}),
    "a wrong value": lambda text: text.replace('"sgd"', '"best"'),
    "a wrong type": lambda text: text.replace('"width": 8', '"width": "wide"'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_config_is_refused_by_name(claimed, plain, damage):
    path = claimed.path / "config.json"
    path.write_text(DAMAGE[damage](path.read_text()))
    before = content(claimed.path)
    for attempt in (claimed.read, lambda: claimed.claim(plain(), FACTS)):
        with pytest.raises(RunError, match=r"config\.json.* damaged") as caught:
            attempt()
        assert "\n" not in str(caught.value)
    assert content(claimed.path) == before


def test_bytes_that_are_no_text_are_refused(claimed):
    (claimed.path / "config.json").write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(RunError, match=r"config\.json.* damaged"):
        claimed.read()


@pytest.mark.parametrize("damage", ["truncated", "empty", "no JSON", "a list", "zeros", None])
def test_damaged_facts_are_refused_by_name(claimed, damage):
    path = claimed.path / "metadata.json"
    if damage is None:
        path.unlink()
    else:
        path.write_text(DAMAGE[damage](path.read_text()))
    with pytest.raises(RunError, match=r"metadata\.json is .*damaged"):
        claimed.read()


def test_every_config_survives_the_folder(rich, plain, tmp_path):
    text = {"name": "language_modelling", "dataset": "lab_speeches", "objective": "masked", "mask_rate": 0.3}
    configs = [rich(), plain({"task": text}), plain({"optimizer.clip_norm": 1e-30, "model.attention.head_dim": 7})]
    for number, config in enumerate(configs):
        RunFolder(tmp_path / str(number)).claim(config, FACTS)
        assert RunFolder(tmp_path / str(number)).read()[0] == config
        assert dataclasses.asdict(config) != dataclasses.asdict(plain())


@pytest.mark.parametrize("name", ["a\\b", "gs://bucket/run", "s3:/bucket/run"])
def test_a_name_that_tensorstore_reads_in_another_way_is_refused_before_anything_is_written(
    tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    for kind in (RunFolder, Store):
        with pytest.raises(ConfigError, match=r"--workdir=.*; name a folder of a mounted file system, without"):
            kind(name)
    assert list(tmp_path.iterdir()) == []

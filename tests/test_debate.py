"""tools/debate.py: the committed pages follow from the committed values, byte for byte; all ablations are trained."""

import gzip
import importlib
import json
import re
import runpy
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[1]
BOOKS = ROOT / "docs" / "results"
EXACT = dict(re.findall(r"^(\w+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
# The bytes of numbers and figures are those of the tested versions.
pinned = pytest.mark.skipif(
    any(metadata.version(name) != EXACT[name] for name in ("matplotlib", "numpy", "scipy")),
    reason="the pages were made with the versions in constraints.txt",
)


@pytest.fixture
def tool(monkeypatch):
    """The tool as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("debate")


def kept(suffix):
    return {path.name.removesuffix(".csv.gz") + suffix for path in BOOKS.glob("*.csv.gz")}


def assert_same(written):
    names = {path.name for path in written.iterdir()}
    for name in sorted(names):
        assert (written / name).read_bytes() == (BOOKS / name).read_bytes(), f"{name}: make debate ARGS=--from_results"
    return names


@pinned
def test_tables_verdicts_and_the_debate_follow_from_the_committed_values(tool, tmp_path):
    missing = tool.write_all(tmp_path, html=False)
    assert assert_same(tmp_path) == {"debate.html", "verdicts.svg", *kept(".md")}
    assert {*missing} == {*tool.with_claims()} - kept("")


@pytest.mark.slow
@pinned
def test_every_page_follows_from_the_committed_values(tool, tmp_path):
    tool.write_all(tmp_path)
    figures = {path.name for name in ("pretrained_*", "*_fronts_*") for path in BOOKS.glob(f"{name}.svg")}
    assert assert_same(tmp_path) == {"debate.html", "verdicts.svg", *kept(".md"), *kept(".html"), *figures}


def test_every_claim_is_in_the_debate_and_has_its_verdict_there(tool):
    page = (BOOKS / "debate.html").read_text()
    found = dict(re.findall(r'<article id="(C\d+)".*?</span> ([a-z ]+)</span></h2>', page))
    assert list(found) == [topic.name for topic in tool.TOPICS] == [f"C{k}" for k in range(1, 23)]
    claims = {c["name"] for path, _ in tool.configs().values() for c in tool.read_recipe(str(path)).get("claims", ())}
    assert claims <= found.keys()
    science = (ROOT / "docs" / "science.md").read_text()
    told = dict(re.findall(r"^\| (C\d+) \|.*\| \[?([a-z ]+)\]?[^|]*\|$", science, re.MULTILINE))
    decided = {claim: verdict for claim, verdict in found.items() if verdict != "open"}
    assert len(told) >= 11 and {claim: told[claim] for claim in decided} == decided


def test_the_debate_links_to_tables_and_numbers_that_exist():
    links = re.findall(r'href="([^"#][^"#]*)(?:#([^"]*))?"', (BOOKS / "debate.html").read_text())
    links = [each for each in links if not each[0].startswith("data:")]
    assert len(links) > 10
    for target, anchor in links:
        file = (BOOKS / target).resolve()
        assert file.exists() and (not anchor or f'id="{anchor}"' in file.read_text()), (target, anchor)


def test_ablations_train_one_after_another_and_their_values_are_kept(tool, monkeypatch, tmp_path, capsys):
    """The one that asks about most is the last; what fails is told at the end, and its values are not kept."""
    commands = []

    def run(command, **options):
        commands.append(command)
        workdir = Path(next(each for each in command if each.startswith("--workdir=")).partition("=")[2])
        (tmp_path / workdir).mkdir(parents=True)
        (tmp_path / workdir / "results.csv").write_text(f"values of {workdir.name}")
        return subprocess.CompletedProcess(command, 7 if workdir.name == "heads" else 0)

    names = ("heads", "cross_dimension")
    configs = {name: (tmp_path / "configs" / f"{name}.py", 1) for name in names}
    monkeypatch.setattr(tool, "configs", lambda: configs)
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    monkeypatch.setattr(tool, "BOOKS", tmp_path)
    monkeypatch.setattr(tool.subprocess, "run", run)
    monkeypatch.setattr(tool, "write_all", lambda output: [])
    assert tool.main([f"--output={tmp_path / 'out'}"]) == 7
    assert [command[3:] for command in commands] == [
        [f"--config=configs/{name}.py", f"--workdir=runs/{name}"] for name in names
    ]
    assert [path.name for path in tmp_path.glob("*.csv.gz")] == ["cross_dimension.csv.gz"]
    assert gzip.decompress((tmp_path / "cross_dimension.csv.gz").read_bytes()) == b"values of cross_dimension"
    with pytest.raises(SystemExit):
        tool.main(["hands"])
    assert "hands: no such ablation; choose from heads, cross_dimension" in capsys.readouterr().err


def test_the_ablations_are_those_with_claims(tool):
    names = tool.with_claims()
    assert names[-1] == "cross_dimension" and "scales" in names
    assert "real_data" in tool.configs().keys() - {*names}


def test_the_claims_on_cost_follow_from_the_times_beside_them():
    decide = runpy.run_path(str(ROOT / "benchmarks" / "attention_cost.py"))["decide_claims"]
    stored = json.loads((ROOT / "benchmarks" / "results" / "attention_length_cpu.json").read_text())
    assert stored["claims"] == decide(stored["grown"], stored["wide"])

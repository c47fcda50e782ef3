"""README and docs: short, with links, commands, names and numbers that exist."""

import importlib.util
import os
import re
import runpy
import textwrap
from pathlib import Path

import pytest

from flaxformer_lab.ablation.variants import VARIANTS
from flaxformer_lab.command_line import read_recipe
from flaxformer_lab.config import parse_config
from flaxformer_lab.parsing import override

ROOT = Path(__file__).parents[1]
PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))}
COMMANDS = re.findall(r"python (train\.py|-m flaxformer_lab\.\w+) ([^`#\n]*)", "\n".join(PAGES.values()))


def headings(text):
    """The anchors that GitHub gives a page's headings."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", PAGES[page])
    for target, anchor in links:
        file = (ROOT / page).parent / target if target else ROOT / page
        assert file.exists(), f"{page} links to {target}"
        assert not anchor or anchor in headings(file.read_text()), f"{page} links to {target}#{anchor}"


def test_the_readme_is_short_and_begins_with_the_answer():
    lines = PAGES["README.md"].splitlines()
    assert len(lines) <= 150
    first_screen = "\n".join(lines[:25])
    assert first_screen.count("[refuted]") + first_screen.count("[supported") == 3 and "![" in first_screen
    assert len(re.findall(r"^python ", first_screen, re.MULTILINE)) == 3


def test_the_figure_is_small():
    assert (ROOT / "docs" / "results" / "verdicts.svg").stat().st_size < 200_000


def test_the_verdicts_of_the_readme_are_those_of_the_report():
    report = (ROOT / "docs" / "results" / "cross_dimension.md").read_text()
    tool = runpy.run_path(str(ROOT / "tools" / "compare_readme.py"))
    assert len(tool["rows_of_claims"](PAGES["README.md"])) == 3
    assert list(tool["differing_claims"](PAGES["README.md"], report)) == []


def test_the_raw_numbers_of_a_claim_give_the_difference_of_the_readme(monkeypatch):
    """What docs/python.md shows is run."""
    _, _, section = PAGES["docs/python.md"].partition("## From a claim to its raw numbers")
    monkeypatch.chdir(ROOT)
    code, found = textwrap.dedent(re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]), {}
    exec(code, found)
    mean = sum(found["differences"]) / 5
    assert f"2 heads minus 1: {mean:.3f} [" in PAGES["README.md"] and f"# {mean:.3f}, as" in code


def test_what_differs_from_the_readme_is_named(tmp_path, capsys):
    tool = runpy.run_path(str(ROOT / "tools" / "compare_readme.py"))
    report = (ROOT / "docs" / "results" / "cross_dimension.md").read_text()
    changed = report.replace("| **refuted** |", "| **undecided** |", 1).replace(
        "0.251 [0.245, 0.264]", "0.252 [0.245, 0.264]"
    )
    (tmp_path / "report.md").write_text(changed)
    arguments = [str(tmp_path / "output"), str(tmp_path / "report.md")]
    (tmp_path / "output").write_text('a table\n{"step": 1400, "split": "test", "accuracy": 0.98, "loss": 0.1}\n')
    assert tool["main"](*arguments) == 1
    assert capsys.readouterr().err.splitlines() == [
        "C1 is refuted in the README, and undecided in the report",
        "C4: 0.251 [0.245, 0.264] of the README is not in the report",
    ]
    assert tool["main"](*arguments, "C10") == 0
    (tmp_path / "output").write_text('{"step": 1400, "split": "test", "accuracy": 0.9767}\n')
    assert (
        tool["main"](*arguments, "C10") == 1 and "0.9800 in the README, and 1,400 and 0.9767" in capsys.readouterr().err
    )


def test_the_first_steps_are_those_of_the_first_screen():
    script = (ROOT / "tools" / "first_steps.sh").read_text()
    commands = re.findall(r'^    "(python .*)"$', script, re.MULTILINE)
    first_screen = "\n".join(PAGES["README.md"].splitlines()[:25])
    assert commands == [line.strip() for line in re.findall(r"^(python [^#\n]*)", first_screen, re.MULTILINE)]
    assert len(commands) == 3 and os.access(ROOT / "tools" / "first_steps.sh", os.X_OK)


def test_the_figure_reads_the_report():
    tool = runpy.run_path(str(ROOT / "tools" / "readme_figure.py"))
    scores = tool["read_scores"](tool["REPORT"].read_text(), "product")
    assert scores["baseline"] == (0.988, 0.974, 0.993, None) and scores["ffn_off"] == (0.0, -0.001, 0.001, 0.0)
    drawn = [axes.get_yticklabels() for axes in tool["draw"](tool["REPORT"].read_text()).axes]
    assert [len(labels) for labels in drawn] == [len(labels) for _, labels in tool["PANELS"].values()]


def test_the_page_of_knobs_is_what_the_tool_writes():
    tool = runpy.run_path(str(ROOT / "tools" / "knobs_page.py"))
    assert PAGES["docs/knobs.md"] == tool["page"](), "run `python tools/knobs_page.py`"


def test_the_commands_name_files_keys_and_variants_that_exist():
    assert len(COMMANDS) > 20
    for command, arguments in COMMANDS:
        if command.startswith("-m"):
            assert importlib.util.find_spec(command.removeprefix("-m ")), command
        if "--import=" in arguments:  # of the reader's own file: tests/test_extending.py runs these
            continue
        recipes = re.findall(r"--config=(\S+)", arguments)
        for recipe in recipes:
            path, _, form = recipe.partition(":")
            assert (ROOT / path).exists() or recipe == "...", recipe
            assert not form or read_recipe(str(ROOT / recipe)), recipe
        for names in re.findall(r"--ablation=(\S+)", arguments):
            assert set(names.split(",")) <= {*VARIANTS, "NAME"}, names
        if "configs/ablations" not in arguments:
            tree = read_recipe(str(ROOT / recipes[0])) if recipes and recipes[0] != "..." else {}
            for key, value in re.findall(r"--config\.(\S+?)=(\S+)", arguments):
                tree = override(tree, key, value)
            parse_config(tree)


def test_the_readme_names_every_variant():
    assert all(f"`{name}`" in PAGES["README.md"] for name in VARIANTS)


def test_the_files_and_modules_that_the_docs_name_exist():
    folders = ("flaxformer_lab", "tests", "tools", "benchmarks", "configs", "docs")
    layers = [path.name for path in (ROOT / "flaxformer_lab").iterdir() if (path / "__init__.py").exists()]
    for page, text in PAGES.items():
        for name in re.findall(rf"\b(?:{'|'.join(folders)})/[\w/]+\.(?:py|md|json|svg)\b", text):
            assert (ROOT / name).exists(), f"{page} names {name}"
        for name in re.findall(rf"`((?:{'|'.join(layers)})/\w+\.py)`", text):
            assert (ROOT / "flaxformer_lab" / name).exists(), f"{page} names {name}"
        for module, names in re.findall(r"^from (flaxformer_lab[\w.]*) import (.*)$", text, re.MULTILINE):
            assert all(hasattr(importlib.import_module(module), name) for name in names.split(", ")), f"{page}: {names}"

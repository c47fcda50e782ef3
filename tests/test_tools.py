"""What the tools of tools/ write into pages, and what they read of runs."""

import importlib
import types
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[1] / "tools"


@pytest.fixture
def tool(monkeypatch):
    """The function that imports a tool by its name."""
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module


def test_a_part_of_a_page_is_written_and_the_rest_stays(tool, tmp_path):
    parts, page = tool("page_parts"), tmp_path / "page.md"
    text = "# ü\n<!-- a: begin -->1 of 2<!-- a: end -->\n<!-- b: begin -->\nold\n<!-- b: end -->\nend\n"
    page.write_text(text, encoding="utf-8")
    parts.write_part(page, "a", "2 of 2")
    parts.write_lines(page, "b", ["| new |", "| rows |"])
    assert parts.read_part(page, "b") == "\n| new |\n| rows |\n"
    expected = text.replace("1 of 2", "2 of 2").replace("old", "| new |\n| rows |")
    assert page.read_text(encoding="utf-8") == expected
    with pytest.raises(ValueError, match=r"page\.md has no <!-- c: begin --> with <!-- c: end --> after it"):
        parts.write_part(page, "c", "lost")
    assert page.read_text(encoding="utf-8") == expected


def test_the_marked_parts_of_the_docs_are_those_that_tools_write(tool):
    pages = {"science": ("coverage", "mutants", "probes"), "performance": ("train step", "rematerialisation")}
    pages |= {"scaling": ("absent devices",), "reliability": ("faults",)}
    for page, names in pages.items():
        assert all(tool("page_parts").read_part(TOOLS.parent / "docs" / f"{page}.md", name) for name in names)


def test_the_metrics_of_a_run_that_was_cut_off_are_read(tool, tmp_path):
    lines = ('{"step": 1, "split": "test", "name": "r2", "value": 0.1}', '{"step": 2, "split": "te')
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert tool("tabulate_runs").last_metrics(tmp_path / "metrics.jsonl") == {"test r2": 0.1}


def test_the_steps_to_a_score_are_those_of_validation(tool, tmp_path):
    entries = [(10, "train", 0.99), (10, "validation", 0.5), (20, "validation", 0.96), (30, "validation", 0.97)]
    line = '{{"step": {}, "split": "{}", "name": "r2", "value": {}}}\n'
    (tmp_path / "metrics.jsonl").write_text("".join(line.format(*each) for each in entries) + '{"step": 40')
    steps = tool("probe_table")._steps_to
    assert steps(0.95, tmp_path / "metrics.jsonl") == "20" and steps(0.98, tmp_path / "metrics.jsonl") == "not reached"


def test_the_rows_of_planted_interactions_name_their_model(tool, monkeypatch):
    """The recipe's own model too; with stand-ins for training and measuring."""
    table, trained = tool("probe_table"), []
    share = types.SimpleNamespace(value=0.5)
    monkeypatch.setattr(table, "train", lambda config, *_, **__: trained.append(config.model.name))
    monkeypatch.setattr(table, "load_run", lambda _: types.SimpleNamespace(subject=lambda **_: None))
    monkeypatch.setattr(table, "measure", lambda *_: {"interaction_share": share, "hessian_interaction": share})
    labels = [row[1] for row in table.planted_shares()]
    models = ("MLP (depth 2, attention off)", "factorization machine")
    truths = (0.1, 0.5, 0.909)
    assert labels == [f"{model}, truth {t}: interaction share, by the Hessian" for model in models for t in truths]
    assert trained == ["transformer"] * 3 + ["factorization_machine"] * 3

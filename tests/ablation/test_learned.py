"""What is learned is judged: paired differences against scipy, and a whole small ablation, resumed."""

import numpy as np
import pytest
from scipy import stats

from flaxformer_lab.ablation import learned
from flaxformer_lab.ablation.rated import RatedPairs, rated_pairs
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.report.learned import SETS, decide_learned, findings_of, write_learned
from tests.pretrained_folders import write_sentence_transformer

RNG = np.random.default_rng(0)


def rated(name: str, number: int, *, ranks: bool) -> RatedPairs:
    pairs = RNG.integers(8, size=(number, 2))
    texts = tuple("AB CD EF GH AA BC DE FG".split())
    return RatedPairs(name, texts, pairs, RNG.normal(size=number), ranks)


@pytest.mark.parametrize("ranks", [True, False])
def test_a_difference_of_correlations_with_its_interval(ranks):
    data = rated("any", 300, ranks=ranks)
    before, after = data.ratings + RNG.normal(size=300), data.ratings + 3 * RNG.normal(size=300)
    found = learned.paired_difference(data, before, after)
    correlation = stats.spearmanr if ranks else stats.pearsonr
    assert found["value"] == pytest.approx(correlation(after, data.ratings)[0])
    assert found["difference"] == pytest.approx(found["value"] - correlation(before, data.ratings)[0])
    assert found["low"] < found["difference"] < found["high"] < 0 and found["p"] < 0.001
    # The two correlations vary as if they were independent: by Fisher's transformation, near 0.06 altogether.
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * 0.06, rel=0.35)
    same = learned.paired_difference(data, before, before)
    assert same["difference"] == 0 and same["p"] is None


def row(name, layer="all", **values):
    scores = {
        each: {"value": 0.5 + values.get(each, 0.0), "difference": values.get(each, 0.0), "low": 0.0, "high": 0.0}
        for each in SETS
    }
    for each in scores.values():
        each |= {"low": each["difference"] - 0.01, "high": each["difference"] + 0.01}
        each["p"] = None if name == "intact" else 1e-6 if each["difference"] else 0.5
    return {"cut": name, "layer": layer, "kept": 0.5, "scores": scores}


def test_a_verdict_needs_all_three_sets_to_agree():
    rows = [row("intact"), row("a", WordSim=-0.1), row("b", WordSim=-0.1, Lee=0.1), row("c", Lee=0.1), row("d")]
    found = findings_of(rows)
    assert [found.cut(name).verdict for name in "abcd"] == ["worse", "both", "better", "open"]
    assert found.cut("a").cost.mean == pytest.approx(0.1 / 3)
    assert found.cut("a").corrected_p["WordSim"] == pytest.approx(12e-6)  # of four cuts on three sets
    assert decide_learned(found) == []


def test_a_small_ablation_goes_on_where_it_stopped(tmp_path, monkeypatch):
    pytest.importorskip("tokenizers")
    sets = (rated("WordSim", 12, ranks=True), rated("SimLex", 12, ranks=True), rated("Lee", 12, ranks=False))
    monkeypatch.setattr(learned, "rated_pairs", lambda: sets)
    monkeypatch.setattr(learned, "passages", lambda number: tuple("ABCDEFGH"[k : k + 3] for k in range(number)))
    monkeypatch.setattr(learned, "LENGTHS", (15,))
    folder = write_sentence_transformer(tmp_path / "model")
    tree = {"learned": {"package": None, "folder": str(folder), "passages": 6, "longest": 15}}
    config, said = learned.parse_learned(tree), []
    only = ["intact", "FFN removed", "block removed", "measures"]
    monkeypatch.setattr(learned.Bench, "measures", lambda self: iter(()))
    rows = learned.run_cuts(config, tmp_path / "out", {"command": "none"}, said.append, only)
    assert len(said) == 6 and [(each["cut"], each["layer"]) for each in rows[:3]] == [
        *(("intact", "all"), ("FFN removed", "all"), ("FFN removed", "0"))
    ]
    assert rows[0]["kept"] == 1 and rows[0]["scores"]["Lee"]["p"] is None
    again = learned.run_cuts(config, tmp_path / "out", {"command": "none"}, said.append, only)
    assert len(said) == 6 and again == rows == learned.read_rows(tmp_path / "out" / "results.csv")
    bench = learned.Bench(config)
    vectors = [
        np.asarray(bench.network.apply(bench.params, {}, ids, valid=ids != 0)[0][0])
        for ids in (bench.tokenizer.batch([text]) for text in sets[0].texts)
    ]
    cosines = [float(vectors[a] @ vectors[b]) for a, b in sets[0].pairs]
    expected = stats.spearmanr(np.round(cosines, 4), sets[0].ratings)[0]
    assert rows[0]["scores"]["WordSim"]["value"] == pytest.approx(expected, abs=1e-6)
    write_learned(rows, tmp_path, "report")
    assert "| block removed | 1 |" in (tmp_path / "report.md").read_text()


def test_ratings_that_are_not_installed_are_told(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    rated_pairs.cache_clear()
    with pytest.raises(ConfigError, match=r"gensim is not installed: pip install -e '.\[pretrained\]'"):
        rated_pairs()

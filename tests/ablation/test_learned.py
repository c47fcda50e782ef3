"""What is learned is judged: paired differences against scipy, and whole small ablations, resumed."""

import json
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy import stats

from flaxformer_lab import command_line, load_config, load_pretrained, save_pretrained, train
from flaxformer_lab.ablation.learned import judges
from flaxformer_lab.ablation.learned.config import parse_learned
from flaxformer_lab.ablation.learned.cuts import left_out
from flaxformer_lab.ablation.learned.measures import _of_vectors
from flaxformer_lab.ablation.learned.parts import Parts
from flaxformer_lab.ablation.learned.rated import RatedPairs, rated_pairs
from flaxformer_lab.ablation.learned.run import read_rows, run_cuts
from flaxformer_lab.errors import ConfigError, RunError
from flaxformer_lab.functional.trees import leaf_paths, replace_leaves
from flaxformer_lab.models.conversion import planned
from flaxformer_lab.report.learned import SETS, Findings, _scales, decide_learned, findings_of, write_learned
from tests.pretrained_folders import read_golden, tokenizer_of_characters, write_golden, write_sentence_transformer

RNG = np.random.default_rng(0)
RUN = run_cuts.__module__


def rated(name: str, number: int, *, ranks: bool) -> RatedPairs:
    pairs = RNG.integers(8, size=(number, 2))
    texts = tuple("AB CD EF GH AA BC DE FG".split())
    return RatedPairs(name, texts, pairs, RNG.normal(size=number), ranks)


@pytest.mark.parametrize("ranks", [True, False])
def test_a_difference_of_correlations_with_its_interval(ranks):
    data = rated("any", 300, ranks=ranks)
    before, after = data.ratings + RNG.normal(size=300), data.ratings + 3 * RNG.normal(size=300)
    found = judges.paired_difference(data, before, after)
    correlation = stats.spearmanr if ranks else stats.pearsonr
    assert found["value"] == pytest.approx(correlation(after, data.ratings)[0])
    assert found["difference"] == pytest.approx(found["value"] - correlation(before, data.ratings)[0])
    assert found["low"] < found["difference"] < found["high"] < 0 and found["p"] < 0.001
    # The two correlations vary as if they were independent: by Fisher's transformation, near 0.06 altogether.
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * 0.06, rel=0.35)
    same = judges.paired_difference(data, before, before)
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


def vectors(number, shared):
    """Measures of `number` vectors of 9 features, each of which has the same share of one common number."""
    rng = np.random.default_rng(number)
    x = rng.standard_normal((number, 9)) + shared * rng.standard_normal((number, 1))
    return _of_vectors(x, rng)


@pytest.mark.parametrize(("shared", "correlation"), [(0.0, 0.0), (0.5, 0.2), (2.0, 0.8)])
def test_whether_features_correlate_does_not_depend_on_how_many_vectors_are_looked_at(shared, correlation):
    """Of features a + shared b the correlation is shared^2 / (1 + shared^2); 1 / sqrt(9 - 1) is 0.354."""
    for number in (100, 400, 2000):
        layers = {"0": vectors(number, 0.0)}
        measures = {name: vectors(number, shared) for name in ("word vectors", "first block's input")} | layers
        found = _scales(Findings((), measures))["words correlate"]
        assert found.interval.mean == pytest.approx(correlation, abs=0.08) and found.threshold == 0.354
        assert found.answer == ("yes" if correlation > 0.354 else "no")


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    write_learned([row("intact")], tmp_path, "report")
    before = (tmp_path / "report.md").read_text()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunError, match="cannot be written: No space left on device; make room for it"):
        write_learned([row("intact"), row("a", Lee=0.1)], tmp_path, "report")
    assert (tmp_path / "report.md").read_text() == before and not list(tmp_path.glob("*.partial"))


def test_a_small_ablation_goes_on_where_it_stopped(tmp_path, monkeypatch):
    pytest.importorskip("tokenizers")
    sets = (rated("WordSim", 12, ranks=True), rated("SimLex", 12, ranks=True), rated("Lee", 12, ranks=False))
    monkeypatch.setattr(judges, "rated_pairs", lambda: sets)
    monkeypatch.setattr(judges, "passages", lambda number, dataset: tuple("ABCDEFGH"[k : k + 3] for k in range(number)))
    monkeypatch.setattr(judges, "LENGTHS", (15,))
    folder = write_sentence_transformer(tmp_path / "model")
    tree = {"learned": {"package": None, "folder": str(folder), "passages": 6, "longest": 15}}
    config, said = parse_learned(tree), []
    only = ["intact", "FFN removed", "block removed"]
    rows = run_cuts(config, tmp_path / "out", {"command": "none"}, said.append, only)
    assert len(said) == 6 and [(each["cut"], each["layer"]) for each in rows[:3]] == [
        *(("intact", "all"), ("FFN removed", "all"), ("FFN removed", "0"))
    ]
    assert rows[0]["kept"] == 1 and rows[0]["scores"]["Lee"]["p"] is None
    again = run_cuts(config, tmp_path / "out", {"command": "none"}, said.append, only)
    assert len(said) == 6 and again == rows == read_rows(tmp_path / "out" / "results.csv")
    kept = tmp_path / "out" / judges.Ratings.file
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-9])  # as a process leaves it that is killed while it writes
    assert run_cuts(config, tmp_path / "out", {"command": "none"}, said.append, only) == rows
    assert len(said) == 7 and said[-1].startswith("block removed, layer 1") and kept.read_bytes() == whole
    judge = judges.make_judge(config)
    vectors = [
        np.asarray(judge.model.network.apply(judge.model.params, {}, ids, valid=ids != 0)[0][0])
        for ids in (judge.tokenizer.batch([text]) for text in sets[0].texts)
    ]
    cosines = [float(vectors[a] @ vectors[b]) for a, b in sets[0].pairs]
    expected = stats.spearmanr(np.round(cosines, 4), sets[0].ratings)[0]
    assert rows[0]["scores"]["WordSim"]["value"] == pytest.approx(expected, abs=1e-6)
    write_learned(rows, tmp_path, "report")
    assert "| block removed | 1 |" in (tmp_path / "report.md").read_text()


def test_measures_of_which_some_are_missing_are_all_made_again(tmp_path, monkeypatch):
    judge = types.SimpleNamespace(file="nats.csv", model=types.SimpleNamespace(config=None))
    measures = [{"cut": "measures", "layer": each, "correlation": 0.1} for each in ("word vectors", "0")]
    monkeypatch.setattr(f"{RUN}.make_judge", lambda config: judge)
    monkeypatch.setattr(f"{RUN}.Parts", lambda judge: None)
    monkeypatch.setattr(f"{RUN}.left_out", lambda *_: {})
    monkeypatch.setattr(f"{RUN}.make_cuts", lambda *_: ())
    monkeypatch.setattr(f"{RUN}.judged_rows", lambda rows, _: list(rows))

    def killed(parts):
        yield measures[0]
        raise KeyboardInterrupt

    config = parse_learned({"learned": {}})
    monkeypatch.setattr(f"{RUN}.measure_rows", killed)
    with pytest.raises(KeyboardInterrupt):
        run_cuts(config, tmp_path, {}, lambda _: None)
    monkeypatch.setattr(f"{RUN}.measure_rows", lambda parts: measures)
    rows = run_cuts(config, tmp_path, {}, lambda _: None)
    assert rows[:-1] == measures == read_rows(tmp_path / "nats.csv")


@pytest.mark.parametrize(
    ("inside", "message"),
    [("notes.txt/out", "cannot be written: .*; choose another --workdir"), (".", "holds files but no learned.json")],
)
def test_a_folder_that_is_not_ours_is_one_clear_error(tmp_path, monkeypatch, inside, message):
    (tmp_path / "notes.txt").write_text("mine")
    monkeypatch.setattr(f"{RUN}.make_judge", lambda config: types.SimpleNamespace(file="nats.csv"))
    with pytest.raises(RunError, match=message):
        run_cuts(parse_learned({"learned": {}}), tmp_path / inside, {})
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_rated_texts_are_cut_to_what_the_model_was_made_for(tmp_path, monkeypatch):
    pytest.importorskip("tokenizers")
    monkeypatch.setattr(judges, "rated_pairs", lambda: ())
    monkeypatch.setattr(judges, "passages", lambda number, dataset: ("ABCDEFGHIJ",))
    folder = write_sentence_transformer(tmp_path)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 6}')
    judge = judges.make_judge(parse_learned({"learned": {"package": None, "folder": str(folder)}}))
    assert judge.symbols["passages"].shape == (1, 6) and judge.tokenizer.padding == 0


def test_ratings_that_are_not_installed_are_told(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    rated_pairs.cache_clear()
    with pytest.raises(ConfigError, match=r"gensim is not installed: pip install -e '.\[pretrained\]'"):
        rated_pairs()


# -------------------------------------------------------------------------------------------- nats a token


def test_a_difference_of_nats_with_its_interval():
    counts, before = np.full(400, 16.0), RNG.normal(50, 5, 400)
    after = before + RNG.normal(1, 3, 400)
    found, moved = judges.difference_of_nats(counts, before, after), (after - before) / 16
    assert found["value"] == pytest.approx(after.mean() / 16) and found["difference"] == pytest.approx(moved.mean())
    test = stats.ttest_rel(after / 16, before / 16)
    low, high = test.confidence_interval()
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=0.1 * (high - low))
    assert np.log10(found["p"]) == pytest.approx(np.log10(test.pvalue), rel=0.3)
    short = judges.difference_of_nats(np.array([3.0, 1.0]), [3, 2], [6, 4])
    assert (short["value"], short["difference"]) == pytest.approx((10 / 4, 5 / 4))  # by tokens, not by passages
    broken = judges.difference_of_nats(counts, before, np.append(after[1:], np.nan))
    assert broken["difference"] == np.inf and broken["p"] is None


@pytest.fixture
def language_model(tmp_path):
    """A folder with random weights, its config for windows of a small text, and the same windows as a run has them."""
    pytest.importorskip("tokenizers")
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"ABC, {number} DEF ABCDEFGHI {number} JKLM." for number in range(60)))
    folder = write_golden(tmp_path / "model", "gpt2")
    tree = {"package": None, "folder": str(folder), "dataset": f"text:{text}", "passages": 99, "longest": 12}
    run = load_pretrained(folder, {"task.sequence_length": 12, "task.dataset": f"text:{text}"})
    return folder, parse_learned({"learned": tree}), run


def nats_of(run):
    """A function from parameters to nats a token: of the network without hooks, in NumPy from its logits on."""
    examples = run.task.examples("test")
    windows = examples.read(examples.evaluation_indices(np.arange(examples.number)))
    inputs, targets = windows["symbols"][:, :-1], windows["symbols"][:, 1:]
    apply = jax.jit(lambda params: run.model.apply(params, {}, inputs)[0])

    def nats(params) -> float:
        logits = np.asarray(apply(params), np.float64)
        chosen = np.take_along_axis(logits, targets[..., None].astype(int), axis=2)[..., 0]
        return np.average(np.log(np.exp(logits).sum(-1)) - chosen, weights=windows["loss_weights"])

    return nats


def with_zeros(params, part, layers="01"):
    leaves = leaf_paths(params)
    names = [name for name in leaves if name.startswith(tuple(f"body.blocks.{layer}.{part}." for layer in layers))]
    return replace_leaves(params, {name: np.zeros_like(leaves[name]) for name in names})


def test_a_language_model_is_judged_by_nats_of_its_text(language_model, tmp_path):
    """Intact as `evaluate` judges it; cut as the network whose parameters are 0 in that place."""
    folder, config, run = language_model
    only = ["intact", "attention removed", "FFN removed", "block removed"]
    rows = run_cuts(config, tmp_path / "out", {"command": "none"}, lambda _: None, only)
    found = {(row["cut"], row["layer"]): row["scores"]["nats"] for row in rows if "scores" in row}
    nats, params = nats_of(run), run.params
    assert found["intact", "all"]["value"] == pytest.approx(run.evaluate("test")["loss"], abs=1e-5)
    ffn, attention = with_zeros(params, "ffn.down"), with_zeros(params, "attention.output")
    expected = {
        ("intact", "all"): params,
        ("FFN removed", "all"): ffn,
        ("attention removed", "all"): attention,
        ("FFN removed", "1"): with_zeros(params, "ffn.down", "1"),
        ("block removed", "0"): with_zeros(with_zeros(params, "ffn.down", "0"), "attention.output", "0"),
    }
    for key, changed in expected.items():
        assert found[key]["value"] == pytest.approx(nats(changed), abs=1e-5), key
    difference = found["FFN removed", "all"]["difference"]
    assert difference == pytest.approx(nats(ffn) - nats(params), abs=2e-5) and abs(difference) > 0.1
    write_learned(rows, tmp_path, "report")
    report = (tmp_path / "report.md").read_text()
    assert f"| FFN removed | all | {nats(ffn):.3f} | {difference:+.3f} [" in report
    assert "- Left out: attention zero, FFN zero: norms come before" in report and "Claims C18 to C20" in report
    assert findings_of(rows).cut("FFN removed").cost.mean == pytest.approx(difference)
    with pytest.raises(ConfigError, match=r"out has results of learned.longest=12, not of 8; choose another --workdir"):
        run_cuts(parse_learned({"learned": {**vars(config), "longest": 8}}), tmp_path / "out", {})


def test_a_model_of_less_nats_is_better():
    rows = [
        {"cut": name, "layer": "all", "scores": {"nats": score}}
        for name, score in {
            "intact": {"value": 3.0, "difference": 0.0, "low": 0.0, "high": 0.0, "p": None},
            "a": {"value": 2.9, "difference": -0.1, "low": -0.11, "high": -0.09, "p": 1e-9},
            "b": {"value": 3.1, "difference": 0.1, "low": 0.09, "high": 0.11, "p": 1e-9},
            "c": judges.difference_of_nats(np.ones(2), [1, 1], [np.inf, 1]),
        }.items()
    ]
    found = findings_of(rows)
    assert [found.cut(name).verdict for name in "abc"] == ["better", "worse", "worse"] and decide_learned(found) == []
    assert found.cut("b").cost.mean == pytest.approx(0.1)


def test_cuts_that_mean_nothing_are_left_out():
    config = {
        name: planned(read_golden(name)[0], read_golden(name)[2])[0].config for name in ("bert_body", "gpt2", "llama")
    }
    assert left_out(config["bert_body"], (1, 4)) == {}
    assert [*left_out(config["gpt2"], (1, 4))] == ["attention zero", "FFN zero"]
    rotary = [name for name, reason in left_out(config["llama"], (1, 4)).items() if "rotary" in reason]
    assert rotary == [
        "per-dimension QK",
        "per-dimension QK and OV",
        *(f"query-key products of rank {k}" for k in (1, 4)),
    ]


def test_the_folder_is_a_flag():
    recipe = str(Path(__file__).parents[2] / "configs" / "ablations" / "pretrained.py")
    flags = ["--config.learned.package=None", "--config.learned.folder=models/gpt2"]
    config = parse_learned(
        command_line.overridden(command_line.read_recipe(recipe, command_line.changes_of(flags)), flags)
    )
    assert (config.package, config.folder) == (None, "models/gpt2")


def test_other_models_are_refused(tmp_path):
    pytest.importorskip("tokenizers")
    refused = {
        write_golden(tmp_path / "masked", "bert_masked"): "has BertForMaskedLM; cuts are judged for causal language",
        write_golden(tmp_path / "silent", "gpt2", tokenizer=False): "has no tokenizer.json",
    }
    for folder, message in refused.items():
        with pytest.raises(ConfigError, match=message):
            judges.make_judge(parse_learned({"learned": {"package": None, "folder": str(folder)}}))


@pytest.mark.slow
def test_cuts_of_a_trained_language_model_are_those_of_transformers(tmp_path):
    """A small GPT-2 learns the speeches by the recipe; its nats are transformers' losses, also with maps set to 0."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    pytest.importorskip("tokenizers")
    sizes = {"vocab_size": 100, "n_positions": 64, "n_embd": 48, "n_layer": 2, "n_head": 4}
    torch.manual_seed(0)
    settings = transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
    transformers.GPT2LMHeadModel(settings).save_pretrained(tmp_path / "drawn")
    (tmp_path / "drawn" / "tokenizer.json").write_text(json.dumps(tokenizer_of_characters(100, None, None)))
    recipe = Path(__file__).parents[2] / "configs" / "fine_tuning.py"
    changes = {"task.folder": tmp_path / "drawn", "task.sequence_length": 32, "optimizer.learning_rate": 3e-3}
    changes |= {"training.evaluate_every": 300, "parallelism.strategy": "single"}
    trained = save_pretrained(train(load_config(recipe, changes), tmp_path / "run", quiet=True), tmp_path / "trained")
    tree = {"package": None, "folder": str(trained), "passages": 16, "longest": 32, "ranks": (1, 12)}
    config = parse_learned({"learned": tree})
    rows = run_cuts(config, tmp_path / "out", {"command": "none"}, lambda _: None)
    found = {(row["cut"], row["layer"]): row["scores"]["nats"]["value"] for row in rows if "scores" in row}
    assert found["intact", "all"] < 2.7 < found["block removed", "0"]  # 2.9 is the entropy of single letters
    assert found["query-key products of rank 12", "all"] == pytest.approx(found["intact", "all"], abs=1e-4)

    run = load_pretrained(trained, {"task.sequence_length": 32})
    examples = run.task.examples("test")
    chosen = np.unique(np.linspace(0, examples.number - 1, 16).astype(int))
    windows = examples.read(examples.evaluation_indices(chosen))
    symbols, weights = torch.from_numpy(windows["symbols"].astype(np.int64)), windows["loss_weights"]
    labels = torch.where(torch.from_numpy(np.pad(weights, ((0, 0), (1, 0)), constant_values=1)) > 0, symbols, -100)
    model = transformers.AutoModelForCausalLM.from_pretrained(trained).eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def loss(*zeroed: str) -> float:
        changed = {name: w * 0 if any(part in name for part in zeroed) else w for name, w in state.items()}
        model.load_state_dict(changed)
        with torch.inference_mode():
            return float(model(symbols, labels=labels).loss)

    ffn, attention = "mlp.c_proj", "attn.c_proj"
    expected = {
        ("intact", "all"): loss(),
        ("FFN removed", "all"): loss(ffn),
        ("attention removed", "all"): loss(attention),
        ("attention removed", "1"): loss(f"h.1.{attention}"),
        ("block removed", "0"): loss(f"h.0.{ffn}", f"h.0.{attention}"),
    }
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=2e-4), key

    fit = Parts(judges.make_judge(config)).fit(1, "input", "output")
    x = np.asarray(run.run_with_cache(windows["symbols"][:, :-1], names=["blocks.1.input"])[1]["blocks.1.input"])
    x = x.astype(np.float64) @ fit.matrix + fit.offset
    leaves = {name: np.asarray(leaf, np.float64) for name, leaf in leaf_paths(run.params).items()}
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    logits = (x * leaves["body.norm.scale"] + leaves["body.norm.bias"]) @ leaves["head.kernel"]
    chosen = np.take_along_axis(logits, windows["symbols"][:, 1:, None].astype(int), axis=2)[..., 0]
    nats = np.average(np.log(np.exp(logits).sum(-1)) - chosen, weights=weights)
    assert found["linear block", "1"] == pytest.approx(nats, abs=1e-4)

"""Plants faults in what judges an ablation, one at a time, and counts those that the tests see.

Command: python tools/mutants.py, or with names of faults (`make mutants`); writes the share into docs/science.md.
Time: minutes.
Each fault is one replacement in a copy of the repository, in which the tests of that file then run. A fault that passes
them is printed, and makes the exit code 1. What fails without any fault is an error.
"""

import argparse
import importlib
import multiprocessing
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from page_parts import write_part

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "science.md"
COPIED = ("flaxformer_lab", "tests", "configs", "tools", "docs", "setup.cfg")
LIBRARIES = (
    "flax.nnx",
    "hypothesis",
    "jax",
    "matplotlib.figure",
    "optax",
    "orbax.checkpoint",
    "pytest",
    "rich.progress",
)
LIBRARIES += ("scipy.stats", "sklearn.metrics", "tensorboardX")
# For each file the tests that must see a fault in it: those that train are few.
TESTS = {
    "report/statistics.py": ("tests/report/test_statistics.py",),
    "report/summary.py": ("tests/report/test_summary.py",),
    "report/claims.py": ("tests/report/test_claims.py",),
    "ablation/convergence.py": ("tests/ablation/test_convergence.py",),
    "ablation/rates.py": ("tests/ablation/test_rates.py",),
    "ablation/engine.py": ("tests/ablation/test_engine.py", "-k", "learning_rate or rate_is or result or fails"),
    "ablation/grid.py": ("tests/ablation/test_grid.py",),
    "ablation/population.py": ("tests/ablation/test_population.py", "-k", "run_alone or rates_matter or real_data"),
}


@dataclass(frozen=True)
class Fault:
    """In a file of the package, `right` (which it has once) becomes `wrong`."""

    name: str
    file: str
    right: str
    wrong: str


def _faults(file: str, *rows: tuple[str, str, str]) -> tuple[Fault, ...]:
    return tuple(Fault(name, file, right, wrong) for name, right, wrong in rows)


FAULTS = (
    *_faults(
        "report/statistics.py",
        ("intervals of 90%", "CONFIDENCE = 0.95", "CONFIDENCE = 0.90"),
        ("spread of resamples too small", "resampled.var(axis=1, ddof=1)", "resampled.var(axis=1, ddof=0)"),
        ("tails swapped", "mean - float(quantiles[1]) * error", "mean + float(quantiles[0]) * error"),
        ("endless tails", "np.clip(quantiles, WIDEST * students[0], WIDEST * students[1])", "quantiles"),
        ("below the lower limit", "-np.inf if low is None else low", "-np.inf"),
        ("above the upper limit", "np.inf if high is None else high", "np.inf"),
        ("examples forgotten", "if examples is not None and len(examples) > 1:", "if False:"),
        ("examples not drawn", "moved + _resampled_means(examples, rng) - np.mean(examples)", "moved"),
        ("equal values prove", " or np.ptp(values) <= 1e-12 * np.max(np.abs(values))", ""),
        ("one-sided p", "float(2 * stats.t.sf(abs", "float(stats.t.sf(abs"),
        ("another null", "abs(np.mean(differences) - null)", "abs(np.mean(differences))"),
        ("equivalence of one side", "margin - abs(np.mean(differences))", "margin - np.mean(differences)"),
        ("a share's interval too short", "tail = (1 - CONFIDENCE) / 2", "tail = 1 - CONFIDENCE"),
        ("Bonferroni for Holm", "np.arange(len(order), 0, -1)", "np.full(len(order), len(order))"),
        ("no correction", "np.arange(len(order), 0, -1)", "np.ones(len(order))"),
        ("p that decreases", "np.maximum.accumulate(factors * p_values[order])", "factors * p_values[order]"),
        ("ties for us", "+ np.sum(differences == 0) / 2", "+ np.sum(differences == 0)"),
        ("too much trimmed", "np.float64), 0.25))", "np.float64), 0.4))"),
        ("the last step", "steps[int(np.argmax(row))]", "steps[-1]"),
        ("never reached is the first", " if row.any() else None for", " for"),
    ),
    *_faults(
        "report/summary.py",
        ("validation for test", 'each["test"][metric.name]', 'each["validation"][metric.name][-1]'),
        (
            "other rates too",
            'in replicas if each["learning_rate"] == rate)',
            'in replicas if each["learning_rate"] <= rate)',
        ),
        ("seeds not paired", 'key=lambda each: each["seed"])', 'key=lambda each: each["test"][metric.name] or 0)'),
        ("less is better, turned", "paired = [sign * (each.values", "paired = [(each.values"),
        ("differences not corrected", "corrected_p=float(corrected)", "corrected_p=p_value"),
        ("broken bounds hold", 'worst - self.bound["value"]) <= SLACK', 'worst - self.bound["value"]) <= 1'),
        ("bounds turned", "bool((1 if better else -1) * (worst", "bool((1 if not better else -1) * (worst"),
        ("bounds that cannot fail count", '(self.bound["value"] - best) >= -SLACK', '(self.bound["value"] - best) > 9'),
        ("worse is better", '"better" if self.interval.mean > 0', '"better" if self.interval.mean < 0'),
        ("few seeds are enough", "len(self.values) < FEWEST_SEEDS or not", "not"),
        ("unclear is equal", "self.equivalence_p < SIGNIFICANT", "not self.corrected_p < SIGNIFICANT"),
        ("few seeds are equal", "len(self.values) >= FEWEST_SEEDS and self", "self"),
        ("success turned", "values >= threshold if metric", "values < threshold if metric"),
        ("failures in the mean of the rest", "bootstrap_interval(values[succeeded]", "bootstrap_interval(values"),
        ("the share of failures", "share_interval(float(succeeded.sum())", "share_interval(int((~succeeded).sum())"),
        ("examples of another rate", 'if each["learning_rate"] == rate), None)', "), None)"),
        ("examples not paired", "    return ours - theirs", "    return ours"),
        (
            "score without limits",
            "examples=examples, limits=metric.limits),\n        succeeded",
            "examples=examples),\n        succeeded",
        ),
        ("the same by score alone", "bool(np.all(np.abs(score.curves - base.curves) <= SAME))", "True"),
        ("the same by curve alone", "bool(np.all(np.abs(score.values - base.values) <= SAME))", "True"),
        ("nothing is the same", "is_same=is_same,", "is_same=False,"),
        (
            "the dearer one's FLOPs",
            "flops = min(float(each.training_flops[-1])",
            "flops = max(float(each.training_flops[-1])",
        ),
        ("FLOPs of a forward pass", "return 3.0 * self.forward_flops", "return 1.0 * self.forward_flops"),
        ("the batch costs nothing", "self.forward_flops * self.batch_size * np", "self.forward_flops * np"),
        ("the last score at any FLOPs", "np.interp(flops, known, curve)", "curve[-1]"),
        (
            "equal FLOPs against oneself",
            "sign * (ours.values - theirs.values), limits",
            "sign * (ours.values - base.values), limits",
        ),
        ("equivalence not corrected", "holm(p_values), holm(equivalence)", "holm(p_values), equivalence"),
    ),
    *_faults(
        "report/claims.py",
        ("the mean is above", "if interval.low > threshold:", "if interval.mean > threshold:"),
        ("the mean is below", "if interval.high <= threshold", "if interval.mean <= threshold"),
        (
            "claims not corrected",
            "iter(holm([each.p_value for row in measured for each in row]))",
            "iter([each.p_value for row in measured for each in row])",
        ),
        ("no p needed", "or not corrected_p < SIGNIFICANT:", ":"),
        ("nothing subtracted", "else _difference(found, less)", "else found"),
        ("scores for measures", "if quantity.measure is None:", "if True:"),
        ("failures do not matter", "rest is not None and answer != _answer_alone(comparison, rest)", "False"),
        ("nobody succeeded, nobody failed", "elif failed == len(values):", "elif False:"),
        ("shares beyond 1", "measure_limits(quantity.measure, score.metric)", "(None, None)"),
        ("failures of one side only", "more.succeeded & less.succeeded", "less.succeeded"),
        ("two seeds decide", "elif len(values) < FEWEST_SEEDS:", "elif False:"),
        ("open means no", '(True, False) if answer == "open"', '(False,) if answer == "open"'),
        ("the last conclusion", "conclusion = next(applies)", "*_, conclusion = applies"),
        ("equal unless different", 'return "yes"\n    return "no" if max', 'return "open"\n    return "no" if max'),
        ("the threshold is 0", "examples=examples, null=threshold)", "examples=examples)"),
        ("rates at an edge count", "if measured.at_edge:", "if False:"),
        ("other claims do not correct a span", "_corrected(rows)[number]", "_corrected([rows[number]])[0]"),
        (
            "spans end at the mean",
            "for turned in (*probes, limit):\n        if not same(turned):",
            "for turned in probes:\n        if True:",
        ),
        (
            "equal FLOPs are the end",
            "views = [_view_at_equal_flops(claim, summary)",
            "views = [dataclasses.replace(summary)",
        ),
        (
            "never a failure is failure",
            "score.succeeded if score.succeeded.any() else np.ones",
            "score.succeeded if True else np.ones",
        ),
    ),
    *_faults(
        "ablation/convergence.py",
        ("the best, not the mean", "heights[:, last].mean(axis=1)", "heights[:, last].max(axis=1)"),
        ("the whole curve before", "(shares > 0.5) & (shares <= 0.75)", "shares <= 0.75"),
        ("noise is nothing", "max(tolerance, noise_tolerance * error)", "tolerance"),
        ("noise of one seed", "1 / before.sum()) / len(curves))", "1 / before.sum()))"),
        ("a trend is noise", "np.stack([np.ones_like(times), times], axis=1)", "np.ones_like(times)[:, None]"),
        ("losses rise", "curves if higher_is_better else -curves", "curves"),
    ),
    *_faults(
        "ablation/rates.py",
        ("chosen on test", 'from_json(each["validation"][metric.name][-1])', 'from_json(each["test"][metric.name])'),
        (
            "chosen at the start",
            'from_json(each["validation"][metric.name][-1])',
            'from_json(each["validation"][metric.name][0])',
        ),
        (
            "chosen by the loss",
            'from_json(each["validation"][metric.name][-1])',
            'from_json(each["validation"]["loss"][-1])',
        ),
        ("the rate of the best seed", "rate: float(np.mean([", "rate: float(np.max(["),
        ("all seeds choose", "for seed in common]", "for seed in by_seed]"),
        ("the worst rate", "(1 if metric.higher_is_better else -1)", "(-1 if metric.higher_is_better else 1)"),
        ("divergence is best", "heights, -np.inf)", "heights, np.inf)"),
        ("grows the other way", '"highest" if best == rates[-1]', '"lowest" if best == rates[-1]'),
        ("never grows", "if edge is None or count", "if edge is not None or count"),
        ("edges do not give way", "<= tolerance:", "< 0:"),
    ),
    *_faults(
        "ablation/engine.py",
        (
            "validation stored as test",
            '"test": {name: _as_json(values[number]) for name, values in outcome.test',
            '"test": {name: _as_json(values[number][-1]) for name, values in outcome.validation',
        ),
        (
            "examples of all rates",
            "blocks[rates == rate].sum(axis=0)",
            "blocks.sum(axis=0)",
        ),
    ),
    *_faults(
        "ablation/grid.py",
        ("seeds not in the key", "[dataclasses.astuple(replica) for replica in self.replicas]", "[]"),
        ("twins are cells", "if same is not None:", "if False:"),
        (
            "matched by the other cost",
            'return cost(config)[1] if match == "flops" else',
            'return cost(config)[1] if match != "flops" else',
        ),
        ("only is ignored", "if entry.only is None or n in entry.only}", "if True}"),
        ("claims about nothing", "    _check_claims(grid)\n    if not", "    if not"),
        ("names not in the key", 'elif knob.name == "name" or value != getattr', "elif value != getattr"),
    ),
    *_faults(
        "ablation/population.py",
        (
            "tested on validation",
            'self._evaluate_split(seeds, state, "test")',
            'self._evaluate_split(seeds, state, "validation")',
        ),
        ("one seed for all", "np.array([replica.seed for", "np.array([replicas[0].seed for"),
        ("one rate for all", "np.array([replica.learning_rate for", "np.array([replicas[0].learning_rate for"),
        (
            "data of one seed",
            "[by_seed[replica.seed] for replica in replicas]",
            "[by_seed[replicas[0].seed] for replica in replicas]",
        ),
    ),
)


def _passes(folder: Path, tests: tuple[str, ...]) -> bool:
    """Whether these tests pass on the copy, in a fork of this process that has imported the libraries already."""
    process = multiprocessing.get_context("fork").Process(target=_run, args=(folder, tests))
    process.start()
    process.join()
    return process.exitcode == 0


def _run(folder: Path, tests: tuple[str, ...]) -> None:
    import pytest

    os.chdir(folder)
    sys.path[:] = [str(folder), *(each for each in sys.path if Path(each).resolve() not in (ROOT, ROOT / "tools"))]
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    sys.exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests])))


def _copied(folder: Path) -> None:
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
        else:
            shutil.copy(source, folder / name)


def _imported() -> None:
    """The slow libraries, once for all faults; but nothing of the lab, which differs from fault to fault."""
    for name in LIBRARIES:
        importlib.import_module(name)


def main(names: list[str]) -> int:
    """Plants the named faults, all by default; returns how many passed all tests."""
    unknown = set(names) - {fault.name for fault in FAULTS}
    if unknown:
        sys.exit(f"error: there is no fault {sorted(unknown)[0]!r}; tools/mutants.py lists them in FAULTS")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    sys.dont_write_bytecode = True  # a fault of the same length would be hidden by an earlier file's bytecode
    _imported()
    faults = [fault for fault in FAULTS if not names or fault.name in names]
    missed = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _copied(folder)
        for file in dict.fromkeys(fault.file for fault in faults):
            if not _passes(folder, TESTS[file]):
                sys.exit(f"error: {' '.join(TESTS[file])} fails without any fault; mend it first")
        for fault in faults:
            path = folder / "flaxformer_lab" / fault.file
            text = path.read_text(encoding="utf-8")
            path.write_text(text.replace(fault.right, fault.wrong), encoding="utf-8")
            if _passes(folder, TESTS[fault.file]):
                missed.append(fault)
            print(f"{'MISSED' if fault in missed else 'caught'}  {fault.file}: {fault.name}", flush=True)
            path.write_text(text, encoding="utf-8")
    said = f"{len(faults) - len(missed)} of {len(faults)}"
    print(f"{said} caught")
    if not names:
        write_part(PAGE, "mutants", said)
    return len(missed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="a fault to plant; all by default")
    sys.exit(1 if main(parser.parse_args().names) else 0)

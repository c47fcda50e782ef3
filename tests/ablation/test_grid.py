"""Which cells an ablation has, what their keys follow from, and what is refused."""

import dataclasses
import json
import os
from pathlib import Path

import pytest

from flaxformer_lab import registry
from flaxformer_lab.ablation.grid import BASELINE, RESULT_FORMAT, apply_change, cost, make_grid, parse_ablation
from flaxformer_lab.ablation.population import Replica
from flaxformer_lab.command_line import read_recipe
from flaxformer_lab.config import Config, as_dict, parse_config
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.parsing import flatten, override
from flaxformer_lab.report.formatting import format_seeds


def pairs(grid):
    return [(cell.task, cell.variant) for cell in grid.cells]


def test_every_pair_is_a_cell_with_every_replica(grid):
    made = grid()
    assert pairs(made) == [(task, variant) for task in ("near", "far") for variant in (BASELINE, "ffn_off", "one head")]
    assert {(r.seed, r.learning_rate) for r in made.cells[0].replicas} == {(s, r) for s in (0, 1) for r in (0.01, 0.03)}
    assert made.cell("near", "one head").config.model.attention.num_heads == 1
    assert made.cell("far", "ffn_off").config.task.tokens == 6
    assert made.cell("far", "nothing") is None


def test_pairs_that_mean_nothing_are_left_out_and_named(grid):
    made = grid({"variants": {"same": {"model": {"width": 8}}, "2 heads": {"model": {"attention": {"num_heads": 2}}}}})
    assert pairs(made) == [("near", BASELINE), ("far", BASELINE)]
    assert ("near", "same", "the same as baseline") in made.dropped


def test_a_variant_that_does_not_fit_one_task_is_left_out_there(grid):
    made = grid(
        {
            "variants": {"channel": "channel_attention", "ffn_off": "ffn_off"},
            "tasks": {
                "causal": {"recipe": "a.py"},
                "whole": {"recipe": "a.py", "overrides": {"model": {"causal": False}}},
            },
        }
    )
    assert ("causal", "channel") not in pairs(made) and ("whole", "channel") in pairs(made)
    assert any(task == "causal" and "cannot be causal" in why for task, _, why in made.dropped)


def test_tasks_choose_among_the_variants_and_have_their_own(grid):
    tasks = {
        "near": {"recipe": "delay.py", "only": ["ffn_off"]},
        "far": {
            "recipe": "delay.py",
            "only": [],
            "variants": {"wide": {"ablation": "ffn_off", "model": {"width": 16}}},
        },
    }
    made = grid({"tasks": tasks})
    assert pairs(made) == [("near", BASELINE), ("near", "ffn_off"), ("far", BASELINE), ("far", "wide")]
    wide = made.cell("far", "wide").config.model
    assert (wide.width, wide.ffn.kind) == (16, "off")


def test_chosen_claims_need_no_other_cells(grid, claim):
    other = claim | {"name": "C5", "comparisons": [claim["comparisons"][0] | {"more": {"task": "far"}, "less": None}]}
    changes = {"claims": [claim, other]}
    assert len(grid(changes).cells) == 6
    assert pairs(grid(changes | {"decide": ["C4"]})) == [("near", BASELINE), ("near", "ffn_off")]
    assert pairs(grid(changes | {"decide": ["C5"]})) == [("far", BASELINE)]


def test_some_tasks_alone(grid, claim):
    assert {cell.task for cell in grid({"only": ["far"], "claims": [claim]}).cells} == {"far"}
    # A variant that fits none of these fits another.
    whole = {"recipe": "delay.py", "overrides": {"model": {"causal": False}}}
    tasks = {"tasks": {"near": {"recipe": "delay.py"}, "whole": whole}, "variants": {"channel": "channel_attention"}}
    assert pairs(grid(tasks | {"only": ["near"]})) == [("near", BASELINE)]
    with pytest.raises(ConfigError, match="only names fare, which is not among tasks: did you mean far"):
        grid({"only": ["fare"]})
    with pytest.raises(ConfigError, match="only and decide leave nothing to train"):
        grid({"only": ["far"], "claims": [claim], "decide": ["C4"]})


def test_a_task_may_begin_with_rates_of_its_own(grid):
    tasks = {"near": {"recipe": "delay.py", "learning_rates": [0.1, 0.3]}, "far": {"recipe": "delay.py"}}
    made = grid({"tasks": tasks})
    assert [sorted({r.learning_rate for r in made.cell(t, BASELINE).replicas}) for t in ("near", "far")] == [
        [0.1, 0.3],
        [0.01, 0.03],
    ]


def test_a_variant_may_begin_with_rates_of_its_own(grid):
    entry = {"recipe": "delay.py", "learning_rates": [0.1, 0.3], "variant_rates": {"linear_only": [1.0]}}
    made = grid({"tasks": {"near": entry, "far": {"recipe": "delay.py"}}, "variants": {"linear_only": "linear_only"}})
    cells = [(cell.task, cell.variant, sorted({r.learning_rate for r in cell.replicas})) for cell in made.cells]
    assert cells == [
        ("near", BASELINE, [0.1, 0.3]),
        ("near", "linear_only", [1.0]),
        ("far", BASELINE, [0.01, 0.03]),
        ("far", "linear_only", [0.01, 0.03]),
    ]
    with pytest.raises(ConfigError, match=r"near\.variant_rates names linear, which is no variant of it: did you mean"):
        grid({"tasks": {"near": entry | {"variant_rates": {"linear": [1.0]}}}})


def test_a_variant_may_be_another_recipe_with_the_same_task(recipe):
    """The task's overrides hold in it too, and the variant's own after them."""
    other = recipe | {"model": {"name": "cnn_1d", "width": 4, "causal": True}, "seed": 3}
    files = {"/nowhere/a.py": recipe, "/nowhere/b.py": other}
    variants = {"convolution": {"recipe": "b.py", "model": {"kernel_size": 5}}}
    overrides = {"task": {"tokens": 7}, "model": {"width": 16}}
    tree = {"tasks": {"near": {"recipe": "a.py", "overrides": overrides}}, "variants": variants}
    made = make_grid(parse_ablation(tree), Path("/nowhere"), lambda path, overrides: dict(files[path]))
    config = made.cell("near", "convolution").config
    assert (config.model.name, config.model.width, config.model.kernel_size, config.task.tokens) == ("cnn_1d", 16, 5, 7)
    assert made.cell("near", BASELINE).config.model.name == "transformer"


def test_a_task_may_have_seeds_of_its_own(grid):
    made = grid({"tasks": {"near": {"recipe": "delay.py", "seeds": [7, 8, 9]}, "far": {"recipe": "delay.py"}}})
    assert [[*dict.fromkeys(r.seed for r in made.cell(t, BASELINE).replicas)] for t in ("near", "far")] == [
        [7, 8, 9],
        [0, 1],
    ]
    assert (
        format_seeds(made.config, ["near", "far"]) == "2 to 3 seeds" and format_seeds(made.config, ["far"]) == "2 seeds"
    )
    with pytest.raises(ConfigError, match=r"tasks\.near\.seeds=.*none of them twice"):
        grid({"tasks": {"near": {"recipe": "delay.py", "seeds": [0, 0]}}})


def test_one_optimizer_trains_the_maps_of_all_variants_of_a_task(grid, recipe):
    """Muon leaves diagonal maps, and those of a factorization machine, to AdamW."""
    muon = recipe | {"optimizer": {"name": "muon"}}
    apart = {"variants": {"diagonal": "diagonal_projection", "fm": "factorization_machine"}}
    assert len(grid(recipe=muon).cells) == 6
    with pytest.raises(ConfigError, match=r"tasks.near: optimizer.name=muon trains body.blocks.0.attention.*kernel of"):
        grid(apart, recipe=muon)
    with pytest.raises(ConfigError, match=r"body.factors.kernel of fm by AdamW.*overrides.optimizer.name=adamw"):
        grid({"variants": {"fm": "factorization_machine"}}, recipe=muon)
    assert len(grid(apart | {"mixed_optimizers": True}, recipe=muon).cells) == len(grid(apart).cells) == 6


def test_the_key_follows_from_what_the_result_follows_from(grid):
    cell = grid().cells[0]
    assert cell.key == grid().cells[0].key
    renamed = dataclasses.replace(cell, task="another", variant="name")
    assert renamed.key == cell.key  # the same work under another name
    others = [
        dataclasses.replace(cell, replicas=cell.replicas[:1]),
        grid({"seeds": (0, 2)}).cells[0],
        grid({"learning_rates": (0.01, 0.02)}).cells[0],
        grid().cells[1],
        grid().cell("far", BASELINE),
    ]
    assert len({cell.key, *(other.key for other in others)}) == 6


def test_a_new_knob_with_a_default_leaves_the_key_as_it_was(grid, monkeypatch):
    """In a group of keys of its own, in one that the config names (model), and at the top."""
    cells = grid().cells
    whole = cells[0].config
    for of, name in (("attention", "model"), ("optimizer", None)):
        parent = getattr(whole, name) if name else whole
        group = getattr(parent, of)
        kind = dataclasses.make_dataclass("More", [("knob", int, 3)], bases=(type(group),), frozen=True)

        def with_knob(group=group, kind=kind, parent=parent, of=of, name=name, **knob):
            more = dataclasses.replace(parent, **{of: kind(**vars(group), **knob)})
            config = dataclasses.replace(whole, **{name: more}) if name else more
            return dataclasses.replace(cells[0], config=config)

        assert with_knob().key == cells[0].key
        assert with_knob(knob=4).key != cells[0].key


def test_a_knob_of_another_name_keeps_the_key_it_had(grid):
    """task.standardised became task.scaling: results of version 0.1 are found, and its configs mean the same."""
    cell = dataclasses.replace(grid().cells[0], replicas=(Replica(0, 0.01),))
    tabular = lambda **knobs: parse_config({"task": {"name": "tabular_classification"} | knobs})  # noqa: E731
    key = lambda **knobs: dataclasses.replace(cell, config=tabular(**knobs)).key  # noqa: E731
    assert key(scaling="none") == key(standardised=False) == "dc0f82738ef9d040"  # that of version 0.1
    assert key(scaling="standard") == key(standardised=True) == "495635cb98efd027"
    assert len({key(scaling="quantile"), key(scaling="none"), key()}) == 3
    assert apply_change(tabular(), {"task": {"standardised": False}}) == tabular(scaling="none")
    assert apply_change(tabular(scaling="quantile"), {"task": {"standardised": True}}) == tabular()


def test_names_are_in_the_key_even_where_nothing_differs(grid):
    """Else the default model would have the key of another one with its own defaults."""
    cell = grid().cells[0]
    keys = set()
    for model in ({}, {"name": "mlp", "depth": 2}, {"name": "lstm"}, {"name": "gru"}):
        config = parse_config({"task": {"name": "product"}, "model": model})
        keys.add(dataclasses.replace(cell, config=config).key)
    assert len(keys) == 4


def test_each_value_that_differs_from_its_default_is_in_the_key(grid):
    cell = grid().cells[0]
    base = {"task": {"name": "image_classification"}, "model": {"width": 16, "attention": {"num_heads": 4}}}
    keys = {dataclasses.replace(cell, config=parse_config(base)).key}
    changes = {
        "model.width": 32,
        "model.attention.num_heads": 2,
        "model.attention.window": 3,
        "model.norm.epsilon": 1e-5,
        "model.skip.ffn": False,
        "task.shift": 1,
        "optimizer.beta1": 0.8,
        "training.steps": 7,
    }
    for key, value in changes.items():
        keys.add(dataclasses.replace(cell, config=parse_config(override(base, key, value))).key)
    assert len(keys) == 1 + len(changes)


def test_no_default_changes_unseen():
    """Stored results are found by what differs from the defaults: another default needs another RESULT_FORMAT."""
    golden = Path(__file__).parents[1] / "goldens" / "defaults.json"
    configs = {"config": Config()}
    for kind in ("task", "model"):
        configs |= {f"{kind} {name}": config(name=name) for name, config in registry.configs(kind).items()}
    now = {"format": RESULT_FORMAT} | {
        f"{what} {key}": value for what, each in configs.items() for key, value in flatten(as_dict(each)).items()
    }
    if os.environ.get("UPDATE_GOLDENS"):
        golden.write_text(json.dumps(now, indent=1) + "\n")
    then = json.loads(golden.read_text())
    changed = {key: (then[key], now[key]) for key in then.keys() & now.keys() if then[key] != now[key]}
    assert not changed or now["format"] != then["format"], f"raise RESULT_FORMAT in ablation/grid.py: {changed}"
    assert now.keys() == then.keys(), "UPDATE_GOLDENS=1 writes the defaults again"


def test_the_recipes_own_seed_and_learning_rate_do_not_matter(grid, recipe):
    other = recipe | {"seed": 7, "optimizer": {"learning_rate": 0.5}}
    assert grid(recipe=other).cells[0].key == grid().cells[0].key


@pytest.mark.parametrize("variant", ["cnn_1d", "per_dimension", "ffn_off", "lstm"])
def test_a_matched_width_suits_the_variant_and_not_the_recipe(grid, recipe, variant):
    """A convolution has no heads to divide; rotary positions turn pairs; a head a feature grows with the width."""
    turning = recipe | {"model": recipe["model"] | {"width": 32, "position": "rotary", "attention": {"num_heads": 4}}}
    changes = {"match": "parameters", "variants": {variant: variant}, "tasks": {"near": {"recipe": "delay.py"}}}
    changes |= {"match_tolerance": 10.0}
    made = grid(changes, recipe=turning)
    wanted, found = (cost(made.cell("near", name).config)[0] for name in (BASELINE, variant))
    assert found == pytest.approx(wanted, rel=0.2)


@pytest.mark.parametrize(
    "change",
    [
        {"attention": {"projection": "block", "output": "block"}},
        {"attention": {"projection": "monarch", "output": "monarch"}},
        {"ffn": {"projection": "block"}},
        {"position": "rotary", "attention": {"rotary_share": 0.5}, "ffn": {"kind": "off"}},
    ],
    ids=["block", "monarch", "block ffn", "half rotary"],
)
def test_a_matched_width_suits_blocks_and_what_is_rotated(grid, change):
    changes = {"match": "parameters", "match_tolerance": 0.1, "variants": {"v": {"model": change}}}
    changes["tasks"] = {"near": {"recipe": "delay.py"}}
    model = {"width": 64, "attention": {"num_heads": 4}, "ffn": {"expansion": 4.0}}
    made = grid(changes, recipe={"task": {"name": "delay"}, "model": model})
    found, wanted = (cost(made.cell("near", name).config)[0] for name in ("v", BASELINE))
    assert abs(found / wanted - 1) <= 0.1 and made.cell("near", "v").config.model.width > 64


@pytest.mark.parametrize("match", ["parameters", "flops"])
def test_matched_variants_cost_what_the_baseline_costs(grid, match):
    which = ("parameters", "flops").index(match)
    free, matched = grid(), grid({"match": match, "match_tolerance": 0.15})
    wanted = cost(free.cell("near", BASELINE).config)[which]
    without = cost(free.cell("near", "ffn_off").config)[which]
    found = cost(matched.cell("near", "ffn_off").config)[which]
    assert abs(found - wanted) < 0.15 * wanted < abs(without - wanted)
    assert matched.cell("near", BASELINE).config == free.cell("near", BASELINE).config
    assert matched.cell("near", "ffn_off").config.model.width > 8


def test_hidden_units_make_up_for_what_widths_cannot(grid, recipe):
    """A static attention has fewer maps; widths go in steps of two heads."""
    wide = recipe | {"model": recipe["model"] | {"width": 32, "ffn": {"expansion": 4.0}}}
    made = grid({"match": "parameters", "variants": {"static": "static_attention"}}, recipe=wide)
    wanted, found = (cost(made.cell("near", variant).config)[0] for variant in (BASELINE, "static"))
    assert found == pytest.approx(wanted, rel=0.02)
    assert made.cell("near", "static").config.model.ffn.expansion != 4.0


def test_what_cannot_be_matched_is_left_out_with_the_nearest(grid):
    made = grid({"match": "parameters"})
    assert ("near", "ffn_off") not in pairs(made)
    (why,) = [why for task, variant, why in made.dropped if (task, variant) == ("near", "ffn_off")]
    assert "nothing comes within 2% of the baseline's" in why and "the nearest, model.width=10, has" in why


def test_a_change_is_names_or_a_table():
    config = parse_config({"model": {"width": 8, "attention": {"num_heads": 2}}})
    assert apply_change(config, "") == config
    assert apply_change(config, "ffn_off, single_head").model.attention.num_heads == 1
    assert apply_change(config, {"model": {"width": 16}, "ablation": "ffn_off"}) == parse_config(
        override(override(as_dict(config), "model.width", 16), "model.ffn.kind", "off")
    )


def test_a_config_survives_json(grid):
    config = grid().config
    assert parse_ablation(json.loads(json.dumps(as_dict(config)))) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": {}}, r"tasks=.* must have at least one entry"),
        ({"seeds": ()}, r"seeds=\(\) must name at least one value"),
        ({"seeds": (0, 0)}, r"seeds=\(0, 0\) .*none of them twice"),
        ({"seeds": (0, 1), "search_seeds": 2}, r"search_seeds=2, but \w+ has 2 seeds; choose fewer, or 0 for all"),
        ({"seeds": "0,x"}, r"seeds\[1\]='x' must be a whole number"),
        ({"learning_rates": (0.1, -1)}, r"learning_rates\[1\]=-1 must be above 0"),
        ({"learning_rates": 3.0j}, r"must be a list"),
        ({"match": "params"}, r"match=params is not a choice: did you mean parameters\?"),
        ({"keep": "some"}, r"keep=some is not a choice"),
        ({"sedes": (1,)}, r"unknown key sedes .*did you mean seeds"),
        ({"tasks": {"near": {}}}, r"tasks\.near\.recipe is missing; tasks\.near has the keys recipe, overrides"),
        ({"tasks": {"near": {"recipe": ""}}}, r"tasks\.near\.recipe= must not be empty"),
        ({"tasks": {"near": {"recipy": "x"}}}, r"unknown key tasks\.near\.recipy"),
        (
            {"tasks": {"near": {"recipe": "x", "only": ["ffn_of"]}}},
            r"tasks\.near\.only names ffn_of.*did you mean ffn_off",
        ),
        ({"tasks": {"near": {"recipe": "x", "variants": {"ffn_off": ""}}}}, r"is a common variant already"),
        ({"tasks": {"near": {"recipe": "x", "overrides": {"model.widht": 3}}}}, r"tasks\.near: .*did you mean width"),
        ({"tasks": {"near": {"recipe": "x", "threshold": "high"}}}, r"threshold='high' must be a finite number"),
        ({"baseline": "ffn_of"}, r"baseline=ffn_of is no variant of task near: did you mean ffn_off"),
        ({"variants": {"x": "ffn_of"}}, r"--ablation=ffn_of is not a variant: did you mean ffn_off"),
        ({"variants": {"x": "channel_attention"}}, r"variants\.x fits none of the tasks: .*cannot be causal"),
        ({"variants": {"x": {"model": {"widht": 1}}}}, r"variants\.x fits none of the tasks: .*did you mean width"),
        ({"variants": {"x": 3}}, r"variants\.x"),
    ],
)
def test_what_cannot_be_is_refused(grid, changes, message):
    with pytest.raises(ConfigError, match=message):
        grid(changes)


CLAIM_ERRORS = [
    (
        {"more": {"task": "neer"}},
        r"the claim C4 \(helps\) names the task neer, which is not there: did you mean near\?",
    ),
    (
        {"more": {"task": "near", "variant": "ffn_of"}},
        r"names the variant ffn_of, which is not there: did you mean ffn_off",
    ),
    ({"less": {"task": "near", "variant": "channel"}}, r"channel on near, which the ablation leaves out: .*causal"),
    ({"less": {"task": "near", "measure": "energy"}}, r"claims\[0\]\.comparisons\[0\]\.less\.measure=energy is not a"),
    ({"less": {"variant": "ffn_off"}}, r"claims\[0\]\.comparisons\[0\]\.less\.task is missing"),
    ({"threshold": "high"}, r"threshold='high' must be a finite number"),
    ({"question": "is it\x1b[2J so?"}, r"question=.* must be printable"),
    ({"name": "another"}, r"a conclusion of the claim C4 names the comparison helps, .*choose from another"),
]


@pytest.mark.parametrize(("change", "message"), CLAIM_ERRORS)
def test_a_claim_about_what_the_ablation_does_not_have_is_refused(grid, claim, change, message):
    tasks = {"near": {"recipe": "a.py"}, "whole": {"recipe": "a.py", "overrides": {"model": {"causal": False}}}}
    changes = {"tasks": tasks, "variants": {"ffn_off": "ffn_off", "channel": "channel_attention"}}
    assert grid(changes | {"claims": [claim]}).config.claims[0].name == "C4"
    claim["comparisons"][0] |= change
    with pytest.raises(ConfigError, match=message):
        grid(changes | {"claims": [claim]})


def test_a_claim_that_is_not_to_be_decided_may_name_what_is_not_there(grid, claim):
    other = claim | {"name": "C5", "comparisons": [claim["comparisons"][0] | {"more": {"task": "nowhere"}}]}
    made = grid({"claims": [claim, other], "decide": ["C4"]})
    assert [each.name for each in made.config.decided_claims] == ["C4"]
    assert grid({"claims": [other], "decide": ()}).config.decided_claims == ()
    with pytest.raises(ConfigError, match="decide names C6, which is not among claims: did you mean"):
        grid({"claims": [claim, other], "decide": ["C6"]})
    with pytest.raises(ConfigError, match="claims has two of the same name: C4, C4"):
        grid({"claims": [claim, claim]})


@pytest.mark.parametrize(
    ("conclusions", "message"),
    [
        ([], r"conclusions=\[\] must have at least one entry"),
        ([{"verdict": "refuted", "reason": "no", "when": {"helps": "yes"}}], "but for the last one"),
        ([{"verdict": "refuted", "reason": "no"}] * 2, "must say `when`"),
        ([{"verdict": "undecided", "reason": "no"}], "verdict=undecided is not a choice"),
        ([{"verdict": "refuted", "reason": "no", "when": {"helps": "maybe"}}], "when.helps=maybe is not a choice"),
    ],
)
def test_conclusions_that_do_not_cover_every_case_are_refused(grid, claim, conclusions, message):
    with pytest.raises(ConfigError, match=message):
        grid({"claims": [claim | {"conclusions": conclusions}]})


def test_an_ablation_without_tasks_says_what_it_needs():
    with pytest.raises(ConfigError, match="tasks is missing"):
        parse_ablation({"seeds": (0,)})


REFERENCES = """
from ml_collections import ConfigDict
def get_config():
    config = ConfigDict({"task": {"name": "delay", "tokens": 4, "features": 4}, "model": {"width": 8}})
    config.model.attention = ConfigDict({"num_heads": 2, "head_dim": config.model.get_oneway_ref("width") // 2})
    config.training = ConfigDict({"steps": 100, "batch_size": 4})
    config.training.evaluate_every = config.training.get_oneway_ref("steps") // 2
    return config
"""


def test_references_of_a_recipe_follow_the_overrides_of_tasks_and_of_variants(tmp_path):
    (tmp_path / "recipe.py").write_text(REFERENCES)
    tree = {
        "tasks": {
            "short": {"recipe": "recipe.py", "overrides": {"training": {"steps": 60}}},
            "text": {"recipe": "recipe.py", "overrides": {"training.steps": "40", "training.evaluate_every": "5"}},
        },
        "variants": {
            "wide": {"model": {"width": 16}, "ablation": "ffn_off"},
            "wide as text": {"model.width": "32"},
            "both": {"model": {"width": 16, "attention": {"head_dim": 3}}},
            "ffn_off": "ffn_off",
        },
    }
    made = make_grid(parse_ablation(tree), tmp_path, read_recipe)
    found = {}
    for cell in made.cells:
        model, training = cell.config.model, cell.config.training
        sizes = (model.width, model.attention.head_dim)
        found[cell.task, cell.variant] = (*sizes, training.steps, training.evaluate_every)
    expected = {BASELINE: (8, 4), "wide": (16, 8), "wide as text": (32, 16), "both": (16, 3), "ffn_off": (8, 4)}
    lengths = {"short": (60, 30), "text": (40, 5)}
    assert found == {(t, v): expected[v] + lengths[t] for t in lengths for v in expected}
    assert made.cell("short", "wide").config.model.ffn.kind == "off"

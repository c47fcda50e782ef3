"""From flags to a config, and from an error to one clear line, exit code 2 and nothing written."""

import os
import re
import subprocess
import sys
import types
from pathlib import Path

import jax
import pytest
from absl.testing import flagsaver

from flaxformer_lab import command_line, registry
from flaxformer_lab.ablation.grid import make_grid, parse_ablation
from flaxformer_lab.ablation.learned.config import is_learned, parse_learned
from flaxformer_lab.ablation.variants import VARIANTS
from flaxformer_lab.cache import cache_folder
from flaxformer_lab.command_line import load_config, read_recipe
from flaxformer_lab.errors import ConfigError, DataError, NonFiniteError, RunError

REPOSITORY = Path(__file__).parents[1]
DIGITS, SPEECHES = (str(REPOSITORY / "configs" / f"{name}.py") for name in ("digits", "speeches"))


@pytest.fixture
def recipe(tmp_path_factory):
    """Writes a recipe file and returns its path."""

    def write(text, name="recipe.py"):
        path = tmp_path_factory.mktemp("recipes") / name
        path.write_text(text)
        return str(path)

    return write


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """What training is asked for, (config, workdir, options), in an empty folder; nothing is trained."""
    made = []
    stand_in = types.ModuleType("flaxformer_lab.training.loop")
    stand_in.train = lambda config, workdir, **options: made.append((config, workdir, options))
    monkeypatch.setitem(sys.modules, "flaxformer_lab.training.loop", stand_in)
    monkeypatch.setattr(command_line, "use_compilation_cache", lambda: None)
    monkeypatch.chdir(tmp_path)
    return made


@pytest.fixture
def train(command_texts, calls):
    """Runs the command up to where training would begin; returns what it would use."""

    def run(*arguments, module="flaxformer_lab.train"):
        code, _, err = command_texts(module, *arguments)
        assert code == 0, err
        return calls[-1]

    return run


@pytest.fixture
def refused(command_texts, calls, tmp_path):
    """The message of the command, which ends with exit code 2, says one line, and writes nothing."""

    def run(*arguments):
        code, out, err = command_texts("flaxformer_lab.train", *arguments)
        assert (code, out, list(tmp_path.iterdir()), calls) == (2, "", [], [])
        return one_line(err)

    return run


# ------------------------------------------------------------------------------------------- what is accepted


def test_a_recipe_as_it_is(train):
    config, workdir, options = train(f"--config={DIGITS}", "--workdir=here")
    assert config == load_config(DIGITS, [])
    assert (config.task.dataset, config.model.width, workdir) == ("lab_digits", 64, "here")
    assert options == {"stop_at": None, "loggers": ["tensorboard"]}


@pytest.mark.parametrize(
    ("arguments", "loggers"),
    [(["--loggers=csv,mlflow"], ["csv", "mlflow"]), (["--loggers="], []), (["--loggers=a", "--loggers=b"], ["a", "b"])],
)
def test_loggers_are_in_place_of_the_default(train, arguments, loggers):
    assert train(f"--config={DIGITS}", *arguments)[2]["loggers"] == loggers


def test_train_py_is_the_same_command(train):
    arguments = (f"--config={DIGITS}", "--workdir=here", "--ablation=ffn_off", "--config.seed=3", "--stop_at=2")
    assert train(*arguments, module="train") == train(*arguments)


def test_keys_are_overridden_in_both_ways_of_writing(train):
    arguments = ("--config.model.width=32", "--config.seed", "5", "--config.model.attention.head_dim", "none")
    config, _, options = train(*arguments, f"--config={DIGITS}", "--stop_at=7", "--config.model.bias=false")
    model = config.model
    assert (model.width, config.seed, model.attention.head_dim, model.bias) == (32, 5, None, False)
    assert options["stop_at"] == 7
    assert config.optimizer == load_config(DIGITS, []).optimizer


def test_variants_of_a_flag_that_is_repeated_are_all_applied(train):
    config, *_ = train(f"--config={DIGITS}", "--ablation=single_head", "--ablation=ffn_off,norm_off,single_head")
    model = config.model
    assert (model.attention.num_heads, model.ffn.kind, model.norm.kind) == (1, "off", "off")


def test_of_one_key_given_twice_the_last_counts(train):
    config, *_ = train(f"--config={DIGITS}", "--config.model.width=32", "--config.model.width=16")
    assert config.model.width == 16


def test_variants_are_laid_upon_the_recipe_and_its_overrides(train):
    arguments = (f"--config={DIGITS}", "--config.model.width=32", "--ablation=per_dimension,ffn_off")
    model = train(*arguments)[0].model
    assert (model.attention.num_heads, model.attention.head_dim, model.ffn.kind) == (32, 1, "off")


@pytest.mark.parametrize(
    ("arguments", "workdir"),
    [
        (["--config=configs/digits.py"], "runs/digits"),
        (["--config=configs/digits.py", "--ablation=ffn_off,single_head"], "runs/digits-ffn_off-single_head"),
        (["--config.seed=1"], "runs/digits"),
        (["--ablation=ffn_off", "--ablation=single_head"], "runs/digits-ffn_off-single_head"),
        (["--config=./configs/digits.py"], "runs/digits"),
        (["--config=configs/probes/product.py"], "runs/probes-product"),
        (["--config={here}/configs/probes/product.py"], "runs/probes-product"),
        (["--config={here}/mine/v1.2.py"], "runs/v1.2"),
        (["--config=mine/v1.2.py:small", "--ablation=ffn_off"], "runs/v1.2-small-ffn_off"),
    ],
)
def test_default_folder_names_recipe_and_variants(train, tmp_path, arguments, workdir):
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "v1.2.py").write_text("def get_config(size=''):\n    return {}")
    assert train(*(each.format(here=tmp_path) for each in arguments))[1] == workdir


def test_an_override_that_agrees_with_a_variant_is_no_contradiction():
    config = load_config(SPEECHES, ["--config.model.dropout=0", "--config.model.bias=False"], ["linear_only"])
    assert (config.model.dropout, config.model.bias, config.model.attention.kind) == (0.0, False, "static")


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("path", [DIGITS, SPEECHES], ids=["digits", "speeches"])
def test_every_variant_fits_the_recipes_or_says_why_not(path, name):
    reasons = {
        "channel_attention": r"model\.attention\.kind=channel .* cannot be causal; set model\.causal=false",
        "cnn_2d": r"model\.causal=true with model\.name=cnn_2d: .*; set model\.causal=false or model\.name=cnn_1d",
        "resnet": r"model\.name=resnet needs a grid of patches",
        "convnext": r"model\.name=convnext needs a grid of patches",
        "mixer": r"task\.objective=next_token with model\.name=mixer lets a token see .*; choose another model\.name",
    }
    if path == SPEECHES and name in reasons:
        with pytest.raises(ConfigError, match=reasons[name]):
            load_config(path, [], [name])
    else:
        assert load_config(path, [], [name]) != load_config(path, [])


def test_every_recipe_in_the_repository_is_valid():
    found = sorted((REPOSITORY / "configs").rglob("*.py"))
    ablations = [path for path in found if path.parent.name == "ablations"]
    recipes = [path for path in found if path not in ablations]
    assert len(recipes) >= 2 and ablations
    recipes.remove(REPOSITORY / "configs" / "fine_tuning.py")  # needs a folder: tests/test_pretrained.py
    for path in recipes:
        assert load_config(str(path), []).model.name in registry.names("model")
    for path in ablations:
        if is_learned(read_recipe(str(path))):
            assert parse_learned(read_recipe(str(path))).question
            continue
        if (REPOSITORY / "docs" / "results" / f"{path.stem}.csv.gz").exists():  # tests/test_debate.py makes its grid
            continue
        try:
            assert make_grid(parse_ablation(read_recipe(str(path))), path.parent, read_recipe).cells
        except DataError as error:  # data from the network, where there is none
            assert "cannot be downloaded" in str(error) and path.stem == "vision_full"


@pytest.mark.parametrize("overrides", [[], ["--config.model.width=32", "--config.model.depth=1"]], ids=["plain", "set"])
def test_a_baseline_has_the_width_and_depth_of_recipe_and_overrides(train, overrides):
    model = train(f"--config={DIGITS}", "--ablation=lstm", *overrides)[0].model
    recipe = load_config(DIGITS, []).model
    assert (model.name, model.width, model.depth) == ("lstm", *((32, 1) if overrides else (recipe.width, recipe.depth)))


def test_a_recipe_of_a_baseline(train, recipe):
    text = "def get_config():\n    return {'model': {'name': 'cnn_1d', 'kernel_size': 5}}"
    config, *_ = train(f"--config={recipe(text)}", "--config.model.kernel_size=7", "--ablation=norm_off")
    assert (config.model.name, config.model.kernel_size, config.model.norm.kind) == ("cnn_1d", 7, "off")


def test_a_recipe_may_return_a_plain_mapping(recipe):
    assert load_config(recipe("def get_config():\n    return {'seed': 3}"), []).seed == 3
    path = recipe("def get_config(size='small'):\n    return {'seed': {'small': 1, 'large': 2}[size]}")
    assert [load_config(each, []).seed for each in (path, f"{path}:large")] == [1, 2]


# ------------------------------------------------------------------------------------------- what is refused

BAD_FLAGS = {
    "unknown key": (["--config.model.widht=3"], ["unknown key model.widht (value '3')", "did you mean width?"]),
    "unknown part": (["--config.modell.width=3"], ["unknown key modell", "did you mean model?"]),
    "wrong type": (["--config.model.width=wide"], ["model.width='wide' must be a whole number"]),
    "heads that do not divide": (
        ["--config.model.attention.num_heads=3"],
        ["model.attention.num_heads=3 does not divide model.width=64", "choose one of 1, 2, 4, 8, 16, 32, 64"],
    ),
    "attention not offered": (
        ["--config.model.attention.kind=lineal"],
        ["model.attention.kind=lineal is not a choice", "choose from softmax, linear, lightning, channel"],
    ),
    "override into a plain value": (
        ["--config.model.width.heads=3"],
        ["model.width.heads=3: model.width holds a plain value, 64", "set model.width itself"],
    ),
    "override of a part": (
        ["--config.model=3"],
        ["model='3' must be a group of keys; set model.name to one of transformer, mlp"],
    ),
    "no value at the end": (["--config.model.width"], ["--config.model.width must be --config.KEY=VALUE"]),
    "no value before a flag": (
        ["--config.model.width", "--config.model.depth=1"],
        ["--config.model.width must be --config.KEY=VALUE, like --config.model.width=32"],
    ),
    "empty value": (["--config.model.width="], ["model.width='' must be a whole number"]),
    "no key": (["--config.=3"], ["--config.=3 must be --config.KEY=VALUE"]),
    "gap in the key": (["--config.model..width=3"], ["--config.model..width=3 must be --config.KEY=VALUE"]),
    "key of another task": (
        ["--config.task.name=language_modelling"],
        ["unknown key task.patch_size (value 2): task has name, dataset, feature, tokenizer"],
    ),
    "positional argument": (["configs/speeches.py"], ["configs/speeches.py is not understood", "--name=value"]),
    "a flag twice": (
        ["--workdir", "other", "--workdir=third"],
        ["--workdir is given twice, as run and as other", "give it once"],
    ),
    "key as a flag": (
        ["--model.depth=2"],
        ["Unknown command line flag 'model.depth'", "did you mean --config.model.depth?"],
    ),
    "the field's name as a flag": (["--lr=1"], ["did you mean --config.optimizer.learning_rate?"]),
    "key of a group inside": (
        ["--config.model.num_heads=4"],
        ["unknown key model.num_heads (value '4'): did you mean model.attention.num_heads? model has name"],
    ),
    "config twice": (
        ["--config.config.model.num_heads=4"],
        ["unknown key model.num_heads (value '4'): did you mean model.attention.num_heads?"],
    ),
    "no_ffn": (["--ablation=no_ffn"], ["--ablation=no_ffn is not a variant: did you mean ffn_off"]),
    "an ablation": (
        [f"--config={REPOSITORY / 'configs' / 'ablations' / 'scales.py'}"],
        ["scales.py is an ablation, not one run: python -m flaxformer_lab.ablate --config="],
    ),
    "no file of parts": (["--import=nothing.py"], ["--import=nothing.py cannot be read", "name a Python file"]),
    "unknown flag": (["--ablate=ffn_off"], ["Unknown command line flag 'ablate'"]),
    "impossible flag": (["--stop_at=0"], ["--stop_at=0", "positive integer"]),
    "flag of another type": (["--stop_at=soon"], ["--stop_at=soon"]),
    "unknown variant": (
        ["--ablation=ffn_of"],
        ["--ablation=ffn_of is not a variant: did you mean ffn_off", "choose from single_head, multi_head"],
    ),
    "variant not offered": (["--ablation=nonlinear_attention"], ["--ablation=nonlinear_attention is not a variant"]),
    "empty variant": (["--ablation=ffn_off,"], ["--ablation= is not a variant", "choose from single_head"]),
    "variants that contradict": (
        ["--ablation=single_head,multi_head"],
        ["--ablation=multi_head sets model.attention.num_heads=8, but single_head sets it to 1", "only one of the two"],
    ),
    "variants that leave nothing": (
        ["--ablation=ffn_off,attention_off"],
        ["model.attention.kind=off and model.ffn.kind=off leave every block empty"],
    ),
    "variant against a flag": (
        ["--ablation=ffn_off", "--config.model.ffn.kind=gated"],
        ["--config.model.ffn.kind=gated contradicts --ablation=ffn_off, which sets it to off", "drop one of the two"],
    ),
    "variant against a flag with a computed value": (
        ["--ablation=per_dimension", "--config.model.attention.num_heads=8"],
        ["--config.model.attention.num_heads=8 contradicts --ablation=per_dimension, which sets it to 64"],
    ),
    "variants of two models": (
        ["--ablation=lstm,single_head"],
        [
            "--ablation=single_head sets model.attention.num_heads, which model.name=lstm does not have",
            "drop the variant",
        ],
    ),
    "two models": (
        ["--ablation=lstm,gru"],
        ["--ablation=gru sets model=", "but lstm sets it to", "only one of the two"],
    ),
    "model against a flag that it lacks": (
        ["--ablation=lstm", "--config.model.attention.num_heads=2"],
        ["--config.model.attention.num_heads=2 contradicts --ablation=lstm, which takes another model", "drop one"],
    ),
    "model against a flag that it lacks, of no value": (
        ["--ablation=lstm", "--config.model.attention.head_dim=none"],
        ["--config.model.attention.head_dim=None contradicts --ablation=lstm, which takes another model"],
    ),
    "model against its name": (
        ["--ablation=lstm", "--config.model.name=transformer"],
        ["--config.model.name=transformer contradicts --ablation=lstm, which sets it to lstm", "drop one of the two"],
    ),
    "key of another model": (
        ["--config.model.kernel_size=5"],
        ["unknown key model.kernel_size (value '5')", "model has name, width, depth", "where model.name=transformer"],
    ),
    "name of another model beside the recipe's keys": (
        ["--config.model.name=lstm"],
        [
            "unknown key model.attention",
            "model has name, width, depth, bias, dtype, precision where model.name=lstm",
            "--ablation=lstm takes that model",
        ],
    ),
    "grid for a text": (
        ["--ablation=cnn_2d", f"--config={SPEECHES}"],
        ["model.causal=true with model.name=cnn_2d", "no before and after", "model.name=cnn_1d"],
    ),
    "variant that the recipe cannot carry": (
        ["--ablation=multi_head", "--config.model.width=12"],
        ["model.attention.num_heads=8 does not divide model.width=12", "choose one of 1, 2, 3, 4, 6, 12"],
    ),
}


def one_line(error):
    assert "Traceback" not in error
    assert error.startswith("error: ")
    assert error.strip().count("\n") == 0
    return error


@pytest.mark.parametrize(("arguments", "fragments"), BAD_FLAGS.values(), ids=BAD_FLAGS.keys())
def test_bad_flags(refused, arguments, fragments):
    recipe = [] if any(argument.startswith("--config=") for argument in arguments) else [f"--config={DIGITS}"]
    message = refused(*recipe, "--workdir=run", *arguments)
    for fragment in fragments:
        assert fragment in message


DATACLASS = """
from __future__ import annotations
from dataclasses import dataclass, field
from widths import WIDTH
import numpy as np

@dataclass
class Model:
    width: int = WIDTH
    depth: int = field(default=1)

@dataclass
class Recipe:
    seed: int = np.int64(3)
    model: Model = field(default_factory=Model)

def get_config() -> Recipe:
    return Recipe()
"""


def test_a_recipe_may_be_dataclasses_with_postponed_annotations_and_a_helper_beside_it(tmp_path):
    for name, width in (("first", 16), ("second", 32)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "widths.py").write_text(f"WIDTH = {width}")
        (tmp_path / name / "recipe.py").write_text(DATACLASS)
        config = load_config(str(tmp_path / name / "recipe.py"), ["--config.model.depth=2"])
        assert (config.seed, config.model.width, config.model.depth) == (3, width, 2)
    assert "widths" not in sys.modules and str(tmp_path / "first") not in sys.path


REFERENCES = """
from ml_collections import ConfigDict
def get_config():
    config = ConfigDict({"model": {"width": 32, "attention": {"num_heads": 4}}, "training": {"steps": 100}})
    config.model.attention.head_dim = 2 * config.model.get_oneway_ref("width")
    config.training.evaluate_every = config.training.get_ref("steps")
    config.optimizer = ConfigDict({"warmup_steps": config.training.get_oneway_ref("steps") // 10})
    return config
"""


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], (32, 64, 100, 100, 10)),
        (["model.width=48", "training.steps=60"], (48, 96, 60, 60, 6)),
        (["model.attention.head_dim=3"], (32, 3, 100, 100, 10)),
        (["training.steps=60", "optimizer.warmup_steps=1"], (32, 64, 60, 60, 1)),
        (["training.evaluate_every=50"], (32, 64, 50, 50, 5)),  # `get_ref` refers both ways
    ],
)
def test_references_of_a_recipe_follow_what_is_overridden(recipe, overrides, expected):
    config = load_config(recipe(REFERENCES), [f"--config.{each}" for each in overrides])
    training = config.training
    found = (config.model.width, config.model.attention.head_dim, training.steps, training.evaluate_every)
    assert (*found, config.optimizer.warmup_steps) == expected


BAD_RECIPES = {
    "syntax": ("def get_config(:", ["cannot be read: SyntaxError"]),
    "raises": ("def get_config():\n    return 1 / 0", ["cannot be read: ZeroDivisionError: division by zero"]),
    "raises on import": ("import no_such_module_anywhere", ["ModuleNotFoundError", "no_such_module_anywhere"]),
    "exits": ("raise SystemExit(0)", ["cannot be read: SystemExit"]),
    "without get_config": ("seed = 0", ["cannot be read: AttributeError", "get_config"]),
    "get_config wants arguments": ("def get_config(mode):\n    return {}", ["TypeError", "mode"]),
    "returns nothing": ("def get_config():\n    pass", ["get_config() returns NoneType None", "must return a mapping"]),
    "returns a list": ("def get_config():\n    return [('seed', 1)]", ["returns list", "must return a mapping"]),
    "lacks a value": (
        "from ml_collections import config_dict\n"
        "def get_config():\n"
        "    return config_dict.ConfigDict({'seed': config_dict.required_placeholder(int)})",
        ["cannot be read: RequiredValueError"],
    ),
    "bad value": (
        "def get_config():\n    return {'model': {'width': 6.5}}",
        ["model.width=6.5 must be a whole number"],
    ),
    "key that is no text": (
        "def get_config():\n    return {'model': {3: 4}}",
        ["unknown key model.3 (value 4)", "model has name, width"],
    ),
    "not utf-8": ("# coding: ascii\n# ü", ["cannot be read: SyntaxError"]),
}


@pytest.mark.parametrize(("text", "fragments"), BAD_RECIPES.values(), ids=BAD_RECIPES.keys())
def test_bad_recipes(refused, recipe, text, fragments):
    message = refused(f"--config={recipe(text)}")
    for fragment in fragments:
        assert fragment in message


def test_a_recipe_that_is_not_there(refused, tmp_path):
    assert "--config=nowhere.py is not a file; recipes here: none" in refused("--config=nowhere.py")
    assert "is not a file" in refused(f"--config={tmp_path}")


def test_a_recipe_that_is_not_there_beside_some_that_are(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(ConfigError, match=r"recipes here: .*configs/digits\.py, .*configs/speeches\.py"):
        load_config("configs/digit.py", [])


def test_a_recipe_that_is_no_python(refused, recipe):
    message = refused(f"--config={recipe('{}', 'recipe.json')}")
    assert "is not a Python file with a get_config()" in message


# ------------------------------------------------------------------------------------------- how errors end


@pytest.mark.parametrize("kind", [ConfigError, DataError, RunError, NonFiniteError])
def test_an_error_of_the_lab_is_its_message_and_its_exit_code(monkeypatch, capsys, kind):
    def main(overrides):
        raise kind("what, which, why, how")

    monkeypatch.setattr(sys, "argv", ["command", "--config.seed=0"])
    monkeypatch.setattr(command_line, "use_compilation_cache", lambda: None)
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as ended:
        command_line.run(main)
    assert (ended.value.code, capsys.readouterr().err) == (kind.exit_code, "error: what, which, why, how\n")


def test_exit_codes_tell_errors_apart():
    assert [kind.exit_code for kind in (ConfigError, DataError, RunError, NonFiniteError)] == [2, 3, 4, 5]


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("flaxformer_lab.train", "interrupted; the same command resumes from the last checkpoint"),
        ("flaxformer_lab.ablate", "interrupted; finished cells are kept, and the same command does the rest"),
        ("flaxformer_lab.evaluate", "interrupted"),
        ("flaxformer_lab.export", "interrupted"),
        ("flaxformer_lab.generate", "interrupted"),
        ("flaxformer_lab.measure", "interrupted"),
    ],
)
def test_an_interruption_says_how_to_go_on_where_that_is_true(monkeypatch, command_texts, module, message):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line, "use_compilation_cache", interrupt)
    code, _, err = command_texts(module, f"--{'config' if module.endswith(('train', 'ablate')) else 'workdir'}=x")
    assert (code, err) == (130, f"error: {message}\n")


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch):
    def main(overrides):
        raise KeyError("ours")

    monkeypatch.setattr(sys, "argv", ["command", "--config.seed=0"])
    monkeypatch.setattr(command_line, "use_compilation_cache", lambda: None)
    with flagsaver.flagsaver(), pytest.raises(KeyError):
        command_line.run(main)


@pytest.mark.parametrize("chosen", [None, "elsewhere"])
def test_compiled_programs_are_kept_where_the_user_says_or_in_the_cache(monkeypatch, chosen):
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    if chosen is None:
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    else:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", chosen)
    try:
        command_line.use_compilation_cache()
        kept = jax.config.jax_compilation_cache_dir
    finally:
        jax.config.update("jax_compilation_cache_dir", before[0])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])
    # JAX itself reads the environment when it is imported.
    assert kept == (before[0] if chosen else str(cache_folder("compiled")))


# ------------------------------------------------------------------------------------------- the real commands

COMMANDS = {
    "unknown key": (
        ["train", "--workdir=run", f"--config={DIGITS}", "--config.optimizer.lr=1"],
        ["unknown key optimizer.lr (value '1')", "optimizer has name, learning_rate"],
    ),
    "recipe that is not there": (["train", "--workdir=run"], ["--config=configs/digits.py is not a file"]),
    "unknown logger": (
        ["train", "--workdir=run", f"--config={DIGITS}", "--loggers=csv,wandbb"],
        ["--loggers=wandbb is no logger: did you mean wandb? choose from tensorboard, csv, wandb, mlflow"],
    ),
    "patches that do not fit the images": (
        ["train", "--workdir=run", f"--config={DIGITS}", "--config.task.patch_size=3"],
        ["task.patch_size=3 does not divide the 8 x 8 images of lab_digits", "choose one of 1, 2, 4, 8"],
    ),
    "text that is not there": (
        ["train", "--workdir=run", f"--config={SPEECHES}", "--config.task.dataset=lab_digits"],
        ["task.dataset=lab_digits has no text, which language_modelling needs", "it has image, label"],
    ),
    "evaluation of a changed config": (
        ["flaxformer_lab.evaluate", "--workdir=run", "--config.seed=1"],
        ["--config.seed=1: a checkpoint keeps the config that it was trained with", "drop this flag"],
    ),
}


def assert_refused(folder, out, err, fragments):
    assert (out, list(folder.iterdir())) == ("", [])
    # The first command on a machine prepares the data, and says so.
    message = one_line(re.sub(r"^preparing .*\n", "", err))
    for fragment in fragments:
        assert fragment in message


@pytest.mark.parametrize(("arguments", "fragments"), COMMANDS.values(), ids=COMMANDS.keys())
def test_real_commands(command_texts, tmp_path, monkeypatch, arguments, fragments):
    monkeypatch.chdir(tmp_path)
    code, out, err = command_texts(*arguments)
    assert code == 2
    assert_refused(tmp_path, out, err, fragments)


def test_a_real_command_as_a_process_of_its_own(tmp_path):
    _, *arguments = COMMANDS["unknown key"][0]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 300}
    ended = subprocess.run([sys.executable, REPOSITORY / "train.py", *arguments], **options)
    assert ended.returncode == 2
    assert_refused(tmp_path, ended.stdout, ended.stderr, COMMANDS["unknown key"][1])


@pytest.mark.parametrize("name", ["clicks", "detection", "edge", "forecasting", "tables"])
def test_a_form_that_a_recipe_does_not_have_is_refused(name):
    with pytest.raises(ConfigError, match=r"cannot be read: ValueError: no such form: 'shrot'; choose "):
        read_recipe(f"configs/ablations/{name}.py:shrot")

"""Writing text: what a run's own model draws, and the command."""

import dataclasses
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from flaxformer_lab.config import parse_config
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.generate import generate
from flaxformer_lab.parsing import override
from flaxformer_lab.run import Run, load_run
from flaxformer_lab.training.checkpoints import Checkpoints
from flaxformer_lab.training.experiment import make_experiment
from flaxformer_lab.training.folder import RunFolder
from flaxformer_lab.training.state import initial_state

pytestmark = pytest.mark.integration

TEXT = {
    "task": {"name": "language_modelling", "sequence_length": 16},
    "model": {"width": 8, "depth": 0, "causal": True},
    "training": {"steps": 1, "batch_size": 8, "evaluate_batch_size": 4096, "steps_per_call": 1},
    "parallelism": {"strategy": "single"},
}
FACTS = {"num_symbols": 5, "symbols": "\N{REPLACEMENT CHARACTER}abc "}


def run_of(changes=None, metadata=FACTS):
    """A run without training."""
    tree = TEXT
    for key, value in (changes or {}).items():
        tree = override(tree, key, value)
    experiment = make_experiment(parse_config(tree), metadata)
    return Run(experiment, fresh(experiment), Path("none"))


def fresh(experiment):
    return jax.jit(lambda: initial_state(experiment.network, experiment.optimizer, 0))()


@pytest.fixture(scope="module")
def letters():
    return run_of()


def test_pieces_add_up_to_the_length_and_repeat_with_the_seed(letters):
    text = "".join(piece for (piece,) in generate(letters, "ab", 40, seed=1))
    assert len(text) == 40
    assert set(text) <= set(FACTS["symbols"])
    assert text == "".join(piece for (piece,) in generate(letters, ["ab"], 40, seed=1))
    assert text != "".join(piece for (piece,) in generate(letters, "ab", 40, seed=2))


def test_temperature_zero_writes_the_most_likely_symbols(letters):
    (first,) = ("".join(column) for column in zip(*generate(letters, ["abc"], 3, temperature=0.0), strict=True))
    symbols = letters.task.encode("abc").tolist()
    for _ in range(3):
        padded = np.array([symbols + [0] * (16 - len(symbols))], np.int32)
        symbols.append(int(np.argmax(letters.predict(padded)[0, len(symbols) - 1])))
    assert first == letters.task.decode(np.array(symbols[3:]))


def test_characters_of_several_bytes_survive_the_pieces(monkeypatch):
    """A model of bytes whose logits spell the text out, whatever it reads."""
    wanted = "näive → 空 " * 3
    spelled = wanted.encode()
    run = run_of({"task.tokenizer": "bytes", "task.sequence_length": 64}, {"num_symbols": 256})

    def logits_at(positions):
        return jax.nn.one_hot(jax.numpy.asarray(list(spelled))[positions % len(spelled)], 256)

    network = run.model.__class__(
        run.model.init,
        run.model.shapes,
        run.model.apply,
        run.model.embed,
        run.model.body,
        prefill=lambda params, state, inputs, lengths, room=None: (logits_at(lengths - 1), lengths),
        decode=lambda params, state, inputs, cache: (logits_at(cache), cache + 1),
    )
    monkeypatch.setattr(Run, "model", network)
    assert "".join(piece for (piece,) in generate(run, "x", len(spelled), temperature=0.0)) == wanted


@pytest.mark.parametrize(
    ("changes", "prompt", "temperature", "message"),
    [
        (
            {"task.objective": "masked", "model.causal": False},
            "a",
            1.0,
            "generate needs a model of task.objective",
        ),
        ({}, "", 1.0, "--prompt= is empty"),
        ({}, ["a", ""], 1.0, "--prompt= is empty"),
        ({}, "a\udcff", 1.0, r"--prompt='a.udcff' is not UTF-8; give the text in UTF-8"),
        ({}, "a", -1.0, "--temperature=-1.0 must not be negative"),
        ({}, "a", float("inf"), "--temperature=inf must not be negative"),
    ],
)
def test_what_cannot_be_is_refused(changes, prompt, temperature, message):
    with pytest.raises(ConfigError, match=message):
        next(generate(run_of(changes), prompt, 3, temperature=temperature))


def test_a_prompt_outside_the_vocabulary_is_refused():
    """The run's folder says that the network has three symbols, and gives the fourth a number."""
    run = run_of(metadata=FACTS | {"num_symbols": 3})
    with pytest.raises(ConfigError, match="symbol 3 is not one of this network's vocabulary of 3, from 0 to 2"):
        next(generate(run, "abc", 3))
    with pytest.raises(ConfigError, match="symbol -1 is not one"):
        run.predict(np.full((1, 16), -1))


# ------------------------------------------------------------------------------------------------ the command


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of one step, as training would leave it."""
    folder = RunFolder(tmp_path_factory.mktemp("text") / "run")
    config = parse_config(TEXT)
    experiment = make_experiment(config)
    folder.claim(config, experiment.task.metadata)
    with Checkpoints(folder.checkpoints) as checkpoints:
        checkpoints.save(dataclasses.replace(fresh(experiment), step=jax.numpy.int32(1)), {"loss": 1.0})
    return folder.path


def test_one_text_streams_and_several_come_one_after_the_other(command_texts, folder):
    options = (f"--workdir={folder}", "--length=20", "--seed=3")
    code, out, _ = command_texts("flaxformer_lab.generate", *options, "--prompt=The ")
    assert code == 0
    assert out.startswith("The ") and out.endswith("\n") and len(out) == 4 + 20 + 1
    _, both, _ = command_texts("flaxformer_lab.generate", *options, "--prompt=The ", "--prompt=Congress")
    assert both.startswith(out[:-1] + "\n\nCongress")
    assert len(both) == len(out) + 1 + len("Congress") + 20 + 1


def test_a_config_of_ones_own_is_refused(command_texts, folder):
    code, _, err = command_texts("flaxformer_lab.generate", f"--workdir={folder}", "--config.model.width=9")
    assert code == 2
    assert "keeps the config that it was trained with" in err


def test_an_earlier_checkpoint_writes_its_own_text(command_texts, folder, tmp_path):
    workdir = shutil.copytree(folder, tmp_path / "run")
    state = load_run(workdir).state
    later = dataclasses.replace(state, step=jax.numpy.int32(2), params=jax.tree.map(lambda leaf: -leaf, state.params))
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        checkpoints.save(later, {"loss": 1.0})
    options = ("--length=20", "--prompt=The ")
    expected = command_texts("flaxformer_lab.generate", f"--workdir={folder}", *options)[1]
    assert command_texts("flaxformer_lab.generate", f"--workdir={workdir}", *options)[1] != expected
    code, out, _ = command_texts("flaxformer_lab.generate", f"--workdir={workdir}", *options, "--step=1")
    assert (code, out) == (0, expected)
    code, _, err = command_texts("flaxformer_lab.generate", f"--workdir={workdir}", "--step=last")
    assert code == 2 and "--step=last must be a whole number or best" in err


def test_a_run_writes_whole_texts():
    run = run_of()
    pieces = list(generate(run, ["ab", "c"], 6, seed=3))
    assert run.generate(["ab", "c"], 6, seed=3) == ["".join(text) for text in zip(*pieces, strict=True)]
    assert run.generate("ab", 6, seed=3) == "".join(piece for (piece,) in generate(run, "ab", 6, seed=3))
    assert run.generate(["ab", "c"], 6, seed=3, batch_size=1) == run.generate(["ab", "c"], 6, seed=3)
    with pytest.raises(ConfigError, match="--weights=int4 is not one of trained, int8"):
        run.generate("ab", 6, weights="int4")
    with pytest.raises(ConfigError, match="--batch_size=0 must be at least 1"):
        run.generate("ab", 6, batch_size=0)
    with pytest.raises(ConfigError, match="--length=-5 must be at least 1: how many symbols are written"):
        run.generate("ab", -5)
    with pytest.raises(ConfigError, match="cannot decode with a cache"):
        run.with_hooks({"output": abs}).generate("ab", 6)

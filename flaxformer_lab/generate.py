"""Writes text with a trained language model: `python -m flaxformer_lab.generate --workdir=runs/speeches --prompt=...`.

Characters are drawn one by one from softmax(logits / temperature); the model sees the last `sequence_length` symbols.
"""

import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from flaxformer_lab.command_line import run
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.evaluate import Run, load_run
from flaxformer_lab.task_config import LanguageModellingConfig


def generate(loaded: Run, prompt: str, length: int, *, temperature: float = 1.0, seed: int = 0) -> Iterator[str]:
    """Yields `length` symbols that continue `prompt`, the same ones for the same seed.

    Raises:
        ConfigError: the run is no next-token language model, the prompt is empty, or the temperature is not above 0.
    """
    task = loaded.config.task
    if not isinstance(task, LanguageModellingConfig) or task.objective != "next_token":
        raise ConfigError(f"generate needs a model of task.objective=next_token; this run's task is {task.name}")
    if not prompt:
        raise ConfigError("--prompt= is empty; the model needs at least one symbol to go on from")
    if not 0 < temperature < float("inf"):
        raise ConfigError(f"--temperature={temperature} must be above 0; 1 is the model's own distribution")
    window = task.sequence_length

    @jax.jit
    def draw(symbols, last, key):
        logits = loaded.model.apply(loaded.params, loaded.state.model_state, symbols[None])[0, last]
        return jax.random.categorical(key, logits / temperature)

    # What follows the last symbol is padding that a causal model cannot see, so one shape serves every length.
    known = list(loaded.task.encode(prompt))
    for number in range(length):
        recent = known[-window:]
        symbols = np.zeros(window, np.int32)
        symbols[: len(recent)] = recent
        key = jax.random.fold_in(jax.random.key(seed), number)
        known.append(int(draw(jnp.asarray(symbols), len(recent) - 1, key)))
        yield loaded.task.decode(known[-1:])


def main(overrides: list[str]) -> None:
    """Writes what the flags ask for, symbol by symbol."""
    if overrides:
        raise ConfigError(f"{overrides[0]}: a checkpoint keeps the config that it was trained with; drop this flag")
    loaded = load_run(WORKDIR.value)
    symbols = generate(loaded, PROMPT.value, LENGTH.value, temperature=TEMPERATURE.value, seed=SEED.value)
    sys.stdout.write(PROMPT.value)
    for symbol in symbols:
        sys.stdout.write(symbol)
        sys.stdout.flush()
    sys.stdout.write("\n")


if __name__ == "__main__":
    WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
    PROMPT = flags.DEFINE_string("prompt", "My fellow citizens, ", "Text to go on from.")
    LENGTH = flags.DEFINE_integer("length", 400, "Symbols to write.", lower_bound=1)
    TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Below 1: safer; above 1: bolder.")
    SEED = flags.DEFINE_integer("seed", 0, "Of the draws.", lower_bound=0)
    run(main)

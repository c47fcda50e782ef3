"""Writes text with a trained language model: `python -m flaxformer_lab.generate --workdir=runs/speeches --prompt=...`.

Characters are drawn one by one from softmax(logits / temperature). The model sees at most `sequence_length` symbols: a
text that has filled them continues from their last half. Several --prompt= are continued together.
"""

import sys
from collections.abc import Iterator, Sequence

from absl import flags

from flaxformer_lab.command_line import changes_of, parse_step, run
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.models.decoding import BATCH_SIZE, Decoder
from flaxformer_lab.run import Run, load_run

WEIGHTS = ("trained", "int8")


def generate(
    loaded: Run,
    prompts: str | Sequence[str],
    length: int,
    *,
    temperature: float = 1.0,
    seed: int = 0,
    weights: str = "trained",
    batch_size: int = BATCH_SIZE,
) -> Iterator[list[str]]:
    """Yields the continuation of each prompt, a few symbols at a time: one piece of text for each, often an empty one.

    The pieces add up to `length` symbols, the same ones for the same seed; temperature 0 takes the most likely ones.

    weights: `trained`, or `int8`, which approximates each matrix of the blocks and the head in 8 bits, for devices that
    take most of a step's time to read the weights. batch_size: the most texts at once; others wait for their turn.

    Raises:
        ConfigError: the run is not a next-token language model, a prompt is empty, no symbols are asked for, or the
            temperature is negative; or weights of another kind, or no texts at once.
    """
    task = loaded.config.task
    if loaded.task.context is None:
        raise ConfigError(f"generate needs a model of task.objective=next_token; this run's task is {task.name}")
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not prompts or not all(prompts):
        raise ConfigError("--prompt= is empty; the model needs at least one symbol to continue")
    for prompt in prompts:
        if any("\ud800" <= character <= "\udfff" for character in prompt):  # how Python keeps other bytes
            raise ConfigError(f"--prompt={prompt!a} is not UTF-8; give the text in UTF-8")
    if length < 1:
        raise ConfigError(f"--length={length} must be at least 1: how many symbols are written")
    if not 0 <= temperature < float("inf"):
        raise ConfigError(
            f"--temperature={temperature} must not be negative; 1 is the model's own distribution, 0 the most likely"
        )
    if weights not in WEIGHTS:
        raise ConfigError(f"--weights={weights} is not one of {', '.join(WEIGHTS)}")
    if batch_size < 1:
        raise ConfigError(f"--batch_size={batch_size} must be at least 1: how many texts are written at once")
    loaded = loaded.quantized() if weights == "int8" else loaded
    variables, options = (loaded.params, loaded.state.model_state), {"temperature": temperature}
    decoder = Decoder(loaded.model, *variables, context=loaded.task.context, batch_size=batch_size, **options)
    encoded = [loaded.task.encode(prompt) for prompt in prompts]
    texts = [loaded.task.decoder(symbols) for symbols in encoded]
    for symbols in decoder.write(encoded, length, seed):
        yield [text(row) for text, row in zip(texts, symbols, strict=True)]


def main(overrides: list[str]) -> None:
    """Generates by the flags: prints one text as it is written, several texts when all are done."""
    prompts, loaded = PROMPT.value, load_run(WORKDIR.value, parse_step(STEP.value), changes_of(overrides))
    options = {"temperature": TEMPERATURE.value, "seed": SEED.value}
    options |= {"weights": WEIGHTS_KIND.value, "batch_size": BATCH.value}
    pieces = generate(loaded, prompts, LENGTH.value, **options)
    if len(prompts) > 1:
        continued = zip(prompts, *pieces, strict=True)
        sys.stdout.write("\n\n".join("".join(text) for text in continued) + "\n")
        return
    sys.stdout.write(prompts[0])
    for (piece,) in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


if __name__ == "__main__":
    WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
    STEP = flags.DEFINE_string("step", None, "Step of the checkpoint, or best; default: the last one.")
    PROMPT = flags.DEFINE_multi_string("prompt", ["My fellow citizens, "], "Text to continue; may be repeated.")
    LENGTH = flags.DEFINE_integer("length", 400, "Symbols to write.", lower_bound=1)
    TEMPERATURE = flags.DEFINE_float(
        "temperature", 1.0, "0: the most likely symbol; below 1: less random; above 1: more random."
    )
    SEED = flags.DEFINE_integer("seed", 0, "Seed of the draws.", lower_bound=0)
    WEIGHTS_KIND = flags.DEFINE_enum("weights", "trained", WEIGHTS, "int8: matrices in 8 bits, half the bytes of 16.")
    BATCH = flags.DEFINE_integer("batch_size", BATCH_SIZE, "Texts at once; others wait.", lower_bound=1)
    run(main)

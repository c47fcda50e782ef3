"""Writes a trained model as one file: `python -m flaxformer_lab.export --workdir=runs/digits [--format=stablehlo]`.

Formats:
  onnx         a graph for onnxruntime, on CPUs, phones and in browsers, that takes raw examples, for a batch of any
               size. --float16 halves it; --int8 quarters the weights of products and convolutions.
  stablehlo    a program for CPUs, NVIDIA GPUs and TPUs that takes raw examples, for a batch of any size. Plain JAX
               runs it; neither the lab nor the run's folder is needed. About 4 bytes for each parameter.
  safetensors  the weights by dotted names and the config: for training.init_from, load_exported and other programs.

The file is read back and compared with the run on examples of the validation split before it gets its name. FILE.json
beside it describes inputs, outputs and classes. Prints a table and, as its last line, one JSON object. A figure that is
NaN is null in both. Examples:
  python -m flaxformer_lab.export --workdir=runs/digits
  python -m flaxformer_lab.export --workdir=runs/digits --step=best --out=digits.stablehlo
  python -m flaxformer_lab.export --workdir=runs/digits --format=onnx --int8
  python -m flaxformer_lab.export --workdir=runs/digits --format=onnx --int8 --calibrate=256 --out=digits.onnx
  python -m flaxformer_lab.export --workdir=runs/digits --format=safetensors --overwrite
  python -m flaxformer_lab.export --workdir=runs/speeches --format=onnx --decode
In Python: `run.export(path, format="stablehlo")`, `flaxformer_lab.load_exported(path)`; more in docs/export.md.
"""

from pathlib import Path

from absl import flags

from flaxformer_lab.command_line import changes_of, parse_step, run
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.export.formats import FORMATS
from flaxformer_lab.export.write import SPLIT
from flaxformer_lab.run import load_run
from flaxformer_lab.tasks.task import PrimaryMetric
from flaxformer_lab.training.folder import dump_json
from flaxformer_lab.training.logging import Display


def main(overrides: list[str]) -> None:
    """Exports what the flags describe."""
    loaded = load_run(WORKDIR.value, parse_step(STEP.value), changes_of(overrides))
    if INT8.value and FLOAT16.value:
        raise ConfigError("--int8 and --float16 are two precisions of one file; choose one")
    precision = "int8" if INT8.value else "float16" if FLOAT16.value else "float32"
    path, suffix = OUT.value, FORMATS[FORMAT.value].suffix if FORMAT.value in FORMATS else ""
    if path is None:
        name = f"{loaded.workdir.name}-{loaded.step}" + ("" if precision == "float32" else f"-{precision}")
        name += "-decode" if DECODE.value else ""
        path = Path(WORKDIR.value) / "export" / f"{name}{suffix}"
    options = {"overwrite": OVERWRITE.value, "examples": EXAMPLES.value, "decode": DECODE.value}
    exported = loaded.export(path, FORMAT.value, precision=precision, calibrate=CALIBRATE.value, **options)
    description, parity = exported.description, exported.description["parity"]
    display = Display(steps=1, units=loaded.task.units, batch_size=1)
    title = f"{WORKDIR.value}, step {loaded.step}, as {FORMAT.value} of {precision}"
    rows = [[f"{kind}: {each['name']}", _shape(each)] for kind in ("inputs", "outputs") for each in description[kind]]
    rows += [["parameters", description["parameters"]], ["bytes", description["bytes"]]]
    if "latency" in description:
        rows += [["one example on 1 thread", f"{1000 * description['latency']['seconds']:.3f} ms"]]
    display.table(title, ["", "value"], rows)
    rows = [
        [name, f"{parity['metrics_of_run'][name]:.6f}", f"{value:.6f}"] for name, value in parity["metrics"].items()
    ]
    rows += [["largest difference of outputs", "", f"{parity['largest_difference']:.2g}"]]
    if parity["tolerance"] is not None:
        rows += [["allowed", "", f"{parity['tolerance']:.2g}"]]
    if parity["rounding"]:
        rows += [["difference of the run from float32", f"{parity['rounding']:.2g}", ""]]
    if parity["chosen_otherwise"]:
        rows += [["examples with another choice among equal scores", "", str(parity["chosen_otherwise"])]]
    rows += [[f"{parity['score']} lost", "", _format_lost(loaded.task.primary_metric, parity["lost"])]]
    display.table(f"checked on {parity['examples']} examples of {SPLIT}", ["", "run", "file"], rows)
    display.print(f"written: {path} and {exported.path.name}.json")
    print(dump_json({"path": str(exported.path), **{key: description[key] for key in PRINTED if key in description}}))


def _format_lost(score: PrimaryMetric, lost: float) -> str:
    """Shares in points of a hundred."""
    return f"{100 * lost:.2f} points" if score.limits[1] == 1 else f"{lost:.6f}"


def _shape(array: dict) -> str:
    return f"{array['dtype']} [{', '.join(map(str, array['shape']))}]"


PRINTED = ("format", "precision", "step", "bytes", "sha256", "latency", "parity")

if __name__ == "__main__":
    WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
    STEP = flags.DEFINE_string("step", None, "Step of the checkpoint, or best; default: the last one.")
    FORMAT = flags.DEFINE_string("format", "stablehlo", f"Kind of file: {' or '.join(FORMATS)}.")
    OUT = flags.DEFINE_string("out", None, "The file; default: WORKDIR/export/NAME-STEP with the format's ending.")
    OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a file that exists.")
    EXAMPLES = flags.DEFINE_integer(
        "examples", 256, f"How many examples of {SPLIT}, at most, the file is checked on.", lower_bound=1
    )
    INT8 = flags.DEFINE_bool("int8", False, "8-bit weights of products and convolutions.")
    FLOAT16 = flags.DEFINE_bool("float16", False, "16-bit parameters; the arithmetic stays float32.")
    DECODE = flags.DEFINE_bool("decode", False, "Of a language model: one step of decoding, with its cache.")
    CALIBRATE = flags.DEFINE_integer(
        "calibrate",
        0,
        "With --int8: measure the scales of activations on this many training examples, not at each call. Convolutions "
        "are several times as fast then.",
        lower_bound=0,
    )
    run(main)

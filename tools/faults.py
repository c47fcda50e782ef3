"""Causes faults in real runs, and writes the outcomes into docs/reliability.md: `make faults`.

With words it tries only some faults: `make faults ARGS="SIGKILL disk"`. Every run is the real command in its own
process. Bit-identical means every leaf of the last state and every byte of metrics.jsonl.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from page_parts import read_part, write_lines

from flaxformer_lab.errors import LabError
from flaxformer_lab.run import load_run

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reliability.md"
EVERY = 12  # updates between evaluations
KNOBS = {
    "task.patch_size": 4,
    "model.width": 8,
    "model.depth": 1,
    "model.attention.num_heads": 2,
    "training.steps": 10 * EVERY,
    "training.batch_size": 16,
    "training.evaluate_every": EVERY,
    "training.checkpoint_every": 6,
    "training.steps_per_call": 3,
}
Outcome = tuple[int, str]  # times tried, outcome


def start(folder: Path, *arguments: str, before: str = "", **environment: str) -> subprocess.Popen:
    """Starts the training command. before: Python code that the process runs first."""
    script = f"import sys, runpy\n{before}\nsys.path.insert(0, '')\nrunpy.run_path('train.py', run_name='__main__')"
    keys = [f"--config.{key}={value}" for key, value in KNOBS.items()]
    line = [sys.executable, "-c", script, "--config=configs/digits.py", f"--workdir={folder}", *keys, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(line, cwd=ROOT, env=os.environ | environment, **pipes)


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    """Exit code, output and errors of a process, once it has ended."""
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def same(one: Path, other: Path) -> bool:
    """Whether two finished runs agree in every bit of the state and every byte of the metrics."""
    states = [jax.tree.leaves(load_run(folder).state) for folder in (one, other)]
    texts = [(folder / "metrics.jsonl").read_bytes() for folder in (one, other)]
    return texts[0] == texts[1] and all(map(np.array_equal, *states))


class Trial:
    """An undisturbed run to compare with, how long it took, and folders for disturbed ones."""

    def __init__(self, place: Path):
        self.place, self.undisturbed = place, place / "undisturbed"
        finish(start(place / "first"))  # fills the compilation cache
        begin = time.perf_counter()
        code, _, err = finish(start(self.undisturbed))
        self.seconds = time.perf_counter() - begin
        if code:
            raise RuntimeError(f"the undisturbed run ended with {code}: {err}")
        self._number = 0

    def folder(self) -> Path:
        self._number += 1
        return self.place / str(self._number)

    def copy(self) -> Path:
        """A copy of the undisturbed run, as it was before its last checkpoint."""
        folder = self.folder()
        shutil.copytree(self.undisturbed, folder)
        return folder

    def resumes(self, folder: Path) -> bool:
        """Whether the same command ends like the undisturbed run."""
        return finish(start(folder))[0] == 0 and same(folder, self.undisturbed)


def killed(trial: Trial, times: int = 50) -> Outcome:
    """SIGKILL at random moments until a run is finished, which is compared."""
    rng, folder, ended, good, saving = random.Random(0), trial.folder(), 0, 0, 0
    done = 0
    while done < times:
        process = start(folder)
        try:
            process.wait(timeout=rng.uniform(0, trial.seconds))
        except subprocess.TimeoutExpired:
            process.kill()
            done += 1
        finish(process)
        saving += any("tmp" in path.name for path in folder.glob("checkpoints/*"))
        if process.returncode == 0:
            ended, good, folder = ended + 1, good + same(folder, trial.undisturbed), trial.folder()
    good, ended = good + trial.resumes(folder), ended + 1
    return done, f"{good} of {ended} runs bit-identical to an undisturbed one; {saving} kills left a save half written"


def asked_to_end(trial: Trial, times: int = 10) -> Outcome:
    """SIGTERM at a random moment of training."""
    rng, good, slowest = random.Random(1), 0, 0.0
    for _ in range(times):
        folder = trial.folder()
        process = start(folder)
        wait_for(process, f"step {EVERY * rng.randrange(1, 9)} | validation")
        time.sleep(rng.uniform(0, 0.5))
        process.send_signal(signal.SIGTERM)
        begin = time.perf_counter()
        code, _, err = finish(process)
        slowest = max(slowest, time.perf_counter() - begin)
        good += code == 143 and "is saved" in err and trial.resumes(folder)
    return times, f"{good} saved, ended with exit code 143 (after {slowest:.1f} s at most) and resumed bit-identically"


def wait_for(process: subprocess.Popen, text: str) -> None:
    """Returns when the process has written a line that starts with `text`, or has ended."""
    for line in process.stdout:
        if line.startswith(text):
            return


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "truncated": lambda content: content[: len(content) // 2],
    "zeroed": lambda content: bytes(len(content)),
    "one bit flipped": lambda content: bytes([content[0] ^ 0x10]) + content[1:] if content else None,
    "deleted": lambda content: None,
}


def damaged(trial: Trial, how: str) -> Outcome:
    """Each file of the newest checkpoint in turn; the run resumes, the checkpoint is evaluated."""
    last = max(int(path.name) for path in (trial.undisturbed / "checkpoints").iterdir() if path.name.isdecimal())
    folder_of = Path("checkpoints") / str(last)
    files = sorted(p.relative_to(trial.undisturbed) for p in (trial.undisturbed / folder_of).rglob("*") if p.is_file())
    whole, tried, back, harmless, refused, wrong = load_run(trial.undisturbed), 0, 0, 0, 0, []
    for file in files:
        folder = trial.copy()
        content = (folder / file).read_bytes()
        spoilt = DAMAGES[how](content)
        if spoilt == content:
            continue
        tried += 1
        (folder / file).unlink()
        if spoilt is not None:
            (folder / file).write_bytes(spoilt)
        try:
            found = load_run(folder, last)
            right = all(map(np.array_equal, *(jax.tree.leaves(run.state) for run in (found, whole))))
            harmless, wrong = harmless + right, wrong + ([] if right else [str(file)])
        except LabError:
            refused += 1
        code, out, _ = finish(start(folder))
        back += "is damaged" in out
        if code or not same(folder, trial.undisturbed):
            wrong.append(f"{file} (resume)")
        shutil.rmtree(folder)
    text = f"evaluation: {refused} refused, {harmless} files not needed for the values; the run went back {back} times"
    return tried, f"{text}; {len(wrong)} wrong{': ' + ', '.join(wrong) if wrong else ''}"


def disk_full(trial: Trial, times: int = 5) -> Outcome:
    """From some step on no file can grow beyond a few kilobytes, so the next save fails."""
    good = 0
    for number in range(times):
        folder = trial.folder()
        finish(start(folder, f"--stop_at={EVERY * (number + 1)}"))
        limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        size = 1024 * (number + 1)
        limit += f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))"
        code, _, err = finish(start(folder, before=limit, JAX_ENABLE_COMPILATION_CACHE="false"))
        good += code == 4 and "Traceback" not in err and trial.resumes(folder)
    return times, f"{good} ended with one clear error (exit code 4); earlier checkpoints whole, resumed bit-identically"


def not_a_number(trial: Trial, times: int = 5) -> Outcome:
    """An example's weight is NaN in update k: the program stays the same, so the updates before k keep their bits."""
    good = 0
    for number in range(times):
        folder, step = trial.folder(), 10 + 22 * number
        spoil = (
            "from flaxformer_lab.training import feeds\nfeed = feeds.host_feed\n"
            "def spoilt(config, examples, seed, begin, count, *rest):\n"
            "    result = feed(config, examples, seed, begin, count, *rest)\n"
            f"    if begin <= {step} < begin + count:\n"
            f"        result['example_weight'][{step} - begin, 0] = float('nan')\n"
            "    return result\nfeeds.host_feed = spoilt"
        )
        code, _, err = finish(start(folder, before=spoil))
        good += code == 5 and "saves nothing" in err and trial.resumes(folder)
    return times, f"{good} ended with exit code 5, saved nothing spoilt, and resumed bit-identically without the fault"


def two_on_one_folder(trial: Trial, times: int = 5) -> Outcome:
    """A second command on the folder of a running command."""
    good = 0
    for _ in range(times):
        folder = trial.folder()
        first = start(folder)
        wait_for(first, f"step {EVERY} | validation")
        code, _, err = finish(start(folder))
        refused = code == 4 and "another run is at work" in err
        good += refused and finish(first)[0] == 0 and same(folder, trial.undisturbed)
    return times, f"{good} refused (exit code 4); the first run went on undisturbed"


def clock_and_locale(trial: Trial) -> Outcome:
    """Another clock, time zone or locale after half of the run."""
    settings = (
        {"LC_ALL": "C"},
        {"LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8"},
        {"TZ": "Pacific/Kiritimati"},
        {"PYTHONUTF8": "0", "LC_ALL": "POSIX"},
    )
    clocks = ["import time; real = time.time; time.time = lambda: real() - 3e8", ""]
    good, tried = 0, 0
    for environment in settings:
        for clock in clocks:
            folder = trial.folder()
            finish(start(folder, f"--stop_at={5 * EVERY}"))
            good += finish(start(folder, before=clock, **environment))[0] == 0 and same(folder, trial.undisturbed)
            tried += 1
    return tried, f"{good} bit-identical"


def read_only(trial: Trial) -> Outcome:
    """A folder that cannot be written; for root, a read-only mount."""
    folder = trial.folder()
    finish(start(folder, f"--stop_at={5 * EVERY}"))
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            f"mount --bind {folder} {folder} && mount -o remount,ro,bind {folder}", shell=True, capture_output=True
        ).returncode
    )
    try:
        if os.geteuid() != 0:
            folder.chmod(0o500)
        elif not mounted:
            return 0, "not tried: root, and no right to mount"
        code, _, err = finish(start(folder))
        good = code == 4 and "Traceback" not in err
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)
        folder.chmod(0o700)
    return 1, f"{'one clear error (exit code 4)' if good else 'no clear error'}" + (
        ", resumed bit-identically once it could be written" if trial.resumes(folder) else ", did not resume"
    )


FAULTS: dict[str, Callable[[Trial], Outcome]] = {
    "SIGKILL at a random moment": killed,
    "SIGTERM at a random moment": asked_to_end,
    **{
        f"a file of the newest checkpoint {how}, each in turn": lambda trial, how=how: damaged(trial, how)
        for how in DAMAGES
    },
    "disk full in a save": disk_full,
    "NaN in an update": not_a_number,
    "two runs on one folder": two_on_one_folder,
    "another clock, zone or locale half way": clock_and_locale,
    "a folder that is read-only": read_only,
}


def main(words: Sequence[str]) -> None:
    """Tries the faults whose names contain one of the words, all by default, and writes the table."""
    chosen = [name for name in FAULTS if not words or any(word.lower() in name.lower() for word in words)]
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(Path(folder))
        print(f"an undisturbed run takes {trial.seconds:.0f} s\n| fault | times | outcome |\n|---|---|---|", flush=True)
        for name in chosen:
            times, outcome = FAULTS[name](trial)
            print(f"| {name} | {times} | {outcome} |", flush=True)
            _keep(name, times, outcome)


def _keep(name: str, times: int, outcome: str) -> None:
    rows = dict(_rows(read_part(PAGE, "faults"))) | {name: f"| {name} | {times} | {outcome} |"}
    lines = ["| fault | times tried | outcome |", "|---|---|---|", *(rows[each] for each in FAULTS if each in rows)]
    write_lines(PAGE, "faults", lines)


def _rows(table: str) -> Iterator[tuple[str, str]]:
    for line in table.strip().splitlines()[2:]:
        yield line.split("|")[1].strip(), line


if __name__ == "__main__":
    main(sys.argv[1:])

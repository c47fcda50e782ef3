"""Human ratings of likeness, read from where the package gensim has them, and passages of speeches.

WordSim-353 (Finkelstein et al. 2002) and SimLex-999 (Hill et al. 2015): pairs of words. Lee's 50 documents (Lee et al.
2005): every pair of them. Nothing of these is kept here.
"""

import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from flaxformer_lab.data.source import open_split
from flaxformer_lab.errors import ConfigError


@dataclass(frozen=True)
class RatedPairs:
    """Texts, and pairs of their numbers with a rating. ranks: judged by Spearman's correlation, else by Pearson's."""

    name: str
    texts: tuple[str, ...]
    pairs: Int[np.ndarray, "pairs 2"]
    ratings: Float[np.ndarray, " pairs"]
    ranks: bool


def package_folder(name: str, folder: str) -> Path:
    """A folder of an installed package, which is not imported.

    Raises:
        ConfigError: it is not installed.
    """
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise ConfigError(f"the package {name} is not installed: pip install -e '.[pretrained]'")
    return Path(found.submodule_search_locations[0]) / folder


@functools.cache
def rated_pairs() -> tuple[RatedPairs, ...]:
    """WordSim-353, SimLex-999 and Lee's documents.

    Raises:
        ConfigError: gensim is not installed, or lacks the files.
    """
    folder = package_folder("gensim", "test/test_data")
    try:
        words = [_words(folder / "wordsim353.tsv", "WordSim"), _words(folder / "simlex999.txt", "SimLex")]
        documents = (folder / "lee.cor").read_text(encoding="utf-8", errors="replace").splitlines()
        likeness = np.loadtxt(folder / "similarities0-1.txt")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder} lacks what gensim 4 has there: {error}; install gensim >=4.3,<5") from error
    rows, columns = np.triu_indices(len(documents), 1)
    lee = RatedPairs("Lee", tuple(documents), np.stack([rows, columns], 1), likeness[rows, columns], ranks=False)
    return (*words, lee)


def _words(path: Path, name: str) -> RatedPairs:
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    numbers: dict[str, int] = {}
    pairs = [[numbers.setdefault(word, len(numbers)) for word in row[:2]] for row in rows]
    return RatedPairs(name, tuple(numbers), np.array(pairs), np.array([float(row[2]) for row in rows]), ranks=True)


def passages(number: int, dataset: str, length: int = 160) -> tuple[str, ...]:
    """Passages of so many characters from the test split of a data set of text, evenly spread."""
    text = " ".join(" ".join(record["text"] for record in open_split(dataset, "test").records()).split())
    starts = np.linspace(0, len(text) - length, number).astype(int)
    return tuple(text[start : start + length] for start in starts)

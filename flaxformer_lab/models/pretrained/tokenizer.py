"""Texts to symbols by a tokenizer.json."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from flaxformer_lab.errors import ConfigError
from flaxformer_lab.models.pretrained.plan import Settings


def padding_of(settings: Settings) -> int:
    """The symbol of padding; of models that have none (null, or -1) that of a text's end, else 0."""
    found = [settings.get(key) for key in ("pad_token_id", "eos_token_id")]
    return next((each for each in found if isinstance(each, int) and each >= 0), 0)


class TextTokenizer:
    """A tokenizer.json with its special symbols. prefix, suffix: those that it puts around a text.

    padding: the symbol of padding. longest: symbols that a text is cut to, special ones included. lowercase: texts are
    read so.

    Raises:
        ConfigError: the package `tokenizers` is missing, or the text is no tokenizer.
    """

    def __init__(self, text: str, *, padding: int, longest: int, lowercase: bool = False):
        try:
            import tokenizers
        except ImportError as error:
            raise ConfigError(
                "texts of a pretrained model need the package tokenizers: pip install -e '.[pretrained]'"
            ) from error
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # tokenizers raises no narrower type
            raise ConfigError(f"tokenizer.json cannot be read: {' '.join(str(error).split())[:200]}") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.padding, self.longest, self._lowercase = padding, longest, lowercase
        probe = self._tokenizer.encode("a")
        special = np.array(probe.special_tokens_mask, bool)
        content = np.flatnonzero(~special)
        first, last = (int(content[0]), int(content[-1]) + 1) if len(content) else (len(special), len(special))
        self.prefix, self.suffix = (np.array(ids, np.int32) for ids in (probe.ids[:first], probe.ids[last:]))
        self.mask = self._tokenizer.token_to_id("[MASK]") or self._tokenizer.token_to_id("<mask>")

    def symbols(self, text: str) -> Int[np.ndarray, " length"]:
        """The symbols of a text of any length, without special ones."""
        return np.array(self._tokenizer.encode(self._read(text), add_special_tokens=False).ids, np.int32)

    def batch(self, texts: Sequence[str], size: int | None = None) -> Int[np.ndarray, "batch tokens"]:
        """Texts between special symbols, cut where they are too long, padded to the longest of them.

        size: symbols that each is cut and padded to instead.
        """
        self._tokenizer.enable_truncation(size or self.longest)
        try:
            rows = [encoding.ids for encoding in self._tokenizer.encode_batch([self._read(text) for text in texts])]
        finally:
            self._tokenizer.no_truncation()
        symbols = np.full((len(rows), size or max(1, *map(len, rows))), self.padding, np.int32)
        for row, ids in zip(symbols, rows, strict=True):
            row[: len(ids)] = ids
        return symbols

    def text(self, symbols: Sequence[int]) -> str:
        """The text of symbols, without special ones."""
        return self._tokenizer.decode([int(symbol) for symbol in symbols])

    def _read(self, text: str) -> str:
        return text.lower() if self._lowercase else text

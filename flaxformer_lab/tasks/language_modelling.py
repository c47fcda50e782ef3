"""Language modelling by characters or bytes: predict the next token, or the masked ones (Devlin et al. 2019)."""

import codecs
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer, Key, UInt

from flaxformer_lab.data.source import open_split
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.functional.metrics import Metrics
from flaxformer_lab.model_config import ModelConfig
from flaxformer_lab.models.network import Network, PureNetwork, functionalize
from flaxformer_lab.modules.embedding import TokenEmbedding
from flaxformer_lab.modules.lazy_logits import LazyLogits
from flaxformer_lab.modules.rngs import Rngs
from flaxformer_lab.registry import register
from flaxformer_lab.task_config import LanguageModellingConfig
from flaxformer_lab.tasks.examples import Examples, token_windows
from flaxformer_lab.tasks.features import content_of, find_text, warn_of_change
from flaxformer_lab.tasks.task import ACCURACY, Batch, Task, loss_and_accuracy

UNKNOWN = "\N{REPLACEMENT CHARACTER}"  # stands for every character that the training text does not have


@register("task", "language_modelling", config=LanguageModellingConfig)
class LanguageModelling(Task):
    """Text as one stream of symbols, cut into windows; the loss is in nats per symbol."""

    primary_metric = ACCURACY
    takes_lazy_logits = True

    def __init__(self, config: LanguageModellingConfig, metadata: Mapping[str, Any] | None = None):
        self._config = config
        self.metadata = self._read_metadata() if metadata is None else metadata
        self.units = ("tokens", config.sequence_length)

    def _read_metadata(self) -> dict[str, Any]:
        content = content_of(open_split(self._config.dataset, "train"))
        if self._config.tokenizer == "bytes":
            return {"num_symbols": 256} | content
        characters = "".join(sorted(set(self._text("train")) - {UNKNOWN}))
        return {"num_symbols": len(characters) + 1, "symbols": UNKNOWN + characters} | content

    def examples(self, split: str) -> Examples:
        warn_of_change(open_split(self._config.dataset, split), self.metadata)
        symbols = self.encode(self._text(split))
        lookahead = 1 if self._config.objective == "next_token" else 0
        if len(symbols) < self._config.sequence_length + lookahead:
            raise ConfigError(
                f"task.sequence_length={self._config.sequence_length} is more than the {len(symbols)} symbols in "
                f"{split} of {self._config.dataset}; choose a smaller one"
            )
        return token_windows(symbols, self._config.sequence_length, lookahead=lookahead)

    def network(self, config: ModelConfig) -> PureNetwork:
        symbols = self.metadata["num_symbols"]
        masks = 1 if self._config.objective == "masked" else 0  # the mask is read but never predicted

        def build(rngs: Rngs) -> Network:
            return Network(
                config,
                embedding=TokenEmbedding(symbols + masks, config.width, dtype=config.dtype, rngs=rngs),
                grid=(self._config.sequence_length,),
                outputs=symbols,
                rngs=rngs,
            )

        return functionalize(build)

    def prepare(self, examples: Batch, keys: Key[Array, " batch"], *, training: bool) -> Batch:
        symbols = examples["symbols"].astype(jnp.int32)
        weights = examples["loss_weights"] * examples["example_weight"][:, None]
        if self._config.objective == "next_token":
            return {"inputs": symbols[:, :-1], "targets": symbols[:, 1:], "loss_weights": weights}
        inputs, chosen = jax.vmap(self._masked)(symbols, keys)
        return {"inputs": inputs, "targets": symbols, "loss_weights": weights * chosen}

    def _masked(
        self, symbols: Int[Array, " tokens"], key: Key[Array, ""]
    ) -> tuple[Int[Array, " tokens"], Float[Array, " tokens"]]:
        """Chooses tokens; 80% of them become the mask, 10% a random symbol, 10% stay (Devlin et al. 2019, 3.1)."""
        number = self.metadata["num_symbols"]
        choose, kind, draw = jax.random.split(key, 3)
        chosen = jax.random.bernoulli(choose, self._config.mask_rate, symbols.shape)
        kind = jax.random.uniform(kind, symbols.shape)
        random = jax.random.randint(draw, symbols.shape, 0, number)
        changed = jnp.where(kind < 0.8, number, jnp.where(kind < 0.9, random, symbols))
        return jnp.where(chosen, changed, symbols), chosen.astype(jnp.float32)

    def loss_and_metrics(self, logits: Float[Array, "batch tokens symbols"] | LazyLogits, batch: Batch) -> Metrics:
        return loss_and_accuracy(logits, batch)

    def input_spec(self, batch_size: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, self._config.sequence_length), jnp.int32)

    def inputs_of(self, raw: Any) -> Any:
        """The symbols [batch, tokens] of texts of `sequence_length` symbols; what is no text is taken for symbols."""
        texts = [raw] if isinstance(raw, str) else raw
        if not (isinstance(texts, Sequence) and texts and all(isinstance(text, str) for text in texts)):
            return raw
        symbols, size = [self.encode(text) for text in texts], self._config.sequence_length
        for number, each in enumerate(symbols):
            if len(each) != size:
                raise ConfigError(f"predict: text {number} has {len(each)} symbols; this model takes {size}")
        return np.stack(symbols).astype(np.int32)

    @property
    def context(self) -> int | None:
        return self._config.sequence_length if self._config.objective == "next_token" else None

    def facts(self) -> list[list[Any]]:
        tokens = f"{self.metadata['num_symbols']} symbols ({self._config.tokenizer})"
        return [["data set", self._config.dataset], ["text", tokens]]

    def encode(self, text: str) -> UInt[np.ndarray, " length"]:
        """Symbol numbers of a text, in the smallest type that holds them all."""
        if self._config.tokenizer == "bytes":
            return np.frombuffer(text.encode("utf-8"), np.uint8)
        symbols = self.metadata["symbols"]
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        table = np.zeros(max(map(ord, symbols)) + 1, np.min_scalar_type(len(symbols) - 1))
        table[[ord(symbol) for symbol in symbols]] = np.arange(len(symbols))
        table[ord(UNKNOWN)] = 0
        return table[np.where(codes < len(table), codes, ord(UNKNOWN))]

    def decode(self, symbols: Integer[np.ndarray, " length"]) -> str:
        """The text of symbol numbers."""
        if self._config.tokenizer == "bytes":
            return bytes(int(symbol) for symbol in symbols).decode("utf-8", errors="replace")
        return "".join(self.metadata["symbols"][int(symbol)] for symbol in symbols)

    def decoder(self, prompt: Integer[np.ndarray, " length"]) -> Callable[[Integer[np.ndarray, " length"]], str]:
        """A function that decodes what follows a prompt, piece by piece: a piece may end within a character."""
        del prompt
        if self._config.tokenizer != "bytes":
            return self.decode
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        return lambda symbols: decoder.decode(bytes(symbols.tolist()))

    @functools.lru_cache(maxsize=3)  # noqa: B019 a task lives as long as its run
    def _text(self, split: str) -> str:
        source = open_split(self._config.dataset, split)
        feature = find_text(source, self._config)
        return "\n".join(record[feature] for record in source.records())

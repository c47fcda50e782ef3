"""The functions of `flaxformer_lab/functional`, with each implementation, compared with float64."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxformer_lab.functional import attention, lightning
from flaxformer_lab.functional import losses as formulas_of_losses
from flaxformer_lab.functional.linear_attention import linear_attention
from flaxformer_lab.functional.position import rotary
from flaxformer_lab.functional.softmax_attention import softmax_attention
from tools.device import references
from tools.device.comparison import Case, compare, drawn
from tools.device.outcome import Measured, Skip

TOKENS, HEADS, KV_HEADS, HEAD_DIM = 37, 4, 2, 8
# Every query sees some token: the output of other queries is not defined.
PADDED = {"valid": np.arange(TOKENS)[None] < np.array([[TOKENS], [33]])}
MASKS: dict[str, dict[str, Any]] = {
    "all": {},
    "causal": {"causal": True},
    "padded": PADDED,
    "window": {"window": 5},
    "causal window": {"causal": True, "window": 5},
    "causal padded window": PADDED | {"causal": True, "window": 6},
}
SLOPES = np.array([0.5, 0.125, 0.03125, 0.0])


def softmax(implementation: str | None = None) -> Measured:
    """Softmax attention by one implementation, with grouped heads and masks; None lets the lab choose."""
    masks: Iterable[str] = MASKS
    types, tokens, head_dim = ("float32", "bfloat16"), TOKENS, HEAD_DIM
    if implementation == "tokamax":
        import tokamax  # noqa: F401 names what is missing
    if implementation == "cudnn":
        if "cuda" not in jax.devices()[0].client.platform_version.lower():
            raise Skip("cuDNN is for NVIDIA's GPUs")
        masks, types, tokens = ("all", "causal", "causal window"), ("bfloat16",), TOKENS + 1  # an even number
    if implementation == "splash":
        if jax.default_backend() != "tpu":
            raise Skip("the splash kernel is for TPUs")
        masks, tokens, head_dim = ("all", "causal", "window"), 128, 128
    heads = _heads(tokens, head_dim, KV_HEADS)
    way = lambda **arguments: softmax_attention(**arguments, implementation=implementation)  # noqa: E731
    measured = compare(_cases(way, references.softmax_attention, heads, masks), types)
    if implementation is None:
        chosen = softmax_attention(*(jnp.asarray(x, jnp.float32) for x in heads.values()), explain=True)[1]
        measured["chosen"] = chosen.name
    return measured


def linear() -> Measured:
    """Linear attention; under bfloat16 its features are rounded before they are multiplied."""
    cases = _cases(linear_attention, references.linear_attention, _heads(), ("all", "causal", "padded"))
    return compare(cases, roundings=2)


def lightning_by(implementation: str) -> Measured:
    """Lightning attention by one implementation, over more tokens than one block."""
    if implementation == "kernel" and jax.default_backend() == "cpu":
        implementation = "interpreted kernel"
    tokens = 2 * lightning.block_size() + 13
    valid = np.arange(tokens)[None] < np.array([[tokens], [tokens - 9]])
    others = {"valid": valid, "slopes": SLOPES}
    if implementation == "recurrent":
        way = lambda **arguments: lightning.recurrent(**arguments)[0]  # noqa: E731
        return compare([Case("padded", way, references.lightning_attention, _heads(tokens), others=others)])
    way = lambda **arguments: lightning.lightning_attention(**arguments, implementation=implementation)  # noqa: E731
    directions = {"causal padded": True} | ({"both ways padded": False} if implementation == "blockwise" else {})
    return compare(
        [
            Case(name, way, references.lightning_attention, _heads(tokens), others=others | {"causal": causal})
            for name, causal in directions.items()
        ]
    )


def other_mixing() -> Measured:
    """Channel, mean and static attention, and rotary positions."""
    heads, value = _heads(), {"value": _heads()["value"]}
    channel = heads | {"temperature": 1 + np.abs(drawn(4, HEADS))}
    static = value | {"scores": drawn(5, HEADS, TOKENS + 2, TOKENS + 2)}

    def by_scores(value: jax.Array, scores: jax.Array, **masks: Any) -> jax.Array:
        return attention.apply_weights(attention.static_weights(scores, TOKENS, **masks), value)

    return compare(
        [
            *_cases(attention.channel_attention, references.channel_attention, channel, ("all", "padded"), "channel"),
            *_cases(attention.mean_attention, references.mean_attention, value, MASKS, "mean"),
            *_cases(by_scores, references.static_attention, static, ("all", "causal padded window"), "static"),
            Case("rotary", lambda value: rotary(value), lambda value: references.rotary(value), value),
        ]
    )


def losses() -> Measured:
    """Sums of losses, with weights."""
    logits, targets = {"logits": drawn(6, 5, 7, 11)}, np.random.default_rng(7).integers(0, 11, (5, 7))
    others = {"targets": targets, "weights": np.abs(drawn(8, 5, 7))}

    def cross_entropy(logits: jax.Array, **others: jax.Array) -> jax.Array:
        return formulas_of_losses.cross_entropy(logits, **others)[0]

    def squared_error(outputs: jax.Array, **others: jax.Array) -> jax.Array:
        return formulas_of_losses.squared_error(outputs, **others, variance=2.0)[0]

    regression = {"targets": drawn(9, 5, 7, 11), "weights": others["weights"]}
    return compare(
        [
            Case("cross_entropy", cross_entropy, references.cross_entropy, logits, others=others),
            Case(
                "squared_error",
                squared_error,
                references.squared_error,
                {"outputs": logits["logits"]},
                others=regression,
            ),
        ]
    )


def _heads(tokens: int = TOKENS, head_dim: int = HEAD_DIM, kv_heads: int = HEADS) -> dict[str, np.ndarray]:
    counts = {"query": HEADS, "key": kv_heads, "value": kv_heads}
    return {name: drawn(n, 2, tokens, count, head_dim) for n, (name, count) in enumerate(counts.items())}


def _cases(
    compute: Callable, exact: Callable, arguments: Mapping[str, np.ndarray], masks: Iterable[str], name: str = ""
) -> list[Case]:
    # Learned scores and temperatures stay float32, like all parameters.
    kept = frozenset({"scores", "temperature"} & arguments.keys())
    return [Case(f"{name} {mask}".strip(), compute, exact, arguments, kept, MASKS[mask]) for mask in masks]

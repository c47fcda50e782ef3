"""Softmax attention: one formula, several implementations, and the function that chooses among them.

Each implementation is exact. The choice depends on platform, dtype and shapes, and `explain=True` returns its reason.
An implementation whose memory is quadratic in tokens is not used where that memory would be large.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flaxformer_lab.functional.blockwise import blockwise_attention
from flaxformer_lab.functional.choice import Choice, requested_choice
from flaxformer_lab.functional.platform import in_counted_forms, target_platform
from flaxformer_lab.functional.products import call_library, library_precision
from flaxformer_lab.functional.row_blocks import row_blocked_attention
from flaxformer_lab.functional.softmax import sees_a_key

Query = Float[Array, "batch tokens heads head_dim"]
Key = Float[Array, "batch keys kv_heads head_dim"]
Value = Float[Array, "batch keys kv_heads value_dim"]
Valid = Bool[Array, "batch keys"]
Output = Float[Array, "batch tokens heads value_dim"]

# Above these limits the blockwise form is chosen. The bytes are those of the float32 scores of all pairs of tokens.
ROW_BLOCK_TOKENS = 1024  # on the CPU; beyond it, blocks of keys were as fast or faster
QUADRATIC_BYTES = 2**30
BLOCK = 512

# With fewer features per head XLA computes the scores without a matrix unit and as one array: with heads of one feature
# that takes 540 MB for a model of 1M parameters, and minutes to compile for a GPU.
MIN_HEAD_DIM = 8
NARROW_BLOCK = 32


COUNTED = Choice("row_blocks", "its operations are counted, and the loops of blocks of keys have no known length")


class Problem(NamedTuple):
    """What the choice depends on: shapes, dtype and masks."""

    batch: int
    tokens: int
    heads: int
    head_dim: int
    value_dim: int
    is_16_bit: bool
    causal: bool
    has_padding: bool
    window: int | None
    other_keys: int | None = None  # the number of keys where they come from another sequence

    @property
    def keys(self) -> int:
        """How many keys there are."""
        return self.tokens if self.other_keys is None else self.other_keys

    @property
    def quadratic_bytes(self) -> int:
        """Bytes of the float32 scores of all pairs of a query and a key."""
        return 4 * self.batch * self.heads * self.tokens * self.keys


def softmax_attention(
    query: Query,
    key: Key,
    value: Value,
    *,
    causal: bool = False,
    valid: Valid | None = None,
    window: int | None = None,
    implementation: str | None = None,
    explain: bool = False,
) -> Output | tuple[Output, Choice]:
    """softmax(Q K^T / sqrt(head_dim)) V (Vaswani et al. 2017, eq. 1).

    Heads may share keys and values in groups, kv_heads dividing heads (Ainslie et al. 2023). Keys may be of another
    sequence than the queries (cross-attention); `valid` says which keys are not padding. window: a token sees those
    less than `window` positions away, itself included. The output of a query that sees no key is 0, and so are its
    gradients, in every implementation. implementation: one of IMPLEMENTATIONS; by default `choose` selects one.
    explain: returns (output, Choice) instead of the output alone.

    Raises:
        ValueError: no tokens, shapes that do not fit, kv_heads that do not divide heads, a window below 1, an unknown
            implementation, or queries and keys of different lengths where causality or a window compares their
            positions.
    """
    _check(query, key, value, valid, window)
    if query.shape[1] != key.shape[1] and (causal or window is not None):
        raise ValueError(
            f"{query.shape[1]} queries and {key.shape[1]} keys are not one sequence, so causal={causal} and "
            f"window={window} cannot compare their positions; use causal=False and window=None"
        )
    window = _narrowing(window, key.shape[1])
    problem = _problem(query, value, causal, valid, window)
    if implementation is None:
        choice = COUNTED if in_counted_forms() else choose(problem, target_platform())
    else:
        choice = requested_choice(implementation, tuple(IMPLEMENTATIONS))
    output = IMPLEMENTATIONS[choice.name](query, key, value, causal, valid, window)
    return (output, choice) if explain else output


def context_parallel_attention(
    query: Query,
    key: Key,
    value: Value,
    first: Int[Array, ""] | int,
    *,
    causal: bool = False,
    valid: Valid | None = None,
    window: int | None = None,
) -> Output:
    """`softmax_attention` of a shard of the queries, whose first token is token `first` of the keys."""
    _check(query, key, value, valid, window)
    window = _narrowing(window, key.shape[1])
    return blockwise_attention(query, key, value, valid, causal, window, _block_size(query.shape[1]), first)


def choose(problem: Problem, platform: str) -> Choice:
    """The implementation that softmax_attention uses on a platform: cpu, gpu or tpu."""
    size = f"all scores at once would take {problem.quadratic_bytes / 2**20:.0f} MiB"
    if platform == "cpu":
        if max(problem.tokens, problem.keys) <= ROW_BLOCK_TOKENS and problem.quadratic_bytes <= QUADRATIC_BYTES:
            return Choice("row_blocks", f"on a CPU, {problem.tokens} tokens are few enough for whole rows")
        return Choice("blockwise", f"on a CPU, {problem.tokens} tokens are many, and {size}")
    fused = {"tpu": _splash_obstacle}.get(platform, _cudnn_obstacle)
    obstacle = fused(problem)
    if obstacle is None:
        name = "splash" if platform == "tpu" else "cudnn"
        return Choice(name, f"on a {platform}, the fused kernel serves these shapes and masks")
    if problem.head_dim < MIN_HEAD_DIM:
        return Choice("blockwise", f"{obstacle}; the scores of such heads are much larger than their queries and keys")
    if problem.quadratic_bytes <= QUADRATIC_BYTES and problem.head_dim == problem.value_dim:
        return Choice("xla", f"{obstacle}; {size}, which fits")
    return Choice("blockwise", f"{obstacle}; {size}, and the blockwise form needs memory linear in tokens")


def _cudnn_obstacle(problem: Problem) -> str | None:
    """Why cuDNN's fused attention does not support a problem, or None where it does."""
    if not problem.is_16_bit:
        return "cuDNN's kernel supports only 16-bit types"
    if problem.head_dim != problem.value_dim or problem.head_dim % 8 or problem.head_dim > 128:
        return f"cuDNN's kernel needs one head_dim, a multiple of 8 up to 128, not {_format_dims(problem)}"
    if problem.tokens % 2 or problem.keys % 2:
        found = problem.tokens if problem.other_keys is None else f"{problem.tokens} and {problem.keys}"
        return f"cuDNN's kernel with gradients needs an even number of tokens, not {found}"
    if problem.has_padding:
        return "cuDNN's kernel would turn the padding mask into a quadratic bias"
    if problem.window is not None and not problem.causal:
        return "cuDNN's kernel supports a window only in causal attention"
    return None


def _splash_obstacle(problem: Problem) -> str | None:
    """Why the splash kernel does not support a problem, or None where it does."""
    if problem.other_keys is not None:
        return f"the splash kernel needs as many keys as queries, not {problem.keys} and {problem.tokens}"
    if problem.head_dim != problem.value_dim or problem.head_dim % 128 or problem.tokens % 128:
        found = f"{problem.tokens} tokens, {_format_dims(problem)}"
        return f"the splash kernel needs tokens and one head_dim in multiples of 128, not {found}"
    return None


def _format_dims(problem: Problem) -> str:
    return f"head_dim {problem.head_dim} and value_dim {problem.value_dim}"


def _check(query: Query, key: Key, value: Value, valid: Valid | None, window: int | None) -> None:
    if query.shape[1] == 0 or key.shape[1] == 0:
        raise ValueError("softmax_attention needs at least one token; the sequence is empty")
    if query.shape[0] != key.shape[0] or query.shape[3] != key.shape[3] or key.shape[:3] != value.shape[:3]:
        raise ValueError(
            f"queries {query.shape}, keys {key.shape} and values {value.shape} do not fit: the batch is the same for "
            "all, head_dim for queries and keys, tokens and heads for keys and values"
        )
    if valid is not None and valid.shape != key.shape[:2]:
        raise ValueError(f"valid is {valid.shape} and must be [batch, keys], here {key.shape[:2]}")
    if query.shape[2] % key.shape[2]:
        raise ValueError(f"{key.shape[2]} heads of keys do not divide {query.shape[2]} heads of queries")
    if window is not None and window < 1:
        raise ValueError(f"window={window} must be at least 1: a token sees itself")


def _narrowing(window: int | None, keys: int) -> int | None:
    """The window, or None where it is no narrower than the sequence; positions in it fit into 32 bits."""
    return None if window is None or window >= keys else window


def _problem(query: Query, value: Value, causal: bool, valid: Valid | None, window: int | None) -> Problem:
    is_16_bit = query.dtype in (jnp.bfloat16, jnp.float16)
    other_keys = None if value.shape[1] == query.shape[1] else value.shape[1]
    batch, *sizes = query.shape
    # A batch of any size, in a program that is exported, is measured by one example of it.
    batch = batch if isinstance(batch, int) else 1
    return Problem(batch, *sizes, value.shape[-1], is_16_bit, causal, valid is not None, window, other_keys)


def repeat_kv_heads(x: Key | Value, heads: int) -> Float[Array, "batch tokens {heads} features"]:
    """Keys or values with each head repeated for every query head that shares it."""
    return x if x.shape[2] == heads else jnp.repeat(x, heads // x.shape[2], axis=2)


# ------------------------------------------------------------------------------------------------ implementations


def _row_blocks(query, key, value, causal, valid, window):
    heads = query.shape[2]
    return row_blocked_attention(
        query, repeat_kv_heads(key, heads), repeat_kv_heads(value, heads), valid, causal, window
    )


def _blockwise(query, key, value, causal, valid, window):
    narrow = query.shape[-1] < MIN_HEAD_DIM and target_platform() != "cpu"
    size = NARROW_BLOCK if narrow else _block_size(query.shape[1])
    return blockwise_attention(query, key, value, valid, causal, window, size)


def _block_size(tokens: int) -> int:
    """Tokens in a block, a multiple of 8, so that the last block has little padding."""
    size = math.ceil(tokens / math.ceil(tokens / BLOCK))
    return 8 * math.ceil(size / 8)


def _zero_where_blind(attend: Callable[..., Output]) -> Callable[..., Output]:
    """What a library gives, but 0 for queries that see no key, for which it takes the mean of all keys."""

    @functools.wraps(attend)
    def attend_or_zero(query, key, value, causal, valid, window, **options):
        output = attend(query, key, value, causal, valid, window, **options)
        if valid is None:
            return output
        return jnp.where(sees_a_key(valid, causal=causal, window=window)[:, :, None, None], output, 0)

    return attend_or_zero


def _jax_attention(implementation: str) -> Callable[..., Output]:
    @_zero_where_blind
    def attend(query, key, value, causal, valid, window):
        mask = None if valid is None else valid[:, None, None, :]
        options = {"mask": mask, "is_causal": causal, "local_window_size": _window_sizes(causal, window)}
        with library_precision(query):
            return jax.nn.dot_product_attention(query, key, value, implementation=implementation, **options)

    return attend


@_zero_where_blind
def _tokamax(query, key, value, causal, valid, window):
    """tokamax chooses among its kernels; it takes a causal window as (tokens before, tokens after)."""
    import tokamax

    mask = None if valid is None else valid[:, None, None, :]
    options = {"mask": mask, "is_causal": causal, "local_window_size": _window_sizes(causal, window)}
    with library_precision(query):
        return tokamax.dot_product_attention(query, key, value, **options)


def _window_sizes(causal: bool, window: int | None) -> tuple[int, int] | None:
    """How many tokens before and after may be seen."""
    return None if window is None else (window - 1, 0 if causal else window - 1)


@_zero_where_blind
def _splash(query, key, value, causal, valid, window, *, interpret: bool = False):
    """The sparse FlashAttention kernel for TPUs that comes with JAX."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    batch, tokens, heads, head_dim = query.shape
    shape = (tokens, tokens)
    if window is not None:
        mask = masks.LocalMask(shape, _window_sizes(causal, window), 0)
    else:
        mask = masks.CausalMask(shape) if causal else masks.FullMask(shape)
    attend = kernel.make_splash_mha(
        masks.MultiHeadMask([mask] * heads), head_shards=1, q_seq_shards=1, interpret=interpret
    )
    seen = jnp.ones((batch, tokens), jnp.int32) if valid is None else valid.astype(jnp.int32)
    front = [jnp.swapaxes(repeat_kv_heads(x, heads), 1, 2) for x in (query * head_dim**-0.5, key, value)]
    segments = kernel.SegmentIds(q=jnp.ones_like(seen), kv=seen)
    over_examples = jax.vmap(lambda attend, segments, *front: attend(*front, segments), in_axes=(None, 0, 0, 0, 0))
    return jnp.swapaxes(call_library(over_examples, attend, segments, *front), 1, 2)


IMPLEMENTATIONS: dict[str, Callable[..., Output]] = {
    "row_blocks": _row_blocks,
    "blockwise": _blockwise,
    "xla": _jax_attention("xla"),
    "cudnn": _jax_attention("cudnn"),
    "splash": _splash,
    "tokamax": _tokamax,
}

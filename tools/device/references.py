"""The lab's formulas in float64 NumPy, written as their definitions: all pairs of tokens, or token by token.

Layouts are the lab's: token vectors [batch, tokens, features], heads [batch, tokens, heads, features].
"""

import numpy as np
from scipy.special import erf, expit

ACTIVATIONS = {
    "gelu": lambda x: x * (1 + erf(x / np.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x * expit(x),
    "tanh": np.tanh,
    "identity": lambda x: x,
}

# ------------------------------------------------------------------------------------------------ attention


def may_see(tokens, causal=False, window=None, valid=None):
    """Whether a query sees a key: [batch or 1, heads or 1, query, key]."""
    query, key = np.indices((tokens, tokens))
    seen = key <= query if causal else np.full((tokens, tokens), True)
    seen = seen if window is None else seen & (np.abs(query - key) < window)
    return seen[None, None] if valid is None else (seen & valid[:, None, :])[:, None]


def softmax(scores):
    """Weights over the last axis."""
    exponentials = np.exp(scores - scores.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def shared(x, heads):
    """Keys or values with each head repeated for every query head that shares it."""
    return np.repeat(x, heads // x.shape[2], axis=2)


def softmax_attention(query, key, value, **masks):
    """softmax(Q K^T / sqrt(head_dim)) V (Vaswani et al. 2017, eq. 1)."""
    key, value = (shared(x, query.shape[2]) for x in (key, value))
    scores = np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[3])
    return weighed(softmax(np.where(may_see(query.shape[1], **masks), scores, -np.inf)), value)


def weighed(weights, value):
    """The weighted sum of values, with weights [batch or 1, heads, query, key]."""
    return np.einsum("bhqk,bkhd->bqhd", np.broadcast_to(weights, (len(value), *weights.shape[1:])), value)


def linear_attention(query, key, value, **masks):
    """Weights phi(q) . phi(k) with phi = elu + 1, divided by their sum (Katharopoulos et al. 2020, eq. 7)."""
    query, key = (np.where(x > 0, x + 1, np.exp(np.minimum(x, 0))) for x in (query, key))
    scores = np.where(may_see(query.shape[1], **masks), np.einsum("bqhd,bkhd->bhqk", query, key), 0)
    return weighed(scores / scores.sum(-1, keepdims=True), value)


def lightning_attention(query, key, value, slopes, causal=True, valid=None):
    """((Q K^T) * M) V with M_ts = exp(-slope |t - s|) (Qin et al. 2024)."""
    query_at, key_at = np.indices((query.shape[1],) * 2)
    decay = np.exp(-slopes[:, None, None] * np.abs(query_at - key_at))
    scores = np.einsum("bqhd,bkhd->bhqk", query, key) * decay
    return weighed(np.where(may_see(query.shape[1], causal, valid=valid), scores, 0), value)


def channel_attention(query, key, value, temperature, valid=None):
    """softmax(tau K^T Q) over features, both of length 1 along tokens (El-Nouby et al. 2021, eq. 3)."""
    if valid is not None:
        query, key = (np.where(valid[:, :, None, None], x, 0) for x in (query, key))
    query, key = (x / np.sqrt(np.sum(x**2, axis=1, keepdims=True)) for x in (query, key))
    weights = softmax(np.einsum("bthe,bthd->bhed", query, key) * temperature[None, :, None, None])
    return np.einsum("bhed,bthd->bthe", weights, value)


def static_attention(scores, value, **masks):
    """Learned scores that do not see the input (random Synthesizer, Tay et al. 2021, eq. 6)."""
    tokens = value.shape[1]
    seen = may_see(tokens, **masks)
    return weighed(softmax(np.where(seen, scores[None, :, :tokens, :tokens], -np.inf)), value)


def mean_attention(value, **masks):
    """The mean of the visible tokens."""
    return static_attention(np.zeros((value.shape[2], value.shape[1], value.shape[1])), value, **masks)


def rotary(x):
    """Feature pair (i, i + half) as a complex number, rotated by the token's position times a frequency."""
    half = x.shape[-1] // 2
    angle = np.arange(x.shape[1])[:, None, None] / 1e4 ** (np.arange(half) / half)
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)
    return np.concatenate([turned.real, turned.imag], axis=-1)


def sinusoidal(tokens, width):
    """Sines, then cosines, of wavelengths 2 pi to 2 pi 10^4 (Vaswani et al. 2017, section 3.5)."""
    angle = np.arange(tokens)[:, None] / 1e4 ** (np.arange(0, width, 2) / width)
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)


def cross_entropy(logits, targets, weights):
    """-log softmax(logits)[target], a weighted sum."""
    return -np.sum(np.log(np.take_along_axis(softmax(logits), targets[..., None], -1))[..., 0] * weights)


def squared_error(outputs, targets, weights):
    """The mean over features in units of a variance of 2, a weighted sum."""
    return np.sum(np.mean((outputs - targets) ** 2, axis=-1) / 2 * weights)


# ---------------------------------------------------------------------------- modules: p are parameters by name


def dense(x, p, name=""):
    """x W + b; `name` is the prefix of the parameters' names, here and below."""
    bias = p.get(f"{name}bias", 0)
    return x @ p[f"{name}kernel"] + bias


def layer_norm(x, p, name="", epsilon=1e-6):
    """(x - mean) / sd * scale + bias (Ba et al. 2016)."""
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)
    return y * p[f"{name}scale"] + p[f"{name}bias"]


def rms_norm(x, p, name="", epsilon=1e-6):
    """x / rms(x) * scale, or without a scale (Zhang and Sennrich 2019)."""
    return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + epsilon) * p.get(f"{name}scale", 1)


def mlp(x, p, activation):
    """W2 activation(W1 x + b1) + b2."""
    return dense(activation(dense(x, p, "up.")), p, "down.")


def gated(x, p, activation):
    """W2 (activation(Wa x) * Wb x) (Shazeer 2020, eq. 6)."""
    return dense(activation(dense(x, p, "gate.")) * dense(x, p, "up."), p, "down.")


def diagonal_mlp(x, p, activation):
    """A small MLP for each feature."""
    return np.sum(activation(x[..., None] * p["up"] + p["up_bias"]) * p["down"], axis=-1) + p["down_bias"]


def patches(images, size):
    """Patch after patch, row by row."""
    rows, columns = images.shape[1] // size, images.shape[2] // size
    cut = lambda i, j: images[:, i * size : (i + 1) * size, j * size : (j + 1) * size]  # noqa: E731
    flat = [cut(i, j).reshape(len(images), -1) for i in range(rows) for j in range(columns)]
    return np.stack(flat, axis=1)


def lstm(x, p):
    """Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000; one layer."""
    inputs, outputs = dense(x, p, "layers.0.input."), []
    hidden = memory = np.zeros_like(x[:, 0])
    for token in range(x.shape[1]):
        enter, forget, new, leave = np.split(inputs[:, token] + hidden @ p["layers.0.state.kernel"], 4, axis=1)
        memory = expit(forget) * memory + expit(enter) * np.tanh(new)
        hidden = expit(leave) * np.tanh(memory)
        outputs.append(hidden)
    return np.stack(outputs, axis=1)


def gru(x, p):
    """Cho et al. 2014, the reset gate after the product, as in cuDNN; one layer."""
    inputs, outputs, hidden = dense(x, p, "layers.0.input."), [], np.zeros_like(x[:, 0])
    for token in range(x.shape[1]):
        reset, update, new = np.split(inputs[:, token], 3, axis=1)
        of_reset, of_update, of_new = np.split(hidden @ p["layers.0.state.kernel"], 3, axis=1)
        new = np.tanh(new + expit(reset + of_reset) * (of_new + p["layers.0.candidate_bias"]))
        keep = expit(update + of_update)
        hidden = (1 - keep) * new + keep * hidden
        outputs.append(hidden)
    return np.stack(outputs, axis=1)


def convolution(x, p, name, grid, offsets):
    """A sum over the offsets of a neighbourhood, zeros beyond the edges."""
    weights = p[f"{name}kernel"].reshape(len(offsets), x.shape[2], -1)
    image = x.reshape(len(x), *grid, -1)
    y = np.zeros(image.shape) + p[f"{name}bias"]
    for place in np.ndindex(*grid):
        for offset, weight in zip(offsets, weights, strict=True):
            other = tuple(np.add(place, offset))
            if all(0 <= at < size for at, size in zip(other, grid, strict=True)):
                y[:, *place] += image[:, *other] @ weight
    return y.reshape(x.shape)


def convolutional(x, p, grid, offsets):
    """x + conv(gelu(conv(norm(x)))), then a norm."""
    y = layer_norm(x, p, "blocks.0.norm.")
    y = ACTIVATIONS["gelu"](convolution(y, p, "blocks.0.first.map.", grid, offsets))
    return layer_norm(x + convolution(y, p, "blocks.0.second.map.", grid, offsets), p, "norm.")


def mixer(x, p):
    """One block of MLP-Mixer (Tolstikhin et al. 2021, eq. 1), then a norm."""
    y = np.swapaxes(rms_norm(x, p, "blocks.0.token_norm."), 1, 2)
    y = dense(ACTIVATIONS["gelu"](dense(y, p, "blocks.0.token_up.")), p, "blocks.0.token_down.")
    x = x + np.swapaxes(y, 1, 2)
    y = rms_norm(x, p, "blocks.0.feature_norm.")
    x = x + dense(ACTIVATIONS["gelu"](dense(y, p, "blocks.0.feature_up.")), p, "blocks.0.feature_down.")
    return rms_norm(x, p, "norm.")


def factorization_machine(x, p):
    """x W + b and the products of every two features (Rendle 2010, eq. 1)."""
    y, factors = dense(x, p, "linear."), p["factors.kernel"]
    for i, j in np.argwhere(np.triu(np.ones((x.shape[-1],) * 2), 1)):
        y = y + x[..., i, None] * x[..., j, None] * factors[i] * factors[j]
    return y


def attention_module(x, p, heads, kv_heads):
    """Softmax attention from fused projections, normalised and gated before the output."""
    batch, tokens, width = x.shape
    group = heads // kv_heads
    fused = dense(x, p, "projection.").reshape(batch, tokens, kv_heads, group + 2, -1)
    query = fused[:, :, :, :group].reshape(batch, tokens, heads, -1)
    mixed = softmax_attention(query, fused[:, :, :, group], fused[:, :, :, group + 1], causal=True)
    merged = rms_norm(mixed.reshape(batch, tokens, -1), p, "norm.")
    return dense(merged * expit(dense(dense(x, p, "gate.down."), p, "gate.up.")), p, "output.")

"""Measures of what a trained Transformer's weights and activations are: spectra, scales, outliers, sinks, linearity."""

import numpy as np
from jaxtyping import Bool, Float

from flaxformer_lab.analysis.surgery import HeadMaps

Values = Float[np.ndarray, "tokens features"]
LARGE = 20.0  # times the median size: an activation that large is called massive


def effective_rank(singular_values: Float[np.ndarray, " values"]) -> float:
    """exp of the entropy of the singular values' shares (Roy and Vetterli 2007): 1 to their number."""
    shares = np.asarray(singular_values, np.float64)
    shares = shares[shares > 0] / shares.sum()
    return float(np.exp(-np.sum(shares * np.log(shares))))


def product_singular_values(
    first: Float[np.ndarray, "inputs inner"], second: Float[np.ndarray, "inner outputs"]
) -> Float[np.ndarray, " inner"]:
    """Those of a product through few inner features, from QR decompositions of the two factors."""
    _, left = np.linalg.qr(first.astype(np.float64))
    _, right = np.linalg.qr(second.T.astype(np.float64))
    return np.linalg.svd(left @ right.T, compute_uv=False)


def ranks_of_heads(maps: HeadMaps) -> tuple[Float[np.ndarray, " heads"], Float[np.ndarray, " heads"]]:
    """Effective ranks of W_q W_k^T and of W_v W_o, head by head."""
    scores = [product_singular_values(q, k.T) for q, k in zip(maps.query, maps.key, strict=True)]
    moves = [product_singular_values(v, o) for v, o in zip(maps.value, maps.output, strict=True)]
    return np.array([effective_rank(s) for s in scores]), np.array([effective_rank(s) for s in moves])


def off_diagonal_share(maps: HeadMaps) -> tuple[float, float]:
    """The share of the squares of W_q W_k^T, and of W_v W_o, that joins different features; over all heads."""
    found = []
    for first, second in ((maps.query, maps.key.transpose(0, 2, 1)), (maps.value, maps.output)):
        total = diagonal = 0.0
        for a, b in zip(first.astype(np.float64), second.astype(np.float64), strict=True):
            product = a @ b
            total, diagonal = total + np.sum(product**2), diagonal + np.sum(np.diagonal(product) ** 2)
        found.append(1 - diagonal / total)
    return found[0], found[1]


def mean_correlation(x: Values) -> float:
    """The root mean square correlation of two features; of independent ones it is 1 / sqrt(tokens - 1)."""
    standardised = x.astype(np.float64) - x.mean(0)
    standardised /= np.maximum(standardised.std(0), 1e-12)
    correlations = standardised.T @ standardised / len(x)
    features = len(correlations)
    mean_square = (np.sum(correlations**2) - np.trace(correlations**2)) / (features * (features - 1))
    return float(np.sqrt(mean_square))


def participation(x: Values) -> float:
    """(sum of the covariance's eigenvalues)^2 / sum of their squares, as a share of the features: 1 for a ball."""
    centred = x.astype(np.float64) - x.mean(0)
    covariance = centred.T @ centred / len(x)
    return float(np.trace(covariance) ** 2 / np.sum(covariance**2) / len(covariance))


def scale_ratio(x: Values) -> float:
    """The largest standard deviation of a feature over the median one."""
    deviations = x.astype(np.float64).std(0)
    return float(deviations.max() / np.median(deviations))


def outliers(x: Values) -> dict[str, float]:
    """How uneven activations are: the largest size over the median one, the share of massive ones, kurtosis.

    feature: the index of the feature with the largest mean square; its share of all squares is `outlier_share`.
    """
    size, squares = np.abs(x.astype(np.float64)), (x.astype(np.float64) ** 2).mean(0)
    median = np.median(size)
    centred = x.astype(np.float64) - x.mean(0)
    deviation = np.maximum(centred.std(0), 1e-12)
    return {
        "largest": float(size.max() / median),
        "massive_share": float(np.mean(size > LARGE * median)),
        "kurtosis": float(np.mean((centred / deviation) ** 4)),
        "outlier_feature": float(np.argmax(squares)),
        "outlier_share": float(squares.max() / squares.sum()),
    }


def sinks(
    weights: Float[np.ndarray, "batch heads tokens keys"],
    valid: Bool[np.ndarray, "batch tokens"],
    ends: Bool[np.ndarray, "batch tokens"],
    *,
    causal: bool = False,
) -> tuple[float, float]:
    """The share of attention that goes to the tokens `ends` (first, separators), and that of an even attention.

    Even: to all tokens alike, so the share of the ends among them; or, causal, to all tokens up to the query.
    """
    query = valid.astype(np.float64)
    to_ends = np.einsum("bhqk,bk->bhq", weights.astype(np.float64), ends.astype(np.float64)).mean(1)
    even = float(np.sum(ends & valid) / valid.sum())
    if causal:
        seen = np.cumsum(valid, axis=1)
        even = float(np.sum(np.cumsum(ends & valid, axis=1) / np.maximum(seen, 1) * query) / query.sum())
    return float(np.sum(to_ends * query) / query.sum()), even

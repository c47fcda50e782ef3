"""Linear maps over features. Parameters are cast to the input's dtype, so the input decides the precision."""

from jaxtyping import Array, Float


def over_features(
    vector: Float[Array, " features"], x: Float[Array, "*batch features"]
) -> Float[Array, "*ones features"]:
    """Returns `vector` in x's rank, ready to act on each of x's features (rank promotion is never left to chance)."""
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)


def dense(
    x: Float[Array, "*batch features_in"],
    kernel: Float[Array, "features_in features_out"],
    bias: Float[Array, " features_out"] | None = None,
) -> Float[Array, "*batch features_out"]:
    """x W + b: every output feature is a weighted sum of all input features."""
    y = x @ kernel.astype(x.dtype)
    return y if bias is None else y + over_features(bias.astype(x.dtype), y)


def diagonal(
    x: Float[Array, "*batch features"],
    scale: Float[Array, " features"],
    bias: Float[Array, " features"] | None = None,
) -> Float[Array, "*batch features"]:
    """x_c w_c + b_c: every output feature sees one input feature, its own."""
    y = x * over_features(scale.astype(x.dtype), x)
    return y if bias is None else y + over_features(bias.astype(x.dtype), y)

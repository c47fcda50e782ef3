"""Query, key and value as one array, head by head."""

import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.functional.heads import HeadLayout, fuse_heads


@pytest.mark.parametrize("counts", [(1, 1, 1), (2, 1, 1), (1,)])
def test_what_was_fused_is_split_again(counts):
    generator, groups, head_dim = np.random.default_rng(0), 3, 4
    parts = [generator.normal(size=(2, 5, groups * count * head_dim)).astype(np.float32) for count in counts]
    layout = HeadLayout(groups, counts, head_dim)
    fused = layout.fuse(jnp.concatenate([jnp.asarray(part) for part in parts], axis=-1))
    assert fused.shape == (2, 5, layout.features)
    for found, part in zip(layout.split(fused), parts, strict=True):
        np.testing.assert_array_equal(found, part.reshape(2, 5, -1, head_dim))


def test_an_equal_share_of_the_features_is_a_share_of_whole_heads():
    """Two query heads share each of two key heads; the first half of the array holds the first of these groups."""
    query, key, value = np.arange(8), np.arange(100, 104), np.arange(200, 204)
    fused = np.asarray(fuse_heads([jnp.asarray(part) for part in (query, key, value)], 2))
    np.testing.assert_array_equal(fused[:8], [0, 1, 2, 3, 100, 101, 200, 201])
    np.testing.assert_array_equal(fused[8:], [4, 5, 6, 7, 102, 103, 202, 203])

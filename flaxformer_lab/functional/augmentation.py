"""Changes of training images, each drawn from the image's own key: the same however a batch is split.

Images are from -1 (black) to 1. Each kind of change draws from a stream of its own, so that switching one on or off
leaves the others as they are.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

Images = Float[Array, "batch rows columns channels"]
Keys = Key[Array, " batch"]
CROP, FLIP, CUTOUT, MIXUP = range(1, 5)  # the streams; a shift draws from the key itself


def _keys_of(stream: int, keys: Keys) -> Keys:
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, stream)


def shifted(images: Images, keys: Keys, largest: int) -> Images:
    """Each image moved by up to `largest` pixels each way; its edge pixels fill the gap."""
    if not largest:
        return images

    def shift(image: Float[Array, "rows columns channels"], key: Key[Array, ""]) -> Array:
        padded = jnp.pad(image, ((largest, largest), (largest, largest), (0, 0)), mode="edge")
        row, column = jax.random.randint(key, (2,), 0, 2 * largest + 1)
        return jax.lax.dynamic_slice(padded, (row, column, 0), image.shape)

    return jax.vmap(shift)(images, keys)


def flipped(images: Images, keys: Keys) -> Images:
    """Half of the images mirrored, left and right."""
    mirrored = jax.vmap(jax.random.bernoulli)(_keys_of(FLIP, keys))
    return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def cropped(images: Images, keys: Keys, smallest: float) -> Images:
    """A random part of each image stretched to its size, linearly; its sides are a share from `smallest` to 1."""
    if smallest == 1:
        return images

    def crop(image: Float[Array, "rows columns channels"], key: Key[Array, ""]) -> Array:
        side, *place = jax.random.uniform(key, (3,))
        side = smallest + (1 - smallest) * side
        size = jnp.array(image.shape[:2], jnp.float32)
        translation = -jnp.stack(place) * (1 - side) * size / side
        scale = jnp.full((2,), 1.0) / side
        return jax.image.scale_and_translate(image, image.shape, (0, 1), scale, translation, "linear", antialias=False)

    return jax.vmap(crop)(images, _keys_of(CROP, keys))


def cut_out(images: Images, keys: Keys, side: int) -> Images:
    """A square of each image made grey, 0, at a random place inside (DeVries and Taylor 2017)."""
    if not side:
        return images
    rows, columns = images.shape[1:3]

    def cut(image: Float[Array, "rows columns channels"], key: Key[Array, ""]) -> Array:
        of_row, of_column = jax.random.split(key)
        row = jnp.arange(rows) - jax.random.randint(of_row, (), 0, rows - side + 1)
        column = jnp.arange(columns) - jax.random.randint(of_column, (), 0, columns - side + 1)
        inside = ((row >= 0) & (row < side))[:, None] & ((column >= 0) & (column < side))[None]
        return jnp.where(inside[:, :, None], 0.0, image)

    return jax.vmap(cut)(images, _keys_of(CUTOUT, keys))


def mixed(batch: dict[str, Array], keys: Keys, concentration: float) -> dict[str, Array]:
    """Each image mixed with its neighbour in the batch, and so its label (Zhang et al. 2018).

    batch: `inputs`, `targets` and `loss_weights`; the share that comes from the neighbour has its label in
    `other_targets` and its part of the weight in `other_weights`. Neighbours are the first and the second, the third
    and the fourth ..., so that devices with an even number of examples find the same. The last of an odd number, and a
    neighbour of padding, are not mixed. The image's own share is drawn from Beta(concentration, concentration).
    """
    if not concentration:
        return batch
    inputs, weights = batch["inputs"], batch["loss_weights"]
    places = jnp.arange(len(weights)) ^ 1
    has_other = places < len(weights)
    places = jnp.where(has_other, places, jnp.arange(len(weights)))
    draw = lambda key: jax.random.beta(key, concentration, concentration)  # noqa: E731
    own = jnp.where(has_other & (weights[places] > 0), jax.vmap(draw)(_keys_of(MIXUP, keys)), 1.0)
    share = own[:, None, None, None]
    return batch | {
        "inputs": share * inputs + (1 - share) * inputs[places],
        "loss_weights": own * weights,
        "other_targets": batch["targets"][places],
        "other_weights": (1 - own) * weights,
    }

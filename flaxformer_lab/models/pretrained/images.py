"""Images to a model's inputs, as its preprocessor_config.json says."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

from flaxformer_lab.errors import ConfigError
from flaxformer_lab.models.pretrained.plan import Settings

NAME = "preprocessor_config.json"


class ImagePreprocessor:
    """Stretches an image, takes its middle, and scales its values, as transformers' processors of ViT and DeiT do.

    about: preprocessor_config.json; without one, images are stretched to the model's size.

    Raises:
        ConfigError: a size that is not one of rows and columns or not the model's, or an unknown way to resize.
    """

    def __init__(self, about: Mapping[str, Any], settings: Settings):
        side, is_deit = settings["image_size"], settings.get("model_type") == "deit"
        crops = about.get("do_center_crop", is_deit and "crop_size" in about)
        self._about, self._channels, self._made = about, settings["num_channels"], (side, side)
        self._stretched = _rows_and_columns(about, "size", side) if about.get("do_resize", True) else None
        self._cropped = _rows_and_columns(about, "crop_size", side) if crops else None
        made = self._cropped or self._stretched or self._made
        if self._stretched and any(whole < part for whole, part in zip(self._stretched, made, strict=True)):
            raise ConfigError(
                f"{NAME}: crop_size is {made[0]} x {made[1]}, more than the size {self._stretched[0]} x "
                f"{self._stretched[1]}; use the file that belongs to the weights"
            )
        if made != self._made:
            raise ConfigError(
                f"{NAME} makes images of {made[0]} x {made[1]} pixels, and the model takes {side} x {side}; use the "
                "file that belongs to the weights"
            )
        resample = about.get("resample", Image.Resampling.BICUBIC if is_deit else Image.Resampling.BILINEAR)
        if resample not in list(Image.Resampling):
            raise ConfigError(f"{NAME}: resample={resample!r} is no filter; choose 2, bilinear, or 3, bicubic")
        self._resample = Image.Resampling(resample)

    def fit(self, image: UInt8[np.ndarray, "rows columns *channels"]) -> UInt8[np.ndarray, "side side *channels"]:
        """The image at the model's size.

        Raises:
            ConfigError: it has another size, and the file says that it is not resized.
        """
        if self._stretched and image.shape[:2] != self._stretched:
            channels = np.moveaxis(image.reshape(*image.shape[:2], -1), -1, 0)
            size = self._stretched[::-1]
            resized = [np.asarray(Image.fromarray(each).resize(size, self._resample)) for each in channels]
            image = np.stack(resized, axis=-1).reshape(*self._stretched, *image.shape[2:])
        if self._cropped:
            rows, columns = ((n - kept) // 2 for n, kept in zip(image.shape[:2], self._cropped, strict=True))
            image = image[max(rows, 0) :, max(columns, 0) :][: self._cropped[0], : self._cropped[1]]
        if image.shape[:2] != self._made:
            raise ConfigError(
                f"an image becomes {image.shape[0]} x {image.shape[1]} pixels by {NAME}, and the model takes "
                f"{self._made[0]} x {self._made[1]}; give images of that size, or set do_resize there"
            )
        return image

    def normalise(self, images: Any) -> Float[Array, "batch rows columns channels"]:
        """From 0 to 255 to the values that the model was made for; grey images get the model's channels."""
        about, channels = self._about, self._channels
        images = jnp.asarray(images)
        images = images[..., None] if images.ndim == 3 else images
        images = jnp.broadcast_to(images, (*images.shape[:3], channels)).astype(jnp.float32)
        images = images * (about.get("rescale_factor", 1 / 255) if about.get("do_rescale", True) else 1.0)
        if not about.get("do_normalize", True):
            return images
        mean, deviation = (jnp.asarray(about.get(key, [0.5] * channels)) for key in ("image_mean", "image_std"))
        return (images - mean[None, None, None]) / deviation[None, None, None]


def _rows_and_columns(about: Mapping[str, Any], key: str, default: int) -> tuple[int, int]:
    found = about.get(key, default)
    if isinstance(found, int):
        found = {"height": found, "width": found}
    sides = tuple(found.get(side) for side in ("height", "width")) if isinstance(found, Mapping) else (None,)
    if len(found) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ConfigError(f"{NAME}: {key}={found!r} must be one number, or a height and a width; choose another model")
    return sides

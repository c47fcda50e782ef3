"""Image files as arrays, and arrays of one size from those of another: the same for training and for predictions."""

from pathlib import Path

import numpy as np
from jaxtyping import Shaped
from PIL import ExifTags, Image, ImageOps

from flaxformer_lab.errors import DataError

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")


def read_image(path: Path) -> Shaped[np.ndarray, "rows columns channels"]:
    """The image as a viewer shows it: uint8, or uint16 where a grey image has 16 bits.

    It is turned as its EXIF data say, transparent parts are white, and of several frames it is the first. It has one
    channel, grey, unless it is coloured somewhere: then red, green and blue.

    Raises:
        DataError: the file is missing, no such image, or damaged, or has 16 bits in several channels.
    """
    try:
        with Image.open(path, formats=FORMATS) as opened:
            if opened.mode in ("RGB", "RGBA") and any(str(tile[3]).endswith(";16B") for tile in opened.tile):
                raise DataError(
                    f"{path} has 16 bits in several channels, of which only 8 can be read; convert it (magick "
                    f"{path.name} -depth 8 new.png; of values of 12 bits with -evaluate multiply 16 before -depth)"
                )
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):
                return np.asarray(image).clip(0, 2**16 - 1).astype(np.uint16)[..., None]
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        shown = ", ".join(name.lower() for name in FORMATS)
        raise DataError(f"{path} cannot be read as an image ({shown}): {error}; repair it, or remove it") from error
    is_grey = (pixels == pixels[..., :1]).all()
    return pixels[..., :1] if is_grey else pixels


def is_turned_in_place(path: Path) -> bool:
    """Whether EXIF data turn or mirror an image so that it keeps its rows and columns."""
    with Image.open(path, formats=FORMATS) as image:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
        return orientation in (2, 3, 4) or (orientation in (5, 6, 7, 8) and image.width == image.height)


def resize_image(
    image: Shaped[np.ndarray, "rows columns channels"], size: tuple[int, int]
) -> Shaped[np.ndarray, "new_rows new_columns channels"]:
    """The image stretched to `size` rows and columns, by linear interpolation over all pixels that a new one covers."""
    if image.shape[:2] == tuple(size):
        return image
    channels = [Image.fromarray(channel.astype(np.float32)) for channel in np.moveaxis(image, -1, 0)]
    resized = np.stack([np.asarray(each.resize(size[::-1], Image.Resampling.BILINEAR)) for each in channels], axis=-1)
    return (resized if image.dtype.kind == "f" else np.rint(resized)).astype(image.dtype)

"""Encoded images of any size as pixels of one size: crops for training and for evaluation."""

import io
import math
from typing import Any

import numpy as np

SCALE = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
_TRIES = 10
_SHORT_SIDE = 256 / 224  # of an image before its centre is cut out, over the side of the crop

Box = tuple[float, float, float, float]


def train_pixels(encoded: bytes, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random part of an image at a random ratio, mirrored with probability 1/2.

    The part has 8 % to 100 % of the area and a ratio of 3/4 to 4/3, as in Szegedy et al.,
    "Going deeper with convolutions" (CVPR 2015), section 6; it is resized bilinearly, averaging
    over the pixels that become one.

    Returns:
        uint8 [size, size, 3].
    """
    image = _open(encoded)
    pixels = _resized(image, random_box(image.width, image.height, rng), size)
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels


def test_pixels(encoded: bytes, size: int) -> np.ndarray:
    """The centre of an image whose short side was brought to 256/224 of `size`.

    Returns:
        uint8 [size, size, 3].
    """
    image = _open(encoded)
    return _resized(image, centre_box(image.width, image.height, size), size)


def random_box(width: int, height: int, rng: np.random.Generator) -> Box:
    """Left, upper, right and lower edge of a random crop, in whole pixels.

    Area and the logarithm of the ratio are uniform. Where ten draws do not fit into the image,
    the largest crop in its middle whose ratio is allowed is taken.
    """
    for _ in range(_TRIES):
        area = width * height * rng.uniform(*SCALE)
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, upper = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, upper, left + w, upper + h
    w = min(width, round(height * RATIO[1]))
    h = min(height, round(width / RATIO[0]))
    left, upper = (width - w) // 2, (height - h) // 2
    return left, upper, left + w, upper + h


def centre_box(width: int, height: int, size: int) -> Box:
    """Edges of the square in the middle that becomes the evaluation crop of side `size`."""
    side = min(width, height) * size / max(round(size * _SHORT_SIDE), size)
    left, upper = (width - side) / 2, (height - side) / 2
    return left, upper, left + side, upper + side


def _open(encoded: bytes) -> Any:
    """An image whose header alone was read."""
    import PIL.Image

    try:
        return PIL.Image.open(io.BytesIO(encoded))
    except PIL.UnidentifiedImageError:  # whose message says no more
        raise ValueError("in no format that Pillow reads") from None


def _resized(image: Any, box: Box, size: int) -> np.ndarray:
    """The part of an image within `box` as uint8 [size, size, 3]."""
    import PIL.Image

    width, height = box[2] - box[0], box[3] - box[1]
    # A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size, for less work; never so small that
    # the part would have to be enlarged.
    least = min(width, height) // size
    shrunk = next((s for s in (8, 4, 2) if s <= least), 1)
    full = image.size
    drafted = image.draft("RGB", (full[0] // shrunk, full[1] // shrunk)) if shrunk > 1 else None
    if drafted is not None:
        _, area = drafted  # (0, 0, width, height) of the smaller image, before rounding up
        x, y = area[2] / full[0], area[3] / full[1]
        box = box[0] * x, box[1] * y, box[2] * x, box[3] * y
    if image.mode != "RGB":
        image = image.convert("RGB")
    return np.asarray(image.resize((size, size), PIL.Image.Resampling.BILINEAR, box=box))

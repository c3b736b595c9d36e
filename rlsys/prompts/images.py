"""Pictures as data sets store them: a path, bytes, a decoded picture, or a list of these."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageOps

from rlsys.records import Image

_WIDE_MODES = ("I", "F")
"""How Pillow's modes of one channel with more than 8 bits begin."""


def load_images(stored: Any, root: Path) -> tuple[Image, ...]:
    """The pictures of a row.

    Args:
        stored: `None` or `""` (no picture), a path, `{"bytes": ..., "path": ...}` (bytes win), a PIL picture, or a
            list.
        root: folder that relative paths start from.

    Raises:
        FileNotFoundError: a path that leads nowhere.
        PIL.UnidentifiedImageError: a file or bytes that are no picture.
        ValueError: a value of another kind, or a picture too large to be decoded (`PIL.Image.MAX_IMAGE_PIXELS`, twice).
    """
    if stored is None or stored == "":
        return ()
    if isinstance(stored, (list, tuple)):
        return tuple(image for one in stored for image in load_images(one, root))
    if isinstance(stored, PillowImage.Image):
        return (_to_record(stored),)
    source: Any = stored
    if isinstance(stored, Mapping):
        data, path = stored.get("bytes"), stored.get("path")
        if data is None and not path:
            raise ValueError(f"an image needs bytes or a path, got the keys {sorted(stored)}")
        source = io.BytesIO(data) if data is not None else path
    if isinstance(source, (str, Path)):
        source = root / source
    elif not isinstance(source, io.BytesIO):
        raise ValueError(f"an image must be a path, bytes with a path, or a list of these, got {type(stored).__name__}")
    try:
        with PillowImage.open(source) as picture:
            return (_to_record(picture),)
    except PillowImage.DecompressionBombError as error:
        raise ValueError(str(error)) from error


def stored_paths(stored: Any) -> Iterator[str]:
    """All paths among what `load_images` is given."""
    if isinstance(stored, str) and stored:
        yield stored
    elif isinstance(stored, (list, tuple)):
        for one in stored:
            yield from stored_paths(one)
    elif isinstance(stored, Mapping) and stored.get("bytes") is None:
        yield from stored_paths(stored.get("path"))


def _to_record(picture: PillowImage.Image) -> Image:
    """As a viewer shows it: turned upright, on white where it is transparent, of several frames the first."""
    upright = ImageOps.exif_transpose(picture)
    if upright.mode.startswith(_WIDE_MODES):
        upright = _to_8_bits(upright)
    if upright.has_transparency_data:
        above = upright.convert("RGBA")
        white = PillowImage.new("RGBA", above.size, "white")
        upright = PillowImage.alpha_composite(white, above)
    return Image(pixels=np.asarray(upright.convert("RGB"), dtype=np.uint8))


def _to_8_bits(picture: PillowImage.Image) -> PillowImage.Image:
    """Levels of 16 bits by their range; those of 32, which have none, from the darkest to the brightest. Pillow would cut off
    all that is above 255.
    """
    levels = np.asarray(picture).astype(np.float64)
    has_range = picture.mode.startswith("I;16")
    low, high = (0.0, 65535.0) if has_range else (float(levels.min()), float(levels.max()))
    scaled = (levels - low) * (255 / (high - low or 1))
    return PillowImage.fromarray(scaled.round().astype(np.uint8))

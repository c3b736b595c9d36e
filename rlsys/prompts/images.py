"""Images in the forms that data sets store: a path, bytes, a decoded image, or a list of these."""

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
"""Prefixes of Pillow's single-channel modes with more than 8 bits."""


def load_images(stored: Any, root: Path) -> tuple[Image, ...]:
    """The images of a row.

    Args:
        stored: `None` or `""` (no image), a path, `{"bytes": ..., "path": ...}` (bytes are preferred), a PIL image, or a list.
        root: folder that relative paths start from.

    Raises:
        FileNotFoundError: there is no file at a path.
        PIL.UnidentifiedImageError: a file or bytes that are not an image.
        ValueError: a value of another kind, or an image too large to be decoded (more than twice `PIL.Image.MAX_IMAGE_PIXELS`).
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
    """All paths among the values that `load_images` accepts."""
    if isinstance(stored, str) and stored:
        yield stored
    elif isinstance(stored, (list, tuple)):
        for one in stored:
            yield from stored_paths(one)
    elif isinstance(stored, Mapping) and stored.get("bytes") is None:
        yield from stored_paths(stored.get("path"))


def _to_record(picture: PillowImage.Image) -> Image:
    """The image as a viewer shows it: turned upright, transparent areas on white, and the first frame if there are several."""
    upright = ImageOps.exif_transpose(picture)
    if upright.mode.startswith(_WIDE_MODES):
        upright = _to_8_bits(upright)
    if upright.has_transparency_data:
        above = upright.convert("RGBA")
        white = PillowImage.new("RGBA", above.size, "white")
        upright = PillowImage.alpha_composite(white, above)
    return Image(pixels=np.asarray(upright.convert("RGB"), dtype=np.uint8))


def _to_8_bits(picture: PillowImage.Image) -> PillowImage.Image:
    """Scale wide levels to 8 bits. 16-bit levels are scaled by their range; 32-bit levels, which have no fixed range, are
    scaled between the image's darkest and brightest level. Pillow's own conversion would clip everything above 255.
    """
    levels = np.asarray(picture).astype(np.float64)
    has_range = picture.mode.startswith("I;16")
    low, high = (0.0, 65535.0) if has_range else (float(levels.min()), float(levels.max()))
    scaled = (levels - low) * (255 / (high - low or 1))
    return PillowImage.fromarray(scaled.round().astype(np.uint8))

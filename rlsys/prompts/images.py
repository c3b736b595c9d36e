"""Pictures as data sets store them: a path, bytes, a decoded picture, or a list of these."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PillowImage

from rlsys.records import Image


def load_images(stored: Any, root: Path) -> tuple[Image, ...]:
    """The pictures of a row.

    Args:
        stored: `None` or `""` (no picture), a path, `{"bytes": ..., "path": ...}` (bytes win), a PIL picture, or a
            list.
        root: folder that relative paths start from.

    Raises:
        FileNotFoundError: a path that leads nowhere.
        PIL.UnidentifiedImageError: a file or bytes that are no picture.
        ValueError: a value of another kind.
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
    with PillowImage.open(source) as picture:
        return (_to_record(picture),)


def _to_record(picture: PillowImage.Image) -> Image:
    return Image(pixels=np.asarray(picture.convert("RGB"), dtype=np.uint8))

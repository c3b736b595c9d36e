"""Images as data URIs."""

from __future__ import annotations

import base64
import io
from html import escape

from rlsys.records import Image

_PIXELATED_BELOW = 192
"""Images whose longer side is below this (pixels) are enlarged with hard edges."""
_LARGEST = 512
"""Longer side, pixels, to which larger images are scaled down for the page."""


def image_html(image: Image, *, alt: str) -> str:
    """An `<img>` that needs no file: small images are embedded as exact PNG, larger ones are scaled down and embedded
    as JPEG.
    """
    from PIL import Image as Pillow

    drawn = Pillow.fromarray(image.pixels)
    small = max(drawn.size) < _PIXELATED_BELOW
    buffer = io.BytesIO()
    if max(drawn.size) > _LARGEST:
        drawn.thumbnail((_LARGEST, _LARGEST))
        drawn.save(buffer, "JPEG", quality=85)
    else:
        drawn.save(buffer, "PNG", optimize=True)
    kind = "jpeg" if buffer.getvalue().startswith(b"\xff\xd8") else "png"
    data = base64.b64encode(buffer.getvalue()).decode()
    style = ' class="pixelated"' if small else ""
    return f'<img{style} src="data:image/{kind};base64,{data}" alt="{escape(alt, quote=True)}">'

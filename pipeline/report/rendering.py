"""The parts of all pages: one base template with its styles, small pictures, and data that are safe in a script."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

from pipeline.core.outputs import GENERATOR
from pipeline.decoding.errors import DecodeError
from pipeline.decoding.image import DecodePolicy, decode_image

THUMBNAIL = 160


def templates(*folders: Path) -> Any:
    """Return the environment of the templates here and in ``folders``: texts are escaped, names must be known."""
    import jinja2

    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader([Path(__file__).parent, *folders]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    found.globals["generator"] = GENERATOR
    return found


def thumbnail(data: bytes | None, side: int = THUMBNAIL, quality: int = 82) -> str | None:
    """Return a small JPEG as a data URI, or None where the image is gone or no longer readable."""
    if data is None:
        return None
    try:
        image = decode_image(data, DecodePolicy())
    except DecodeError:
        return None
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def unread_note(unread: int, asked: int) -> str:
    """Return the sentence of a page that cannot show some of its pictures; empty where it shows all.

    Examples
    --------
    >>> unread_note(0, 24), unread_note(3, 24)
    ('', '3 of the 24 images on this page cannot be read where the cache expects them.')
    """
    if not unread:
        return ""
    return f"{unread} of the {asked} images on this page cannot be read where the cache expects them."


def script_json(value: Any) -> str:
    """Return JSON that is safe inside a script element: no ``<`` can end the element early."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")

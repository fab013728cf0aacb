"""Draw the confusion matrix as ``confusion.png``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.text import shortened

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray
    from PIL.Image import Image as Picture

_MOST_NAMES = 40
_TEXT, _SMALL = 16, 14
_LARGEST, _SMALLEST, _NAMED = 1300, 420, 56
"""Sides of the matrix in pixels: at most, at least; of a cell that has a name."""
_GAP = 12
_LIGHT, _DARK = np.array([247, 251, 255]), np.array([8, 48, 107])
_INK = (28, 36, 48)


def save_confusion(path: str | os.PathLike[str], confusion: NDArray[Any], class_names: tuple[str, ...]) -> None:
    """Draw the confusion matrix, each row as shares of its label, with counts where they fit.

    Parameters
    ----------
    path : str or Path
        The PNG file to write.
    confusion : ndarray of shape (K, K)
        Counts, labels down, predictions across.
    class_names : tuple of str
        K names.
    """
    from PIL import Image, ImageDraw  # only where a run is written

    k = len(class_names)
    names = [shortened(name) for name in class_names] if k <= _MOST_NAMES else []
    cell = max(1, min(_LARGEST // k, max(_SMALLEST // k, _NAMED)))
    side = cell * k
    across = [_text(name).rotate(45, expand=True, resample=Image.Resampling.BICUBIC) for name in names]
    down = [_text(name) for name in names]
    left = max((text.width for text in down), default=0) + _TEXT + 3 * _GAP
    # A name below its column ends under the middle of it, and reaches out to the left.
    left = max([left, *(text.width - i * cell for i, text in enumerate(across))])
    below = max((text.height for text in across), default=0) + _TEXT + 3 * _GAP
    page = Image.new("RGB", (left + side + 2 * _GAP, _GAP + side + below), "white")
    draw = ImageDraw.Draw(page)
    page.paste(_cells(confusion, cell), (left, _GAP))
    draw.rectangle((left - 1, _GAP - 1, left + side, _GAP + side), outline=_INK)
    for i, (low, high) in enumerate(zip(down, across, strict=True)):
        middle = i * cell + cell // 2
        page.paste(_INK, (left - _GAP - low.width, _GAP + middle - low.height // 2), low)
        page.paste(_INK, (left + middle + _TEXT // 2 - high.width, _GAP + side + _GAP // 2), high)
    title = _text("predicted")
    page.paste(_INK, (left + (side - title.width) // 2, page.height - title.height - _GAP // 2), title)
    title = _text("label").rotate(90, expand=True)
    page.paste(_INK, (_GAP // 2, _GAP + (side - title.height) // 2), title)
    if k <= _MOST_NAMES // 2:
        _write_counts(page, confusion, cell, (left, _GAP))
    page.save(path, format="PNG")


def _cells(confusion: NDArray[Any], cell: int) -> Picture:
    """Return the matrix as a picture of coloured cells."""
    from PIL import Image  # as above

    share = _shares(confusion)[:, :, None]
    colours = (_LIGHT + share**0.8 * (_DARK - _LIGHT)).round().astype(np.uint8)
    return Image.fromarray(colours.repeat(cell, axis=0).repeat(cell, axis=1))


def _write_counts(page: Picture, confusion: NDArray[Any], cell: int, corner: tuple[int, int]) -> None:
    share = _shares(confusion)
    for i, j in zip(*np.nonzero(confusion), strict=True):
        text = _text(str(confusion[i, j]), _SMALL)
        at = corner[0] + j * cell + (cell - text.width) // 2, corner[1] + i * cell + (cell - text.height) // 2
        page.paste("white" if share[i, j] > 0.5 else _INK, (int(at[0]), int(at[1])), text)


def _shares(confusion: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1))


def _text(text: str, size: int = _TEXT) -> Picture:
    """Return a line of text as a mask; letters that the font lacks are boxes."""
    from PIL import Image, ImageDraw, ImageFont  # as above

    try:
        font: Any = ImageFont.truetype("DejaVuSans.ttf", size)
    except OSError:
        font = ImageFont.load_default(size)
    # No line breaks, which would make the text two lines, and no lone surrogates, which cannot be drawn.
    line = " ".join(text.split()).encode("utf-8", "replace").decode()
    left, _, right, _ = font.getbbox(line)
    ascent, descent = font.getmetrics()
    mask = Image.new("L", (max(1, int(right - left)), ascent + descent))
    ImageDraw.Draw(mask).text((-left, 0), line, font=font, fill=255)
    return mask

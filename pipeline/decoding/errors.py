"""The error of an image that cannot be decoded, and the limit that every reader checks first."""

from __future__ import annotations

from pipeline.core.items import Status


class DecodeError(Exception):
    """An image that cannot be decoded, with the status of its row.

    Attributes
    ----------
    status : Status
        Which kind of failure.
    """

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def unsupported(reason: str) -> DecodeError:
    """Return the error of a sound image that this program does not read."""
    return DecodeError(Status.UNSUPPORTED, reason)


def check_size(size: tuple[int, int], max_pixels: int) -> None:
    """Raise `DecodeError` for an image of more pixels than the limit: by its header, before it is decoded."""
    width, height = size
    if width * height > max_pixels:
        raise DecodeError(Status.TOO_LARGE, f"{width} × {height} pixels, above the limit of {max_pixels}")


def first_words(error: Exception) -> str:
    """Return an error's text as one line of limited length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:200]

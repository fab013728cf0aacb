"""The weights' own resize, crop, interpolation, mean and standard deviation, as plain data.

The geometric part runs here, on uint8, with the pixels of the reference's resampler (Pillow); the normalisation runs
inside the engine's graph, where it costs nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from pipeline.core.items import Status
from pipeline.core.views import View, views_of
from pipeline.decoding.errors import DecodeError
from pipeline.decoding.resample import BLACK, RESAMPLER, Geometry, size_of
from pipeline.errors import BackboneError

if TYPE_CHECKING:
    from numpy.typing import NDArray

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
    "lanczos": Image.Resampling.LANCZOS,
}


FITS = ("squash", "cover", "contain")
ROUNDINGS = ("even", "down")
MOST_SQUARE = 1 << 28
"""Pixels of an image that was padded to a square; more would fill the memory."""
LEAST_MARGIN = 8 / 7
"""Of the resized image to the crop, for crops at its corners: as 256 to 224."""
_AS_THEY_ARE = ("rounding", "fit", "square", "size", "views")
"""Fields with a default that a spec holds as they are."""


@dataclass(frozen=True, slots=True)
class Preprocess:
    """How an image of any size becomes the network's input.

    Attributes
    ----------
    resize : tuple of int
        One number: the shorter side becomes this, the aspect ratio stays. Two numbers: a height and a width; see `fit`.
    crop : (int, int)
        Height and width cut from the centre; where the resized image is smaller, it is padded.
    interpolation : str
        A name in `RESAMPLING`.
    mean, std : (float, float, float)
        Of the channels, for pixel values scaled to 0…1.
    rounding : {"even", "down"}
        Where a centred crop begins when as many pixels cannot go on either side: at torchvision's rounding to the
        nearest even number, or at that of transformers.
    fit : {"squash", "cover", "contain"}
        With two numbers to resize to: the image gets this height and width, or it keeps its aspect ratio and covers
        them, or lies within them.
    fill : (int, int, int)
        Colour of what is padded.
    square : bool
        Pad the image to a square before it is resized.
    size : int
        The input size that was asked for in place of the weights' own; 0 for their own.
    views : str
        Which further views of an image are embedded, a key of `pipeline.core.views.VIEWS`; empty for none.
    """

    resize: tuple[int, ...]
    crop: tuple[int, int]
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rounding: Literal["even", "down"] = "even"
    fit: Literal["squash", "cover", "contain"] = "squash"
    fill: tuple[int, int, int] = BLACK
    square: bool = False
    size: int = 0
    views: str = ""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of a prepared image: (H, W, 3), or (V · H, W, 3) where V views are cut from it, one below the other."""
        return len(self.cuts) * self.crop[0], self.crop[1], 3

    @property
    def resize_short(self) -> int:
        """Shorter side after resizing, in pixels."""
        return max(self.resize)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Return (width, height) after resizing an image of ``width`` × ``height``.

        With one number the longer side is truncated, not rounded, as torchvision's ``Resize`` does. Where a height and
        a width are to be covered or kept, both sides are rounded, as timm's ``ResizeKeepRatio`` does.
        """
        if len(self.resize) == 2 and self.fit == "squash":
            return self.resize[1], self.resize[0]
        if len(self.resize) == 2:
            choose = max if self.fit == "contain" else min
            ratio = choose(height / self.resize[0], width / self.resize[1])
            return max(round(width / ratio), 1), max(round(height / ratio), 1)
        size = self.resize[0]
        if width <= height:
            return size, int(size * height / width)
        return int(size * width / height), size

    def corner(self, width: int, height: int) -> tuple[int, int]:
        """Return (left, top) of the crop of a resized image of ``width`` × ``height``; negative: of its padding."""
        offset = _offset if self.rounding == "even" else _offset_down
        return offset(width, self.crop[1]), offset(height, self.crop[0])

    def apply(self, image: Image.Image | NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize and crop.

        Parameters
        ----------
        image : PIL.Image.Image, or (any, any, 4) uint8
            RGB, of any size; the fourth byte of an array's pixels has no meaning.

        Returns
        -------
        uint8 of `shape`
            The input of the engine.
        """
        if self.square:
            image = _squared(image, self.fill)
        parts = [RESAMPLER.apply(image, self._geometry(image, view)) for view in self.cuts]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    @property
    def view_count(self) -> int:
        """How many views of an image are embedded."""
        return len(views_of(self.views))

    @property
    def cuts(self) -> tuple[View, ...]:
        """The views that are cut from the image; the network makes mirrored ones itself, of the same pixels."""
        return tuple(view for view in views_of(self.views) if not view.mirrored)

    def _geometry(self, image: Image.Image | NDArray[np.uint8], view: View) -> Geometry:
        """Return how a view is cut."""
        least = math.ceil(LEAST_MARGIN * max(self.crop)) if any(view.corner) else 1
        made = replace(self, resize=tuple(max(round(edge * view.scale), least) for edge in self.resize))
        size = made.resized(*size_of(image))
        corner = tuple(
            _end(at, length, crop, centred)
            for at, length, crop, centred in zip(view.corner, size, self.crop[::-1], made.corner(*size), strict=True)
        )
        return Geometry(size, (corner[0], corner[1]), self.crop, RESAMPLING[self.interpolation], self.fill)

    def at_size(self, size: int) -> Preprocess:
        """Return the same for an input of ``size`` × ``size``: the resize grows with the crop."""
        longest = max(self.crop)
        resize = tuple(max(math.floor(edge * size / longest + 1e-6), 1) for edge in self.resize)
        return replace(self, resize=resize, crop=(size, size), size=size)

    def to_spec(self) -> dict[str, Any]:
        """Return the fields as JSON-like data; those with a default are left out, as older caches do not name them."""
        spec: dict[str, Any] = {
            "resize": list(self.resize),
            "crop": list(self.crop),
            "interpolation": self.interpolation,
            "mean": list(self.mean),
            "std": list(self.std),
        }
        more: dict[str, Any] = {name: getattr(self, name) for name in (*_AS_THEY_ARE, "fill")}
        plain = {each.name: each.default for each in fields(self)}
        changed = {name: value for name, value in more.items() if value != plain[name]}
        return spec | {name: list(value) if isinstance(value, tuple) else value for name, value in changed.items()}

    @classmethod
    def of_description(cls, described: Any, where: str) -> Preprocess:
        """Return what a user described by the fields of a spec; a number stands for one of each.

        Raises
        ------
        BackboneError
            Fields are missing, unknown or no such values; ``where`` is named.

        Examples
        --------
        >>> given = {"resize": 256, "crop": 224, "interpolation": "bicubic", "mean": 0.5, "std": 0.25}
        >>> made = Preprocess.of_description(given, "net.json")
        >>> made.resize, made.crop, made.mean
        ((256,), (224, 224), (0.5, 0.5, 0.5))
        """
        names = {each.name for each in fields(cls)} - {"size", "views"}
        needed = ("resize", "crop", "interpolation", "mean", "std")
        if not isinstance(described, dict) or described.keys() - names or set(needed) - described.keys():
            found = ", ".join(map(str, described)) if isinstance(described, dict) else type(described).__name__
            raise BackboneError(
                f"{where}: expected a preprocessing with {', '.join(needed)}, found {found}: correct it"
            )
        lengths = {"resize": 1, "crop": 2, "mean": 3, "std": 3}
        spec = {
            name: [value] * lengths[name] if name in lengths and isinstance(value, (int, float)) else value
            for name, value in described.items()
        }
        try:
            made = cls.from_spec(spec)
        except (TypeError, ValueError, IndexError):
            raise BackboneError(
                f"{where}: expected numbers in the preprocessing, found {described}: correct it"
            ) from None
        problem = made._problem()
        if problem:
            raise BackboneError(f"{where}: {problem}: correct the preprocessing")
        return made

    def _problem(self) -> str:
        """Return what is wrong with the fields, or nothing."""
        if self.interpolation not in RESAMPLING:
            return f"expected an interpolation of {', '.join(RESAMPLING)}, found {self.interpolation!r}"
        if self.fit not in FITS or self.rounding not in ROUNDINGS:
            return f"expected a fit of {', '.join(FITS)} and a rounding of {', '.join(ROUNDINGS)}"
        # What a user wrote may be of any type.
        edges: tuple[Any, ...] = (*self.resize, *self.crop)
        fill: tuple[Any, ...] = self.fill
        if len(self.resize) not in (1, 2) or not all(isinstance(edge, int) and edge > 0 for edge in edges):
            return f"expected resize and crop in whole pixels, found {list(self.resize)} and {list(self.crop)}"
        if not all(isinstance(value, int) and 0 <= value <= 255 for value in fill) or len(fill) != 3:
            return f"expected a fill of three numbers from 0 to 255, found {list(self.fill)}"
        if self.square not in (True, False):
            return f"expected square as true or false, found {self.square!r}"
        return "" if all(self.std) else "expected standard deviations other than 0"

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> Preprocess:
        """Return what `to_spec` described."""
        mean, std = (tuple(map(float, spec[name])) for name in ("mean", "std"))
        more: dict[str, Any] = {name: spec[name] for name in _AS_THEY_ARE if name in spec}
        if "fill" in spec:
            more["fill"] = tuple(spec["fill"])
        return cls(
            resize=tuple(spec["resize"]),
            crop=(spec["crop"][0], spec["crop"][1]),
            interpolation=spec["interpolation"],
            mean=(mean[0], mean[1], mean[2]),
            std=(std[0], std[1], std[2]),
            **more,
        )


def _end(at: int, length: int, crop: int, centred: int) -> int:
    """Return where a crop begins: at the beginning (-1) or the end (1) of what there is, or else centred."""
    if at == 0 or length <= crop:
        return centred
    return 0 if at < 0 else length - crop


def _offset(length: int, crop: int) -> int:
    """Return where a centred crop begins, with torchvision's roundings; negative where it has to be padded."""
    return round((length - crop) / 2.0) if length >= crop else -((crop - length) // 2)


def _offset_down(length: int, crop: int) -> int:
    """Return the same with the rounding of transformers, for crop and padding alike."""
    return (length - crop) // 2


def _squared(image: Image.Image | NDArray[np.uint8], fill: tuple[int, int, int]) -> Image.Image | NDArray[np.uint8]:
    """Pad an image on both shorter sides to a square.

    Raises
    ------
    DecodeError
        The square would have more than `MOST_SQUARE` pixels.
    """
    width, height = size_of(image)
    side = max(width, height)
    if width == height:
        return image
    if side**2 > MOST_SQUARE:
        reason = f"{width} × {height} pixels are too long to be padded to a square of {side} × {side}"
        raise DecodeError(Status.TOO_LARGE, reason)
    left, top = (side - width) // 2, (side - height) // 2
    if isinstance(image, Image.Image):
        padded = Image.new("RGB", (side, side), fill)
        padded.paste(image, (left, top))
        return padded
    array = np.empty((side, side, 4), np.uint8)
    array[:] = (*fill, 0)
    array[top : top + height, left : left + width] = image
    return array

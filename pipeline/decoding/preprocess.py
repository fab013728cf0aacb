"""The weights' own resize, crop, interpolation, mean and standard deviation, as plain data.

The geometric part runs here, on uint8, with the pixels of the reference's resampler (Pillow); the normalisation runs
inside the engine's graph, where it costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from pipeline.decoding.resample import RESAMPLER, Geometry, size_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True, slots=True)
class Preprocess:
    """How an image of any size becomes the network's input.

    Attributes
    ----------
    resize : tuple of int
        One number: the shorter side becomes this, the aspect ratio stays. Two numbers: height and width become these.
    crop : (int, int)
        Height and width cut from the centre.
    interpolation : str
        A name in `RESAMPLING`.
    mean, std : (float, float, float)
        Of the channels, for pixel values scaled to 0…1.
    """

    resize: tuple[int, ...]
    crop: tuple[int, int]
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (H, W, 3) of a prepared image."""
        return (*self.crop, 3)

    @property
    def resize_short(self) -> int:
        """Shorter side after resizing, in pixels."""
        return max(self.resize)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Return (width, height) after resizing an image of ``width`` × ``height``.

        The longer side is truncated, not rounded, as torchvision's ``Resize`` does.
        """
        if len(self.resize) == 2:
            return self.resize[1], self.resize[0]
        size = self.resize[0]
        if width <= height:
            return size, int(size * height / width)
        return int(size * width / height), size

    def corner(self, width: int, height: int) -> tuple[int, int]:
        """Return (left, top) of the crop of a resized image of ``width`` × ``height``; negative: of its padding."""
        return _offset(width, self.crop[1]), _offset(height, self.crop[0])

    def apply(self, image: Image.Image | NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize and crop.

        Parameters
        ----------
        image : PIL.Image.Image, or (any, any, 4) uint8
            RGB, of any size; the fourth byte of an array's pixels has no meaning.

        Returns
        -------
        (H, W, 3) uint8
            The input of the engine.
        """
        size = self.resized(*size_of(image))
        return RESAMPLER.apply(image, Geometry(size, self.corner(*size), self.crop, RESAMPLING[self.interpolation]))

    def to_spec(self) -> dict[str, Any]:
        """Return the fields as JSON-like data."""
        return {
            "resize": list(self.resize),
            "crop": list(self.crop),
            "interpolation": self.interpolation,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> Preprocess:
        """Return what `to_spec` described."""
        mean, std = (tuple(map(float, spec[name])) for name in ("mean", "std"))
        return cls(
            resize=tuple(spec["resize"]),
            crop=(spec["crop"][0], spec["crop"][1]),
            interpolation=spec["interpolation"],
            mean=(mean[0], mean[1], mean[2]),
            std=(std[0], std[1], std[2]),
        )


def _offset(length: int, crop: int) -> int:
    """Return where a centred crop begins, with torchvision's roundings; negative where it has to be padded."""
    return round((length - crop) / 2.0) if length >= crop else -((crop - length) // 2)
